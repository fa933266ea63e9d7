# Generated from common/models.py: edit that file, then run `make sync`.
"""One way to load a model: Unsloth where it runs, transformers + PEFT elsewhere. The method stays in the task folder."""

import contextlib
import functools
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import fast
from common.cli import arg
from common.memory import OVERHEAD, weight_bytes
from common.paths import resolve_model

# Where backend "auto" is Unsloth: small cards, where its offloading counts, and those before Ampere.
UNSLOTH_BELOW = 11e9


@dataclass
class ModelArgs:
    model: str | None = arg("Qwen/Qwen2.5-7B-Instruct", "a path, MODELS_DIR/<org>/<name>, or a name on the hub")
    backend: Literal["auto", "unsloth", "hf"] = arg("auto", "auto: Unsloth on an NVIDIA GPU, else transformers + PEFT")
    quantization: Literal["auto", "none", "4bit", "fp8"] = arg(
        "auto", "of the frozen weights. auto: 16 bits where they fit, else 4; fp8: 8 bits, needs Hopper or Ada"
    )


@dataclass
class LoraArgs(ModelArgs):
    lora_r: int = arg(16, "rank of the LoRA update")
    lora_alpha: int = arg(16, "the update is scaled by lora_alpha / lora_r")
    lora_dropout: float = arg(0.0, "0 is what Unsloth's fast path needs")
    lora_target_modules: list[str] = arg(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "layers that get an update"
    )
    auto: bool = arg(True, "choose what the card decides: quantization, packing, micro-batch, checkpointing, kernels")
    packing: bool = arg(False, "a batch's rows end to end without padding, each seeing itself only")
    fused_lora: bool = arg(False, "LoRA in fewer passes over memory; the same result (backend hf)")
    estimate: bool = arg(False, "print which cards the run fits on, what would make it fit, and end")


