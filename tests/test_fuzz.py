"""Malformed inputs over all readers: no traceback, no hang, no flood of memory; and what is sound survives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_rows import COLUMNS

SECONDS, MEGABYTES = 5, 1000
# Whole files of a foreign encoding that cannot be told apart in so few words; none may be read as Chinese, though.
FEWEST = 320


def variants(folder, environment, seed=0):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_rows.py")), folder, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def wrong(each):
    """What is wrong with what a reader made of a variant; "" if nothing is."""
    if each["said"].startswith("TRACEBACK"):
        return each["said"][-600:]
    if each["seconds"] > SECONDS:
        return f"{each['seconds']:.1f} s"
    if each["peak_mb"] > MEGABYTES:
        return f"{each['peak_mb']:.0f} MB"
    if each["any"]:
        return ""
    if each["wanted"] is None:
        return "" if each["said"] else f"read, and had to be refused: {str(each['texts'])[:300]}"
    if each["said"]:
        return f"refused: {each['said'][:300]}"
    if each["texts"] != each["wanted"]:
        lost, more = set(each["wanted"]) - set(each["texts"]), set(each["texts"]) - set(each["wanted"])
        return f"lost {lost}, more {str(more)[:300]}"
    if each["total"] != len(each["texts"]) + each["dropped"]:
        return f"{each['total']} rows, but {len(each['texts'])} kept and {each['dropped']} dropped"
    return ""


@pytest.mark.parametrize("folder", COLUMNS)
def test_what_is_malformed_costs_a_line_and_what_is_sound_survives(folder, environment):
    made = variants(folder, environment)
    problems = [f"{each['kind']}, {each['name']}: {problem}" for each in made if (problem := wrong(each))]
    assert not problems, "\n".join(problems)
    assert len(made) * len(COLUMNS) > FEWEST / 2
