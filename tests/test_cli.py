"""The command line: order of sources, strictness, and --help before anything heavy is imported."""

import ast
import functools
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from common import cli, device, models, settings
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


# -- ranges

OUT_OF_RANGE = [
    ("per_device_train_batch_size", "0"), ("per_device_train_batch_size", "-4"), ("per_device_eval_batch_size", "0"),
    ("gradient_accumulation_steps", "0"), ("lora_r", "0"), ("lora_alpha", "0"), ("lora_dropout", "7"),
    ("lora_dropout", "1"), ("lora_dropout", "-0.1"), ("seed", "-1"), ("seed", "4294967296"), ("data_seed", "-1"),
    ("split_seed", "-1"), ("max_steps", "0"), ("max_steps", "-2"), ("num_train_epochs", "0"), ("epochs", "0"),
    ("num_train_epochs", "-1"), ("learning_rate", "0"), ("learning_rate", "-0.1"), ("learning_rate", "nan"),
    ("learning_rate", "inf"), ("learning_rate", "1e999"), ("max_length", "0"), ("eval_ratio", "0"),
    ("eval_ratio", "1"), ("eval_ratio", "1.5"), ("temperature", "-0.1"), ("temperature", "nan"), ("top_p", "0"),
    ("top_p", "1.1"), ("beta", "-0.1"), ("num_generations", "1"), ("limit", "0"), ("limit", "-3"),
    ("warmup", "1.5"), ("warmup", "-0.1"), ("warmup_steps", "-1"), ("save_steps", "0"), ("logging_steps", "0"),
    ("eval_steps", "0"), ("price_per_hour", "-1"), ("weight_decay", "-0.1"), ("adam_beta2", "1"),
    ("show_mask", "-1"), ("max_new_tokens", "0"), ("ranks", "0"), ("save_total_limit", "9" * 30),
]  # fmt: skip
FLAGS = dict(epochs=2, limit=None, warmup=0.1, eval_ratio=0.1, split_seed=1, max_new_tokens=9, ranks=[1, 2], top_p=1.0)


@dataclass
class Numbers(SftArgs):
    """Flags of many folders, and what GRPO's config has beside SFT's."""

    epochs: int = arg(2, "")
    limit: int | None = arg(None, "")
    warmup: float = arg(0.1, "")
    eval_ratio: float = arg(0.1, "")
    split_seed: int = arg(1, "")
    max_new_tokens: int = arg(9, "")
    ranks: list[int] = arg([1, 2], "")
    max_length: int = arg(9, "")


def refused(*argv):
    with pytest.raises(SystemExit) as caught:
        parse(__file__, {}, {}, Numbers, "trl:GRPOConfig", list(argv))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    return message


def test_a_value_out_of_its_range_is_one_line_that_names_flag_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_trainer_fields", functools.cache(cli._trainer_fields))  # a twelfth of a second each time
    accepted = []
    for name, value in OUT_OF_RANGE:
        for where, argv in (
            ("", [f"--{name}={value}"]),
            ("c.yaml: ", ["--config", write(tmp_path / "c.yaml", f"{name}: {value.replace('nan', '.nan')}\n")]),
        ):
            try:
                parse(__file__, {}, {}, Numbers, "trl:GRPOConfig", argv)
            except SystemExit as error:
                message = str(error)
                assert where in message and "\n" not in message, message
                assert f"--{name}" in message or "c.yaml: line 1: 9999" in message, message
                assert "expected" in message or "invalid" in message or "decimal digits" in message, message
            else:
                accepted.append((name, value, where))
    assert not accepted


def test_what_stands_at_the_end_of_a_range_is_taken():
    argv = "--max_steps -1 --seed 4294967295 --split_seed 0 --lora_dropout 0 --temperature 0.01 --top_p 1 --beta 0"
    argv += " --num_generations 2 --limit 1 --warmup 1 --warmup_steps 0 --price_per_hour 0 --weight_decay 0 --eval_steps 0.5"
    args = parse(__file__, {}, {}, Numbers, "trl:GRPOConfig", argv.split())
    assert (args.max_steps, args.seed, args.top_p, args.warmup) == (-1, 2**32 - 1, 1.0, 1.0)


