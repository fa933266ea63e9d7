"""Another machine does the work: pipeline.py on it, by ssh alone, through connections that break.

    here: copy deploy/, the recipe, the upload    there: pipeline.py --until gate, in a session of its own, into pipeline.log
    here: follow the log, reconnect               here: fetch the run and its files, checked by their digests

Nothing is installed there and no API of a landlord is used: a machine with ssh, tar, setsid and the Python of the recipe is
enough. The same command again finds what is running, or what has ended, and goes on from there. Secrets are not sent: a
.env in the folder there has them.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import steps
from common.contract import digest_ids
from common.files import read_json
from common.paths import TASK_DIR, output_dir

LOST = 255  # ssh's own exit code: no connection, or one that broke
PATIENCE = 600  # seconds without a connection before this gives up; the other machine does not
NOT_COPIED = re.compile(
    r"(^|/)(\.env[^/]*|\.git|\.venv|__pycache__|\.\w+_cache|outputs|models|data|unsloth_compiled_cache)(/|$)|\.(gguf|pt)$"
)
# What is asked of the other machine, in POSIX shell. $1: the folder. $2: the digest of the job, $3 of what was copied.
STATE = """cd -- "$1" 2>/dev/null || { echo new; exit; }
if [ -f job/pid ] && ps -o args= -p "$(cat job/pid)" 2>/dev/null | grep -q pipeline-job; then
  [ "$(cat job/digest)" = "$2" ] && echo running || echo other
elif [ "$(cat copied 2>/dev/null)" != "$3" ]; then echo new
elif [ -f job/exit ] && [ "$(cat job/digest)" = "$2" ]; then echo "ended $(cat job/exit)"
else echo copied; fi"""
COPY = """set -e; umask 077; mkdir -p -- "$1"; cd -- "$1"
if [ ! -e copied ] && [ ! -e .new ] && [ ! -e job ] && [ -n "$(ls)" ]; then
  echo "$1 is not empty and no pipeline's: name another folder with --folder" >&2; exit 1; fi
