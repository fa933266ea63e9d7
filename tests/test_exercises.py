"""The exercises of the course: solutions pass, blanks fail, every usual mistake gets its hint, and no file breaks the check.

`make test` looks at one exercise of each folder, `make nightly` at all of them.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_course import GLOSSARY, tables

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "course" / "exercises"


def load(name):
    spec = importlib.util.spec_from_file_location(f"exercises_{name}", HERE / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


check = load("check")
ALL = check.exercises()
FAST = [
    "math_demos/1",
    "alpaca/1",
    "medical/1",
    "domain_mix/1",
    "lora_variants/4",
    "continual/3",
    "rlhf_ppo/1",
    "preference/4",
    "r1_grpo/1",
    "s1_scaling/1",
]
FAST += ["vl_insurance/3", "deploy/3"]  # one of each folder
ASKED = list(ALL) if os.environ.get("TEST_NIGHTLY") else FAST


def solution_of(name):
    return HERE / "solutions" / f"{name}.py"


def blank_of(solution):
    """An exercise made from its solution: the last function's body, or the number, is taken out."""
    lines, node = solution.splitlines(), ast.parse(solution).body[-1]
    if isinstance(node, ast.FunctionDef):
        kept = [*lines[: node.body[0].end_lineno], "    # your code here"]
    else:
        kept = [*lines[: node.lineno - 1], "PREDICTION = None  # " + lines[node.lineno - 1].split("  # ")[1]]
    return "\n".join(kept) + "\n"


# A usual mistake is a function of checks.py, which the process of an exercise has imported already.
LIST = """
import json, sys
sys.path[0] = sys.argv[1]
from check import HERE, ROOT, Number
sys.path[:0] = [str(HERE / sys.argv[2]), str(ROOT / sys.argv[2])]
import checks
task = getattr(checks, f"task_{sys.argv[3]}")()
if isinstance(task, Number):
    made = [(f"PREDICTION = {(low + high) / 2}", said) for (low, high), *said in task.wrong]
else:
    made = [(f"from checks import {each.__name__} as {task.name}", said) for each, *said in task.wrong]
print(json.dumps([made, task.hint]))
"""


def mistakes(name):
    """([(a file that makes a usual mistake, the two languages' hint for it)], the hint for all others) of checks.py."""
    command = [sys.executable, "-c", LIST, str(HERE), *name.split("/")]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    return json.loads(found.stdout.splitlines()[-1])


def verdict(name, text, tmp_path, **more):
    file = tmp_path / "mine.py"
    file.write_text(text, "utf-8")
    return check.verdict(name, file, **more)


def test_there_are_five_of_each_folder_and_fast_ones_of_all():
    assert all((ROOT / folder / "Dockerfile").is_file() for folder in check.FOLDERS)
    assert (
        len(ALL) == 5 * len(check.FOLDERS)
        and {name.split("/")[0] for name in FAST} == set(check.FOLDERS)
        and set(FAST) <= set(ALL)
    )
    there = {f"{file.parent.name}/{file.stem}" for file in HERE.glob("[a-z]*/[0-9]*.py")}
    assert there == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_an_exercise_is_its_solution_without_the_code_and_says_what_to_do_in_two_languages(name):
    text, solution = ALL[name].read_text("utf-8"), solution_of(name).read_text("utf-8")
    assert text == blank_of(solution)
    docstring, (english, chinese) = ast.get_docstring(ast.parse(text)), check.title(ALL[name])
    assert english != chinese and re.search(r"[\u4e00-\u9fff]{2}", chinese) and english.isascii()
    assert len(re.findall(r"[\u4e00-\u9fff]", docstring)) > 30 and len(re.findall(r"[A-Za-z]{2,}", docstring)) > 25
    code = solution.splitlines()[len(text.splitlines()) - 1 :]
    assert len([line for line in code if line.strip()]) <= 15 or "PREDICTION" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
