"""A finished run of any recipe: its adapter, its base, its serving contract. Refused by name where it is none of these."""

import hashlib
import os
from pathlib import Path

from common import adapters, hub, models
from common.contract import SERVING, TEMPLATE, digest_ids, kind_of, write
from common.files import fingerprint, read_json
from common.models import TrainedRun
from common.paths import TASK_DIR, output_dir

WHOLE = "model"  # in a run's folder: the model, of a run that trained every weight (lora_variants --full)


def is_whole(folder: Path) -> bool:
    """Whether a run trained every weight and has no adapter."""
    return (folder / WHOLE / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def newest(whole=False) -> Path:
    """The run with an adapter that was finished last, of all recipes; where OUTPUT_DIR was not chosen, also of those that
    were trained in their own folder, as the lessons do. whole: or with a model of its own."""
    root = output_dir().parent
    roots = [root, *TASK_DIR.parent.glob("*/outputs")] if root == Path.cwd() / "outputs" else [root]
    found = []
    for file in [file for each in roots for depth in ("*/*", "*/*/*") for file in each.glob(f"{depth}/run.json")]:
        record = read_json(file)
        serves = record.get("status") == "finished" and (
            (file.parent / adapters.WEIGHTS).is_file() or whole and is_whole(file.parent)
        )
        if serves and record.get("stage") not in ("reward", "sft") and file.parts[-3] != TASK_DIR.name:
            found.append((record.get("finished", file.stat().st_mtime), file.parent))
    if not found:
        raise SystemExit(f"no finished run with an adapter in {root}: train one first, or name a folder.")
    return max(found)[1]


def open_run(name=None, model=None, whole=False) -> TrainedRun:
    """The run that `name` is the folder of, or the newest one. model: its base, where the adapter's own name is not found.
    whole: also a run that trained every weight; its base is then the model that it made (see public_of).

    Writes the serving contract where an older recipe left none. Raises SystemExit where it cannot be deployed.
    """
    folder = Path(name).expanduser() if name else newest(whole)
    if is_whole(folder):
        if not whole:
            raise SystemExit(f"{folder} trained every weight and has no adapter: export.py makes files of it, which llama.cpp, "
                             "Ollama and vLLM serve as any model.")  # fmt: skip
        return open_whole(folder)
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(f"{folder} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    settings, record = hub.read_object(folder / "adapter_config.json"), adapters.read_record(folder)
    if record.get("stage") == "reward" or settings.get("task_type") == "SEQ_CLS":
        raise SystemExit(f"{folder} is a reward model: it scores answers and writes none. Give a policy's folder.")
    base = hub.resolve_model(model or adapters.base_of(folder))
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise SystemExit(f"{base} has quantised weights. Give the model as it was published (bfloat16) with --model.")
    digest, serving = fingerprint(base), read_json(folder / SERVING)
    if (known := serving.get("base_digest") or record.get("weights")) and known != digest:
        raise SystemExit(f"{folder} was trained on another model than {base}: digest {known}, here {digest}. "
                         "Give its base with --model.")  # fmt: skip
    size = (config | config.get("text_config", {})).get("vocab_size", 0)
    if (tokens := vocabulary(folder)) > size:
        raise SystemExit(f"{folder}: its tokenizer has {tokens:,} tokens, {base.name} {size:,}: a vocabulary that grew in training "
                         "cannot be served. Train without new tokens.")  # fmt: skip
    if beside := [name for name in hub.tensors(folder / adapters.WEIGHTS) or () if ".lora_" not in name]:
        raise SystemExit(f"{folder}: {beside[0]} is no LoRA matrix (a grown vocabulary, modules_to_save?): no program but PEFT "
                         "can serve it. continual/merge.py makes a plain model of such a run; or train without it.")  # fmt: skip
    kind, _ = kind_of(adapters.check(folder, base, record.get("arguments")))
    if kind not in ("plain", "merge"):
        raise SystemExit(f"{folder}: {kind} changed the base's weights in training, and loading draws them anew: what is "
                         "served would be another model. Convert it where it was trained: "
                         "save_pretrained(path, path_initial_model_for_weight_conversion=...).")  # fmt: skip
    texts = adapters.read_texts(folder, {})
    run = TrainedRun(folder, base, record, record.get("arguments", {}), texts)
    if not serving.get("base_digest") or not (folder / TEMPLATE).is_file():
        task = record.get("task") or (folder.parent.name if folder.parent.name != "outputs" else "")
        write(folder, task, tokenizer_of(run), record, digest)
        print(f"serving contract written: {folder / SERVING}, {TEMPLATE}")
    return run


def open_whole(folder: Path) -> TrainedRun:
    """A run that trained every weight: the model that it made stands in the base's place."""
    record, base = adapters.read_record(folder), folder / WHOLE
    if record.get("status") != "finished":
        raise SystemExit(f"{folder} is not finished: the same train.py command goes on.")
    if wrong := hub.broken(base):
        raise SystemExit(f"{base}: {wrong}. Copy the file again, or train again.")
    run = TrainedRun(folder, base, record, record.get("arguments", {}), adapters.read_texts(folder, {}))
    digest = fingerprint(base)
    if read_json(folder / SERVING).get("base_digest") != digest or not (folder / TEMPLATE).is_file():
        write(folder, record.get("task", ""), tokenizer_of(run), record, digest)
    return run


def public_of(run: TrainedRun, model=None) -> Path:
    """The base that a run began with. Raises SystemExit where another model than that is found."""
    if not is_whole(run.adapter):
        return run.base
    base = hub.resolve_model(model or run.arguments["model"])
    if (known := run.record.get("weights")) and known != fingerprint(base):
        raise SystemExit(f"{run.adapter} was trained on another model than {base}. Give its base with --model.")
    return base


def tokenizer_of(run: TrainedRun):
    """The trained tokenizer, or the base's where the adapter came without one."""
    return models.load_tokenizer(reads_of(run))


def reads_of(run: TrainedRun) -> Path:
    """The folder that has a run's tokenizer: its own, or its base's."""
    return run.adapter if (run.adapter / "tokenizer_config.json").is_file() else run.base


def vocabulary(folder: Path) -> int:
    """How many tokens a folder's tokenizer has, added ones included; 0 without one."""
    if not (folder / "tokenizer.json").is_file():
        return 0
    content = hub.read_object(folder / "tokenizer.json", model=dict, added_tokens=list)
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
    """A digest of an adapter, or a whole model: its weights, and the settings that say what they mean."""
    if is_whole(folder):
        return digest_ids([sha256(file) for file in sorted((folder / WHOLE).glob("*.safetensors"))])
    settings = {
        name: value for name, value in read_json(folder / "adapter_config.json").items() if name != "inference_mode"
    }
    return digest_ids([sha256(folder / adapters.WEIGHTS), settings])


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
    """How many threads to compute with: OMP_NUM_THREADS, or one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or cores)


def with_run(argv: list) -> list:
    """The command line with a first word that is no flag as --adapter."""
    return ["--adapter", *argv] if argv and not argv[0].startswith("-") else list(argv)
