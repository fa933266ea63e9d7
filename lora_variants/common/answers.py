# Generated from common/answers.py: edit that file, then run `make sync`.
"""Measuring a model: held-out loss on the tokens that count, and its answers. Imports torch: for after the parsing."""

import math

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from common import device, models, screen, tokens

TOKENS = 4096  # of a batch that is measured, padding too, or one row: 1.2 GB of logits for Qwen's 152,000 words
CHUNK = 1024  # tokens whose logits exist in float32 at a time: 0.6 GB


@torch.no_grad()
def heldout_loss(model, dataset, pad_token_id: int, batch_size: int = 8) -> dict:
    """Loss and perplexity over the supervised tokens of a tokenized dataset (columns input_ids, labels).

    Token-weighted: the sum of -log p over all tokens with a label, divided by their number; perplexity is its exp.
    """
    lengths = tokens.lengths(dataset)
    batches, order = [], sorted(range(len(dataset)), key=lengths.__getitem__, reverse=True)
    while order:  # fewer rows where they are long: a token's logits are as large as a hundred of its hidden states
        size = max(1, min(batch_size, TOKENS // lengths[order[0]]))
        batches.append(order[:size])
        order = order[size:]
    total, count = 0.0, 0
    with models.inference(model, "hf"), screen.bar("held-out loss", sum(lengths), " tokens") as bar:
        for batch in batches:
            rows = [dataset[i] for i in batch]
            ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True, pad_token_id).to(model.device)
            labels = pad_sequence([torch.tensor(row["labels"]) for row in rows], True, -100).to(model.device)
            mask = pad_sequence([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], True, 0)
            logits = model(input_ids=ids, attention_mask=mask.to(model.device)).logits[:, :-1]
            labels = labels[:, 1:].flatten()  # logits at t are about the token at t + 1
            places = (labels != -100).nonzero()[:, 0]  # a prompt's logits are never needed
            for part in places.split(CHUNK):  # in float32 a piece at a time
                row, column = part // logits.shape[1], part % logits.shape[1]
                total += cross_entropy(logits[row, column].float(), labels[part].long(), reduction="sum").item()
            count += len(places)
            bar.update(sum(lengths[i] for i in batch))
    return {"loss": total / count, "perplexity": math.exp(total / count), "tokens": count, "rows": len(dataset)}


def end_tokens(model, tokenizer) -> list[int]:
    """Every token that ends an answer: Qwen2.5 has two."""
    more = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(more if isinstance(more, list) else [more] if more is not None else [])})


def cut(row, ends):
    """A row of token ids up to and with its first end token."""
    return row[: next((n for n, token in enumerate(row, 1) if token in ends), len(row))]


@torch.no_grad()
def generate(
    model, tokenizer, prompts, max_new_tokens=256, batch_size=32, backend="hf", streamer=None, decode=None, **how
) -> list[str]:
    """The model's continuation of each prompt (a list of lists of token ids), in the order given, without eos.

    Greedy unless a temperature is given; `how` may have any of generate's settings (top_p, repetition_penalty, ...).
    With return_ids=True: the token ids instead, up to and with the end token where the model stopped by itself. Prompts are
    batched by length and padded on the left, since a decoder goes on from the last position. A streamer prints a
    single answer while it is written. decode: common/speed/graph.py's function, which does the work on a GPU where it
    can: greedy, or sampling from the whole distribution (top_k=0, top_p=1).
    """
    how = dict(repetition_penalty=1.0) | how  # Qwen's own settings have 1.05, which is not greedy any more
    return_ids = how.pop("return_ids", False)
    whole = {"temperature": how.get("temperature"), "repetition_penalty": 1.0, "top_k": 0, "top_p": 1.0}
    fast = decode and model.device.type == "cuda" and not streamer and backend == "hf" and not device.sharded()
    fast = fast and (how == whole or how == dict(repetition_penalty=1.0))
    pad, ends = tokenizer.pad_token_id, end_tokens(model, tokenizer)
    # The longest first: if memory is short, that shows at once.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers = [""] * len(prompts)
    with (
        models.inference(model, backend),
        screen.bar("sampling answers", len(order), " answers", hidden=bool(streamer)) as bar,
    ):
        for start in range(0, len(order), batch_size):
            batch = [prompts[i] for i in order[start : start + batch_size]]
            if fast:
                rows = decode(model, batch, max_new_tokens, how.get("temperature", 0), ends, pad)
            else:
                gaps = [max(map(len, batch)) - len(prompt) for prompt in batch]
                ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, batch, strict=True)]
                mask = [[0] * gap + [1] * len(prompt) for gap, prompt in zip(gaps, batch, strict=True)]
                ids, mask = (torch.tensor(each, device=model.device) for each in (ids, mask))
                ending = dict(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, use_cache=True)
                sampled = dict(do_sample="temperature" in how, streamer=streamer)
                rows = model.generate(input_ids=ids, attention_mask=mask, **ending, **sampled, **how)
                rows = rows[:, ids.shape[1] :].tolist()
            for i, row in zip(order[start : start + batch_size], rows, strict=True):
                row = cut(row, ends)
                answers[i] = row if return_ids else tokenizer.decode(row, skip_special_tokens=True).strip()
            bar.update(len(batch))
    return answers
