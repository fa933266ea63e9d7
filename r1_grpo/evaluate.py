"""Measure a run on the test problems: the base model, the warmed-up one if there was a warm-up, and the tuned one.

Accuracy of greedy answers, strict (the last answer block) and flexible (the last number or formula): where flexible rises
too, arithmetic was learned; where only strict does, the form was. Results: results.json, predictions.jsonl, report.html.

Newest run:       python evaluate.py
With pass@8:      python evaluate.py --samples 16 --pass_k 8
An adapter:       python evaluate.py --adapter outputs/r1_grpo/20261122-101500 --data sample --limit 50
"""

import contextlib
import html
import math
from dataclasses import dataclass
from pathlib import Path

from common import adapters, models
from common.cli import ModelArgs, arg, parse
from common.files import read_json, replace_text, text_table, write_json, write_lines
from data import format_report, read_splits
from prompt import prompt_ids
from rewards import grade

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)
# name -> what it is
METRICS = {
    "strict": "accuracy: the last answer block is the gold number",
    "flexible": "accuracy: the last number or formula in the text is worth it",
    "format": "share in the form to the letter",
    "stopped": "share that ended by themselves",
    "tokens": "mean length of the answers",
}


@dataclass
class Args(ModelArgs):
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(None, "what training read, if it has moved since")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int | None = arg(None, "at most so many held-out rows")
    max_new_tokens: int | None = arg(None, "longest answer, in tokens (default: the run's --max_completion_length)")
    samples: int = arg(0, "sampled answers to each problem, for pass@k; 0: none")
    pass_k: int = arg(8, "the k of pass@k, at most --samples")
    temperature: float = arg(1.0, "of the samples")
    batch_size: int = arg(64, "answers written at once")
    seed: int = arg(42, "of the samples and of the resampling for the intervals")


def pass_at_k(right, samples, k):
    """The chance that k of `samples` answers, `right` of them right, hold a right one: 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al. 2021, arXiv 2107.03374). 1 - (1 - c/n)^k would be too low: it draws with replacement.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def bootstrap(one, other, seed, times=10_000):
    """95% interval of mean(other) - mean(one), by drawing the problems again, the same ones for both (paired)."""
    import numpy

    difference = numpy.asarray(other, float) - numpy.asarray(one, float)
    random = numpy.random.default_rng(seed)
    means = [difference[random.integers(len(difference), size=len(difference))].mean() for _ in range(times)]
    return [float(each) for each in numpy.percentile(means, (2.5, 97.5))]


def measure(model, tokenizer, rows, prompts, args):
    """A dict of numbers for each problem, with the greedy answer's text under "answer". prompts: the rows', token ids."""
    from transformers import set_seed

    from common.answers import generate
    from common.speed import graph

    how = dict(backend=args.backend, decode=graph.decode)
    made = generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, return_ids=True, **how)
    measured = []
    for row, ids in zip(rows, made, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        stopped = float(ids[-1:] == [tokenizer.eos_token_id])
        measured.append({"answer": text, **grade(text, row["gold"]), "stopped": stopped, "tokens": len(ids)})
    if args.samples:
        set_seed(args.seed)
        many = [prompt for prompt in prompts for _ in range(args.samples)]
        how |= dict(temperature=args.temperature, top_k=0, top_p=1.0)
        texts = generate(model, tokenizer, many, args.max_new_tokens, args.batch_size, **how)
        for number, (row, one) in enumerate(zip(rows, measured, strict=True)):
            mine = texts[number * args.samples : (number + 1) * args.samples]
            right = int(sum(grade(text, row["gold"])["strict"] for text in mine))
            for k in dict.fromkeys((1, args.pass_k)):
                one[f"pass@{k}"] = pass_at_k(right, args.samples, k)
    return measured


def table(measured, seed):
    """Rows for print and page: the metric, each model's mean, the last model's gain over the others with its interval."""
    names = list(measured)
    numbers = [name for name in next(iter(measured.values()))[0] if name != "answer"]
    rows = []
    for name in numbers:
        columns = {model: [each[name] for each in measured[model]] for model in names}
        gains = {}
        for model in names[:-1]:
            low, high = bootstrap(columns[model], columns[names[-1]], seed)
            gain = sum(columns[names[-1]]) / len(columns[model]) - sum(columns[model]) / len(columns[model])
            gains[model] = [gain, low, high]
        means = {model: sum(values) / len(values) for model, values in columns.items()}
        meaning = METRICS.get(name, "of so many sampled answers at least one is right")
        rows.append({"metric": name, "means": means, "gains": gains, "meaning": meaning})
    return rows


def as_text(rows):
    """The table as text: a gain's interval that holds 0 means: not shown to differ."""
    names, others = list(rows[0]["means"]), list(rows[0]["gains"])
    cells = [
        [row["metric"], *(f"{value:.3f}" for value in row["means"].values())]
        + [f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]" for gain, low, high in row["gains"].values()]
        for row in rows
    ]
    return text_table(("metric", *names, *(f"{names[-1]} - {other} [95%]" for other in others)), cells)


