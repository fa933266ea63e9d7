"""Preferences: pairs (a prompt, a better and a worse answer) or single answers with a thumb; read, checked, split by prompt.

    python data.py --check FILE                       what is in it, what is wrong with it and where
    python data.py --check FILE --model M             and how many pairs --max_length drops
    python data.py --check FILE --out clean.jsonl     and the rows that are kept, one JSON object a line
    python data.py --check FILE --reward_run RUN      and where a reward model of rlhf_ppo/ disagrees (judge.py)

FILE: JSON (a list), JSONL, Parquet, CSV or .xlsx, a folder with such files of one set or of `datasets` (save_to_disk), or a
name on the hub. Pairs, for all four methods, in any layout that rlhf_ppo/ reads (one reader, sources.py):

    prompt: text or messages            chosen, rejected: text, a message, or messages
    conversations: [{from, value}, ...] chosen, rejected: {from, value} or text
    instruction (and input): text       chosen, rejected: text; or output: [better, worse]
    question or input: text             chosen, rejected: text
    (no prompt)                         chosen, rejected: two whole conversations that differ in the last answer

Single answers, for KTO: a prompt as above; completion, answer or response: text; label, thumb or rating: true/false, 1/0, 1/-1,
up/down, good/bad, 👍/👎. deploy/votes.py writes both kinds. `system` and `history` become turns before the prompt.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import judge
from common.cli import arg
from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import MISSING, TYPE, Bad, default_source, format_report, keep, object_of, piped, read, split_by
from sources import first_of, key_of, notes_of, parse_pair, prompt_column, side_of, used_columns

HUB_NAME = "trl-lib/ultrafeedback_binarized"  # what is read where no --data and no local folder is
ANSWERS, LABELS = ("completion", "answer", "response"), ("label", "thumb", "rating")
GOOD = {"true", "1", "1.0", "up", "good", "yes", "👍", "+1"}
BAD = {"false", "0", "0.0", "-1", "-1.0", "down", "bad", "no", "👎"}


@dataclass
class DataArgs:
    """Flags of every script that reads preferences."""

    data: str | None = arg(
        None,
        "JSON, JSONL, Parquet, CSV, .xlsx, a save_to_disk folder or a hub name (default: PREFERENCE_DATA_DIR, DATA_DIR/preference, hub)",
    )
    eval_ratio: float = arg(0.1, "share of the rows held out; rows that ask the same stay together")
    split_seed: int = arg(42, "of the draw which rows are held out")
    max_pairs: int = arg(20_000, "at most so many rows are used, the first ones")
    eval_rows: int = arg(200, "at most so many of the held-out rows are measured while training")


def label_of(row):
    """Whether an answer was liked. Raises Bad where a label is neither of the two."""
    column = next((name for name in LABELS if row.get(name) is not None), LABELS[0])
    value = row.get(column)
    if value is None:
        raise Bad(MISSING, column, "no label. A label is in one of label, thumb, rating")
    word = str(value).strip().lower().replace("\ufe0f", "")
    if word not in GOOD | BAD:
        raise Bad(TYPE, column, f"expected true/false, 1/0, 1/-1, up/down or 👍/👎, got {str(value)[:40]!r}")
    return word in GOOD


def parse_single(row):
    """A raw row as {prompt: messages, completion: text, label: bool}. Raises Bad."""
    object_of(row, "prompt", "completion", "label")
    column = next((name for name in ANSWERS if row.get(name) is not None), ANSWERS[0])
    before, answer = side_of(row.get(column), column, [])
    # The reader of pairs takes the prompt, with this answer as one side and a text that it cannot equal as the other.
    turns = {"prompt": before} if before and not prompt_column(row) else {}
    asked = {name: value for name, value in row.items() if name not in (*ANSWERS, *LABELS, "output")} | turns
    pair = parse_pair(asked | {"chosen": answer, "rejected": answer + " -"})
    return {"prompt": pair["prompt"], "completion": pair["chosen"], "label": label_of(row)}


def is_single(row):
    return (
        isinstance(row, dict)
        and row.get("chosen") is None
        and any(row.get(name) is not None for name in (*LABELS, *ANSWERS))
    )


def scores_of(row):
    """(score of chosen, of rejected) where the source has them, else None."""
    found = [
        first_of(row, f"score_{side}", f"{side}_score", f"{side}-rating", f"{side}_rating")
        for side in ("chosen", "rejected")
    ]
    numbers = [isinstance(each, (int, float)) and not isinstance(each, bool) for each in found]
    return found if all(numbers) else None


def read_rows(source=None, single=False):
    """The usable pairs of a source, or with `single` its single answers, and the report of common.rows.keep.

    Pairs become two single answers each. Raises SystemExit where the source cannot be read or nothing in it is usable.
    """
    source = str(source or default_source(HUB_NAME))
    names = {name: (name,) for name in ("chosen", "rejected", *ANSWERS, *LABELS)}
    found, singles, scores = iter(read(source, names, ())), 0, []

    def parse(row):
        nonlocal singles
        if is_single(row):
            singles += 1
            if single:
                return [parse_single(row)]
            raise Bad("single answer", LABELS[0], "one answer with a label is no pair: kto.py trains on it")
        pair = parse_pair(row)
        scores.append(scores_of(row))
        if not single:
            return [pair]
        return [
            {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            for side in ("chosen", "rejected")
        ]

    def used(row):
        return {*LABELS, *ANSWERS, *(used_columns(row | {"output": None}) if is_single(row) else used_columns(row))}

    groups, report = keep(found, parse, source, "row" if single else "pair", used, needed=() if single else ("chosen",))
    places = [place for place, group in zip(report["places"], groups, strict=True) for _ in group]
    rows = [row for group in groups for row in group]
    report["notes"] += notes_of(rows, places) if not single else contradictions(rows, places)
    told = [each for each in scores if each]
    if wrong := sum(chosen < rejected for chosen, rejected in told):
        report["notes"].append(f"{wrong:,} pairs whose own scores say the opposite of their order: swapped?")
    if ties := sum(chosen == rejected for chosen, rejected in told):
        report["notes"].append(f"{ties:,} pairs are ties by their own scores: they say nothing about an order")
    return rows, report


def contradictions(rows, places):
    """Single answers that have both labels."""
    first, contrary = {}, []
    for place, row in zip(places, rows, strict=True):
        key = key_of(row["prompt"]), row["completion"]
        label, at = first.setdefault(key, (row["label"], place))
        if label != row["label"]:
            contrary.append((at, place))
    told = "answers have both labels (the first: {})"
    return [f"{len(contrary):,} {told.format(' and '.join(each.inside for each in contrary[0]))}"] if contrary else []


def split(rows, ratio, seed):
    """(training rows, held-out rows). Rows with the same prompt, but for case and spaces, stay on one side."""
    return split_by(rows, lambda row: " ".join(key_of(row["prompt"]).lower().split()), ratio, seed)


def load_splits(args, single=False):
    """Read, report and split: (training rows, held-out rows) of a script's flags."""
    rows, report = read_rows(args.data, single)
    print(format_report(report))
    train, held = split(rows[: args.max_pairs], args.eval_ratio, args.split_seed)
    return train, held[: args.eval_rows]


