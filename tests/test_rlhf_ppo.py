"""The RLHF recipe: reward model, PPO's invariants and its known traps, GRPO, the chain, on tiny models."""

import hashlib
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rlhf_toy import EOS, PAD

from common.cli import LINEAR

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "rlhf_ppo"
TOKENS = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)  # all that sampling needs of a tokenizer


def ppo_args(rlhf, **more):
    from common.cli import parse

    args = parse(rlhf.train_ppo.__file__, rlhf.train_ppo.DEFAULTS, {}, rlhf.train_ppo.Args, argv=[])
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
        backbone = rlhf.train_ppo.Backbone(toy / "model", toy / "reward", dict(sft_mean=0.1, sft_std=0.5), args)
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
    cut = [rlhf.prompt.cut_at_eos(row, EOS) for row in ([5, 6, EOS, EOS, EOS], [EOS], [5, 6, 7, 8, 9], [5, EOS, 7])]
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
    """The test above can fail: dropout in the update moves the ratio."""
    import torch

    backbone, optimizer, args = ppo(learning_rate=1e-2)
    backbone.model.get_input_embeddings().register_forward_hook(
        lambda module, _, states: torch.nn.functional.dropout(states, 0.1, module.training)
    )
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, some_prompts(12), args, 0.05)
    assert rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, 1)["ratio_error"] > 1e-3


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
    frozen = {
        part: digest_of(model, rule)
        for part, rule in (("backbone", is_backbone), ("reward", lambda n: ".reward." in n))
    }
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
    rows = [rlhf.prompt.rm_ids(p, r, EOS) for p, r in zip(prompts, responses, strict=True)]
    backbone.use("reward")
    scores = rlhf.scoring.score_rows(backbone.model, backbone.head, rows, PAD)
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
        gradients[joint] = torch.cat([p.grad.flatten() for p in backbone.policy_parameters.values()])
    assert (gradients[True] - gradients[False]).norm() > 0.5 * gradients[False].norm()


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

    monkeypatch.setattr(rlhf.scoring, "score_rows", rule)
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
    first, last = (
        {name: sum(log[name] for log in part) / len(part) for name in logs[0]} for part in (logs[:5], logs[-5:])
    )
    return first, last


@pytest.mark.slow
def test_the_toy_task_is_learnt(rlhf, ppo, monkeypatch):
    first, last = toy_run(rlhf, ppo, monkeypatch, 25)
    assert last["score"] > first["score"] + 0.5 and last["kl"] > 4
    assert last["explained_variance"] > first["explained_variance"]


def test_the_toy_task_is_not_learnt_without_a_learning_rate(rlhf, ppo, monkeypatch):
    first, last = toy_run(rlhf, ppo, monkeypatch, 10, learning_rate=0.0)
    assert abs(last["score"] - first["score"]) < 0.25 and last["kl"] == 0.0


@pytest.mark.slow
def test_a_large_kl_weight_holds_the_policy(rlhf, ppo, monkeypatch):
    first, last = toy_run(rlhf, ppo, monkeypatch, 25, kl_coef=5.0)
    assert last["score"] < first["score"] + 0.3 and abs(last["kl"]) < 2


# -- the reward model


def test_what_the_reward_model_reads(rlhf):
    assert rlhf.prompt.rm_ids([5, 6], [7, EOS, 9, EOS], EOS) == [5, 6, 7, EOS]
    assert rlhf.prompt.rm_ids([5, EOS, 6], [7, 8], EOS) == [
        5,
        EOS,
        6,
        7,
        8,
    ]  # an eos in the prompt ends nothing; cut off
    pairs = [
        {"prompt": [5], "chosen": [6, EOS], "rejected": [7, 8, EOS]},
        {"prompt": [9], "chosen": [3], "rejected": [4]},
    ]
    rows = rlhf.train_reward.side_rows(pairs, EOS)
    assert rows == [[5, 6, EOS], [9, 3], [5, 7, 8, EOS], [9, 4]]  # better sides first, then the worse ones


