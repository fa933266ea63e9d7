"""Read a spreadsheet of photos and answers, check every row and every picture, split it, put it into words.

    python data.py --check FILE                      a table: which rows can be used, and why not the others
    python data.py --check FILE --image_root PHOTOS  where the pictures are not beside the file

FILE: .xlsx, .csv or .jsonl with the columns id, prompt, image, response (headers in any case, with stray blanks; further
columns are left alone). image is a path under the file's folder, or under --image_root, and never leads out of it.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import random
import re
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg

HERE = Path(__file__).resolve().parent
SHEET_FILE = "qwen-vl-train.xlsx"  # the course's name for it: what is looked for in a folder
COLUMNS = ("id", "prompt", "image", "response")
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
SYSTEM = "You are a helpful assistant."  # said, and not left to the chat template, which would put in its own
MAX_MEGAPIXELS = 40  # a phone's photo has 12 to 50; a PNG of 20 KB can hold 169, which take 3 GB to open
MAX_FILE_MB = 50
MAX_UNPACKED_MB = 300  # of a spreadsheet, which is a zip file
PATCH = 28  # one image token sees 28 x 28 pixels
EXAMPLES = 10  # problems described for each reason; the counts say how many there are
# <|im_end|> inside a row would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
EMBEDDED = "picture in the cell"
HOW_TO_TAKE_OUT = (
    "pictures inside the sheet are not read: save them as files (in WPS or Excel: save as .zip or a web page, they are in "
    "xl/media), and put each file's name into the column image"
)


@dataclass
class DataArgs:
    """Flags of every script that reads the spreadsheet."""

    data: str | None = arg(
        None, "xlsx, csv or jsonl, or a folder with qwen-vl-train.xlsx (default: VL_INSURANCE_DATA_DIR)"
    )
    image_root: str | None = arg(None, "the folder that image paths start from (default: the file's own)")
    sheet: str | None = arg(None, "which sheet of an xlsx (default: the first)")
    eval_ratio: float = arg(0.1, "share of the pictures held out; equal pictures stay together")
    split_seed: int = arg(42, "of the draw which pictures are held out")


# -- the table


def read_table(source, sheet=None):
    """Rows of a spreadsheet as dicts of texts by lower-case header, with "row" (its number in the file) and "note".

    Everything is text: 002 stays "002", NA stays "NA". Empty rows are left out.
    Raises SystemExit where the file cannot be read, with what it seems to be.
    """
    path = find_file(source)
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return path, _read_jsonl(path)
    if kind == ".csv":
        grid = list(csv.reader(io.StringIO(_decoded(path), newline="")))
        rows = [(number, {}, line) for number, line in enumerate(grid, 1)]
    elif kind == ".xlsx":
        rows = _read_xlsx(path, sheet)
    else:
        raise SystemExit(
            f"{path}: expected .xlsx, .csv or .jsonl.{' Save it as .xlsx.' if kind in ('.xls', '.et') else ''}"
        )
    if sheet and kind != ".xlsx":
        raise SystemExit(f"{path}: --sheet {sheet} is for .xlsx files.")
    if not rows:
        raise SystemExit(f"{path}: it is empty.")
    headers = [" ".join(str(text).split()).casefold() for text in rows[0][2]]
    missing = [name for name in COLUMNS if name not in headers]
    if missing:
        found = ", ".join(filter(None, headers)) or "none"
        raise SystemExit(f"{path}: no column {', '.join(missing)} in its first row. Columns found: {found}.")
    twice = [name for name, count in Counter(filter(None, headers)).items() if count > 1]
    if twice:
        raise SystemExit(f"{path}: the column {twice[0]} is there twice.")
    made = []
    for number, notes, line in rows[1:]:
        row = {name: text.strip() for name, text in zip(headers, line, strict=False) if name}
        if any(row.values()) or notes:
            made.append({name: row.get(name, "") for name in headers if name} | {"row": number, "note": notes})
    if not made:
        raise SystemExit(f"{path}: no rows under the headers.")
    return path, made


def find_file(source):
    if source is None:
        from common.paths import data_dir

        source = data_dir()
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / SHEET_FILE).is_file():
            raise SystemExit(f"{path}: no {SHEET_FILE} in this folder. Name the file with --data.")
        path = path / SHEET_FILE
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Give one with --data, or draw one: python render.py --out pictures")
    return path


def _decoded(path):
    content = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):  # Excel on a Chinese Windows saves CSV in GBK
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(encoding)
    raise SystemExit(f"{path}: neither UTF-8 nor GB18030. Save it as CSV UTF-8.")


def _read_jsonl(path):
    rows = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SystemExit(f"{path}: line {number}, column {error.colno}: not JSON: {error.msg}.") from None
        if not isinstance(row, dict):
            raise SystemExit(f"{path}: line {number}: expected an object with {', '.join(COLUMNS)}.")
        row = {str(name).strip().casefold(): "" if value is None else str(value).strip() for name, value in row.items()}
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise SystemExit(f"{path}: line {number}: no {', '.join(missing)}.")
        rows.append(row | {"row": number, "note": {}})
    if not rows:
        raise SystemExit(f"{path}: it is empty.")
    return rows


def _read_xlsx(path, sheet):
    """(row number, {column index: note}, texts) of each row of a sheet."""
    names = _check_zip(path)
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which do not matter here
            values = openpyxl.load_workbook(path, data_only=True)
            formulas = openpyxl.load_workbook(path)
    except (InvalidFileException, KeyError, ValueError, TypeError, zipfile.BadZipFile, SyntaxError) as error:
        raise SystemExit(
            f"{path}: not a complete xlsx file ({type(error).__name__}). Open it and save it again."
        ) from None
    if sheet and sheet not in values.sheetnames:
        raise SystemExit(f"{path}: no sheet {sheet!r}. Sheets: {', '.join(values.sheetnames)}.")
    page = values[sheet] if sheet else values.worksheets[0]
    raw = formulas[page.title]
    anchored = {image.anchor._from.row + 1 for image in getattr(raw, "_images", ()) if hasattr(image.anchor, "_from")}
    made = []
    for number, cells in enumerate(page.iter_rows(), 1):
        texts, notes = [], {}
        for cell in cells:
            text, formula = _as_text(cell), raw.cell(number, cell.column).value
            if isinstance(formula, str) and "DISPIMG(" in formula.upper():
                text, notes["embedded"] = "", True
            elif not text and isinstance(formula, str) and formula.startswith("="):
                notes["formula"] = f"{cell.coordinate} holds a formula whose value was not saved"
            texts.append(text)
        if number in anchored or (any(name.startswith("xl/cellimages") for name in names) and notes.get("embedded")):
            notes["embedded"] = True
        made.append((number, notes, texts))
    return made


def _check_zip(path):
    """The names inside an xlsx; stops at what is none, is locked, or would unpack to a bomb."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        raise SystemExit(
            f"{path}: password-protected, or an old .xls under a new name. Take the password off, save as .xlsx."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts) / 1e6
            if size > MAX_UNPACKED_MB:
                raise SystemExit(
                    f"{path}: unpacks to {size:,.0f} MB, {MAX_UNPACKED_MB} are allowed. Is it really a table?"
                )
            if "xl/workbook.xml" not in archive.namelist():
                raise SystemExit(f"{path}: a zip file, but no xlsx (no xl/workbook.xml in it). Save it as .xlsx.")
            for part in parts:
                if part.filename.endswith((".xml", ".rels")):
                    with archive.open(part) as text:
                        if b"<!DOCTYPE" in text.read(4096):  # Excel writes none; entities in one can be a bomb, too
                            raise SystemExit(
                                f"{path}: {part.filename} has a DOCTYPE, which no spreadsheet program writes."
                            )
            return [part.filename for part in parts]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError):
        raise SystemExit(f"{path}: not an xlsx file, or cut off. Save it as .xlsx in Excel or WPS.") from None


