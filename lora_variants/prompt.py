"""What the model sees: one question, and its answer after it. No chat template, so that every base model reads the same.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

from common.tokens import ids_of

PROMPT = """### Question:
{question}

### Answer:
"""
TEMPLATE = dict(prompt_template=PROMPT)  # saved beside the adapter, as NAME.txt


def prompt_text(row, template=TEMPLATE) -> str:
    """The text before the answer."""
    return template["prompt_template"].replace("{question}", row["question"].strip())


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt. template: TEMPLATE, or the texts of a run."""
    if "{question}" not in template["prompt_template"]:
        raise SystemExit("the prompt_template.txt of this adapter has no {question}: it is another recipe's.")
    return ids_of(tokenizer, [prompt_text(row, template) for row in rows])


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's answer and the end token, without which the model never learns to stop."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, [row["answer"] for row in rows])]


def encode(tokenizer, rows, template=TEMPLATE):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks the prompt, which the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
