# Generated from common/tokens.py: edit that file, then run `make sync`.
"""Tokenized rows: made, counted, shown with --show_mask N, and reduced to one number that names them."""

import hashlib
import itertools
import sys

from common import screen

TRAINED, SKIPPED, PLAIN = ("\033[32m", "\033[90m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
MASKS = ("completion_mask", "assistant_masks")  # TRL's, of rows that it tokenizes


def tokenize(rows, encode, max_length, name):
    """Rows as a datasets.Dataset of int32 lists input_ids and labels; rows over max_length are dropped, never cut.

    rows: a list of dicts, or a pyarrow.Table. encode(list of dicts) -> (lists of input_ids, lists of labels). name: what
    the rows are, for messages. An answer that is cut off would teach the model not to stop.
    """
    import pyarrow
    from datasets import Dataset, Features, List, Value

    def fitting(batch):
        ids, labels = encode([dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)])
        fit = [len(row) <= max_length for row in ids]
        made = {"input_ids": column(itertools.compress(ids, fit))}
        made["labels"] = made["input_ids"] if labels is ids else column(itertools.compress(labels, fit))
        return pyarrow.table(made)

    def column(lists):
        return pyarrow.array(list(lists), pyarrow.list_(pyarrow.int32()))

    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    # Named, because datasets would otherwise hash the whole table to find a name; a source's own name may be anything.
    slug = hashlib.sha256(name.encode()).hexdigest()[:32]
    dataset = Dataset(table, fingerprint=slug).map(
        fitting,
        batched=True,
        remove_columns=table.column_names,
        features=Features(input_ids=List(Value("int32")), labels=List(Value("int32"))),
        new_fingerprint=f"{slug}-tokenized",
        desc=screen.text("tokenizing {name}", name=name),
    )
    report_dropped(len(table), len(dataset), max_length, name)
    return dataset


def longest(dataset, config, steps):
    """The longest rows of a tokenized dataset, as many as `steps` optimizer steps take, which the trainer's config is then
    told to do; all rows where steps is 0."""
    if not steps:
        return dataset
    config.max_steps = steps
    count = steps * config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    by_length = sorted(range(len(dataset)), key=lengths(dataset).__getitem__)
    return dataset.select(by_length[-count:])


def report_dropped(before, after, max_length, name):
    """Say how many rows were too long; stop where none is left."""
    if after < before:
        print(f"{name}: {before - after:,} of {before:,} rows are over --max_length {max_length}: dropped")
    if not after:
        raise SystemExit(
            screen.text("{name}: no row fits in --max_length {length} tokens.", name=name, length=max_length)
        )


def ids_of(tokenizer, texts) -> list[list[int]]:
    """Token ids of texts, without special tokens. The usual call also makes masks and offsets: a third of the time."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [text.ids for text in encoded]


def labels_of(row) -> list[int]:
    """The labels of a tokenized row: its own, or its tokens where TRL's masks are 1; -100 where nothing is learned."""
    if "labels" in row:
        return list(row["labels"])
    masks = [row[name] for name in MASKS if name in row]
    return [token if all(kept) else -100 for token, *kept in zip(row["input_ids"], *masks, strict=True)]


def trained_share(dataset) -> float:
    """The share of a tokenized dataset's tokens that the loss counts. Stops at none: such a run learns nothing."""
    trained = total = 0
    for table in dataset.with_format("arrow").iter(50_000):
        columns = {name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                   for name in table.column_names if name in ("input_ids", "labels", *MASKS)}  # fmt: skip
        counts = columns["labels"] != -100 if "labels" in columns else columns["input_ids"] >= 0
        for name in MASKS:
            counts = counts & (columns[name] != 0) if name in columns and "labels" not in columns else counts
        trained, total = trained + int(counts.sum()), total + len(counts)
    if not trained:
        ask = "no token is trained on: every label is -100. Look at --show_mask 3: is the answer empty, cut off by --max_length, or is the text that marks its beginning not in the template?"
        raise SystemExit(screen.text(ask))
    return trained / total


def show_mask(dataset, tokenizer, count: int):
    """Print `count` rows: green is trained on, grey only read; between ⟦ ⟧ as well, for a terminal without colours."""
    for row in dataset.select(range(min(count, len(dataset)))) if count else ():
        labels, text = labels_of(row), ""
        pairs = zip(row["input_ids"], labels, strict=True)
        for inside, group in itertools.groupby(pairs, key=lambda pair: pair[1] != -100):
            part = tokenizer.decode([token for token, _ in group])
            text += f"{TRAINED}⟦{part}⟧{PLAIN}" if inside else f"{SKIPPED}{part}{PLAIN}"
        trained = sum(label != -100 for label in labels)
        print(f"{text}\n-- {trained} of {len(labels)} tokens are trained on ({trained / len(labels):.0%})\n")


def lengths(dataset) -> list[int]:
    """Tokens of each row of a tokenized dataset; of a preference's pairs those of both sides."""
    sides = [name for name in ("input_ids", "rejected_ids") if name in dataset.column_names]
    return [
        sum(row)
        for table in dataset.with_format("arrow").iter(50_000)
        for row in zip(*(table[side].combine_chunks().value_lengths().to_pylist() for side in sides), strict=True)
    ]
