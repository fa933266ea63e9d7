# Generated from common/fp8.py: edit that file, then run `make sync`.
"""8-bit matrix products for frozen weights, on GPUs that have them (Ada, Hopper and newer).

E4M3 has 4 bits of exponent and 3 of mantissa; its largest number is 448. On a CPU the same numbers come out, slowly.
"""

import torch


def quantize(x):
    """x: (rows, columns) -> its rows in E4M3 and a scale a row, (rows, 1) in float32, with x = rows * scales.

    The largest magnitude of a row becomes 448, so an element is off by 1/16 of itself at most.
    """
    if x.is_cuda:
        from common import fp8_kernel

        return fp8_kernel.quantize(x)
    scales = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 448
    return (x.float() / scales).to(torch.float8_e4m3fn), scales


def product(x, weight, dtype):
    """x: a pair of `quantize`, (tokens, in); weight: one, (out, in) -> x weight^T, (tokens, out), in `dtype`."""
    (a, a_scales), (b, b_scales) = x, weight
    if not a.is_cuda:  # 8-bit numbers are exact in 16 bits, so only the scales come in afterwards
        exact = dtype if dtype != torch.float16 else torch.float32
        return ((a.to(exact) @ b.to(exact).t()).float() * a_scales * b_scales.t()).to(dtype)
    return torch._scaled_mm(a, b.t(), scale_a=a_scales, scale_b=b_scales.t(), out_dtype=dtype, use_fast_accum=True)
