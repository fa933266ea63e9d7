"""Read math word problems (GSM8K and what looks like it), check them, put them into words; or make some.

    python data.py --check DATA                     what is in it, and how much the test questions share with training
    python data.py --arithmetic 80 --out DIR        made-up word problems, DIR/train.jsonl and DIR/test.jsonl
    python data.py --arithmetic 2000 --level 2 --out DIR

DATA: a folder with train.jsonl and test.jsonl (or Parquet), one JSONL file, or a name on the hub. A row is
{"question": ..., "answer": "the solution\\n#### 72"}, as in GSM8K. Without --data: R1_GRPO_DATA_DIR, DATA_DIR/r1_grpo, hub.
"""

import argparse
import random
import re
import zlib
from pathlib import Path

from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import Bad, default_source, keep, object_of, piped, split_by, text_of
from common.rows import format_report as format_rows
from common.rows import read_splits as read_raw
from common.settings import in_range
from prompt import conversation, ideal, prompt_ids
from rewards import TAGS, normalise, self_test, value

HUB_NAME, HUB_CONFIG = "openai/gsm8k", "main"
USED = {"question", "answer"}
NGRAM = 8  # words in a row that two different problems seldom share


# -- reading


def gold_of(answer):
    """The number after ####, normalised: "1600", "1.75", "3/8", and "18" for 36/2. None without exactly one plain number."""
    parts = answer.split("####")
    number = normalise(parts[1]) if len(parts) == 2 else ""
    worth = value(number)
    if worth is None:
        return None
    return str(worth.numerator) if worth.denominator == 1 else number


def read_splits(source=None):
    """(training rows, test rows, report): dicts with question, answer (as it was) and gold.

    A source of one file only is split: every tenth question, in an order of its own, is for the test. Report: source, splits
    (name -> the report of common.rows.keep), kept (name -> rows), overlap.
    Raises SystemExit where nothing can be read or no row is usable.
    """
    source = str(source or default_source(HUB_NAME))
    found = read_raw(source, HUB_CONFIG if source == HUB_NAME else None, needed=["train"])
    rows, report = {}, {"source": source, "splits": {}}
    for name, raw in found.items():
        rows[name], report["splits"][name] = keep(
            raw, check, f"{source}: {name}", used=USED, key=lambda row: (row["question"], row["gold"])
        )
    if "test" not in rows:
        rows["train"], rows["test"] = split_by(rows["train"], lambda row: row["question"], 0.1, 0, ordered=True)
    report["kept"] = {name: len(kept) for name, kept in rows.items()}
    report["overlap"] = overlap(rows["train"], rows["test"])
    return rows["train"], rows["test"], report


def check(row):
    """The row's question, answer and gold. Raises Bad."""
    object_of(row, "question", "answer")
    clean = {name: text_of(row, name) for name in ("question", "answer")}
    clean["gold"] = gold = gold_of(clean["answer"])
    if gold is None:
        raise Bad("no gold", "answer", f"expected one '#### number', it ends with {clean['answer'][-30:]!r}")
    best = ideal(clean)
    if tags := [tag for tag in TAGS if best.count(tag) != 1]:
        raise Bad("tag of the form", "answer", f"{tags[0]}, so its own solution could not earn all")
    return clean


def overlap(train, test):
    """How many test questions have 8 words in a row, or all their words, in common with a training question."""

    def grams(row):
        words = re.findall(r"\w+", row["question"].lower())
        return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}

    known = set().union(*map(grams, train))
    return sum(bool(grams(row) & known) for row in test)


def format_report(report):
    """The report of `read_splits` as text."""
    kept = report["kept"]
    total = (
        f"{kept['train']:,} to train on, {kept['test']:,} to test; {report['overlap']:,} test questions "
        f"share {NGRAM} words in a row with a training question"
    )
    return "\n".join([*map(format_rows, report["splits"].values()), total])


def load_splits(args):
    """Read and report: (training rows, test rows) of a script's flags."""
    train, test, report = read_splits(args.data)
    print(format_report(report))
    return train, test


def prompts_of(rows, tokenizer, max_prompt_tokens, name):
    """Rows as a datasets.Dataset: prompt (messages), answer (the gold number), input_ids (the prompt's).

    Rows over max_prompt_tokens are left out and counted: a question that is cut off has another answer, or none.
    """
    from datasets import Dataset

    kept = [
        {"prompt": conversation(row), "answer": row["gold"], "input_ids": ids}
        for row, ids in zip(rows, prompt_ids(tokenizer, rows), strict=True)
        if len(ids) <= max_prompt_tokens
    ]
    if len(kept) < len(rows):
        print(f"{name}: {len(rows) - len(kept):,} prompts over --max_prompt_tokens {max_prompt_tokens} left out")
    if not kept:
        raise SystemExit(f"{name}: no prompt fits in --max_prompt_tokens {max_prompt_tokens}.")
    return Dataset.from_list(kept)


# -- made-up problems

