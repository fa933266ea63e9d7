# Generated from common/models.py: edit that file, then run `make sync`.
"""A base model with the LoRA adapter that the folder's train.py describes, for training and after it.

Unsloth where it runs best, transformers + PEFT elsewhere: `backend` is "unsloth" or "hf", decided once by the command
line (common/device.py). Heavy libraries are imported by the functions that need them, after paths and runs were checked.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from common import adapters, device, hub, screen
from common.files import read_json
from common.paths import TASK_DIR, output_dir

BY_ROW = "varlen"  # the name of common/speed/packing.py's attention


def load_tokenizer(path: Path):
    """The tokenizer of a model's or adapter's folder, with a pad token that is not its end-of-text token.

    Where the two are one, a trainer that masks padding also masks every answer's end, and the model never stops.
    """
    from transformers import AutoTokenizer

    with hub.loading(path, "tokenizer.json or tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.eos_token_id is None:
        raise SystemExit(f"{path}: the tokenizer names no eos_token: no answer could end. Use the model's own files.")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        known = set(tokenizer.get_vocab()) - {tokenizer.eos_token}
        spare = [token for token in ("<|endoftext|>", "<|fim_pad|>", "<|vision_pad|>", "<pad>") if token in known]
        if not spare:
            raise SystemExit(f"{path}: the tokenizer pads with its eos token and has no other special token for it.")
        tokenizer.pad_token = spare[0]
    return tokenizer


def load_base(path: Path, backend: str, nf4, dtype, max_length: int = 2048):
    """The frozen base model, on the GPU if there is one.

    nf4: None for 16-bit weights, else what BitsAndBytesConfig is given (see train.py). dtype: a torch dtype, also that of
    4-bit computations. max_length: tokens that Unsloth makes room for.
    """
    import torch

    if backend == "unsloth":
        from unsloth import FastLanguageModel  # its 4 bits are NF4 with double quantization as well

        options = dict(max_seq_length=max_length, dtype=dtype, load_in_4bit=nf4 is not None)
        with hub.loading(path, "config.json or *.safetensors"):
            return FastLanguageModel.from_pretrained(str(path), **options)[0]
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # FSDP reads the weights into memory once and hands each GPU its part.
    where = {"": torch.cuda.current_device()} if torch.cuda.is_available() and not device.sharded() else None
    four_bit = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=dtype) if nf4 else None
    return hub.load(AutoModelForCausalLM, path, dtype=dtype, quantization_config=four_bit, device_map=where)


def attach(model, lora, backend: str, config):
    """The model with fresh adapters. lora: the folder's peft.LoraConfig. config: the trainer's; its seed draws A."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(config.seed)
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        same = {name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout", "bias")}
        same |= dict(target_modules=sorted(lora.target_modules), random_state=config.seed)
        checkpointing = "unsloth" if config.gradient_checkpointing else False
        model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=checkpointing, **same)
    else:
        model = get_peft_model(model, lora)
    trained, total = model.get_nb_trainable_parameters()
    weights = "4-bit" if getattr(model, "is_loaded_in_4bit", False) else next(model.parameters()).dtype
    print(f"backend {backend}, {weights} weights")
    print(f"LoRA r{lora.r}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})")
    return model


def widen_adapters(model):
    """Adapters in 32 bits, whatever a trainer made of them: 16 bits lose small updates, and TRL's bf16 adapters cannot
    be scaled for fp16 on a T4. FSDP has a copy of its own."""
    import torch

    for parameter in model.parameters() if not device.sharded() else ():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


@dataclass
class TrainedRun:
    """What a finished run's folder says, read before anything is loaded."""

    adapter: Path  # the folder
    base: Path  # the folder of its base model
    record: dict  # run.json; empty where somebody brought an adapter alone
    arguments: dict  # of the training: data, split_seed, eval_ratio, max_length, ...
    texts: dict  # what was saved beside the adapter, such as prompt_template or system_prompt: name -> text


def open_run(adapter=None, model=None, needed=(), record=False, own=None) -> TrainedRun:
    """A finished run of this folder's recipe: --adapter, or the newest one; --model, or the base that the adapter names.

    needed: names of texts without which an adapter is none of this recipe's. record: whether run.json must be there.
    own: the recipe's texts, whose {fields} saved ones must have; needed, where that has texts.
    Raises SystemExit where the folder is none of this recipe's, or its base is not found.
    """
    adapter = Path(adapter).expanduser() if adapter else latest()
    if not (adapter / "adapter_config.json").exists():
        told = "{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named."
        raise SystemExit(screen.text(told, adapter=adapter))
    found = adapters.read_record(adapter)
    task = found.get("task", TASK_DIR.name)
    texts = adapters.read_texts(adapter, own or (needed if isinstance(needed, dict) else {}))
    lacks = [name for name in needed if name not in texts]
    if task != TASK_DIR.name or lacks:
        why = f"it is a run of {task}" if task != TASK_DIR.name else f"it has no {lacks[0]}.txt"
        raise SystemExit(
            f"{adapter} was not trained by {TASK_DIR.name}: {why}. Ask it with the scripts of its own folder."
        )
    if record and "arguments" not in found:
        raise SystemExit(
            f"{adapter} has no run.json that says what it was trained on. Give the folder that train.py named."
        )
    base = hub.resolve_model(model or adapters.base_of(adapter))
    adapters.check(adapter, base, found.get("arguments"))
    return TrainedRun(adapter, base, found, found.get("arguments", {}), texts)


def latest(stage="") -> Path:
    """The run of this folder's recipe, or of one of its stages, that was finished last."""
    root = output_dir() / stage
    records = ((file, read_json(file)) for file in root.glob("*/run.json"))
    finished = [(at if adapters.finite(at := record.get("finished")) else file.stat().st_mtime, file.parent)
                for file, record in records if record.get("status") == "finished"]  # fmt: skip
    if not finished:
        raise SystemExit(screen.text("no finished run in {root}: run train.py first, or name a folder.", root=root))
    return max(finished)[1]


def load_run(run: TrainedRun, args, load=load_base, read=load_tokenizer):
    """(model, tokenizer) of a run, for inference.

    load: as load_base, for another kind of model; read: what is read from the adapter's folder in the tokenizer's place.
    """
    args.backend = device.decide_backend(args.backend)  # before PEFT and transformers, which Unsloth patches
    tokenizer = read(run.adapter)
    nf4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    four_bit = hub.choose_quantization(args.quantization, run.base)
    model = load(run.base, args.backend, nf4 if four_bit else None, device.dtype())
    adapters.check_words(tokenizer, model, run.adapter)
    return adapters.attach(model, run.adapter).eval(), tokenizer


@contextlib.contextmanager
def inference(model, backend: str):
    """Switch a model to generation and back. Unsloth swaps kernels for it; attention by row makes room, since batches
    are padded here."""
    training, attention = model.training, model.config._attn_implementation
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)
    model.eval()
    if attention == BY_ROW:
        model.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = attention
        if backend == "unsloth" and training:
            FastLanguageModel.for_training(model)
        model.train(training)
