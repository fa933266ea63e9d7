# Generated from common/cli.py: edit that file, then run `make sync`.
"""One strict command line for every script: DEFAULTS < DEMO (with --demo) < YAML (--config) < flags.

A wrong flag, type or YAML key ends in one line before torch is loaded: the trainer's own flags are read from the source
of its config class, and the class itself is imported later, by `trainer_config`.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib
import importlib.util
import os
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import device, paths, screen, settings

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {"str": str, "int": int, "float": float}
_UNSET = object()  # the default of a trainer's flag that is left to its config class
# Fields of a trainer that are no flags. TRL's packing is another than ours; a run finds its checkpoint by itself.
_NO_FLAGS = {"packing": "", "resume_from_checkpoint": ": a run that was cut off goes on by the same command"}


def arg(default, help):
    """A dataclass field that becomes the flag of the same name."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass
class ModelArgs:
    """Flags of every script that loads a model."""

    model: str | None = arg("Qwen/Qwen2.5-7B-Instruct", "a path, MODELS_DIR/<org>/<name>, or a name on the hub")
    backend: Literal["auto", "unsloth", "hf"] = arg("auto", "auto: Unsloth on small or old NVIDIA GPUs, else PEFT")
    quantization: Literal["auto", "none", "4bit"] = arg("auto", "frozen weights. auto: 16 bits where they fit, else 4")