# -- --check


def lengths_told(pairs):
    """Lines about the sides' lengths: the cheapest thing that a preference can be about."""
    longer = sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs)
    yield f"chosen is the longer side: {longer / len(pairs):.0%} (far from 50%: answers will change in length)"
    for name in ("chosen", "rejected"):
        lengths = sorted(len(pair[name]) for pair in pairs)
        yield f"{name}: {lengths[len(lengths) // 2]:,} characters in the middle, {lengths[-1]:,} at most"


def cut_told(rows, sides, model, limit):
    """A line: how many rows --max_length drops, by the tokens of a model's own tokenizer."""
    from common import models
    from common.hub import resolve_model
    from prompt import answer_ids, prompt_ids

    tokenizer = models.load_tokenizer(resolve_model(model))
    prompts, over = prompt_ids(tokenizer, rows), Counter()
    for side in sides:
        answers = answer_ids(tokenizer, [row[side] for row in rows])
        over.update({i for i, (p, a) in enumerate(zip(prompts, answers, strict=True)) if len(p) + len(a) > limit})
    return f"over --max_length {limit}: {len(over):,} of {len(rows):,} rows are dropped, none is cut: a cut answer has no end"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", metavar="FILE", nargs="?", help="what to read (default: as dpo.py without --data)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the kept rows to this new file")
    parser.add_argument("--single", action="store_true", help="read as kto.py does: single answers, pairs as two each")
    parser.add_argument("--model", help="whose tokenizer counts for --max_length")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens of prompt + answer, as in training")
    parser.add_argument("--reward_run", metavar="RUN", help="a reward model of rlhf_ppo/: how often does it agree?")
    args = parser.parse_args(argv)
    if args.single and args.reward_run:
        parser.error("--reward_run compares the two sides of pairs: leave out --single")
    if args.out:
        new_file(args.out)
    load_env()
    reward = judge.open_reward(args.reward_run) if args.reward_run else None
    rows, report = read_rows(args.check, args.single)
    print(format_report(report))
    print(f"different prompts: {len({key_of(row['prompt']) for row in rows}):,}")
    turns = Counter(len(row["prompt"]) for row in rows)
    print("turns of the prompts: " + ", ".join(f"{count:,} with {n}" for n, count in sorted(turns.items())))
    if args.single:
        good = sum(row["label"] for row in rows)
        print(
            f"liked: {good:,} of {len(rows):,} (under 1 or over 4 of 5: weigh the sides, --good_weight, --bad_weight)"
        )
    else:
        print("\n".join(lengths_told(rows)))
    if args.model:
        print(cut_told(rows, ("completion",) if args.single else ("chosen", "rejected"), args.model, args.max_length))
    if reward:
        print("\n".join(judge.told(rows, report["places"], judge.scores_of(*reward, rows, args.max_length))))
    if args.out:
        try:
            write_lines(args.out, rows)
        except OSError as error:
            raise SystemExit(f"{args.out} cannot be written: {error.strerror}.") from None
        print(f"{len(rows):,} rows written to {args.out}")


if __name__ == "__main__":
    piped(main)
