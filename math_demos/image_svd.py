"""An image as the sum of k rank-one layers, and what that is worth beside a codec.

    A = U S V',   A_k = the first k terms,   |A - A_k|_F^2 = sum of the squares of the other singular values

No matrix of rank k is nearer to A (Eckart-Young). Departures from the usual demo: sizes are bytes that a file would
need, not counts of floats set against counts of uint8; the energy is shown with the mean removed, too, since the mean
alone makes any picture look compressible; and JPEG and an SVD of 8 x 8 patches stand beside it at equal bytes.

A picture that is there:   python image_svd.py
Your own:                  python image_svd.py --image photo.png --k 5 20 80 --save small.png
As few layers as will do:  python image_svd.py --target_psnr 32
"""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from plots import BLUE, GREEN, GREY, ORANGE, RED, pyplot, save

from common.cli import arg, parse
from common.paths import output_dir

DEFAULTS = dict(
    k=["5", "10", "20", "40", "80"],  # layers kept, of each colour channel
)
MOST_PIXELS = 40_000_000  # a small file can unfold into gigabytes
PATCH = 8


@dataclass
class Args:
    image: str | None = arg(None, "any image (default: Grace Hopper's portrait, public domain, from matplotlib)")
    k: list[str] = arg(["5", "10", "20", "40", "80"], "")
    target_psnr: float | None = arg(None, "also the smallest k that reaches this many dB")
    save: str | None = arg(None, "a .png for the reconstruction, with --target_psnr's k or the largest --k")


# -- reading