def test_a_default_may_stand_for_something_else_but_nothing_near_it():
    flags = [dict(micro_batch_size=0, lam=-1.0), {}, Args]
    assert parse(__file__, *flags, argv=["--micro_batch_size", "0", "--lam", "-1"]).lam == -1
    for argv in (["--micro_batch_size", "-1"], ["--lam", "-2"]):
        with pytest.raises(SystemExit, match="expected"):
            parse(__file__, *flags, argv=argv)
    with pytest.raises(SystemExit, match="expected 1 or more, got 0"):
        parse(__file__, dict(micro_batch_size=8), {}, Args, argv=["--micro_batch_size", "0"])


def test_training_divides_by_the_temperature_and_inference_takes_0():
    assert "--temperature" in refused("--temperature", "0")
    assert parse(__file__, dict(temperature=0.8), {}, Args, argv=["--temperature", "0"]).temperature == 0


def test_long_digits_and_long_words_are_cut_in_the_message(tmp_path):
    for value in ("9" * 5000, "x" * 5000):
        assert "--lora_r" in refused("--lora_r", value)
        said = refused("--config", write(tmp_path / "c.yaml", f"lora_r: {value}\n"))
        assert "c.yaml" in said and ("lora_r" in said or "line 1" in said)
    assert "unknown key" in refused("--config", write(tmp_path / "c.yaml", f"{'k' * 900}: 1\n"))


def test_a_trainers_flag_without_an_effect_here_is_refused_with_the_way_that_works():
    said = refused("--resume_from_checkpoint", "nowhere")
    assert "--resume_from_checkpoint" in said and "same command" in said


SCRIPTS = sorted(file for file in ROOT.glob("*/*.py") if (file.parent / "Dockerfile").is_file())


def numeric_flags():
    """(file, name, value) of every number in DEFAULTS, in DEMO and in arg(...), from the scripts' source."""
    for file in [*SCRIPTS, ROOT / "common" / "cli.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                if ast.unparse(node.value.func) == "arg" and {"int", "float"} & set(
                    re.findall(r"\w+", ast.unparse(node.annotation))
                ):
                    yield file, node.target.id, ast.unparse(node.value.args[0]), True
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("DEFAULTS", "DEMO"):
                for each in getattr(node.value, "keywords", ()):
                    if re.fullmatch(r"-?[\d_.]+(e-?\d+)?", ast.unparse(each.value)):
                        yield file, each.arg, ast.unparse(each.value), ast.unparse(node.targets[0]) == "DEFAULTS"


def test_every_number_of_every_script_has_a_range_and_keeps_it():
    found = list(numeric_flags())
    assert len({name for _, name, _, _ in found}) > 90
    assert not {name for _, name, _, _ in found} - set(settings.RANGE)
    defaults = {(file.parent, name, value) for file, name, value, is_default in found if is_default}
    for file, name, value, _ in found:
        for each in re.findall(r"-?[\d_.]+(?:e-?\d+)?", value if "*" not in value else ""):
            if (file.parent, name, value) not in defaults:
                settings.in_range(name, float)(each)


