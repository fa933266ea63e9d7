"""Token ids of documents and conversations as sequences of one length: cut, replayed, laid end to end, and apart again.

A batch of documents padded to the longest is mostly padding; cut to fill sequences up, every one begins in the middle of
something. Here whole rows lie end to end where they fit, and none of them sees another.
"""

import random

from common.speed import fit


def pieces(documents, max_length):
    """(token ids of pieces, how many documents were cut). A document over max_length tokens is cut, and its pieces begin anew."""
    made = [ids[at : at + max_length] for ids in documents for at in range(0, len(ids), max_length)]
    return made, sum(len(ids) > max_length for ids in documents)


def texts(documents, max_length):
    """Rows (ids, labels) of documents' pieces: every token counts."""
    return [(ids, ids) for ids in pieces(documents, max_length)[0]]


def replay(rows, old, share, seed):
    """Rows from `old` (name -> rows), from each equally many tokens, that make `share` of the tokens beside `rows`. Says how many."""
    old = {name: found for name, found in old.items() if found and share}
    own, taken = sum(len(ids) for ids, _ in rows), []
    for number, (name, found) in enumerate(old.items()):
        mine = replayed(found, own * share / (1 - share) / len(old), seed + number)
        count = sum(len(ids) for ids, _ in mine)
        print(f"replay of {name}: {len(mine):,} rows, {count:,} tokens; {len(found):,} rows are there")
        taken += mine
    count = sum(len(ids) for ids, _ in taken)
    print(f"replay: {count / (own + count):.1%} of the tokens")
    return taken


def replayed(rows, wanted, seed):
    """Rows (ids, labels) of about `wanted` tokens: whole rows, drawn without putting back; where there are too few, all of them
    once more. The same seed draws the same rows."""
    taken, order = [], []
    while rows:
        order = order or random.Random(f"{seed} {len(taken)}").sample(rows, len(rows))
        if wanted < len(order[-1][0]) / 2:  # as near as whole rows come
            break
        taken.append(order.pop())
        wanted -= len(taken[-1][0])
    return taken


def pack(lengths, max_length):
    """Lists of indices whose lengths add up to max_length at most: the longest first, each where it fits best.

    Best-fit decreasing, as in arXiv 2404.10830: no row is cut to fill a sequence up.
    """
    bins, room = [], {}  # room left -> bins
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        fits = [left for left in room if left >= lengths[at]]
        if fits:
            left = min(fits)
            number = room[left].pop()
            if not room[left]:
                del room[left]
        else:
            left, number = max_length, len(bins)
            bins.append([])
        bins[number].append(at)
        room.setdefault(left - lengths[at], []).append(number)
    return bins


def sequences(rows, packed):
    """Rows (ids, labels) as a datasets.Dataset of sequences: input_ids, labels, and seq_lengths, the tokens of each row.

    packed: of pack(), which rows make a sequence.
    """
    import pyarrow
    from datasets import Dataset

    columns = {"input_ids": [], "labels": [], "seq_lengths": []}
    for inside in packed:
        columns["input_ids"].append([token for at in inside for token in rows[at][0]])
        columns["labels"].append([token for at in inside for token in rows[at][1]])
        columns["seq_lengths"].append([len(rows[at][0]) for at in inside])
    return Dataset(
        pyarrow.table({name: pyarrow.array(each, pyarrow.list_(pyarrow.int32())) for name, each in columns.items()})
    )


def apart(sequence) -> list[dict]:
    """A sequence's rows again, each with its input_ids and labels."""
    rows, start = [], 0
    for length in sequence["seq_lengths"]:
        rows.append({name: list(sequence[name][start : start + length]) for name in ("input_ids", "labels")})
        start += length
    return rows


def collator(batch_rows):
    """What makes a batch of sequences. batch_rows: what makes one of rows, of common/speed/packing.py: on a GPU end to end, each
    attending to itself only, its positions from 0; elsewhere padded, which is the same and slower."""
    return lambda batch: batch_rows([row for sequence in batch for row in apart(sequence)])


def told(documents, max_length) -> str:
    """What is said of documents' tokens: how many are cut, and how full their sequences are."""
    made, cut = pieces(documents, max_length)
    packed, tokens = pack([len(ids) for ids in made], max_length), sum(map(len, made))
    said = f"{tokens:,} tokens in {len(documents):,} documents"
    said += (
        f"; {cut:,} over --max_length {max_length}: cut into {len(made) - len(documents) + cut:,} pieces" if cut else ""
    )
    return f"{said}; {len(packed):,} sequences, {tokens / len(packed) / max_length:.0%} full"


def of_words(args, model) -> dict:
    """What --embeddings takes of a GPU's memory beside LoRA, as arguments of fit.needs; model: its folder or name.

    The two matrices, or the one, are kept with gradient and AdamW's two moments in 32 bits, 16 bytes a number, which are
    counted here with LoRA's. In the loss's backward pass lm_head and its gradient are there in 16 bits as well, and two more
    copies of the gradient in 32, for the chunk that is done and the sum of those before.
    """
    if not vars(args).get("embeddings"):
        return {}
    shape = fit.shape_of(model)
    numbers = shape["vocabulary"] * shape["hidden"] * (1 if shape["tied"] else 2)
    lora = fit.needs(shape, 1, args.lora_r, False, True, adapter=1)["LoRA"]
    return dict(adapter=16 + 16 * numbers / lora, logits=256 * 12 + 12 * shape["hidden"])
