# Generated from common/tables.py: edit that file, then run `make sync`.
"""CSV files and Excel workbooks as rows of text, honest about what cannot be read.

People save CSV in whatever their program offers, cut off, with NULs of a crashed disk, with a quote that is never closed.
Workbooks claim a wrong size, show a percent where 0.35 is stored, and hold #N/A. What is sound is kept; what is not costs
one row, and is named with its line and column.
"""

import codecs
import csv
import re
import zipfile
import zlib
from decimal import Decimal
from pathlib import Path

from common.text import Undecodable, encoding_of

# A row that is none counts for the first of these that is true of it.
MISFIT, UNCLOSED, UNDECODABLE = "wrong number of columns", "unclosed quote", "undecodable"
ERROR_CELL, FORMULA, LAYOUT = "error cell", "formula without a value", "cell format"
BLOCK = 1 << 22  # bytes parsed and filtered at a time; no row may be longer, but where NULs make an endless one
WIDEST = 1000  # columns; a header with more of them is none
UNPACKED = 300e6  # bytes, and below cells: what a workbook may hold
CELLS, LAID_OUT = 5_000_000, 300_000  # in all, and in a sheet whose number formats must be looked at

WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx is a zip file, .xls an OLE file
DAMAGE = r"\x{FFFD}|\x00"  # U+FFFD stands for bytes that no decoder could read, NUL is what a crashed disk leaves

# A well-formed quoted field: its closing quote is followed by a comma, a line end or the end of the file.
QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"[ \t]*+(?=[,\n]|\Z)')
SEPARATOR = re.compile(rb",(?! )")  # CSV writers put no blank after a comma, prose does
FILLED_CELL = re.compile(rb'<(?:\w+:)?c\s[^<>]*?\br="([A-Z]{1,3})(\d{1,7})"[^<>/]*>')
DATE_PART = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|AM/PM|上午/下午|y+|m+|d+|h+|s+|.', re.IGNORECASE)


class Unusable(Exception):
    """Nothing, or nothing more, can be read from a file or a sheet; the message says why."""


class Bad(Exception):
    """A row that cannot be used: (reason, column or None, what was found)."""


# -- CSV


def csv_rows(path, names, needed):
    """(line number, row) of a CSV file in the file's order; a row is a dict of texts, or the Bad that says why not.

    names, needed: as for `csv_blocks`. Columns that no one of `names` knows stand under their own names. Rows without any
    text are left out. Raises Unusable.
    """
    report = {}
    tables = list(csv_blocks(path, names, needed, report, every=True))
    rows = (row for table in tables for row in table.to_pylist())
    found = [*zip(report["lines"].tolist(), rows, strict=True), *((line, Bad(*bad)) for line, *bad in report["bad"])]
    for line, row in sorted(found, key=lambda each: each[0]):
        if isinstance(row, Bad) or any(text.strip() for text in row.values()):
            yield line, row


