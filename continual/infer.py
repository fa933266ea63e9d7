"""Ask a model after continued pretraining or after its SFT: one question, or one after another; or let it go on with a text.

A run knows how it is asked: in the chat template of its tokenizer, or, of a base without one, by text that it goes on with.

One question:       python infer.py --question "What colour is a fox?" --compare
One after another:  python infer.py --chat
Go on with text:    python infer.py --text "Article 1. Mooring of barges. A barge shall"
Another run:        python infer.py --adapter outputs/continual/20261122-101500 --question "Where does a newt live?"
"""

import contextlib
from dataclasses import dataclass

from common import models
from common.cli import ModelArgs, arg, parse
from prompt import TEXT, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    question: str = arg("What colour is a fox?", "one question")
    text: str | None = arg(None, "the beginning of a document, in the place of a question")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    chat: bool = arg(False, "ask one question after another")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    seed: int = arg(3407, "of the sampling")


def chat(ask):
    print("Ask; exit or Ctrl-D ends, Ctrl-C stops an answer. Each question stands alone.")
    while True:
        try:
            question = input("\nquestion > ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if question in ("exit", "quit"):
            return
        try:
            if question:
                ask(question)
        except KeyboardInterrupt:
            print("\n(stopped)")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if args.text and (args.chat or "question" in args.given):
        raise SystemExit("--text is a text to go on with: leave --question and --chat out.")
    run = models.open_run(args.adapter, args.model)
    model, tokenizer = models.load_run(run, args)
    from transformers import TextStreamer, set_seed

    from common.answers import generate

    set_seed(args.seed)
    how = dict(backend=args.backend) | (dict(temperature=args.temperature) if args.temperature else {})

    def ask(question):
        prompts = prompt_ids(tokenizer, [{"question": question}], TEXT if args.text else run.texts)
        for name in ("base", "tuned") if args.compare else ("tuned",):
            if args.compare:
                print(f"-- {name}")
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            with model.disable_adapter() if name == "base" else contextlib.nullcontext():
                generate(model, tokenizer, prompts, args.max_new_tokens, 1, streamer=streamer, **how)

    print(f"adapter: {run.adapter}")
    if args.chat:
        chat(ask)
    else:
        print(f"{args.text or args.question}\n")
        ask(args.text or args.question)


if __name__ == "__main__":
    main()