def read_image(file: Path):
    """An image as float64 (height, width, channels), 1 or 3 channels, and its largest value (255, or 65535 of 16 bits).

    Transparency is laid on white, palettes and CMYK become RGB. Raises SystemExit for what is no complete image.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
            if image.size[0] * image.size[1] > MOST_PIXELS:
                raise SystemExit(
                    f"{file}: {image.size[0]} x {image.size[1]} pixels; at most {MOST_PIXELS:,}. Shrink it."
                )
            image.load()
    except FileNotFoundError:
        raise SystemExit(f"{file}: no such file.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SystemExit(f"{file}: not a complete image that can be read ({error}).") from None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, dtype=np.float64)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise SystemExit(
                f"{file}: mode {image.mode}, values {pixels.min():g} to {pixels.max():g}: only 8 or 16 bits."
            )
        return pixels[:, :, None], 65535.0
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.asarray(image, dtype=np.float64)
    return (pixels if pixels.ndim == 3 else pixels[:, :, None]), 255.0


# -- low rank


def decompose(pixels):
    """SVD of each channel: a list of (U (m, r), s (r,), Vh (r, n)), r = min(m, n)."""
    return [np.linalg.svd(pixels[:, :, c], full_matrices=False) for c in range(pixels.shape[2])]


def reconstruct(svds, k):
    """The best rank-k image, (m, n, channels), unclipped. k above the full rank gives the image itself, 0 gives zeros."""
    return np.stack([(u[:, :k] * s[:k]) @ vh[:k] for u, s, vh in svds], axis=2)


def energy(singular_values):
    """Share of |A|_F^2 in the first k terms, k = 0, 1, ... r, over all channels. A black image has all of nothing: 1."""
    squares = np.sum([s**2 for s in singular_values], axis=0)
    return np.concatenate([[0], np.cumsum(squares)]) / squares.sum() if squares.sum() else np.ones(len(squares) + 1)


def int8_factors(svds, k):
    """Rank k from factors of 8 bits: each of U sqrt(s) and V sqrt(s) as int8 with one float32 scale a column.

    Returns (image, bytes).
    """
    layers, size = [], 0
    for u, s, vh in svds:
        sides = []
        for side in (u[:, :k] * np.sqrt(s[:k]), vh[:k].T * np.sqrt(s[:k])):
            scale = np.abs(side).max(axis=0, initial=0).astype(np.float32) / np.float32(127)
            codes = np.round(side / np.where(scale > 0, scale, 1)).astype(np.int8)
            sides.append(codes * scale.astype(np.float64))
            size += codes.nbytes + scale.nbytes
        layers.append(sides[0] @ sides[1].T)
    return np.stack(layers, axis=2), size


def patch_svd(pixels, k):
    """SVD of the matrix whose rows are the 8 x 8 patches, k directions, int8 as above: (image, bytes).

    The directions are the image's own DCT, so to speak: what JPEG has fixed is learnt here, and has to be stored.
    """
    m, n, channels = pixels.shape
    rows, cols = -(-m // PATCH), -(-n // PATCH)
    padded = np.pad(pixels, ((0, rows * PATCH - m), (0, cols * PATCH - n), (0, 0)), mode="edge")
    patches = padded.reshape(rows, PATCH, cols, PATCH, channels).transpose(0, 2, 1, 3, 4)
    flat = patches.reshape(rows * cols, PATCH * PATCH, channels)
    image, size = int8_factors(decompose(flat), k)
    image = image.reshape(rows, cols, PATCH, PATCH, channels).transpose(0, 2, 1, 3, 4)
    return image.reshape(rows * PATCH, cols * PATCH, channels)[:m, :n], size


def jpeg(pixels, size):
    """The best JPEG of at most `size` bytes: (image, bytes); None where even the worst is larger. 8 bits only."""
    from PIL import Image

    image = Image.fromarray(pixels.astype(np.uint8).squeeze(2) if pixels.shape[2] == 1 else pixels.astype(np.uint8))
    best, low, high = None, 1, 100
    while low <= high:
        quality = (low + high) // 2
        image.save(file := io.BytesIO(), "JPEG", quality=quality, optimize=True, subsampling=0 if quality > 90 else 2)
        if file.tell() <= size:
            best, low = file, quality + 1
        else:
            high = quality - 1
    if best is None:
        return None
    decoded = np.asarray(Image.open(best), dtype=np.float64)
    return decoded.reshape(pixels.shape), best.tell()


# -- measures


def psnr(image, other, peak):
    """Decibels: 10 log10(peak^2 / mean squared error). Equal images: infinite."""
    error = np.mean((image - other) ** 2)
    return float(10 * np.log10(peak**2 / error)) if error else float("inf")


def ssim(image, other, peak):
    """Structural similarity (Wang 2004), the channels' mean: Gaussian 11 x 11, sigma 1.5, borders of 5 left out.

    NaN for images with a side below 11 pixels, where no window fits.
    """
    if min(image.shape[:2]) < 11:
        return float("nan")
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()

    def blur(x):  # separable: 22 products a pixel instead of 121
        x = np.lib.stride_tricks.sliding_window_view(x, 11, axis=0) @ taps
        return np.lib.stride_tricks.sliding_window_view(x, 11, axis=1) @ taps

    a, b = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = []
    for c in range(image.shape[2]):
        x, y = image[:, :, c], other[:, :, c]
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        values.append((((2 * mx * my + a) * (2 * cov + b)) / ((mx**2 + my**2 + a) * (vx + vy + b))).mean())
    return float(np.mean(values))


def quality(pixels, image, peak):
    """PSNR and SSIM of what would be shown: rounded and clipped."""
    shown = np.clip(np.round(image), 0, peak)
    return psnr(pixels, shown, peak), ssim(pixels, shown, peak)


def smallest_k(svds, pixels, peak, target):
    """The smallest k whose shown image reaches `target` dB, by bisection: PSNR rises with k, at full rank to infinity."""
    low, high = 0, len(svds[0][1])
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if quality_psnr(svds, pixels, peak, middle) >= target else (middle + 1, high)
    return low


def quality_psnr(svds, pixels, peak, k):
    return psnr(pixels, np.clip(np.round(reconstruct(svds, k)), 0, peak), peak)


# -- what a person wants to see


def draw(pixels, peak, svds, centred, ks, table, curves):
    plt = pyplot()
    m, n, channels = pixels.shape
    shown = ks if len(ks) <= 5 else [ks[round(i * (len(ks) - 1) / 4)] for i in range(5)]
    figure = plt.figure(figsize=(18, 11), layout="constrained")
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
        image = reconstruct(svds, k)
        row = table[k]
        show(top[column], image, f"k = {k}: {row['psnr']:.1f} dB, SSIM {row['ssim']:.2f}")
        error = (image - pixels).mean(axis=2) / peak
        picture(middle[column], error, f"{row['bytes'] / 1000:,.0f} kB as float32", cmap="RdBu_r", vmin=-0.2, vmax=0.2)

    bottom = grid[2].subgridspec(1, 3)
    axis = figure.add_subplot(bottom[0])
    full = np.arange(1, len(svds[0][1]) + 1)
    axis.plot(full, np.mean([s for _, s, _ in svds], axis=0), color=GREY, label="singular values (left)")
    axis.set(yscale="log", xscale="log", xlabel="number, k", ylabel="singular value", title="Spectrum and energy")
    other = axis.twinx()
    other.plot(full, 100 * energy([s for _, s, _ in svds])[1:], color=BLUE, label="energy of the raw image")
    other.plot(full, 100 * energy(centred)[1:], color=ORANGE, label="energy, mean removed")
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
    save(figure, output_dir(), "image_svd")
    plt.close(figure)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, (Args,), argv=argv)
    try:
        ks = sorted({int(k) for k in args.k})
    except ValueError:
        raise SystemExit(f"--k {' '.join(args.k)}: give whole numbers, as --k 5 20 80.") from None
    if ks[0] < 0:
        raise SystemExit(f"--k {ks[0]}: a rank is not below 0.")
    if args.save and (Path(args.save).exists() or Path(args.save).suffix.lower() != ".png"):
        raise SystemExit(f"--save {args.save}: give a .png that does not exist yet; what is there is kept.")
    if args.image:
        file = Path(args.image).expanduser()
    else:
        from matplotlib import get_data_path

        file = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    pixels, peak = read_image(file)
    m, n, channels = pixels.shape
    raw = m * n * channels * (2 if peak > 255 else 1)
    svds = decompose(pixels)
    centred = [np.linalg.svd(pixels[:, :, c] - pixels[:, :, c].mean(), compute_uv=False) for c in range(channels)]
    rank = min(m, n)
    if ks[-1] > rank:
        print(f"note: a {m} x {n} image has rank {rank} at most; --k {ks[-1]} shows no more than that")
        ks = sorted({min(k, rank) for k in ks})
    if args.target_psnr is not None:
        least = smallest_k(svds, pixels, peak, args.target_psnr)
        print(
            f"smallest k with {args.target_psnr:g} dB: {least} (counting floats, k below {m * n / (m + n + 1):.0f} saves)"
        )
        ks = sorted({*ks, least})
    print(f"{file.name}: {n} x {m}, {channels} channel{'s' * (channels > 1)}, {raw:,} bytes of raw pixels")
    print(f"break-even: k = {m * n / (m + n + 1):.0f} by count of numbers, k = {raw / channels / (4 * (m + n + 1)):.0f} "
          "as float32 against the pixels' own bytes\n")  # fmt: skip

    raw_energy, centred_energy = energy([s for _, s, _ in svds]), energy(centred)
    table = {}
    curves = {
        "SVD, float32 factors": [],
        "SVD, int8 factors": [],
        f"SVD of {PATCH} x {PATCH} patches, int8": [],
        "JPEG": [],
    }
    svd32, svd8, patched, codec = curves.values()
    print(f"{'':>5}{'energy':>8}{'mean':>9}{'float32 factors':>28}{'int8 factors':>22}{'JPEG, same bytes':>19}")
    print(
        f"{'k':>5}{'raw':>8}{'removed':>9}{'PSNR':>9}{'SSIM':>7}{'kB':>7}{'ratio':>6}{'PSNR':>8}{'SSIM':>7}{'ratio':>7}{'PSNR':>11}{'SSIM':>8}"
    )
    for k in ks:
        row = dict(zip(("psnr", "ssim"), quality(pixels, reconstruct(svds, k), peak), strict=True))
        row["bytes"] = 4 * channels * k * (m + n + 1)
        table[k] = row
        image, size = int8_factors(svds, k)
        small = dict(zip(("psnr", "ssim"), quality(pixels, image, peak), strict=True), bytes=size)
        line = f"{k:5d}{raw_energy[k]:8.3f}{centred_energy[k]:9.3f}{row['psnr']:9.2f}{row['ssim']:7.3f}{row['bytes'] / 1000:7.0f}"
        line += f"{raw / row['bytes'] if k else np.inf:6.2f}{small['psnr']:8.2f}{small['ssim']:7.3f}{raw / size if k else np.inf:7.2f}"
        if k:
            svd32.append(row)
            svd8.append(small)
        if peak == 255 and k and (coded := jpeg(pixels, size)):
            codec.append(dict(zip(("psnr", "ssim"), quality(pixels, coded[0], peak), strict=True), bytes=coded[1]))
            line += f"{codec[-1]['psnr']:11.2f}{codec[-1]['ssim']:8.3f}"
        print(line)
    if peak == 255:
        for k in (1, 2, 4, 8, 16, 32):
            image, size = patch_svd(pixels, k)
            patched.append(dict(zip(("psnr", "ssim"), quality(pixels, image, peak), strict=True), bytes=size))
        print(
            f"\n{PATCH} x {PATCH} patches, int8: "
            + ", ".join(f"{p['psnr']:.1f} dB in {p['bytes'] / 1000:.0f} kB" for p in patched)
        )
    print("\nWhy the codec wins: SVD's directions run over the whole image, fit this image only and have to be stored;\n"
          "JPEG's are fixed, local, and quantized by what the eye sees, then entropy-coded.")  # fmt: skip
    if args.save:
        from PIL import Image

        k = least if args.target_psnr is not None else ks[-1]
        out = np.clip(np.round(reconstruct(svds, k)), 0, peak).astype(np.uint16 if peak > 255 else np.uint8)
        part = Path(args.save).with_name(f".{Path(args.save).name}.{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(out.squeeze(2) if channels == 1 else out).save(part, "PNG")
        part.replace(args.save)
        print(f"rank {k}: {args.save}")
    draw(pixels, peak, svds, centred, ks, table, {name: points for name, points in curves.items() if points})


if __name__ == "__main__":
    main()
