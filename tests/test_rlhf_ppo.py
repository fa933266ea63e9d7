"""The RLHF recipe: reward model, PPO's invariants and its known traps, GRPO, the chain, on tiny models."""

import hashlib
import importlib.util
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "rlhf_ppo"
FILES = ("stage", "data", "backbone", "gold", "merge", "train_reward", "train_ppo", "train_grpo", "best_of_n", "compare")
EOS, PAD = 2, 0
TOKENS = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)  # all that sampling needs of a tokenizer


@pytest.fixture(scope="module")
def rlhf():
    """The folder's modules. They import each other by plain names, which other tasks have, too: taken back afterwards."""
    before = {name: sys.modules.pop(name, None) for name in FILES}
    sys.path.insert(0, str(TASK))
    try:
        modules = {name: importlib.import_module(name) for name in FILES}
    finally:
        sys.path.remove(str(TASK))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module:
                sys.modules[name] = module
    return SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def toy(rlhf, tmp_path_factory):
    """A random model of 64 words whose logits are wide enough for a LoRA to move, and a random reward model for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=64, eos_token_id=EOS, pad_token_id=PAD, num_key_value_heads=2, **shape)
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= 10  # a random head is near-uniform: no LoRA could move what is sampled
    model.save_pretrained(folder / "model")
    judge = LlamaForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=4, target_modules=rlhf.backbone.PROJECTIONS)
    judge = get_peft_model(judge, lora)
    for name, parameter in judge.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    judge.save_pretrained(folder / "reward")
    made = dict(model="toy", fingerprint=rlhf.backbone.fingerprint(folder / "model"), quantization="none")
    (folder / "reward" / "reward.json").write_text(json.dumps(made | dict(sft_mean=0.1, sft_std=0.5)))
    return folder


def ppo_args(rlhf, **more):
    args = rlhf.train_ppo.Args(**rlhf.train_ppo.DEFAULTS)
    small = dict(bf16=False, rollout_size=12, micro_batch_size=6, max_new_tokens=10, lora_r=4, lora_alpha=4)
    for name, value in (small | dict(learning_rate=1e-3, value_learning_rate=1e-3) | more).items():
        assert hasattr(args, name)
        setattr(args, name, value)
    return args


@pytest.fixture
def ppo(rlhf, toy):
    """make(**flags) -> (backbone, optimizer, args): PPO on the toy model, not yet trained."""
    import torch

    def make(**more):
        args = ppo_args(rlhf, **more)
        backbone = rlhf.train_ppo.Backbone(toy / "model", toy / "reward", args)
        groups = [
            {"params": list(backbone.policy_parameters.values()), "lr": args.learning_rate},
            {"params": list(backbone.value_parameters.values()), "lr": args.value_learning_rate},
        ]
        return backbone, torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0), args

    return make


def some_prompts(count, seed=1):
    draw = random.Random(seed)
    return [[draw.randrange(3, 64) for _ in range(draw.randrange(2, 7))] for _ in range(count)]


def digest_of(model, part):
    state = hashlib.sha1()
    for name, parameter in model.named_parameters():
        if part(name):
            state.update(parameter.detach().numpy().tobytes())
    return state.hexdigest()


def is_backbone(name):
    return not any(f".{adapter}." in name for adapter in ("policy", "value", "reward"))


# -- PPO: the formulas


def test_gae_by_hand(rlhf):
    import torch

    rewards, values = torch.tensor([[0.0, 0, 1, 9]]), torch.tensor([[0.5, 0.4, 0.3, 7]])
    mask = torch.tensor([[1.0, 1, 1, 0]])  # the last column is padding with rubbish in it
    advantages, returns = rlhf.train_ppo.gae(rewards, values, mask, 1.0, 0.95)
    assert advantages.tolist()[0] == pytest.approx([0.43675, 0.565, 0.7, 0])
    assert rlhf.train_ppo.gae(rewards, values, mask, 1.0, 1.0)[1].tolist()[0] == pytest.approx([1, 1, 1, 0])
    assert rlhf.train_ppo.gae(rewards, values, mask, 1.0, 0.0)[0].tolist()[0] == pytest.approx([-0.1, -0.1, 0.7, 0])
    assert returns.tolist()[0] == pytest.approx([0.93675, 0.965, 1.0, 0])


def test_the_score_stands_on_the_last_token_only(rlhf):
    import torch

    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    logprobs, scores = -torch.rand(3, 5), torch.tensor([2.0, 3.0, 4.0])
    rewards = rlhf.train_ppo.token_rewards(logprobs, logprobs - 1, scores, mask, 0.0)
    assert rewards.nonzero().tolist() == [[0, 2], [1, 0], [2, 4]] and rewards.sum() == 9
    rewards = rlhf.train_ppo.token_rewards(logprobs, logprobs - 1, scores, mask, 0.5)  # KL of 1 nat at each token
    assert rewards[0].tolist() == pytest.approx([-0.5, -0.5, 1.5, 0, 0])


def test_eos_is_counted_where_pad_and_eos_are_one_token(rlhf):
    cut = [rlhf.data.cut_at_eos(row, EOS) for row in ([5, 6, EOS, EOS, EOS], [EOS], [5, 6, 7, 8, 9], [5, EOS, 7])]
    assert cut == [[5, 6, EOS], [EOS], [5, 6, 7, 8, 9], [5, EOS]]
    assert rlhf.train_ppo.response_mask(cut).sum(1).tolist() == [3, 1, 5, 2]


def test_whitening_is_over_the_whole_rollout(rlhf):
    import torch

    torch.manual_seed(0)
    x, mask = torch.randn(6, 8) * 3 + 5, (torch.rand(6, 8) > 0.3).float()
    white = rlhf.train_ppo.whiten(x, mask)
    real = white[mask.bool()]
    assert real.mean().abs() < 1e-6 and real.var() == pytest.approx(1, abs=1e-5) and not white[~mask.bool()].any()
    assert not torch.allclose(white[:3], rlhf.train_ppo.whiten(x[:3], mask[:3]), atol=1e-2)


def test_clipped_losses_by_hand(rlhf):
    import torch

    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1, 1, -1, 2])
    losses = rlhf.train_ppo.policy_losses(ratio.log(), torch.zeros(5), advantage, 0.2)
    assert losses.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    values, old, returns = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    assert rlhf.train_ppo.value_losses(values, old, returns, 0.2).tolist() == pytest.approx([0.32, 0.405])
    assert rlhf.train_ppo.value_losses(values, old, returns, 0).tolist() == pytest.approx([0, 0.405])


def test_the_kl_controller(rlhf):
    adapted = rlhf.train_ppo.adapted
    assert adapted(0.05, 3.0, 0.0, 64) == 0.05
    assert adapted(0.05, 60.0, 6.0, 100) == pytest.approx(0.05 * 1.002)
    assert adapted(0.05, 5.4, 6.0, 100) == pytest.approx(0.05 * 0.999)


# -- PPO: the backbone


@pytest.mark.parametrize("bf16", [False, True])
def test_the_first_rollout_has_no_kl_and_ratios_of_one(rlhf, ppo, bf16):
    backbone, optimizer, args = ppo(bf16=bf16)
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
    assert roll["metrics"]["kl"] == 0.0 and roll["metrics"]["kl_k3"] == 0.0
    learnt = rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, 1)
    assert learnt["ratio_error"] == 0.0 and learnt["ratio_max"] > 1
    again = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
    assert again["metrics"]["kl_k3"] > 0  # the policy moved, its reference did not


def test_ratio_is_not_one_with_dropout(rlhf, ppo):
    """The test above can fail: dropout in the update, once B is no longer 0, moves the ratio."""
    import torch

    backbone, optimizer, args = ppo(learning_rate=1e-2)
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
    rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, 1)
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
    for module in backbone.model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["policy"] = torch.nn.Dropout(0.1)
    assert rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, 2)["ratio_error"] > 1e-3


def test_pad_content_and_company_change_nothing(rlhf, ppo):
    import torch

    backbone, _, _ = ppo()
    prompts, responses = some_prompts(5), some_prompts(5, seed=2)
    with torch.no_grad():
        made = [rlhf.backbone.response_logprobs(backbone.model, prompts, responses, pad, 0.7) for pad in (0, 33)]
        alone = [rlhf.backbone.response_logprobs(backbone.model, [p], [r], 0, 0.7)
                 for p, r in zip(prompts, responses, strict=True)]  # fmt: skip
    assert torch.equal(*made) and torch.allclose(made[0], torch.cat(alone), atol=1e-5)


def test_logprobs_are_those_of_the_model(rlhf, ppo):
    """Against the plain way: all logits of one row at a time."""
    import torch

    backbone, _, _ = ppo()
    prompts, responses = some_prompts(3), some_prompts(3, seed=2)
    expected, entropy = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        with torch.no_grad():
            logits = backbone.model(torch.tensor([prompt + response])).logits[0] / 0.7
        full = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        expected.append(full[range(len(response)), response])
        entropy.append(-(full.exp() * full).sum(-1))
    with torch.no_grad():
        made = rlhf.backbone.response_logprobs(backbone.model, prompts, responses, PAD, 0.7, entropy=True)
    assert torch.allclose(made[0], torch.cat(expected), atol=1e-5)
    assert torch.allclose(made[1], torch.cat(entropy), atol=1e-5)


@pytest.mark.parametrize("more", [dict(micro_batch_size=1), dict(micro_batch_size=4, gradient_checkpointing=True)])
def test_micro_batches_and_checkpointing_change_nothing(rlhf, ppo, more):
    import torch

    made = []
    for flags in (dict(micro_batch_size=12), more):
        backbone, optimizer, args = ppo(**flags)
        torch.manual_seed(3)
        roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
        learnt = rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, 1)
        made.append((roll["responses"], learnt, backbone.policy_parameters | backbone.value_parameters))
    assert made[0][0] == made[1][0]
    for name in ("grad_policy", "grad_value", "policy_loss", "value_loss"):
        assert made[0][1][name] == pytest.approx(made[1][1][name], rel=1e-3, abs=1e-6)
    for name, parameter in made[0][2].items():
        assert torch.allclose(parameter, made[1][2][name], atol=2e-5), name


def test_only_policy_and_value_learn(rlhf, ppo):
    backbone, optimizer, args = ppo()
    model = backbone.model
    frozen = {part: digest_of(model, rule) for part, rule in (("backbone", is_backbone), ("reward", lambda n: ".reward." in n))}
    start = {n: p.detach().clone() for n, p in (backbone.policy_parameters | backbone.value_parameters).items()}
    head = backbone.head.clone()
    for update in (1, 2):
        roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
        learnt = rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, update)
        assert learnt["grad_policy"] > 0 and learnt["grad_value"] > 0
    assert digest_of(model, is_backbone) == frozen["backbone"]
    assert digest_of(model, lambda name: ".reward." in name) == frozen["reward"] and head.equal(backbone.head)
    still = [n for n, p in (backbone.policy_parameters | backbone.value_parameters).items() if p.equal(start[n])]
    assert len(start) == 2 * 2 * 7 * 2 + 2 and not still
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".reward." in n or is_backbone(n))


def test_the_value_model_begins_as_the_normalised_reward_model(rlhf, ppo):
    import torch

    backbone, _, args = ppo()
    prompts, responses = some_prompts(4), some_prompts(4, seed=2)
    rows = [rlhf.data.rm_ids(p, r, EOS) for p, r in zip(prompts, responses, strict=True)]
    backbone.use("reward")
    scores = rlhf.backbone.score_rows(backbone.model, backbone.head, rows, PAD)
    backbone.use("value")
    with torch.no_grad():  # V before a token that is appended to a row is the score of the row
        values = backbone.values(rows, [[7]] * 4, PAD)
    assert values.tolist() == pytest.approx([(score - 0.1) / 0.5 for score in scores], abs=1e-5)


def test_value_warmup_leaves_the_policy_alone(rlhf, ppo):
    backbone, optimizer, args = ppo(value_warmup=1)
    start = {n: p.detach().clone() for n, p in backbone.policy_parameters.items()}
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
    learnt = rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, 1)
    assert all(p.equal(start[n]) for n, p in backbone.policy_parameters.items()) and learnt["grad_value"] > 0


# -- PPO: what PEFT does without a word


def test_trap_joint_backward_loses_the_policy_gradients(ppo):
    backbone, _, _ = ppo()
    import torch

    ids = torch.tensor([[5, 6, 7]])
    backbone.use("policy")
    policy = backbone.model(ids).logits.sum()
    backbone.use("value")
    (policy + backbone.model(ids).logits.sum()).backward()
    assert all(p.grad is None for p in backbone.policy_parameters.values())


def test_trap_gradients_switched_on_by_hand_are_wrong_under_checkpointing(rlhf, ppo):
    import torch

    ids, gradients = torch.tensor([[5, 6, 7, 8]]), {}
    for joint in (False, True):
        backbone, _, _ = ppo(gradient_checkpointing=True)
        for name, parameter in backbone.model.named_parameters():
            if "lora_B.policy" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        backbone.model.train()
        backbone.use("policy")
        policy = backbone.model(ids).logits.pow(2).mean()
        if joint:
            backbone.use("value")
            backbone.model.set_requires_grad(["policy", "value"], True)
            policy = policy + 0 * backbone.model(ids).logits.sum()
        policy.backward()
        gradients[joint] = torch.cat([p.grad.flatten() for p in backbone.policy_parameters.values() if p.grad is not None])
    whole = gradients[True].shape == gradients[False].shape
    assert not whole or (gradients[True] - gradients[False]).norm() > 0.1 * gradients[False].norm()


def test_trap_leaving_disable_adapter_wakes_the_judge(ppo):
    backbone, _, _ = ppo()
    judge = [p for n, p in backbone.model.named_parameters() if ".reward." in n]
    backbone.use("reward")
    assert not any(p.requires_grad for p in judge)
    with backbone.model.disable_adapter():
        pass
    assert any(p.requires_grad for p in judge)  # PEFT; and now our way
    backbone.use("reward")
    with backbone.reference():
        pass
    assert not any(p.requires_grad for p in judge)


# -- PPO: does it learn


def toy_run(rlhf, ppo, monkeypatch, updates, **more):
    """Train on a rule instead of a reward model: the share of even tokens in the answer, from -1 to 1."""
    import torch

    def rule(model, head, rows, pad, batch_size):
        return [sum(1 if token % 2 == 0 else -1 for token in row[4:]) / max(1, len(row) - 4) for row in rows]

    monkeypatch.setattr(rlhf.train_ppo, "score_rows", rule)
    flags = dict(rollout_size=32, micro_batch_size=32, max_new_tokens=8, eos_penalty=0.0, epochs=3, minibatches=2)
    flags |= dict(learning_rate=5e-3, value_learning_rate=5e-3, kl_coef=0.01)
    backbone, optimizer, args = ppo(**(flags | more))
    backbone.mean, backbone.std = 0.0, 1.0
    torch.manual_seed(0)
    logs = []
    for update in range(1, updates + 1):
        prompts = [[random.Random(f"{update}-{i}-{j}").randrange(3, 64) for j in range(4)] for i in range(32)]
        roll = rlhf.train_ppo.rollout(backbone, TOKENS, prompts, args, args.kl_coef)
        logs.append(roll["metrics"] | rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, update))
    first, last = ({name: sum(log[name] for log in part) / len(part) for name in logs[0]} for part in (logs[:5], logs[-5:]))
    return first, last


def test_the_toy_task_is_learnt(rlhf, ppo, monkeypatch):
    first, last = toy_run(rlhf, ppo, monkeypatch, 25)
    assert last["score"] > first["score"] + 0.5 and last["kl"] > 0.5
    assert last["explained_variance"] > first["explained_variance"]


def test_the_toy_task_is_not_learnt_without_a_learning_rate(rlhf, ppo, monkeypatch):
    first, last = toy_run(rlhf, ppo, monkeypatch, 10, learning_rate=0.0)
    assert abs(last["score"] - first["score"]) < 0.25 and last["kl"] == 0.0


def test_a_large_kl_weight_holds_the_policy(rlhf, ppo, monkeypatch):
    first, last = toy_run(rlhf, ppo, monkeypatch, 25, kl_coef=5.0)
    assert last["score"] < first["score"] + 0.3 and abs(last["kl"]) < 0.3
