"""Ask weak models every question of a pool: what they can answer is too easy to learn from (the funnel's difficulty).

s1 asked Qwen2.5-7B and -32B and dropped what either of them solved. A grader is a model, or an adapter's folder. What is
already in --out is not asked again, so the same command goes on where it was stopped.

Two graders:    python grade.py --pool DIR/pool.jsonl --graders Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-3B-Instruct --out DIR/grades.jsonl
CPU:            python grade.py --pool sample/pool.jsonl --graders demo/SmolLM2-135M-Instruct --limit 16 --out grades.jsonl
Then:           python data.py --select 1000 --pool DIR/pool.jsonl --grades DIR/grades.jsonl --out DIR
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budget import Budget, answer_of, force, hf_engine, marks, prompt_ids
from common.cli import arg, parse
from common.evaluation import generate
from common.models import (
    ModelArgs,
    choose_quantization,
    has_bf16,
    import_backend,
    load_adapter,
    load_base,
    load_tokenizer,
    need_vllm,
)
from common.paths import resolve_model
from common.tables import read_lines
from data import clean, format_report, is_right, key

DEFAULTS = dict(
    temperature=0.05,  # the paper's: nearly greedy
    max_new_tokens=512,  # a grader thinks aloud, in its own way
)


@dataclass
class Args:
    pool: str | None = arg(None, "JSONL or Parquet with question and answer")
    graders: list[str] = arg(["Qwen/Qwen2.5-7B-Instruct"], "models, or folders of adapters")
    out: str | None = arg(None, "JSONL that the grades are appended to")
    limit: int | None = arg(None, "only the first N questions")
    engine: Literal["hf", "vllm"] = arg("hf", "vllm must be installed; not run by us")
    temperature: float = arg(0.05, "0: greedy")
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    batch_size: int = arg(64, "questions asked at once")
    chunk: int = arg(512, "questions after which the grades are written down")
    seed: int = arg(0, "of the sampling")


def open_grader(name, args, model_args):
    """A function questions -> texts. An adapter thinks and answers in the delimiters that it was trained with."""
    import torch

    folder = Path(name).expanduser()
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    if args.engine == "vllm":
        return open_vllm(name, adapter, args)
    if adapter:
        model, tokenizer = load_adapter(adapter, model_args)
        gen = hf_engine(model, tokenizer, model_args.backend, args.batch_size, args.temperature)
        budget = Budget(args.max_new_tokens, 0, 32)

        def think(questions):
            made = force(gen, prompt_ids(tokenizer, questions), marks(tokenizer), budget)
            return [answer_of(row, tokenizer) for row in made]

        return think
    path = resolve_model(name)
    tokenizer = load_tokenizer(path)
    half = torch.float16 if torch.cuda.is_available() else torch.float32
    four_bit = choose_quantization(model_args.quantization, path)
    dtype = torch.bfloat16 if has_bf16() else half
    model = load_base(path, import_backend(model_args.backend), four_bit, dtype, 4096).eval()
    how = dict(temperature=args.temperature, top_k=0, top_p=1.0) if args.temperature else {}

    def ask(questions):
        prompts = prompt_ids(tokenizer, questions)
        return generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, model_args.backend, **how)

    return ask


def open_vllm(name, adapter, args):
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    if adapter:
        raise SystemExit(f"{name}: adapters are graded with --engine hf.")
    path = resolve_model(name)
    tokenizer = load_tokenizer(path)
    engine = LLM(model=str(path), seed=args.seed)
    how = SamplingParams(temperature=args.temperature, max_tokens=args.max_new_tokens, seed=args.seed)

    def ask(questions):
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompt_ids(tokenizer, questions)]
        return [output.outputs[0].text.strip() for output in engine.generate(inputs, how)]

    return ask


def grade(ask, rows, grader, out, chunk):
    """Append {id, grader, right, answer} a row to `out`, `chunk` rows at a time; ids that are there are left out."""
    done = set()
    if out.exists():
        lines = out.read_text(encoding="utf-8").split("\n")
        if lines.pop():  # a crash can leave half a line: it is asked again
            out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        done = {each["id"] for each in map(json.loads, lines) if each["grader"] == grader}
    todo = [row for row in rows if key(row["question"]) not in done]
    right = 0
    for start in range(0, len(todo), chunk):
        part = todo[start : start + chunk]
        texts = ask([row["question"] for row in part])
        made = [
            {
                "id": key(row["question"]),
                "grader": grader,
                "right": is_right(text, row["answer"]),
                "answer": text[-200:],
            }
            for row, text in zip(part, texts, strict=True)
        ]
        right += sum(each["right"] for each in made)
        with open(out, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in made))
    share = f", {right:,} of them right ({right / len(todo):.1%})" if todo else ""
    print(f"{grader}: {len(todo):,} asked{share}; {len(rows) - len(todo):,} were in {out} already", flush=True)


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    if not args.pool or not args.out:
        raise SystemExit("--pool FILE and --out FILE are needed: what is asked, and where the grades go.")
    if args.engine == "vllm":
        need_vllm()
    rows, report = clean(read_lines(args.pool), args.pool, ("question", "answer"))
    print(format_report(report))
    unique = list({key(row["question"]): row for row in rows}.values())[: args.limit]
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    from transformers import set_seed

    for name in args.graders:
        set_seed(args.seed)
        grade(open_grader(name, args, model_args), unique, name, out, args.chunk)


if __name__ == "__main__":
    main()
