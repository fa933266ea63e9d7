# Generated from common/rows.py: edit that file, then run `make sync`.
"""Rows from a file, a folder or a hub: read, kept or dropped for a reason that is reported, held out by key.

Every recipe reads through this: `read` gives (place, row), the recipe's `check` turns a row into what is trained on or
raises Bad, `keep` counts, `split_by` holds out. What cannot be read at all ends with SystemExit: what, where, what to do.
"""

import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from common import screen
from common.files import new_file
from common.paths import data_dir
from common.tables import Bad, Unusable, csv_rows, workbook_rows
from common.text import Undecodable, encoding_of

LINES = (".json", ".jsonl", ".parquet")
SUFFIXES = (*LINES, ".csv", ".xlsx")
EXAMPLES = 10  # problems described for each reason; the counts say how many, these say where to look
LONGEST = 1_000_000  # characters of a text, and 64 times that of a line or an item of a list: more is damage
# Reasons that mean the same in every recipe.
MISSING, TYPE, EMPTY, BROKEN, CONTROL, LONG = (
    "missing", "wrong type", "empty", "broken characters", "control token", "too long"
)  # fmt: skip
NOT_JSON = "not JSON"
# <|im_end|> inside a text would end a turn in the middle of it: tokenizers take the text for the token.
CONTROL_TOKEN = re.compile(r"<\|[^\s|<>]{1,40}\|>")
SUSPECT = {  # what is kept, and should be known before a model learns to say it: a sign that is quick to see, and a pattern
    "{{placeholders}} that nobody filled in": ("{{", re.compile(r"\{\{ ?\w[\w. ]{0,40}\}\}")),
    "<image> tags, which mean nothing in a text": ("<image>", re.compile(r"<image>")),
}
COPY = re.compile(r" ?\(\d+\)$| copy( \d+)?$| - 副本| 副本$", re.IGNORECASE)
SHARD = re.compile(r"(.*?)-(\d+)-of-(\d+)$")


class Place(NamedTuple):
    """Where a row stands. number: of the line in a CSV or JSON lines file, else of the row; None: the whole file or sheet."""

    file: Path | str
    number: int | None = None
    sheet: str | None = None

    @property
    def inside(self):
        unit = "line" if Path(self.file).suffix.lower() in (".csv", ".jsonl") else "row"
        parts = [f"sheet {self.sheet}" if self.sheet else "", f"{unit} {self.number}" if self.number else ""]
        return ", ".join(filter(None, parts))

    def __str__(self):
        return f"{self.file}: {self.inside}".removesuffix(": ")


