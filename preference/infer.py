"""Ask a trained model: one prompt that streams, or a file of prompts; --compare asks the base as well.

The base, the chat template and the system text are those that the run was trained with.

Newest run:        python infer.py --prompt "Why is the sea salty?"
Against the base:  python infer.py --adapter outputs/preference/20261126-101500 --compare
A file of them:    python infer.py --file prompts.txt
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
    prompt: str | None = arg(None, "one prompt (default: a question about cats)")
    file: str | None = arg(None, "a text file (UTF-8), one prompt per line; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    batch_size: int = arg(8, "prompts of --file answered at once")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    seed: int = arg(3407, "of the sampling")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    texts, out = [args.prompt or "Why do cats purr?"], None
    if args.file:
        texts, out = text_lines(args.file, args.out, "prompt")
    run = models.open_run(args.adapter, args.model, own=TEMPLATE)
    model, tokenizer = models.load_run(run, args)
    from transformers import TextStreamer, set_seed

    from common.answers import generate

    set_seed(args.seed)
    how = dict(backend=args.backend) | (dict(temperature=args.temperature) if args.temperature else {})
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    prompts, columns = prompt_ids(tokenizer, rows, run.texts), {}
    print(f"adapter: {run.adapter}")
    for name in ("base", "tuned") if args.compare else ("tuned",):
        streamer = None if out else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        if args.compare and not out:
            print(f"-- {name}")
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            size = args.batch_size if out else 1
            columns[name] = generate(model, tokenizer, prompts, args.max_new_tokens, size, streamer=streamer, **how)
    if out:
        write_lines(
            out, [{"prompt": text} | {name: each[i] for name, each in columns.items()} for i, text in enumerate(texts)]
        )
        print(f"{len(texts)} prompts answered: {out}")


if __name__ == "__main__":
    main()
