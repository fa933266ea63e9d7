# Generated from common/speed/fit.py: edit that file, then run `make sync`.
"""What a training run takes of the GPU's memory, and the settings that make the most of it (--auto, --estimate)."""

import importlib.util
import math
import os
import re
from pathlib import Path

from common import device, tokens
from common.files import read_json
from common.hub import MARGIN
from common.paths import models_dir

FIELDS = ("hidden", "ffn", "layers", "heads", "kv_heads", "vocabulary", "tied")
# Qwen2.5's published shapes (config.json), for an estimate where no model is on disk. Base, Instruct, Math and Coder
# share them, and so do VL's language models. tied: one matrix is both embedding and lm_head.
QWEN = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13_824, 48, 40, 8, 152_064, False),
    "32B": (5120, 27_648, 64, 40, 8, 152_064, False),
    "72B": (8192, 29_568, 80, 64, 8, 152_064, False),
}
QWEN = {name: dict(zip(FIELDS, shape, strict=True)) for name, shape in QWEN.items()}
ENCODER = dict(hidden=1280, ffn=3420, layers=32)  # of the pictures, in Qwen2.5-VL 3B and 7B

FIT = 0.94  # of the memory; the rest is lost between blocks
# What a layer keeps of each token for its backward pass, in numbers of 16 bits: how many times the residual stream's
# width and the MLP's (and k and v besides), and how many of the MLP's width its gradient takes while it is at work.
KEPT = {
    "fast": (6, 2, 1),  # two residual states, two normed inputs, q, attention's result; gate and up
    # PEFT copies the input of each of the seven A: q, k, v, o, gate, up, and down's, the product of silu(gate) and up.
    # And A's part of a gradient comes in float32.
    "liger": (10, 3, 3),
    # Besides, norms keep their input in float32, attention repeats k and v for all its heads; silu(gate) is kept, too.
    "plain": (14, 4, 3),
}
CARDS = (12, 16, 24, 48, 80)  # GB of 10^9 bytes, which the smallest cards sold under these numbers have


