"""Base and tuned model on the held-out questions: perplexity, length, repetition, overlap, with 95% intervals.

The rows are those that training held out: data folder, seed and limits are read from the run's run.json.

Newest run:         python evaluate.py
Quick, with ROUGE:  python evaluate.py --limit 50 --rouge --max_new_tokens 128
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.comparison import compare
from common.models import ModelArgs, load_tokenizer
from common.runs import latest_adapter, read_record
from data import read_folder, split_by_question
from train import prompt_ids

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args:
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(None, "the data folder, if it has moved since training")
    out: str | None = arg(None, "where the results go (default: ADAPTER/evaluation_results)")
    limit: int | None = arg(None, "at most so many held-out rows")
    max_seq_length: int = arg(2048, "longer rows are left out and counted")
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    batch_size: int = arg(32, "questions answered at once")
    rouge: bool = arg(False, "ROUGE and BLEU, Chinese by character")
    seed: int = arg(42, "of the resampling for the intervals")


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    trained = read_record(adapter).get("arguments")
    if not trained:
        raise SystemExit(f"{adapter} has no run.json that says what it was trained on. Give a run's folder.")
    table, _ = read_folder(args.data or trained["data"], trained["max_chars"])
    _, held_out = split_by_question(table, trained["eval_rows"], trained["seed"])
    tokenizer = load_tokenizer(adapter)
    rows = [
        {"instruction": row["question"], "input": "", "reference": row["answer"].strip()}
        for row in held_out.to_pylist()
    ][: args.limit]
    prompts = prompt_ids(tokenizer, [row["instruction"] for row in rows])
    answers = tokenizer([row["reference"] for row in rows], add_special_tokens=False).input_ids
    completions = [answer + [tokenizer.eos_token_id] for answer in answers]
    fits = [len(p) + len(c) <= args.max_seq_length for p, c in zip(prompts, completions, strict=True)]
    rows, prompts, completions = (
        [each for each, fit in zip(every, fits, strict=True) if fit] for every in (rows, prompts, completions)
    )
    out = Path(args.out or adapter / "evaluation_results")
    notes = {"rows over --max_seq_length": fits.count(False)}
    compare(adapter, model_args, rows, prompts, completions, out, args.max_new_tokens, args.batch_size, args.rouge,
            args.seed, notes)  # fmt: skip


if __name__ == "__main__":
    main()
