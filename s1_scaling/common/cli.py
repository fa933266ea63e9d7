# Generated from common/cli.py: edit that file, then run `make sync`.
"""One strict command line for every script: DEFAULTS < DEMO (with --demo) < YAML (--config) < flags.

`--help` answers before anything heavy is imported. Unknown or wrongly typed flags and YAML keys end in one line.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib
import json
import os
import re
import sys
import types
import typing
from pathlib import Path

from common import paths


def arg(default, help):
    """A dataclass field that becomes the flag of the same name."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line: the usage of a trainer alone is 700 lines."""

    source = ""  # the YAML file whose values are being read

    def __init__(self):
        super().__init__(allow_abbrev=False, add_help=False, usage=argparse.SUPPRESS)

    def error(self, message):
        if unknown := re.match(r"unrecognized arguments: --([\w-]+)", message):
            message = f"unknown flag --{unknown[1]}{self.nearest(unknown[1])}"
        raise SystemExit(f"{Path(sys.argv[0]).name}: error: {self.source}{message}")

    def nearest(self, name):
        near = difflib.get_close_matches(name.replace("-", "_"), [action.dest for action in self._actions], n=1)
        return f"; did you mean --{near[0]}?" if near else "; --help lists this recipe's flags, --help_all every one"


def parse(script, defaults, demo, own, trainer=None, argv=None):
    """Parse a script's command line.

    script: the script's __file__; its docstring and the comments in DEFAULTS are what --help prints.
    defaults, demo: dicts of flag -> value. own: dataclasses with the script's own flags.
    trainer: the trainer's config class as "module:Class"; each of its fields becomes a flag, too.
    Returns an instance of each dataclass in `own`, then of the trainer's config if there is one (a single one: itself).
    Raises SystemExit with one line that names the flag, or the YAML file and its key.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    paths.load_env()
    if os.environ.get("RANK", "0") != "0":  # of several processes, one a GPU, the first one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    first = Parser()
    first.add_argument("--demo", action="store_true")
    first.add_argument("--config")
    first.add_argument("--help", "-h", action="store_true")
    first.add_argument("--help_all", "--help-all", action="store_true")
    switches, rest = first.parse_known_args(argv)
    values = defaults | (demo if switches.demo else {})

    parser = Parser()
    for dataclass in own:
        _add_flags(parser, dataclass, values)
    if switches.help:
        _print_help(script, parser, defaults, demo, trainer)
        raise SystemExit(0)
    content = _load_yaml(parser, switches.config) if switches.config else {}
    config_class = None
    if trainer:
        peek = Parser()
        peek.add_argument("--backend", default=content.get("backend") or parser.get_default("backend") or "hf")
        # An estimate computes nothing, so it has to answer without the GPU that Unsloth asks for.
        backend = "hf" if "--estimate" in rest else peek.parse_known_args(rest)[0].backend
        config_class = _import_trainer(trainer, backend)
        _add_flags(parser, config_class, {"bf16": None} | values)
    unknown = set(defaults) | set(demo)
    unknown -= {action.dest for action in parser._actions}
    assert not unknown, f"DEFAULTS or DEMO names flags that do not exist: {sorted(unknown)}"
    if switches.help_all:
        parser.print_help()
        raise SystemExit(0)

    namespace = argparse.Namespace()
    if switches.config:
        parser.source = f"{switches.config}: "
        namespace = parser.parse_args(_yaml_flags(parser, content), namespace)
        parser.source = ""
    namespace = parser.parse_args(rest, namespace)
    parts = [dataclass(**_values_of(namespace, dataclass)) for dataclass in own]
    for part in parts:
        if hasattr(part, "auto"):
            part.given = sorted({flag.split("=")[0][2:].replace("-", "_") for flag in rest if flag.startswith("--")})
    if config_class:
        shadowed = {field.name for dataclass in own for field in dataclasses.fields(dataclass)}
        values = {k: v for k, v in _values_of(namespace, config_class).items() if k not in shadowed}
        parts.append(_build_config(parser, config_class, values))
    return parts[0] if len(parts) == 1 else parts


def _add_flags(parser, dataclass, values):
    """One flag a field. Types that argparse lacks (dicts as JSON, `X | None`, enums as text) are mapped here."""
    hints = typing.get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        if not field.init or any(action.dest == field.name for action in parser._actions):
            continue  # a script's own flag stands before the trainer's of the same name
        hint, options = hints[field.name], {}
        union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        kinds = [kind for kind in (hint.__args__ if union else [hint]) if kind is not type(None)]
        lists = [kind for kind in kinds if typing.get_origin(kind) is list]
        if typing.get_origin(kinds[0]) is typing.Literal:
            kind, options["choices"] = str, kinds[0].__args__
        elif lists and lists[0].__args__[0] in (str, float):
            kind, options["nargs"] = lists[0].__args__[0], "+"
        elif any(kind is dict or typing.get_origin(kind) is dict for kind in kinds):
            kind = _json
        elif kinds == [bool]:
            kind, options["nargs"], options["const"] = _boolean, "?", True
        else:
            kind = kinds[0] if len(kinds) == 1 and kinds[0] in (int, float) else str
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        text = field.metadata.get("help", "").replace("%%", "%").replace("%", "%%")
        default = values.get(field.name, default)
        parser.add_argument(*names, dest=field.name, type=kind, default=default, help=text, **options)


def _boolean(text):
    if str(text).lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return str(text).lower() in ("true", "1", "yes")


def _json(text):
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text  # some of these fields also take a plain word or the path of a JSON file


def _load_yaml(parser, file):
    import yaml

    parser.source = f"{file}: "
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"cannot be read: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"is not valid YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        parser.error("must be a list of `flag: value` lines")
    parser.source = ""
    return content


def _yaml_flags(parser, content):
    """YAML as a list of flags, so that its values meet the same checks as the command line's."""
    actions, flags = {action.dest: action for action in parser._actions}, []
    for key, value in content.items():
        if key not in actions:
            parser.error(f"unknown key {key!r}{parser.nearest(str(key))}")
        if isinstance(value, list) and actions[key].nargs != "+":
            parser.error(f"{key} takes one value, not a list")
        if value is None:
            parser.set_defaults(**{key: None})
        elif isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        else:
            flags.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _import_trainer(trainer, backend):
    from common import models

    models.import_backend(backend)  # Unsloth must be imported before TRL
    module, name = trainer.split(":")
    return getattr(importlib.import_module(module), name)


