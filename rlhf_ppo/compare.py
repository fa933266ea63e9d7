"""SFT, best-of-n, PPO and GRPO against each other at equal KL, and over-optimisation made visible.

A higher score alone says little: any method gets it by moving further from the SFT model. So scores are compared at the
same KL, on held-out prompts, over several seeds. And a reward model is only a proxy (Gao et al., arXiv 2210.10760): past
some KL it goes on rising while the real thing falls. To see that, the real thing must be known: gold.py is a formula.

    1. sample answers of the SFT model to prompts; gold ranks them; these pairs train the reward model (the proxy)
    2. PPO and GRPO against the proxy, --seeds times, keeping snapshots along the way
    3. of every snapshot, on held-out prompts: KL from the SFT model, proxy score, gold score; best-of-n for comparison
    4. compare.json, a table at best-of-n's KLs, and compare.png, anew after each run

--data FILE takes prompts from a file of pairs instead of gold.py's; with --own_pairs the reward model learns from that
file's pairs as they are. Interrupted, the same command goes on: finished stages are kept.

One GPU:            python compare.py --model outputs/rlhf_ppo/merged/RUN
                    python compare.py --model MODEL --data pairs.json --own_pairs --max_new_tokens 128
Some minutes, CPU:  python compare.py --demo
"""

import json
import math
import os
import statistics
from pathlib import Path

import train_grpo
import train_ppo
import train_reward
from best_of_n import curve, sample

from backbone import (
    BackboneArgs,
    add_adapter,
    answers_of,
    check_quantization,
    fingerprint,
    judge,
    load_backbone,
    read_reward,
    response_logprobs,
    reward_head,
    sft_model,
)
from common.cli import arg, parse
from common.models import load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import read_record, replace_text, write_json
from data import DataArgs, encode_prompts, key_of, prompt_ids, read_pairs, split_pairs
from gold import gold, prompts
from stage import Stage, StageArgs, digest, flags, free_memory

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    prompts=480,  # made by gold.py, a tenth of them held out; with --data all that are there
    answers=4,  # sampled for each prompt; the best and the worst by gold become a pair
    max_new_tokens=64,
    updates=60,  # rollouts of PPO and of GRPO, rollout_size answers each, with four optimizer steps on each
    rollout_size=64,
    micro_batch_size=32,  # answers at once in forward and backward; changes memory and speed, not the result
    snapshots=8,  # of each run, along the way
    seeds=3,
    learning_rate=2e-4,  # of both; far more than one would take: the point is to go too far
    kl_coef=0.01,  # of both; low for the same reason
    n=64,  # best-of-n, up to
    eval_prompts=48,  # held-out prompts measured at each snapshot
    eval_answers=4,  # sampled for each of them
    seed=3407,
)
DEMO = dict(
    model=DEMO_MODEL,
    prompts=24,
    answers=3,
    max_new_tokens=24,
    updates=2,
    rollout_size=8,
    micro_batch_size=8,
    snapshots=2,
    seeds=1,
    learning_rate=1e-3,
    n=4,
    eval_prompts=2,
    eval_answers=4,
)

