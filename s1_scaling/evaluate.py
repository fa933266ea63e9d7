"""Does accuracy rise with thinking? The same questions with many budgets, against votes at equal total tokens.

Sequential: caps on thinking, and ends of thinking refused 0, 1, 2 and 4 times. Parallel: k sampled answers, the most
frequent one counts, and all of their tokens. With x = mean thinking tokens and f = accuracy, over the runs A (paper, eqs 1-3):

    control      share of the thinkings that lie within their budget
    scaling      mean over all pairs of runs a < b of (f(b) - f(a)) / (b - a): the average slope of the curve
    performance  max f

Results: results.json, predictions.jsonl, scaling.png. Several trainings (seeds) in one figure: --merge.

Newest run:      python evaluate.py
An adapter:      python evaluate.py --adapter outputs/s1_scaling/20261122-101500 --data DIR --limit 200
GSM8K:           python evaluate.py --data openai/gsm8k --max_think 1024
Three seeds:     python evaluate.py --merge DIR1/evaluation_results DIR2/evaluation_results --out figures
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budget import Budget, answer_of, check_context, force, hf_engine, marks, prompt_ids, vllm_engine
from common.cli import arg, parse
from common.models import ModelArgs, load_adapter, load_tokenizer, need_vllm
from common.paths import resolve_model
from common.runs import latest_adapter, read_record, replace_text, write_json
from data import clean, format_report, is_right, load, normalise, read_splits, short_answer
from infer import context_of

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)
KINDS = {"cap": "thinking cut off", "wait": "ends refused (Wait)", "vote": "majority vote"}


@dataclass
class Args:
    data: str | None = arg(
        None, "test file, folder with one, or hub name (default: what the run held out of its own --data)"
    )
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int | None = arg(None, "only the first N test questions")
    caps: list[str] = arg(
        ["0", "8", "16", "32", "64", "128", "256", "512"], "budgets without a Wait, below --max_think"
    )
    ignores: list[str] = arg(["0", "1", "2", "4"], "numbers of refused ends, each with --max_think")
    votes: list[str] = arg(["1", "2", "4", "8"], "samples that vote; 0: no vote")
    max_think: int = arg(1024, "the largest budget")
    max_answer: int = arg(32, "most tokens of an answer")
    temperature: float = arg(0.7, "of the samples that vote; everything else is greedy")
    batch_size: int = arg(256, "answers written at once")
    engine: Literal["hf", "vllm"] = arg("hf", "vllm must be installed; not run by us")
    seed: int = arg(42, "of the samples and of the intervals")
    merge: list[str] | None = arg(None, "result folders of several trainings: their mean, in one figure")


# -- the paper's three numbers


def control(thinkings):
    """Share of (tokens, least, most) with least <= tokens <= most, in percent."""
    return 100 * sum(least <= tokens <= most for tokens, least, most in thinkings) / len(thinkings)


def scaling(points):
    """Mean slope over all pairs of (tokens, accuracy in percent), in points per 100 tokens. None: fewer than two x."""
    slopes = [(g - f) / (b - a) for (a, f), (b, g) in itertools.combinations(sorted(points), 2) if b > a]
    return 100 * sum(slopes) / len(slopes) if slopes else None


def performance(points):
    return max(accuracy for _, accuracy in points)


# -- runs


def vote(answers):
    """The most frequent answer, the earliest of equally frequent ones. An empty one is no vote."""
    counts = Counter(answer for answer in answers if answer)
    return counts.most_common(1)[0][0] if counts else ""


def bootstrap(one, other, seed, times=10_000):
    """95% interval of mean(other) - mean(one), by drawing the questions again, the same ones for both (paired)."""
    import numpy

    difference = numpy.asarray(other, float) - numpy.asarray(one, float)
    random = numpy.random.default_rng(seed)
    means = [difference[random.integers(len(difference), size=len(difference))].mean() for _ in range(times)]
    return [float(each) for each in numpy.percentile(means, (2.5, 97.5))]


def numbers(text, name, least=0):
    try:
        found = sorted({int(each) for each in text})
    except ValueError:
        found = [-1]
    if found[0] < least:
        raise SystemExit(f"--{name} {' '.join(text)}: takes whole numbers from {least} on.")
    return found


def measure(gen_of, tokenizer, mark, rows, args):
    """One dict a run: kind, budget, and lists with a place for each question.

    gen_of(temperature) -> gen. Runs: caps, refused ends, votes. tokens of a vote are those of all its samples.
    """
    prompts = prompt_ids(tokenizer, [row["question"] for row in rows])
    golds = [row["answer"] for row in rows]

    def run(kind, name, max_think, num_ignore):
        made = force(greedy, prompts, mark, Budget(max_think, num_ignore, args.max_answer))
        return {
            "kind": kind, "name": name, "most": max_think, "ignore": num_ignore,
            "tokens": [len(row["think"]) for row in made],
            "right": [is_right(answer_of(row, tokenizer), gold) for row, gold in zip(made, golds, strict=True)],
            "forced": [row["reason"] == "length" for row in made], "waits": [len(row["waits"]) for row in made],
            "answered": [row["ended"] for row in made],
            "texts": [tokenizer.decode(row["think"]) + " => " + answer_of(row, tokenizer) for row in made],
        }  # fmt: skip

    greedy, runs = gen_of(0.0), []
    for cap in numbers(args.caps, "caps"):
        if cap < args.max_think:
            runs.append(run("cap", f"at most {cap}", cap, 0))
            print(line(runs[-1]), flush=True)
    for ignore in numbers(args.ignores, "ignores"):
        runs.append(run("wait", f"{ignore} Waits", args.max_think, ignore))
        print(line(runs[-1]), flush=True)
    most = numbers(args.votes, "votes")[-1]
    if most:
        many = [prompt for prompt in prompts for _ in range(most)]
        made = force(gen_of(args.temperature), many, mark, Budget(args.max_think, 0, args.max_answer))
        for k in [k for k in numbers(args.votes, "votes") if k]:
            mine = [made[n * most : n * most + k] for n in range(len(rows))]
            short = [
                [short_answer(answer_of(row, tokenizer), gold) for row in part]
                for part, gold in zip(mine, golds, strict=True)
            ]
            chosen = [vote(answers) for answers in short]
            runs.append({
                "kind": "vote", "name": f"{k} votes", "most": args.max_think * k, "votes": k,
                "tokens": [sum(len(row["think"]) for row in part) for part in mine],
                "right": [
                    bool(answer) and answer == normalise(gold) for answer, gold in zip(chosen, golds, strict=True)
                ],
                "forced": [row["reason"] == "length" for part in mine for row in part], "waits": [0],
                "answered": [row["ended"] for part in mine for row in part], "texts": [" | ".join(s) for s in short],
            })  # fmt: skip
            print(line(runs[-1]), flush=True)
    return runs


def mean(values):
    return sum(values) / len(values)


def line(run):
    return (
        f"{run['name']:<14} {mean(run['tokens']):>7.1f} thinking tokens  {mean(run['right']):>6.1%} right  "
        f"{mean(run['forced']):>5.0%} cut off  {mean(run['waits']):.1f} Waits  {mean(run['answered']):>5.0%} ended"
    )


def points_of(runs, kind):
    """(mean thinking tokens, accuracy in percent) of the runs of a kind. The largest budget without a Wait is the end of
    the caps' curve as well."""
    return [
        (mean(run["tokens"]), 100 * mean(run["right"]))
        for run in runs
        if run["kind"] == kind
        or kind == "cap"
        and run.get("ignore") == 0
        or kind == "forcing"
        and run["kind"] != "vote"
    ]


