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

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import best_of_n
import sampler
import train_grpo
import train_ppo
import train_reward
from common import device, models
from common.cli import arg, parse
from common.files import read_json, replace_text, text_table, write_json, write_lines
from common.paths import DEMO_MODEL
from common.rows import text_fault
from data import DataArgs, encode_prompts, key_of, read_rows, split
from gold import gold, prompts
from prompt import prompt_ids
from stage import LoopArgs, check_configs, check_quantization, fingerprint, read_reward, sft_model

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
DEMO = dict(model=DEMO_MODEL, prompts=24, answers=3, max_new_tokens=24, updates=2, rollout_size=8, micro_batch_size=8)
DEMO |= dict(snapshots=2, seeds=1, learning_rate=1e-3, n=4, eval_prompts=2, eval_answers=4)

STEPS = 4  # optimizer steps on each rollout


@dataclass
class Args(LoopArgs, DataArgs):
    own_pairs: bool = arg(False, "the reward model learns from --data's own pairs; gold.py is not used at all")
    methods: list[str] = arg(["ppo", "grpo"], "which of ppo, grpo are trained")
    rollouts: Literal["auto", "vllm", "hf"] = arg(
        "auto", "auto: vLLM where it is installed and fits measures; the trainings have our decoder"
    )
    ppo_config: str | None = arg(None, "YAML file with flags of train_ppo.py")
    grpo_config: str | None = arg(None, "YAML file with flags of train_grpo.py")
    reward_config: str | None = arg(None, "YAML file with flags of train_reward.py")


