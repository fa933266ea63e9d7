"""Read reasoning traces, check them, and choose few of many as s1 did: quality, then difficulty, then diversity.

    python data.py --generate 2400 --out DIR        made-up tasks: DIR/pool.jsonl with junk in it, DIR/test.jsonl
    python data.py --select 1000 --pool DIR/pool.jsonl --out DIR     the funnel: DIR/train.jsonl, funnel.json, funnel.png
    python data.py --check DATA                     what is in it, and what is wrong with it

A row is {"question", "trace", "answer", "domain", "source"}; GSM8K's (solution #### answer) and s1K's columns are taken
as they are. DATA: a folder with train.jsonl and test.jsonl (or Parquet), one such file, or a name on the hub. Without
--data: S1_SCALING_DATA_DIR, DATA_DIR/s1_scaling, hub.
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import tables
from common.cli import arg

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
# What s1 dropped as badly formatted: a question that needs a picture, or that is a piece of a numbered sheet.
BAD_FORM = {
    "drawing": re.compile(r"\[asy\]"),
    "image": re.compile(r"!\[[^\]]*\]\("),
    "numbering": re.compile(r"(?<!\w)p\d+\."),
    "heading": re.compile(r"\*\*[^*\n]*\d[^*\n]*\*\*"),
}
# stage -> (what is left of s1's pool after it, as the paper counts, what it does)
PAPER = {
    "collected": (59_029, "no duplicates, no row that shares 8 words in a row with a test question"),
    "complete": (54_116, "quality: question, trace and answer are there"),
    "well formed": (51_581, "quality: no picture, sheet number or delimiter in it"),
    "difficult": (24_496, "difficulty: no weak grader answers it"),
    "diverse": (1_000, "diversity: domains in equal parts, long traces first"),
}
RANKS = 64  # the trace of rank 64 is drawn with chance 2^-64: as good as never


@dataclass
class DataArgs:
    """Flags of the scripts that read rows."""

    data: str | None = arg(
        None, "folder with train and test, a file, a hub name (default: S1_SCALING_DATA_DIR, DATA_DIR/s1_scaling, hub)"
    )
    eval_ratio: float = arg(0.05, "share of the questions held out where there is no test file")
    split_seed: int = arg(42, "of the draw which")


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


# -- reading


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
        if fault := tables.text_fault(row, name):
            return fault
        if token := CONTROL_TOKEN.search(row[name]):
            return "delimiter", f"column {name}: {token[0]}, which would end the thinking or the turn there"
    return None, None


def clean(raw, source, needed=COLUMNS):
    """(usable rows, report) of raw rows; the texts are stripped, other columns stay as they are.

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
            texts = {name: row[name].strip() for name in needed}
            rows.append(row | {"domain": row.get("domain") or "all", "source": row.get("source") or ""} | texts)
            continue
        report["dropped"][reason] += 1
        if report["dropped"][reason] <= EXAMPLES:
            report["problems"].append(f"{source}: row {number}: {found}; row dropped: {reason}")
    report["kept"] = len(rows)
    if not rows:
        raise SystemExit(f"{format_report(report)}\n{source}: no usable row in it.")
    return rows, report


