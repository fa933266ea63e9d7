# Generated from common/report.py: edit that file, then run `make sync`.
"""A base model and its tuned version on the same held-out rows: how likely the references are, and what they answer.

Writes metrics.json, predictions.jsonl and report.html (tables, plots and answers side by side; readable offline).
"""

import base64
import contextlib
import html
import io
import re
import time
from collections import Counter
from pathlib import Path

import matplotlib
import numpy
import torch
from torch.nn.utils.rnn import pad_sequence

from common import models, screen
from common.answers import generate, heldout_loss
from common.files import replace_text, text_table, write_json, write_lines

matplotlib.use("Agg")
from matplotlib import pyplot

# name -> (what it is, which direction is better: 1 up, -1 down, 0 neither)
METRICS = {
    "loss": ("-log p a reference token, teacher-forced, weighted by tokens", -1),
    "perplexity": ("exp(loss)", -1),
    "empty": ("share of answers without a character", -1),
    "stopped": ("share that ended by themselves", 1),
    "tokens": ("mean length of the answers", 0),
    "reference_tokens": ("mean length of the references", 0),
    "length_ratio": ("tokens / reference_tokens", 0),
    "distinct_1": ("different words (Chinese: characters) over all, within an answer", 0),
    "distinct_2": ("the same for pairs", 0),
    "repetition": ("share of an answer's 4-grams that occurred in it before", -1),
    "rouge_1": ("F1 of shared words (Chinese: characters)", 1),
    "rouge_2": ("F1 of shared pairs", 1),
    "rouge_l": ("F1 of the longest common subsequence", 1),
    "bleu": ("corpus BLEU over the same units, 0 to 100", 1),
}


def units(text: str) -> list[str]:
    """Words in lower case; each Chinese, Japanese or Korean character by itself, since those have no spaces."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+", text.lower())


def ngrams(items, n):
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def rouge(answer: str, reference: str) -> dict:
    """ROUGE-1, -2 and -L as F1 over `units` (Lin 2004, without stemming). Two empty texts agree."""
    a, b = units(answer), units(reference)

    def f1(shared, of_a, of_b):
        return 1.0 if of_a == of_b == 0 else 2 * shared / (of_a + of_b)

    scores = {}
    for n in (1, 2):
        left, right = Counter(ngrams(a, n)), Counter(ngrams(b, n))
        scores[f"rouge_{n}"] = f1((left & right).total(), left.total(), right.total())
    row = [0] * (len(b) + 1)  # longest common subsequence of a's beginning with each beginning of b
    for word in a:
        before = row[:]
        for j, other in enumerate(b, 1):
            row[j] = before[j - 1] + 1 if word == other else max(before[j], row[j - 1])
    scores["rouge_l"] = f1(row[-1], len(a), len(b))
    return scores


def bleu(answers, references) -> float:
    """Corpus BLEU (sacrebleu) over `units`, so that a Chinese text is compared character by character."""
    import sacrebleu

    split = [[" ".join(units(text)) for text in texts] for texts in (answers, references)]
    return sacrebleu.corpus_bleu(split[0], [split[1]], tokenize="none", force=True).score


def diversity(answer: str) -> dict:
    """distinct-1, distinct-2 (Li et al. 2016, within an answer) and the share of repeated 4-grams."""
    words = units(answer)
    grams = {n: ngrams(words, n) for n in (1, 2, 4)}
    share = {n: len(set(each)) / len(each) if each else 1.0 for n, each in grams.items()}
    return {"distinct_1": share[1], "distinct_2": share[2], "repetition": 1 - share[4]}


def reference_losses(model, prompts, completions, pad_token_id, batch_size=8):
    """For each row the sum of -log p over its completion's tokens, given the prompt. Returns a list of floats."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]), reverse=True)
    losses = [0.0] * len(prompts)
    with torch.no_grad():
        for start in screen.bar("loss of the references", None, " batches", range(0, len(order), batch_size)):
            batch = order[start : start + batch_size]
            rows = [torch.tensor(prompts[i] + completions[i]) for i in batch]
            ids = pad_sequence(rows, True, pad_token_id).to(model.device)
            mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], True, 0).to(model.device)
            logits = model(input_ids=ids, attention_mask=mask).logits
            for row, i in enumerate(batch):
                first, last = len(prompts[i]), len(prompts[i]) + len(completions[i])
                scores = logits[row, first - 1 : last - 1].float().log_softmax(-1)  # logits at t are about t + 1
                losses[i] = -scores.gather(1, ids[row, first:last, None]).sum().item()
    return losses


