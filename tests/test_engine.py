"""vLLM beside a model of ours (common/speed/engine.py), and the loops that it writes for, with an engine of transformers."""

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_vllm
import pytest
from rlhf_toy import EOS, PAD, judge_of

from common.cli import parse
from common.speed import engine

ROOT = Path(__file__).resolve().parents[1]
GB = 1e9


@pytest.fixture(scope="module")
def s1(modules_of):
    return modules_of("s1_scaling", ("data", "domains", "prompt", "budget", "scaling", "evaluate"))


@pytest.fixture
def vllm(monkeypatch):
    """vLLM, as far as an import goes; the LLMs that were made."""
    import trl.generation.vllm_generation  # noqa: F401  before: it would import more of vLLM

    known = dict(sys.modules)
    yield fake_vllm.install(sys.modules)
    for name in set(sys.modules) - set(known):
        if name.split(".")[0] == "vllm":
            del sys.modules[name]


@pytest.fixture
def card(monkeypatch):
    """has(GB): a GPU of so many, and an installed vLLM, as far as choosing goes."""

    def has(size):
        import torch

        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "vllm" else find(name))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0.97 * size * GB, size * GB))
        monkeypatch.setattr(engine.device, "has_bf16", lambda: True)
        for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS"):
            monkeypatch.setenv(name, "x")

    return has


# -- the slope


def planted(share, update, noise, rows=12, tokens=60):
    """(policy, base, sampled, hint) of an engine that has `share` of the update; every log-probability with its own noise."""
    import torch

    torch.manual_seed(7)
    made = [], [], [], []
    for n in range(rows):
        true, change = -3 * torch.rand(tokens + n), update * torch.randn(tokens + n)
        values = (true + change, true, true + share * change)
        for column, each in zip(made[:3], values, strict=True):
            column.append(each + noise * torch.randn(len(each)))
        made[3].append(change + noise * (torch.randn(len(change)) - torch.randn(len(change))))
    return made


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, "base"), (0.5, "part"), (1.0, "policy"), (2.0, "other"), (-1.0, "other")]
)
def test_the_slope_says_what_share_of_the_update_the_engine_has(share, verdict):
    found = engine.slope(*planted(share, update=0.3, noise=0.02))
    assert found["slope"] == pytest.approx(share, abs=0.05) and found["verdict"] == verdict
    assert found["tokens"] == sum(60 + n for n in range(12)) and found["update"] == pytest.approx(0.3, rel=0.1)
    assert found["noise"] == pytest.approx(0.02 * math.sqrt(1 + share**2 + (1 - share) ** 2), rel=0.2)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("update", [0.0, 0.0005, 0.002])
def test_an_update_that_is_smaller_than_the_noise_gets_no_verdict(share, update):
    assert engine.slope(*planted(share, update, noise=0.02))["verdict"] is None


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rounding_that_base_and_update_share_does_not_pull_the_slope_to_a_half(share):
    """An update of half the noise: least squares of y on x would say 0.44 and 0.56 for 0 and 1."""
    import torch

    policy, base, sampled, hint = planted(share, update=0.02, noise=0.04, rows=24, tokens=500)
    x, y = (torch.cat(each) - torch.cat(base) for each in (policy, sampled))
    assert (x @ y / (x @ x)).item() == pytest.approx(0.5 + (share - 0.5) / 9, abs=0.03)
    found = engine.slope(policy, base, sampled, hint)
    assert abs(found["slope"] - share) < 4 * found["error"] and 0.01 < found["error"] < 0.1
    assert found["update"] == pytest.approx(0.02, rel=0.1)


