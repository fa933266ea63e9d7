"""preference/'s scripts as a user runs them, from the folder copied alone, on a tiny random model."""

import json
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
@pytest.mark.parametrize("method", ["dpo", "kto"])
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
    assert found["pairs"] == 12 and 0 <= found["accuracy_interval"][0] <= found["accuracy"] <= 1


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
    assert "gold at KL" in said and (tmp_path / "out" / "compare.png").stat().st_size > 5000


@pytest.mark.parametrize("flags, told", [
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--demo", "--start", "nowhere"], "nowhere holds no adapter"),
    (["--demo", "--lora_r", "0"], "--lora_r"),
])  # fmt: skip
@pytest.mark.slow
def test_what_is_wrong_is_said_in_a_line(script, flags, told):
    done = script(ROOT / "preference" / "dpo.py", *flags, check=False)
    assert done.returncode and told in done.stdout + done.stderr and "Traceback" not in done.stderr