def measure(model, tokenizer, rows, prompts, completions, args, decode):
    """Per-row numbers of one model: a list of dicts, with the answer's text under "answer"."""
    losses = reference_losses(model, prompts, completions, tokenizer.pad_token_id)
    start = time.time()
    how = dict(backend=args.backend, decode=decode, return_ids=True)
    ids = generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, **how)
    seconds, written = time.time() - start, sum(map(len, ids))
    print(f"{len(ids)} answers, {written:,} tokens in {seconds:.0f} s: {written / seconds:.0f} tokens/s")
    measured = []
    for row, loss, completion, answer_ids in zip(rows, losses, completions, ids, strict=True):
        answer = tokenizer.decode(answer_ids, skip_special_tokens=True).strip()
        one = {
            "answer": answer,
            "loss_sum": loss,
            "loss_tokens": len(completion),
            "empty": float(not answer),
            "stopped": float(answer_ids[-1:] == [tokenizer.eos_token_id]),
            "tokens": len(answer_ids),
            "reference_tokens": len(completion),
        }
        one |= diversity(answer)
        if args.rouge:
            one |= rouge(answer, row["reference"])
        measured.append(one)
    return measured


def summary(measured, references=None, pick=None):
    """The metrics over rows (or over the rows `pick`, an array of indices). BLEU only where references are given."""
    chosen = measured if pick is None else [measured[i] for i in pick]
    mean = {name: float(numpy.mean([row[name] for row in chosen])) for name in METRICS if name in chosen[0]}
    loss = sum(row["loss_sum"] for row in chosen) / sum(row["loss_tokens"] for row in chosen)
    made = {"loss": loss, "perplexity": float(numpy.exp(loss))} | mean
    made["length_ratio"] = mean["tokens"] / mean["reference_tokens"]
    if references:
        made["bleu"] = bleu([row["answer"] for row in measured], references)
    return {name: made[name] for name in METRICS if name in made}


def bootstrap(base, tuned, seed, times=1000):
    """95% intervals of tuned - base for each metric, by resampling the rows, the same ones for both (paired)."""
    random = numpy.random.default_rng(seed)
    differences = []
    for _ in range(times):
        pick = random.integers(len(base), size=len(base))
        one, other = summary(base, pick=pick), summary(tuned, pick=pick)
        differences.append({name: other[name] - one[name] for name in one})
    names = differences[0]
    return {
        name: [float(numpy.percentile([each[name] for each in differences], q)) for q in (2.5, 97.5)] for name in names
    }


def compare(run, args, rows, prompts, completions, decode=None, load=models.load_run):
    """Measure the base model and the tuned one on held-out rows, print the table and write the three files.

    run: of models.open_run. args: the script's flags out, limit, max_new_tokens, batch_size, rouge and seed. rows: dicts with
    instruction, input, reference (text). prompts, completions: their token ids, a completion with its eos. Rows over the
    run's max_length are left out, as in training. Files of an earlier evaluation are replaced. decode: as for
    answers.generate. load: as models.load_run.
    """
    longest = run.arguments["max_length"]
    fits = [len(p) + len(c) <= longest for p, c in zip(prompts, completions, strict=True)]
    rows, prompts, completions = (
        [each for each, fit in zip(every, fits, strict=True) if fit] for every in (rows, prompts, completions)
    )
    print(f"{len(fits):,} held-out rows; {fits.count(False):,} over the run's max_length of {longest} left out")
    if not rows:
        raise SystemExit("nothing to evaluate: no held-out row is left.")
    model, tokenizer = load(run, args)
    ways = {"base": model.disable_adapter, "tuned": contextlib.nullcontext}
    measured = {}
    for name, way in ways.items():
        with way():
            print(f"{name}:", end=" ", flush=True)
            measured[name] = measure(model, tokenizer, rows, prompts, completions, args, decode)
    references = [row["reference"] for row in rows] if args.rouge else None
    totals = {name: summary(each, references) for name, each in measured.items()}
    intervals = bootstrap(measured["base"], measured["tuned"], args.seed)
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    facts = {"adapter": str(run.adapter), "rows": len(rows), "tokens": sum(lengths), "left out": fits.count(False)}
    out = Path(args.out or run.adapter / "evaluation_results")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", {"facts": facts} | totals | {"difference_95": intervals})
    pairs = [
        {name: row[name] for name in ("instruction", "input", "reference")}
        | {"base": one["answer"], "tuned": two["answer"]}
        for row, one, two in zip(rows, measured["base"], measured["tuned"], strict=True)
    ]
    write_lines(out / "predictions.jsonl", pairs)
    replace_text(out / "report.html", report(facts, totals, intervals, measured, pairs, lengths))
    print(as_text(totals, intervals))
    print(f"report: {out / 'report.html'}")
    return totals


