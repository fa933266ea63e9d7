"""Measure a run on the rows that were held out: the base model and the tuned one, side by side.

The same file and the same seed give the same held-out rows as in training; other ones than the run's are refused, since
the model has seen some of those rows. Results: metrics.json, predictions.jsonl, report.html.

Newest run:       python evaluate.py --rouge
An adapter:       python evaluate.py --adapter outputs/alpaca/20261122-101500 --data alpaca.json
A quick look:     python evaluate.py --limit 50 --max_new_tokens 64
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.comparison import compare
from common.models import ModelArgs, load_tokenizer
from common.runs import latest_adapter, read_record
from data import format_report, prompts_of, read_rows, split_rows

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args:
    data: str | None = arg(None, "what training read (default: the --data that the run names)")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    max_seq_length: int = arg(2048, "rows whose prompt and reference have more tokens are left out and counted")
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    eval_ratio: float = arg(0.1, "train.py's --eval_ratio")
    seed: int = arg(42, "train.py's --split_seed")
    limit: int | None = arg(None, "only the first N held-out rows")
    rouge: bool = arg(False, "ROUGE and BLEU as well; for Chinese by character")
    batch_size: int = arg(32, "answers written at once")


def check_split(adapter, args):
    """Stop where training held out other rows than these flags do. Returns the --data of the run, if it is known."""
    trained = read_record(adapter).get("arguments", {})
    for ours, theirs in (("eval_ratio", "eval_ratio"), ("seed", "split_seed")):
        if trained.get(theirs, getattr(args, ours)) != getattr(args, ours):
            raise SystemExit(
                f"{adapter} was trained with --{theirs} {trained[theirs]}: with --{ours} {getattr(args, ours)} some of "
                f"these rows would be ones that it has seen. Give --{ours} {trained[theirs]}."
            )
    return trained.get("data")


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    source = check_split(adapter, args)
    rows, report = read_rows(args.data or source)
    print(format_report(report))
    held_out = split_rows(rows, args.eval_ratio, args.seed)[1][: args.limit]
    tokenizer = load_tokenizer(adapter)
    prompts = prompts_of(adapter, tokenizer, held_out)
    answers = tokenizer([row["output"] for row in held_out], add_special_tokens=False).input_ids
    fitting = [
        ({"instruction": row["instruction"], "input": row["input"], "reference": row["output"]}, prompt, completion)
        for row, prompt, completion in zip(
            held_out, prompts, [answer + [tokenizer.eos_token_id] for answer in answers], strict=True
        )
        if len(prompt) + len(completion) <= args.max_seq_length
    ]
    if not fitting:
        raise SystemExit(f"no held-out row fits in --max_seq_length {args.max_seq_length} tokens.")
    too_long = len(held_out) - len(fitting)
    print(f"{len(held_out):,} held-out rows; {too_long:,} over --max_seq_length left out")
    rows, prompts, completions = map(list, zip(*fitting, strict=True))
    out = Path(args.out or adapter / "evaluation_results")
    options = dict(max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, rouge=args.rouge, seed=args.seed)
    compare(adapter, model_args, rows, prompts, completions, out, **options, notes={"left_out_too_long": too_long})


if __name__ == "__main__":
    main()
