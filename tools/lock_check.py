"""Holds the lock files against the pins and against the last commit:  make lock-check

A resolver that finds no newer set takes an older one and says nothing: unpinned, unsloth and vllm resolve to releases
that are years old. So this fails where a pin of a *.in file is not what its lock has, where two recipes pin one package
differently, and where any package went down since the last commit.
"""

import re
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

CPU, SITE = "requirements-cpu.in", "requirements-site.txt"


def read(text):
    """{name: its versions} of a file's `name==version` lines; a laptop's lock may have two, for older and newer Pythons."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", text, re.MULTILINE):
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), []).append(Version(version))
    return found


def check(root):
    """What is wrong with the locks below `root`, a git repository, as a list of lines."""
    problems, agreed = [], {}
    for pins_file in [root / CPU, *root.glob("requirements-site.in"), *sorted(root.glob("*/requirements.in"))]:
        pins = {name: versions[0] for name, versions in read(pins_file.read_text()).items()}
        for name, version in pins.items():
            if name == "torch" and pins_file.name == CPU:  # a laptop's is a newer one, without CUDA
                continue
            first, where = agreed.setdefault(name, (version, pins_file.relative_to(root)))
            if version != first:
                problems.append(f"{pins_file.relative_to(root)}: {name}=={version}, but {where} has {first}")
        for lock in [
            pins_file.with_suffix(".txt"),
            *(pins_file.with_name(f"requirements-{more}.txt") for more in ("cu128", "vllm")),
        ]:
            if lock.is_file():
                problems += check_lock(root, lock.relative_to(root), pins)
    site, laptop = (
        read(lock.read_text()) if lock.is_file() else {} for lock in (root / SITE, (root / CPU).with_suffix(".txt"))
    )
    for name in site.keys() & laptop.keys():  # both go into one .venv
        if not set(site[name]) <= set(laptop[name]):
            problems.append(f"{SITE}: {name} {max(site[name])}, but {CPU[:-3]}.txt has {max(laptop[name])}: make lock")
    return problems


def check_lock(root, lock, pins):
    """pins: {name: version} that the lock was made from."""
    now, problems = read((root / lock).read_text()), []
    for name, version in pins.items():
        got = now.get(name, [])
        older_torch = name == "torch" and "cu128" in lock.name and got and max(got) < version
        # A laptop's torch is in no lock: tools/venv.sh installs the pin.
        by_itself = name == "torch" and lock.name == "requirements-cpu.txt" and not got
        if got != [version] and not older_torch and not by_itself:
            problems.append(f"{lock}: {name} {' '.join(map(str, got)) or 'is missing'}, pinned {version}: make lock")
    committed = subprocess.run(["git", "show", f"HEAD:{lock}"], cwd=root, capture_output=True, text=True)
    for name, old in read(committed.stdout).items():  # none where the lock is new
        new = now.get(name, old)
        if min(new) < min(old) or max(new) < max(old):
            problems.append(f"{lock}: {name} went down from {max(old)} to {min(new)}")
    return problems


def main():
    problems = check(Path(__file__).resolve().parents[1])
    print("\n".join(problems) or "every pin is in its locks, and nothing went down")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
