"""Made-up tasks whose answers can be checked, with traces that show the work: what s1 collected, in small.

    python tasks.py --generate 2400 --out DIR    DIR/pool.jsonl with junk in it, DIR/test.jsonl

Five domains, three levels each. Traces are thinking as s1's teacher wrote it, in small: one step a line, and in a
controlled share a second look. After "Wait" a first result is confirmed, or corrected where the first look made a
slip that a person makes (a carry forgotten, an r overlooked). s1's data has such moments from its teacher model; here
they are put in, and that is the whole reason why "Wait" can help a model trained on it.
"""

import argparse
import random
from pathlib import Path

from common.files import write_lines
from common.settings import in_range
from data import new_files
from domains import ASKED, LEVELS, TEST_WORDS, WORDS, clock, dates, letters, sums, units

CORRECTED, CONFIRMED = 0.3, 0.15  # shares of the traces with a second look, after a wrong and after a right first one
AGAIN = "Wait, let me check."
JUNK = 80  # of so many rows one is spoiled, in each of the ways of spoil()


def task(draw, domain, level, split):
    """One row: question, trace, answer, domain, source, level, look (once, confirmed or corrected)."""
    if domain == "letters":
        values, look = letters(draw, level, WORDS if split == "train" else TEST_WORDS)
    else:
        values, look = {"sums": sums, "dates": dates, "units": units, "clock": clock}[domain](draw, level)
    question = draw.choice(ASKED[domain][level][split]).format(**values)
    (lines, gold), (slipped, wrong), share = look(False), look(True), draw.random()
    done, kind = [*lines, f"So it is {gold}."], "once"
    if share < CORRECTED and wrong != gold:
        done, kind = [*slipped, f"So it is {wrong}.", AGAIN, *done], "corrected"
    elif CORRECTED <= share < CORRECTED + CONFIRMED:
        done, kind = [*done, AGAIN, *done], "confirmed"
    trace = "\n".join(done)
    return dict(question=question, trace=trace, answer=gold, domain=domain, source="made-up", level=level, look=kind)


def make(count, split="train", levels=LEVELS, seed=0, known=(), domains=tuple(ASKED)):
    """`count` different tasks, domains and levels in turn. known: questions that must not be asked again."""
    draw, made, asked = random.Random(f"{seed} {split} {levels}"), [], set(known)
    for number in range(count * 100):
        if len(made) == count:
            return made
        row = task(draw, domains[number % len(domains)], levels[number // len(domains) % len(levels)], split)
        if row["question"] not in asked:
            asked.add(row["question"])
            made.append(row)
    raise SystemExit(f"levels {levels} have fewer than {count:,} different {split} tasks. Ask for fewer.")


SPOILED = ("no trace", "no answer", "image", "drawing", "numbering", "heading", "delimiter")
COPIED = ("duplicate", "test question")


def spoil(kind, row):
    """What a collected pool has in it beside good rows."""
    question, trace = row["question"], row["trace"]
    return (
        row
        | {
            "no trace": {"trace": None},
            "no answer": {"answer": ""},
            "image": {"question": f"{question} ![Image](task.png)"},
            "drawing": {"question": f"{question} [asy] draw((0,0)--(3,4)); [/asy]"},
            "numbering": {"question": f"p7. {question}"},
            "heading": {"question": f"**Problem 12** {question}"},
            "delimiter": {"trace": f"{trace}\n<|im_start|>answer"},
        }[kind]
    )


def pool(count, levels=LEVELS, seed=0, domains=tuple(ASKED)):
    """(pool of `count` rows, shuffled; a quarter as many test rows). One pool row in JUNK is spoiled in each way of
    SPOILED, one is a copy of another row, and one is a test question."""
    test = make(max(10, count // 4), "test", levels, seed, domains=domains)
    each = max(1, count // JUNK)
    rows = make(count - each * len(COPIED), "train", levels, seed, domains=domains)
    draw = random.Random(seed)
    draw.shuffle(rows)
    for number, kind in enumerate(kind for kind in SPOILED for _ in range(each)):
        rows[number] = spoil(kind, rows[number])
    rows += draw.sample(rows[each * len(SPOILED) :], each) + draw.sample(test, each)
    draw.shuffle(rows)
    return rows, test


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--generate", type=int, metavar="N", required=True, help="rows of the pool, junk included")
    parser.add_argument("--levels", type=int, nargs="+", choices=LEVELS, default=LEVELS, help="how hard")
    parser.add_argument("--domains", nargs="+", choices=ASKED, default=list(ASKED), help="which kinds of task")
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="of the tasks and the junk")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for pool.jsonl and test.jsonl")
    args = parser.parse_args(argv)
    least = 2 * (len(SPOILED) + len(COPIED))
    if args.generate < least:
        raise SystemExit(f"--generate {args.generate}: takes at least {least}; nine of them are junk.")
    files = new_files(args.out, "pool.jsonl", "test.jsonl")
    made = pool(args.generate, tuple(args.levels), args.seed, tuple(args.domains))
    args.out.mkdir(parents=True, exist_ok=True)
    for file, rows in zip(files, made, strict=True):
        write_lines(file, rows)
        print(f"{len(rows):,} rows: {file}")


if __name__ == "__main__":
    main()
