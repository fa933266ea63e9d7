"""SFT, DPO, ORPO, SimPO and KTO against each other at equal KL, with gold.py as the truth; beta swept, several seeds.

A method that moves further gets more of anything, good or bad. So methods are compared where they are equally far from the
model they began with, in nats per sampled answer, and by a reward that is known: gold.py's formula, which none of them sees.

    1. the model answers gold.py's prompts; the best and the worst answer by gold become a pair
    2. each method is trained on the pairs with each of its strengths, --seeds times; its checkpoints are points on a curve
    3. of each checkpoint, on held-out prompts: KL, gold, words; best-of-n by gold itself is the line above which nobody is
    4. compare.json, a table at a few KLs with differences to DPO (paired by seed, 95% interval by Student's t), compare.png

SFT is ORPO with --weight 0: the chosen answers alone. --rlhf FILE adds PPO and GRPO from a compare.json of rlhf_ppo/. The same
command goes on where it was cut off; what was measured is in compare.jsonl. --seconds N ends in time, with what there is.

One GPU:            python compare.py --model Qwen/Qwen2.5-0.5B-Instruct --seconds 450
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
from common.files import save_figure, text_table, write_json, write_lines
from common.hub import resolve_model
from common.paths import DEMO_MODEL, output_dir
from common.rows import text_fault
from gold import gold, prompts
from prompt import prompt_ids

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    prompts=480,  # made by gold.py, a tenth of them held out
    answers=8,  # sampled for each prompt
    max_new_tokens=64,
    steps=60,  # optimizer steps of 16 pairs
    snapshots=4,  # of each run, along the way
    learning_rate=1e-4,  # high: the point is to go far
    seeds=3,
    seed=3407,
    n=16,  # best-of-n, up to
)
DEMO = DEFAULTS | dict(model=DEMO_MODEL, prompts=40, answers=4, max_new_tokens=24, steps=4, snapshots=2)
DEMO |= dict(learning_rate=1e-3, seeds=2, n=4, sweep=False)
# Method -> script, and the flags of each strength. The first is what the method's curve in the table is made of.
STRENGTHS = {
    "sft": (orpo, [("--weight", "0")]),
    "dpo": (dpo, [("--beta", "0.1"), ("--beta", "0.03"), ("--beta", "0.3")]),
    "orpo": (orpo, [("--weight", "0.5"), ("--weight", "2")]),
    "simpo": (simpo, [("--beta", "2"), ("--beta", "10")]),
    "kto": (kto, [("--beta", "0.1"), ("--beta", "0.3")]),
}
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t at 95%, by the number of seeds


@dataclass
class Args:
    methods: list[str] = arg(list(STRENGTHS), "which of sft, dpo, orpo, simpo, kto are trained")
    sweep: bool = arg(True, "each method with all its strengths; false: with the first")
    rlhf: str | None = arg(None, "a compare.json of rlhf_ppo/compare.py: PPO and GRPO beside them")
    seconds: int = arg(0, "begin no run that would end after so many seconds; 0: do all")
    out: str | None = arg(None, "folder for results and runs (default: OUTPUT_DIR/preference/compare)")


def make_pairs(args, model, tokenizer, folder):
    """pairs.jsonl: the best and the worst by gold of `answers` answers to each prompt. Returns the held-out prompts."""
    from common.answers import generate
    from common.speed import graph

    talks = prompts(args.prompts, args.seed)
    held, train = talks[: max(4, args.prompts // 10)], talks[max(4, args.prompts // 10) :]
    file = folder / "pairs.jsonl"
    if file.exists():
        return held
    many = [ids for ids in prompt_ids(tokenizer, [{"prompt": talk} for talk in train]) for _ in range(args.answers)]
    how = dict(temperature=1.0, top_k=0, top_p=1.0, decode=graph.decode)
    texts, lines = generate(model, tokenizer, many, args.max_new_tokens, 128, **how), []
    for i, talk in enumerate(train):
        mine = texts[i * args.answers : (i + 1) * args.answers]
        ranked = sorted((text for text in mine if text and not text_fault(text)), key=gold)
        if len(ranked) > 1 and gold(ranked[-1]) > gold(ranked[0]):
            lines.append({"prompt": talk, "chosen": ranked[-1], "rejected": ranked[0]})
    write_lines(file, lines)
    return held


def best_of(made, n):
    """[{n, kl, gold}] of best-of-n by gold, over all draws out of each prompt's answers; KL by its closed form."""
    rows = []
    for size in (2**k for k in range(n.bit_length()) if 2**k <= n):
        total, best = math.comb(n, size), []
        for group in made:
            order = sorted(map(gold, group), reverse=True)
            best.append(sum(math.comb(n - k - 1, size - 1) / total * each for k, each in enumerate(order)))
        rows.append(dict(n=size, kl=math.log(size) - (size - 1) / size, gold=statistics.fmean(best)))
    return rows


