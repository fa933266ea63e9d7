"""What 64 rows per step instead of 8 do to the held-out loss, and which learning rate makes up for it.

    python bench/rows_per_step.py --data alpaca.json --model demo/SmolLM2-135M-Instruct --seeds 1 2 3

Every run sees the same number of samples. First the same updates twice, padded in the plain way and packed in the fast
way, to see that each step has the same loss. Results are appended to bench/results/rows_per_step.jsonl.
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

PLAIN = dict(packing=False, fused_lora=False, micro=2, accumulate=4, quantization="none")
PACKED = dict(packing=True, fused_lora=True, micro=8, accumulate=1, quantization="none")
WIDE = PACKED | dict(micro=64)


def run(recipe, lr, seed, args, max_steps=-1):
    """Train once; held-out loss before and after, and every step's training loss."""
    import torch
    from alpaca_data import dataset, read
    from trl import SFTConfig, SFTTrainer

    from common import device, hub, models
    from common.answers import heldout_loss
    from common.cli import SftArgs
    from common.speed import packing
    from train import load_model

    path = hub.resolve_model(args.model)
    tokenizer = models.load_tokenizer(path)
    data = dataset(read(args.data), tokenizer)
    if args.shortest:
        lengths = [len(ids) for ids in data["input_ids"]]
        data = data.select(sorted(range(len(data)), key=lengths.__getitem__)[: args.shortest])
    data = data.train_test_split(0.1, seed=0)
    chosen = {name: recipe[name] for name in ("packing", "fused_lora", "quantization")}
    model_args = SftArgs(model=args.model, backend=device.decide_backend("hf"), auto=False, **chosen)
    model_args.max_length = 2048
    config = SFTConfig(
        output_dir="/tmp/rows_per_step",
        max_length=2048,
        bf16=device.has_bf16(),
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=recipe["micro"],
        gradient_accumulation_steps=recipe["accumulate"],
        gradient_checkpointing=False,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=5 if recipe["micro"] * recipe["accumulate"] == 8 else 2,
        num_train_epochs=args.epochs,
        max_steps=max_steps,
        optim="adamw_torch_fused",
        loss_type="nll",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=seed,
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    model = load_model(model_args, config, path)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        train_dataset=data["train"],
        data_collator=packing.collator(tokenizer, recipe["packing"], "hf"),
    )
    models.widen_adapters(model)
    before = heldout_loss(model, data["test"], tokenizer.pad_token_id)["loss"] if max_steps < 0 else None
    start = time.time()
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    after = heldout_loss(model, data["test"], tokenizer.pad_token_id)["loss"] if max_steps < 0 else None
    made = dict(recipe, lr=lr, seed=seed, steps=trainer.state.global_step, seconds=round(time.time() - start, 1))
    return made | {"before": before, "after": after, "losses": losses}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a JSON list of instruction, input, output")
    parser.add_argument("--model", default="demo/SmolLM2-135M-Instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--quantizations", nargs="*", default=["4bit"], help="tried with --wide_rate")
    parser.add_argument("--wide_rate", type=float, default=1.6e-3)
    parser.add_argument("--same", type=int, default=30, help="steps of the padded and packed comparison; 0: none")
    parser.add_argument("--shortest", type=int, help="use the N shortest rows only: for a CPU")
    parser.add_argument("--micro", type=int, help="rows of a micro-batch of the 64 (default: all): for a CPU")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rows_per_step.jsonl")
    args = parser.parse_args()
    from common import paths

    paths.load_env()
    import datasets

    datasets.disable_progress_bars()
    args.out.parent.mkdir(exist_ok=True)

    wide = WIDE | (dict(micro=args.micro, accumulate=64 // args.micro) if args.micro else {})

    def report(name, result):
        with open(args.out, "a") as file:
            file.write(json.dumps({"name": name} | result) + "\n")
        if result["after"]:
            print(f"{name}, lr {result['lr']:g}, seed {result['seed']}: {result['before']:.4f} -> {result['after']:.4f} "
                  f"({result['steps']} steps, {result['seconds']:.0f} s)", flush=True)  # fmt: skip

    for seed in args.seeds:
        if args.same:
            padded, packed = (run(recipe, 2e-4, seed, args, args.same) for recipe in (PLAIN, PACKED))
            report("padded 2 x 4", padded)
            report("packed 8 x 1", packed)
            off = [abs(a - b) for a, b in zip(padded["losses"], packed["losses"], strict=True)]
            print(f"seed {seed}: the same {len(off)} updates, padded and packed: losses differ by {max(off):.4f} at most, "
                  f"from {packed['losses'][0]:.3f} to {packed['losses'][-1]:.3f}", flush=True)  # fmt: skip
        report("8 rows per step (course)", run(PACKED, 2e-4, seed, args))
        for rate in args.rates:
            report("64 rows per step", run(wide, rate, seed, args))
        for quantization in args.quantizations:
            report(
                f"64 rows per step, {quantization}",
                run(wide | {"quantization": quantization}, args.wide_rate, seed, args),
            )


if __name__ == "__main__":
    main()
