"""Best-of-n: sample n answers from the SFT model, keep the one that the reward model likes best. No training at all.

The baseline that PPO and GRPO have to beat at equal KL. Its distance from the SFT model has a closed form (an upper
bound, nearly reached where no two answers are equal): KL = log n - (n - 1) / n, so n = 16 is only 1.8 nats away.

One GPU:            python best_of_n.py --model outputs/rlhf_ppo/merged/RUN --reward outputs/rlhf_ppo/reward/RUN
A minute, CPU:      python train_reward.py --demo && python best_of_n.py --demo
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sampler
from common import models
from common.cli import arg, parse
from common.files import text_table, write_json
from common.paths import DEMO_MODEL
from data import DataArgs, encode_prompts, load_splits
from stage import LoopArgs, fingerprint, ready, show_examples

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    n=16,  # answers sampled for each prompt; every smaller n is computed from the same ones
    prompts=64,  # held-out prompts
    max_new_tokens=256,
    temperature=1.0,
    eos_penalty=1.0,  # as in PPO: off the score of an answer without an end
    batch_size=64,  # answers written at once
    seed=3407,
)
DEMO = dict(model=DEMO_MODEL, data=str(HERE / "sample" / "gold.jsonl"), n=4, prompts=4, max_new_tokens=20)


@dataclass
class Args(LoopArgs, DataArgs):
    reward: str | None = arg(None, "the reward model's folder (default: the newest run of train_reward.py)")
    rollouts: Literal["auto", "vllm", "hf"] = arg("auto", "auto: vLLM where it is installed and fits, else our decoder")


def kl_of(n):
    """KL of best-of-n from the model that it samples, in nats per answer."""
    return math.log(n) - (n - 1) / n


def expected_best(scores, n, others=None):
    """Mean score of the best of n out of these answers, over all ways to draw n of them: less noisy than one draw.

    others: another number of each answer; then the mean of that, the choice still being by score.
    """
    others, total = others or scores, math.comb(len(scores), n)
    order = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)
    # The k-th best is the best of a draw when the n - 1 others come from those behind it.
    return sum(math.comb(len(scores) - k - 1, n - 1) / total * others[i] for k, i in enumerate(order))


def curve(groups, others=None):
    """[{n, kl, score, other}] for n = 1, 2, 4, ... from the scores of several prompts' answers."""
    others = others or groups
    sizes = [2**k for k in range(len(groups[0]).bit_length()) if 2**k <= len(groups[0])]
    return [
        {
            "n": n,
            "kl": kl_of(n),
            "score": statistics.fmean(expected_best(group, n) for group in groups),
            "other": statistics.fmean(expected_best(g, n, o) for g, o in zip(groups, others, strict=True)),
        }
        for n in sizes
    ]


def sample(model, head, reward, tokenizer, prompts, n, new, temperature=1.0, eos_penalty=1.0, batch_size=64, vllm=None):
    """n answers of the SFT model to each prompt, `new` tokens at most: (token ids, scores minus the EOS penalty), lists of
    lists. vllm: who writes them where vLLM does, of sampler.opened."""
    from backbone import WHOLE, answers_of
    from scoring import judge

    many = [prompt for prompt in prompts for _ in range(n)]
    how = WHOLE | dict(temperature=temperature, sampler=vllm)
    ids = answers_of(model, None, tokenizer, many, new, batch_size, **how)
    scores = judge(model, head, reward, tokenizer, many, ids)
    scores = [s - eos_penalty * (i[-1:] != [tokenizer.eos_token_id]) for s, i in zip(scores, ids, strict=True)]
    cuts = range(0, len(many), n)
    return [ids[cut : cut + n] for cut in cuts], [scores[cut : cut + n] for cut in cuts]


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, argv=argv)
    sampler.check(args)
    path, reward = ready(args)
    _, eval_pairs = load_splits(args)
    tokenizer = models.load_tokenizer(path)
    talks, prompts = encode_prompts(eval_pairs, tokenizer, args.max_prompt_length, "held-out prompts")
    talks, prompts = talks[: args.prompts], prompts[: args.prompts]

    from transformers import set_seed

    # torch is loaded from here on: what can be wrong has been said
    from backbone import add_adapter, compute_dtype, load_backbone
    from common import runs
    from scoring import reward_head, text_of

    inputs = {"model": fingerprint(path), "reward": reward, "data": runs.digest(prompts)}
    run = runs.Run(args, stage="best_of_n", inputs=inputs)
    if run.finished:
        return run.folder
    size = max(map(len, prompts)) + args.max_new_tokens, args.n * len(prompts)
    found = sampler.choose(args, path, *size)
    with run, sampler.opened(found, path, compute_dtype(args), *size, args.seed) as vllm:
        run.note(rollouts=args.rollouts)
        set_seed(args.seed)
        model = add_adapter(load_backbone(path, args), "reward", args.reward).eval()
        head = reward_head(args.reward, model.device)
        how = args.n, args.max_new_tokens, args.temperature, args.eos_penalty, args.batch_size, vllm
        ids, scores = sample(model, head, reward, tokenizer, prompts, *how)
        rows = curve(scores)
        write_json(run.folder / "best_of_n.json", [{k: row[k] for k in ("n", "kl", "score")} for row in rows])
    columns = {}
    for name, pick in (("one answer", lambda group: 0), (f"best of {args.n}", lambda group: group.index(max(group)))):
        picked = [pick(group) for group in scores[:3]]
        columns[name] = [
            {"answer": text_of(tokenizer, ids[i][at]), "score": scores[i][at]} for i, at in enumerate(picked)
        ]
    show_examples(talks[:3], **columns)
    print(f"{len(prompts)} prompts; score in stds of the SFT model's")
    print(text_table(("n", "KL", "score"), [(row["n"], f"{row['kl']:.2f}", f"{row['score']:.2f}") for row in rows]))
    return run.folder


if __name__ == "__main__":
    main()
