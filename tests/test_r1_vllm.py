"""r1_grpo's rollouts by vLLM: whether it is chosen, what it samples from, and the whole way with an engine of transformers."""

import importlib.util
import os
from pathlib import Path

import fake_vllm
import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "r1_grpo"
GB = 1e9


@pytest.fixture(scope="module")
def r1(modules_of):
    return modules_of("r1_grpo", ("data", "prompt", "rewards", "rollout", "warmup", "watch", "engine", "train"))


# -- whether it is chosen


def flags(r1, *argv):
    from common.cli import parse

    train = r1.train
    return parse(str(TASK / "train.py"), train.DEFAULTS, train.DEMO, train.Args, "trl:GRPOConfig", list(map(str, argv)))


@pytest.fixture
def card(r1, monkeypatch):
    """A GPU of so many GB and an installed vLLM, as far as choosing goes."""

    def has(size):
        import torch

        spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "vllm" else spec(name))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(r1.engine.device, "card_bytes", lambda: size * GB)
        monkeypatch.setattr(r1.engine, "choose_quantization", lambda choice, path: size < 20)
        for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS"):
            monkeypatch.setenv(name, "x")

    return has


def chosen(r1, *argv):
    args = flags(r1, *argv)
    r1.engine.choose(
        args, "Qwen2.5-7B", r1.train.work(args, args.max_completion_length, args.per_device_train_batch_size)
    )
    return args


def test_vllm_is_chosen_where_it_fits(r1, card, capsys):
    card(80)
    args = chosen(r1)
    assert (args.rollouts, args.use_vllm, args.vllm_mode, args.backend) == ("vllm", True, "colocate", "hf")
    assert args.vllm_max_model_length == 256 + 512 and not args.vllm_enable_sleep_mode
    assert 0.2 < args.vllm_gpu_memory_utilization < 0.35 and args.vllm_importance_sampling_correction
    assert "rollouts by vLLM, in 2" in capsys.readouterr().out
    given = chosen(r1, "--vllm_gpu_memory_utilization", 0.5, "--vllm_enable_sleep_mode")
    assert (given.vllm_gpu_memory_utilization, given.vllm_enable_sleep_mode) == (0.5, True)
    assert chosen(r1, "--rollouts", "hf").use_vllm is False


@pytest.mark.parametrize(
    ("size", "argv", "reason"),
    [
        (24, (), "two 16-bit copies of 15.2 GB and a training step do not fit in 24 GB"),
        (16, (), "the model fits in 4 bits only"),
        (80, ("--quantization", "4bit"), "not those of a 4-bit model"),
        (80, ("--top_p", 0.9), "--top_p cuts the distribution"),
        (80, ("--top_k", 20), "--top_k cuts the distribution"),
        (80, ("--repetition_penalty", 1.1), "--repetition_penalty cuts"),
        (80, ("--backend", "unsloth"), "Unsloth patches the trainer"),
    ],
)
def test_where_it_does_not_fit_the_reason_is_said(r1, card, capsys, size, argv, reason):
    card(size)
    args = chosen(r1, *argv)
    assert (args.rollouts, args.use_vllm) == ("hf", False) and reason in capsys.readouterr().out
    with pytest.raises(SystemExit, match=reason.replace("(", ".")):
        chosen(r1, "--rollouts", "vllm", *argv)


def test_on_a_cpu_nothing_changes(r1, capsys):
    args = chosen(r1)
    assert (args.rollouts, args.use_vllm) == ("hf", False) and not capsys.readouterr().out
    with pytest.raises(SystemExit, match="--rollouts vllm: vLLM is not installed"):
        chosen(r1, "--rollouts", "vllm")


# -- the policy's weights


class Engine(fake_vllm.LLM):
    """In 16 bits, as the trainer's model is; TRL leaves that to vLLM."""

    def __init__(self, model, **how):
        super().__init__(model, dtype="bfloat16", **how)


def characters(completions, **kwargs):
    return [float(len(completion[0]["content"]) % 5) for completion in completions]


