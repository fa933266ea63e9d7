"""Preference pairs (a prompt, a better and a worse answer): read them, check them, split them by prompt, tokenize them.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the pairs that are kept, one JSON object a line

FILE: JSON (a list), JSONL (an object a line), Parquet, a folder of `datasets` (save_to_disk), or a name on the hub.
JSON and JSONL are told apart by what is in the file, whatever it is called. Layouts that are understood:

    prompt: text or messages            chosen, rejected: text, a message, or messages
    conversations: [{from, value}, ...] chosen, rejected: {from, value} or text
    instruction (and input): text       chosen, rejected: text; or output: [better, worse]
    question or input: text             chosen, rejected: text
    (no prompt)                         chosen, rejected: two whole conversations that differ in the last answer

Messages may be one text, "\\n\\nHuman: ...\\n\\nAssistant: ...". `system` (text) and `history` ([[question, answer], ...] or
messages) become turns before the prompt; a prompt that the sides repeat is read once. Other columns are not used and named.
"""

import argparse
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg
from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import default_source, hold_out, read
from prompt import encode, prompt_ids
from sources import PROMPT_COLUMNS, Bad, blank, parse_pair, used_columns

HUB_NAME = "trl-lib/ultrafeedback_binarized"  # what is read where no --data and no local folder is
EXAMPLES = 10  # problems described for each reason; the counts say how many, these say where to look


@dataclass
class DataArgs:
    """Flags of every script that reads pairs."""

    data: str | None = arg(
        None,
        "JSON, JSONL, Parquet, a save_to_disk folder or a hub name (default: RLHF_PPO_DATA_DIR, DATA_DIR/rlhf_ppo, hub)",
    )
    eval_ratio: float = arg(0.1, "share of the rows held out; rows that ask the same stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")
    max_pairs: int = arg(
        20_000, "at most so many pairs are used, the first ones; a reward model learns no more from more"
    )
    max_prompt_length: int = arg(512, "pairs with more tokens of prompt are dropped")


def read_rows(source=None):
    """The usable pairs of a source, as dicts of `parse_pair`, and a report.

    source: see the module's docstring; None: RLHF_PPO_DATA_DIR or DATA_DIR/rlhf_ppo if it exists, else the hub.
    Report: source, rows, kept, dropped (reason -> count), problems (text), unused (column -> kept pairs that hold something
    there), notes (text: what is kept and should be known).
    Raises SystemExit where the source cannot be read or no pair is usable.
    """
    source = str(source or default_source(HUB_NAME))
    raw, pairs, numbers = list(read(source, "pairs")), [], []
    dropped, problems, unused = Counter(), [], Counter()
    columns = {name for row in raw if isinstance(row, dict) for name in row}
    found = f"Columns found: {', '.join(sorted(map(str, columns)))}."
    lists = any(isinstance(row, dict) and isinstance(row.get("output"), list) for row in raw)
    for name in ("chosen", "rejected"):
        if raw and columns and name not in columns and not lists:
            raise SystemExit(f"{source}: no column {name!r}. {found}")
    for number, row in enumerate(raw, 1):
        try:
            pairs.append(parse_pair(row))
            numbers.append(number)
            used = used_columns(row)
            unused.update(name for name in row if name not in used and not blank(row[name]))
        except Bad as bad:
            reason, column, what = bad.args
            dropped[reason] += 1
            if dropped[reason] <= EXAMPLES:
                where = f", column {column}" if column else ""
                problems.append(f"{source}: row {number}{where}: {what}; pair dropped: {reason}")
    report = dict(source=source, rows=len(raw), kept=len(pairs), dropped=dropped, problems=problems, unused=unused)
    report["notes"] = notes_of(pairs, numbers)
    if not pairs:
        wanted = "" if columns & set(PROMPT_COLUMNS) else f" A prompt is in one of {', '.join(PROMPT_COLUMNS)}."
        raise SystemExit(f"{format_report(report)}\n{source}: no usable pair in it. {found}{wanted}")
    return pairs, report


def notes_of(pairs, numbers):
    """What no single row shows: pairs that contradict or repeat another one, and answers that begin with their question.

    All are kept. People do disagree, and of two pairs that contradict each other a reward model ranks only one rightly.
    """
    first, contrary, repeated, echoes = {}, [], [], []
    for number, pair in zip(numbers, pairs, strict=True):
        prompt, chosen, rejected = key_of(pair["prompt"]), pair["chosen"], pair["rejected"]
        if (prompt, rejected, chosen) in first:
            contrary.append((number, first[prompt, rejected, chosen]))
        if first.setdefault((prompt, chosen, rejected), number) != number:
            repeated.append((number, first[prompt, chosen, rejected]))
        question = pair["prompt"][-1]["content"]
        if chosen.startswith(question) and rejected.startswith(question):
            echoes.append((number,))
    kinds = (
        (contrary, "contradict an earlier one: the same prompt, the sides swapped"),
        (repeated, "repeat an earlier one"),
        (echoes, "have their prompt's text again at the start of both answers, which is not taken off"),
    )
    return [
        f"{len(found):,} pairs {what} (the first: row {' and row '.join(map(str, found[0]))})"
        for found, what in kinds
        if found
    ]


