"""Read alpaca rows (instruction, input, output) from wherever they are, check them, split them, put them into words.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the rows that are kept, one JSON object a line

FILE: JSON (a list), JSONL (an object a line), Parquet, a folder of `datasets` (save_to_disk), or a name on the hub.
JSON and JSONL are told apart by what is in the file, whatever it is called.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import tables
from common.cli import arg

HUB_NAME = "yahma/alpaca-cleaned"  # the course's data set: what is read where no --data and no local folder is
COLUMNS = ("instruction", "input", "output")
# A row is dropped for the first of these that is true of it.
MISSING, TYPE, EMPTY, BROKEN, CONTROL = "missing", "wrong type", "empty", "broken characters", "control token"
EXAMPLES = 10  # problems described for each reason; the counts say how many, these say where to look

# <|im_end|> inside a row would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")

# Stanford's two templates: the model writes after "### Response:".
PROMPT = """Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""
SHORT_PROMPT = """Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""
# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = "You are a helpful assistant."


@dataclass
class DataArgs:
    """Flags that all five training scripts have."""

    data: str | None = arg(
        None,
        "JSON, JSONL, Parquet, a save_to_disk folder or a hub name (default: ALPACA_DATA_DIR, DATA_DIR/alpaca, hub)",
    )
    eval_ratio: float = arg(0.1, "share of the rows held out; rows that ask the same stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")
    eval_rows: int = arg(500, "at most so many of the held-out rows are measured while training")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def alpaca_prompt(row, prompt=PROMPT, short=SHORT_PROMPT):
    """The text before the answer; the short template where there is no input."""
    return (prompt if row.get("input") else short).format(**row)


def token_ids(tokenizer, texts):
    """Token ids of texts, without special tokens. The usual call also makes masks and offsets: a third of the time."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [text.ids for text in encoded]


def prompt_ids(tokenizer, rows, *templates):
    """Token ids of each row's alpaca prompt. Training, evaluation and inference call this, so they cannot drift apart."""
    return token_ids(tokenizer, [alpaca_prompt(row, *templates) for row in rows])


def conversation(row):
    """A row as chat messages; without an output the assistant's turn is left out."""
    user = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    return messages + ([{"role": "assistant", "content": row["output"]}] if row.get("output") else [])


def prompts_of(adapter, tokenizer, rows):
    """Token ids of each row's prompt, in the form that the adapter was trained with."""
    files = [Path(adapter) / name for name in ("prompt_template.txt", "prompt_template_short.txt")]
    if all(file.exists() for file in files):
        return prompt_ids(tokenizer, rows, *(file.read_text(encoding="utf-8") for file in files))
    talks = [conversation({"instruction": row["instruction"], "input": row["input"]}) for row in rows]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]


def read_rows(source=None, answers=True):
    """The usable rows of a source, as dicts of three stripped strings, and a report.

    source: see the module's docstring; None: ALPACA_DATA_DIR or DATA_DIR/alpaca if it exists, else the hub.
    answers: whether rows need an output. Report: source, rows, kept, dropped (reason -> count), problems (text).
    Raises SystemExit where the source cannot be read or no row is usable.
    """
    source = str(source or tables.default_source(HUB_NAME))
    needed = COLUMNS if answers else COLUMNS[:2]
    raw, rows, dropped, problems = list(tables.read(source)), [], Counter(), []
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


def split_rows(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same instruction and input stay on one side, so nothing leaks."""
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.1.")
    asked = list(dict.fromkeys((row["instruction"], row["input"]) for row in rows))
    if len(asked) < 2:
        raise SystemExit(f"{len(asked)} different row: one to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(asked)
    held = set(asked[: min(max(1, round(len(asked) * ratio)), len(asked) - 1)])
    sides = {True: [], False: []}
    for row in rows:
        sides[(row["instruction"], row["input"]) in held].append(row)
    return sides[False], sides[True]


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data)
    print(format_report(report))
    return split_rows(rows, args.eval_ratio, args.split_seed)


def tokenized(rows, encode, max_length, name, **how):
    """Rows as a datasets.Dataset of int32 lists input_ids and labels; rows over max_length are dropped, never cut.

    encode(rows, **how) -> (lists of input_ids, lists of labels). An answer that is cut off teaches not to stop.
    """
    import pyarrow
    from datasets import Dataset, Features, List, Value

    def fitting(batch):
        columns = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        ids, labels = encode(columns, **how)
        fit = [len(row) <= max_length for row in ids]
        made = {"input_ids": as_column(itertools.compress(ids, fit))}
        made["labels"] = made["input_ids"] if labels is ids else as_column(itertools.compress(labels, fit))
        return pyarrow.table(made)

    def as_column(lists):
        return pyarrow.array(list(lists), pyarrow.list_(pyarrow.int32()))

    # Named, because datasets would otherwise hash the whole table to find a name.
    dataset = Dataset(pyarrow.Table.from_pylist(rows), fingerprint=name.replace(" ", "-")).map(
        fitting,
        batched=True,
        remove_columns=list(rows[0]),
        features=Features(input_ids=List(Value("int32")), labels=List(Value("int32"))),
        new_fingerprint=f"{name.replace(' ', '-')}-tokenized",
        desc=f"tokenizing {name}",
    )
    _report_dropped(len(rows), len(dataset), max_length, name)
    return dataset


def drop_long(rows, texts, tokenizer, max_length, name):
    """Rows whose text fits, for the scripts in which TRL tokenizes: it would cut the others."""
    lengths = map(len, tokenizer(texts, add_special_tokens=False).input_ids)
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_length]
    _report_dropped(len(rows), len(kept), max_length, name)
    return kept


def _report_dropped(before, after, max_length, name):
    if after < before:
        print(f"{name}: {before - after:,} rows over --max_length {max_length} dropped")
    if not after:
        raise SystemExit(f"{name}: no row fits in --max_length {max_length} tokens.")


@contextlib.contextmanager
def before_the_run(config):
    """A trainer makes config.output_dir when it is built. Where it is built before Run has chosen that, it is a scratch."""
    asked = config.output_dir
    with tempfile.TemporaryDirectory() as config.output_dir:
        yield
    config.output_dir = asked


def only_padded(model_args):
    """Stop where a flag asks of a script what it does not do."""
    if model_args.packing or model_args.auto:
        raise SystemExit(
            "this script pads its batches: --packing and --auto are for train.py and train_chat_template.py."
        )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: as train.py without --data)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the kept rows to this new file")
    args = parser.parse_args(argv)
    if args.out and args.out.exists():
        raise SystemExit(f"{args.out} exists and is not overwritten: give another name, or move it away.")
    from common.paths import load_env

    load_env()
    rows, report = read_rows(args.check)
    print(format_report(report))
    print(f"without input: {sum(not row['input'] for row in rows):,} rows")
    for name in COLUMNS:
        lengths = sorted(len(row[name]) for row in rows)
        middle, most = lengths[len(lengths) // 2], lengths[-1]
        print(f"{name}: {middle:,} characters in the middle, {most:,} at most")
    if args.out:
        new = args.out.with_name(f".{args.out.name}.{os.getpid()}.new")
        try:
            new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            os.replace(new, args.out)
        except OSError as error:
            raise SystemExit(f"{args.out} cannot be written: {error.strerror}.") from None
        print(f"{len(rows):,} rows written to {args.out}")


if __name__ == "__main__":
    main()
