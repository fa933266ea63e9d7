"""Read alpaca rows (instruction, input, output) from wherever they are, check them, split them, put them into words.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the rows that are kept, one JSON object a line

FILE: JSON (a list), JSONL (an object a line), Parquet, a folder of `datasets` (save_to_disk), or a name on the hub.
JSON and JSONL are told apart by what is in the file, whatever it is called.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import default_source, hold_out, read

HUB_NAME = "yahma/alpaca-cleaned"  # the course's data set: what is read where no --data and no local folder is
COLUMNS = ("instruction", "input", "output")
# A row is dropped for the first of these that is true of it.
MISSING, TYPE, EMPTY, BROKEN, CONTROL = "missing", "wrong type", "empty", "broken characters", "control token"
EXAMPLES = 10  # problems described for each reason; the counts say how many, these say where to look

# <|im_end|> inside a row would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")


def read_rows(source=None, answers=True):
    """The usable rows of a source, as dicts of three stripped strings, and a report.

    source: see the module's docstring; None: ALPACA_DATA_DIR or DATA_DIR/alpaca if it exists, else the hub.
    answers: whether rows need an output. Report: source, rows, kept, dropped (reason -> count), problems (text).
    Raises SystemExit where the source cannot be read or no row is usable.
    """
    source = str(source or default_source(HUB_NAME))
    needed = COLUMNS if answers else COLUMNS[:2]
    raw, rows, dropped, problems = list(read(source)), [], Counter(), []
    columns = {name for row in raw if isinstance(row, dict) for name in row}
    for name in needed:
        if raw and columns and name not in columns and name != "input":
            raise SystemExit(f"{source}: no column {name!r}. Columns found: {', '.join(sorted(map(str, columns)))}.")
    for number, row in enumerate(raw, 1):
        clean, reason, column, found = check(row, needed)
        if reason is None:
            rows.append(clean)
            continue
        dropped[reason] += 1
        if dropped[reason] <= EXAMPLES:
            where = f", column {column}" if column else ""
            problems.append(f"{source}: row {number}{where}: {found}; row dropped: {reason}")
    report = dict(source=source, rows=len(raw), kept=len(rows), dropped=dropped, problems=problems)
    if not rows:
        raise SystemExit(f"{format_report(report)}\n{source}: no usable row in it.")
    return rows, report


def check(row, needed):
    """(clean row, reason or None, column, what was found) of one raw row."""
    if not isinstance(row, dict):
        return None, TYPE, None, f"expected an object with {', '.join(needed)}, got {type(row).__name__}"
    clean = {}
    for name in needed:
        value = row.get(name)
        if value is None and name == "input":
            value = ""
        if value is None:
            return None, MISSING, name, "null" if name in row else "not there"
        if not isinstance(value, str):
            return None, TYPE, name, f"expected text, got {type(value).__name__}"
        value = value.strip()
        if not value and name != "input":
            return None, EMPTY, name, "no text"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return None, BROKEN, name, "half of a surrogate pair"
        if token := CONTROL_TOKEN.search(value):
            return None, CONTROL, name, token[0]
        clean[name] = value
    return clean, None, None, None


def format_report(report):
    """The report of `read_rows` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} rows, {report['kept']:,} kept"
    return "\n".join([line + (f"; dropped: {reasons}" if reasons else ""), *report["problems"]])


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same instruction and input stay on one side, so nothing leaks."""
    held = hold_out(((row["instruction"], row["input"]) for row in rows), ratio, seed)
    sides = {True: [], False: []}
    for row in rows:
        sides[(row["instruction"], row["input"]) in held].append(row)
    return sides[False], sides[True]


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
    main()
