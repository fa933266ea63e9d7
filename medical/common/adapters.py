# Generated from common/adapters.py: edit that file, then run `make sync`.
"""Whether an adapter is what its name says: its files, their names and shapes, and what the model took of them.

PEFT leaves out weights that it finds no place for, and begins those that it misses anew, where B = 0: the base's answers
under the adapter's name. So everything is compared, the headers before the base is loaded. The second half reads what a run
says about itself. Heavy libraries are imported by the functions that need them.
"""

import contextlib
import math
import re
import sys
import warnings
from pathlib import Path

from common import hub

WEIGHTS = "adapter_model.safetensors"
# What scripts read of a run's arguments; where another type stands, run.json was damaged.
TEXT, COUNT, NUMBER = (str, type(None)), (int, type(None)), (int, float, type(None))
ARGUMENTS = dict(
    data=TEXT, model=TEXT, reward=TEXT, quantization=TEXT, image_root=TEXT, sheet=TEXT, eval_ratio=NUMBER,
    split_seed=COUNT, seed=COUNT, max_length=COUNT, max_chars=COUNT, eval_rows=COUNT, held_out=NUMBER, overfit=COUNT,
    max_completion_length=COUNT, max_prompt_tokens=COUNT, lora_r=COUNT, lora_alpha=NUMBER,
)  # fmt: skip


def check(folder: Path, base: Path, arguments=None) -> dict:
    """adapter_config.json of a LoRA adapter, after the names and shapes of its weights were compared with it and with the
    base's. Reads headers only.

    arguments: of the training, where they are known: rank and alpha must be the trained ones.
    Raises SystemExit with the file and the first weight that does not fit.
    """
    file = folder / WEIGHTS
    config = hub.read_object(
        folder / "adapter_config.json", peft_type=str, r=int, lora_alpha=(int, float), target_modules=(list, str)
    )
    if wrong := hub.broken(folder):
        raise SystemExit(f"{folder}: {wrong}. Copy the file again, or train again.")
    if config["peft_type"] != "LORA":
        raise SystemExit(
            f"{folder / 'adapter_config.json'}: peft_type is {config['peft_type']!r}: only LoRA is read here."
        )
    if not finite(config["lora_alpha"]) or config["lora_alpha"] <= 0:
        raise SystemExit(f"{folder / 'adapter_config.json'}: lora_alpha is {config['lora_alpha']}: no strength at all.")
    for name, flag in (("r", "lora_r"), ("lora_alpha", "lora_alpha")):
        trained = (arguments or {}).get(flag)
        if trained is not None and config[name] != trained:
            raise SystemExit(
                f"{folder / 'adapter_config.json'}: {name} is {config[name]}, but run.json says that it was trained with "
                f"--{flag} {trained}: the adapter would act with another strength. Put {trained} back."
            )
    if not file.exists():
        raise SystemExit(f"{file} is missing: without its weights an adapter answers as the base does.")
    shapes = {
        name.removesuffix(".weight"): each["shape"]
        for whole in base.glob("*.safetensors")
        for name, each in (hub.tensors(whole) or {}).items()
        if each["dtype"] in ("F16", "BF16", "F32") and len(each["shape"]) == 2 and name.endswith(".weight")
    }
    if wrong := misfit({name: each["shape"] for name, each in hub.tensors(file).items()}, config, shapes):
        raise SystemExit(
            f"{file}: {wrong}. A file is damaged, or the adapter was not trained on {base}: it names its base, "
            f"{config.get('base_model_name_or_path')}."
        )
    return config


def base_of(folder: Path) -> str:
    """The base that an adapter names: a path or a name on a hub."""
    return hub.read_object(folder / "adapter_config.json", base_model_name_or_path=str)["base_model_name_or_path"]


def misfit(weights: dict, config: dict, base: dict) -> str:
    """The first thing that is wrong with an adapter's weights (name -> shape); "" if they fit.

    config: adapter_config.json. base: shapes of the base's linear weights by the name of their module. Where it names
    modules in another way, or its weights are quantised, only PEFT can tell: see attach.
    """
    targets, rank, pairs = config["target_modules"], config["r"], {}
    others = config.get("modules_to_save") or config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS")  # a head beside LoRA
    others = (
        others
        or config.get("use_dora")
        or config.get("bias", "none") != "none"
        or config.get("trainable_token_indices")
    )
    for name, shape in weights.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", name)
        if found:
            pairs.setdefault(found[1], {})[found[2]] = (name, shape)
        elif not others:
            return f"{name} is no LoRA weight"
    if not pairs:
        return "there are no LoRA weights in it"
    with contextlib.suppress(re.error, TypeError):  # PEFT says it
        for module, pair in pairs.items():
            if len(pair) < 2:
                return f"{next(iter(pair.values()))[0]} stands alone, without its {'B' if 'A' in pair else 'A'}"
            (name, down), (other, up) = pair["A"], pair["B"]
            if module in base and not hits(module, targets):
                return f"{name} is there, but target_modules do not name its layer"
            if len(down) != 2 or len(up) != 2 or "lora_embedding_" in name:
                continue
            if down[0] != up[1] or (down[0] != rank and not config.get("rank_pattern")):
                return f"{name} is of rank {down[0]}, {other} of rank {up[1]}, adapter_config.json says r {rank}"
            if module in base and base[module] != [up[0], down[1]]:
                return (
                    f"{name} and B make {up[0]} x {down[1]}, the base's layer is {base[module][0]} x {base[module][1]}"
                )
        some = config.get("layers_to_transform") or config.get("exclude_modules") or targets == "all-linear"
        if not some and pairs.keys() <= base.keys():
            lacks = sorted(module for module in base if hits(module, targets) and module not in pairs)
            if lacks:
                return f"base_model.model.{lacks[0]}.lora_A.weight is missing ({len(lacks)} such layers)"
    return ""


