"""What the stages share before a model is loaded: their flags, the checks that cost nothing, and what they print.

Adapters (reward model, policy, value model) fit one backbone only, and a wrong pair computes without an error. So each
names its backbone by a fingerprint, and each stage compares them before it begins.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import adapters, models
from common.cli import arg, parse
from common.files import fingerprint, text_table
from common.hub import read_object, resolve_model, tensors
from common.paths import command


@dataclass
class StageArgs:
    """Flags that all stages have."""

    output_dir: str | None = arg(None, "the run's folder (default: OUTPUT_DIR/rlhf_ppo/<stage>/<time>)")
    reuse: bool = arg(False, "take a finished run with equal arguments and inputs instead of making it again")


@dataclass
class BackboneArgs(StageArgs):
    """Flags of the stages that start from the SFT model."""

    model: str = arg("Qwen/Qwen2.5-0.5B-Instruct", "the SFT model, whole: what merge.py made, or an instruct model")
    quantization: Literal["none", "4bit"] = arg("none", "of the frozen weights; the same in every stage")


@dataclass
class LoopArgs(BackboneArgs):
    """Flags of the stages without a trainer, which would bring its own."""

    bf16: bool | None = arg(None, "compute in bfloat16 (default: where the hardware has it, else float32)")


def check_configs(*stages):
    """Refuse a stage's YAML file now, and not after the stages before it. stages: (module, its trainer or None, file)."""
    for module, trainer, file in stages:
        if file:
            parse(module.__file__, module.DEFAULTS, {}, module.Args, trainer, ["--config", file])


def sft_model(name: str) -> Path:
    """The folder of a whole model. A LoRA adapter is refused: with adapters off its base would be the reference."""
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        raise SystemExit(
            f"{folder} is an unmerged LoRA adapter. These stages measure KL against the backbone with adapters off, "
            "which must be the SFT model; here it would be the raw base.\n"
            f"Merge it first: {command('merge.py', '--adapter', folder)}   then give --model the folder that it names."
        )
    return resolve_model(name)


def check_quantization(args):
    if args.quantization == "4bit":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("--quantization 4bit needs an NVIDIA GPU.")


def read_reward(folder, path) -> dict:
    """reward.json of a reward model: mean and std of its scores and what was measured. Stops where it was trained on
    another backbone than the model in `path`."""
    folder = Path(folder).expanduser()
    if not (folder / "reward.json").exists():
        raise SystemExit(
            f"{folder} holds no reward model (no reward.json). Give the folder that train_reward.py named."
        )
    numbers = dict(sft_mean=(int, float), sft_std=(int, float))
    reward = read_object(folder / "reward.json", model=str, fingerprint=str, quantization=str, **numbers)
    if not all(adapters.finite(reward[name]) for name in numbers) or reward["sft_std"] <= 0:
        raise SystemExit(
            f"{folder / 'reward.json'}: sft_mean and sft_std are no mean and spread of scores: it is damaged."
        )
    if reward["fingerprint"] != fingerprint(path):
        raise SystemExit(
            f"{folder} was trained on another model than {path} ({reward['model']}). An adapter fits one backbone only: "
            "train the reward model on the merged SFT model that PPO starts from."
        )
    adapters.check(folder, path, adapters.read_record(folder).get("arguments"))
    weights, width = tensors(folder / adapters.WEIGHTS), read_object(path / "config.json").get("hidden_size")
    if (heads := [each["shape"] for name, each in weights.items() if name.endswith("score.weight")]) != [[1, width]]:
        raise SystemExit(
            f"{folder / adapters.WEIGHTS}: its score heads are {heads}, and not one of 1 x {width}: the scores would be random. "
            "Train the reward model again."
        )
    return reward


def check_reward(reward, args):
    if reward["quantization"] != args.quantization:
        raise SystemExit(
            f"the reward model was trained with --quantization {reward['quantization']}, this run has "
            f"{args.quantization}: rounding the backbone moves its scores. Use the same in every stage."
        )


def ready(args):
    """(model's folder, reward.json) of a stage that scores, after every check that costs nothing. Sets args.reward to the
    newest reward model where none was named."""
    check_quantization(args)
    args.reward = str(args.reward or models.latest("reward"))
    path = sft_model(args.model)
    reward = read_reward(args.reward, path)
    check_reward(reward, args)
    return path, reward


# -- what is written and printed


def tidy(metrics):
    """Metrics with six digits, as they stand in metrics.jsonl."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in metrics.items()}


PRINTED = 4  # prompts whose answers are shown; all are counted


def show_examples(prompts, **columns):
    """Print the same prompts answered by several models: columns are name=examples."""
    for number, prompt in enumerate(prompts[:PRINTED]):
        print(f"\n{'=' * 100}\nprompt: {prompt[-1]['content']}")
        for name, each in columns.items():
            each = each[number]
            print(f"{'-' * 100}\n{name}, score {each['score']:+.2f}: {each['answer'] or '(empty)'}")
    print("=" * 100)


def ends(run, steps):
    """Held-out scores of the record, before and after training, as log lines: the plots' points at step 0 and the last."""
    told = {0: run.record.get("before"), steps: run.record.get("after")}
    return [
        {"step": step, "eval_score": statistics.fmean(each["score"] for each in shown)}
        for step, shown in told.items()
        if shown
    ]


def show_course(logs, names):
    """How metrics went: their means over the first and the last fifth of a run's lines."""
    size = max(1, len(logs) // 5)
    first, last = (
        [statistics.fmean(log[name] for log in part if name in log) for name in names]
        for part in (logs[:size], logs[-size:])
    )
    rows = [(name, f"{a:.2f}", f"{b:.2f}") for name, a, b in zip(names, first, last, strict=True)]
    print(text_table(("mean over a fifth of the updates", "the first", "the last"), rows))
