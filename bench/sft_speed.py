"""LoRA fine-tuning of a 7B model, the same rows through every recipe: samples a second, memory, loss.

    python bench/sft_speed.py --data alpaca.json                     # every row of the table below, about 20 minutes
    python bench/sft_speed.py --data alpaca.json --rows fast,fast_24gb
    python bench/sft_speed.py --plot                                 # table and picture again from the results

One process a row. Results are appended to bench/results/sft_speed.json; `course` is measured first on a machine that
has no result of it, since only ratios within one machine mean anything. Tokens are real ones: padding is not counted.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

LORA = dict(quantization="none", packing=True, fused_lora=True, use_liger_kernel=True, gradient_checkpointing=False)
PLAIN = dict(packing=False, fused_lora=False, use_liger_kernel=False, gradient_checkpointing=True)
ROWS = {
    # The course's recipe and its peers, as their own documentation has them.
    "course": dict(PLAIN, backend="unsloth", quantization="4bit", micro=2, accumulate=4, optim="adamw_8bit"),
    "trl_peft_4bit": dict(PLAIN, backend="hf", quantization="4bit", micro=2, accumulate=4, optim="adamw_8bit"),
    "trl_peft_bf16_32_padded": dict(PLAIN, backend="hf", quantization="none", micro=32, accumulate=2),
    "unsloth_bf16_32_padded": dict(PLAIN, backend="unsloth", quantization="none", micro=32, accumulate=2),
    # Unsloth with this repo's packing and torch's attention by row.
    "unsloth_bf16_packed": dict(PLAIN, backend="unsloth", quantization="none", packing=True, micro=32, accumulate=2),
    "unsloth_4bit_packed": dict(PLAIN, backend="unsloth", quantization="4bit", packing=True, micro=32, accumulate=2),
    # The same updates as the course: 8 rows per step.
    "same_updates": dict(LORA, backend="hf", micro=8, accumulate=1),
    "same_updates_4bit": dict(LORA, backend="hf", quantization="4bit", micro=8, accumulate=1),
    # Throughput: 64 rows per step.
    "packed_peft": dict(LORA, backend="hf", fused_lora=False, micro=64, accumulate=1),
    "fast": dict(LORA, backend="hf", micro=64, accumulate=1),
    "fast_32": dict(LORA, backend="hf", micro=32, accumulate=1),  # for two GPUs: 64 rows per step in all
    "fast_48gb": dict(LORA, backend="hf", micro=32, accumulate=2),
    "fast_4bit_40gb": dict(LORA, backend="hf", quantization="4bit", micro=32, accumulate=2),
    "fsdp": dict(LORA, backend="hf", use_liger_kernel=False, micro=32, accumulate=1),  # two GPUs, fsdp2.yaml
    "fast_24gb": dict(LORA, backend="hf", gradient_checkpointing=True, micro=32, accumulate=2),
    "fast_4bit_16gb": dict(LORA, backend="hf", quantization="4bit", gradient_checkpointing=True, micro=32, accumulate=2),
}  # fmt: skip
RESULTS = HERE / "results" / "sft_speed.json"


def measure(name, args):
    """Train some windows of optimizer steps with one recipe; a dict of what was seen."""
    recipe = ROWS[name]
    from common import device, hub, models, paths
    from common.cli import SftArgs

    paths.load_env()
    backend = device.decide_backend(recipe["backend"])  # before TRL
    import torch
    from alpaca_data import dataset, read
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from common.speed import packing
    from train import load_model

    ceiling = matmul_ceiling()
    chosen = {name: recipe[name] for name in ("quantization", "packing", "fused_lora")}
    model_args = SftArgs(model=args.model, auto=False, backend=backend, **chosen)
    model_args.max_length = 2048
    rows_a_step = recipe["micro"] * recipe["accumulate"]
    # Timed in windows, each as long as the pause between two logs: a log makes the GPU wait, and real runs log seldom.
    window = args.window if rows_a_step > 8 else 2 * args.window
    config = SFTConfig(
        output_dir="/tmp/sft_speed",
        bf16=True,
        max_length=2048,
        per_device_train_batch_size=recipe["micro"],
        gradient_accumulation_steps=recipe["accumulate"],
        gradient_checkpointing=recipe["gradient_checkpointing"],
        use_liger_kernel=recipe["use_liger_kernel"],
        optim=recipe.get("optim", "adamw_torch_fused"),
        max_steps=window * (1 + args.windows),
        learning_rate=2e-4,
        warmup_steps=5,
        lr_scheduler_type="linear",
        logging_steps=window,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        seed=args.seed,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    path = hub.resolve_model(args.model)
    tokenizer = models.load_tokenizer(path)
    data = dataset(read(args.data), tokenizer)
    began = time.time()
    model = load_model(model_args, config, path)
    loaded = time.time() - began
    times, losses, tokens = [], [], []
    pad = packing.collator(tokenizer, recipe["packing"], backend)

    def counting(rows):
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        return pad(rows)

    class Clock(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                torch.cuda.synchronize()
                times.append(time.perf_counter())
                losses.append(round(logs["loss"], 5))

    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, args=config, train_dataset=data, data_collator=counting
    )
    trainer.add_callback(Clock())
    models.widen_adapters(model)
    torch.cuda.reset_peak_memory_stats()
    if args.profile:
        return profile(trainer, name)
    trainer.train()
    # The first window warms up. The collator runs a batch ahead, so tokens are counted from the front.
    seconds = [end - start for start, end in zip(times, times[1:], strict=False)]
    batches = window * recipe["accumulate"]
    real = [sum(tokens[batches * n : batches * (n + 1)]) for n in range(1, 1 + args.windows)]
    speeds = sorted(t / s for t, s in zip(real, seconds, strict=True))
    rate, steps = sum(real) / sum(seconds), window * args.windows
    parameters = sum(p.numel() for p in model.parameters()) if recipe["quantization"] == "none" else args.parameters
    if config.process_index:
        return None
    gpus = config.world_size  # under `accelerate launch`; the other GPUs' rows are as many and as long on average
    return {
        "name": name if gpus == 1 else f"{name}_x{gpus}{'_fsdp' if device.sharded() else ''}",
        "gpus": gpus,
        "machine": machine(),
        "device": torch.cuda.get_device_name(),
        "samples_per_s": round(gpus * rows_a_step * steps / sum(seconds), 2),
        "tokens_per_s": round(gpus * rate),
        "tokens_per_s_median": round(gpus * statistics.median(speeds)),
        "tokens_per_s_low_high": [round(gpus * speeds[0]), round(gpus * speeds[-1])],
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "peak_gb_reserved": round(torch.cuda.max_memory_reserved() / 1e9, 1),
        "mfu": round(4 * parameters * rate / ceiling, 3),
        "matmul_tflops": round(ceiling / 1e12),
        "loss": losses[-1],  # mean of the last window
        "losses": losses,
        "rows_a_step": gpus * rows_a_step,
        "steps": steps,
        "window": window,
        "seed": args.seed,
        "most_tokens_in_a_batch": max(tokens),
        "load_s": round(loaded, 1),
        "recipe": recipe,
        "versions": {
            each: version(each) for each in ("torch", "transformers", "trl", "peft", "unsloth", "liger_kernel")
        },
    }


def profile(trainer, name):
    """Where one optimizer step's GPU time goes: the kernels by their share, and how long the GPU was idle."""
    import torch
    from transformers import TrainerCallback

    made = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    class Window(TrainerCallback):
        def on_step_begin(self, _, state, *__, **___):
            if state.global_step == 4:
                torch.cuda.synchronize()
                made.__enter__()
                self.start = time.perf_counter()

        def on_step_end(self, _, state, control, **__):
            if state.global_step == 6:
                torch.cuda.synchronize()
                self.wall = time.perf_counter() - self.start
                made.__exit__(None, None, None)
                control.should_training_stop = True

    window = Window()
    trainer.add_callback(window)
    trainer.train()
    averages = made.key_averages()
    busy = sum(event.self_device_time_total for event in averages) / 1e6
    lines = [f"{name}: 2 steps, {window.wall:.3f} s, GPU busy {busy:.3f} s ({busy / window.wall:.0%})"]
    for event in sorted(averages, key=lambda e: -e.self_device_time_total)[:25]:
        ms = event.self_device_time_total / 1e3
        lines.append(f"{ms:9.1f} ms {ms / busy / 10:5.1f}% {event.count:6} x {event.key[:100]}")
    text = "\n".join(lines)
    print(text)
    (RESULTS.parent / f"profile_{name}.txt").write_text(text + "\n")
    return None


