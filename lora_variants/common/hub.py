# Generated from common/hub.py: edit that file, then run `make sync`.
"""How a model's name becomes a folder on this machine, checked before anything is loaded from it."""

import contextlib
import functools
import json
import os
import re
import struct
from pathlib import Path

from common import device, screen
from common.paths import DEMO_MODEL, models_dir

# What a model needs to run. Pickled weights (*.bin, *.pt) can run code when loaded, so they are never fetched.
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
# JSON objects that a model's or an adapter's folder may hold. The long ones are looked into only where loading fails.
OBJECTS = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
LONG_OBJECTS = ("tokenizer.json", "vocab.json")
AGAIN = "{place}: {wrong}. Bring the file again (a download goes on where it broke off), or give another --model."
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
        if (place / "config.json").exists():
            if wrong := broken(place):
                raise SystemExit(screen.text(AGAIN, place=place, wrong=wrong))
            return place
        if (place / "adapter_config.json").exists():
            told = "{place} is a LoRA adapter, not a model: give it as --adapter, and its base as --model."
            raise SystemExit(screen.text(told, place=place))
    if name == DEMO_MODEL:
        from common.demo_model import fetch

        return fetch(root / name)

    source = os.environ.get("MODEL_SOURCE", "huggingface").lower()
    if source not in ("huggingface", "modelscope"):
        raise SystemExit(f"MODEL_SOURCE={source}: expected huggingface or modelscope.")
    tried = [str(place) for place in dict.fromkeys(places)]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
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
    told = "model {name!r} was not found. Tried:\n  {tried}\nTo get it: {fix}"
    raise SystemExit(screen.text(told, name=name, tried="\n  ".join(tried), fix=fix))


def read_object(file: Path, **types) -> dict:
    """The JSON object of a file that has to be there. types: the type, or types, that a name's value must have.

    Raises SystemExit with what is wrong with the file.
    """
    wrong, content = broken_object(file), {}
    if not wrong:
        content = json.loads(file.read_text(encoding="utf-8"))
        bad = next((name for name, kind in types.items() if not isinstance(content.get(name), kind)), None)
        wrong = bad and (f"{bad} is {json.dumps(content[bad])[:60]}" if bad in content else f"it does not say {bad}")
    if wrong:
        raise SystemExit(f"{file}: {wrong}. Bring the file again, as training wrote it.")
    return content


def broken_object(file: Path) -> str:
    """Why a file holds no JSON object; "" if it does."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return (error.strerror or "cannot be read").lower()
    except (ValueError, RecursionError):
        return "cut off or damaged"
    return "" if isinstance(content, dict) else f"holds {json.dumps(content)[:60]}, not an object"


def broken(folder: Path, long=False) -> str:
    """Which file of a model or an adapter is damaged or missing; "" if none. long: look into large tokenizer files, too."""
    for name in OBJECTS + (LONG_OBJECTS if long else ()):
        if (folder / name).exists() and (wrong := broken_object(folder / name)):
            return f"{name}: {wrong}"
    return broken_weights(folder)


def broken_weights(folder: Path) -> str:
    """Which *.safetensors of a model is missing or shorter than its own header says; "" if none. Reads headers only."""
    index = folder / "model.safetensors.index.json"
    files = {file.name for file in folder.glob("*.safetensors")}
    if index.exists():
        try:
            files |= {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return f"{index.name} is cut off or damaged"
    for name in sorted(files):
        if Path(name).name != name or not (folder / name).exists():  # an index names nothing outside of its folder
            return f"{name} is missing"
        if not tensors(folder / name):
            return f"{name} is cut off or damaged"
    return ""


def tensors(file: Path):
    """The header of a safetensors file, name -> {dtype, shape, data_offsets}; None where it is damaged, or the file is not
    as long as it says."""
    try:
        length, header = _header(file)
        shapes = [size for each in header.values() for size in each["shape"]]
        ends = [each["data_offsets"][1] for each in header.values()]
        complete = file.stat().st_size == 8 + length + max(ends, default=0) and all(size >= 0 for size in shapes)
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return header if complete else None


@contextlib.contextmanager
def loading(folder: Path, what: str):
    """What a library raises at a damaged folder becomes a line that names the file. what: the files that it reads."""
    try:
        yield
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".") or "no reason given"
        wrong = broken(Path(folder), long=True) or f"{what} cannot be loaded: {type(error).__name__}: {reason}"
        raise SystemExit(f"{folder}: {wrong}. If the folder was copied or downloaded, bring it again.") from error


def load(kind, path: Path, fresh=(), **options):
    """kind.from_pretrained of a folder, from safetensors. Weights that the files lack would be random, and layers that
    config.json does not count would be left out, both in silence: they are refused.

    kind: a transformers class. fresh: endings of the names that are to be random, such as those of a new head.
    """
    with loading(path, "config.json or *.safetensors"):
        # A quantization_config of None would overwrite that of a model that was saved in 4 bits.
        options = {name: value for name, value in options.items() if value is not None}
        options |= dict(use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
        model, found = kind.from_pretrained(str(path), **options)
    lacks = sorted(name for name in found["missing_keys"] if not name.endswith(tuple(fresh)))
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) or 10**9
    beyond = sorted(
        name for name in found["unexpected_keys"] if (n := re.search(r"layers\.(\d+)\.", name)) and int(n[1]) >= layers
    )
    wrong = [f"no {name}, which config.json asks for" for name in lacks]
    wrong += [f"{name}, and config.json counts {layers} layers" for name in beyond]
    wrong += [
        f"{name} as {list(one)}, which config.json makes {list(two)}" for name, one, two in found["mismatched_keys"]
    ]
    if wrong:
        said = f"its *.safetensors hold {wrong[0]} ({len(wrong)} weights do not fit)"
        raise SystemExit(screen.text(AGAIN, place=path, wrong=said))
    return model


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
        raise SystemExit(screen.text("--quantization 4bit needs an NVIDIA GPU. {why}", why=device.no_cuda()))
    needs = {"none": weight_bytes(path, False), "4bit": weight_bytes(path, True)}
    if not cuda:
        choice, needs = "none", {"none": 1.2 * needs["none"]}
    needs = {name: (size + min(MARGIN, size)) / 1e9 for name, size in needs.items()}
    free /= 1e9
    if choice == "auto":
        choice = "none" if needs["none"] < free else "4bit"
    if needs[choice] > free:
        told = "{model} needs about {need:.0f} GB of memory, {free:.0f} GB are free. Try a smaller --model."
        if "4bit" in needs and choice == "none":
            told = "{model} needs about {need:.0f} GB of memory, {free:.0f} GB are free. Try --quantization 4bit."
        raise SystemExit(screen.text(told, model=path.name, need=needs[choice], free=free))
    return choice == "4bit"


def _header(file: Path):
    """(bytes of a safetensors file's header, its tensors: name -> dtype, shape, data_offsets)."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        tensors = json.loads(stream.read(length)) if length < 10**8 else {}
    tensors.pop("__metadata__", None)
    return length, tensors
