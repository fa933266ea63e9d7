"""--rehearse: a long run in small, as processes of their own."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from common import rehearse, tokens

# A trainer that does what is asked of it in no time: stops with 143 after step 1, goes on, ends.
TRAIN = """
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert given["--longest_steps"] == "2" and "--rehearse" not in sys.argv and given["--seed"] == "7", sys.argv
run = pathlib.Path(given["--output_dir"])
run.mkdir(parents=True, exist_ok=True)
if "--stop_after" in given:
    (run / "checkpoint-1").mkdir()
    raise SystemExit({stopped})
assert (run / "checkpoint-1").is_dir()
(run / "run.json").write_text(json.dumps({"peak_gb": 1.5}))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe's folder with scripts of a few lines."""
    task = tmp_path / "recipe"
    task.mkdir()
    (task / "train.py").write_text(TRAIN.replace("{stopped}", "143"))
    (task / "evaluate.py").write_text("")
    monkeypatch.setattr(rehearse, "TASK_DIR", task)
    monkeypatch.setattr(rehearse, "output_dir", lambda: tmp_path / "outputs")
    return task


def test_where_deploy_is_not_beside_it_ends_after_the_evaluation_and_says_so(folder, capsys):
    rehearse.rehearse(str(folder / "train.py"), ["--rehearse", "--seed", "7", "--output_dir", "elsewhere"])
    said = capsys.readouterr().out
    assert re.findall(r"== rehearsal: (\S+)", said) == ["one", "the", "evaluation"]
    assert "deploy/ is not beside" in said and "1.5 GB" in said
    assert list((folder.parent / "outputs").iterdir()) == []  # what it wrote is gone, a user's --output_dir untouched


@pytest.mark.parametrize("file, part", [("train.py", "one step"), ("evaluate.py", "evaluation")])
def test_the_part_that_fails_is_named_and_its_files_are_kept(folder, file, part):
    (folder / file).write_text(TRAIN.replace("{stopped}", "1") if file == "train.py" else "raise SystemExit(3)")
    with pytest.raises(
        SystemExit, match=rf"{part}.*failed with exit code {1 if file == 'train.py' else 3}.*Kept: "
    ) as end:
        rehearse.rehearse(str(folder / "train.py"), ["--rehearse=true", "--seed", "7"])
    assert (folder.parent / "outputs" / str(end.value).split("/")[-1]).is_dir()


@pytest.mark.parametrize("gate, good", [(0, True), (3, True), (6, True), (4, False), (5, False)])
def test_export_and_gate_where_deploy_is_beside(folder, gate, good):
    """After two steps the update may be nothing (3) or too small to tell (6); another model (4, 5) is a fault."""
    deploy = folder.parent / "deploy"
    deploy.mkdir()
    (deploy / "export.py").write_text("import sys, os; os.makedirs(sys.argv[sys.argv.index('--out') + 1])")
    (deploy / "gate.py").write_text(f"raise SystemExit({gate})")
    if good:
        return rehearse.rehearse(str(folder / "train.py"), ["--rehearse", "--seed", "7"])
    with pytest.raises(SystemExit, match=f"gate: failed with exit code {gate}"):
        rehearse.rehearse(str(folder / "train.py"), ["--rehearse", "--seed", "7"])


def test_with_a_launcher_it_is_refused(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="one GPU"):
        rehearse.rehearse("train.py", [])


def test_flags_are_taken_out_with_their_values():
    line = "--rehearse true --data a --rehearse=1 --lr 1 --output-dir x --betas 1 2 --rehearse"
    assert rehearse.without(line.split(), "rehearse", "output_dir") == ["--data", "a", "--lr", "1", "--betas", "1", "2"]


def test_the_longest_rows_and_as_many_steps_as_asked():
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[1] * n for n in (3, 9, 1, 7, 5, 8)]})
    config = SimpleNamespace(max_steps=-1, train_batch_size=2, gradient_accumulation_steps=1, world_size=1)
    assert tokens.longest(rows, config, 0) is rows and config.max_steps == -1
    assert sorted(tokens.lengths(tokens.longest(rows, config, 2))) == [5, 7, 8, 9] and config.max_steps == 2


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains, exports and serves")
def test_medical_is_rehearsed_up_to_the_gate(environment, tiny_model, tmp_path):
    from test_deploy import ROOT  # both folders are used where they lie

    command = [
        sys.executable,
        "medical/train.py",
        "--demo",
        "--model",
        str(tiny_model),
        "--rehearse",
        "--show_answers",
        "0",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "goes on from checkpoint-1" in said and "2 optimizer steps of 4 rows" in said
    assert re.findall(r"^ +\d+ s  (\w+)", said, re.MULTILINE) == ["one", "the", "evaluation", "export", "gate"]
    assert list((tmp_path / "outputs" / "medical").iterdir()) == []


@pytest.mark.slow
def test_a_run_stopped_after_a_step_goes_on_by_the_same_command_without_the_flag(script, tiny_model, tmp_path):
    from test_deploy import ROOT

    flags = ["--demo", "--model", tiny_model, "--max_steps", 3, "--show_answers", 0, "--eval_rows", 2]
    stopped = script(ROOT / "medical" / "train.py", *flags, "--stop_after", 2, check=False)
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    said = script(ROOT / "medical" / "train.py", *flags).stdout
    assert "goes on from checkpoint-2" in said and "export.py" in said and "gate.py" in said
    (run,) = (tmp_path / "outputs" / "medical").iterdir()
    record, serving = (json.loads((run / name).read_text()) for name in ("run.json", "serving.json"))
    assert record["status"] == "finished" and record["trained_in"] == serving["trained_in"] in ("float32", "bfloat16")
    assert serving["base_digest"] == record["weights"] and (run / "heldout.jsonl").is_file()
