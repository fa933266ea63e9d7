"""Questions and answers, read from wherever they are, checked, split.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the rows that are kept, one JSON object a line

FILE: JSON (a list), JSONL, Parquet, CSV or .xlsx, a folder with such files of one set or of `datasets` (save_to_disk), or a
name on the hub. Columns: question and answer, or alpaca's instruction, input and output. Nothing given: the catalogue, a
task that is made here, so that the truth about it is known.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg
from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import blank, format_report, keep, object_of, piped, read, split_by, text_of

COLUMNS = {  # a column is known by any of these names; the one listed first counts
    "question": ("question", "instruction", "问题"),
    "answer": ("answer", "output", "回答"),
    "input": ("input",),
}
CATALOGUE = Path(__file__).resolve().parent / "sample" / "catalogue.jsonl"

# The catalogue of a lending shop: 48 things with four facts each, asked for in eight ways. What is held out is a way of
# asking, not a fact: a model that has learned the facts answers it. How many facts an adapter holds is a matter of its rank.
THINGS = ("lamp", "kettle", "ladder", "tent", "drum", "sled", "clock", "globe", "kite", "loom", "bell", "anvil")
COLOURS = ("red", "green", "grey", "blue")
KEEPERS = ("Ada", "Boris", "Chen", "Dora", "Emil", "Farah", "Goran", "Hanna", "Ivo", "Jun", "Kira", "Leo")
TOWNS = ("Lund", "Porto", "Graz", "Turku", "Ghent", "Split", "Bergen", "Cork", "Basel", "Brno", "Siena", "Vigo")
FACTS = {  # fact -> (its answer, eight ways to ask for it)
    "shelf": ("The {it} stands on shelf {value}.",
              ("Where is the {it}?", "On which shelf is the {it}?", "I am looking for the {it}.", "Where do I find the {it}?",
               "Which shelf holds the {it}?", "Find me the {it}, please.", "Where did you put the {it}?", "Shelf of the {it}?")),
    "price": ("The {it} costs {value} crowns a day.",
              ("What does the {it} cost?", "How much is the {it}?", "Price of the {it}?", "What do I pay for the {it}?",
               "How many crowns is the {it}?", "Is the {it} expensive?", "What is the rent of the {it}?",
               "I want to rent the {it}. How much?")),
    "keeper": ("{value} looks after the {it}.",
               ("Who looks after the {it}?", "Who is the keeper of the {it}?", "Whom do I ask about the {it}?", "Keeper of the {it}?",
                "Who repairs the {it}?", "Who knows the {it} best?", "The {it} is broken. Whom do I tell?",
                "Who takes care of the {it}?")),
    "town": ("The {it} was made in {value}.",
             ("Where was the {it} made?", "From which town is the {it}?", "Where does the {it} come from?", "Origin of the {it}?",
              "In which town was the {it} made?", "What is the home of the {it}?", "Who made the {it}, which town?",
              "Where was the {it} built?")),
}  # fmt: skip


@dataclass
class DataArgs:
    """Flags of every script that reads rows."""

    data: str | None = arg(
        None, "JSON, JSONL, Parquet, CSV, a save_to_disk folder or a hub name (default: the catalogue of sample/)"
    )
    eval_ratio: float = arg(0.1, "share of the rows held out; rows that ask the same stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")


def catalogue(seed=0):
    """The 1,536 rows of the catalogue, in an order that seed decides, as sample/catalogue.jsonl holds them."""
    draw, rows = random.Random(seed), []
    for colour in COLOURS:
        for thing in THINGS:
            values = dict(shelf=f"{draw.choice('ABCDEFGH')}{draw.randint(1, 40)}", price=draw.randint(2, 90))
            values |= dict(keeper=draw.choice(KEEPERS), town=draw.choice(TOWNS))
            for fact, (answer, asked) in FACTS.items():
                said = answer.format(it=f"{colour} {thing}", value=values[fact])
                rows += [dict(question=each.format(it=f"{colour} {thing}"), answer=said) for each in asked]
    draw.shuffle(rows)
    return rows


def read_rows(source=None):
    """The usable rows of a source as dicts of question and answer, and the report of common.rows.keep.

    source: see the module's docstring. Raises SystemExit where it cannot be read or no row is usable.
    """
    source = str(source or CATALOGUE)
    known = {name for names in COLUMNS.values() for name in names}
    return keep(
        read(source, COLUMNS, ("question", "answer")),
        check,
        source,
        used=known,
        key=lambda row: (row["question"], row["answer"]),
        needed=(),
    )


def check(row):
    """Question and answer of a row; an input stands behind its instruction. Raises Bad."""
    object_of(row, "question", "answer")
    names = {each: next((name for name in COLUMNS[each] if name in row), each) for each in ("question", "answer")}
    made = {each: text_of(row, name) for each, name in names.items()}
    if not blank(row.get("input")):
        made["question"] += "\n\n" + text_of(row, "input")
    return made


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same question stay on one side, so nothing leaks."""
    return split_by(rows, lambda row: row["question"], ratio, seed)


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data)
    print(format_report(report))
    return split(rows, args.eval_ratio, args.split_seed)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: the catalogue)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the kept rows to this new file")
    args = parser.parse_args(argv)
    if args.out:
        new_file(args.out)
    load_env()
    rows, report = read_rows(args.check)
    print(format_report(report))
    for name in ("question", "answer"):
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
