"""From an upload to rows that can be trained on: unpacked without leaving its folder, cleaned by the recipe's data.py.

What people upload was made by many programs: names in GB18030, files of macOS and Windows, a folder in a folder. And what
strangers upload can be made to harm: names that lead out of the folder, links, 40 KB that unfold into gigabytes.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import steps
from common.files import replace_text, write_json
from common.settings import read_yaml
from common.text import Undecodable, encoding_of_bytes

DATA_FILES = (".csv", ".json", ".jsonl", ".parquet", ".xlsx")
MOST_FILES, MOST_BYTES = 100_000, 50_000_000_000
MOST_RATIO = 200  # text packs 5 to 20 times smaller, a bomb 1,000 times
SMALL = 10_000_000  # bytes that may be packed as tightly as they like
LEFT_OUT = re.compile(r"(^|/)(__MACOSX(/|$)|\._[^/]*$|\.DS_Store$|Thumbs\.db$|desktop\.ini$)")


def ingest(data: Path, place: Path):
    """The upload as a folder or a file that data.py can read: a zip is unpacked, anything else is taken as it is."""
    files = place / "files"
    if data.is_dir() or data.suffix.lower() in DATA_FILES:
        return [data], {"rows_in": steps.told(data)}
    if data.suffix.lower() != ".zip":
        raise SystemExit(
            f"{data}: a .zip, a folder, or {', '.join(DATA_FILES)} is read. Unpack it, and give the folder."
        )
    shutil.rmtree(files, ignore_errors=True)
    count = unzip(data, files)
    print(f"{data}: {count:,} files unpacked to {files}")
    inner = [each.name for each in files.rglob("*") if each.suffix.lower() in (".zip", ".rar", ".7z", ".gz")]
    if inner:
        print(f"packed files inside are not opened: {', '.join(inner[:5])}")
    return [files], {"rows_in": steps.told(files)}


def clean(recipe: str, source: Path, flags: list, lock: int, place: Path):
    """The recipe's data.py on the upload: rows.jsonl, and its report of what was dropped and why."""
    rows = place / "rows.jsonl"
    rows.unlink(missing_ok=True)  # of other inputs; data.py writes it whole or not at all
    argv = [*steps.script(recipe, "data.py"), "--check", source, "--out", rows]
    if recipe == "medical":
        argv += given(flags, "max_chars")
    elif recipe == "domain_mix":
        argv = [*steps.script(recipe, "data.py"), "--plan", plan_of(source, place), "--out", rows]
        argv += [] if any(source.rglob("*.y*ml")) else ["--allow_short"]
    before = (place / steps.LOG).stat().st_size if (place / steps.LOG).exists() else 0
    facts = steps.child(argv, place, lock)
    with open(place / steps.LOG, "rb") as log:
        log.seek(before)
        replace_text(place / "report.txt", log.read().decode("utf-8", "replace").lstrip())
    if recipe == "medical":  # its train.py reads CSV alone
        rows = as_csv(rows)
    print(f"the report is kept: {place / 'report.txt'}")
    return [rows], facts


def given(flags: list[str], name: str) -> list[str]:
    """A flag and its value out of those for train.py."""
    for at, flag in enumerate(flags):
        if flag.split("=")[0].replace("-", "_") == f"__{name}":
            return [flag] if "=" in flag else flags[at : at + 2]
    return []


def as_csv(rows: Path) -> Path:
    made, new = rows.with_suffix(".csv"), rows.with_name(".new-rows.csv")
    with open(rows, encoding="utf-8") as source, open(new, "w", encoding="utf-8", newline="") as target:
        first = json.loads(source.readline())
        table = csv.DictWriter(target, list(first))
        table.writeheader()
        table.writerow(first)
        table.writerows(map(json.loads, source))
    os.replace(new, made)
    return made


def plan_of(source: Path, place: Path) -> Path:
    """domain_mix's plan: the one in the upload, whose files have to be in the upload, too; else one that takes every row."""
    plans = sorted(each for each in source.rglob("*.y*ml") if each.is_file()) if source.is_dir() else []
    if len(plans) > 1:
        raise SystemExit(
            f"{source}: {len(plans)} plans in it ({', '.join(each.name for each in plans[:4])}). Leave one."
        )
    if not plans:
        sources = {"upload": {"format": "alpaca", "path": str(source)}}
        plan = {"total": 10**9, "seed": 42, "ratios": {"upload": 1.0}, "sources": sources}
        write_json(place / "plan.yaml", plan)  # JSON is YAML
        return place / "plan.yaml"
    try:
        content = read_yaml(plans[0])
        named = [spec["path"] for spec in content["sources"].values() if "path" in spec]
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        named = []  # data.py says what is wrong with it
    for path in named:
        if not (plans[0].parent / path).resolve().is_relative_to(source.resolve()):
            raise SystemExit(f"{plans[0]}: {path} is outside of the upload.")
    return plans[0]


