"""The whole chain: SFT adapter -> merge -> reward model -> PPO (and GRPO beside it); finished stages are not repeated.

    merge.py         SFT adapter into its base            skipped where --model is a whole model already
    train_reward.py  learn from the pairs which answer is preferred
    train_ppo.py     make preferred answers likelier, staying near the SFT model
    train_grpo.py    the same with GRPO (--grpo)

Each stage starts from what the one before made, which is why their order is fixed. Started again with the same command,
the chain takes finished stages as they are and goes on in the middle of the one that was cut off. Each stage's own flags
(python train_ppo.py --help) go into a YAML file: --ppo_config my_ppo.yaml.

One GPU:           python train.py --adapter outputs/alpaca/RUN --data pairs.jsonl
An instruct model: python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data pairs.jsonl --grpo
Four minutes, CPU: python train.py --demo
"""

import sys
from dataclasses import dataclass
from typing import Literal

import merge
import train_grpo
import train_ppo
import train_reward
from common import device, screen
from common.cli import arg, parse
from common.files import read_json
from common.paths import DEMO_MODEL, command
from gold import course
from stage import check_configs

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",  # small: PPO samples as much as it trains
    quantization="none",  # 4bit: a 7B backbone on a 16 GB card
    grpo=False,
    report_to=["none"],  # tensorboard, wandb, swanlab, trackio: of every stage that trains
)
DEMO = dict(model=DEMO_MODEL)


@dataclass
class Args:
    model: str = arg("Qwen/Qwen2.5-0.5B-Instruct", "the SFT model, whole; with --adapter: not needed")
    adapter: str | None = arg(None, "an SFT adapter, which is merged into its base first")
    data: str | None = arg(None, "preference pairs (default: RLHF_PPO_DATA_DIR, DATA_DIR/rlhf_ppo, hub)")
    quantization: Literal["none", "4bit"] = arg("none", "of the frozen weights, in every stage")
    grpo: bool = arg(False, "train GRPO on the same prompts and reward model, too")
    reward_config: str | None = arg(None, "YAML file with flags of train_reward.py")
    estimate: bool = arg(False, "print which cards PPO fits on, the largest stage, and end")
    ppo_config: str | None = arg(None, "YAML file with flags of train_ppo.py")
    grpo_config: str | None = arg(None, "YAML file with flags of train_grpo.py")


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse(__file__, DEFAULTS, DEMO, Args, argv=argv)
    check_configs(
        (train_reward, None, args.reward_config),
        (train_ppo, None, args.ppo_config),
        (train_grpo, "trl:GRPOConfig", args.grpo_config),
    )
    demo = ["--demo"] if "--demo" in argv else []

    def stage(title, module, flags, config=None):
        screen.heading(title)
        folder = module.main([*flags, "--reuse", *(["--config", config] if config else [])])
        device.empty_cache()
        return folder

    model = args.model
    if args.estimate:
        flags = [*demo, "--model", model, "--quantization", args.quantization, "--estimate"]
        return train_ppo.main([*flags, *(["--config", args.ppo_config] if args.ppo_config else [])])
    if args.adapter:
        model = str(stage("merge", merge, ["--adapter", args.adapter]))
    common = [*demo, "--model", model, "--quantization", args.quantization]
    common += ["--data", args.data] if args.data else []
    common += ["--report_to", *args.report_to] if "report_to" in args.given else []
    reward = stage("reward model", train_reward, common, args.reward_config)
    common += ["--reward", str(reward)]
    made = {"ppo": stage("PPO", train_ppo, common, args.ppo_config)}
    if args.grpo:
        made["grpo"] = stage("GRPO", train_grpo, common, args.grpo_config)

    held = read_json(reward / "run.json")["held_out"]
    screen.heading("done")
    print(f"reward model: accuracy {held['accuracy']:.2f} on {held['pairs']} held-out pairs   {reward}")
    for name, folder in made.items():
        record = read_json(folder / "run.json")
        before, after = (sum(e["score"] for e in record[k]) / len(record[k]) for k in ("before", "after"))
        shown = len(record["after"])
        told = "{name}: score of {shown} held-out answers {before:+.2f} before, {after:+.2f} after   {folder}"
        print(screen.text(told, name=name, shown=shown, before=before, after=after, folder=folder))
        print(f"  {course(record['before'], record['after'], by_gold=bool(demo) and not args.data)}")
    print(f"Ask them: {command('infer.py', '--prompt', 'Why do cats purr?')}")


if __name__ == "__main__":
    main()
