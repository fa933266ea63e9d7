"""A step with pictures at the speed of the card: the same losses and gradients as TRL's collator and transformers' code give.

What was slow (RESULTS.md, "A step on an H100") and what stands here instead:

    a picture is opened, turned, and written as floats twice     open_picture: cut to bytes, by the workers of the loader
    the encoder sees two pictures, four times per step           collate: all rows of a micro-batch in one pass
    rows are padded to the longest one                           end to end; each token attends to its own row
    windows one after the other, or gathered and put back        windows.py: where they lie, by their ends
    LoRA, norms and rotations in many passes over memory         common/speed/lora.py; Liger's kernels
    the trainer looks for parameters in 5,000 modules, each step settle: it finds what was found before

Imports torch: for after the parsing.
"""

import functools
import importlib.util
import os
import types

import numpy
import torch
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, vision_utils
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from common import device
from common.models import BY_ROW
from common.speed import fit, lora, packing
from pictures import MIN_PIXELS, PATCH, load_image

SIDE = PATCH // 2  # of one of the encoder's patches, in pixels; four of them make a token


# -- pictures, on the CPU


def cut(image, cap):
    """A picture as the encoder's patches: (uint8 (patches, 3 * 14 * 14), (1, rows, columns) of patches).

    Resized as Qwen's image processor does. It goes on to subtract a mean, and to write everything twice in float32, which is
    eight times the bytes: `embed` does so on the card.
    """
    from PIL import Image

    height, width = smart_resize(image.height, image.width, PATCH, MIN_PIXELS, cap)
    image = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    # The four patches that are merged into one token stand together.
    cells = numpy.asarray(image).reshape(height // PATCH, 2, SIDE, width // PATCH, 2, SIDE, 3)
    cells = cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * SIDE**2)
    return torch.from_numpy(cells), (1, height // SIDE, width // SIDE)


def open_pictures(cap, batch):
    made = [cut(load_image(path), cap) for path in batch["image"]]
    kept = {name: batch[name] for name in ("input_ids", "labels")}
    return kept | {"cells": [cells for cells, _ in made], "grid": [grid for _, grid in made]}


def with_pictures(dataset, cap):
    """prompt.tokenize's dataset as `collate` wants it. A picture is opened when its row is asked for, and not kept."""
    return dataset.with_transform(functools.partial(open_pictures, cap))


def places(ids, image_token, grid):
    """Qwen's three positions (time, height, width) of every token of a row with one picture, (3, tokens)."""
    first, high, wide = ids.index(image_token), grid[1] // 2, grid[2] // 2
    rows, columns = numpy.divmod(numpy.arange(high * wide), wide)
    picture = numpy.stack([numpy.zeros_like(rows), rows, columns]) + first
    after = numpy.arange(len(ids) - first - high * wide) + first + max(high, wide)
    parts = [numpy.tile(numpy.arange(first), (3, 1)), picture, numpy.tile(after, (3, 1))]
    return torch.from_numpy(numpy.concatenate(parts, 1))


def ends_of(lengths):
    """Where each row, or window, starts and the last one ends, int32, and the longest one's length."""
    return torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths)


def collate(image_token, merge, window, patch, rows):
    """Rows of `with_pictures` as one row without padding, and what the model would ask the card for: where rows, pictures and
    windows end, and which patch stands where. image_token: its id. merge, window, patch: of the encoder's configuration."""
    grids = torch.tensor([row["grid"] for row in rows])
    index, windows = vision_utils.get_vision_window_index(grids, merge, window, patch)
    pictures, longest = ends_of([len(row["cells"]) for row in rows])
    ends, longest_row = ends_of([len(row["input_ids"]) for row in rows])
    ids = torch.tensor([token for row in rows for token in row["input_ids"]])[None]
    return {
        "input_ids": ids,
        "labels": torch.tensor([label for row in rows for label in row["labels"]])[None],  # a row's first one is -100
        "attention_mask": torch.ones_like(ids),  # for TRL, which counts tokens by it
        "position_ids": torch.cat([places(row["input_ids"], image_token, row["grid"]) for row in rows], 1)[:, None],
        "pixel_values": torch.cat([row["cells"] for row in rows]),
        "image_grid_thw": grids,
        "cu_seq_lens_q": ends,
        "max_length_q": longest_row,
        "image_cu_seqlens": pictures,
        "image_max_seqlen": longest,
        "image_cu_window_seqlens": windows,
        "image_max_window_seqlen": int(windows.diff().max()),
        "image_window_index": index,
        "image_position_ids": vision_utils.get_vision_position_ids(grids, merge),
    }


