"""Numbers and labels as masks: fonts that matplotlib ships, seven-segment digits, the wheels of a mechanical odometer.

Everything is drawn twice: a part is a pair of a picture or mask and its map, an L image whose pixels are 0, or 1 + the
place in GLYPHS of the character in whose box they lie.
"""

import functools
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONTS = {
    "train": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
              "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique", "STIXGeneral",
              "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10"),
    "test": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "cmss10", "cmtt10"),
}  # fmt: skip
# Which of a seven-segment digit's strokes are lit: top, upper left and right, middle, lower left and right, bottom.
SEGMENTS = {
    "0": "1110111", "1": "0010010", "2": "1011101", "3": "1011011", "4": "0111010", "5": "1101011", "6": "1101111",
    "7": "1010010", "8": "1111111", "9": "1111011", "-": "0001000",
}  # fmt: skip
GLYPHS = "0123456789-:PRNDkmilesKMIODph/HC°"  # every character that is drawn


@functools.lru_cache(64)
def _font(face, size):
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"), size)


@functools.lru_cache(4096)
def letters(text, face, thick=0):
    """A text as a mask about 40 pixels high, cut to its ink, and its map."""
    font = _font(face, 52)
    box = font.getbbox(text, stroke_width=thick)
    mask = Image.new("L", (math.ceil(box[2] - box[0]) + 2, math.ceil(box[3] - box[1]) + 2))
    ImageDraw.Draw(mask).text((1 - box[0], 1 - box[1]), text, font=font, fill=255, stroke_width=thick)
    return mask, _map(mask.size, text, [1 - box[0] + font.getlength(text[:n]) for n in range(len(text))])


def _map(size, text, starts):
    """The map of a line of text whose characters begin at these x: each is a box as high as the line."""
    made = Image.new("L", size)
    draw = ImageDraw.Draw(made)
    for character, left, right in zip(text, starts, [*starts[1:], size[0]], strict=True):
        draw.rectangle((round(left), 0, round(right) - 1, size[1]), fill=1 + GLYPHS.index(character))
    return made


def segment_shape(rng, split):
    """Stroke width, slant and the ends of the strokes, which are pointed in the test only."""
    return {"stroke": rng.randrange(4, 8), "slant": rng.choice((0.0, 0.06, 0.12)), "pointed": split == "test"}


@functools.lru_cache(4096)
def seven(text, stroke, slant, pointed):
    """A number in seven-segment digits as a mask 42 pixels high, and its map."""
    wide, tall, gap = 22, 40, 8
    mask = Image.new("L", (len(text) * (wide + gap) + 8, tall + 2))
    draw = ImageDraw.Draw(mask)
    for place, letter in enumerate(text):
        x, middle, half = place * (wide + gap) + 2, tall // 2 + 1, stroke / 2
        across = [(x + half, half + 1), (x + half, middle), (x + half, tall - half)]
        down = [(x + half, half + 1), (x + wide - half, half + 1), (x + half, middle), (x + wide - half, middle)]
        strokes = [(across[0], True), (down[0], False), (down[1], False), (across[1], True), (down[2], False),
                   (down[3], False), (across[2], True)]  # fmt: skip
        for lit, ((x0, y0), level) in zip(SEGMENTS[letter], strokes, strict=True):
            if lit == "0":
                continue
            long = (wide if level else tall / 2) - stroke
            tip = half if pointed else 0
            ends = [(tip, -half), (long - tip, -half), (long, 0), (long - tip, half), (tip, half), (0, 0)]
            if not pointed:
                ends = [(1, -half), (long - 1, -half), (long - 1, half), (1, half)]
            draw.polygon([(x0 + a, y0 + b) if level else (x0 + b, y0 + a) for a, b in ends], fill=255)
    if slant:
        mask = mask.transform(
            mask.size, Image.Transform.AFFINE, (1, slant, -slant * tall / 2, 0, 1, 0), Image.Resampling.BILINEAR
        )
    box = mask.getbbox()
    places = [place * (wide + gap) - gap // 2 - box[0] for place in range(len(text))]
    return mask.crop(box), _map((box[2] - box[0], box[3] - box[1]), text, places)


def drum(rng, mileage, face):
    """A mechanical odometer: a wheel a digit, with leading zeros, and each wheel a little out of line."""
    text = f"{mileage:06d}"
    dark = rng.random() < 0.7
    paper, ink = ((22, 22, 24), (235, 235, 230)) if dark else ((235, 233, 225), (20, 20, 20))
    wheels = Image.new("RGBA", (len(text) * 34 + 4, 54), (70, 70, 74, 255))
    draw = ImageDraw.Draw(wheels)
    last = rng.random() < 0.4
    for place, digit in enumerate(text):
        back, front = ((225, 222, 215), (150, 20, 20)) if last and place == len(text) - 1 else (paper, ink)
        x = 3 + place * 34
        draw.rectangle((x, 3, x + 30, 50), fill=back)
        mask, _ = letters(digit, face)
        # The wheel's curve: seen from the front, its upper and lower edge are dark.
        wheels.paste(front, (x + 15 - mask.width // 2, 27 - mask.height // 2 + rng.randrange(-3, 4)), mask)
        draw.rectangle((x, 3, x + 30, 5), fill=tuple(c // 2 for c in back))
        draw.rectangle((x, 48, x + 30, 50), fill=tuple(c // 2 for c in back))
    return wheels, _map(wheels.size, text, [3 + place * 34 for place in range(len(text))])


def coloured(part, ink):
    mask, names = part
    made = Image.new("RGBA", mask.size, (*ink, 0))
    made.putalpha(mask)
    return made, names


def smaller(part, factor):
    """A label: smaller than the digits, but never so small that it cannot be read."""
    mask, names = part
    size = max(2, round(mask.width * factor)), max(2, round(mask.height * factor))
    return mask.resize(size, Image.Resampling.BILINEAR), names.resize(size, Image.Resampling.NEAREST)


def beside(parts, gap):
    """Pictures side by side on a common bottom line, and their maps."""
    size = sum(part.width for part, _ in parts) + gap * (len(parts) - 1), max(part.height for part, _ in parts)
    row, row_names = Image.new("RGBA", size, (0, 0, 0, 0)), Image.new("L", size)
    x = 0
    for part, names in parts:
        corner = x, (size[1] - part.height) // (2 if part.height < 6 else 1)
        row.paste(part, corner, part)
        row_names.paste(names, corner)
        x += part.width + gap
    return row, row_names
