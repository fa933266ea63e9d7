# Generated from common/memory.py: edit that file, then run `make sync`.
"""What a training run takes of the GPU's memory, and the settings that make the most of it (--auto)."""

import importlib.util
import json
import math
from pathlib import Path

# Beside weights and activations: CUDA's context, the loss's chunk of logits, the dequantised matrix at work.
OVERHEAD = 1.7e9
FIT = 0.94  # of the memory; the rest is lost between blocks


def weight_bytes(path: Path, four_bit: bool) -> float:
    """Bytes of a model's weights on the GPU. In 4 bits (NF4) a linear layer's weight takes 0.53 bytes, not 2."""
    files = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{path} holds no *.safetensors; pickled weights (*.bin) can run code and are not loaded.")
    if not four_bit:
        return files
    shape = _shape(path)
    linear = 2 * shape["layers"] * shape["hidden"] * (2 * shape["hidden"] + 2 * shape["kv"] + 3 * shape["ffn"])
    return max(files - linear, 0) + 0.265 * min(linear, files)


def lora_bytes(path: Path, r: int) -> float:
    """Adapters, their gradients and AdamW's two moments in float32, for LoRA on all seven projections."""
    shape = _shape(path)
    hidden, kv, ffn = shape["hidden"], shape["kv"], shape["ffn"]
    sides = 2 * (2 * hidden) + 2 * (hidden + kv) + 3 * (hidden + ffn)  # q o, k v, gate up down: in + out of each
    return 16 * r * sides * shape["layers"]


def activation_bytes(path: Path, tokens: int, checkpointing: bool) -> float:
    """What the backward pass needs of `tokens` tokens, in 16 bits, with common/fast.py's kernels.

    A layer keeps its two residual states, two normed inputs, q, k, v, the attention's output (hidden-sized), and gate
    and up (ffn-sized). With checkpointing it keeps its input only, and one layer is rebuilt at a time.
    """
    shape = _shape(path)
    layer = 2 * (6 * shape["hidden"] + 2 * shape["kv"] + 2 * shape["ffn"])
    at_work = 2 * layer  # the gradients of the layer that is being walked back through
    kept = 2 * shape["hidden"] if checkpointing else layer
    return tokens * (shape["layers"] * kept + at_work)


def _shape(path):
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= config.get("text_config", {})
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    kv = config.get("num_key_value_heads", heads) * head
    return {"hidden": hidden, "kv": kv, "ffn": config["intermediate_size"], "layers": config["num_hidden_layers"]}


def tokens_of(lengths, rows: int) -> int:
    """How many tokens `rows` rows drawn from a training set may have together: the mean, 5 sigmas, never over the top.

    lengths: tokens of each row.
    """
    mean = sum(lengths) / len(lengths)
    sigma = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
    return math.ceil(min(sum(sorted(lengths)[-rows:]), rows * mean + 5 * sigma * math.sqrt(rows)))


def choose(path, lengths, rows, r, total, fixed, shards=1):
    """The fastest settings that fit, as (four_bit, checkpointing, rows of a micro-batch, bytes), or None.

    lengths: tokens of each training row. rows: of an optimizer step on one GPU. total: bytes of GPU memory.
    fixed: what the user has set, any of four_bit, checkpointing, micro. shards: over how many GPUs the weights are
    spread (FSDP). Measured (bench/README.md): 16-bit weights are
    faster than 4-bit ones, no checkpointing is faster than checkpointing, but not where it leaves small pieces.
    """
    splits = [fixed["micro"]] if "micro" in fixed else [micro for micro in range(rows, 0, -1) if rows % micro == 0]
    filling = min(4096, tokens_of(lengths, rows))
    for four_bit in [fixed["four_bit"]] if "four_bit" in fixed else [False, True]:
        base = OVERHEAD + weight_bytes(path, four_bit) / shards + lora_bytes(path, r)
        for checkpointing in [fixed["checkpointing"]] if "checkpointing" in fixed else [False, True]:
            for micro in splits:
                tokens = tokens_of(lengths, micro)
                size = base + activation_bytes(path, tokens, checkpointing)
                enough = checkpointing or tokens >= filling or {"micro", "checkpointing"} & set(fixed)
                if enough and size < FIT * total:
                    return four_bit, checkpointing, micro, size
    return None


