"""From the bytes of one CSV file to rows of text, honest about what can't be read.

People save CSV in whatever their program offers: GB18030, UTF-8 with or without a byte-order mark, UTF-16. Some of the
files are cut off, hold NULs of a crashed disk, or open a quote that is never closed. What is sound is kept, what is not
costs one row, and is named with line and column.
"""

import codecs
import csv
import re

# A row that is none counts for the first of these that is true of it.
MISFIT, UNCLOSED, UNDECODABLE = "wrong number of columns", "unclosed quote", "undecodable"
BLOCK = 1 << 22  # bytes parsed and filtered at a time; no row may be longer, but where NULs make an endless one
EXAMPLES = 10  # problems described for each reason and file: the counts say how many, these say where to look

BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx is a zip file, .xls an OLE file
DAMAGE = r"\x{FFFD}|\x00"  # U+FFFD stands for bytes that no decoder could read, NUL is what a crashed disk leaves

# A well-formed quoted field: its closing quote is followed by a comma, a line end or the end of the file.
QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"[ \t]*+(?=[,\n]|\Z)')
SEPARATOR = re.compile(rb",(?! )")  # CSV writers put no blank after a comma, prose does


class Unusable(Exception):
    """Nothing can be read from a file; the message says why."""


def read_blocks(path, names, needed, report):
    """Yield tables of a CSV file's sound rows: string columns, of `names` those that the file has.

    names: column -> the words that head it, in any case; where a file has two of them, the one listed first counts.
    needed: columns without which a file is of no use. report: a dict whose encoding, rows, dropped (a Counter) and
    problems (texts that name file, line and column) are filled in; its file is the name to call it by.
    Raises Unusable.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(WORKBOOKS):
        raise Unusable("an Excel workbook, not CSV. Open it and save it as 'CSV UTF-8'.")
    report["encoding"], body, damaged = read_as_utf8(path, head, names)
    header, first_line = cut_header(body)
    columns = find_columns(header, names)
    for column in needed:
        if column not in columns:
            found = ", ".join(name[:20] for name in header[:20]) or "none, the file is empty"
            raise Unusable(f"no {column} column ({', '.join(names[column])}). Columns found: {found}")

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
            yield table.select([str(at) for at in columns.values()]).rename_columns(list(columns))
    except pa.ArrowInvalid as error:
        raise Unusable(f"can't be read as CSV: {error}") from None
    report["rows"] += len(misfits) + len(unclosed)
    if not report["rows"]:
        raise Unusable("a header and no rows.")

    lines = first_line + record_lines(body, inside) if misfits or damages else np.zeros(0, int)
    fitting = np.delete(lines, [row for row, _ in misfits])
    width = len(header)
    for reason, found in {
        MISFIT: [f"line {lines[row]}: {count} columns where the header has {width}" for row, count in misfits],
        UNCLOSED: [
            f"line {first_line + at}, column {header[column]}: a quote is opened here" for at, column in unclosed
        ],
        UNDECODABLE: [
            f"line {fitting[row]}, column {header[column]}: not {report['encoding']}" for row, column in damages
        ],
    }.items():
        report["dropped"][reason] += len(found)
        report["problems"] += [f"{report['file']}: {where}; row dropped: {reason}" for where in found[:EXAMPLES]]
        if len(found) > EXAMPLES:
            report["problems"].append(f"{report['file']}: {len(found) - EXAMPLES:,} more rows dropped: {reason}")


def read_as_utf8(path, head, names):
    """-> (encoding, the file as a bytearray of UTF-8 with \\n for every line end, whether U+FFFD or NUL are in it).

    U+FFFD is put where bytes can't be decoded. Judged by the whole file: many are ASCII for a long way.
    """
    encoding = next((encoding for bom, encoding in BOMS if head.startswith(bom)), None)
    for utf16 in ("utf-16-le", "utf-16-be"):  # in which the header's comma has a NUL; but a crash leaves some anywhere
        if not encoding and b"\0" in head:
            header = head.decode(utf16, "replace").split("\n")[0].split(",")
            encoding = utf16 if find_columns(header, names) else None
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


def find_columns(header, names):
    """Column names -> {column: position} of those of `names` that are there."""
    cells = [cell.strip().casefold() for cell in header]
    found = {column: [cells.index(word) for word in words if word in cells] for column, words in names.items()}
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
