"""Rows as messages; TRL applies the chat template and the loss counts the assistant's turns only (assistant_only_loss).

Which tokens are the assistant's is for the template to say, between {% generation %} and {% endgeneration %}. No Qwen2.5
or SmolLM2 has these marks. TRL 1.14 exchanges templates that it knows letter by letter, Qwen2.5's among them; its copy
also counts the line breaks before the answer and after <|im_end|>. SmolLM2's it does not know: it stops. So this script
brings marked ChatML of its own, checks that it writes what the model's template writes, and trains with it.

In a conversation of many turns every assistant turn is learned, which the other scripts' masks do not do.

One GPU:           python train_conversational.py --data alpaca.json
A minute, CPU:     python train_conversational.py --demo --show_mask 2
"""

from pathlib import Path

from common.cli import parse
from common.masks import show_mask
from common.memory import estimate
from common.models import LoraArgs, find_model, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run
from data import DataArgs, before_the_run, conversation, drop_long, load_splits, only_padded

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
    assistant_only_loss=True,
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


# ChatML. Marked: the answer and its end token, not the header (it is given) nor the line break after the end.
TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def mark_assistant(tokenizer):
    """Give the tokenizer TEMPLATE; return the template it had. Stops where the two write different texts."""
    probe = conversation({"instruction": "Add.", "input": "1, 2", "output": "3"})
    probe += [{"role": "user", "content": "And 4?"}, {"role": "assistant", "content": "7"}]
    own, texts = tokenizer.chat_template, []
    for template in (own, TEMPLATE):
        options = dict(tokenize=False, chat_template=template)
        texts.append(tokenizer.apply_chat_template(probe, **options))
        texts.append(tokenizer.apply_chat_template(probe[:-1], add_generation_prompt=True, **options))
    if texts[:2] != texts[2:]:
        raise SystemExit(
            "this model's chat template is not ChatML, so TEMPLATE would teach it another form. Put {% generation %} and "
            "{% endgeneration %} around the assistant's text in a copy of its own template, or use train_chat_template.py."
        )
    tokenizer.chat_template = TEMPLATE
    return own


def dataset(rows, tokenizer, max_length, name):
    """A datasets.Dataset with the column messages, of the rows that fit. TRL would cut the others."""
    from datasets import Dataset

    talks = [{"messages": conversation(row)} for row in rows]
    texts = [tokenizer.apply_chat_template(talk["messages"], tokenize=False) for talk in talks]
    return Dataset.from_list(drop_long(talks, texts, tokenizer, max_length, name))


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (DataArgs, LoraArgs), "trl:SFTConfig", argv)
    only_padded(model_args)
    if model_args.estimate:
        return estimate(config, model_args, "max_length", config.max_length)
    train_rows, eval_rows = load_splits(args)
    tokenizer = load_tokenizer(find_model(model_args))
    own = mark_assistant(tokenizer)
    train_set = dataset(train_rows, tokenizer, config.max_length, "training rows")
    eval_set = dataset(eval_rows[: args.eval_rows], tokenizer, config.max_length, "held-out rows")
    model = load_model(model_args, config)
    from trl import SFTTrainer

    with before_the_run(config):
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, args=config, train_dataset=train_set, eval_dataset=eval_set
        )
    show_mask(trainer.train_dataset, tokenizer, args.show_mask)
    with Run(config, args, model_args, trainer.train_dataset) as run:
        run.train(trainer)
        tokenizer.chat_template = own  # the marks mean nothing to other programs, and some stop at them
        run.save(trainer, tokenizer)
    print(f"Ask it: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
