# Generated from common/speed/lora.py: edit that file, then run `make sync`.
"""LoRA in few passes over memory; the same numbers, and the same files, as PEFT's.

PEFT casts x to the adapters' float32 and writes B A x, its multiple and the sum one after the other: at 7B more bytes
than the frozen product itself moves. Here the thin product is added into the wide one's memory by its own matrix product,
and a gated MLP is one step that keeps less for the backward pass.
"""

import functools

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import linear, silu


def fuse(model, mlp=True) -> int:
    """Let the LoRA layers of a PEFT model compute W x + s B A x in few passes. Returns how many layers were changed.

    Whichever adapter is active counts, at each call. mlp=False leaves MLPs to transformers: then a model with adapters off,
    or with B = 0, computes the same to the last bit.
    """
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
    return LoraProduct.apply(x.to(_compute_dtype(base)), a, b, base, scaling)


def _parts(module):
    return [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]


def _mlp_forward(module, original, x):
    parts = _parts(module)
    if any(getattr(part, "disable_adapters", True) or part.merged for part in parts):
        return original(x)
    bases = [part.get_base_layer() for part in parts]
    weights = [weight for part in parts for weight in _adapter(part)[:2]]
    return LoraMLP.apply(x.to(_compute_dtype(bases[0])), *weights, bases, [_adapter(part)[2] for part in parts])


def _compute_dtype(base):
    return getattr(base, "compute_dtype", None) or base.weight.dtype


def wide(x, base):
    """x W^T + bias with the frozen W of an nn.Linear in 16 bits or 4 (bitsandbytes)."""
    return linear(x, _weight(base, x.dtype), base.bias)


def wide_back(dy, base, add_to=None):
    """dy W, the gradient of x, perhaps added to another part of it."""
    weight = _weight(base, dy.dtype)
    return dy @ weight if add_to is None else add_to.addmm_(dy, weight)


def _weight(base, dtype):
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight, state).to(dtype)


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
        gate = wide(flat, bases[0]).addmm_(hg, bg.T)
        up = wide(flat, bases[1]).addmm_(hu, bu.T)
        act = swiglu(gate, up)
        hd = act @ ad.T
        # Inside a backward pass checkpointing rebuilds what this layer kept; its result is not needed again.
        rebuilding = torch._C._current_graph_task_id() != -1
        y = torch.empty_like(flat) if rebuilding else wide(act, bases[2]).addmm_(hd, bd.T)
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
