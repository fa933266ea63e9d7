"""Measure a run on what was held out: the domain, everything else, and the form of answers; the base beside it.

Data, split and length are read from the run. Results: metrics.json and predictions.jsonl.

Newest run:       python evaluate.py
An adapter:       python evaluate.py --adapter outputs/continual/20261122-101500 --data texts/
A quick look:     python evaluate.py --limit 20 --max_new_tokens 32
"""

import contextlib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from common import models
from common.cli import ModelArgs, arg, parse
from common.files import write_json, write_lines
from data import load_splits

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(None, "the domain's documents, if they have moved since training")
    general: str | None = arg(None, "documents of everything else, if they have moved, or training had none")
    chats: str | None = arg(None, "conversations, if they have moved, or training had none")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int = arg(1000, "at most so many held-out rows of each source")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    show_answers: int = arg(3, "held-out rows answered before and after, printed")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    run = models.open_run(args.adapter, args.model, record=True)
    trained = run.arguments
    sources = {name: getattr(args, name) or trained.get(name) for name in ("data", "general", "chats")}
    splits = load_splits(Namespace(**sources, eval_ratio=trained["eval_ratio"], split_seed=trained["split_seed"]))
    model, tokenizer = models.load_run(run, args)
    import measure

    args.eval_rows, args.max_length = args.limit, trained["max_length"]
    held = measure.datasets_of(tokenizer, {name: rows for name, (_, rows) in splits.items()}, run.texts, args)
    asked = splits["chats"][1][: args.limit]
    if not held:
        raise SystemExit("nothing to evaluate: give --data, --general or --chats.")
    found = {}
    for name, way in {"base": model.disable_adapter, "tuned": contextlib.nullcontext}.items():
        with way():
            found[name] = measure.look(model, tokenizer, held, asked, run.texts, args)
    measure.show(found["base"], found["tuned"], asked, args.show_answers)
    out = Path(args.out).expanduser() if args.out else run.adapter / "evaluation_results"
    out.mkdir(parents=True, exist_ok=True)
    texts = zip(asked, *(each.pop("answers", []) for each in found.values()), strict=False)
    write_lines(out / "predictions.jsonl", [row | {"base": one, "tuned": other} for row, one, other in texts])
    write_json(out / "metrics.json", found | {"arguments": sources})
    print(f"written: {out / 'metrics.json'}")


if __name__ == "__main__":
    main()
