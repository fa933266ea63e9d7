"""How much of the GPU's memory PPO's update takes: which cards it fits on (--estimate), and its largest micro-batch."""

import math

import engine
from common import device
from common.speed import fit

CHUNK = 512  # answer tokens whose logits exist at a time: 512 x 152,000 words in float32 are 0.3 GB


def update_needs(args, length, rows):
    """What PPO's update takes with `rows` answers at once, as arguments of fit.needs. length: tokens of prompt and answer."""
    # Policy and value model are trained, 16 bytes per parameter each, the reward model is not.
    return dict(tokens=rows * length, logits=CHUNK * 12, cached=args.rollout_size * length, adapter=16 + 16 + 4)


def minibatch_size(args):
    """Answers per optimizer step: more of them at once there is no use for."""
    return math.ceil(args.rollout_size / args.minibatches)


def show_estimate(args):
    """--estimate: print which cards the run fits on, and what would make it fit."""

    def work(new, rows):
        return update_needs(args, args.max_prompt_length + new, rows)

    fit.estimate(args, "max_new_tokens", work=work, micro="micro_batch_size", most=minibatch_size(args))
    engine.on_cards(args, work(args.max_new_tokens, args.micro_batch_size or min(8, minibatch_size(args))))


def work_beside(args, length):
    """What PPO's update takes beside vLLM, as arguments of fit.needs: with as few answers at once as are still fast."""
    more = dict(r=args.lora_r, checkpointing=args.gradient_checkpointing, code="plain")
    return update_needs(args, length, args.micro_batch_size or min(8, minibatch_size(args))) | more


def rows_at_once(path, length, most, args, found=None):
    """PPO's largest micro-batch, up to `most`, that fits the GPU by --estimate's formula; without a GPU 8.

    length: of the longest prompt with its answer. found: vLLM's share of the card and whether it gives that back for the
    update, or None. Raises SystemExit if not even one row fits.
    """
    import torch

    if not torch.cuda.is_available():
        return 8
    shape, total = fit.shape_of(path), device.card_bytes()
    total *= 1 - found[0] if found and not found[1] else 1

    def size(four_bit, checkpointing, rows):
        more = update_needs(args, length, rows) | dict(r=args.lora_r, code="plain")
        return sum(fit.needs(shape, four_bit=four_bit, checkpointing=checkpointing, **more).values())

    fixed = {"four_bit": args.quantization == "4bit", "checkpointing": args.gradient_checkpointing}
    found = fit.fastest(size, most, total, fixed, lambda rows: rows * length)
    if not found:
        raise SystemExit(
            f"a rollout of {args.rollout_size} texts of up to {length} tokens does not fit in {total / 1e9:.0f} GB, not "
            "even with an answer at a time in the update. Try --gradient_checkpointing, --quantization 4bit, a smaller "
            "--rollout_size or --max_new_tokens; --estimate tells what takes the memory, --micro_batch_size 1 tries all "
            "the same."
        )
    return found[2]
