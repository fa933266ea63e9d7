"""LoRA on a Qwen2.5-VL of 3B's shape: vl_insurance/train.py against stock Unsloth and plain transformers, at equal updates.

    python bench/vl_speed.py --out results.jsonl                       what --seconds 270 allow; again: the rest
    python bench/vl_speed.py --out results.jsonl --arms ours           one arm of it

The weights are random, in the shape of the published model: speed and memory are the same, answers mean nothing. They and
photos of 1280 x 640 pixels (drawn by render.py) are made once, in --scratch. Each row is a process of its own that runs
train.py: r 16, vision and language, the same photos in the same order, the same constant learning rate, so the losses say
whether the updates are the same. "ours" is what --auto chooses. Stock means that windows.py,
which helps every path, is left out. The first steps are not counted. With --out, rows that it has are not run again.
--tokenizer: a folder with Qwen2.5's tokenizer; without it the miniature's. --tiny: a small shape, to try this on a CPU.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TASK = HERE.parent / "vl_insurance"
BY_HAND = ["--auto", "false", "--quantization", "none"]
# row: (flags, photos per step, steps, GB of the card or None for all of it)
ARMS = {
    "ours": {"8 photos": ([], 8, 6, None), "8 photos, 24 GB": ([], 8, 5, 24), "64 photos": ([], 64, 3, None)},
    "answers": {"32 photos, 24 tokens each": ([], 32, 1, None)},
    "transformers": {
        "8 photos, 2 at once": (["--backend", "hf", *BY_HAND], 8, 3, None),
        "8 photos, 8 at once": (["--backend", "hf", *BY_HAND, "--per_device_train_batch_size", "8"], 8, 3, None),
    },
    "unsloth": {
        "8 photos, 2 at once": (["--backend", "unsloth", *BY_HAND], 8, 4, None),
        "8 photos, 8 at once": (["--backend", "unsloth", *BY_HAND, "--per_device_train_batch_size", "8"], 8, 3, None),
    },
    # Eight times the rows above, by construction: minutes, and not run unless asked for.
    "transformers64": {"64 photos, 2 at once": (["--backend", "hf", *BY_HAND], 64, 2, None)},
    "unsloth64": {"64 photos, 2 at once": (["--backend", "unsloth", *BY_HAND], 64, 2, None)},
}
ORDER = ("ours", "answers", "transformers", "unsloth")
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
SMALL = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
)  # fmt: skip
SMALL_VISION = dict(
    depth=3, hidden_size=64, num_heads=4, intermediate_size=96, out_hidden_size=64, fullatt_block_indexes=[1]
)


def build(folder, tokenizer, tiny=False):
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
    ends = dict(bos_token_id=words.pad_token_id, eos_token_id=words.eos_token_id)
    config = Qwen2_5_VLConfig(
        text_config=TEXT | ends | (SMALL if tiny else {}), vision_config=VISION | (SMALL_VISION if tiny else {}),
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
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


def photos(folder, count, tiny=False):
    """Drawn dashboards at the size of a photo: the same pictures as render.py's, enlarged."""
    from PIL import Image

    import render

    render.write(folder, count, "train", seed=3)
    for file in sorted((folder / "images").iterdir()) if not tiny else ():
        Image.open(file).resize((1280, 640), Image.Resampling.BICUBIC).save(file, quality=90)


