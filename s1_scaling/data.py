"""Read reasoning traces from wherever they are, check them, and split them.

    python data.py --check DATA        what is in it, what is wrong with it and where

A row is {"question", "trace", "answer", "domain", "source"}; GSM8K's (solution #### answer) and s1K's columns are taken
as they are. Trained on is the answer; in s1K that is the teacher's attempt, right or wrong, as s1 did. Graded is by `gold`,
which s1K has in its column `solution`; a row without one is graded by its answer.

DATA: a folder with train.jsonl and test.jsonl (or Parquet), one such file, or a name on the hub. Without it:
S1_SCALING_DATA_DIR, DATA_DIR/s1_scaling, hub.
"""

import argparse
import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import partial

from common.cli import arg
from common.grading import answer_of, is_right, short_answer
from common.paths import load_env
from common.rows import default_source, format_report, keep, object_of, piped, read_splits, split_by, text_of

HUB_NAME = "simplescaling/s1K-1.1"  # the thousand that s1.1 was trained on
COLUMNS = ("question", "trace", "answer")
# Where a released s1K file has a teacher's trace, which may be a list of one, and the same teacher's answer.
TEACHERS = (
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("thinking_trajectories", "attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
)
S1K = {"domain": "cot_type", "source": "source_type"}
EXAMPLES = 10  # teachers' wrong answers shown; the count says how many there are
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
    """Raw rows with their places by split ("train", "test"), unchecked."""
    return read_splits(source, "main" if source == "openai/gsm8k" else None)


def standard(row):
    """A raw row under our column names. GSM8K keeps solution and answer in one text; s1K has what a teacher tried, which
    is the answer here, and a solution, whose answer is gold ("" where none can be found in it)."""
    row = dict(row)
    row |= {name: row[other] for name, other in S1K.items() if row.get(name) is None and row.get(other)}
    if row.get("answer") is None:
        solution = row.get("solution")
        solution = "" if solution is None else str(solution)
        for trace, attempt in TEACHERS:
            if row.get(trace) and row.get(attempt) and not row.get("trace"):
                first = row[trace][0] if isinstance(row[trace], list) else row[trace]
                row |= {"trace": first, "answer": row[attempt], "gold": answer_of(solution)}
        if row.get("answer") is None and solution:  # a test set, which needs no teacher
            row |= {"answer": solution, "gold": answer_of(solution)}
    answer = row.get("answer")
    if isinstance(answer, str) and answer.count("####") == 1:
        solution, row["answer"] = map(str.strip, answer.split("####"))
        row["trace"] = row.get("trace") or re.sub(r"<<[^>]*>>", "", solution)  # the calculator's notes
    return row


def check(row, needed=COLUMNS):
    """A raw row's stripped texts under the names of `needed`, a domain, a source, and its trace if there is one. Raises Bad."""
    row = standard(object_of(row, *needed))
    clean = {"domain": str(row.get("domain") or "all"), "source": str(row.get("source") or "")}
    if "trace" not in needed and row.get("trace"):
        clean["trace"] = str(row["trace"])
    if row.get("gold") is not None:
        clean["gold"] = str(row["gold"]).strip()
    return clean | {name: text_of(row, name) for name in needed}


def clean(raw, source, needed=COLUMNS):
    """(usable rows, report) of raw rows with their places, as common.rows.keep gives them. Raises SystemExit."""
    return keep(raw, partial(check, needed=needed), source, key=lambda row: (row["question"], row.get("answer")))


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same question stay on one side, so nothing leaks."""
    return split_by(rows, lambda row: row["question"], ratio, seed, ordered=True)


def load_splits(args):
    """Read, report and split: (training rows, held-out rows). args: DataArgs, or all flags of a script.

    A test file is what is held out where there is one; its rows need no trace, since their answers are what counts.
    """
    source = str(args.data or default_source(HUB_NAME))
    splits, train = load(source), []
    if "train" in splits:
        train, report = clean(splits["train"], f"{source}: train")
        print(format_report(report))
        if said := teachers_errors(train):
            print(said)
    if "test" not in splits:
        return split(train, args.eval_ratio, args.split_seed)
    test, report = clean(splits["test"], f"{source}: test", ("question", "answer"))
    print(format_report(report))
    return train, test


def own_data(arguments):
    """What a run was trained on and held out, from its recorded arguments: for load_splits."""
    return DataArgs(arguments.get("data"), arguments["eval_ratio"], arguments["split_seed"])


# -- golds


def gold_of(row):
    """What an answer to this question is compared with; "" where nothing can be."""
    return row.get("gold", row.get("answer", ""))


def with_gold(rows):
    """The rows that can be graded; how many cannot is said. Asked for a proof, no answer is wrong, and none is right."""
    kept = [row for row in rows if gold_of(row)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept):,} of {len(rows):,} solutions have no answer that could be compared: not graded")
    return kept


def teachers_errors(rows):
    """A text: how many of the answers that are trained on are not what the data set's solution says. "" without solutions."""
    known = [row for row in rows if row.get("gold")]
    wrong = [row for row in known if not is_right(row["answer"], row["gold"])]
    lines = [f"{len(wrong):,} of {len(known):,} teacher's answers are not the solution's: trained on, but never gold"]
    for row in wrong[:EXAMPLES]:
        said = short_answer(row["answer"], row["gold"])[-60:]
        lines.append(f"  solution {row['gold']!r}, teacher {said!r}: {row['question'][:60]!r}")
    return "\n".join(lines) if known else ""


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
    piped(main)