def test_scores_do_not_depend_on_padding_and_are_the_classifiers(rlhf, toy):
    """Alone, in company, padded left or right by transformers, on the causal backbone: one text, one score."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    rows = [prompt + [EOS] for prompt in some_prompts(5)]
    base = AutoModelForSequenceClassification.from_pretrained(toy / "model", num_labels=1)
    judge = PeftModel.from_pretrained(base, str(toy / "reward")).eval()
    width = max(map(len, rows))
    with torch.no_grad():
        alone = [judge(torch.tensor([row])).logits.item() for row in rows]
        for side in ("left", "right"):
            pads = [[PAD] * (width - len(row)) for row in rows]
            ids = torch.tensor([p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)])
            mask = torch.tensor([[int(token != PAD) for token in row] for row in ids.tolist()])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            padded = judge(ids, attention_mask=mask, position_ids=positions).logits[:, 0].tolist()
            assert padded == pytest.approx(alone, abs=1e-5)
    model = rlhf.backbone.add_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), "reward", toy / "reward")
    head = rlhf.scoring.reward_head(toy / "reward", "cpu")
    for batch in (1, 5):
        scores = rlhf.scoring.score_rows(model.eval(), head, rows, PAD, batch)
        assert scores == pytest.approx(alone, abs=1e-5) and len(set(scores)) == 5
    assert rlhf.scoring.score_rows(model, head, rows, 33) == pytest.approx(alone, abs=1e-5)


def test_pairs_are_learnt_and_swapping_them_is_noticed(rlhf, toy):
    import torch

    pairs = [{"prompt": p, "chosen": c + [EOS], "rejected": r + [EOS]}
             for p, c, r in zip(some_prompts(8), some_prompts(8, 2), some_prompts(8, 3), strict=True)]  # fmt: skip
    args = SimpleNamespace(
        seed=1, bf16=False, quantization="none", lora_r=4, lora_alpha=4, gradient_checkpointing=False
    )
    model = rlhf.train_reward.classifier(toy / "model", args)
    head = rlhf.train_reward.head_of(model)
    start = head.detach().clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2 + 1 and all(p.dtype == torch.float32 for p in trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(40):
        chosen, rejected = rlhf.scoring.scores_of(model, head, *rlhf.backbone.pad_right(
            rlhf.train_reward.side_rows(pairs, EOS), PAD, "cpu")).chunk(2)  # fmt: skip
        losses, margins = rlhf.train_reward.bradley_terry(chosen, rejected, 0.01)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if not step:
            assert not head.equal(start)
    assert (margins > 0).all()
    right, wrong = (
        rlhf.train_reward.bradley_terry(*each)[0].mean() for each in ((chosen, rejected), (rejected, chosen))
    )
    assert right < math.log(2) < wrong
    swapped = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    measured = [rlhf.train_reward.evaluate(model.eval(), head, each, TOKENS) for each in (pairs, swapped)]
    assert [each["accuracy"] for each in measured] == [1.0, 0.0]
    assert measured[0]["margin"] == pytest.approx(-measured[1]["margin"], rel=1e-4)


def test_bradley_terry_by_hand(rlhf):
    import torch

    losses, margins = rlhf.train_reward.bradley_terry(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), 0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1)) + 0.5, math.log(2) + 8])
    assert margins.tolist() == [1, 0]


RELOAD = """
import sys
from types import SimpleNamespace
from pathlib import Path
from common import paths
paths.load_env()
import backbone, scoring
path, folder = Path(sys.argv[1]), sys.argv[2]
model = backbone.load_backbone(path, SimpleNamespace(quantization="none", bf16=False))
model = backbone.add_adapter(model, "reward", folder).eval()
head = scoring.reward_head(folder, "cpu")
print("SCORES", scoring.score_rows(model, head, [[5, 6, 2], [7, 8, 9, 2]], 0))
"""


@pytest.mark.slow
def test_a_fresh_process_scores_alike(rlhf, toy, environment):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = rlhf.backbone.add_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), "reward", toy / "reward")
    head = rlhf.scoring.reward_head(toy / "reward", "cpu")
    assert [name for name in load_file(toy / "reward" / "adapter_model.safetensors") if name.endswith("score.weight")]
    scores = rlhf.scoring.score_rows(model.eval(), head, [[5, 6, EOS], [7, 8, 9, EOS]], PAD)
    command = [sys.executable, "-c", RELOAD, toy / "model", toy / "reward"]
    done = subprocess.run([*map(str, command)], cwd=TASK, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.split("SCORES ")[1])
    assert found == pytest.approx(scores, abs=1e-6)


def test_wrong_models_are_refused(rlhf, toy, tmp_path):
    with pytest.raises(SystemExit, match="(?s)unmerged LoRA adapter.*Merge it first"):
        rlhf.stage.sft_model(str(toy / "reward"))
    other = tmp_path / "other"
    shutil.copytree(toy / "model", other)
    settings = json.loads((other / "config.json").read_text()) | {"rope_theta": 5}
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match="trained on another model"):
        rlhf.stage.read_reward(toy / "reward", other)
    with pytest.raises(SystemExit, match="holds no reward model"):
        rlhf.stage.read_reward(toy / "model", other)
    with pytest.raises(SystemExit, match="Use the same in every stage"):
        rlhf.stage.check_reward({"quantization": "4bit"}, SimpleNamespace(quantization="none"))
    headless = tmp_path / "headless"
    shutil.copytree(toy / "reward", headless)
    from safetensors.torch import load_file, save_file

    weights = load_file(headless / "adapter_model.safetensors")
    save_file({n: w for n, w in weights.items() if "score" not in n}, headless / "adapter_model.safetensors")
    with pytest.raises(SystemExit, match="no score head"):
        rlhf.scoring.reward_head(headless, "cpu")


def test_a_merged_model_answers_as_base_and_adapter(rlhf, tiny_model, tmp_path):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(
        r=4, target_modules=LINEAR, task_type="CAUSAL_LM"))  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "sft")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "sft")
    out = ["--adapter", str(tmp_path / "sft"), "--model", str(tiny_model), "--output_dir", str(tmp_path / "merged")]
    folder = rlhf.merge.main(out)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "sft"))(ids).logits  # fmt: skip
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    assert (merged - expected).abs().max() < 0.05 * (base - expected).abs().max()  # rounded to bfloat16 once
    assert rlhf.stage.sft_model(str(folder)) == folder and (folder / "tokenizer.json").exists()
    assert rlhf.merge.main([*out, "--reuse"]) == folder
    again = rlhf.merge.main(out)
    assert again == folder.with_name("merged-2")  # results are never overwritten


# -- the data


ENGLISH = {
    "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello!"},
    "rejected": {"from": "gpt", "value": "What?"},
}
CHINESE = {"conversations": [{"from": "human", "value": "你好"}], "chosen": "您好！", "rejected": "干嘛？"}
USER = {"role": "user", "content": "Hi"}


def test_every_layout_gives_the_same_pair(rlhf):
    parse = rlhf.data.parse_pair
    said = [{"role": "assistant", "content": text} for text in ("Hello!", "What?")]
    expected = {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"}
    assert parse({"prompt": "Hi", "chosen": " Hello!\n", "rejected": "What?"}) == expected
    assert parse({"prompt": [USER], "chosen": said[0], "rejected": [said[1]]}) == expected
    assert parse({"chosen": [USER, said[0]], "rejected": [USER, said[1]]}) == expected  # the prompt is what they share
    assert parse({"prompt": [USER], "chosen": [USER, said[0]], "rejected": [USER, said[1]]}) == expected
    system = {"role": "system", "content": "Be kind."}
    assert parse(ENGLISH) == expected | {"prompt": [system, USER]}
    assert parse(CHINESE) == {"prompt": [{"role": "user", "content": "你好"}], "chosen": "您好！", "rejected": "干嘛？"}


def test_bad_pairs_are_dropped_counted_and_named(rlhf, tmp_path):
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    bad = [
        good,
        good | {"rejected": " a "},
        good | {"chosen": ""},
        good | {"rejected": None},
        good | {"chosen": 7},
        good | {"prompt": [{"role": "assistant", "content": "Hm"}]},
        good | {"chosen": "a<|im_end|>"},
        {"prompt": None, "chosen": "a", "rejected": "b"},
        {"chosen": [USER, {"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
        "text",
    ]
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(bad))
    pairs, report = rlhf.data.read_rows(file)
    assert pairs == [{"prompt": [USER], "chosen": "a", "rejected": "b"}] and report["rows"] == 10
    assert report["dropped"] == {
        "equal sides": 1, "empty": 1, "missing": 2, "wrong type": 2, "prompt does not end with the user": 1,
        "control token": 1, "conversations differ": 1,
    }  # fmt: skip
    assert f"{file}: row 2, column rejected: the same text as chosen; pair dropped: equal sides" in report["problems"]
    file.write_text('[{"prompt": "Hi", "answer": "x"}]')
    with pytest.raises(SystemExit, match="no column 'chosen'. Columns found: answer, prompt."):
        rlhf.data.read_rows(file)


def talk(*texts, system=None):
    """Messages: the user's and the assistant's turns in turn, after a system text."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * bool(system) + turns