def csv_blocks(path, names, needed, report, every=False):
    """Yield tables of a CSV file's sound rows: string columns, of `names` those that the file has, or every one.

    names: column -> the words that head it, in any case; where a file has two of them, the one listed first counts.
    needed: columns without which a file is of no use. report: a dict that gets encoding, angles (whether there is a "<"), rows,
    bad (a list of line, reason, column, what was found) and, with `every`, lines: the number of each row's line.
    Raises Unusable.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    with open(path, "rb") as file:
        if file.read(4).startswith(WORKBOOKS):
            raise Unusable("an Excel workbook, not CSV. Open it and save it as 'CSV UTF-8'.")
    report |= {"encoding": "-", "rows": 0, "bad": []}
    report["encoding"], body, damaged, report["angles"] = read_as_utf8(path)
    header, first_line = cut_header(body)
    columns = find_columns(header, names, needed)
    if every:
        columns = all_columns(header, columns)

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
        raise Unusable(f"can't be read as CSV: {' '.join(str(error).split())[:200]}") from None
    report["rows"] += len(misfits) + len(unclosed)
    if not report["rows"]:
        raise Unusable("a header and no rows.")

    numbers = first_line + record_lines(body, inside) if every or misfits or damages else np.zeros(0, int)
    fitting = np.delete(numbers, [row for row, _ in misfits])
    report["lines"] = np.delete(fitting, [row for row, _ in damages])
    width = len(header)
    report["bad"] = [
        *((int(numbers[at]), MISFIT, None, f"{count} columns where the header has {width}") for at, count in misfits),
        *((first_line + at, UNCLOSED, header[column], "a quote is opened here") for at, column in unclosed),
        *((int(fitting[at]), UNDECODABLE, header[column], f"not {report['encoding']}") for at, column in damages),
    ]


def read_as_utf8(path):
    """-> (encoding, the file as a bytearray of UTF-8 with \\n for every line end, whether U+FFFD or NUL are in it, whether <).

    U+FFFD is put where bytes can't be decoded. Raises Unusable.
    """
    try:
        encoding = encoding_of(path)
    except Undecodable as error:
        raise Unusable(str(error)) from None
    # In small pieces: the text of a whole file and its UTF-8 would need four times the file's size.
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    body, damaged, angles, piece = bytearray(), False, False, True
    with open(path, "rb") as file:
        while piece:
            piece = file.read(1 << 16)
            text = decoder.decode(piece, final=not piece)
            damaged = damaged or "\ufffd" in text or "\0" in text
            angles = angles or "<" in text
            body += text.encode("utf-8", "replace")
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return encoding, body, damaged, angles


def cut_header(body):
    """Take the header off a file's bytes -> (column names, the number of the line after it)."""
    end = line_end(body, re.match(rb"\s*", body).end())
    line = body[:end].decode().strip()
    next_line = body.count(b"\n", 0, end) + 2
    del body[: end + 1]
    cells = next(csv.reader([line[:10_000]]), [])
    if len(cells) > WIDEST:
        raise Unusable(f"its first line has {len(cells):,} columns; at most {WIDEST:,} can be read.")
    return [cell.replace("\ufeff", "").replace("\0", "").strip() for cell in cells], next_line


def find_columns(header, names, needed):
    """Column names -> {column: position} of those of `names` that are there. Raises Unusable where one of `needed` is not."""
    cells = [" ".join(cell.split()).casefold() for cell in header]
    found = {column: [word for word in words if word in cells] for column, words in names.items()}
    for words in found.values():
        if words and cells.count(words[0]) > 1:
            raise Unusable(f"the column {words[0]} is there twice.")
    if missing := [column for column in needed if not found[column]]:
        known = " and ".join(f"no {name} column ({', '.join(names[name])})" for name in missing)
        there = ", ".join(name[:20] for name in header[:20] if name) or "none, it is empty"
        raise Unusable(f"{known}. Columns found: {there}")
    return {column: cells.index(words[0]) for column, words in found.items() if words}


def all_columns(header, columns):
    """`columns`, and those of the header that are not among them, under their own names. Raises Unusable."""
    taken, more = set(columns.values()), {}
    for at, name in enumerate(header):
        if at not in taken and name:
            if name in columns or name in more:
                raise Unusable(f"the column {name} is there twice.")
            more[name] = at
    return columns | more


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
                    inside.append((at + 1, end))  # the line that the field begins in is the row's own
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

    if not re.search(rb"[^\n]", body):  # Arrow takes it for an error
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


# -- workbooks