def piped(main):
    """Run the main() of a script that prints, until its reader has enough, as `| head` has: without a traceback."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own last flush fails
        raise SystemExit(1) from None


# -- reading


def default_source(hub_name: str):
    """<TASK>_DATA_DIR or DATA_DIR/<task> if it exists, else the name on the hub."""
    return data_dir() if data_dir().exists() else hub_name


def read(source, names=None, needed=(), sheet=None, suffixes=SUFFIXES):
    """Yield (Place, row) of a file, a folder of one set, a `save_to_disk` folder, or a hub name.

    names: column -> the words that head it in a CSV file or a workbook; columns of these names are what rows have.
    needed: of them those without which a table is of no use. A row is a dict as it was read, anything else that stood in a
    row's place, or the Bad that says why it is none. Raises SystemExit.
    """
    path = Path(source).expanduser()
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        return ((Place(source, number), row) for number, row in enumerate(_saved(path), 1))
    if path.is_dir():
        files = data_files(path, suffixes)
    elif path.exists():
        files = [path]
    else:
        rows = from_hub(source, SUFFIXES, split="train")
        return ((Place(source, number), row) for number, row in enumerate(rows, 1))
    return _read_files(files, names, needed, sheet)


def read_splits(source, config=None, needed=("train", "test")) -> dict:
    """{"train": [(place, row), ...], "test": ...}, whichever there are, of a folder with train* and test* files, of one such
    file, which is "train", or of a hub name.

    config: of the set on the hub. needed: of these splits one must be there at least.
    """
    path = Path(source).expanduser()
    if path.exists() and not path.is_dir():
        return {"train": list(read(path))}
    if path.is_dir():
        found = {split: list(path.rglob(f"{split}*")) for split in ("train", "test")}
        found = {split: one_set(path, files, LINES) for split, files in found.items() if any(map(_is_lines, files))}
        if not set(needed) & set(found):
            raise SystemExit(f"{path}: no train.jsonl or train*.parquet in it. Give such a folder, or one JSONL file.")
        return {split: list(_read_files(files)) for split, files in found.items()}
    found = from_hub(source, LINES, name=config)
    if not set(needed) & set(found):
        raise SystemExit(f"{source}: no split 'train'; splits found: {', '.join(found)}.")
    numbered = {split: enumerate(found[split], 1) for split in found if split in ("train", "test")}
    return {split: [(Place(source, at), row) for at, row in rows] for split, rows in numbered.items()}


def read_lines(path) -> list:
    """Rows of a file that a program wrote: one that is none ends with SystemExit."""
    rows = []
    for place, row in read(path):
        if isinstance(row, Bad):
            raise SystemExit(f"{place}{said(row)}.")
        rows.append(row)
    return rows


def from_hub(source, suffixes, **options):
    """A data set of the hub. suffixes: of names that are meant as files, which nobody should look for on a hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or Path(source).suffix in suffixes:
        told = "{source}: no such file or folder, and not of the form <org>/<name> that a hub has."
        raise SystemExit(screen.text(told, source=source))
    import datasets

    try:
        return datasets.load_dataset(str(source), **options)
    except Exception as error:  # no network, no such name, a gated set: the same advice
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        told = "{source}: no such file or folder here, and the hub did not give it: {why}\nCheck the name and the network, set HF_ENDPOINT to a mirror, or copy the data here and give --data PATH."
        raise SystemExit(screen.text(told, source=source, why=reason)) from None


def data_files(folder, suffixes=SUFFIXES) -> list:
    """The files of the one set that a folder holds. Raises SystemExit where there is none, or more than one set."""
    files = one_set(folder, Path(folder).rglob("*"), suffixes)
    if not files:
        raise SystemExit(f"{folder}: no {', '.join(suffixes)} file in it, and no folder of save_to_disk.")
    return files


def one_set(folder, files, suffixes) -> list:
    """Those of `files` that have one of the suffixes, sorted. Raises SystemExit unless they are one set: files of one format
    in one folder, no copy beside its original, all shards that their names promise."""
    files = sorted(file for file in files if file.suffix.lower() in suffixes and _is_data(file))
    folders, kinds = {file.parent for file in files}, {file.suffix.lower() for file in files}
    stems = {file.stem for file in files}
    copies = [file.name for file in files if COPY.search(file.stem) and COPY.sub("", file.stem) in stems]
    parts = [shard for shard in map(SHARD.match, stems) if shard]
    shards, have = {part[1]: int(part[3]) for part in parts}, Counter(part[1] for part in parts)
    named = ", ".join(str(file.relative_to(folder)) for file in files[:8]) + (", ..." if len(files) > 8 else "")
    for wrong, what in (
        (len(folders) > 1, f"several sets in {len(folders)} folders"),
        (len(kinds) > 1, f"files of {len(kinds)} formats"),
        (copies, f"{', '.join(copies)} looks like a copy"),
        (shards and (len(shards) > 1 or sum(have.values()) < len(files)), "more than one set"),
        (any(have[name] != count for name, count in shards.items()), "not all the parts that the names promise"),
    ):
        if wrong:
            raise SystemExit(f"{folder}: {what}: {named}. Rows are not joined by guess: name one file or folder.")
    return files


def read_file(path, names=None, needed=(), sheet=None):
    """Yield (Place, row) of one file, its format told by its first bytes and its name. Raises Unusable."""
    path = Path(path)
    kind = path.suffix.lower()
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if kind == ".xlsx":
            found = workbook_rows(path, names or {}, needed, sheet)
            return ((Place(path, number, page), row) for page, number, row in found)
        if sheet:
            raise Unusable(f"--sheet {sheet} is for .xlsx files.")
        if start == b"PAR1":
            numbered = enumerate(_parquet(path), 1)
        elif start == b"PK\x03\x04":
            raise Unusable("a zip file. Unpack it, and name the file or folder.")
        else:
            numbered = csv_rows(path, names or {}, needed) if kind == ".csv" else _json(path)
        return ((Place(path, number), row) for number, row in numbered)
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}.") from None


