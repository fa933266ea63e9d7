"""Read reasoning traces from wherever they are, check them, split them, and compare answers.

    python data.py --check DATA        what is in it, what is wrong with it and where

A row is {"question", "trace", "answer", "domain", "source"}; GSM8K's (solution #### answer) and s1K's columns are taken
as they are. DATA: a folder with train.jsonl and test.jsonl (or Parquet), one such file, or a name on the hub. Without
it: S1_SCALING_DATA_DIR, DATA_DIR/s1_scaling, hub.
"""

import argparse
import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from common.cli import arg
from common.paths import load_env
from common.rows import default_source, hold_out, read_splits, text_fault

HUB_NAME = "simplescaling/s1K-1.1"  # the thousand that s1.1 was trained on
COLUMNS = ("question", "trace", "answer")
# Where a released s1K file has them; a trace may be a list of one.
S1K = {
    "trace": ("deepseek_thinking_trajectory", "thinking_trajectories", "gemini_thinking_trajectory"),
    "answer": ("deepseek_attempt", "attempt", "gemini_attempt"),
    "domain": ("cot_type",),
    "source": ("source_type",),
}
EXAMPLES = 10  # problems described; the counts say how many there are
# <|im_start|> inside a trace would end the thinking in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
NGRAM = 8  # words in a row that two different problems seldom share


@dataclass
class DataArgs:
    """Flags that say what is read and what is held out of it."""

    data: str | None = arg(
        None, "folder with train and test, a file, a hub name (default: S1_SCALING_DATA_DIR, DATA_DIR/s1_scaling, hub)"
    )
    eval_ratio: float = arg(
        0.05, "share of the rows held out where there is no test file; rows that ask the same stay together"
    )
    split_seed: int = arg(42, "of the draw which rows are held out")


# -- reading


def load(source) -> dict:
    """Raw rows by split ("train", "test"), unchecked."""
    return read_splits(source, "main" if source == "openai/gsm8k" else None)


def standard(row):
    """A raw row under our column names. GSM8K keeps solution and answer in one text."""
    if not isinstance(row, dict):
        return row
    row = dict(row)
    for name, others in S1K.items():
        for other in others:
            if row.get(name) is None and row.get(other):
                row[name] = row[other][0] if isinstance(row[other], list) else row[other]
    answer = row.get("answer")
    if isinstance(answer, str) and answer.count("####") == 1:
        solution, row["answer"] = map(str.strip, answer.split("####"))
        row["trace"] = row.get("trace") or re.sub(r"<<[^>]*>>", "", solution)  # the calculator's notes
    return row


def check(row, needed=COLUMNS):
    """(reason or None, what was found) of a standard row."""
    if not isinstance(row, dict):
        return "wrong type", f"expected an object with {', '.join(needed)}, got {type(row).__name__}"
    for name in needed:
        if fault := text_fault(row, name):
            return fault
        if token := CONTROL_TOKEN.search(row[name]):
            return "delimiter", f"column {name}: {token[0]}, which would end the thinking or the turn there"
    return None, None


def clean(raw, source, needed=COLUMNS):
    """(usable rows, report) of raw rows. A row has stripped texts under the names of `needed`, a domain, a source, and its
    trace if there is one.

    Report: source, rows, kept, dropped (reason -> count), problems (text). Raises SystemExit where a column is missing
    altogether or no row is usable.
    """
    raw = [standard(row) for row in raw]
    columns = {name for row in raw if isinstance(row, dict) for name in row}
    for name in needed:
        if columns and name not in columns:
            raise SystemExit(f"{source}: no column {name!r}. Columns found: {', '.join(sorted(map(str, columns)))}.")
    rows, report = [], {"source": source, "rows": len(raw), "dropped": Counter(), "problems": []}
    for number, row in enumerate(raw, 1):
        reason, found = check(row, needed)
        if reason is None:
            known = {"domain": str(row.get("domain") or "all"), "source": str(row.get("source") or "")}
            trace = {"trace": str(row["trace"])} if row.get("trace") else {}
            rows.append(known | trace | {name: row[name].strip() for name in needed})
            continue
        report["dropped"][reason] += 1
        if report["dropped"][reason] <= EXAMPLES:
            report["problems"].append(f"{source}: row {number}: {found}; row dropped: {reason}")
    report["kept"] = len(rows)
    if not rows:
        raise SystemExit(f"{format_report(report)}\n{source}: no usable row in it.")
    return rows, report


