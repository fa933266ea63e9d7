"""Best-of-n: sample n answers from the SFT model, keep the one that the reward model likes best. No training at all.

The baseline that PPO and GRPO have to beat at equal KL. Its distance from the SFT model has a closed form (an upper
bound, nearly reached where no two answers are equal): KL = log n - (n - 1) / n, so n = 16 is only 1.8 nats away.

One GPU:            python best_of_n.py --model outputs/rlhf_ppo/merged/RUN --reward outputs/rlhf_ppo/reward/RUN
A minute, CPU:      python train_reward.py --demo && python best_of_n.py --demo
"""

import math
import statistics
from pathlib import Path

from backbone import (
    BackboneArgs,
    add_adapter,
    answers_of,
    fingerprint,
    judge,
    load_backbone,
    ready,
    reward_head,
    show_examples,
)
from common.cli import arg, parse
from common.paths import DEMO_MODEL
from common.runs import write_json
from data import DataArgs, encode_prompts, load_splits
from stage import Stage, StageArgs, digest, flags

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    n=16,  # answers sampled for each prompt; every smaller n is computed from the same ones
    prompts=64,  # held-out prompts
    max_new_tokens=256,
    temperature=1.0,
    eos_penalty=1.0,  # as in PPO: off the score of an answer without an end
    batch_size=64,
    seed=3407,
)
DEMO = dict(
    model=DEMO_MODEL,
    data=str(HERE / "sample" / "pairs.jsonl"),
    n=4,
    prompts=4,
    max_new_tokens=20,
)

Args = flags(
    "Args",
    DEFAULTS,
    (BackboneArgs, DataArgs, StageArgs),
    reward=(str | None, arg(None, "the reward model's folder (default: the newest run of train_reward.py)")),
)


def kl_of(n):
    """KL of best-of-n from the model that it samples, in nats an answer."""
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


def sample(model, head, reward, tokenizer, prompts, args):
    """n answers of the SFT model to each prompt: (token ids, scores minus the EOS penalty), lists of lists."""
    many = [prompt for prompt in prompts for _ in range(args.n)]
    how = dict(temperature=args.temperature, top_k=0, top_p=1.0)
    ids = answers_of(model, None, tokenizer, many, args.max_new_tokens, args.batch_size, **how)
    scores = judge(model, head, reward, tokenizer, many, ids)
    scores = [s - args.eos_penalty * (i[-1:] != [tokenizer.eos_token_id]) for s, i in zip(scores, ids, strict=True)]
    cuts = range(0, len(many), args.n)
    return [ids[cut : cut + args.n] for cut in cuts], [scores[cut : cut + args.n] for cut in cuts]


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, (Args,), argv=argv)
    path, reward, tokenizer = ready(args)
    _, eval_pairs = load_splits(args)
    talks, prompts = encode_prompts(eval_pairs, tokenizer, args.max_prompt_length, "held-out prompts")
    talks, prompts = talks[: args.prompts], prompts[: args.prompts]
    stage = Stage("best_of_n", args, {"model": fingerprint(path), "reward": reward, "data": digest(prompts)})
    if stage.finished:
        return stage.folder
    with stage:
        from transformers import set_seed

        set_seed(args.seed)
        model = add_adapter(load_backbone(path, args), "reward", args.reward).eval()
        ids, scores = sample(model, reward_head(args.reward, model.device), reward, tokenizer, prompts, args)
        rows = curve(scores)
        write_json(stage.folder / "best_of_n.json", [{k: row[k] for k in ("n", "kl", "score")} for row in rows])
    texts = [[tokenizer.decode(each, skip_special_tokens=True).strip() for each in group] for group in ids]
    columns = {}
    for name, pick in (("one answer", lambda group: 0), (f"best of {args.n}", lambda group: group.index(max(group)))):
        picked = [pick(group) for group in scores[:3]]
        columns[name] = [{"answer": texts[i][at], "score": scores[i][at]} for i, at in enumerate(picked)]
    show_examples(talks[:3], **columns)
    print(f"{'n':>4} {'KL':>6} {'score':>7}   ({len(prompts)} prompts; score in stds of the SFT model's)")
    for row in rows:
        print(f"{row['n']:>4} {row['kl']:>6.2f} {row['score']:>7.2f}")
    return stage.folder


if __name__ == "__main__":
    main()
