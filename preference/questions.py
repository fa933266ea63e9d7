"""Three questions about preference training, answered by runs: why do both fall, why is accuracy 1.0, why longer answers?

    python questions.py --both RUN [RUN ...] --longer RUN [RUN ...] --out figures/questions.png

Left: held-out log p(y|x) of the chosen and the rejected sides, less what it was at first, one pair of lines for each run of
--both. Middle: the same runs' accuracy on the pairs that they train on and on held-out ones. Right: words per sampled answer
before and after each run of --longer. All of it is read from metrics.jsonl and run.json; nothing is computed again.
"""

import argparse
import json
from pathlib import Path

from common.files import save_figure

NAMES = {"dpo": "DPO", "orpo": "ORPO", "simpo": "SimPO", "kto": "KTO"}
COLOURS = {"chosen": "#3b6ea8", "rejected": "#c8553d", "training": "#9aa5b1", "held out": "#3b6ea8"}


def read(folder):
    """(logs, record) of a run's folder. Stops where one of the files is not there."""
    folder = Path(folder).expanduser()
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logs, record = map(json.loads, lines), json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return list(logs), record | {when: record[when] for when in ("before", "after")}
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{folder} is no finished run of this folder: {error}") from None


def curve(logs, name):
    return [log["step"] for log in logs if name in log], [log[name] for log in logs if name in log]


def smooth(values, over=5):
    """Means of the last `over` values: a step's accuracy is that of a few pairs."""
    return [sum(values[max(0, i - over + 1) : i + 1]) / min(i + 1, over) for i in range(len(values))]


def draw(both, longer, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for number, (logs, _) in enumerate(both):
        for side in ("chosen", "rejected"):
            steps, values = curve(logs, f"eval_logp_{side}")
            label = None if number else side
            axes[0].plot(steps, [each - values[0] for each in values], color=COLOURS[side], alpha=0.8, label=label)
        for name, key in (("training", "accuracy"), ("held out", "eval_accuracy")):
            steps, values = curve(logs, key)
            values = smooth(values) if key == "accuracy" else values
            axes[1].plot(steps, values, color=COLOURS[name], alpha=0.8, label=None if number else name)
    axes[0].axhline(0, color="grey", linewidth=0.8)
    axes[0].set(title="held out: change of log p(y|x), nats", xlabel="optimizer step")
    axes[1].set(title="accuracy: the margin is above 0", xlabel="optimizer step", ylim=(0.3, 1.03))
    methods = {}
    for _, record in longer:
        methods.setdefault(Path(record["command"].split()[0]).stem, []).append(record)
    for place, records in enumerate(methods.values()):
        for record in records:
            words = [record[when]["words"] for when in ("before", "after")]
            axes[2].plot([place - 0.2, place + 0.2], words, "o-", color=COLOURS["chosen"], alpha=0.8)
    axes[2].set(title="words per sampled answer, before and after", xlim=(-0.6, len(methods) - 0.4))
    axes[2].set_xticks(range(len(methods)), [NAMES.get(name, name) for name in methods])
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[1].legend()
    save_figure(figure, file)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--both", nargs="+", required=True, metavar="RUN", help="runs whose curves are drawn")
    parser.add_argument("--longer", nargs="+", required=True, metavar="RUN", help="runs whose answers are counted")
    parser.add_argument("--out", type=Path, required=True, metavar="X.png", help="the figure")
    args = parser.parse_args(argv)
    draw([read(each) for each in args.both], [read(each) for each in args.longer], args.out)
    print(args.out)


if __name__ == "__main__":
    main()
