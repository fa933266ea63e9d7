"""Preference pairs (a prompt, a better and a worse answer): read them, check them, split them by prompt, tokenize them.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the pairs that are kept, one JSON object a line

FILE: JSON (a list), JSONL (an object a line), Parquet, a folder of `datasets` (save_to_disk), or a name on the hub.
JSON and JSONL are told apart by what is in the file, whatever it is called. Layouts that are understood:

    prompt: text or messages            chosen, rejected: text, a message, or messages
    conversations: [{from, value}, ...] chosen, rejected: {from, value} or text
    (no prompt)                         chosen, rejected: two whole conversations that differ in the last answer
"""

import argparse
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg
from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import default_source, hold_out, read
from prompt import encode, prompt_ids

HUB_NAME = "trl-lib/ultrafeedback_binarized"  # what is read where no --data and no local folder is
# A pair is dropped for the first of these that is true of it.
MISSING, TYPE, EMPTY, BROKEN, CONTROL = "missing", "wrong type", "empty", "broken characters", "control token"
EQUAL, NO_QUESTION = "equal sides", "prompt does not end with the user"
EXAMPLES = 10  # problems described for each reason; the counts say how many, these say where to look
PROMPT_COLUMNS = ("prompt", "conversations", "messages")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

# <|im_end|> inside a text would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")


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


class Bad(Exception):
    """A pair that cannot be used: (reason, column or None, what was found)."""


def text_of(value, column):
    if not isinstance(value, str):
        raise Bad(MISSING if value is None else TYPE, column, f"expected text, got {type(value).__name__}")
    value = value.strip()
    if not value:
        raise Bad(EMPTY, column, "no text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Bad(BROKEN, column, "half of a surrogate pair") from None
    if token := CONTROL_TOKEN.search(value):
        raise Bad(CONTROL, column, token[0])
    return value


def messages_of(value, column):
    """Text, one message or a list of them, as [{role, content}, ...]."""
    if isinstance(value, str):
        return [{"role": "user", "content": text_of(value, column)}]
    made = []
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict):
            raise Bad(MISSING if turn is None else TYPE, column, f"expected a message, got {type(turn).__name__}")
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise Bad(TYPE, column, f"role {role!r}; known: {', '.join(ROLES)}")
        made.append({"role": ROLES[role], "content": text_of(turn.get("content", turn.get("value")), column)})
    return made


def side_of(value, column):
    """(what stands before the answer, the answer) of one side of a pair."""
    if isinstance(value, str) or value is None:
        return [], text_of(value, column)
    turns = messages_of(value, column)
    if not turns or turns[-1]["role"] != "assistant":
        raise Bad(EMPTY if not turns else TYPE, column, "does not end with the assistant")
    return turns[:-1], turns[-1]["content"]


def parse_pair(row):
    """A raw row as {prompt: messages, chosen: text, rejected: text}. Raises Bad."""
    if not isinstance(row, dict):
        raise Bad(TYPE, None, f"expected an object with prompt, chosen, rejected, got {type(row).__name__}")
    (before, chosen), (other, rejected) = side_of(row.get("chosen"), "chosen"), side_of(row.get("rejected"), "rejected")
    column = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    prompt = messages_of(row[column], column) if column else []
    if before != other:
        raise Bad(TYPE, "rejected", "its conversation differs from chosen's before the last answer")
    if before[: len(prompt)] != prompt:
        prompt = prompt + before  # the sides hold only what follows the prompt
    elif before:
        prompt = before
    if not prompt:
        raise Bad(MISSING, PROMPT_COLUMNS[0], "no prompt")
    if prompt[-1]["role"] != "user":
        raise Bad(NO_QUESTION, column, f"its last turn is the {prompt[-1]['role']}'s")
    if chosen == rejected:
        raise Bad(EQUAL, "rejected", "the same text as chosen")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def read_rows(source=None):
    """The usable pairs of a source, as dicts of `parse_pair`, and a report.

    source: see the module's docstring; None: RLHF_PPO_DATA_DIR or DATA_DIR/rlhf_ppo if it exists, else the hub.
    Report: source, rows, kept, dropped (reason -> count), problems (text).
    Raises SystemExit where the source cannot be read or no pair is usable.
    """
    source = str(source or default_source(HUB_NAME))
    raw, pairs, dropped, problems = list(read(source, "pairs")), [], Counter(), []
    columns = {name for row in raw if isinstance(row, dict) for name in row}
    for name in ("chosen", "rejected"):
        if raw and columns and name not in columns:
            raise SystemExit(f"{source}: no column {name!r}. Columns found: {', '.join(sorted(map(str, columns)))}.")
    for number, row in enumerate(raw, 1):
        try:
            pairs.append(parse_pair(row))
        except Bad as bad:
            reason, column, found = bad.args
            dropped[reason] += 1
            if dropped[reason] <= EXAMPLES:
                where = f", column {column}" if column else ""
                problems.append(f"{source}: row {number}{where}: {found}; pair dropped: {reason}")
    report = dict(source=source, rows=len(raw), kept=len(pairs), dropped=dropped, problems=problems)
    if not pairs:
        raise SystemExit(f"{format_report(report)}\n{source}: no usable pair in it.")
    return pairs, report


def format_report(report):
    """The report of `read_rows` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} pairs, {report['kept']:,} kept"
    return "\n".join([line + (f"; dropped: {reasons}" if reasons else ""), *report["problems"]])


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
