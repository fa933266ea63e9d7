"""Ask a fine-tuned model: one instruction that streams, a file of rows in batches, or one instruction after another.

Each instruction stands alone, as in training. An adapter of train.py or train_prompt_completion.py brings the alpaca
template that it was trained with; the others were trained with the model's chat template and are asked in it.

The course's question:  python infer.py
Your own:               python infer.py --instruction "Name three rivers." --adapter outputs/alpaca/20261122-101500
A file of rows:         python infer.py --file rows.jsonl
One after another:      python infer.py --chat
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from common import models
from common.cli import ModelArgs, arg, parse
from common.files import new_file, write_lines
from data import format_report, read_rows
from prompt import TEMPLATE, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)
FIBONACCI = {"instruction": "Continue the fibonnaci sequence.", "input": "1, 1, 2, 3, 5, 8"}  # the course's, as it is


@dataclass
class Args(ModelArgs):
    instruction: str | None = arg(None, "one instruction (default: the course's Fibonacci question)")
    input: str = arg("", "what the instruction is about")
    file: str | None = arg(None, "JSON, JSONL or Parquet with instruction and input; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    chat: bool = arg(False, "ask for one instruction after another")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(8, "rows of --file answered at once")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    seed: int = arg(3407, "of the sampling")


def read_questions(args):
    """The rows of --file and the file for their answers. What can be wrong is said before a model is loaded."""
    file = Path(args.file)
    if not file.is_file():
        raise SystemExit(f"{file}: no such file.")
    out = new_file(args.out or file.with_name(file.name + ".answers.jsonl"))
    rows, report = read_rows(file, answers=False)
    print(format_report(report))
    return rows, out


def chat(ask):
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
                ask({"instruction": instruction, "input": extra})
        except KeyboardInterrupt:
            print("\n(stopped)")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if args.input and not args.instruction:
        raise SystemExit("--input belongs to an --instruction: give both.")
    rows, out = read_questions(args) if args.file else (None, None)
    run = models.open_run(args.adapter, args.model, own=TEMPLATE)
    model, tokenizer = models.load_run(run, args)
    from transformers import TextStreamer, set_seed

    from common.answers import generate

    set_seed(args.seed)
    how = dict(backend=args.backend) | (dict(temperature=args.temperature) if args.temperature else {})

    def ask(row):
        prompts = prompt_ids(tokenizer, [row], run.texts)
        for name in ("base", "tuned") if args.compare else ("tuned",):
            if args.compare:
                print(f"-- {name}")
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            with model.disable_adapter() if name == "base" else contextlib.nullcontext():
                generate(model, tokenizer, prompts, args.max_new_tokens, 1, streamer=streamer, **how)

    print(f"adapter: {run.adapter}")
    if args.file:
        prompts = prompt_ids(tokenizer, rows, run.texts)
        answers = generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, **how)
        write_lines(out, [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)])
        print(f"{len(rows)} answers: {out}")
    elif args.chat:
        chat(ask)
    else:
        row = {"instruction": args.instruction, "input": args.input} if args.instruction else FIBONACCI
        print(f"{row['instruction']}\n{row['input']}\n" if row["input"] else f"{row['instruction']}\n")
        ask(row)


if __name__ == "__main__":
    main()