def _as_text(cell):
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and re.fullmatch(r"0+", cell.number_format or ""):
        return str(value).zfill(len(cell.number_format))  # 2 shown as 002
    return str(value)


# -- pictures


class BadPicture(ValueError):
    """A picture that is not used; its text is the reason and what was found, separated by ': '."""


def find_picture(name, root):
    """The file of an image path, inside root and nowhere else. Raises BadPicture."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name):
        raise BadPicture(f"not a path: {name[:60]}; addresses are not fetched")
    path = (root / name.replace("\\", "/")).resolve()
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
    from PIL import Image, ImageOps

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
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(f"too large: more than {MAX_MEGAPIXELS} megapixels") from None
    except BadPicture:
        raise
    except Image.UnidentifiedImageError:
        raise BadPicture("wrong format: neither JPEG nor PNG nor WEBP, whatever its name says") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadPicture(f"truncated: {error}") from None
    if image.mode.startswith(("I", "F")):
        raise BadPicture(f"wrong format: {image.mode} has more than 8 bits a channel; save it with 8")
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    bare = Image.new("RGB", image.size)
    bare.paste(image.convert("RGB"))  # the pixels and nothing else: no EXIF, so no place and no time go along
    return bare


def is_rotated(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.getexif().get(0x0112, 1) != 1


def image_tokens(size, max_pixels, min_pixels=56 * 56):
    """Tokens that a picture of (width, height) takes: one for each 28 x 28 pixels after Qwen's resizing."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(size[1], size[0], PATCH, min_pixels, max_pixels)
    return height * width // PATCH**2


