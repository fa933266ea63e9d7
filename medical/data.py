"""Read a folder of messy CSV files into one table of medical questions and answers.

The Chinese medical dialogue set is one folder a department, each with CSV files that people saved in whatever their
program offered: GB18030 here, UTF-8 with a byte-order mark there, `ask` in one header and `问题` in the next. A reader
that expects one encoding loses a whole department; one that replaces bad bytes trains the model on them. This one
reads what can be read, drops the rest for a named reason, and says where (file, line, column) it did so.

    python data.py --check FOLDER                  a table: file, encoding, rows, kept, dropped by reason
    python data.py FOLDER --out prepared.jsonl     the same, and the prepared rows, one JSON object a line
    python data.py FOLDER --max_chars 500          keep longer questions and answers too

What touches every row is done by Arrow on whole columns. Python loops run over files and over quotes only.
"""

import argparse
import codecs
import csv
import json
import os
import re
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

# A column is known by any of these names, in any case; where a file has two of them, the one listed first counts.
COLUMNS = {
    "question": ("question", "问题", "ask"),
    "answer": ("answer", "回答", "response"),
    "title": ("title", "标题"),
    "department": ("department", "科室"),
}
OUTPUT = ("question", "answer", "department")
# A row counts for the first of these that is true of it.
MISFIT, UNCLOSED, UNDECODABLE = "wrong number of columns", "unclosed quote", "undecodable"
EMPTY, LONG, BOILERPLATE, DUPLICATE = "empty", "too long", "boilerplate", "duplicate"
REASONS = (MISFIT, UNCLOSED, UNDECODABLE, EMPTY, LONG, BOILERPLATE, DUPLICATE)
BLOCK = 1 << 22  # bytes parsed and filtered at a time; no row may be longer, but where NULs make an endless one
EXAMPLES = 10  # problems described for each reason and file: the counts say how many, these say where to look

BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx is a zip file, .xls an OLE file
DAMAGE = r"\x{FFFD}|\x00"  # U+FFFD stands for bytes that no decoder could read, NUL is what a crashed disk leaves
IGNORED = r"[\pZ\pP\pC]+"  # blanks, punctuation, control characters: questions that differ in these alone are one

# A well-formed quoted field: its closing quote is followed by a comma, a line end or the end of the file.
QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"[ \t]*+(?=[,\n]|\Z)')
SEPARATOR = re.compile(rb",(?! )")  # CSV writers put no blank after a comma, prose does

# Answers made of nothing but this teach the model to say nothing: greetings, wishes, and "go and see a doctor" in
# words that name no disease, department, drug or test. 建议去神经内科做脑电图 names two, so it stays.
FILLER = (
    "建议|请|最好|还是|应该|应当|需要|先|你|您|患者|及时|尽快|尽早|立即|马上|去|到|前往|在|看|找|咨询|当地|附近|正规|专业|"
    "三甲|大|好|的|进行|做|一下|一个|个|详细|仔细|全面|相关|进一步|明确|检查|治疗|诊断|确诊|看看|吧|后|再"
)
SEE_A_DOCTOR = "医院|医生|大夫|就医|就诊"
PHRASES = (
    "[你您]好|谢谢|感谢|[你您]的(?:咨询|提问|信任)|很?高兴(?:能)?为[你您](?:解答|服务)|祝[你您]?(?:身体|早日)*(?:健康|康复)|"
    "希望(?:以上|我的)?(?:回答|解答|建议)?(?:能够?|可以)?(?:对[你您]有所?|给[你您])?帮助(?:到?[你您])?|"
    f"(?:{FILLER})*(?:{SEE_A_DOCTOR})(?:{FILLER}|{SEE_A_DOCTOR})*|"
    "hello|hi|thank you|thanks|for your question|get well soon|take care|"
    "(?:please |you should )?(?:see|consult|visit|go to) (?:a|your|the) (?:doctor|hospital)(?: as soon as possible)?"
)
NOTHING_ELSE = f"^(?:{IGNORED}|{PHRASES})*$"