def test_without_an_adapter_there_is_no_slope_and_unknown_tokens_do_not_count():
    import torch

    policy, base, sampled, hint = planted(1.0, 0.3, 0.02)
    none = engine.slope(base, base, sampled, [0 * each for each in hint])
    assert math.isnan(none["slope"]) and none["verdict"] is None and none["update"] == 0
    sampled[0][:10] = math.nan
    found = engine.slope(policy, base, sampled, hint)
    assert found["verdict"] == "policy" and found["tokens"] == sum(map(len, base)) - 10
    assert torch.isnan(sampled[0][:10]).all()
    unknown = engine.slope(policy, base, [math.nan * each for each in sampled], hint)
    assert unknown["tokens"] == 0 and unknown["verdict"] is None


# -- whether both fit


@pytest.mark.parametrize(
    ("size", "share", "sleeps"),
    [(80 * GB, 0.25, False), (48 * GB, 0.41, False), (42 * GB, 0.47, True), (24 * GB, None, None)],
)
def test_two_copies_of_7b_and_a_step_share_a_card(size, share, sleeps):
    found = engine.plan(15.2 * GB, 1.2 * GB, 7 * GB, size)
    assert found == (None if share is None else (share, sleeps))
    if found:  # what vLLM takes holds its weights and its cache, and the rest holds the trainer
        assert found[0] * size >= (15.2 + 1.2) * GB + engine.WORK
        assert (1 - found[0]) * size > 15.2 * GB + (0 if sleeps else 7 * GB)


def flags(rlhf, script, trainer, *argv):
    module = getattr(rlhf, script)
    return parse(module.__file__, module.DEFAULTS, {}, module.Args, trainer, list(map(str, argv)))


def chosen(rlhf, script, *argv):
    """(what the script's choosing finds, its flags) for the 7B shape."""
    args = flags(rlhf, script, "trl:GRPOConfig" if script == "train_grpo" else None, *argv)
    path = "Qwen2.5-7B"
    if script == "train_grpo":
        args.backend = "hf"
        rlhf.engine.choose(args, path, rlhf.train_grpo.work(args))
        return args.use_vllm, args
    work = rlhf.estimate.work_beside(args, 512) if script == "train_ppo" else {}
    return rlhf.sampler.choose(args, path, 512, 64, **work), args


def test_the_loops_choose_vllm_where_it_fits(rlhf, card, capsys):
    card(80)
    found, args = chosen(rlhf, "train_ppo")
    assert found == (pytest.approx(0.26, abs=0.02), False) and args.rollouts == "vllm"
    assert "rollouts by vLLM, in 2" in capsys.readouterr().out
    # The update's pieces have to fit into what vLLM leaves.
    left = SimpleNamespace(**vars(args) | dict(rollout_size=256, minibatches=1))
    assert rlhf.estimate.rows_at_once("Qwen2.5-7B", 512, 256, left, found) < rlhf.estimate.rows_at_once(
        "Qwen2.5-7B", 512, 256, left
    )
    found, args = chosen(rlhf, "best_of_n")
    assert found[0] < 0.3 and not found[1]
    found, args = chosen(rlhf, "train_grpo")
    assert found and (args.rollouts, args.vllm_mode, args.vllm_max_model_length) == ("vllm", "colocate", 512 + 256)
    assert args.vllm_importance_sampling_mode == "token_truncate" and 0.2 < args.vllm_gpu_memory_utilization < 0.35
    assert chosen(rlhf, "train_ppo", "--rollouts", "hf")[0] is None


@pytest.mark.parametrize("script", ["train_ppo", "best_of_n", "compare", "train_grpo"])
@pytest.mark.parametrize(
    ("size", "argv", "reason"),
    [
        (24, (), "two 16-bit copies of 15.2 GB and a training step do not fit in 24 GB"),
        (80, ("--quantization", "4bit"), "not those of a 4-bit model"),
        (80, ("--bf16", "false"), "it samples in bfloat16"),
    ],
)
def test_where_it_does_not_fit_the_reason_is_said(rlhf, card, capsys, script, size, argv, reason):
    if script == "train_grpo" and "--bf16" in argv:
        pytest.skip("TRL leaves that to vLLM")
    card(size)
    found, args = chosen(rlhf, script, *argv)
    assert not found and args.rollouts == "hf" and reason in capsys.readouterr().out
    with pytest.raises(SystemExit, match=reason):
        chosen(rlhf, script, "--rollouts", "vllm", *argv)


