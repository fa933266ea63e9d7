"""Talk to a fine-tuned model in a terminal: it streams, and it remembers what was said.

A model has no memory: at every turn it reads the whole conversation again. When that no longer fits into its context,
the oldest turns are left out, and you are told so. Ctrl-C stops an answer; the turn is then forgotten.

    exit, quit, Ctrl-D   leave
    /reset               forget the conversation
    /system TEXT         another system prompt from now on; without TEXT: show it

Newest run:         python chat.py
Sober answers:      python chat.py --temperature 0 --repetition_penalty 1.1
"""

import contextlib
import sys
from dataclasses import dataclass

from common.cli import arg, parse
from common.tokens import ids_of
from infer import Decoding, answer, load
from prompt import chatml, opening

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(Decoding):
    context: int = arg(4096, "tokens of conversation and answer together, up to what the model can read")


def fit(tokenizer, system, history, room):
    """(messages that fit into `room` tokens, turns left out). History ends with a question; the oldest pairs go first.

    Raises ValueError where the question by itself does not fit.
    """
    for cut in range(0, len(history), 2):
        messages = [*opening(system), *history[cut:]]
        length = len(ids_of(tokenizer, [chatml(messages)])[0])
        if length <= room:
            return messages, cut // 2
    raise ValueError(f"this message takes {length:,} tokens, {room:,} are left beside the answer. Make it shorter.")


def talk(model, tokenizer, system, args):
    room = min(args.context, model.config.max_position_embeddings) - args.max_new_tokens
    if room < 1:
        raise SystemExit(
            f"--max_new_tokens {args.max_new_tokens} leaves no room in a context of {room + args.max_new_tokens}."
        )
    print("exit leaves, /reset forgets, /system TEXT changes the system prompt, Ctrl-C stops an answer.")
    history = []
    while True:
        try:
            said = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            return print()
        if said in ("exit", "quit"):
            return
        if said == "/reset":
            history = []
            print("(the conversation is forgotten)")
        elif said.split(" ")[0] == "/system":
            system = said.removeprefix("/system").strip() or system
            print(f"(system: {system})")
        elif said:
            asked = [*history, {"role": "user", "content": said}]
            try:
                messages, gone = fit(tokenizer, system, asked, room)
                if gone:
                    print(
                        f"({gone} oldest turn{'s' * (gone > 1)} left out: the conversation is longer than the context)"
                    )
                    asked = asked[2 * gone :]
                history = [*asked, {"role": "assistant", "content": answer(model, tokenizer, messages, args)}]
            except ValueError as error:
                print(f"({error})")
            except KeyboardInterrupt:
                print("\n(stopped; this turn is forgotten)")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (line editing in input(): without it a wide character is deleted by halves)
    sys.stdin.reconfigure(errors="replace")
    model, tokenizer, system = load(args)
    talk(model, tokenizer, system, args)


if __name__ == "__main__":
    main()