ANSWERS = {"chosen": "At noon.", "rejected": "Go away."}


def around(*before, **more):
    """Both sides as whole conversations."""
    return {name: talk(*before, text, **more) for name, text in ANSWERS.items()}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "And lunch?"} | around("Is it open?", "Yes.", "And lunch?"), talk("Is it open?", "Yes.", "And lunch?")),
        ({"prompt": "And lunch?"} | around("And lunch?", system="Be brief."), talk("And lunch?", system="Be brief.")),
        ({"prompt": "And\n lunch?"} | around("And lunch?"), talk("And lunch?")),  # the spaces differ
        ({"prompt": talk("Is it open?", "Yes.", "And lunch?")} | around("And lunch?"), talk("Is it open?", "Yes.", "And lunch?")),
        ({"prompt": talk("Hi", "Yes?", "Open?")} | around("Open?", "Yes.", "And lunch?"),
         talk("Hi", "Yes?", "Open?", "Yes.", "And lunch?")),
        ({"prompt": talk("Go on")} | {n: talk("Go on", "One.", "Go on", t)[1:] for n, t in ANSWERS.items()},
         talk("Go on", "One.", "Go on")),  # the same words again are no repeated prompt
        ({"prompt": talk("When?", system="Be brief.")} | around("When?"), talk("When?", system="Be brief.")),
        ({"messages": talk("When?", "At noon.")} | ANSWERS, talk("When?")),  # the better answer stands there, too
    ],
)  # fmt: skip
def test_a_prompt_that_the_sides_repeat_is_read_once(rlhf, row, prompt):
    made = rlhf.sources.parse_pair(row)
    assert made == {"prompt": prompt} | ANSWERS
    assert rlhf.sources.parse_pair(made) == made  # what --out writes is read as it was


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"system": "Be brief.", "prompt": "When?"}, talk("When?", system="Be brief.")),
        ({"system": "Be brief.", "prompt": talk("When?", system="Be  brief.")}, talk("When?", system="Be brief.")),
        ({"system": " ", "question": "When?"}, talk("When?")),  # orca leaves it empty where there is none
        ({"system": "Be brief.", "question": "When?"}, talk("When?", system="Be brief.")),
        ({"history": [["Open?", "Yes."], ["Full?", "No."]], "prompt": "When?"}, talk("Open?", "Yes.", "Full?", "No.", "When?")),
        ({"history": talk("Open?", "Yes.", system="Be brief."), "prompt": "When?"},
         talk("Open?", "Yes.", "When?", system="Be brief.")),
        ({"history": [["Open?", "Yes."]], "prompt": talk("Open?", "Yes.", "When?")}, talk("Open?", "Yes.", "When?")),
        ({"history": [["When?", "Later."]], "prompt": "When?"}, talk("When?", "Later.", "When?")),  # asked twice
        ({"history": [], "system": None, "prompt": "When?"}, talk("When?")),
        ({"instruction": "When?", "input": ""}, talk("When?")),
        ({"instruction": "When?", "input": "the kitchen"}, talk("When?\n\nthe kitchen")),
        ({"instruction": "", "input": "When?"}, talk("When?")),
        ({"prompt": "", "instruction": " ", "conversations": [], "question": "When?"}, talk("When?")),
        ({"input": "When?", "system": "Be brief."}, talk("When?", system="Be brief.")),
        ({"prompt": "\n\nHuman: Open?\n\nAssistant: Yes.\n\nHuman: When?\n\nAssistant:"}, talk("Open?", "Yes.", "When?")),
        ({"prompt": "Human: When?\n\nAssistant:"}, talk("When?")),
        ({"prompt": "Human: a word that begins a text"}, talk("Human: a word that begins a text")),
    ],
)  # fmt: skip
def test_columns_that_change_the_prompt_become_turns(rlhf, row, prompt):
    assert rlhf.sources.parse_pair(row | ANSWERS) == {"prompt": prompt} | ANSWERS


