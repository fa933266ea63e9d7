# Generated from common/speed/engine.py: edit that file, then run `make sync`.
"""vLLM beside a model of ours on one GPU: whether both fit, how the policy's weights get there, and whether they arrived.

vLLM reads merged weights W + s B A, in 16 bits, so three questions are ours.

Do both fit?  Twice the weights, the completions' cache, and what a training step takes; else vLLM gives its part of the
memory back while the step is trained (sleep); else our own decoder, with 4-bit weights if need be.

What does it get?  Rounded to nearest, W + d is W again wherever d is below half of W's last place: the update of a whole
early run can vanish, and the model's log-probabilities still agree "within bf16". So the merge rounds up or down at random,
right in the mean.

Does it sample from the policy?  Every CHECK updates a slope says how much of the update arrived:

    log p_vLLM - log p_base  =  slope * (log p_policy - log p_base)  + noise        over the sampled tokens
"""

import importlib.util
import math
import os

from common import device
from common.hub import MARGIN
from common.speed import fit

WORK = 3e9  # bytes of vLLM beside weights and cache: 4,096 tokens at work, CUDA graphs, what torch does not count
CHECK = 25  # updates between two looks at the slope
WIDE = 0.2  # how far from 1, or from 0, the slope may be to be called so, and two of its sigmas at most


# -- do both fit?


def refusal(args):
    """Why vLLM cannot write the rollouts, as far as --quantization and what is installed say it, or None."""
    if args.quantization == "4bit":
        return "it samples from merged 16-bit weights, which are not those of a 4-bit model"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed (pip install --no-deps -r requirements-vllm.txt)"


def plan(weights, cache, training, card):
    """(vLLM's share of the card, whether it sleeps while training), or None where both do not fit. All in bytes.

    weights: one copy in 16 bits; cache: the completions' keys and values; training: a step's peak beside the weights.
    """
    mine = weights + cache + WORK
    awake, asleep = weights + training + mine, max(training, mine) + weights
    if asleep + MARGIN > fit.FIT * card:
        return None
    return math.ceil(100 * mine / card) / 100, awake + MARGIN > fit.FIT * card


def choose(args, path, reason=None, **work):
    """Decide args.rollouts, "vllm" or "hf". Returns `plan`'s pair for vLLM, else None; why not is said in a line.

    reason: why it cannot be, where the caller knows. work: what a training step takes, as arguments of fit.needs.
    """
    import torch

    found, cuda = None, torch.cuda.is_available()
    reason = reason or refusal(args) or (None if cuda else f"it needs an NVIDIA GPU. {device.no_cuda()}")
    if args.rollouts != "hf" and not reason:
        taken, card = fit.needs(fit.shape_of(path), four_bit=False, **work), device.card_bytes()
        # vLLM's cache comes in blocks of 16 tokens: the last one of a row is partly empty.
        weights, cache = taken.pop("weights"), 1.1 * taken.pop("cache")
        found = plan(weights, cache, sum(taken.values()), card)
        reason = f"two 16-bit copies of {weights / 1e9:.1f} GB and a training step do not fit in {card / 1e9:.0f} GB"
    if args.rollouts == "vllm" and not found:
        raise SystemExit(f"--rollouts vllm: {reason}.")
    if args.rollouts == "auto" and not found and cuda:
        print(f"rollouts without vLLM: {reason}")
    args.rollouts = "vllm" if found else "hf"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # else it reports the machine and the model to its makers
    return found


# -- the policy's weights


def round_at_random(wide, dtype, generator):
    """float32 as `dtype`. In bfloat16 up or down with the probability that makes the mean right, else to nearest."""
    import torch

    if dtype != torch.bfloat16:
        return wide.to(dtype)
    # The upper half of a float32 is the bfloat16 below it; what is cut off, plus a draw from all it could be, carries
    # over just as often as it is large.
    below = torch.randint(1 << 16, wide.shape, dtype=torch.int32, device=wide.device, generator=generator)
    return ((wide.view(torch.int32) + below) & -(1 << 16)).view(torch.float32).to(dtype)


