"""SFT, DPO, ORPO, SimPO and KTO against each other at equal KL, with gold.py as the truth; beta swept, several seeds.

A method that moves further gets more of anything, good or bad. So methods are compared where they are equally far from the
model they began with, in nats per sampled answer, and by a reward that is known: gold.py's formula, which none of them sees.

    1. the model answers gold.py's prompts; the best and the worst answer by gold become a pair
    2. each method is trained on the pairs with each of its strengths, --seeds times; its checkpoints are points on a curve
    3. of each checkpoint, on held-out prompts: KL, gold, length; best-of-n by gold itself is the line above which nobody is
    4. compare.json, compare.png, a table at a few KLs with differences to DPO (paired by seed, 95% interval by Student's t)

SFT is ORPO with --weight 0: the chosen answers alone. --rlhf takes the folder of a run of rlhf_ppo/compare.py: its pairs, from
which its reward model learned, are trained on here, on the same prompts is measured, and its PPO, GRPO and best-of-n by
reward model are drawn beside. Cut off, the same command goes on: points are appended to compare.jsonl. Several commands with one
--out and different seeds may run side by side.

One GPU:            python compare.py --model Qwen/Qwen2.5-0.5B-Instruct --rlhf ../outputs/rlhf_ppo/compare/RUN
Some minutes, CPU:  python compare.py --demo
"""

import itertools
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import dpo
import kto
import orpo
import simpo
from common import device, models
from common.cli import arg, parse
from common.files import read_json, save_figure, text_table, write_json, write_lines
from common.hub import resolve_model
from common.paths import DEMO_MODEL, output_dir
from common.rows import text_fault
from data import DataArgs, read_rows, split
from gold import gold, prompts
from prompt import prompt_ids

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    prompts=480,  # made by gold.py, a tenth of them held out
    answers=8,  # sampled for each prompt
    max_new_tokens=64,
    steps=60,  # optimizer steps of 16 pairs
    snapshots=5,  # of each run, along the way
    learning_rate=1e-4,  # high: the point is to go far
    seeds=3,
    seed=3407,
    n=16,  # sampled answers to each held-out prompt; best-of-n goes up to it
)
DEMO = DEFAULTS | dict(model=DEMO_MODEL, prompts=40, answers=4, max_new_tokens=24, steps=4, snapshots=2)
DEMO |= dict(learning_rate=1e-3, seeds=2, n=4, sweep=False)
# Method -> script, and the flags of each strength; the first is all that --sweep false trains.
STRENGTHS = {
    "sft": (orpo, [("--weight", "0")]),
    "dpo": (dpo, [("--beta", "0.1"), ("--beta", "0.03"), ("--beta", "0.3")]),
    "orpo": (orpo, [("--weight", "0.5"), ("--weight", "2")]),
    "simpo": (simpo, [("--beta", "2"), ("--beta", "10")]),
    "kto": (kto, [("--beta", "0.1"), ("--beta", "0.3")]),
}
LEVELS = (1, 2, 4, 8, 16)  # nats at which the table compares
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t at 95%, by the number of seeds
WHOLE = dict(temperature=1.0, top_k=0, top_p=1.0)  # the model's own distribution: KL is about that one


@dataclass
class Args:
    methods: list[str] = arg(list(STRENGTHS), "which of sft, dpo, orpo, simpo, kto are trained")
    sweep: bool = arg(True, "each method with all its strengths; false: with the first")
    rlhf: str | None = arg(None, "a run of rlhf_ppo/compare.py: its pairs, and its PPO and GRPO beside")
    seconds: int = arg(0, "begin no run that would end after so many seconds; 0: do all")
    out: str | None = arg(None, "folder for results and runs (default: OUTPUT_DIR/preference/compare)")


def make_pairs(args, model, tokenizer, file):
    """The best and the worst by gold of `answers` sampled answers to each prompt, as lines of `file`."""
    from common.answers import generate
    from common.speed import graph

    talks, lines = prompts(args.prompts, args.seed), []
    many = [ids for ids in prompt_ids(tokenizer, [{"prompt": talk} for talk in talks]) for _ in range(args.answers)]
    texts = generate(model, tokenizer, many, args.max_new_tokens, 128, **WHOLE, decode=graph.decode)
    for i, talk in enumerate(talks):
        mine = texts[i * args.answers : (i + 1) * args.answers]
        ranked = sorted((text for text in mine if text and not text_fault(text)), key=gold)
        if len(ranked) > 1 and gold(ranked[-1]) > gold(ranked[0]):
            lines.append({"prompt": talk, "chosen": ranked[-1], "rejected": ranked[0]})
    write_lines(file, lines)