@pytest.mark.parametrize("script", ["train_ppo", "best_of_n", "compare", "train_grpo"])
def test_on_a_cpu_nothing_changes_and_a_flag_that_cannot_be_answers_at_once(rlhf, capsys, script):
    found, args = chosen(rlhf, script)
    assert not found and args.rollouts == "hf" and not capsys.readouterr().out
    with pytest.raises(SystemExit, match="--rollouts vllm: vLLM is not installed"):
        getattr(rlhf, script).main(["--rollouts", "vllm"])


def test_trls_engine_is_that_of_r1_grpo():
    assert (ROOT / "rlhf_ppo/engine.py").read_bytes() == (ROOT / "r1_grpo/engine.py").read_bytes()


# -- the policy's weights


def test_rounding_at_random_is_right_in_the_mean_and_keeps_what_is_exact():
    import torch

    draw = torch.Generator().manual_seed(1)
    weight = torch.cat([torch.randn(500), torch.zeros(5)]).bfloat16()
    assert torch.equal(engine.round_at_random(weight.float(), torch.bfloat16, draw), weight)
    last = weight.float().abs() * 2**-7
    update = 0.1 * last  # to nearest, every one of them is lost
    assert torch.equal((weight.float() + update).bfloat16(), weight)
    rounded = [engine.round_at_random(weight.float() + update, torch.bfloat16, draw).float() for _ in range(400)]
    arrived = (torch.stack(rounded).mean(0) - weight.float()).sum() / update.sum()
    assert arrived == pytest.approx(1, abs=0.03)
    assert torch.equal(engine.round_at_random(weight.float() + update, torch.float32, draw), weight.float() + update)


# -- PPO, best-of-n


TOKENS = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD, decode=lambda ids, **_: " ".join(map(str, ids)))
PROMPTS = [[n % 61 + 3, 5, n * n % 50 + 3][: n % 3 + 1] for n in range(12)]


@pytest.fixture
def ppo(rlhf, toy, vllm):
    """make(sleeps) -> (backbone, optimizer, args, Sampler): PPO on the toy model, with an adapter that counts."""
    import torch

    def make(sleeps=False):
        args = flags(rlhf, "train_ppo", None)
        small = dict(bf16=False, rollout_size=12, micro_batch_size=5, max_new_tokens=10, lora_r=4, lora_alpha=4)
        vars(args).update(small | dict(learning_rate=1e-2, value_learning_rate=1e-3, temperature=0.8))
        backbone = rlhf.train_ppo.Backbone(toy / "model", toy / "reward", dict(sft_mean=0.1, sft_std=0.5), args)
        plant(backbone.policy_parameters)
        groups = [list(each.values()) for each in (backbone.policy_parameters, backbone.value_parameters)]
        optimizer = torch.optim.AdamW([{"params": each} for each in groups], lr=1e-2, weight_decay=0.0)
        backbone.sampler = rlhf.sampler.Sampler((0.3, sleeps), toy / "model", torch.float32, 16, 12, 0, True)
        return backbone, optimizer, args, backbone.sampler

    return make


def plant(parameters, size=0.1):
    import torch

    torch.manual_seed(3)
    for name, each in parameters.items():
        if "lora_B" in name:
            each.data.normal_(0, size)


