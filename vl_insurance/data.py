"""Read a spreadsheet of photos and answers, check every row and every picture, split it.

    python data.py --check FILE                      a table: which rows can be used, and why not the others
    python data.py --check FILE --image_root PHOTOS  where the pictures are not beside the file

FILE: .xlsx, .csv or .jsonl with the columns id, prompt, image, response (headers in any case, with stray blanks; further
columns are left alone). image is a path under the file's folder, or under --image_root, and never leads out of it.
"""

import argparse
import hashlib
import random
import re
from collections import Counter
from pathlib import Path

from common.files import text_table
from common.paths import load_env
from pictures import BadPicture, find_picture, image_tokens, is_rotated, load_image
from sheet import COLUMNS, read_table

EXAMPLES = 10  # problems described for each reason; the counts say how many there are
# <|im_end|> inside a row would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
EMBEDDED = "picture in the cell"
HOW_TO_TAKE_OUT = (
    "pictures inside the sheet are not read: save them as files (in WPS or Excel: save as .zip or a web page, they are in "
    "xl/media), and put each file's name into the column image"
)


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


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same picture stay on one side, so nothing leaks."""
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.1.")
    pictures = sorted({row["sha256"] for row in rows})
    if len(pictures) < 2:
        raise SystemExit(f"{len(pictures)} different picture: one to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(pictures)
    held = set(pictures[: min(max(1, round(len(pictures) * ratio)), len(pictures) - 1)])
    return [row for row in rows if row["sha256"] not in held], [row for row in rows if row["sha256"] in held]


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data, args.image_root, args.sheet)
    print(format_report(report))
    if args.overfit:
        return rows[: args.overfit], rows[: args.overfit]
    return split(rows, args.eval_ratio, args.split_seed)


def token_table(rows, max_pixels):
    """How many image tokens the pictures take, as a table: the caps that are worth trying."""
    lines = []
    for cap in sorted({256 * 784, 512 * 784, 1024 * 784, max_pixels, 12_845_056}):
        counts = sorted(image_tokens(row["size"], cap) for row in rows)
        numbers = (counts[0], counts[len(counts) // 2], counts[-1])
        lines.append([f"{cap:,}", *(f"{count:,}" for count in numbers), "<- --max_pixels" if cap == max_pixels else ""])
    return text_table(("--max_pixels", "image tokens per row: least", "middle", "most", ""), lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: as train.py without --data)")
    parser.add_argument("--image_root", help="the folder that image paths start from (default: the file's own)")
    parser.add_argument("--sheet", help="which sheet of an xlsx (default: the first)")
    parser.add_argument("--max_pixels", type=int, default=1024 * 784, help="train.py's (1024 x 784 = 802,816)")
    args = parser.parse_args(argv)
    load_env()
    rows, report = read_rows(args.check, args.image_root, args.sheet)
    print(format_report(report))
    same = len(rows) - len({row["sha256"] for row in rows})
    print(f"{report['prompts']:,} different prompts; {same:,} rows repeat a picture of another row")
    print(token_table(rows, args.max_pixels))


if __name__ == "__main__":
    main()
