"""What the model sees: a question in ChatML, then thinking and answer in turns of their own, and their delimiters.

The chat template is the tokenizer's, which lies beside every adapter. Training, inference, grading and evaluation all build
their prompts here, and budget.py puts in what training saw, so they cannot drift apart.
"""

from types import SimpleNamespace

from common.tokens import ids_of

# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = "You are a helpful assistant."
TEMPLATE = dict(system_prompt=SYSTEM)  # saved beside the adapter, as NAME.txt
OPEN = "<|im_start|>think\n"
ANSWER = "<|im_start|>answer\n"
FORCED = "Final Answer:"  # only where thinking was cut off
WAIT = "Wait"
QUESTION = "How many r in raspberry?"  # what is asked where nothing else is: train.py at its end, infer.py


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt, up to where the assistant begins. Of a row only the question is read.

    template: TEMPLATE, or a run's texts; runs that saved none had this one.
    """
    system = {"role": "system", "content": template.get("system_prompt", SYSTEM)}
    talks = [[system, {"role": "user", "content": row["question"]}] for row in rows]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]


def completion(row) -> str:
    """What the model learns to write after the prompt. "Answer:" stands before the answer, as in s1's data."""
    answer = row["answer"] if row["answer"].startswith("Answer:") else f"Answer: {row['answer']}"
    return f"{OPEN}{row['trace']}\n{ANSWER}{answer}"


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's thinking and answer and the end token, without which the model never learns to stop."""
    return [ids + [tokenizer.eos_token_id] for ids in ids_of(tokenizer, map(completion, rows))]


def encode(tokenizer, rows):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks the question, which the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    prompts, answers = prompt_ids(tokenizer, rows), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


def answer_text(tokenizer, ids) -> str:
    """The text of an answer's ids, without the "Answer:" or "Final Answer:" before it."""
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return text.removeprefix("Final").strip().removeprefix("Answer:").strip()


def marks(tokenizer, wait=WAIT):
    """The ids that budget forcing puts in or looks for. The pad token ends a text, too: it is Qwen2.5's second end token.

    Raises SystemExit where the tokenizer has no <|im_start|>.
    """
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    if start is None or start == tokenizer.unk_token_id and tokenizer.unk_token != "<|im_start|>":
        raise SystemExit(
            "this tokenizer has no token <|im_start|>: thinking and answer are told apart by ChatML's. "
            "Take a Qwen2.5 or SmolLM2 model."
        )
    names = dict(open=OPEN, answer=ANSWER, forced=ANSWER + FORCED, newline="\n", wait=wait)
    return SimpleNamespace(
        **dict(zip(names, ids_of(tokenizer, names.values()), strict=True)),
        stop={start, tokenizer.eos_token_id, tokenizer.pad_token_id},
        breaks=lambda token: tokenizer.decode([token]).endswith("\n"),
    )
