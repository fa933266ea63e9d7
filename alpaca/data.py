"""Read alpaca rows (instruction, input, output) from wherever they are, check them, split them, put them into words.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the rows that are kept, one JSON object a line

FILE: JSON (a list), JSONL (an object a line), Parquet, CSV or .xlsx, a folder with such files of one set or of `datasets`
(save_to_disk), or a name on the hub. JSON and JSONL are told apart by what is in the file, whatever it is called.
"""

import argparse
from pathlib import Path

from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import Bad, blank, default_source, format_report, keep, object_of, piped, read, split_by, text_of

HUB_NAME = "yahma/alpaca-cleaned"  # the course's data set: what is read where no --data and no local folder is
COLUMNS = ("instruction", "input", "output")
HISTORY = (
    "needs its history"  # "And then?" makes no sense without the turns before it, for which the template has no place
)


def read_rows(source=None, answers=True):
    """The usable rows of a source, as dicts of three texts, and the report of common.rows.keep.

    source: see the module's docstring; None: ALPACA_DATA_DIR or DATA_DIR/alpaca if it exists, else the hub.
    answers: whether rows need an output. Raises SystemExit where the source cannot be read or no row is usable.
    """
    source = str(source or default_source(HUB_NAME))
    needed = COLUMNS if answers else COLUMNS[:2]
    names = {name: (name,) for name in COLUMNS}
    found = read(source, names, [name for name in needed if name != "input"])
    return keep(
        found,
        lambda row: check(row, needed),
        source,
        used={*COLUMNS, "history"},
        key=lambda row: ((row["instruction"], row["input"]), row.get("output")),
        needed=[name for name in needed if name != "input"],
    )


def check(row, needed):
    """The row's texts. Code keeps its indent in the answer. Raises Bad."""
    object_of(row, *needed)
    clean = {name: text_of(row, name, empty=name == "input", indented=name == "output") for name in needed}
    if not blank(row.get("history")):
        raise Bad(HISTORY, "history", f"{str(row['history'])[:40]}...")
    return clean


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same instruction and input stay on one side, so nothing leaks."""
    return split_by(rows, lambda row: (row["instruction"], row["input"]), ratio, seed)


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data)
    print(format_report(report))
    return split(rows, args.eval_ratio, args.split_seed)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: as train.py without --data)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the kept rows to this new file")
    args = parser.parse_args(argv)
    if args.out:
        new_file(args.out)
    load_env()
    rows, report = read_rows(args.check)
    print(format_report(report))
    print(f"without input: {sum(not row['input'] for row in rows):,} rows")
    for name in COLUMNS:
        lengths = sorted(len(row[name]) for row in rows)
        middle, most = lengths[len(lengths) // 2], lengths[-1]
        print(f"{name}: {middle:,} characters in the middle, {most:,} at most")
    if args.out:
        try:
            write_lines(args.out, rows)
        except OSError as error:
            raise SystemExit(f"{args.out} cannot be written: {error.strerror}.") from None
        print(f"{len(rows):,} rows written to {args.out}")


if __name__ == "__main__":
    piped(main)
