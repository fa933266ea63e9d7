"""What each variant of lora_variants/ costs: tokens per second, peak memory, seconds to begin.  One GPU, one command:

    python bench/lora_variants_speed.py --model models/Qwen/Qwen2.5-7B-Instruct --seconds 200 --out speed.jsonl

16-bit weights, gradient checkpointing, LoRA r 16 on all linear layers, --rows rows of --length random tokens per step, 2 steps that do not
count and 10 that do. The base is loaded once; every variant is put onto it and taken off again. lora is measured with the fused layers of
common/speed/lora.py, too, which are the same for all variants that can have them; the others say why not. EVA is left out: it is lora after a
pass over data, and on random weights the directions of that pass never settle. Last come the arms that spoil the base: every weight by AdamW, and by Flora, with
16-bit weights, as a measure of memory and speed alone, and LoftQ on a 4-bit base of its own. One JSON line per arm, as it ends; an arm that
--out has already is left out.
"""

import argparse
import gc
import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
FULL = ("adamw", "flora")


def arms(variants):
    """(variant, fused) in their order. Fused once: the layers of the others that can be are lora's."""
    names = [name for name in variants.VARIANTS if name not in ("loftq", "eva")]
    return [("lora", True), *((name, False) for name in names), *((name, False) for name in FULL), ("loftq", False)]


def put_on(base, name, fused, args):
    """(model, optimizer) of an arm."""
    import torch
    from peft import LoraConfig, get_peft_model

    import variants
    from common import models
    from common.cli import LINEAR
    from common.speed import lora
    from flora import Flora

    if name in FULL:
        base.requires_grad_(True)
        if name == "flora":
            return base, Flora(base.parameters(), lr=1e-6, rank=args.flora_rank)
        return base, torch.optim.AdamW(base.parameters(), 1e-6, fused=args.cuda)

    def build(**more):
        fields = dict(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=LINEAR)
        return get_peft_model(base, LoraConfig(**fields | more))

    def batches():
        return [
            dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids) for ids in batches_of(base, args, 2, 1)
        ]

    how = SimpleNamespace(learning_rate=1e-4, lora_r=16, lora_alpha=16, loraplus_ratio=16.0)
    init = Path(args.temporary) / f"{name}-{fused}"
    model, optimizer = variants.make(name, build, how, Path(args.model), batches, init)
    models.widen_adapters(model)
    if fused:
        lora.fuse(model)
    trained = [each for each in model.parameters() if each.requires_grad]
    return model, optimizer or torch.optim.AdamW(trained, 1e-4, weight_decay=0.0, fused=args.cuda)


def batches_of(base, args, count, seed):
    import torch

    draw, words = random.Random(seed), base.config.get_text_config().vocab_size
    rows = [[draw.randrange(10, words) for _ in range(args.length)] for _ in range(args.rows * count)]
    return torch.tensor(rows, device=base.device).view(count, args.rows, args.length)


def take_off(base, model):
    """The bare base again."""
    if model is not base:
        model.unload()
    for module in base.modules():
        module.__dict__.pop("forward", None)  # what fuse() put there
    vars(base).pop("peft_config", None)
    base.requires_grad_(False)


def one(base, name, fused, args):
    """One arm's numbers."""
    import torch

    import trial

    gc.collect()
    if args.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    began, times, seen = time.time(), [], []
    model, optimizer = base, None
    try:
        model, optimizer = put_on(base, name, fused, args)
        ready = time.time()
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
        model.train()
        for ids in batches_of(base, args, 2 + args.steps, 0):
            loss = trial.losses(model, ids, ids)[0].mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen.append(loss.item())  # waits for the GPU
            times.append(time.time())
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    finally:
        del optimizer
        take_off(base, model)
    seconds = (times[-1] - times[1]) / args.steps
    peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if args.cuda else None
    return dict(
        arm=name, fused=fused, tokens_per_second=round(args.rows * args.length / seconds), seconds_per_step=round(seconds, 4),
        seconds_to_begin=round(ready - began, 1), peak_gb=peak, trained=trained, losses=[round(each, 3) for each in (seen[0], seen[-1])],
        rows=args.rows, length=args.length, steps=args.steps, model=Path(args.model).name,
        device=torch.cuda.get_device_name() if args.cuda else "CPU",
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model's folder")
    parser.add_argument("--steps", type=int, default=10, help="that count; two more do not")
    parser.add_argument("--rows", type=int, default=4, help="per step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--flora_rank", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=0, help="begin no arm after so many seconds; 0: do all")
    parser.add_argument("--arms", nargs="+", help="of these variants only")
    parser.add_argument("--out", type=Path, help="a file to which the JSON lines are appended")
    args, began = parser.parse_args(), time.time()
    sys.path.insert(0, str(ROOT / "lora_variants"))
    import tempfile

    import torch

    import trial
    import variants
    from common import device, models

    args.cuda = torch.cuda.is_available()
    lines = [json.loads(each) for each in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    done = {(each["arm"], each["fused"]) for each in lines if "failed" not in each}
    for name, why in variants.NOT_FUSED.items():
        print(f"{name} is not fused: {why}")
    base = models.load_base(Path(args.model), "hf", None, device.dtype())
    with tempfile.TemporaryDirectory() as args.temporary:
        for name, fused in arms(variants):
            if (name, fused) in done or (args.arms and name not in args.arms):
                continue
            if args.seconds and time.time() - began > args.seconds:
                print("--seconds is reached: the same command goes on")
                break
            if name == "loftq":
                if not args.cuda:
                    continue
                del base
                gc.collect()
                torch.cuda.empty_cache()
                base = models.load_base(Path(args.model), "hf", trial.NF4, torch.bfloat16)
            try:
                found = one(base, name, fused, args)
            except torch.cuda.OutOfMemoryError as error:
                found = dict(arm=name, fused=fused, failed=str(error).splitlines()[0])
                base.zero_grad(set_to_none=True)
            print(json.dumps(found), flush=True)
            if args.out:
                with open(args.out, "a") as file:
                    file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
