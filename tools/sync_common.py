#!/usr/bin/env python3
"""Copy into each task folder what it imports of common/, or with --check fail where a copy differs.

Copies, because real files are the only thing that survives every way of moving one folder to another machine. A folder
gets the closure of its own scripts' imports, those inside functions too, and nothing else.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "# Generated from common/{name}: edit that file, then run `make sync`.\n"


def tasks(root=ROOT):
    return sorted(file.parent for file in root.glob("*/Dockerfile") if file.parent.name != "docker")


def imported(file: Path, root=ROOT) -> set:
    """The files of common/ that a script imports, as paths relative to common/."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "common" and (root / "common" / Path(*parts[1:])).with_suffix(".py").is_file():
            files.add(Path(*parts[1:]).with_suffix(".py"))
    return files


def closure(task: Path, root=ROOT) -> list:
    """The files of common/ that a task's scripts need, relative to common/, with their packages' __init__.py."""
    found, open_ = set(), {each for file in task.glob("*.py") for each in imported(file, root)}
    while open_:
        found |= open_
        open_ = {each for file in open_ for each in imported(root / "common" / file, root)} - found
    return sorted(found | {folder / "__init__.py" for file in found for folder in file.parents})


def main(check):
    stale = []
    for task in tasks():
        copy = task / "common"
        wanted = {
            copy / file: NOTICE.format(name=file) + (ROOT / "common" / file).read_text("utf-8")
            for file in closure(task)
        }
        for file in set(copy.rglob("*.py")) - set(wanted):
            stale.append(file)
            if not check:
                file.unlink()
        for file, text in wanted.items():
            if not file.exists() or file.read_text("utf-8") != text:
                stale.append(file)
                if not check:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text, "utf-8")
    for file in sorted(stale):
        print(f"{'differs' if check else 'wrote'}: {file.relative_to(ROOT)}")
    if check and stale:
        raise SystemExit("copies of common/ differ: run `make sync`")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