def free_run(runs):
    """The run that thinks to its natural end, or None."""
    return next((run for run in runs if run["kind"] == "wait" and run["ignore"] == 0), None)


def gains(runs, seed):
    """Each run's difference to the one without forcing, and its 95% interval: name -> [gain, low, high]."""
    free = free_run(runs)
    return {
        run["name"]: [mean(run["right"]) - mean(free["right"]), *bootstrap(free["right"], run["right"], seed)]
        for run in runs
        if free and run is not free
    }


def gain_lines(found):
    return [
        f"{name:<14} against 0 Waits: {gain:+.1%} [{low:+.1%}, {high:+.1%}]"
        for name, (gain, low, high) in found.items()
    ]


def summary(runs, rows, seed):
    """The paper's numbers, the difference of each run to the one without forcing, and accuracy by domain."""
    free = free_run(runs)
    forced = [run for run in runs if run["kind"] != "vote"]
    found = {"control": control([(n, 0, run["most"]) for run in forced for n in run["tokens"]])}
    if free:
        # The same caps, had nobody enforced them: how long the model thinks by itself.
        caps = [run["most"] for run in forced if run["kind"] == "cap"]
        if caps:
            found["control without forcing"] = control([(n, 0, cap) for cap in caps for n in free["tokens"]])
        found["gain over no forcing"] = gains(runs, seed)
        domains = sorted({row.get("domain", "all") for row in rows})
        picks = {name: [n for n, row in enumerate(rows) if row.get("domain", "all") == name] for name in domains}
        found["by domain"] = {
            run["name"]: {name: mean([run["right"][n] for n in pick]) for name, pick in picks.items()} for run in runs
        }
    for kind in ("forcing", *KINDS):
        points = points_of(runs, kind)
        if points:
            found[f"scaling, {kind}"] = scaling(points)
            found[f"performance, {kind}"] = performance(points)
    return found


