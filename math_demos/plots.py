"""One look for the three figures, and one way to save them."""

import os
from pathlib import Path

BLUE, ORANGE, GREEN, RED, GREY = "#2f6fb7", "#e0812c", "#2f9e6e", "#c8403a", "#8a8f98"


def pyplot():
    """matplotlib for files, no screen needed; type large enough for the back row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({
        "font.size": 12, "axes.titlesize": 13, "axes.titleweight": "bold", "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
        "legend.fontsize": 10.5, "lines.linewidth": 2.2, "svg.fonttype": "path", "svg.hashsalt": "math_demos",
    })  # fmt: skip
    return pyplot


def save(figure, folder: Path, name: str):
    """Write name.png and name.svg into `folder`, complete or not at all, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, options in (("png", dict(dpi=110)), ("svg", dict(metadata={"Date": None}))):
        part = folder / f".{name}.{os.getpid()}.{kind}"
        figure.savefig(part, **options)
        part.replace(folder / f"{name}.{kind}")
    print(f"figure: {folder / name}.png and .svg")
