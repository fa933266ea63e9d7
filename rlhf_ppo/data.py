"""Preference pairs (a prompt, a better and a worse answer): read them, check them, split them by prompt, tokenize them.

    python data.py --check FILE                    what is in it, what is wrong with it and where
    python data.py --check FILE --out clean.jsonl  the same, and the pairs that are kept, one JSON object a line

FILE: JSON (a list), JSONL (an object a line), Parquet, CSV or .xlsx, a folder with such files of one set or of `datasets`
(save_to_disk), or a name on the hub.
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
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg
from common.files import new_file, write_lines
from common.paths import load_env
from common.rows import default_source, format_report, keep, piped, read, split_by
from prompt import encode, prompt_ids
from sources import key_of, notes_of, parse_pair, used_columns

HUB_NAME = "trl-lib/ultrafeedback_binarized"  # what is read where no --data and no local folder is


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
    """The usable pairs of a source, as dicts of `parse_pair`, and the report of common.rows.keep.

    source: see the module's docstring; None: RLHF_PPO_DATA_DIR or DATA_DIR/rlhf_ppo if it exists, else the hub.
    Raises SystemExit where the source cannot be read or no pair is usable.
    """
    source = str(source or default_source(HUB_NAME))
    names = {name: (name,) for name in ("chosen", "rejected")}
    pairs, report = keep(read(source, names, names), parse_pair, source, "pair", used_columns, needed=names)
    report["notes"] += notes_of(pairs, report["places"])
    return pairs, report


def split(pairs, ratio, seed):
    """(training pairs, held-out pairs). Pairs with the same prompt, but for case and spaces, stay on one side."""
    return split_by(pairs, lambda pair: " ".join(key_of(pair["prompt"]).lower().split()), ratio, seed)


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
    piped(main)
