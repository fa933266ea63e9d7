"""Every variant at its own best learning rate, on equal tokens, several seeds: which differences are left, and what they cost.

    1. lr        a grid of learning rates for each variant, measured on an inner split of the training rows, one seed; where the
                 best is at the grid's edge, the grid goes on
    2. variants  the best rate on all training rows, --seeds times: held-out loss, seconds, memory, size, portable or not
    3. full      every weight, by AdamW and by Flora, in the same way
    4. ranks, targets, batch   LoRA alone: --ranks; all linear layers or some; 4 and 64 rows per step, full beside it
    5. reach     how much of the full update lies where each variant's update lies (reach.py)

Differences to lora are paired by seed and by held-out row and Holm-corrected (paired.py). Where the interval of a difference holds
0 the table says "no difference shown": that is a result, and no ranking. Each run is a line of compare.jsonl; cut off, or ended by
--seconds, the same command goes on; several commands with one --out and other --variants or --only may run side by side, and the last
one reports them all. Results: compare.json, compare.png and the table that is printed.

One GPU:             python compare.py --model HuggingFaceTB/SmolLM2-135M-Instruct --seconds 450
Three minutes, CPU:  python compare.py --demo
"""

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import variants
from common import device, models
from common.cli import arg, parse
from common.files import save_figure, text_table, write_json
from common.hub import resolve_model
from common.paths import DEMO_MODEL, output_dir
from data import DataArgs, load_splits, split
from paired import holm, summary

DEFAULTS = dict(
    model=DEMO_MODEL,
    steps=100,
    size=16,  # rows per step
    seeds=3,
    seed=3407,
    lora_alpha=16,  # for every rank: the first steps are then equally large
    rank=16,
    flora_rank=64,
    most=2,  # a grid whose best is at its edge goes on so many times
)
DEMO = DEFAULTS | dict(steps=20, size=8, seeds=1, eval_rows=96, grid=[])
DEMO |= dict(variants=["lora", "pissa", "loraplus"], only=["variants"])
DEMO_RATES = {"lora": 1e-2, "pissa": 1e-3, "loraplus": 1e-3}  # without a grid: the best of 3e-4 to 1e-2 in these steps
PARTS = ("lr", "variants", "full", "ranks", "targets", "batch", "reach")
FULL = {"adamw": "full, AdamW", "flora": "full, Flora"}


@dataclass
class Args(DataArgs):
    variants: list[str] = arg(list(variants.VARIANTS), "which of them")
    grid: list[float] = arg([3e-4, 1e-3, 3e-3], "learning rates; a tenth of these with every weight")
    ranks: list[int] = arg([1, 4, 16, 64], "of the rank sweep")
    only: list[str] = arg(list(PARTS), "which parts; lr belongs to all")
    eval_rows: int = arg(400, "at most so many of the held-out rows are measured")
    seconds: int = arg(0, "begin no run that would end after so many seconds; 0: do all")
    out: str | None = arg(None, "folder for the results (default: OUTPUT_DIR/lora_variants/compare)")


def job(part, name, lr, seed, **more):
    """What a run is, but for its steps: the key by which a finished one is known again."""
    return dict(part=part, name=name, lr=lr, seed=seed) | dict(rank=16, targets="all", size=16) | more


def key(run):
    return tuple(run[each] for each in ("part", "name", "lr", "seed", "rank", "targets", "size"))


def choose(args, run, name, grid, **more):
    """The best learning rate on the inner split. run(job) -> its numbers. Goes on beyond an edge, `most` times."""
    found = {lr: run(job("lr", name, lr, args.seed, **more))["loss"] for lr in sorted(grid)}
    for _ in range(args.most):
        best = min(found, key=found.get)
        if best not in (min(found), max(found)):
            break
        lr = float(f"{best * (3.16 if best == max(found) else 1 / 3.16):.1e}")
        found[lr] = run(job("lr", name, lr, args.seed, **more))["loss"]
    return min(found, key=found.get)


def plan(args, run, reach):
    """All runs in their order. run(job) -> its numbers, of before or new. Raises StopIteration where the time is up."""
    same, best = dict(rank=args.rank, size=args.size), {}
    seeds = range(args.seed, args.seed + args.seeds)
    for name in args.variants if {"variants", "reach"} & set(args.only) else ():
        best[name] = choose(args, run, name, args.grid, **same) if args.grid else DEMO_RATES.get(name, 1e-3)
    for seed in seeds if "variants" in args.only else ():
        for name in args.variants:
            run(job("variants", name, best[name], seed, **same))
    for name in FULL if {"full", "reach", "batch"} & set(args.only) else ():
        best[name] = choose(args, run, name, [lr / 10 for lr in args.grid], **same)
    if {"ranks", "targets", "batch"} & set(args.only) and "lora" not in best:
        best["lora"] = choose(args, run, "lora", args.grid, **same)
    for seed in seeds if "full" in args.only else ():
        for name in FULL:
            run(job("full", name, best[name], seed, **same))
    for seed in seeds:
        for rank in args.ranks if "ranks" in args.only else ():
            run(job("ranks", "lora", best["lora"], seed, size=args.size, rank=rank))
        for targets in ("all", "attention", "mlp") if "targets" in args.only else ():
            run(job("targets", "lora", best["lora"], seed, targets=targets, **same))
    for size in (4, 64) if "batch" in args.only else ():
        for name in ("lora", "adamw"):
            more = dict(rank=args.rank, size=size)
            lr = choose(args, run, name, [best[name] * each for each in ((0.5, 1), (1, 2, 4))[size > 16]], **more)
            for seed in seeds:
                run(job("batch", name, lr, seed, **more))
    for name in ["adamw", *args.variants] if "reach" in args.only else ():
        if name != "loftq":  # which has a base of its own
            reach(job("reach", name, best[name], args.seed, **same))


