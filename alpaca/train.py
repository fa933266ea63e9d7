"""Instruction tuning as Stanford Alpaca did it: (instruction, input) in a fixed template, the answer after it (LoRA).

A row becomes one text, template + answer + end-of-text token, and a frozen model with thin matrices beside its weights
(LoRA, arXiv 2106.09685) learns to go on with it:

    L = - 1/n * sum over counted tokens of log p(token | everything before it)

As in the course every token counts, the template's and the instruction's, too. --loss_on answer counts the answer only,
as the four other scripts of this folder do. What departs from the course: a tenth of the rows is held out and measured,
rows too long for --max_length are dropped and not cut, and packed rows cannot see each other.

One GPU:            python train.py --data alpaca.json
Two minutes, CPU:   python train.py --demo
Fastest, 64 rows:   python train.py --data alpaca.json --config fast.yaml
As in the course:   python train.py --data alpaca.json --config course.yaml
Override anything:  python train.py --data alpaca.json --loss_on answer --max_steps 1000 --show_mask 2
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg, parse
from common.evaluation import generate, heldout_loss
from common.fast import collator
from common.masks import show_mask
from common.memory import estimate, row_lengths, tune
from common.models import LoraArgs, find_model, import_backend, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run
from data import PROMPT, SHORT_PROMPT, DataArgs, load_splits, prompt_ids, token_ids, tokenized

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
    gradient_accumulation_steps=4,  # 2 x 4 = 8 rows an update; --auto cuts these 8 as the card's memory allows
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
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode() below
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
    max_new_tokens=64,
)


@dataclass
class Args(DataArgs):
    loss_on: Literal["all", "answer"] = arg("all", "answer: the loss skips the template and the instruction")
    show_answers: int = arg(3, "held-out rows answered before and after")
    max_new_tokens: int = arg(200, "longest answer shown, in tokens")


def encode(rows, tokenizer, loss_on="all"):
    """Rows as lists of input_ids and of labels, equally long; -100 marks tokens that the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    answers = token_ids(tokenizer, [row["output"] for row in rows])
    answers = [answer + [tokenizer.eos_token_id] for answer in answers]  # without it the model never learns to stop
    prompts = prompt_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    if loss_on == "all":
        return ids, ids
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


def padding_share(lengths, rows, seed=0):
    """The share of padding in batches of `rows` rows drawn in a random order, each padded to its longest row."""
    lengths = random.Random(seed).sample(lengths, len(lengths))
    padded = sum(max(batch) * len(batch) for batch in (lengths[i : i + rows] for i in range(0, len(lengths), rows)))
    return 1 - sum(lengths) / padded


def measure(model, tokenizer, eval_set, shown, args, model_args):
    """Held-out loss and perplexity, and the answers to the shown rows."""
    prompts = prompt_ids(tokenizer, shown) if shown else []
    answers = generate(model, tokenizer, prompts, args.max_new_tokens, backend=model_args.backend)
    return heldout_loss(model, eval_set, tokenizer.pad_token_id) | {"answers": answers}


def show(before, after, shown):
    """Print what a person wants to see: the same instructions answered by the model before and after."""
    for row, old, new in zip(shown, before["answers"], after["answers"], strict=True):
        extra = f"\ninput:       {row['input']}" if row["input"] else ""
        print(f"\n{'=' * 100}\ninstruction: {row['instruction']}{extra}\nreference:   {row['output']}")
        print(f"{'-' * 100}\nbefore:      {old or '(empty)'}\n{'-' * 100}\nafter:       {new or '(empty)'}")
    print("=" * 100)
    print(
        f"held-out perplexity: {before['perplexity']:.2f} before, {after['perplexity']:.2f} after"
        f" ({after['rows']} rows, {after['tokens']:,} tokens counted)"
    )


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (Args, LoraArgs), "trl:SFTConfig", argv)
    if model_args.estimate:
        return estimate(config, model_args, "max_length", config.max_length)
    train_rows, eval_rows = load_splits(args)
    eval_rows = eval_rows[: args.eval_rows]
    tokenizer = load_tokenizer(find_model(model_args))
    how = dict(tokenizer=tokenizer, loss_on=args.loss_on)
    train_set = tokenized(train_rows, encode, config.max_length, "training rows", **how)
    eval_set = tokenized(eval_rows, encode, config.max_length, "held-out rows", **how)
    show_mask(train_set, tokenizer, args.show_mask)
    tune(config, model_args, train_set)
    if model_args.packing:
        size = config.per_device_train_batch_size
        share = padding_share(row_lengths(train_set), size)
        print(f"packing: {share:.0%} of a batch of {size} padded rows would be padding; end to end there is none")

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
        shown = eval_rows[: args.show_answers]
        before = measure(model, tokenizer, eval_set, shown, args, model_args)
        run.train(trainer)
        run.save(trainer, tokenizer, prompt_template=PROMPT, prompt_template_short=SHORT_PROMPT)
        after = measure(model, tokenizer, eval_set, shown, args, model_args)
        run.note(before=before, after=after)
    show(before, after, shown)
    print(f"\nAsk it yourself: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
