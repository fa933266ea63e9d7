"""DPO of preference/ against TRL's DPOTrainer at equal updates: rows per second, peak memory, losses.  One GPU, one command:

    python bench/preference_speed.py --model models/Qwen/Qwen2.5-7B-Instruct

Both train LoRA r 16 on all linear layers of the same 16-bit weights, on the same pairs in the same order with the same learning
rate; each in a process of its own. TRL has its defaults but for the sizes (bf16, gradient checkpointing on). The pairs are token
ids drawn at random, with lengths as in chat data (a prompt of 20 to 200, answers of 30 to 500 tokens, most of them short).
The first two steps are not counted. One JSON line per arm, as it ends.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "ours": {},
    "ours, padded": dict(packing=False),
    "ours, padded, not fused": dict(packing=False, fused=False),
    "TRL": {},
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pairs_of(count, words, longest, seed=0):
    """[{prompt, chosen, rejected}] of token ids."""
    draw = random.Random(seed)

    def ids(low, high):
        return [draw.randrange(10, words) for _ in range(int(low * (high / low) ** draw.random()))]

    half = longest // 2
    return [
        dict(
            prompt=ids(min(20, half // 4), min(200, half)),
            chosen=ids(min(30, half // 4), half),
            rejected=ids(min(30, half // 4), half),
        )
        for _ in range(count)
    ]


def settings(args, folder):
    return dict(
        output_dir=folder, max_steps=args.steps, per_device_train_batch_size=args.batch_size, gradient_accumulation_steps=1,
        learning_rate=1e-5, lr_scheduler_type="constant", optim="adamw_torch_fused", logging_steps=1, save_strategy="no",
        report_to="none", seed=1, disable_tqdm=True, bf16=args.cuda, use_cpu=not args.cuda, gradient_checkpointing=args.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip


def lora_config():
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=LINEAR)


def ours(args, rows, folder, packing=True, fused=True):
    sys.path.insert(0, str(ROOT / "preference"))
    from datasets import Dataset
    from transformers import TrainingArguments

    import dpo
    import pairs
    from common import device, models
    from common.speed import lora
    from common.speed import packing as end_to_end

    config = TrainingArguments(**settings(args, folder), remove_unused_columns=False)
    model = models.load_base(Path(args.model), "hf", None, args.dtype)
    model = models.attach(model, lora_config(), "hf", config)
    models.widen_adapters(model)
    if fused:
        lora.fuse(model)
    packed = packing and (device.varlen_kernel() is not None or not args.cuda)
    if packed and args.cuda:
        end_to_end.attend_by_row(model, "hf")
    data = Dataset.from_dict(
        dict(
            input_ids=[row["prompt"] + row["chosen"] for row in rows],
            labels=[[-100] * len(row["prompt"]) + row["chosen"] for row in rows],
            rejected_ids=[row["prompt"] + row["rejected"] for row in rows],
            rejected_labels=[[-100] * len(row["prompt"]) + row["rejected"] for row in rows],
        )
    )
    tokenizer = models.load_tokenizer(Path(args.model))
    collate, loss = pairs.collator(tokenizer, packed), partial(dpo.dpo_loss, beta=0.1)
    return pairs.PairTrainer(model=model, args=config, train_dataset=data, data_collator=collate, loss=loss)


def theirs(args, rows, folder):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, device_map=0 if args.cuda else None)
    data = Dataset.from_dict({f"{name}_ids": [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")})
    config = DPOConfig(**settings(args, folder), beta=0.1, max_length=2 * args.max_length)
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset  # the very ids that ours has

    return Tokenized(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora_config()
    )


def one(args):
    """One arm, in this process. Returns its numbers."""
    import torch
    from transformers import AutoConfig, TrainerCallback

    args.cuda = torch.cuda.is_available()
    args.dtype = torch.bfloat16 if args.cuda else torch.float32
    words = AutoConfig.from_pretrained(args.model).get_text_config().vocab_size
    rows, times = pairs_of(args.steps * args.batch_size, words, args.max_length), []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **kwargs):
            if args.cuda:
                torch.cuda.synchronize()
            times.append(time.time())

    with tempfile.TemporaryDirectory() as folder:
        trainer = theirs(args, rows, folder) if args.arm == "TRL" else ours(args, rows, folder, **ARMS[args.arm])
        trainer.add_callback(Clock())
        gc.collect()
        if args.cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    counted = times[1:]  # from the end of step 2
    seconds, steps = counted[-1] - counted[0], len(counted) - 1
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {
        "arm": args.arm,
        "device": torch.cuda.get_device_name() if args.cuda else "CPU",
        "pairs_per_second": round(steps * args.batch_size / seconds, 3),
        "seconds_per_step": round(seconds / steps, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if args.cuda else None,
        "losses": [round(each, 4) for each in losses[:3] + losses[-2:]],
        "tokens_per_pair": round(
            sum(2 * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) for r in rows) / len(rows)
        ),
        "batch_size": args.batch_size,
        "steps": args.steps,
        "checkpointing": args.checkpointing,
        "model": Path(args.model).name,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model's folder")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=8, help="pairs per step")
    parser.add_argument("--max_length", type=int, default=1024, help="about the longest prompt + answer")
    parser.add_argument("--no_checkpointing", dest="checkpointing", action="store_false")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, help="a file to which the JSON lines are appended")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        return print("RESULT " + json.dumps(one(args)), flush=True)
    found = {}
    for arm in args.arms:
        flags = [
            "--model",
            args.model,
            "--steps",
            args.steps,
            "--batch_size",
            args.batch_size,
            "--max_length",
            args.max_length,
        ]
        flags += [] if args.checkpointing else ["--no_checkpointing"]
        command = [sys.executable, __file__, *map(str, flags), "--arm", arm]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        line = next((each for each in done.stdout.splitlines() if each.startswith("RESULT ")), None)
        if line is None:
            line = "RESULT " + json.dumps({"arm": arm, "failed": (done.stderr or done.stdout)[-600:]})
        found[arm] = json.loads(line.removeprefix("RESULT "))
        print(json.dumps(found[arm]), flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps(found[arm]) + "\n")
    speeds = {arm: each.get("pairs_per_second") for arm, each in found.items()}
    if speeds.get("ours") and speeds.get("TRL"):
        print(f"ours / TRL: {speeds['ours'] / speeds['TRL']:.2f} x pairs per second")


if __name__ == "__main__":
    main()
