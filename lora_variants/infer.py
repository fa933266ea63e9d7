"""Ask a trained adapter: one question that streams, or a file of questions; --compare asks the base as well.

The base and the template are those that the run was trained with. A run of --full is asked in the same way.

Newest run:        python infer.py --question "What does the red lamp cost?"
Against the base:  python infer.py --adapter outputs/lora_variants/20261126-101500 --compare
A file of them:    python infer.py --file questions.txt
"""

import contextlib
from dataclasses import dataclass

import whole

from common.cli import ModelArgs, arg, parse
from common.files import write_lines
from common.rows import text_lines
from prompt import TEMPLATE, prompt_ids

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(ModelArgs):
    question: str | None = arg(None, "one question (default: one about the catalogue)")
    file: str | None = arg(None, "a text file (UTF-8), one question per line; answers go to --out")
    out: str | None = arg(None, "where the answers of --file go, as JSON lines (default: FILE.answers.jsonl)")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_new_tokens: int = arg(100, "longest answer, in tokens")
    batch_size: int = arg(8, "questions of --file answered at once")
    temperature: float = arg(0.0, "0: always the likeliest token; 0.7: some variety")
    seed: int = arg(3407, "of the sampling")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    texts, out = [args.question or "Where was the green tent built?"], None
    if args.file:
        texts, out = text_lines(args.file, args.out, "question")
    run = whole.open_run(args.adapter, args.model)
    args.backend = "hf"
    model, tokenizer = whole.load_run(run, args)
    from transformers import TextStreamer, set_seed

    from common.answers import generate

    set_seed(args.seed)
    how = dict(backend=args.backend) | (dict(temperature=args.temperature) if args.temperature else {})
    prompts, columns = prompt_ids(tokenizer, [{"question": text} for text in texts], run.texts or TEMPLATE), {}
    print(f"adapter: {run.adapter}")
    for name in ("base", "tuned") if args.compare else ("tuned",):
        streamer = None if out else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        if args.compare and not out:
            print(f"-- {name}")
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            size = args.batch_size if out else 1
            columns[name] = generate(model, tokenizer, prompts, args.max_new_tokens, size, streamer=streamer, **how)
    if out:
        made = [{name: each[i] for name, each in columns.items()} for i in range(len(texts))]
        write_lines(out, [{"question": text} | each for text, each in zip(texts, made, strict=True)])
        print(f"{len(texts)} questions answered: {out}")


if __name__ == "__main__":
    main()
