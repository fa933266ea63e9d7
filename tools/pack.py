#!/usr/bin/env python3
"""Copy a folder for a bundle:  tools/pack.py SOURCE TARGET [NAME ...]

Links become the files that they name. One that leads out of SOURCE stops the copy: a folder from elsewhere must not carry
~/.ssh into a bundle. Left out: NAMEs at the top, and at every depth what is private or a tool's own.
"""

import os
import shutil
import sys
from fnmatch import fnmatch

NEVER = (".env*", ".git", ".venv", "venv", "__pycache__", ".pytest_cache", ".ruff_cache", "unsloth_compiled_cache")


def pack(source, target, left_out=()):
    """Raises SystemExit with the link that leads out, or the file that cannot be read."""
    root = os.path.realpath(source)

    def leave(folder, names):
        at_top = os.path.realpath(folder) == root
        gone = [name for name in names if any(fnmatch(name, each) for each in NEVER) or at_top and name in left_out]
        for name in set(names) - set(gone):
            link = os.path.join(folder, name)
            if os.path.islink(link):
                real = os.path.realpath(link)
                inside = os.path.commonpath([root, real]) == root
                # One that leads to a folder above itself would be copied without end.
                if not inside or os.path.commonpath([real, os.path.realpath(folder)]) == real:
                    raise SystemExit(
                        f"{link} is a link to {real}, out of the folder: put the file itself there, or take the link away."
                    )
        return gone

    try:
        shutil.copytree(source, target, ignore=leave)
    except (shutil.Error, OSError) as error:
        first = error.args[0][0] if isinstance(error, shutil.Error) else (error.filename, "", error.strerror)
        raise SystemExit(f"{first[0]} cannot be copied: {first[2]}") from None


if __name__ == "__main__":
    pack(sys.argv[1], sys.argv[2], sys.argv[3:])