@pytest.mark.parametrize("sleeps", [False, True])
def test_ppo_with_an_engine_samples_from_the_policy_of_each_update(rlhf, ppo, vllm, capsys, sleeps):
    backbone, optimizer, args, sampler = ppo(sleeps)
    frozen = {n: p.clone() for n, p in backbone.model.named_parameters() if n not in backbone.policy_parameters}
    for update in (1, 2):
        roll = rlhf.train_ppo.rollout(backbone, TOKENS, PROMPTS, args, 0.05)
        seen = roll["metrics"]
        assert seen["sampling_gap"] < 1e-4 and seen["sampling_ratio_max"] == pytest.approx(1, abs=1e-3)
        assert roll["correction"][roll["mask"].bool()].sub(1).abs().max() < 1e-3
        assert not roll["correction"][~roll["mask"].bool()].sub(1).any()  # padding: off is 0 there
        if update == 1:
            assert seen["engine_slope"] == pytest.approx(1, abs=1e-3) and seen["engine_slope_tokens"] > 60
            held = [p.equal(frozen[n]) for n, p in backbone.model.named_parameters() if n in frozen]
            assert all(held)
        else:
            assert "engine_slope" not in seen  # every 25 updates
        learnt = rlhf.train_ppo.optimize(backbone, optimizer, roll, PAD, args, update)
        assert learnt["ratio_error"] == 0.0 and learnt["grad_policy"] > 0 and learnt["approx_kl"] > 0
    assert capsys.readouterr().out.count("vLLM samples from the policy") == 1
    (llm,) = vllm
    assert len(llm.loaded) == 2 and llm.slept == (3 if sleeps else 0)
    assert len(llm.loaded[0]) == (len(list(llm.model.named_parameters())) if sleeps else 2 * 7)
    assert llm.how["max_model_len"] == 16 and llm.how["max_num_seqs"] == 12 and not llm.how.get("enforce_eager")


def test_an_engine_that_never_gets_the_weights_is_found_out(rlhf, ppo, monkeypatch, capsys):
    backbone, _, args, _ = ppo()
    monkeypatch.setattr(engine, "give", lambda *_: None)
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, PROMPTS, args, 0.05)
    assert "vLLM samples from the model without the update" in capsys.readouterr().out
    assert roll["metrics"]["engine_slope"] == pytest.approx(0, abs=0.01) and roll["metrics"]["sampling_gap"] > 0.01


def test_what_vllm_is_off_weighs_the_loss_and_leaves_rho_at_one(rlhf, ppo):
    """p_old / q of 2 doubles a token's loss; of 10 it counts 3 times; our own decoder's is 1."""
    import torch

    backbone, _, args, sampler = ppo()
    backbone.sampler = None
    roll = rlhf.train_ppo.rollout(backbone, TOKENS, PROMPTS, args, 0.05)
    told = backbone.model, roll["prompts"], roll["responses"], roll["logprobs"], roll["mask"], 0.8, PAD, 5
    assert roll["correction"] is roll["mask"]
    sampler.rollouts = 1  # no look at the slope
    ratio = [2.0, 10.0, 0.5] * 4
    sampler.logprobs = [
        (row[mask.bool()] - math.log(each)).tolist()
        for row, mask, each in zip(roll["logprobs"], roll["mask"], ratio, strict=True)
    ]
    weights, seen = rlhf.sampler.correction(sampler, *told)
    for row, mask, each in zip(weights, roll["mask"], ratio, strict=True):
        assert row[mask.bool()].tolist() == pytest.approx([min(each, 3.0)] * int(mask.sum()), rel=1e-4)
    assert seen["sampling_ratio_max"] == pytest.approx(10, rel=1e-3)
    found = []
    for correction in (roll["mask"], 2 * roll["mask"]):
        step = rlhf.train_ppo.minibatch_gradients(
            backbone, roll | dict(correction=correction), list(range(12)), PAD, args
        )
        found.append({n: p.grad.clone() for n, p in backbone.policy_parameters.items()})
        assert step["ratio_error"] == 0.0
        backbone.model.zero_grad()
    assert all(torch.allclose(2 * one, found[1][name], rtol=1e-4, atol=1e-9) for name, one in found[0].items())


