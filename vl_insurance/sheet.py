"""The spreadsheet: an .xlsx, .csv or .jsonl file -> rows of text, or one line that says what is wrong with the file."""

from pathlib import Path

from common.paths import data_dir
from common.rows import Bad, read
from common.tables import FORMULA

SHEET_FILE = "qwen-vl-train.xlsx"  # the course's name for it: what is looked for in a folder
COLUMNS = ("id", "prompt", "image", "response")
EMBEDDED = "picture in the cell"
HOW_TO_TAKE_OUT = (
    "pictures inside the sheet are not read: save them as files (in WPS or Excel: save as .zip or a web page, they are in "
    "xl/media), and put each file's name into the column image"
)


def read_table(source, sheet=None):
    """(path, (Place, row) pairs) of a spreadsheet: dicts of texts by lower-case header, or the Bad that says why not.

    Everything is text: 002 stays "002", NA stays "NA". Empty rows are left out. sheet: of an .xlsx; None: every sheet that
    has the columns. Raises SystemExit where the file cannot be read.
    """
    path = find_file(source)
    if path.suffix.lower() not in (".jsonl", ".csv", ".xlsx"):
        more = " Save it as .xlsx." if path.suffix.lower() in (".xls", ".et") else ""
        raise SystemExit(f"{path}: expected .xlsx, .csv or .jsonl.{more}")
    found = read(path, {name: (name,) for name in COLUMNS}, COLUMNS, sheet)
    return path, with_pictures(path, found)


def with_pictures(path, found):
    covered = {}  # sheet -> the rows that a picture lies on
    for place, row in found:
        if place.sheet and place.sheet not in covered:
            covered[place.sheet] = pictures_over(path, place.sheet)
        if isinstance(row, Bad) and row.args[0] == FORMULA and "DISPIMG(" in row.args[2].upper():
            row = Bad(EMBEDDED, "image", HOW_TO_TAKE_OUT)
        if isinstance(row, dict):
            row = {str(name).strip().casefold(): as_text(value) for name, value in row.items()}
            cell = str(row.get("image", ""))
            if "DISPIMG(" in cell.upper() or (not cell and place.number in covered.get(place.sheet, ())):
                row = Bad(EMBEDDED, "image", HOW_TO_TAKE_OUT)
        yield place, row


def as_text(value):
    """A cell or a JSON value as text; what is none is left to be refused."""
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else str(value) if isinstance(value, int | float) else value


def pictures_over(path, sheet):
    """Numbers of the rows of a sheet that a picture is anchored to; none where openpyxl cannot say."""
    import openpyxl
    from openpyxl.packaging.relationship import get_dependents, get_rels_path
    from openpyxl.reader.drawings import find_images

    try:
        book = openpyxl.load_workbook(path, read_only=True)
        archive, part = book._archive, book[sheet]._worksheet_path
        if get_rels_path(part) not in archive.namelist():
            return set()
        drawings = [
            each.target for each in get_dependents(archive, get_rels_path(part)) if each.Type.endswith("/drawing")
        ]
        images = [image for drawing in drawings for image in find_images(archive, drawing)[1]]
        book.close()
        return {image.anchor._from.row + 1 for image in images if hasattr(image.anchor, "_from")}
    except Exception:  # openpyxl raises whatever it meets in a workbook that is not quite one
        return set()


def find_file(source):
    path = Path(source or data_dir()).expanduser()
    if path.is_dir():
        if not (path / SHEET_FILE).is_file():
            raise SystemExit(f"{path}: no {SHEET_FILE} in this folder. Name the file with --data.")
        path = path / SHEET_FILE
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Give one with --data, or draw one: python render.py --out pictures")
    return path
