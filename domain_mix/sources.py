"""Each kind of source as rows of instruction, input and output: four schemas, local files and the hub.

Rows come one at a time: a source may be larger than the memory. What cannot be used is said, with the file and the row,
and never mended.
"""

import json
import unicodedata
from html.parser import HTMLParser

from common.rows import MISSING, TYPE, Bad, Place, blank, clean_text, object_of, text_of

HISTORY = "needs its history"  # "And then?" makes no sense without the turns before it, and rows here have one turn

# From each source's schema to (instruction, input, output). What cannot be used is said by a Bad.


def from_alpaca(row):
    """{"instruction", "input" (may be absent or null), "output"}, as in my_dataset.json."""
    if not blank(row.get("history")):
        raise Bad(HISTORY, "history", f"{str(row['history'])[:40]}...")
    return text_of(row, "instruction"), text_of(row, "input", empty=True), text_of(row, "output", indented=True)


def from_slimorca(row):
    """{"conversations": [{"from": "system" | "human" | "gpt", "value"}]}: the first question and its answer.

    The system turns are left out: there are a dozen of them, and train.py teaches one system prompt for all domains.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Bad(TYPE if turns else MISSING, "conversations", f"not a list of turns; columns: {columns_of(row)}")
    turns = [turn for turn in turns if turn.get("from") != "system"]
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
        raise Bad("other turns", "conversations", "does not begin with human and gpt")
    return text_of(turns[0], "value"), "", text_of(turns[1], "value")


def from_pubmedqa(row):
    """{"question", "context": {"contexts": [...]} or "contexts": [...], "long_answer"}: the abstract is the input."""
    contexts = row["context"].get("contexts") if isinstance(row.get("context"), dict) else row.get("contexts")
    if not isinstance(contexts, list) or not all(isinstance(part, str) for part in contexts):
        raise Bad(TYPE if contexts else MISSING, "contexts", f"not a list of texts; columns: {columns_of(row)}")
    return text_of(row, "question"), "\n".join(contexts), text_of(row, "long_answer")


def from_stackexchange(row):
    """{"question": HTML, "answers": [{"text": HTML, "pm_score", "selected"}]}: the best-scored answer."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise Bad(TYPE if answers else MISSING, "answers", f"not a list; columns: {columns_of(row)}")
    if not answers:
        raise Bad("no answer", "answers", "empty")
    if not all(isinstance(answer.get("pm_score"), int | float) for answer in answers):
        raise Bad(TYPE, "answers", "a pm_score is not a number")
    best = max(answers, key=lambda answer: (answer["pm_score"], bool(answer.get("selected"))))
    return html_to_text(text_of(row, "question")), "", html_to_text(text_of(best, "text"))


ADAPTERS = {
    "alpaca": from_alpaca,
    "slimorca": from_slimorca,
    "pubmedqa": from_pubmedqa,
    "stackexchange": from_stackexchange,
}


def columns_of(row):
    return ", ".join(map(str, row)) or "none"


def clean(row, adapt):
    """(instruction, input, output) of a row as it was read, without blanks around them; code keeps its indent in the output.

    adapt: one of ADAPTERS. Raises Bad where the row cannot be used.
    """
    instruction, extra, output = adapt(object_of(row, "the columns of its format"))
    texts = clean_text(instruction, "instruction"), clean_text(extra, "input", empty=True)
    return *texts, clean_text(output, "output", indented=True)


def normalise(text: str) -> str:
    """What makes two texts the same: not their width, their case or their spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class _Text(HTMLParser):
    """Collects text and code of HTML by turns: blocks[0] is text, blocks[1] the first <pre>, blocks[2] text, ..."""

    BLOCKS = {"p", "div", "ul", "ol", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "table", "tr", "hr"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks, self.hidden = [[]], 0

    def in_code(self):
        return len(self.blocks) % 2 == 0

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style"):
            self.hidden += 1
        elif tag == "pre":
            if not self.in_code():
                self.blocks.append([])
        elif tag == "code" and not self.in_code():
            self.blocks[-1].append("`")
        elif tag == "br":
            self.blocks[-1].append("\n")
        elif tag == "li":
            self.blocks[-1].append("\n- ")
        elif tag in self.BLOCKS:
            self.blocks[-1].append("\n\n")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.hidden = max(self.hidden - 1, 0)
        elif tag == "pre":
            if self.in_code():
                self.blocks.append([])
        elif tag == "code" and not self.in_code():
            self.blocks[-1].append("`")
        elif tag in self.BLOCKS:
            self.blocks[-1].append("\n\n")

    def handle_data(self, data):
        if not self.hidden:
            # Outside code a line break of the source is a space, as in a browser.
            self.blocks[-1].append(data if self.in_code() else data.replace("\n", " "))

    def updatepos(self, i, j):
        return j  # line numbers, which nobody asks for, take a tenth of the time


def html_to_text(html: str) -> str:
    """Plain text of an HTML fragment. Code blocks keep their line breaks and indents, between ``` lines."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    pieces = []
    for number, block in enumerate("".join(parts) for parts in parser.blocks):
        if number % 2:
            pieces.append("```\n" + block.strip("\n") + "\n```")
            continue
        kept = []
        for line in (" ".join(line.split()) for line in block.split("\n")):
            if line.startswith("- "):  # a list has no empty lines in it
                while kept and not kept[-1]:
                    kept.pop()
            if line or (kept and kept[-1]):
                kept.append(line)
        pieces.append("\n".join(kept).strip("\n"))
    return "\n\n".join(piece for piece in pieces if piece)


# Reading


def read_hub(spec, seed):
    """Rows of a data set on the hub, in an order shuffled by `seed`, as they arrive."""
    from datasets import load_dataset

    options = {"name": spec.get("config"), "data_files": spec.get("files"), "split": spec.get("split", "train")}
    stream = load_dataset(spec["hub"], streaming=True, **options).shuffle(seed=seed, buffer_size=10_000)
    for number, row in enumerate(stream, 1):
        yield Place(spec["hub"], number), row


def write_jsonl(rows, out):
    """Write rows so that `out` is there whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new")
    # A lone surrogate is legal in JSON (\\ud83d) and in no UTF-8 file.
    with open(new, "w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    new.replace(out)
