"""Where models, data and results live, and how a model's name becomes a folder on this machine.

Every path comes from the environment or from a `.env` file (the environment wins):

    MODELS_DIR   models, as MODELS_DIR/<org>/<name>
    DATA_DIR     data sets, as DATA_DIR/<task>; <TASK>_DATA_DIR overrides it for one task
    OUTPUT_DIR   results, as OUTPUT_DIR/<task>/<run>
    MODEL_SOURCE the hub to fetch from: huggingface (default) or modelscope

Without them the root is /root/autodl-tmp where that exists (AutoDL's large disk), else the working folder.
"""

import json
import os
import re
import shutil
import struct
from pathlib import Path

TASK_DIR = Path(__file__).resolve().parents[1]  # the folder that holds this copy of common/
VARIABLES = ("MODELS_DIR", "DATA_DIR", "OUTPUT_DIR", "MODEL_SOURCE", "HF_HOME", "HF_ENDPOINT", "HF_TOKEN")
AUTODL = Path("/root/autodl-tmp")
DEMO_MODEL = "demo/SmolLM2-135M-Instruct"
# What a model needs to run. Pickled weights (*.bin, *.pt) can run code when loaded, so they are never fetched.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


def load_env():
    """Read `.env` from the working folder, the task folder and the folder above it; what is already set wins."""
    from dotenv import dotenv_values

    for folder in (Path.cwd(), TASK_DIR, TASK_DIR.parent):
        for name, value in dotenv_values(folder / ".env").items():
            os.environ.setdefault(name, value or "")
    for name in VARIABLES:
        if not os.environ.get(name, "?"):
            del os.environ[name]  # `NAME=` in .env means: not set
    for name, folder in (("MODELS_DIR", "models"), ("DATA_DIR", "data"), ("OUTPUT_DIR", "outputs")):
        os.environ.setdefault(name, str(_root() / folder))
    if _root() == AUTODL:  # its system disk is 30 GB; elsewhere the hub's usual cache stays in use
        os.environ.setdefault("HF_HOME", str(AUTODL / "huggingface"))
    # Batches of ever different sizes leave gaps in GPU memory that only growing segments can use again.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # A thread that is done waits by spinning for the others; where they have to share a core with another program, for
    # milliseconds at each of a thousand operations: six times slower. So little spinning costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name in ("UNSLOTH_DISABLE_STATISTICS", "HF_HUB_DISABLE_TELEMETRY"):  # Unsloth and TRL report home otherwise
        os.environ.setdefault(name, "1")


def _root() -> Path:
    return AUTODL if os.path.isdir(AUTODL) else Path.cwd()  # is_dir() raises where /root is closed to us


def models_dir() -> Path:
    return Path(os.environ["MODELS_DIR"]).expanduser()


def data_dir(task: str = TASK_DIR.name) -> Path:
    """The data folder of a task: <TASK>_DATA_DIR, else DATA_DIR/<task>."""
    own = os.environ.get(f"{task.upper()}_DATA_DIR")
    return Path(own or Path(os.environ["DATA_DIR"]) / task).expanduser()


def output_dir(task: str = TASK_DIR.name) -> Path:
    return Path(os.environ["OUTPUT_DIR"]).expanduser() / task


def check_disk(folder: Path, need_bytes: int, what: str):
    """Stop now, not in hours, where `folder` cannot be written or has less than `need_bytes` free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SystemExit(
            f"cannot write to {folder}: {error.strerror}. Point OUTPUT_DIR (or MODELS_DIR) elsewhere."
        ) from None
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise SystemExit(
            f"not enough disk space for {what}: {folder} has {free / 1e9:.1f} GB free, about {need_bytes / 1e9:.1f} GB "
            "are needed. Free some, or point OUTPUT_DIR, MODELS_DIR and HF_HOME to a larger disk."
        )


def broken_weights(folder: Path) -> str:
    """Which *.safetensors of a model is missing or shorter than its own header says; "" if none. Reads headers only."""
    index = folder / "model.safetensors.index.json"
    files = {file.name for file in folder.glob("*.safetensors")}
    if index.is_file():
        try:
            files |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return f"{index.name} is cut off or damaged"
    for name in sorted(files):
        if not (folder / name).is_file():
            return f"{name} is missing"
        with open(folder / name, "rb") as file:
            try:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length < 10**8 else {}
                ends = [each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"]
                complete = bool(ends) and (folder / name).stat().st_size == 8 + length + max(ends)
            except (struct.error, ValueError, KeyError, TypeError):
                complete = False
        if not complete:
            return f"{name} is cut off or damaged"
    return ""


def resolve_model(name: str) -> Path:
    """The folder of a model, looked for in this order: a path; MODELS_DIR/<org>/<name>, also in ModelScope's spelling;
    the embedded demo model; the hub named by MODEL_SOURCE.

    Raises SystemExit with every place tried and the one command that fixes it, or with what is wrong with the model found:
    a download that broke off is not taken for a model.
    """
    root = models_dir()
    modelscope = name.replace(".", "___")  # how its downloader spells a dot
    places = [Path(name).expanduser(), root / name, root / modelscope, root / "models" / modelscope]
    for place in places:
        if (place / "config.json").is_file():
            if wrong := broken_weights(place):
                raise SystemExit(
                    f"{place}: {wrong}. Bring the file again (a download goes on where it broke off), or give another --model."
                )
            return place
        if (place / "adapter_config.json").is_file():
            raise SystemExit(f"{place} is a LoRA adapter, not a model: give it as --adapter, and its base as --model.")
    if name == DEMO_MODEL:
        from common.demo_model import fetch

        return fetch(root / name)

    source = os.environ.get("MODEL_SOURCE", "huggingface")
    tried = [str(place) for place in dict.fromkeys(places)]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        try:
            if source == "modelscope":
                from modelscope import snapshot_download

                # Into the folder that is looked into above; its own cache has another layout in every version.
                return Path(snapshot_download(name, allow_patterns=MODEL_FILES, local_dir=str(root / name)))
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(name, allow_patterns=MODEL_FILES))
        except Exception as error:  # every failure ends in the same advice: no network, no such name, a gated model
            tried.append(f"the hub {source}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    else:
        tried.append(f"no hub: {name!r} is not of the form <org>/<name>")
    fix = f"pip install modelscope && modelscope download --model {name} --local_dir {root / name}"
    if source == "modelscope":
        fix = f"hf download {name} --local-dir {root / name}"
    raise SystemExit(f"model {name!r} was not found. Tried:\n  " + "\n  ".join(tried) + f"\nTo get it: {fix}")
