"""What the model sees: Stanford's two alpaca templates, and the same rows as chat messages.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

from common.tokens import ids_of

# The model writes after "### Response:". Without an input the short template is taken.
PROMPT = """Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""
SHORT_PROMPT = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""
TEMPLATE = dict(prompt_template=PROMPT, prompt_template_short=SHORT_PROMPT)  # saved beside the adapter, as NAME.txt


def one_template():
    """The course's form: the long template for every row, with nothing under "### Input:" where there is no input."""
    return TEMPLATE | {"prompt_template_short": PROMPT.replace("{input}", "")}


# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = "You are a helpful assistant."


def prompt_text(row, template=TEMPLATE) -> str:
    """The text before the answer."""
    return template["prompt_template" if row.get("input") else "prompt_template_short"].format(**row)


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt. template: TEMPLATE, or the texts of a run; without these its chat template counts."""
    if "prompt_template" in template:
        if "{instruction}" not in template["prompt_template"]:  # old runs do not say whose they are
            raise SystemExit("the prompt_template.txt of this adapter has no {instruction}: it is another recipe's.")
        return ids_of(tokenizer, [prompt_text(row, template) for row in rows])
    talks = [conversation({"instruction": row["instruction"], "input": row["input"]}) for row in rows]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's answer and the end token, without which the model never learns to stop."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, [row["output"] for row in rows])]


def encode(tokenizer, rows, template=TEMPLATE, loss_on="all"):
    """(lists of input_ids, lists of labels) of rows, equally long; -100 marks tokens that the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    if loss_on == "all":
        return ids, ids
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


def conversation(row):
    """A row as chat messages; without an output the assistant's turn is left out."""
    user = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    return messages + ([{"role": "assistant", "content": row["output"]}] if row.get("output") else [])
