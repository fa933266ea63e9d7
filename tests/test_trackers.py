"""--report_to: what is missing is said at once; every value arrives once; no tracker can harm a training."""

import importlib.machinery
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import cli, runs, trackers

ROOT = Path(__file__).resolve().parents[1]
KEY = "0123456789abcdef0123456789abcdef"

# Both libraries' own signatures, as far as they are used. What arrives is written down.
FAKE = """
import json, os, time
def note(**told):
    with open(os.environ["ARRIVED"], "a") as file:
        file.write(json.dumps(told, default=str) + "\\n")
class Settings:
    def __init__(self, SETTINGS): pass
class Run:
    def log(self, data, step=None, commit=None):
        BROKEN
        note(tracker=__name__, step=step, **data)
    def finish(self, exit_code=None): note(tracker=__name__, finished=True)
def init(INIT):
    note(tracker=__name__, init={"project": project, "name": name, "id": id, "resume": resume, "config": config})
    return Run()
"""
SETTINGS = {
    "wandb": "console=None, disable_git=None, disable_code=None",
    "swanlab": "probe=None, terminal=None, interactive=True",
}
INIT = {
    "wandb": "entity=None, project=None, dir=None, id=None, name=None, config=None, mode=None, resume=None, settings=None",
    "swanlab": "*, log_dir=None, mode=None, project=None, name=None, id=None, resume=None, config=None, settings=None",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Makes wandb and swanlab, as packages for this process and those that it starts; returns what arrived there."""
    folder, arrived = tmp_path / "packages", tmp_path / "arrived.jsonl"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("ARRIVED", str(arrived))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.syspath_prepend(str(folder))

    def make(**broken):
        for name in ("wandb", "swanlab"):
            text = FAKE.replace("SETTINGS", SETTINGS[name]).replace("INIT", INIT[name])
            (folder / f"{name}.py").write_text(text.replace("BROKEN", broken.get(name, "")))
        importlib.invalidate_caches()
        return lambda: [json.loads(line) for line in arrived.read_text().splitlines()] if arrived.exists() else []

    return make


@pytest.fixture
def no_accounts(tmp_path, monkeypatch):
    """A machine on which nobody has logged in anywhere; returns its home."""
    for name in os.environ:
        if name.startswith(("WANDB_", "SWANLAB_")) or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".swanlab").mkdir(parents=True)
    return tmp_path / "home"


def loop(folder, names, steps, stop=None, **flags):
    """A run with an own loop and a checkpoint every third step -> (run, the longest that one log took)."""
    args = SimpleNamespace(output_dir=str(folder), report_to=names, **flags)
    longest = 0
    with runs.Run(args, stage="loop", marker="state.pt") as run:
        state = run.load_state()
        for step in range(state["step"] + 1 if state else 1, steps + 1):
            began = time.perf_counter()
            run.log(step, {"loss": 1 / step, "note": "text"})
            longest = max(longest, time.perf_counter() - began)
            if step % 2 == 0:
                run.log(step, {"eval_loss": 2 / step})
            if step % 3 == 0:
                run.save_state(step, {})
            if step == stop:
                raise KeyboardInterrupt
    return run, longest


def without_clocks(run):
    return [{name: value for name, value in log.items() if name != "time"} for log in run.metrics()]


# -- before anything is loaded


@pytest.mark.skipif(bool(importlib.util.find_spec("wandb")), reason="wandb is installed here")
@pytest.mark.parametrize("script", ["alpaca/train.py", "rlhf_ppo/train_ppo.py"])
def test_a_package_that_is_missing_is_said_in_one_line_and_at_once(script, tmp_path):
    (tmp_path / "wandb").mkdir()  # what a run of before left in the working folder is no package
    command = [sys.executable, "-X", "importtime", str(ROOT / script), "--demo", "--report_to", "wandb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    name = Path(script).name
    assert said == [f"{name}: error: argument --report_to: wandb is not installed: pip install wandb"]
    assert done.returncode == 1 and not done.stdout and "| torch\n" not in done.stderr


def installed(monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None, origin="x")
    )


def fail(message):
    raise SystemExit(message)


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_without_a_key_both_ways_out_are_named(name, no_accounts, monkeypatch):
    installed(monkeypatch)
    with pytest.raises(SystemExit) as error:
        trackers.checked([name], fail)
    said = str(error.value)
    assert f"set {name.upper()}_API_KEY or run `{name} login`" in said and f"{name.upper()}_MODE=offline" in said
    assert "\n" not in said
    monkeypatch.setenv(f"{name.upper()}_MODE", "offline")
    assert trackers.checked([name], fail) == [name]
    monkeypatch.setenv(f"{name.upper()}_MODE", "online")
    monkeypatch.setenv(f"{name.upper()}_API_KEY", KEY)
    assert trackers.checked([name], fail) == [name]


def test_a_login_of_before_counts_and_one_to_another_server_does_not(no_accounts, monkeypatch):
    installed(monkeypatch)
    file = no_accounts / ".netrc"
    for host, base, known in [
        ("api.wandb.ai", "", True),
        ("github.com", "", False),
        ("api.wandb.ai", "https://wandb.example.com", False),
        ("wandb.example.com", "https://wandb.example.com", True),
    ]:
        file.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
        file.chmod(0o600)
        monkeypatch.setenv("WANDB_BASE_URL", base)
        assert trackers.has_key("wandb") is known, host
    file.write_text("no netrc file {")
    assert not trackers.has_key("wandb") and not trackers.has_key("swanlab")
    (no_accounts / ".swanlab" / ".netrc").write_text(f"machine https://api.swanlab.cn login x password {KEY}\n")
    assert trackers.has_key("swanlab")


@pytest.mark.parametrize("names", [["all"], ["mlflow"], ["none", "tensorboard"]])
def test_other_names_are_refused(names):
    with pytest.raises(SystemExit, match="expected none, or one or more of tensorboard, wandb, swanlab, trackio"):
        trackers.checked(names, fail)


@pytest.mark.parametrize("value", [None, "none", ["none"], []])
def test_none_is_none(value):
    assert trackers.checked(value, fail) == ["none"]


def test_transformers_itself_reports_to_nobody():
    args = cli.parse(
        __file__, dict(report_to=["none"]), {}, cli.SftArgs, "trl:SFTConfig", ["--report_to", "tensorboard"]
    )
    assert args.report_to == ["tensorboard"] and cli.trainer_config(args).report_to == []
    assert "report_to" in args.own_flags  # so a run's record, and train_grpo.py's, has what was asked


# Runs in a recipe's folder: what each of its scripts says to a name that there is not.
ASK = """
import importlib, json, pathlib, sys
sys.path[0], said = ".", {}
for file in sorted(pathlib.Path().glob("train*.py")):
    sys.argv = [file.name, "--report_to", "all"]
    try:
        importlib.import_module(file.stem).main()
    except SystemExit as error:
        said[file.name] = str(error)
assert "torch" not in sys.modules
print(json.dumps(said))
"""


@pytest.mark.parametrize("folder", sorted({file.parent.name for file in ROOT.glob("*/train*.py")}))
def test_every_script_that_trains_has_the_flag(folder):
    done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT / folder, capture_output=True, text=True, check=True)
    for script, said in json.loads(done.stdout).items():
        assert said.startswith(f"{script}: error: argument --report_to: 'all': expected none, or one or more"), said
    assert (ROOT / folder / "common" / "trackers.py").is_file()


# -- what arrives


def test_each_value_arrives_once_with_a_resume_too_and_no_secret(tmp_path, fakes, monkeypatch, capfd):
    """tensorboard and trackio for real, wandb and swanlab by their signatures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arrived = fakes()
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "hf_5ecret"])
    flags = dict(names=["tensorboard", "wandb", "swanlab", "trackio"], hub_token="hf_5ecret", lora_r=8)
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path / "run", steps=9, stop=5, **flags)
    run, _ = loop(tmp_path / "run", steps=9, **flags)
    expected = {"loss": [(s, 1 / s) for s in range(1, 10)], "eval_loss": [(s, 2 / s) for s in (2, 4, 6, 8)]}

    for name in ("wandb", "swanlab"):
        mine = [each for each in arrived() if each["tracker"] == name]
        for metric, values in expected.items():
            assert [(each["step"], each[metric]) for each in mine if metric in each] == values, name
        starts = [each["init"] for each in mine if "init" in each]
        assert len(starts) == 2 and starts[0] == starts[1] and sum("finished" in each for each in mine) == 2
        assert starts[0]["id"] == run.record["tracking_id"] and starts[0]["resume"] == "allow"
        assert starts[0]["project"] == run.record["task"] and starts[0]["name"] == "loop-run"
        assert starts[0]["config"]["lora_r"] == 8 and starts[0]["config"]["hub_token"] is None
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    for metric, values in expected.items():
        got = [(each.step, each.value) for each in events.Scalars(metric)]
        assert got == [(step, pytest.approx(value)) for step, value in values]
        times = {log["step"]: log["time"] for log in run.metrics() if metric in log}
        assert events.Scalars(metric)[-1].wall_time == pytest.approx(times[values[-1][0]])
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics, run_name from metrics order by id").fetchall()
    for metric, values in expected.items():
        assert [(s, json.loads(m)[metric]) for s, m, _ in rows if metric in json.loads(m)] == values
    assert {each[2] for each in rows} == {"loop-run"}

    said = capfd.readouterr()
    assert f"swanlab sync {run.folder}/swanlog/run-*" in said.out and "wandb, offline" not in said.out
    assert "warning" not in said.err
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if b"hf_5ecret" in (text := file.read_bytes()) or KEY.encode() in text]


