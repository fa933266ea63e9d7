"""Notebooks of two lessons, made from their train.py:  make notebooks

    python tools/notebooks.py [--out DIR] [--repo OWNER/NAME]    # writes course/notebooks/*.ipynb

With the address of a public GitHub repository (--repo, else that of `git remote get-url origin`) the first cell of each and
course/notebooks/README get two buttons, Colab and ModelScope. Without one there is no button.

Each top-level piece of the script is a cell; its docstring, or the comment above it, is the text before the cell. The code
is the script's own, character by character; only the last two lines, which start it from a shell, are another cell that
runs the demo. Nothing in a notebook is edited by hand, and tests hold them against this script.
"""

import argparse
import ast
import inspect
import re
import subprocess
from pathlib import Path

import nbformat
from nbformat import v4

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {  # the cells behind the demo
    "alpaca": [
        ("The run's folder has the curve of the loss.", 'Image(filename=models.latest() / "loss.png")'),
        ("Ask the model that has just been trained.", '%run infer.py --instruction "Why is the sea salty?"'),
    ],
    "r1_grpo": [
        ("What was rewarded, step by step.", 'Image(filename=models.latest() / "rewards.png")'),
        ("Ask the model that has just been trained.", '%run infer.py --question "Ann has 12 eggs and uses 5. How many are left?"'),
    ],
}  # fmt: skip
PACKAGES = ["torch", "transformers", "trl", "peft", "datasets", "accelerate", "matplotlib", "python-dotenv", "psutil"]
SET_UP = """\
# In Colab or ModelScope take the # away (course/notebooks/README.md).
# !git clone {clone} repository
# %cd repository/course/notebooks
# %pip install --quiet {install}
import os
import sys
from importlib.metadata import version

from IPython.display import Image

os.chdir("../../{folder}")  # the files that train.py imports are there
sys.path.insert(0, os.getcwd())
__file__ = os.path.abspath("train.py")
PINS = {{
{pins}}}
print({{name: version(name) for name, pin in PINS.items() if version(name).split("+")[0] != pin}} or "as pinned")"""


BUTTONS = re.compile(r"^<!-- buttons: .*-->\n(?:\*\*\[.*\n)*", re.MULTILINE)  # their place in the READMEs


def origin():
    """OWNER/NAME of the GitHub repository that this is a clone of, or ""."""
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    found = re.fullmatch(
        r"(?:https://|ssh://git@|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", done.stdout.strip()
    )
    return found[1] if found else ""


def check_repo(repo):
    """Stop where --repo is no OWNER/NAME; "" is none."""
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise SystemExit(f"--repo {repo}: expected OWNER/NAME, as it stands in https://github.com/OWNER/NAME.")


def buttons(folder, repo):
    """Two links that open a folder's notebook elsewhere, as one line; ModelScope opens no notebook of GitHub by its address."""
    file = f"course/notebooks/{folder}.ipynb"
    return (
        f"**[Colab: {folder}](https://colab.research.google.com/github/{repo}/blob/main/{file})** · "
        f"**[ModelScope](https://modelscope.cn/my/mynotebook)** (`git clone https://github.com/{repo}`, open {file})"
    )


def with_buttons(text, repo):
    """A README's text with the buttons of `repo` in their place; none where it is ""."""
    lines = [f"{buttons(folder, repo)}  \n" for folder in SHOWN] if repo else []
    mark = "<!-- buttons: make notebooks REPO=OWNER/NAME -->\n"
    return BUTTONS.sub(lambda _: mark + "".join(lines), text)


def pins():
    """{package: version} of what the demos stand on, from requirements-cpu.in."""
    found = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements-cpu.in").read_text("utf-8"), re.MULTILINE))
    return {name: found[name] for name in PACKAGES}


def pieces(source):
    """[(text, code)] of a script's top-level pieces. Imports stay together, and so do constants without a comment between."""
    tree, lines = ast.parse(source), source.splitlines()
    made, end = [], tree.body[0].end_lineno  # behind the module's docstring
    for node in tree.body[1:]:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
        above = [line for line in lines[end:first] if line.strip()]  # comments
        code = "\n".join(lines[first : node.end_lineno])
        if re.match(r"if __name__ == ", code):
            break
        text = "\n".join(re.sub(r"^# ?", "", line) for line in above)
        kind = ast.Import if isinstance(node, (ast.Import, ast.ImportFrom)) else type(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            said = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
            text = "\n\n".join(part for part in (f"### {node.name}", text, said) if part)
        joined = made and not text and kind is made[-1][2] and kind in (ast.Import, ast.Assign)
        if joined:
            made[-1] = (made[-1][0], made[-1][1] + "\n" * (first - end + 1) + code, kind)
        else:
            made.append((text, code, kind))
        end = node.end_lineno
    return [(text, code) for text, code, _ in made]


def notebook(folder, repo=""):
    """The notebook of folder/train.py as text. repo: OWNER/NAME of a public GitHub repository, for the buttons."""
    source = (ROOT / folder / "train.py").read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    headline, _, rest = docstring.partition("\n")
    install = " ".join(f"{name}=={pin}" for name, pin in pins().items() if name != "torch")
    set_up = SET_UP.format(
        clone=f"https://github.com/{repo}" if repo else "REPOSITORY",  # a public address, where there is one
        folder=folder,
        install=install,
        pins="".join(f'    "{name}": "{pin}",\n' for name, pin in pins().items()),
    )
    cells = [
        ("md", f"# {folder}\n\n{buttons(folder, repo) + chr(10) * 2 if repo else ''}{headline}\n\nWritten by `make notebooks` from [{folder}/train.py](../../{folder}/train.py): "
               f"the code is the script's own. The lesson is its [README](../../{folder}/README.md) "
               f"([中文](../../{folder}/README.zh-CN.md)); changes belong into the script."),
        ("code", set_up),
        ("md", f"```text\n{rest.strip()}\n```"),
    ]  # fmt: skip
    for text, code in pieces(source):
        cells += [("md", text)] * bool(text) + [("code", code)]
    cells += [("md", "## The demo\n\nAs `python train.py --demo` in a shell."),
              ("code", 'sys.argv = ["train.py", "--demo"]\nmain()')]  # fmt: skip
    for text, code in SHOWN[folder]:
        cells += [("md", text), ("code", code)]
    make = {"md": v4.new_markdown_cell, "code": v4.new_code_cell}
    made = v4.new_notebook(cells=[make[kind](text, id=f"{folder}-{at}") for at, (kind, text) in enumerate(cells)])
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "course" / "notebooks")
    parser.add_argument("--repo", default=origin(), metavar="OWNER/NAME", help="on GitHub, for the buttons")
    args = parser.parse_args()
    check_repo(args.repo)
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in SHOWN:
        (args.out / f"{folder}.ipynb").write_text(notebook(folder, args.repo), "utf-8")
        print(args.out / f"{folder}.ipynb")
    for file in args.out.glob("README*.md"):
        file.write_text(with_buttons(file.read_text("utf-8"), args.repo), "utf-8")


if __name__ == "__main__":
    main()
