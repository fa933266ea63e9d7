"""Draw dashboards whose six facts are known: LCD, seven-segment or drum odometer, and what a phone does to them.

    python render.py --out pictures --count 200              pictures/images/*.jpg and pictures/qwen-vl-train.xlsx
    python render.py --out test --count 500 --split test     fonts and layouts that --split train never uses
    python render.py --out easy --count 20 --difficulty 0    no blur, glare, tilt, noise

Real photos of dashboards with a licence to share them are hard to find, and these have no number plate and no place in
them. Digits come from fonts that matplotlib ships (DejaVu, STIX, Computer Modern) and from shapes drawn here.
"""

import argparse
import functools
import io
import math
import os
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from common.settings import in_range
from digits import FONTS, beside, coloured, drum, letters, segment_shape, seven, smaller
from fields import as_course
from prompt import PROMPT

WIDTH, HEIGHT = 336, 168  # 12 x 6 = 72 image tokens of 28 x 28 pixels, and no resizing on the way to them
# Rows from top to bottom: m mileage, s speed, c clock, t temperature, g gear.
LAYOUTS = {
    "train": ("sg m ct", "ct sg m", "cg st m", "m sg tc", "m ctg s", "tcg m s", "gs tc m", "s m cgt", "gm s tc", "ts cg m"),
    "test": ("mg sc t", "sc gt m", "t m gsc"),
}  # fmt: skip
# (background, its second colour, digits): what displays look like, all with enough contrast to be read.
COLOURS = (
    ((12, 14, 18), (40, 44, 52), (240, 244, 248)),
    ((8, 10, 20), (24, 30, 60), (120, 210, 255)),
    ((16, 8, 6), (50, 24, 16), (255, 150, 60)),
    ((6, 16, 8), (18, 44, 24), (110, 255, 140)),
    ((18, 6, 8), (54, 16, 20), (255, 80, 80)),
    ((150, 165, 140), (190, 200, 175), (20, 26, 20)),
    ((195, 205, 210), (225, 230, 235), (24, 28, 60)),
    ((200, 140, 50), (230, 175, 90), (40, 20, 5)),
)


def random_facts(rng):
    """The facts of one dashboard; each but the mileage is missing from one picture in eight."""
    digits = rng.choice((3, 4, 5, 5, 6, 6, 6))
    facts = {"mileage": rng.randrange(10 ** (digits - 1), 10**digits), "unit": rng.choice(("km", "km", "km", "mi"))}
    facts["speed"] = rng.choice((0, rng.randrange(1, 200)))
    facts["time"] = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    facts["temperature"] = rng.randrange(-20, 46)
    facts["gear"] = rng.choice("PRNDDD123456")
    return {
        name: value if name in ("mileage", "unit") or rng.random() > 1 / 8 else None for name, value in facts.items()
    }


def dashboard(rng, split="train", difficulty=1.0):
    """One picture. rng: a random.Random. Returns (PIL RGB image of WIDTH x HEIGHT, facts, kind of odometer)."""
    picture, _, facts, kind = dashboard_and_glyphs(rng, split, difficulty)
    return picture, facts, kind