def test_a_run_whose_process_was_killed_has_all_of_its_values(tmp_path, fakes):
    arrived = fakes()
    (tmp_path / "run").mkdir()
    facts = {"task": "alpaca", "stage": "", "tracking_id": "7", "arguments": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "loss": 2.0}\n{"step": 2, "ti')
    code = "import os, pathlib, sys; from common import trackers; trackers.start(['wandb'], pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"{code}; os._exit(9)", str(tmp_path / "run")], cwd=ROOT, check=False,
                   env=os.environ | {"PYTHONPATH": os.environ["PYTHONPATH"] + os.pathsep + str(ROOT)})  # fmt: skip
    until = time.time() + 20
    while time.time() < until and not any("finished" in each for each in arrived()):
        time.sleep(0.1)
    assert [each["loss"] for each in arrived() if "loss" in each] == [2.0]
    assert json.loads((tmp_path / "run" / "tracking" / "wandb.json").read_text()) == [1, 1]


def test_only_the_first_process_logs():
    def log(*_):
        raise AssertionError("logged")

    run = SimpleNamespace(main=False, config=True, progress={}, log=log)
    runs.Recorder(run).on_log(None, SimpleNamespace(global_step=1), None, {"loss": 1.0})


# -- trackers that are broken


@pytest.mark.parametrize("where", ["log", "import"])
def test_one_that_hangs_and_one_that_raises_harm_nothing(where, tmp_path, fakes, monkeypatch, capfd):
    hang = "import signal, time\n        for n in (2, 15): signal.signal(n, signal.SIG_IGN)\n        while True: time.sleep(9)"
    arrived = fakes(wandb=hang, swanlab="raise ConnectionError('key ' + os.environ['WANDB_API_KEY'] + '\\nrefused')")
    if where == "import":
        (tmp_path / "packages" / "wandb.py").write_text("import time\nwhile True: time.sleep(9)")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert trackers.PATIENCE <= 10
    monkeypatch.setattr(trackers, "PATIENCE", 2)
    plain, _ = loop(tmp_path / "plain", ["none"], 200)
    began = time.time()
    run, longest = loop(tmp_path / "run", ["wandb", "swanlab"], 200)
    assert time.time() - began < 8 and longest < 1  # the first log starts two processes
    assert without_clocks(run) == without_clocks(plain) and run.record["status"] == "finished"
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert sorted(warnings) == [
        "warning: swanlab: ConnectionError: key *** refused. Training goes on without it. metrics.jsonl has every value",
        "warning: wandb: not done 2 s after the end, stopped. metrics.jsonl has every value",
    ]
    assert not [each for each in arrived() if "loss" in each]
    assert not [file for file in run.folder.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_a_trainer_beside_a_tracker_that_hangs(tmp_path, tiny_model, fakes, monkeypatch):
    """The same training, by transformers' Trainer: equal metrics.jsonl, and tensorboard has all of them."""
    import datasets
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForCausalLM, Trainer, set_seed

    fakes(wandb="while True: time.sleep(9)")
    monkeypatch.setattr(trackers, "PATIENCE", 5)
    rows = datasets.Dataset.from_list([{"input_ids": [n, 5, 6, 7], "labels": [n, 5, 6, 7]} for n in range(8)])

    def train(name, *report_to):
        argv = [
            "--output_dir",
            str(tmp_path / name),
            "--model",
            str(tiny_model),
            "--max_steps",
            "3",
            "--logging_steps",
            "1",
        ]
        argv += ["--save_strategy", "no", "--disable_tqdm", "--report_to", *report_to]
        args = cli.parse(__file__, {}, {}, cli.LoraArgs, "transformers:TrainingArguments", argv)
        config = cli.trainer_config(args)
        with runs.Run(args, config, rows, draw=lambda _: None) as run:
            set_seed(1)
            trainer = Trainer(AutoModelForCausalLM.from_pretrained(tiny_model), config, train_dataset=rows)
            run.train(trainer)
        return run

    clocks = ("time", "runtime", "second")
    plain, tracked = (
        [{name: x for name, x in log.items() if not name.endswith(clocks)} for log in run.metrics()]
        for run in (train("plain", "none"), train("run", "wandb", "tensorboard"))
    )
    assert tracked == plain and len(plain) == 4
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [each.value for each in events.Scalars("loss")] == pytest.approx(
        [log["loss"] for log in plain if "loss" in log]
    )
