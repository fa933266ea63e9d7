"""Peak GPU memory of the SFT recipes, measured, beside what `train.py --estimate` says of the same settings.

    python bench/memory.py                                 every setting below on one GPU, under five minutes
    python bench/memory.py --shapes tiny --out tiny.json   a check on a CPU (the process's memory, which says little)
    python bench/memory.py --table                         the table again from the results, with the estimate as it is now

Models of Qwen2.5's shapes with random weights, built once each in a scratch folder; rows of equal length, given as token
ids, through the recipes' own path: alpaca's load_model, common/speed's kernels, TRL's SFTTrainer. One process a
setting. Measured is what torch's tensors took at most while training (torch.cuda.max_memory_allocated); loading has its
own peak. nvidia-smi shows some 0.5 GB more: CUDA's context, and blocks that torch holds on to.
Results: bench/results/memory.json, the newest measurement of a setting counts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "alpaca")]  # whose loading is measured; it has a copy of common/, too
RESULTS = HERE / "results" / "memory.json"
EOS, PAD = 151645, 151643
# Weights, gradient checkpointing, rows of a micro-batch, code: "fast" is what --auto chooses on Ampere and later
# (packing, fused LoRA, Liger), "plain" is PEFT and TRL as they are, as in the RL and vision folders.
SETTINGS = {
    "7B": [("4bit", True, 16, "fast"), ("none", True, 16, "fast"), ("none", False, 8, "fast")],
    "1.5B": [("none", True, 16, "fast"), ("none", False, 16, "fast"), ("4bit", True, 16, "fast"),
             ("none", True, 16, "plain"), ("none", False, 8, "plain")],
    "0.5B": [("none", True, 16, "fast"), ("none", False, 16, "fast")],
    "tiny": [("none", True, 4, "plain"), ("none", False, 4, "plain")],
}  # fmt: skip
TINY = dict(hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, vocabulary=151_936, tied=True)


def build(name, work):
    """A model with random weights of the shape `name`, as safetensors, with a tokenizer nobody calls: a folder."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from common.speed.fit import QWEN

    folder, shape = work / name, TINY if name == "tiny" else QWEN[name]
    if (folder / "done").exists():
        return folder
    config = Qwen2Config(
        hidden_size=shape["hidden"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        vocab_size=shape["vocabulary"],
        tie_word_embeddings=shape["tied"],
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM(config).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    made = Tokenizer(models.WordLevel({"<pad>": PAD, "<eos>": EOS, "word": 0}, unk_token="word"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def measure(args):
    """Some training steps with one setting, in this process: a dict of what was seen."""
    import resource
    from importlib.metadata import PackageNotFoundError, version

    from common import device, models, paths
    from common.cli import SftArgs

    paths.load_env()  # torch's allocator is set there, before CUDA starts
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from common.speed import packing
    from train import load_model

    cuda, fast = torch.cuda.is_available(), args.code == "fast"
    chosen = dict(quantization=args.quantization, lora_r=args.lora_r, auto=False, packing=fast, fused_lora=fast)
    model_args = SftArgs(model=str(args.folder), backend=device.decide_backend("hf"), **chosen)
    model_args.max_length = args.length
    config = SFTConfig(
        output_dir=str(args.folder.parent / "run"),
        bf16=True,
        use_cpu=not cuda,
        max_length=args.length,
        per_device_train_batch_size=args.micro,
        gradient_checkpointing=args.checkpointing,
        use_liger_kernel=fast,
        loss_type="nll" if fast else "chunked_nll",
        optim="adamw_torch_fused",
        max_steps=args.steps,
        learning_rate=2e-4,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    draw, count = random.Random(0), args.micro * args.steps
    rows = [[draw.randrange(3, 150_000) for _ in range(args.length)] for _ in range(count)]
    tokenizer = models.load_tokenizer(args.folder)
    began = time.perf_counter()
    model = load_model(model_args, config, args.folder)
    loaded = time.perf_counter() - began
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        data_collator=packing.collator(tokenizer, fast, "hf"),
    )
    models.widen_adapters(model)

    def peak(of):
        return round((of() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9, 2)

    loading = peak(torch.cuda.max_memory_allocated)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    idle = peak(torch.cuda.memory_allocated)
    began = time.perf_counter()
    loss = trainer.train().training_loss
    versions = {}
    for name in ("torch", "transformers", "trl", "peft", "bitsandbytes", "liger_kernel"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "shape": args.one,
        "quantization": args.quantization,
        "checkpointing": args.checkpointing,
        "code": args.code,
        "micro": args.micro,
        "length": args.length,
        "lora_r": args.lora_r,
        "steps": args.steps,
        "peak_gb": peak(torch.cuda.max_memory_allocated),
        "reserved_gb": peak(torch.cuda.max_memory_reserved),
        "before_training_gb": idle,
        "loading_gb": loading,
        "load_s": round(loaded, 1),
        "train_s": round(time.perf_counter() - began, 1),
        "loss": round(loss, 3),
        "device": torch.cuda.get_device_name() if cuda else "CPU (the process's memory)",
        "versions": versions,
    }


def estimated(row):
    """Bytes of a result's setting by common/speed/fit.py, by what takes them."""
    from common.speed.fit import QWEN, needs

    shape = TINY if row["shape"] == "tiny" else QWEN[row["shape"]]
    tokens, four_bit = row["micro"] * row["length"], row["quantization"] == "4bit"
    return needs(shape, tokens, row["lora_r"], four_bit, row["checkpointing"], row["code"])


def table(results):
    """The newest result of each setting, as Markdown, beside the estimate."""
    newest = {tuple(row[n] for n in ("shape", "quantization", "checkpointing", "code")): row for row in results}
    lines = ["| shape | weights | checkpointing | code | tokens of a micro-batch | measured GB | estimated GB | ratio | before training GB | loading GB |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in newest.values():
        guess = sum(estimated(row).values()) / 1e9
        lines.append(
            f"| {row['shape']} | {'4-bit' if row['quantization'] == '4bit' else '16-bit'} | {'yes' if row['checkpointing'] else 'no'} "
            f"| {row['code']} | {row['micro'] * row['length']:,} | {row['peak_gb']:.2f} | {guess:.2f} | {guess / row['peak_gb']:.2f} "
            f"| {row['before_training_gb']:.2f} | {row['loading_gb']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="7B,1.5B,0.5B", help=f"which of {','.join(SETTINGS)}")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--work", type=Path, help="where the models are built: 19 GB (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only the table, from --out")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one setting
    parser.add_argument("--build", help=argparse.SUPPRESS)  # the process that builds a model
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quantization", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--micro", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--code", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        build(args.build, args.work)
        return
    if args.one:
        args.out.write_text(json.dumps(measure(args)))
        return
    shapes = args.shapes.split(",")
    if wrong := set(shapes) - set(SETTINGS):
        raise SystemExit(f"no such shape: {', '.join(wrong)}. There are: {', '.join(SETTINGS)}")
    failed = 0
    if not args.table:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            failed = run_all(args, shapes, args.work or Path(scratch))
    if results := load(args.out):
        print(table(results))
    raise SystemExit(failed and f"{failed} settings failed")


def run_all(args, shapes, work):
    """Build each shape, measure each of its settings. Returns how many failed."""
    failed = 0
    for shape in shapes:
        began = time.time()
        if not call(["--build", shape, "--work", work], args.out.parent / f"memory_{shape}.log"):
            failed += len(SETTINGS[shape])
            continue
        print(f"{shape} built ({time.time() - began:.0f} s)", flush=True)
        for quantization, checkpointing, micro, code in SETTINGS[shape]:
            name = f"{shape} {quantization} {'checkpointed' if checkpointing else 'kept'} {code}"
            made, began = work / "one.json", time.time()
            flags = ["--one", shape, "--folder", work / shape, "--quantization", quantization, "--micro", micro]
            flags += ["--code", code]
            flags += ["--checkpointing"] if checkpointing else []
            flags += ["--out", made, "--length", args.length, "--steps", args.steps, "--lora_r", args.lora_r]
            if not call(flags, args.out.parent / f"memory_{name.replace(' ', '_')}.log"):
                failed += 1
                continue
            result = json.loads(made.read_text())
            made.unlink()
            args.out.write_text(json.dumps([*load(args.out), result], indent=1) + "\n")
            print(f"{name}: {result['peak_gb']} GB ({time.time() - began:.0f} s)", flush=True)
    return failed


def call(flags, log):
    """This script again, in its own process; its output goes into `log`, which is kept only where it failed."""
    with open(log, "w") as file:
        command = [sys.executable, __file__, *map(str, flags)]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ).returncode
    if code:
        tail = log.read_text(errors="replace").strip().splitlines()[-3:]
        print(f"failed with code {code}, see {log}:\n  " + "\n  ".join(tail), flush=True)
        return False
    log.unlink()
    return True


def load(file):
    return json.loads(file.read_text()) if file.exists() else []


if __name__ == "__main__":
    main()