def read_folder(folder, max_chars=200, progress=True):
    """Read FOLDER/<department>/*.csv (any depth, or one .csv file) -> (table, reports).

    table: pyarrow.Table of the string columns question, answer, department: files in sorted order, rows in theirs,
    however many threads read them. Questions and answers have 1 to max_chars characters, blanks around them removed.
    reports: one dict a file: file, encoding, rows, kept, dropped {reason: rows}, problems [one-line texts that name
    file, line and column].
    Raises SystemExit where the folder is missing, holds no .csv file, or has no usable row.
    """
    import numpy as np
    import pyarrow as pa
    from tqdm import tqdm

    root, paths = find_csv_files(folder)
    # Threads, of which Arrow makes use. Processes were measured: no faster end to end, since the rows have to travel
    # back, and with half as much memory again. Decoding holds the interpreter's lock, so more than four threads would
    # mostly wait, each with a file in memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda path: read_file(path, root, max_chars), paths)
        results = list(tqdm(results, "reading", len(paths), unit="file", disable=None if progress else True))
        parts, reports = map(list, zip(*results, strict=True))
        keep = first_of_each(pa.concat_tables(parts))
        masks = np.split(keep, np.cumsum([len(part) for part in parts])[:-1])
        parts = list(pool.map(lambda part, mask: part.select(OUTPUT).filter(pa.array(mask)), parts, masks))
    for report, part, mask in zip(reports, parts, masks, strict=True):
        report["kept"] = len(part)
        report["dropped"][DUPLICATE] = len(mask) - len(part)
        report["dropped"] = +report["dropped"]  # without the reasons that did not occur
    table = pa.concat_tables(parts)
    if not len(table):
        raise SystemExit(f"{format_reports(reports)}\n{folder}: no usable row (--max_chars {max_chars}).")
    return table, reports


def split_by_question(table, eval_rows, seed):
    """-> (train, eval): tables with no question in common; eval has eval_rows rows, or the most that whole questions
    add up to. Raises SystemExit where one of the two would be empty.

    A random split of rows puts a twentieth of the questions on both sides, and the held-out loss then praises a model
    for what it has memorised.
    """
    import numpy as np
    import pyarrow as pa

    if not 0 < eval_rows < len(table):
        raise SystemExit(f"{eval_rows} rows for evaluation out of {len(table)}: leave at least one on each side.")
    _, first, question, repeats = np.unique(
        text_keys(normalise(table["question"])), return_index=True, return_inverse=True, return_counts=True
    )
    chosen, missing = [], eval_rows
    # Ordered by their first rows before they are shuffled, because the keys differ from process to process.
    for group in np.random.default_rng(seed).permutation(np.argsort(first)):
        if repeats[group] <= missing:
            chosen.append(group)
            missing -= repeats[group]
        if not missing:
            break
    if not chosen:
        raise SystemExit(f"every question has more than {eval_rows} rows, so none can be held out: ask for more rows.")
    held_out = np.isin(question, chosen)
    return table.filter(pa.array(~held_out)), table.filter(pa.array(held_out))


def find_csv_files(folder):
    """-> (the folder that reports name files from, the sorted paths of its .csv files)."""
    root = Path(folder)
    if root.is_file():
        return root.parent, [root]
    if not root.is_dir():
        raise SystemExit(f"{folder}: no such folder. Expected {folder}/<department>/*.csv, or one .csv file.")
    # macOS zips a binary ._name.csv beside each name.csv.
    paths = [p for p in root.rglob("*") if p.suffix.lower() == ".csv" and not p.name.startswith(".") and p.is_file()]
    if not paths:
        raise SystemExit(f"{folder}: no .csv file in it or below it. Expected {folder}/<department>/*.csv.")
    return root, sorted(paths, key=Path.as_posix)


