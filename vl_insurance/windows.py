"""Attention over all of the encoder's windows at once.

Most blocks of Qwen2.5-VL's encoder attend within windows of 8 x 8 patches. Without the flash-attn package transformers goes
through the windows in a Python loop: a photo of 1280 x 640 pixels has 72 of them, times 28 blocks, twice with gradient
checkpointing, and the GPU waits for Python. Windows of equal size are one batch, and there are at most four sizes: whole ones
and those at the edges. Where the caller knows the longest window (fast.py) and torch has a kernel for rows of different lengths,
nothing is gathered: windows stay where they lie. The numbers are the same (tests).
"""

import types

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl import (
    modeling_qwen2_5_vl as qwen,
)  # by name, since Unsloth may exchange what is in it

from common import device


def groups(cu_seqlens):
    """Windows by size: a list of index tensors (windows, tokens), and where each token's result stands after them.

    cu_seqlens: (windows + 1,), where each window starts and the last one ends. Kept on that tensor, since every block asks
    and to answer makes the CPU wait for the GPU.
    """
    if not hasattr(cu_seqlens, "kept_groups"):
        ends = cu_seqlens.tolist()
        starts = {}
        for start, end in zip(ends, ends[1:], strict=False):
            starts.setdefault(end - start, []).append(start)
        made = [
            torch.tensor(each, device=cu_seqlens.device)[:, None] + torch.arange(size, device=cu_seqlens.device)
            for size, each in starts.items()
        ]
        cu_seqlens.kept_groups = made, torch.argsort(torch.cat([each.flatten() for each in made]))
    return cu_seqlens.kept_groups


def attend(self, hidden_states, cu_seqlens, position_embeddings=None, max_seqlen=None, **_):
    """Qwen2_5_VLVisionAttention.forward: hidden_states (tokens, width) of all pictures, windows end to end.

    max_seqlen: tokens of the longest window; transformers itself asks for it only where flash-attn is there.
    """
    length = len(hidden_states)
    q, k, v = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).unbind(1)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    if max_seqlen and (kernel := device.varlen_kernel(q.dtype)):
        ends = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        v = v.contiguous()  # else the backward pass keeps all of qkv for it, beside the turned q and k
        return self.proj(kernel(q, k, v, *ends, scale=self.scaling).reshape(length, -1))
    windows, back = groups(cu_seqlens)
    mixed = []
    for index in windows:
        part = [each[index].transpose(1, 2) for each in (q, k, v)]
        mixed.append(scaled_dot_product_attention(*part, scale=self.scaling).transpose(1, 2).flatten(0, 1))
    return self.proj(torch.cat(mixed)[back].reshape(length, -1))


def attend_at_once(model):
    """Give a Qwen2.5-VL's encoder this attention. Returns the model."""
    for block in model.model.visual.blocks:
        block.attn.forward = types.MethodType(attend, block.attn)
    return model
