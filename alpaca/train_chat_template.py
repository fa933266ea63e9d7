"""Raw rows through the model's own chat template, and the labels made here: the loss counts the answer and its end.

An instruct model was trained on turns (ChatML: <|im_start|>role, text, <|im_end|>), so it learns faster in that form
than in Alpaca's. apply_chat_template writes the turns twice: once up to where the assistant begins to speak (that is
what the model sees at inference), once with the answer. The first has to be the beginning of the second; what follows it,
up to the end token, is what is learned. The line break after the last <|im_end|> is not: nobody reads on.

One GPU:           python train_chat_template.py --data alpaca.json
A minute, CPU:     python train_chat_template.py --demo --show_mask 2
"""

from dataclasses import dataclass
from functools import partial

import train
from common import models, tokens
from common.cli import SftArgs, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.rehearse import rehearse
from common.speed import fit
from data import load_splits
from prompt import conversation, prompt_ids

DEFAULTS = train.DEFAULTS
DEMO = train.without(train.DEMO, "max_new_tokens")


@dataclass
class Args(train.DataArgs, SftArgs):
    """Nothing of its own."""


def encode(tokenizer, rows):
    """(lists of input_ids, lists of labels) of rows; -100 up to the assistant's header, and after its end token."""
    ids, labels = [], []
    for row, prompt in zip(rows, prompt_ids(tokenizer, rows, {}), strict=True):
        whole = tokenizer.apply_chat_template(conversation(row), return_dict=False)
        if whole[: len(prompt)] != prompt or tokenizer.eos_token_id not in whole[len(prompt) :]:
            raise SystemExit(
                "this model's chat template writes a conversation differently when the answer is in it, or does not end "
                f"it with {tokenizer.eos_token}: labels made from it would be wrong. Use train.py."
            )
        end = whole.index(tokenizer.eos_token_id, len(prompt)) + 1
        ids.append(whole)
        labels.append([-100] * len(prompt) + whole[len(prompt) : end] + [-100] * (len(whole) - end))
    return ids, labels


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    if args.rehearse:
        return rehearse(__file__, argv)
    if args.estimate:
        return fit.estimate(args, "max_length")
    train_rows, eval_rows = load_splits(args)
    path = resolve_model(args.model)

    config = trainer_config(args)
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from trl import SFTTrainer

    from common import runs
    from common.speed import packing

    tokenizer = models.load_tokenizer(path)
    to_ids = partial(encode, tokenizer)
    train_set = tokens.tokenize(train_rows, to_ids, config.max_length, "training rows")
    eval_set = tokens.tokenize(eval_rows[: args.eval_rows], to_ids, config.max_length, "held-out rows")
    tokens.show_mask(train_set, tokenizer, args.show_mask)
    fit.tune(config, args, path, train_set)
    train_set = tokens.longest(train_set, config, args.longest_steps)
    with runs.Run(args, config, train_set) as run:
        trainer = SFTTrainer(
            model=train.load_model(args, config, path),
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=packing.collator(tokenizer, args.packing, args.backend),
        )
        run.train(trainer)
        run.save(trainer, tokenizer)  # the chat template is saved with the tokenizer
    print(f"Ask it: {command('infer.py', '--adapter', run.folder)}")
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
