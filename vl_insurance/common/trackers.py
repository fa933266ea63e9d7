# Generated from common/trackers.py: edit that file, then run `make sync`.
"""--report_to: the lines of metrics.jsonl, sent to TensorBoard, Weights & Biases, SwanLab or Trackio as well.

Each tracker has a process of its own that reads metrics.jsonl behind the training: that file is the queue. So a tracker
that hangs, raises or waits for a network cannot delay a step, prompt, take the training's signals and output, or read a
secret that was given as a flag from its command line.

RUN/tensorboard, RUN/wandb, RUN/swanlog   what it writes; trackio has a folder of its own, which `trackio show` reads
RUN/tracking/NAME.log, NAME.json          what it printed; the last step that it has: after a resume, the steps that are
                                          done again are not sent again
"""

import importlib.util
import json
import netrc
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 10  # seconds at the end of a run for what is still to be sent
NAMES = ("tensorboard", "wandb", "swanlab", "trackio")
WITHOUT_ACCOUNT = {"wandb": ("offline", "dryrun", "disabled"), "swanlab": ("offline", "local", "disabled")}
SYNC = {"wandb": "wandb sync {}/wandb/offline-run-*", "swanlab": "swanlab sync {}/swanlog/run-*"}


def checked(names, fail):
    """The value of --report_to as a list of names, or ["none"]. fail: called with one line that says what is missing, a
    package or an account's key. Imports no tracker and asks nothing."""
    names = list(dict.fromkeys([names] if isinstance(names, str) else names or ["none"]))
    for name in names if names != ["none"] else ():
        if name not in NAMES:
            fail(f"argument --report_to: {name!r}: expected none, or one or more of {', '.join(NAMES)}")
        found = importlib.util.find_spec(name)
        if not found or not found.origin:  # a folder wandb/ that an earlier run left here is no package
            fail(f"argument --report_to: {name} is not installed: pip install {name}")
        if name in WITHOUT_ACCOUNT and mode(name) not in WITHOUT_ACCOUNT[name] and not has_key(name):
            key = f"set {name.upper()}_API_KEY or run `{name} login` once"
            fail(f"argument --report_to: {name} has no key: {key}; or set {name.upper()}_MODE=offline and sync later")
    return names


def mode(name):
    return os.environ.get(f"{name.upper()}_MODE")


def has_key(name):
    """Whether a key for the tracker's server is in the environment or where `NAME login` keeps it."""
    file, servers = os.environ.get("NETRC") or "~/.netrc", "api.wandb.ai, api.forge.coreweave.com"
    servers = os.environ.get("WANDB_BASE_URL") or servers
    if name == "swanlab":  # a file of its own
        file = Path(os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or "~/.swanlab", ".netrc")
    known = []
    with suppress(OSError, netrc.NetrcParseError):
        known = [host for host in netrc.netrc(Path(file).expanduser()).hosts if name == "swanlab" or host in servers]
    return bool(known or os.environ.get(f"{name.upper()}_API_KEY"))


def announce(names, folder):
    """Say by what a run is tracked and, where that is offline, how to send it later."""
    for name in names:
        later = (
            f", offline. To send it later: {SYNC[name].format(folder)}" if mode(name) in ("offline", "dryrun") else ""
        )
        print(f"tracked by {name}{later}")


def start(names, folder) -> list:
    """Start the trackers of the run in `folder`, whose run.json and metrics.jsonl are there: (name, process) of each."""
    started = []
    for name in names:
        # -P: the files beside this one are not to be taken for packages of their names
        command = [sys.executable, "-P", __file__, name, str(folder.resolve())]
        try:  # in the run's folder: the .env or settings that lie in the working folder may be a stranger's
            pipe = dict(stdin=subprocess.PIPE, bufsize=0)
            started.append((name, subprocess.Popen(command, cwd=folder, start_new_session=True, **pipe)))
        except OSError as error:
            warn(name, error)
    return started


def close(started):
    """Let the trackers send the rest, together for at most PATIENCE seconds."""
    for _, process in started:
        with suppress(OSError):
            process.stdin.write(b"end\n")  # closing is not enough: a data loader's workers hold the pipe, too
    until = time.monotonic() + PATIENCE
    for name, process in started:
        try:
            process.wait(max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            warn(name, f"not done {PATIENCE} s after the end, stopped")


def warn(name, what, file=None):
    print(f"\nwarning: {name}: {what}. metrics.jsonl has every value", file=file or sys.stderr, flush=True)


# -- in the tracker's process


def serve(name, folder):
    """Send each line of folder/metrics.jsonl once, until the training has ended."""
    own, screen, ended = folder / "tracking", os.fdopen(os.dup(2), "w"), threading.Event()
    own.mkdir(exist_ok=True)
    for stream in (1, 2):
        os.dup2(os.open(own / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)

    def wait_for_end():
        sys.stdin.readline()  # a line, or the pipe's end where the training was killed
        ended.set()
        time.sleep(PATIENCE + 5)
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()
    try:
        mark, new = own / f"{name}.json", own / f"{name}.json.new"
        sent = json.loads(mark.read_text()) if mark.is_file() else [-1, 0]  # the last step, and its lines that went out
        log, finish = opened(name, folder, json.loads((folder / "run.json").read_text("utf-8")), mark.is_file())
        at, last = [-1, 0], False
        with open(folder / "metrics.jsonl", "rb") as file:
            while not last:
                last = ended.wait(1)  # looked at before the file is read: nothing is written after it
                *lines, half = file.read().split(b"\n")
                file.seek(-len(half), os.SEEK_CUR)
                for values in map(json.loads, lines):
                    at = [values["step"], at[1] + 1 if values["step"] == at[0] else 1]
                    if at > sent:
                        log(**{key: x for key, x in values.items() if isinstance(x, (int, float))})
                        sent = at
                new.write_text(json.dumps(sent))
                os.replace(new, mark)
        finish()
    except BaseException as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        for key, value in os.environ.items():
            secret = len(value) > 7 and re.search("KEY|TOKEN|SECRET|PASSWORD", key)
            what = what.replace(value, "***") if secret else what
        warn(name, f"{what[:300]}. Training goes on without it", screen)
        os._exit(1)


def opened(name, folder, record, again):
    """(log, finish) of a tracker: log takes the numbers of a line. again: it has had lines of this run before."""
    if name == "tensorboard":
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(folder / name))  # what torch's SummaryWriter is made of, without torch

        def write(step, time, **values):
            made = [summary_pb2.Summary.Value(tag=key, simple_value=x) for key, x in values.items()]
            writer.add_event(event_pb2.Event(step=step, wall_time=time, summary=summary_pb2.Summary(value=made)))
            writer.flush()

        return write, writer.close
    module = importlib.import_module(name)
    how = {"resume": "allow", "id": record["tracking_id"]}
    if name == "wandb":  # git's remote may hold a token in its address
        how |= {"dir": folder, "settings": module.Settings(console="off", disable_git=True, disable_code=True)}
    elif name == "swanlab":
        quiet = module.Settings(probe={"git": False}, terminal={"proxy_type": "none"}, interactive=False)
        how |= {"log_dir": str(folder / "swanlog"), "settings": quiet}
    else:  # trackio finds a run by its name alone, which another one may have, too
        how = {"resume": "allow" if again else "never", "embed": False}
    title = f"{record['stage']}-{folder.name}".strip("-")
    run = module.init(project=record["task"], name=title, config=record["arguments"], **how)
    return lambda step, time, **values: run.log(values, step=step), run.finish


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
