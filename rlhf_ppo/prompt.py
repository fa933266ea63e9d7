"""What the model sees: the chat template of its tokenizer, with our system text. And what the reward model reads.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

from common.tokens import ids_of

# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = "You are a helpful assistant."
TEMPLATE = dict(system_prompt=SYSTEM)


def conversation(row, template=TEMPLATE):
    """A row's prompt as chat messages. template: TEMPLATE, or a run's texts; runs that saved none had this one."""
    if row["prompt"][0]["role"] == "system":
        return row["prompt"]
    return [{"role": "system", "content": template.get("system_prompt", SYSTEM)}, *row["prompt"]]


def prompt_texts(tokenizer, rows, template=TEMPLATE) -> list[str]:
    """Each row's prompt in the model's chat template, up to where the assistant begins to write."""
    talks = [conversation(row, template) for row in rows]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]


def prompt_ids(tokenizer, rows, template=TEMPLATE) -> list[list[int]]:
    """Token ids of each row's prompt."""
    return ids_of(tokenizer, prompt_texts(tokenizer, rows, template))


def answer_ids(tokenizer, rows, side="chosen") -> list[list[int]]:
    """Token ids of one of each row's answers and the end token, which is where a reward model's score is read."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, [row[side] for row in rows])]


def encode(tokenizer, rows, template=TEMPLATE) -> list[dict]:
    """Pairs as dicts of token ids: prompt, chosen, rejected. Both sides come without the prompt and end in eos."""
    prompts = prompt_ids(tokenizer, rows, template)
    sides = [answer_ids(tokenizer, rows, side) for side in ("chosen", "rejected")]
    return [dict(prompt=p, chosen=c, rejected=r) for p, c, r in zip(prompts, *sides, strict=True)]


def cut_at_eos(ids, eos):
    """Up to and with the first eos; all of it if there is none. Found by position: a pad id may be a real token, too."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def rm_ids(prompt, response, eos):
    """What the reward model reads: the prompt, then the response up to and with its eos, and nothing behind it.

    The one place where this is decided, for reward training, its evaluation, PPO, GRPO, best-of-n and inference. A chat
    template ends a turn with eos AND a line break; a reward model trained on that reads its score at the line break,
    which no sampled response has: the same texts then score 4.5 with it and 0.5 without.
    """
    return list(prompt) + cut_at_eos(list(response), eos)
