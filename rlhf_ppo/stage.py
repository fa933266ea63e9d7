"""One folder a stage's run, as common/runs.py keeps it for trainers: record, metrics, checkpoints, resuming, a plot.

OUTPUT_DIR/rlhf_ppo/<stage>/<time>/run.json       arguments, versions, device, digest of the inputs, seconds, peak GB
                                   metrics.jsonl  every logged number, a line an update
                                   checkpoint-N/  the newest two, each complete or not there at all
                                   what the stage made
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from common.cli import arg
from common.paths import check_disk, output_dir
from common.runs import (
    LIBRARIES,
    checkpoints,
    device_name,
    free_name,
    git_revision,
    peak_memory,
    read_record,
    replace_text,
    take_lock,
    write_json,
)
from common.runs import NOT_IN_IDENTITY as OF_TRAINERS

NOT_IN_IDENTITY = (*OF_TRAINERS, "reuse")  # they do not change what a run computes


@dataclass
class StageArgs:
    """Flags that all stages have."""

    output_dir: str | None = arg(None, "the run's folder (default: OUTPUT_DIR/rlhf_ppo/<stage>/<time>)")
    reuse: bool = arg(False, "take a finished run with equal arguments and inputs instead of making it again")


def flags(name, defaults, bases, **more):
    """A dataclass of a script's flags: those of `bases`, one for each of `defaults` (name -> value, whose reason stands
    beside it in the script), and `more` (name=(type, arg(...)))."""
    known = {field.name for base in bases for field in dataclasses.fields(base)} | set(more)
    fields = [(key, type(value), arg(value, "")) for key, value in defaults.items() if key not in known]
    fields += [(key, kind, field) for key, (kind, field) in more.items()]
    return dataclasses.make_dataclass(name, fields, bases=bases)


class Stage:
    """The folder and the record of one run of a stage.

    name: merged, reward, ppo, ... args: the script's flags. inputs: digests of what it reads (data, weights): a run is
    resumed, or reused, only where arguments and inputs are the same. marker: the file that a complete checkpoint has;
    None: the stage has no checkpoints and picks its way through its own folder.
    Afterwards: folder; finished (nothing is left to do); checkpoint (a folder to go on from, or None); stop (a signal
    asked to save and end).
    """

    def __init__(self, name, args, inputs, marker="state.pt"):
        arguments = json.loads(json.dumps(vars(args), default=str))
        asked = {key: value for key, value in arguments.items() if key not in NOT_IN_IDENTITY}
        self.record = {
            "identity": digest([name, asked, inputs]),
            "status": "unfinished",
            "stage": name,
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "inputs": inputs,
            "device": device_name(),
            "versions": {each: version(each) for each in LIBRARIES if importlib.util.find_spec(each)},
            "git": git_revision(),
            "arguments": arguments,
        }
        self.marker, self.stop, self.lock, self.checkpoint, self.finished = marker, None, None, None, False
        wanted = Path(args.output_dir).expanduser() if args.output_dir else None
        root = wanted.parent if wanted else output_dir() / name
        check_disk(root, 500_000_000, f"the {name} stage")
        for folder in sorted(root.glob(f"{wanted.name}*" if wanted else "*"), reverse=True):
            old = read_record(folder)
            if old.get("identity") != self.record["identity"]:
                continue
            if old["status"] == "finished" and args.reuse:
                self.folder, self.finished, self.record = folder, True, old
                print(f"{name}: finished before with these arguments and inputs: {folder}")
                return
            complete = [each for each in checkpoints(folder) if (each / marker).is_file()] if marker else [folder]
            if old["status"] != "finished" and complete and (lock := take_lock(folder)):
                self.lock = lock
                self.folder, self.checkpoint, self.record = folder, complete[-1], old | self.record
                print(
                    f"{name}: {folder}\n      an unfinished run with these arguments goes on from {complete[-1].name}"
                )
                return
        self.folder = free_name(wanted or root / time.strftime("%Y%m%d-%H%M%S"))
        print(f"{name}: {self.folder}")

    def __enter__(self):
        import torch

        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint:
            self.lock = take_lock(self.folder)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        self.began = time.time()
        self.note()
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.note(status="finished", seconds=round(time.time() - self.began, 1), **peak_memory())
            print(f"saved: {self.folder}")
        else:
            self.note(stopped_by=f"{kind.__name__}: {error}"[:500])
        if self.lock:
            self.lock.close()

    def _on_signal(self, number, frame):
        if self.stop:
            raise SystemExit(128 + number)
        self.stop = number
        os.write(2, b"\nstopping: a checkpoint is saved after this update; the same command goes on from it\n")

    def note(self, **facts):
        """Add facts to run.json."""
        self.record |= facts
        write_json(self.folder / "run.json", self.record)

    def log(self, step, metrics):
        """Append one line to metrics.jsonl."""
        line = {"step": step, "time": round(time.time(), 2)} | {key: tidy(value) for key, value in metrics.items()}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self):
        file = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def cut_metrics(self, step):
        """Forget what was logged after `step`: those updates are done again."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        keep = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        replace_text(file, "".join(keep))

    def save(self, step, state, keep=2):
        """Write state (torch.save) and the state of all random generators as checkpoint-<step>.

        Under a temporary name first, so that a checkpoint is complete or not there; the oldest ones make room.
        """
        import torch

        new = self.folder / f".checkpoint-{step}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        torch.save({"step": step, "random": random_state(), **state}, new / self.marker)
        shutil.rmtree(self.folder / f"checkpoint-{step}", ignore_errors=True)
        os.replace(new, self.folder / f"checkpoint-{step}")
        for old in checkpoints(self.folder)[:-keep]:
            shutil.rmtree(old)

    def load(self):
        """The state of the checkpoint to go on from, or None; random generators and metrics are set back to it."""
        import torch

        if not self.checkpoint:
            return None
        state = torch.load(self.checkpoint / self.marker, map_location="cpu", weights_only=True)
        set_random_state(state["random"])
        self.cut_metrics(state["step"])
        return state

    def end_if_stopped(self):
        """After a checkpoint: leave with 128 + N if signal N asked for it."""
        if self.stop:
            raise SystemExit(128 + self.stop)

    def plot(self, file, panels, x="update"):
        """Draw metrics.jsonl as a row of small plots. panels: title -> names of metrics."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        logs = self.metrics()
        rows = -(-len(panels) // 3)
        figure, axes = pyplot.subplots(rows, 3, figsize=(13, 3.2 * rows), layout="constrained", squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
            for name in names:
                points = [(log["step"], log[name]) for log in logs if log.get(name) is not None]
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, linewidth=1.3)
            axis.set(title=title, xlabel=x)
            axis.grid(alpha=0.3)
            if len(names) > 1:
                axis.legend()
        figure.savefig(self.folder / f".{file}", format="png", dpi=110)
        pyplot.close(figure)
        os.replace(self.folder / f".{file}", self.folder / file)


def free_memory():
    """A finished stage's model leaves before the next one is loaded."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tidy(value):
    return float(f"{value:.6g}") if isinstance(value, float) else value


def digest(content) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def random_state():
    """The state of every generator that something here may draw from, in types that torch.load reads back safely."""
    import numpy
    import torch

    kind, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state):
    import numpy
    import torch

    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype="uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def latest(stage: str) -> Path:
    """The newest finished run of a stage."""
    finished = [run for run in sorted(output_dir().glob(f"{stage}/*")) if read_record(run).get("status") == "finished"]
    if not finished:
        raise SystemExit(f"no finished run in {output_dir() / stage}: run train.py first, or name the folder.")
    return finished[-1]