def unzip(file: Path, folder: Path) -> int:
    """Unpack a zip into a folder that is not there yet -> number of files. Raises SystemExit with one line.

    Refused whole: a name that leads out of the folder, a link, a bomb, a password, a damaged file. Left out: what macOS
    and Windows put in. Names of old programs, which do not say their encoding, are in GB18030 where they read as that.
    """
    new = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with zipfile.ZipFile(file) as archive:
            raw = [
                each.orig_filename.encode("cp437", "replace")
                for each in archive.infolist()
                if not each.flag_bits & 0x800
            ]
        with zipfile.ZipFile(file, metadata_encoding=names_encoding(raw)) as archive:
            entries = {}
            for each in archive.infolist():
                if each.is_dir() or LEFT_OUT.search(name := checked(file, each)):
                    continue
                if name in entries:
                    raise SystemExit(f"{file}: two files in it are named {name}. Pack it again.")
                entries[name] = each
            bounded(file, entries, folder.parent)
            for name, each in entries.items():
                target = new / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(each) as source, open(target, "xb") as made:
                    shutil.copyfileobj(source, made, 1 << 20)
    except (zipfile.BadZipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SystemExit(f"{file}: not a zip, or a damaged one ({error}). Pack it again.") from None
    except (NotImplementedError, RuntimeError) as error:  # methods that zipfile does not know
        raise SystemExit(f"{file}: {error}. Pack it again as a plain zip without a password.") from None
    except OSError as error:
        raise SystemExit(f"{file}: cannot be unpacked to {folder.parent}: {error.strerror or error}.") from None
    else:
        if not entries:
            raise SystemExit(f"{file}: no file in it.")
        os.replace(new, folder)
        return len(entries)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def names_encoding(names: list[bytes]) -> str:
    """The encoding of file names without a mark: UTF-8, GB18030, or DOS's cp437, which reads anything."""
    joined = b"\n".join(names)
    for name in ("ascii", "utf-8"):
        with contextlib.suppress(UnicodeDecodeError):
            joined.decode(name)
            return "utf-8"
    with contextlib.suppress(Undecodable, UnicodeDecodeError):
        if (name := encoding_of_bytes(joined)) == "gb18030":
            joined.decode(name)
            return name
    return "cp437"


def checked(file: Path, entry: zipfile.ZipInfo) -> str:
    """An entry's name with / between folders. Raises SystemExit where it cannot be unpacked safely."""
    name = entry.filename.replace("\\", "/")
    parts, kind = PurePosixPath(name).parts, stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or not parts:
        raise SystemExit(
            f"{file}: {name!r} would be written outside of the folder: this zip is not safe, nothing was unpacked."
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise SystemExit(f"{file}: {name!r} has a control character in its name: nothing was unpacked.")
    if kind and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise SystemExit(f"{file}: {name!r} is a link or a device, not a file: nothing was unpacked.")
    if entry.flag_bits & 1:
        raise SystemExit(f"{file}: {name!r} has a password. Pack it again without one.")
    return "/".join(parts)


def bounded(file: Path, entries: dict, where: Path):
    """Raises SystemExit for a bomb. zipfile reads no more of an entry than the size that is looked at here."""
    size = sum(each.file_size for each in entries.values())
    if len(entries) > MOST_FILES or size > MOST_BYTES:
        raise SystemExit(f"{file}: {len(entries):,} files of {size / 1e9:,.1f} GB in it; at most {MOST_FILES:,} files and "
                         f"{MOST_BYTES / 1e9:.0f} GB are unpacked.")  # fmt: skip
    for name, each in entries.items():
        if each.file_size > max(SMALL, MOST_RATIO * each.compress_size):
            raise SystemExit(f"{file}: {name} would grow from {each.compress_size:,} bytes to {each.file_size:,}: a zip bomb, "
                             "nothing was unpacked.")  # fmt: skip
    if size > max(10 * SMALL, MOST_RATIO * file.stat().st_size):
        raise SystemExit(
            f"{file}: {file.stat().st_size:,} bytes would grow to {size:,}: a zip bomb, nothing was unpacked."
        )
    if size * 1.1 > shutil.disk_usage(where).free:
        raise SystemExit(f"{file}: unpacked it takes {size / 1e9:.1f} GB, which {where} does not have.")