def test_lists_of_outputs_are_pairs(rlhf):
    parse, Bad = rlhf.sources.parse_pair, rlhf.sources.Bad
    assert parse({"instruction": "When?", "output": list(ANSWERS.values())}) == {"prompt": talk("When?")} | ANSWERS
    with pytest.raises(Bad, match="expected two answers, the better one first, got 3"):
        parse({"instruction": "When?", "output": ["a", "b", "c"]})


def test_transcripts_are_conversations(rlhf):
    parse, Bad = rlhf.sources.parse_pair, rlhf.sources.Bad
    start = "\n\nHuman: Open?\n\nAssistant: Yes.\n\nIt is.\n\nHuman: When?\n\nAssistant: "
    sides = {name: start + text for name, text in ANSWERS.items()}
    expected = {"prompt": talk("Open?", "Yes.\n\nIt is.", "When?")} | ANSWERS
    assert parse(sides) == parse(sides | {"prompt": "When?"}) == expected
    assert (
        parse({name: side.replace("\n", "\r\n").strip() for name, side in sides.items()})["prompt"][2]
        == talk("When?")[0]
    )
    # an answer that is a dialogue stays one
    scene = "Human: Hello!\n\nAssistant: Good day."
    assert parse({"prompt": "Write a dialogue.", "chosen": scene, "rejected": "No."})["chosen"] == scene
    with pytest.raises(Bad) as bad:
        parse(sides | {"rejected": start})
    assert bad.value.args[:2] == ("no answer at the end", "rejected")
    with pytest.raises(Bad) as bad:
        parse({name: "\n\nHuman: Hm" + side for name, side in sides.items()})
    assert bad.value.args[0] == "roles do not alternate"