def test_the_solution_passes_the_blank_does_not_and_mistakes_get_their_hints(name, tmp_path):
    assert check.verdict(name, solution_of(name))[0][0] in ("all", "close")
    ((blank, _),) = check.verdict(name, ALL[name])
    assert blank in ("blank", "unpredicted")
    found, other = mistakes(name)
    assert len(found) >= 2 or "PREDICTION" in ALL[name].read_text("utf-8")
    for number, (text, hints) in enumerate(found if os.environ.get("TEST_NIGHTLY") else found[:2]):
        said = verdict(name, text, tmp_path)
        for lang, hint in zip(("en", "zh"), hints, strict=True):
            assert hint in check.told(said, lang), f"{name}: mistake {number}, {text}: {check.told(said, lang)}"
        assert hints != other, f"{name}: {text} has no hint of its own"


@pytest.mark.parametrize("folder", check.FOLDERS)
def test_hints_do_not_give_the_code_away_and_use_the_courses_words(folder):
    checks = (HERE / folder / "checks.py").read_text("utf-8")
    chinese = checks + "".join(ALL[f"{folder}/{n}"].read_text("utf-8") for n in range(1, 6))
    assert not [word for *_, words in GLOSSARY for word in words if word in chinese]
    texts = [node.value for node in ast.walk(ast.parse(checks)) if isinstance(node, ast.Constant)]
    texts = [each for each in texts if isinstance(each, str) and len(each) > 15]
    for n in range(1, 6):
        solution = solution_of(f"{folder}/{n}").read_text("utf-8")
        body = ast.get_source_segment(solution, ast.parse(solution).body[-1]).splitlines()[2:]
        given = [line.strip() for line in body if len(line.strip()) > 25]
        assert not [line for line in given for text in texts if line in text]