def best_of(texts, n):
    """[{n, kl, gold}] of best-of-n by gold, over all draws out of each prompt's n answers; KL by its closed form."""
    rows = []
    for size in (2**k for k in range(n.bit_length()) if 2**k <= n):
        total, best = math.comb(n, size), []
        for start in range(0, len(texts), n):
            order = sorted(map(gold, texts[start : start + n]), reverse=True)
            best.append(sum(math.comb(n - k - 1, size - 1) / total * each for k, each in enumerate(order)))
        rows.append(dict(n=size, kl=math.log(size) - (size - 1) / size, gold=statistics.fmean(best)))
    return rows


def curves(rows, what="gold"):
    """{(method, strength): {seed: [(KL, what), ...]}}, in the order of training."""
    found = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        seeds = found.setdefault((row["method"], row["strength"]), {})
        seeds.setdefault(row["seed"], []).append((row["kl"], row[what]))
    return found


def at_kl(points, kl):
    """Gold where a curve [(kl, gold), ...] first gets to a KL, between two points; None before its first and after its last.

    Between points gold is a line over the square root of KL, as it nearly is when measured densely (arXiv 2210.10760): a
    line over KL itself would put runs with few points too low.
    """
    for (a, x), (b, y) in itertools.pairwise(points):
        if a <= kl <= b:
            a, b = math.sqrt(max(a, 0)), math.sqrt(b)
            return x + (y - x) * (math.sqrt(kl) - a) / (b - a) if b > a else y
    return None


def table(rows):
    """(header, lines): gold at KLs as mean over seeds, and the difference to DPO, paired by seed, with its 95% interval.

    A cell is "-" where not all seeds get that far: those that do would be a selection. And where a seed's first snapshot is
    beyond: there nothing was measured.
    """
    found, lines = curves(rows), []
    base = next((seeds for (method, _), seeds in found.items() if method == "dpo"), {})
    for (method, strength), seeds in found.items():
        cells = []
        for level in LEVELS:
            there = {seed: at_kl(points, level) for seed, points in seeds.items()}
            if None in there.values():
                cells.append("-")
                continue
            cell = f"{statistics.fmean(there.values()):+.2f}"
            gaps = [there[seed] - other for seed in there if (other := at_kl(base.get(seed, []), level)) is not None]
            if seeds is not base and len(gaps) == len(there) and len(gaps) in T:
                half, mean = T[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps)), statistics.fmean(gaps)
                cell += f" ({mean:+.2f} ± {half:.2f}{'' if abs(mean) > half else ', no difference shown'})"
            cells.append(cell)
        lines.append((method, strength, len(seeds), *cells))
    return ("method", "strength", "seeds", *(f"gold at {level:g} nats" for level in LEVELS)), lines


