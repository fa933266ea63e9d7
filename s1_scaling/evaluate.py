"""Does accuracy rise with thinking? The same questions with many budgets, against votes at equal total tokens.

Sequential: caps on thinking, and ends of thinking refused 0, 1, 2 and 4 times. Parallel: k sampled answers, the most
frequent one counts, and all of their tokens. scaling.py makes the paper's three numbers of it: control, scaling and
performance.

Without --data the questions are those that training held out: data and split are read from the run. Results: results.json,
predictions.jsonl, scaling.png. Several trainings (seeds) in one figure: --merge.

Newest run:      python evaluate.py
An adapter:      python evaluate.py --adapter outputs/s1_scaling/20261122-101500 --data DIR --limit 200
GSM8K:           python evaluate.py --data openai/gsm8k --max_think 1024
By difficulty:   python evaluate.py --suggest
Three seeds:     python evaluate.py --merge DIR1/evaluation_results DIR2/evaluation_results --out figures
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import scaling
import suggest
from budget import Budget, check_context, choose_engine, context_of, force, hf_engine, vllm_engine
from common import device, models
from common.cli import ModelArgs, arg, parse
from common.files import write_json, write_lines
from common.grading import is_right, normalise, short_answer
from data import clean, format_report, gold_of, load, load_splits, own_data, with_gold
from prompt import TEMPLATE, answer_text, marks, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    data: str | None = arg(
        None, "test file, folder with one, or hub name (default: what the run held out of its own --data)"
    )
    out: str | None = arg(None, "folder for the results (default: evaluation_results in the adapter's folder)")
    limit: int | None = arg(None, "at most so many held-out rows")
    caps: list[str] = arg(
        ["0", "8", "16", "32", "64", "128", "256", "512"], "budgets without a Wait, below --max_think"
    )
    ignores: list[str] = arg(["0", "1", "2", "4"], "numbers of refused ends, each with --max_think")
    votes: list[str] = arg(["1", "2", "4", "8"], "samples that vote; 0: no vote")
    max_think: int = arg(1024, "the largest budget, in thinking tokens")
    max_answer: int = arg(32, "longest answer, in tokens")
    temperature: float = arg(0.7, "of the samples that vote; everything else is greedy")
    batch_size: int = arg(256, "answers written at once")
    engine: Literal["auto", "vllm", "hf"] = arg("auto", "auto: vLLM where it is installed and fits, else transformers")
    seed: int = arg(42, "of the samples and of the resampling for the intervals")
    suggest: bool = arg(
        False, "one run more: each question with a budget of its own, by the traces of training questions like it"
    )
    merge: list[str] | None = arg(None, "result folders of several trainings: their mean, in one figure")


def vote(answers):
    """The most frequent answer, the earliest of equally frequent ones. An empty one is no vote."""
    counts = Counter(answer for answer in answers if answer)
    return counts.most_common(1)[0][0] if counts else ""


def numbers(text, name, least=0):
    try:
        found = sorted({int(each) for each in text})
    except ValueError:
        found = [-1]
    if found[0] < least:
        raise SystemExit(f"--{name} {' '.join(text)}: takes whole numbers from {least} on.")
    return found


def measure(gen_of, tokenizer, mark, rows, args, together=False, suggested=(), template=TEMPLATE, quiet=False):
    """One dict per run: kind, budget, and lists with a place for each question.

    gen_of(temperature) -> gen. Runs: caps, refused ends, votes. tokens of a vote are those of all its samples. together:
    caps and refused ends in one batch, for an engine where a text that has ended makes room for the next (vLLM).
    suggested: each question's own cap, for one run more. template: the run's texts.
    quiet: do not print a line per run.
    """
    prompts = prompt_ids(tokenizer, rows, template)
    golds = [gold_of(row) for row in rows]

    def answer(row):
        return answer_text(tokenizer, row["answer"])

    def run(kind, name, max_think, num_ignore, made):
        return {
            "kind": kind, "name": name, "most": max_think, "ignore": num_ignore,
            "tokens": [len(row["think"]) for row in made],
            "right": [is_right(answer(row), gold) for row, gold in zip(made, golds, strict=True)],
            "forced": [row["reason"] == "length" for row in made], "waits": [len(row["waits"]) for row in made],
            "answered": [row["ended"] for row in made],
            "texts": [tokenizer.decode(row["think"]) + " => " + answer(row) for row in made],
        }  # fmt: skip

    def keep(one):
        runs.append(one)
        if not quiet:
            say(one)

    greedy, runs, size = gen_of(0.0), [], len(prompts)
    asked = [("cap", f"at most {cap}", cap, 0) for cap in numbers(args.caps, "caps") if cap < args.max_think]
    asked += [("wait", f"{n} Waits", args.max_think, n) for n in numbers(args.ignores, "ignores")]
    budgets = [[Budget(most, ignore, args.max_answer)] * size for _, _, most, ignore in asked]
    if together:
        whole = force(greedy, prompts * len(asked), mark, sum(budgets, []))
        made = (whole[start : start + size] for start in range(0, len(whole), size))
    else:
        made = (force(greedy, prompts, mark, each) for each in budgets)
    for what, texts in zip(asked, made, strict=True):
        keep(run(*what, texts))
    if suggested:
        own = [Budget(most, 0, args.max_answer) for most in suggested]
        keep(run("suggested", "suggested", max(suggested), 0, force(greedy, prompts, mark, own)))
    most = numbers(args.votes, "votes")[-1]
    if most:
        many = [prompt for prompt in prompts for _ in range(most)]
        made = force(gen_of(args.temperature), many, mark, Budget(args.max_think, 0, args.max_answer))
        for k in [k for k in numbers(args.votes, "votes") if k]:
            mine = [made[n * most : n * most + k] for n in range(len(rows))]
            short = [[short_answer(answer(row), gold) for row in part] for part, gold in zip(mine, golds, strict=True)]
            chosen = [vote(answers) for answers in short]
            keep({
                "kind": "vote", "name": f"{k} votes", "most": args.max_think * k, "votes": k,
                "tokens": [sum(len(row["think"]) for row in part) for part in mine],
                "right": [
                    bool(text) and text == normalise(gold) for text, gold in zip(chosen, golds, strict=True)
                ],
                "forced": [row["reason"] == "length" for part in mine for row in part], "waits": [0],
                "answered": [row["ended"] for part in mine for row in part], "texts": [" | ".join(s) for s in short],
            })  # fmt: skip
    return runs


def say(run):
    tokens, right = scaling.mean(run["tokens"]), scaling.mean(run["right"])
    print(f"{run['name']}: {right:.1%} right with {tokens:.1f} thinking tokens", flush=True)


def curve(model, tokenizer, rows, args):
    """Held-out questions with a few budgets, for train.py: prints accuracy over thinking tokens. Returns what run.json keeps
    of it, and the first row that one Wait mended (or None)."""
    from common.speed import graph

    gen = hf_engine(model, tokenizer, args.backend, args.batch_size, decode=graph.decode)
    asked = SimpleNamespace(
        caps=["0", "16", "32", "48", "64", "96", "128"], ignores=["0", "1", "2"], votes=["0"],
        max_think=args.max_think, max_answer=args.max_answer,
    )  # fmt: skip
    runs = measure(lambda _: gen, tokenizer, marks(tokenizer), rows, asked, quiet=True)
    right, wrong = scaling.mended(runs)
    print(f"\n{len(rows)} held-out questions, accuracy over thinking tokens\n{scaling.bars(runs)}")
    print(f"one Wait: {len(right)} wrong answers became right, {len(wrong)} right ones wrong")
    names = ("tokens", "right", "waits")
    kept = [{"name": run["name"]} | {name: scaling.mean(run[name]) for name in names} for run in runs]
    return dict(budgets=kept, mended=len(right), spoiled=len(wrong)), rows[right[0]] if right else None


def test_rows(data, trained):
    """(rows, where they are from). Of the run's own file its held-out part: the model was trained on the rest."""
    own = trained.get("data")
    if data is None or own and Path(data).expanduser().resolve() == Path(own).expanduser().resolve():
        return load_splits(own_data(trained))[1], own or "the run's own data"
    splits = load(data)
    rows, report = clean(splits.get("test", splits.get("train")), data, ("question", "answer"))
    print(format_report(report))
    return rows, data


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if args.merge:
        return scaling.merge(args.merge, Path(args.out or "."), args.seed)
    for name in ("caps", "ignores", "votes"):
        numbers(getattr(args, name), name)
    if args.engine == "vllm":
        device.need_vllm()
    run = models.open_run(args.adapter, args.model, record=args.data is None or args.suggest)
    rows, source = test_rows(args.data, run.arguments)
    rows = with_gold(rows)[: args.limit]
    if not rows:
        raise SystemExit(f"{source}: no question with an answer to compare with.")
    tokenizer = models.load_tokenizer(run.adapter)
    suggested = ()
    if args.suggest:
        trained = load_splits(own_data(run.arguments))[0]
        suggested = suggest.budgets(tokenizer, trained, [row["question"] for row in rows])
        suggested = [min(most, args.max_think) for most in suggested]
        print(suggest.as_text(rows, suggested))
    mark = marks(tokenizer)
    longest = Budget(args.max_think, 0, args.max_answer)
    length = check_context(prompt_ids(tokenizer, rows, run.texts), longest, mark, context_of(run.base))
    from transformers import set_seed

    from common.speed import graph

    set_seed(args.seed)
    share = choose_engine(args, run.base)
    if share:
        engines = vllm_engine(run.base, run.adapter, tokenizer, length, args.batch_size, share, args.seed)
    else:
        model = models.load_run(run, args)[0]

        def engines(temperature):
            return hf_engine(model, tokenizer, args.backend, args.batch_size, temperature, decode=graph.decode)

    runs = measure(engines, tokenizer, mark, rows, args, bool(share), suggested, run.texts)
    found = scaling.summary(runs, rows, args.seed)
    asked = hashlib.sha256("\n".join(row["question"] for row in rows).encode()).hexdigest()
    facts = {"adapter": str(run.adapter), "data": source, "questions": len(rows), "questions_sha256": asked}
    facts |= {
        "engine": "vllm" if share else "hf",
        "max_think": args.max_think,
        "temperature of votes": args.temperature,
        "seed": args.seed,
    }
    out = Path(args.out or run.adapter / "evaluation_results")
    out.mkdir(parents=True, exist_ok=True)
    told = [{name: value for name, value in each.items() if name != "texts"} for each in runs]
    write_json(out / "results.json", {"facts": facts, "summary": found, "runs": told})
    pairs = [
        {"question": row["question"], "gold": gold_of(row)} | {each["name"]: each["texts"][n] for each in runs}
        for n, row in enumerate(rows)
    ]
    write_lines(out / "predictions.jsonl", pairs)
    scaling.draw([runs], out / "scaling.png", f"{run.adapter.name}: {len(rows)} questions")
    print(f"{scaling.as_text(runs, found)}\n\n{scaling.bars(runs)}\nfigure: {out / 'scaling.png'}")


if __name__ == "__main__":
    main()
