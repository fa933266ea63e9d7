"""Domain fine-tuning: teach a general chat model to answer in the manner of a doctor's practice (LoRA / QLoRA).

The base model is frozen. Beside each weight matrix W a product of two thin matrices is learned, W + (alpha / r) B A
with B, A of rank r (LoRA, arXiv 2106.09685); with the frozen W kept in 4 bits this is QLoRA (arXiv 2305.14314).
A row becomes one text: prompt, then answer, then the end-of-text token, and the loss is the cross-entropy of

    L = - 1/|answer| * sum over answer tokens of log p(token | everything before it)

What departs from the course script this replaces: the loss counts only the answer (--loss_on all is the course's
way); held-out questions never occur in training; rows too long for --max_length are dropped, not cut.

One GPU:            python train.py --data /path/to/Data_数据
Two minutes, CPU:   python train.py --demo
Fastest, 64 rows:   python train.py --data DIR --config fast.yaml
As in the course:   python train.py --data DIR --config course.yaml
Override anything:  python train.py --data DIR --learning_rate 1e-4 --max_steps 2000 --price_per_hour 2.5
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common import device, models, screen, tokens
from common.cli import SftArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import DEMO_MODEL, command
from common.rehearse import rehearse
from common.speed import fit
from data import load_splits
from prompt import TEMPLATE, encode, prompt_ids

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit: QLoRA, 7B on a 12 GB card
    lora_r=16,  # a style and a vocabulary need few directions; more rank costs memory, seldom helps
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_length=1024,  # 200 + 200 Chinese characters and the template are below 600 tokens
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    num_train_epochs=3,  # of 664,001 rows: 249,000 steps, days on any card; --max_steps 2000 is a start
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 rows per step; --auto cuts these 8 as the card's memory allows
    optim="adamw_torch_fused",  # one kernel for all adapters; their state is 0.3 GB, so 8 bits save nothing
    weight_decay=0.01,
    seed=3407,
    logging_steps=10,
    logging_nan_inf_filter=False,  # a NaN should be seen, and to look for one each step makes the GPU wait
    eval_strategy="steps",
    eval_steps=500,
    per_device_eval_batch_size=8,
    save_steps=500,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    load_best_model_at_end=True,  # the adapter that is kept is the best on held-out rows
    metric_for_best_model="loss",
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode()
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample"),
    held_out=16,
    learning_rate=2e-3,  # 24 updates only: a small model bears, and needs, larger steps
    num_train_epochs=1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    logging_steps=1,
    eval_steps=8,
    save_steps=8,
    show_mask=1,
    max_new_tokens=96,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@dataclass
class Args(SftArgs):
    data: str | None = arg(
        None, "folder of <department>/*.csv files (default: MEDICAL_DATA_DIR, else DATA_DIR/medical)"
    )
    max_chars: int = arg(200, "longest question and longest answer kept, in characters")
    held_out: int = arg(500, "rows held out; rows that ask the same stay together")
    split_seed: int = arg(3407, "of the draw which rows are held out")
    eval_rows: int = arg(500, "at most so many of the held-out rows are measured while training")
    loss_on: Literal["answer", "all"] = arg("answer", "all: the loss counts the prompt, too (the course's way)")
    show_answers: int = arg(3, "held-out rows answered before and after")
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")


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


def is_chinese(text):
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    if args.rehearse:
        return rehearse(__file__, argv)
    if args.estimate:
        return fit.estimate(args, "max_length")
    screen.heading("data")
    train_rows, eval_rows = load_splits(args)
    eval_rows = eval_rows.slice(0, args.eval_rows)
    path = resolve_model(args.model)

    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from datasets import concatenate_datasets
    from trl import SFTTrainer

    from common import report, runs
    from common.speed import packing

    tokenizer = models.load_tokenizer(path)
    to_ids = partial(encode, tokenizer, template=TEMPLATE, loss_on=args.loss_on)
    train_set = tokens.tokenize(train_rows, to_ids, config.max_length, "training rows")
    # Languages are measured apart: the demo's small English model learns a style in one and little in the other.
    rows = eval_rows.to_pylist()
    languages = {"zh": [is_chinese(row["question"]) for row in rows]}
    languages["en"] = [not chinese for chinese in languages["zh"]]
    eval_sets = {
        name: tokens.tokenize(eval_rows.filter(mask), to_ids, config.max_length, f"held-out rows, {name}")
        for name, mask in languages.items()
        if any(mask)
    }
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    fit.tune(config, args, path, train_set)
    train_set = tokens.longest(train_set, config, args.longest_steps)

    with runs.Run(args, config, train_set) as run:
        model = load_model(args, config, path)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=concatenate_datasets(list(eval_sets.values())),
            data_collator=packing.collator(tokenizer, args.packing, args.backend),
        )
        shown = sorted(rows, key=lambda row: is_chinese(row["question"]))[: args.show_answers]
        asked = eval_sets, prompt_ids(tokenizer, shown), args.max_new_tokens, args.backend
        screen.heading("before training")
        before = report.before_after(model, tokenizer, *asked)
        run.train(trainer)
        run.save(trainer, tokenizer, **TEMPLATE)
        screen.heading("after training")
        after = report.before_after(model, tokenizer, *asked)
        run.note(before=before, after=after)
    report.show(before, after, [{"question": row["question"], "reference": row["answer"]} for row in shown])
    asked = command("infer.py", "--adapter", run.folder, "--compare")
    print("\n" + screen.text("Ask it yourself: {command}", command=asked))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
