"""A student looks at the first lines of a table: `python data.py --check FILE | head` ends without a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "alpaca": "sample",
    "medical": "sample",
    "lora_variants": "sample/catalogue.jsonl",
    "preference": "../rlhf_ppo/sample/pairs.jsonl",
    "r1_grpo": "sample",
    "rlhf_ppo": "sample/pairs.jsonl",
    "s1_scaling": "sample",
    "vl_insurance": "sample",
}


@pytest.mark.parametrize("folder", CHECKS)
def test_a_reader_that_leaves_is_no_error(folder):
    """The pipe's other end is closed before the script begins, so that its first line goes nowhere."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "data.py", "--check", CHECKS[folder]]
    done = subprocess.run(command, cwd=ROOT / folder, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_every_script_with_check_is_tried_and_ends_so():
    scripts = [file for file in ROOT.glob("*/data.py") if '"--check"' in file.read_text("utf-8")]
    assert set(CHECKS) <= {file.parent.name for file in scripts}
    for file in scripts:
        assert file.read_text("utf-8").endswith('if __name__ == "__main__":\n    piped(main)\n'), file


def test_the_newest_run_is_found_where_the_lessons_leave_it(modules_of, tmp_path, monkeypatch):
    """`cd alpaca && python train.py --demo`, then `cd ../deploy && python export.py`: each has outputs/ of its own."""
    import json

    found = modules_of("deploy", ("found",)).found
    run = tmp_path / "alpaca/outputs/alpaca/1"
    run.mkdir(parents=True)
    (run / "adapter_model.safetensors").write_bytes(b"x")
    (run / "run.json").write_text(json.dumps({"status": "finished", "finished": 1.0}), "utf-8")
    (tmp_path / "deploy").mkdir()
    monkeypatch.chdir(tmp_path / "deploy")
    monkeypatch.setattr(found, "TASK_DIR", tmp_path / "deploy")
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "deploy/outputs"))  # what it is where nobody chose it
    assert found.newest() == run
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "elsewhere"))  # a choice is kept to
    with pytest.raises(SystemExit, match="no finished run"):
        found.newest()