def lines(totals, intervals):
    """Rows of the table: name, base, tuned, difference with its interval, verdict, meaning."""
    for name, base in totals["base"].items():
        tuned, (meaning, better) = totals["tuned"][name], METRICS[name]
        low, high = intervals.get(name, (None, None))
        span = f"{tuned - base:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low is not None else "")
        sure = low is not None and (low > 0 or high < 0)
        verdict = "" if not better or not sure else "better" if (low > 0) == (better > 0) else "worse"
        yield name, f"{base:.3f}", f"{tuned:.3f}", span, verdict, meaning


def as_text(totals, intervals):
    head = ("metric", "base", "tuned", "difference [95%]", "")
    return text_table(head, [line[:5] for line in lines(totals, intervals)])


def report(facts, totals, intervals, measured, pairs, lengths):
    """A page that needs nothing else: table, two plots, twenty answers side by side."""
    cell = lambda text, tag="td": f"<{tag}>{html.escape(str(text))}</{tag}>"  # noqa: E731
    head = "".join(cell(text, "th") for text in ("metric", "base", "tuned", "difference [95%]", "", "meaning"))
    table = "".join(f"<tr>{''.join(map(cell, line))}</tr>" for line in lines(totals, intervals))
    shown = "".join(
        f"<tr><td>{html.escape(pair['instruction'])}<br><small>{html.escape(pair['input'])}</small></td>"
        + "".join(cell(pair[name]) for name in ("reference", "base", "tuned")) + "</tr>"
        for pair in pairs[:20]
    )  # fmt: skip
    known = "".join(f"<li>{html.escape(str(name))}: {html.escape(str(value))}</li>" for name, value in facts.items())
    return f"""<!doctype html><meta charset="utf-8"><title>evaluation</title>
<style>body{{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}
td,th{{border:1px solid #ccc;padding:.3em .6em;vertical-align:top;text-align:left;white-space:pre-wrap}}</style>
<h1>Base and tuned on {len(pairs)} held-out rows</h1><ul>{known}</ul><table><tr>{head}</tr>{table}</table>
<img alt="lengths and losses" src="data:image/png;base64,{plots(measured, lengths)}">
<h2>Answers</h2><table><tr><th>instruction</th><th>reference</th><th>base</th><th>tuned</th></tr>{shown}</table>
"""


def plots(measured, lengths):
    """Base64 of a PNG: how long rows and answers are, and each row's loss before against after."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.hist(lengths, bins=30, histtype="step", label="prompt + reference")
    for name, rows in measured.items():
        left.hist([row["tokens"] for row in rows], bins=30, histtype="step", label=f"answer, {name}")
    left.set(xlabel="tokens", ylabel="rows")
    left.legend()
    one, two = ([row["loss_sum"] / row["loss_tokens"] for row in measured[name]] for name in ("base", "tuned"))
    right.scatter(one, two, s=8)
    top = max(*one, *two)
    right.plot([0, top], [0, top], color="gray", linewidth=1)
    right.set(xlabel="loss a token, base", ylabel="loss a token, tuned (below the line: better)")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    pyplot.close(figure)
    return base64.b64encode(picture.getvalue()).decode()


def before_after(model, tokenizer, eval_sets, prompts, max_new_tokens, backend) -> dict:
    """What is compared before and after training: held-out loss and perplexity of each set, and answers.

    eval_sets: name -> tokenized dataset; the name of a single one is "". prompts: lists of token ids, those of the rows that are shown.
    """
    found = {name: heldout_loss(model, rows, tokenizer.pad_token_id) for name, rows in eval_sets.items()}
    return found.get("", found) | {"answers": generate(model, tokenizer, prompts, max_new_tokens, backend=backend)}


def show(before, after, asked):
    """Print what a person wants to see: the same prompts answered by the model before and after.

    before, after: of `before_after`. asked: for each answer a dict of what to print above it, such as question and reference.
    """
    empty = screen.text("(empty)")
    for row, old, new in zip(asked, before["answers"], after["answers"], strict=True):
        print("\n" + "=" * 100)
        print("\n".join(f"{screen.label(name)} {text}" for name, text in row.items() if text))
        print(
            f"{'-' * 100}\n{screen.label('before')} {old or empty}\n{'-' * 100}\n{screen.label('after')} {new or empty}"
        )
    print("=" * 100)
    told = "held-out perplexity{name}: {before:.2f} before, {after:.2f} after ({rows} rows, {tokens:,} tokens counted)"
    for name in [""] if "loss" in after else [key for key in after if key != "answers"]:
        one, two = (found[name] if name else found for found in (before, after))
        how = dict(before=one["perplexity"], after=two["perplexity"], rows=two["rows"], tokens=two["tokens"])
        print(screen.text(told, name=", " * bool(name) + name, **how))
