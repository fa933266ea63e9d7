"""Two processes train one run, as on two cards: on CPUs, with gloo, forked from one that has loaded the libraries.

    python tests/ranks.py OUT NAME CASE ...      NAME: a trainer of tools/faults.py; CASE: one of CASES

Writes OUT/NAME.json: for each case what the two processes ended with when they were stopped, the checkpoint that the same
command went on from, and whether adapter and metrics equal those of a run that was left alone.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import faults

STEP = 3
# Case -> which signal which of the two processes gets in step STEP. A launcher passes on a signal that its processes may
# have had already from Slurm or from the terminal, so twice is the rule there.
CASES = {
    "both": [(0, "SIGTERM"), (1, "SIGTERM")],
    "twice": [(0, "SIGTERM"), (0, "SIGTERM"), (1, "SIGTERM"), (1, "SIGTERM")],
    "interrupt": [(0, "SIGINT"), (0, "SIGINT"), (1, "SIGINT"), (1, "SIGINT")],
    "first": [(0, "SIGTERM")],
    "second": [(1, "SIGTERM")],
    "fewer": [(0, "SIGTERM")],
    "kill_first": [(0, "SIGKILL")],
    "kill_second": [(1, "SIGKILL")],
}


def rank(number, port, module, flags, home, stop):
    """What one of the two does. stop: the signals of a case."""

    def work():
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from common import runs

        before = runs.Recorder.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            for who, name in stop if state.global_step == STEP else ():
                if who == number:
                    os.kill(os.getpid(), getattr(signal, name))
            return before(self, args, state, control, **kwargs)

        runs.Recorder.on_step_end = on_step_end
        faults.trainer(module, flags, home)()

    return work


def two(module, flags, home, stop=()):
    """Run both ranks to their end -> their exit codes. One that outlives the other by a minute is killed: -9."""
    home.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, codes = {}, {}
    for number in (0, 1):
        if not (child := os.fork()):
            os._exit(faults.forked(rank(number, port, module, flags, home, stop), home / f"rank{number}.log") & 0xFF)
        children[child] = number
    end = time.time() + 120
    while len(codes) < 2:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            code = os.waitstatus_to_exitcode(status)
            codes[children[child]] = code - 256 if code > 200 else code  # a signal: -9
            end = min(end, time.time() + 60)
        elif time.time() > end:
            raise SystemExit(f"{home}: a process still waits for the other one")
        else:
            time.sleep(0.02)
    return [codes[0], codes[1]]


def main():
    out, name, *cases = sys.argv[1:]
    out = Path(out)
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    sys.path.insert(0, "")  # each trainer's folder takes this place
    faults.warm()
    model = faults.tiny_model(out / "model")
    flags = [str(model) if word == "MODEL" else word for word in faults.TRAINERS[name][2].split()]
    flags += ["--lora_dropout", "0.1"]  # drawn by each process for itself: its random state counts
    module, began = faults.prepare(name), time.time()
    codes = two(module, flags, out / "whole")
    if codes != [0, 0]:
        raise SystemExit("".join((out / f"whole/rank{n}.log").read_text() for n in (0, 1)))
    _, adapter, logs = faults.result(out / "whole")
    made = {"plan": re.search(r"optimizer steps of (\d+)", (out / "whole/rank0.log").read_text())[1], "cases": {}}
    for case in cases:
        home = out / case
        codes = two(module, flags, home, CASES[case])
        said = [(home / f"rank{n}.log").read_text()[-1500:] for n in (0, 1)]
        status = [json.loads(file.read_text())["status"] for file in home.glob("run*/run.json")]
        if case == "fewer":  # the same command on one card
            alone = faults.forked(faults.trainer(module, flags, home), home / "alone.log")
            text = (home / "alone.log").read_text()
            made["cases"][case] = dict(codes=codes, alone=alone, went_on="goes on from" in text, said=[text[-1500:]])
            continue
        again = two(module, flags, home)
        text = (home / "rank0.log").read_text()
        found = re.search(r"goes on from checkpoint-(\d+)", text)
        row = dict(codes=codes, status=status, again=again, went_on=found and int(found[1]), said=said)
        if again == [0, 0]:
            folder, same, numbers = faults.result(home)
            row |= dict(folders=len(list(home.glob("run*"))), adapter=same == adapter, metrics=numbers == logs)
        else:
            row["said"] = [(home / f"rank{n}.log").read_text()[-1500:] for n in (0, 1)]
        made["cases"][case] = row
    made["seconds"] = round(time.time() - began)
    (out / f"{name}.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
