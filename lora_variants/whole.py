"""A run of --full, asked and measured like a run with an adapter: infer.py and evaluate.py open both kinds here.

There is no adapter to turn off, so disable_adapter() loads the base, the first time, and lends its weights to the model: twice the memory
of one where both are asked, and nobody else need know.
"""

import contextlib
import functools
from pathlib import Path

from common import adapters, device, hub, models
from common.files import fingerprint
from prompt import TEMPLATE


def is_whole(folder: Path) -> bool:
    return (folder / "model" / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def reads_of(run: models.TrainedRun) -> Path:
    """The folder that has a run's tokenizer."""
    return run.adapter / "model" if is_whole(run.adapter) else run.adapter


def open_run(adapter=None, model=None, record=False) -> models.TrainedRun:
    """As models.open_run, and a run of --full: its base is then the model that it began with.

    Raises SystemExit where the run is not finished, its model is damaged, or another base is found.
    """
    folder = Path(adapter).expanduser() if adapter else models.latest()
    if not is_whole(folder):
        return models.open_run(folder, model, record=record, own=TEMPLATE)
    found, texts = adapters.read_record(folder), adapters.read_texts(folder, TEMPLATE)
    if found.get("status") != "finished":
        raise SystemExit(f"{folder} is not finished: the same train.py command goes on.")
    if wrong := hub.broken(folder / "model"):
        raise SystemExit(f"{folder / 'model'}: {wrong}. Copy the file again, or train again.")
    base = hub.resolve_model(model or found["arguments"]["model"])
    if (known := found.get("weights")) and known != fingerprint(base):
        raise SystemExit(f"{folder} was trained on another model than {base}. Give its base with --model.")
    return models.TrainedRun(folder, base, found, found["arguments"], texts)


def load_run(run: models.TrainedRun, args):
    """(model, tokenizer) as models.load_run. Of a run of --full without quantization, which it was trained without."""
    if not is_whole(run.adapter):
        return models.load_run(run, args)

    @functools.cache
    def loaded(path):
        return models.load_base(path, args.backend, None, device.dtype()).eval()

    tuned = loaded(run.adapter / "model")

    def swap():
        for one, other in zip(tuned.parameters(), loaded(run.base).parameters(), strict=True):
            one.data, other.data = other.data, one.data

    @contextlib.contextmanager
    def disable_adapter():
        swap()
        try:
            yield
        finally:
            swap()

    tuned.disable_adapter = disable_adapter
    return tuned, models.load_tokenizer(reads_of(run))