def hits(module: str, targets) -> bool:
    """Whether PEFT's target_modules, a list of last names or a regular expression, name a module."""
    if isinstance(targets, str):
        return targets == "all-linear" or bool(re.fullmatch(targets, module))
    return any(module == each or module.endswith("." + each) for each in targets)


def attach(model, folder: Path, name="default", config=None, trainable=False, beside=()):
    """The model, a bare one or one with adapters, with the adapter of `folder` as `name`: a PeftModel.

    config: a peft config in the place of the folder's. beside: endings of names in the file that have no place in this
    model and are read elsewhere. Raises SystemExit where a weight is not a number, or the model took not exactly the
    file's weights. Where all of B is 0, as after the first step of a warm-up, it says so.
    """
    from peft import PeftConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file

    folder = Path(folder)
    file, what = folder / WEIGHTS, f"adapter_config.json or {WEIGHTS}"
    with hub.loading(folder, what):
        weights = load_file(file)
    for each, tensor in weights.items():
        if not tensor.isfinite().all():
            raise SystemExit(f"{file}: {each} holds NaN or inf. Take an earlier checkpoint, or train again.")
    if not any(tensor.any() for each, tensor in weights.items() if re.search(r"lora_(embedding_)?B", each)):
        print(f"note: {file}: every lora_B is 0: it answers as the base does. Was anything trained?", file=sys.stderr)
    with warnings.catch_warnings(), hub.loading(folder, what):
        warnings.simplefilter("ignore")  # what PEFT warns of is refused below
        config = config or PeftConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        names = getattr(model, "_checkpoint_conversion_mapping", {})  # of weights that an older transformers named
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, name)
        found = model.load_adapter(str(folder), name, is_trainable=trainable, key_mapping=names)
    extra = [each for each in found.unexpected_keys if not each.endswith(tuple(beside))]
    if extra or found.missing_keys:
        wrong = f"the model has no place for {extra[0]}" if extra else f"{found.missing_keys[0]} is missing"
        raise SystemExit(
            f"{file}: {wrong} ({len(extra) + len(found.missing_keys)} such weights): it is another model's."
        )
    return model


def check_words(reads, model, folder: Path):
    """Stop where a tokenizer, or a processor with one, has words that the model does not know: of another model's."""
    words, rows = getattr(reads, "tokenizer", reads), model.get_input_embeddings().weight.shape[0]
    if len(words) > rows:
        raise SystemExit(
            f"{folder}: tokenizer.json has {len(words):,} words, the model {rows:,}: it is another model's."
        )


# -- what a run says about itself


class Arguments(dict):
    """A run's arguments by name; one that is missing ends the script with a line and not with a KeyError."""

    def __init__(self, arguments, file):
        super().__init__(arguments)
        self.file = file

    def __missing__(self, name):
        raise SystemExit(f"{self.file} does not say with which --{name} the run was trained. Give another run.")


def read_record(folder: Path) -> dict:
    """run.json of a folder, its arguments of the types that they are written in; empty where there is none."""
    file = folder / "run.json"
    if not file.exists():
        return {}
    record = hub.read_object(file)
    kinds = dict(task=str, stage=str, inputs=dict, arguments=dict)
    wrong = [name for name, kind in kinds.items() if name in record and not isinstance(record[name], kind)]
    arguments = {} if wrong else record.get("arguments", {})
    wrong += [
        f"arguments: {name}"
        for name, kind in ARGUMENTS.items()
        if name in arguments and not isinstance(arguments[name], kind)
    ]
    if wrong:
        raise SystemExit(f"{file}: {wrong[0]} is not what training wrote: the file is damaged. Bring it again.")
    return record | ({"arguments": Arguments(arguments, file)} if "arguments" in record else {})


def read_texts(folder: Path, own: dict) -> dict:
    """The texts saved beside an adapter, such as prompt_template: name -> text.

    own: the recipe's, name -> text. Where one of them was saved all were, and each must have the {fields} of the recipe's,
    or questions would not reach the model.
    """
    texts = {}
    for file in sorted(folder.glob("*.txt")):
        try:
            texts[file.stem] = file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise SystemExit(f"{file} cannot be read as UTF-8 text: it is damaged. Bring the file again.") from None
    for name, text in own.items() if own.keys() & texts.keys() else ():
        fields = re.findall(r"\{\w+\}", text)
        lacks = [field for field in fields if field not in texts.get(name, "")]
        if name not in texts or lacks:
            lack = f"it has no {lacks[0]}" if name in texts else "it is missing"
            raise SystemExit(
                f"{folder / name}.txt: {lack}. The template is damaged, or another recipe's: bring it again."
            )
    return texts


def finite(value) -> bool:
    """Whether a value read from JSON is a number that one can compute with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