def read_file(path, root, max_chars):
    """One CSV file -> (table of question, answer, department and key, report). Bad content is reported, not raised."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    name = path.relative_to(root).as_posix()
    report = dict(file=name, encoding="-", rows=0, kept=0, dropped=Counter(), problems=[])
    parts = [pa.schema([*((column, pa.string()) for column in OUTPUT), ("key", pa.int64())]).empty_table()]

    def unusable(why):
        report.update(rows=0, dropped=Counter(), problems=[f"{name}: {why}"])
        return parts[0], report

    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(WORKBOOKS):
        return unusable("an Excel workbook, not CSV. Open it and save it as 'CSV UTF-8'.")
    encoding, body, damaged = read_as_utf8(path, head)
    report["encoding"] = encoding
    header, first_line = cut_header(body)
    columns = find_columns(header)
    for needed in ("question", "answer"):
        if needed not in columns:
            found = ", ".join(column[:20] for column in header[:20]) or "none, the file is empty"
            return unusable(f"no {needed} column ({', '.join(COLUMNS[needed])}). Columns found: {found}")

    sound, unclosed, inside = cut_unclosed_quotes(body, len(header))
    misfits, damages = [], []
    try:
        wanted = range(len(header)) if damaged else columns.values()
        for batch in parse(sound, len(header), wanted, misfits, len(sound) + 1 if damaged else BLOCK):
            table = pa.Table.from_batches([batch])
            if damaged:
                hits = np.stack([pc.match_substring_regex(column, DAMAGE).to_numpy() for column in table.columns])
                damages += [(report["rows"] + row, hits[:, row].argmax()) for row in np.flatnonzero(hits.any(axis=0))]
                table = table.filter(pa.array(~hits.any(axis=0)))
            report["rows"] += len(batch)
            parts.append(prepare(table, columns, path.absolute().parent.name, max_chars, report["dropped"]))
    except pa.ArrowInvalid as error:
        return unusable(f"can't be read as CSV: {error}")
    report["rows"] += len(misfits) + len(unclosed)
    if not report["rows"]:
        return unusable("a header and no rows.")

    lines = first_line + record_lines(body, inside) if misfits or damages else np.zeros(0, int)
    fitting = np.delete(lines, [row for row, _ in misfits])
    width = len(header)
    for reason, found in {
        MISFIT: [f"line {lines[row]}: {count} columns where the header has {width}" for row, count in misfits],
        UNCLOSED: [
            f"line {first_line + at}, column {header[column]}: a quote is opened here" for at, column in unclosed
        ],
        UNDECODABLE: [f"line {fitting[row]}, column {header[column]}: not {encoding}" for row, column in damages],
    }.items():
        report["dropped"][reason] += len(found)
        report["problems"] += [f"{name}: {where}; row dropped: {reason}" for where in found[:EXAMPLES]]
        if len(found) > EXAMPLES:
            report["problems"].append(f"{name}: {len(found) - EXAMPLES:,} more rows dropped: {reason}")
    return pa.concat_tables(parts), report


def prepare(table, columns, folder, max_chars, dropped):
    """Parsed rows -> the table of OUTPUT and key of those that pass the filters; counts the others in `dropped`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    text = {column: pc.utf8_trim_whitespace(table[str(index)]) for column, index in columns.items()}
    untold = pc.is_in(text["question"], pa.array(["", "无"]))  # "none", written by those whose title says it all
    text["question"] = pc.if_else(untold, text.get("title", ""), text["question"])
    department = text.get("department", pa.chunked_array([pa.repeat("", len(table))]))
    text["department"] = pc.if_else(pc.equal(department, ""), folder, department)

    lengths = [pc.utf8_length(text[column]).to_numpy() for column in ("question", "answer")]
    keep = np.ones(len(table), bool)
    for reason, bad in {
        EMPTY: np.minimum(*lengths) == 0,
        LONG: np.maximum(*lengths) > max_chars,
        BOILERPLATE: pc.match_substring_regex(text["answer"], NOTHING_ELSE, ignore_case=True).to_numpy(),
    }.items():
        dropped[reason] += np.count_nonzero(keep & bad)
        keep &= ~bad
    table = pa.table({column: text[column] for column in OUTPUT}).filter(pa.array(keep))
    return table.append_column("key", pa.array(text_keys(table["answer"])))


def read_as_utf8(path, head):
    """-> (encoding, the file as a bytearray of UTF-8 with \\n for every line end, whether U+FFFD or NUL are in it).

    U+FFFD is put where bytes can't be decoded. Judged by the whole file: many are ASCII for a long way.
    """
    encoding = next((encoding for bom, encoding in BOMS if head.startswith(bom)), None)
    for utf16 in ("utf-16-le", "utf-16-be"):  # in which the header's comma has a NUL; but a crash leaves some anywhere
        if not encoding and b"\0" in head and find_columns(head.decode(utf16, "replace").split("\n")[0].split(",")):
            encoding = utf16
    if not encoding:
        try:
            return "utf-8", *transcode(path, "utf-8", "strict")
        except UnicodeDecodeError:
            encoding = "utf-8" if resembles_utf8(path.read_bytes()) else "gb18030"
    return encoding, *transcode(path, encoding, "replace")


