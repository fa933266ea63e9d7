"""No TRL: transformers' Trainer, with mask and collator written out. This is all that an SFT trainer does.

    mask      labels are a copy of input_ids; -100 wherever the assistant is not speaking. The Trainer's loss skips -100
    collator  rows of a batch to one length: input_ids with the pad token, labels with -100, attention_mask 1 and 0
    shift     the model compares its output at position t with the label at t + 1 by itself: labels are not shifted here

The mask is found in the tokens: after "<|im_start|>assistant", through the next <|im_end|>. That works for any number of
turns, and is why data.py drops rows that have such tokens in their text.

One GPU:           python train_plain_trainer.py --data alpaca.json
A minute, CPU:     python train_plain_trainer.py --demo --show_mask 2
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.masks import show_mask
from common.memory import estimate
from common.models import LoraArgs, find_model, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run
from data import DataArgs, conversation, load_splits, only_padded, tokenized

HERE = Path(__file__).resolve().parent

# train.py says why for each of these.
DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    auto=False,  # its fast kernels want packed rows; the collator here pads
    max_length=2048,
    learning_rate=2e-4,
    lr_scheduler_type="linear",
    warmup_steps=5,
    max_steps=60,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    gradient_checkpointing=True,  # TRL's default, which transformers' is not: 7B on a small card
    gradient_checkpointing_kwargs={
        "use_reentrant": False
    },  # the other way needs an input with a gradient: LoRA has none
    optim="adamw_torch_fused",
    weight_decay=0.01,
    seed=3407,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=20,
    save_steps=20,
    load_best_model_at_end=True,
    metric_for_best_model="loss",
    label_names=["labels"],  # else a PEFT model hides its own, and no eval_loss is computed
    prediction_loss_only=True,  # keep no logits of the held-out rows: 150,000 numbers a token
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,
    quantization="none",
    data=str(HERE / "sample" / "alpaca.jsonl"),
    learning_rate=2e-3,
    max_steps=24,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    eval_steps=8,
    save_steps=8,
)


@dataclass
class Args(DataArgs):
    max_length: int = arg(
        2048, "rows with more tokens are dropped"
    )  # TRL's config has this flag, transformers' has not


def assistant_header(tokenizer):
    """The tokens with which the chat template opens the assistant's turn."""
    messages = conversation({"instruction": "x"})
    closed = tokenizer.apply_chat_template(messages, return_dict=False)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)[len(closed) :]


def assistant_labels(ids, header, end):
    """A copy of ids with -100 everywhere but from behind each header through the next end token."""
    labels, at = [-100] * len(ids), 0
    while at < len(ids):
        if ids[at : at + len(header)] == header:
            start = at + len(header)
            at = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
            labels[start:at] = ids[start:at]
        else:
            at += 1
    return labels


def encode(rows, tokenizer):
    """Rows as lists of input_ids and of labels."""
    header = assistant_header(tokenizer)
    ids = [tokenizer.apply_chat_template(conversation(row), return_dict=False) for row in rows]
    return ids, [assistant_labels(row, header, tokenizer.eos_token_id) for row in ids]


def collate(rows, pad):
    """Rows of different lengths as three tensors of (rows, longest row), filled up on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    gaps = [longest - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([row["input_ids"] + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]),
        "labels": torch.tensor([row["labels"] + [-100] * gap for row, gap in zip(rows, gaps, strict=True)]),
        # Where pad and end token are one, only this tells padding from an end; load_tokenizer keeps them apart.
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
    }


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (Args, LoraArgs), "transformers:TrainingArguments", argv)
    only_padded(model_args)
    config.max_length = args.max_length
    if model_args.estimate:

        def work(length, rows):  # transformers' loss has all logits at once, their log-softmax and gradient, in float32
            return dict(tokens=rows * length, logits=12 * rows * length)

        return estimate(config, model_args, "max_length", args.max_length, work)
    train_rows, eval_rows = load_splits(args)
    tokenizer = load_tokenizer(find_model(model_args))
    train_set = tokenized(train_rows, encode, args.max_length, "training rows", tokenizer=tokenizer)
    eval_set = tokenized(eval_rows[: args.eval_rows], encode, args.max_length, "held-out rows", tokenizer=tokenizer)
    show_mask(train_set, tokenizer, args.show_mask)
    with Run(config, args, model_args, train_set) as run:
        from transformers import Trainer

        trainer = Trainer(
            model=load_model(model_args, config),
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        )
        run.train(trainer)
        run.save(trainer, tokenizer)
    print(f"Ask it: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