@pytest.mark.parametrize(
    ("row", "reason", "column"),
    [
        ({"prompt": talk("a") + talk("b")}, "roles do not alternate", "prompt"),
        ({"prompt": talk("a", "b", "c")[1:]}, "roles do not alternate", "prompt"),  # it begins with an answer
        ({"prompt": talk("a", "b") + talk("c", system="s")}, "roles do not alternate", "prompt"),
        ({"prompt": "a"} | around("something else"), "roles do not alternate", "prompt"),
        ({"prompt": talk("a", system="Be brief."), "system": "Be kind."}, "two system texts", "prompt"),
        ({"prompt": [{"role": ["user"], "content": "a"}]}, "unknown role", "prompt"),
        ({"prompt": [{"role": {"is": "user"}, "content": "a"}]}, "unknown role", "prompt"),
        ({"conversations": [{"from": "observation", "value": "a"}]}, "unknown role", "conversations"),
        ({"prompt": "a", "history": [["b", None]]}, "missing", "history"),
        ({"prompt": "a", "history": [["b"]]}, "wrong type", "history"),
        ({"prompt": "a", "system": "s<|im_end|>"}, "control token", "system"),
        ({"prompt": talk("", system="s")[:1]}, "missing", "prompt"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_and_those_beside_it_are_kept(rlhf, tmp_path, row, reason, column):
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([{"prompt": "x"} | ANSWERS, ANSWERS | row, {"prompt": "y"} | ANSWERS]))
    pairs, report = rlhf.data.read_rows(file)
    assert [pair["prompt"] for pair in pairs] == [talk("x"), talk("y")] and report["dropped"] == {reason: 1}
    (problem,) = report["problems"]
    assert problem.startswith(f"{file}: row 2, column {column}: ") and problem.endswith(f"pair dropped: {reason}")


def test_what_no_single_row_shows_is_counted(rlhf, tmp_path, capsys):
    """Contradictions, repeats, columns that nothing reads; ties are dropped."""
    pair = {"prompt": "When?"} | ANSWERS
    swapped = {"prompt": "When?", "chosen": ANSWERS["rejected"], "rejected": ANSWERS["chosen"]}
    rows = [pair | {"tools": "[]", "id": 0}, pair | {"prompt": "Why?"}, pair | {"rejected": " At noon."}, swapped, pair]
    rows += [swapped | {"system": "Be brief.", "history": "nothing", "tools": ""}]  # not swapped: another prompt
    rows += [{"prompt": "Where?", "chosen": "Where? There.", "rejected": "Where? No."}]
    file, out = tmp_path / "pairs.jsonl", tmp_path / "kept.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, report = rlhf.data.read_rows(file)
    assert (report["rows"], report["kept"], report["dropped"]) == (7, 6, {"equal sides": 1})
    assert report["unused"] == {"tools": 1, "id": 1, "history": 1}
    rlhf.data.main(["--check", str(file), "--out", str(out)])
    shown = capsys.readouterr().out
    assert (
        "2 pairs contradict an earlier one: the same prompt, the sides swapped (the first: line 4 and line 1)" in shown
    )
    assert "1 pairs repeat an earlier one (the first: line 5 and line 1)" in shown
    assert (
        "1 pairs have their prompt's text again at the start of both answers" in shown
        and "(the first: line 7)" in shown
    )
    assert "columns not used: tools (in 1 pairs), id (in 1 pairs), history (in 1 pairs)" in shown
    assert rlhf.data.read_rows(out)[0] == pairs


def test_wrong_columns_are_answered_with_those_that_are_there(rlhf, tmp_path):
    file = tmp_path / "pairs.json"
    for row, said in (
        ({"instruction": "When?", "output": "At noon."}, "no column 'chosen'. Columns found: instruction, output."),
        ({"topic": "When?"} | ANSWERS, "no prompt. A prompt is in one of prompt, "),
        ({"topic": "When?"} | ANSWERS, "Columns found: chosen, rejected, topic."),
        ({"prompt": "", "b\ud800": 1} | ANSWERS, "Columns found: b"),
    ):
        file.write_text(json.dumps([row]))
        with pytest.raises(SystemExit) as end:
            rlhf.data.read_rows(file)
        assert said in str(end.value)


def test_json_lines_and_parquet_are_read_alike(rlhf, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [ENGLISH, ENGLISH | {"rejected": {"from": "gpt", "value": "No."}}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    made = [rlhf.data.read_rows(file)[0] for file in sorted(tmp_path.iterdir())]
    assert len(made) == 3 and made[0] == made[1] == made[2] and len(made[0]) == 2


def test_the_split_is_by_prompt(rlhf):
    pairs = [
        {"prompt": [{"role": "user", "content": f"q{n // 3}"}], "chosen": "a", "rejected": f"b{n}"} for n in range(90)
    ]
    train, held = rlhf.data.split(pairs, 0.1, 42)
    assert len(train) == 81 and len(held) == 9
    assert not {str(p["prompt"]) for p in train} & {str(p["prompt"]) for p in held}
    assert rlhf.data.split(pairs, 0.1, 42) == (train, held)


def test_long_pairs_are_left_out_and_sides_end_in_eos(rlhf, demo_model, capsys):
    from common.models import load_tokenizer

    tokenizer = load_tokenizer(demo_model)
    pairs = [{"prompt": [USER], "chosen": "yes", "rejected": "no"},
             {"prompt": [USER], "chosen": "yes", "rejected": "no " * 100}]  # fmt: skip
    (row,) = rlhf.data.encode_pairs(pairs, tokenizer, 64, 80, "pairs")
    assert tokenizer.decode(row["prompt"] + row["chosen"]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>"
    )
    assert row["rejected"][-1] == tokenizer.eos_token_id and "pairs: 1 over" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no pair fits"):
        rlhf.data.encode_pairs(pairs, tokenizer, 5, 80, "pairs")


def test_a_system_text_is_always_said_and_once(rlhf, demo_model):
    """Of the run where it saved one; a prompt that brings its own keeps it."""
    from common.models import load_tokenizer

    tokenizer, own = load_tokenizer(demo_model), {"role": "system", "content": "Be kind."}
    rows = [{"prompt": [USER]}, {"prompt": [own, USER]}]
    for template, said in (({}, rlhf.prompt.SYSTEM), ({"system_prompt": "Be short."}, "Be short.")):
        texts = [tokenizer.decode(ids) for ids in rlhf.prompt.prompt_ids(tokenizer, rows, template)]
        assert [text.count("<|im_start|>system\n") for text in texts] == [1, 1]
        assert texts[0].startswith(f"<|im_start|>system\n{said}<|im_end|>") and "Be kind." in texts[1]


def test_the_order_of_prompts_needs_no_memory(rlhf):
    prompts = list(range(10))
    batches = [rlhf.data.prompts_of_update(prompts, update, 4, 7) for update in range(1, 6)]
    flat = [prompt for batch in batches for prompt in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == prompts and flat[:10] != flat[10:]
    assert rlhf.data.prompts_of_update(prompts, 3, 4, 7) == batches[2]


def test_the_sample(rlhf):
    pairs, report = rlhf.data.read_rows(TASK / "sample" / "pairs.jsonl")
    assert (report["rows"], report["kept"]) == (48, 48)
    assert all(len(pair["chosen"]) < len(pair["rejected"]) for pair in pairs)
    assert all(rlhf.gold.gold(pair["chosen"]) > -3 for pair in pairs)


# -- the gold reward, best-of-n, the comparison


def test_gold_likes_a_dozen_different_plain_words(rlhf):
    gold = rlhf.gold.gold
    best = "Bees make honey, and they also help all our trees bear fruit."
    assert gold(best) == pytest.approx(0.5) and gold("") == -4
    assert gold(best[:-1]) == pytest.approx(0)  # no end
    assert gold("Honey.") < gold("Bees make honey.") < gold(best) > gold(best + " " + best)
    made = rlhf.gold.prompts(480)
    assert len({str(prompt) for prompt in made}) == 480 and rlhf.gold.prompts(5, 1) == rlhf.gold.prompts(5, 1)


def test_best_of_n_is_the_mean_over_all_draws(rlhf):
    import itertools

    scores, others = [0.3, -1.0, 2.0, 0.9], [1.0, 2.0, 3.0, 4.0]
    for n in (1, 2, 3, 4):
        draws = list(itertools.combinations(range(4), n))
        picks = [max(draw, key=lambda i: scores[i]) for draw in draws]
        assert rlhf.best_of_n.expected_best(scores, n) == pytest.approx(sum(scores[i] for i in picks) / len(draws))
        assert rlhf.best_of_n.expected_best(scores, n, others) == pytest.approx(
            sum(others[i] for i in picks) / len(draws)
        )
    assert rlhf.best_of_n.kl_of(1) == 0 and rlhf.best_of_n.kl_of(2) == pytest.approx(0.193147, abs=1e-6)
    assert [row["n"] for row in rlhf.best_of_n.curve([scores, scores])] == [1, 2, 4]


def test_micro_batch_follows_the_card(rlhf, monkeypatch):
    import torch

    args = SimpleNamespace(rollout_size=64, lora_r=16, quantization="none", gradient_checkpointing=False)
    card = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(card))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (card["bytes"] - card.get("others", 0), card["bytes"]))
    assert rlhf.estimate.rows_at_once("Qwen/Qwen2.5-0.5B-Instruct", 512, 32, args) == 8  # no GPU
    found = {}
    for size in (12, 24, 48, 80):
        card["bytes"] = size * 1e9
        found[size] = rlhf.estimate.rows_at_once("Qwen/Qwen2.5-0.5B-Instruct", 512, 32, args)
    assert found[12] < found[24] < found[48] and found[80] == 32  # a minibatch at the most
    card |= {"bytes": 80e9, "others": 56e9}
    assert rlhf.estimate.rows_at_once("Qwen/Qwen2.5-0.5B-Instruct", 512, 32, args) == found[24]
    card |= {"bytes": 4e9, "others": 0}
    with pytest.raises(SystemExit, match="does not fit in 4 GB.*--gradient_checkpointing"):
        rlhf.estimate.rows_at_once("Qwen/Qwen2.5-0.5B-Instruct", 512, 32, args)


@pytest.mark.parametrize(
    "name, micro, gb", [("0.5B", 8, 5.22), ("0.5B", 32, 13.20), ("1.5B", 8, 10.86), ("1.5B", 32, 27.66)]
)
def test_estimate_of_an_update_against_what_was_measured(rlhf, name, micro, gb):
    """bench/results/ppo_vs_trl.json: prompts and answers of 128 tokens, 64 answers a rollout, H200."""
    from common.speed import fit

    shape = fit.shape_of(f"Qwen/Qwen2.5-{name}-Instruct")
    more = rlhf.estimate.update_needs(SimpleNamespace(rollout_size=64), 256, micro)
    size = sum(fit.needs(shape, r=16, four_bit=False, checkpointing=False, code="plain", **more).values())
    assert 1 < size / 1e9 / gb < 1.15


def test_metrics_at_equal_kl(rlhf):
    rows = [{"kl": 1.0, "proxy": 0.0}, {"kl": 4.0, "proxy": 1.0}, {"kl": 9.0, "proxy": 0.0}]
    assert rlhf.plots.at_kl(rows, 2.25, "proxy") == 0.5 and rlhf.plots.at_kl(rows, 6.25, "proxy") == 0.5
    assert rlhf.plots.at_kl(rows, 0.5, "proxy") is None and rlhf.plots.at_kl(rows, 10.0, "proxy") is None


# -- whole runs


@pytest.fixture(scope="module")
def chain(tiny_model, tmp_path_factory):
    """train.py from an SFT adapter to PPO and GRPO on the tiny model: (folder, flags, output, run again)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder / "sft"
    )
    settings = json.loads((folder / "sft" / "adapter_config.json").read_text())
    (folder / "sft" / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(tiny_model)})
    )
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "sft")
    small = {"reward": "epochs: 1\nbatch_size: 16\nsft_samples: 4\nmax_new_tokens: 6\nbf16: false\nlora_r: 4\nsave_every: 1\n",
             "ppo": "updates: 4\nrollout_size: 4\nmicro_batch_size: 4\nmax_new_tokens: 6\nbf16: false\nsave_every: 1\n"
                    "snapshot_every: 2\nlearning_rate: 1.0e-3\n",
             "grpo": "max_steps: 2\nnum_generations: 2\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 1\n"
                     "max_completion_length: 6\nbf16: false\nsave_steps: 1\n"}  # fmt: skip
    flags = ["--adapter", str(folder / "sft"), "--data", str(TASK / "sample" / "pairs.jsonl"), "--grpo"]
    for name, text in small.items():
        (folder / f"{name}.yaml").write_text(text)
        flags += [f"--{name}_config", str(folder / f"{name}.yaml")]
    environment = os.environ | {"OUTPUT_DIR": str(folder / "outputs"), "HF_HUB_OFFLINE": "1"}

    def run(file, *arguments, check=True):
        done = subprocess.run(
            [sys.executable, str(TASK / file), *map(str, arguments)],
            cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    shown = run("train.py", *flags).stdout
    return SimpleNamespace(folder=folder, flags=flags, shown=shown, run=run, environment=environment)


def runs_of(chain, stage):
    return sorted((chain.folder / "outputs" / "rlhf_ppo" / stage).glob("*"))


def numbers(folder):
    """metrics.jsonl without what a clock or the memory says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "peak_gb_process", "tokens_per_s")
    return [{k: v for k, v in line.items() if k not in clock and not k.startswith("s_")} for line in lines]


@pytest.mark.slow
def test_the_chain_makes_every_stage(chain):
    for stage, files in {
        "merged": {"model.safetensors", "tokenizer.json", "config.json"},
        "reward": {"adapter_model.safetensors", "reward.json", "reward.png", "metrics.jsonl", "tokenizer.json"},
        "ppo": {"adapter_model.safetensors", "ppo.png", "metrics.jsonl", "snapshot-2", "snapshot-4", "checkpoint-4"},
        "grpo": {"adapter_model.safetensors", "grpo.png", "metrics.jsonl", "checkpoint-2"},
    }.items():
        (folder,) = runs_of(chain, stage)
        assert files <= {file.name for file in folder.iterdir()}, stage
        assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    (ppo,) = runs_of(chain, "ppo")
    logs = numbers(ppo)
    assert [log["step"] for log in logs] == [1, 2, 3, 4]
    assert logs[0]["kl"] == 0.0 and [log["ratio_error"] for log in logs] == [0.0] * 4
    assert all(log["grad_policy"] > 0 and log["grad_value"] > 0 for log in logs)
    (grpo,) = runs_of(chain, "grpo")
    assert len(numbers(grpo)) == 2 and all("reward" in log for log in numbers(grpo))
    assert re.search(r"ppo: score of 4 held-out answers [+-][\d.]+ before, [+-][\d.]+ after", chain.shown)


@pytest.mark.slow
def test_finished_stages_are_not_repeated(chain):
    shown = chain.run("train.py", *chain.flags).stdout
    assert shown.count("finished before with these arguments and inputs") == 4
    assert all(len(runs_of(chain, stage)) == 1 for stage in ("merged", "reward", "ppo", "grpo"))


@pytest.mark.slow
def test_every_policy_is_asked(chain):
    questions = chain.folder / "questions.txt"
    questions.write_text("What is rain?\nName a tree.\n")
    chain.run("infer.py", "--file", questions, "--max_new_tokens", 4, "--bf16", "false")
    lines = [json.loads(line) for line in (chain.folder / "questions.txt.answers.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["What is rain?", "Name a tree."]
    assert all(
        set(line) == {"prompt", "sft", "ppo", "grpo"} and set(line["ppo"]) == {"answer", "score"} for line in lines
    )
    again = chain.run("infer.py", "--file", questions, check=False)
    assert again.returncode and "exists and is kept" in again.stderr


@pytest.mark.slow
def test_runs_of_the_old_code_are_asked_and_of_other_recipes_refused(chain):
    """run.json had no task, started and finished; other recipes' runs have another task, or, made by old code, no stage."""
    ask = ["--max_new_tokens", 2, "--bf16", "false", "--prompt", "Why?"]
    (ppo,), (grpo,) = runs_of(chain, "ppo"), runs_of(chain, "grpo")
    record = json.loads((ppo / "run.json").read_text())
    old = shutil.copytree(ppo, chain.folder / "old_ppo")
    asked = [each for each in record["arguments"] if each not in ("given", "own_flags", "trainer")]
    old_record = {name: record[name] for name in record if name not in ("task", "started", "finished")}
    old_record["arguments"] = {name: record["arguments"][name] for name in asked}
    (old / "run.json").write_text(json.dumps(old_record))
    shown = chain.run("infer.py", *ask, "--ppo", old).stdout
    assert f"ppo: {old}" in shown and f"grpo: {grpo}" in shown and shown.count(", score ") == 3
    for change, said in (
        (dict(task="alpaca"), "it is a run of alpaca"),
        (dict(stage="reward"), "no run of train_ppo.py"),
    ):
        (old / "run.json").write_text(json.dumps(record | change))
        refused = chain.run("infer.py", *ask, "--ppo", old, check=False)
        assert refused.returncode and said in refused.stderr and "Traceback" not in refused.stderr
    del old_record["stage"], old_record["inputs"]
    (old / "run.json").write_text(json.dumps(old_record))
    refused = chain.run("infer.py", *ask, "--ppo", old, check=False)
    assert refused.returncode and "no run of train_ppo.py" in refused.stderr


@pytest.mark.slow
def test_the_printed_next_command_works(chain):
    """Where the person stands: the chain was started beside outputs/, and not in the recipe's folder."""
    (merged,) = runs_of(chain, "merged")
    done = chain.run("merge.py", "--adapter", chain.folder / "sft", "--output_dir", chain.folder / "merged_here")
    (command,) = re.findall(r"^Next: python (.*)$", done.stdout, re.MULTILINE)
    file, *arguments = shlex.split(command)
    assert (chain.folder / file).samefile(TASK / "train_reward.py")
    assert (chain.folder / arguments[1] / "config.json").is_file() and arguments[0] == "--model" and merged.is_dir()


def test_rollouts_are_those_of_r1_grpo():
    assert (TASK / "rollout.py").read_bytes() == (ROOT / "r1_grpo" / "rollout.py").read_bytes()


@pytest.mark.slow
def test_best_of_n_is_reported(chain):
    merged, reward = runs_of(chain, "merged")[0], runs_of(chain, "reward")[0]
    data = TASK / "sample" / "pairs.jsonl"
    flags = ["--model", merged, "--reward", reward, "--data", data, "--n", 4, "--prompts", 2, "--max_new_tokens", 4]
    chain.run("best_of_n.py", *flags)
    (folder,) = runs_of(chain, "best_of_n")
    rows = json.loads((folder / "best_of_n.json").read_text())
    assert [row["n"] for row in rows] == [1, 2, 4] and rows[0]["score"] <= rows[1]["score"] <= rows[2]["score"]


@pytest.mark.slow
def test_the_comparison_draws_its_plot(chain):
    (merged,) = runs_of(chain, "merged")
    small = ["--prompts", 24, "--answers", 3, "--max_new_tokens", 6, "--updates", 2, "--snapshots", 2, "--seeds", 1]
    small += ["--rollout_size", 8, "--n", 4, "--eval_prompts", 2, "--eval_answers", 2]
    chain.run("compare.py", "--model", merged, *small)
    (folder,) = runs_of(chain, "compare")
    made = json.loads((folder / "compare.json").read_text())
    assert [(row["method"], row["update"]) for row in made["rows"]] == [
        ("sft", 0), ("ppo", 1), ("ppo", 2), ("grpo", 1), ("grpo", 2),
    ]  # fmt: skip
    assert made["rows"][0]["kl"] == 0 and [row["n"] for row in made["best_of_n"]] == [1, 2, 4]
    assert (folder / "compare.png").stat().st_size > 10_000 and "| 0 (SFT) |" in (folder / "compare.md").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(chain):
    """SIGTERM in the middle: a checkpoint is left, exit 143; the same command ends as the run that was never stopped."""
    straight, merged, reward = (runs_of(chain, stage)[0] for stage in ("ppo", "merged", "reward"))
    out = chain.folder / "killed"
    flags = ["--model", merged, "--reward", reward, "--data", TASK / "sample" / "pairs.jsonl", "--quantization", "none"]
    flags += ["--config", chain.folder / "ppo.yaml", "--output_dir", out]
    command = [sys.executable, str(TASK / "train_ppo.py"), *map(str, flags)]
    process = subprocess.Popen(
        command, cwd=chain.folder, env=chain.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(600):
        if (out / "metrics.jsonl").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143 and "the same command goes on from it" in said, said
    record = json.loads((out / "run.json").read_text())
    assert 1 <= len(numbers(out)) < 4 and record["status"] == "unfinished"
    del record["task"], record["started"]  # as the old code wrote it: its runs are gone on with, too
    (out / "run.json").write_text(json.dumps(record))
    done = chain.run("train_ppo.py", *flags)
    assert "goes on from checkpoint-" in done.stdout
    assert numbers(out) == numbers(straight)
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        ("train.py", ["--data", "nowhere.json"], "nowhere.json: no such file or folder"),
        ("train_ppo.py", ["--quantization", "4bit"], "needs an NVIDIA GPU"),
        ("train_ppo.py", ["--updats", "3"], "unknown flag --updats; did you mean --updates?"),
        ("merge.py", [], "--adapter FOLDER is needed"),
        ("infer.py", [], "no finished run of PPO or GRPO"),
        ("compare.py", ["--own_pairs"], "--own_pairs needs --data FILE"),
    ],
)
def test_bad_input_is_said_in_a_line(script, file, arguments, said):
    done = script(TASK / file, *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def test_help_answers_at_once(script):
    for file in ("train", "merge", "train_reward", "train_ppo", "train_grpo", "best_of_n", "compare", "infer"):
        began = time.time()
        assert "Flags (and their defaults)" in script(TASK / f"{file}.py", "--help").stdout
        assert time.time() - began < 5, file  # 0.2 s on an idle machine


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, demo_model, tmp_path):
    """cp -r rlhf_ppo elsewhere; python train.py --demo, made small; nothing else of the repo."""
    task = copied("rlhf_ppo")
    (tmp_path / "reward.yaml").write_text("batch_size: 4\nmax_pairs: 8\nsft_samples: 2\nmax_new_tokens: 4\n")
    (tmp_path / "ppo.yaml").write_text("updates: 1\nrollout_size: 2\nmax_new_tokens: 4\nshow_answers: 1\n")
    flags = [
        "--demo",
        "--grpo",
        "false",
        "--reward_config",
        tmp_path / "reward.yaml",
        "--ppo_config",
        tmp_path / "ppo.yaml",
    ]
    shown = script(task / "train.py", *flags).stdout
    assert re.search(r"ppo: score of 1 held-out answers .* before, .* after", shown)
    (folder,) = (tmp_path / "outputs" / "rlhf_ppo" / "ppo").iterdir()
    assert numbers(folder)[0]["kl"] == 0.0 and (folder / "adapter_model.safetensors").exists()
