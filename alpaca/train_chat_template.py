"""Raw rows through the model's own chat template, and the labels made here: the loss counts the answer and its end.

An instruct model was trained on turns (ChatML: <|im_start|>role, text, <|im_end|>), so it learns faster in that form
than in Alpaca's. apply_chat_template writes the turns twice: once up to where the assistant begins to speak (that is
what the model sees at inference), once with the answer. The first has to be the beginning of the second; what follows it,
up to the end token, is what is learned. The line break after the last <|im_end|> is not: nobody reads on.

One GPU:           python train_chat_template.py --data alpaca.json
A minute, CPU:     python train_chat_template.py --demo --show_mask 2
"""

from pathlib import Path

from common.cli import parse
from common.fast import collator
from common.masks import show_mask
from common.memory import estimate, tune
from common.models import LoraArgs, find_model, import_backend, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run
from data import DataArgs, conversation, load_splits, tokenized

HERE = Path(__file__).resolve().parent

# train.py says why for each of these.
DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
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
    dataset_kwargs={"skip_prepare_dataset": True},  # the rows arrive tokenized, by encode() below
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


def encode(rows, tokenizer):
    """Rows as lists of input_ids and of labels; -100 up to the assistant's header, and after its end token."""
    ids, labels = [], []
    for row in rows:
        messages = conversation(row)
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
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
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (DataArgs, LoraArgs), "trl:SFTConfig", argv)
    if model_args.estimate:
        return estimate(config, model_args, "max_length", config.max_length)
    train_rows, eval_rows = load_splits(args)
    tokenizer = load_tokenizer(find_model(model_args))
    train_set = tokenized(train_rows, encode, config.max_length, "training rows", tokenizer=tokenizer)
    eval_set = tokenized(eval_rows[: args.eval_rows], encode, config.max_length, "held-out rows", tokenizer=tokenizer)
    show_mask(train_set, tokenizer, args.show_mask)
    tune(config, model_args, train_set)
    with Run(config, args, model_args, train_set) as run:
        from trl import SFTTrainer

        trainer = SFTTrainer(
            model=load_model(model_args, config),
            processing_class=tokenizer,
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=collator(tokenizer, model_args.packing, import_backend(model_args.backend)),
        )
        run.train(trainer)
        run.save(trainer, tokenizer)  # the chat template is saved with the tokenizer
    print(f"Ask it: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
