"""Ask the SFT model, PPO's and GRPO's policy the same thing, side by side, each answer with its score.

Newest runs:     python infer.py --prompt "Why is the sea salty?"
Named runs:      python infer.py --ppo outputs/rlhf_ppo/ppo/RUN --grpo outputs/rlhf_ppo/grpo/RUN --prompt "..."
A file of them:  python infer.py --file prompts.txt
"""

import json
from pathlib import Path

from backbone import (
    BackboneArgs,
    add_adapter,
    answers_of,
    check_quantization,
    judge,
    load_backbone,
    read_reward,
    reward_head,
    sft_model,
    show_examples,
)
from common.cli import arg, parse
from common.models import load_tokenizer
from common.paths import output_dir
from common.runs import read_record, replace_text
from common.tables import text_lines
from data import prompt_ids
from stage import flags, latest

DEFAULTS = dict(
    model="",  # the SFT model that the runs were trained from
    max_new_tokens=256,
    temperature=0.0,  # 0: always the likeliest token; 0.7: some variety
    seed=3407,
)

Args = flags(
    "Args",
    DEFAULTS,
    (BackboneArgs,),
    prompt=(str | None, arg(None, "one prompt (default: a question about cats)")),
    file=(str | None, arg(None, "a text file (UTF-8), one prompt a line; answers go to --out")),
    out=(str | None, arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")),
    ppo=(str | None, arg(None, "a run of train_ppo.py (default: the newest finished one)")),
    grpo=(str | None, arg(None, "a run of train_grpo.py (default: the newest finished one, if it fits)")),
    reward=(str | None, arg(None, "the reward model (default: the one that the policy was trained with)")),
)


def policies(args):
    """{name: folder} of the policies to ask, with what they were trained from: (model, reward, quantization)."""
    found = {}
    for name in ("ppo", "grpo"):
        given = getattr(args, name)
        if given:
            found[name] = Path(given).expanduser()
            if not (found[name] / "adapter_config.json").is_file():
                raise SystemExit(f"{found[name]} holds no finished run of train_{name}.py (no adapter_config.json).")
        elif list(output_dir().glob(f"{name}/*/adapter_config.json")):
            found[name] = latest(name)
    if not found:
        raise SystemExit(
            f"no finished run of PPO or GRPO in {output_dir()}: run train.py first, or name one with --ppo."
        )
    records = {name: read_record(folder) for name, folder in found.items()}
    first = next(iter(records))
    for name, record in records.items():
        if record["inputs"]["model"] != records[first]["inputs"]["model"]:
            if getattr(args, name):
                raise SystemExit(f"{found[first]} and {found[name]} were trained from different models.")
            del found[name]  # merely the newest one: not comparable
    return found, records[first]["arguments"]


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, (Args,), argv=argv)
    check_quantization(args)
    texts, out = [args.prompt or "Why do cats purr?"], None
    if args.file:
        texts, out = text_lines(args.file, args.out, "prompt")
    found, trained = policies(args)
    path = sft_model(args.model or trained["model"])
    folder = args.reward or trained["reward"]
    reward, tokenizer = read_reward(folder, path), load_tokenizer(path)
    args.quantization = trained["quantization"]
    from transformers import set_seed

    set_seed(args.seed)
    model = add_adapter(load_backbone(path, args), "reward", folder)
    for name, adapter in found.items():
        model = add_adapter(model, name, adapter)
        print(f"{name}: {adapter}")
    model.eval()
    talks = [[{"role": "user", "content": text}] for text in texts]
    prompts, columns = prompt_ids(tokenizer, talks), {}
    how = dict(temperature=args.temperature, top_k=0, top_p=1.0) if args.temperature else {}
    for name in (None, *found):
        ids = answers_of(model, name, tokenizer, prompts, args.max_new_tokens, **how)
        scores = judge(model, reward_head(folder, model.device), reward, tokenizer, prompts, ids)
        answers = [tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
        columns[name or "sft"] = [{"answer": a, "score": s} for a, s in zip(answers, scores, strict=True)]
    if not out:
        return show_examples(talks, **columns)
    lines = [{"prompt": text} | {name: each[i] for name, each in columns.items()} for i, text in enumerate(texts)]
    replace_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(f"{len(lines)} prompts answered: {out}")


if __name__ == "__main__":
    main()
