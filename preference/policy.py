"""The model that is trained: the frozen base with a fresh adapter, or with that of an SFT run and a frozen copy beside it."""

from pathlib import Path

from common import adapters, device, files, hub, models
from common.speed import lora, packing
from pairs import REFERENCE
from prompt import TEMPLATE

# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def tokenizer_of(args, path):
    """(tokenizer, texts to save): of the start, with the prompt that it was trained with, or of the base."""
    if not args.start:
        return models.load_tokenizer(path), TEMPLATE
    folder = Path(args.start).expanduser()
    tokenizer, served = models.load_tokenizer(folder), folder / "serving_template.jinja"
    if not served.is_file():
        raise SystemExit(
            f"{folder} has no serving_template.jinja, which says how it is asked: deploy/contract.py writes one."
        )
    tokenizer.chat_template = served.read_text(encoding="utf-8")
    return tokenizer, dict(system_prompt=files.read_json(folder / "serving.json").get("system") or "")


def load_model(args, config, path):
    """The frozen base with the adapter that is trained; with --start a frozen copy of it beside. Says whether it packs."""
    from peft import LoraConfig

    nf4 = NF4 if hub.choose_quantization(args.quantization, path) else None
    model = models.load_base(path, args.backend, nf4, device.dtype(config), args.max_length)
    if args.start:
        folder = Path(args.start).expanduser()
        adapters.check(folder, path)
        model = adapters.attach(model, folder, trainable=True)
        model = adapters.attach(model, folder, REFERENCE)
        model.set_adapter("default")
        print(f"start and reference: {folder}; its rank and layers count, not the flags'")
    else:
        lora_config = LoraConfig(
            task_type="CAUSAL_LM",
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=args.lora_target_modules,
        )
        model = models.attach(model, lora_config, args.backend, config)
    models.widen_adapters(model)
    if args.fused_lora:
        lora.fuse(model)
    if packs(args, config):
        packing.attend_by_row(model, args.backend)
    return model


def packs(args, config):
    """Whether rows lie end to end: where the card has a kernel for attention by row."""
    return args.packing and device.varlen_kernel(device.dtype(config)) is not None


def drop_reference(model):
    """Before a run is saved: one adapter on the public base is what it made."""
    if REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
        model.set_adapter("default")
