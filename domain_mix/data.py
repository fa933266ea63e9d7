"""Build a training mixture: so many rows of each source, in one format, without repeats, the same ones every time.

A plan (plans/*.yaml) names the total, each source's ratio and where it comes from. sources.py reads what each source
has, plan.py takes the plan's share of it. Here are the command line and the rows of a training run.

Sources of the hub: python data.py --plan small
Without the hub:    python data.py --plan small --source slimorca=/data/SlimOrca pubmedqa=/data/pqa_labeled.parquet
A plan of your own: python data.py --plan my_plan.yaml --out mix.jsonl
Offline, seconds:   python data.py --demo --out mix.jsonl
"""

import argparse
import contextlib
import random
from pathlib import Path

from common.paths import command, data_dir, load_env
from common.rows import format_report, keep, piped, read, split_by
from plan import COLUMNS, format_reports, load_plan, mix
from prompt import question_of
from sources import clean, from_alpaca, normalise, write_jsonl

HERE = Path(__file__).resolve().parent
DEMO_PLAN = HERE / "sample" / "plan.yaml"


def read_rows(source=None):
    """The usable rows of a source, as dicts of four strings (instruction, input, output, source), and a report to print.

    source: JSON, JSONL, Parquet, CSV or .xlsx, a folder of such files, or a plan (.yaml), which is then mixed; None: what data.py writes.
    Raises SystemExit where the source cannot be read or no row is usable.
    """
    path = Path(source or data_dir() / "small.jsonl")
    if path.suffix in (".yaml", ".yml"):
        rows, reports = mix(load_plan(path))
        return rows, format_reports(reports)
    if not path.exists():
        raise SystemExit(f"{path}: no such file. Build it: {command('data.py', '--plan', 'small', '--out', path)}")
    rows, report = keep(
        read(path, COLUMNS, COLUMNS),
        check,
        path,
        used={"instruction", "input", "output", "source", "history"},
        key=lambda row: (normalise(question_of(row)), row["output"]),
    )
    return rows, format_report(report)


def check(row):
    """The row's texts, and which source it came from. Raises Bad."""
    instruction, extra, output = clean(row, from_alpaca)
    name = str(row.get("source") or "all")
    return {"instruction": instruction, "input": extra, "output": output, "source": name}


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same question stay on one side, so nothing leaks."""
    train, held = split_by(rows, lambda row: normalise(question_of(row)), ratio, seed, ordered=True)
    random.Random(seed).shuffle(held)  # so that the first 500 are of all parts of the file
    return train, held


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data)
    print(report)
    return split(rows, args.eval_ratio, args.split_seed)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--plan", default="small", help="small, large, or a plan's YAML file (default: %(default)s)")
    parser.add_argument(
        "--source", action="append", nargs="+", metavar="NAME=PATH", help="read a source from a local file or folder"
    )
    parser.add_argument("--out", type=Path, help="the new JSONL file (default: DATA_DIR/domain_mix/<plan>.jsonl)")
    parser.add_argument("--allow_short", action="store_true", help="take what there is where a source has too few rows")
    parser.add_argument("--demo", action="store_true", help="the plan of sample/: seconds, no hub")
    args = parser.parse_args(argv)
    load_env()
    name = DEMO_PLAN if args.demo else args.plan
    plan = load_plan(name, [each for group in args.source or [] for each in group])
    out = args.out or data_dir() / f"{'demo' if args.demo else Path(name).stem}.jsonl"
    if out.exists():
        raise SystemExit(f"{out} exists and is kept. Name another file with --out, or move it away.")
    parts = out.with_name(f"{out.name}.parts")
    rows, reports = mix(plan, args.allow_short, parts)
    print(format_reports(reports))
    write_jsonl(rows, out)
    for source in plan["sources"]:
        (parts / f"{source}.jsonl").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody put a file of theirs there
        parts.rmdir()
    print(f"{len(rows):,} rows written to {out}")


if __name__ == "__main__":
    piped(main)
