"""Read a spreadsheet of photos and answers, check every row and every picture, split it.

    python data.py --check FILE                      a table: which rows can be used, and why not the others
    python data.py --check FILE --image_root PHOTOS  where the pictures are not beside the file

FILE: .xlsx, .csv or .jsonl with the columns id, prompt, image, response (headers in any case, with stray blanks; further
columns are left alone). image is a path under the file's folder, or under --image_root, and never leads out of it.
"""

import argparse
import hashlib
from pathlib import Path

from common.files import text_table
from common.paths import load_env
from common.rows import Bad, clean_text, format_report, keep, object_of, piped, split_by, text_of
from common.settings import in_range
from pictures import BadPicture, find_picture, image_tokens, is_rotated, load_image
from sheet import COLUMNS, read_table

TAG = "<image>"  # where other trainers want the picture; here the template puts it


def read_rows(source=None, image_root=None, sheet=None):
    """The usable rows and the report of common.rows.keep, with the places of the pictures that are turned upright.

    A row: id, prompt, response, image (an absolute path as text), sha256 (of the file), size (width, height after turning
    it upright), display (a column of render.py's; "" elsewhere). Pictures are opened one after another, none is kept.
    Raises SystemExit where no row is usable.
    """
    path, table = read_table(source, sheet)
    root = Path(image_root).expanduser() if image_root else path.parent
    if not root.is_dir():
        raise SystemExit(f"{root}: no such folder (--image_root).")
    seen, tagged = set(), []
    rows, report = keep(table, lambda raw: check(raw, root, seen, tagged), path, used={*COLUMNS, "display"})
    turned = sum(row.pop("rotated") for row in rows)
    if turned:
        report["notes"].append(f"{turned:,} pictures lie on their side and are turned upright (EXIF)")
    if tagged:
        report["notes"].append(f"{len(tagged):,} prompts had {TAG} in them: taken out, the template puts the picture")
    return rows, report


def check(raw, root, seen, tagged):
    """One usable row of a raw one. seen: ids so far; tagged: prompts that had <image> in them. Raises Bad with the first
    thing that is wrong."""
    object_of(raw, *COLUMNS)
    for name in COLUMNS:
        text_of(raw, name)
    if raw["id"] in seen:
        raise Bad("duplicate id", "id", f"{raw['id'][:40]} stands in an earlier row, too")
    try:
        path = find_picture(raw["image"], root)
        size = load_image(path).size
    except BadPicture as problem:
        reason, _, found = str(problem).partition(": ")
        raise Bad(reason, "image", f"{raw['image'][:80]!r}: {found}" if raw["image"] not in found else found) from None
    prompt = raw["prompt"]
    if TAG in prompt:
        tagged.append(prompt)
        prompt = clean_text(prompt.replace(TAG, ""), "prompt")
    seen.add(raw["id"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = dict(id=raw["id"], prompt=prompt, response=raw["response"], image=str(path), sha256=digest, size=size)
    return row | dict(display=raw.get("display", ""), rotated=is_rotated(path))


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same picture stay on one side, so nothing leaks."""
    return split_by(rows, lambda row: row["sha256"], ratio, seed, ordered=True)


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
    parser.add_argument("--sheet", help="which sheet of an xlsx (default: every one with the columns)")
    parser.add_argument(
        "--max_pixels", type=in_range("max_pixels"), default=1024 * 784, help="train.py's (1024 x 784 = 802,816)"
    )
    args = parser.parse_args(argv)
    load_env()
    rows, report = read_rows(args.check, args.image_root, args.sheet)
    print(format_report(report))
    same = len(rows) - len({row["sha256"] for row in rows})
    print(f"{len({row['prompt'] for row in rows}):,} different prompts; {same:,} rows repeat a picture of another row")
    print(token_table(rows, args.max_pixels))


if __name__ == "__main__":
    piped(main)
