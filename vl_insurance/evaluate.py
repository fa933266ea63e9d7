"""Measure a run on held-out photos: which facts the base and the tuned model read, and whether they look at all.

The photos are those that training held out: file, split and pixel cap are read from the run. Three columns: base;
tuned; tuned, but each question with another row's photo, which must collapse: what is left there is guessed from habit and
not read. Results: metrics.json, predictions.jsonl, report.html.

Newest run:       python evaluate.py
Other photos:     python evaluate.py --data test/qwen-vl-train.xlsx --all      none of them may be from training
A quick look:     python evaluate.py --limit 50
"""

import base64
import contextlib
import html
import io
import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import device, models
from common.cli import ModelArgs, arg, parse
from common.files import replace_text, text_table, write_json, write_lines
from data import format_report, read_rows, split
from fields import FIELDS, parse_json, score
from fields import parse as parse_answer
from pictures import load_image

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)  # fmt: skip
NO_FACTS = dict.fromkeys(FIELDS)


@dataclass
class Args(ModelArgs):
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(None, "what training read, if it has moved since; with --all: other photos")
    image_root: str | None = arg(None, "as train.py's")
    sheet: str | None = arg(None, "as train.py's")
    all: bool = arg(False, "measure every row of --data, where it is another file than training's")
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int | None = arg(None, "at most so many held-out rows")
    max_pixels: int | None = arg(None, "pixel cap (default: what the adapter was trained with; keep it)")
    max_new_tokens: int = arg(200, "longest answer, in tokens")
    batch_size: int = arg(0, "photos answered at once (0: 8, on a GPU up to 64 as its memory allows)")
    base: bool = arg(True, "ask the base model, too")
    seed: int = arg(42, "of the exchange of photos and of the resampling for the intervals")


def held_out(run, args):
    """The rows to measure: those that training held out, or with --all every row of a file that training did not see."""
    trained = run.arguments
    rows, report = read_rows(
        args.data or trained.get("data"),
        args.image_root or trained.get("image_root"),
        args.sheet or trained.get("sheet"),
    )
    print(format_report(report))
    if args.all:
        same = trained.get("data") and Path(report["source"]).resolve() in (
            Path(trained["data"]).resolve(), Path(trained["data"]).resolve() / Path(report["source"]).name)  # fmt: skip
        if same or not args.data:
            raise SystemExit(
                f"--all: {report['source']} is what {run.adapter} was trained on. Give other photos with --data."
            )
        return rows[: args.limit]
    if trained.get("overfit"):
        print(
            f"{run.adapter} was trained with --overfit {trained['overfit']}: these are the rows that it has learned by heart."
        )
        return rows[: trained["overfit"]][: args.limit]
    return split(rows, trained["eval_ratio"], trained["split_seed"])[1][: args.limit]


def exchanged(rows, seed):
    """Another row's picture for each row: a random ring, so that no picture stays, unless all are the same."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    following = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    return [rows[following[i]]["image"] for i in range(len(rows))]


def trivial(truth):
    """What needs no picture: nothing at all, and each field's commonest value, chosen with the truth at hand."""
    common = {name: Counter(facts[name] for facts in truth).most_common(1)[0][0] for name in FIELDS}
    return {
        "always empty": score([NO_FACTS] * len(truth), truth),
        "commonest value": score([common] * len(truth), truth),
    }


def interval(predicted, truth, seed, times=1000):
    """95% interval of the share of photos of which every fact is right, by resampling the photos."""
    import numpy

    right = numpy.array([guess == gold for guess, gold in zip(predicted, truth, strict=True)], dtype=float)
    picks = numpy.random.default_rng(seed).integers(len(right), size=(times, len(right)))
    return [float(numpy.percentile(right[picks].mean(1), q)) for q in (2.5, 97.5)]


def lines(scores):
    """The table: a name, then a number for each of scores' columns."""
    columns = list(scores.values())
    rows = [
        ("photos", "documents"), ("all facts right", "document_exact"), ("answers with a fact", "parsed"),
        ("mileage: digits right", "mileage_digits"), ("mileage: one digit off", "mileage_one_digit_off"),
        ("mileage: within 1", "mileage_within_1"), ("macro F1", "macro_f1"),
    ]  # fmt: skip
    table = [(label, [each.get(name) for each in columns]) for label, name in rows]
    for name, label in (("f1", "micro F1"), ("precision", "micro precision"), ("recall", "micro recall"),
                        ("miss_rate", "missed"), ("hallucination_rate", "hallucinated")):  # fmt: skip
        table.append((label, [each["micro"][name] for each in columns]))
    for field in FIELDS:
        table.append((f"exact: {field}", [each["fields"][field]["exact"] for each in columns]))
    return table


def shown(value):
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def as_text(scores):
    return text_table(("", *scores), [[label, *map(shown, values)] for label, values in lines(scores)])


