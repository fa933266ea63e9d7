"""Reasoning from few examples, as s1 did it: fine-tune on a thousand long traces, question -> thinking -> answer (LoRA).

A row becomes one ChatML text, in which thinking and answer have turns of their own:

    <|im_start|>user ... question<|im_end|>
    <|im_start|>assistant
    <|im_start|>think
    {trace}
    <|im_start|>answer
    Answer: {answer}<|im_end|>

    L = - 1/n * sum over the n tokens of thinking and answer of log p(token | everything before it)

The delimiters are what budget.py works with afterwards. From the paper come 5 epochs, 16 rows an update, cosine, 5%
warm-up, weight decay 1e-4, beta2 0.95. What departs from it: LoRA at 1e-4 where the paper trains all weights at 1e-5;
traces that don't fit are dropped and counted, never cut (a cut trace has no end and no answer); padding has its own token.

One GPU:            python train.py
Three minutes, CPU: python train.py --demo
Override anything:  python train.py --data DIR --num_train_epochs 3 --learning_rate 2e-4 --show_mask 2
"""

from dataclasses import dataclass
from pathlib import Path

from budget import ANSWER, OPEN, Budget, answer_of, check_context, force, hf_engine, marks, prompt_ids, text_of
from common.cli import arg, parse
from common.evaluation import heldout_loss
from common.fast import collator
from common.masks import show_mask
from common.memory import estimate, tune
from common.models import LoraArgs, find_model, import_backend, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run
from data import DataArgs, format_report, is_right, overlap, read_splits

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
    gradient_accumulation_steps=16,  # 16 rows an update; --auto cuts them as the card's memory allows
    weight_decay=1e-4,
    adam_beta2=0.95,  # forgets sooner than 0.999: 315 updates are few
    optim="adamw_torch_fused",
    gradient_checkpointing=True,  # a trace of 20,000 tokens is longer than anything else in this repository
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen
    eval_strategy="steps",
    eval_steps=50,
    per_device_eval_batch_size=1,
    save_steps=50,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode() below
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample"),
    max_length=512,
    learning_rate=2e-3,  # 28 updates only: a small model bears, and needs, larger steps
    max_steps=28,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    loss_type="nll",  # TRL's chunked loss saves a GPU's memory; on a CPU it costs half of the time
    eval_steps=14,
    per_device_eval_batch_size=8,
    save_steps=28,
    eval_rows=16,
    eval_answers=0,
    max_think=192,
    cap=24,
)
QUESTION = "How many r in raspberry?"


@dataclass
class Args(DataArgs):
    eval_rows: int = arg(200, "at most so many held-out rows are measured while training")
    eval_answers: int = arg(100, "held-out questions answered before and after, without forcing")
    question: str = arg(QUESTION, "what is asked at the end, with several budgets")
    max_think: int = arg(2048, "most thinking tokens of these answers")
    cap: int = arg(128, "the small budget at the end")
    max_answer: int = arg(32, "most tokens of an answer")
    batch_size: int = arg(64, "answers written at once")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def completion(row):
    """What the model learns to write after the prompt. "Answer:" stands before the answer, as in s1's data."""
    answer = row["answer"] if row["answer"].startswith("Answer:") else f"Answer: {row['answer']}"
    return f"{OPEN}{row['trace']}\n{ANSWER}{answer}"


def encode(rows, tokenizer, max_length, name):
    """Rows as a datasets.Dataset: input_ids and labels, -100 on the question. Rows over max_length are dropped, counted."""
    from datasets import Dataset

    prompts = prompt_ids(tokenizer, [row["question"] for row in rows])
    texts = tokenizer.backend_tokenizer.encode_batch_fast([completion(row) for row in rows], add_special_tokens=False)
    made = []
    for prompt, text in zip(prompts, texts, strict=True):
        answer = text.ids + [tokenizer.eos_token_id]
        made.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    kept = [row for row in made if len(row["input_ids"]) <= max_length]
    if len(kept) < len(made):
        print(f"{name}: {len(made) - len(kept):,} rows over --max_length {max_length} dropped, none is cut")
    if not kept:
        raise SystemExit(f"{name}: no row fits in --max_length {max_length} tokens.")
    return Dataset.from_list(kept)