def workbook_rows(path, names, needed, sheet=None):
    """(sheet, row number, row) of a workbook's visible sheets, or of the one named; a row is a dict of texts as they are
    shown, the Bad that says why not, or, in place of a whole sheet, the Unusable.

    Read by python-calamine, which goes by the data and not by the size that the file claims. What that does not see, error
    cells, unsaved formulas and number formats, comes from openpyxl in one pass that ends with the data.
    Raises Unusable.
    """
    check_workbook(path)
    from python_calamine import CalamineError, CalamineWorkbook, SheetVisibleEnum

    try:
        book = CalamineWorkbook.from_path(str(path))
        pages = book.sheets_metadata
    except (CalamineError, OSError, ValueError) as error:
        raise Unusable(f"not a complete workbook ({' '.join(str(error).split())[:100]}). Save it again.") from None
    if sheet and sheet not in book.sheet_names:
        raise Unusable(f"no sheet {sheet!r}. Sheets: {', '.join(book.sheet_names)}.")
    for page in pages:
        if sheet and page.name != sheet:
            continue
        if not sheet and page.visible != SheetVisibleEnum.Visible:
            yield page.name, None, Unusable("a hidden sheet: not read. Name it to read it.")
            continue
        try:
            grid = book.get_sheet_by_name(page.name).to_python(skip_empty_area=False)
            yield from sheet_rows(path, page.name, grid, names, needed)
        except Unusable as why:
            yield page.name, None, why
        except (CalamineError, ValueError, OverflowError) as error:
            yield page.name, None, Unusable(f"can't be read ({' '.join(str(error).split())[:100]}). Save it again.")


def sheet_rows(path, sheet, grid, names, needed):
    """(sheet, row number, row) below the first row that is not empty, which has the columns' names."""
    top = next((at for at, values in enumerate(grid) if any(value != "" for value in values)), None)
    if top is None:
        return
    header = [str(value) for value in grid[top]]
    columns = all_columns(header, find_columns(header, names, needed))
    rows = range(top + 1, len(grid))
    doubtful = [at for at in rows if any(not isinstance(grid[at][c], str) or not grid[at][c] for c in columns.values())]
    cells, formulas = {}, {}
    if doubtful and len(grid) * len(header) > LAID_OUT:
        raise Unusable(
            f"over {LAID_OUT:,} cells, some of them no text: save it as CSV UTF-8, which holds what is shown."
        )
    if doubtful:
        cells, formulas = (seen_cells(path, sheet, doubtful[-1] + 1, values) for values in (True, False))
    for at in rows:
        row, bad = {}, None
        for name, column in columns.items():
            value = grid[at][column]
            if isinstance(value, str) and value:
                row[name] = value
                continue
            seen, layout = cells.get((at + 1, column + 1), (value, "General"))
            text = shown(value if value != "" else seen, layout)
            formula = formulas.get((at + 1, column + 1), ("",))[0]
            if isinstance(seen, str) and seen.startswith("#") and value == "":
                bad = bad or Bad(ERROR_CELL, name, seen)
            elif not text and text is not None and isinstance(formula, str) and formula.startswith("="):
                bad = bad or Bad(FORMULA, name, f"{formula[:40]}: open the workbook, let it calculate, and save it")
            elif text is None:
                bad = bad or Bad(LAYOUT, name, f"shown as {layout!r}, which is not understood; format it as text")
            row[name] = text or ""
        if bad or any(text.strip() for text in row.values()):
            yield sheet, at + 1, bad or row


def seen_cells(path, sheet, last, values):
    """{(row, column): (value, number format)} of a sheet's rows up to `last`, as openpyxl sees them; formulas in place of
    values without `values`. Empty where openpyxl cannot read the workbook (strict OOXML)."""
    import warnings

    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which do not matter here
            book = openpyxl.load_workbook(path, read_only=True, data_only=values)
            page = book[sheet]
            page.reset_dimensions()
            found = [cell for row in page.iter_rows(max_row=last) for cell in row if cell.value is not None]
            cells = {(cell.row, cell.column): (cell.value, cell.number_format) for cell in found}
            book.close()
            return cells
    except Exception:  # openpyxl raises whatever it meets in a workbook that is not quite one
        return {}


