"""From 52,000 alpaca rows to packed batches on a CPU: read, template, tokenize, lay end to end.

    python bench/alpaca_data.py --data alpaca.json --model Qwen/Qwen2.5-7B-Instruct

Fewer rows in the file are repeated, each copy numbered, until there are 52,000. Prints the median of three runs.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import pyarrow

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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


def read(file):
    """The rows of a JSON list of instruction, input, output."""
    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    return {name: [row[name] for row in rows] for name in ("instruction", "input", "output")}


def encode(rows, tokenizer, max_length=2048):
    """Columns of rows -> a table of input_ids and labels; as in the course every token counts, the prompt's too."""
    texts = [
        (PROMPT if extra else SHORT_PROMPT).replace("{instruction}", instruction).replace("{input}", extra) + output
        for instruction, extra, output in zip(rows["instruction"], rows["input"], rows["output"], strict=True)
    ]
    # The tokenizer's own batch call without offsets and masks, which nobody asks for here.
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [row.ids + [tokenizer.eos_token_id] for row in encoded if len(row) < max_length]
    column = pyarrow.array(ids, pyarrow.list_(pyarrow.int32()))  # made once, used twice
    return pyarrow.table({"input_ids": column, "labels": column})


def dataset(rows, tokenizer, max_length=2048):
    """A datasets.Dataset with the columns of `encode`."""
    from datasets import Dataset, Features, List, Value

    # Named, because datasets would otherwise hash all rows to find a name.
    return Dataset(pyarrow.table(rows), fingerprint="rows").map(
        encode,
        batched=True,
        batch_size=4000,
        fn_kwargs=dict(tokenizer=tokenizer, max_length=max_length),
        remove_columns=list(rows),
        new_fingerprint="tokenized",  # or datasets would hash the tokenizer, which takes a second
        features=Features(input_ids=List(Value("int32")), labels=List(Value("int32"))),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a JSON list of instruction, input, output")
    parser.add_argument("--model", default="demo/SmolLM2-135M-Instruct", help="whose tokenizer is used")
    parser.add_argument("--rows", type=int, default=52_000)
    args = parser.parse_args()
    from common import paths

    paths.load_env()
    from common.fast import collator
    from common.models import load_tokenizer

    tokenizer = load_tokenizer(paths.resolve_model(args.model))
    rows = read(args.data)
    copies = -(-args.rows // len(rows["output"]))
    numbered = {
        name: [f"{text} ({copy})" if name == "instruction" else text for copy in range(copies) for text in column]
        for name, column in rows.items()
    }
    numbered = {name: column[: args.rows] for name, column in numbered.items()}
    times = []
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    for _ in range(3):
        start = time.perf_counter()
        done = dataset(numbered, tokenizer)
        tokenized = time.perf_counter()
        flatten = collator(tokenizer, True, "hf")
        tokens = sum(flatten(batch)["input_ids"].numel() for batch in _batches(done, 64))
        times.append((time.perf_counter() - start, tokenized - start, time.perf_counter() - tokenized))
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
