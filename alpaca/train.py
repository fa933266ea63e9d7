"""Instruction tuning as Stanford Alpaca did it: (instruction, input) in a fixed template, the answer after it (LoRA).

A row becomes one text, template + answer + end-of-text token, and a frozen model with thin matrices beside its weights
(LoRA, arXiv 2106.09685) learns to go on with it:

    L = - 1/n * sum over counted tokens of log p(token | everything before it)

As in the course every token counts, the template's and the instruction's, too. --loss_on answer counts the answer only,
as the four other scripts of this folder do. What departs from the course: a tenth of the rows is held out and measured,
rows without an input have a shorter template, rows too long for --max_length are dropped and not cut, and packed rows
cannot see each other.

One GPU:            python train.py --data alpaca.json
Two minutes, CPU:   python train.py --demo
Fastest, 64 rows:   python train.py --data alpaca.json --config fast.yaml
As in the course:   python train.py --data alpaca.json --config course.yaml
Override anything:  python train.py --data alpaca.json --loss_on answer --max_steps 1000 --show_mask 2
"""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common import device, models, screen, tokens
from common.cli import LoraArgs, SftArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import DEMO_MODEL, command
from common.rehearse import rehearse
from common.speed import fit
from data import load_splits
from prompt import TEMPLATE, encode, one_template, prompt_ids

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit: QLoRA, 7B on a 12 GB card
    lora_r=16,  # a manner of answering needs few directions
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_length=2048,  # the longest row of alpaca-cleaned has about 1,000 tokens
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    max_steps=60,  # 480 rows, minutes: enough to see it work; -1 lets --num_train_epochs decide
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 rows per step; --auto cuts these 8 as the card's memory allows
    optim="adamw_torch_fused",  # one kernel for all adapters; their state is 0.3 GB, so 8 bits save nothing
    weight_decay=0.01,
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen, and to look for one each step makes the GPU wait
    eval_strategy="steps",
    eval_steps=20,
    per_device_eval_batch_size=8,
    save_steps=20,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    load_best_model_at_end=True,  # the adapter that is kept is the best on held-out rows
    metric_for_best_model="loss",
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode()
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample" / "alpaca.jsonl"),
    learning_rate=2e-3,  # 24 updates only: a small model bears, and needs, larger steps
    max_steps=24,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    eval_steps=8,
    save_steps=8,
    show_mask=1,
    max_new_tokens=64,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def without(settings, *names):
    """Settings for a script whose trainer lacks some of the flags."""
    return {name: value for name, value in settings.items() if name not in names}


@dataclass
class DataArgs:
    """Flags that all five training scripts have."""

    data: str | None = arg(
        None,
        "JSON, JSONL, Parquet, a save_to_disk folder or a hub name (default: ALPACA_DATA_DIR, DATA_DIR/alpaca, hub)",
    )
    eval_ratio: float = arg(0.1, "share of the rows held out; rows that ask the same stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")
    eval_rows: int = arg(500, "at most so many of the held-out rows are measured while training")


@dataclass
class Args(DataArgs, SftArgs):
    loss_on: Literal["all", "answer"] = arg("all", "answer: the loss skips the template and the instruction")
    one_template: bool = arg(False, "rows without an input get the long template with an empty one, as in the course")
    show_answers: int = arg(3, "held-out rows answered before and after")
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")


@dataclass
class PaddedArgs(DataArgs, LoraArgs):
    """Flags of the scripts whose trainer pads and, but for one, tokenizes."""

    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")


def load_model(args, config, path):
    """The frozen base with fresh adapters: W x + alpha / r * B A x, with B and A of rank r, of which only these train."""
    from peft import LoraConfig

    from common.speed import lora, packing

    lora_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        bias="none",
    )
    nf4 = NF4 if choose_quantization(args.quantization, path) else None
    model = models.load_base(path, args.backend, nf4, device.dtype(config), args.max_length)
    model = models.attach(model, lora_config, args.backend, config)
    if args.fused_lora and args.backend == "hf":
        lora.fuse(model)
        config.liger_kernel_config = {"swiglu": False}  # part of fuse() already
    if vars(args).get("packing"):
        packing.attend_by_row(model, args.backend)
    return model


def padding_share(lengths, rows, seed=0):
    """The share of padding in batches of `rows` rows drawn in a random order, each padded to its longest row."""
    lengths = random.Random(seed).sample(lengths, len(lengths))
    padded = sum(max(batch) * len(batch) for batch in (lengths[i : i + rows] for i in range(0, len(lengths), rows)))
    return 1 - sum(lengths) / padded


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
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
    template = one_template() if args.one_template else TEMPLATE
    to_ids = partial(encode, tokenizer, template=template, loss_on=args.loss_on)
    train_set = tokens.tokenize(train_rows, to_ids, config.max_length, "training rows")
    eval_set = tokens.tokenize(eval_rows, to_ids, config.max_length, "held-out rows")
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    fit.tune(config, args, path, train_set)
    train_set = tokens.longest(train_set, config, args.longest_steps)
    if args.packing:
        size = config.per_device_train_batch_size
        share = padding_share(tokens.lengths(train_set), size)
        print(f"packing: {share:.0%} of a batch of {size} padded rows would be padding; end to end there is none")

    with runs.Run(args, config, train_set) as run:
        model = load_model(args, config, path)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=packing.collator(tokenizer, args.packing, args.backend),
        )
        shown = eval_rows[: args.show_answers]
        asked = {"": eval_set}, prompt_ids(tokenizer, shown, template), args.max_new_tokens, args.backend
        screen.heading("before training")
        before = report.before_after(model, tokenizer, *asked)
        run.train(trainer)
        run.save(trainer, tokenizer, **template)
        screen.heading("after training")
        after = report.before_after(model, tokenizer, *asked)
        run.note(before=before, after=after)
    report.show(before, after, shown)
    asked = command("infer.py", "--adapter", run.folder, "--compare")
    print("\n" + screen.text("Ask it yourself: {command}", command=asked))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
