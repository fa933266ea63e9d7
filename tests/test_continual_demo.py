"""continual/'s demo as a student runs it: what is gained and what is forgotten, without replay and with it, by three seeds."""

import json
import os
import time

import pytest
from conftest import ROOT

NIGHTLY = pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains the demo six times")


@pytest.mark.slow
@NIGHTLY
def test_replay_keeps_the_form_of_answers_and_the_domain_is_learned_all_the_same(script, tmp_path):
    began = time.time()
    said = script(ROOT / "continual" / "compare.py", "--demo", "--out", tmp_path / "out").stdout
    rows = [json.loads(line) for line in (tmp_path / "out" / "compare.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 6 and time.time() - began < 600
    for row in rows:
        before, after = row["before"], row["after"]
        assert before["chat_form"] == 1 and before["general"] < 1.6 and before["data"] > 1e4
        assert after["data"] < 100
        if row["replay"]:
            assert after["chat_form"] >= 0.6 and after["general"] < 2 and after["chats"] < 0.8, row
        else:
            assert after["chat_form"] <= 0.3 and after["general"] > 2 and after["chats"] > 2, row
    assert "replay 0%:" in said and "replay 10%:" in said


def test_the_miniature_is_small_and_was_made_by_the_command_that_its_script_names():
    folder = ROOT / "continual" / "miniature"
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    assert sum(sizes) < 10_000_000
    for name in ("base", "chat"):
        made = json.loads((folder / name / "pretrain.json").read_text("utf-8"))
        assert made["arguments"]["seed"] == 3407 and made["parameters"] == 820_352
