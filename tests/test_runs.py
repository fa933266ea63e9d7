"""Runs that are cut off, started twice, or run out of disk: what is gone on with, what is kept, what is said."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import files, runs
from common.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import faults  # noqa: E402

CLOCK = faults.CLOCK


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random model's folder."""
    return faults.tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def args(base):
    return SimpleNamespace(price_per_hour=None, model=str(base), own_flags=["price_per_hour", "model"], output_dir=None)


def dataset(*rows):
    import datasets

    return datasets.Dataset.from_dict({"input_ids": rows, "labels": [[-100, *row[1:]] for row in rows]})


ROWS = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16], [17, 18], [19, 20, 21, 22], [23, 24, 25]]


def config(tmp_path, name="run", **more):
    from trl import SFTConfig

    return SFTConfig(output_dir=str(tmp_path / name), use_cpu=True, bf16=False, report_to=[], **more)


def unfinished(tmp_path, args, steps, damage=(), **more):
    """A run that stopped after saving at `steps`; those in `damage` were cut off while they were written."""
    rows = dataset([1, 2, 3], [4, 5])
    with runs.Run(args, config(tmp_path, **more), rows) as run:
        for step in steps:
            folder = run.folder / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "optimizer.pt").write_bytes(b"momentum")
            (folder / "trainer_state.json").write_text('{"global_step": 1}')
            if step not in damage:
                files.seal(folder)
    return rows, run.folder


# -- which run is gone on with


def test_only_an_unfinished_run_with_equal_arguments_and_data_is_resumed(tmp_path, args):
    rows, folder = unfinished(tmp_path, args, [5, 10, 15], damage=[15])
    again = runs.Run(args, config(tmp_path), rows)
    assert (again.folder, again.checkpoint.name) == (folder, "checkpoint-10")
    again.lock.release()
    dearer = runs.Run(SimpleNamespace(**vars(args) | {"price_per_hour": 3.0}), config(tmp_path), rows)
    assert dearer.checkpoint  # a price changes nothing that is computed
    busy = runs.Run(args, config(tmp_path), rows)
    assert busy.folder.name == "run-2" and not busy.checkpoint  # the other still holds the lock
    dearer.lock.release()
    other_arguments = runs.Run(args, config(tmp_path, learning_rate=0.5), rows)
    other_data = runs.Run(args, config(tmp_path), dataset([1, 2, 3], [4, 9]))
    assert [run.checkpoint for run in (other_arguments, other_data)] == [None, None]
    write_json(folder / "run.json", read_json(folder / "run.json") | {"status": "finished"})
    assert runs.Run(args, config(tmp_path), rows).checkpoint is None