def collator(config):
    """`collate` for a model's configuration."""
    vision = config.vision_config
    sizes = vision.spatial_merge_size, vision.window_size, vision.patch_size
    return functools.partial(collate, config.image_token_id, *sizes)


# -- the model


def embed(original, self, cells):
    """Qwen2_5_VisionPatchEmbed.forward, also for the bytes of `cut`. cells: (patches, 588) of bytes, or (patches, 1176)."""
    if cells.shape[1] == 3 * SIDE**2:
        mean, std = (
            torch.tensor(each, device=cells.device).view(3, 1, 1) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        values = (cells.float().view(-1, 3, 1, SIDE**2) / 255 - mean) / std  # 16 bits hold 0 to 255 exactly
        cells = values.expand(-1, -1, 2, -1).flatten(1)  # two frames: a picture is a film that stands still
    if not cells.is_cuda:
        return original(cells)
    # A convolution whose step is its width is a matrix product, which a card does faster.
    return linear(cells.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


def see_bytes(model):
    """Give a Qwen2.5-VL's encoder `embed`, if it has not got it. Returns the model."""
    first = model.model.visual.patch_embed
    if "forward" not in vars(first):
        first.forward = types.MethodType(functools.partial(embed, first.forward), first)
    return model


def attend_rows(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **more):
    """packing.varlen_attention, and without a kernel for it one row after the other, for transformers' AttentionInterface."""
    if device.varlen_kernel(query.dtype):
        return packing.varlen_attention(
            module, query, key, value, attention_mask, scaling, cu_seq_lens_q, max_length_q, **more
        )
    rows = zip(*(each.split(cu_seq_lens_q.diff().tolist(), 2) for each in (query, key, value)), strict=True)
    mixed = [scaled_dot_product_attention(*row, is_causal=True, scale=scaling, enable_gqa=True) for row in rows]
    return torch.cat(mixed, 2).transpose(1, 2), None


def norm(self, hidden_states):
    """Qwen2_5_VLRMSNorm.forward by Liger: one pass over memory, and one back."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", False)


def turn_text(q, k, cos, sin, unsqueeze_dim=1):
    """apply_rotary_pos_emb by Liger. q, k: (rows, heads, tokens, size); cos, sin: (1 or rows, tokens, size)."""
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(q, k, cos, sin)


def turn_patches(q, k, cos, sin):
    """apply_rotary_pos_emb_vision by Liger. q, k: (patches, heads, size); cos, sin: (patches, size)."""
    q, k = turn_text(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos[None], sin[None])
    return q[0].transpose(0, 1), k[0].transpose(0, 1)


def attend_by_row(model):
    """Give a model with adapters (model.attach) attention for the rows of `collate`. An encoder without any has no backward."""
    AttentionInterface.register(BY_ROW, attend_rows)
    AttentionMaskInterface.register(BY_ROW, lambda *args, **kwargs: None)
    model.config._attn_implementation = BY_ROW
    visual = model.get_base_model().model.visual
    if not any(parameter.requires_grad for parameter in visual.parameters()):
        visual.forward = torch.no_grad()(visual.forward)  # TRL makes embeddings ask for gradients: for checkpointing


def widen(mlp):
    """Widen a frozen gated MLP with LoRA, of lora.fuse, by zeros to a multiple of 64.

    3,420 numbers are no multiple of 8: cuBLAS takes kernels of half the speed for them. The results are the same, since
    silu(0) * 0 = 0; adapters keep their shape, and are widened at each call.
    """
    gate, up, down = (part.get_base_layer() for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    more = -len(gate.weight) % 64
    if not more or hasattr(gate.weight, "quant_state"):
        return
    for base in (gate, up):
        base.weight.data, base.bias.data = pad(base.weight.data, (0, 0, 0, more)), pad(base.bias.data, (0, more))
    down.weight.data = pad(down.weight.data, (0, more))
    mlp.forward = functools.partial(wide_mlp, mlp, more, mlp.forward)


def wide_mlp(mlp, more, original, x):
    parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if any(part.disable_adapters or part.merged for part in parts):
        return original(x)
    bases = [part.get_base_layer() for part in parts]
    (ag, bg, gate), (au, bu, up), (ad, bd, down) = map(lora._adapter, parts)
    weights = ag, pad(bg, (0, 0, 0, more)), au, pad(bu, (0, 0, 0, more)), pad(ad, (0, more)), bd
    return lora.LoraMLP.apply(x.to(bases[0].weight.dtype), *weights, bases, (gate, up, down))


def fuse(model):
    """LoRA, MLPs, norms and rotations in few passes over memory."""
    lora.fuse(model)
    for block in model.get_base_model().model.visual.blocks:
        if isinstance(vars(block.mlp).get("forward"), functools.partial):
            widen(block.mlp)
    if torch.cuda.is_available() and importlib.util.find_spec("liger_kernel"):
        qwen.apply_rotary_pos_emb, qwen.apply_rotary_pos_emb_vision = turn_text, turn_patches
        for module in model.modules():
            if isinstance(module, qwen.Qwen2_5_VLRMSNorm):
                module.forward = types.MethodType(norm, module)


def settle(model):
    """Let a model of which no part comes or goes any more keep what a trainer asks it at each step.

    Its parameters (to clip, to check and to clear gradients), their number (for a count of operations), whether it trains:
    each time all modules are walked through, between two steps, while the card has nothing to do.
    """
    if device.sharded():  # FSDP will put other parameters in the place of these
        return
    model.train()  # a loaded model is in evaluation mode below PEFT's shell, which says that it trains
    parameters, train = list(model.parameters()), model.train
    model.parameters = lambda recurse=True: iter(parameters)
    model.train = lambda mode=True: model if model.training == mode else train(mode)
    model.num_parameters = functools.cache(model.num_parameters)


def tune(config, args, path, dataset, image_token):
    """fit.tune, which knows how many patches each row's picture has; and who opens the pictures.

    dataset: prompt.tokenize's. image_token: its id.
    """
    if args.packing and args.backend == "unsloth":
        raise SystemExit("--packing: Unsloth's collator pads rows with pictures. Take --backend hf.")
    given = args.given
    # Liger's loss makes logits of every token; TRL's takes the answers' alone, which are few beside a picture's.
    args.given = [*given, "use_liger_kernel", *(("packing", "fused_lora") if args.backend == "unsloth" else ())]
    trained = args.finetune_vision_layers
    patches = [4 * row.count(image_token) for row in dataset["input_ids"]] if trained else ()
    fit.tune(config, args, path, dataset, patches)
    args.given = given
    if args.packing and torch.cuda.is_available():
        if "dataloader_num_workers" not in given:
            config.dataloader_num_workers = min(4, max(1, (os.cpu_count() or 1) // 2))
            config.dataloader_persistent_workers = True  # new ones have opened nothing yet when an epoch begins
        if "per_device_eval_batch_size" not in given:
            config.per_device_eval_batch_size = config.per_device_train_batch_size