@pytest.mark.parametrize("sleeps", [False, True])
def test_answers_of_both_engines_are_the_same(rlhf, ppo, sleeps):
    """Greedy ones of the SFT model, of the policy, and of the SFT model again: it gets its weights back."""
    import torch

    backbone, _, _, sampler = ppo(sleeps)
    model = backbone.model.eval()
    for adapter in (None, "policy", None):
        ask = lambda engine: rlhf.backbone.answers_of(model, adapter, TOKENS, PROMPTS, 10, sampler=engine)  # noqa: B023, E731
        assert ask(sampler) == ask(None), adapter
    assert sampler.plain
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        how = rlhf.backbone.WHOLE | dict(sampler=sampler)
        drawn.append(rlhf.backbone.answers_of(model, "policy", TOKENS, [[5, 6]] * 6, 10, **how))
    assert drawn[0] == drawn[1] != drawn[2] and len(set(map(tuple, drawn[0]))) > 1


def test_best_of_n_and_the_comparison_ask_the_engine(rlhf, ppo, vllm, toy):
    backbone, _, _, sampler = ppo(sleeps=True)
    model, reward = backbone.model.eval(), dict(sft_mean=0.1, sft_std=0.5)
    ids, scores = rlhf.best_of_n.sample(model, backbone.head, reward, TOKENS, PROMPTS[:3], 4, 6, vllm=sampler)
    assert [len(group) for group in ids] == [4, 4, 4] and vllm[0].slept == 2 and sampler.plain
    judged = rlhf.scoring.judge(model, backbone.head, reward, TOKENS, [PROMPTS[0]] * 4, ids[0])
    ended = [row[-1] == EOS for row in ids[0]]
    assert scores[0] == pytest.approx([s - (not end) for s, end in zip(judged, ended, strict=True)], abs=1e-4)
    args = SimpleNamespace(seed=1, eval_answers=2, max_new_tokens=6)
    told = backbone.head, reward, TOKENS, PROMPTS[:3], args, sampler
    sft, policy = (rlhf.compare.measure(model, name, *told) for name in (None, "policy"))
    assert sft["kl"] == 0 and policy["kl"] != 0 and vllm[0].slept == 4


@pytest.mark.slow
def test_the_scripts_go_all_the_way_with_an_engine(
    rlhf, vllm, tiny_model, demo_model, toy, tmp_path, monkeypatch, capsys
):
    """train_ppo, best_of_n and train_grpo, from their flags to the finished run, as if a GPU had room for vLLM."""
    from trl.generation import vllm_generation

    reward = tmp_path / "reward"
    judge_of(rlhf, tiny_model, reward)

    def room(args, path, reason=None, **work):
        args.rollouts = "vllm"
        return 0.3, True

    monkeypatch.setattr(engine, "choose", room)
    monkeypatch.setattr(engine, "refusal", lambda args: None)
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    for name, value in (("is_vllm_available", lambda: True), ("LLM", fake_vllm.LLM)):
        monkeypatch.setattr(vllm_generation, name, value, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", fake_vllm.SamplingParams, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setitem(os.environ, name, "0")  # TRL sets them
        monkeypatch.delitem(os.environ, name)
    data = ROOT / "rlhf_ppo/sample/pairs.jsonl"
    common = ["--model", tiny_model, "--reward", reward, "--data", data, "--seed", 3]
    small = ["--max_new_tokens", 6, "--bf16", "false"]
    ppo = ["--updates", 2, "--rollout_size", 4, "--micro_batch_size", 4, "--show_answers", 1, "--learning_rate", 1e-2]
    run = rlhf.train_ppo.main(list(map(str, [*common, *small, *ppo, "--output_dir", tmp_path / "ppo"])))
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["rollouts"], record["arguments"]["rollouts"]) == ("finished", "vllm", "auto")
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [log["step"] for log in logs] == [1, 2] and all(log["sampling_gap"] < 1e-3 for log in logs)
    assert logs[0]["ratio_error"] == logs[1]["ratio_error"] == 0
    best = ["--n", 4, "--prompts", 2, "--output_dir", tmp_path / "best"]
    run = rlhf.best_of_n.main(list(map(str, [*common, *small, *best])))
    assert [row["n"] for row in json.loads((run / "best_of_n.json").read_text())] == [1, 2, 4]
    assert [llm.slept for llm in vllm] == [3, 2]  # after the start, and after each writing
    grpo = ["--max_steps", 2, "--num_generations", 4, "--per_device_train_batch_size", 4, "--use_cpu", "true"]
    grpo += ["--gradient_accumulation_steps", 1, "--max_completion_length", 6, "--show_answers", 1, "--bf16", "false"]
    run = rlhf.train_grpo.main(list(map(str, [*common, *grpo, "--output_dir", tmp_path / "grpo"])))
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "reward" in line]
    assert len(logs) == 2 and "engine_slope " in capsys.readouterr().out
    assert logs[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.02)