def shown(value, layout):
    """A cell's text as a spreadsheet program shows it; None where its number format is not understood."""
    from openpyxl.styles.numbers import is_date_format

    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float):  # a date or a time
        return date_text(value, layout) if is_date_format(layout) else str(value)
    number = Decimal(repr(value))
    number = number.to_integral_value() if number == number.to_integral_value() else number
    plain = re.sub(r'\[[A-Za-z]+\]|_.|\*.|\\(?=.)|"', "", layout.split(";")[0]).strip()
    if plain in ("General", "@", "通用格式"):
        return format(number, "f")
    if re.fullmatch(r"0{2,}", plain):
        return format(number.to_integral_value(), "f").zfill(len(plain))  # 2 shown as 002
    if form := re.fullmatch(r"([^\d#,.%?/E]*)(#,##)?[#0]?0?(?:\.(0+))?(%?)([^\d#,.%?/E]*)", plain):
        before, thousands, digits, percent, after = form.groups()
        number = format(number * 100 if percent else number, f"{',' if thousands else ''}.{len(digits or '')}f")
        return f"{before}{number}{percent}{after}".strip()
    return None


def date_text(value, layout):
    """A date, a time or both by a number format such as yyyy/m/d or h:mm."""
    parts, text = DATE_PART.findall(layout.split(";")[0]), ""
    half = any(part.upper() == "AM/PM" for part in parts)
    letters = [part[0].lower() for part in parts if part[0].lower() in "ymdhs"]
    seen = 0
    for part in parts:
        kind = part[0].lower()
        if part[0] in '"\\':
            text += part.strip('"\\')
        elif part[0] == "[":
            continue
        elif kind in "ymdhs":
            near = letters[max(0, seen - 1) : seen] + letters[seen + 1 : seen + 2]
            name = {"y": "year", "d": "day", "h": "hour", "s": "second"}.get(kind, "month")
            name = "minute" if kind == "m" and (near[:1] == ["h"] and seen or "s" in near[-1:]) else name
            number = getattr(value, name, 0)
            number = (number - 1) % 12 + 1 if half and name == "hour" else number
            text += str(number)[-2 if len(part) < 3 and kind == "y" else 0 :].zfill(min(len(part), 2))
            seen += 1
        else:
            text += ("AM" if value.hour < 12 else "PM") if len(part) > 2 else part
    return text


def check_workbook(path):
    """The names inside an .xlsx. Raises Unusable for what is none, is locked, or would unpack to a bomb."""
    with Path(path).open("rb") as file:
        if file.read(4) == WORKBOOKS[1]:
            raise Unusable("password-protected, or an old .xls under a new name. Take the password off, save as .xlsx.")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if (size := sum(part.file_size for part in parts)) > UNPACKED:
                raise Unusable(
                    f"unpacks to {size / 1e6:,.0f} MB, {UNPACKED / 1e6:.0f} are allowed. Save it as CSV UTF-8."
                )
            names = [part.filename for part in parts]
            if "xl/workbook.xml" not in names:
                raise Unusable("a zip file, but no .xlsx (no xl/workbook.xml in it). Save it as .xlsx.")
            for name in names:
                if name.endswith((".xml", ".rels")):
                    check_part(archive, name)
            return names
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, zlib.error):
        raise Unusable("not an .xlsx file, or cut off. Save it as .xlsx in Excel or WPS.") from None


def check_part(archive, name):
    """No DOCTYPE, and no cells so far apart that a table which holds them all would not fit in memory."""
    high = wide = filled = 0
    with archive.open(name) as part:
        piece = part.read(1 << 20)
        if b"<!DOCTYPE" in piece[:4096]:  # Excel writes none; entities in one can be a bomb, too
            raise Unusable(f"{name} has a DOCTYPE, which no spreadsheet program writes.")
        while name.startswith("xl/worksheets/") and piece:
            cut = piece.rfind(b"<") + 1 or len(piece)
            for cell in FILLED_CELL.finditer(piece, 0, cut):
                letters, row = cell.groups()
                filled += 1
                high, wide = max(high, int(row)), max(wide, sum((c - 64) * 26**n for n, c in enumerate(letters[::-1])))
            more = part.read(1 << 20)
            piece = piece[cut - 1 :] + more if more else b""
    if max(filled, high * wide) > CELLS:
        raise Unusable(
            f"its cells reach over {high:,} rows and {wide:,} columns, {CELLS:,} cells are allowed. Save it as CSV UTF-8."
        )