def shape_of(model) -> dict:
    """A model's sizes as in QWEN: of a folder or a name under MODELS_DIR by its config.json, else of a published Qwen2.5.

    Beside QWEN's keys "encoder" (as ENCODER) where it sees pictures, "head" where heads have a size of their own, and
    "bytes" of its weight files where there are any. Nothing is downloaded.
    """
    folder = Path(model).expanduser()
    if isinstance(model, str) and not folder.is_dir():
        spellings = (models_dir() / model, models_dir() / model.replace(".", "___"))  # the second one is ModelScope's
        folder = next((each for each in spellings if each.is_dir()), folder)
    if not (folder / "config.json").is_file():
        name = re.search(r"Qwen2\.5-(VL-)?(?:[A-Za-z]+-)?([\d.]+B)", str(model))
        if not name or name[2] not in QWEN:
            raise SystemExit(f"{model}: its config.json is not here, nor is it a Qwen2.5 of {', '.join(QWEN)}.")
        return QWEN[name[2]] | ({"encoder": ENCODER} if name[1] else {})
    config = read_json(folder / "config.json")
    encoder, config = config.get("vision_config"), config | config.get("text_config", {})
    heads = config["num_attention_heads"]
    sizes = (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"], heads,
             config.get("num_key_value_heads", heads), config["vocab_size"], config.get("tie_word_embeddings", False))  # fmt: skip
    shape = dict(zip(FIELDS, sizes, strict=True))
    shape |= {"head": config["head_dim"]} if config.get("head_dim") else {}
    shape["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if encoder:
        names = dict(hidden="hidden_size", ffn="intermediate_size", layers="depth")
        shape["encoder"] = {name: encoder.get(key, ENCODER[name]) for name, key in names.items()}
    return shape


def _widths(shape):
    """Widths of a layer: of the residual stream, of all queries, of all keys, of the MLP."""
    hidden, heads = shape["hidden"], shape.get("heads", 1)
    head = shape.get("head") or hidden // heads
    return hidden, heads * head, shape.get("kv_heads", heads) * head, shape["ffn"]


def _weights(shape, four_bit):
    """Bytes of the weights. In 4 bits a linear layer's weight takes 0.516 bytes and not 2: NF4, a scale in 8 bits for 64
    of them, and a scale of 256 scales. Embedding and lm_head stay in 16 bits."""
    hidden, query, kv, ffn = _widths(shape)
    linear = shape["layers"] * hidden * (2 * query + 2 * kv + 3 * ffn)
    if encoder := shape.get("encoder"):
        wide = encoder["hidden"]
        linear += encoder["layers"] * wide * (4 * wide + 3 * encoder["ffn"])
        linear += 4 * wide * (4 * wide + hidden)  # the merger makes a token of four patches
    total = linear + shape["layers"] * (2 * hidden + query + 2 * kv) + hidden  # norms, and biases of q, k, v
    total += shape["vocabulary"] * hidden * (1 if shape["tied"] else 2)
    size = shape.get("bytes") or 2 * total
    return max(size - 2 * linear, 0) + 0.516 * min(linear, size / 2) if four_bit else size


def needs(shape, tokens, r, four_bit, checkpointing, code="fast", adapter=16, logits=None, cached=0, patches=0):
    """Bytes of a training step at its peak, as a dict whose sum it is.

    tokens: of a micro-batch, padding too. code: "fast" is common/speed with Liger, "unsloth" keeps as much, "liger" is
    PEFT with Liger, "plain" is PEFT and TRL as they are. adapter: bytes a LoRA parameter; 16 are itself, its gradient and
    AdamW's two moments in float32. logits: bytes that the loss has at once for each word of the vocabulary, by default of
    "plain" TRL's chunk of 256 tokens with logits, probabilities and gradient in float32, else as Liger's loss. cached:
    tokens whose keys and values the rollouts hold. patches: of a micro-batch's pictures, 14 x 14 pixels each.
    """
    hidden, _, kv, _ = _widths(shape)
    trained, kept, work = 0, 0, 0
    for part, count in ((shape, tokens), (shape.get("encoder"), patches)):
        if not part or not count:
            continue
        wide, query, keys, ffn = _widths(part)
        trained += part["layers"] * r * (2 * (wide + query) + 2 * (wide + keys) + 3 * (wide + ffn))  # in + out, 7 times
        of_wide, of_ffn, of_product = KEPT["fast" if code == "unsloth" else code]
        layer = 2 * (of_wide * wide + 2 * keys + of_ffn * ffn)
        now = 2 * (4 * wide + of_product * ffn)  # gradients: of the residual stream and its branches, of the product
        # Checkpointing keeps a layer's input only, and rebuilds one layer at a time. Unsloth keeps these in main memory,
        # but not those of a model that sees pictures (bench/results/vl_speed.json).
        inputs = 0 if code == "unsloth" and not patches else 2 * wide
        kept += count * part["layers"] * (inputs if checkpointing else layer)
        work = max(work, count * (now + (layer if checkpointing else 0)))
    if code == "plain" and logits is None:
        logits = 256 * 12
    # Liger's loss takes so many tokens at a time that their logits are as large as the hidden states.
    loss = 2 * 2 * tokens * hidden if logits is None else shape["vocabulary"] * logits
    return {
        "weights": _weights(shape, four_bit) + (2 * hidden * shape["ffn"] if four_bit else 0),  # one matrix unpacked
        "LoRA": adapter * trained,
        "kept": kept,
        "at work": max(work, loss),  # the loss is done when the layers' turn comes
        "cache": 2 * 2 * kv * shape["layers"] * cached,
    }


def tokens_of(lengths, rows: int) -> int:
    """How many tokens `rows` rows drawn from a training set may have together: the mean, 5 sigmas, never over the top.

    lengths: tokens of each row.
    """
    mean = sum(lengths) / len(lengths)
    sigma = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
    return math.ceil(min(sum(sorted(lengths)[-rows:]), rows * mean + 5 * sigma * math.sqrt(rows)))


def choose(path, lengths, rows, r, total, fixed, shards=1, patches=(), **more):
    """The fastest settings that fit, as (four_bit, checkpointing, rows of a micro-batch, bytes), or None.

    lengths: tokens of each training row. rows: of an optimizer step on one GPU. total: bytes of GPU memory.
    fixed: what the user has set, any of four_bit, checkpointing, micro. shards: over how many GPUs the weights are
    spread (FSDP). patches: of each row's picture, where the encoder is trained. more: arguments of `needs`.
    """
    shape = shape_of(path)

    def size(four_bit, checkpointing, micro):
        seen = tokens_of(patches, micro) if patches else 0
        made = needs(shape, tokens_of(lengths, micro), r, four_bit, checkpointing, patches=seen, **more)
        return sum(made.values()) - made["weights"] * (1 - 1 / shards)

    return fastest(size, rows, total, fixed, lambda micro: tokens_of(lengths, micro))


def fastest(size, rows, total, fixed, tokens):
    """The first of the settings, in the order of their speed, that fits `total` bytes: `choose`'s result.

    size(four_bit, checkpointing, micro): bytes; tokens(micro): of a micro-batch. Measured (bench/README.md): 16-bit
    weights are faster than 4-bit ones, no checkpointing is faster than checkpointing, but not where it leaves small
    pieces.
    """
    splits = [fixed["micro"]] if "micro" in fixed else [micro for micro in range(rows, 0, -1) if rows % micro == 0]
    filling = min(4096, tokens(rows))
    for four_bit in [fixed["four_bit"]] if "four_bit" in fixed else [False, True]:
        for checkpointing in [fixed["checkpointing"]] if "checkpointing" in fixed else [False, True]:
            for micro in splits:
                taken = MARGIN + size(four_bit, checkpointing, micro)
                enough = checkpointing or tokens(micro) >= filling or {"micro", "checkpointing"} & set(fixed)
                if enough and taken < FIT * total:
                    return four_bit, checkpointing, micro, taken
    return None


def tune(config, args, path, dataset, patches=(), settled=(), **more):
    """--auto: set what the card decides, which is quantization, packing, micro-batch, checkpointing and kernels.

    Never touched: the learning rate, and the rows per optimizer step over all GPUs, which are rows_per_step, or
    per_device_train_batch_size x gradient_accumulation_steps. What the command line or the YAML says stays as given.
    config: the trainer's config, changed in place, as is args. path: the model's folder. dataset: the tokenized training
    rows. patches, more: as choose's. settled: names of settings that the method itself has decided.
    Prints the choice as the flags that repeat it.
    """
    import torch

    rows = args.rows_per_step or config.per_device_train_batch_size * config.gradient_accumulation_steps
    if args.rows_per_step:
        config.gradient_accumulation_steps, rest = divmod(rows, config.per_device_train_batch_size * config.world_size)
        if rest:
            size = config.per_device_train_batch_size * config.world_size
            raise SystemExit(f"--rows_per_step {rows} is no multiple of {size}, the batch size over all GPUs.")
    if not args.auto or not torch.cuda.is_available() or config.use_cpu:
        return
    given, total = {*args.given, *settled}, device.card_bytes()
    fixed = _fixed(vars(args) | vars(config), "per_device_train_batch_size")
    if "micro" not in fixed:  # else as given, for each GPU
        rows = _share(rows, config.world_size)
    kernel = device.varlen_kernel(device.dtype(config)) is not None
    packing = args.packing if "packing" in given else kernel
    shards = config.world_size if device.sharded() else 1
    choice = choose(path, tokens.lengths(dataset), rows, args.lora_r, total, fixed, shards, patches, **more)
    if choice is None:
        raise SystemExit(
            f"{path.name} does not fit in {total / 1e9:.0f} GB even with a row at a time. "
            "Try --quantization 4bit, a shorter --max_length or a smaller --model; --auto false tries all the same."
        )
    four_bit, checkpointing, micro, size = choice
    kernels = args.backend == "hf" and packing and importlib.util.find_spec("liger_kernel") is not None
    if args.quantization == "auto":
        args.quantization = "4bit" if four_bit else "none"
    args.packing = packing
    if "fused_lora" not in given:
        args.fused_lora = kernels
    config.gradient_checkpointing = checkpointing
    config.per_device_train_batch_size, config.gradient_accumulation_steps = micro, rows // micro
    # Liger's loss reads lm_head's weight past the module, where FSDP has only a piece of it.
    if "use_liger_kernel" not in given and kernels and not device.sharded():
        config.use_liger_kernel, config.loss_type = True, "nll"
    chosen = dict(
        backend=args.backend,
        quantization=args.quantization,
        packing=packing,
        fused_lora=args.fused_lora,
        use_liger_kernel=config.use_liger_kernel,
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
    )
    flags = " ".join(f"--{name} {str(value).lower()}" for name, value in chosen.items())
    print(f"auto: about {size / 1e9:.0f} of {total / 1e9:.0f} GB; the same by hand: --auto false {flags}")


def _share(rows, cards):
    """Rows of an optimizer step on each of several GPUs."""
    if rows % cards:
        raise SystemExit(
            f"{rows} rows per step cannot be split over {cards} GPUs: take --auto false, and "
            "--per_device_train_batch_size and --gradient_accumulation_steps count for each GPU."
        )
    return rows // cards


def estimate(args, flag, work=None, micro="per_device_train_batch_size", most=0):
    """--estimate: print, for each of CARDS, whether a step fits on one, what takes the memory, and what would make it fit.

    Needs neither a GPU nor a model: see shape_of. Under `accelerate launch` it is of one of the GPUs that this starts: as in
    `tune`, --auto splits a step's rows over them, and FSDP the weights. args: all flags. flag: the one that limits a row's
    length. work(length, rows): what a micro-batch of so many rows takes, as arguments of `needs`; by default rows of so
    many tokens. micro: the name of the flag with the rows of a micro-batch; where that is 0, the card decides, up to `most`.
    """
    own, value = vars(args), getattr(args, flag)
    shape, auto, splits = shape_of(args.model), own.get("auto", False), own.get("gradient_accumulation_steps")
    rows, fixed = own.get("rows_per_step") or own[micro] * (splits or 1) or most, _fixed(own, micro)
    cards = int(os.environ.get("WORLD_SIZE", "1"))
    shards = cards if device.sharded() else 1
    if own.get("rows_per_step") or auto and "micro" not in fixed:
        rows = _share(rows, cards)
    code = "unsloth" if own.get("backend") == "unsloth" else "fast" if auto or own.get("fused_lora") else "plain"
    adapter = {"adapter": 10 if "8bit" in own.get("optim", "") else 16}  # its two moments in 8 bits
    work = work or (lambda length, rows: {"tokens": length * rows})

    def parts(value, four_bit, checkpointing, rows):
        how = adapter | work(value, rows)
        made = needs(shape, r=own["lora_r"], four_bit=four_bit, checkpointing=checkpointing, code=code, **how)
        return made | {"weights": made["weights"] / shards}

    def best(value, total, fixed):
        return fastest(
            lambda *settings: sum(parts(value, *settings).values()),
            rows,
            total,
            fixed,
            lambda micro: work(value, micro)["tokens"],
        )

    def flags(here, length, four_bit, checkpointing, count):
        made = {}
        if here.get("four_bit", four_bit) != four_bit:
            made["quantization"] = "4bit"
        if here.get("checkpointing", checkpointing) != checkpointing:
            made["gradient_checkpointing"] = "true"
        if here.get("micro", count) != count:
            made |= {micro: count, "gradient_accumulation_steps": rows // count} if splits else {micro: count}
        if length != value:
            made[flag] = length
        return " ".join(f"--{name} {each}" for name, each in made.items())

    gpus = "one GPU" if cards == 1 else f"each of {cards} GPUs{' (FSDP)' if shards > 1 else ''}"
    print(f"A training step's GPU memory in GB: {own['model']}, LoRA r {own['lora_r']}, {gpus}, code: {code}. No data is read: an\n"
          f"upper bound, with each row as long as --{flag} {value} allows. kept: activations, for the backward pass; at work:\n"
          f"one layer, or the loss; cache: keys and values of rollouts; CUDA: what torch does not count, and a margin.\n\n"
          f"card  fits  needs  weights   LoRA   kept  at work  cache   CUDA")  # fmt: skip
    for card in CARDS:
        total, here = card * 1e9, dict(fixed)
        if not auto and own["quantization"] == "auto":  # as hub.choose_quantization will decide
            here["four_bit"] = _weights(shape, False) + MARGIN > total
        found = best(value, total, here)
        four_bit, checkpointing, count = found[:3] if found else (
            here.get("four_bit", True), here.get("checkpointing", True), here.get("micro", 1))  # fmt: skip
        taken = [*parts(value, four_bit, checkpointing, count).values(), MARGIN]
        columns = "".join(f"{size / 1e9:{width}.1f}" for size, width in zip(taken, (9, 7, 7, 9, 7, 7), strict=True))
        says = f"{4 if four_bit else 16}-bit, {'' if checkpointing else 'no '}checkpointing, {count} rows at once"
        if not found:
            saved = {name: True for name in ("four_bit", "checkpointing") if here.get(name)}  # what saves already stays
            shorter = (value // 2**n for n in range(6))
            fits = [(length, *fit[:3]) for length in shorter if (fit := best(length, total, saved))]
            says += f"; fits with {flags(here, *fits[0])}" if fits else "; take a smaller --model"
        print(f"{card:4}  {'yes' if found else 'no':4} {sum(taken) / 1e9:6.1f} {columns}   {says}")


def _fixed(own, micro):
    """What `choose` may not change: without --auto every setting, with it those on the command line; never a micro-batch
    of 0, which is none. own: all flags."""
    auto, given, fixed = own.get("auto", False), set(own.get("given", ())), {}
    if own["quantization"] != "auto":
        fixed["four_bit"] = own["quantization"] == "4bit"
    if not auto or "gradient_checkpointing" in given:
        fixed["checkpointing"] = own["gradient_checkpointing"]
    if own[micro] and (not auto or given & {micro, "gradient_accumulation_steps"}):
        fixed["micro"] = own[micro]
    return fixed
