"""Measure a run on the rows that were held out: the base model and the tuned one, side by side.

The rows are those that training held out, in the form that it was trained with: data, split, system prompt and length are
read from the run. Results: metrics.json, predictions.jsonl, report.html.

Newest run:       python evaluate.py --rouge
An adapter:       python evaluate.py --adapter outputs/domain_mix/20261122-101500 --data mix.jsonl
A quick look:     python evaluate.py --limit 50 --max_new_tokens 64
"""

from dataclasses import dataclass

from common import device, models
from common.cli import ModelArgs, arg, parse
from data import read_rows, split
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
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    batch_size: int = arg(32, "rows answered at once")
    rouge: bool = arg(False, "ROUGE and BLEU as well; for Chinese by character")
    eval_ratio: float | None = arg(None, "the run's --eval_ratio and no other (default: that)")
    seed: int | None = arg(None, "the run's --split_seed and no other (default: that); also of the resampling")


def same_split(args, trained):
    """Set --eval_ratio and --seed to the run's, or stop where another split was asked for."""
    for flag, name in (("eval_ratio", "eval_ratio"), ("seed", "split_seed")):
        given = getattr(args, flag)
        if given not in (None, trained[name]):
            raise SystemExit(
                f"the run was trained with --{name} {trained[name]}: with --{flag} {given} it would be measured on rows "
                f"that it was trained on. Give --{flag} {trained[name]}, or leave it out."
            )
        setattr(args, flag, trained[name])


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    run = models.open_run(args.adapter, args.model, needed=("system_prompt",), record=True)
    trained = run.arguments
    same_split(args, trained)
    rows, report = read_rows(args.data or trained["data"])
    print(report)
    held_out = split(rows, trained["eval_ratio"], trained["split_seed"])[1][: args.limit]
    args.backend = device.decide_backend(args.backend)  # before transformers, which Unsloth patches
    tokenizer = models.load_tokenizer(run.adapter)
    from common.report import compare
    from common.speed import graph

    rows = [{"instruction": row["instruction"], "input": row["input"], "reference": row["output"]} for row in held_out]
    compare(run, args, rows, prompt_ids(tokenizer, held_out, run.texts), answer_ids(tokenizer, held_out), graph.decode)


if __name__ == "__main__":
    main()
