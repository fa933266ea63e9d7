"""Measure a run on the rows that were held out: the base model and the tuned one, side by side.

The rows are those that training held out, in the form that it was trained with: data, split, template and length are read
from the run. Results: metrics.json, predictions.jsonl, report.html. For the variants against each other: compare.py.

Newest run:    python evaluate.py
An adapter:    python evaluate.py --adapter outputs/lora_variants/20261126-101500 --data alpaca.json
A quick look:  python evaluate.py --limit 50 --max_new_tokens 32
"""

from dataclasses import dataclass

import whole

from common import models
from common.cli import ModelArgs, arg, parse
from data import format_report, read_rows, split
from prompt import answer_ids, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(None, "what training read, if it has moved since")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int | None = arg(None, "at most so many held-out rows")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(32, "rows answered at once")
    rouge: bool = arg(False, "ROUGE and BLEU as well; for Chinese by character")
    seed: int = arg(42, "of the resampling for the intervals")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    run = whole.open_run(args.adapter, args.model, record=True)
    trained = run.arguments
    rows, report = read_rows(args.data or trained["data"])
    print(format_report(report))
    held_out = split(rows, trained["eval_ratio"], trained["split_seed"])[1][: args.limit]
    args.backend = "hf"  # before transformers; the variants are PEFT's
    tokenizer = models.load_tokenizer(whole.reads_of(run))
    from common.report import compare
    from common.speed import graph

    rows = [{"instruction": row["question"], "input": "", "reference": row["answer"]} for row in held_out]
    prompts, completions = prompt_ids(tokenizer, held_out, run.texts), answer_ids(tokenizer, held_out)
    compare(run, args, rows, prompts, completions, graph.decode, whole.load_run)


if __name__ == "__main__":
    main()