def dashboard_and_glyphs(rng, split="train", difficulty=1.0):
    """The same with a map of what stands where, second: an L image whose pixels are 0, or 1 + the place in GLYPHS of the
    character in whose box they lie. Everything below is drawn twice, as picture and as map."""
    facts = random_facts(rng)
    near, far, ink = rng.choice(COLOURS)
    picture, glyphs = _background(rng, near, far), Image.new("L", (WIDTH, HEIGHT))
    kind = rng.choice(("lcd", "seven", "drum"))
    face, label = rng.choice(FONTS[split]), rng.choice(("DejaVuSans", "DejaVuSans-Bold"))
    thick = rng.choice((0, 0, 1, 2))
    pen = functools.partial(letters, face=face, thick=thick)
    if kind == "seven":
        pen = functools.partial(seven, **segment_shape(rng, split))
    stretch = rng.uniform(0.8, 1.2)  # narrow and wide faces out of few
    rows = rng.choice(LAYOUTS[split]).split()
    shown = {
        letter
        for letter, name in zip("sctg", ("speed", "time", "temperature", "gear"), strict=True)
        if facts[name] is not None
    }
    rows = [kept for kept in ("".join(each for each in row if each == "m" or each in shown) for row in rows) if kept]
    tall = HEIGHT / len(rows)
    for number, row in enumerate(rows):
        shares = [rng.uniform(0.9, 1.1) * {"m": 2.0, "s": 1.5, "c": 1.3, "t": 1.2, "g": 0.7}[each] for each in row]
        left = 0.0
        for each, share in zip(row, shares, strict=True):
            wide = WIDTH * share / sum(shares)
            element, names = _element(rng, each, facts, pen, label, kind, face, ink, near)
            # As large as it fits, at most 40 pixels; a digit under 14 would be smaller than one patch of the encoder.
            scale = min((wide - 12) / (element.width * stretch), min(tall - 8, 48) / element.height)
            scale *= rng.uniform(0.8, 1.0) if scale * element.height > 24 else 1.0
            size = max(1, round(element.width * scale * stretch)), max(1, round(element.height * scale))
            element = element.resize(size, Image.Resampling.BILINEAR)
            x = left + 5 + rng.random() * max(0, wide - 10 - size[0])
            y = tall * number + 3 + rng.random() * max(0, tall - 6 - size[1])
            picture.paste(element, (round(x), round(y)), element)
            glyphs.paste(names.resize(size, Image.Resampling.NEAREST), (round(x), round(y)))
            left += wide
    picture, glyphs = degrade(rng, picture, difficulty, glyphs)
    return picture, glyphs, facts, kind


def _background(rng, near, far):
    """A soft gradient with parts of gauges: lines and ticks that are no digits."""
    corners = Image.new("RGB", (2, 2))
    for x in (0, 1):
        for y in (0, 1):
            mix = rng.random()
            corners.putpixel((x, y), tuple(round(a + (b - a) * mix) for a, b in zip(near, far, strict=True)))
    picture = corners.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    faint = tuple(round((a + b) / 2) for a, b in zip(near, far, strict=True))
    for _ in range(rng.randrange(3)):
        x, y, r = rng.randrange(WIDTH), rng.randrange(HEIGHT), rng.randrange(40, 130)
        draw.arc((x - r, y - r, x + r, y + r), 0, 360, fill=faint, width=rng.randrange(1, 4))
        for angle in range(0, 360, rng.choice((15, 30))):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            draw.line((x + dx * r, y + dy * r, x + dx * (r - 7), y + dy * (r - 7)), fill=faint, width=2)
    return picture


def _element(rng, letter, facts, pen, label, kind, face, ink, near):
    """One reading with its unit, with digits about 40 pixels high: an RGBA picture and its map."""
    write = functools.partial(letters, face=label)
    if letter == "m":
        unit = write(rng.choice(("km", "KM")) if facts["unit"] == "km" else rng.choice(("mi", "MI", "miles")))
        digits = drum(rng, facts["mileage"], face) if kind == "drum" else coloured(pen(str(facts["mileage"])), ink)
        parts = [digits, coloured(smaller(unit, 0.55), ink)]
        if rng.random() < 0.4:
            parts.insert(0, coloured(smaller(write("ODO"), 0.4), ink))
    elif letter == "s":
        unit = "km/h" if facts["unit"] == "km" else rng.choice(("mph", "MPH"))
        parts = [coloured(pen(str(facts["speed"])), ink), coloured(smaller(write(unit), 0.45), ink)]
    elif letter == "c":
        hours, minutes = facts["time"].split(":")
        parts = [coloured(pen(hours), ink), coloured(smaller(write(":"), 0.7), ink), coloured(pen(minutes), ink)]
    elif letter == "t":
        parts = [coloured(pen(str(facts["temperature"])), ink), coloured(smaller(write("°C"), 0.7), ink)]
    else:
        parts = [coloured(write(facts["gear"]), ink)]
    return beside(parts, rng.randrange(3, 8))