# -- rows


def read_rows(source=None, image_root=None, sheet=None):
    """The usable rows and a report.

    A row: id, prompt, response, image (an absolute path as text), sha256 (of the file), size (width, height after turning
    it upright), display (a column of render.py's; "" elsewhere). Pictures are opened one after another, none is kept.
    Report: source, rows, kept, dropped (reason -> count), problems (text), rotated, prompts (how many different ones).
    Raises SystemExit where no row is usable.
    """
    path, table = read_table(source, sheet)
    root = Path(image_root).expanduser() if image_root else path.parent
    if not root.is_dir():
        raise SystemExit(f"{root}: no such folder (--image_root).")
    rows, dropped, problems, rotated, seen = [], Counter(), [], [], {}
    for raw in table:
        try:
            row = check(raw, root, seen)
        except BadPicture as problem:
            reason, _, found = str(problem).partition(": ")
            dropped[reason] += 1
            if dropped[reason] <= EXAMPLES:
                problems.append(f"row {raw['row']:>4}  {reason:<20}  {found or ''}")
            continue
        if row.pop("rotated"):
            rotated.append(raw["row"])
        rows.append(row)
    report = dict(
        source=str(path), rows=len(table), kept=len(rows), dropped=dropped, problems=problems, rotated=rotated
    )
    report["prompts"] = len({row["prompt"] for row in rows})
    if not rows:
        raise SystemExit(f"{format_report(report)}\n{path}: no usable row in it.")
    return rows, report


