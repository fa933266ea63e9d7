"""The steps of common/speed/graph.py, one by one on a CPU. tests/gpu_equality.py checks the recorded ones on a GPU."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model

from common import models
from common.answers import generate
from common.speed.graph import decode


@pytest.fixture(scope="module")
def model(tiny_model):
    torch.manual_seed(0)
    model = models.load_base(tiny_model, "hf", None, torch.float32)
    # Not tied to the embeddings, or the likeliest token is always the last one again.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.5)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).eval()


PROMPTS = [[5, 6, 7], list(range(100, 140)), [9]]


def greedy(model, tokenizer, new=24):
    return decode(model, PROMPTS, new, 0, [tokenizer.eos_token_id], tokenizer.pad_token_id, graph=False)


def test_greedy_decoding_is_generates_and_sees_the_adapters(model, tiny_model):
    tokenizer = models.load_tokenizer(tiny_model)
    first = greedy(model, tokenizer)
    assert first == generate(model, tokenizer, PROMPTS, 24, return_ids=True)
    assert first == greedy(model, tokenizer), "a second batch starts from a clean cache"
    for name, each in model.named_parameters():
        if "lora_B" in name:
            each.data.normal_(std=0.5)
    changed = greedy(model, tokenizer)
    assert changed != first
    assert changed == generate(model, tokenizer, PROMPTS, 24, return_ids=True)
    with model.disable_adapter():
        assert greedy(model, tokenizer) == first


def test_an_answer_ends_with_its_eos_and_others_go_on(model):
    free = decode(model, PROMPTS, 24, 0, [-1], 0, graph=False)
    eos, other = free[0][5], free[1][3]
    rows = decode(model, PROMPTS, 24, 0, [eos, other], 0, graph=False)
    for row, whole in zip(rows, free, strict=True):
        first = min(whole.index(end) if end in whole else len(whole) for end in (eos, other))
        assert row == whole[: first + 1]


@pytest.mark.slow
def test_sampling_draws_from_the_softmax(model):
    torch.manual_seed(0)
    drawn = decode(model, [[5, 6, 7]] * 2000, 1, 0.5, [-1], 0, graph=False)
    with torch.no_grad():
        wanted = (model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.5).softmax(-1)
    counts = Counter(row[0] for row in drawn)
    for token in wanted.topk(5).indices.tolist():
        share, expected = counts[token] / 2000, wanted[token].item()
        assert abs(share - expected) < 4 * (expected / 2000) ** 0.5
