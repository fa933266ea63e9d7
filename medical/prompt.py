"""What the model sees: the course's template, in which one question stands before its answer.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

from common.tokens import ids_of

# The model sees the question after "### 问题：" and writes after "### 回答：".
PROMPT = """你是一个专业的医疗助手。请根据患者的问题提供专业、准确的回答。

### 问题：
{question}

### 回答：
"""
TEMPLATE = dict(prompt_template=PROMPT)  # saved beside the adapter, as NAME.txt


def prompt_text(row, template=TEMPLATE) -> str:
    """The text before the answer."""
    return template["prompt_template"].replace("{question}", row["question"].strip())


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt. template: TEMPLATE, or the texts of a run."""
    if "{question}" not in template["prompt_template"]:  # old runs do not say whose they are
        raise SystemExit("the prompt_template.txt of this adapter has no {question}: it is another recipe's.")
    return ids_of(tokenizer, [prompt_text(row, template) for row in rows])


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's answer and the end token, without which the model never learns to stop."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, [row["answer"].strip() for row in rows])]


def encode(tokenizer, rows, template=TEMPLATE, loss_on="answer"):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks tokens that the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    if loss_on == "all":
        return ids, ids
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
