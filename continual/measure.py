"""What continued pretraining gives and takes: the domain's perplexity, everything else's, and whether answers keep their form.

The same numbers before and after training, in evaluate.py and in compare.py. Imports torch: for after the parsing.
"""

import re

from common import answers, screen
from common.files import text_table
from packs import pieces, sequences
from prompt import document_ids, encode, prompt_ids

# What an answer holds that has run on into the next turn, or back into text.
TURN = re.compile(r"<\|im_(start|end)\|>|^\s*(user|assistant|system|### \w+)\s*:?\s*$", re.MULTILINE)
LABELS = {
    "data": "perplexity of the domain's held-out documents", "general": "perplexity of general held-out documents",
    "chats": "loss of held-out answers, per token", "chat_form": "share of answers in chat form",
}  # fmt: skip


def datasets_of(tokenizer, held, template, args) -> dict:
    """{"data" | "general" | "chats": tokenized held-out rows}, each row a sequence of its own; sources without rows are left out.

    held: name -> texts, of chats dicts. At most args.eval_rows of each. A conversation over max_length is left out.
    """
    made = {}
    for name, rows in held.items():
        rows = rows[: args.eval_rows]
        if name == "chats":
            pairs = zip(*encode(tokenizer, rows, template), strict=True) if rows else ()
            pairs = [pair for pair in pairs if len(pair[0]) <= args.max_length]
        else:
            pairs = [(ids, ids) for ids in pieces(document_ids(tokenizer, rows), args.max_length)[0] if len(ids) > 1]
        if pairs:
            made[name] = sequences(pairs, [[at] for at in range(len(pairs))])
    return made


def in_chat_form(ids, text, end) -> bool:
    """Whether an answer ended by itself, says something, and did not go on with another turn. ids: up to and with its end."""
    return bool(ids) and ids[-1] == end and bool(text.strip()) and not TURN.search(text)


def look(model, tokenizer, held, asked, template, args) -> dict:
    """{"data": {"loss", "perplexity", ...}, ..., "chat_form": share, "answers": texts} of a model.

    held: of datasets_of. asked: conversations whose questions are answered greedily, args.max_new_tokens at most.
    """
    found = {name: answers.heldout_loss(model, rows, tokenizer.pad_token_id) for name, rows in held.items()}
    if asked:
        how = dict(backend=args.backend, return_ids=True)
        ids = answers.generate(model, tokenizer, prompt_ids(tokenizer, asked, template), args.max_new_tokens, 32, **how)
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
        raw = [tokenizer.decode(row[:-1]) for row in ids]  # with the markers that stand inside
        kept = [in_chat_form(*each, tokenizer.eos_token_id) for each in zip(ids, raw, strict=True)]
        found |= {"chat_form": sum(kept) / len(kept), "answers": texts}
    return found


def numbers(found) -> dict:
    """The four numbers of a look, by name of LABELS."""
    made = {name: found[name]["perplexity"] for name in ("data", "general") if name in found}
    made |= {"chats": found["chats"]["loss"]} if "chats" in found else {}
    return made | ({"chat_form": found["chat_form"]} if "chat_form" in found else {})


def show(before, after, asked, count=3):
    """Print some questions with both answers, and the numbers before and after."""
    for row, one, other in list(zip(asked, before.get("answers", ()), after.get("answers", ()), strict=False))[:count]:
        print(f"\nquestion:    {row['question']}")
        for label, text in (("before", one), ("after", other), ("reference", row["answer"])):
            print(f"{label + ':':<12} {shortened(text)}")
    one, other = numbers(before), numbers(after)
    rows = [(screen.text(LABELS[name]), written(name, one[name]), written(name, other[name])) for name in one]
    print("\n" + text_table(("", screen.text("before"), screen.text("after")), rows))


def written(name, value) -> str:
    return f"{value:.0%}" if name == "chat_form" else f"{value:.2f}"


def shortened(text, most=200) -> str:
    """Text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + " …"