def format_report(report):
    """The report of `clean` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} rows, {report.get('kept', 0):,} kept"
    return "\n".join([line + (f"; dropped: {reasons}" if reasons else ""), *report["problems"]])


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same question stay on one side, so nothing leaks."""
    held = hold_out(sorted({row["question"] for row in rows}), ratio, seed)
    sides = {True: [], False: []}
    for row in rows:
        sides[row["question"] in held].append(row)
    return sides[False], sides[True]


def load_splits(args):
    """Read, report and split: (training rows, held-out rows). args: DataArgs, or all flags of a script.

    A test file is what is held out where there is one; its rows need no trace, since their answers are what counts.
    """
    source = str(args.data or default_source(HUB_NAME))
    splits, train = load(source), []
    if "train" in splits:
        train, report = clean(splits["train"], f"{source}: train")
        print(format_report(report))
    if "test" not in splits:
        return split(train, args.eval_ratio, args.split_seed)
    test, report = clean(splits["test"], f"{source}: test", ("question", "answer"))
    print(format_report(report))
    return train, test


# -- answers


def normalise(text):
    """An answer as it is compared: "$1,600.00", "1600." and "１６００" are "1600"; "Answer: Friday." is "friday"."""
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans({"−": "-", "–": "-", "—": "-"}))
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    text = re.sub(r"^\s*(final )?answer\s*:", "", boxed[-1] if boxed else text, flags=re.I).strip(" \n\t.*").lower()
    text = re.sub(r"\s+", " ", text).replace(" and ", " ")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("$", "")
    text = re.sub(r"(?<![\d.:])(-?\d+)\.0+(?![\d])", r"\1", text)
    return re.sub(r"^(-?)0+(?=\d+$)", r"\1", text)


def short_answer(text, gold):
    """What a text answers: its last number where the gold answer is one, else its end, as long as the gold answer is."""
    text, gold = normalise(text), normalise(gold)
    if re.fullmatch(r"-?\d+(\.\d+)?", gold):
        numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text)
        return normalise(numbers[-1]) if numbers else ""
    found = re.search(rf"(?<![\w:.]){re.escape(gold)}$", text)
    return gold if found else text


def is_right(text, gold):
    """Whether a text ends in the gold answer (a number: whether its last number is that)."""
    return bool(normalise(gold)) and short_answer(text, gold) == normalise(gold)


# -- questions


def key(question):
    """The id of a question, the same in every file."""
    return hashlib.sha256(question.strip().encode()).hexdigest()[:16]


def grams(question):
    """Runs of 8 words; of a shorter question all its words."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", question).lower())
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def overlap(train, test):
    """How many test questions have 8 words in a row, or all their words, in common with a training question."""
    known = set().union(*(grams(row["question"]) for row in train))
    return sum(bool(grams(row["question"]) & known) for row in test)


def words(text):
    """A text's length where no tokenizer is at hand: words, digits and signs."""
    return len(re.findall(r"[^\W\d]+|\d|[^\w\s]", text))


def new_files(folder, *names):
    """The files of these names in a folder that need not be there yet. One that exists is kept: SystemExit."""
    files = [folder / name for name in names]
    for file in files:
        if file.exists():
            raise SystemExit(f"{file} exists and is kept: give another --out, or move it away.")
    return files


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="DATA", nargs="?", help="what to read (default: as train.py without --data)")
    args = parser.parse_args(argv)
    load_env()
    train, test = load_splits(DataArgs(args.check))
    print(f"{len(train):,} to train on, {len(test):,} held out; {overlap(train, test):,} of these share {NGRAM} words")
    for name in ("trace", "answer"):
        lengths = sorted(words(row[name]) for row in train)
        if lengths:
            print(f"{name}: {lengths[len(lengths) // 2]:,} words in the middle, {lengths[-1]:,} at most")


if __name__ == "__main__":
    main()