def test_weights_that_changed_under_the_same_path_are_another_run(tmp_path, args, base):
    args.model = str(shutil.copytree(base, tmp_path / "model"))
    rows, folder = unfinished(tmp_path, args, [5])
    again = runs.Run(args, config(tmp_path), rows)
    assert again.folder == folder
    again.lock.release()
    with open(tmp_path / "model" / "model.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    assert runs.Run(args, config(tmp_path), rows).checkpoint is None


def test_a_fingerprint_reads_a_few_megabytes_of_a_large_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in "abcd":  # 15 GB, sparse
        with open(tmp_path / f"{name}.safetensors", "wb") as file:
            file.truncate(15 * 2**30 // 4)
    began = time.time()
    files.fingerprint(tmp_path)
    assert time.time() - began < 1


@pytest.mark.parametrize("name", ["run10", "run-10"])
def test_a_run_whose_name_begins_alike_is_another_run(tmp_path, args, name):
    rows = dataset([1, 2, 3], [4, 5])
    with runs.Run(args, config(tmp_path, name), rows) as run:
        (run.folder / "checkpoint-5").mkdir()
        (run.folder / "checkpoint-5" / "trainer_state.json").write_text('{"a": 1}')
        files.seal(run.folder / "checkpoint-5")
    asked = runs.Run(args, config(tmp_path), rows)
    assert asked.folder.name == "run" and asked.checkpoint is None
    assert runs.Run(args, config(tmp_path, name), rows).checkpoint  # under its own name it is gone on with


def test_names_with_glob_characters(tmp_path, args):
    (tmp_path / "a[b]*").mkdir()
    rows, folder = unfinished(tmp_path / "a[b]*", args, [5])
    assert runs.Run(args, config(tmp_path / "a[b]*"), rows).folder == folder


def test_a_run_that_another_process_has_just_finished_is_not_gone_on_with(tmp_path, args, monkeypatch):
    """It finished, and let go of its lock, between our look at its record and our taking the lock."""
    rows, folder = unfinished(tmp_path, args, [5])
    take_lock = files.take_lock

    def late(where):
        if where == folder:
            write_json(folder / "run.json", read_json(folder / "run.json") | {"status": "finished"})
        return take_lock(where)

    monkeypatch.setattr(files, "take_lock", late)
    monkeypatch.setattr(runs, "take_lock", late, raising=False)
    run = runs.Run(args, config(tmp_path), rows)
    assert run.checkpoint is None and run.folder.name == "run-2"


def test_two_processes_that_start_in_the_same_instant_get_two_folders(tmp_path, args):
    rows = dataset([1, 2, 3], [4, 5])
    first, second = (runs.Run(args, config(tmp_path), rows) for _ in range(2))  # neither has written anything yet
    assert (first.folder.name, second.folder.name) == ("run", "run-2")


@pytest.mark.parametrize("content", ["[1]", "null", '{"identity"', '{"started": [1], "status": 7}', "[" * 10_000])
def test_a_damaged_neighbour_stops_no_new_run(tmp_path, args, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    (tmp_path / "run-2").write_text("a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(content)
    run = runs.Run(args, config(tmp_path), dataset([1, 2, 3], [4, 5]))
    assert run.folder.name == "run-3" and not run.checkpoint


def test_the_old_codes_unfinished_run_is_named_and_not_gone_on_with(tmp_path, args, capsys):
    rows, folder = unfinished(tmp_path, args, [5, 10])
    record = read_json(folder / "run.json")
    del record["weights"]
    write_json(folder / "run.json", record | {"identity": "of another form"})
    assert runs.Run(args, config(tmp_path), rows).checkpoint is None
    assert "run was begun by an older version of this recipe" in capsys.readouterr().out


# -- which checkpoint


def spoil(folder, how):
    """Damage a checkpoint."""
    if how == "missing":
        (folder / "optimizer.pt").unlink()
    elif how == "short":
        os.truncate(folder / "optimizer.pt", 3)
    elif how == "changed":
        (folder / "optimizer.pt").write_bytes(b"Momentum")
    elif how == "unsealed":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text('{"files": {"optimizer.pt": 7}}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "optimizer.pt: No such file"),
        ("short", "optimizer.pt has 3 bytes instead of 8"),
        ("changed", "optimizer.pt is not what was written"),
        ("unsealed", "it has no manifest.json, so it was cut off while it was written"),
        ("manifest", "manifest.json is damaged"),
    ],
)
def test_of_damaged_checkpoints_the_next_older_one_is_taken_and_named(tmp_path, args, capsys, how, said):
    rows, folder = unfinished(tmp_path, args, [5, 10])
    spoil(folder / "checkpoint-10", how)
    run = runs.Run(args, config(tmp_path), rows)
    shown = capsys.readouterr().out
    assert run.checkpoint.name == "checkpoint-5" and f"run/checkpoint-10 is left out, checkpoint-10: {said}" in shown
    assert "goes on from checkpoint-5" in shown
    run.lock.release()
    spoil(folder / "checkpoint-5", how)
    run = runs.Run(args, config(tmp_path), rows)
    assert run.checkpoint is None and run.folder.name == "run-2" and (folder / "checkpoint-5").is_dir()


def test_a_checkpoint_whose_best_is_damaged_is_left_out(tmp_path, args, capsys):
    """The trainer loads the best at the end: without it the run would break there at every start."""
    more = dict(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=5, save_steps=5)
    rows, folder = unfinished(tmp_path, args, [5, 10], **more)
    (folder / "checkpoint-10" / "trainer_state.json").write_text('{"best_model_checkpoint": "/moved/run/checkpoint-7"}')
    files.seal(folder / "checkpoint-10")
    run = runs.Run(args, config(tmp_path, **more), rows)
    assert (
        run.checkpoint.name == "checkpoint-5"
        and "left out, checkpoint-7: it has no manifest" in capsys.readouterr().out
    )


def test_old_checkpoints_go_and_a_users_copies_stay(tmp_path, args):
    _, folder = unfinished(tmp_path, args, [1, 2, 3, 4, 5, 6, 9])
    copies = {"checkpoint-best", "checkpoint-3-mine", "checkpoint-0-backup", "checkpoint-٣"}
    for name in copies:
        (folder / name).mkdir()
    (folder / "checkpoint-7").write_text("a file")
    (folder / "checkpoint-8").symlink_to(folder / "checkpoint-3-mine")
    runs.prune(folder, 6, 3, "checkpoint-2")  # 9 was damaged, and 6 is newer: it was gone on from before that
    left = {each.name for each in folder.glob("checkpoint-*")}
    assert left == {f"checkpoint-{step}" for step in (2, 4, 5, 6, 7, 8)} | copies


def test_sealing_hundreds_of_megabytes_takes_a_second(tmp_path, capsys):
    """A 7B model's LoRA with Adam's state is some 480 MB. 0.9 GB/s were measured; a shared core may be slower."""
    (tmp_path / "adapter").write_bytes(os.urandom(2**20) * 100)
    began = time.time()
    assert files.damage(tmp_path) and not files.seal(tmp_path) and not files.damage(tmp_path)
    assert 200 / (time.time() - began) > 50  # MB/s


# -- training that was cut off, by a real trainer


def start(tmp_path, args, stop_at=None, raise_in=None, callbacks=(), **more):
    """One process of a run: trained, saved and measured, or stopped by a signal after a step, or broken in a phase."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl import SFTTrainer

    class Stop(TrainerCallback):
        def on_step_begin(self, _, state, control, **kwargs):
            if state.global_step + 1 == stop_at:
                run.stop = 15

    more = (
        dict(max_steps=5, save_steps=2, logging_steps=2, eval_strategy="steps", eval_steps=2, learning_rate=0.01) | more
    )
    more = dict(lr_scheduler_type="constant", per_device_train_batch_size=2, loss_type="nll", seed=1) | more
    trainer_config = config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True, **more)
    rows, tokenizer = dataset(*ROWS), AutoTokenizer.from_pretrained(args.model)
    with runs.Run(args, trainer_config, rows, draw=lambda _: None) as run:
        set_seed(1)
        model = AutoModelForCausalLM.from_pretrained(args.model)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
        trainer = SFTTrainer(
            model,
            trainer_config,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            callbacks=[Stop(), *callbacks],
        )
        run.train(trainer)
        if raise_in == "save":
            raise KeyboardInterrupt
        run.save(trainer, tokenizer)
        run.note(after=trainer.evaluate())
        if raise_in == "record":
            raise KeyboardInterrupt
    return run, trainer


def outcome(folder):
    """(adapter's bytes, metrics without clocks) of a run."""
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logs = [{name: value for name, value in log.items() if not CLOCK.search(name)} for log in logs]
    return (folder / "adapter_model.safetensors").read_bytes(), logs


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A run that was left alone."""
    args = SimpleNamespace(price_per_hour=None, model=str(base), own_flags=["price_per_hour", "model"], output_dir=None)
    run, _ = start(tmp_path_factory.mktemp("whole"), args)
    return outcome(run.folder)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["save", "record"])
def test_a_finished_training_is_loaded_and_saved_and_not_trained_on(tmp_path, args, whole, phase):
    """Before: each start added a step, and after a kill between the last measurement and the record began anew."""
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, args, raise_in=phase)
    run, trainer = start(tmp_path, args)
    assert [each.name for each in tmp_path.iterdir()] == ["run"] and trainer.state.global_step == 5
    assert outcome(run.folder) == whole and run.record["status"] == "finished"
    assert [each.name for each in runs.checkpoints(run.folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


@pytest.mark.slow
def test_a_run_goes_on_counting_where_it_was_stopped(tmp_path, args, whole):
    """Stopped between two logs: tokens, the loss since the last log and of the whole run, seconds; no line twice."""
    with pytest.raises(SystemExit, match="143"):
        start(tmp_path, args, stop_at=3)
    first = read_json(tmp_path / "run" / "checkpoint-3" / "manifest.json")["progress"]
    manifest = read_json(tmp_path / "run" / "checkpoint-3" / "manifest.json")
    manifest["progress"]["seconds"] += 1000.0  # as if it had taken long
    write_json(tmp_path / "run" / "checkpoint-3" / "manifest.json", manifest)
    run, _ = start(tmp_path, args)
    assert outcome(run.folder) == whole and first["counted"]["tokens"] > 0
    summary = [log for log in run.metrics() if "train_runtime" in log]
    assert len(summary) == 1 and summary[0]["train_runtime"] > 1000 and summary[0]["train_steps_per_second"] < 0.01
    assert run.record["seconds"] > 1000 and run.record["tokens"] == round(21 / 6 * 2 * 5)


@pytest.mark.slow
def test_what_is_measured_at_the_start_is_measured_once(tmp_path, args):
    def measured(run):
        return [log["step"] for log in run.metrics() if "eval_loss" in log]

    whole, _ = start(tmp_path / "whole", args, eval_on_start=True)
    with pytest.raises(SystemExit, match="143"):
        start(tmp_path, args, stop_at=3, eval_on_start=True)
    run, _ = start(tmp_path, args, eval_on_start=True)
    assert measured(run) == measured(whole) and measured(run).count(0) == 1


@pytest.mark.slow
def test_the_best_is_found_where_the_run_was_moved_to(tmp_path, args):
    """Its trainer's state names the best checkpoint by an old path; transformers would keep the last weights in silence."""
    best = dict(load_best_model_at_end=True, greater_is_better=True)  # the largest loss, which is the first
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "old", args, raise_in="save", **best)
    shutil.move(tmp_path / "old", tmp_path / "new")
    run, trainer = start(tmp_path / "new", args, **best)
    assert Path(trainer.state.best_model_checkpoint) == run.folder / "checkpoint-2"
    kept = run.folder / "checkpoint-2" / "adapter_model.safetensors"
    assert kept.read_bytes() == (run.folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_trainers_own_limit_deletes_no_copies_of_a_user(tmp_path, args):
    mine = tmp_path / "run" / "checkpoint-1-mine"
    with pytest.raises(SystemExit, match="143"):
        start(tmp_path, args, stop_at=1, save_total_limit=1)
    shutil.copytree(tmp_path / "run" / "checkpoint-1", mine)
    run, _ = start(tmp_path, args, save_total_limit=1)
    assert mine.is_dir() and [each.name for each in runs.checkpoints(run.folder)] == ["checkpoint-5"]


def test_an_own_loop_goes_on_and_keeps_its_seconds(tmp_path):
    import torch

    args = SimpleNamespace(output_dir=str(tmp_path / "run"), reuse=False)

    def begin():
        return runs.Run(args, stage="loop", inputs={"data": 1}, marker="state.pt")

    with pytest.raises(KeyboardInterrupt), begin() as run:
        run.began -= 1000  # as if it had taken long
        for step in (1, 2, 3):
            run.log(step, {"loss": 1 / step})
            run.save_state(step, {"weights": torch.ones(3) * step})
        run.log(4, {"loss": 0.0})
        raise KeyboardInterrupt
    os.truncate(run.folder / "checkpoint-3" / "state.pt", 100)
    with begin() as again:
        state = again.load_state()
        assert again.folder == run.folder and state["step"] == 2 and state["weights"].tolist() == [2, 2, 2]
        again.save_state(3, state)
    assert [log["step"] for log in again.metrics()] == [1, 2] and not files.damage(run.folder / "checkpoint-3")
    assert again.record["status"] == "finished" and again.record["seconds"] >= 1000
    third = begin()
    assert third.folder.name == "run-2"


def test_lines_that_a_power_failure_left_are_passed_over(tmp_path):
    run = runs.Run(SimpleNamespace(output_dir=str(tmp_path / "run")), stage="loop", marker="state.pt")
    run.log(1, {"loss": 1.0})
    with open(run.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo\n\0\0\0\0\n\xff{"step')
    assert [log["step"] for log in run.metrics()] == [1]


# -- no room


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(27, "File too large"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3: file write failed"),
        RuntimeError("basic_ios::clear: iostream error"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception('IoError(Os { code: 27, kind: FileTooLarge, message: "File too large" })'),
    ],
)  # fmt: skip
def test_every_librarys_way_to_say_that_nothing_more_fits(error):
    assert files.is_full(error)
    try:
        try:
            raise error
        except Exception:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  # as torch's archive when it is closed
    except RuntimeError as last:
        assert files.is_full(last)
    assert not files.is_full(ValueError("code: 280")) and not files.is_full(OSError(2, "No such file"))


def under_a_limit(size, work):
    """Do work while no file may grow beyond `size` bytes: its SystemExit's message."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(SystemExit) as error:
            work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("size", [600, 4_000, 8_000, 12_000])
def test_no_room_is_one_line_with_what_is_needed_and_kept(tmp_path, args, size):
    """The record, the optimizer, the tokenizer and so on: whatever does not fit first."""
    said = under_a_limit(size, lambda: start(tmp_path, args))
    assert "\n" not in said and "Kept: no checkpoint" in said and "the same command begins anew" in said
    assert re.search(r"a checkpoint takes about [\d.]+ [GM]B", said)
    assert not list((tmp_path / "run").glob("checkpoint-*"))  # what was cut off is out of the way


@pytest.mark.slow
def test_no_room_for_a_later_checkpoint_keeps_the_one_before(tmp_path, args, whole):
    with pytest.raises(SystemExit, match="143"):
        start(tmp_path, args, stop_at=3)
    said = under_a_limit(8_000, lambda: start(tmp_path, args))
    assert "Kept: checkpoint-2, checkpoint-3. " in said and "the same command goes on from checkpoint-3" in said
    assert "the disk is full" in read_json(tmp_path / "run" / "run.json")["stopped_by"]
    run, _ = start(tmp_path, args)
    assert outcome(run.folder) == whole


def test_no_room_for_a_metric_is_said_so_too(tmp_path, args):
    def work():
        with runs.Run(args, config(tmp_path), dataset([1, 2, 3], [4, 5])) as run:
            for step in range(1000):
                run.log(step, {"loss": 1.0})

    said = under_a_limit(20_000, work)
    assert "the disk is full" in said and "\n" not in said


def test_a_note_that_fails_hides_nothing(tmp_path, args, monkeypatch):
    def note(self, **facts):
        if "stopped_by" in facts:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(runs.Run, "note", note)
    with pytest.raises(ValueError, match="the real one"), runs.Run(args, config(tmp_path), dataset([1, 2], [3])) as run:
        raise ValueError("the real one")
    assert files.take_lock(run.folder)


# -- secrets


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--hub_token", "hf_5ecret"], ["--hub-token=hf_5ecret"]])
def test_a_token_given_as_a_flag_is_in_no_file(tmp_path, args, monkeypatch, form):
    monkeypatch.setattr(sys, "argv", ["train.py", "--max_steps", "2", *form])
    monkeypatch.setenv("HF_TOKEN", "another")
    args.hub_token = "hf_5ecret"
    run, trainer = start(tmp_path, args, max_steps=2, hub_token="hf_5ecret")
    written = [each for each in run.folder.rglob("*") if each.is_file()]
    assert {"run.json", "training_args.bin", "metrics.jsonl"} <= {each.name for each in written}
    assert [each for each in written if b"hf_5ecret" in each.read_bytes()] == []
    assert os.environ["HF_TOKEN"] == "hf_5ecret"  # where the hub's client looks for it
    assert "--max_steps 2" in run.record["command"] and "***" in run.record["command"]


def test_a_token_is_in_no_error(tmp_path, args, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "hf_5ecret"])
    rows = dataset([1, 2, 3], [4, 5])
    with pytest.raises(SystemExit) as error, runs.Run(args, config(tmp_path, hub_token="hf_5ecret"), rows) as run:
        raise ValueError("Illegal header value b'Bearer hf_5ecret'")
    assert str(error.value) == "ValueError: Illegal header value b'Bearer ***'"
    assert "hf_5ecret" not in (run.folder / "run.json").read_text()


# -- what is said


def test_the_plan_is_said_with_its_cost(tmp_path, args, capsys):
    trainer = config(tmp_path, per_device_train_batch_size=2, num_train_epochs=20_000)
    runs.Run(args, trainer, dataset([1, 2, 3], [4, 5]))
    said = capsys.readouterr().out
    assert "2 rows, 5 tokens (2 per row, 60% trained on); 20,000 optimizer steps of 2 rows" in said
    assert "days on any card. --max_steps 2000: 4,000 rows" in said


def test_a_trainer_that_cuts_rows_is_stopped(tmp_path, args):
    """TRL cuts at 1024 tokens without a word where nobody tells it otherwise."""
    run = runs.Run(args, config(tmp_path), dataset([1, 2, 3], [4, 5]))
    with pytest.raises(SystemExit, match="sees 4 tokens instead of 5"):
        run.train(SimpleNamespace(train_dataset=dataset([1, 2], [4, 5])))


# -- killed at a write


@pytest.mark.slow
def test_killed_at_a_write_every_trainer_ends_as_if_nothing_had_happened():
    """Four kills each, spread over the writes, renames and removes below the output folder. `make faults` does them all."""
    six = ["alpaca", "r1", "vl", "reward", "ppo", "grpo"]
    command = [sys.executable, str(ROOT / "tools" / "faults.py"), "--points", "4", "--only", *six]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 kills in" in done.stdout and "0 faults" in done.stdout
