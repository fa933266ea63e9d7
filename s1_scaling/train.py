"""Reasoning from few examples, as s1 did it: fine-tune on a thousand long traces, question -> thinking -> answer (LoRA).

A row becomes one ChatML text, in which thinking and answer have turns of their own:

    <|im_start|>user ... question<|im_end|>
    <|im_start|>assistant
    <|im_start|>think
    {trace}
    <|im_start|>answer
    Answer: {answer}<|im_end|>

    L = - 1/n * sum over the n tokens of thinking and answer of log p(token | everything before it)

The delimiters are what budget.py works with afterwards. From the paper come 5 epochs, 16 rows per update, cosine, 5%
warm-up, weight decay 1e-4, beta2 0.95. What departs from it: LoRA at 1e-4 where the paper trains all weights at 1e-5;
traces that don't fit are dropped and counted, never cut (a cut trace has no end and no answer); padding has its own token.

One GPU:            python train.py
Three minutes, CPU: python train.py --demo
Override anything:  python train.py --data DIR --num_train_epochs 3 --learning_rate 2e-4 --show_mask 2
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from budget import Budget, check_context, force, hf_engine, text_of
from common import device, models, screen, tokens
from common.cli import SftArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.grading import is_right
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.rehearse import rehearse
from common.speed import fit
from data import DataArgs, gold_of, load_splits, overlap, with_gold
from prompt import QUESTION, SYSTEM, TEMPLATE, answer_text, encode, marks, prompt_ids

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    max_length=20_000,  # s1.1's; a longer row is dropped
    learning_rate=1e-4,  # ten times the paper's 1e-5: only the small matrices move
    lr_scheduler_type="cosine",
    warmup_steps=0.05,  # a share of the steps
    num_train_epochs=5,  # max_steps=-1 lets epochs decide: 1,000 rows are 315 updates
    per_device_train_batch_size=1,
    gradient_accumulation_steps=16,  # 16 rows per update; --auto cuts them as the card's memory allows
    weight_decay=1e-4,
    adam_beta2=0.95,  # forgets sooner than 0.999: 315 updates are few
    optim="adamw_torch_fused",
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen
    eval_strategy="steps",
    eval_steps=50,
    per_device_eval_batch_size=1,
    save_steps=50,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode()
    report_to=["none"],
)
DEMO = dict(
    model=str(HERE / "miniature"),  # can work sums out, but was never told to, see pretrain.py
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample_numbers"),
    max_length=512,
    learning_rate=4e-3,  # a model of 1.7 million parameters bears, and needs, larger steps
    max_steps=120,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    eval_steps=60,
    per_device_eval_batch_size=8,
    save_steps=120,
    show_mask=1,
    eval_rows=16,
    eval_answers=60,
    curve_rows=60,
    max_think=256,
    cap=24,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@dataclass
class Args(DataArgs, SftArgs):
    system_prompt: str | None = arg(None, "what the model is told (default: prompt.py's); saved beside the adapter")
    eval_rows: int = arg(200, "at most so many of the held-out rows are measured while training")
    eval_answers: int = arg(100, "held-out questions answered before and after, without forcing")
    curve_rows: int = arg(0, "held-out questions answered with every budget at the end; evaluate.py does it at length")
    question: str | None = arg(
        None, "what is asked at the end, with several budgets (default: one that a Wait mends, or raspberry)"
    )
    max_think: int = arg(2048, "most thinking tokens of these answers")
    cap: int = arg(128, "the small budget at the end")
    max_answer: int = arg(32, "longest answer, in tokens")
    batch_size: int = arg(64, "answers written at once")


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
    if args.packing:
        packing.attend_by_row(model, args.backend)
    return model


def measure(model, tokenizer, eval_set, rows, args):
    """Held-out loss; accuracy, thinking tokens and share cut off of greedy answers without forcing."""
    from common.answers import heldout_loss
    from common.speed import graph

    found = heldout_loss(model, eval_set, tokenizer.pad_token_id)
    if rows:
        gen = hf_engine(model, tokenizer, args.backend, args.batch_size, decode=graph.decode)
        made = force(gen, prompt_ids(tokenizer, rows), marks(tokenizer), Budget(args.max_think, 0, args.max_answer))
        answers = [answer_text(tokenizer, one["answer"]) for one in made]
        right = [is_right(answer, gold_of(row)) for answer, row in zip(answers, rows, strict=True)]
        found["accuracy"] = sum(right) / len(rows)
        found["thinking_tokens"] = sum(len(one["think"]) for one in made) / len(rows)
        found["cut_off"] = sum(one["reason"] == "length" for one in made) / len(rows)
    return found


def show(model, tokenizer, question, args):
    """One question: the base, then thought about as it comes, with one and two Waits, and cut off. Returns the texts."""
    from common.speed import graph

    gen, mark = hf_engine(model, tokenizer, args.backend, decode=graph.decode), marks(tokenizer)
    budgets = [Budget(args.max_think, ignore, args.max_answer) for ignore in (0, 1, 2)]
    with model.disable_adapter():
        (row,) = force(gen, prompt_ids(tokenizer, [{"question": question}]), mark, budgets[0])
    shown = {"base": text_of(row, tokenizer)}
    print(f"\n{'=' * 100}\n{question}   [the base]\n{'-' * 100}\n{shown['base']}")
    for budget in [*budgets, Budget(args.cap, 0, args.max_answer)]:
        (row,) = force(gen, prompt_ids(tokenizer, [{"question": question}]), mark, budget)
        name = f"num_ignore {budget.num_ignore}, at most {budget.max_think} thinking tokens"
        shown[name] = text_of(row, tokenizer)
        print(f"\n{'=' * 100}\n{question}   [{name}]\n{'-' * 100}\n{shown[name]}")
    print("=" * 100)
    return shown


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    if args.rehearse:
        return rehearse(__file__, argv)
    if args.estimate:
        return fit.estimate(args, "max_length")
    TEMPLATE["system_prompt"] = args.system_prompt or SYSTEM  # of all that builds prompts here
    screen.heading("data")
    train_rows, eval_rows = load_splits(args)
    if not train_rows:
        raise SystemExit(f"{args.data}: nothing to train on, there is only a test file.")
    print(
        f"{overlap(train_rows, eval_rows):,} of {len(eval_rows):,} held-out questions share 8 words with a training one"
    )
    traced = [row for row in eval_rows if row.get("trace")][: args.eval_rows]
    if not traced:
        raise SystemExit("the held-out rows have no traces, so their loss cannot be measured: leave the test file out.")
    path = resolve_model(args.model)

    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from trl import SFTTrainer

    from common import runs
    from common.speed import packing

    tokenizer = models.load_tokenizer(path)
    to_ids = partial(encode, tokenizer)
    train_set = tokens.tokenize(train_rows, to_ids, config.max_length, "training rows")
    eval_set = tokens.tokenize(traced, to_ids, config.max_length, "held-out rows")
    asked = prompt_ids(tokenizer, [{"question": args.question or QUESTION}])
    check_context(asked, Budget(args.max_think, 0, args.max_answer), marks(tokenizer), config.max_length)
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
            eval_dataset=eval_set,
            data_collator=packing.collator(tokenizer, args.packing, args.backend),
        )
        shown = with_gold(eval_rows)[: args.eval_answers]
        screen.heading("before training")
        before = measure(model, tokenizer, eval_set, shown, args)
        run.train(trainer)
        run.save(trainer, tokenizer, **TEMPLATE)
        screen.heading("after training")
        after = measure(model, tokenizer, eval_set, shown, args)
        found, mended = {}, None
        if args.curve_rows:
            from evaluate import curve

            found, mended = curve(model, tokenizer, with_gold(eval_rows)[: args.curve_rows], args)
        question = args.question or (mended["question"] if mended else QUESTION)
        run.note(before=before, after=after, curve=found, shown=show(model, tokenizer, question, args))
    for name in ("loss", "accuracy", "thinking_tokens", "cut_off"):
        if name in before:
            print(f"held-out {name}: {before[name]:.3f} before, {after[name]:.3f} after")
    print("\n" + screen.text("Ask it yourself: {command}", command=command("infer.py", "--adapter", run.folder)))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