def merged(model, everything, generator):
    """(name, weight) of a PEFT model as its base model names them, with what its adapter that is on adds.

    everything: the layers without an adapter, too. The frozen weights are only read: PEFT's merge and unmerge add and
    subtract in their 16 bits, and leave the rounding of every step in them.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in model.named_parameters():
        if model.prefix in name:
            continue
        layer, _, kind = name.rpartition(".base_layer.")
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if kind == "weight" and layer in layers:
            part = layers[layer]
            on = [each for each in part.active_adapters if each in part.lora_A and not part.disable_adapters]
            wide = parameter.data.float() + sum(part.get_delta_weight(each).float() for each in on)
            yield plain, round_at_random(wide, parameter.dtype, generator)
        elif everything:
            yield plain, parameter.data


def give(llm, model, everything, seed):
    """Give vLLM the weights of `merged`: one call for all layers, and without `everything` only those that changed. seed: of
    the rounding, whose draws are its own."""
    import torch

    with torch.no_grad():
        weights = merged(model, everything, torch.Generator(model.device).manual_seed(seed))
        llm.llm_engine.model_executor.driver_worker.model_runner.model.load_weights(weights)
    llm.reset_prefix_cache()


# -- is it the policy that was sampled?


def scaled(model, factor, ask):
    """ask() while the adapters of a PEFT model count `factor` times."""
    kept = [(module.scaling, dict(module.scaling)) for module in model.modules() if hasattr(module, "lora_A")]
    for scaling, before in kept:
        scaling.update({name: factor * value for name, value in before.items()})
    try:
        return ask()
    finally:
        for scaling, before in kept:
            scaling.update(before)


def slope(policy, base, sampled, hint):
    """How much of the update the sampled tokens' log-probabilities have. Each a list of tensors, one for a completion.

    y = sampled - base against x = policy - base. The base's rounding is in both, so least squares would say 0.5 where there
    is nothing but rounding. hint: the update once more with rounding of its own, half the adapter minus its negative;
    sum(hint y) / sum(hint x) is right at 0 and at 1, whatever the noise (an instrumental variable). The error is that of the
    sum over completions, whose tokens are not independent.

    Returns slope, error (one sigma), tokens, update (its rms, noise apart), noise (rms of what is left) and verdict: "policy",
    "part", "base", "other", or None where the update is too small to tell.
    """
    import torch

    quads = zip(policy, base, sampled, hint, strict=True)
    rows = [[each[s.isfinite()].double() for each in (p - b, s - b, h)] for p, b, s, h in quads]
    x, y, z = (torch.cat(each) for each in zip(*rows, strict=True))
    shared = (z @ x).item() or math.nan  # 0: there is no adapter
    value = (z @ y).item() / shared
    error = math.sqrt(sum((w @ (v - value * u)).item() ** 2 for u, v, w in rows)) / abs(shared)
    update, noise = max(0.0, (z * x).mean().item()) ** 0.5, (y - value * x).square().mean().sqrt().item()
    found = dict(slope=value, error=error, tokens=len(x), update=update, noise=noise, verdict=None)
    if 2 * error < WIDE:
        near = {"policy": abs(value - 1) <= WIDE, "base": abs(value) <= WIDE, "part": 0 < value < 1, "other": True}
        found["verdict"] = next(name for name, is_so in near.items() if is_so)
    return found


VERDICTS = {
    "policy": "vLLM samples from the policy",
    "part": "only a part of the update is in vLLM's weights; the importance correction weighs what it samples",
    "base": "vLLM samples from the model without the update: the weights do not reach it",
    "other": "vLLM samples from another model: another scale, or another adapter",
}


def look(model, ask, sampled):
    """Print the slope, and return what `slope` does. ask(): the model's log p of each completion's tokens, a tensor for
    each; sampled: vLLM's."""
    policy = ask()
    with model.disable_adapter():
        base = ask()
    hint = [plus - minus for plus, minus in zip(scaled(model, 0.5, ask), scaled(model, -0.5, ask), strict=True)]
    found = slope(policy, base, sampled, hint)
    verdict = VERDICTS.get(found["verdict"], "the update is too small to tell")
    told = f"over {found['tokens']:,} tokens (update {found['update']:.4f} nats, noise {found['noise']:.4f})"
    print(f"engine_slope {found['slope']:.2f} +- {found['error']:.2f} {told}: {verdict}")
    return found
