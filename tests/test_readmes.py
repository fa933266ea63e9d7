"""Every command that a README or a script's docstring shows goes through the real parser of the script that it names."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])

# Runs in the script's folder: stops each command where its parser is done, or has refused it.
PARSE = """
import argparse, importlib, json, sys
class Parsed(BaseException): pass
original = argparse.ArgumentParser.parse_args
def parse_args(self, args=None, namespace=None):
    made = original(self, args, namespace)
    raise Parsed
argparse.ArgumentParser.parse_args = parse_args
sys.path[0] = "."
try:
    import common.cli
    real = common.cli.parse
    def parse(*args, **named):
        argparse.ArgumentParser.parse_args = original
        try:
            real(*args, **named)
        finally:
            argparse.ArgumentParser.parse_args = parse_args
        raise Parsed
    common.cli.parse = parse
except ImportError:
    pass
script, commands = json.loads(sys.stdin.read())
refused = []
module = importlib.import_module(script)
for argv in commands:
    sys.argv = [script + ".py", *argv]
    try:
        module.main(argv) if module.main.__code__.co_argcount else module.main()
    except Parsed:
        continue
    except SystemExit as end:
        if end.code in (0, None):
            continue
        refused.append([argv, str(end.code)])
    else:
        refused.append([argv, "its parser was never called"])
print(json.dumps(refused))
"""


def commands_of(text):
    """(script as written, its arguments) of the python commands in a page's sh blocks, or in a docstring's lines."""
    found, where = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s+#.*", "", line)
        for part in re.split(r"&&|\|\|?|;|2>&1|<|>", line):
            where = change[1] + "/" if (change := re.fullmatch(r"cd (\w+)/?", part.strip())) else where
            match = re.search(r"(?:^|\s)python3? (?:-m \S+ )?((?:[\w.]+/)*\w+\.py)((?: .*)?)$", part.strip())
            if match and "$" not in part and "accelerate" not in part:
                found.append((where + match[1], shlex.split(match[2])))
    return found


def documented():
    """{script's path: [arguments, ...]} over all pages and all docstrings of scripts."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for script, argv in commands_of(block):
                places = [page.parent / script, ROOT / script]
                places += [ROOT / "medical" / script] * (page.parent.name == "docker")  # its examples' folder
                place = next((each for each in places if each.is_file()), None)
                assert place, f"{page.relative_to(ROOT)}: no such script: {script}"
                found.setdefault(place, []).append(argv)
    for file in sorted(ROOT.glob("*/*.py")):
        if (file.parent / "Dockerfile").is_file() and file.parent.name != "docker":
            docstring = re.match(r'r?"""(.*?)"""', file.read_text("utf-8"), re.DOTALL)
            for line in docstring[1].splitlines() if docstring else ():
                command = re.search(r"(?<=: |  )python3? \S+\.py.*?(?=  +\S|$)", line)  # a remark may stand behind it
                for script, argv in commands_of(command[0] if command else ""):
                    found.setdefault(file.parent / script, []).append(argv)
    return found


DOCUMENTED = documented()


def test_there_are_commands_to_be_checked():
    assert len(DOCUMENTED) > 30 and sum(map(len, DOCUMENTED.values())) > 150


@pytest.mark.parametrize("script", sorted(DOCUMENTED), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_documented_commands_parse(script):
    assert script.is_file(), script
    given = json.dumps([script.stem, DOCUMENTED[script]])
    done = subprocess.run([sys.executable, "-c", PARSE], cwd=script.parent, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout.splitlines()[-1]), done.stdout
