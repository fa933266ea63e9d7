"""Base + adapter, one matrix at a time: W' = W + s B A in 32 bits, whatever the model's size.

7B in 32 bits are 30 GB of memory. Here a matrix is read, PEFT itself merges it, and it is handed on, so the peak is that
of the largest matrix and of one output file. Added in 16 bits, 44% of an update's entries would be lost to rounding.
"""

import hashlib
import shutil
from pathlib import Path

import numpy
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from common import adapters, hub
from common.contract import SERVING, TEMPLATE, kind_of
from common.files import read_json, write_json

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SHARD = 2_000_000_000  # bytes of one output file
PREFIX = "base_model.model."
# What makes a tokenizer or a processor; weights, optimizer states and the run's own files are none of it.
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
              "merges.txt", "tokenizer.model", "processor_config.json", "preprocessor_config.json")  # fmt: skip


def plain(name: str) -> str:
    """One name for one tensor: transformers has renamed the parts of Qwen2.5-VL, old files and adapters have not."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def headers(base: Path) -> dict:
    """{tensor: (file, dtype, shape, first byte, number of bytes)} of a model's safetensors, in the files' order."""
    found = {}
    for file in sorted(base.glob("*.safetensors")):
        length, tensors = hub._header(file)
        for name, each in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            if each["dtype"] not in TYPES:
                raise SystemExit(f"{base}: {name} is {each['dtype']}: quantised weights are not merged into. "
                                 "Give the model as it was published (bfloat16) with --model.")  # fmt: skip
            start, end = each["data_offsets"]
            found[name] = (file, each["dtype"], each["shape"], 8 + length + start, end - start)
    return found


def read(entry) -> torch.Tensor:
    """A tensor in 32 bits. Read and not mapped: mapped pages would count as this process's memory."""
    file, dtype, shape, start, size = entry
    with open(file, "rb") as stream:
        stream.seek(start)
        content = bytearray(size)
        stream.readinto(content)
    return torch.frombuffer(content, dtype=TYPES[dtype]).reshape(shape).float()