def train(row, flags, rows, steps, card, args):
    """Run train.py once, in this process; what its run.json and the times of its steps say."""
    import torch

    import train as task
    from common import device

    folder = args.scratch / f"run-{time.time_ns()}"
    total, cuda = device.card_bytes() if torch.cuda.is_available() else 0, torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(min(1.0, card * 1e9 / total) if card else 1.0)
    real, device.card_bytes = device.card_bytes, lambda: int(card * 1e9) if card else total
    if "--auto" in flags:
        once = 8 if "--per_device_train_batch_size" in flags else 2
        flags = [*flags, "--gradient_accumulation_steps", str(rows // once)]
    else:
        flags = [*flags, "--rows_per_step", str(rows)]
    if args.tiny:
        flags = [*flags, "--max_pixels", str(336 * 168), "--quantization", "none"]
    try:
        task.main(
            ["--model", str(args.scratch / "model"), "--data", str(args.scratch / "photos"), "--max_steps", str(steps),
             "--output_dir", str(folder), "--eval_strategy", "no", "--load_best_model_at_end", "false",
             "--show_answers", "0", "--save_strategy", "no", "--warmup_steps", "0",
             "--lr_scheduler_type", "constant", *flags]
        )  # fmt: skip
    finally:
        device.card_bytes = real
    record = json.loads((folder / "run.json").read_text())
    logs = [each for each in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in each]
    times = [b["time"] - a["time"] for a, b in zip(logs, logs[1:], strict=False)]
    # The first ones warm up. The mean, since a loss may be logged while the next step already runs.
    seconds = statistics.mean(times[-(len(times) + 1) // 2 :])
    tokens = record["tokens"] / steps / rows
    return {
        "s_per_step": round(seconds, 3), "photos_per_s": round(rows / seconds, 2), "tokens_per_s": round(rows * tokens / seconds),
        "peak_gb": record.get("peak_gb"), "estimate_gb": estimate(record, tokens, args),
        "loss": [round(log["loss"], 4) for log in logs], "tokens_per_row": round(tokens),
        "times": [round(each, 3) for each in times], "settings": settings_of(record), "machine": record["device"],
    }  # fmt: skip


SETTINGS = ("backend", "quantization", "packing", "fused_lora", "gradient_checkpointing", "per_device_train_batch_size",
            "gradient_accumulation_steps", "dataloader_num_workers")  # fmt: skip


def settings_of(record):
    known = record["arguments"] | record.get("trainer", {})
    return {name: known[name] for name in SETTINGS if name in known}


def estimate(record, tokens, args):
    """GB that common/speed/fit.py expects a step of these settings to take."""
    from common.speed import fit

    how, grid = settings_of(record), 990 if not args.tiny else 72
    code = "unsloth" if how["backend"] == "unsloth" else "fast" if how["fused_lora"] else "plain"
    micro = how["per_device_train_batch_size"]
    parts = fit.needs(
        fit.shape_of(args.scratch / "model"), round(micro * tokens), 16, how["quantization"] == "4bit",
        how["gradient_checkpointing"], code, patches=4 * grid * micro,
    )  # fmt: skip
    return round(sum(parts.values()) / 1e9, 2)


def answers(row, flags, rows, steps, card, args):
    """Photos per second of evaluate.py and infer.py: `rows` photos, answers of 24 tokens, 8 and all of them at once."""
    import torch

    from answers import generate
    from data import read_rows
    from model import load_base, load_processor

    model = load_base(
        args.scratch / "model", "hf", None, torch.bfloat16 if torch.cuda.is_available() else torch.float32
    )
    processor = load_processor(args.scratch / "model", 336 * 168 if args.tiny else 1024 * 784)
    known, _ = read_rows(args.scratch / "photos")
    known = (known * rows)[:rows]
    pictures, prompts, made = [each["image"] for each in known], [each["prompt"] for each in known], {}
    processor.tokenizer.eos_token = processor.tokenizer.pad_token  # random weights end no answer
    generate(model, processor, pictures[:4], prompts[:4], 4, 4)
    for size in (8, rows):
        began = time.perf_counter()
        generate(model, processor, pictures, prompts, 24, size)
        made[f"photos_per_s, {size} at once"] = round(rows / (time.perf_counter() - began), 2)
    return made


def one(args):
    """One row, in this process: what a row before has left in memory would count. Appends to --out."""
    sys.path[:0] = [str(TASK), str(TASK.parent)]
    os.environ["OUTPUT_DIR"] = str(args.scratch)
    if "unsloth" in args.arm:
        import unsloth  # noqa: F401
    import answers as asking
    import model

    if args.arm not in ("ours", "answers"):
        model.attend_at_once = model.see_bytes = asking.see_bytes = lambda each: each
    try:
        made = (answers if args.arm == "answers" else train)(args.row, *ARMS[args.arm][args.row], args)
    except (Exception, SystemExit) as error:
        made = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps({"arm": args.arm, "row": args.row, **made}) + "\n")


def done(file):
    """The rows that ended well, by (arm, row)."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return {(each["arm"], each["row"]): each for each in lines if "failed" not in each}


def table(file):
    """What is in the file, as lines."""
    shown = ("s_per_step", "photos_per_s", "tokens_per_s", "peak_gb", "estimate_gb")
    yield "| arm | row | s per step | photos per s | tokens per s | peak GB | estimate | losses |"
    yield "|---|---|---|---|---|---|---|---|"
    for (name, row), each in done(file).items():
        if "s_per_step" in each:
            losses = ", ".join(f"{loss:.4f}" for loss in each["loss"][:3])
            yield f"| {name} | {row} | " + " | ".join(str(each[key]) for key in shown) + f" | {losses} |"
        else:
            yield f"{name}, {row}: " + ", ".join(
                f"{key} {value}" for key, value in each.items() if key not in ("arm", "row")
            )
    for each in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if "failed" in each:
            yield f"{each['arm']}, {each['row']}: {each['failed']}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokenizer", default=str(TASK / "miniature"), help="a folder with Qwen2.5's tokenizer")
    parser.add_argument(
        "--scratch", type=Path, default=Path("/tmp/vl_speed"), help="where model and photos are made (8 GB)"
    )
    parser.add_argument("--arms", default=",".join(ORDER), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seconds", type=float, default=270, help="end in time, with what there is")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "vl_speed.jsonl")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try this on a CPU")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        return one(args)
    began, chosen = time.monotonic(), args.arms.split(",")
    if unknown := set(chosen) - set(ARMS):
        raise SystemExit(f"--arms: no {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}.")
    sys.path[:0] = [str(TASK), str(TASK.parent)]
    import torch

    if not torch.cuda.is_available() and not args.tiny:
        raise SystemExit("a bench of a GPU's speed needs one.")
    args.scratch.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not (args.scratch / "model").exists():
        build(args.scratch / "model", args.tokenizer, args.tiny)
        gc.collect()
        torch.cuda.empty_cache()
    if not (args.scratch / "photos").exists():
        photos(args.scratch / "photos", 216, args.tiny)  # 194 to train on: three steps of 64
    for name, row in [(each, row) for each in chosen for row in ARMS[each]]:
        left = args.seconds - (time.monotonic() - began)
        if left < 20 or (name, row) in done(args.out):
            continue
        command = [sys.executable, __file__, "--arm", name, "--row", row, "--scratch", args.scratch, "--out", args.out]
        try:
            with open(args.out.with_suffix(f".{name}.log"), "a", encoding="utf-8") as log:
                subprocess.run([*command, *["--tiny"] * args.tiny], stdout=log, stderr=subprocess.STDOUT, timeout=left)
        except subprocess.TimeoutExpired:
            print(f"{name}, {row}: out of time after {left:.0f} s")
        print(f"{name}, {row}: {time.monotonic() - began:.0f} s since the start", flush=True)
    if args.out.exists():
        print("\n".join(table(args.out)))


if __name__ == "__main__":
    main()
