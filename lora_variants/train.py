"""LoRA's variants on one task: the same rows, the same model, the same steps, and one flag that says which (variants.py).

    --variant lora | rslora | dora | pissa | olora | eva | loftq | loraplus | lorafa | muon
    --full adamw | flora      every weight instead: what the variants are measured against

What is trained is always the answer, -1/n * sum of log p(token | everything before it). What is saved is, where that is possible, a
plain LoRA on the public base, W + s B A, whatever the variant made of W: vLLM, llama.cpp and deploy/ know no other.

One GPU:            python train.py --variant dora --data alpaca.json
A minute, CPU:      python train.py --demo --variant pissa
All against all:    python compare.py
Override anything:  python train.py --variant rslora --lora_r 64 --learning_rate 1e-4
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import variants
from common import device, models, screen, tokens
from common.cli import SftArgs, arg, parse, trainer_config
from common.contract import keep_rows, next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import DEMO_MODEL, command
from common.rehearse import rehearse
from common.speed import fit
from data import DataArgs, load_splits
from prompt import TEMPLATE, encode, prompt_ids

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit; loftq sets 4 bits, pissa, olora and full fine-tuning 16
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_length=1024,
    learning_rate=2e-4,  # of LoRA; each variant has a best one of its own: compare.py. With --full a tenth
    lr_scheduler_type="linear",
    warmup_steps=5,
    max_steps=100,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,  # 4 x 4 = 16 rows per step: large batches are where LoRA falls behind
    optim="adamw_torch_fused",  # of the variants without an optimizer of their own
    weight_decay=0.0,  # it would pull A and B towards 0, and not W: another thing in every variant
    max_grad_norm=1.0,
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen
    eval_strategy="steps",
    eval_steps=20,
    per_device_eval_batch_size=16,
    save_steps=20,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    load_best_model_at_end=True,
    metric_for_best_model="loss",
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode()
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    learning_rate=2e-3,  # 20 updates only: a small model bears, and needs, larger steps
    max_steps=20,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",
    eval_rows=48,
    eval_steps=10,
    save_steps=10,
    show_mask=1,
    max_new_tokens=16,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
INIT = "init"  # in a run's folder: A and B as they began, of variants that take them out of W
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@dataclass
class Args(DataArgs, SftArgs):
    variant: Literal["lora", "rslora", "dora", "pissa", "olora", "eva", "loftq", "loraplus", "lorafa", "muon"] = arg(
        "lora", "which relative of LoRA"
    )
    full: Literal["adamw", "flora"] | None = arg(None, "train every weight instead of an adapter, with this optimizer")
    loraplus_ratio: float = arg(16.0, "loraplus: the learning rate of B over that of A")
    flora_rank: int = arg(64, "flora: numbers kept for each row of a gradient")
    eval_rows: int = arg(500, "at most so many of the held-out rows are measured while training")
    show_answers: int = arg(3, "held-out rows answered before and after")
    max_new_tokens: int = arg(100, "longest answer shown, in tokens")


def load_model(args, config, path, train_set, run):
    """(model, its optimizer or None for config.optim). Where the run is gone on with, as it began."""
    import torch
    from peft import LoraConfig

    from common.speed import lora, packing
    from flora import Flora

    if args.full:  # in 32 bits: 16 lose small updates
        model = models.load_base(path, args.backend, None, torch.float32)
        flora = partial(Flora, lr=config.learning_rate, rank=args.flora_rank, seed=config.seed)
        optimizer = flora(model.parameters()) if args.full == "flora" else None
    else:
        nf4 = NF4 if choose_quantization(args.quantization, path) else None
        base = models.load_base(path, args.backend, nf4, device.dtype(config), args.max_length)

        def build(**fields):
            how = dict(r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=args.lora_dropout)
            how |= dict(task_type="CAUSAL_LM", target_modules=args.lora_target_modules)
            return models.attach(base, LoraConfig(**how | fields), args.backend, config)

        def batches():
            rows = train_set.select(range(min(256, len(train_set))))
            collate = packing.collator(models.load_tokenizer(path), False, args.backend)
            return [dict(collate(list(rows.select(range(i, min(i + 32, len(rows))))))) for i in range(0, len(rows), 32)]

        model, optimizer = variants.make(
            args.variant, build, args, path, batches, run.folder / INIT, fresh=not run.checkpoint
        )
        if args.fused_lora:
            lora.fuse(model)
            config.liger_kernel_config = {"swiglu": False}  # part of fuse() already
    if args.packing:
        packing.attend_by_row(model, args.backend)
    return model, optimizer


def save(run, trainer, tokenizer, args):
    """The adapter as a plain LoRA on the public base where it can be one; of full fine-tuning the model, in model/."""
    if args.full:
        trainer.model.save_pretrained(run.folder / "model")
        tokenizer.save_pretrained(run.folder / "model")
        for name, text in TEMPLATE.items():  # with the rows, what ../deploy asks of a run
            (run.folder / f"{name}.txt").write_text(text, encoding="utf-8")
        keep_rows(run.folder, trainer.eval_dataset, trainer.train_dataset)
        run.saved = True  # and finished when what comes after it has been measured
        return print(screen.text("saved: {folder}", folder=run.folder / "model"))
    times = variants.plain_on_save(args.variant, trainer.model, run.folder / INIT)
    if times > 1:  # run.json says what is saved, or the adapter would not be taken for this run's
        run.record["arguments"] |= dict(lora_r=times * args.lora_r, lora_alpha=times * args.lora_alpha)
    run.save(trainer, tokenizer, **TEMPLATE)
    print(f"{args.variant} as W + s B A on {args.model}: {variants.PORTABLE[args.variant]}")


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    args.backend = "hf"  # the variants are PEFT's
    variants.check(args)
    if args.full and "learning_rate" not in args.given:
        args.learning_rate /= 10
    if args.full:  # what --auto knows is LoRA's memory; Flora's gradients are gone before anybody could clip them
        args.auto, args.fused_lora = False, False
        args.max_grad_norm = 0.0 if args.full == "flora" else args.max_grad_norm
    if args.rehearse:
        return rehearse(__file__, argv)
    if args.estimate:
        return fit.estimate(args, "max_length")
    screen.heading("data")
    train_rows, eval_rows = load_splits(args)
    eval_rows = eval_rows[: args.eval_rows]
    path = resolve_model(args.model)

    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from trl import SFTTrainer

    from common import report, runs
    from common.speed import packing

    tokenizer = models.load_tokenizer(path)
    to_ids = partial(encode, tokenizer)
    train_set = tokens.tokenize(train_rows, to_ids, config.max_length, "training rows")
    eval_set = tokens.tokenize(eval_rows, to_ids, config.max_length, "held-out rows")
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    fit.tune(config, args, path, train_set)
    train_set = tokens.longest(train_set, config, args.longest_steps)

    with runs.Run(args, config, train_set) as run:
        model, optimizer = load_model(args, config, path, train_set, run)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=packing.collator(tokenizer, args.packing, args.backend),
            optimizers=(optimizer, None),
        )
        shown = eval_rows[: args.show_answers]
        asked = {"": eval_set}, prompt_ids(tokenizer, shown), args.max_new_tokens, args.backend
        screen.heading("before training")
        before = report.before_after(model, tokenizer, *asked)
        run.train(trainer)
        save(run, trainer, tokenizer, args)
        screen.heading("after training")
        after = report.before_after(model, tokenizer, *asked)
        run.note(before=before, after=after)
    report.show(before, after, shown)
    asked = command("infer.py", "--adapter", run.folder, "--compare")
    print("\n" + screen.text("Ask it yourself: {command}", command=asked))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