# -- budget forcing


@pytest.fixture(scope="module")
def tuned(tiny_model, tmp_path_factory):
    """(model with an adapter that counts, the adapter's folder)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=12, lora_alpha=12, target_modules=["q_proj", "down_proj"])).eval()
    plant(dict(model.named_parameters()), 1.0)
    model.save_pretrained(folder := tmp_path_factory.mktemp("tuned"))
    return model, folder


@pytest.fixture
def thinking(s1, tuned, tiny_model, demo_model, vllm):
    """(tokenizer, marks whose stop tokens this random model does write, prompts, hf's gen, vLLM's): both greedy."""
    from common.models import load_tokenizer

    model, folder = tuned
    tokenizer = load_tokenizer(demo_model)
    mark = s1.prompt.marks(tokenizer)
    asked = ("How many r in raspberry?", "Hi", "What is 1 + 1, and why is it so?")
    prompts = s1.prompt.prompt_ids(tokenizer, [{"question": question} for question in asked])
    hf = s1.budget.hf_engine(model, tokenizer)
    free = hf([prompt + mark.open for prompt in prompts], [8] * 3, 0, set())
    mark.stop = mark.stop | {row[6] for row in free[:2]}
    # Right after a Wait one of them would stop at once, were it allowed to.
    begun = free[0][: free[0].index(free[0][6])] + mark.wait
    mark.stop |= set(hf([prompts[0] + mark.open + begun], [1], 0, set())[0])
    engines = s1.budget.vllm_engine(tiny_model, folder, tokenizer, 200, 8, 0.5)
    return tokenizer, mark, prompts, hf, engines


def test_both_engines_force_budgets_alike(s1, thinking, vllm):
    """Budgets of all sizes in one batch: what each text would be alone, by either engine, and the rules of budget forcing."""
    _, mark, prompts, hf, engines = thinking
    sizes = [(0, 0, 3), (3, 2, 4), (30, 0, 5), (30, 1, 4), (60, 2, 2)]
    budgets = [s1.budget.Budget(*size) for size in sizes for _ in prompts]
    many = prompts * len(sizes)
    made = s1.budget.force(engines(0.0), many, mark, budgets)
    assert made == s1.budget.force(hf, many, mark, budgets)
    alone = [s1.budget.force(hf, [prompt], mark, each)[0] for prompt, each in zip(many, budgets, strict=True)]
    assert made == alone
    for row, budget in zip(made, budgets, strict=True):
        injected = set(mark.wait)
        assert len(row["think"]) <= budget.max_think and not mark.stop & (set(row["think"]) - injected)
        assert row["reason"] == "length" or len(row["waits"]) == budget.num_ignore
        assert len(row["waits"]) <= budget.num_ignore and len(row["answer"]) <= budget.max_answer
        for place, after in itertools.pairwise([*row["waits"], len(row["think"])]):
            assert row["think"][place : place + len(mark.wait)] == mark.wait and after - place > len(mark.wait)
    assert {row["reason"] for row in made} == {"stop", "length"} and sum(len(row["waits"]) for row in made) >= 3
    (llm,) = vllm
    assert llm.how["max_lora_rank"] == 16 and llm.how["max_num_seqs"] == 8 and llm.how["enable_prefix_caching"]


def test_samples_of_the_engine_are_seeded_and_have_no_unknown_tokens(s1, thinking, tuned):
    import torch

    tokenizer, mark, prompts, _, engines = thinking
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(engines(1.0)(prompts[:1] * 4, [12] * 4, 1, mark.stop))
    assert drawn[0] == drawn[1] != drawn[2] and len(set(map(tuple, drawn[0]))) > 1
    assert not mark.stop & {row[0] for row in drawn[0]}

    class Few:
        """A tokenizer of fewer tokens than the matrix has rows."""

        pad_token_id = tokenizer.pad_token_id
        __len__ = lambda self: 30_000  # noqa: E731

    few = Few()
    torch.manual_seed(1)
    hf = s1.budget.hf_engine(tuned[0], few, temperature=1.0)(prompts, [20] * 3, 0, mark.stop)
    vllm = s1.budget.vllm_engine(tuned[0].get_base_model().name_or_path, tuned[1], few, 200)
    torch.manual_seed(1)
    for made in (hf, vllm(1.0)(prompts, [20] * 3, 0, mark.stop)):
        assert 0 < sum(map(len, made)) < 60 and max(map(max, filter(None, made))) < 30_000


def test_an_evaluation_in_one_batch_is_that_of_budget_by_budget(s1, thinking):
    tokenizer, mark, _, hf, engines = thinking
    rows = [{"question": "Four?", "answer": "4"}, {"question": "How many r in raspberry?", "answer": "3"}]
    args = SimpleNamespace(caps=["0", "4", "99"], ignores=["0", "1"], votes=["0"], max_think=30, max_answer=3)
    together = s1.evaluate.measure(engines, tokenizer, mark, rows, args, together=True)
    assert together == s1.evaluate.measure(lambda _: hf, tokenizer, mark, rows, args)
    assert [run["name"] for run in together] == ["at most 0", "at most 4", "0 Waits", "1 Waits"]


@pytest.mark.parametrize(
    ("size", "given", "reason"),
    [(80, {}, None), (3, {}, "do not fit in 3 GB"), (80, dict(quantization="4bit"), "it has the weights in 16 bits")],
)
def test_evaluate_takes_vllm_where_it_fits(s1, card, tiny_model, capsys, size, given, reason):
    card(size)
    args = SimpleNamespace(**dict(engine="auto", quantization="auto", backend="auto") | given)
    share = s1.budget.choose_engine(args, tiny_model)
    assert share == (None if reason else 0.9) and (reason or "") in capsys.readouterr().out
    args.engine = "hf"
    assert s1.budget.choose_engine(args, tiny_model) is None
    args.engine = "vllm"
    if reason:
        with pytest.raises(SystemExit, match=reason):
            s1.budget.choose_engine(args, tiny_model)


def test_without_a_gpu_evaluate_says_nothing_and_goes_on(s1, tiny_model, capsys):
    args = SimpleNamespace(engine="auto", quantization="auto", backend="auto")
    assert s1.budget.choose_engine(args, tiny_model) is None and not capsys.readouterr().out


def test_a_rank_that_vllm_does_not_know_is_said(s1, vllm, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 600}')
    with pytest.raises(SystemExit, match="LoRA ranks up to 512, this one is 600"):
        s1.budget.vllm_engine("base", tmp_path, None, 10)


@pytest.mark.parametrize("script", ["r1_grpo/train.py", "rlhf_ppo/train_ppo.py"])
def test_estimate_says_on_which_cards_vllm_fits(script):
    def said(*flags):
        done = subprocess.run([sys.executable, ROOT / script, "--estimate", *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    seven = "--model", "Qwen/Qwen2.5-7B-Instruct"
    line = said(*seven)
    shares = dict(each.split(": ") for each in line.split("card: ")[1].split("; "))
    assert shares["24"] == "no" and int(shares["80"].split("%")[0]) in range(20, 35), line
    assert "vLLM" not in said(*seven, "--rollouts", "hf") + said(*seven, "--quantization", "4bit")
