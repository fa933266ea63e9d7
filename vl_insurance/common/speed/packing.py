# Generated from common/speed/packing.py: edit that file, then run `make sync`.
"""A batch's rows end to end instead of padded, and attention that keeps them apart.

With padding every row costs as much as the longest one of its batch. Here a batch is one row without padding; every
token sees its own row only. Nothing of this changes what is computed: tests/test_speed.py (CPU) and
tests/gpu_equality.py compare losses and gradients.
"""

from transformers import AttentionInterface, AttentionMaskInterface, DataCollatorForSeq2Seq, DataCollatorWithFlattening

from common.device import varlen_kernel
from common.models import BY_ROW


def collator(tokenizer, packing: bool, backend: str):
    """What makes a batch of rows (input_ids, labels): padded to the longest, or end to end when `packing`."""
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


def attend_by_row(model, backend: str):
    """Give the model attention by row. Without a kernel for it transformers masks, which is right and slow."""
    types = [each.dtype for each in model.parameters() if each.is_floating_point()]
    if varlen_kernel(min(types, key=lambda dtype: dtype.itemsize)) is None:
        print(
            "packing: masks keep the rows apart, which is slow. The fast kernel: NVIDIA from Ampere on, bf16 or fp16."
        )
        return
    if backend == "unsloth":
        from unsloth.utils import attention_dispatch

        # Unsloth waits for torch 2.12's name of the argument; until then it loops over the rows in Python.
        if attention_dispatch._TORCH_VARLEN_ATTN is None:
            attention_dispatch._TORCH_VARLEN_ATTN = lambda *args, enable_gqa=False, **more: varlen_kernel()(
                *args, **more
            )
        return
    AttentionInterface.register(BY_ROW, varlen_attention)
    AttentionMaskInterface.register(BY_ROW, lambda *args, **kwargs: None)
    model.config._attn_implementation = BY_ROW


def varlen_attention(
    module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **kwargs
):
    """Causal attention of rows that lie end to end, for transformers' AttentionInterface.

    query: (1, heads, tokens, head_dim); key, value: (1, key heads, tokens, head_dim), not repeated.
    cu_seq_lens_q: (rows + 1,), int32, where each row starts and the last one ends. It comes from the collator, so the
    GPU is never asked where the rows are. Returns (1, tokens, heads, head_dim) and None.
    """
    if cu_seq_lens_q is None:
        raise ValueError("packed attention needs batches of packing.collator: they say where each row starts")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    k, v = k.to(q.dtype), v.to(q.dtype)
    window = kwargs.get("sliding_window")
    ends, how = (cu_seq_lens_q,) * 2, dict(scale=scaling, window_size=(window - 1 if window else -1, 0))
    out = varlen_kernel()(q, k, v, *ends, max_length_q, max_length_q, **how)
    return out.unsqueeze(0), None