def report(scores, pairs, notes):
    """A page that needs nothing else: the table, and each picture with the truth and what was read; wrong fields marked."""
    from PIL import Image

    table = "".join(
        f"<tr><td>{html.escape(label)}</td>" + "".join(f"<td>{shown(value)}</td>" for value in values) + "</tr>"
        for label, values in lines(scores)
    )
    blocks = []
    for pair in pairs[:100]:
        picture = load_image(pair["image"])
        picture.thumbnail((480, 480), Image.Resampling.LANCZOS)
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=80)  # drawn anew: nothing of the photo's own EXIF (place, time) goes along
        rows = ""
        for field in FIELDS:
            gold, read = pair["truth"][field], pair["tuned_facts"][field]
            kind = "" if gold == read else ' class="missed"' if read is None else ' class="wrong"'
            values = "".join(
                f"<td{mark}>{html.escape('-' if v is None else str(v))}</td>" for v, mark in ((gold, ""), (read, kind))
            )
            rows += f"<tr><td>{field}</td>{values}</tr>"
        blocks.append(
            f'<div><img alt="{html.escape(pair["id"])}" src="data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}">'
            f"<table><tr><th>{html.escape(pair['id'])}</th><th>truth</th><th>read</th></tr>{rows}</table>"
            f"<pre>{html.escape(pair['tuned'])}</pre></div>"
        )
    known = "".join(f"<li>{html.escape(name)}: {html.escape(str(value))}</li>" for name, value in notes.items())
    head = "".join(f"<th>{html.escape(name)}</th>" for name in scores)
    return f"""<!doctype html><meta charset="utf-8"><title>evaluation</title>
<style>body{{font:15px/1.4 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}
td,th{{border:1px solid #ccc;padding:.2em .6em;text-align:left}}div{{display:flex;gap:1em;margin:1em 0;align-items:start}}
.wrong{{background:#fbb}}.missed{{background:#fe9}}pre{{margin:0;white-space:pre-wrap}}</style>
<h1>{len(pairs)} held-out photos</h1><ul>{known}</ul><table><tr><th></th>{head}</tr>{table}</table>
<p>Marked: <span class="wrong">wrong or made up</span>, <span class="missed">missed</span>.</p>
{"".join(blocks)}
"""


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    run = models.open_run(args.adapter, args.model, needed=("prompt",), record=not args.all)
    rows = held_out(run, args)
    truth = [parse_answer(row["response"]) for row in rows]
    empty = [row["id"] for row, facts in zip(rows, truth, strict=True) if facts == NO_FACTS]
    if empty:
        raise SystemExit(
            f"the response of id {empty[0]} names none of {', '.join(FIELDS)}: it cannot be scored ({len(empty)} such rows)."
        )
    args.backend = device.decide_backend(args.backend)  # before transformers, which Unsloth patches
    from answers import generate
    from model import load_base, load_processor

    model, processor = models.load_run(run, args, load_base, partial(load_processor, max_pixels=args.max_pixels))
    paths, prompts = [row["image"] for row in rows], [row["prompt"] for row in rows]
    ways = {"base": paths} if args.base else {}
    ways |= {"tuned": paths, "other's photo": exchanged(rows, args.seed)}
    said, scores = {}, {}
    for name, order in ways.items():
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            said[name] = generate(model, processor, order, prompts, args.max_new_tokens, args.batch_size, args.backend)
        scores[name] = score([parse_answer(text) for text in said[name]], truth)
    scores |= trivial(truth)
    tuned = [parse_answer(text) for text in said["tuned"]]
    low, high = interval(tuned, truth, args.seed)
    notes = {
        "adapter": str(run.adapter),
        "photos": len(rows),
        "all facts right, 95% interval": f"{low:.3f} to {high:.3f}",
    }
    notes["answers that are JSON"] = sum(parse_json(text) is not None for text in said["tuned"])
    for kind in sorted({row["display"] for row in rows} - {""}):
        chosen = [i for i, row in enumerate(rows) if row["display"] == kind]
        part = score([tuned[i] for i in chosen], [truth[i] for i in chosen])
        notes[f"display {kind}"] = (
            f"{len(chosen)} photos, mileage {shown(part['fields']['mileage']['exact'])}, all facts {shown(part['document_exact'])}"
        )
    out = Path(args.out or run.adapter / "evaluation_results")
    out.mkdir(parents=True, exist_ok=True)
    pairs = [
        {"id": row["id"], "image": row["image"], "truth": gold, "tuned_facts": facts}
        | {name: each[i] for name, each in said.items()}
        for i, (row, gold, facts) in enumerate(zip(rows, truth, tuned, strict=True))
    ]
    write_json(out / "metrics.json", {"facts": notes} | scores)
    write_lines(out / "predictions.jsonl", pairs)
    replace_text(out / "report.html", report(scores, pairs, notes))
    print(as_text(scores))
    for name, value in notes.items():
        print(f"{name}: {value}")
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
