"""The command line: order of sources, strictness, and --help before anything heavy is imported."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from common import cli, device, models
from common.cli import ModelArgs, SftArgs, arg, parse, trainer_config

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Args(ModelArgs):
    data: str | None = arg(None, "a folder")
    rows: int = arg(10, "how many, 100% of them")
    side: Literal["left", "right"] = arg("left", "which side")
    names: list[str] = arg(["a", "b"], "some names")
    loud: bool = arg(False, "a switch")


DEFAULTS = dict(learning_rate=2e-4, max_steps=7, rows=20)
DEMO = dict(max_steps=3)


def read(*argv):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", list(argv))
    return args, trainer_config(args)


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
        parse(__file__, dict(learning_rat=1), {}, Args, "trl:SFTConfig", [])


def test_without_a_gpu_the_cpu_is_used_and_the_16_bit_type_is_this_machines():
    import torch

    from common.device import has_bf16

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

    order = []
    monkeypatch.setattr(device, "decide_backend", lambda backend: order.append(backend) or "hf")
    original = importlib.import_module

    def import_module(name, *more, **named):
        order.append(name)
        return original(name, *more, **named)

    monkeypatch.setattr(importlib, "import_module", import_module)
    config = ["--config", write(tmp_path / "c.yaml", yaml)] if yaml else []
    args = parse(__file__, {}, {}, ModelArgs, "trl:SFTConfig", config + argv)
    assert not order
    trainer_config(args)
    assert order[:2] == [expected, "trl"] and args.backend == "hf"


def test_inference_imports_the_backend_first(tmp_path, monkeypatch):
    def stop(backend):
        raise RuntimeError(backend)

    monkeypatch.setattr(device, "decide_backend", stop)
    with pytest.raises(RuntimeError, match="auto"):
        models.load_run(models.TrainedRun(tmp_path, tmp_path, {}, {}, {}), ModelArgs())


@dataclass
class Own(SftArgs):
    packing: bool = arg(False, "SFTConfig has one, too, of another meaning")


def test_a_scripts_own_flag_stands_before_the_trainers_of_the_same_name():
    args = parse(__file__, {}, {}, Own, "trl:SFTConfig", ["--packing", "true"])
    assert args.packing is True and trainer_config(args).packing is False


def test_auto_learns_what_was_given_on_the_command_line_or_in_yaml(tmp_path):
    yaml = write(tmp_path / "c.yaml", "gradient_accumulation_steps: 4\n")
    argv = ["--config", yaml, "--per-device-train-batch-size=2", "--packing"]
    args = parse(__file__, dict(max_steps=1), {}, Own, "trl:SFTConfig", argv)
    assert args.given == ["gradient_accumulation_steps", "packing", "per_device_train_batch_size"]
    assert args.gradient_accumulation_steps == 4


@pytest.mark.parametrize("name", ["trl:SFTConfig", "trl:GRPOConfig", "transformers:TrainingArguments"])
def test_a_trainers_flags_read_from_its_source_are_those_of_its_class(name):
    """Names, defaults and types; the class is not imported to parse a command line."""
    import dataclasses
    import importlib

    module, config = name.split(":")
    fields = dataclasses.fields(getattr(importlib.import_module(module), config))
    real = {each.name: each for each in fields if each.init}
    found = {each: (options, default) for each, options, default, _ in cli._trainer_fields(config)}
    assert found.keys() == real.keys()
    for each, (options, default) in found.items():
        if default is not cli._UNSET:
            assert default == real[each].default, each
        if isinstance(default, (bool, int, float)) and options["type"] is not str:
            assert options["type"](str(default)) == default, each
    assert [each for each, (_, default) in found.items() if default is cli._UNSET] == ["optim", "include_for_metrics"]


def test_without_a_trainer_every_default_is_a_flag_of_its_type():
    defaults = dict(rows=20, rate=0.5, deep=True, layers=["q"], word="x", nothing=None)
    argv = ["--rate", "2", "--deep", "false", "--layers", "a", "b", "--nothing", "y"]
    args = parse(__file__, defaults, {}, Args, argv=argv)
    assert (args.rate, args.deep, args.layers, args.nothing, args.word) == (2.0, False, ["a", "b"], "y", "x")


TRAINERS = sorted(file for file in ROOT.glob("*/train*.py") if (file.parent / "Dockerfile").is_file())


@pytest.mark.parametrize("file", TRAINERS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_wrong_flag_and_a_wrong_path_answer_in_a_second(file, script):
    for argv, said in ((["--nosuch", "1"], "unknown flag --nosuch"), (["--data", "no/such/data.jsonl"], "data.jsonl")):
        started = time.time()
        done = script(file, *argv, check=False)
        assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
        assert time.time() - started < 1.5, argv  # 1 s, and a busy machine's delay
