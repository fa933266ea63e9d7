"""Ask a fine-tuned model one question; the answer appears while it is written.

Newest run:         python infer.py --question "Why does my ReLU network stop learning?"
An adapter folder:  python infer.py --adapter outputs/domain_mix/20261122-101500 --question "什么是时钟域？" --temperature 0
"""

import contextlib
import signal
from dataclasses import dataclass

from common import models
from common.cli import ModelArgs, arg, parse
from common.paths import command
from common.tokens import ids_of
from prompt import chatml, opening

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Decoding(ModelArgs):
    """Whom to ask, and how an answer is drawn: the course's settings, but for what they are counted over, see sampling()."""

    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    system: str | None = arg(None, "a system prompt (default: the one that was trained)")
    max_new_tokens: int = arg(512, "longest answer, in tokens")
    repetition_penalty: float = arg(1.3, "makes tokens that the answer has already less likely; 1: off")
    no_repeat_ngram_size: int = arg(3, "no run of N tokens twice in an answer; 0: off")
    temperature: float = arg(0.8, "0: always the likeliest token; 0.7: some variety")
    top_p: float = arg(0.9, "draw from the likeliest tokens that together have this probability")
    seed: int = arg(3407, "of the sampling")


@dataclass
class Args(Decoding):
    question: str | None = arg(None, "what to ask")
    compare: bool = arg(False, "also ask the base model, without the adapter")


def sampling(args, prompt_length):
    """Decoding flags as settings of model.generate. prompt_length: tokens of the prompt.

    transformers counts repetitions over prompt and answer. In ChatML every turn ends with <|im_end|>, so the penalty
    would make the answer's own end less likely with each turn, and no three tokens of the question (a drug's name)
    could occur in the answer. So both are applied to what comes after the prompt.
    """
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    def on_answer(processor):
        return lambda ids, scores: processor(ids[:, prompt_length:], scores) if ids.shape[1] > prompt_length else scores

    rules = []
    if args.repetition_penalty != 1:
        rules.append(on_answer(RepetitionPenaltyLogitsProcessor(args.repetition_penalty)))
    if args.no_repeat_ngram_size:
        rules.append(on_answer(NoRepeatNGramLogitsProcessor(args.no_repeat_ngram_size)))
    draw = dict(temperature=args.temperature, top_p=args.top_p) if args.temperature else {}
    return draw | {"logits_processor": rules}


def answer(model, tokenizer, messages, args) -> str:
    """Print the answer to the last message while it is written, and return it. Ctrl-C ends it: KeyboardInterrupt."""
    import torch
    from transformers import StoppingCriteriaList, TextStreamer

    from common.answers import generate

    (prompt,) = ids_of(tokenizer, [chatml(messages)])
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    how = sampling(args, len(prompt))
    pressed = []  # looked at after each token: an exception could be raised, and lost, in the middle of a C call
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    stop = StoppingCriteriaList([lambda ids, *_, **__: torch.full((len(ids),), bool(pressed), device=ids.device)])
    how |= dict(backend=args.backend, streamer=streamer, stopping_criteria=stop)
    try:
        made = generate(model, tokenizer, [prompt], args.max_new_tokens, 1, **how)
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
    return made[0]


def load(args):
    """(model, tokenizer, system prompt) of --adapter, after the checks that need no model."""
    run = models.open_run(args.adapter, args.model, needed=("system_prompt",))
    model, tokenizer = models.load_run(run, args)
    from transformers import set_seed

    set_seed(args.seed)
    print(f"adapter: {run.adapter}")
    return model, tokenizer, run.texts["system_prompt"] if args.system is None else args.system


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if not (args.question or "").strip():
        raise SystemExit(f"--question is empty. To talk: {command('chat.py')}")
    model, tokenizer, system = load(args)
    messages = [*opening(system), {"role": "user", "content": args.question}]
    for name in ("base", "tuned") if args.compare else ("tuned",):
        if args.compare:
            print(f"-- {name}")
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            answer(model, tokenizer, messages, args)


if __name__ == "__main__":
    main()
