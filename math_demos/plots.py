"""The three figures, in one look, and one way to save them. What they show is computed elsewhere: here is no method."""

import os

import numpy as np

from common.paths import output_dir

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


def save(figure, name: str):
    """Write name.png and name.svg into OUTPUT_DIR/math_demos, complete or not at all, and say where; close the figure."""
    from matplotlib import pyplot

    folder = output_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for kind, options in (("png", dict(dpi=110)), ("svg", dict(metadata={"Date": None}))):
        part = folder / f".{name}.{os.getpid()}.{kind}"
        figure.savefig(part, **options)
        part.replace(folder / f"{name}.{kind}")
    print(f"figure: {folder / name}.png and .svg")
    pyplot.close(figure)


def draw_image(pixels, peak, rebuild, spectrum, energies, table, curves):
    """pixels: (m, n, channels), from 0 to peak. rebuild(k): the image of k layers. spectrum: singular values. energies: label
    -> share that the first k hold, k = 0, 1, .... table: k -> measures. curves: label -> measures, which have their bytes."""
    m, n, channels = pixels.shape
    ks = list(table)
    shown = ks if len(ks) <= 5 else [ks[round(i * (len(ks) - 1) / 4)] for i in range(5)]
    figure = pyplot().figure(figsize=(18, 11), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=(1, 1, 1.15))
    top, middle = (grid[row].subgridspec(1, 1 + len(shown)) for row in (0, 1))

    def picture(spec, image, title, **options):
        axis = figure.add_subplot(spec)
        axis.imshow(image, **options)
        axis.set_title(title, fontsize=12)
        axis.axis("off")
        return axis

    def visible(image):
        image = np.clip(image, 0, peak) / peak
        return dict(X=image[:, :, 0], cmap="gray", vmin=0, vmax=1) if channels == 1 else dict(X=image)

    def show(spec, image, title):
        options = visible(image)
        picture(spec, options.pop("X"), title, **options)

    show(top[0], pixels, f"original {n} x {m}")
    axis = figure.add_subplot(middle[0])
    axis.axis("off")
    axis.text(
        0.5, 0.5, "error\n(mean of channels,\nblue: too dark,\nred: too bright)", ha="center", va="center", fontsize=12
    )
    for column, k in enumerate(shown, 1):
        image = rebuild(k)
        row = table[k]
        show(top[column], image, f"k = {k}: {row['psnr']:.1f} dB, SSIM {row['ssim']:.2f}")
        error = (image - pixels).mean(axis=2) / peak
        picture(middle[column], error, f"{row['bytes'] / 1000:,.0f} kB as float32", cmap="RdBu_r", vmin=-0.2, vmax=0.2)

    bottom = grid[2].subgridspec(1, 3)
    axis = figure.add_subplot(bottom[0])
    full = np.arange(1, len(spectrum) + 1)
    axis.plot(full, spectrum, color=GREY, label="singular values (left)")
    axis.set(yscale="log", xscale="log", xlabel="number, k", ylabel="singular value", title="Spectrum and energy")
    other = axis.twinx()
    for (label, share), color in zip(energies.items(), (BLUE, ORANGE), strict=True):
        other.plot(full, 100 * share[1:], color=color, label=label)
    other.set(ylabel="% of the energy in the first k", ylim=(0, 102))
    other.spines["right"].set_visible(True)
    other.grid(False)
    for name, wide, height in (("float32", 4, 0.02), ("8-bit", 1, 0.14)):
        k = m * n * (2 if peak > 255 else 1) / (wide * (m + n + 1))
        axis.axvline(k, color=RED, linestyle=":", linewidth=1.5)
        text = f"{name} factors: from k = {int(np.ceil(k))}\nlarger than the pixels "
        axis.text(k, height, text, color=RED, fontsize=9.5, ha="right", transform=axis.get_xaxis_transform())
    lines = [*axis.get_lines()[:1], *other.get_lines()]
    other.legend(lines, [line.get_label() for line in lines], loc="center left", fontsize=9.5)

    styles = dict(zip(curves, ((BLUE, "o-"), (GREEN, "s-"), (ORANGE, "D-"), (RED, "^-")), strict=False))
    for column, (measure, label) in enumerate((("psnr", "PSNR, dB"), ("ssim", "SSIM")), 1):
        axis = figure.add_subplot(bottom[column])
        for name, points in curves.items():
            color, style = styles[name]
            axis.plot(
                [p["bytes"] / 1000 for p in points],
                [min(p[measure], 60) for p in points],
                style,
                color=color,
                label=name,
                markersize=5,
            )
        axis.axvline(
            m * n * channels * (2 if peak > 255 else 1) / 1000, color=GREY, linestyle=":", label="the raw pixels"
        )
        axis.set(xscale="log", xlabel="kilobytes", ylabel=label, title=f"{label.split(',')[0]} against honest bytes")
        if column == 1:
            axis.legend(fontsize=9.5)
    save(figure, "image_svd")