def make_pairs(args, path, tokenizer, talks, file, vllm):
    """Answers of the SFT model to each prompt, ranked by gold: {prompt, chosen, rejected} lines in `file`."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from backbone import WHOLE, answers_of, load_backbone
    from scoring import text_of

    set_seed(args.seed)
    # An idle adapter, so that answers_of has one to turn off.
    idle = LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["q_proj"])
    model = get_peft_model(load_backbone(path, args), idle).eval()
    many = [ids for ids in prompt_ids(tokenizer, [{"prompt": talk} for talk in talks]) for _ in range(args.answers)]
    made = answers_of(model, None, tokenizer, many, args.max_new_tokens, sampler=vllm, **WHOLE)
    texts = [text_of(tokenizer, ids) for ids in made]
    lines = []
    for i, talk in enumerate(talks):
        mine = texts[i * args.answers : (i + 1) * args.answers]
        ranked = sorted((text for text in mine if text and not text_fault(text)), key=gold)
        if len(ranked) > 1 and gold(ranked[-1]) > gold(ranked[0]):
            lines.append({"prompt": talk, "chosen": ranked[-1], "rejected": ranked[0]})
    write_lines(file, lines)


def measure(model, name, head, reward, tokenizer, prompts, args, vllm):
    """KL, proxy and gold of an adapter's sampled answers to held-out prompts (None: the SFT model), as means.

    KL: the mean over answers of log p - log p_ref of their tokens, which is unbiased, with its standard error.
    """
    import torch
    from transformers import set_seed

    from backbone import WHOLE, answers_of, response_logprobs
    from scoring import judge, text_of

    set_seed(args.seed)
    many = [prompt for prompt in prompts for _ in range(args.eval_answers)]
    ids = answers_of(model, name, tokenizer, many, args.max_new_tokens, sampler=vllm, **WHOLE)
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
    common += ["--rollouts", "hf"]  # an engine for each training would take longer to start than these rollouts
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


def train_judge(args, data):
    """Run train_reward.py on the pairs in `data`: the folder of the reward model."""
    flags = ["--demo"] if args.model == DEMO_MODEL else []
    flags += ["--model", args.model, "--quantization", args.quantization, "--data", str(data), "--reuse"]
    flags += ["--max_new_tokens", str(args.max_new_tokens), "--max_prompt_length", str(args.max_prompt_length)]
    flags += ["--eval_ratio", str(args.eval_ratio), "--split_seed", str(args.split_seed)]
    flags += ["--config", args.reward_config] if args.reward_config else []
    return train_reward.main(flags)


def held_out(args, data, tokenizer):
    """Token ids of the prompts that none of the stages trains on: the same split as theirs."""
    pairs, _ = read_rows(data)
    _, eval_pairs = split(pairs[: args.max_pairs], args.eval_ratio, args.split_seed)
    _, ids = encode_prompts(eval_pairs, tokenizer, args.max_prompt_length, "held-out prompts")
    return ids[: args.eval_prompts]


def read_prompts(args):
    """The prompts as messages: those of --data, or gold.py's."""
    if not args.data:
        return prompts(args.prompts, args.seed)
    pairs, _ = read_rows(args.data)
    return list({key_of(pair["prompt"]): pair["prompt"] for pair in pairs}.values())[: args.max_pairs]


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, argv=argv)
    check_configs(
        (train_reward, None, args.reward_config),
        (train_ppo, None, args.ppo_config),
        (train_grpo, "trl:GRPOConfig", args.grpo_config),
    )
    check_quantization(args)
    sampler.check(args)
    if args.own_pairs and not args.data:
        raise SystemExit("--own_pairs needs --data FILE: the pairs that the reward model learns from.")
    if not args.eval_prompts or not args.eval_answers:
        raise SystemExit("--eval_prompts and --eval_answers are at least 1: they are what is compared.")
    path, talks = sft_model(args.model), read_prompts(args)
    tokenizer = models.load_tokenizer(path)
    if args.data:
        fitting = encode_prompts([{"prompt": talk} for talk in talks], tokenizer, args.max_prompt_length, "prompts")
        talks = fitting[0]

    import plots  # torch is loaded from here on: what can be wrong above has been said
    from backbone import add_adapter, compute_dtype, load_backbone
    from common import runs
    from scoring import reward_head, text_of

    inputs = {"model": fingerprint(path), "prompts": runs.digest(talks)}
    run = runs.Run(args, stage="compare", inputs=inputs, marker=None)
    if run.finished:
        return run.folder
    size = args.max_prompt_length + args.max_new_tokens, max(args.n, args.eval_answers) * args.eval_prompts
    share = sampler.choose(args, path, *size)
    share = share and (share[0], True)  # it sleeps while policies are trained
    with run, sampler.opened(share, path, compute_dtype(args), *size, args.seed) as vllm:
        data = Path(args.data) if args.own_pairs else run.folder / "pairs.jsonl"
        if not data.exists():
            make_pairs(args, path, tokenizer, talks, data, vllm)
            device.empty_cache()
        reward_folder = train_judge(args, data)
        reward, ids = read_reward(reward_folder, path), held_out(args, data, tokenizer)
        seen = read_json(run.folder / "compare.json") or {"rows": [], "best_of_n": []}
        rows, best = seen["rows"], seen["best_of_n"]

        def judged():
            device.empty_cache()
            model = add_adapter(load_backbone(path, args), "reward", reward_folder).eval()
            return model, reward_head(reward_folder, model.device)

        def write():
            write_json(run.folder / "compare.json", {"rows": rows, "best_of_n": best})
            header, cells = plots.table(rows, best, not args.own_pairs)
            replace_text(run.folder / "compare.md", plots.markdown(header, cells) + "\n")
            plots.plot(rows, best, run.folder / "compare.png", not args.own_pairs)
            return text_table(header, cells)

        if not best:
            model, head = judged()
            start = {"method": "sft", "seed": args.seed, "update": 0}
            rows.append(start | measure(model, None, head, reward, tokenizer, ids, args, vllm))
            how = ids, args.n, args.max_new_tokens
            answers, scores = best_of_n.sample(model, head, reward, tokenizer, *how, vllm=vllm)
            golds = [[gold(text_of(tokenizer, each)) for each in group] for group in answers]
            for row in best_of_n.curve(scores, golds):
                best.append({"n": row["n"], "kl": row["kl"], "proxy": row["score"], "gold": row["other"]})
            del model
        text = write()
        for method, seed, snapshots in train_policies(args, data, reward_folder):
            done = {row["update"] for row in rows if (row["method"], row["seed"]) == (method, seed)}
            model, head = judged() if done != {update for update, _ in snapshots} else (None, None)
            for update, adapter in snapshots:
                if update in done:
                    continue
                model = add_adapter(model, "policy", adapter).eval()
                found = measure(model, "policy", head, reward, tokenizer, ids, args, vllm)
                model.delete_adapter("policy")
                rows.append({"method": method, "seed": seed, "update": update} | found)
                print(
                    f"{method} seed {seed} update {update}: KL {found['kl']:.2f}, proxy {found['proxy']:.2f}, "
                    f"gold {found['gold']:.2f}"
                )
            del model
            device.empty_cache()
            text = write()  # after each run, so that what was measured is there to be looked at, and is kept
    held = reward["held_out"]
    print(f"\nreward model: accuracy {held['accuracy']:.2f} on {held['pairs']} held-out pairs\n{text}")
    return run.folder


if __name__ == "__main__":
    main()