@pytest.fixture
def trainer(r1, demo_model, tiny_model, tmp_path, monkeypatch):
    """Makes (trainer, rollout) with TRL's own vLLM code and the engine above: trainer(**config)."""
    import torch
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation import vllm_generation

    from common.models import load_tokenizer, widen_adapters

    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", Engine, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", fake_vllm.SamplingParams, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets them
        monkeypatch.setitem(os.environ, name, "0")
        monkeypatch.delitem(os.environ, name)
    tokenizer = load_tokenizer(demo_model)
    rows = [row | {"gold": r1.data.gold_of(row["answer"])} for row in r1.data.arithmetic(6)]

    def make(**more):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        config = GRPOConfig(**dict(
            output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=4,
            max_completion_length=6, gradient_checkpointing=False, report_to=[], logging_steps=1, max_steps=2, seed=5,
            learning_rate=1e-2, beta=0.0, use_bias_correction_kl=False, save_strategy="no", disable_tqdm=True, use_vllm=True,
            vllm_mode="colocate", vllm_importance_sampling_mode="token_truncate", vllm_max_model_length=300,
        ) | more)  # fmt: skip
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
        model, rollout = (
            get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])),
            r1.rollout.Rollout(),
        )
        r1.engine.make_room(model)
        made = GRPOTrainer(
            model=model, reward_funcs=characters, args=config, processing_class=tokenizer, rollout_func=rollout,
            train_dataset=r1.data.prompts_of(rows, tokenizer, 256, "rows"),
        )  # fmt: skip
        r1.engine.start(made, rollout)
        r1.warmup.set_reference(model, False)
        widen_adapters(model)
        return made, rollout

    return make


def plant(model, size):
    import torch

    torch.manual_seed(2)
    for name, each in model.named_parameters():
        if ".lora_B." in name:
            each.data.normal_(0, size)


@pytest.mark.slow
@pytest.mark.parametrize("sleep", [False, True])
def test_grpo_with_an_engine_samples_from_the_policy_of_each_step(r1, trainer, capsys, sleep):
    import torch

    made, rollout = trainer(vllm_enable_sleep_mode=sleep)
    engine = made.vllm_generation.llm
    assert engine.how["max_num_seqs"] == 8 and engine.how["logprobs_mode"] == "processed_logprobs"
    plant(made.model, 2.0)
    frozen = {name: each.clone() for name, each in made.model.named_parameters() if "lora_" not in name}
    made.train()
    logs = [log for log in made.state.log_history if "reward" in log]
    assert len(logs) == 2 and rollout.tokens == sum(log["completions/mean_length"] for log in logs) * 8
    said = capsys.readouterr().out
    assert "vLLM samples from the policy" in said and said.count("engine_slope ") == 1  # step 0 of 0 and 1
    assert logs[0]["engine_slope"] == pytest.approx(1, abs=0.1) and logs[0]["engine_slope_tokens"] > 40
    assert logs[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.02)
    assert all(torch.equal(each, frozen[name]) for name, each in made.model.named_parameters() if name in frozen)
    # Weights go there once for each step; awake, only those with an adapter.
    assert len(engine.loaded) == 2 and engine.slept == (3 if sleep else 0)
    assert len(engine.loaded[0]) == (len(frozen) if sleep else 4)
    assert sum("q_proj" in name for name in engine.loaded[0]) == 2


@pytest.mark.slow
def test_an_engine_that_never_gets_the_weights_is_found_out(r1, trainer, capsys):
    made, _ = trainer(max_steps=1)
    plant(made.model, 2.0)
    made.vllm_generation.sync_weights = lambda: None
    made.train()
    assert "vLLM samples from the model without the update" in capsys.readouterr().out
    logs = [log for log in made.state.log_history if "reward" in log]
    assert logs[0]["engine_slope"] == pytest.approx(0, abs=0.1)


def test_a_merge_to_nearest_loses_small_updates_and_moves_frozen_weights(r1, trainer):
    """Why `sync` stands in the place of TRL's sync_weights."""
    import torch

    made, _ = trainer()
    model, engine, stock = made.model, made.vllm_generation.llm, type(made.vllm_generation).sync_weights
    name = "model.layers.0.self_attn.q_proj"
    layer, arrived = model.get_submodule(f"base_model.model.{name}"), dict(engine.model.named_parameters())
    plant(model, 1e-4)
    update, frozen = layer.get_delta_weight("default").detach(), layer.base_layer.weight.detach().clone()

    def share():
        difference = arrived[f"{name}.weight"].float() - frozen.float()
        return ((difference * update).sum() / update.square().sum()).item()

    stock(made.vllm_generation)
    nearest, ours = share(), []
    moved = layer.base_layer.weight != frozen  # added and subtracted again
    assert moved.any() and layer.base_layer.weight.isfinite().all()
    layer.base_layer.weight.data.copy_(frozen)
    for step in range(30):
        made.state.global_step = step
        r1.engine.sync(made)
        ours.append(share())
    assert torch.equal(layer.base_layer.weight, frozen)
    assert nearest < 0.7 and sum(ours) / len(ours) == pytest.approx(1, abs=0.15)