def draw_als(ratings, popular, spectrum, films, history, curve, biases_only):
    """popular: films, the most rated first. spectrum, films: of P Q', (k,) and (n_items, k). history: (iteration, training
    RMSE, test RMSE). curve: (rank, test RMSE). biases_only: a test RMSE."""
    figure, axes = pyplot().subplots(2, 2, figsize=(16, 9), layout="constrained")
    figure.suptitle(
        f"A table of {len(ratings.user_ids):,} x {len(ratings.item_ids):,} ratings, "
        f"{len(ratings) / len(ratings.user_ids) / len(ratings.item_ids):.1%} known, as two thin ones",
        fontsize=17,
        fontweight="bold",
    )
    floor = dict(color=GREEN, linestyle="--", linewidth=1.5)
    axis = axes[0, 0]
    if history:
        axis.plot([h[0] for h in history], [h[1] for h in history], "o-", color=GREY, label="training ratings")
        axis.plot([h[0] for h in history], [h[2] for h in history], "o-", color=BLUE, label="test ratings")
        axis.set_xticks([h[0] for h in history][:: max(1, len(history) // 12)])
    axis.axhline(biases_only, color=ORANGE, linewidth=1.5, label="biases only, test")
    if ratings.floor:
        axis.axhline(ratings.floor, **floor, label="noise: nobody gets below it")
    axis.set(title=f"Convergence (rank {len(spectrum)})", xlabel="iteration", ylabel="RMSE")
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.92))

    axis = axes[0, 1]
    if curve:
        axis.plot([c[0] for c in curve], [c[1] for c in curve], "o-", color=BLUE, label="test ratings")
        axis.set_xscale("log", base=2)
        axis.set_xticks([c[0] for c in curve], [str(c[0]) for c in curve])
        axis.minorticks_off()
    axis.axhline(biases_only, color=ORANGE, linewidth=1.5, label="biases only")
    if ratings.floor:
        axis.axhline(ratings.floor, **floor, label="noise")
    axis.set(title="Error against rank, the same ridge", xlabel="rank k", ylabel="RMSE")
    axis.legend()

    axis = axes[1, 0]
    axis.bar(np.arange(1, len(spectrum) + 1), spectrum, color=BLUE)
    axis.set(title="Spectrum: singular values of P Q'", xlabel="number", ylabel="singular value")
    axis.set_xticks(np.arange(1, len(spectrum) + 1, max(1, len(spectrum) // 10)))

    axis = axes[1, 1]
    shown = popular[:150] if ratings.groups is not None else popular[:60]
    axis.scatter(films[shown, 0], films[shown, 1], s=14, color=GREY)
    if ratings.groups is not None:
        names = [title.split()[0] for title in ratings.titles]
        for color, name in zip((BLUE, ORANGE, GREEN, RED, "#8456b0", "#3b3b3b"), sorted(set(names)), strict=False):
            mine = [i for i in shown if names[i] == name]
            axis.scatter(films[mine, 0], films[mine, 1], s=38, color=color, label=f"{name} (planted)")
        axis.legend(ncols=2)
    else:
        for i in spread(films[shown, :2], 22):
            axis.annotate(ratings.titles[shown[i]][:28], films[shown[i], :2], fontsize=9, xytext=(4, 3), textcoords="offset points")  # fmt: skip
    axis.set(title="Popular films: first two of their directions", xlabel="direction 1", ylabel="direction 2")
    save(figure, "als")


def spread(points, n):
    """Places of n points far from each other, so that their titles can be read."""
    scaled = points / (np.abs(points).max(axis=0) + 1e-12)
    chosen = [0]
    while len(chosen) < min(n, len(points)):
        gaps = np.abs(scaled[:, None] - scaled[chosen]) * (1, 4)  # titles are wide and low
        chosen.append(int(gaps.sum(axis=2).min(axis=1).argmax()))
    return chosen


def draw_lora(steps, result, spectra, shown):
    """result: as lora.json has it. spectra: label -> singular values, of the matrix called `shown`."""
    figure, axes = pyplot().subplots(1, 3, figsize=(18, 7), layout="constrained")
    figure.suptitle(
        f"A full fine-tune moves every direction; a few carry the gain (SmolLM2-135M, {steps} steps)",
        fontsize=17,
        fontweight="bold",
    )
    axis = axes[0]
    for (name, s), color in zip(spectra.items(), (BLUE, GREEN, ORANGE), strict=False):
        axis.plot(range(1, len(s) + 1), s / s[0], color=color, label=name)
    axis.set(xscale="log", yscale="log", ylim=(5e-3, 1.3), xlabel="number", ylabel="singular value / the largest")
    axis.set_title(f"Spectrum of {shown}")
    axis.legend(loc="lower left")

    cuts, lora = result["cut"], result["lora"]
    base, full, rest = result["base"], result["full"], result["r0"]
    axis = axes[1]
    ranks = [row["rank"] for row in cuts]
    axis.plot(ranks, [100 * row["energy"] for row in cuts], "s--", color=GREY, label="energy of dW kept")
    gain = [100 * row["gain"] for row in cuts]
    axis.plot(ranks, gain, "o-", color=BLUE, label="held-out gain kept")
    left = [100 * row["gain_of_the_rest"] for row in cuts]
    axis.plot(ranks, left, "v:", color=RED, label="gain of what was cut off, alone")
    axis.set(xscale="log", xlabel="rank r", ylabel="% of the projections' dW", title="Energy is not gain")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ranks, [str(rank) for rank in ranks])
    axis.legend(loc="best")

    axis = axes[2]
    for value, color, name in ((base, GREY, "before"), (rest, RED, "embeddings and norms only (r = 0)"), (full, GREEN, "full fine-tune")):  # fmt: skip
        axis.axhline(value, color=color, linestyle="--", linewidth=1.6, label=f"{name}: {value:.2f}")
    axis.plot(ranks, [row["loss"] for row in cuts], "o-", color=BLUE, label="dW cut to rank r")
    axis.plot(
        [row["rank"] for row in lora],
        [row["loss"] for row in lora],
        "D-",
        color=ORANGE,
        label="LoRA of rank r, trained",
    )
    for row in lora:
        axis.annotate(f"{row['parameters'] / 1e6:.1f}M", (row["rank"], row["loss"]), xytext=(2, -17), textcoords="offset points", color=ORANGE)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(ranks, [str(rank) for rank in ranks])
    axis.set(xlabel="rank r (LoRA: parameters trained beside it)", ylabel="loss on held-out reports", title=f"Loss against rank (full: {result['parameters'] / 1e6:.0f}M parameters)")  # fmt: skip
    axis.legend()
    axis.set(yscale="log", ylim=(0.75 * min(full, *(row["loss"] for row in lora)), 1.15 * base))
    axis.set_yticks(
        ticks := [tick for tick in (0.5, 1, 2, 3, 4, 6) if tick < base * 1.1], [f"{tick:g}" for tick in ticks]
    )
    axis.minorticks_off()
    save(figure, "lora")