def measure(model, tokenizer, eval_set, rows, args, model_args):
    """Held-out loss; accuracy, thinking tokens and share cut off of greedy answers without forcing."""
    found = heldout_loss(model, eval_set, tokenizer.pad_token_id)
    if rows:
        gen = hf_engine(model, tokenizer, model_args.backend, args.batch_size)
        mark = marks(tokenizer)
        prompts = prompt_ids(tokenizer, [row["question"] for row in rows])
        made = force(gen, prompts, mark, Budget(args.max_think, 0, args.max_answer))
        right = [is_right(answer_of(one, tokenizer), row["answer"]) for one, row in zip(made, rows, strict=True)]
        found["accuracy"] = sum(right) / len(rows)
        found["thinking_tokens"] = sum(len(one["think"]) for one in made) / len(rows)
        found["cut_off"] = sum(one["reason"] == "length" for one in made) / len(rows)
    return found


def show(model, tokenizer, args, model_args):
    """One question, thought about four times: as it comes, with one and two Waits, and cut off."""
    gen, mark = hf_engine(model, tokenizer, model_args.backend), marks(tokenizer)
    budgets = [Budget(args.max_think, ignore, args.max_answer) for ignore in (0, 1, 2)]
    shown = {}
    for budget in [*budgets, Budget(args.cap, 0, args.max_answer)]:
        (row,) = force(gen, prompt_ids(tokenizer, [args.question]), mark, budget)
        name = f"num_ignore {budget.num_ignore}, at most {budget.max_think} thinking tokens"
        shown[name] = text_of(row, tokenizer)
        print(f"\n{'=' * 100}\n{args.question}   [{name}]\n{'-' * 100}\n{shown[name]}")
    print("=" * 100)
    return shown


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (Args, LoraArgs), "trl:SFTConfig", argv)
    if model_args.estimate:
        return estimate(config, model_args, "max_length", config.max_length)
    train_rows, eval_rows, reports = read_splits(args.data, args.eval_ratio, args.split_seed)
    print("\n".join(map(format_report, reports)))
    if not train_rows:
        raise SystemExit(f"{args.data}: nothing to train on, there is only a test file.")
    print(
        f"{overlap(train_rows, eval_rows):,} of {len(eval_rows):,} held-out questions share 8 words with a training one"
    )
    tokenizer = load_tokenizer(find_model(model_args))
    train_set = encode(train_rows, tokenizer, config.max_length, "training rows")
    traced = [row for row in eval_rows if row.get("trace")][: args.eval_rows]
    if not traced:
        raise SystemExit("the held-out rows have no traces, so their loss cannot be measured: leave the test file out.")
    eval_set = encode(traced, tokenizer, config.max_length, "held-out rows")
    check_context(
        prompt_ids(tokenizer, [args.question]), Budget(args.max_think, 0, args.max_answer), marks(tokenizer),
        config.max_length,
    )  # fmt: skip
    show_mask(train_set, tokenizer, args.show_mask)
    tune(config, model_args, train_set)

    with Run(config, args, model_args, train_set) as run:
        # Imported here and not above, so that --help and bad input answer at once.
        from trl import SFTTrainer

        model = load_model(model_args, config)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=collator(tokenizer, model_args.packing, import_backend(model_args.backend)),
        )
        asked = eval_rows[: args.eval_answers]
        before = measure(model, tokenizer, eval_set, asked, args, model_args)
        run.train(trainer)
        run.save(trainer, tokenizer)
        after = measure(model, tokenizer, eval_set, asked, args, model_args)
        shown = show(model, tokenizer, args, model_args)
        run.note(before=before, after=after, shown=shown)
    for name in ("loss", "accuracy", "thinking_tokens", "cut_off"):
        if name in before:
            print(f"held-out {name}: {before[name]:.3f} before, {after[name]:.3f} after")
    print(f"\nAsk it yourself: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
