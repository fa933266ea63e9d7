"""Measure a run on the pairs that were held out: does it prefer as people did, how far has it moved, what does it write?

Data, split, template and length are read from the run. Writes metrics.json into the adapter's folder: the share of held-out
pairs whose chosen side gained more over the base than the rejected one (with a 95% interval), both sides' mean log p, and
of sampled answers KL, length and gold.py's score.

Newest run:   python evaluate.py
A run:        python evaluate.py --adapter outputs/preference/20261126-101500 --data pairs.jsonl
"""

import math
from dataclasses import dataclass

from common import models
from common.cli import ModelArgs, arg, parse
from common.files import text_table, write_json
from data import format_report, read_rows, split
from prompt import TEMPLATE, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(None, "what training read, if it has moved since; pairs")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int = arg(500, "at most so many held-out pairs")
    answers: int = arg(64, "held-out prompts answered, once each")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(8, "pairs measured at once")
    seed: int = arg(42, "of the sampling")


def interval(share, count):
    """95% interval of a share (Wilson 1927)."""
    z = 1.96
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    run = models.open_run(args.adapter, args.model, record=True, own=TEMPLATE)
    trained = run.arguments
    rows, report = read_rows(args.data or trained["data"])
    print(format_report(report))
    held_out = split(rows[: trained["max_pairs"]], trained["eval_ratio"], trained["split_seed"])[1][: args.limit]
    args.backend = "hf"
    model, tokenizer = models.load_run(run, args)
    import torch

    import pairs
    import watch

    head = pairs.head_of(model.get_base_model())
    made = pairs.tokenize(held_out, tokenizer, trained["max_length"], "held-out pairs", run.texts)
    collate, gains, sums = pairs.collator(tokenizer, False), [], []
    for start in range(0, len(made), args.batch_size):
        batch = collate([made[i] for i in range(start, min(start + args.batch_size, len(made)))])
        batch = {name: each.to(model.device) if name != "lengths" else each for name, each in batch.items()}
        with torch.no_grad():
            policy = pairs.logprobs(model, batch, head)
            before = pairs.reference_logprobs(model, batch, head)
        gain = (policy - before).chunk(2)
        gains += (gain[0] - gain[1]).tolist()
        sums += torch.stack([*policy.chunk(2), *before.chunk(2)]).T.tolist()
    torch.manual_seed(args.seed)
    asked = list({str(row["prompt"]): row for row in held_out}.values())[: args.answers]
    share = sum(each > 0 for each in gains) / len(gains)
    found = {"pairs": len(gains), "accuracy": share, "accuracy_interval": interval(share, len(gains))}
    for name, values in zip(
        ("logp_chosen", "logp_rejected", "base_chosen", "base_rejected"), zip(*sums, strict=True), strict=True
    ):
        found[name] = sum(values) / len(values)
    prompts = prompt_ids(tokenizer, asked, run.texts)
    found |= watch.facts_of(watch.sampled(model, tokenizer, prompts, args.max_new_tokens, head))
    folder = run.adapter / "evaluation_results" if not args.out else models.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", found)
    low, high = found["accuracy_interval"]
    print(f"accuracy {share:.3f} ({low:.3f} to {high:.3f}) on {len(gains)} held-out pairs; margins are over the base")
    print(
        text_table(
            ("held out", ""), [(name, f"{value:.3f}") for name, value in found.items() if isinstance(value, float)]
        )
    )
    print(f"saved: {folder}")


if __name__ == "__main__":
    main()