def at_kl(points, kl):
    """Gold at a KL, between the two nearest points of a curve [(kl, gold)]; None beyond its end."""
    points = sorted(points)
    for (a, x), (b, y) in itertools.pairwise(points):
        if a <= kl <= b:
            return x + (y - x) * (kl - a) / (b - a) if b > a else y
    return None


def table(rows, start, levels):
    """(header, lines): gold at KLs as mean over seeds, and the difference to DPO, paired by seed, with its 95% interval."""
    curves = {}
    for row in rows:
        curves.setdefault((row["method"], row["strength"]), {}).setdefault(row["seed"], [(0.0, start)]).append(
            (row["kl"], row["gold"])
        )
    base, lines = next((curve for (method, _), curve in curves.items() if method == "dpo"), {}), []
    for (method, strength), seeds in curves.items():
        cells = []
        for level in levels:
            found = {seed: at_kl(points, level) for seed, points in seeds.items()}
            there = [each for each in found.values() if each is not None]
            if not there or len(there) < len(found):
                cells.append("-")
                continue
            pairs = [(found[seed], at_kl(base[seed], level)) for seed in found if seed in base]
            gaps = [one - two for one, two in pairs if two is not None]
            cell = f"{statistics.fmean(there):+.2f}"
            if method != "dpo" and len(gaps) in T:
                half = T[len(gaps)] * statistics.stdev(gaps) / math.sqrt(len(gaps))
                mean = statistics.fmean(gaps)
                cell += f" ({mean:+.2f} ± {half:.2f}{'' if abs(mean) > half else ', not told apart'})"
            cells.append(cell)
        lines.append((method, strength, len(seeds), *cells))
    return ("method", "strength", "seeds", *(f"gold at KL {level:g}" for level in levels)), lines


def draw(rows, start, line, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows))
    for name, colour in zip(names, pyplot.cm.tab10.colors, strict=False):
        for number, key in enumerate(dict.fromkeys((r["strength"], r["seed"]) for r in rows if r["method"] == name)):
            mine = [row for row in rows if (row["method"], row["strength"], row["seed"]) == (name, *key)]
            for axis, what in zip(axes, ("gold", "words"), strict=True):
                kls = [row["kl"] for row in mine]
                axis.plot(
                    kls, [row[what] for row in mine], ".-", color=colour, alpha=0.6, label=None if number else name
                )
    axes[0].plot([row["kl"] for row in line], [row["gold"] for row in line], "k--", label="best-of-n by gold")
    axes[0].axhline(start["gold"], color="grey", linewidth=0.8)
    axes[1].axhline(start["words"], color="grey", linewidth=0.8)
    for axis, what in zip(axes, ("gold reward", "words per answer"), strict=True):
        axis.set(xlabel="KL from the start, nats per answer", ylabel=what)
        axis.grid(alpha=0.3)
    axes[0].legend()
    save_figure(figure, file)


