# Generated from common/paths.py: edit that file, then run `make sync`.
"""Where models, data and results live.

Every path comes from the environment or from a `.env` file (the environment wins):

    MODELS_DIR   models, as MODELS_DIR/<org>/<name>
    DATA_DIR     data sets, as DATA_DIR/<task>; <TASK>_DATA_DIR overrides it for one task
    OUTPUT_DIR   results, as OUTPUT_DIR/<task>/<run>
    MODEL_SOURCE the hub to fetch from: huggingface (default) or modelscope

Without them the root is /root/autodl-tmp where that exists (AutoDL's large disk), else the working folder.
"""

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from common import screen

TASK_DIR = Path(__file__).resolve().parents[1]  # the folder that holds this copy of common/
AUTODL = Path("/root/autodl-tmp")
DEMO_MODEL = "demo/SmolLM2-135M-Instruct"
# What .env may set, as .env.example lists it. A downloaded folder can bring a .env along: LD_PRELOAD in it must not count.
FOLDERS = ("MODELS_DIR", "DATA_DIR", "OUTPUT_DIR")
KEYS = ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "WANDB_API_KEY", "SWANLAB_API_KEY")
VARIABLES = (*FOLDERS, "MODEL_SOURCE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_DISABLE_XET", *KEYS)


def load_env():
    """Read `.env` from the working folder, the task folder and the folder above it; what is already set wins."""
    from dotenv import dotenv_values

    origin = {}
    for file in (folder / ".env" for folder in (Path.cwd(), TASK_DIR, TASK_DIR.parent)):
        try:
            # ${NAME} counts in folders only: in an address it would carry a secret of the environment away.
            plain, filled = (dotenv_values(file, interpolate=each) for each in (False, True))
            for name in {*VARIABLES, f"{TASK_DIR.name.upper()}_DATA_DIR"} & set(plain) - set(os.environ):
                values = filled if name.endswith(("_DIR", "_HOME")) else plain
                os.environ[name], origin[name] = values[name] or "", file
        except ValueError:  # other bytes than UTF-8, or a NUL
            raise SystemExit(f"{file}: not UTF-8. Save it as UTF-8.") from None
    # A host that a .env names gets a token from the same file or none: the folder may be a stranger's.
    host, file = os.environ.get("HF_ENDPOINT"), origin.get("HF_ENDPOINT")
    if host and file and file != origin.get("HF_TOKEN") and host.rstrip("/") != "https://huggingface.co":
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
        cached = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "token").expanduser().is_file()
        if cached or os.environ.get("HF_TOKEN"):
            print(f"{file}: HF_ENDPOINT={host} is sent no token but HF_TOKEN from the same file.", file=sys.stderr)
    for name in VARIABLES:
        if not os.environ.get(name, "?"):
            del os.environ[name]  # `NAME=` in .env means: not set
    for name, folder in zip(FOLDERS, ("models", "data", "outputs"), strict=True):
        os.environ.setdefault(name, str(_root() / folder))
    if _root() == AUTODL:  # its system disk is 30 GB; elsewhere the hub's usual cache stays in use
        os.environ.setdefault("HF_HOME", str(AUTODL / "huggingface"))
    # Batches of ever different sizes leave gaps in GPU memory that only growing segments can use again.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # A thread that is done waits by spinning for the others. Where they share a core with another program, that makes
    # each of a thousand operations six times slower. So little spinning costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name in ("UNSLOTH_DISABLE_STATISTICS", "HF_HUB_DISABLE_TELEMETRY"):  # Unsloth and TRL report home otherwise
        os.environ.setdefault(name, "1")


def _root() -> Path:
    return AUTODL if os.path.isdir(AUTODL) else Path.cwd()  # is_dir() raises where /root is closed to us


def models_dir() -> Path:
    return Path(os.environ["MODELS_DIR"]).expanduser()


def data_dir(task: str = TASK_DIR.name) -> Path:
    """The data folder of a task: <TASK>_DATA_DIR, else DATA_DIR/<task>."""
    return Path(os.environ.get(f"{task.upper()}_DATA_DIR") or Path(os.environ["DATA_DIR"]) / task).expanduser()


def output_dir(task: str = TASK_DIR.name) -> Path:
    return Path(os.environ["OUTPUT_DIR"]).expanduser() / task


def check_disk(folder: Path, need_bytes: int, what: str):
    """Stop now, not in hours, where `folder` cannot be written or has less than `need_bytes` free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        told = "cannot write to {folder}: {why}. Set OUTPUT_DIR or MODELS_DIR."
        raise SystemExit(screen.text(told, folder=folder, why=error.strerror)) from None
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        told = "not enough disk space for {what}: {folder} has {free:.1f} GB free, about {need:.1f} GB are needed. Free some, or move OUTPUT_DIR and MODELS_DIR."
        raise SystemExit(screen.text(told, what=what, folder=folder, free=free / 1e9, need=need_bytes / 1e9))


def command(script: str, *arguments) -> str:
    """A command line for a script of this folder, as one types it in the working folder: paths are relative to that."""
    return shlex.join(["python", nearest(TASK_DIR / script), *(map(nearest, arguments))])


def nearest(path) -> str:
    """A path as it is shortest to type here. Other arguments stay as they are."""
    if not isinstance(path, Path):
        return str(path)
    full = Path(os.path.abspath(path))
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
