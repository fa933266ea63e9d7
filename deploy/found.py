"""A finished run of any recipe: its adapter, its base, its serving contract. Refused by name where it is none of these."""

import hashlib
import os
from pathlib import Path

from common import hub, models
from common.contract import SERVING, TEMPLATE, digest_ids, kind_of, write
from common.files import fingerprint, read_json
from common.models import TrainedRun
from common.paths import TASK_DIR, output_dir

ADAPTER = "adapter_model.safetensors"


def newest() -> Path:
    """The run with an adapter that was finished last, of all recipes."""
    root = output_dir().parent
    found = []
    for file in [*root.glob("*/*/run.json"), *root.glob("*/*/*/run.json")]:
        record = read_json(file)
        serves = record.get("status") == "finished" and (file.parent / ADAPTER).is_file()
        if serves and record.get("stage") not in ("reward", "sft") and file.parts[-3] != TASK_DIR.name:
            found.append((record.get("finished", file.stat().st_mtime), file.parent))
    if not found:
        raise SystemExit(f"no finished run with an adapter in {root}: train one first, or name a folder.")
    return max(found)[1]


def open_run(name=None, model=None) -> TrainedRun:
    """The run that `name` is the folder of, or the newest one. model: its base, where the adapter's own name is not found.

    Writes the serving contract where an older recipe left none. Raises SystemExit where it cannot be deployed.
    """
    folder = Path(name).expanduser() if name else newest()
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(f"{folder} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    if not (folder / ADAPTER).is_file():
        raise SystemExit(f"{folder} has no {ADAPTER}: its training was cut off, or the copy was.")
    settings, record = read_json(folder / "adapter_config.json"), read_json(folder / "run.json")
    if settings.get("peft_type") != "LORA":
        raise SystemExit(
            f"{folder}: {settings.get('peft_type')} is no LoRA adapter, and nothing else is deployed here."
        )
    if record.get("stage") == "reward" or settings.get("task_type") == "SEQ_CLS":
        raise SystemExit(f"{folder} is a reward model: it scores answers and writes none. Give a policy's folder.")
    kind, _ = kind_of(settings)
    if kind not in ("plain", "merge"):
        raise SystemExit(
            f"{folder}: {kind} changed the base's weights in training, and loading draws them anew: what is served would be "
            "another model. Convert it where it was trained: "
            "save_pretrained(path, path_initial_model_for_weight_conversion=...)."
        )
    base = hub.resolve_model(model or settings["base_model_name_or_path"])
    if read_json(base / "config.json").get("quantization_config"):
        raise SystemExit(f"{base} has quantised weights. Give the model as it was published (bfloat16) with --model.")
    digest = fingerprint(base)
    config = read_json(base / "config.json")
    size = (config | config.get("text_config", {})).get("vocab_size", 0)
    if (tokens := vocabulary(folder)) > size:
        raise SystemExit(f"{folder}: its tokenizer has {tokens:,} tokens, {base.name} {size:,}: a vocabulary that grew in training "
                         "cannot be served. Train without new tokens.")  # fmt: skip
    serving = read_json(folder / SERVING)
    if (known := serving.get("base_digest") or record.get("weights")) and known != digest:
        raise SystemExit(f"{folder} was trained on another model than {base}: digest {known}, here {digest}. "
                         "Give its base with --model.")  # fmt: skip
    if not serving.get("base_digest") or not (folder / TEMPLATE).is_file():
        task = record.get("task") or (folder.parent.name if folder.parent.name != "outputs" else "")
        source = folder if (folder / "tokenizer_config.json").is_file() else base
        write(folder, task, models.load_tokenizer(source), record, digest)
        print(f"serving contract written: {folder / SERVING}, {TEMPLATE}")
    texts = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.txt")}
    return TrainedRun(folder, base, record, record.get("arguments", {}), texts)


def vocabulary(folder: Path) -> int:
    """How many tokens a folder's tokenizer has, added ones included; 0 without one."""
    content = read_json(folder / "tokenizer.json")
    if not content:
        return 0
    return 1 + max([*content["model"]["vocab"].values(), *(each["id"] for each in content["added_tokens"])])


def contract(run: TrainedRun) -> tuple[dict, str]:
    """(serving.json, the serving template) of a run."""
    return read_json(run.adapter / SERVING), (run.adapter / TEMPLATE).read_text(encoding="utf-8")


def name_of(run: TrainedRun) -> str:
    """A short name for files: the recipe and the run."""
    return f"{run.record.get('task') or 'adapter'}-{run.adapter.resolve().name}"


def sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest(folder: Path) -> str:
    """A digest of an adapter: its weights, and the settings that say what they mean."""
    settings = {
        name: value for name, value in read_json(folder / "adapter_config.json").items() if name != "inference_mode"
    }
    return digest_ids([sha256(folder / ADAPTER), settings])


def free_memory() -> int:
    """Bytes that this process may take: what is free, and no more than a container's limit."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdigit() else free


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity")
               else range(os.cpu_count() or 1)))  # fmt: skip
