"""The house as planned: storeys, copies by import closure, folders that stand alone, one meaning per flag."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import house  # noqa: E402
import sync_common  # noqa: E402

TASKS = [folder.name for folder in sync_common.tasks()]
NIGHTLY = [("domain_mix", True), ("s1_scaling", False)] if os.environ.get("TEST_NIGHTLY") else []


def test_the_house_is_as_planned():
    _, wrong = house.check()
    assert not wrong, "\n".join(wrong)


def test_code_lines_are_neither_blank_comment_nor_docstring(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""Doc.\n\nMore."""\n\nX = """a\nb"""  # two lines\n# no\n\n\ndef f():\n    "doc"\n    return X\n')
    assert house.code_lines(file) == 4


def test_a_circle_is_found_and_a_chain_is_none():
    chain = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert house.circle(chain) == []
    assert house.circle(chain | {"c": {"a"}}) == ["a", "b", "c", "a"]


def test_closure_follows_imports_inside_functions_and_through_common(tmp_path):
    for folder in ("common/speed", "task"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in {
        "common/__init__.py": "",
        "common/speed/__init__.py": "",
        "common/a.py": "def f():\n    from common.speed import b\n",
        "common/speed/b.py": "import common.c\n",
        "common/c.py": "",
        "common/d.py": "",
        "task/train.py": "def main():\n    from common.a import f\n",
    }.items():
        (tmp_path / name).write_text(text)
    found = [str(file) for file in sync_common.closure(tmp_path / "task", tmp_path)]
    assert found == ["__init__.py", "a.py", "c.py", "speed/__init__.py", "speed/b.py"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.slow
def test_a_folder_alone_imports_every_module_it_carries(task, copied):
    """What the closure forgot would be missing here: nothing else of the repository can be seen."""
    folder = copied(task)
    names = [".".join(file.relative_to(folder).with_suffix("").parts) for file in folder.rglob("*.py")]
    code = "import importlib\n" + "".join(
        f"importlib.import_module({name!r})\n" for name in sorted(names) if not name.endswith("__init__")
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Native Windows has neither fcntl nor resource. Libraries may use them here; the folder's own code must not need them.
WITHOUT_UNIX = """
import builtins, os, runpy, sys
real, here = builtins.__import__, os.getcwd() + os.sep
def guarded(name, globals=None, *more, **named):
    if name in ("fcntl", "resource") and os.path.abspath((globals or {}).get("__file__", "/")).startswith(here):
        raise ImportError(name)
    return real(name, globals, *more, **named)
builtins.__import__ = guarded
sys.path[0] = os.getcwd()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_unix(folder, environment, *argv):
    command = [sys.executable, "-c", WITHOUT_UNIX, *map(str, argv)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, f"{argv}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_alone_answers_help_without_unix(task, copied, environment):
    folder = copied(task)
    for script in sorted(folder.glob("*.py")):
        if '__name__ == "__main__"' in script.read_text("utf-8"):
            without_unix(folder, environment, script.name, "--help")


@pytest.mark.slow
def test_training_and_inference_run_without_unix(copied, environment, tiny_model, tmp_path):
    folder, run = copied("alpaca"), tmp_path / "run"
    small = ["--model", tiny_model, "--max_steps", 2, "--show_answers", 0, "--output_dir", run]
    without_unix(folder, environment, "data.py", "--check", "sample/alpaca.jsonl")
    without_unix(folder, environment, "train.py", "--demo", *small)
    without_unix(folder, environment, "infer.py", "--adapter", run, "--max_new_tokens", 2)
    without_unix(folder, environment, "evaluate.py", "--adapter", run, "--max_new_tokens", 2, "--limit", 2)
    assert (run / "adapter_model.safetensors").is_file()


def flags_of(file):
    """{flag: its help} of the arg(...) fields that a script declares."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.value, ast.Call)
            and getattr(node.value.func, "id", "") == "arg"
        ):
            found[node.target.id] = ast.literal_eval(node.value.args[1])
    return found


# What a flag means wherever it stands: how its help begins. A folder may say more after that.
MEANINGS = {
    "seed": "of (everything|the (sampling|resampling|samples|weights|exchange))",
    "split_seed": "of the draw which",
    "eval_ratio": "share of the",
    "eval_rows": "at most so many of the held-out rows are measured",
    "adapter": "(an adapter|an SFT adapter|the SFT adapter|a finished run)",
    "limit": "at most so many",
    "max_new_tokens": "longest answer",
    "batch_size": r"[\w -]+ (answered|written|measured) at once",
    "rouge": "ROUGE and BLEU",
    "show_answers": "held-out (rows|prompts) answered before and after",
}
REFUSED_UNLESS_THE_RUNS = {"domain_mix/evaluate.py": {"eval_ratio", "seed"}}  # flags that its users know


def test_a_flag_means_the_same_in_every_folder():
    wrong = []
    for file in sorted(ROOT.glob("*/*.py")):
        name = f"{file.parent.name}/{file.name}"
        for flag, text in flags_of(file).items() if file.parent.name in TASKS else ():
            known = flag in MEANINGS and flag not in REFUSED_UNLESS_THE_RUNS.get(name, ())
            if known and not re.match(MEANINGS[flag], text):
                wrong.append(f"{name} --{flag}: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("task, inside", [("alpaca", True), ("medical", False)] + NIGHTLY)
def test_the_printed_next_command_and_the_run_card(task, inside, copied, environment, tiny_model, tmp_path):
    import shlex

    folder = copied(task)
    where = folder if inside else folder.parent
    small = ["--model", str(tiny_model), "--max_steps", "1", "--output_dir", "my runs/first"]
    small += (
        ["--eval_answers", "0", "--max_think", "4", "--cap", "2"] if task == "s1_scaling" else ["--show_answers", "1"]
    )

    def run(command, stdin=""):
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, input=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    script = "train.py" if inside else f"{task}/train.py"
    said = run([sys.executable, script, "--demo", *small])
    printed = shlex.split(re.search(r"^(?:Ask it yourself|Talk to it): python (.*)$", said, re.MULTILINE)[1])
    assert printed[0] == ("" if inside else f"{task}/") + ("chat.py" if task == "domain_mix" else "infer.py")
    assert printed[2] == "my runs/first"
    run([sys.executable, *printed], stdin="Why?\nexit\n")

    card = (where / "my runs" / "first" / "README.md").read_text("utf-8")
    assert f"base_model: {tiny_model}\nlibrary_name: peft" in card and "fine-tuned version of None" not in card
    assert "1 optimizer steps" in card and re.search(r"\| \w*.*loss \| [\d.]+ \| [\d.]+ \|", card), card
    command = shlex.split(re.search(r"```sh\npython (.*)\n```", card)[1])
    assert command[1:] == ["--adapter", "my runs/first"] and (where / command[0]).is_file()
