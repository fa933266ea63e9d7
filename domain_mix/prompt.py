"""What the model sees: ChatML, written out, with one system prompt for all domains.

Training, inference, evaluation and chat all build their prompts here, so they cannot drift apart.
"""

import re

from common.tokens import ids_of

# One prompt for all domains: which manner to answer in has to be told from the question.
SYSTEM = (
    "You are a knowledgeable assistant for science, medicine, engineering and everyday questions. "
    "Answer in the manner that suits the field of the question."
)
TEMPLATE = dict(system_prompt=SYSTEM)  # saved beside the adapter, as NAME.txt


def chatml(messages) -> str:
    """Messages {"role", "content"} as ChatML, up to where the assistant writes.

    Written out rather than left to the tokenizer's own template, which differs from model to model: Qwen's puts in a
    system prompt of its own. A text cannot end its turn: the markers are taken out of what people and web pages wrote.
    """
    turns = [(turn["role"], re.sub(r"<\|(?:im_start|im_end|endoftext)\|>", "", turn["content"])) for turn in messages]
    said = "".join(f"<|im_start|>{role}\n{text.strip()}<|im_end|>\n" for role, text in turns)
    return said + "<|im_start|>assistant\n"


def opening(system):
    """The messages that stand before the first question: the system prompt, if it is not empty."""
    return [{"role": "system", "content": system}] if system else []


def question_of(row) -> str:
    """What the user says: the instruction, and the input under it if there is one."""
    return "\n\n".join(part for part in (row["instruction"].strip(), row["input"].strip()) if part)


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt. template: TEMPLATE, or the texts of a run."""
    first = opening(template["system_prompt"])
    return ids_of(tokenizer, [chatml([*first, {"role": "user", "content": question_of(row)}]) for row in rows])


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's answer and the end token, without which the model never learns to stop."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, [row["output"] for row in rows])]


def encode(tokenizer, rows, template=TEMPLATE):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks tokens that the loss skips: the prompt's.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