def degrade(rng, picture, difficulty, glyphs):
    """What a phone's photo does: tilt, blur, glare, exposure, noise, JPEG. difficulty 0: nothing; 1: all of it.

    The map `glyphs` is tilted with the picture. Returns both.
    """
    if difficulty <= 0:
        return picture, glyphs
    import numpy

    def amount(most):
        return rng.random() * most * difficulty

    if rng.random() < 0.7:
        x, y = amount(0.05) * WIDTH, amount(0.06) * HEIGHT
        corner = [(rng.uniform(-x, x) / 2, rng.uniform(-y, y) / 2) for _ in range(4)]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = corner
        quad = (ax, ay, bx, HEIGHT + by, WIDTH + cx, HEIGHT + cy, WIDTH + dx, dy)
        picture = picture.transform(picture.size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
        glyphs = glyphs.transform(glyphs.size, Image.Transform.QUAD, quad, Image.Resampling.NEAREST)
    if rng.random() < 0.6:
        picture = picture.filter(ImageFilter.GaussianBlur(amount(0.9)))
    pixels = numpy.asarray(picture, dtype=numpy.float32)
    if rng.random() < 0.4:  # glare: a bright patch with soft edges, never so bright that a digit is gone
        rows, columns = numpy.ogrid[:HEIGHT, :WIDTH]
        x, y, r = rng.randrange(WIDTH), rng.randrange(HEIGHT), rng.uniform(25, 80)
        light = numpy.exp(-((columns - x) ** 2 + 2.0 * (rows - y) ** 2) / (2 * r * r)).astype(numpy.float32)[..., None]
        pixels = pixels + (255 - pixels) * light * amount(0.45)
    pixels = (pixels - 128) * (1 + rng.uniform(-0.2, 0.2) * difficulty) + 128 + rng.uniform(-18, 18) * difficulty
    if rng.random() < 0.6:
        noise = numpy.random.default_rng(rng.getrandbits(32)).standard_normal((HEIGHT, WIDTH, 1), dtype=numpy.float32)
        pixels = pixels + noise * amount(9)
    picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
    if rng.random() < 0.5:
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=rng.randrange(95 - round(55 * difficulty), 96))
        picture = Image.open(packed).convert("RGB")
    return picture, glyphs


def write(folder, count, split="train", seed=0, difficulty=1.0):
    """`count` pictures and the spreadsheet that names them, in a new folder. Returns the spreadsheet's path."""
    from openpyxl import Workbook

    folder = Path(folder)
    sheet_file = folder / "qwen-vl-train.xlsx"
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty, and nothing in it is overwritten: give another --out.")
    (folder / "images").mkdir(parents=True)
    book = Workbook()
    sheet = book.active
    sheet.append(["id", "prompt", "image", "response", "display"])
    for number in range(count):
        picture, facts, kind = dashboard(random.Random(f"{seed} {split} {number}"), split, difficulty)
        name = f"images/{number + 1:04d}.jpg"
        picture.save(folder / name, quality=90)
        sheet.append([f"{number + 1:04d}", PROMPT, name, as_course(facts), kind])
    book.save(folder / ".new.xlsx")
    os.replace(folder / ".new.xlsx", sheet_file)
    return sheet_file


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--count", type=in_range("count"), default=200, help="pictures (200)")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="which fonts and layouts (train)")
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="the same seed draws the same pictures (0)")
    parser.add_argument(
        "--difficulty", type=in_range("difficulty", float), default=1.0, help="0: clean; 1: as a phone takes them (1)"
    )
    args = parser.parse_args(argv)
    print(f"{args.count} pictures: {write(args.out, args.count, args.split, args.seed, args.difficulty)}")


if __name__ == "__main__":
    main()
