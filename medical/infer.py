"""Ask a fine-tuned model: one question, a file of questions in batches, or a chat that streams.

Each question is asked by itself, as in training: the model was taught single questions and remembers none before.
The prompt is built from the template that was saved with the adapter.

Newest run:         python infer.py --question "高血压患者能吃党参吗？"
An adapter folder:  python infer.py --adapter outputs/medical/20261122-101500 --file questions.txt
Chat:               python infer.py
"""

import contextlib
from dataclasses import dataclass

from common import models
from common.cli import ModelArgs, arg, parse
from common.files import write_lines
from common.rows import text_lines
from prompt import TEMPLATE, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    question: str | None = arg(None, "one question")
    file: str | None = arg(None, "a text file (UTF-8), one question a line; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(8, "rows of --file answered at once")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    top_p: float | None = arg(
        None, "sample from the likeliest tokens with so much probability (default: the base's own)"
    )
    repetition_penalty: float = arg(1.0, "above 1: tokens that were written already are less likely")
    seed: int = arg(3407, "of the sampling")


def chat(ask):
    print("Ask a question; exit or Ctrl-D ends, Ctrl-C stops an answer.")
    while True:
        try:
            question = input("\n问题 > ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if question in ("exit", "quit"):
            return
        try:
            if question:
                ask({"question": question})
        except KeyboardInterrupt:
            print("\n(stopped)")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    questions, out = text_lines(args.file, args.out, "question") if args.file else (None, None)
    run = models.open_run(args.adapter, args.model, needed=TEMPLATE)
    model, tokenizer = models.load_run(run, args)
    from transformers import TextStreamer, set_seed

    from common.answers import generate

    set_seed(args.seed)
    how = dict(backend=args.backend, repetition_penalty=args.repetition_penalty)
    if args.temperature:
        how |= dict(temperature=args.temperature) | (dict(top_p=args.top_p) if args.top_p else {})

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
        rows = [{"question": question} for question in questions]
        prompts = prompt_ids(tokenizer, rows, run.texts)
        answers = generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, **how)
        write_lines(out, [row | {"answer": answer} for row, answer in zip(rows, answers, strict=True)])
        print(f"{len(rows)} answers: {out}")
    elif args.question:
        ask({"question": args.question})
    else:
        chat(ask)


if __name__ == "__main__":
    main()
