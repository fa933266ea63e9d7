"""Read documents, drop what is there twice, hold some out, lay the rest end to end; read conversations.

    python data.py --check FILE_OR_FOLDER                   documents: what is in it, what is dropped and why
    python data.py --check FILE --model MODEL               the same, and how its tokens are cut and packed
    python data.py --check FILE --out clean.jsonl           the same, and the documents that are kept

Documents: .txt and .md files, each one document; or rows with a "text": JSON, JSONL, Parquet, CSV, .xlsx, a folder of
save_to_disk, a name on the hub. Conversations: rows with "question" and "answer" (also "instruction" and "output").
A reprint with another date is dropped, too: near-duplicates would stand in training and among the held-out documents, and what
is repeated is learned by heart first (arXiv 2107.06499).
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg
from common.files import new_file, write_lines
from common.paths import data_dir, load_env
from common.rows import (
    SUFFIXES,
    Bad,
    Place,
    blank,
    clean_text,
    format_report,
    keep,
    object_of,
    piped,
    read,
    read_text,
    split_by,
)
from common.tables import Unusable

TEXTS = (".txt", ".md")
SHINGLE = 5  # words, or Chinese characters, that are compared at a time
SIMILAR = 0.8  # share of the shingles of two documents that both have, from which they count as the same one
PERMUTATIONS = 128  # of a MinHash: its estimate of that share is right to about 0.04
NEAR = "near-duplicate"
QUESTIONS, ANSWERS = ("question", "instruction"), ("answer", "output")


@dataclass
class DataArgs:
    """Flags that train.py and sft.py have: each of the three sources is measured, and one of them is trained on."""

    data: str | None = arg(
        None, "documents of the domain: a file, a folder or a hub name (default: DATA_DIR/continual)"
    )
    general: str | None = arg(None, "documents of everything else: replayed, and measured for what is forgotten")
    chats: str | None = arg(None, "conversations: replayed or trained on, and measured for the form of answers")
    eval_ratio: float = arg(0.1, "share of the documents, and of the conversations, held out")
    split_seed: int = arg(42, "of the draw which are held out")
    eval_rows: int = arg(200, "at most so many of the held-out rows are measured while training")


# -- reading


def read_documents(source):
    """(texts, report) of a source, in its order, without what is there twice. Raises SystemExit."""
    texts, report = keep(found(source), document, source, what="document", used={"text", "title"}, needed=["text"])
    kept, twice = distinct(texts)
    for at, first, share in twice:
        report["dropped"][NEAR] += 1
        if report["dropped"][NEAR] <= 10:
            places = report["places"][at], report["places"][first]
            report["problems"].append(f"{places[0]}: {share:.0%} of {places[1]}; document dropped: {NEAR}")
    report |= {"kept": len(kept), "places": [report["places"][at] for at in kept]}
    return [texts[at] for at in kept], report


def found(source):
    """(place, raw row) of a source's documents. A folder with text files is those; other files in it are none of it."""
    path = Path(source).expanduser()
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in TEXTS) if path.is_dir() else [path]
    if path.is_dir() and not files or path.suffix.lower() not in TEXTS and not path.is_dir():
        return read(source, {"text": ("text", "content", "正文")}, ["text"])
    if rows := [each.name for each in path.rglob("*") if each.suffix.lower() in SUFFIXES]:
        raise SystemExit(f"{path}: both text files and {rows[0]}. Give one of them as --data, or a folder of each.")
    if not path.exists():
        raise SystemExit(f"{path}: no such file.")
    return ((Place(file), row_of(file)) for file in files if not file.name.startswith("."))


def row_of(file):
    try:
        return {"text": read_text(file)}
    except Unusable as why:
        return why


def document(row) -> str:
    """The text of a row. Raises Bad."""
    value = object_of(row, "text").get("text")
    if value is None:
        raise Bad("missing", "text", "null" if "text" in row else "not there")
    if not isinstance(value, str):
        raise Bad("wrong type", "text", f"expected text, got {type(value).__name__}")
    return clean_text(value, "text", indented=True)


def read_chats(source):
    """(conversations {"question", "answer"}, report) of a source. Raises SystemExit."""
    names = {"question": (*QUESTIONS, "问题"), "answer": (*ANSWERS, "回答")}
    return keep(
        read(source, names, ["question", "answer"]),
        conversation,
        source,
        used={*QUESTIONS, *ANSWERS, "input"},
        key=lambda row: (row["question"], row["answer"]),
        needed=[],
    )


