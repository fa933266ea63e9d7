"""Measure a finished run on the rows that it was not trained on: the base model and the tuned one, side by side.

The held-out rows are rebuilt from the same file with the same seed, and tokenized by train.py's own functions. What is
measured, and how the intervals are made, is in common/comparison.py.

Newest run:         python evaluate.py
A run, 200 rows:    python evaluate.py --adapter outputs/domain_mix/20261122-101500 --limit 200 --rouge
"""

from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.models import ModelArgs, load_tokenizer
from common.runs import latest_adapter, read_record
from train import SYSTEM, answer_ids, prompt_ids, read_rows, split

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args:
    data: str | None = arg(None, "what the run was trained on (default: what its run.json names)")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    out: str | None = arg(None, "folder of the results (default: evaluation_results in the adapter's folder)")
    max_seq_length: int = arg(2048, "rows with more tokens are left out, as in training, and counted")
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    batch_size: int = arg(32, "questions answered at once")
    eval_ratio: float = arg(0.1, "share that was held out: must be that of the run")
    seed: int = arg(42, "of the split, must be the run's --split_seed; and of the resampling for the intervals")
    limit: int | None = arg(None, "measure the first N held-out rows only")
    rouge: bool = arg(False, "ROUGE and BLEU as well, by word and by Chinese character")


def heldout(args, adapter, tokenizer):
    """(rows for the report, prompts, completions, notes) of the held-out rows; prompts, completions: token ids."""
    trained = read_record(adapter).get("arguments", {})
    for flag, name in (("eval_ratio", "eval_ratio"), ("seed", "split_seed")):
        if trained.get(name, getattr(args, flag)) != getattr(args, flag):
            raise SystemExit(
                f"the run was trained with --{name} {trained[name]}: with --{flag} {getattr(args, flag)} it would be "
                f"measured on rows that it was trained on. Give --{flag} {trained[name]}."
            )
    _, rows = split(read_rows(args.data or trained.get("data")), args.eval_ratio, args.seed)
    saved = adapter / "system_prompt.txt"
    system = saved.read_text(encoding="utf-8") if saved.exists() else SYSTEM
    prompts, completions = prompt_ids(tokenizer, rows, system), answer_ids(tokenizer, rows)
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, completions, strict=True)]
    fit = [i for i, length in enumerate(lengths) if length <= args.max_seq_length]
    print(
        f"{len(rows):,} held-out rows of {min(lengths):,} to {max(lengths):,} tokens, median "
        f"{sorted(lengths)[len(lengths) // 2]:,}; {len(rows) - len(fit):,} over --max_seq_length {args.max_seq_length}"
    )
    notes = {"held-out rows": len(rows), "rows over --max_seq_length": len(rows) - len(fit)}
    fit = fit[: args.limit]
    if not fit:
        raise SystemExit(f"no held-out row fits in --max_seq_length {args.max_seq_length} tokens.")
    shown = [
        {"instruction": rows[i]["instruction"], "input": rows[i]["input"], "reference": rows[i]["output"]} for i in fit
    ]
    return shown, [prompts[i] for i in fit], [completions[i] for i in fit], notes


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    rows, prompts, completions, notes = heldout(args, adapter, load_tokenizer(adapter))
    from common.comparison import compare

    compare(
        adapter,
        model_args,
        rows,
        prompts,
        completions,
        Path(args.out) if args.out else adapter / "evaluation_results",
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        rouge=args.rouge,
        seed=args.seed,
        notes=notes,
    )


if __name__ == "__main__":
    main()