def matmul_ceiling():
    """FLOP/s of a large bf16 matrix product on this GPU, the median of 10."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(15):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 8192**3 / statistics.median(times[5:])


def machine():
    """A name for this boot of this machine, without its host name."""
    return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]


def version(name):
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def load(file):
    return json.loads(file.read_text()) if file.exists() else []


def table(results):
    """The newest result of each recipe on each machine, as Markdown, with the ratio to that machine's course."""
    newest = {(row["machine"], row["name"]): row for row in results}
    lines = [
        "| recipe | samples/s | real tokens/s (low to high) | peak GB | MFU | loss | course x |",
        "|---|---|---|---|---|---|---|",
    ]
    for (where, name), row in sorted(newest.items(), key=lambda item: (item[0][0], item[1]["samples_per_s"])):
        course = newest.get((where, "course"))
        ratio = f"{row['samples_per_s'] / course['samples_per_s']:.1f}" if course else ""
        low, high = row["tokens_per_s_low_high"]
        lines.append(f"| {name} | {row['samples_per_s']} | {row['tokens_per_s']:,} ({low:,} to {high:,}) | {row['peak_gb']} "
                     f"| {row['mfu']:.0%} | {row['loss']} | {ratio} |")  # fmt: skip
    return "\n".join(lines)