def transcode(path, encoding, errors):
    # In small pieces: the text of a whole file and its UTF-8 would need four times the file's size.
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    body, damaged, piece = bytearray(), False, True
    with open(path, "rb") as file:
        while piece:
            piece = file.read(1 << 16)
            text = decoder.decode(piece, final=not piece)
            damaged = damaged or "\ufffd" in text or "\0" in text
            body += text.encode()
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return body, damaged


def resembles_utf8(data):
    """True where samples from all over the file hold more UTF-8 characters than errors.

    One broken byte must not make a UTF-8 file GB18030: its bytes often make sense as that, if none to a reader.
    """
    sample = b"".join(data[at : at + 256] for at in range(0, len(data), max(256, len(data) // 1000)))
    text = (data if sample.isascii() else sample).decode("utf-8", "replace")
    return len(text) - len(text.encode("ascii", "ignore")) > 2 * text.count("\ufffd")


def cut_header(body):
    """Take the header off a file's bytes -> (column names, the number of the line after it)."""
    end = line_end(body, re.match(rb"\s*", body).end())
    line = body[:end].decode().strip()
    next_line = body.count(b"\n", 0, end) + 2
    del body[: end + 1]
    cells = next(csv.reader([line[:10_000]]), [])
    return [cell.replace("\ufeff", "").replace("\0", "").strip() for cell in cells], next_line


def find_columns(header):
    """Column names -> {question, answer, title, department: position} of those that are there."""
    names = [name.strip().casefold() for name in header]
    found = {column: [names.index(word) for word in words if word in names] for column, words in COLUMNS.items()}
    return {column: positions[0] for column, positions in found.items() if positions}


def cut_unclosed_quotes(body, width):
    """-> (body without the rows whose quote is not closed, [(line, column) of each such quote, from 0], spans
    (start, end) of body in which no row starts: those cut, and quoted fields with line breaks).

    A parser that meets a stray quote takes in all that follows up to the next one: rows are gone, and with an even
    number of strays no parser complains. So each quoted field must be closed as CSV demands, and where it runs over
    line breaks its lines must not look like rows of their own.
    """
    kept, unclosed, inside = [], [], []
    done = line_number = counted = 0  # body[:done] is dealt with; body[:counted] has line_number line ends
    row = tail = 0  # where the latest row with a quoted line break starts, and where its last line does
    at = body.find(b'"')
    while at >= 0:
        end = at + 1
        if at == 0 or body[at - 1] in b",\n":  # any other quote stands in unquoted text and means itself
            line = body.rfind(b"\n", 0, at) + 1
            start = row if line == tail else line
            field = QUOTED.match(body, at)
            if field and (b"\n" not in field[0] or not holds_rows(body[line : line_end(body, field.end())], width)):
                end = field.end()
                if b"\n" in field[0]:
                    row, tail = start, body.rfind(b"\n", 0, end) + 1
                    inside.append((at, end))
            else:
                end = line_end(body, at) + 1
                line_number, counted = line_number + body.count(b"\n", counted, at), at
                column = QUOTED.sub(b"", body[start:at]).count(b",")
                unclosed.append((line_number, min(column, width - 1)))
                kept.append(body[done:start])
                inside.append((start, end))
                done = end
        at = body.find(b'"', end)
    return b"".join((*kept, body[done:])) if kept else body, unclosed, inside


def line_end(body, at):
    end = body.find(b"\n", at)
    return len(body) if end < 0 else end


def holds_rows(lines, width):
    """True where the lines of one quoted field, most of them and the first and last, would be rows by themselves."""
    whole = [len(SEPARATOR.split(line)) == width for line in lines.split(b"\n")]
    return whole[0] and whole[-1] and 2 * sum(whole) > len(whole)


def record_lines(body, inside):
    """-> the line number, from 0, of each row that the parser sees."""
    import numpy as np

    breaks = np.flatnonzero(np.frombuffer(body, np.uint8) == ord("\n"))
    starts = np.append(0, breaks + 1)
    is_row = np.append(breaks, len(body)) > starts  # the parser skips empty lines
    for first, last in np.searchsorted(starts, inside).reshape(-1, 2):
        is_row[first:last] = False
    return np.flatnonzero(is_row)


def parse(body, width, wanted, misfits, block_size):
    """Yield batches of the wanted columns, named by position; add (row, columns) to misfits where these don't fit."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    def skip(row):
        misfits.append((row.number - 1, row.actual_columns))
        return "skip"

    if not body.strip(b"\n"):  # Arrow takes it for an error
        return
    names = [str(column) for column in range(width)]
    yield from arrow_csv.open_csv(
        pa.py_buffer(body),
        # One thread: only then does Arrow number the rows it hands to `skip`.
        arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=block_size),
        arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        arrow_csv.ConvertOptions(
            check_utf8=False,  # it was encoded here
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[str(column) for column in wanted],
        ),
    )


def normalise(column):
    """What is left of a text when case, blanks and punctuation are not looked at; questions are the same by this."""
    import pyarrow.compute as pc

    return pc.replace_substring_regex(pc.ascii_lower(column), IGNORED, "")


def text_keys(column):
    """A column of texts -> array of 64-bit hashes: what is equal has equal ones, in this process."""
    import numpy as np
    import pyarrow as pa

    # As bytes, which needs half the time: they are not decoded.
    keys = (map(hash, chunk.cast(pa.binary()).to_pylist()) for chunk in column.chunks)
    return np.fromiter(chain.from_iterable(keys), np.int64, len(column))


def first_of_each(table):
    """-> boolean array: False for a row whose answer and normalised question stood in an earlier row."""
    import numpy as np
    import pyarrow as pa

    key = table["key"].to_numpy()
    keys, counts = np.unique(key, return_counts=True)
    repeated = np.isin(key, keys[counts > 1])  # few, and only their questions are normalised
    pairs = 3 * key[repeated] + text_keys(normalise(table["question"].filter(pa.array(repeated))))
    keep = ~repeated
    keep[np.flatnonzero(repeated)[np.unique(pairs, return_index=True)[1]]] = True
    return keep


def format_reports(reports):
    """The reports as an aligned table with totals, and the problems below it."""
    dropped = sum((report["dropped"] for report in reports), Counter())
    total = dict(file="all", encoding="", dropped=dropped, **{k: sum(r[k] for r in reports) for k in ("rows", "kept")})
    reasons = [reason for reason in REASONS if dropped[reason]]
    table = [("file", "encoding", "rows", "kept", *reasons)]
    for report in (*reports, total):
        counts = (report["rows"], report["kept"], *(report["dropped"][reason] for reason in reasons))
        table.append((report["file"], report["encoding"], *(f"{count:,}" for count in counts)))

    def width(text):  # Chinese takes two columns of a terminal
        return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)

    widths = [max(map(width, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        pads = [" " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)]
        cells = [cell + pad if at < 2 else pad + cell for at, (cell, pad) in enumerate(zip(row, pads, strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines + [problem for report in reports for problem in report["problems"]])


def write_jsonl(table, out):
    """Write one JSON object a row, under another name until it is complete."""
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            for batch in table.to_batches():
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
        os.replace(temporary, out)
    except OSError as error:
        raise SystemExit(f"can't write {out}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "folder",
        nargs="?",
        help="folder of CSV files, or one CSV file (default: MEDICAL_DATA_DIR, else DATA_DIR/medical)",
    )
    parser.add_argument("--check", metavar="FOLDER", nargs="?", const="", help="the same folder, named after a flag")
    parser.add_argument("--max_chars", type=int, default=200, help="longest question and answer (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the prepared rows to this new file")
    args = parser.parse_args(argv)
    folder = args.check or args.folder
    if args.check and args.folder:
        parser.error("give the folder once")
    if args.max_chars < 1:
        parser.error("--max_chars must be 1 or more")
    if args.out and args.out.exists():
        raise SystemExit(f"{args.out} exists and is not overwritten: give another name, or move it away.")
    if not folder:
        from common.paths import data_dir, load_env

        load_env()
        folder = data_dir()

    table, reports = read_folder(folder, args.max_chars)
    print(format_reports(reports))
    if args.out:
        write_jsonl(table, args.out)
        print(f"{len(table):,} rows written to {args.out}")


if __name__ == "__main__":
    main()