def report(facts, rows, pairs):
    """A page that needs nothing else: facts, table, twenty problems side by side."""
    cell = lambda text, tag="td": f"<{tag}>{html.escape(str(text))}</{tag}>"  # noqa: E731
    known = "".join(f"<li>{html.escape(name)}: {html.escape(str(value))}</li>" for name, value in facts.items())
    shown = "".join(f"<tr>{''.join(cell(text) for text in pair.values())}</tr>" for pair in pairs[:20])
    meanings = "".join(f"<li>{cell(row['metric'], 'b')}: {html.escape(row['meaning'])}</li>" for row in rows)
    return f"""<!doctype html><meta charset="utf-8"><title>evaluation</title>
<style>body{{font:15px/1.5 sans-serif;max-width:80em;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}
td,th{{border:1px solid #ccc;padding:.3em .6em;vertical-align:top;text-align:left;white-space:pre-wrap}}</style>
<h1>{len(pairs)} test problems</h1><ul>{known}</ul><pre>{html.escape(as_text(rows))}</pre><ul>{meanings}</ul>
<p>An interval that holds 0 means: not shown to differ.</p>
<h2>Answers</h2><table><tr>{"".join(cell(name, "th") for name in pairs[0])}</tr>{shown}</table>
"""


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if args.samples and not 1 <= args.pass_k <= args.samples:
        raise SystemExit(f"--pass_k {args.pass_k}: takes a number from 1 to --samples {args.samples}.")
    run = models.open_run(args.adapter, args.model)
    # A warm-up's adapter lies inside its run, whose record says what it was trained on.
    trained = run.arguments or read_json(run.adapter.parent / "run.json").get("arguments", {})
    args.max_new_tokens = args.max_new_tokens or trained.get("max_completion_length", 512)
    _, rows, found = read_splits(args.data or trained.get("data"))
    print(format_report(found))
    rows = rows[: args.limit]
    prompts = prompt_ids(models.load_tokenizer(run.adapter), rows, run.texts)
    longest = trained.get("max_prompt_tokens", math.inf)
    rows, prompts = (
        [each for each, prompt in zip(every, prompts, strict=True) if len(prompt) <= longest]
        for every in (rows, prompts)
    )
    if not rows:
        raise SystemExit(f"no test problem fits in the run's --max_prompt_tokens {longest}.")
    model, tokenizer = models.load_run(run, args)
    ways = {"base": model.disable_adapter, "tuned": contextlib.nullcontext}
    if (run.adapter / "warmup" / "adapter_config.json").is_file():
        # What the warm-up taught must not be counted as GRPO's gain.
        adapters.attach(model, run.adapter / "warmup", "warmup")
        ways = {"base": ways["base"], "warm-up": lambda: using(model, "warmup"), "tuned": ways["tuned"]}
    measured = {}
    for name, way in ways.items():
        with way():
            measured[name] = measure(model, tokenizer, rows, prompts, args)
    lines = table(measured, args.seed)
    facts = {"adapter": str(run.adapter), "problems": len(rows), "max_new_tokens": args.max_new_tokens}
    facts |= {"samples": args.samples, "temperature": args.temperature, "seed": args.seed, "data": found["source"]}
    pairs = [
        {"question": row["question"], "gold": row["gold"]}
        | {name: each[n]["answer"] for name, each in measured.items()}
        for n, row in enumerate(rows)
    ]
    out = Path(args.out or run.adapter / "evaluation_results")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", {"facts": facts, "table": lines})
    write_lines(out / "predictions.jsonl", pairs)
    replace_text(out / "report.html", report(facts, lines, pairs))
    print(f"{len(rows)} test problems, greedy\n{as_text(lines)}\nreport: {out / 'report.html'}")


@contextlib.contextmanager
def using(model, adapter):
    """While it lasts another adapter is at work."""
    before = model.active_adapter
    model.set_adapter(adapter)
    try:
        yield
    finally:
        model.set_adapter(before)


if __name__ == "__main__":
    main()
