"""The same rows as two columns of text, prompt and completion; TRL does the rest.

TRL's "standard prompt-completion" format: no system, no roles, no chat template. SFTTrainer adds the end-of-text token
to the completion, tokenizes prompt + completion together, compares that with the prompt alone to find where the
completion begins, and lets the loss count the completion only (its default for these two columns).

Mind the seam: the two are tokenized as one text, so a prompt that ends in the middle of a token would be cut differently
at inference. "### Response:" and a line break end on a token, and answers are stripped.

One GPU:           python train_prompt_completion.py --data alpaca.json
A minute, CPU:     python train_prompt_completion.py --demo --show_mask 2
"""

from pathlib import Path

from common.cli import parse
from common.masks import show_mask
from common.memory import estimate
from common.models import LoraArgs, find_model, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run
from data import PROMPT, SHORT_PROMPT, DataArgs, alpaca_prompt, before_the_run, drop_long, load_splits, only_padded

HERE = Path(__file__).resolve().parent

# train.py says why for each of these.
DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    auto=False,  # TRL tokenizes when it has the model, so the rows' lengths come too late to choose by
    max_length=2048,
    learning_rate=2e-4,
    lr_scheduler_type="linear",
    warmup_steps=5,
    max_steps=60,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    optim="adamw_torch_fused",
    weight_decay=0.01,
    seed=3407,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=20,
    save_steps=20,
    load_best_model_at_end=True,
    metric_for_best_model="loss",
    completion_only_loss=True,  # TRL's default for these columns, said aloud
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
    loss_type="nll",
    eval_steps=8,
    save_steps=8,
)


def columns(rows):
    """What TRL wants to see: one dict a row with the texts prompt and completion, without an end token."""
    return [{"prompt": alpaca_prompt(row), "completion": row["output"]} for row in rows]


def dataset(rows, tokenizer, max_length, name):
    """A datasets.Dataset of the rows that fit. TRL would cut the others in the middle of their answer."""
    from datasets import Dataset

    pairs = columns(rows)
    texts = [pair["prompt"] + pair["completion"] + tokenizer.eos_token for pair in pairs]
    return Dataset.from_list(drop_long(pairs, texts, tokenizer, max_length, name))


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (DataArgs, LoraArgs), "trl:SFTConfig", argv)
    only_padded(model_args)
    if model_args.estimate:
        return estimate(config, model_args, "max_length", config.max_length)
    train_rows, eval_rows = load_splits(args)
    tokenizer = load_tokenizer(find_model(model_args))
    train_set = dataset(train_rows, tokenizer, config.max_length, "training rows")
    eval_set = dataset(eval_rows[: args.eval_rows], tokenizer, config.max_length, "held-out rows")
    model = load_model(model_args, config)
    from trl import SFTTrainer

    with before_the_run(config):
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, args=config, train_dataset=train_set, eval_dataset=eval_set
        )
    # From here on the trainer's rows have input_ids and labels, made by TRL.
    show_mask(trainer.train_dataset, tokenizer, args.show_mask)
    with Run(config, args, model_args, trainer.train_dataset) as run:
        run.train(trainer)
        run.save(trainer, tokenizer, prompt_template=PROMPT, prompt_template_short=SHORT_PROMPT)
    print(f"Ask it: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
