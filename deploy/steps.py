"""A pipeline's machinery: a step is done once for the same inputs, and its children end with it.

A step's folder holds step.json (digests of what it read and wrote, seconds, command, exit code), log.txt, and what it made.
step.json is written last and in one go: after a kill at any moment a step is done or it is not.
"""

import contextlib
import ctypes
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from common.contract import digest_ids
from common.files import read_json, write_json
from common.paths import TASK_DIR, output_dir

STEP, LOG = "step.json", "log.txt"
SECRET = re.compile(r"(token|key|secret|password)$", re.IGNORECASE)
children = []  # the processes that run now
stop = []  # the signals that asked the pipeline to end


# -- digests and step.json


def digest_of(path: Path) -> str:
    """sha256 of a file; of a folder: of the names and contents of all files in it."""
    if not path.is_dir():
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return digest_ids([[each.relative_to(path).as_posix(), digest_of(each)] for each in files])


def told(path: Path) -> str:
    """A path for step.json: from OUTPUT_DIR on, so that it holds where the folder was moved or fetched."""
    path, root = Path(os.path.abspath(path)), output_dir().parent.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def found(path: str) -> Path:
    """The file that step.json names."""
    return output_dir().parent.absolute() / path


def as_it_was(outputs: dict) -> bool:
    return all(found(path).exists() and digest_of(found(path)) == digest for path, digest in outputs.items())


def step(folder: Path, name: str, inputs: dict, work) -> dict:
    """The content of a step's step.json; `work` is done for it unless it was done before and is as it was left.

    inputs: digests and flags, all that the result depends on. work(place): does it in the folder place and returns
    (paths that it made, facts to be kept beside). Raises what work raises, after it was noted in step.json.
    """
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    wanted, old = digest_ids([name, inputs]), read_json(place / STEP)
    if old.get("digest") == wanted and old.get("code") == 0 and as_it_was(old["outputs"]):
        print(f"== {name}: already done, with the same digests ({old['seconds']} s)", flush=True)
        return old
    print(f"\n== {name}", flush=True)
    began = time.time()
    record = {"step": name, "digest": wanted, "inputs": inputs, "started": round(began, 3)}
    try:
        outputs, facts = work(place)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        facts = {"seconds": round(time.time() - began, 1), "code": code, "outputs": {}}
        write_json(place / STEP, record | facts | {"why": end.code if isinstance(end.code, str) else ""})
        raise
    facts = {"seconds": round(time.time() - began, 1), "code": 0} | facts
    record |= facts | {"outputs": {told(path): digest_of(path) for path in outputs}}
    write_json(place / STEP, record)
    print(f"== {name}: {record['seconds']} s", flush=True)
    return record


# -- one pipeline in a folder


def take(folder: Path) -> int:
    """A file descriptor that holds the folder for this process and for the children that are given it.

    Where a pipeline was killed its children end a moment later, a trainer with a checkpoint: this waits for them.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    for second in range(600):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode()
            if alive(owner):
                raise SystemExit(f"{folder}: another pipeline (process {owner}) is writing there. Wait for it, or give "
                                 "this one a --name.") from None  # fmt: skip
            if second == 2:
                print("waiting for what a killed pipeline had started to end", flush=True)
            time.sleep(0.5)
    else:
        raise SystemExit(f"{folder}: what a killed pipeline had started is still running. End it, then try again.")
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def alive(number: str) -> bool:
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # killed, but its parent has not asked for its exit code yet
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


# -- children


def script(folder: str, name: str) -> list:
    """The beginning of a command line: a script of a folder beside this one."""
    return [sys.executable, TASK_DIR.parent / folder / name]


def on_signal(number, frame):
    """Ctrl-C and SIGTERM go on to the children, which save what they have; without any the pipeline ends at once."""
    stop.append(number)
    if not children:
        raise SystemExit(128 + number)
    for process in children:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def end_with(parent: int, libc):
    """In a child, before its program is loaded: SIGTERM when the pipeline ends, however that ends (Linux)."""
    with contextlib.suppress(AttributeError):
        libc.prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(143)


def start(argv: list, lock: int, **environment) -> subprocess.Popen:
    """A child that holds the pipeline's lock, whose stdout and stderr are one pipe."""
    parent, libc = os.getpid(), ctypes.CDLL(None)
    # The child holds the reading end, too: where the pipeline was killed, what it prints while it saves is no error.
    reading, writing = os.pipe()
    process = subprocess.Popen(
        list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment, pass_fds=(lock, reading), start_new_session=True,
        preexec_fn=lambda: end_with(parent, libc),
    )  # fmt: skip
    os.close(writing)
    process.stdout = os.fdopen(reading, "rb", buffering=0)
    children.append(process)
    return process


def secrets() -> list[bytes]:
    """Values of the environment that must not get into a log."""
    return [value.encode() for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8]


def follow(process, log: Path, until: str | None = None):
    """Show a child's output and keep it in log, till it ends (None) or a line matches `until` (the match).

    Progress bars are shown only. A value of the environment that is a secret is shown and kept as ***.
    """
    hidden, rest = secrets(), b""
    with open(log, "ab") as kept:
        while piece := os.read(process.stdout.fileno(), 65536):
            *lines, rest = re.split(rb"(?<=[\r\n])", rest + piece)
            match = None
            for line in lines:
                for secret in hidden:
                    line = line.replace(secret, b"***")
                os.write(1, line)
                if line.endswith(b"\n"):
                    kept.write(line)
                    kept.flush()
                match = match or (until and re.search(until, line.decode("utf-8", "replace")))
            if match:
                return match
        os.write(1, rest)
        kept.write(rest)
    process.wait()
    children.remove(process)


def child(argv: list, place: Path, lock: int) -> dict:
    """Run a command to its end -> facts for step.json. Raises SystemExit with its exit code where that is not 0."""
    log = place / LOG
    line = " ".join(map(str, argv))
    with open(log, "a", encoding="utf-8") as kept:
        kept.write(f"\n== {time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    print(f"$ {line}", flush=True)
    process = start(argv, lock)
    follow(process, log)
    if stop:
        raise SystemExit(128 + stop[0])
    if process.returncode:
        print(
            f"{place.name}: {Path(argv[1]).name} ended with exit code {process.returncode}; the log: {log}", flush=True
        )
        raise SystemExit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return {"command": list(map(str, argv))}


def background(process, log: Path):
    """Go on showing what a server writes."""
    threading.Thread(target=follow, args=(process, log), daemon=True).start()


def end(*processes):
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill() if process.poll() is None else None


def stay(*processes):
    """Until Ctrl-C, or until one of the servers ends; then all do."""
    try:
        while not stop and all(process.poll() is None for process in processes):
            time.sleep(0.2)
        if not stop:
            raise SystemExit("a server ended; its last lines stand above. The same command starts it again.")
    finally:
        end(*processes)


def when_done(command: str | None, status: str, grace: float):
    """Run a command after some time in which Ctrl-C stops it: a shutdown should not come as a surprise."""
    if not command:
        return
    left = grace
    try:
        while left > 0:
            print(f"{status}: in {left:.0f} s this is run: {command}   (Ctrl-C cancels)", flush=True)
            pause = min(left, 30 if left > 30 else 10)
            time.sleep(pause)
            left -= pause
    except SystemExit:
        return print(f"cancelled, not run: {command}", flush=True)
    code = subprocess.run(command, shell=True, env=os.environ | {"PIPELINE_STATUS": status}).returncode
    print(f"{command}: exit code {code}", flush=True)
