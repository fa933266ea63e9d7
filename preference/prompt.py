"""What the model sees: the chat template of its tokenizer with our system text, or the prompt of the run it started from.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

from common.tokens import ids_of

# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = "You are a helpful assistant."
TEMPLATE = dict(system_prompt=SYSTEM)


def conversation(row, template=TEMPLATE):
    """A row's prompt as chat messages. template: TEMPLATE, or a run's texts."""
    if row["prompt"][0]["role"] == "system":
        return row["prompt"]
    return [{"role": "system", "content": template.get("system_prompt", SYSTEM)}, *row["prompt"]]


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt, up to where the assistant begins to write."""
    talks = [conversation(row, template) for row in rows]
    return ids_of(tokenizer, tokenizer.apply_chat_template(talks, add_generation_prompt=True, tokenize=False))


def answer_ids(tokenizer, texts) -> list[list[int]]:
    """Token ids of answers and the end token: a preference is also one about where to stop."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, texts)]
