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
from functools import partial

import train
from common import models, tokens
from common.cli import arg, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.speed import fit
from data import load_splits
from prompt import conversation

# train.py says why for the others. dataset_kwargs and loss_type are TRL's.
DEFAULTS = train.without(train.DEFAULTS, "dataset_kwargs") | dict(
    gradient_checkpointing=True,  # TRL's default, which transformers' is not: 7B on a small card
    gradient_checkpointing_kwargs={"use_reentrant": False},  # the other way needs an input with a gradient
    label_names=["labels"],  # else a PEFT model hides its own, and no eval_loss is computed
    prediction_loss_only=True,  # keep no logits of the held-out rows: 150,000 numbers per token
)
DEMO = train.without(train.DEMO, "auto", "max_new_tokens", "loss_type")


@dataclass
class Args(train.PaddedArgs):
    max_length: int = arg(2048, "longest row in tokens; longer ones are dropped")  # a flag of TRL's config only


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


def encode(tokenizer, rows):
    """(lists of input_ids, lists of labels) of rows; -100 wherever the assistant is not speaking."""
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


def work(length, rows):
    """What a micro-batch takes, as arguments of fit.needs: transformers' loss has all logits at once, their log-softmax
    and gradient, in float32."""
    return dict(tokens=rows * length, logits=12 * rows * length)


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "transformers:TrainingArguments", argv)
    if args.estimate:
        return fit.estimate(args, "max_length", work)
    train_rows, eval_rows = load_splits(args)
    path = resolve_model(args.model)

    config = trainer_config(args)
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from transformers import Trainer

    from common import runs

    tokenizer = models.load_tokenizer(path)
    to_ids = partial(encode, tokenizer)
    train_set = tokens.tokenize(train_rows, to_ids, args.max_length, "training rows")
    eval_set = tokens.tokenize(eval_rows[: args.eval_rows], to_ids, args.max_length, "held-out rows")
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    with runs.Run(args, config, train_set) as run:
        trainer = Trainer(
            model=train.load_model(args, config, path),
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        )
        run.train(trainer)
        run.save(trainer, tokenizer)
    print(f"Ask it: {command('infer.py', '--adapter', run.folder)}")
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