def read_splits(source=None, ratio=0.05, seed=42):
    """(training rows, held-out rows, reports). Without a test file `ratio` of the questions are held out.

    Held-out rows need no trace: their answers are what counts.
    """
    source = str(source or tables.default_source(HUB_NAME))
    splits = load(source)
    if "train" in splits:
        train, report = clean(splits["train"], f"{source}: train")
        reports = [report]
    else:
        train, reports = [], []
    if "test" in splits:
        test, report = clean(splits["test"], f"{source}: test", ("question", "answer"))
        return train, test, [*reports, report]
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.05.")
    asked = sorted({row["question"] for row in train})
    if len(asked) < 2:
        raise SystemExit(f"{source}: one question only. One to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(asked)
    held = set(asked[: min(max(1, round(len(asked) * ratio)), len(asked) - 1)])
    return (
        [row for row in train if row["question"] not in held],
        [row for row in train if row["question"] in held],
        reports,
    )


def load(source):
    """Raw rows by split, unchecked."""
    return tables.read_splits(source, "main" if source == "openai/gsm8k" else None)


def format_report(report):
    """The report of `clean` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} rows, {report.get('kept', 0):,} kept"
    return "\n".join([line + (f"; dropped: {reasons}" if reasons else ""), *report["problems"]])


# -- the funnel


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


def diverse(rows, count, seed, length=words):
    """`count` rows: a domain by lot, all equally likely, in it a trace by lot, the one of rank r with weight 2^-r.

    Rank 0 is the domain's longest trace. Without replacement; a domain that is used up is out. Where there are no more
    than `count` rows, all are taken.
    """
    draw, pools = random.Random(seed), {}
    for row in sorted(rows, key=lambda row: (-length(row["trace"]), key(row["question"]))):
        pools.setdefault(row["domain"], []).append(row)
    chosen = []
    while pools and len(chosen) < count:
        domain = draw.choice(sorted(pools))
        pool = pools[domain]
        weights = [2.0**-rank for rank in range(min(len(pool), RANKS))]
        chosen.append(pool.pop(draw.choices(range(len(weights)), weights)[0]))
        if not pool:
            del pools[domain]
    return chosen


def funnel(raw, count, against=(), grades=None, trusted=(), seed=0, length=words):
    """From a pool to `count` rows: (rows, stages).

    raw: rows as read. against: questions of every test set. grades: {id: {grader: right or not}}, None: nobody was asked.
    trusted: sources whose rows, if a grader did not solve them, are taken before the lot is drawn, as s1 did with
    AIME and GPQA. stages: a list of {stage, kept, paper, what, dropped}; each stage's kept + dropped is the last's kept.
    """
    if not raw:
        raise SystemExit("the pool is empty: nothing to choose from.")
    if count < 1:
        raise SystemExit(f"--select {count}: at least one row must be chosen.")
    clean_columns = {name for row in map(standard, raw) if isinstance(row, dict) for name in row}
    for name in COLUMNS:
        if name not in clean_columns:
            raise SystemExit(
                f"the pool has no column {name!r}. Columns found: {', '.join(sorted(map(str, clean_columns)))}."
            )
    rows, stages = [standard(row) for row in raw], [{"stage": "pool", "kept": len(raw), "dropped": {}}]

    def stage(name, reason_of):
        nonlocal rows
        reasons = [reason_of(row) for row in rows]
        rows = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        paper, what = PAPER[name]
        dropped = dict(Counter(reason for reason in reasons if reason))
        stages.append({"stage": name, "kept": len(rows), "paper": paper, "what": what, "dropped": dropped})
        if not rows:
            raise SystemExit(f"{as_table(stages)}\nno row is left after the stage '{name}'.")

    banned, seen = set().union(*map(grams, against)), set()

    def collected(row):
        question = row.get("question") if isinstance(row, dict) else None
        if not isinstance(question, str):
            return None  # the next stage's
        if key(question) in seen:
            return "duplicate"
        seen.add(key(question))
        return "test question" if grams(question) & banned else None

    def complete(row):
        reason = check(row)[0]
        return reason if reason != "delimiter" else None

    def well_formed(row):
        for name, pattern in BAD_FORM.items():
            if pattern.search(row["question"]):
                return name
        return check(row)[0]

    def difficult(row):
        if grades is None:
            return None
        known = grades.get(key(row["question"]))
        if known is None:
            return "not graded"  # unknown is not the same as too hard for the graders
        return "solved by a grader" if any(known.values()) else None

    stage("collected", collected)
    stage("complete", complete)
    rows = [
        row | {"domain": row.get("domain") or "all", "source": row.get("source") or ""}
        | {name: row[name].strip() for name in COLUMNS} for row in rows
    ]  # fmt: skip
    stage("well formed", well_formed)
    stage("difficult", difficult)
    first = [row for row in rows if row["source"] in trusted][:count]
    rest = [row for row in rows if row["source"] not in trusted]
    chosen = first + diverse(rest, count - len(first), seed, length)
    ids = {key(row["question"]) for row in chosen}
    stage("diverse", lambda row: None if key(row["question"]) in ids else "not drawn")
    stages[-1]["first"] = len(first)
    return chosen, stages


def as_table(stages):
    lines = [f"{'stage':<12}{'ours':>9}{'paper':>9}  dropped"]
    for stage in stages:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(stage["dropped"].items()))
        paper = f"{stage['paper']:,}" if "paper" in stage else ""
        lines.append(f"{stage['stage']:<12}{stage['kept']:>9,}{paper:>9}  {dropped}")
    return "\n".join(lines)


def entropy(rows):
    """Of the domains, in bits: log2 of their number where all are equally frequent."""
    counts = Counter(row["domain"] for row in rows).values()
    return -sum(n / len(rows) * math.log2(n / len(rows)) for n in counts)


def draw_funnel(stages, chosen, file):
    """funnel.png: what each stage keeps, ours beside the paper's, and the chosen rows by domain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    names = [stage["stage"] for stage in stages]
    for offset, label, values in (
        (-0.2, "ours", [stage["kept"] for stage in stages]),
        (0.2, "s1's paper", [stage.get("paper", 0) for stage in stages]),
    ):
        places = [place + offset for place in range(len(names))]
        bars = left.barh(places, values, 0.4, label=label)
        left.bar_label(bars, [f" {value:,}" if value else "" for value in values], fontsize=8)
    left.set(xscale="log", title="rows left", yticks=range(len(names)), yticklabels=names)
    left.margins(x=0.2)
    left.invert_yaxis()
    left.legend(loc="lower right")
    counts = Counter(row["domain"] for row in chosen)
    right.bar(list(counts), list(counts.values()))
    right.set(title=f"the {len(chosen):,} chosen, by domain ({entropy(chosen):.2f} bits)", ylabel="rows")
    right.tick_params(axis="x", rotation=30)
    new = file.with_name(f".{file.name}.new")
    figure.savefig(new, format="png", dpi=100)
    pyplot.close(figure)
    os.replace(new, file)


def read_grades(files):
    """{id: {grader: right}} of grade.py's files; None without a file."""
    if not files:
        return None
    grades = {}
    for file in files:
        for number, row in enumerate(tables.read_lines(file), 1):
            if not {"id", "grader", "right"} <= set(row):
                raise SystemExit(
                    f"{file}: line {number}: no grade (id, grader, right). Give files that grade.py wrote."
                )
            grades.setdefault(row["id"], {})[row["grader"]] = row["right"]
    return grades


def trace_length(model):
    """A function text -> tokens of the named model's tokenizer; without a name: words, digits and signs."""
    if model is None:
        return words
    from common.models import load_tokenizer
    from common.paths import resolve_model

    encode = load_tokenizer(resolve_model(model)).backend_tokenizer.encode
    return lambda text: len(encode(text, add_special_tokens=False).ids)


# -- commands


def write_rows(file, rows):
    """JSON lines to a new file; one that is there is never overwritten."""
    if file.exists():
        raise SystemExit(f"{file} exists and is not overwritten: give another --out, or move it away.")
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.new")
    new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(new, file)
    print(f"{len(rows):,} rows: {file}")


def generate(args):
    import tasks

    if args.generate < 2 * (len(tasks.SPOILED) + len(tasks.COPIED)):
        raise SystemExit(f"--generate {args.generate}: takes at least 18; nine of them are junk.")
    if not set(args.levels) <= set(tasks.LEVELS):
        raise SystemExit(f"--levels {' '.join(map(str, args.levels))}: levels are 1, 2 and 3.")
    for name in ("pool.jsonl", "test.jsonl"):
        if (args.out / name).exists():
            raise SystemExit(f"{args.out / name} exists and is not overwritten: give another --out, or move it away.")
    rows, test = tasks.pool(args.generate, tuple(args.levels), args.seed)
    write_rows(args.out / "pool.jsonl", rows)
    write_rows(args.out / "test.jsonl", test)


def select(args):
    if args.pool is None:
        raise SystemExit("--select takes its rows from --pool FILE.")
    if (args.out / "train.jsonl").exists():
        raise SystemExit(f"{args.out / 'train.jsonl'} exists and is not overwritten: give another --out.")
    against = args.against or [str(file) for file in [Path(args.pool).parent / "test.jsonl"] if file.exists()]
    banned = []
    for source in against:
        splits = load(source)
        raw = splits.get("test", splits.get("train"))
        banned += [row["question"] for row in clean(raw, source, ("question",))[0]]
    if not banned:
        print("no test questions were given: nothing is known about overlap. --against FILE ... names them")
    raw = load(args.pool)["train"]
    grades = read_grades(args.grades)
    if grades is None:
        print("no --grades: the stage 'difficult' keeps all. grade.py writes them")
    chosen, stages = funnel(raw, args.select, banned, grades, tuple(args.trusted), args.seed, trace_length(args.model))
    print(as_table(stages))
    left = stages[-2]["kept"]
    if left < args.select:
        print(f"{args.select:,} rows were asked for and {left:,} were left: all are taken")
    domains = Counter(row["domain"] for row in chosen)
    if len(domains) == 1:
        print("there is one domain only: chosen by the length of the traces alone")
    print(
        f"{len(chosen):,} chosen, {stages[-1]['first']:,} of them from trusted sources; domains "
        f"{', '.join(f'{name} {number:,}' for name, number in sorted(domains.items()))}; entropy {entropy(chosen):.2f} bits"
    )
    write_rows(args.out / "train.jsonl", chosen)
    facts = {"stages": stages, "seed": args.seed, "against": against, "grades": args.grades, "domains": domains}
    (args.out / "funnel.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw_funnel(stages, chosen, args.out / "funnel.png")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="DATA", nargs="?", const="", help="what to read (default: as train.py)")
    parser.add_argument("--generate", type=int, metavar="N", help="make a pool of N tasks, junk included, and a test")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3], help="how hard, of 1 2 3")
    parser.add_argument("--select", type=int, metavar="K", help="choose K rows of --pool")
    parser.add_argument("--pool", metavar="FILE", help="JSONL or Parquet to choose from")
    parser.add_argument("--against", nargs="+", metavar="FILE", help="test sets (default: test.jsonl beside the pool)")
    parser.add_argument("--grades", nargs="+", metavar="FILE", help="what grade.py wrote")
    parser.add_argument("--trusted", nargs="+", default=[], metavar="SOURCE", help="sources taken before the lot")
    parser.add_argument("--model", help="whose tokens count as a trace's length (default: words, digits and signs)")
    parser.add_argument("--seed", type=int, default=0, help="of tasks and lots")
    parser.add_argument("--out", type=Path, help="folder for what is made")
    args = parser.parse_args(argv)
    asked = [args.check is not None, args.generate is not None, args.select is not None]
    if sum(asked) != 1:
        raise SystemExit("give one of --check, --generate and --select; --help shows how.")
    from common.paths import load_env

    load_env()
    if args.check is not None:
        train, test, reports = read_splits(args.check or None)
        print("\n".join(map(format_report, reports)))
        print(
            f"{len(train):,} to train on, {len(test):,} held out; {overlap(train, test):,} of these share {NGRAM} words"
        )
        for name in ("trace", "answer"):
            lengths = sorted(words(row[name]) for row in train)
            if lengths:
                print(f"{name}: {lengths[len(lengths) // 2]:,} words in the middle, {lengths[-1]:,} at most")
        return
    if args.out is None:
        raise SystemExit("--out DIR: where shall it go?")
    generate(args) if args.generate is not None else select(args)


if __name__ == "__main__":
    main()
