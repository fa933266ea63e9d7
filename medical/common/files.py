# Generated from common/files.py: edit that file, then run `make sync`.
"""Files that are written whole or not at all, and never over a user's own."""

import io
import json
import os
from pathlib import Path


def replace_text(file: Path, text: str):
    """Write text so that the file is either the old or the new one."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, file)


def write_json(file: Path, content):
    """Write JSON so that the file is either the old or the new one."""
    replace_text(file, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")


def write_lines(file: Path, rows):
    """Write rows as JSON lines so that the file is either the old or the new one."""
    replace_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def new_file(path) -> Path:
    """A path that is to be written, checked before the work begins: a file that exists is kept."""
    path = Path(path)
    if path.exists():
        raise SystemExit(f"{path} exists and is kept. Name another file with --out.")
    if not path.parent.is_dir():
        raise SystemExit(f"{path.parent}: no such folder. Make it, or name another file with --out.")
    return path


def read_json(file: Path) -> dict:
    """The JSON object of a file; empty where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def free_name(folder) -> Path:
    """folder, or folder-2, folder-3, ...: the first one that is not there or empty."""
    taken = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))]
    return next(name for name in taken if not name.exists() or not any(name.iterdir()))


def take_lock(folder: Path):
    """The lock that holds a folder for this process, or None while another one holds it.

    The system frees it however the process ends.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def save_figure(figure, file: Path, dpi=120):
    """Write a matplotlib figure so that the file is either the old or the new one, and close it."""
    from matplotlib import pyplot

    new = file.with_name(f".{file.name}")
    figure.savefig(new, format="png", dpi=dpi)
    pyplot.close(figure)
    os.replace(new, file)


def text_table(header, rows) -> str:
    """Rows of cells as aligned text, in which a Chinese character takes two places. Columns of numbers stand right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows, table = [[str(cell) for cell in row] for row in rows], Table(box=None, pad_edge=False)
    for name, *cells in zip(header, *rows, strict=True):
        number = all(cell.strip("+-%").replace(".", "").replace(",", "").isdigit() for cell in cells if cell.strip("-"))
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=10_000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
