"""Ask a fine-tuned model: one question, a file of questions in batches, or a chat that streams.

Each question is asked by itself, as in training: the model was taught single questions and remembers none before.
The prompt is built by train.py's own function from the template that was saved with the adapter.

Newest run:         python infer.py --question "高血压患者能吃党参吗？"
An adapter folder:  python infer.py --adapter outputs/medical/20261122-101500 --file questions.txt
Chat:               python infer.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.evaluation import generate
from common.models import ModelArgs, load_adapter
from common.runs import latest_adapter, replace_text
from common.tables import text_lines
from train import TEMPLATE, prompt_ids

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args:
    question: str | None = arg(None, "one question")
    file: str | None = arg(None, "a text file (UTF-8), one question a line; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(8, "questions of --file answered at once")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    seed: int = arg(3407, "of the sampling")


def stream(model, tokenizer, template, question, args, backend):
    """Print the answer while it is written."""
    from transformers import TextStreamer

    prompts = prompt_ids(tokenizer, [question], template)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generate(model, tokenizer, prompts, args.max_new_tokens, 1, backend, streamer, **sampling(args))


def sampling(args):
    return dict(temperature=args.temperature) if args.temperature else {}


def answer_file(model, tokenizer, template, questions, out, args, backend):
    """Answer the questions in batches and write {question, answer} lines; nothing half-written is left behind."""
    prompts = prompt_ids(tokenizer, questions, template)
    answers = generate(model, tokenizer, prompts, args.max_new_tokens, args.batch_size, backend, **sampling(args))
    pairs = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    replace_text(out, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    print(f"{len(pairs)} answers: {out}")


def chat(model, tokenizer, template, args, backend):
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
                stream(model, tokenizer, template, question, args, backend)
        except KeyboardInterrupt:
            print("\n(stopped)")


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    questions, out = text_lines(args.file, args.out, "question") if args.file else (None, None)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    saved = adapter / "prompt_template.txt"
    template = saved.read_text(encoding="utf-8") if saved.exists() else TEMPLATE
    model, tokenizer = load_adapter(adapter, model_args)
    from transformers import set_seed

    set_seed(args.seed)
    print(f"adapter: {adapter}")
    if args.question:
        stream(model, tokenizer, template, args.question, args, model_args.backend)
    elif args.file:
        answer_file(model, tokenizer, template, questions, out, args, model_args.backend)
    else:
        chat(model, tokenizer, template, args, model_args.backend)


if __name__ == "__main__":
    main()
