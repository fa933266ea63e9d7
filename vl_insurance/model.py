"""Qwen2.5-VL and its processor: loading, and LoRA where it is wanted. Imports torch: for after the parsing."""

from pathlib import Path

import torch
import transformers
from peft import get_peft_model
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, set_seed
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from common import hub
from common.files import read_json
from common.models import load_tokenizer
from fast import see_bytes
from pictures import MIN_PIXELS
from prompt import IMAGE
from windows import attend_at_once

# Unsloth finds the layers of LoRA by these flags of train.py; it takes no regular expression.
PARTS = ("finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules")


class Qwen2_5_VLProcessor(transformers.Qwen2_5_VLProcessor):
    """Tokenizer and image processor without a video processor, which would need torchvision.

    Under its own name, since that name is saved and is how other programs find the class.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)


def load_processor(path, max_pixels=None):
    """Tokenizer and image processor of a model's or adapter's folder. max_pixels: None takes what the folder says.

    Built from its two parts: AutoProcessor also wants the video processor, and where it cannot have one it returns a bare
    tokenizer without a word. The PIL image processor is the same on every machine.
    """
    tokenizer = load_tokenizer(path)
    if not tokenizer.chat_template or IMAGE not in tokenizer.get_vocab():
        raise SystemExit(f"{path}: no Qwen2.5-VL: its tokenizer has no chat template or no {IMAGE}.")
    max_pixels = max_pixels or saved_max_pixels(Path(path))
    # As a fresh dict: the class would otherwise write the cap into its own default.
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels})
    return Qwen2_5_VLProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def saved_max_pixels(path):
    """The pixel cap that an adapter was trained with, as its folder says."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        saved = read_json(path / name)
        saved = saved.get("image_processor", saved)
        found = (saved.get("size") or {}).get("longest_edge") or saved.get("max_pixels")
        if found:
            return found
    raise SystemExit(f"{path} does not say which pixel cap it was trained with: give --max_pixels.")


def load_base(path, backend, nf4, dtype, max_length=4096):
    """The frozen base model, on the GPU if there is one: as common/models.py's, for a model that sees."""
    if backend == "unsloth":
        from unsloth import FastVisionModel

        options = dict(max_seq_length=max_length, dtype=dtype, load_in_4bit=nf4 is not None)
        with hub.loading(path, "config.json or *.safetensors"):
            return attend_at_once(FastVisionModel.from_pretrained(str(path), **options)[0])
    four_bit = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype) if nf4 else None
    where = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    options = dict(dtype=dtype, quantization_config=four_bit, device_map=where)
    return see_bytes(attend_at_once(hub.load(AutoModelForImageTextToText, path, **options)))


def attach(model, lora, args, config):
    """The model with fresh adapters: as common/models.py's. lora: a peft.LoraConfig. args: train.py's, for PARTS."""
    set_seed(config.seed)  # LoRA's A matrices are random
    if args.backend == "unsloth":
        from unsloth import FastVisionModel

        same = {name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout", "bias")}
        same |= {name: getattr(args, name) for name in PARTS}
        checkpointing = "unsloth" if config.gradient_checkpointing else False
        model = FastVisionModel.get_peft_model(
            model, use_gradient_checkpointing=checkpointing, random_state=config.seed, **same
        )
        FastVisionModel.for_training(model)
    else:
        model = get_peft_model(model, lora)
    trained, total = model.get_nb_trainable_parameters()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    seen = sum(".visual." in name for name in names) // 2
    weights = "4-bit" if getattr(model, "is_loaded_in_4bit", False) else next(model.parameters()).dtype
    print(f"backend {args.backend}, {weights} weights")
    print(f"LoRA r{lora.r}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%}), in "
          f"{len(names) // 2 - seen} layers of the language model and {seen} of the image encoder")  # fmt: skip
    return model
