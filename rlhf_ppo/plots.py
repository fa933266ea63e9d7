"""What compare.py shows: proxy and gold of each method at equal KL, as a table and as a plot.

rows: one dict per snapshot with method, seed, update, kl, proxy, gold; the first one is the SFT model's. best: one dict per n
of best-of-n, with n, kl, proxy, gold.
"""

import statistics

import matplotlib

from common.files import save_figure

matplotlib.use("Agg")
from matplotlib import pyplot

BEYOND = (2.0, 5.0, 7.0, 10.0, 15.0, 20.0, 40.0)  # nats: rows of the table where best-of-n does not reach
COLOURS = {"ppo": "tab:blue", "grpo": "tab:orange"}


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
    """(header, rows of cells): proxy (and gold) of each method at best-of-n's KLs and beyond, mean and spread over seeds."""
    methods = sorted({row["method"] for row in rows if row["method"] != "sft"}, reverse=True)
    sft = next(row for row in rows if row["method"] == "sft")
    names = ["proxy", "gold"] if with_gold else ["proxy"]
    furthest = max(row["kl"] for row in rows)
    kls = sorted({row["kl"] for row in best[1:]} | {kl for kl in BEYOND if kl <= furthest})
    header = ["KL, nats", *(f"{method} {name}" for name in names for method in ("best of n", *methods))]
    lines = [["0 (SFT)", *(f"{sft[name]:.2f}" for name in names for _ in ("best of n", *methods))]]
    for kl in kls:
        cells = []
        for name in names:
            found = [row for row in best if row["kl"] == kl]
            cells.append(f"{found[0][name]:.2f} (n = {found[0]['n']})" if found else "")
            cells += [over_seeds([row for row in rows if row["method"] == method], kl, name) for method in methods]
        lines.append([f"{kl:.2f}", *cells])
    return header, lines


def over_seeds(rows, kl, name):
    """A method's metric at some KL as text, mean ± standard deviation over its seeds; empty where no run reaches it."""
    seeds = {row["seed"] for row in rows}
    at = [at_kl([row for row in rows if row["seed"] == seed], kl, name) for seed in seeds]
    at = [value for value in at if value is not None]
    if not at:
        return ""
    spread = f" ± {statistics.stdev(at):.2f}" if len(at) > 1 else ""
    return f"{statistics.fmean(at):.2f}{spread}" + (f" ({len(at)} runs)" if len(at) < len(seeds) else "")


def markdown(header, lines):
    first, *rest = (f"| {' | '.join(row)} |" for row in (header, *lines))
    return "\n".join([first, "|" + "---|" * len(header), *rest])


def plot(rows, best, file, with_gold):
    """Proxy and gold against the square root of KL, as in the paper: there best-of-n is nearly a straight line."""
    names = ["proxy", "gold"] if with_gold else ["proxy"]
    figure, axes = pyplot.subplots(1, len(names), figsize=(6.5 * len(names), 4.5), layout="constrained", squeeze=False)
    sft = next(row for row in rows if row["method"] == "sft")
    for axis, name in zip(axes[0], names, strict=True):
        for method, seed in sorted({(r["method"], r["seed"]) for r in rows if r["method"] != "sft"}):
            run = [sft, *(row for row in rows if (row["method"], row["seed"]) == (method, seed))]
            points = sorted((max(0.0, row["kl"]) ** 0.5, row[name]) for row in run)
            label = None if axis.get_legend_handles_labels()[1].count(method) else method
            style = dict(color=COLOURS[method], marker="o", markersize=3, alpha=0.8, label=label)
            axis.plot(*zip(*points, strict=True), **style)
        axis.plot([row["kl"] ** 0.5 for row in best], [row[name] for row in best], "k--", label="best of n")
        title = "proxy: what the reward model says" if name == "proxy" else "gold: what it was to stand for"
        axis.set(title=title, xlabel="square root of KL from the SFT model (nats per answer)", ylabel="score")
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, file)