def as_text(found):
    lines = [f"control         {found['control']:>8.1f}%"]
    if "control without forcing" in found:
        lines[0] += f"   (the same caps without forcing: {found['control without forcing']:.1f}%)"
    for kind, label in {"forcing": "caps and Waits", **KINDS}.items():
        if f"performance, {kind}" in found:
            slope = found[f"scaling, {kind}"]
            slope = "no slope" if slope is None else f"{slope:+.2f} points per 100 tokens"
            lines.append(f"{label:<22} performance {found[f'performance, {kind}']:5.1f}%   scaling {slope}")
    lines += gain_lines(found.get("gain over no forcing", {}))
    return "\n".join(lines)


# -- figures


def draw(results, file, title):
    """scaling.png: accuracy over thinking tokens; of several results the mean in bold, each one thin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for colour, (kind, label) in enumerate(KINDS.items()):
        curves = [sorted(points_of(runs, kind)) for runs in results]
        if not curves[0]:
            continue
        for curve in curves if len(curves) > 1 else ():
            axis.plot(*zip(*curve, strict=True), color=f"C{colour}", alpha=0.25, linewidth=1)
        middle = [tuple(map(mean, zip(*points, strict=True))) for points in zip(*curves, strict=True)]
        axis.plot(*zip(*middle, strict=True), color=f"C{colour}", marker="o", markersize=4, label=label)
    axis.set_xscale("symlog", linthresh=8)
    axis.set(xlabel="mean thinking tokens a question (of a vote: of all samples)", ylabel="right, %", title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    new = file.with_name(f".{file.name}.new")
    figure.savefig(new, format="png", dpi=100)
    pyplot.close(figure)
    os.replace(new, file)


def merge(folders, out):
    """Several trainings in one table and one figure: mean, lowest and highest."""
    results = []
    for folder in folders:
        record = read_record(Path(folder), "results.json")
        if not record:
            raise SystemExit(f"{folder}: no results.json that can be read. Give folders that evaluate.py wrote.")
        results.append(record)
    names = [run["name"] for run in results[0]["runs"]]
    for folder, record in zip(folders, results, strict=True):
        if [run["name"] for run in record["runs"]] != names:
            raise SystemExit(f"{folder} has other budgets than {folders[0]}: they cannot be merged.")
        if record["facts"]["questions_sha256"] != results[0]["facts"]["questions_sha256"]:
            raise SystemExit(f"{folder} has other questions than {folders[0]}: they cannot be merged.")
    out.mkdir(parents=True, exist_ok=True)
    lines = [f"{'budget':<14}{'tokens':>9}{'right':>8}   lowest to highest of {len(folders)}"]
    for place, name in enumerate(names):
        rights = [mean(record["runs"][place]["right"]) for record in results]
        tokens = mean([mean(record["runs"][place]["tokens"]) for record in results])
        lines.append(f"{name:<14}{tokens:>9.1f}{mean(rights):>8.1%}   {min(rights):.1%} to {max(rights):.1%}")
    for kind in ("forcing", *KINDS):
        slopes = [record["summary"].get(f"scaling, {kind}") for record in results]
        if None not in slopes:
            best = [record["summary"][f"performance, {kind}"] for record in results]
            lines.append(
                f"{kind}: scaling {mean(slopes):+.2f} points per 100 tokens ({min(slopes):+.2f} to {max(slopes):+.2f}), "
                f"performance {mean(best):.1f}% ({min(best):.1f} to {max(best):.1f})"
            )
    # The questions are the same in all of them: each brings its mean over the trainings.
    together = [
        same[0] | {"right": [mean(each) for each in zip(*(run["right"] for run in same), strict=True)]}
        for same in zip(*(record["runs"] for record in results), strict=True)
    ]
    lines += gain_lines(gains(together, 42))
    print("\n".join(lines))
    replace_text(out / "merged.txt", "\n".join(lines) + "\n")
    draw([record["runs"] for record in results], out / "scaling.png", f"{len(folders)} trainings")
    print(f"figure: {out / 'scaling.png'}")


def test_rows(data, trained):
    """(rows, where they are from). Of the run's own file its held-out part: the model was trained on the rest."""
    own = trained.get("data")
    if data is None or own and Path(data).expanduser().resolve() == Path(own).expanduser().resolve():
        _, rows, reports = read_splits(own, trained.get("eval_ratio", 0.05), trained.get("split_seed", 42))
        print("\n".join(map(format_report, reports)))
        return rows, str(own or "the run's own data")
    splits = load(data)
    rows, report = clean(splits.get("test", splits.get("train")), data, ("question", "answer"))
    print(format_report(report))
    return rows, data


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    if args.merge:
        return merge(args.merge, Path(args.out or "."))
    for name in ("caps", "ignores", "votes"):
        numbers(getattr(args, name), name)
    if args.engine == "vllm":
        need_vllm()
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    trained = read_record(adapter).get("arguments", {})
    rows, source = test_rows(args.data, trained)
    rows = rows[: args.limit]
    tokenizer = load_tokenizer(adapter)
    mark = marks(tokenizer)
    base = resolve_model(
        model_args.model or json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    prompts = prompt_ids(tokenizer, [row["question"] for row in rows])
    check_context(prompts, Budget(args.max_think, 0, args.max_answer), mark, context_of(base))
    from transformers import set_seed

    set_seed(args.seed)
    if args.engine == "vllm":
        engines = vllm_engine(base, adapter, args.seed)
    else:
        model = load_adapter(adapter, model_args)[0]

        def engines(temperature):
            return hf_engine(model, tokenizer, model_args.backend, args.batch_size, temperature)

    runs = measure(engines, tokenizer, mark, rows, args)
    found = summary(runs, rows, args.seed)
    asked = hashlib.sha256("\n".join(row["question"] for row in rows).encode()).hexdigest()
    facts = {"adapter": str(adapter), "data": source, "questions": len(rows), "questions_sha256": asked}
    facts |= {"max_think": args.max_think, "temperature of votes": args.temperature, "seed": args.seed}
    out = Path(args.out or adapter / "evaluation_results")
    out.mkdir(parents=True, exist_ok=True)
    told = [{name: value for name, value in run.items() if name != "texts"} for run in runs]
    write_json(out / "results.json", {"facts": facts, "summary": found, "runs": told})
    pairs = [
        {"question": row["question"], "gold": row["answer"]} | {run["name"]: run["texts"][n] for run in runs}
        for n, row in enumerate(rows)
    ]
    replace_text(out / "predictions.jsonl", "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    draw([runs], out / "scaling.png", f"{adapter.name}: {len(rows)} questions")
    print(f"{as_text(found)}\nfigure: {out / 'scaling.png'}")


if __name__ == "__main__":
    main()
