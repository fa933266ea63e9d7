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
import os
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import tables
from common.cli import arg

HUB_NAME = "trl-lib/ultrafeedback_binarized"  # what is read where no --data and no local folder is
# A pair is dropped for the first of these that is true of it.
MISSING, TYPE, EMPTY, BROKEN, CONTROL = "missing", "wrong type", "empty", "broken characters", "control token"
EQUAL, NO_QUESTION = "equal sides", "prompt does not end with the user"
EXAMPLES = 10  # problems described for each reason; the counts say how many, these say where to look
PROMPT_COLUMNS = ("prompt", "conversations", "messages")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

# <|im_end|> inside a text would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
# Said, and not left to the chat template: without one Qwen's and SmolLM2's each put in a text of their own.
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@dataclass
class DataArgs:
    """Flags of every script that reads pairs."""

    data: str | None = arg(
        None,
        "JSON, JSONL, Parquet, a save_to_disk folder or a hub name (default: RLHF_PPO_DATA_DIR, DATA_DIR/rlhf_ppo, hub)",
    )
    eval_ratio: float = arg(0.1, "share of the prompts held out; pairs with the same prompt stay together")
    split_seed: int = arg(42, "of the draw which prompts are held out")
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


def read_pairs(source=None):
    """The usable pairs of a source, as dicts of `parse_pair`, and a report.

    source: see the module's docstring; None: RLHF_PPO_DATA_DIR or DATA_DIR/rlhf_ppo if it exists, else the hub.
    Report: source, rows, kept, dropped (reason -> count), problems (text).
    Raises SystemExit where the source cannot be read or no pair is usable.
    """
    source = str(source or tables.default_source(HUB_NAME))
    raw, pairs, dropped, problems = list(tables.read(source, "pairs")), [], Counter(), []
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
    """The report of `read_pairs` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    line = f"{report['source']}: {report['rows']:,} pairs, {report['kept']:,} kept"
    return "\n".join([line + (f"; dropped: {reasons}" if reasons else ""), *report["problems"]])


def key_of(messages):
    return json.dumps(messages, ensure_ascii=False)


def split_pairs(pairs, ratio, seed):
    """(training pairs, held-out pairs). Pairs with the same prompt stay on one side, so nothing leaks."""
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.1.")
    prompts = list(dict.fromkeys(key_of(pair["prompt"]) for pair in pairs))
    if len(prompts) < 2:
        raise SystemExit(f"{len(prompts)} different prompt: one to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: min(max(1, round(len(prompts) * ratio)), len(prompts) - 1)])
    sides = {True: [], False: []}
    for pair in pairs:
        sides[key_of(pair["prompt"]) in held].append(pair)
    return sides[False], sides[True]


def load_splits(args):
    """Read, report and split: (training pairs, held-out pairs) of a script's flags."""
    pairs, report = read_pairs(args.data)
    print(format_report(report))
    return split_pairs(pairs[: args.max_pairs], args.eval_ratio, args.split_seed)


# -- tokens


def token_ids(tokenizer, texts):
    """Token ids of texts, without special tokens."""
    return [text.ids for text in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def prompt_texts(tokenizer, prompts):
    """Each prompt (messages) in the model's chat template, up to where the assistant begins to write."""
    talks = [messages if messages[0]["role"] == "system" else [SYSTEM, *messages] for messages in prompts]
    return [tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]


def prompt_ids(tokenizer, prompts):
    """Token ids of each prompt. Every script calls this, so training and inference cannot drift apart."""
    return token_ids(tokenizer, prompt_texts(tokenizer, prompts))


def cut_at_eos(ids, eos):
    """Up to and with the first eos; all of it if there is none. Found by position: a pad id may be a real token, too."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def rm_ids(prompt, response, eos):
    """What the reward model reads: the prompt, then the response up to and with its eos, and nothing behind it.

    The one place where this is decided, for reward training, its evaluation, PPO, GRPO, best-of-n and inference. A chat
    template ends a turn with eos AND a line break; a reward model trained on that reads its score at the line break,
    which no sampled response has: the same texts then score 4.5 with it and 0.5 without.
    """
    return list(prompt) + cut_at_eos(list(response), eos)


def encode_pairs(pairs, tokenizer, max_prompt_length, max_length, name):
    """Pairs as dicts of token ids: prompt, chosen, rejected (both sides without the prompt, with eos at the end).

    Pairs that are too long are dropped and counted, never cut: a cut answer has no end, and the end is what is scored.
    """
    prompts = prompt_ids(tokenizer, [pair["prompt"] for pair in pairs])
    sides = [token_ids(tokenizer, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")]
    rows, eos = [], [tokenizer.eos_token_id]
    for prompt, chosen, rejected in zip(prompts, *sides, strict=True):
        if len(prompt) <= max_prompt_length and len(prompt) + max(len(chosen), len(rejected)) < max_length:
            rows.append({"prompt": prompt, "chosen": chosen + eos, "rejected": rejected + eos})
    if len(rows) < len(pairs):
        print(
            f"{name}: {len(pairs) - len(rows):,} over --max_prompt_length {max_prompt_length} or --max_length {max_length} dropped"
        )
    if not rows:
        raise SystemExit(f"{name}: no pair fits in --max_prompt_length {max_prompt_length}, --max_length {max_length}.")
    return rows


def encode_prompts(pairs, tokenizer, max_prompt_length, name):
    """(prompts as messages, their token ids): the different prompts of the pairs that are not too long."""
    prompts = list({key_of(pair["prompt"]): pair["prompt"] for pair in pairs}.values())
    both = [
        (prompt, ids)
        for prompt, ids in zip(prompts, prompt_ids(tokenizer, prompts), strict=True)
        if len(ids) <= max_prompt_length
    ]
    if len(both) < len(prompts):
        print(f"{name}: {len(prompts) - len(both):,} over --max_prompt_length {max_prompt_length} dropped")
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
    if args.out and args.out.exists():
        raise SystemExit(f"{args.out} exists and is not overwritten: give another name, or move it away.")
    from common.paths import load_env

    load_env()
    pairs, report = read_pairs(args.check)
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
        new = args.out.with_name(f".{args.out.name}.{os.getpid()}.new")
        try:
            new.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
            os.replace(new, args.out)
        except OSError as error:
            raise SystemExit(f"{args.out} cannot be written: {error.strerror}.") from None
        print(f"{len(pairs):,} pairs written to {args.out}")


if __name__ == "__main__":
    main()
