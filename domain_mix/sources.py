"""Each kind of source as rows of instruction, input and output: four schemas, three file formats, and the hub.

Files are read in pieces, a row at a time: a source may be larger than the memory. What cannot be used is said, with the
file and the row, and never mended.
"""

import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

# From each source's schema to (instruction, input, output). What cannot be used is said by a ValueError.


def from_alpaca(row):
    """{"instruction", "input" (may be absent or null), "output"}, as in my_dataset.json."""
    extra = row.get("input")
    return text_of(row, "instruction"), text_of(row, "input") if extra is not None else "", text_of(row, "output")


def from_slimorca(row):
    """{"conversations": [{"from": "system" | "human" | "gpt", "value"}]}: the first question and its answer.

    The system turns are left out: there are a dozen of them, and train.py teaches one system prompt for all domains.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations is not a list of turns")
    turns = [turn for turn in turns if turn.get("from") != "system"]
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
        raise ValueError("conversations does not begin with human and gpt")
    return text_of(turns[0], "value"), "", text_of(turns[1], "value")


def from_pubmedqa(row):
    """{"question", "context": {"contexts": [...]} or "contexts": [...], "long_answer"}: the abstract is the input."""
    contexts = row["context"].get("contexts") if isinstance(row.get("context"), dict) else row.get("contexts")
    if not isinstance(contexts, list) or not all(isinstance(part, str) for part in contexts):
        raise ValueError("contexts is not a list of texts")
    return text_of(row, "question"), "\n".join(contexts), text_of(row, "long_answer")


def from_stackexchange(row):
    """{"question": HTML, "answers": [{"text": HTML, "pm_score", "selected"}]}: the best-scored answer."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError("answers is not a list")
    if not answers:
        raise ValueError("no answer")
    if not all(isinstance(answer.get("pm_score"), int | float) for answer in answers):
        raise ValueError("an answer's pm_score is not a number")
    best = max(answers, key=lambda answer: (answer["pm_score"], bool(answer.get("selected"))))
    return html_to_text(text_of(row, "question")), "", html_to_text(text_of(best, "text"))


ADAPTERS = {
    "alpaca": from_alpaca,
    "slimorca": from_slimorca,
    "pubmedqa": from_pubmedqa,
    "stackexchange": from_stackexchange,
}


def text_of(row, name):
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {'missing' if value is None else 'not text'}")
    return value


def clean(row, adapt):
    """(instruction, input, output), stripped, of a row as it was read. Raises ValueError where it cannot be used.

    adapt: one of ADAPTERS. row: anything that a reader below yields, also the ValueError of a line that is no JSON.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"not an object but {type(row).__name__}")
    instruction, extra, output = (text.strip() for text in adapt(row))
    if not instruction or not output:
        raise ValueError("empty output" if instruction else "empty instruction")
    return instruction, extra, output


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


def read_local(path):
    """(where, row) of a JSON, JSONL or Parquet file, or of a folder of them in the order of their names.

    Whether JSON is a list or a row a line is told by the content, not by the name. A row that is no JSON comes as the
    ValueError that says why; a file that cannot be read at all raises SystemExit.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".json", ".jsonl", ".parquet"))
        if not files:
            raise SystemExit(f"{path}: no .json, .jsonl or .parquet file in this folder.")
    elif path.is_file():
        files = [path]
    else:
        raise SystemExit(f"{path}: no such file or folder.")
    for file in files:
        rows = read_parquet(file) if file.suffix.lower() == ".parquet" else read_json(file)
        for number, row in enumerate(rows, 1):
            yield f"{file}: row {number}", row


def read_parquet(file):
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise SystemExit(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None


def read_json(file):
    """Rows of a JSON list or of JSON lines. The file is read in pieces: it may be larger than the memory."""
    try:
        with open(file, encoding="utf-8-sig") as source:
            head = source.read(1)
            while head.isspace():
                head = source.read(1)
            if head == "[":
                yield from read_list(file, source)
            else:
                source.seek(0)
                for line in source:
                    if line.strip():
                        try:
                            yield json.loads(line)
                        except ValueError as error:
                            yield ValueError(f"not JSON: {error}")
    except UnicodeDecodeError as error:
        raise SystemExit(f"{file}: not UTF-8 (byte {error.start} of a block). Save it as UTF-8.") from None
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}.") from None


def read_list(file, source, size=1 << 20):
    """The items of a JSON list whose [ was read already."""
    decode, text, at, count = json.JSONDecoder().raw_decode, "", 0, 0
    skip = re.compile(r"[\s,]*")
    while True:
        at = skip.match(text, at).end()
        if at < len(text) and text[at] == "]":
            return
        item = None
        if at < len(text):
            try:
                item, end = decode(text, at)
            except ValueError as error:
                reason = error
            else:
                if end < len(text):  # a number at the very end could go on in the next piece
                    count, at = count + 1, end
                    yield item
                    continue
        more = source.read(size)
        if not more:
            said = "ends in the middle of the list" if at >= len(text) or item else f"not JSON: {reason}"
            raise SystemExit(f"{file}: {said}, after {count:,} rows. Was the file cut off?")
        text, at = text[at:] + more, 0
        size = max(size, len(text))  # a long item is not tried again for each small piece


def read_hub(spec, seed):
    """Rows of a data set on the hub, in an order shuffled by `seed`, as they arrive."""
    from datasets import load_dataset

    options = {"name": spec.get("config"), "data_files": spec.get("files"), "split": spec.get("split", "train")}
    stream = load_dataset(spec["hub"], streaming=True, **options).shuffle(seed=seed, buffer_size=10_000)
    for number, row in enumerate(stream, 1):
        yield f"{spec['hub']}: row {number}", row


def write_jsonl(rows, out):
    """Write rows so that `out` is there whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new")
    # A lone surrogate is legal in JSON (\\ud83d) and in no UTF-8 file.
    with open(new, "w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    new.replace(out)