Args = flags(
    "Args",
    DEFAULTS,
    (BackboneArgs, DataArgs, StageArgs),
    own_pairs=(bool, arg(False, "the reward model learns from --data's own pairs; gold.py is not used at all")),
    methods=(list[str], arg(["ppo", "grpo"], "which of ppo, grpo are trained")),
    ppo_config=(str | None, arg(None, "YAML file with flags of train_ppo.py")),
    grpo_config=(str | None, arg(None, "YAML file with flags of train_grpo.py")),
    reward_config=(str | None, arg(None, "YAML file with flags of train_reward.py")),
)
STEPS = 4  # optimizer steps on each rollout
WHOLE = dict(temperature=1.0, top_k=0, top_p=1.0)


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def make_pairs(args, path, tokenizer, talks, file):
    """Answers of the SFT model to each prompt, ranked by gold: {prompt, chosen, rejected} lines in `file`."""
    from transformers import set_seed

    set_seed(args.seed)
    model = add_plain(load_backbone(path, args))
    many = [ids for ids in prompt_ids(tokenizer, talks) for _ in range(args.answers)]
    texts = [text_of(tokenizer, ids) for ids in answers_of(model, None, tokenizer, many, args.max_new_tokens, **WHOLE)]
    lines = []
    for i, talk in enumerate(talks):
        ranked = sorted((text for text in texts[i * args.answers : (i + 1) * args.answers] if text), key=gold)
        if len(ranked) > 1 and gold(ranked[-1]) > gold(ranked[0]):
            lines.append({"prompt": talk, "chosen": ranked[-1], "rejected": ranked[0]})
    replace_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def add_plain(model):
    """A backbone with an idle adapter, so that `answers_of(model, None, ...)` has adapters to turn off."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()


def measure(model, name, head, reward, tokenizer, prompts, args):
    """KL, proxy and gold of an adapter's sampled answers to held-out prompts (None: the SFT model), as means.

    KL: the mean over answers of log p - log p_ref of their tokens, which is unbiased, with its standard error.
    """
    import torch
    from transformers import set_seed

    set_seed(args.seed)
    many = [prompt for prompt in prompts for _ in range(args.eval_answers)]
    ids = answers_of(model, name, tokenizer, many, args.max_new_tokens, **WHOLE)
    eos, pad, kls = tokenizer.eos_token_id, tokenizer.pad_token_id, []
    for start in range(0, len(many) if name else 0, 16):
        batch = many[start : start + 16], ids[start : start + 16]
        with torch.no_grad():
            model.set_adapter(name, inference_mode=True)
            d = response_logprobs(model, *batch, pad, 1.0)
            with model.disable_adapter():
                d = d - response_logprobs(model, *batch, pad, 1.0)
        kls += [part.sum().item() for part in d.split([len(each) for each in batch[1]])]
    ended = [each[-1:] == [eos] for each in ids]
    scores = judge(model, head, reward, tokenizer, many, ids)
    scores = [score - (not end) for score, end in zip(scores, ended, strict=True)]  # as PPO and GRPO count
    golds = [gold(text_of(tokenizer, each)) for each in ids]
    return {
        "kl": statistics.fmean(kls) if kls else 0.0,
        "kl_error": statistics.stdev(kls) / math.sqrt(len(kls)) if kls else 0.0,
        "proxy": statistics.fmean(scores),
        "gold": statistics.fmean(golds),
        "length": statistics.fmean(map(len, ids)),
        "eos_rate": sum(ended) / len(ended),
        "example": text_of(tokenizer, ids[0]),
    }


def train_policies(args, data, reward):
    """Run PPO and GRPO --seeds times. Yields after each run its snapshots: (method, seed, [(update, adapter folder)])."""
    demo = ["--demo"] if args.model == DEMO_MODEL else []
    every = max(1, args.updates // args.snapshots)
    common = [*demo, "--model", args.model, "--quantization", args.quantization, "--data", str(data), "--reuse"]
    common += ["--reward", str(reward), "--learning_rate", str(args.learning_rate), "--show_answers", "2"]
    common += ["--max_prompt_length", str(args.max_prompt_length), "--max_pairs", str(args.max_pairs)]
    common += ["--eval_ratio", str(args.eval_ratio), "--split_seed", str(args.split_seed)]
    for seed in range(args.seed, args.seed + args.seeds):
        mine = [*common, "--seed", str(seed)]
        if "ppo" in args.methods:
            flags = ["--updates", args.updates, "--snapshot_every", every, "--kl_coef", args.kl_coef]
            flags += ["--rollout_size", args.rollout_size, "--max_new_tokens", args.max_new_tokens]
            flags += ["--epochs", 2, "--minibatches", STEPS // 2, "--micro_batch_size", args.micro_batch_size]
            flags += ["--config", args.ppo_config] if args.ppo_config else []
            run = train_ppo.main([*mine, *map(str, flags)])
            yield "ppo", seed, kept(run, "snapshot", 1)
        if "grpo" in args.methods:
            micro = min(args.micro_batch_size, args.rollout_size)
            # As many steps on each rollout as PPO takes: else one of them would only have moved less.
            flags = ["--max_steps", args.updates * STEPS, "--num_iterations", STEPS, "--save_steps", every * STEPS]
            flags += ["--per_device_train_batch_size", micro, "--beta", args.kl_coef]
            flags += ["--save_total_limit", 10 * args.snapshots]
            flags += ["--gradient_accumulation_steps", args.rollout_size // micro]
            flags += ["--max_completion_length", args.max_new_tokens]
            flags += ["--config", args.grpo_config] if args.grpo_config else []
            run = train_grpo.main([*mine, *map(str, flags)])
            yield "grpo", seed, kept(run, "checkpoint", STEPS)


def kept(run, name, steps):
    """A run's snapshots in their order: (update, folder)."""
    return sorted((int(each.name.split("-")[1]) // steps, each) for each in run.glob(f"{name}-*"))


def at_kl(rows, kl, name):
    """A run's metric at some KL, between the two snapshots around it; None where there are none on both sides.

    Drawn in the square root of KL, where such curves are nearly straight (Gao et al., figure 1).
    """
    points = sorted((max(0.0, row["kl"]) ** 0.5, row[name]) for row in rows)
    for (a, left), (b, right) in zip(points, points[1:], strict=False):
        if a <= kl**0.5 <= b:
            return left + (right - left) * ((kl**0.5 - a) / (b - a) if b > a else 0)
    return None


def table(rows, best, with_gold):
    """Markdown: proxy (and gold) of each method at best-of-n's KLs and beyond, mean and spread over seeds."""
    methods = sorted({row["method"] for row in rows if row["method"] != "sft"}, reverse=True)
    sft = next(row for row in rows if row["method"] == "sft")
    names = ["proxy", "gold"] if with_gold else ["proxy"]
    furthest = max(row["kl"] for row in rows)
    beyond = (2.0, 5.0, 7.0, 10.0, 15.0, 20.0, 40.0)
    kls = sorted({row["kl"] for row in best[1:]} | {kl for kl in beyond if kl <= furthest})
    lines = ["| KL, nats | " + " | ".join(f"{m} {n}" for n in names for m in ("best of n", *methods)) + " |"]
    lines.append("|" + "---|" * (1 + len(names) * (1 + len(methods))))
    lines.append("| 0 (SFT) | " + " | ".join(f"{sft[n]:.2f}" for n in names for _ in ("best", *methods)) + " |")
    for kl in kls:
        cells = []
        for name in names:
            found = [row for row in best if row["kl"] == kl]
            cells.append(f"{found[0][name]:.2f} (n = {found[0]['n']})" if found else "")
            for method in methods:
                seeds = {row["seed"] for row in rows if row["method"] == method}
                at = [at_kl([r for r in rows if (r["method"], r["seed"]) == (method, s)], kl, name) for s in seeds]
                at = [value for value in at if value is not None]
                spread = f" ± {statistics.stdev(at):.2f}" if len(at) > 1 else ""
                cells.append(
                    f"{statistics.fmean(at):.2f}{spread}" + (f" ({len(at)} runs)" if len(at) < len(seeds) else "")
                    if at
                    else ""
                )
        lines.append(f"| {kl:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows, best, file, with_gold):
    """Proxy and gold against the square root of KL, as in the paper: there best-of-n is nearly a straight line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ["proxy", "gold"] if with_gold else ["proxy"]
    figure, axes = pyplot.subplots(1, len(names), figsize=(6.5 * len(names), 4.5), layout="constrained", squeeze=False)
    colours = {"ppo": "tab:blue", "grpo": "tab:orange"}
    sft = next(row for row in rows if row["method"] == "sft")
    for axis, name in zip(axes[0], names, strict=True):
        for method, seed in sorted({(r["method"], r["seed"]) for r in rows if r["method"] != "sft"}):
            run = [sft, *(row for row in rows if (row["method"], row["seed"]) == (method, seed))]
            points = sorted((max(0.0, row["kl"]) ** 0.5, row[name]) for row in run)
            label = None if axis.get_legend_handles_labels()[1].count(method) else method
            axis.plot(
                *zip(*points, strict=True), color=colours[method], marker="o", markersize=3, alpha=0.8, label=label
            )
        axis.plot([row["kl"] ** 0.5 for row in best], [row[name] for row in best], "k--", label="best of n")
        title = "proxy: what the reward model says" if name == "proxy" else "gold: what it was to stand for"
        axis.set(title=title, xlabel="square root of KL from the SFT model (nats an answer)", ylabel="score")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file.with_name(f".{file.name}"), format="png", dpi=120)
    pyplot.close(figure)
    os.replace(file.with_name(f".{file.name}"), file)


def held_out(args, data, tokenizer):
    """Token ids of the prompts that none of the stages trains on: the same split as theirs."""
    pairs, _ = read_pairs(data)
    _, eval_pairs = split_pairs(pairs[: args.max_pairs], args.eval_ratio, args.split_seed)
    _, ids = encode_prompts(eval_pairs, tokenizer, args.max_prompt_length, "held-out prompts")
    return ids[: args.eval_prompts]


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, (Args,), argv=argv)
    check_quantization(args)
    if args.own_pairs and not args.data:
        raise SystemExit("--own_pairs needs --data FILE: the pairs that the reward model learns from.")
    path = sft_model(args.model)
    tokenizer = load_tokenizer(path)
    if args.data:
        pairs, _ = read_pairs(args.data)
        talks = list({key_of(pair["prompt"]): pair["prompt"] for pair in pairs}.values())[: args.max_pairs]
        talks = encode_prompts([{"prompt": talk} for talk in talks], tokenizer, args.max_prompt_length, "prompts")[0]
    else:
        talks = prompts(args.prompts, args.seed)
    stage = Stage("compare", args, {"model": fingerprint(path), "prompts": digest(talks)}, marker=None)
    if stage.finished:
        return stage.folder
    with stage:
        data = Path(args.data) if args.own_pairs else stage.folder / "pairs.jsonl"
        if not data.exists():
            make_pairs(args, path, tokenizer, talks, data)
            free_memory()
        demo = ["--demo"] if args.model == DEMO_MODEL else []
        common = ["--model", args.model, "--quantization", args.quantization, "--data", str(data), "--reuse"]
        common += ["--max_new_tokens", str(args.max_new_tokens), "--max_prompt_length", str(args.max_prompt_length)]
        common += ["--eval_ratio", str(args.eval_ratio), "--split_seed", str(args.split_seed)]
        common += ["--config", args.reward_config] if args.reward_config else []
        reward_folder = train_reward.main([*demo, *common])
        reward, ids = read_reward(reward_folder, path), held_out(args, data, tokenizer)
        seen = read_record(stage.folder, "compare.json") or {"rows": [], "best_of_n": []}
        rows, best = seen["rows"], seen["best_of_n"]

        def judged():
            free_memory()
            return add_adapter(load_backbone(path, args), "reward", reward_folder).eval()

        def write():
            write_json(stage.folder / "compare.json", {"rows": rows, "best_of_n": best})
            text = table(rows, best, not args.own_pairs)
            replace_text(stage.folder / "compare.md", text + "\n")
            plot(rows, best, stage.folder / "compare.png", not args.own_pairs)
            return text

        if not best:
            model = judged()
            head = reward_head(reward_folder, model.device)
            start = {"method": "sft", "seed": args.seed, "update": 0}
            rows.append(start | measure(model, None, head, reward, tokenizer, ids, args))
            args.temperature, args.eos_penalty, args.batch_size = 1.0, 1.0, 64
            answers, scores = sample(model, head, reward, tokenizer, ids, args)
            golds = [[gold(text_of(tokenizer, each)) for each in group] for group in answers]
            best += [
                {"n": r["n"], "kl": r["kl"], "proxy": r["score"], "gold": r["other"]} for r in curve(scores, golds)
            ]
            del model
        text = write()
        for method, seed, snapshots in train_policies(args, data, reward_folder):
            done = {row["update"] for row in rows if (row["method"], row["seed"]) == (method, seed)}
            model = judged() if done != {update for update, _ in snapshots} else None
            for update, adapter in snapshots:
                if update in done:
                    continue
                model = add_adapter(model, "policy", adapter).eval()
                head = reward_head(reward_folder, model.device)
                found = measure(model, "policy", head, reward, tokenizer, ids, args)
                model.delete_adapter("policy")
                rows.append({"method": method, "seed": seed, "update": update} | found)
                print(f"{method} seed {seed} update {update}: KL {found['kl']:.2f}, proxy {found['proxy']:.2f}, "
                      f"gold {found['gold']:.2f}")  # fmt: skip
            del model
            free_memory()
            text = write()  # after each run, so that what was measured is there to be looked at, and is kept
    held = reward["held_out"]
    print(f"\nreward model: accuracy {held['accuracy']:.2f} on {held['pairs']} held-out pairs\n{text}")
    return stage.folder


if __name__ == "__main__":
    main()