def by_name(rows, part):
    """{(name, rank, targets, size): its runs, by seed} of a part; beside other batches stand lora and AdamW of before."""
    found, before = {}, dict(variants="lora", full="adamw") if part == "batch" else {}
    rows = [row for row in rows if row["part"] == part or before.get(row["part"]) == row["name"]]
    for row in sorted(rows, key=lambda row: (row["size"], row["seed"])):
        found.setdefault((row["name"], row["rank"], row["targets"], row["size"]), []).append(row)
    return found


def per_row(run):
    """A run's losses by row, scaled so that their mean is its loss per token."""
    tokens = sum(run["counts"]) / len(run["counts"])
    return [each / tokens for each in run["rows"]]


def base_of(args, part, name):
    """What a run is compared with: lora, or full fine-tuning by AdamW with as many rows per step."""
    return ("adamw" if part in ("full", "batch") else "lora", args.rank, "all", name[3])


def label(name):
    what, rank, targets, size = name
    more = [f"r {rank}"] * (rank != 16 and what not in FULL) + [targets] * (targets != "all")
    return ", ".join([FULL.get(what, what), *more, *[f"{size} rows"] * (size != 16)])


def table(rows, part, base):
    """(header, lines) of a part. base(a key of by_name): that of the runs it is compared with, on the seeds that both have."""
    found, gaps = by_name(rows, part), {}
    for name, runs in found.items():
        other = {run["seed"]: per_row(run) for run in found.get(base(name), ())}
        pairs = [(per_row(run), other[run["seed"]]) for run in runs if run["seed"] in other]
        if name != base(name) and pairs:
            gaps[name] = summary([[x - y for x, y in zip(*pair, strict=True)] for pair in pairs])
    corrected, lines = holm({name: gap["p"] for name, gap in gaps.items()}), []
    for name, runs in found.items():
        own, gap, first, told = summary([per_row(run) for run in runs]), gaps.get(name), runs[0], "-"
        if gap:
            sure = ": one seed, no verdict" if len(runs) == 1 else ": no difference shown" * (corrected[name] >= 0.05)
            told = f"{gap['mean']:+.3f} ± {gap['half']:.3f}, p {corrected[name]:.2g}{sure}"
        peaks = [run["peak_gb"] for run in runs if run["peak_gb"]]
        begin = max(row["init_seconds"] for row in rows if row["name"] == name[0])  # once computed, A and B are kept
        costs = [f"{sum(run['seconds'] for run in runs) / len(runs):.1f}", f"{begin:.1f}"]
        costs += [f"{max(peaks):.2f}" if peaks else "-", f"{first['mb']:.1f}" if "mb" in first else "-"]
        errors = [f"{first[each]:.0e}" if each in first else "-" for each in ("error", "merged")]
        same = [label(name), f"{first['lr']:.1e}", len(runs), f"{own['mean']:.3f} ± {own['half']:.3f}", told, *costs]
        lines.append((*same, *([variants.PORTABLE[name[0]], *errors] if part == "variants" else ())))
    minus = f"minus {FULL.get(base(name)[0], 'lora')}, Holm" if found else ""
    header = ("", "lr", "seeds", "held-out loss", minus, "s", "s to begin", "peak GB", "MB")
    return header + (("portable", "error as W+sBA", "merged") if part == "variants" else ()), lines


