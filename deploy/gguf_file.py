"""A merged model, or a LoRA adapter alone, as a GGUF file: what llama.cpp, LM Studio and Ollama read.

Llama and Qwen2 here, Qwen2.5-VL's text as well (its image encoder: mmproj.py). One tensor is in memory at a time. llama.cpp
rotates pairs of neighbours in q and k where transformers rotates halves: for Llama their rows are put in that order.
"""

import json
import math
import mmap
import struct
from pathlib import Path

import gguf
import numpy
from gguf import GGMLQuantizationType as Q

from common.files import read_json
from merged import plain

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2_5_VLForConditionalGeneration": "qwen2vl",
}
# How a tokenizer splits text before BPE, by the pattern in its tokenizer.json; llama.cpp has each built in, by name.
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
FILE_TYPES = {"f16": 1, "q8_0": 7}


def text_config(base: Path) -> dict:
    """config.json of the language model; of Qwen2.5-VL, in old files, its parts lie at the top."""
    config = read_json(base / "config.json")
    return config | config.get("text_config", {})


def architecture(base: Path) -> str:
    """The model's name in GGUF. Raises SystemExit where this file cannot write it."""
    names = read_json(base / "config.json").get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        hint = " Save it as ...ForConditionalGeneration." if "VL" in names[0] else ""
        raise SystemExit(f"{base}: GGUF is written here for {', '.join(ARCHITECTURES)}, not for {names[0]}.{hint}")
    config = text_config(base)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise SystemExit(f"{base}: rope_type {kind} is not written here. llama.cpp's convert_hf_to_gguf.py can convert "
                         "the merged folder (--to merged).")  # fmt: skip
    return ARCHITECTURES[names[0]]


def gguf_name(name: str) -> str | None:
    """A tensor's name in GGUF; None for the image encoder's. name: as merged.plain gives it."""
    stem, _, ending = name.rpartition(".")
    if name.startswith("visual."):
        return None
    if stem.startswith("model.layers."):
        _, _, number, inner = stem.split(".", 3)
        if inner in NAMES:
            return f"blk.{number}.{NAMES[inner]}.{ending}"
    elif stem in NAMES:
        return f"{NAMES[stem]}.{ending}"
    raise SystemExit(f"{name}: this tensor has no place in GGUF.")


def pre_tokenizer(tokenizer: dict) -> str:
    """llama.cpp's name of the way in which this tokenizer splits text. The ids are compared afterwards, by the gate."""
    parts = tokenizer["pre_tokenizer"]
    parts = parts.get("pretokenizers", [parts])
    patterns = [each["pattern"].get("Regex") for each in parts if each["type"] == "Split"]
    if not patterns and any(each["type"] == "Digits" and each["individual_digits"] for each in parts):
        return "smollm"
    if len(patterns) == 1 and patterns[0] in SPLITS:
        return SPLITS[patterns[0]]
    raise SystemExit(f"this tokenizer splits text in a way that is not known here: {patterns or parts}. "
                     "llama.cpp's convert_hf_to_gguf.py may know it: convert the merged folder (--to merged).")  # fmt: skip


def add_tokenizer(writer, folder: Path, size: int, serving: dict, template: str):
    """Vocabulary, merges, special tokens and the serving template. size: rows of the model's embedding."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = {each["id"]: each for each in content["added_tokens"]}
    tokens = {index: text for text, index in content["model"]["vocab"].items()}
    tokens |= {index: each["content"] for index, each in added.items()}
    if max(tokens) >= size:
        raise SystemExit(f"{folder}: the tokenizer has {max(tokens) + 1:,} tokens, the model {size:,}: a vocabulary that "
                         "grew in training cannot be merged.")  # fmt: skip
    kinds = [gguf.TokenType.UNUSED if index not in tokens else gguf.TokenType.NORMAL if index not in added
             else gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED
             for index in range(size)]  # fmt: skip
    merges = [each if isinstance(each, str) else " ".join(each) for each in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(content))
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    known = {text: index for index, text in tokens.items()}
    settings = read_json(folder / "tokenizer_config.json")
    for name in ("bos", "pad"):
        text = settings.get(f"{name}_token")
        text = text["content"] if isinstance(text, dict) else text
        if text in known:
            getattr(writer, f"add_{name}_token_id")(known[text])
    writer.add_eos_token_id(serving["eos_id"])
    writer.add_add_bos_token(False)  # the template says all there is to say; training added none
    writer.add_chat_template(template)


def add_shape(writer, base: Path, arch: str, name: str):
    """The hyperparameters that llama.cpp needs."""
    config = text_config(base)
    heads, rope = config["num_attention_heads"], config.get("rope_parameters") or {}
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if arch == "qwen2vl":
        sections = rope.get("mrope_section") or (config.get("rope_scaling") or {}).get("mrope_section")
        writer.add_rope_dimension_sections([*sections, 0][:4])
    else:
        writer.add_rope_dimension_count(head)
    if head * heads != config["hidden_size"]:
        writer.add_key_length(head)
        writer.add_value_length(head)


def permute(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Rows of q or k from halves to neighbouring pairs, head by head."""
    pairs = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def heads_of(name: str, config: dict, arch: str) -> int:
    """How many heads a Llama's q or k has; 0: nothing is to be permuted."""
    if arch != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return 0
    heads = config["num_attention_heads"]
    return heads if "q_proj" in name else config.get("num_key_value_heads") or heads


