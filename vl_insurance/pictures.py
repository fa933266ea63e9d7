"""Photos: which file a path names, whether it can be used, and the one way in which all scripts read it."""

import re
import warnings

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
MAX_MEGAPIXELS = 40  # a phone's photo has 12 to 50; a PNG of 20 KB can hold 169, which take 3 GB to open
MAX_FILE_MB = 50
PATCH = 28  # one image token sees 28 x 28 pixels
MIN_PIXELS = 56 * 56  # smaller pictures are enlarged


class BadPicture(ValueError):
    """A picture that is not used; its text is the reason and what was found, separated by ': '."""


def find_picture(name, root):
    """The file of an image path, inside root and nowhere else. Raises BadPicture."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name):
        raise BadPicture(f"not a path: {name[:60]}; addresses are not fetched")
    try:
        path = (root / name.replace("\\", "/")).resolve()
        path.exists()
    except (OSError, ValueError):  # a NUL, or longer than a file system takes
        raise BadPicture(f"not a path: {name[:60]!r}") from None
    if not path.is_relative_to(root.resolve()):  # after resolve(): ../, absolute paths and links all lead here
        raise BadPicture(f"outside the root: {name} leads out of {root}")
    if not path.exists():
        raise BadPicture(f"missing file: {name}")
    if not path.is_file():
        raise BadPicture(f"wrong format: {name} is no regular file")
    if path.suffix.lower() not in FORMATS:
        raise BadPicture(f"wrong format: {name}: expected {', '.join(FORMATS)}")
    if path.stat().st_size > MAX_FILE_MB * 1e6:
        raise BadPicture(f"too large: {name} has {path.stat().st_size / 1e6:.0f} MB, {MAX_FILE_MB} are allowed")
    return path


def load_image(path):
    """A picture file as training, evaluation and inference all see it: upright, RGB, without the rest of the file.

    Raises BadPicture where it is cut off, too large, or in a format or a mode that has no agreed look.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=sorted(set(FORMATS.values())))
        width, height = image.size
        if width * height > MAX_MEGAPIXELS * 1e6:  # before a pixel is decoded
            raise BadPicture(f"too large: {width} x {height} pixels, {MAX_MEGAPIXELS} megapixels are allowed")
        if max(width, height) > 200 * min(width, height):
            raise BadPicture(f"wrong format: {width} x {height} pixels is a line, no picture")
        image.load()  # verify() would let a cut-off file pass
        if image.mode.startswith(("I", "F")):
            raise BadPicture(f"wrong format: {image.mode} has more than 8 bits a channel; save it with 8")
        turn = _turn(image)
        if "A" in image.getbands() or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("RGB")
        bare = Image.new("RGB", image.size)
        bare.paste(image)  # the pixels and nothing else: no EXIF, so no place and no time go along
        return bare if turn is None else bare.transpose(turn)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(f"too large: more than {MAX_MEGAPIXELS} megapixels") from None
    except BadPicture:
        raise
    except Image.UnidentifiedImageError:
        raise BadPicture("wrong format: neither JPEG nor PNG nor WEBP, whatever its name says") from None
    except Exception as error:  # decoders meet bytes that nobody foresaw, and raise struct.error, KeyError and others
        raise BadPicture(f"truncated: {error}") from None


def is_rotated(path):
    from PIL import Image

    with Image.open(path) as image:
        return _turn(image) is not None


def _turn(image):
    """How an image has to be transposed to stand upright, None for not at all. Raises BadPicture where its EXIF hides that.

    Not ImageOps.exif_transpose: it writes the EXIF back, and a camera's can hold what cannot be written.
    """
    from PIL.Image import Transpose as To

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:
        raise BadPicture(f"unreadable EXIF: {error}; save the picture anew, upright") from None
    turns = (
        To.FLIP_LEFT_RIGHT,
        To.ROTATE_180,
        To.FLIP_TOP_BOTTOM,
        To.TRANSPOSE,
        To.ROTATE_270,
        To.TRANSVERSE,
        To.ROTATE_90,
    )
    return dict(enumerate(turns, 2)).get(orientation)


def image_tokens(size, max_pixels, min_pixels=MIN_PIXELS):
    """Tokens that a picture of (width, height) takes: one for each 28 x 28 pixels after Qwen's resizing."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(size[1], size[0], PATCH, min_pixels, max_pixels)
    return height * width // PATCH**2
