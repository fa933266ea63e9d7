"""preference/'s scripts as a user runs them, from the folder copied alone, on a tiny random model."""

import json
import math
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
TINY = [
    "--demo",
    "--quantization",
    "none",
    "--max_steps",
    "3",
    "--save_steps",
    "1",
    "--eval_steps",
    "2",
    "--show_answers",
    "2",
    "--max_new_tokens",
    "3",
    "--max_length",
    "4000",
    "--lora_r",
    "2",
    "--eval_rows",
    "4",
    "--per_device_train_batch_size",
    "2",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    import faults

    return faults.tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def runs_of(tmp_path):
    return sorted((tmp_path / "outputs" / "preference").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", *(["kto"] if os.environ.get("TEST_NIGHTLY") else [])])
def test_a_run_that_was_stopped_ends_as_if_nothing_had_happened(method, copied, script, tiny, tmp_path):
    task = copied("preference")
    flags = [*TINY, "--model", tiny]
    script(task / f"{method}.py", *flags, "--output_dir", tmp_path / "whole")
    stopped = script(task / f"{method}.py", *flags, "--output_dir", tmp_path / "cut", "--stop_after", 1, check=False)
    assert stopped.returncode == 128 + 15, stopped.stdout + stopped.stderr
    said = script(task / f"{method}.py", *flags, "--output_dir", tmp_path / "cut").stdout
    assert "goes on from checkpoint-1" in said
    name = "adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    record = json.loads((tmp_path / "cut" / "run.json").read_text("utf-8"))
    assert record["status"] == "finished" and record["before"]["kl"] == 0
    assert record["before"]["accuracy"] == 0.5  # nothing was learned: not 0
    assert (tmp_path / "cut" / "serving.json").is_file() and (tmp_path / "cut" / "loss.png").stat().st_size > 5000


@pytest.mark.slow
def test_from_an_sft_like_run_one_adapter_comes_out_and_is_asked_and_measured(copied, script, tiny, tmp_path):
    task = copied("preference")
    script(
        task / "orpo.py",
        *TINY,
        "--model",
        tiny,
        "--weight",
        0,
        "--learning_rate",
        1e-2,
        "--output_dir",
        tmp_path / "sft",
    )
    script(task / "simpo.py", *TINY, "--start", tmp_path / "sft", "--output_dir", tmp_path / "tuned")
    folders = [each.name for each in (tmp_path / "tuned").iterdir() if each.is_dir()]
    assert all(name.startswith("checkpoint-") for name in folders), folders
    said = script(
        task / "infer.py", "--adapter", tmp_path / "tuned", "--prompt", "Hi", "--compare", "--max_new_tokens", 3
    ).stdout
    assert "-- base" in said and "-- tuned" in said
    script(task / "evaluate.py", "--adapter", tmp_path / "tuned", "--answers", 2, "--max_new_tokens", 3)
    found = json.loads((tmp_path / "tuned" / "evaluation_results" / "metrics.json").read_text("utf-8"))
    assert found["pairs"] == 24 and 0 <= found["accuracy_interval"][0] <= found["accuracy"] <= 1


@pytest.mark.slow
def test_the_comparison_goes_on_where_it_was_cut_off(copied, script, tiny, tmp_path):
    task = copied("preference")
    flags = [
        "--demo",
        "--model",
        tiny,
        "--prompts",
        12,
        "--answers",
        3,
        "--max_new_tokens",
        4,
        "--steps",
        2,
        "--snapshots",
        2,
        "--n",
        2,
    ]
    flags += ["--sweep", "false", "--methods", "sft", "dpo", "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    pairs = (task / "sample" / "gold.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "out" / "pairs.jsonl").write_text("".join(pairs[:20]))  # a random model's own answers are no text
    script(task / "compare.py", *flags, "--seeds", 1)
    lines = (tmp_path / "out" / "compare.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 4 and {json.loads(line)["method"] for line in lines} == {"sft", "dpo"}
    said = script(task / "compare.py", *flags, "--seeds", 2).stdout
    assert (tmp_path / "out" / "compare.jsonl").read_text("utf-8").splitlines()[:4] == lines
    assert "gold at 4 nats" in said and (tmp_path / "out" / "compare.png").stat().st_size > 5000


@pytest.mark.parametrize("flags, told", [
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--demo", "--start", "nowhere"], "nowhere holds no adapter"),
    (["--demo", "--lora_r", "0"], "--lora_r"),
])  # fmt: skip
@pytest.mark.slow
def test_what_is_wrong_is_said_in_a_line(script, flags, told):
    done = script(ROOT / "preference" / "dpo.py", *flags, check=False)
    assert done.returncode and told in done.stdout + done.stderr and "Traceback" not in done.stderr


NIGHTLY = pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1: minutes of training")


@NIGHTLY
@pytest.mark.slow
def test_an_alpaca_run_goes_on_and_is_exported_as_one_adapter_on_its_base(copied, script, tiny, tmp_path):
    """A real run of another folder, with a template of its own: asked in it, measured against it, exported, passed by the gate."""
    flags = ["--demo", "--model", tiny, "--quantization", "none", "--max_steps", 2, "--max_new_tokens", 3]
    script(ROOT / "alpaca" / "train.py", *flags, "--learning_rate", 0.05, "--output_dir", tmp_path / "sft")
    task, run = copied("preference"), tmp_path / "tuned"
    said = script(task / "dpo.py", *TINY, "--start", tmp_path / "sft", "--output_dir", run).stdout
    assert "start and reference" in said
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert abs(next(log["loss"] for log in logs if "loss" in log) - math.log(2)) < 1e-5  # the start is the reference
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["before"]["kl"] == 0 and record["before"]["accuracy"] == 0.5
    rows = [json.loads(line) for line in (run / "heldout.jsonl").read_text("utf-8").splitlines()]
    from common.models import load_tokenizer

    assert "### Instruction:" in load_tokenizer(tiny).decode(rows[0]["input_ids"])
    script(ROOT / "deploy" / "export.py", run, "--to", "merged")
    gate = script(ROOT / "deploy" / "gate.py", run, check=False)
    assert gate.returncode in (0, 6), gate.stdout + gate.stderr  # 6: two steps of a random model are too little to tell


@NIGHTLY
@pytest.mark.slow
def test_a_reward_model_of_rlhf_ppo_is_asked_about_pairs(script, tiny, tmp_path):
    flags = ["--demo", "--model", tiny, "--sft_samples", 2, "--max_new_tokens", 3, "--max_prompt_length", 4000]
    script(ROOT / "rlhf_ppo" / "train_reward.py", *flags, "--max_length", 4000, "--output_dir", tmp_path / "reward")
    gold = ROOT / "preference" / "sample" / "gold.jsonl"
    check = ["--check", gold, "--max_length", 4000, "--reward_run"]
    said = script(ROOT / "preference" / "data.py", *check, tmp_path / "reward").stdout
    assert "% of 120 pairs" in said


@NIGHTLY
@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo", "kto"])
def test_each_demo_gains_what_it_says(method, script, demo_model, tmp_path):
    said = script(ROOT / "preference" / f"{method}.py", "--demo", "--output_dir", tmp_path / "run").stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    before, after = record["before"], record["after"]
    assert after["accuracy"] > before["accuracy"] and after["gold"] > before["gold"], (before, after)
    assert after["words"] < 1.2 * before["words"] and said.count("  before: ") == said.count("  after:  ") == 3