def conversation(row) -> dict:
    """A row as {"question", "answer"}; an alpaca row's input stands under its instruction. Raises Bad."""
    object_of(row, "question", "answer")
    names = [next((each for each in both if each in row), both[0]) for both in (QUESTIONS, ANSWERS)]
    for name in names:
        if not isinstance(row.get(name), str):
            kind = "not there" if row.get(name) is None else f"expected text, got {type(row[name]).__name__}"
            raise Bad("missing" if row.get(name) is None else "wrong type", name, kind)
    question, answer = clean_text(row[names[0]], names[0]), clean_text(row[names[1]], names[1], indented=True)
    extra = row.get("input")
    return {
        "question": question if blank(extra) else f"{question}\n\n{clean_text(str(extra), 'input')}",
        "answer": answer,
    }


def distinct(texts):
    """(indices of texts that are kept, [(dropped, the earlier one like it, share of shingles)]), each in order.

    MinHash finds candidates (Broder 1997; datasketch's MinHashLSH), their shingles decide: so the count is exact for what was
    found. Of documents that are alike the first one stays.
    """
    from datasketch import MinHash, MinHashLSH

    kept, twice, known = [], [], {}
    index = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS, weights=(0.1, 0.9))  # rather a candidate too many
    for at, text in enumerate(texts):
        mine = shingles(text)
        sketch = MinHash(PERMUTATIONS, seed=1)
        sketch.update_batch(sorted(each.encode() for each in mine))
        likes = {first: len(mine & known[first]) / len(mine | known[first]) for first in index.query(sketch)}
        best = max(likes, key=lambda first: (likes[first], -first), default=None)
        if best is not None and likes[best] >= SIMILAR:
            twice.append((at, best, likes[best]))
            continue
        kept.append(at)
        known[at] = mine
        index.insert(at, sketch)
    return kept, twice


def shingles(text) -> set:
    """Every run of SHINGLE words; a Chinese, Japanese or Korean character is a word. Short texts are one shingle."""
    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+", text.lower())
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


# -- splitting


def load_splits(args):
    """{"data" | "general" | "chats": (training rows, held-out rows)} of a script's flags, reported. Both are lists of texts,
    of chats dicts."""
    sources = {
        "data": args.data or (data_dir() if data_dir().exists() else None),
        "general": args.general,
        "chats": args.chats,
    }
    splits = {}
    for name, source in sources.items():
        splits[name] = ([], [])
        if source:
            rows, report = (read_chats if name == "chats" else read_documents)(source)
            print(format_report(report))
            key = (lambda row: row["question"]) if name == "chats" else (lambda text: text)
            splits[name] = split_by(rows, key, args.eval_ratio, args.split_seed)
    return splits


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--check", metavar="FILE", nargs="?", help="documents to read (default: as train.py without --data)"
    )
    parser.add_argument("--chats", action="store_true", help="FILE holds conversations, and not documents")
    parser.add_argument("--model", help="whose tokens are counted: a path, MODELS_DIR/<org>/<name>, or a hub name")
    parser.add_argument("--max_length", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the kept rows to this new file")
    args = parser.parse_args(argv)
    if args.max_length < 2:
        parser.error("argument --max_length: expected 2 at least")
    if args.out:
        new_file(args.out)
    load_env()
    source = args.check or data_dir()
    rows, report = (read_chats if args.chats else read_documents)(source)
    print(format_report(report))
    lengths = sorted(len(row["answer"] if args.chats else row) for row in rows)
    print(
        f"{lengths[len(lengths) // 2]:,} characters in the middle, {lengths[-1]:,} at most, {sum(lengths):,} together"
    )
    if args.model and not args.chats:
        from common.hub import resolve_model
        from common.models import load_tokenizer
        from packs import told
        from prompt import document_ids

        print(told(document_ids(load_tokenizer(resolve_model(args.model)), rows), args.max_length))
    if args.out:
        try:
            write_lines(args.out, rows if args.chats else [{"text": text} for text in rows])
        except OSError as error:
            raise SystemExit(f"{args.out} cannot be written: {error.strerror}.") from None
        print(f"{len(rows):,} rows written to {args.out}")


if __name__ == "__main__":
    piped(main)
