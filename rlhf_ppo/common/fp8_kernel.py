# Generated from common/fp8_kernel.py: edit that file, then run `make sync`.
"""The rows of a matrix in 8 bits, in one pass over memory. Imported on GPUs only: it needs Triton."""

import torch
import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)  # of E4M3


@triton.jit
def _quantize(x, out, scales, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < columns
    values = tl.load(x + row * columns + offsets, mask=inside, other=0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values)), 1e-12) / LARGEST
    tl.store(out + row * columns + offsets, (values / scale).to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)


def quantize(x):
    """As common.fp8.quantize, for a matrix on the GPU."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(x), 1, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _quantize[(len(x),)](x, out, scales, x.shape[1], block, num_warps=min(32, max(4, block // 1024)))
    return out, scales
