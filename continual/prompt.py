"""What the model sees: documents as they are, and questions in the chat template of its tokenizer.

Training, inference, evaluation and serving all build their prompts here, so they cannot drift apart.
"""

from common.tokens import ids_of

# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = "You are a helpful assistant."
CHAT = dict(system_prompt=SYSTEM)  # saved beside the adapter, as NAME.txt
TEXT = dict(prompt_template="{question}")  # of a base without a chat template: it goes on with what it is given
END = "<|endoftext|>"  # what ends a document where the tokenizer has it: an answer's end token says another thing


def template_of(tokenizer) -> dict:
    """How a model of this tokenizer is asked: the texts that are saved beside the adapter."""
    return CHAT if tokenizer.chat_template else TEXT


def prompt_ids(tokenizer, rows, template=CHAT) -> list[list[int]]:
    """Token ids of each row's question. template: CHAT or TEXT, or the texts of a run."""
    if "prompt_template" in template:
        asked = [template["prompt_template"].replace("{question}", row["question"].strip()) for row in rows]
        return ids_of(tokenizer, asked)
    said = template.get("system_prompt", SYSTEM)
    first = [{"role": "system", "content": said}] if said else []
    talks = [[*first, {"role": "user", "content": row["question"]}] for row in rows]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]


def answer_ids(tokenizer, rows) -> list[list[int]]:
    """Token ids of each row's answer and the end token, without which the model never learns to stop."""
    return [answer + [tokenizer.eos_token_id] for answer in ids_of(tokenizer, [row["answer"] for row in rows])]


def encode(tokenizer, rows, template=CHAT):
    """(lists of input_ids, lists of labels) of conversations, equally long; -100 marks the question, which the loss skips.

    Prompt and answer are tokenized apart: at inference the prompt stands alone, and must end in the same token.
    """
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, rows)
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


def end_of_document(tokenizer) -> int:
    """The token that ends a document: END, else the tokenizer's end token."""
    known = tokenizer.convert_tokens_to_ids(END)
    return tokenizer.eos_token_id if known in (None, tokenizer.unk_token_id) and tokenizer.unk_token != END else known


def document_ids(tokenizer, texts) -> list[list[int]]:
    """Token ids of documents, each with its end."""
    end = end_of_document(tokenizer)
    return [ids + [end] for ids in ids_of(tokenizer, texts)]
