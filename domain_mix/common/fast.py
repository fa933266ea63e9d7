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


def fuse_lora(model, mlp=True) -> int:
    """Let the LoRA layers of a PEFT model compute W x + s B A x in few passes. Returns how many layers were changed.

    PEFT casts x to the adapters' float32 and writes B A x, its multiple and the sum one after the other: at 7B more
    bytes than the frozen product itself moves. Here the thin product is added into the wide one's memory by its own
    matrix product. A gated MLP is one step that keeps less for the backward pass. Parameters and files stay PEFT's.
    Whichever adapter is active counts, at each call. mlp=False leaves MLPs to transformers: then a model with adapters off,
    or with B = 0, computes the same to the last bit.
    """
    from peft.tuners.lora import LoraLayer
    from torch import nn

    changed = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear) and _plain(module):
            module.forward = functools.partial(_lora_forward, module, module.forward)
            changed += 1
    for module in model.modules() if mlp else ():
        fused = all(isinstance(getattr(part, "forward", None), functools.partial) for part in _parts(module))
        if fused and "SiLU" in type(module.act_fn).__name__:
            module.forward = functools.partial(_mlp_forward, module, module.forward)
    return changed


def _plain(module):
    """Whether a LoRA layer is W x + s B A x and nothing more."""
    name = module.active_adapters[0]
    dropout = getattr(module.lora_dropout[name], "p", 0.0)
    more = len(module.active_adapters) > 1 or dropout or module.lora_bias[name] or name in module.lora_variant
    return not more


def _adapter(module):
    name = module.active_adapters[0]
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _lora_forward(module, original, x):
    if module.disable_adapters or module.merged:
        return original(x)
    base = module.get_base_layer()
    a, b, scaling = _adapter(module)
    return _functions()[0].apply(x.to(_compute_dtype(base)), a, b, base, scaling)


def _parts(module):
    return [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]


def _mlp_forward(module, original, x):
    parts = _parts(module)
    if any(getattr(part, "disable_adapters", True) or part.merged for part in parts):
        return original(x)
    bases = [part.get_base_layer() for part in parts]
    weights = [weight for part in parts for weight in _adapter(part)[:2]]
    return _functions()[1].apply(x.to(_compute_dtype(bases[0])), *weights, bases, [_adapter(part)[2] for part in parts])


def _compute_dtype(base):
    return getattr(base, "compute_dtype", None) or base.weight.dtype


def wide(x, base, x8=None):
    """x W^T + bias with the frozen W of an nn.Linear in 16 bits, 4 bits (bitsandbytes) or 8 bits (`to_fp8`).

    x8: x as `fp8.quantize` has it, where several products share it.
    """
    import torch

    if hasattr(base, "fp8"):
        from common import fp8

        y = fp8.product(x8 or fp8.quantize(x), base.fp8[0], x.dtype)
        return y if base.bias is None else y.add_(base.bias)
    return torch.nn.functional.linear(x, _weight(base, x.dtype), base.bias)


def wide_back(dy, base, add_to=None):
    """dy W, the gradient of x, perhaps added to another part of it."""
    if hasattr(base, "fp8"):
        from common import fp8

        dx = fp8.product(fp8.quantize(dy), base.fp8[1], dy.dtype)
        return dx if add_to is None else add_to.add_(dx)
    weight = _weight(base, dy.dtype)
    return dy @ weight if add_to is None else add_to.addmm_(dy, weight)


def _weight(base, dtype):
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight, state).to(dtype)


