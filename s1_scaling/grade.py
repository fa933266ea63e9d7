"""Ask weak models every question of a pool: what they can answer is too easy to learn from (the funnel's difficulty).

s1 asked Qwen2.5-7B and -32B and dropped what either of them solved. A grader is a model, or an adapter's folder. What is
already in --out is not asked again, so the same command goes on where it was stopped.

Two graders:    python grade.py --pool DIR/pool.jsonl --graders Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-3B-Instruct --out DIR/grades.jsonl
CPU:            python grade.py --pool sample/pool.jsonl --graders demo/SmolLM2-135M-Instruct --limit 16 --out grades.jsonl
Then:           python funnel.py --select 1000 --pool DIR/pool.jsonl --grades DIR/grades.jsonl --out DIR
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budget import Budget, force, hf_engine
from common import device, models
from common.cli import ModelArgs, arg, parse
from common.files import replace_text
from common.grading import is_right
from common.hub import choose_quantization, resolve_model
from common.rows import read
from data import clean, format_report, gold_of, key, with_gold
from prompt import answer_text, marks, prompt_ids
from train import NF4

DEFAULTS = dict(
    model=None  # of an adapter among the graders: the base that its adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    pool: str | None = arg(None, "JSONL or Parquet with question and answer")
    graders: list[str] = arg(["Qwen/Qwen2.5-7B-Instruct"], "models, or folders of adapters")
    out: str | None = arg(None, "JSONL that the grades are appended to")
    limit: int | None = arg(None, "at most so many questions")
    engine: Literal["hf", "vllm"] = arg("hf", "vllm must be installed")
    temperature: float = arg(0.05, "0: greedy; the paper's 0.05 is nearly that")
    max_new_tokens: int = arg(512, "longest answer, in tokens; a grader thinks aloud, in its own way")
    batch_size: int = arg(64, "answers written at once")
    chunk: int = arg(512, "questions after which the grades are written down")
    seed: int = arg(0, "of the sampling")


def open_grader(name, args):
    """A function rows -> texts. An adapter thinks and answers in the delimiters that it was trained with."""
    folder = Path(name).expanduser()
    adapter = (folder / "adapter_config.json").is_file()
    if args.engine == "vllm":
        if adapter:
            raise SystemExit(f"{name}: adapters are graded with --engine hf.")
        return open_vllm(resolve_model(name), args)
    if adapter:
        run = models.open_run(folder, args.model)
        model, tokenizer = models.load_run(run, args)
    else:
        path = resolve_model(name)
        args.backend = device.decide_backend(args.backend)
        tokenizer = models.load_tokenizer(path)
        nf4 = NF4 if choose_quantization(args.quantization, path) else None
        model = models.load_base(path, args.backend, nf4, device.dtype(), 4096).eval()
    from common.answers import generate
    from common.speed import graph

    if adapter:
        gen = hf_engine(model, tokenizer, args.backend, args.batch_size, args.temperature, decode=graph.decode)
        budget = Budget(args.max_new_tokens, 0, 32)

        def think(rows):
            made = force(gen, prompt_ids(tokenizer, rows, run.texts), marks(tokenizer), budget)
            return [answer_text(tokenizer, row["answer"]) for row in made]

        return think
    how = dict(temperature=args.temperature, top_k=0, top_p=1.0) if args.temperature else {}
    how |= dict(backend=args.backend, decode=graph.decode)

    def ask(rows):
        return generate(model, tokenizer, prompt_ids(tokenizer, rows), args.max_new_tokens, args.batch_size, **how)

    return ask


def open_vllm(path, args):
    os.environ.setdefault(
        "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
    )  # else an error here leaves an engine that waits for ever
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    tokenizer = models.load_tokenizer(path)
    engine = LLM(model=str(path), seed=args.seed)
    how = SamplingParams(temperature=args.temperature, max_tokens=args.max_new_tokens, seed=args.seed)

    def ask(rows):
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompt_ids(tokenizer, rows)]
        return [output.outputs[0].text.strip() for output in engine.generate(inputs, how, use_tqdm=False)]

    return ask


def grade(ask, rows, grader, out, chunk):
    """Append {id, grader, right, answer} for each row to `out`, `chunk` rows at a time; ids that are there are left out."""
    done = set()
    if out.exists():
        lines = out.read_text(encoding="utf-8").split("\n")
        if lines.pop():  # a crash can leave half a line: it is asked again
            replace_text(out, "".join(line + "\n" for line in lines))
        done = {each["id"] for each in map(json.loads, lines) if each["grader"] == grader}
    todo = [row for row in rows if key(row["question"]) not in done]
    right = 0
    for start in range(0, len(todo), chunk):
        part = todo[start : start + chunk]
        texts = ask(part)
        made = [
            {"id": key(row["question"]), "grader": grader, "right": is_right(text, gold_of(row)), "answer": text[-200:]}
            for row, text in zip(part, texts, strict=True)
        ]
        right += sum(each["right"] for each in made)
        with open(out, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made))
    share = f", {right:,} of them right ({right / len(todo):.1%})" if todo else ""
    print(f"{grader}: {len(todo):,} asked{share}; {len(rows) - len(todo):,} were in {out} already", flush=True)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if not args.pool or not args.out:
        raise SystemExit("--pool FILE and --out FILE are needed: what is asked, and where the grades go.")
    if args.engine == "vllm":
        device.need_vllm()
    rows, report = clean(read(args.pool), args.pool, ("question", "answer"))
    print(format_report(report))
    unique = list({key(row["question"]): row for row in with_gold(rows)}.values())[: args.limit]
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    from transformers import set_seed

    for name in args.graders:
        set_seed(args.seed)
        grade(open_grader(name, args), unique, name, out, args.chunk)


if __name__ == "__main__":
    main()