def draw(rows, start, lines, file):
    """Gold and length against KL: one colour for each method, one curve for each strength and seed; lines: best-of-n."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows))
    for axis, what in zip(axes, ("gold", "tokens"), strict=True):
        told = set()
        for (method, _), seeds in curves(rows, what).items():
            colour = pyplot.cm.tab10.colors[names.index(method)]
            for points in seeds.values():
                label = None if method in told else method
                line = zip((0.0, start[what]), *points, strict=True)
                axis.plot(*line, ".-", color=colour, alpha=0.5, linewidth=1, label=label)
                told.add(method)
        axis.axhline(start[what], color="grey", linewidth=0.8)
        axis.set(xlabel="KL from the start, nats per answer", ylabel=f"{what} per answer", xscale="symlog")
        axis.grid(alpha=0.3)
    for (name, line), style in zip(lines.items(), ("k--", "k:"), strict=False):
        axes[0].plot([row["kl"] for row in line], [row["gold"] for row in line], style, label=name)
    axes[0].legend(fontsize="small", ncols=2)
    save_figure(figure, file)


def flags_of(args, pairs, method, flags, seed, run):
    """The command line of one training: 16 pairs per step (KTO: their 32 answers), a checkpoint for each snapshot."""
    size = 32 if method == "kto" else 16
    every = max(1, args.steps // args.snapshots)
    how = {
        "model": args.model, "data": pairs, "seed": seed, "output_dir": run, "max_steps": args.steps,
        "learning_rate": args.learning_rate, "warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup",
        "save_steps": every, "save_total_limit": 99, "per_device_train_batch_size": size,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": "false", "quantization": "none",
        "eval_strategy": "no", "eval_rows": 16, "show_answers": 0,
    }  # fmt: skip
    return [str(each) for name, value in how.items() for each in (f"--{name}", value)] + [*flags, "--reuse"]


def main(argv=None) -> Path:
    args, began = parse(__file__, DEFAULTS, DEMO, Args, argv=argv), time.time()
    if wrong := [each for each in args.methods if each not in STRENGTHS]:
        raise SystemExit(f"--methods {wrong[0]}: known are {', '.join(STRENGTHS)}.")
    folder = Path(args.out).expanduser() if args.out else output_dir() / "compare"
    file = Path(args.rlhf).expanduser() / "pairs.jsonl" if args.rlhf else folder / "pairs.jsonl"
    if args.rlhf and not file.is_file():
        raise SystemExit(f"--rlhf {args.rlhf}: no pairs.jsonl in it. Give the folder that rlhf_ppo/compare.py named.")
    path = resolve_model(args.model)
    folder.mkdir(parents=True, exist_ok=True)
    device.decide_backend("hf")
    import torch
    from peft import LoraConfig, get_peft_model

    import pairs
    import watch
    from common import adapters

    tokenizer, log = models.load_tokenizer(path), folder / "compare.jsonl"

    def fresh():
        return models.load_base(path, "hf", None, device.dtype())

    def measured(model):
        torch.manual_seed(args.seed)
        size = 128 if torch.cuda.is_available() else 16
        made = watch.sampled(model, tokenizer, many, args.max_new_tokens, pairs.head_of(model.get_base_model()), size)
        return watch.facts_of(made), [each["text"] for each in made]

    idle = LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["q_proj"])  # so that there is an adapter to turn off
    model = get_peft_model(fresh(), idle).eval()
    if not file.exists():
        torch.manual_seed(args.seed)
        make_pairs(args, model, tokenizer, file)
    usual = DataArgs()  # the split that the four scripts make: what is measured on here, they hold out
    held = split(read_rows(file)[0], usual.eval_ratio, usual.split_seed)[1]
    many = [ids for ids in prompt_ids(tokenizer, held) for _ in range(args.n)]
    start, texts = measured(model)
    lines = {"best of n by gold": best_of(texts, args.n)}
    del model

    def points():
        found = [json.loads(each) for each in log.read_text("utf-8").splitlines()] if log.exists() else []
        return sorted(found, key=lambda row: (list(STRENGTHS).index(row["method"]), row["seed"]))

    def write():
        rows, theirs = points(), read_json(Path(args.rlhf) / "compare.json") if args.rlhf else {}
        for row in theirs.get("rows", []):
            if row["method"] != "sft":
                rows.append(row | dict(strength="", step=row["update"], tokens=row["length"]))
        if theirs.get("best_of_n"):
            lines["best of n by reward model"] = theirs["best_of_n"]
        found = dict(start=start, best_of_n=lines, rows=rows, device=device.name(), arguments=vars(args))
        write_json(folder / "compare.json", found)
        draw(rows, start, lines, folder / "compare.png")
        print(f"\n{len(held)} held-out prompts, {args.n} answers each. Start: gold {start['gold']:+.2f}", end="")
        print(f" ± {start['gold_error']:.2f}, {start['tokens']:.1f} tokens\n{text_table(*table(rows))}")
        for name, line in lines.items():
            print(f"{name}: " + ", ".join(f"n {r['n']}: {r['kl']:.2f} nats, gold {r['gold']:+.2f}" for r in line))

    done, longest = {(row["method"], row["strength"], row["seed"]) for row in points()}, 0.0
    for seed, method in itertools.product(range(args.seed, args.seed + args.seeds), args.methods):
        script, strengths = STRENGTHS[method]
        for flags in strengths if args.sweep else strengths[:1]:
            key, at = (method, " ".join(flags).removeprefix("--"), seed), time.time()
            if key in done:
                continue
            if args.seconds and at - began + 1.2 * longest > args.seconds:
                print("--seconds is reached: the same command goes on")
                write()
                return folder
            run = folder / "runs" / "-".join(map(str, key)).replace(" ", "")
            script.main(flags_of(args, file, method, flags, seed, run))
            rows = []
            for checkpoint in run.glob("checkpoint-*"):
                found, _ = measured(adapters.attach(fresh(), checkpoint).eval())
                step = int(checkpoint.name.split("-")[1])
                rows.append(dict(method=method, strength=key[1], seed=seed, step=step) | found)
            with log.open("a", encoding="utf-8") as stream:  # in one piece: others may be appending, too
                stream.write("".join(json.dumps(row) + "\n" for row in rows))
            last = max(rows, key=lambda row: row["step"])
            print(f"{method} {key[1]} seed {seed}: KL {last['kl']:.2f}, gold {last['gold']:+.2f}", flush=True)
            device.empty_cache()
            longest = max(longest, time.time() - at)
    write()
    return folder


if __name__ == "__main__":
    main()
