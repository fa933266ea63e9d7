"""The same rows as two columns of text, prompt and completion; TRL does the rest.

TRL's "standard prompt-completion" format: no system, no roles, no chat template. SFTTrainer adds the end-of-text token
to the completion, tokenizes prompt + completion together, compares that with the prompt alone to find where the
completion begins, and lets the loss count the completion only (its default for these two columns).

Mind the seam: the two are tokenized as one text, so a prompt that ends in the middle of a token would be cut differently
at inference. "### Response:" and a line break end on a token, and answers are stripped.

One GPU:           python train_prompt_completion.py --data alpaca.json
A minute, CPU:     python train_prompt_completion.py --demo --show_mask 2
"""

from trl_rows import before_the_run, fitting

import train
from common import models, tokens
from common.cli import parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.speed import fit
from data import load_splits
from prompt import TEMPLATE, prompt_text

# train.py says why for the others.
DEFAULTS = train.DEFAULTS | dict(
    dataset_kwargs=None,  # TRL prepares the rows
    completion_only_loss=True,  # TRL's default for these columns, said aloud
)
DEMO = train.without(train.DEMO, "auto", "max_new_tokens")


def columns(rows):
    """What TRL wants to see: one dict per row with the texts prompt and completion, without an end token."""
    return [{"prompt": prompt_text(row), "completion": row["output"]} for row in rows]


def dataset(rows, tokenizer, max_length, name):
    """Rows as a datasets.Dataset with the columns prompt and completion."""
    pairs = columns(rows)
    texts = [pair["prompt"] + pair["completion"] + tokenizer.eos_token for pair in pairs]
    return fitting(pairs, texts, tokenizer, max_length, name)


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, train.PaddedArgs, "trl:SFTConfig", argv)
    if args.estimate:
        return fit.estimate(args, "max_length")
    train_rows, eval_rows = load_splits(args)
    path = resolve_model(args.model)

    config = trainer_config(args)
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    from trl import SFTTrainer

    from common import runs

    tokenizer = models.load_tokenizer(path)
    train_set = dataset(train_rows, tokenizer, config.max_length, "training rows")
    eval_set = dataset(eval_rows[: args.eval_rows], tokenizer, config.max_length, "held-out rows")
    model = train.load_model(args, config, path)
    with before_the_run(config):
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, args=config, train_dataset=train_set, eval_dataset=eval_set
        )
    # From here on the trainer's rows have input_ids and labels, made by TRL.
    tokens.show_mask(trainer.train_dataset, tokenizer, args.show_mask)
    with runs.Run(args, config, trainer.train_dataset) as run:
        run.train(trainer)
        run.save(trainer, tokenizer, **TEMPLATE)
    print(f"Ask it: {command('infer.py', '--adapter', run.folder)}")
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