def through_nf4(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A linear layer's weight as QLoRA's training saw it: rounded to NF4 and back, the scales rounded, too."""
    if tensor.ndim != 2 or "embed" in name or "lm_head" in name:
        return tensor
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(tensor.bfloat16(), quant_type="nf4", compress_statistics=True)
    return functional.dequantize_4bit(packed, state).reshape(tensor.shape).float()


class Adapter:
    """The LoRA of a run's folder, checked against a base's tensors. folder None: no adapter, the base as it is.

    nf4: it is added to the base as rounded to 4 bits and back, what a QLoRA run was trained beside, and not to the
    published weights. whole: the base itself was trained, every weight of it.
    """

    def __init__(self, folder: Path | None, base: Path, nf4=False, whole=False):
        self.base, self.entries, self.modules, self.worst = base, headers(base), {}, 0.0
        self.nf4, self.whole = nf4, whole
        if folder is None:
            return
        self.kind, self.scale = kind_of(read_json(folder / "adapter_config.json"))
        self.config = LoraConfig.from_pretrained(str(folder))
        self.config.inference_mode = True
        names = {plain(name): name for name in self.entries}
        for key, tensor in load_file(folder / adapters.WEIGHTS).items():
            module, _, part = key.removeprefix(PREFIX).partition(".lora_")
            if not tensor.isfinite().all():
                raise SystemExit(f"{folder}: {key} holds values that are not finite. The training diverged.")
            weight = names.get(plain(module + ".weight"))
            side = {"A.weight": 1, "B.weight": 0}.get(part)  # of W, which A's columns and B's rows have to fit
            if weight is None or side is not None and tensor.shape[side] != self.entries[weight][2][side]:
                raise SystemExit(f"{folder} was not trained on {base}: {key} has no weight there that it fits. "
                                 "Give its base as --model.")  # fmt: skip
            self.modules.setdefault(weight, (module, {}))[1][f"{module}.lora_{part}"] = tensor.float()

    def weight(self, name: str) -> torch.Tensor:
        """A tensor of the merged model, float32. PEFT merges it, so that every kind of LoRA is what PEFT makes of it."""
        tensor = read(self.entries[name])
        tensor = through_nf4(name, tensor) if self.nf4 else tensor
        if name not in self.modules:
            return tensor
        module, parts = self.modules[name]
        holder, path = torch.nn.Module(), module.split(".")
        inner = holder
        for part in path[:-1]:  # the whole path: target_modules and rank_pattern look at it
            inner.add_module(part, torch.nn.Module())
            inner = getattr(inner, part)
        linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device="meta")
        linear.weight = torch.nn.Parameter(tensor.clone(), requires_grad=False)
        inner.add_module(path[-1], linear)
        inject_adapter_in_model(self.config, holder)
        set_peft_model_state_dict(holder, parts)
        layer = holder.get_submodule(module)
        try:
            layer.merge(safe_merge=True)
        except ValueError:
            raise SystemExit(f"{module}: the merged weights are not finite. The training diverged.") from None
        made = layer.base_layer.weight.data
        rank = parts[f"{module}.lora_A.weight"].shape[0]
        scale = layer.scaling["default"]
        assert rank == layer.r["default"], module
        update = scale * parts[f"{module}.lora_B.weight"] @ parts[f"{module}.lora_A.weight"]
        error = (made - tensor - update).norm() / update.norm().clamp(min=1e-30)
        # Rounding of W itself is no error of the kind: it is what is left where the update is tiny.
        floor = 1e-7 * tensor.norm() / update.norm().clamp(min=1e-30)
        self.worst = max(self.worst, float(error - floor))
        return made


def shards(entries: dict) -> list[list[str]]:
    """Names of tensors in groups whose bfloat16 values fit one output file."""
    groups, size = [[]], 0
    for name, (_, _, shape, _, _) in entries.items():
        need = 2 * int(numpy.prod(shape))
        if size + need > SHARD and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += need
    return groups


def in_bfloat16(adapter: Adapter, name: str) -> torch.Tensor:
    """A tensor of the merged model in bfloat16; what the adapter changed is rounded at random, right in the mean.

    W is a bfloat16 number. Rounded to nearest, W + d is W again wherever d is below half of W's last place, so that of a
    small update most is lost, always in the direction of the base (RESULTS.md: two thirds of a lightly trained run). Up or
    down with the probability that makes the mean right, the errors cancel in every product. The draw is the name's own:
    the same run gives the same bytes.
    """
    tensor = adapter.weight(name)
    if name not in adapter.modules and not adapter.whole:
        return tensor.to(torch.bfloat16)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    # The upper half of a float32 is the bfloat16 towards zero; the lower half, plus a draw from all that it could be,
    # carries over just as often as it is large.
    below = torch.randint(1 << 16, tensor.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    return ((tensor.contiguous().view(torch.int32) + below) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def write(adapter: Adapter, folder: Path):
    """Write the merged model's weights in bfloat16, shard by shard, and its config."""
    config = read_json(adapter.base / "config.json")
    groups, index, total = shards(adapter.entries), {}, 0
    for number, names in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: in_bfloat16(adapter, name).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
        total += sum(2 * each.numel() for each in tensors.values())
    if len(groups) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", config | {"dtype": "bfloat16"})


def write_texts(run_folder: Path, base: Path, folder: Path):
    """The trained tokenizer and processor, the serving contract, and a generation_config that stops where training did."""
    source = run_folder if (run_folder / "tokenizer_config.json").is_file() else base
    for name in TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = read_json(folder / "tokenizer_config.json")
    if settings.pop("chat_template", None):  # where old tokenizers keep it; not every program reads the file beside it
        write_json(folder / "tokenizer_config.json", settings)
    serving = read_json(run_folder / SERVING)
    shutil.copyfile(run_folder / SERVING, folder / SERVING)
    (folder / "chat_template.jinja").write_text((run_folder / TEMPLATE).read_text(encoding="utf-8"), encoding="utf-8")
    generation = read_json(base / "generation_config.json")
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        generation.pop(name, None)  # measured greedily; the base's sampling is another question
    stops = serving["stop_ids"]
    write_json(folder / "generation_config.json", generation | {"do_sample": False, "eos_token_id": stops})
    for file in folder.iterdir():
        file.chmod(0o644)
