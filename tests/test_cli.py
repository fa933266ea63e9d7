"""The command line: order of sources, strictness, and --help before anything heavy is imported."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from common.cli import arg, parse

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Args:
    data: str | None = arg(None, "a folder")
    rows: int = arg(10, "how many, 100% of them")
    side: Literal["left", "right"] = arg("left", "which side")
    names: list[str] = arg(["a", "b"], "some names")
    loud: bool = arg(False, "a switch")


DEFAULTS = dict(learning_rate=2e-4, max_steps=7, rows=20)
DEMO = dict(max_steps=3)


def read(*argv):
    return parse(__file__, DEFAULTS, DEMO, (Args,), "trl:SFTConfig", list(argv))


def error(*argv):
    with pytest.raises(SystemExit) as caught:
        read(*argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_order_is_defaults_demo_yaml_flags(tmp_path):
    yaml = write(tmp_path / "c.yaml", "max_steps: 5\nlearning_rate: 1e-5\nnames: [x]\nloud: true\n")
    assert read()[1].max_steps == 7
    assert read("--demo")[1].max_steps == 3
    args, config = read("--demo", f"--config={yaml}", "--rows", "1")
    assert (config.max_steps, config.learning_rate, args.names, args.loud, args.rows) == (5, 1e-5, ["x"], True, 1)
    args, config = read("--config", yaml, "--max-steps=9", "--loud", "false", "--names", "p", "q")
    assert (config.max_steps, args.names, args.loud) == (9, ["p", "q"], False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max_ste", "4"], "unknown flag --max_ste; did you mean --max_steps?"),
        (["--learning-rat", "4"], "did you mean --learning_rate?"),
        (["--max_steps", "7.5"], "argument --max_steps/--max-steps: invalid int value: '7.5'"),
        (["--side", "up"], "invalid choice: 'up'"),
        (["--loud", "maybe"], "expected true or false, got 'maybe'"),
        (["--optim", "sgdd"], "sgdd"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--eval_strategy", "sometimes"], "sometimes"),
    ],
)
def test_a_wrong_flag_is_one_line(argv, said):
    assert said in error(*argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_ste: 4", "unknown key 'max_ste'; did you mean --max_steps?"),
        ("max_steps: 7.5", "invalid int value: '7.5'"),
        ("max_steps: many", "invalid int value: 'many'"),
        ("max_steps: [1, 2]", "max_steps takes one value, not a list"),
        ("loud: 3", "expected true or false, got '3'"),
        ("- a\n- b", "must be a list of `flag: value` lines"),
        ("a: [1", "is not valid YAML"),
    ],
)
def test_a_wrong_yaml_value_names_file_and_key(tmp_path, text, said):
    message = error("--config", write(tmp_path / "bad.yaml", text))
    assert said in message and "bad.yaml" in message


def test_defaults_must_exist():
    with pytest.raises(AssertionError, match="learning_rat"):
        parse(__file__, dict(learning_rat=1), {}, (Args,), "trl:SFTConfig", [])


def test_without_a_gpu_the_cpu_is_used_and_the_16_bit_type_is_this_machines():
    import torch

    from common.models import has_bf16

    config = read()[1]
    if not torch.cuda.is_available():
        assert config.use_cpu and not config.fp16
    assert config.bf16 == has_bf16()
    assert read("--bf16", "false")[1].bf16 is False


def test_json_flags():
    assert read("--lr_scheduler_kwargs", '{"num_cycles": 2}')[1].lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize("file", sorted(ROOT.glob("*/train.py")) + sorted(ROOT.glob("*/infer.py")), ids=str)
def test_help_answers_at_once_and_imports_nothing_heavy(file):
    started = time.time()
    code = f"import sys; sys.argv = [{str(file)!r}, '--help']; sys.path.insert(0, {str(file.parent)!r})\nimport runpy\n"
    code += f"try: runpy.run_path({str(file)!r}, run_name='__main__')\nexcept SystemExit as e: assert not e.code\n"
    code += "assert not {'torch', 'transformers', 'pandas', 'pyarrow', 'datasets'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--model" in done.stdout and time.time() - started < 1.5  # 1 s for --help, and this test's own start


def test_help_all_lists_the_trainers_flags(script):
    shown = script(ROOT / "medical" / "train.py", "--help_all").stdout
    assert "--gradient_checkpointing_kwargs" in shown and "--price_per_hour" in shown


def test_help_gives_each_default_its_reason(script):
    shown = script(ROOT / "medical" / "train.py", "--help").stdout
    line = next(line for line in shown.splitlines() if "--learning_rate" in line and "0.0002" in line)
    assert "only the small matrices move" in line and "[demo: 0.002]" in line


@pytest.mark.parametrize(
    ("argv", "yaml", "expected"),
    [([], "", "auto"), (["--backend", "hf"], "backend: unsloth", "hf"), ([], "backend: hf", "hf")],
)
def test_the_backend_that_will_be_used_is_imported_before_the_trainer(tmp_path, monkeypatch, argv, yaml, expected):
    """Unsloth patches TRL while it is imported; the default, which no flag names, counts as well."""
    import importlib

    from common import models

    order = []
    monkeypatch.setattr(models, "import_backend", lambda backend: order.append(backend) or "hf")
    original = importlib.import_module

    def import_module(name, *more, **named):
        order.append(name)
        return original(name, *more, **named)

    monkeypatch.setattr(importlib, "import_module", import_module)
    config = ["--config", write(tmp_path / "c.yaml", yaml)] if yaml else []
    parse(__file__, {}, {}, (models.ModelArgs,), "trl:SFTConfig", config + argv)
    assert order[:2] == [expected, "trl"]


def test_inference_imports_the_backend_first(tmp_path, monkeypatch):
    from common import models

    def stop(backend):
        raise RuntimeError(backend)

    monkeypatch.setattr(models, "import_backend", stop)
    with pytest.raises(RuntimeError, match="auto"):
        models.load_adapter(tmp_path, models.ModelArgs())


@dataclass
class Own:
    auto: bool = arg(True, "has to know what was given")
    packing: bool = arg(False, "SFTConfig has one, too, of another meaning")


def test_a_scripts_own_flag_stands_before_the_trainers_of_the_same_name():
    own, config = parse(__file__, {}, {}, (Own,), "trl:SFTConfig", ["--packing", "true"])
    assert own.packing is True and config.packing is False


def test_auto_learns_what_was_given_on_the_command_line(tmp_path):
    yaml = write(tmp_path / "c.yaml", "gradient_accumulation_steps: 4\n")
    argv = ["--config", yaml, "--per-device-train-batch-size=2", "--packing"]
    own, config = parse(__file__, {}, {}, (Own,), "trl:SFTConfig", argv)
    assert own.given == ["packing", "per_device_train_batch_size"] and config.gradient_accumulation_steps == 4
