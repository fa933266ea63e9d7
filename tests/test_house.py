"""The house as planned: storeys, copies by import closure, folders that stand alone, one meaning per flag."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import house  # noqa: E402
import sync_common  # noqa: E402

TASKS = [folder.name for folder in sync_common.tasks()]


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


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_alone_answers_help_without_unix(task, copied):
    """Native Windows has neither fcntl nor resource: every script must at least say what it does."""
    folder = copied(task)
    code = "import runpy, sys\nsys.modules['fcntl'] = sys.modules['resource'] = None\nfile = sys.argv.pop(0)\n"
    code += "sys.argv = [file, '--help']\nsys.path[0] = '.'\nrunpy.run_path(file, run_name='__main__')\n"
    for script in sorted(folder.glob("*.py")):
        if '__name__ == "__main__"' in script.read_text("utf-8"):
            command = [sys.executable, "-c", code.replace("sys.argv.pop(0)", repr(script.name))]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0 and done.stdout, f"{script.name}: {done.stderr}"


def test_training_and_inference_run_without_unix(copied, environment, tiny_model, tmp_path):
    folder = copied("alpaca")
    code = "import runpy, sys\nsys.modules['fcntl'] = sys.modules['resource'] = None\nsys.path[0] = '.'\n"
    run = str(tmp_path / "run")
    for script, *flags in (
        ["data.py", "--check", "sample/alpaca.jsonl"],
        [
            "train.py",
            "--demo",
            "--model",
            str(tiny_model),
            "--max_steps",
            "2",
            "--show_answers",
            "0",
            "--output_dir",
            run,
        ],
        ["infer.py", "--adapter", run, "--max_new_tokens", "2"],
    ):
        command = f"{code}sys.argv = {[script, *flags]!r}\nrunpy.run_path({script!r}, run_name='__main__')\n"
        done = subprocess.run(
            [sys.executable, "-c", command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (Path(run) / "adapter_model.safetensors").is_file()


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


# What a flag means wherever it stands, as the first words of its help. A folder may say more after them.
MEANINGS = {
    "seed": (
        "of everything drawn at random",
        "of the sampling",
        "of the resampling",
        "of the samples",
        "of the weights",
    ),
    "split_seed": ("of the draw which",),
    "eval_ratio": ("share of the",),
    "eval_rows": ("at most so many of the held-out rows are measured while training",),
    "adapter": ("an adapter folder", "a finished run's folder"),
    "limit": ("at most so many",),
    "max_new_tokens": ("longest answer",),
    "batch_size": ("rows answered at once", "answers written at once", "questions answered at once"),
    "rouge": ("ROUGE and BLEU",),
    "show_answers": ("held-out rows answered before and after",),
}


def test_a_flag_means_the_same_in_every_folder():
    wrong = []
    for file in sorted(ROOT.glob("*/*.py")):
        if file.parent.name in TASKS:
            for name, text in flags_of(file).items():
                if name in MEANINGS and not text.startswith(MEANINGS[name]):
                    wrong.append(f"{file.parent.name}/{file.name} --{name}: {text}")
    assert not wrong, "\n".join(wrong)
