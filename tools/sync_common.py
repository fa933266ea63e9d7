#!/usr/bin/env python3
"""Copy common/ into each task folder, or with --check fail where a copy differs.

Copies, because real files are the only thing that survives every way of moving one folder to another machine.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "# Generated from common/{name}: edit that file, then run `make sync`.\n"


def main(check):
    sources = {
        file.name: NOTICE.format(name=file.name) + file.read_text("utf-8") for file in (ROOT / "common").glob("*.py")
    }
    stale = []
    for task in sorted(file.parent for file in ROOT.glob("*/Dockerfile") if file.parent.name != "docker"):
        copy = task / "common"
        for file in copy.glob("*.py"):
            if file.name not in sources:
                stale.append(file)
                if not check:
                    file.unlink()
        for name, text in sources.items():
            file = copy / name
            if not file.exists() or file.read_text("utf-8") != text:
                stale.append(file)
                if not check:
                    copy.mkdir(exist_ok=True)
                    file.write_text(text, "utf-8")
    for file in stale:
        print(f"{'differs' if check else 'wrote'}: {file.relative_to(ROOT)}")
    if check and stale:
        raise SystemExit("copies of common/ differ: run `make sync`")


main("--check" in sys.argv[1:])