def kind_for(shape, quant: str) -> Q:
    """Norms and biases stay in 32 bits; rows that are no multiple of a block's 32 values stay in 16."""
    if len(shape) == 1:
        return Q.F32
    return Q.Q8_0 if quant == "q8_0" and shape[-1] % 32 == 0 else Q.F16


def write_model(adapter, run_folder: Path, file: Path, quant: str, serving: dict, template: str, name: str):
    """Write merged weights as GGUF. adapter: a merged.Adapter. quant: f16 or q8_0, both from the 32-bit merge."""
    base, arch = adapter.base, architecture(adapter.base)
    config, writer = text_config(base), gguf.GGUFWriter(file, arch)
    tokenizer = run_folder if (run_folder / "tokenizer.json").is_file() else base
    add_shape(writer, base, arch, name)
    writer.add_file_type(FILE_TYPES[quant])
    add_tokenizer(writer, tokenizer, config["vocab_size"], serving, template)
    todo = [(each, target) for each in adapter.entries if (target := gguf_name(plain(each)))]
    for each, target in todo:
        shape = adapter.entries[each][2]
        kind = kind_for(shape, quant)
        if kind == Q.Q8_0:
            size = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(target, size, numpy.dtype(numpy.uint8), int(numpy.prod(size)), raw_dtype=kind)
        else:
            dtype = numpy.dtype(numpy.float32 if kind == Q.F32 else numpy.float16)
            writer.add_tensor_info(target, shape, dtype, int(numpy.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each, target in todo:
        values = adapter.weight(each).numpy()
        if heads := heads_of(each, config, arch):
            values = permute(values, heads)
        made = gguf.quantize(values, kind_for(values.shape, quant))
        if not numpy.isfinite(made.view(numpy.float16) if made.dtype == numpy.uint8 else made).all() and quant == "f16":
            raise SystemExit(f"{target}: a weight is too large for 16 bits.")
        writer.write_tensor_data(made)
    writer.close()


def write_adapter(adapter, file: Path, name: str):
    """Write the adapter alone as GGUF, for `llama-server --lora`. Only kinds that read as W + s B A."""
    arch, config = architecture(adapter.base), text_config(adapter.base)
    if arch == "qwen2vl":
        raise SystemExit("adapter_gguf is for text: merge an adapter for pictures (--to gguf).")
    writer = gguf.GGUFWriter(file, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(name)
    ranks = {parts[f"{module}.lora_A.weight"].shape[0] for module, parts in adapter.modules.values()}
    if len(ranks) > 1 or adapter.config.alpha_pattern:
        raise SystemExit(
            "adapter_gguf: llama.cpp reads one rank and one alpha; merge an adapter with patterns (--to gguf)."
        )
    writer.add_float32("adapter.lora.alpha", adapter.scale * ranks.pop())  # rsLoRA's sqrt(r) is in the scale
    for weight, (module, parts) in adapter.modules.items():
        target, heads = gguf_name(plain(weight)), heads_of(weight, config, arch)
        a, b = parts[f"{module}.lora_A.weight"].numpy(), parts[f"{module}.lora_B.weight"].numpy()
        b = permute(b, heads) if heads else b
        writer.add_tensor(f"{target}.lora_a", a.astype(numpy.float16))
        writer.add_tensor(f"{target}.lora_b", numpy.ascontiguousarray(b).astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of GGUF's values
TEXT, ARRAY = 8, 9


def header(content) -> tuple[dict, list, int]:
    """(fields, [(name, dimensions, type, offset)], where the data begins). content: a file's bytes, or a map of them.

    gguf's own reader makes an array of every token: seconds for each file. Arrays are skipped here.
    """
    at = 0

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(f"<{form}")
        return value

    def text():
        nonlocal at
        size = take("Q")
        at += size
        return content[at - size : at]

    def value(kind):
        nonlocal at
        if kind == TEXT:
            return text().decode()
        if kind != ARRAY:
            return take(FORMS[kind])
        inner, count = take("I"), take("Q")
        if inner == TEXT:
            for _ in range(count):
                at += 8 + struct.unpack_from("<Q", content, at)[0]
        else:
            at += count * struct.calcsize(f"<{FORMS[inner]}")
        return None

    if take("4s") != b"GGUF" or take("I") != 3:
        raise ValueError("no GGUF of version 3")
    count, pairs = take("Q"), take("Q")
    fields = {}
    for _ in range(pairs):
        key = text().decode()
        fields[key] = value(take("I"))
    tensors = []
    for _ in range(count):
        name, size = text().decode(), take("I")
        tensors.append((name, [take("Q") for _ in range(size)], Q(take("I")), take("Q")))
    align = fields.get("general.alignment", 32)
    return fields, tensors, -(-at // align) * align


def describe(file: Path) -> dict:
    """{"types": {type: tensors}, "bits": bits per weight, fields} read back. Raises SystemExit where it is cut short."""
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            (fields, tensors, start), size = header(content), len(content)
    except (ValueError, KeyError, struct.error, OSError, MemoryError) as error:
        raise SystemExit(
            f"{file}: no whole GGUF file ({' '.join(str(error).split())[:120]}). Export it again."
        ) from None
    types, weights, taken, ends = {}, 0, 0, start
    for _, dimensions, kind, offset in tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(dimensions)
        taken, weights = taken + count // block * block_bytes, weights + count
        ends = max(ends, start + offset + count // block * block_bytes)
        types[kind.name] = types.get(kind.name, 0) + 1
    if ends > size:
        raise SystemExit(f"{file}: {size:,} bytes of {ends:,}: it is cut short. Export it again.")
    return {"types": types, "bits": round(8 * taken / max(weights, 1), 2), "fields": fields}
