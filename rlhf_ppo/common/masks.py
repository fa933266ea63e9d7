# Generated from common/masks.py: edit that file, then run `make sync`.
"""Which tokens a model is trained on: counted before every run, shown with --show_mask N."""

import itertools

TRAINED, SKIPPED, PLAIN = "\033[32m", "\033[90m", "\033[0m"


def labels_of(row) -> list[int]:
    """The labels of a tokenized row: its own, or its tokens where TRL's masks are 1; -100 where nothing is learned."""
    if "labels" in row:
        return list(row["labels"])
    masks = [row[name] for name in ("completion_mask", "assistant_masks") if name in row]
    keep = [all(bits) for bits in zip(*masks, strict=True)] if masks else [True] * len(row["input_ids"])
    return [token if kept else -100 for token, kept in zip(row["input_ids"], keep, strict=True)]


def trained_share(dataset) -> float:
    """The share of a tokenized dataset's tokens that the loss counts. Stops at none: such a run learns nothing."""
    import pyarrow.compute as compute

    trained = total = 0
    for table in dataset.with_format("arrow").iter(50_000):
        masks = [table[name] for name in ("completion_mask", "assistant_masks") if name in table.column_names]
        total += len(table["input_ids"].combine_chunks().flatten())
        if "labels" in table.column_names:
            labels = table["labels"].combine_chunks().flatten()
            trained += compute.sum(compute.not_equal(labels, -100)).as_py() or 0
        elif masks:
            bits = [compute.cast(mask.combine_chunks().flatten(), "bool") for mask in masks]
            trained += compute.sum(compute.and_(bits[0], bits[-1])).as_py() or 0
        else:
            trained += len(table["input_ids"].combine_chunks().flatten())
    if not trained:
        raise SystemExit(
            "no token is trained on: every label is -100. Look at --show_mask 3: is the answer empty, cut off by "
            "--max_length, or is the text that marks its beginning not in the template?"
        )
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
