"""The paper's numbers of runs with many budgets, as text and as a figure; of several trainings together, too.

A run is a dict: kind, name, most, and for each question tokens, right, forced, waits, answered (see evaluate.py).
With x = mean thinking tokens and f = accuracy, over the runs A (arXiv 2501.19393, eqs 1-3):

    control      share of the thinkings that lie within their budget
    scaling      mean over all pairs of runs a < b of (f(b) - f(a)) / (b - a): the average slope of the curve
    performance  max f
"""

import itertools
from pathlib import Path

from common.files import read_json, replace_text, save_figure, text_table

KINDS = {"cap": "thinking cut off", "wait": "ends refused (Wait)", "vote": "majority vote"}


def mean(values):
    return sum(values) / len(values)


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


def points_of(runs, kind):
    """(mean thinking tokens, accuracy in percent) of the runs of a kind; "forcing" is caps and Waits together.

    The largest budget without a Wait is the end of the caps' curve as well.
    """

    def counts(run):
        if kind == "forcing":
            return run["kind"] != "vote"
        return run["kind"] == kind or kind == "cap" and run.get("ignore") == 0

    return [(mean(run["tokens"]), 100 * mean(run["right"])) for run in runs if counts(run)]


def free_run(runs):
    """The run that thinks to its natural end, or None."""
    return next((run for run in runs if run["kind"] == "wait" and run["ignore"] == 0), None)


def bootstrap(one, other, seed, times=10_000):
    """95% interval of mean(other) - mean(one), by drawing the questions again, the same ones for both (paired)."""
    import numpy

    difference = numpy.asarray(other, float) - numpy.asarray(one, float)
    random = numpy.random.default_rng(seed)
    means = [difference[random.integers(len(difference), size=len(difference))].mean() for _ in range(times)]
    return [float(each) for each in numpy.percentile(means, (2.5, 97.5))]


def gains(runs, seed):
    """Each run's difference to the one without forcing, and its 95% interval: name -> [gain, low, high]."""
    free = free_run(runs)
    return {
        run["name"]: [mean(run["right"]) - mean(free["right"]), *bootstrap(free["right"], run["right"], seed)]
        for run in runs
        if free and run is not free
    }


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


# -- text and figure


def gain_cells(gain):
    """Two cells of a table: a difference and its interval; empty where there is none."""
    return (f"{gain[0]:+.1%}", f"[{gain[1]:+.1%}, {gain[2]:+.1%}]") if gain else ("", "")


def as_text(runs, found):
    """Runs and their `summary` as two tables."""
    gain = found.get("gain over no forcing", {})
    cells = [
        (
            run["name"],
            f"{mean(run['tokens']):.1f}",
            *(f"{mean(run[name]):.{digits}%}" for name, digits in (("right", 1), ("forced", 0), ("answered", 0))),
            f"{mean(run['waits']):.1f}",
            *gain_cells(gain.get(run["name"])),
        )
        for run in runs
    ]
    header = ("budget", "thinking tokens", "right", "cut off", "ended", "Waits", "against 0 Waits", "95% interval")
    curves = []
    for kind, label in {"forcing": "caps and Waits", **KINDS}.items():
        if f"performance, {kind}" in found:
            slope = found[f"scaling, {kind}"]
            slope = "none" if slope is None else f"{slope:+.2f}"
            curves.append((label, f"{found[f'performance, {kind}']:.1f}%", slope))
    control = f"control: {found['control']:.1f}%"
    if "control without forcing" in found:
        control += f" (the same caps without forcing: {found['control without forcing']:.1f}%)"
    paper = text_table(("curve", "performance", "scaling, points per 100 tokens"), curves)
    return f"{text_table(header, cells)}\n\n{paper}\n{control}"


def bars(runs, width=40):
    """Accuracy over thinking tokens as text: a bar per run without votes, the shortest thinking first."""
    lines = []
    for run in sorted((run for run in runs if run["kind"] != "vote"), key=lambda run: mean(run["tokens"])):
        right = mean(run["right"])
        bar = "#" * round(width * right)
        lines.append(
            f"{run['name']:>12} {mean(run['tokens']):>7.1f} thinking tokens |{bar:<{width}}| {right:4.0%} right"
        )
    return "\n".join(lines)


def mended(runs):
    """Places of the questions that one Wait made right, and of those that it made wrong."""
    named = {run["name"]: run["right"] for run in runs}
    pairs = list(enumerate(zip(named["0 Waits"], named["1 Waits"], strict=True)))
    return [n for n, pair in pairs if pair == (False, True)], [n for n, pair in pairs if pair == (True, False)]


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
    axis.set(xlabel="mean thinking tokens per question (of a vote: of all samples)", ylabel="right, %", title=title)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, file, dpi=100)


def merge(folders, out, seed):
    """Several trainings in one table and one figure: mean, lowest and highest. seed: of the intervals."""
    results = []
    for folder in folders:
        record = read_json(Path(folder) / "results.json")
        if not record:
            raise SystemExit(f"{folder}: no results.json that can be read. Give folders that evaluate.py wrote.")
        results.append(record)
    names = [run["name"] for run in results[0]["runs"]]
    for folder, record in zip(folders, results, strict=True):
        if [run["name"] for run in record["runs"]] != names:
            raise SystemExit(f"{folder} has other budgets than {folders[0]}: they cannot be merged.")
        if record["facts"]["questions_sha256"] != results[0]["facts"]["questions_sha256"]:
            raise SystemExit(f"{folder} has other questions than {folders[0]}: they cannot be merged.")
    # The questions are the same in all of them: each brings its mean over the trainings.
    together = [
        same[0] | {"right": [mean(each) for each in zip(*(run["right"] for run in same), strict=True)]}
        for same in zip(*(record["runs"] for record in results), strict=True)
    ]
    gain, cells = gains(together, seed), []
    for place, name in enumerate(names):
        rights = [mean(record["runs"][place]["right"]) for record in results]
        tokens = mean([mean(record["runs"][place]["tokens"]) for record in results])
        span = f"{min(rights):.1%} to {max(rights):.1%}"
        cells.append((name, f"{tokens:.1f}", f"{mean(rights):.1%}", span, *gain_cells(gain.get(name))))
    header = ("budget", "tokens", "right", f"lowest to highest of {len(folders)}", "against 0 Waits", "95% interval")
    lines = [text_table(header, cells)]
    for kind in ("forcing", *KINDS):
        slopes = [record["summary"].get(f"scaling, {kind}") for record in results]
        if None not in slopes:
            best = [record["summary"][f"performance, {kind}"] for record in results]
            lines.append(
                f"{kind}: scaling {mean(slopes):+.2f} points per 100 tokens ({min(slopes):+.2f} to {max(slopes):+.2f}), "
                f"performance {mean(best):.1f}% ({min(best):.1f} to {max(best):.1f})"
            )
    print("\n".join(lines))
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "merged.txt", "\n".join(lines) + "\n")
    draw([record["runs"] for record in results], out / "scaling.png", f"{len(folders)} trainings")
    print(f"figure: {out / 'scaling.png'}")
