"""The reward model on the causal backbone, beside other adapters: its head, and the scores that it gives.

A score is w . h: the head's weights times the hidden state at the answer's last token, in float32.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from backbone import answers_of, hidden_states, pad_right
from common import hub
from prompt import rm_ids


def reward_head(folder, device):
    """The score head's weight (H,), float32, from an adapter folder."""
    with hub.loading(folder, "adapter_model.safetensors"):
        weights = load_file(Path(folder) / "adapter_model.safetensors")
    heads = [tensor for name, tensor in weights.items() if name.endswith("score.weight")]
    if len(heads) != 1:
        raise SystemExit(f"{folder}: its adapter file has no score head: the scores would be random. Train it again.")
    if heads[0].ndim != 2 or len(heads[0]) != 1 or not heads[0].isfinite().all():
        raise SystemExit(f"{folder}: its score head is no row of finite numbers: it is damaged. Train it again.")
    return heads[0][0].float().to(device)


def scores_of(model, head, ids, last):
    """Scores (B,) of padded rows: the head's dot product with the hidden state of each row's last real token, float32."""
    hidden = hidden_states(model, ids)
    return hidden[torch.arange(len(ids), device=ids.device), last].float() @ head.float()


@torch.no_grad()
def score_rows(model, head, rows, pad, batch_size=16):
    """The scores of rows made by prompt.rm_ids, as a list of floats. The reward adapter must be the active one."""
    order, scores = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True), [0.0] * len(rows)
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        found = scores_of(model, head, *pad_right([rows[i] for i in batch], pad, head.device))
        for i, score in zip(batch, found.tolist(), strict=True):
            scores[i] = score
    return scores


def judge(model, head, reward, tokenizer, prompts, responses, batch_size=16):
    """Scores of responses (token ids) in units of the SFT model's own: (score - mean) / std. Leaves "reward" active."""
    model.set_adapter("reward", inference_mode=True)
    rows = [
        rm_ids(prompt, response, tokenizer.eos_token_id) for prompt, response in zip(prompts, responses, strict=True)
    ]
    scores = score_rows(model, head, rows, tokenizer.pad_token_id, batch_size)
    return [(score - reward["sft_mean"]) / reward["sft_std"] for score in scores]


def examples(model, adapter, head, reward, tokenizer, prompts, max_new_tokens, **sampling):
    """Answers to some prompts with their scores, to be shown: [{answer, score}]. sampling: as of answers_of; none: greedy."""
    ids = answers_of(model, adapter, tokenizer, prompts, max_new_tokens, **sampling)
    scores = judge(model, head, reward, tokenizer, prompts, ids)
    texts = [text_of(tokenizer, each) for each in ids]
    return [{"answer": text, "score": score} for text, score in zip(texts, scores, strict=True)]


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
