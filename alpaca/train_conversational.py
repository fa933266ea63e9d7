"""Rows as messages; TRL applies the chat template and the loss counts the assistant's turns only (assistant_only_loss).

Which tokens are the assistant's is for the template to say, between {% generation %} and {% endgeneration %}. No Qwen2.5
or SmolLM2 has these marks. TRL 1.14 exchanges templates that it knows letter by letter, Qwen2.5's among them; its copy
also counts the line breaks before the answer and after <|im_end|>. SmolLM2's it does not know: it stops. So this script
brings marked ChatML of its own, checks that it writes what the model's template writes, and trains with it.

In a conversation of many turns every assistant turn is learned, which the other scripts' masks do not do.

One GPU:           python train_conversational.py --data alpaca.json
A minute, CPU:     python train_conversational.py --demo --show_mask 2
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
from prompt import conversation

# train.py says why for the others.
DEFAULTS = train.DEFAULTS | dict(
    dataset_kwargs=None,  # TRL prepares the rows
    assistant_only_loss=True,  # else it counts the whole conversation
)
DEMO = train.without(train.DEMO, "auto", "max_new_tokens")

# ChatML. Marked: the answer and its end token, not the header (it is given) nor the line break after the end.
MARKED = """{%- for message in messages %}
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
    """Give the tokenizer MARKED; return the template it had. Stops where the two write different texts."""
    probe = conversation({"instruction": "Add.", "input": "1, 2", "output": "3"})
    probe += [{"role": "user", "content": "And 4?"}, {"role": "assistant", "content": "7"}]
    own, texts = tokenizer.chat_template, []
    for template in (own, MARKED):
        options = dict(tokenize=False, chat_template=template)
        texts.append(tokenizer.apply_chat_template(probe, **options))
        texts.append(tokenizer.apply_chat_template(probe[:-1], add_generation_prompt=True, **options))
    if texts[:2] != texts[2:]:
        raise SystemExit(
            "this model's chat template is not ChatML, so MARKED would teach it another form. Put {% generation %} and "
            "{% endgeneration %} around the assistant's text in a copy of its own template, or use train_chat_template.py."
        )
    tokenizer.chat_template = MARKED
    return own


def dataset(rows, tokenizer, max_length, name):
    """Rows as a datasets.Dataset with the column messages."""
    talks = [{"messages": conversation(row)} for row in rows]
    texts = [tokenizer.apply_chat_template(talk["messages"], tokenize=False) for talk in talks]
    return fitting(talks, texts, tokenizer, max_length, name)


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
    own = mark_assistant(tokenizer)
    train_set = dataset(train_rows, tokenizer, config.max_length, "training rows")
    eval_set = dataset(eval_rows[: args.eval_rows], tokenizer, config.max_length, "held-out rows")
    model = train.load_model(args, config, path)
    with before_the_run(config):
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, args=config, train_dataset=train_set, eval_dataset=eval_set
        )
    tokens.show_mask(trainer.train_dataset, tokenizer, args.show_mask)
    with runs.Run(args, config, trainer.train_dataset) as run:
        run.train(trainer)
        tokenizer.chat_template = own  # the marks mean nothing to other programs, and some stop at them
        run.save(trainer, tokenizer)
    print(f"Ask it: {command('infer.py', '--adapter', run.folder)}")
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
