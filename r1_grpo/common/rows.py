# Generated from common/rows.py: edit that file, then run `make sync`.
"""Rows from a file, a folder or a hub, unchecked: what a row must hold is each recipe's own matter.

Every function ends with SystemExit where a source cannot be read: what was wrong, in which line, and what to do.
"""

import contextlib
import json
import random
import re
from pathlib import Path

from common.files import new_file
from common.paths import data_dir

SUFFIXES = (".json", ".jsonl", ".parquet")


def default_source(hub_name: str):
    """<TASK>_DATA_DIR or DATA_DIR/<task> if it exists, else the name on the hub."""
    return data_dir() if data_dir().exists() else hub_name


def read(source, what="rows"):
    """Rows of a JSON list, JSON lines or Parquet file, a save_to_disk folder, a folder with one such file, or a hub name."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, what)
    return _read_file(path, what) if path.exists() else from_hub(source, SUFFIXES, split="train")


def read_splits(source, config=None, needed=("train", "test")) -> dict:
    """{"train": rows, "test": rows}, whichever there are, of a folder with train* and test* files (JSON lines or Parquet),
    of one such file, which is "train", or of a hub name.

    config: of the set on the hub. needed: of these splits one must be there at least.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = {}
        for split in ("train", "test"):
            files = sorted(file for file in path.rglob(f"{split}*") if file.suffix in SUFFIXES[1:] and file.is_file())
            if files:
                found[split] = [row for file in files for row in read_lines(file)]
        if not set(needed) & set(found):
            raise SystemExit(f"{path}: no train.jsonl or train*.parquet in it. Give such a folder, or one JSONL file.")
        return found
    if path.exists():
        return {"train": read_lines(path)}
    found = from_hub(source, SUFFIXES[1:], name=config)
    if not set(needed) & set(found):
        raise SystemExit(f"{source}: no split 'train'; splits found: {', '.join(found)}.")
    return {split: list(found[split]) for split in found if split in ("train", "test")}


def from_hub(source, suffixes, **options):
    """A data set of the hub. suffixes: of names that are meant as files, which nobody should look for on a hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or Path(source).suffix in suffixes:
        raise SystemExit(f"{source}: no such file or folder, and not of the form <org>/<name> that a hub has.")
    import datasets

    try:
        return datasets.load_dataset(str(source), **options)
    except Exception as error:  # no network, no such name, a gated set: the same advice
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SystemExit(
            f"{source}: no such file or folder here, and the hub did not give it: {reason}\n"
            "Check the name and the network, set HF_ENDPOINT to a mirror, or copy the data here and give --data PATH."
        ) from None


def text_fault(row, name):
    """(reason, what was found) where column `name` of a row holds no text that can be used, else None."""
    value = row.get(name)
    if not isinstance(value, str):
        return "missing", f"column {name}: {'not there' if name not in row else f'no text but {value!r}'}"
    if not value.strip():
        return "empty", f"column {name}: no text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "broken characters", f"column {name}: half of a surrogate pair"
    return None


def hold_out(keys, ratio, seed) -> set:
    """The keys whose rows are held out: a share of them drawn with the seed, one at least, and one left to train on.

    keys: in an order that does not change; all rows with one key are on one side, so nothing leaks.
    """
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.1.")
    keys = list(dict.fromkeys(keys))
    if len(keys) < 2:
        raise SystemExit(f"{len(keys)} different row: one to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(keys)
    return set(keys[: min(max(1, round(len(keys) * ratio)), len(keys) - 1)])


def text_lines(file, out, what) -> tuple:
    """The lines of a text file with questions (`what` they are), without empty ones, and the file for their answers: `out`,
    or one beside it. What can be wrong is said before a model is loaded."""
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SystemExit(f"{file}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise SystemExit(f"{file}: no {what} in it; expected one a line.")
    return lines, new_file(out or file.with_name(file.name + ".answers.jsonl"))


def read_lines(path) -> list:
    """Rows of a JSON lines file, or of a Parquet file, told apart by the name."""
    path = Path(path)
    return _read_parquet(path) if path.suffix == ".parquet" else _parse_lines(path, _read_text(path))


def _read_folder(path, what):
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if "train" not in saved:
                raise SystemExit(f"{path}: no split 'train'; splits found: {', '.join(saved)}. Give one as --data.")
            saved = saved["train"]
        return saved
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise SystemExit(
            f"{path}: expected a save_to_disk folder or one .json, .jsonl or .parquet file; found: {found}."
        )
    return _read_file(files[0], what)


def _read_file(path, what):
    """JSON or Parquet, told apart by the first bytes; a JSON list or JSON lines, by the first character."""
    try:
        with open(path, "rb") as file:
            parquet = file.read(4) == b"PAR1"
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read: {error.strerror}.") from None
    if parquet:
        return _read_parquet(path)
    text = _read_text(path)
    start = text.lstrip()[:1]
    if start == "[":
        try:
            return json.loads(text)
        except ValueError as error:
            raise SystemExit(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}.") from None
    if start != "{":
        raise SystemExit(
            f"{path}: expected a JSON list or a JSON object a line; it {'is empty' if not start else f'begins with {start!r}'}."
        )
    with contextlib.suppress(ValueError):
        if "\n" in text.strip() and isinstance(json.loads(text), dict):  # one object over many lines
            raise SystemExit(f"{path}: one JSON object, not a list of {what}. Put it in [ ].")
    return _parse_lines(path, text)


def _read_parquet(path):
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: not a complete Parquet file: {error}") from None


def _read_text(path):
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SystemExit(f"{path}: line {line}: not UTF-8 (byte {error.start}). Save the file as UTF-8.") from None


def _parse_lines(path, text):
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a string
        try:
            if line.strip():
                rows.append(json.loads(line))
        except ValueError as error:
            raise SystemExit(f"{path}: line {number}, column {error.colno}: not JSON: {error.msg}.") from None
    return rows
