# Generated from common/files.py: edit that file, then run `make sync`.
"""Files that are written whole or not at all, and never over a user's own."""

import errno
import hashlib
import io
import json
import os
import re
from pathlib import Path

MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # the disk, the largest file that is allowed, the quota


def replace_text(file: Path, text: str):
    """Write text so that the file is either the old or the new one, after a power failure, too."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    os.replace(new, file)


def sync(path: Path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt":
        return  # it syncs only what is open for writing
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(opened)


def seal(folder: Path, **facts):
    """Write manifest.json, the size and the digest of each file below a folder, when all of them are on the disk.

    It comes last: a folder that has it is complete, and `damage` finds what happened to it later. 0.9 GB/s.
    """
    names = {each.relative_to(folder).as_posix(): each for each in sorted(folder.rglob("*")) if each.is_file()}
    files = {name: [each.stat().st_size, _digest(each)] for name, each in names.items() if name != MANIFEST}
    for each in [*names.values(), *(each for each in folder.rglob("*") if each.is_dir()), folder]:
        sync(each)
    write_json(folder / MANIFEST, {"files": files, **facts})
    sync(folder)
    sync(folder.parent)


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder; "" if it is as it was sealed."""
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        return f"it has no {MANIFEST}, so it was cut off while it was written (or an older version wrote it)"
    try:
        for name, (size, digest) in files.items():
            if (there := (folder / name).stat().st_size) != size:
                return f"{name} has {there:,} bytes instead of {size:,}"
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{name}: {error.strerror}"
    except (TypeError, ValueError):
        return f"{MANIFEST} is damaged"
    return ""


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()[:32]


def fingerprint(path: Path) -> str:
    """A digest of a model: its config, and 64 pieces of 64 KB from each weight file. Reads a few MB, whatever its size.

    Training moves every weight, so another model of the same shape is seen; a few bytes changed by hand are not.
    """
    state = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        state.update(str(size).encode())
        with open(file, "rb") as content:
            for piece in range(64):
                content.seek(size * piece // 64)
                state.update(content.read(65536))
    return state.hexdigest()[:16]


def is_full(error) -> bool:
    """Whether an error, or one that it followed, says that nothing more could be written: disk, quota or file size.

    safetensors and tokenizers tell Rust's error as text. torch's archive writer tells nothing but that a write failed.
    """
    while error:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if re.search(
            rf"(os error|Os . code:) ({'|'.join(map(str, FULL))})\b|PytorchStreamWriter failed|iostream error|No space left",
            str(error),
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


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
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def claim(folder: Path):
    """(folder, lock) of folder, or folder-2, folder-3, ...: the first one that is not there, or empty and nobody's.

    The lock decides: of two processes that ask in the same instant, one gets the next name.
    """
    for name in (folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))):
        if name.exists() and not _unused(name):
            continue
        name.mkdir(parents=True, exist_ok=True)
        if lock := take_lock(name):
            if _unused(name):
                return name, lock
            lock.release()
    raise SystemExit(f"{folder}: a thousand runs have this name. Give another --output_dir.")


def _unused(folder):
    return folder.is_dir() and not {each.name for each in folder.iterdir()} - {".lock"}


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
