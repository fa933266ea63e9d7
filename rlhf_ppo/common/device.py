# Generated from common/device.py: edit that file, then run `make sync`.
"""What this machine computes with. torch is imported inside the functions: a wrong flag must answer before it is loaded."""

import functools
import importlib.util
import inspect
import os
import sys

# Where backend "auto" is Unsloth: small cards, where its offloading counts, and those before Ampere.
UNSLOTH_BELOW = 11e9


@functools.cache
def decide_backend(choice: str) -> str:
    """Import what --backend asks for and return "unsloth" or "hf". Unsloth patches TRL, so it has to be imported first.

    Called once, as soon as every flag is known to be right; it is also where torch's attention is chosen.
    """
    import torch

    # cuDNN's attention, torch's first choice on Hopper from 2.11 on, makes NaN of q's gradient where there is a mask, the
    # batch is 64 tokens longer than a multiple of 128, and all scores of a row are low (pytorch/pytorch#196678): once in
    # 400 updates, with a finite loss. Other kernels take over.
    torch.backends.cuda.enable_cudnn_sdp(False)
    cuda, installed = torch.cuda.is_available(), importlib.util.find_spec("unsloth") is not None
    if choice == "unsloth" and not (cuda and installed):
        reason = no_cuda() if installed or not cuda else "Unsloth is not installed: see requirements.txt."
        raise SystemExit(f"--backend unsloth needs an NVIDIA GPU and Unsloth. {reason}")
    if choice == "hf" or not (cuda and installed):
        return "hf"
    large = varlen_kernel() and torch.cuda.mem_get_info()[1] > UNSLOTH_BELOW
    if choice == "auto" and (large or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        return "hf"
    import unsloth  # noqa: F401

    return "unsloth"


@functools.cache
def varlen_kernel(dtype=None):
    """torch's attention over rows of different lengths (FlashAttention-2), or None: it needs torch 2.11 and Ampere, and takes
    numbers of 16 bits only. dtype: of the numbers, if that is to be asked, too."""
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    able = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if "window_size" not in known or not able or (dtype or torch.bfloat16).itemsize != 2:
        return None
    # From torch 2.12 fewer key than query heads have to be asked for; 2.11 takes them as they are.
    return functools.partial(varlen_attn, enable_gqa=True) if "enable_gqa" in known else varlen_attn


def sharded() -> bool:
    """Whether `accelerate launch` spreads the weights over the GPUs (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def no_cuda() -> str:
    """Why torch sees no GPU, and what to do."""
    import torch

    if "--demo" in sys.argv:
        return "--demo runs without one: leave this flag out."
    if torch.version.cuda is None:
        return "This torch is a CPU build. With an NVIDIA card (nvidia-smi lists it), install this folder's requirements.txt."
    return f"torch for CUDA {torch.version.cuda} sees none: `nvidia-smi` tells whether there is one and its driver."


def need_vllm():
    """Stop where --engine vllm is asked for and vLLM is not there."""
    if importlib.util.find_spec("vllm") is None:
        install = "pip install --no-deps -r requirements-vllm.txt"
        raise SystemExit(f"--engine vllm: vLLM is not installed here. Take --engine hf, or {install}.")


def has_bf16() -> bool:
    """Whether bfloat16 is fast here: GPUs from Ampere on, CPUs with AVX512_BF16 or AMX. Elsewhere it is emulated."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def dtype(config=None):
    """The torch dtype of frozen weights: a trainer's config decides by bf16 and fp16, without one this machine does."""
    import torch

    bf16, fp16 = (config.bf16, config.fp16) if config else (has_bf16(), torch.cuda.is_available())
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32


def free_bytes() -> tuple[int, bool]:
    """(bytes that are free for a model, whether they are a GPU's)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], True
    import psutil

    return psutil.virtual_memory().available, False


def card_bytes() -> int:
    """The GPU's memory to plan with: all of it, so that the choice is the same each time, unless somebody else uses the card."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total if free > 0.9 * total else free


def name() -> str:
    """The GPU, or the CPU and how many threads torch uses."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    features = " ".join(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if cpu.get(name))
    return f"{cpu.get('cpu_name', 'CPU')} ({features}), {torch.get_num_threads()} threads"


def peak_memory() -> dict:
    """Peak memory in GB: what torch's tensors took on the GPU and what it reserved, or this process's memory."""
    import torch

    if torch.cuda.is_available():
        taken, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_gb": round(taken / 1e9, 2), "peak_gb_reserved": round(reserved / 1e9, 2)}
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return {"peak_gb_process": round(getattr(memory, "peak_wset", memory.rss) / 1e9, 2)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_gb_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)}


def empty_cache():
    """A finished model leaves before the next one is loaded."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