def check(raw, root, seen):
    """One usable row of a raw one. seen: ids so far -> their rows. Raises BadPicture with the first thing that is wrong."""
    if raw["note"].get("embedded") and not raw["image"]:
        raise BadPicture(f"{EMBEDDED}: {HOW_TO_TAKE_OUT}")
    for name in COLUMNS:
        if not raw[name]:
            raise BadPicture(f"empty {name}: {raw['note'].get('formula', 'no text')}")
    for name in ("prompt", "response"):
        if token := CONTROL_TOKEN.search(raw[name]):
            raise BadPicture(f"control token: column {name}: {token[0]}")
    if raw["id"] in seen:
        raise BadPicture(f"duplicate id: {raw['id']} is row {seen[raw['id']]}, too")
    path = find_picture(raw["image"], root)
    try:
        size = load_image(path).size
    except BadPicture as problem:
        reason, _, found = str(problem).partition(": ")
        raise BadPicture(f"{reason}: {raw['image']}: {found}") from None
    seen[raw["id"]] = raw["row"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = {name: raw[name] for name in ("id", "prompt", "response")}
    return row | dict(
        image=str(path), sha256=digest, size=size, display=raw.get("display", ""), rotated=is_rotated(path)
    )


def format_report(report):
    """The report of `read_rows` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} rows, {report['kept']:,} kept" + (
        f"; dropped: {reasons}" if reasons else ""
    )
    if report["rotated"]:
        line += f"\n{len(report['rotated']):,} pictures lie on their side and are turned upright (EXIF)"
    return "\n".join([line, *report["problems"]])


def split_rows(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same picture stay on one side, so nothing leaks."""
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.1.")
    pictures = sorted({row["sha256"] for row in rows})
    if len(pictures) < 2:
        raise SystemExit(f"{len(pictures)} different picture: one to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(pictures)
    held = set(pictures[: min(max(1, round(len(pictures) * ratio)), len(pictures) - 1)])
    return [row for row in rows if row["sha256"] not in held], [row for row in rows if row["sha256"] in held]


def conversation(prompt, answer=None):
    """Chat messages with a place for the picture before the prompt, as Qwen2.5-VL was trained."""
    user = [{"type": "image"}, {"type": "text", "text": prompt}]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    return messages + ([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else [])


def encode(rows, processor, max_pixels):
    """input_ids and labels of rows without opening a picture: its size says how many image tokens it takes.

    Labels: the answer and its end; -100 elsewhere. TRL's collator, which opens the pictures, makes the same (a test).
    """
    tokenizer, made = processor.tokenizer, []
    for row in rows:
        asked, whole = conversation(row["prompt"]), conversation(row["prompt"], row["response"])
        texts = [processor.apply_chat_template(asked, add_generation_prompt=True), processor.apply_chat_template(whole)]
        pad = processor.image_token * image_tokens(row["size"], max_pixels)
        texts = [text.replace(processor.image_token, pad, 1) for text in texts]
        assert texts[1].startswith(texts[0]), "the chat template writes the prompt differently once there is an answer"
        # Prompt and answer apart, as at inference, where the prompt stands alone.
        prompt, answer = (
            tokenizer(t, add_special_tokens=False).input_ids for t in (texts[0], texts[1][len(texts[0]) :])
        )
        made.append((prompt + answer, [-100] * len(prompt) + answer))
    return [ids for ids, _ in made], [labels for _, labels in made]


def tokenized(rows, processor, max_pixels, max_row_tokens, name):
    """Rows as a datasets.Dataset: input_ids, labels, digest (of the picture, as integers), image, prompt, response.

    A row over max_row_tokens is left out and reported, never cut: without its end an answer teaches not to stop, without
    all of it the loss would be 0 and say nothing.
    """
    from datasets import Dataset

    ids, labels = encode(rows, processor, max_pixels)
    kept = [i for i, each in enumerate(ids) if len(each) <= max_row_tokens]
    for i in [i for i in range(len(rows)) if len(ids[i]) > max_row_tokens][:EXAMPLES]:
        picture = image_tokens(rows[i]["size"], max_pixels)
        print(f"{name}: id {rows[i]['id']}: {len(ids[i]):,} tokens, {picture:,} of them the picture's: left out")
    if len(kept) < len(rows):
        print(
            f"{name}: {len(rows) - len(kept):,} rows over --max_row_tokens {max_row_tokens} left out; a smaller --max_pixels helps"
        )
    if not kept:
        raise SystemExit(
            f"{name}: no row fits in --max_row_tokens {max_row_tokens}. Lower --max_pixels or raise the limit."
        )
    columns = {"input_ids": [ids[i] for i in kept], "labels": [labels[i] for i in kept]}
    # As numbers, so that the run's record of its data covers the pictures, too.
    columns["digest"] = [list(bytes.fromhex(rows[i]["sha256"])) for i in kept]
    columns |= {field: [rows[i][field] for i in kept] for field in ("image", "prompt", "response")}
    return Dataset.from_dict(columns)


def with_pictures(dataset, backend):
    """The dataset as a collator wants it: a picture is opened when its row is asked for, and not kept."""

    def open_them(batch):
        pictures = [load_image(path) for path in batch["image"]]
        rows = [
            (conversation(prompt), answer) for prompt, answer in zip(batch["prompt"], batch["response"], strict=True)
        ]
        if backend == "unsloth":  # whole conversations; its collator finds the answer by the turn's header
            whole = [messages + conversation("", answer)[-1:] for messages, answer in rows]
            return {"images": [[picture] for picture in pictures], "messages": whole}
        answers = [conversation("", answer)[-1:] for _, answer in rows]
        return {"images": [[picture] for picture in pictures], "prompt": [m for m, _ in rows], "completion": answers}

    return dataset.with_transform(open_them)


def token_table(rows, max_pixels):
    """How many image tokens the pictures take, as lines: the caps that are worth trying."""
    lines = [f"{'--max_pixels':>14}  image tokens a row: least  middle    most"]
    for cap in sorted({256 * 784, 512 * 784, 1024 * 784, max_pixels, 12_845_056}):
        counts = sorted(image_tokens(row["size"], cap) for row in rows)
        mark = " <- --max_pixels" if cap == max_pixels else ""
        lines.append(f"{cap:>14,}  {counts[0]:>25,}{counts[len(counts) // 2]:>8,}{counts[-1]:>8,}{mark}")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: as train.py without --data)")
    parser.add_argument("--image_root", help="the folder that image paths start from (default: the file's own)")
    parser.add_argument("--sheet", help="which sheet of an xlsx (default: the first)")
    parser.add_argument("--max_pixels", type=int, default=1024 * 784, help="train.py's (1024 x 784 = 802,816)")
    args = parser.parse_args(argv)
    from common.paths import load_env

    load_env()
    rows, report = read_rows(args.check, args.image_root, args.sheet)
    print(format_report(report))
    same = len(rows) - len({row["sha256"] for row in rows})
    print(f"{report['prompts']:,} different prompts; {same:,} rows repeat a picture of another row")
    print(token_table(rows, args.max_pixels))


if __name__ == "__main__":
    main()