def _read_files(files, names=None, needed=(), sheet=None):
    for path in files:
        try:
            yield from read_file(path, names, needed, sheet)
        except Unusable as why:
            raise SystemExit(f"{path}: {why}") from None


def _is_data(file):
    return not file.name.startswith((".", "~$")) and file.is_file()  # ~$: what Excel leaves beside an open file


def _is_lines(file):
    return file.suffix.lower() in LINES and _is_data(file)


def _saved(path):
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever Arrow and datasets meet in a folder that is not complete
        raise SystemExit(
            f"{path}: not a complete folder of save_to_disk: {' '.join(str(error).split())[:200]}"
        ) from None
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if "train" not in saved:
        raise SystemExit(f"{path}: no split 'train'; splits found: {', '.join(saved)}. Give one as --data.")
    return saved["train"]


def _parquet(path):
    """Rows of a Parquet file, in small batches where a few bytes may unpack to gigabytes."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
        columns = [group.column(at) for group in groups for at in range(group.num_columns)]
        most = 100 * max(path.stat().st_size, 1_000_000)  # what such a file unpacks to, in bytes and in values
        worst = sum(each.num_values * max(1, each.total_uncompressed_size) for each in columns)
        if sum(each.num_values for each in columns) > most:
            raise Unusable(f"{file.metadata.num_rows:,} rows in {path.stat().st_size:,} bytes: damaged.")
        unpacked = 0
        for batch in file.iter_batches(1000 if worst < most else 16):
            dense = [each.dictionary_decode() if hasattr(each, "dictionary") else each for each in batch.columns]
            unpacked += sum(each.nbytes for each in dense)
            if unpacked > most:
                raise Unusable(f"unpacks to more than {most / 1e6:,.0f} MB: damaged, or no table of texts.")
            yield from pyarrow.RecordBatch.from_arrays(dense, batch.schema.names).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        said = " ".join(str(error).split())[:150]
        raise Unusable(f"not a complete Parquet file: {said}") from None


def _decoder(twice):
    """A JSON decoder that takes NaN as null, a number of thousands of digits as text, and notes keys that stand twice."""

    def pairs_of(pairs):
        made = dict(pairs)
        if len(made) < len(pairs):
            twice.append(Counter(name for name, _ in pairs).most_common(1)[0][0])
        return made

    return json.JSONDecoder(
        object_pairs_hook=pairs_of,
        parse_constant=lambda text: None,
        parse_int=lambda text: int(text) if len(text) < 1000 else text,
    )


def _json(path):
    """(number, row) of a JSON list or of JSON lines, told apart by the first character. The file is read in pieces: it may
    be larger than the memory."""
    try:
        encoding = encoding_of(path)
    except Undecodable as error:
        raise Unusable(str(error)) from None
    with open(path, encoding=encoding, errors="replace") as source:
        head, blank = source.read(1), 1
        while head.isspace() or head == "\ufeff":
            blank += head == "\n"
            head = source.read(1)
        if head == "[":
            yield from _list(source, blank)
        elif head != "{":
            raise Unusable(
                f"expected a JSON list or a JSON object a line; it {f'begins with {head!r}' if head else 'is empty'}."
            )
        else:
            yield from _lines(source, head, blank, path.suffix.lower() != ".jsonl")


def _lines(source, head, number, wrapped):
    """wrapped: whether one object alone may be meant to hold the rows; a line of a .jsonl file is a row."""
    twice, first, most = [], None, 64 * LONGEST
    decode = _decoder(twice).decode
    line = head + source.readline(most)
    while line:
        row = _parsed(decode, line, twice) if line.strip() else None
        if first is None and isinstance(row, Bad) and line.rstrip() in ("{", "[{"):
            _refuse_object(decode, line + source.read(most))
        if first is None and isinstance(row, dict):
            first, then = row, source.readline(most)
            if wrapped and not then.strip():
                _refuse_wrapper(row)
            yield number, row
            number, line = number + 1, then
            continue
        if len(line) >= most:
            raise Unusable(f"line {number} is longer than {most:,} characters.")
        if row is not None:
            first = first or row
            yield number, row
        number, line = number + 1, source.readline(most)


def _parsed(decode, text, twice):
    try:
        row = decode(text.rstrip())
    except RecursionError:
        return Bad(NOT_JSON, None, "nested too deeply")
    except ValueError as error:
        return Bad(NOT_JSON, None, f"column {getattr(error, 'colno', 1)}: {getattr(error, 'msg', error)}")
    if twice:
        return Bad(NOT_JSON, None, f"the key {twice.pop()[:80]!r} stands twice")
    return Bad(TYPE, None, f"an object was expected, not {type(row).__name__}") if row is None else row


def _refuse_object(decode, text):
    try:
        _refuse_wrapper(decode(text))
    except (ValueError, RecursionError):
        return
    raise Unusable("one JSON object, not a list of rows. Put it in [ ].")


def _refuse_wrapper(row):
    """Many programs put the rows of a file under one key of one object."""
    for name, value in row.items():
        inner = value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else []
        if len(inner) > 1 and not {"role", "from"} & set(inner[0]):  # these are the turns of one row
            raise Unusable(f"one JSON object; its {len(inner):,} rows are under {name!r}. Save that list by itself.")


def _list(source, line, size=1 << 20):
    """(number, item) of a JSON list whose [ was read already. line: the number of the line that it stands in."""
    twice, text, at, count, before, skip = [], "", 0, 0, 1, re.compile(r"[\s,]*")
    decode = _decoder(twice).raw_decode
    while True:
        at = skip.match(text, at).end()
        if at < len(text) and text[at] == "]":
            rest = text[at + 1 :].lstrip()
            while not rest and (more := source.read(size)):
                rest, line = more.lstrip(), line + more.count("\n")
            if rest:
                line += text.count("\n", 0, len(text) - len(rest))
                raise Unusable(f"line {line}: extra data after the end of the list, which has {count:,} rows.")
            return
        item, reason = None, None
        if at < len(text):
            try:
                item, end = decode(text, at)
            except RecursionError:
                raise Unusable(f"row {count + 1} is nested too deeply. Rows before it: {count:,}.") from None
            except ValueError as error:
                reason = error
            else:
                if end < len(text):  # a number at the very end could go on in the next piece
                    count, at = count + 1, end
                    yield count, Bad(NOT_JSON, None, f"the key {twice[0][:80]!r} stands twice") if twice else item
                    twice.clear()
                    continue
        more = source.read(size)
        cut = isinstance(reason, json.JSONDecodeError) and not reason.msg.startswith("Unterminated")
        if reason and (not more or len(text) > 64 * LONGEST or (cut and reason.pos < len(text) - 64)):
            end = getattr(reason, "pos", at)
            column = end - text.rfind("\n", 0, end) + (before if "\n" not in text[:end] else 0)
            where = f"line {line + text.count(chr(10), 0, end)}, column {column}"
            told = getattr(reason, "msg", str(reason))
            raise Unusable(f"{where}: not JSON: {told}; {count:,} rows before it. Was the file cut off?")
        if not more:
            raise Unusable(f"ends in the middle of the list, after {count:,} rows. Was the file cut off?")
        line, last = line + text.count("\n", 0, at), text.rfind("\n", 0, at)
        before = at - last - 1 if last >= 0 else before + at
        text, at = text[at:] + more, 0
        twice.clear()
        size = max(size, len(text))  # a long item is not tried again for each small piece


# -- keep, drop, report


def keep(found, check, source, what="row", used=None, key=None, needed=()):
    """(usable rows, report) of (place, row) pairs.

    check: a raw row -> what is kept, or raises Bad. used: the columns that it reads, or a function of a raw row that gives
    them; what kept rows hold in others is counted. key: a kept row -> (question, answer), to count repeats and questions
    with two answers. needed: columns that stop here, in one line, if no row has them.
    Report: source, what, rows, kept, places (of the kept rows), dropped (reason -> count), problems (text), unused (column ->
    kept rows that hold something there), notes (text). Rows that are kept + dropped are the rows. Raises SystemExit where nothing is kept.
    """
    rows, places, columns = [], [], {}
    report = dict(source=str(source), what=what, rows=0, dropped=Counter(), problems=[], unused=Counter(), notes=[])
    for place, row, made in checked(found, check):
        if isinstance(made, Unusable):
            report["problems"].append(f"{place}: {made}")
            continue
        report["rows"] += 1
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
        if isinstance(made, Bad):
            drop(report, place, made)
            continue
        rows.append(made)
        places.append(place)
        if used is not None:
            known = used(row) if callable(used) else used
            report["unused"].update(name for name in row if name not in known and not blank(row[name]))
    report |= {"kept": len(rows), "places": places}
    there = ", ".join(sorted(map(str, columns))) or "none"
    for name in needed:
        if set(report["dropped"]) == {MISSING} and not rows and name not in columns:
            told = "{source}: no column {name!r}. Columns found: {there}."
            raise SystemExit(screen.text(told, source=source, name=name, there=there))
    if not rows:
        told = "{source}: no usable {what} in it. Columns found: {there}."
        told = screen.text(told, source=source, what=what, there=there)
        raise SystemExit(f"{format_report(report)}\n{_shown(told)}")
    report["notes"] += [*_suspects(rows, places), *(_repeats(rows, places, key) if key else ())]
    return rows, report


def checked(found, check):
    """Yield (place, raw row, what `check` makes of it, or the Bad or Unusable that says why nothing)."""
    for place, row in found:
        if isinstance(row, (Bad, Unusable)):
            yield place, None, row
            continue
        try:
            made = check(row)
        except Bad as bad:
            made = bad
        yield place, row, made


def drop(report, place, bad):
    """Count a row that is left out, and describe it while there are few of its kind."""
    report["dropped"][bad.args[0]] += 1
    if report["dropped"][bad.args[0]] <= EXAMPLES:
        report["problems"].append(f"{place}{said(bad)}; {report['what']} dropped: {bad.args[0]}")


def said(bad) -> str:
    """ ", column x: what was found" of a Bad."""
    _, column, found = bad.args
    return f", column {column}: {found}" if column else f": {found}"


def format_report(report):
    """A report of `keep` as text."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    kept = f"{report['rows']:,} {report['what']}s, {report.get('kept', 0):,} kept"
    lines = [f"{report['source']}: {kept}" + (f"; dropped: {reasons}" if reasons else ""), *report["notes"]]
    unused = [f"{name} (in {count:,} {report['what']}s)" for name, count in report["unused"].most_common(EXAMPLES)]
    if unused:
        more = len(report["unused"]) - len(unused)
        lines.append(f"columns not used: {', '.join(unused)}" + (f" and {more:,} more" if more else ""))
    lines += report["problems"]
    for reason, count in report["dropped"].items():
        if count > EXAMPLES:
            lines.append(f"{count - EXAMPLES:,} more {report['what']}s dropped: {reason}")
    return _shown("\n".join(lines))


def _shown(text):
    return text.encode("utf-8", "backslashreplace").decode()  # a name may hold half of a surrogate pair


def blank(value):
    """Whether a column holds nothing in a row: sets that were put together have columns of each other's."""
    return value is None or value in ([], {}) or isinstance(value, str) and not value.strip()


def object_of(row, *expected) -> dict:
    """The row, if it is an object. Raises Bad."""
    if not isinstance(row, dict):
        raise Bad(TYPE, None, f"expected an object with {', '.join(expected)}, got {type(row).__name__}")
    return row


def text_of(row, name, empty=False, indented=False) -> str:
    """The text of a column, without blanks around it. Raises Bad where there is none that can be used.

    empty: an empty text will do, and so will none. indented: blanks before the first word stay if they are an indent: code.
    """
    value = row.get(name)
    if value is None and empty:
        return ""
    if value is None:
        raise Bad(MISSING, name, "null" if name in row else "not there")
    if not isinstance(value, str):
        raise Bad(TYPE, name, f"expected text, got {type(value).__name__}")
    return clean_text(value, name, empty, indented)


def clean_text(value, name, empty=False, indented=False) -> str:
    """`text_of` for a text that is at hand."""
    if fault := text_fault(value):
        raise Bad(*fault[:1], name, fault[1])
    text = value.strip()
    if not text and not empty:
        raise Bad(EMPTY, name, "no text")
    if indented and text:
        before = value[: value.index(text[0])].rpartition("\n")[2]
        text = before + text if len(before) > 1 or before == "\t" else text
    return text


def text_fault(value):
    """(reason, what was found) where a text must not come into training, else None."""
    if token := CONTROL_TOKEN.search(value):
        return CONTROL, token[0]
    if len(value) > LONGEST:
        return LONG, f"{len(value):,} characters, {LONGEST:,} at most"
    if "\0" in value or "\ufffd" in value:
        return BROKEN, "NUL" if "\0" in value else "U+FFFD: bytes that could not be read"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return BROKEN, "half of a surrogate pair"
    return None


def _suspects(rows, places):
    """Lines about texts that are kept and look wrong."""
    for what, (sign, pattern) in SUSPECT.items():
        hit = [
            place
            for place, row in zip(places, rows, strict=True)
            if isinstance(row, dict)
            and any(isinstance(text, str) and sign in text and pattern.search(text) for text in row.values())
        ]
        if hit:
            yield f"{len(hit):,} rows with {what} (the first: {hit[0].inside})"


def _repeats(rows, places, key):
    """Lines about rows that ask what an earlier row asks."""
    known, same, other = {}, [], []
    for row, place in zip(rows, places, strict=True):
        question, answer = key(row)
        first = known.setdefault(question, (answer, place))
        if first[1] is not place:
            (same if first[0] == answer else other).append((place, first[1]))
    for found, what in ((same, "repeat an earlier row"), (other, "ask what an earlier row asks and answer otherwise")):
        if found:
            yield f"{len(found):,} rows {what} (the first: {found[0][0].inside}, after {found[0][1].inside})"


# -- hold out


def split_by(rows, key, ratio, seed, ordered=False):
    """(training rows, held-out rows), in their order. Rows with the same key stay on one side, so nothing leaks.

    ordered: draw from the sorted keys, so that the order of the rows does not matter.
    """
    keys = [key(row) for row in rows]
    held = hold_out(sorted(set(keys)) if ordered else keys, ratio, seed)
    sides = {True: [], False: []}
    for row, each in zip(rows, keys, strict=True):
        sides[each in held].append(row)
    return sides[False], sides[True]


def hold_out(keys, ratio, seed) -> set:
    """The keys whose rows are held out: a share of them drawn with the seed, one at least, and one left to train on.

    keys: in an order that does not change; all rows with one key are on one side.
    """
    if not 0 < ratio < 1:
        raise SystemExit(f"--eval_ratio {ratio}: expected a share between 0 and 1, as 0.1.")
    keys = list(dict.fromkeys(keys))
    if len(keys) < 2:
        raise SystemExit(f"{len(keys)} different row: one to train on and one to hold out are needed at least.")
    random.Random(seed).shuffle(keys)
    return set(keys[: min(max(1, round(len(keys) * ratio)), len(keys) - 1)])


# -- text files


def read_text(path) -> str:
    """A text file in whichever encoding it is. Raises Unusable."""
    try:
        return Path(path).read_text(encoding=encoding_of(Path(path)), errors="replace").removeprefix("\ufeff")
    except Undecodable as error:
        raise Unusable(str(error)) from None
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}.") from None


def text_lines(file, out, what) -> tuple:
    """The lines of a text file with questions (`what` they are), without empty ones, and the file for their answers: `out`,
    or one beside it. What can be wrong is said before a model is loaded."""
    file = Path(file)
    try:
        text = read_text(file)
    except Unusable as why:
        raise SystemExit(f"{file}: {why}") from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]  # not splitlines: a form feed ends no question
    if not lines:
        raise SystemExit(f"{file}: no {what} in it; expected one a line.")
    return lines, new_file(out or file.with_name(file.name + ".answers.jsonl"))