NAMES = ("Ana", "Ben", "Chen", "Dora", "Eli", "Fay", "Gus", "Hana", "Ivan", "Jun", "Kim", "Lea", "Mei", "Nils", "Olga")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "keys", "marbles", "pens", "shells", "stamps", "toys")
# (text of one step, its sign). Training and test have templates of their own: what is learned has to carry over.
STEPS = {
    "train": (
        ("{name} has {a} {things} and gets {b} more.", "+"),
        ("There are {a} {things} in a box. {name} adds {b}.", "+"),
        ("{name} buys {a} {things} today and {b} tomorrow.", "+"),
        ("{name} has {a} {things} and loses {b}.", "-"),
        ("There are {a} {things} on the table. {name} takes {b} away.", "-"),
        ("{name} had {a} {things} and sold {b}.", "-"),
    ),
    "test": (
        ("A shelf holds {a} {things}. {name} puts {b} new ones beside them.", "+"),
        ("{name} finds {a} {things}, then another {b}.", "+"),
        ("Of {a} {things}, {name} gives {b} to a friend.", "-"),
        ("{name} owns {a} {things} but breaks {b}.", "-"),
    ),
}
SECOND = {
    "train": (("Then {c} more come.", "+"), ("Then {c} are gone.", "-")),
    "test": (("A friend brings {c}.", "+"), ("Later {c} get lost.", "-")),
}
ASKED = {"train": "How many {things} are there now?", "test": "What is the number of {things} now?"}
LEVELS = {1: (2, 9, 1), 2: (11, 49, 1), 3: (11, 49, 2)}  # smallest and largest number, steps


def held_out(line):
    """Whether "25 + 14 = 39" is for the test: one of five sums, with its kin 14 + 25, 39 - 14 and 39 - 25, whatever the seed."""
    return zlib.crc32(" ".join(sorted(re.findall(r"\d+", line))).encode()) % 5 == 0


def arithmetic(count, level=1, split="train", seed=0):
    """`count` different word problems of a level, as rows of question and answer, in GSM8K's form.

    Level 1: one step with numbers below 10; 2: with two digits; 3: two steps with two digits. No result is negative. A test
    problem has other sentences than training, and a sum that no training problem has.
    """
    low, high, steps = LEVELS[level]
    draw, made = random.Random(f"{seed} {split} {level}"), {}
    for _ in range(count * 200):
        if len(made) == count:
            break
        text, sign = draw.choice(STEPS[split])
        values = dict(name=draw.choice(NAMES), things=draw.choice(THINGS), a=draw.randint(low, high))
        values["b"] = draw.randint(low, high)
        if sign == "-" and values["b"] >= values["a"]:
            values["a"], values["b"] = values["b"] + 1, values["a"]
        result = values["a"] + values["b"] if sign == "+" else values["a"] - values["b"]
        lines = [f"{values['a']} {sign} {values['b']} = {result}"]
        if steps == 2:
            more, sign = draw.choice(SECOND[split])
            text, values["c"] = f"{text} {more}", draw.randint(2, high)
            if sign == "-" and values["c"] > result:
                continue
            after = result + values["c"] if sign == "+" else result - values["c"]
            lines.append(f"{result} {sign} {values['c']} = {after}")
            result = after
        if any(map(held_out, lines)) != (split == "test"):
            continue
        question = f"{text} {ASKED[split]}".format(**values)
        made[question] = "\n".join(lines) + f"\n#### {result}"
    if len(made) < count:
        raise SystemExit(f"level {level} has fewer than {count:,} different {split} problems. Ask for fewer.")
    return [{"question": question, "answer": answer} for question, answer in made.items()]


def write_arithmetic(folder, count, level, seed):
    """DIR/train.jsonl with `count` problems and DIR/test.jsonl with a third as many; nothing is overwritten."""
    sizes = {"train": count, "test": max(1, count // 3)}
    made = {split: arithmetic(size, level, split, seed) for split, size in sizes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: new_file(folder / f"{split}.jsonl") for split in made}
    for split, file in files.items():
        write_lines(file, made[split])
        print(f"{sizes[split]:,} problems of level {level}: {file}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="DATA", nargs="?", help="what to read (default: as train.py without --data)")
    parser.add_argument(
        "--arithmetic",
        type=in_range("arithmetic"),
        metavar="N",
        help="make N training problems, and a third for the test",
    )
    parser.add_argument("--level", type=int, choices=LEVELS, default=1, help="1 to 3: how hard they are (1)")
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="of the drawing (0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the made problems go")
    args = parser.parse_args(argv)
    load_env()
    if args.arithmetic:
        if not args.out:
            raise SystemExit("--arithmetic needs --out DIR.")
        return write_arithmetic(args.out, args.arithmetic, args.level, args.seed)
    train, test, report = read_splits(args.check)
    print(format_report(report))
    print(self_test(train, ideal))  # as train.py does: what it would refuse is refused here
    for name in ("question", "answer"):
        lengths = sorted(len(row[name]) for row in train)
        print(f"{name}: {lengths[len(lengths) // 2]:,} characters in the middle, {lengths[-1]:,} at most")


if __name__ == "__main__":
    piped(main)