@functools.cache
def import_backend(backend: str) -> str:
    """Import what `backend` needs and return "unsloth" or "hf". Unsloth patches TRL, so it has to be imported first.

    Every model is loaded after this, so it is also where torch's attention is chosen.
    """
    import torch

    # cuDNN's attention, torch's first choice on Hopper from 2.11 on, makes NaN of q's gradient where there is a mask, the
    # batch is 64 tokens longer than a multiple of 128, and all scores of a row are low (pytorch/pytorch#196678): once in
    # 400 updates, with a finite loss. Other kernels take over.
    torch.backends.cuda.enable_cudnn_sdp(False)
    cuda, installed = torch.cuda.is_available(), importlib.util.find_spec("unsloth") is not None
    if backend == "unsloth" and not (cuda and installed):
        reason = no_cuda() if installed or not cuda else "Unsloth is not installed: see requirements.txt."
        raise SystemExit(f"--backend unsloth needs an NVIDIA GPU and Unsloth. {reason}")
    if backend == "hf" or not (cuda and installed):
        return "hf"
    large = fast.varlen_kernel() and torch.cuda.mem_get_info()[1] > UNSLOTH_BELOW
    if backend == "auto" and (large or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        return "hf"
    import unsloth  # noqa: F401

    return "unsloth"


def sharded() -> bool:
    """Whether `accelerate launch` spreads the weights over the GPUs (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def need_vllm():
    """Stop where --engine vllm is asked for and vLLM is not there."""
    if importlib.util.find_spec("vllm") is None:
        raise SystemExit(
            "--engine vllm: vLLM is not installed here. Take --engine hf, or pip install --no-deps -r requirements-vllm.txt."
        )


def widen_adapters(model):
    """Adapters in 32 bits, whatever a trainer made of them: 16 bits lose small updates, and TRL's bf16 adapters cannot
    be scaled for fp16 on a T4. FSDP has a copy of its own."""
    import torch

    for parameter in model.parameters() if not sharded() else ():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def no_cuda() -> str:
    """Why torch sees no GPU, and what to do."""
    import torch

    if torch.version.cuda is None:
        return "This torch is a CPU build: install this folder's requirements.txt, or run --demo."
    return f"torch for CUDA {torch.version.cuda} sees none: `nvidia-smi` tells whether there is one and its driver."


def has_bf16() -> bool:
    """Whether bfloat16 is fast here: GPUs from Ampere on, CPUs with AVX512_BF16 or AMX. Elsewhere it is emulated."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def load_tokenizer(path: Path):
    """The tokenizer of a model's or adapter's folder, with a pad token that is not its end-of-text token.

    Where the two are one, a trainer that masks padding also masks every answer's end, and the model never stops.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.eos_token_id is None:
        raise SystemExit(
            f"{path}: the tokenizer names no eos_token, so no answer could end. Use the model's own files."
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        known = set(tokenizer.get_vocab()) - {tokenizer.eos_token}
        spare = [token for token in ("<|endoftext|>", "<|fim_pad|>", "<|vision_pad|>", "<pad>") if token in known]
        if not spare:
            raise SystemExit(f"{path}: the tokenizer pads with its eos token and has no other special token for it.")
        tokenizer.pad_token = spare[0]
    return tokenizer


def find_model(model_args) -> Path:
    """The folder of --model, after the checks that cost nothing: is there a GPU where one is asked for, does it fit."""
    import torch

    if model_args.quantization in ("4bit", "fp8") and not torch.cuda.is_available():
        raise SystemExit(f"--quantization {model_args.quantization} needs an NVIDIA GPU. {no_cuda()}")
    if model_args.quantization == "fp8":
        if torch.cuda.get_device_capability() < (8, 9):
            raise SystemExit("--quantization fp8 needs Ada, Hopper or newer (RTX 40, L40, H100). Take auto or 4bit.")
        if import_backend(model_args.backend) == "unsloth":
            raise SystemExit("--quantization fp8 is computed by common/fast.py: take --backend hf.")
    path = resolve_model(model_args.model)
    choose_quantization(model_args.quantization, path)
    return path


@functools.cache
def choose_quantization(choice: str, path: Path) -> bool:
    """Whether to load in 4-bit. Stops where the weights cannot fit, before minutes go into loading them."""
    import torch

    if torch.cuda.is_available():
        free, needs = (
            torch.cuda.mem_get_info()[0],
            {"none": weight_bytes(path, False), "4bit": weight_bytes(path, True)},
        )
    else:
        import psutil

        free, needs, choice = psutil.virtual_memory().available, {"none": 1.2 * weight_bytes(path, False)}, "none"
    needs = {name: (size + min(OVERHEAD, size)) / 1e9 for name, size in needs.items()}
    needs["fp8"] = needs["none"]
    free /= 1e9
    if choice == "auto":
        choice = "none" if needs["none"] < free else "4bit"
    if needs[choice] > free:
        raise SystemExit(
            f"{path.name} needs about {needs[choice]:.0f} GB of memory, {free:.0f} GB are free. "
            + ("Try --quantization 4bit." if "4bit" in needs and choice == "none" else "Try a smaller --model.")
        )
    return choice == "4bit"


def load_base(path: Path, backend: str, four_bit: bool, dtype, max_length: int):
    """The base model, on the GPU if there is one. dtype: a torch dtype, also that of 4-bit computations."""
    import torch

    if import_backend(backend) == "unsloth":
        from unsloth import FastLanguageModel

        options = dict(max_seq_length=max_length, dtype=dtype, load_in_4bit=four_bit)
        return FastLanguageModel.from_pretrained(str(path), **options)[0]
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **nf4) if four_bit else None,
        # FSDP reads the weights into memory once and hands each GPU its part.
        device_map={"": torch.cuda.current_device()} if torch.cuda.is_available() and not sharded() else None,
        use_safetensors=True,
    )


def load_model(model_args, config):
    """A base model with fresh LoRA adapters, ready for a trainer.

    config: the trainer's config, whose bf16 / fp16, max_length, gradient_checkpointing and seed are followed.
    """
    import torch
    from transformers import set_seed

    path = find_model(model_args)
    four_bit = choose_quantization(model_args.quantization, path)
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else torch.float32
    model = load_base(path, model_args.backend, four_bit, dtype, config.max_length)
    set_seed(config.seed)  # LoRA's A matrices are random
    lora = dict(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        bias="none",
    )
    if import_backend(model_args.backend) == "unsloth":
        from unsloth import FastLanguageModel

        lora |= dict(use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False)
        model = FastLanguageModel.get_peft_model(model, **lora, random_state=config.seed)
    else:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
        if model_args.fused_lora or model_args.quantization == "fp8":
            fast.fuse_lora(model)
            config.liger_kernel_config = {"swiglu": False}  # part of fuse_lora already
        if model_args.quantization == "fp8":
            fast.to_fp8(model)
        if model_args.packing:
            fast.skip_bookkeeping(model)
    if model_args.packing:
        fast.use_packed_attention(model, import_backend(model_args.backend))
    trained, total = model.get_nb_trainable_parameters()
    print(f"backend {import_backend(model_args.backend)}, {'4-bit' if four_bit else dtype} weights")
    print(f"LoRA r{model_args.lora_r}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})")
    return model


def load_adapter(adapter: Path, model_args, max_length: int = 2048, load=load_base, read=load_tokenizer):
    """A base model with a trained adapter, for inference, and the adapter's tokenizer.

    The base is --model if given, else the one named in adapter_config.json. load: as load_base, for another kind of model;
    read: what is read from the adapter's folder and returned in the tokenizer's place.
    """
    import_backend(model_args.backend)  # before PEFT and transformers, which Unsloth patches
    import torch
    from peft import PeftModel

    adapter = Path(adapter)
    if not (adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that train.py named.")
    saved = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    path = resolve_model(model_args.model or saved["base_model_name_or_path"])
    tokenizer = read(adapter)
    four_bit = choose_quantization(model_args.quantization, path)
    half = torch.float16 if torch.cuda.is_available() else torch.float32
    dtype = torch.bfloat16 if has_bf16() else half
    model = load(path, model_args.backend, four_bit, dtype, max_length)
    try:
        return PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise SystemExit(
            f"{adapter} was not trained on {path.name}: their layers differ in size. Leave --model out; the adapter "
            f"names its base, {saved['base_model_name_or_path']}."
        ) from None


@contextlib.contextmanager
def inference(model, backend: str = "auto"):
    """Switch a model to generation and back; Unsloth swaps kernels for it, the others only leave training mode."""
    training, unsloth = model.training, import_backend(backend) == "unsloth"
    if unsloth:
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)
    model.eval()
    with fast.padded(model):
        yield
    if unsloth and training:
        FastLanguageModel.for_training(model)
    model.train(training)
