"""Ask the SFT model, PPO's and GRPO's policy the same thing, side by side, each answer with its score.

Newest runs:     python infer.py --prompt "Why is the sea salty?"
Named runs:      python infer.py --ppo outputs/rlhf_ppo/ppo/RUN --grpo outputs/rlhf_ppo/grpo/RUN --prompt "..."
A file of them:  python infer.py --file prompts.txt
"""

from dataclasses import dataclass
from pathlib import Path

from common import adapters, models
from common.cli import arg, parse
from common.files import write_lines
from common.paths import output_dir
from common.rows import text_lines
from prompt import prompt_ids
from stage import check_quantization, read_reward, show_examples

DEFAULTS = dict(
    max_new_tokens=256,  # longest answer
    temperature=0.0,  # 0: always the likeliest token; 0.7: some variety
    seed=3407,
)


@dataclass
class Args:
    prompt: str | None = arg(None, "one prompt (default: a question about cats)")
    file: str | None = arg(None, "a text file (UTF-8), one prompt per line; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    ppo: str | None = arg(None, "a run of train_ppo.py (default: the newest finished one)")
    grpo: str | None = arg(None, "a run of train_grpo.py (default: the newest finished one, if it fits)")
    reward: str | None = arg(None, "the reward model (default: the one that the policy was trained with)")
    model: str | None = arg(None, "the SFT model that the runs were trained from (default: the one that they name)")
    bf16: bool | None = arg(None, "compute in bfloat16 (default: where the hardware has it, else float32)")


def policies(args):
    """{name: finished run} of the policies to ask, all trained from the same SFT model."""
    found = {}
    for name in ("ppo", "grpo"):
        given = getattr(args, name)
        if not given and not list(output_dir().glob(f"{name}/*/adapter_config.json")):
            continue
        folder = Path(given).expanduser() if given else models.latest(name)
        record, first = adapters.read_record(folder), next(iter(found.values()), None)
        comparable = not first or record.get("inputs", {}).get("model") == first.record.get("inputs", {}).get("model")
        if not comparable and not given:
            continue  # merely the newest one
        run = models.open_run(folder, args.model or record.get("arguments", {}).get("model"), record=True)
        if record.get("stage") != name:
            raise SystemExit(f"{folder} is no run of train_{name}.py.")
        if not comparable:
            raise SystemExit(f"{first.adapter} and {folder} were trained from different models.")
        found[name] = run
    if not found:
        raise SystemExit(
            f"no finished run of PPO or GRPO in {output_dir()}: run train.py first, or name one with --ppo."
        )
    return found


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    texts, out = [args.prompt or "Why do cats purr?"], None
    if args.file:
        texts, out = text_lines(args.file, args.out, "prompt")
    found = policies(args)
    run = next(iter(found.values()))
    args.quantization = run.arguments["quantization"]
    check_quantization(args)
    folder = args.reward or run.arguments["reward"]
    reward, tokenizer = read_reward(folder, run.base), models.load_tokenizer(run.base)

    from transformers import set_seed

    from backbone import WHOLE, add_adapter, load_backbone
    from scoring import examples, reward_head

    set_seed(args.seed)
    model = add_adapter(load_backbone(run.base, args), "reward", folder)
    for name, each in found.items():
        model = add_adapter(model, name, each.adapter)
        print(f"{name}: {each.adapter}")
    model.eval()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    prompts, columns = prompt_ids(tokenizer, rows, run.texts), {}
    how = WHOLE | dict(temperature=args.temperature) if args.temperature else {}
    head = reward_head(folder, model.device)
    for name in (None, *found):
        columns[name or "sft"] = examples(model, name, head, reward, tokenizer, prompts, args.max_new_tokens, **how)
    if not out:
        return show_examples([row["prompt"] for row in rows], **columns)
    write_lines(
        out, [{"prompt": text} | {name: each[i] for name, each in columns.items()} for i, text in enumerate(texts)]
    )
    print(f"{len(texts)} prompts answered: {out}")


if __name__ == "__main__":
    main()
