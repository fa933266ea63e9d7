"""The medical recipe, run as a user runs it: the folder copied alone, a fresh process, a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from common import tokens

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--show_answers", "0", "--learning_rate", "1e-3", "--per_device_train_batch_size", "2", "--held_out", "8"]


@pytest.fixture(scope="module")
def prompt(modules_of):
    return modules_of("medical", ("prompt",)).prompt


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


ROWS = [
    {"question": " 高血压患者能吃党参吗？ ", "answer": "可以。\n"},
    {"question": "What helps a cold?", "answer": " Rest and drink. "},
]


def test_the_loss_counts_the_answer_and_its_end_and_nothing_else(prompt, tokenizer):
    every = prompt.encode(tokenizer, ROWS)
    assert len(every[0]) == len(every[1]) == 2
    for row, ids, labels in zip(ROWS, *every, strict=True):
        question, answer = row["question"].strip(), row["answer"].strip()
        assert tokenizer.decode([token for token in labels if token != -100]) == answer + "<|im_end|>"
        text = (
            "你是一个专业的医疗助手。请根据患者的问题提供专业、准确的回答。\n\n### 问题：\n"
            + question
            + "\n\n### 回答：\n"
        )
        assert tokenizer.decode(ids) == text + answer + "<|im_end|>"
        assert labels[-1] == tokenizer.eos_token_id and all(a in (-100, b) for a, b in zip(labels, ids, strict=True))


def test_loss_on_all_counts_every_token(prompt, tokenizer):
    ids, labels = prompt.encode(tokenizer, ROWS, loss_on="all")
    assert labels == ids


def test_inference_sees_the_ids_that_training_saw(prompt, tokenizer):
    for asked, ids, labels in zip(prompt.prompt_ids(tokenizer, ROWS), *prompt.encode(tokenizer, ROWS), strict=True):
        assert ids[: len(asked)] == asked and labels[: len(asked)] == [-100] * len(asked) and labels[len(asked)] != -100


def test_rows_that_do_not_fit_are_left_out_and_never_cut(prompt, tokenizer):
    lengths = [len(ids) for ids in prompt.encode(tokenizer, ROWS)[0]]
    kept = tokens.tokenize(ROWS, partial(prompt.encode, tokenizer), min(lengths), "rows")
    assert tokens.lengths(kept) == [min(lengths)] and len(set(lengths)) == 2


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return {log["step"]: log["loss"] for log in metrics(folder) if "loss" in log}


def only_run(tmp_path, task="medical"):
    (folder,) = (tmp_path / "outputs" / task).iterdir()
    return folder


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, demo_model, tmp_path):
    """cp -r medical elsewhere; python train.py --demo --max_steps 2; python infer.py: nothing else of the repo."""
    from safetensors.torch import load_file

    task = copied("medical")
    shown = script(task / "train.py", "--demo", "--max_steps", 2, "--max_new_tokens", 8).stdout
    folder = only_run(tmp_path)
    assert {file.name for file in folder.iterdir()} == {
        ".lock", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "checkpoint-2", "heldout.jsonl",
        "loss.png", "metrics.jsonl", "prompt_template.txt", "README.md", "run.json", "serving.json",
        "serving_template.jinja", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["steps"] == 2
    assert record["tokens"] > 0 and len(record["data_sha256"]) == 64
    assert set(losses(folder)) == {1, 2}
    # B starts at zero and moves only where a gradient arrived: every layer's seven projections were trained.
    weights = load_file(folder / "adapter_model.safetensors")
    moved = [name for name, tensor in weights.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved) == 30 * 7 and len(weights) == 2 * 30 * 7
    assert re.search(r"held-out perplexity, zh: [\d.]+ before, [\d.]+ after", shown)
    assert re.search(r"held-out perplexity, en: [\d.]+ before, [\d.]+ after", shown)
    assert shown.count("before:  ") == shown.count("after:   ") == 3
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "demo/SmolLM2-135M-Instruct"
    )

    # The adapter's folder is enough: it names its base.
    answer = script(task / "infer.py", "--question", "Why do I cough at night?", "--max_new_tokens", 5).stdout
    assert f"adapter: {folder}" in answer
    questions = tmp_path / "questions.txt"
    questions.write_text("Why do I cough?\n\n我头疼怎么办？\n", encoding="utf-8")
    script(task / "infer.py", "--adapter", folder, "--file", questions, "--max_new_tokens", 5)
    written = [json.loads(line) for line in (tmp_path / "questions.txt.answers.jsonl").read_text("utf-8").splitlines()]
    assert [row["question"] for row in written] == ["Why do I cough?", "我头疼怎么办？"]
    again = script(task / "infer.py", "--file", questions, check=False)
    assert again.returncode and "exists and is kept" in again.stderr


def start(task, environment, *arguments):
    command = [sys.executable, str(task / "train.py"), "--demo", *QUICK, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=task, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < end, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_as_if_nothing_had_happened(copied, environment, tiny_model, tmp_path):
    task = copied("medical")
    arguments = ["--model", tiny_model, "--max_steps", 14, "--save_steps", 4, "--eval_steps", 4, "--output_dir"]
    whole = start(task, environment, *arguments, tmp_path / "whole")
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output

    folder = tmp_path / "killed"
    killed = start(task, environment, *arguments, folder)
    # Past the second checkpoint and before the end: the steps between are done twice.
    wait_for(lambda: (folder / "checkpoint-8" / "trainer_state.json").exists(), killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    if (folder / "adapter_model.safetensors").exists():
        pytest.skip("this machine finished 6 steps before the signal arrived")
    again = start(task, environment, *arguments, folder)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "goes on from checkpoint-" in output
    assert losses(folder) == losses(tmp_path / "whole") and set(losses(folder)) == set(range(1, 15))
    one, other = ((run / "adapter_model.safetensors").read_bytes() for run in (folder, tmp_path / "whole"))
    assert one == other

    # A finished run is never taken up again: the same command starts beside it.
    third = start(task, environment, *arguments, folder, "--price_per_hour", 2)
    output, _ = third.communicate(timeout=300)
    assert third.returncode == 0 and "goes on from" not in output
    assert losses(tmp_path / "killed-2") == losses(folder)


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(copied, environment, tiny_model, tmp_path):
    task = copied("medical")
    arguments = ["--model", tiny_model, "--max_steps", 4000, "--save_steps", 1000, "--eval_strategy", "no"]
    arguments += ["--load_best_model_at_end", "false"]
    process = start(task, environment, *arguments)
    home = tmp_path / "outputs" / "medical"
    wait_for(lambda: any(losses(folder) for folder in home.glob("*") if (folder / "metrics.jsonl").exists()), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    (folder,) = home.iterdir()
    (checkpoint,) = folder.glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").exists() and "stopping: a checkpoint is saved" in output
    assert json.loads((folder / "run.json").read_text())["status"] == "unfinished"

    # Other arguments are another run: it starts beside the unfinished one.
    other = start(task, environment, *arguments[:2], "--max_steps", 1)
    output, _ = other.communicate(timeout=120)
    assert other.returncode == 0 and "goes on from" not in output and len(list(home.iterdir())) == 2
    again = start(task, environment, *arguments)
    wait_for(lambda: len(losses(folder)) > int(checkpoint.name.split("-")[1]), again)
    again.send_signal(signal.SIGINT)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 130 and f"goes on from {checkpoint.name}" in output
    steps = [log["step"] for log in metrics(folder) if "loss" in log]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--model", "nobody/nothing"], "model 'nobody/nothing' was not found. Tried:"),
        pytest.param(["--max_length", "20"], "no row fits in --max_length 20", marks=pytest.mark.slow),
        (["--held_out", "100000"], "--held_out 100000 of 110 rows"),
        (["--unknown", "1"], "unknown flag --unknown"),
    ],
)
def test_bad_input_is_said_in_a_line_before_a_model_loads(script, arguments, said):
    done = script(ROOT / "medical" / "train.py", "--demo", *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def test_a_missing_model_lists_the_places_and_one_command(script, tmp_path):
    done = script(
        ROOT / "medical" / "train.py", "--demo", "--model", "Qwen/Qwen2.5-7B-Instruct", check=False, MODELS_DIR=tmp_path
    )
    for place in (
        tmp_path / "Qwen/Qwen2.5-7B-Instruct",
        tmp_path / "Qwen/Qwen2___5-7B-Instruct",
        "the hub huggingface",
    ):
        assert str(place) in done.stderr
    assert f"modelscope download --model Qwen/Qwen2.5-7B-Instruct --local_dir {tmp_path}" in done.stderr


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
@pytest.mark.parametrize("flags", [["--quantization", "4bit"], ["--backend", "unsloth"]], ids=lambda flags: flags[1])
@pytest.mark.slow
def test_cuda_asked_for_and_absent(script, flags):
    done = script(ROOT / "medical" / "train.py", "--demo", *flags, check=False)
    assert done.returncode and "needs an NVIDIA GPU" in done.stderr and "Traceback" not in done.stderr


def test_an_adapter_that_is_none(script, tmp_path):
    done = script(ROOT / "medical" / "infer.py", "--adapter", tmp_path, "--question", "x", check=False)
    assert "holds no adapter (no adapter_config.json)" in done.stderr
    done = script(ROOT / "medical" / "infer.py", "--question", "x", check=False)
    assert "no finished run in" in done.stderr and "run train.py first" in done.stderr


@pytest.mark.slow
def test_chat_in_a_pipe_ends_with_its_input(copied, environment, script, tiny_model, tmp_path):
    task = copied("medical")
    script(task / "train.py", "--demo", *QUICK, "--model", tiny_model, "--max_steps", 1)
    command = [sys.executable, "infer.py", "--max_new_tokens", "4"]
    done = subprocess.run(command, cwd=task, env=environment, input="我头疼\nquit\n", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("问题 >") == 2, done.stderr


@pytest.mark.slow
def test_a_run_says_what_it_held_out_also_one_of_before_held_out(copied, script, tiny_model, tmp_path):
    task = copied("medical")
    script(task / "train.py", "--demo", *QUICK, "--model", tiny_model, "--max_steps", 1, "--split_seed", 5)
    folder, measured = only_run(tmp_path), {}
    record = json.loads((folder / "run.json").read_text("utf-8"))
    # What the record of an older run looks like: no task, and the split's settings under names with two meanings.
    old = {name: value for name, value in record["arguments"].items() if name not in ("held_out", "split_seed")}
    old = {name: value for name, value in record.items() if name != "task"} | {
        "arguments": old | {"eval_rows": 8, "seed": 5}
    }
    for name, content in {"new": record, "old": old}.items():
        (folder / "run.json").write_text(json.dumps(content), "utf-8")
        script(task / "evaluate.py", "--adapter", folder, "--max_new_tokens", 2, "--out", tmp_path / name)
        lines = (tmp_path / name / "predictions.jsonl").read_text("utf-8").splitlines()
        measured[name] = [json.loads(line)["instruction"] for line in lines]
    assert len(set(measured["new"])) == 8 and measured["old"] == measured["new"]

    (folder / "run.json").write_text(json.dumps(record | {"task": "s1_scaling"}), "utf-8")
    for arguments in (["infer.py", "--question", "x"], ["evaluate.py"]):
        other = script(task / arguments[0], "--adapter", folder, *arguments[1:], check=False)
        assert other.returncode and "it is a run of s1_scaling" in other.stderr


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains twice")
def test_packed_and_padded_runs_learn_the_same(copied, environment, tiny_model, tmp_path):
    """Eight rows per step, as 2 x 4 padded ones and as one row of eight laid end to end: step for step the same loss."""
    task = copied("medical")
    same = ["--model", tiny_model, "--max_steps", 3, "--bf16", "false", "--eval_strategy", "no"]
    same += ["--load_best_model_at_end", "false", "--logging_steps", 1, "--output_dir"]
    ways = {
        "padded": ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4],
        "packed": ["--per_device_train_batch_size", 8, "--packing", "true", "--fused_lora", "true"],
    }
    seen = {}
    for name, flags in ways.items():
        process = start(task, environment, *same, tmp_path / name, *flags)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        seen[name] = losses(tmp_path / name)
    assert seen["padded"] == pytest.approx(seen["packed"], rel=2e-4)
    assert len(set(seen["padded"].values())) == 3


@pytest.mark.slow
def test_two_processes_share_one_run(copied, environment, tiny_model, tmp_path):
    """As accelerate launch starts them: one folder, one voice, 2 x 4 rows per step."""
    task = copied("medical")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    launch += ["--demo", *QUICK]
    flags = ["--model", str(tiny_model), "--max_steps", "2", "--per_device_train_batch_size", "4"]
    done = subprocess.run([*launch, *flags], cwd=task, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert len([log for log in metrics(folder) if "loss" in log]) == 2
    assert done.stdout.count("optimizer steps of 8 rows") == done.stdout.count("saved: ") == 1


@pytest.mark.parametrize("preset", ["fast.yaml", "course.yaml"])
def test_presets_name_flags_that_exist(script, preset):
    done = script(
        ROOT / "medical" / "train.py", "--config", ROOT / "medical" / preset, "--data", "nowhere", check=False
    )
    # The course's preset asks for Unsloth; the other one gets as far as the data.
    assert "nowhere: no such folder" in done.stderr or "--backend unsloth needs an NVIDIA GPU" in done.stderr