@pytest.mark.parametrize(
    ("script_name", "argv", "flag"),
    [
        ("alpaca/train.py", ["--demo", "--lora_r", "0"], "--lora_r"),
        ("alpaca/train_plain_trainer.py", ["--demo", "--eval_ratio", "1.5"], "--eval_ratio"),
        ("medical/evaluate.py", ["--limit", "0"], "--limit"),
        ("domain_mix/infer.py", ["--question", "x", "--top_p", "0"], "--top_p"),
        ("r1_grpo/train.py", ["--demo", "--num_generations", "1"], "--num_generations"),
        ("r1_grpo/data.py", ["--arithmetic", "0", "--out", "x"], "--arithmetic"),
        ("rlhf_ppo/train_ppo.py", ["--demo", "--temperature", "0"], "--temperature"),
        ("rlhf_ppo/train_reward.py", ["--demo", "--micro_batch_size", "0"], "--micro_batch_size"),
        ("rlhf_ppo/compare.py", ["--demo", "--answers", "1"], "--answers"),
        ("s1_scaling/grade.py", ["--chunk", "0"], "--chunk"),
        ("s1_scaling/tasks.py", ["--generate", "99", "--seed", "-1", "--out", "x"], "--seed"),
        ("s1_scaling/funnel.py", ["--select", "0", "--pool", "x", "--out", "x"], "--select"),
        ("vl_insurance/render.py", ["--out", "x", "--difficulty", "2"], "--difficulty"),
        ("vl_insurance/pretrain.py", ["--minutes", "0"], "--minutes"),
        ("vl_insurance/data.py", ["--max_pixels", "0"], "--max_pixels"),
        ("medical/data.py", ["--max_chars", "0"], "--max_chars"),
        ("math_demos/als_movielens.py", ["--test_share", "1"], "--test_share"),
        ("math_demos/lora_lowrank.py", ["--seed", "-1"], "--seed"),
        ("math_demos/image_svd.py", ["--k", "-1"], "--k"),
        ("rlhf_ppo/train.py", ["--demo", "--ppo_config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ("rlhf_ppo/compare.py", ["--demo", "--grpo_config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ("rlhf_ppo/train_ppo.py", ["--demo", "--reward", "nowhere"], "nowhere holds no reward model"),
        ("rlhf_ppo/infer.py", ["--ppo", "nowhere"], "nowhere holds no adapter"),
        ("medical/infer.py", ["--adapter", "nowhere"], "nowhere holds no adapter"),
    ],
)  # fmt: skip
def test_scripts_refuse_it_before_anything_is_loaded(script_name, argv, flag, script):
    started = time.time()
    done = script(ROOT / script_name, *argv, check=False)
    assert done.returncode and flag in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 or "usage:" in done.stderr.splitlines()[0]
    assert time.time() - started < 1.5


def test_the_stages_config_files_are_read_before_the_first_stage_begins(tmp_path, script):
    bad = write(tmp_path / "ppo.yaml", "updates: 3\nkl_coef: -1\n")
    done = script(ROOT / "rlhf_ppo" / "train.py", "--demo", "--ppo_config", bad, check=False)
    assert "ppo.yaml" in done.stderr and "--kl_coef" in done.stderr and "== reward model" not in done.stdout


# -- YAML

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
BAD_YAML = {
    "a key twice": ("rows: 1\nside: left\nrows: 2\n", "line 3: the key 'rows' stands in line 1 already"),
    "a key twice inside": ("lr_scheduler_kwargs: {a: 1, a: 2}\n", "line 1: the key 'a'"),
    "a key twice, once quoted": ("rows: 1\n'rows': 2\n", "line 2: the key 'rows'"),
    "on as a key": ("on: 1\n", "line 1: the key True is no text"),
    "a number as a key": ("1: 1\n", "line 1: the key 1 is no text"),
    "a list as a key": ("? [a]\n: 1\n", "line 1"),
    "a mapping for one value": ("rows: {a: 1}\n", "rows takes one value, not a mapping"),
    "a mapping for a text": ("data: {a: 1}\n", "data takes one value, not a mapping"),
    "a list for a text": ("data: [a]\n", "data takes one value, not a list"),
    "lists in a list": ("names: [[a], b]\n", "names takes a list of single values"),
    "a mapping in a list": ("names: [{a: b}]\n", "names takes a list of single values"),
    "nothing": ("rows:\n", "rows has no value"),
    "nothing in a list": ("names: [a, ~]\n", "names takes a list of single values"),
    "no, unquoted": ("eval_strategy: no\n", "eval_strategy is read as true or false: put the word in quotes"),
    "a boolean for a number": ("rows: true\n", "invalid int value"),
    "an empty list": ("names: []\n", "--names"),
    "an empty file": ("", "must be a list of `flag: value` lines"),
    "a text": ("hello", "must be a list of `flag: value` lines"),
    "minutes and seconds": ("data: 12:30\n", "line 1: 12:30"),
    "an octal number": ("rows: 0x1F\n", "line 1: 0x1F"),
    "an alias": ("data: &a x\nside: *a\n", "line 2: an alias (*...)"),
    "a billion laughs": (LAUGHS, "line 2: an alias"),
    "5,000 digits": (f"rows: {'9' * 5000}\n", "line 1"),
    "5,000 digits as a float": (f"learning_rate: {'9' * 5000}.0\n", "learning_rate"),
    "10 MB": ("# x\n" * 2_500_000, "is larger than 100 kB"),
    "100,000 brackets": ("rows: " + "[" * 99_000, "nested too deeply"),
    "100,000 dashes": ("- " * 49_000, "nested too deeply"),
    "a tag": ("rows: !!python/object/apply:os.system [echo]\n", "line 1"),
    "an impossible date": ("data: 2026-13-45\n", "bad.yaml"),
    "a tagged word": ("data: !!timestamp x\n", "bad.yaml"),
    "a merge": ("<<: {rows: 1}\n", "line 1"),
    "two documents": ("rows: 1\n---\nrows: 2\n", "line 2"),
    "a tab": ("rows:\n\tx: 1\n", "line 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_YAML)
def test_bad_yaml_is_one_line_within_a_second(what, tmp_path):
    text, said = BAD_YAML[what]
    file, started = write(tmp_path / "bad.yaml", text), time.time()
    with pytest.raises(SystemExit) as caught:
        parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", ["--config", file])
    message = str(caught.value)
    assert said in message and "bad.yaml" in message and "\n" not in message and len(message) < 400, message
    assert time.time() - started < 2.5  # 1 s, and a busy machine's delay


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\x00\x80\xff", "# 学习率\n".encode("gb18030"), b"rows: \x00\n", b"\xff\xfer\x00"])  # fmt: skip
def test_a_config_that_is_no_utf_8_is_one_line(content, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    message = error("--config", str(tmp_path / "bad.yaml"))
    assert "bad.yaml" in message and ("UTF-8" in message or "not valid YAML" in message)


def test_a_good_config_is_read_as_it_was_written(tmp_path):
    text = "\ufeffrows: 010\nside: right\nnames: [a, 2]\nloud: yes\ndata: ~\nlearning_rate: 1e-5\nmax_steps: 1_000\n"
    text += "lr_scheduler_kwargs: {num_cycles: 2, on_time: no}\n"
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", ["--config", write(tmp_path / "c.yaml", text)])
    assert (args.rows, args.side, args.names, args.loud, args.data) == (10, "right", ["a", "2"], True, None)
    assert (args.learning_rate, args.max_steps) == (1e-5, 1000)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2, "on_time": False}


PLAN = (ROOT / "domain_mix" / "sample" / "plan.yaml").read_text("utf-8")
BAD_PLANS = {
    "a key twice": (PLAN + "seed: 4\n", "the key 'seed' stands in line"),
    "a billion laughs": (LAUGHS, "an alias"),
    "5,000 digits": (re.sub(r"total: \d+", f"total: {'9' * 5000}", PLAN), "decimal digits"),
    "a total below 0": (re.sub(r"total: \d+", "total: -5", PLAN), "total must be a whole number above 0"),
    "10 MB": ("# x\n" * 2_500_000, "is larger than 100 kB"),
    "a number as a path": (re.sub(r"path: \S+?([,}\n])", r"path: 5\1", PLAN, count=1), "path must be text"),
    "a list as a path": (re.sub(r"path: \S+?([,}\n])", r"path: [a]\1", PLAN, count=1), "path must be text"),
    "a number as a name": ("total: 5\nseed: 1\nratios: {1: 1.0}\nsources: {1: {path: x, format: alpaca}}\n", "is no text"),
    "a list as a format": ("total: 5\nseed: 1\nratios: {a: 1}\nsources: {a: {path: x, format: [alpaca]}}\n", "format must be"),
    "a list of ratios": ("total: 5\nseed: 1\nratios: {a: [1]}\nsources: {a: {path: x, format: alpaca}}\n", "must be numbers"),
    "no number": ("total: 5\nseed: 1\nratios: {a: .nan}\nsources: {a: {path: x, format: alpaca}}\n", "must be numbers"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_PLANS)
def test_a_bad_plan_is_one_line_within_a_second(what, tmp_path, modules_of):
    text, said = BAD_PLANS[what]
    plan = modules_of("domain_mix", ["sources", "plan"]).plan
    file, started = tmp_path / "bad.yaml", time.time()
    file.write_text(text, "utf-8")
    with pytest.raises(SystemExit) as caught:
        plan.load_plan(file)
    message = str(caught.value)
    assert said in message and "bad.yaml" in message and "\n" not in message and len(message) < 400, message
    assert time.time() - started < 2.5  # 1 s, and a busy machine's delay