@dataclass
class LoraArgs(ModelArgs):
    """Flags of every script that trains a LoRA adapter."""

    lora_r: int = arg(16, "rank of the LoRA update")
    lora_alpha: int = arg(16, "the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = arg(0.0, "0 is what Unsloth's fast path needs")
    lora_target_modules: list[str] = arg(LINEAR, "layers that get an update")
    fused_lora: bool = arg(False, "LoRA in fewer passes over memory; the same result (backend hf)")
    estimate: bool = arg(False, "print which cards the run fits on, what would make it fit, and end")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


@dataclass
class RehearsalArgs:
    """Flags of supervised training that find out early what would fail late."""

    rehearse: bool = arg(
        False, "before a long run: two steps with the longest rows, resume, evaluation, export and gate"
    )
    longest_steps: int = arg(0, "train N steps only, on the longest rows: memory's worst case")
    stop_after: int | None = arg(None, "stop after this step as SIGTERM would; the same command without it goes on")


@dataclass
class SftArgs(RehearsalArgs, LoraArgs):
    """Flags of supervised training, whose rows are known before it begins."""

    auto: bool = arg(True, "choose what the card decides: quantization, packing, micro-batch, checkpointing, kernels")
    rows_per_step: int | None = arg(None, "rows per optimizer step (default: batch size x gradient accumulation)")
    packing: bool = arg(False, "a batch's rows end to end without padding, each seeing itself only")
    show_mask: int = arg(0, "print N rows with the trained tokens marked, then train")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line: the usage of a trainer alone is 700 lines."""

    source = ""  # the YAML file whose values are being read

    def __init__(self):
        super().__init__(allow_abbrev=False, add_help=False, usage=argparse.SUPPRESS)

    def error(self, message):
        if unknown := re.match(r"unrecognized arguments: --([\w-]+)", message):
            message = screen.text("unknown flag --{name}", name=unknown[1]) + self.nearest(unknown[1])
        message = re.sub(r"(\S{80})\S+", r"\1...", " ".join(message.split()))
        raise SystemExit(f"{Path(sys.argv[0]).name}: {screen.text('error: {message}', message=self.source + message)}")

    def nearest(self, name):
        near = difflib.get_close_matches(name.replace("-", "_"), [action.dest for action in self._actions], n=1)
        more = "; did you mean --{near}?" if near else "; --help lists this recipe's flags, --help_all every one"
        return screen.text(_NO_FLAGS.get(name.replace("-", "_")) or more, near="".join(near))


def parse(script, defaults, demo, flags, trainer=None, argv=None) -> argparse.Namespace:
    """Parse a script's command line.

    script: the script's __file__; its docstring and the comments in DEFAULTS are what --help prints.
    defaults, demo: dicts of flag -> value. flags: a dataclass with the script's flags; without a trainer each of
    `defaults` that it lacks is a flag, too, of its value's type.
    trainer: the trainer's config class as "module:Class"; each of its fields becomes a flag, see `trainer_config`.
    Returns all values by name, and `given`, the set of names that stand in the YAML file or on the command line.
    Raises SystemExit with one line that names the flag, or the YAML file and its key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    paths.load_env()
    if os.environ.get("RANK", "0") != "0":  # of several processes, one a GPU, the first one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    first = Parser()
    first.add_argument("--config")
    for names in (["--demo"], ["--help", "-h"], ["--help_all", "--help-all"]):
        first.add_argument(*names, action="store_true")
    switches, rest = first.parse_known_args(argv)
    # transformers' own default for bf16 is no: this machine decides.
    values, parser = {"bf16": None} | defaults | (demo if switches.demo else {}), Parser()
    for name, hint, default, text in _declared(flags):
        _add(parser, name, values.get(name, default), text, **_options(hint))
    declared = [action.dest for action in parser._actions]
    for name in () if trainer else [name for name in defaults if name not in declared]:
        _add(parser, name, values[name], "", **_options(type(defaults[name])))
    own = {action.dest for action in parser._actions}
    if switches.help:
        raise SystemExit(_print_help(script, parser, defaults, demo, trainer))
    for name, options, default, text in _trainer_fields(trainer.split(":")[1]) if trainer else ():
        if (
            name not in own and name not in _NO_FLAGS
        ):  # a script's own flag stands before the trainer's of the same name
            _add(parser, name, values.get(name, default), text, **options)
    known = {action.dest for action in parser._actions}
    unknown = (set(defaults) | set(demo)) - known
    assert not unknown, f"DEFAULTS or DEMO names flags that do not exist: {sorted(unknown)}"
    if switches.help_all:
        raise SystemExit(parser.print_help())

    args, in_file = argparse.Namespace(), {}
    if switches.config:
        parser.source = f"{switches.config}: "
        in_file = settings.yaml_flags(parser, switches.config)
        args = parser.parse_args(sum(in_file.values(), []), args)
        parser.source = ""
    args = parser.parse_args(rest, args)
    if "learning_rate" in known and getattr(args, "temperature", 1) == 0:
        parser.error("argument --temperature: expected a number above 0, by which training divides the logits")
    typed = {flag.split("=")[0][2:].replace("-", "_") for flag in rest if flag.startswith("--")}
    args.given = sorted((typed | set(in_file)) & known)
    if "report_to" in known:  # in scripts that train; common.runs brings the module into their folders
        named, own = args.report_to not in (None, "none", ["none"]), own | {"report_to"}
        trackers = importlib.import_module("common.trackers") if named else None
        args.report_to = trackers.checked(args.report_to, parser.error) if named else ["none"]
    args.trainer, args.own_flags = trainer, sorted(own)
    return args


def trainer_config(args):
    """The trainer's config (trl.SFTConfig, ...) with the flags' values, the device and the 16-bit type of this machine.

    Decides args.backend ("unsloth" or "hf") first: Unsloth patches TRL. This is where torch is loaded.
    """
    args.backend = device.decide_backend(args.backend)
    import torch

    module, name = args.trainer.split(":")
    config_class = getattr(importlib.import_module(module), name)
    cuda = torch.cuda.is_available()
    theirs = {field.name for field in dataclasses.fields(config_class) if field.init} - set(args.own_flags)
    values = {name: value for name, value in vars(args).items() if name in theirs}
    if not cuda:
        values["use_cpu"] = True
    if values["bf16"] is None and not values["fp16"]:
        values["bf16"] = device.has_bf16()
        values["fp16"] = cuda and not values["use_cpu"] and not values["bf16"]  # a T4 has no bf16
    try:
        return config_class(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}") from None


def _add(parser, name, default, text, **options):
    names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
    text = text.replace("%%", "%").replace("%", "%%")
    default = argparse.SUPPRESS if default is _UNSET else default
    if options.get("type") in (int, float):
        options["type"] = settings.in_range(name, options["type"], default)
    optional = options.pop("optional")
    parser.add_argument(*names, dest=name, default=default, help=text, **options).optional = optional


def _declared(dataclass):
    """(name, type, default, help) of a dataclass's flags, those of the class itself before those of its bases."""
    hints, fields = typing.get_type_hints(dataclass), {field.name: field for field in dataclasses.fields(dataclass)}
    for name in dict.fromkeys(name for each in dataclass.__mro__ for name in vars(each).get("__annotations__", ())):
        default, factory = fields[name].default, fields[name].default_factory
        yield name, hints[name], factory() if default is dataclasses.MISSING else default, fields[name].metadata["help"]


def _options(hint) -> dict:
    """argparse's options for a type or the text of one: `X | None` is X, a list takes several values, a dict is JSON."""
    text = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    kinds = [kind.strip() for kind in re.sub(r"\[[^]]*\]", "", text).split("|") if kind.strip() != "None"]
    optional = dict(optional="None" in text)
    if kinds[0] == "Literal":
        return optional | dict(type=str, choices=re.findall(r"'([^']*)'", text))
    if several := re.search(r"list\[(str|int|float)\]|^list()$", text):
        return optional | dict(type=KINDS.get(several[1], str), nargs="+")
    if kinds == ["bool"]:
        return optional | dict(type=settings.boolean, nargs="?", const=True)
    return optional | dict(type=settings.from_json if "dict" in kinds else KINDS.get("|".join(kinds), str))


def _trainer_fields(name):
    """(name, argparse's options, default, help) of each field of a config class and its bases, from their source.

    Importing the class would load torch. A default that is no plain value is left to the class.
    """
    inside = "transformers/training_args.py"
    if name != "TrainingArguments":
        inside = f"trl/trainer/{re.sub('(?<=[a-z])(?=C)|(?<=[A-Z])(?=Config)', '_', name.strip('_')).lower()}.py"
    package, _, inside = inside.partition("/")
    folder = importlib.util.find_spec(package).submodule_search_locations[0]
    tree = ast.parse((Path(folder) / inside).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {}
    for base in found.bases:
        fields |= {field[0]: field for field in _trainer_fields(ast.unparse(base))}
    for node in found.body:
        call = node.value if isinstance(node, ast.AnnAssign) else None
        given = {each.arg: _literal(each.value) for each in call.keywords} if isinstance(call, ast.Call) else {}
        if isinstance(node, ast.AnnAssign) and given.get("init", True) is True:
            default = given.get("default", _UNSET) if isinstance(call, ast.Call) else _literal(call)
            help = given["metadata"].get("help", "") if isinstance(given.get("metadata"), dict) else ""
            fields[node.target.id] = (node.target.id, _options(ast.unparse(node.annotation)), default, help)
    return list(fields.values())


def _literal(node):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _UNSET


def _print_help(script, parser, defaults, demo, trainer):
    source, shared = Path(script).read_text(encoding="utf-8"), Path(script).with_name("train.py")
    more = shared.read_text(encoding="utf-8") if shared.is_file() else ""  # whose DEFAULTS others take over
    reasons = dict(reversed(re.findall(r"^    (\w+)=.*?,?  # (.+)$", source + more, re.MULTILINE)))
    rows = [("--help_all", "every flag, the trainer's too")] if trainer else []
    rows += [("--demo", "a small run that needs no GPU, no hub and no account")] if demo else []
    rows.append(("--config FILE", "flags from a YAML file"))
    for action in parser._actions:
        if action.dest not in defaults:
            choices = f" {{{','.join(action.choices)}}}" if action.choices else ""
            shown = "" if action.default in (None, False) else f" ({action.default})"
            rows.append((f"--{action.dest}{choices}", action.help.replace("%%", "%") + shown))
    rows.append(("", ""))
    for name, value in defaults.items():
        small = f" [demo: {demo[name]}]" if name in demo else ""
        value = " ".join(value) if isinstance(value, list) else value
        rows.append((f"--{name} {value}", reasons.get(name, "") + small))
    print(ast.get_docstring(ast.parse(source)), "\n\nFlags (and their defaults):\n")
    for flag, text in rows:
        print(f"  {flag:<36} {text}" if len(flag) < 37 else f"  {flag}\n  {'':<36} {text}")
    if trainer:
        print(f"\nEvery field of {trainer.replace(':', '.')} is a flag as well: --help_all.")
