"""What infer.py prints while a model thinks: its text as it is written, and what budget forcing puts in between.

Imports transformers: for after the parsing.
"""

from transformers import TextStreamer

from prompt import ANSWER


class Printer(TextStreamer):
    """generate()'s streamer, without a line break of its own after each piece of thinking."""

    def on_finalized_text(self, text, stream_end=False):
        print(text, end="", flush=True)


def watcher(mark, tokenizer):
    """(streamer for generate, watch for budget.force)."""
    waits = []

    def watch(event, _, ids):
        if event == "open":
            print("thinking:")
        elif event == "wait":
            waits.append(ids)
            print(f"\n[Wait {len(waits)}: an end of thinking was refused] {tokenizer.decode(ids)}", end="", flush=True)
        else:
            if ids[-len(mark.forced) :] == mark.forced:
                print("\n[the budget is spent: thinking was ended]", end="")
            print("\n" + tokenizer.decode(ids).split(ANSWER)[-1], end="", flush=True)

    return Printer(tokenizer, skip_prompt=True, skip_special_tokens=True), watch
