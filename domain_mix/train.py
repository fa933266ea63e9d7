"""Fine-tune one model on a mixture of domains: several manners of answering, told apart by the question alone.

With one domain every answer has one style, and a model learns it for good: asked about anything else it answers in that
style, too. In a mixture the model has to choose. data.py builds one; the loss is the mean over all answers' tokens,

    L = - 1/N * sum over rows, sum over answer tokens of log p(token | everything before it)

so a domain weighs as many tokens as its answers have, not as many rows: long answers count more than their ratio says.
NEFTune (arXiv 2310.05914) adds uniform noise to the embeddings while training, alpha / sqrt(length * width) at most
per number: the model then copies the wording of the rows less.

What departs from the course script this replaces: adapter and tokenizer are in one folder; the loss counts the answer
only; equal questions are never on both sides of the split.

One GPU:            python data.py --plan small --out mix.jsonl && python train.py --data mix.jsonl
Two minutes, CPU:   python train.py --demo
Fastest, 64 rows:   python train.py --data mix.jsonl --config fast.yaml
As in the course:   python train.py --data mix.jsonl --config course.yaml
Override anything:  python train.py --data mix.jsonl --learning_rate 1e-4 --neftune_noise_alpha 0
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
    lora_r=16,  # several styles still need few directions
    lora_alpha=32,  # alpha / r = 2: the update counts twice, as if the learning rate were larger
    lora_dropout=0.0,  # NEFTune is the regulariser here; 0 is what the fast paths need
    max_length=2048,  # an abstract and its question fit
    learning_rate=2e-4,  # ten times what full fine-tuning takes: only the small matrices move
    lr_scheduler_type="linear",
    warmup_steps=5,
    num_train_epochs=3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,  # 2 x 4 = 8 rows per step; --auto cuts these 8 as the card's memory allows
    neftune_noise_alpha=5.0,  # the paper's smallest; 0 switches it off
    optim="adamw_torch_fused",  # one kernel for all adapters; their state is 0.3 GB, so 8 bits save nothing
    weight_decay=0.01,
    seed=3407,
    logging_steps=10,
    logging_nan_inf_filter=False,  # a NaN should be seen, and to look for one each step makes the GPU wait
    eval_strategy="steps",
    eval_steps=50,
    per_device_eval_batch_size=8,
    save_steps=50,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    load_best_model_at_end=True,  # the adapter that is kept is the best on held-out rows
    metric_for_best_model="loss",
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode()
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample" / "plan.yaml"),  # a plan: the mixture is built in memory
    learning_rate=2e-3,  # few updates only: a small model bears, and needs, larger steps
    num_train_epochs=2,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    logging_steps=1,
    eval_steps=14,
    save_steps=14,
    show_mask=1,
    max_new_tokens=64,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def without(settings, *names):
    """Settings for a script whose trainer lacks some of the flags."""
    return {name: value for name, value in settings.items() if name not in names}


@dataclass
class Args(SftArgs):
    data: str | None = arg(
        None, "rows (JSON, JSONL, Parquet), or a plan (.yaml) to mix first (default: DATA_DIR/domain_mix/small.jsonl)"
    )
    eval_ratio: float = arg(0.1, "share of the rows held out; rows that ask the same stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")
    eval_rows: int = arg(500, "at most so many of the held-out rows are measured while training")
    show_answers: int = arg(4, "held-out rows answered before and after")
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


def in_turn(rows, count):
    """`count` rows: the first of each source, then the second ones. So a few answers show all domains."""
    seen, turns = Counter(), []
    for row in rows:
        turns.append(seen[row["source"]])
        seen[row["source"]] += 1
    return [rows[place] for place in sorted(range(len(rows)), key=turns.__getitem__)[:count]]


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    if args.rehearse:
        return rehearse(__file__, argv)
    if args.estimate:
        return fit.estimate(args, "max_length")
    screen.heading("data")
    train_rows, eval_rows = load_splits(args)
    eval_rows = eval_rows[: max(1, args.eval_rows)]
    path = resolve_model(args.model)

    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from datasets import concatenate_datasets
    from trl import SFTTrainer

    from common import report, runs
    from common.speed import packing

    tokenizer = models.load_tokenizer(path)
    if "<|im_start|>" not in tokenizer.get_vocab():
        raise SystemExit(f"{args.model}: its tokenizer has no <|im_start|>; take a ChatML model (Qwen2.5, SmolLM2).")
    to_ids = partial(encode, tokenizer, template=TEMPLATE)
    train_set = tokens.tokenize(train_rows, to_ids, config.max_length, "training rows")
    eval_sets = {}
    for name in sorted({row["source"] for row in eval_rows}):
        rows = [row for row in eval_rows if row["source"] == name]
        eval_sets[name] = tokens.tokenize(rows, to_ids, config.max_length, f"held-out {name}")
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    fit.tune(config, args, path, train_set)
    train_set = tokens.longest(train_set, config, args.longest_steps)
    if args.packing and config.neftune_noise_alpha:
        # NEFTune divides by the root of the length it sees, here that of several rows end to end: undo what is too much.
        config.neftune_noise_alpha *= math.sqrt(config.per_device_train_batch_size)

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
        shown = in_turn(eval_rows, args.show_answers)
        asked = eval_sets, prompt_ids(tokenizer, shown), args.max_new_tokens, args.backend
        screen.heading("before training")
        before = report.before_after(model, tokenizer, *asked)
        run.train(trainer)
        run.save(trainer, tokenizer, **TEMPLATE)
        screen.heading("after training")
        after = report.before_after(model, tokenizer, *asked)
        run.note(before=before, after=after)
    shown = [dict(source=row["source"], question=row["instruction"], reference=row["output"]) for row in shown]
    report.show(before, after, shown)
    print("\n" + screen.text("Talk to it: {command}", command=command("chat.py", "--adapter", run.folder)))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
