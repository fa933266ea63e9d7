"""Ask a fine-tuned model: one instruction that streams, a file of rows in batches, or one instruction after another.

Each instruction stands alone, as in training. An adapter of train.py or train_prompt_completion.py brings the alpaca
template that it was trained with; the others were trained with the model's chat template and are asked in it.

The course's question:  python infer.py
Your own:               python infer.py --instruction "Name three rivers." --adapter outputs/alpaca/20261122-101500
A file of rows:         python infer.py --file rows.jsonl
One after another:      python infer.py --chat
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.evaluation import generate
from common.models import ModelArgs, load_adapter
from common.runs import latest_adapter, replace_text
from data import format_report, prompts_of, read_rows

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)
FIBONACCI = {"instruction": "Continue the fibonnaci sequence.", "input": "1, 1, 2, 3, 5, 8"}  # the course's, as it is


@dataclass
class Args:
    instruction: str | None = arg(None, "one instruction (default: the course's Fibonacci question)")
    input: str = arg("", "what the instruction is about")
    file: str | None = arg(None, "JSON, JSONL or Parquet with instruction and input; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    chat: bool = arg(False, "ask for one instruction after another")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(8, "rows of --file answered at once")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    seed: int = arg(3407, "of the sampling")


def stream(model, tokenizer, adapter, row, args, backend):
    """Print the answer while it is written."""
    from transformers import TextStreamer

    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    prompts = prompts_of(adapter, tokenizer, [row])
    generate(model, tokenizer, prompts, args.max_new_tokens, 1, backend, streamer, **sampling(args))


def sampling(args):
    return dict(temperature=args.temperature) if args.temperature else {}


def read_questions(args):
    """The rows of --file and the file for their answers. What can be wrong is said before a model is loaded."""
    file = Path(args.file)
    if not file.is_file():
        raise SystemExit(f"{file}: no such file.")
    out = Path(args.out or file.with_name(file.name + ".answers.jsonl"))
    if out.exists():
        raise SystemExit(f"{out} exists and is kept. Name another file with --out.")
    rows, report = read_rows(file, answers=False)
    print(format_report(report))
    return rows, out


def answer_file(model, tokenizer, adapter, rows, out, args, backend):
    """Answer the rows in batches and write them with their answers; nothing half-written is left behind."""
    prompts = prompts_of(adapter, tokenizer, rows)
    answers = generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, backend, **sampling(args))
    pairs = [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)]
    replace_text(out, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    print(f"{len(pairs)} answers: {out}")


def chat(model, tokenizer, adapter, args, backend):
    print("Give an instruction, then its input or an empty line; exit or Ctrl-D ends, Ctrl-C stops an answer.")
    while True:
        try:
            instruction = input("\ninstruction > ").strip()
            if instruction in ("exit", "quit"):
                return
            extra = input("input > ").strip() if instruction else ""
        except (EOFError, KeyboardInterrupt):
            return print()
        try:
            if instruction:
                stream(model, tokenizer, adapter, {"instruction": instruction, "input": extra}, args, backend)
        except KeyboardInterrupt:
            print("\n(stopped)")


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    if args.input and not args.instruction:
        raise SystemExit("--input belongs to an --instruction: give both.")
    rows, out = read_questions(args) if args.file else (None, None)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    model, tokenizer = load_adapter(adapter, model_args)
    from transformers import set_seed

    set_seed(args.seed)
    print(f"adapter: {adapter}")
    if args.file:
        answer_file(model, tokenizer, adapter, rows, out, args, model_args.backend)
    elif args.chat:
        chat(model, tokenizer, adapter, args, model_args.backend)
    else:
        row = {"instruction": args.instruction, "input": args.input} if args.instruction else FIBONACCI
        print(f"{row['instruction']}\n{row['input']}\n" if row["input"] else f"{row['instruction']}\n")
        stream(model, tokenizer, adapter, row, args, model_args.backend)


if __name__ == "__main__":
    main()