def main(argv=None) -> Path:
    args, began = parse(__file__, DEFAULTS, DEMO, Args, argv=argv), time.time()
    if wrong := [each for each in args.methods if each not in STRENGTHS]:
        raise SystemExit(f"--methods {wrong[0]}: known are {', '.join(STRENGTHS)}.")
    path = resolve_model(args.model)
    folder = Path(args.out).expanduser() if args.out else output_dir() / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    device.decide_backend("hf")
    import torch
    from peft import LoraConfig, get_peft_model

    import pairs
    import watch
    from common import adapters

    torch.manual_seed(args.seed)
    tokenizer = models.load_tokenizer(path)

    def fresh():
        return models.load_base(path, "hf", None, device.dtype())

    idle = LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["q_proj"])  # so that there is an adapter to turn off
    model = get_peft_model(fresh(), idle).eval()
    held = make_pairs(args, model, tokenizer, folder)
    asked = prompt_ids(tokenizer, [{"prompt": talk} for talk in held])
    many = [ids for ids in asked for _ in range(args.n)]

    def measure(model):
        torch.manual_seed(args.seed)
        head = pairs.head_of(model.get_base_model())
        return watch.sampled(
            model, tokenizer, many, args.max_new_tokens, head, 128 if torch.cuda.is_available() else 16
        )

    made = measure(model)
    start, texts = watch.facts_of(made), [each["text"] for each in made]
    line = best_of([texts[i : i + args.n] for i in range(0, len(texts), args.n)], args.n)
    log, levels = folder / "compare.jsonl", (0.5, 1, 2, 4, 8)
    rows = [json.loads(each) for each in log.read_text().splitlines()] if log.exists() else []
    del model

    def write():
        others = []
        if args.rlhf:
            found = json.loads(Path(args.rlhf).read_text(encoding="utf-8"))
            found = found.get("rows", found.get("points", [])) if isinstance(found, dict) else found
            others = [
                dict(method=r["method"], strength="", seed=r["seed"], kl=r["kl"], gold=r["gold"], words=r["length"])
                for r in found
            ]
        write_json(
            folder / "compare.json",
            dict(start=start, best_of_n=line, rows=rows, device=device.name(), arguments=vars(args)),
        )
        draw(rows + others, start, line, folder / "compare.png")
        text = text_table(*table(rows + others, start["gold"], levels))
        best = ", ".join(f"n {each['n']}: KL {each['kl']:.2f}, gold {each['gold']:+.2f}" for each in line)
        return f"{text}\nstart: gold {start['gold']:+.2f}, {start['words']:.1f} words. best of n by gold: {best}"

    longest = 0.0
    for seed, method in itertools.product(range(args.seed, args.seed + args.seeds), args.methods):
        script, strengths = STRENGTHS[method]
        for flags in strengths if args.sweep else strengths[:1]:
            strength = " ".join(flags).removeprefix("--")
            done = [row for row in rows if (row["method"], row["strength"], row["seed"]) == (method, strength, seed)]
            if len(done) >= args.snapshots:
                continue
            if args.seconds and time.time() - began + 1.2 * longest > args.seconds:
                print("--seconds is reached: the same command goes on")
                print(write())
                return folder
            at, every = time.time(), max(1, args.steps // args.snapshots)
            mine = [
                "--model",
                args.model,
                "--data",
                folder / "pairs.jsonl",
                "--seed",
                seed,
                "--quantization",
                "none",
                *flags,
            ]
            mine += [
                "--max_steps",
                args.steps,
                "--learning_rate",
                args.learning_rate,
                "--save_steps",
                every,
                "--save_total_limit",
                99,
            ]
            mine += ["--eval_strategy", "no", "--show_answers", 0, "--gradient_checkpointing", "false", "--reuse"]
            size = 32 if method == "kto" else 16
            mine += ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", 1, "--eval_rows", 16]
            mine += [
                "--output_dir",
                folder / "runs" / f"{method}-{strength.replace(' ', '')}-{seed}",
                "--warmup_steps",
                2,
            ]
            run = script.main([str(each) for each in mine])
            rows[:] = [row for row in rows if row not in done]
            for checkpoint in sorted(run.glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1])):
                found = watch.facts_of(measure(adapters.attach(fresh(), checkpoint).eval()))
                rows.append(
                    dict(method=method, strength=strength, seed=seed, step=int(checkpoint.name.split("-")[1])) | found
                )
                print(
                    f"{method} {strength} seed {seed} {checkpoint.name}: KL {found['kl']:.2f}, gold {found['gold']:+.2f}",
                    flush=True,
                )
            write_lines(log, rows)
            device.empty_cache()
            longest = max(longest, time.time() - at)
            write()
    print(write())
    return folder


if __name__ == "__main__":
    main()