def format_report(report):
    """The report of `read_rows` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} pairs, {report['kept']:,} kept"
    lines = [line + (f"; dropped: {reasons}" if reasons else ""), *report["notes"]]
    unused = [f"{name} (in {count:,} pairs)" for name, count in report["unused"].most_common(EXAMPLES)]
    if unused:
        more = len(report["unused"]) - len(unused)
        lines.append(f"columns not used: {', '.join(unused)}" + (f" and {more:,} more" if more else ""))
    text = "\n".join([*lines, *report["problems"]])
    return text.encode("utf-8", "backslashreplace").decode()  # a name may hold half of a surrogate pair


def key_of(messages):
    return json.dumps(messages, ensure_ascii=False)


def split(pairs, ratio, seed):
    """(training pairs, held-out pairs). Pairs with the same prompt stay on one side, so nothing leaks."""
    held = hold_out((key_of(pair["prompt"]) for pair in pairs), ratio, seed)
    sides = {True: [], False: []}
    for pair in pairs:
        sides[key_of(pair["prompt"]) in held].append(pair)
    return sides[False], sides[True]


def load_splits(args):
    """Read, report and split: (training pairs, held-out pairs) of a script's flags."""
    pairs, report = read_rows(args.data)
    print(format_report(report))
    return split(pairs[: args.max_pairs], args.eval_ratio, args.split_seed)


# -- tokens


def encode_pairs(pairs, tokenizer, max_prompt_length, max_length, name):
    """Pairs as `prompt.encode` makes them. Pairs that are too long are dropped and counted, never cut: a cut answer has no
    end, and the end is what is scored."""
    rows = [
        row
        for row in encode(tokenizer, pairs)
        if len(row["prompt"]) <= max_prompt_length
        and len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) <= max_length
    ]
    limits = f"--max_prompt_length {max_prompt_length}", f"--max_length {max_length}"
    if len(rows) < len(pairs):
        print(f"{name}: {len(pairs) - len(rows):,} over {' or '.join(limits)} dropped")
    if not rows:
        raise SystemExit(f"{name}: no pair fits in {', '.join(limits)}.")
    return rows


def encode_prompts(pairs, tokenizer, max_prompt_length, name):
    """(prompts as messages, their token ids): the different prompts of the pairs that are not too long."""
    pairs = list({key_of(pair["prompt"]): pair for pair in pairs}.values())
    both = [
        (pair["prompt"], ids)
        for pair, ids in zip(pairs, prompt_ids(tokenizer, pairs), strict=True)
        if len(ids) <= max_prompt_length
    ]
    if len(both) < len(pairs):
        print(f"{name}: {len(pairs) - len(both):,} over --max_prompt_length {max_prompt_length} dropped")
    if not both:
        raise SystemExit(f"{name}: none fits in --max_prompt_length {max_prompt_length} tokens.")
    return [list(each) for each in zip(*both, strict=True)]


def prompts_of_update(prompts, update, size, seed):
    """The `size` prompts of update 1, 2, ...: each epoch of the data in an order of its own, a function of seed and
    number alone. So a resumed run needs to remember nothing but the number."""
    batch, order = [], None
    for at in range((update - 1) * size, update * size):
        epoch, place = divmod(at, len(prompts))
        if order is None or place == 0:
            order = random.Random(f"{seed}-{epoch}").sample(range(len(prompts)), len(prompts))
        batch.append(prompts[order[place]])
    return batch


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: as train.py without --data)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the kept pairs to this new file")
    args = parser.parse_args(argv)
    if args.out:
        new_file(args.out)
    load_env()
    pairs, report = read_rows(args.check)
    print(format_report(report))
    turns = Counter(len(pair["prompt"]) for pair in pairs)
    longer = sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs)
    print(f"different prompts: {len({key_of(pair['prompt']) for pair in pairs}):,}")
    print("turns of the prompts: " + ", ".join(f"{count:,} with {n}" for n, count in sorted(turns.items())))
    print(f"chosen is the longer side: {longer / len(pairs):.0%} (far from 50%: the reward model will count letters)")
    for name in ("chosen", "rejected"):
        lengths = sorted(len(pair[name]) for pair in pairs)
        print(f"{name}: {lengths[len(lengths) // 2]:,} characters in the middle, {lengths[-1]:,} at most")
    if args.out:
        try:
            write_lines(args.out, pairs)
        except OSError as error:
            raise SystemExit(f"{args.out} cannot be written: {error.strerror}.") from None
        print(f"{len(pairs):,} pairs written to {args.out}")


if __name__ == "__main__":
    main()
