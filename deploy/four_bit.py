"""Merged weights in 4 bits (NF4), as bitsandbytes stores them: --to merged_4bit, as the course offers it.

The merge happens in 32 bits and is rounded once. Still something is lost: an update that is smaller than the distance of
two NF4 values vanishes. gate.py says how much; a q4_k_m GGUF of the same size is usually closer to what was trained.
"""

import shutil
from pathlib import Path


def write(run, new: Path, write_merged):
    """Write the merged model to a folder beside, load it in 4 bits, save that as `new`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

    from common.files import read_json

    whole = new.with_name(f"{new.name}-16bit")
    shutil.rmtree(whole, ignore_errors=True)
    try:
        write_merged(whole)
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                 bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
        sees = "vision_config" in read_json(whole / "config.json")
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        where = {"": 0} if torch.cuda.is_available() else {"": "cpu"}
        model = kind.from_pretrained(str(whole), quantization_config=nf4, dtype=torch.bfloat16, device_map=where)
        model.save_pretrained(new)
        for file in whole.iterdir():
            if not (new / file.name).exists() and file.suffix != ".safetensors" and "index" not in file.name:
                shutil.copyfile(file, new / file.name)
        shutil.copyfile(whole / "generation_config.json", new / "generation_config.json")
    finally:
        shutil.rmtree(whole, ignore_errors=True)