rm -rf .new; mkdir .new; tar -xof - -C .new
[ "$(cat .new/copied 2>/dev/null)" = "$3" ] || { echo "the copy was cut off" >&2; exit 1; }
rm -f copied; mv .new/copied .copied
for each in .new/*; do rm -rf -- "./${each#.new/}"; mv -- "$each" .; done
rmdir .new; mv .copied copied"""
# sh -c's $0 is pipeline-job: by this name STATE knows it from another process that got its number.
START = """cd -- "$1"; mkdir -p job
if [ -f job/pid ] && ps -o args= -p "$(cat job/pid)" 2>/dev/null | grep -q pipeline-job; then exit; fi
rm -f job/exit job/pid
[ "$(cat job/digest 2>/dev/null)" = "$2" ] || : >job/log
printf %s "$2" >job/digest; shift 2; export OUTPUT_DIR="$PWD/outputs"
setsid sh -c 'echo $$ >job/pid.new; mv job/pid.new job/pid; "$@"; echo $? >job/exit.new; mv job/exit.new job/exit' \
  pipeline-job "$@" >>job/log 2>&1 </dev/null &
until [ -f job/pid ]; do sleep 0.1; done"""
FOLLOW = """cd -- "$1"; [ ! -f job/exit ] || exec tail -c "+$2" job/log
exec tail -c "+$2" -f -s 0.3 --pid="$(cat job/pid)" job/log"""
ENDED = """cat -- "$1/job/exit" 2>/dev/null || echo lost"""
FETCH = """cd -- "$1/outputs"; shift
tar -cf - --exclude="checkpoint-*" --exclude=".lock" --exclude="ingest/files" -- "$@\""""


def command(args, text: str, *words) -> list:
    """The ssh command that runs a piece of shell there. Words are quoted; nothing of them is read as shell, here or there."""
    if not re.fullmatch(r"[^\s-]\S*", args.host):
        raise SystemExit(f"pipeline.py: error: --host {args.host!r}: user@machine, or ssh://user@machine:port")
    options = {"BatchMode": "yes", "StrictHostKeyChecking": args.host_key, "ConnectTimeout": 20,
               "ServerAliveInterval": 15, "ServerAliveCountMax": 3}  # fmt: skip
    config = ["-F", args.ssh_config] if args.ssh_config else []
    there = shlex.join(["sh", "-c", text, "sh", *map(str, words)])
    return ["ssh", *config, *(f"-o{name}={value}" for name, value in options.items()), "--", args.host, there]


def ask(args, text: str, *words, feed=None, patience=PATIENCE) -> str:
    """What a piece of shell writes there, asked again while there is no connection. feed(pipe): writes its stdin."""
    began, pause = time.time(), 1
    while True:
        process = subprocess.Popen(command(args, text, *words), stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=not feed, start_new_session=True)  # fmt: skip
        if feed:
            with contextlib.suppress(BrokenPipeError):  # ssh says why
                feed(process.stdin)
        said, wrong = process.communicate()
        said, wrong = (each if isinstance(each, str) else each.decode("utf-8", "replace") for each in (said, wrong))
        if not process.returncode:
            return said.strip()
        why = (wrong.strip().splitlines() or ["no reason given"])[-1]
        if process.returncode != LOST or refused(wrong) or time.time() - began > patience:
            raise SystemExit(f"{args.host}: {why}")
        print(f"{args.host}: {why}; again in {pause} s", flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 30)


def refused(text: str) -> bool:
    """Whether ssh says something that time does not mend: a key, a name, a wrong option."""
    return bool(re.search("(?i)Permission denied|Host key verification failed|REMOTE HOST IDENTIFICATION|"
                          "Bad configuration|command-line", text))  # fmt: skip


def cargo(args) -> list[tuple[Path, str]]:
    """(file here, name there) of all that the other machine needs, in order."""
    data, found = Path(args.data).expanduser().absolute(), []
    for folder, name in (
        (TASK_DIR, "deploy"),
        (TASK_DIR.parent / args.recipe, args.recipe),
        (data, f"data/{data.name}"),
    ):
        files = sorted(each for each in folder.rglob("*") if each.is_file()) if folder.is_dir() else [folder]
        for file in files:
            inside = file.relative_to(folder).as_posix() if folder.is_dir() else ""
            if not file.name.startswith(".env") and (folder == data or not NOT_COPIED.search(inside)):
                found.append((file, f"{name}/{inside}".rstrip("/")))
    return found


def send(files: list, digest: str, pipe):
    """A tar of all files. Its last one says that it is whole: GNU tar is content with the beginning of one."""
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, dereference=True) as archive:
        for file, name in files:
            archive.add(file, name)
        entry = tarfile.TarInfo("copied")
        entry.size = len(digest)
        archive.addfile(entry, io.BytesIO(digest.encode()))


def follow(args, log: Path):
    """Show the log there, and keep it here, till the job has ended. What is here already is not asked for again."""
    log.touch()
    lost, pause = None, 1
    while True:
        with open(log, "ab") as kept:
            argv = command(args, FOLLOW, args.folder, log.stat().st_size + 1)
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       start_new_session=True)  # fmt: skip
            try:
                while piece := os.read(process.stdout.fileno(), 65536):
                    kept.write(piece)
                    kept.flush()
                    os.write(1, piece)
                    lost, pause = None, 1
            except SystemExit:  # Ctrl-C
                process.terminate()
                print(f"\n{args.host} goes on without this terminal. The same command follows it again.", flush=True)
                raise
            wrong = process.stderr.read().decode("utf-8", "replace").strip()
        if process.wait() != LOST:
            return
        lost = lost or time.time()
        why = (wrong.splitlines() or ["the connection broke"])[-1]
        if refused(wrong) or time.time() - lost > PATIENCE:
            raise SystemExit(f"{args.host}: {why}. The work goes on there: the same command follows it again.")
        print(f"{args.host}: {why}; again in {pause} s", flush=True)
        time.sleep(pause)
        pause = min(2 * pause, 30)


def fetch(args, *names: str) -> Path:
    """A new folder below OUTPUT_DIR with a copy of folders of OUTPUT_DIR there."""
    root = output_dir().parent
    root.mkdir(parents=True, exist_ok=True)
    new = root / f".fetching-{os.getpid()}"
    for tried in range(5):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        process = subprocess.Popen(command(args, FETCH, args.folder, *names), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(new, filter="data")  # no links, no paths that lead out of the folder
        except (tarfile.TarError, EOFError, OSError) as error:
            process.kill()
            process.communicate()
            print(f"{args.host}: {error}; fetched again", flush=True)
            time.sleep(2**tried)
            continue
        if process.wait() == 0:
            break
        print(f"{args.host}: {process.stderr.read().decode('utf-8', 'replace').strip()}; fetched again", flush=True)
        time.sleep(2**tried)
    else:
        shutil.rmtree(new, ignore_errors=True)
        raise SystemExit(f"{args.host}: the files could not be fetched. They are there: the same command tries again.")
    return new


def made_there(args, flags: list, name: str, folder: Path) -> tuple[Path, Path] | None:
    """(the run, its files), fetched from the other machine, where all steps up to the gate are done; None without files."""
    until = args.until if args.until not in ("serve", "ab") else "gate"
    there = [args.python, "deploy/pipeline.py", "--data", f"data/{Path(args.data).expanduser().absolute().name}",
             "--recipe", args.recipe, "--name", name, "--until", until, "--limit", args.limit, "--max_new_tokens",
             args.max_new_tokens, "--to", args.to, "--quant", args.quant, "--", *flags]  # fmt: skip
    files = cargo(args)
    copied = digest_ids([[to, steps.digest_of(file)] for file, to in files])
    job = digest_ids([copied, list(map(str, there))])
    log = folder / f"there-{digest_ids([args.host, args.folder, job])[:8]}.log"
    place = args.folder, job, copied
    state = ask(args, STATE, *place, patience=0)  # a name with a typo should not be tried for minutes
    if state == "other":
        raise SystemExit(
            f"{args.host}: another pipeline is running in {args.folder}. Wait for it, or give another --folder."
        )
    if state == "new":
        size = sum(file.stat().st_size for file, _ in files)
        print(f"{args.host}: {len(files):,} files, {size / 1e6:,.1f} MB are copied to {args.folder}", flush=True)
        ask(args, COPY, *place, feed=lambda pipe: send(files, copied, pipe))
    code, unseen = state.removeprefix("ended "), False
    if state == "running":
        print(f"{args.host}: it is running; its log is followed", flush=True)
        follow(args, log)
    elif state.startswith("ended"):
        seen = log.stat().st_size if log.exists() else 0
        follow(args, log)
        unseen = log.stat().st_size > seen  # what failed without an onlooker is told once before it is tried again
    if state in ("new", "copied") or state.startswith("ended") and code != "0" and not unseen:
        ask(args, START, args.folder, job, *there)
        follow(args, log)
    code = ask(args, ENDED, args.folder)
    kept = f"deploy/pipelines/{name}"
    new = fetch(args, kept)
    for file in sorted((new / kept).rglob("*")):
        if file.is_file():
            target = folder / file.relative_to(new / kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    shutil.rmtree(new)
    if code != "0":
        print(f"{args.host}: the pipeline ended there with exit code {code}; its log: {log}", flush=True)
        raise SystemExit(int(code) if code.isdigit() else 1)
    trained, exported = (read_json(folder / step / steps.STEP) for step in ("train", "export"))
    if until != "gate":
        return None
    outputs = trained["outputs"] | exported["outputs"]
    if not steps.as_it_was(outputs):
        bring(args, outputs, trained["run"], exported["folder"])
    return steps.found(trained["run"]), steps.found(exported["folder"])


def bring(args, outputs: dict, *names: str):
    """Fetch the run and its files, compare digests, and put them where they would be if they had been made here."""
    for name in names:
        if steps.found(name).exists():
            raise SystemExit(
                f"{steps.found(name)} exists and is not what was made there. Move it away; the same command goes on."
            )
    new = fetch(args, *names)
    if wrong := [name for name, digest in outputs.items() if steps.digest_of(new / name) != digest]:
        raise SystemExit(f"{new / wrong[0]}: not what was made there. The same command fetches it again.")
    for name in names:
        steps.found(name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, steps.found(name))
        print(f"fetched: {steps.found(name)}", flush=True)
    shutil.rmtree(new)