@functools.cache
def _functions():
    import torch
    from torch.nn.functional import silu

    def thin(a, b, scaling, dtype):
        return a.to(dtype), b.to(dtype) if scaling == 1 else b.to(dtype) * scaling

    def scaled(gradient, scaling):
        return gradient.float() if scaling == 1 else gradient.float() * scaling

    class LoraProduct(torch.autograd.Function):
        """y = x W^T + bias + s (x A^T) B^T with W frozen (LoRA, arXiv 2106.09685, eq. 3).

        x: (..., in); a: (r, in) and b: (out, r), float32; base: the frozen nn.Linear. Backward, with h = x A^T:

            dh = s dy B      dA = dh^T x      dB = s dy^T h      dx = dy W + dh A
        """

        @staticmethod
        def forward(ctx, x, a, b, base, scaling):
            flat = x.reshape(-1, x.shape[-1])
            a, b = thin(a, b, scaling, x.dtype)
            h = flat @ a.T
            y = wide(flat, base).addmm_(h, b.T)
            ctx.save_for_backward(flat, h, a, b)
            ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
            return y.view(*x.shape[:-1], y.shape[-1])

        @staticmethod
        def backward(ctx, dy):
            flat, h, a, b = ctx.saved_tensors
            dy = dy.reshape(-1, dy.shape[-1])
            dh = dy @ b
            dx = wide_back(dy, ctx.base).addmm_(dh, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
            return dx, (dh.T @ flat).float(), scaled(dy.T @ h, ctx.scaling), None, None

    class LoraMLP(torch.autograd.Function):
        """down(silu(gate(x)) * up(x)), each of the three as in LoraProduct.

        x: (..., hidden). Kept for backward: x, gate(x), up(x); their product, as wide as they are, is made again.
        """

        @staticmethod
        def forward(ctx, x, ag, bg, au, bu, ad, bd, bases, scalings):
            flat = x.reshape(-1, x.shape[-1])
            (ag, bg), (au, bu), (ad, bd) = (
                thin(a, b, s, x.dtype) for a, b, s in zip((ag, au, ad), (bg, bu, bd), scalings, strict=True)
            )
            both = torch.cat([ag, au])
            h = flat @ both.T
            hg, hu = h.split([len(ag), len(au)], 1)
            x8 = quantized(flat, bases[0])
            gate = wide(flat, bases[0], x8).addmm_(hg, bg.T)
            up = wide(flat, bases[1], x8).addmm_(hu, bu.T)
            act = swiglu(gate, up)
            hd = act @ ad.T
            if torch._C._current_graph_task_id() == -1:
                y = wide(act, bases[2]).addmm_(hd, bd.T)
            else:  # inside a backward pass: checkpointing rebuilds what this layer kept, its result is not needed again
                y = torch.empty_like(flat)
            ctx.save_for_backward(flat, h, gate, up, hd, both, bg, bu, ad, bd)
            ctx.bases, ctx.scalings, ctx.shape, ctx.ranks = bases, scalings, x.shape, [len(ag), len(au)]
            return y.view(x.shape)

        @staticmethod
        def backward(ctx, dy):
            flat, h, gate, up, hd, both, bg, bu, ad, bd = ctx.saved_tensors
            dy = dy.reshape(-1, dy.shape[-1])
            act = swiglu(gate, up)
            dhd = dy @ bd
            dad, dbd = dhd.T @ act, dy.T @ hd
            del act
            dact = wide_back(dy, ctx.bases[2]).addmm_(dhd, ad)
            dgate, dup = swiglu_back(dact, gate, up)
            hg, hu = h.split(ctx.ranks, 1)
            dbg, dbu = dgate.T @ hg, dup.T @ hu
            dh = torch.cat([dgate @ bg, dup @ bu], 1)
            dag, dau = (dh.T @ flat).float().split(ctx.ranks)
            dx = None
            if ctx.needs_input_grad[0]:
                dx = wide_back(dup, ctx.bases[1], wide_back(dgate, ctx.bases[0]))
                dx = dx.addmm_(dh, both).view(ctx.shape)
            dbg, dbu, dbd = (scaled(each, s) for each, s in zip((dbg, dbu, dbd), ctx.scalings, strict=True))
            return dx, dag, dbg, dau, dbu, dad.float(), dbd, None, None

    def quantized(x, base):
        if not hasattr(base, "fp8"):
            return None
        from common import fp8

        return fp8.quantize(x)

    def swiglu(gate, up):
        if not gate.is_cuda:
            return silu(gate) * up
        from liger_kernel.ops.swiglu import swiglu_forward

        return swiglu_forward(gate, up)[2]

    def swiglu_back(dact, gate, up):
        if gate.is_cuda:
            from liger_kernel.ops.swiglu import swiglu_backward

            return swiglu_backward(gate, up, dact)  # in place of gate and up
        half = torch.sigmoid(gate)
        return dact * up * half * (1 + gate * (1 - half)), dact * gate * half

    return LoraProduct, LoraMLP


def to_fp8(model):
    """Keep the frozen weights of a model's LoRA layers in 8 bits (E4M3), and compute with them in 8 bits.

    Hopper and Ada multiply 8-bit numbers twice as fast as 16-bit ones. Each row of both factors has a scale of its own.
    A weight is kept twice, by rows for x W^T and by columns for dy W, since the hardware contracts along rows only; so
    this saves time, not memory. LoRA's own products stay in 16 bits.
    """
    from peft.tuners.lora import LoraLayer

    from common import fp8

    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            weight = base.weight.data
            base.compute_dtype, base.fp8 = weight.dtype, [fp8.quantize(each) for each in (weight, weight.T)]
            base.weight.data = weight.new_empty(0)
            base.forward = functools.partial(_fp8_forward, base)  # for PEFT's own way, with the adapter switched off


def skip_bookkeeping(model):
    """Spare each step two walks over all modules: together they leave a GPU idle for 20 ms and more."""
    train = model.train
    train()  # a loaded model is in evaluation mode, in which nothing is checkpointed, while PEFT's shell says it is not
    model.train = lambda mode=True: model if model.training == mode else train(mode)
    model.floating_point_ops = lambda *args, **kwargs: 0  # trainer_state.json's total_flos, which nobody reads


def _fp8_forward(base, x):
    return wide(x.reshape(-1, x.shape[-1]), base).view(*x.shape[:-1], -1)


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
