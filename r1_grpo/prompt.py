"""What the model sees and should write: the system prompt, a question, and the form in which an answer can be checked.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

import re

from common.tokens import ids_of

# What the model is asked for. The rewards look for exactly these tags.
SYSTEM = """Think before you answer. Write in this form, and nothing else:
<reasoning>
your steps
</reasoning>
<answer>
the number alone
</answer>"""
TEMPLATE = dict(system_prompt=SYSTEM)  # saved beside the adapter, as NAME.txt
FORM = "<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def conversation(row, template=TEMPLATE):
    """A row's question as chat messages. template: TEMPLATE, or a run's texts; runs that saved none had this one."""
    system = template.get("system_prompt", SYSTEM)
    return [{"role": "system", "content": system}, {"role": "user", "content": row["question"]}]


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt, up to where the assistant begins to write."""
    talks = [conversation(row, template) for row in rows]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]


def ideal(row) -> str:
    """The completion that earns every reward: the row's own solution, without GSM8K's calculator notes, in the form."""
    solution = re.sub(r"<<[^>]*>>", "", row["answer"].split("####")[0]).strip()
    return FORM.format(reasoning=solution, answer=row["gold"])


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's ideal completion and the end token. Only the SFT warm-up is shown these."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, map(ideal, rows))]


def encode(tokenizer, rows, template=TEMPLATE):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks the prompt, which the loss skips."""
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
