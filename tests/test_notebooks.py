"""The notebooks are what tools/notebooks.py makes of the scripts now, hold their whole code, and run (make nightly)."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

notebooks = pytest.importorskip("notebooks", reason="no nbformat in .venv: make notebooks installs it")
FOLDERS = list(notebooks.SHOWN)


def cells(folder, kind):
    made = json.loads((ROOT / "course" / "notebooks" / f"{folder}.ipynb").read_text("utf-8"))
    return ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("folder", FOLDERS)
def test_notebooks_are_what_the_scripts_make(folder):
    file = ROOT / "course" / "notebooks" / f"{folder}.ipynb"
    text = file.read_text("utf-8")
    repo = re.search(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob", text)
    assert text == notebooks.notebook(folder, repo[1] if repo else ""), "make notebooks"


def test_buttons_lead_to_the_public_repository_and_are_none_without_one(tmp_path, monkeypatch):
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / name).write_text((ROOT / "course" / "notebooks" / name).read_text("utf-8"), "utf-8")

    def write(*flags):
        monkeypatch.setattr(sys, "argv", ["notebooks.py", "--out", str(tmp_path), *flags])
        notebooks.main()

    before = (tmp_path / "README.md").read_text("utf-8")
    write("--repo", "me/recipes")
    for _ in range(2):  # again: they replace themselves
        write("--repo", "you/lessons")
    for name in ("README.md", "README.zh-CN.md"):
        text = (tmp_path / name).read_text("utf-8")
        assert text.count("**[Colab") == text.count("**[ModelScope") == len(FOLDERS) and "me/recipes" not in text
    for folder in FOLDERS:
        first, set_up = json.loads((tmp_path / f"{folder}.ipynb").read_text("utf-8"))["cells"][:2]
        address = f"https://colab.research.google.com/github/you/lessons/blob/main/course/notebooks/{folder}.ipynb"
        assert address in "".join(first["source"]) and (ROOT / address.partition("/main/")[2]).is_file()
        assert "git clone https://github.com/you/lessons repository" in "".join(set_up["source"])
    write("--repo", "")
    assert (tmp_path / "README.md").read_text("utf-8") == before and "**[Colab" not in before
    assert "colab.research" not in (tmp_path / "alpaca.ipynb").read_text("utf-8")
    with pytest.raises(SystemExit, match="expected OWNER/NAME"):
        write("--repo", "https://github.com/me/recipes")


@pytest.mark.parametrize(
    ("remote", "repo"),
    [
        ("git@github.com:me/it.git", "me/it"),
        ("https://github.com/me/it", "me/it"),
        ("https://gitee.com/me/it", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_clone(remote, repo, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(notebooks.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=remote + "\n"))
    assert notebooks.origin() == repo


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_code_is_the_scripts_own_and_all_of_it(folder):
    """The cells between set-up and demo compile to the script's own statements, docstring and start excepted."""
    code = cells(folder, "code")
    ends = next(at for at, cell in enumerate(code) if cell.startswith("sys.argv = "))
    script = ast.parse((ROOT / folder / "train.py").read_text("utf-8"))
    assert isinstance(script.body[-1], ast.If) and isinstance(script.body[0], ast.Expr)
    made = ast.parse("\n".join(code[1:ends]))
    assert ast.dump(made) == ast.dump(ast.Module(script.body[1:-1], []))
    said = "\n".join(cells(folder, "markdown"))
    for node in script.body[1:-1]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert f"### {node.name}" in said and (ast.get_docstring(node) or "") in said
    assert ast.get_docstring(script).splitlines()[0] in said


def test_pieces_of_a_script():
    source = '"""Doc."""\n\nimport a\nfrom b import c\n\nX = 1\n# why Y\nY = (\n    2\n)\n\n\n@c\ndef f():\n    """Says.\n\n    More."""\n    return X\n\n\nif __name__ == "__main__":\n    f()\n'
    assert notebooks.pieces(source) == [
        ("", "import a\nfrom b import c"),
        ("", "X = 1"),
        ("why Y", "Y = (\n    2\n)"),
        ("### f\n\nSays.\n\nMore.", '@c\ndef f():\n    """Says.\n\n    More."""\n    return X'),
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_versions_stand_in_the_first_cell(folder):
    lock = (ROOT / "requirements-cpu.in").read_text("utf-8")
    first = cells(folder, "code")[0]
    found = dict(re.findall(r'"([\w-]+)": "([\d.]+)"', first))
    assert set(found) == set(notebooks.PACKAGES) and all(f"{name}=={pin}\n" in lock for name, pin in found.items())


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="make nightly runs the notebooks, minutes each")
def test_notebooks_run(folder, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    made = nbformat.read(ROOT / "course" / "notebooks" / f"{folder}.ipynb", 4)
    nbclient.NotebookClient(
        made, timeout=1200, resources={"metadata": {"path": ROOT / "course" / "notebooks"}}
    ).execute()
    outputs = {cell.source.splitlines()[0]: cell.outputs for cell in made.cells if cell.cell_type == "code"}
    set_up = next(out for first, out in outputs.items() if first.startswith("# In Colab"))
    assert "as pinned" in str(set_up)
    picture = next(out for first, out in outputs.items() if first.startswith("Image("))
    assert picture[0].data["image/png"]
    answer = next(out for first, out in outputs.items() if first.startswith("%run infer.py"))
    assert len("".join(each.get("text", "") for each in answer)) > 50
    assert list((tmp_path / folder).glob("*/adapter_model.safetensors"))
