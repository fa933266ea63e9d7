# Generated from common/fast.py: edit that file, then run `make sync`.
"""The same updates in a fraction of the time: no padding, attention by row, LoRA in few passes over memory.

A batch's rows lie end to end as one row without padding; every token sees its own row only ("packing"). Nothing of
this changes what is computed: tests/test_fast.py (CPU) and tests/gpu_equality.py compare losses and gradients.
"""

import contextlib
import functools
import inspect

ATTENTION = "varlen"


@functools.cache
def varlen_kernel():
    """torch's attention over rows of different lengths (FlashAttention-2), or None: it needs torch 2.11 and Ampere."""
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if "window_size" not in known or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return None
    # From torch 2.12 fewer key than query heads have to be asked for; 2.11 takes them as they are.
    return functools.partial(varlen_attn, enable_gqa=True) if "enable_gqa" in known else varlen_attn


def varlen_attention(
    module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **kwargs
):
    """Causal attention of rows that lie end to end, for transformers' AttentionInterface.

    query: (1, heads, tokens, head_dim); key, value: (1, key heads, tokens, head_dim), not repeated.
    cu_seq_lens_q: (rows + 1,), int32, where each row starts and the last one ends. It comes from the collator, so the
    GPU is never asked where the rows are. Returns (1, tokens, heads, head_dim) and None.
    """
    if cu_seq_lens_q is None:
        raise ValueError("packed attention needs batches of common.fast.collator: they say where each row starts")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    k, v = k.to(q.dtype), v.to(q.dtype)
    window = kwargs.get("sliding_window")
    out = varlen_kernel()(
        q,
        k,
        v,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
    )
    return out.unsqueeze(0), None


def collator(tokenizer, packing: bool, backend: str):
    """What makes a batch of rows (input_ids, labels): padded to the longest, or end to end when `packing`."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

    if not packing:
        return DataCollatorForSeq2Seq(tokenizer)  # pads input_ids with pad, labels with -100
    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    if backend == "hf":
        return flatten

    def for_unsloth(rows):
        batch = flatten(rows)
        ends = batch["cu_seq_lens_q"]
        return {name: batch[name] for name in ("input_ids", "labels", "position_ids")} | {
            "packed_seq_lengths": ends[1:] - ends[:-1]
        }

    return for_unsloth


def use_packed_attention(model, backend: str):
    """Give the model attention by row. Without a kernel for it transformers masks, which is right and slow."""
    if varlen_kernel() is None:
        return
    if backend == "unsloth":
        from unsloth.utils import attention_dispatch

        # Unsloth waits for torch 2.12's name of the argument; until then it loops over the rows in Python.
        if attention_dispatch._TORCH_VARLEN_ATTN is None:
            attention_dispatch._TORCH_VARLEN_ATTN = lambda *args, enable_gqa=False, **more: varlen_kernel()(
                *args, **more
            )
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, varlen_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    model.config._attn_implementation = ATTENTION


def fuse_lora(model) -> int:
    """Let every LoRA layer of a PEFT model compute W x + s B A x with `LoraProduct`. Returns how many were changed.

    PEFT casts x to the adapters' float32 and writes B A x, its multiple and the sum one after the other: at 7B more
    bytes than the frozen product itself moves. Parameters, saving and loading stay PEFT's.
    """
    from peft.tuners.lora import LoraLayer
    from torch import nn

    changed = 0
    for module in model.modules():
        if not isinstance(module, LoraLayer) or not isinstance(module.get_base_layer(), nn.Linear):
            continue
        name = module.active_adapters[0]
        dropout = getattr(module.lora_dropout[name], "p", 0.0)
        if len(module.active_adapters) > 1 or dropout or module.lora_bias[name] or name in module.lora_variant:
            continue
        module.forward = functools.partial(_lora_forward, module, name, module.forward)
        changed += 1
    return changed


def _lora_forward(module, name, original, x, *args, **kwargs):
    if module.disable_adapters or module.merged or args or kwargs:
        return original(x, *args, **kwargs)
    base = module.get_base_layer()
    x = x.to(getattr(base, "compute_dtype", None) or base.weight.dtype)
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return _product().apply(x, a, b, base, module.scaling[name])


@functools.cache
def _product():
    import torch
    from torch.nn.functional import linear

    class LoraProduct(torch.autograd.Function):
        """y = x W^T + bias + s (x A^T) B^T with W frozen (LoRA, arXiv 2106.09685, eq. 3).

        x: (..., in); a: (r, in), b: (out, r), float32; base: the frozen nn.Linear, perhaps in 4 bits. The thin product
        is added into the wide one's memory by its own matrix product (addmm), and likewise for the gradient of x:

            dh = s dy B      dA = dh^T x      dB = s dy^T h      dx = dy W + dh A        with h = x A^T
        """

        @staticmethod
        def forward(ctx, x, a, b, base, scaling):
            flat = x.reshape(-1, x.shape[-1])
            a16, b16 = a.to(x.dtype), b.to(x.dtype)
            if scaling != 1:
                b16 = b16 * scaling
            y = linear(flat, frozen_weight(base, x.dtype), base.bias)
            h = flat @ a16.T
            y.addmm_(h, b16.T)
            ctx.save_for_backward(flat, h, a16, b16)
            ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
            return y.view(*x.shape[:-1], y.shape[-1])

        @staticmethod
        def backward(ctx, dy):
            flat, h, a16, b16 = ctx.saved_tensors
            dy = dy.reshape(-1, dy.shape[-1])
            dh = dy @ b16
            da, db = dh.T @ flat, dy.T @ h
            dx = None
            if ctx.needs_input_grad[0]:
                dx = (dy @ frozen_weight(ctx.base, dy.dtype)).addmm_(dh, a16).view(ctx.shape)
            db = db.float()
            return dx, da.float(), db * ctx.scaling if ctx.scaling != 1 else db, None, None

    def frozen_weight(base, dtype):
        state = getattr(base.weight, "quant_state", None)
        if state is None:
            return base.weight
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(base.weight, state).to(dtype)

    return LoraProduct


@contextlib.contextmanager
def padded(model):
    """While it lasts the model takes padded batches, as generation makes them."""
    packed = model.config._attn_implementation == ATTENTION
    if packed:
        model.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        if packed:
            model.config._attn_implementation = ATTENTION
