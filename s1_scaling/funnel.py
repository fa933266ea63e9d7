"""Choose few of many traces as s1 did: quality, then difficulty, then diversity (arXiv 2501.19393, section 2).

    python funnel.py --select 1000 --pool DIR/pool.jsonl --out DIR     DIR/train.jsonl, funnel.json, funnel.png

A pool is a JSON lines or Parquet file with rows as data.py reads them. Difficulty is what grade.py measured (--grades);
without it that stage keeps all.
"""

import argparse
import math
import random
import re
from collections import Counter
from pathlib import Path

from common import hub, models
from common.files import save_figure, text_table, write_json, write_lines
from common.paths import load_env
from common.rows import CONTROL, Bad, read_lines
from common.settings import in_range
from data import COLUMNS, check, clean, grams, key, load, new_files, standard, words

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
    rows = [standard(row) if isinstance(row, dict) else row for row in raw]
    columns = {name for row in rows if isinstance(row, dict) for name in row}
    for name in COLUMNS:
        if name not in columns:
            raise SystemExit(f"the pool has no column {name!r}. Columns found: {', '.join(sorted(map(str, columns)))}.")
    stages = [{"stage": "pool", "kept": len(raw), "dropped": {}}]

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

    def fault(row):
        try:
            check(row)
        except Bad as bad:
            return bad.args[0]

    def complete(row):
        reason = fault(row)
        return reason if reason != CONTROL else None

    def well_formed(row):
        for name, pattern in BAD_FORM.items():
            if pattern.search(row["question"]):
                return name
        return fault(row)

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
    """The stages of `funnel` as text."""
    cells = []
    for stage in stages:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(stage["dropped"].items()))
        paper = f"{stage['paper']:,}" if "paper" in stage else ""
        cells.append((stage["stage"], f"{stage['kept']:,}", paper, dropped))
    return text_table(("stage", "ours", "paper", "dropped"), cells)


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
    save_figure(figure, file, dpi=100)


def read_grades(files):
    """{id: {grader: right}} of grade.py's files; None without a file."""
    if not files:
        return None
    grades = {}
    for file in files:
        for number, row in enumerate(read_lines(file), 1):
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
    encode = models.load_tokenizer(hub.resolve_model(model)).backend_tokenizer.encode
    return lambda text: len(encode(text, add_special_tokens=False).ids)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--select", type=in_range("select"), metavar="K", required=True, help="choose K rows")
    parser.add_argument("--pool", metavar="FILE", required=True, help="JSONL or Parquet to choose from")
    parser.add_argument("--against", nargs="+", metavar="FILE", help="test sets (default: test.jsonl beside the pool)")
    parser.add_argument("--grades", nargs="+", metavar="FILE", help="what grade.py wrote")
    parser.add_argument("--trusted", nargs="+", default=[], metavar="SOURCE", help="sources taken before the lot")
    parser.add_argument("--model", help="whose tokens count as a trace's length (default: words, digits and signs)")
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="of the lot")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for what is made")
    args = parser.parse_args(argv)
    load_env()
    (train,) = new_files(args.out, "train.jsonl")
    against = args.against or [str(file) for file in [Path(args.pool).parent / "test.jsonl"] if file.exists()]
    banned = []
    for source in against:
        splits = load(source)
        raw = splits.get("test", splits.get("train"))
        banned += [row["question"] for row in clean(raw, source, ("question",))[0]]
    if not banned:
        print("no test questions were given: nothing is known about overlap. --against FILE ... names them")
    raw = [row for _, row in load(args.pool).get("train", [])]
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
    args.out.mkdir(parents=True, exist_ok=True)
    write_lines(train, chosen)
    facts = {"stages": stages, "seed": args.seed, "against": against, "grades": args.grades, "domains": domains}
    write_json(args.out / "funnel.json", facts)
    draw_funnel(stages, chosen, args.out / "funnel.png")
    print(f"{len(chosen):,} rows: {train}")


if __name__ == "__main__":
    main()