def plot(results, file):
    """Samples a second against peak memory, a point a recipe; the ratios are to the course on the same machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    course = {row["machine"]: row["samples_per_s"] for row in results if row["name"] == "course"}
    newest = {row["name"]: row for row in results if row.get("gpus", 1) == 1}
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for name, row in newest.items():
        ours, unsloth = row["recipe"]["fused_lora"], row["recipe"]["backend"] == "unsloth"
        axes.scatter(
            row["peak_gb"],
            row["samples_per_s"],
            color="tab:blue" if ours else "tab:orange" if unsloth else "tab:gray",
            zorder=3,
        )
        ratio = f"  {row['samples_per_s'] / course[row['machine']]:.1f} x" if row["machine"] in course else ""
        place = (6, -10) if name.startswith(("trl", "unsloth")) else (6, 4)
        axes.annotate(
            name + ratio, (row["peak_gb"], row["samples_per_s"]), xytext=place, textcoords="offset points", fontsize=8
        )
    axes.set(xscale="log", xlabel="peak GPU memory, GB", ylabel="samples a second",
             title=f"LoRA on a 7B shape, one {newest['course']['device']}, against the course's recipe")  # fmt: skip
    axes.set_xlim(5.5, 150)
    axes.set_xticks([6, 8, 12, 16, 24, 40, 80], ["6", "8", "12", "16", "24", "40", "80"])
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a JSON list of instruction, input, output")
    parser.add_argument("--model", default="Qwen/Qwen2.5-7B-Instruct")
    parser.add_argument("--parameters", type=float, default=7.616e9, help="of the model, for MFU with 4-bit weights")
    parser.add_argument("--rows", help=f"which of {','.join(ROWS)} (default: all)")
    parser.add_argument(
        "--window", type=int, default=3, help="optimizer steps timed together (twice as many of 8 rows)"
    )
    parser.add_argument("--windows", type=int, default=3, help="how often, after one window that warms up")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one row
    parser.add_argument("--profile", help="a row whose GPU time is to be listed by kernel")
    parser.add_argument("--plot", action="store_true", help="only table and picture")
    args = parser.parse_args()
    if args.one or args.profile:
        result = measure(args.one or args.profile, args)
        if result:
            args.out.with_suffix(".one").write_text(json.dumps(result))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    names = (args.rows or ",".join(name for name in ROWS if name not in ("fast_32", "fsdp"))).split(",")
    if wrong := set(names) - set(ROWS):
        raise SystemExit(f"no such row: {', '.join(wrong)}. There are: {', '.join(ROWS)}")
    if not args.plot:
        if not args.data or not Path(args.data).is_file():
            raise SystemExit("--data FILE is needed: a JSON list of instruction, input, output.")
        if not any(row["name"] == "course" and row["machine"] == machine() for row in load(args.out)):
            names = ["course", *(name for name in names if name != "course")]
        for name in names:
            command = [sys.executable, __file__, "--one", name]
            for flag in ("data", "model", "parameters", "window", "windows", "seed", "out"):
                command += [f"--{flag}", str(getattr(args, flag))]
            start = time.time()
            with open(args.out.parent / f"{name}.log", "w") as log:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ).returncode
            made = args.out.with_suffix(".one")
            if code or not made.exists():
                tail = Path(log.name).read_text(errors="replace").strip().splitlines()[-3:]
                print(f"{name}: failed with code {code}, see {log.name}:\n  " + "\n  ".join(tail), flush=True)
                continue
            result = json.loads(made.read_text())
            made.unlink()
            args.out.write_text(json.dumps([*load(args.out), result], indent=1) + "\n")
            print(f"{name}: {result['samples_per_s']} samples/s, {result['tokens_per_s']:,} tokens/s, "
                  f"{result['peak_gb']} GB, loss {result['loss']} ({time.time() - start:.0f} s)", flush=True)  # fmt: skip
    results = load(args.out)
    print(table(results))
    if any(row["name"] == "course" for row in results):
        plot(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
