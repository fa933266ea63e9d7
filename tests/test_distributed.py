"""Several processes train one run, on CPUs with gloo: stopped, killed and gone on with, as on two cards and two machines.

TEST_NIGHTLY=1 tries all cases, and the launchers themselves; docker/RESULTS.md has the figures.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NIGHTLY = bool(os.environ.get("TEST_NIGHTLY"))
CASES = {
    "alpaca": ["twice", "second", "kill_second", "fewer"] + NIGHTLY * ["both", "interrupt", "first", "kill_first"],
    "r1": ["twice"] + NIGHTLY * ["both", "interrupt", "first", "second", "kill_first", "kill_second"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_stopped_or_killed_go_on_to_the_same_adapter(name, tmp_path):
    command = [sys.executable, ROOT / "tests/ranks.py", tmp_path, name, *CASES[name]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = json.loads((tmp_path / f"{name}.json").read_text())
    assert made["plan"] == "4"  # 2 rows on each of two
    fewer = made["cases"].pop("fewer", None)  # of half the rows per step: another run
    assert not fewer or (fewer["codes"], fewer["alone"], fewer["went_on"]) == ([143, 143], 0, False), fewer
    for case, found in made["cases"].items():
        killed = case.startswith("kill")
        assert found["status"] == ["unfinished"], (case, found)
        # A stop is saved in the step that it came in, by whomever it was heard; a kill costs what came after the last save.
        assert found["went_on"] == (2 if killed else 3), (case, found)
        if not killed:
            assert found["codes"] == [130, 130] if case == "interrupt" else [143, 143], (case, found)
        else:
            assert sorted(found["codes"]) == [-9, 1], (case, found)
        assert (found["again"], found["folders"]) == ([0, 0], 1), (case, found)
        assert found["adapter"] and found["metrics"], (case, found)


def test_a_loop_of_one_process_is_not_started_twice(tmp_path, monkeypatch):
    """PPO and the reward model have loops of their own: under a launcher each process would train for itself."""
    from types import SimpleNamespace

    from common import runs

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="trains on one GPU: start it with python, without a launcher"):
        runs.Run(SimpleNamespace(output_dir=str(tmp_path / "run")), stage="reward", inputs={}, marker="state.pt")
    assert not list(tmp_path.iterdir())


needs_nightly = pytest.mark.skipif(not NIGHTLY, reason="TEST_NIGHTLY=1 starts the launchers")


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    """start(home, command in front of train.py) -> Popen of an SFT run of 40 steps; home is its output folder."""
    sys.path.insert(0, str(ROOT / "tools"))
    import faults

    sys.path.remove(str(ROOT / "tools"))
    model = faults.tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    flags = (
        f"--demo --model {model} --eval_steps 10 --save_steps 10 --logging_steps 1 --max_steps 40 --lora_dropout 0.1"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(home, *front):
        command = [sys.executable, "-m", *front, ROOT / "alpaca/train.py", *faults.TEXT.split(), *flags.split()]
        home.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*map(str, command), "--output_dir", str(home / "run")],
            env=environment | {"OUTPUT_DIR": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


TORCHRUN = "torch.distributed.run", "--standalone", "--nproc_per_node", "2"


@pytest.fixture(scope="module")
def whole(launchers, tmp_path_factory):
    """The adapter of a run by torchrun that was left alone."""
    home = tmp_path_factory.mktemp("whole")
    process = launchers(home, *TORCHRUN)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return (home / "run/adapter_model.safetensors").read_bytes()


def status(home):
    return json.loads((home / "run/run.json").read_text())["status"]


@needs_nightly
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_and_the_same_command_goes_on(launchers, whole, tmp_path, sent):
    process = launchers(tmp_path, *TORCHRUN)
    logged = tmp_path / "run/metrics.jsonl"
    end = time.time() + 120
    while not logged.exists() or len(logged.read_text().splitlines()) < 13:
        assert time.time() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(sent)
    said, _ = process.communicate(timeout=120)
    assert process.returncode and status(tmp_path) == "unfinished", said
    last = max(int(each.name.split("-")[1]) for each in (tmp_path / "run").glob("checkpoint-*"))
    assert last % 10, "it was saved in the step that it was stopped in"
    process = launchers(tmp_path, *TORCHRUN)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f"goes on from checkpoint-{last}" in said, said
    assert (tmp_path / "run/adapter_model.safetensors").read_bytes() == whole


@needs_nightly
@pytest.mark.slow
def test_two_machines_by_accelerate_make_the_adapter_of_one(launchers, whole, tmp_path):
    """Two launchers that meet on loopback, as on two machines that see the same disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    front = ["accelerate.commands.launch", "--config_file", ROOT / "docker/accelerate/ddp.yaml", "--num_machines", "2"]
    front += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    front += ["--mixed_precision", "no"]  # the other run is in float32
    started = [launchers(tmp_path, *front, "--machine_rank", str(number)) for number in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert "optimizer steps of 4 rows" in said[0] and "saved: " not in said[1]
    assert (tmp_path / "run/adapter_model.safetensors").read_bytes() == whole
