"""The spreadsheet: an .xlsx, .csv or .jsonl file -> rows of text, or one line that says what is wrong with the file."""

import contextlib
import csv
import io
import json
import re
import warnings
import zipfile
from collections import Counter
from pathlib import Path

from common.paths import data_dir

SHEET_FILE = "qwen-vl-train.xlsx"  # the course's name for it: what is looked for in a folder
COLUMNS = ("id", "prompt", "image", "response")
MAX_UNPACKED_MB = 300  # of a spreadsheet, which is a zip file


def read_table(source, sheet=None):
    """Rows of a spreadsheet as dicts of texts by lower-case header, with "row" (its number in the file) and "note".

    Everything is text: 002 stays "002", NA stays "NA". Empty rows are left out.
    Raises SystemExit where the file cannot be read, with what it seems to be.
    """
    path = find_file(source)
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return path, _read_jsonl(path)
    if kind == ".csv":
        grid = list(csv.reader(io.StringIO(_decoded(path), newline="")))
        rows = [(number, {}, line) for number, line in enumerate(grid, 1)]
    elif kind == ".xlsx":
        rows = _read_xlsx(path, sheet)
    else:
        raise SystemExit(
            f"{path}: expected .xlsx, .csv or .jsonl.{' Save it as .xlsx.' if kind in ('.xls', '.et') else ''}"
        )
    if sheet and kind != ".xlsx":
        raise SystemExit(f"{path}: --sheet {sheet} is for .xlsx files.")
    if not rows:
        raise SystemExit(f"{path}: it is empty.")
    headers = [" ".join(str(text).split()).casefold() for text in rows[0][2]]
    missing = [name for name in COLUMNS if name not in headers]
    if missing:
        found = ", ".join(filter(None, headers)) or "none"
        raise SystemExit(f"{path}: no column {', '.join(missing)} in its first row. Columns found: {found}.")
    twice = [name for name, count in Counter(filter(None, headers)).items() if count > 1]
    if twice:
        raise SystemExit(f"{path}: the column {twice[0]} is there twice.")
    made = []
    for number, notes, line in rows[1:]:
        row = {name: text.strip() for name, text in zip(headers, line, strict=False) if name}
        if any(row.values()) or notes:
            made.append({name: row.get(name, "") for name in headers if name} | {"row": number, "note": notes})
    if not made:
        raise SystemExit(f"{path}: no rows under the headers.")
    return path, made


def find_file(source):
    path = Path(source or data_dir()).expanduser()
    if path.is_dir():
        if not (path / SHEET_FILE).is_file():
            raise SystemExit(f"{path}: no {SHEET_FILE} in this folder. Name the file with --data.")
        path = path / SHEET_FILE
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Give one with --data, or draw one: python render.py --out pictures")
    return path


def _decoded(path):
    content = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):  # Excel on a Chinese Windows saves CSV in GBK
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(encoding)
    raise SystemExit(f"{path}: neither UTF-8 nor GB18030. Save it as CSV UTF-8.")


def _read_jsonl(path):
    rows = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SystemExit(f"{path}: line {number}, column {error.colno}: not JSON: {error.msg}.") from None
        if not isinstance(row, dict):
            raise SystemExit(f"{path}: line {number}: expected an object with {', '.join(COLUMNS)}.")
        row = {str(name).strip().casefold(): "" if value is None else str(value).strip() for name, value in row.items()}
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise SystemExit(f"{path}: line {number}: no {', '.join(missing)}.")
        rows.append(row | {"row": number, "note": {}})
    if not rows:
        raise SystemExit(f"{path}: it is empty.")
    return rows


def _read_xlsx(path, sheet):
    """(row number, {column index: note}, texts) of each row of a sheet."""
    names = _check_zip(path)
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which do not matter here
            values = openpyxl.load_workbook(path, data_only=True)
            formulas = openpyxl.load_workbook(path)
    except (InvalidFileException, KeyError, ValueError, TypeError, zipfile.BadZipFile, SyntaxError) as error:
        raise SystemExit(
            f"{path}: not a complete xlsx file ({type(error).__name__}). Open it and save it again."
        ) from None
    if sheet and sheet not in values.sheetnames:
        raise SystemExit(f"{path}: no sheet {sheet!r}. Sheets: {', '.join(values.sheetnames)}.")
    page = values[sheet] if sheet else values.worksheets[0]
    raw = formulas[page.title]
    anchored = {image.anchor._from.row + 1 for image in getattr(raw, "_images", ()) if hasattr(image.anchor, "_from")}
    made = []
    for number, cells in enumerate(page.iter_rows(), 1):
        texts, notes = [], {}
        for cell in cells:
            text, formula = _as_text(cell), raw.cell(number, cell.column).value
            if isinstance(formula, str) and "DISPIMG(" in formula.upper():
                text, notes["embedded"] = "", True
            elif not text and isinstance(formula, str) and formula.startswith("="):
                notes["formula"] = f"{cell.coordinate} holds a formula whose value was not saved"
            texts.append(text)
        if number in anchored or (any(name.startswith("xl/cellimages") for name in names) and notes.get("embedded")):
            notes["embedded"] = True
        made.append((number, notes, texts))
    return made


def _check_zip(path):
    """The names inside an xlsx; stops at what is none, is locked, or would unpack to a bomb."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        raise SystemExit(
            f"{path}: password-protected, or an old .xls under a new name. Take the password off, save as .xlsx."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            size = sum(part.file_size for part in parts) / 1e6
            if size > MAX_UNPACKED_MB:
                raise SystemExit(
                    f"{path}: unpacks to {size:,.0f} MB, {MAX_UNPACKED_MB} are allowed. Is it really a table?"
                )
            if "xl/workbook.xml" not in archive.namelist():
                raise SystemExit(f"{path}: a zip file, but no xlsx (no xl/workbook.xml in it). Save it as .xlsx.")
            for part in parts:
                if part.filename.endswith((".xml", ".rels")):
                    with archive.open(part) as text:
                        if b"<!DOCTYPE" in text.read(4096):  # Excel writes none; entities in one can be a bomb, too
                            raise SystemExit(
                                f"{path}: {part.filename} has a DOCTYPE, which no spreadsheet program writes."
                            )
            return [part.filename for part in parts]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError):
        raise SystemExit(f"{path}: not an xlsx file, or cut off. Save it as .xlsx in Excel or WPS.") from None


def _as_text(cell):
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and re.fullmatch(r"0+", cell.number_format or ""):
        return str(value).zfill(len(cell.number_format))  # 2 shown as 002
    return str(value)
