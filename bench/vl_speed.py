"""LoRA on a Qwen2.5-VL of 3B's shape: seconds a step and memory of vl_insurance/train.py, through each of its paths.

    python bench/vl_speed.py --tokenizer models/Qwen/Qwen2.5-VL-3B-Instruct          all of the table, about 6 minutes
    python bench/vl_speed.py --tokenizer ... --rows unsloth_4bit,hf_4bit

The weights are random, in the shape of the published model: speed and memory are the same, answers mean nothing. They and
photos of 1280 x 640 pixels (drawn by render.py) are made once, in --scratch. Each row is one run of train.py in a process
of its own, at the course's settings: 2 photos x 4, 30 steps, r 16, vision and language. --tokenizer: a folder with
Qwen2.5's tokenizer. Results are appended to bench/results/vl_speed.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TASK = HERE.parent / "vl_insurance"
RESULTS = HERE / "results" / "vl_speed.json"
ROWS = {
    "unsloth_4bit": ["--backend", "unsloth", "--quantization", "4bit", "--optim", "adamw_8bit"],  # the course's
    "hf_4bit": ["--backend", "hf", "--quantization", "4bit"],
    "hf_16bit": ["--backend", "hf", "--quantization", "none"],
    "unsloth_16bit": ["--backend", "unsloth", "--quantization", "none"],
    # The encoder is frozen: what an adapter that vLLM can serve costs.
    "hf_16bit_language_only": ["--backend", "hf", "--quantization", "none", "--finetune_vision_layers", "false"],
}
# Qwen2.5-VL-3B-Instruct's published configuration.
TEXT = dict(
    hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
    vocab_size=151936, max_position_embeddings=128000, rms_norm_eps=1e-6, bos_token_id=151643, eos_token_id=151645,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}, tie_word_embeddings=True,
)  # fmt: skip
VISION = dict(
    depth=32, hidden_size=1280, num_heads=16, intermediate_size=3420, out_hidden_size=2048, window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31], spatial_merge_size=2, patch_size=14, tokens_per_second=2,
)  # fmt: skip


def build(folder, tokenizer):
    """The 3B shape with random bf16 weights and its processor: 7.5 GB on disk."""
    import torch
    import trl
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from model import load_processor

    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    words = AutoTokenizer.from_pretrained(tokenizer)
    missing = set(names) - set(words.get_vocab())
    if missing:
        raise SystemExit(f"{tokenizer}: no Qwen2.5 tokenizer: {', '.join(sorted(missing))} are not in it.")
    image, video, start, end = words.convert_tokens_to_ids(names)
    config = Qwen2_5_VLConfig(
        text_config=TEXT, vision_config=VISION, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=True,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    words.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja").read_text(
        encoding="utf-8"
    )
    made = folder.with_name(f".{folder.name}.new")
    model.save_pretrained(made, max_shard_size="4GB")
    words.save_pretrained(made)
    load_processor(made, 12_845_056).save_pretrained(made)
    # Where transformers looks for an image processor by itself, as Unsloth does.
    settings = json.loads((made / "processor_config.json").read_text())["image_processor"]
    (made / "preprocessor_config.json").write_text(
        json.dumps(settings | {"image_processor_type": "Qwen2VLImageProcessor"})
    )
    os.replace(made, folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters: {folder}")


def photos(folder, count=64):
    """Drawn dashboards at the size of a photo: the same pictures as render.py's, enlarged."""
    from PIL import Image

    import render

    render.write(folder, count, "train", seed=3)
    for file in sorted((folder / "images").iterdir()):
        Image.open(file).resize((1280, 640), Image.Resampling.BICUBIC).save(file, quality=90)


def measure(name, model, data, scratch, steps):
    """Run train.py once; what its run.json and the times of its steps say."""
    before = set(scratch.glob("vl_insurance/*"))
    command = [
        sys.executable,
        str(TASK / "train.py"),
        "--model",
        str(model),
        "--data",
        str(data),
        "--max_steps",
        str(steps),
    ]
    command += [
        "--eval_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
        "--show_answers",
        "0",
        "--save_strategy",
        "no",
        *ROWS[name],
    ]
    done = subprocess.run(command, env=os.environ | {"OUTPUT_DIR": str(scratch)}, capture_output=True, text=True)
    if done.returncode:
        return {"name": name, "failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    (folder,) = set(scratch.glob("vl_insurance/*")) - before
    record = json.loads((folder / "run.json").read_text())
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [log["time"] for log in logs if "loss" in log]
    later = [b - a for a, b in zip(times, times[1:], strict=False)][4:]  # the first steps compile and warm up
    return {
        "name": name,
        "machine": record["device"],
        "seconds_a_step": round(statistics.median(later), 3),
        "photos_a_second": round(8 / statistics.median(later), 2),
        "seconds_of_training": record["seconds"],
        "peak_gb": record["peak_gb"],
        "peak_gb_reserved": record["peak_gb_reserved"],
        "tokens_a_row": round(record["tokens"] / steps / 8),
        "loss": [logs[0]["loss"], [log["loss"] for log in logs if "loss" in log][-1]],
        "versions": record["versions"],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokenizer", required=True, help="a folder with Qwen2.5's tokenizer")
    parser.add_argument(
        "--scratch", type=Path, default=Path("/tmp/vl_speed"), help="where the model and the photos are made (8 GB)"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    unknown = set(args.rows.split(",")) - set(ROWS)
    if unknown:
        raise SystemExit(f"--rows: no {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}.")
    if args.steps < 8:
        raise SystemExit("--steps: at least 8, since the first ones are not counted.")
    sys.path.insert(0, str(TASK))
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("a bench of a GPU's speed needs one.")
    args.scratch.mkdir(parents=True, exist_ok=True)
    model, data = args.scratch / "vl-3b-shape", args.scratch / "photos"
    if not model.exists():
        build(model, args.tokenizer)
        torch.cuda.empty_cache()
    if not data.exists():
        photos(data)
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    for name in args.rows.split(","):
        made = measure(name, model, data, args.scratch, args.steps)
        print(json.dumps(made), flush=True)
        results.append(made)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        new = args.out.with_suffix(".new")
        new.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(new, args.out)


if __name__ == "__main__":
    main()
