"""From 52,000 alpaca rows to packed batches on a CPU: read, template, tokenize, lay end to end.

    python bench/alpaca_data.py --data alpaca.json --model Qwen/Qwen2.5-7B-Instruct

Fewer rows in the file are repeated, each copy numbered, until there are 52,000. Prints the median of three runs.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "alpaca")]  # it has a copy of common/, too

from data import read_rows  # noqa: E402
from prompt import encode  # noqa: E402


def read(file):
    """The usable rows of an alpaca file."""
    return read_rows(file)[0]


def dataset(rows, tokenizer, max_length=2048):
    """Rows as a datasets.Dataset of input_ids and labels; as in the course every token counts, the prompt's too."""
    from common import tokens

    return tokens.tokenize(rows, partial(encode, tokenizer), max_length, "rows")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a JSON list of instruction, input, output")
    parser.add_argument("--model", default="demo/SmolLM2-135M-Instruct", help="whose tokenizer is used")
    parser.add_argument("--rows", type=int, default=52_000)
    args = parser.parse_args()
    from common import hub, models, paths

    paths.load_env()
    from common.speed import packing

    tokenizer = models.load_tokenizer(hub.resolve_model(args.model))
    rows = read(args.data)
    copies = -(-args.rows // len(rows))
    numbered = [row | {"instruction": f"{row['instruction']} ({n})"} for n in range(copies) for row in rows][
        : args.rows
    ]
    times = []
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    for _ in range(3):
        start = time.perf_counter()
        done = dataset(numbered, tokenizer)
        middle = time.perf_counter()
        flatten = packing.collator(tokenizer, True, "hf")
        tokens = sum(flatten(batch)["input_ids"].numel() for batch in _batches(done, 64))
        times.append((time.perf_counter() - start, middle - start, time.perf_counter() - middle))
    total, first, second = (statistics.median(column) for column in zip(*times, strict=True))
    spread = f"{min(t[0] for t in times):.1f} to {max(t[0] for t in times):.1f}"
    print(
        f"{len(done):,} rows, {tokens:,} tokens: {total:.1f} s ({spread}); tokenize {first:.1f} s, pack {second:.1f} s"
    )


def _batches(done, size):
    for start in range(0, len(done), size):
        columns = done[start : start + size]
        yield [{"input_ids": ids, "labels": labels} for ids, labels in zip(*columns.values(), strict=True)]


if __name__ == "__main__":
    main()
