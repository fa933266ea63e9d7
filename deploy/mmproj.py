"""Qwen2.5-VL's image encoder as a GGUF file of its own, merged with the adapter: what llama.cpp calls mmproj.

The text part is another file (gguf_file.py). The encoder stays in 16 bits: it is small, and rounding it costs most.
"""

from pathlib import Path

import gguf
import numpy

from common.files import read_json
from gguf_file import text_config
from merged import plain

BLOCK = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn_out", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}  # fmt: skip
OTHERS = {"merger.ln_q": "v.post_ln", "merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"}


def parts_of(name: str, values: numpy.ndarray):
    """(GGUF's name, values) of each tensor that one of the encoder's becomes: q, k and v apart, a kernel per frame."""
    stem, _, ending = name.removeprefix("visual.").rpartition(".")
    if stem == "patch_embed.proj":  # two frames of a video; of a photo both are the photo
        return [("v.patch_embd.weight", values[:, :, 0]), ("v.patch_embd.weight.1", values[:, :, 1])]
    if stem in OTHERS:
        return [(f"{OTHERS[stem]}.{ending}", values)]
    _, number, inner = stem.split(".", 2)
    if inner == "attn.qkv":
        return [
            (f"v.blk.{number}.attn_{which}.{ending}", part)
            for which, part in zip("qkv", numpy.split(values, 3), strict=True)
        ]
    if inner in BLOCK:
        return [(f"v.blk.{number}.{BLOCK[inner]}.{ending}", values)]
    raise SystemExit(f"{name}: this tensor of the image encoder has no place in GGUF.")


def pattern(indexes: list[int], depth: int) -> int:
    """Every how many-th block sees the whole picture, the others see a window; 0: all of them see it."""
    if indexes == list(range(depth)):
        return 0
    every = indexes[0] + 1
    if indexes != list(range(every - 1, every * len(indexes), every)):
        raise SystemExit(f"fullatt_block_indexes {indexes}: llama.cpp knows only every n-th block.")
    return every


def write(adapter, run_folder: Path, file: Path, name: str):
    """Write the merged image encoder. adapter: a merged.Adapter. The mean, spread and size of pictures are the run's."""
    config = read_json(adapter.base / "config.json")
    vision, pictures = config["vision_config"], {}
    for folder in (adapter.base, run_folder):
        for source in ("preprocessor_config.json", "processor_config.json"):
            found = read_json(folder / source)
            pictures |= found.get("image_processor", found)
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_file_type(1)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "qwen2.5vl_merger")
    writer.add_bool("clip.use_silu", True)
    key = "clip.vision."
    heads, width = vision["num_heads"], vision["hidden_size"]
    for field, value in (
        ("projection_dim", text_config(adapter.base)["hidden_size"]), ("image_size", 560),
        ("patch_size", vision["patch_size"]), ("embedding_length", width),
        ("feed_forward_length", vision["intermediate_size"]), ("block_count", vision["depth"]),
        ("attention.head_count", heads), ("n_wa_pattern", pattern(vision["fullatt_block_indexes"], vision["depth"])),
        ("spatial_merge_size", vision["spatial_merge_size"]), ("window_size", vision["window_size"]),
    ):  # fmt: skip
        writer.add_uint32(key + field, value)
    size = pictures.get("size") or {}
    if cap := size.get("longest_edge") or pictures.get("max_pixels"):  # the run's own: another cap is another picture
        writer.add_uint32(key + "image_max_pixels", cap)
        writer.add_uint32(key + "image_min_pixels", size.get("shortest_edge") or pictures.get("min_pixels") or 3136)
    writer.add_float32(key + "attention.layer_norm_epsilon", 1e-6)
    writer.add_array(key + "image_mean", [float(each) for each in pictures["image_mean"]])
    writer.add_array(key + "image_std", [float(each) for each in pictures["image_std"]])
    for each in adapter.entries:
        if not plain(each).startswith("visual."):
            continue
        for target, values in parts_of(plain(each), adapter.weight(each).numpy()):
            wide = values.ndim == 1 or "patch_embd" in target
            writer.add_tensor(target, numpy.ascontiguousarray(values, dtype=numpy.float32 if wide else numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