def draw(rows, file):
    """Losses with intervals; learning rates; ranks, layers and batches; training losses. Panels that have nothing stay away."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {name: pyplot.cm.tab20.colors[k % 20] for k, name in enumerate([*variants.VARIANTS, *FULL])}
    tried = [row for row in rows if row["part"] == "lr" and row["size"] == 16]
    there = {row["part"] for row in rows}
    groups = [[part for part in each if part in there] for each in (PARTS[1:3], PARTS[3:6])]
    panels = [each for each in groups if each]
    panels += ["lr"] * bool(tried) + ["train"] * ("variants" in there)
    figure, axes = pyplot.subplots(
        -(-len(panels) // 2), 2, figsize=(13, 4 * -(-len(panels) // 2)), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.grid(alpha=0.3)
        if panel == "lr":
            for name in colours:
                points = sorted((row["lr"], row["loss"]) for row in tried if row["name"] == name)
                axis.plot(
                    *zip(*points or [((), ())], strict=True), ".-", color=colours[name], label=name if points else None
                )
            axis.set(title="inner split: loss by learning rate", xscale="log", yscale="log")
        elif panel == "train":
            for name, runs in by_name(rows, "variants").items():
                axis.plot(runs[0]["train"], color=colours[name[0]], label=name[0], linewidth=1)
            axis.set(title="training loss by step, first seed")
        else:
            found = [(name, runs) for part in panel for name, runs in by_name(rows, part).items()]
            for place, (name, runs) in enumerate(found):
                own = summary([per_row(run) for run in runs])
                axis.errorbar(own["mean"], place, xerr=own["half"], fmt="o", color=colours[name[0]], capsize=3)
                axis.plot([run["loss"] for run in runs], [place] * len(runs), "|", color="black", markersize=8)
            axis.set_yticks(range(len(found)), [label(name) for name, _ in found])
            axis.set(title=f"{', '.join(panel)}: held-out loss, 95% intervals; | a seed")
            axis.invert_yaxis()
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="small", ncols=2)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    save_figure(figure, file)


def report(args, rows, start, folder):
    """Print the tables; write compare.json and compare.png."""
    print(
        f"\nheld-out loss before training {start['loss']:.3f}; {start['rows']} rows, {start['tokens']:,} tokens counted"
    )
    for part in PARTS[1:6]:
        if part in {row["part"] for row in rows}:
            print(f"\n{part}\n{text_table(*table(rows, part, partial(base_of, args, part)))}")
    if reached := [row for row in rows if row["part"] == "reach"]:
        from reach import told

        print(f"\nreach\n{told(reached)}")
    write_json(folder / "compare.json", dict(start=start, arguments=vars(args), device=device.name(), rows=rows))
    draw(rows, folder / "compare.png")
    print(f"saved: {folder}")


def main(argv=None) -> Path:
    args, began = parse(__file__, DEFAULTS, DEMO, Args, argv=argv), time.time()
    for flag, known in (("variants", variants.VARIANTS), ("only", PARTS)):
        if wrong := [each for each in getattr(args, flag) if each not in known]:
            raise SystemExit(f"--{flag} {wrong[0]}: known are {', '.join(known)}.")
    train_rows, eval_rows = load_splits(args)
    path, folder = resolve_model(args.model), Path(args.out).expanduser() if args.out else output_dir() / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    device.decide_backend("hf")
    import torch

    import reach
    import trial

    where, args.out = ("cuda" if torch.cuda.is_available() else "cpu"), str(folder)
    if "loftq" in args.variants and not variants.has_four_bits():
        print("loftq is left out: its base is in 4 bits, which needs an NVIDIA GPU and bitsandbytes")
        args.variants = [each for each in args.variants if each != "loftq"]
    tokenizer, log = models.load_tokenizer(path), folder / "compare.jsonl"
    base = models.load_base(path, "hf", None, torch.float32).cpu()
    inner = [trial.encoded(tokenizer, rows) for rows in split(train_rows, 0.1, args.split_seed + 1)]
    whole = [trial.encoded(tokenizer, rows) for rows in (train_rows, eval_rows[: args.eval_rows])]

    def known():
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        return {key(row): row for row in map(json.loads, lines)}

    done, longest, full = known(), 0.0, {}
    made = trial.row_losses(base.to(where), whole[1])
    tokens = sum(count for _, count in made)
    start = dict(loss=sum(each for each, _ in made) / tokens, rows=len(made), tokens=tokens)
    base.cpu()

    def run(job, keep=None):
        nonlocal longest
        again = key(job)[:2] == ("reach", "adamw")  # the others are measured beside its update, which is on no disk
        if key(job) in done and not again:
            return done[key(job)]
        at = time.time()
        if args.seconds and at - began + 1.2 * longest > args.seconds:
            raise StopIteration
        steps = max(1, args.steps * args.size // job["size"])  # equal rows, and so equal tokens
        how = job | dict(steps=steps, measure=job["part"] == "variants" and job["seed"] == args.seed)
        rows, held = inner if job["part"] == "lr" else whole
        found = job | trial.run(how, args, base, path, rows, held, where, keep)
        if not math.isfinite(found["loss"]):
            found["loss"] = 1e9  # a rate at which training falls apart, in a form that JSON has
        if key(job) not in done:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
        done[key(job)], longest = found, max(longest, time.time() - at)
        told = label(key(job)[1:2] + key(job)[4:])
        print(
            f"{job['part']}: {told}, lr {job['lr']:.1e}, seed {job['seed']}: {found['loss']:.3f} in {found['seconds']:.0f} s",
            flush=True,
        )
        return found

    try:
        plan(args, run, lambda job: reach.measure(job, run, base, full, args.ranks))
    except StopIteration:
        print("--seconds is reached: the same command goes on")
    report(args, list(known().values()), start, folder)
    return folder


if __name__ == "__main__":
    main()
