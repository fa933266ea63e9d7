"""What the tests share: the demo model, a tiny random model, and a way to run a script as a user does."""

import importlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import hub, paths  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two files at a time: threads of both would wait for each other
os.environ.setdefault("MODELS_DIR", str(ROOT / "models"))


def pytest_collection_modifyitems(items):
    """Images first, then files with the most slow tests: no core should wait for one long file at the end (make's TWO)."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.parent.name != "docker", -slow[item.path]))


os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks a hub is wrong
paths.load_env()


@pytest.fixture(scope="session")
def demo_model():
    """The folder of the demo model, fetched once."""
    return hub.resolve_model(paths.DEMO_MODEL)


@pytest.fixture(scope="session")
def tiny_model(demo_model, tmp_path_factory):
    """A random Llama of 2 layers with the demo model's tokenizer: trains in seconds, knows nothing."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    shape = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config = LlamaConfig(vocab_size=49152, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def modules_of():
    """modules_of(task, names): a folder's modules. They import each other by plain names, which other tasks have, too:
    so the names are taken out of sys.modules again."""

    def load(task, names):
        before = {name: sys.modules.pop(name, None) for name in names}
        sys.path.insert(0, str(ROOT / task))
        try:
            return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        finally:
            sys.path.remove(str(ROOT / task))
            for name, module in before.items():
                sys.modules.pop(name, None)
                if module:
                    sys.modules[name] = module

    return load


@pytest.fixture
def copied(tmp_path):
    """Copies one task folder, and nothing else of the repo, to a place of its own."""

    def copy(task):
        ignore = shutil.ignore_patterns("__pycache__", "outputs", "models", "unsloth_compiled_cache")
        return Path(shutil.copytree(ROOT / task, tmp_path / "elsewhere" / task, ignore=ignore))

    return copy


@pytest.fixture
def environment(tmp_path):
    """The environment of a script: results in tmp_path, models where the tests keep them, no hub."""
    keep = {k: v for k, v in os.environ.items() if not k.endswith(("DATA_DIR", "OUTPUT_DIR")) and k != "PYTHONPATH"}
    return keep | {"OUTPUT_DIR": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def script(environment):
    """Runs `python FILE ARGUMENTS` in the file's folder -> CompletedProcess with text output."""

    def run(file, *arguments, check=True, **more):
        done = subprocess.run(
            [sys.executable, str(file), *map(str, arguments)],
            cwd=Path(file).parent,
            env=environment | more,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def rlhf():
    """rlhf_ppo's modules. They stay in sys.modules while a file's tests run: some import others inside functions."""
    from rlhf_toy import FILES

    before = {name: sys.modules.pop(name, None) for name in FILES}
    sys.path.insert(0, str(ROOT / "rlhf_ppo"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
    sys.path.remove(str(ROOT / "rlhf_ppo"))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def toy(rlhf, tmp_path_factory):
    """A folder with a tiny random policy, model/, and a random reward model for it, reward/."""
    from rlhf_toy import judge_of, model_of

    folder = tmp_path_factory.mktemp("toy")
    model_of(folder / "model")
    judge_of(rlhf, folder / "model", folder / "reward")
    return folder
