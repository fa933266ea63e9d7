"""What continued pretraining gives and what it costs: three ways, replay swept, the matrices of words trained or not, several seeds.

    chat -> CPT           a model that answers reads the domain, with each share of replay, with and without --embeddings
    base -> SFT           a base learns to answer, and never reads the domain
    base -> CPT -> SFT    it reads the domain first

Each run is one of train.py or sft.py, whose own numbers are taken: perplexity of the domain and of everything else, loss of
held-out answers, share of answers in chat form. compare.jsonl gets a line per run as it ends, compare.json and compare.png are
made of it, and a table: mean over the seeds, and the difference to no replay, paired by seed, with its 95% interval (Student's
t). Cut off, the same command goes on. Without --base the two ways of a base begin with --model, and the table says so.

One GPU:            python compare.py --model demo/SmolLM2-135M-Instruct --seconds 280
Two minutes, CPU:   python compare.py --demo
"""

import contextlib
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import sft
import train
from common import device
from common.cli import arg, parse
from common.files import read_json, save_figure, text_table, write_json
from common.hub import resolve_model
from common.paths import output_dir

HERE = Path(__file__).resolve().parent
DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    data=str(HERE / "sample" / "harbour.jsonl"),
    general=str(HERE / "sample" / "everyday.jsonl"),
    chats=str(HERE / "sample" / "chats.jsonl"),
    epochs=4.0,  # over the domain and its replay
    learning_rate=5e-4,  # high: the point is to see what is lost
    lora_r=64,
    max_length=512,
    batch_size=2,  # sequences per step: some eighty steps
    max_new_tokens=128,
    eval_ratio=0.25,  # many held-out questions, since one of eleven is 9%
    seeds=3,
    seed=3407,
)
DEMO = DEFAULTS | dict(
    model=str(HERE / "miniature" / "chat"), base=str(HERE / "miniature" / "base"), shares=[0.0, 0.1], embeddings=False,
    ways=["chat"], epochs=2.0, learning_rate=train.DEMO["learning_rate"], lora_r=train.DEMO["lora_r"],
    max_length=train.DEMO["max_length"], batch_size=train.DEMO["per_device_train_batch_size"],
    max_new_tokens=train.DEMO["max_new_tokens"], eval_ratio=0.1,
)  # fmt: skip
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t at 95%, by the number of seeds
MEASURES = {
    "data": "domain perplexity",
    "general": "general perplexity",
    "chats": "loss of answers",
    "chat_form": "in chat form",
}


@dataclass
class Args:
    base: str | None = arg(None, "a base model for the two ways that begin with one (default: --model)")
    ways: list[str] = arg(["chat", "base"], "chat: chat -> CPT; base: base -> SFT and base -> CPT -> SFT")
    shares: list[float] = arg([0.0, 0.05, 0.1, 0.25], "of replay")
    embeddings: bool = arg(True, "each share also with the embedding and lm_head trained")
    seconds: int = arg(0, "begin no run that would end after so many seconds; 0: do all")
    out: str | None = arg(None, "folder for results and runs (default: OUTPUT_DIR/continual/compare)")


def plan(args) -> list[tuple]:
    """(way, script, flags, name of the run to start from or None) of every run of a seed, in order."""
    made, base = [], args.base or args.model
    for share in args.shares if "chat" in args.ways else ():
        for words in (False, True) if args.embeddings else (False,):
            made.append((f"chat -> CPT{', words trained' if words else ''}", share, train, args.model,
                         ["--replay", share, "--embeddings", words], None))  # fmt: skip
    if "base" in args.ways:
        share = args.shares[-1]
        made.append(("base -> SFT", 0.0, sft, base, [], None))
        made.append(("base -> CPT", share, train, base, ["--replay", share], None))
        made.append(("base -> CPT -> SFT", share, sft, base, [], "base -> CPT"))
    return made


def flags_of(args, model, seed, run):
    """The command line of one run: every flag that two runs must have in common."""
    how = {
        "model": model, "data": args.data, "general": args.general, "chats": args.chats, "seed": seed, "output_dir": run,
        "max_length": args.max_length, "learning_rate": args.learning_rate, "lora_r": args.lora_r, "lora_alpha": args.lora_r,
        "num_train_epochs": args.epochs, "per_device_train_batch_size": args.batch_size,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": "false", "quantization": "none", "loss_type": "nll",
        "eval_strategy": "no", "save_strategy": "no", "auto": "false", "logging_steps": 10, "max_new_tokens": args.max_new_tokens,
        "show_answers": 1, "eval_ratio": args.eval_ratio,
    }  # fmt: skip
    return [str(each) for name, value in how.items() for each in (f"--{name}", value)] + ["--reuse"]


def interval(one, other):
    """(mean, half of the 95% interval) of the differences of two {seed: value} on the seeds that both have; None for one seed."""
    gaps = [one[seed] - other[seed] for seed in one if seed in other]
    if len(gaps) not in T:
        return None
    return statistics.fmean(gaps), T[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))


def cell(name, values, plain):
    """Mean of {seed: value}, and the difference to `plain`, the same without replay; of perplexities the geometric mean and a
    factor, since one of ten thousand would drown all others."""
    log = name in ("data", "general")
    values, plain = ({seed: math.log(x) if log else x for seed, x in each.items()} for each in (values, plain))
    back, gap = math.exp if log else float, interval(values, plain)
    said = written(name, back(statistics.fmean(values.values())))
    if not gap:
        return said
    mean, half = gap
    shown = "" if abs(mean) > half else ", no difference shown"
    if log:
        return f"{said} (x {back(mean):.2g}, {back(mean - half):.2g} to {back(mean + half):.2g}{shown})"
    return f"{said} ({'+' if mean > 0 else ''}{written(name, mean)} ± {written(name, half)}{shown})"