def tune(config, model_args, dataset):
    """--auto: set what the card decides, which is quantisation, packing, micro-batch, checkpointing and kernels.

    Never touched: the learning rate, and the rows of an optimizer step over all GPUs, which stay
    per_device_train_batch_size x gradient_accumulation_steps. What stands on the command line stays as given.
    config: the trainer's config, changed in place, as is model_args. Prints the choice as the flags that repeat it.
    """
    import torch

    from common.fast import varlen_kernel
    from common.models import find_model, import_backend, sharded

    if not model_args.auto or not torch.cuda.is_available() or config.use_cpu:
        return
    path, backend, given = find_model(model_args), import_backend(model_args.backend), set(model_args.given)
    free, total = torch.cuda.mem_get_info()
    total = total if free > 0.9 * total else free  # the same choice each time, unless somebody else uses the card
    rows, fixed = config.per_device_train_batch_size * config.gradient_accumulation_steps, {}
    if model_args.quantization != "auto":
        fixed["four_bit"] = model_args.quantization == "4bit"
    if "gradient_checkpointing" in given:
        fixed["checkpointing"] = config.gradient_checkpointing
    if given & {"per_device_train_batch_size", "gradient_accumulation_steps"}:
        fixed["micro"] = config.per_device_train_batch_size
    elif rows % config.world_size:
        raise SystemExit(
            f"{rows} rows a step cannot be split over {config.world_size} GPUs: take --auto false, and "
            "--per_device_train_batch_size and --gradient_accumulation_steps count for each GPU."
        )
    else:
        rows //= config.world_size
    packing = model_args.packing if "packing" in given else varlen_kernel() is not None
    choice = choose(
        path, row_lengths(dataset), rows, model_args.lora_r, total, fixed, config.world_size if sharded() else 1
    )
    if choice is None:
        raise SystemExit(
            f"{path.name} does not fit in {total / 1e9:.0f} GB even with a row at a time. "
            "Try --quantization 4bit, a shorter --max_length or a smaller --model; --auto false tries all the same."
        )
    four_bit, checkpointing, micro, size = choice
    kernels = backend == "hf" and packing and importlib.util.find_spec("liger_kernel") is not None
    if model_args.quantization == "auto":
        model_args.quantization = "4bit" if four_bit else "none"
    model_args.packing = packing
    if "fused_lora" not in given:
        model_args.fused_lora = kernels
    config.gradient_checkpointing = checkpointing
    config.per_device_train_batch_size, config.gradient_accumulation_steps = micro, rows // micro
    # Liger's loss reads lm_head's weight past the module, where FSDP has only a piece of it.
    if "use_liger_kernel" not in given and kernels and not sharded():
        config.use_liger_kernel, config.loss_type = True, "nll"
    chosen = dict(
        backend=backend,
        quantization=model_args.quantization,
        packing=packing,
        fused_lora=model_args.fused_lora,
        use_liger_kernel=config.use_liger_kernel,
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
    )
    flags = " ".join(f"--{name} {str(value).lower()}" for name, value in chosen.items())
    print(f"auto: about {size / 1e9:.0f} of {total / 1e9:.0f} GB; the same by hand: --auto false {flags}")


def row_lengths(dataset) -> list[int]:
    """Tokens of each row of a tokenized dataset."""
    return [
        length
        for table in dataset.with_format("arrow").iter(50_000)
        for length in table["input_ids"].combine_chunks().value_lengths().to_pylist()
    ]
