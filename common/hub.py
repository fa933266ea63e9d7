"""How a model's name becomes a folder on this machine, checked before anything is loaded from it."""

import functools
import json
import os
import re
import struct
from pathlib import Path

from common import device
from common.paths import DEMO_MODEL, models_dir

# What a model needs to run. Pickled weights (*.bin, *.pt) can run code when loaded, so they are never fetched.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
MARGIN = 1.7e9  # beside torch's tensors: CUDA itself, loaded kernels, its libraries' workspaces, a reserve


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

    source = os.environ.get("MODEL_SOURCE", "huggingface").lower()
    if source not in ("huggingface", "modelscope"):
        raise SystemExit(f"MODEL_SOURCE={source}: expected huggingface or modelscope.")
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
        try:
            length, header = _header(folder / name)
            ends = [each["data_offsets"][1] for each in header.values()]
            complete = bool(ends) and (folder / name).stat().st_size == 8 + length + max(ends)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            complete = False
        if not complete:
            return f"{name} is cut off or damaged"
    return ""


def weight_bytes(folder: Path, four_bit: bool) -> float:
    """Bytes that a model's weights take in memory, by the headers of its files.

    In 4 bits a linear layer's weight takes 0.516 bytes and not 2: NF4, a scale in 8 bits for 64 of them, and a scale of
    256 scales. Embedding and lm_head stay in 16 bits.
    """
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no *.safetensors; pickled weights (*.bin) can run code and are not loaded.")
    total = 0.0
    for file in files:
        for name, tensor in _header(file)[1].items():
            size = tensor["data_offsets"][1] - tensor["data_offsets"][0]
            linear = len(tensor["shape"]) == 2 and not re.search(r"embed|lm_head", name)
            total += size * 0.516 / 2 if four_bit and linear else size
    return total


@functools.cache
def choose_quantization(choice: str, path: Path) -> bool:
    """Whether to load in 4 bits, by --quantization. Stops where the weights cannot fit, before minutes go into loading."""
    free, cuda = device.free_bytes()
    if choice == "4bit" and not cuda:
        raise SystemExit(f"--quantization 4bit needs an NVIDIA GPU. {device.no_cuda()}")
    needs = {"none": weight_bytes(path, False), "4bit": weight_bytes(path, True)}
    if not cuda:
        choice, needs = "none", {"none": 1.2 * needs["none"]}
    needs = {name: (size + min(MARGIN, size)) / 1e9 for name, size in needs.items()}
    free /= 1e9
    if choice == "auto":
        choice = "none" if needs["none"] < free else "4bit"
    if needs[choice] > free:
        raise SystemExit(
            f"{path.name} needs about {needs[choice]:.0f} GB of memory, {free:.0f} GB are free. "
            + ("Try --quantization 4bit." if "4bit" in needs and choice == "none" else "Try a smaller --model.")
        )
    return choice == "4bit"


def _header(file: Path):
    """(bytes of a safetensors file's header, its tensors: name -> dtype, shape, data_offsets)."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        tensors = json.loads(stream.read(length)) if length < 10**8 else {}
    tensors.pop("__metadata__", None)
    return length, tensors
