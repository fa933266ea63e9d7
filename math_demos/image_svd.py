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
from functools import partial
from pathlib import Path

import numpy as np

from common.cli import arg, parse
from plots import draw_image

MOST_PIXELS = 40_000_000  # a small file can unfold into gigabytes
FORMATS = ["JPEG", "PNG", "WEBP"]  # Pillow has forty more decoders, one of which starts Ghostscript
PATCH = 8
PATCH_RANKS = (1, 2, 4, 8, 16, 32)


@dataclass
class Args:
    image: str | None = arg(None, "any image (default: Grace Hopper's portrait, public domain, from matplotlib)")
    k: list[int] = arg([5, 10, 20, 40, 80], "layers kept, of each colour channel")
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
            image = Image.open(file, formats=FORMATS)
            if image.size[0] * image.size[1] > MOST_PIXELS:
                raise SystemExit(
                    f"{file}: {image.size[0]} x {image.size[1]} pixels; at most {MOST_PIXELS:,}. Shrink it."
                )
            image.load()
            image = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise SystemExit(f"{file}: no such file.") from None
    except Image.UnidentifiedImageError:
        raise SystemExit(f"{file}: neither JPEG nor PNG nor WEBP, whatever its name says. Save it as one.") from None
    except Exception as error:  # decoders meet bytes that nobody foresaw, and raise struct.error, KeyError and others
        raise SystemExit(f"{file}: not a complete image that can be read ({error}).") from None
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.float64)[:, :, None], 65535.0
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
    """Rank k from factors of 8 bits: each of U sqrt(s) and V sqrt(s) as int8 with one float32 scale per column.

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

    def blur(x):  # separable: 22 products per pixel instead of 121
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


def measures(pixels, image, peak, size):
    """PSNR and SSIM of what would be shown, rounded and clipped, beside the bytes that it takes."""
    shown = np.clip(np.round(image), 0, peak)
    return dict(psnr=psnr(pixels, shown, peak), ssim=ssim(pixels, shown, peak), bytes=size)


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


def compare(pixels, peak, svds, energies, ks):
    """Measure and print the ranks ks beside JPEG: (k -> measures of float32 factors, label -> measures of each way)."""
    m, n, channels = pixels.shape
    raw = raw_bytes(pixels, peak)
    curves = {
        "SVD, float32 factors": [],
        "SVD, int8 factors": [],
        f"SVD of {PATCH} x {PATCH} patches, int8": [],
        "JPEG": [],
    }
    (svd32, svd8, patched, codec), table = curves.values(), {}
    print(f"{'':>5}{'energy':>8}{'mean':>9}{'float32 factors':>28}{'int8 factors':>22}{'JPEG, same bytes':>19}")
    print(
        f"{'k':>5}{'raw':>8}{'removed':>9}{'PSNR':>9}{'SSIM':>7}{'kB':>7}{'ratio':>6}{'PSNR':>8}{'SSIM':>7}{'ratio':>7}{'PSNR':>11}{'SSIM':>8}"
    )
    for k in ks:
        row = table[k] = measures(pixels, reconstruct(svds, k), peak, 4 * channels * k * (m + n + 1))
        image, size = int8_factors(svds, k)
        small = measures(pixels, image, peak, size)
        ratios = [raw / each["bytes"] if k else np.inf for each in (row, small)]
        shares = "".join(f"{share[k]:{width}.3f}" for share, width in zip(energies, (8, 9), strict=True))
        line = f"{k:5d}{shares}{row['psnr']:9.2f}{row['ssim']:7.3f}{row['bytes'] / 1000:7.0f}{ratios[0]:6.2f}"
        line += f"{small['psnr']:8.2f}{small['ssim']:7.3f}{ratios[1]:7.2f}"
        if k:
            svd32.append(row)
            svd8.append(small)
        if peak == 255 and k and (coded := jpeg(pixels, small["bytes"])):
            codec.append(measures(pixels, coded[0], peak, coded[1]))
            line += f"{codec[-1]['psnr']:11.2f}{codec[-1]['ssim']:8.3f}"
        print(line)
    if peak == 255:
        patched += [measures(pixels, image, peak, size) for image, size in (patch_svd(pixels, k) for k in PATCH_RANKS)]
        points = ", ".join(f"{p['psnr']:.1f} dB in {p['bytes'] / 1000:.0f} kB" for p in patched)
        print(f"\n{PATCH} x {PATCH} patches, int8: {points}")
    print("\nWhy the codec wins: SVD's directions run over the whole image, fit this image only and have to be stored;\n"
          "JPEG's are fixed, local, and quantized by what the eye sees, then entropy-coded.")  # fmt: skip
    return table, {label: points for label, points in curves.items() if points}


def raw_bytes(pixels, peak):
    return pixels.size * (2 if peak > 255 else 1)


def write(file, image, peak):
    """Write an image as PNG, complete or not at all."""
    from PIL import Image

    out = np.clip(np.round(image), 0, peak).astype(np.uint16 if peak > 255 else np.uint8)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(out.squeeze(2) if out.shape[2] == 1 else out).save(part, "PNG")
    part.replace(file)


def main(argv=None):
    args = parse(__file__, {}, {}, Args, argv=argv)
    ks = sorted(set(args.k))
    if args.save and (Path(args.save).exists() or Path(args.save).suffix.lower() != ".png"):
        raise SystemExit(f"--save {args.save}: give a .png that does not exist yet; what is there is kept.")
    if args.image:
        file = Path(args.image).expanduser()
    else:
        from matplotlib import get_data_path

        file = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    pixels, peak = read_image(file)
    m, n, channels = pixels.shape
    svds, raw = decompose(pixels), raw_bytes(pixels, peak)
    centred = [np.linalg.svd(pixels[:, :, c] - pixels[:, :, c].mean(), compute_uv=False) for c in range(channels)]
    rank, even = min(m, n), m * n / (m + n + 1)
    if ks[-1] > rank:
        print(f"note: a {m} x {n} image has rank {rank} at most; --k {ks[-1]} shows no more than that")
        ks = sorted({min(k, rank) for k in ks})
    kept = ks[-1]
    if args.target_psnr is not None:
        kept = smallest_k(svds, pixels, peak, args.target_psnr)
        print(f"smallest k with {args.target_psnr:g} dB: {kept} (counting floats, k below {even:.0f} saves)")
        ks = sorted({*ks, kept})
    print(f"{file.name}: {n} x {m}, {channels} channel{'s' * (channels > 1)}, {raw:,} bytes of raw pixels")
    print(f"break-even: k = {even:.0f} by count of numbers, k = {raw / channels / (4 * (m + n + 1)):.0f} "
          "as float32 against the pixels' own bytes\n")  # fmt: skip
    energies = energy([s for _, s, _ in svds]), energy(centred)
    table, curves = compare(pixels, peak, svds, energies, ks)
    if args.save:
        write(Path(args.save), reconstruct(svds, kept), peak)
        print(f"rank {kept}: {args.save}")
    spectrum = np.mean([s for _, s, _ in svds], axis=0)
    labels = "energy of the raw image", "energy, mean removed"
    energies = dict(zip(labels, energies, strict=True))
    draw_image(pixels, peak, partial(reconstruct, svds), spectrum, energies, table, curves)


if __name__ == "__main__":
    main()