def _values_of(namespace, dataclass):
    return {field.name: getattr(namespace, field.name) for field in dataclasses.fields(dataclass) if field.init}


def _build_config(parser, config_class, values):
    """The trainer's config, with what only this machine can tell: the device and the 16-bit type."""
    import torch

    from common import models

    cuda = torch.cuda.is_available()
    if not cuda:
        values["use_cpu"] = True
    if values["bf16"] is None and not values["fp16"]:
        values["bf16"] = models.has_bf16()
        values["fp16"] = cuda and not values["use_cpu"] and not values["bf16"]  # a T4 has no bf16
    try:
        return config_class(**values)
    except (ValueError, TypeError, KeyError) as error:
        parser.error(" ".join(str(error).split()))


def _print_help(script, parser, defaults, demo, trainer):
    source = Path(script).read_text(encoding="utf-8")
    reasons = {}
    for name, reason in re.findall(r"^    (\w+)=.*?,  # (.+)$", source, re.MULTILINE):
        reasons.setdefault(name, reason)
    print(ast.get_docstring(ast.parse(source)), "\n\nFlags (and their defaults):\n")
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
        text = " ".join(value) if isinstance(value, list) else value
        rows.append((f"--{name} {text}", reasons.get(name, "") + small))
    for flag, text in rows:
        print(f"  {flag:<36} {text}" if len(flag) < 37 else f"  {flag}\n  {'':<36} {text}")
    if trainer:
        print(f"\nEvery field of {trainer.replace(':', '.')} is a flag as well: --help_all.")