def table(rows, before):
    """(header, lines): before, and each way and share as mean over its seeds; behind it the difference to share 0 of that way."""
    groups, names = {}, [name for name in MEASURES if name in before]
    for row in rows:
        groups.setdefault((row["way"], row["replay"]), {})[row["seed"]] = row["after"]
    lines = [("before", "", "", *(written(name, before[name]) for name in names))]
    for (way, share), seeds in groups.items():
        plain = groups.get((way, 0.0), {}) if share else {}
        cells = [
            cell(name, *({seed: found[name] for seed, found in each.items()} for each in (seeds, plain)))
            for name in names
        ]
        lines.append((way, f"{share:.0%}", len(seeds), *cells))
    return ("way", "replay", "seeds", *(MEASURES[name] for name in names)), lines


def written(name, value) -> str:
    return f"{value:.0%}" if name == "chat_form" else f"{value:.2f}"


def draw(rows, before, file):
    """Each measure against the share of replay: a colour for each way, a point for each seed, a line through the means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in MEASURES if name in before]
    figure, axes = pyplot.subplots(1, len(names), figsize=(3.4 * len(names), 3.4), layout="constrained", squeeze=False)
    ways = list(dict.fromkeys(row["way"] for row in rows))
    for axis, name in zip(axes[0], names, strict=True):
        for way in ways:
            colour, mine = pyplot.cm.tab10.colors[ways.index(way)], [row for row in rows if row["way"] == way]
            points = sorted((row["replay"], row["after"][name]) for row in mine if name in row["after"])
            means = [
                (share, statistics.fmean(y for x, y in points if x == share))
                for share in sorted({x for x, _ in points})
            ]
            axis.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.4, markersize=4)
            axis.plot(*zip(*means, strict=True), "-", color=colour, label=way)
        axis.axhline(before[name], color="grey", linestyle="--", linewidth=0.8)
        axis.set(title=MEASURES[name], xlabel="share of replay", yscale="linear" if name == "chat_form" else "log")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="x-small")
    save_figure(figure, file)


def main(argv=None) -> Path:
    args, began = parse(__file__, DEFAULTS, DEMO, Args, argv=argv), time.time()
    if wrong := [each for each in args.ways if each not in ("chat", "base")]:
        raise SystemExit(f"--ways {wrong[0]}: known are chat, base.")
    for model in filter(None, (args.model, args.base)):
        resolve_model(model)
    folder = Path(args.out).expanduser() if args.out else output_dir() / "compare"
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    log = folder / "compare.jsonl"
    import measure

    def points():
        return [json.loads(each) for each in log.read_text("utf-8").splitlines()] if log.exists() else []

    done, longest = {(row["way"], row["replay"], row["seed"]) for row in points()}, 0.0
    for seed in range(args.seed, args.seed + args.seeds):
        for way, share, script, model, flags, start in plan(args):
            at = time.time()
            if (way, share, seed) in done:
                continue
            if args.seconds and at - began + 1.3 * longest > args.seconds:
                print("--seconds is reached: the same command goes on")
                return report(args, folder, points())
            names = {
                each: f"{each}-{share}-{seed}".replace(" ", "").replace(">", "") for each in filter(None, (way, start))
            }
            run = folder / "runs" / names[way]
            argv = [*flags_of(args, model, seed, run), *map(str, flags)]
            argv += ["--start", str(folder / "runs" / names[start])] if start else []
            with open(f"{run}.log", "w", encoding="utf-8") as said, contextlib.redirect_stdout(said):
                made = script.main(argv)
            record = read_json(made / "run.json")
            row = dict(
                way=way, replay=share, seed=seed, tokens=record.get("tokens"), seconds=round(time.time() - at, 1)
            )
            row |= {when: measure.numbers(record[when]) for when in ("before", "after")}
            row["answers"] = [record[when].get("answers", [])[:3] for when in ("before", "after")]
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            shown = ", ".join(f"{MEASURES[name]} {written(name, value)}" for name, value in row["after"].items())
            print(f"{row['seconds']:>6} s  {way}, replay {share:.0%}, seed {seed}: {shown}", flush=True)
            device.empty_cache()
            longest = max(longest, time.time() - at)
    return report(args, folder, points())


def report(args, folder, rows) -> Path:
    """Write compare.json and compare.png, print the table and an answer to the same question with and without replay."""
    first = next((row for row in rows if row["way"].startswith("chat")), rows[0] if rows else None)
    if first is None:
        raise SystemExit("no run has ended yet: give more --seconds.")
    write_json(folder / "compare.json", dict(rows=rows, device=device.name(), arguments=vars(args)))
    draw(rows, first["before"], folder / "compare.png")
    print("\n" + text_table(*table(rows, first["before"])))
    if not args.base and "base" in args.ways:
        print("(no --base: the ways of a base began with --model, which can answer already)")
    for row in rows:
        if (
            row["seed"] == args.seed
            and row["way"] == first["way"]
            and row["replay"] in (min(args.shares), max(args.shares))
        ):
            print(
                f"replay {row['replay']:.0%}: {' '.join(row['answers'][1][0].split())[:160] if row['answers'][1] else '-'}"
            )
    print(f"\nwritten: {folder / 'compare.json'}")
    return folder


if __name__ == "__main__":
    main()
