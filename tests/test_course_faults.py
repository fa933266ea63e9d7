"""Faults on purpose (course/faults.py): each moves its number beyond three clean seeds, and no report names its fault.

`make test` trains three of them for a few steps, `make nightly` all fifteen as a student does.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "course"

spec = importlib.util.spec_from_file_location("course_faults", COURSE / "faults.py")
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """Reports go to tmp_path, in English."""
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    return tmp_path / "faults"


def fake(name="no_eos"):
    """A result as a child writes it, of clean numbers."""
    recipe = faults.FAULTS[name][0]
    numbers = {key: values[0] for key, values in faults.clean()["numbers"][recipe].items()}
    curves = {key: [[1, 2.0], [2, 1.5], [3, 1.0]] for key in faults.CURVES[recipe]}
    return dict(
        recipe=recipe, seed=1, numbers=numbers, answers=[["1 < 2?", "yes & <no>"]], shown="a ⟦row⟧", curves=curves
    )


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_fault_has_a_title_an_explanation_and_a_line(lang):
    assert list(faults.titles(lang)) == list(faults.FAULTS) == list(faults.NUMBERS)
    for name in faults.FAULTS:
        said = faults.explained(name, lang)
        assert len(said) > 150 and not re.search(r"</?details|\*\*", said), name
        number = faults.NUMBERS[name][0]
        assert number in faults.clean()["numbers"][faults.FAULTS[name][0]], name
        assert faults.LABELS[number][lang == "zh"]
        file, line = faults.place(name).split(":")[:2]
        assert faults.FAULTS[name][3] in (ROOT / file).read_text("utf-8").splitlines()[int(line) - 1]


def test_a_line_that_is_gone_is_said(monkeypatch):
    monkeypatch.setitem(faults.FAULTS, "no_eos", (*faults.FAULTS["no_eos"][:3], "no such line"))
    with pytest.raises(SystemExit, match="alpaca/prompt.py has no line"):
        faults.place("no_eos")


def test_the_list_has_titles_only(capsys):
    faults.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(faults.FAULTS) and max(map(len, lines)) < 60


def test_the_list_from_a_shell():
    """As a student starts it: nothing but course/ is on Python's path."""
    done = subprocess.run([sys.executable, "course/faults.py", "--list"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == len(faults.FAULTS), done.stderr


def test_the_clean_numbers_are_of_three_seeds_and_say_where_they_come_from():
    made = faults.clean()
    assert made["command"] == "python course/faults.py --clean" and "cores" in made["hardware"]
    assert made["seeds"] == [1, 2, 3] and set(made["numbers"]) == set(faults.RECIPES)
    for recipe, numbers in made["numbers"].items():
        assert len(made["curves"][recipe]) == 3
        for name, values in numbers.items():
            assert len(values) == 3 and name in faults.LABELS, (recipe, name)
    assert faults.CLEAN.stat().st_size < 60_000


def test_clean_seeds_are_no_fault():
    """A fault is told from each of the clean runs that its number is compared with."""
    for name, (recipe, *_) in faults.FAULTS.items():
        for at in range(3):
            numbers = {key: values[at] for key, values in faults.clean()["numbers"][recipe].items()}
            assert not faults.moved(name, numbers), name


def test_moved_needs_more_than_the_spread(monkeypatch):
    monkeypatch.setattr(faults, "spread", lambda recipe, name: (1.0, 1.2))
    assert not faults.moved("no_eos", {"tokens_until_end": 1.39}) and faults.moved("no_eos", {"tokens_until_end": 1.41})
    assert not faults.moved("truncated", {"ends_in_end_token": 0.81}) and faults.moved(
        "truncated", {"ends_in_end_token": 0.79}
    )
    monkeypatch.setattr(faults, "spread", lambda recipe, name: (0.2, 0.2))
    assert not faults.moved("mask_all", {"trained_share": 0.2}) and faults.moved("mask_all", {"trained_share": 0.21})


def test_a_report_does_not_name_its_fault(outputs, monkeypatch, capsys):
    """Not on the screen, in the page, in the folder's name or in a file that one opens by accident."""
    monkeypatch.setattr(faults, "trained", lambda name, seed, folder: folder.mkdir(parents=True) or fake(name))
    for name in ("no_eos", "reward_hack"):
        folder = faults.run(name, 1)
        (folder / "result.json").write_text(json.dumps(fake(name)), "utf-8")
        (folder / "train.log").write_text("", "utf-8")
        said = capsys.readouterr().out + (folder / "report.html").read_text("utf-8") + folder.name
        said += (folder / ".answer").read_text("utf-8")
        assert not [word for word in (*faults.FAULTS, *faults.titles("en").values()) if word in said]
        assert "three clean seeds" in said and "yes &amp; &lt;no&gt;" in said and not re.search(r"(src|href)=", said)
        assert faults.hidden(folder) == name
        faults.reveal("")
        said = capsys.readouterr().out
        assert said.startswith(f"{name}: ") and "where: " in said and "clean seeds" in said
        os.rename(folder, folder.with_name(f"1-{name}"))  # two reports within a second


def test_blind_takes_one_that_was_not_seen(outputs, monkeypatch):
    ran = []
    monkeypatch.setattr(faults, "run", lambda name, seed: ran.append(name))
    monkeypatch.setattr(faults, "reports", lambda: list(faults.FAULTS)[1:])
    monkeypatch.setattr(faults, "hidden", lambda folder: folder)
    faults.main(["--blind"])
    assert ran == ["no_eos"]
    for _ in range(2):
        for seed in range(30):
            faults.main(["random", "--seed", str(seed)])
    assert ran[1:31] == ran[31:] and len(set(ran)) > 8


def test_wrong_names_get_one_line(capsys):
    with pytest.raises(SystemExit, match="no such fault: nothing. --list names them."):
        faults.main(["nothing"])
    with pytest.raises(SystemExit, match="no report yet"):
        faults.main(["--reveal"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_all", "double_bos", "truncated"])
def test_faults_of_the_rows_show_after_two_steps(name, tmp_path):
    """These numbers are known before training; the rest of the run only has to go through."""
    assert faults.moved(name, faults.trained(name, 1, tmp_path / "it", steps=2)["numbers"])


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="make nightly trains all faults, a minute each")
@pytest.mark.parametrize("name", faults.FAULTS)
def test_each_fault_moves_its_number(name, outputs, capsys):
    folder = faults.run(name, 1)
    numbers = json.loads((folder / "result.json").read_text("utf-8"))["numbers"]
    number = faults.NUMBERS[name][0]
    assert faults.moved(name, numbers), (number, numbers[number], faults.spread(faults.FAULTS[name][0], number))
    assert name not in capsys.readouterr().out
    faults.reveal("")
    said = capsys.readouterr().out
    assert said.startswith(f"{name}: ")
    assert ("our checks printed" in said) == (name in faults.SAID)