RAISES = """
import math

def pass_at_k(right, samples, k):
    return math.factorial(right - 1) / 0
"""
BROKEN = {
    "def pass_at_k(right, samples, k)\n    return 1": "line 1 cannot be read",
    "def pass_at_k(right, samples, k):\n\treturn 1\n        return 2": "cannot be read",
    "x = 1 / 0": "line 1: ZeroDivisionError",
    RAISES: "line 5: ",
    "def pass_at_k(right, samples): return 1": "TypeError: pass_at_k() takes 2 positional arguments",
    "def passed(right, samples, k): return 1": "has no pass_at_k",
    "pass_at_k = 3": "has no pass_at_k",
    "def pass_at_k(right, samples, k): print(right)": "nothing is there yet",
    "def pass_at_k(right, samples, k): return 'half'": "it returns str, expected float",
    "def pass_at_k(right, samples, k): return [0.5]": "it returns list, expected float",
    "def pass_at_k(right, samples, k): return float('nan')": "it returns nan, which is not right",
    "def pass_at_k(right, samples, k): return {1: object()}": "it returns dict, expected float",
    "import sys\ndef pass_at_k(right, samples, k): sys.exit('bye')": "SystemExit: bye",
    "import os\nos._exit(3)": "ended Python before",
    "right = input()": "line 1: EOFError",
    "def pass_at_k(right, samples, k):\n    return pass_at_k(right, samples, k)": "RecursionError",
    "\0": "null bytes",
    "": "has no pass_at_k",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_cannot_run_gets_a_clear_line(text, tmp_path, capfd):
    said = verdict("r1_grpo/4", text, tmp_path)
    told = check.told(said, "en")
    assert BROKEN[text] in told and "Traceback" not in told + capfd.readouterr().err
    assert check.told(said, "zh") != told
    assert said[0][0] not in ("all", "close")


@pytest.mark.parametrize(
    "text",
    [
        "def pass_at_k(right, samples, k):\n    while True:\n        right += 1",
        "while True:\n    pass",
        "import re\ndef pass_at_k(*_):\n    re.match('(a+)+b', 'a' * 40)",  # in C, where Python's own signals wait
    ],
)
def test_an_endless_loop_is_ended_and_its_line_named(text, tmp_path):
    told = check.told(verdict("r1_grpo/4", text, tmp_path, seconds=1), "en")
    assert re.search(r"line [123] was still running after 1 seconds", told), told


@pytest.mark.parametrize("value", ["'half'", "True", "[53]", "float('inf')", "1e400"])
def test_a_prediction_that_is_no_number(value, tmp_path):
    assert "expected a number" in check.told(verdict("r1_grpo/5", f"PREDICTION = {value}", tmp_path), "en")


def test_a_students_copy_of_the_arguments_is_the_students(tmp_path):
    """A function that empties its arguments spoils neither the next case nor the right result."""
    text = (
        solution_of("r1_grpo/1").read_text("utf-8").replace("    return made", "    rewards.clear()\n    return made")
    )
    assert verdict("r1_grpo/1", text, tmp_path)[0][0] == "all"


def test_values_are_compared_as_numbers():
    assert not check.difference([1.0, 2], [1, 2.0000000001], 1e-6)
    assert not check.difference(None, None, 0) and not check.difference(float("nan"), float("nan"), 0)
    assert check.difference([1, [2, 3]], [1, [2, 4]], 0)[1]["at"] == "[1][1]"
    assert check.difference({"a": 1}, {"b": 1}, 0)[0] == "keys" and check.difference([1], [1, 2], 0)[0] == "length"
    assert check.difference("1", 1, 0)[0] == check.difference(1, "1", 0)[0] == check.difference([1], 1, 0)[0] == "type"


def run(*argv, lang="en_US.UTF-8", **more):
    command = [sys.executable, str(HERE / "check.py"), *map(str, argv)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LC_")} | {"LANG": lang}
    env |= {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, **more)


def test_from_the_command_line_in_both_languages(tmp_path):
    listed = run()
    assert listed.returncode == 0 and all(name in listed.stdout for name in ALL)
    assert "两轮对话的标签" in run(lang="zh_CN.UTF-8").stdout
    done = run("r1_grpo/4", cwd=tmp_path)
    assert done.returncode == 1 and "nothing is there yet" in done.stdout and not done.stderr
    assert "还没有代码" in run("r1_grpo/4", lang="zh_CN.UTF-8").stdout
    assert run("r1_grpo/4", "--file", solution_of("r1_grpo/4")).returncode == 0
    for wrong in ("r1_grpo/6", "lora/1", "r1_grpo"):
        refused = run(wrong)
        assert refused.returncode == 1 and "no such exercise" in refused.stderr and "Traceback" not in refused.stderr
    assert "no such file" in run("r1_grpo/4", "--file", tmp_path / "none.py").stderr
    made = subprocess.run(["make", "-n", "check", "EX=alpaca/2"], cwd=ROOT, capture_output=True, text=True)
    assert "course/exercises/check.py alpaca/2" in made.stdout


def test_what_a_student_prints_is_shown(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("print('see', 1)\ndef pass_at_k(right, samples, k): return 0", "utf-8")
    assert "see 1" in run("r1_grpo/4", "--file", file).stdout


@pytest.mark.parametrize("end", ["", ".zh-CN"])
def test_the_readme_lists_all_and_shows_what_is_printed(end, tmp_path):
    page = (HERE / f"README{end}.md").read_text("utf-8")
    _, rows = next(table for table in tables(page) if len(table[1]) > 9)
    assert rows == [[f"[{name}]({name}.py)", check.title(file)[bool(end)]] for name, file in ALL.items()]
    for target in re.findall(r"\]\(([^)#\s]+)", page):
        assert target.startswith("https://") or (HERE / target).exists(), target
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "mine.py"
    file.write_text("from checks import population as advantages", "utf-8")
    assert run("r1_grpo/1", "--file", file, lang="zh_CN.UTF-8" if end else "en").stdout == shown


@pytest.mark.parametrize("folder", check.FOLDERS)
@pytest.mark.parametrize("end", ["", ".zh-CN"])
def test_each_lesson_names_three_of_its_exercises(folder, end):
    text = (ROOT / folder / f"README{end}.md").read_text("utf-8")
    section = re.search(rf"^## {'练习' if end else 'Exercises'}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{folder}/README{end}.md has no section of exercises"
    named = re.findall(rf"\b{folder}/([1-5])\b", section[1])
    assert len(set(named)) == 3 and f"make check EX={folder}/" in section[1]
    assert f"](../course/exercises/README{end}.md)" in section[1]
