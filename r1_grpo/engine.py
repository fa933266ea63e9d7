"""vLLM beside the trainer on one GPU: whether it fits, how the policy's weights get there, and whether they arrived.

TRL starts the engine (use_vllm, colocate) and asks it for every step's completions; Rollout passes them on. vLLM reads
merged weights W + s B A, in 16 bits, so two questions are ours.

Do both fit?  Twice the weights, the completions' cache, and what a training step takes; else vLLM gives its part of the
memory back while the step is trained (sleep); else our own decoder, with 4-bit weights if need be.

Does it sample from the policy?  Rounded to nearest, W + d is W again wherever d is below half of W's last place: the update
of a whole early run can vanish, and the model's log-probabilities still agree "within bf16". So the merge rounds up or down at
random, right in the mean, and every CHECK updates a slope says how much of the update arrived:

    log p_vLLM - log p_base  =  slope * (log p_policy - log p_base)  + noise        over the sampled tokens
"""

import contextlib
import importlib.util
import math
import os
from functools import partial

from common import device
from common.hub import MARGIN, choose_quantization
from common.speed import fit

WORK = 3e9  # bytes of vLLM beside weights and cache: 4,096 tokens at work, CUDA graphs, what torch does not count
CHECK = 25  # updates between two looks at the slope
WIDE = 0.2  # how far from 1, or from 0, the slope may be to be called so, and two of its sigmas at most


def refusal(args):
    """Why vLLM cannot write the rollouts, as far as the flags say it, or None."""
    whole = {"top_k": 0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    cut = [name for name, value in whole.items() if getattr(args, name) not in (value, value or 0.0)]
    if cut:
        return f"--{cut[0]} cuts the distribution, and the trainer's log-probabilities are of the whole one"
    if args.backend == "unsloth":
        return "Unsloth patches the trainer that TRL's vLLM belongs to (--backend hf)"
    if args.quantization == "4bit":
        return "it samples from merged 16-bit weights, which are not those of a 4-bit model"
    if device.sharded():
        return "FSDP has the weights in pieces"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed (pip install --no-deps -r requirements-vllm.txt)"
    return None


def plan(weights, cache, training, card):
    """(vLLM's share of the card, whether it sleeps while training), or None where both do not fit. All in bytes.

    weights: one copy in 16 bits; cache: the completions' keys and values; training: a step's peak beside the weights.
    """
    mine = weights + cache + WORK
    awake, asleep = weights + training + mine, max(training, mine) + weights
    if asleep + MARGIN > fit.FIT * card:
        return None
    return math.ceil(100 * mine / card) / 100, awake + MARGIN > fit.FIT * card


def sizes(args, path, work):
    """(weights, cache, training) in bytes, for `plan`. work: what a micro-batch takes, as arguments of fit.needs."""
    code = "fast" if args.fused_lora else "plain"
    how = dict(r=args.lora_r, four_bit=False, checkpointing=args.gradient_checkpointing, code=code)
    taken = fit.needs(fit.shape_of(path), **how, **work)
    weights, cache = taken.pop("weights"), taken.pop("cache")
    return weights, 1.1 * cache, sum(taken.values())  # blocks of 16 tokens: the last one of a row is partly empty


def choose(args, path, work):
    """Decide args.rollouts, "vllm" or "hf", and for vLLM the flags of TRL that were not given. Says it in a line."""
    import torch

    if args.rollouts != "hf":
        reason = refusal(args) or _on_this_card(args, path, work)
        if reason and args.rollouts == "vllm":
            raise SystemExit(f"--rollouts vllm: {reason}.")
        if reason and torch.cuda.is_available():
            print(f"rollouts without vLLM: {reason}")
        args.rollouts = "hf" if reason else "vllm"
    args.use_vllm = args.rollouts == "vllm"
    if args.use_vllm:
        args.backend = "hf"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # else it reports the machine and the model to its makers
        share, sleeps = args.vllm_gpu_memory_utilization, args.vllm_enable_sleep_mode
        print(f"rollouts by vLLM, in {share:.0%} of the memory{', given back while a step is trained' * sleeps}")


def _on_this_card(args, path, work):
    """Why vLLM does not run on this card, or None after setting TRL's flags for it."""
    import torch

    if not torch.cuda.is_available():
        return f"it needs an NVIDIA GPU. {device.no_cuda()}"
    if args.quantization == "auto" and choose_quantization("auto", path):
        return "the model fits in 4 bits only"
    needed, card = sizes(args, path, work), device.card_bytes()
    found = plan(*needed, card)
    if not found:
        return f"two 16-bit copies of {needed[0] / 1e9:.1f} GB and a training step do not fit in {card / 1e9:.0f} GB"
    length = args.max_prompt_tokens + args.max_completion_length
    chosen = dict(vllm_gpu_memory_utilization=found[0], vllm_enable_sleep_mode=found[1], vllm_max_model_length=length)
    vars(args).update({name: value for name, value in chosen.items() if name not in args.given})
    return None


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
    """(name, weight) of a PEFT model as its base model names them, with the active adapter added where there is one.

    everything: the layers without an adapter, too. The frozen weights are only read: PEFT's merge and unmerge add and
    subtract in their 16 bits, and leave the rounding of every step in them.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.named_parameters():
        if model.prefix in name:
            continue
        layer, _, kind = name.rpartition(".base_layer.")
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if kind == "weight" and layer in layers:
            update = sum(layers[layer].get_delta_weight(adapter).float() for adapter in layers[layer].active_adapters)
            yield plain, round_at_random(parameter.data.float() + update, parameter.dtype, generator)
        elif everything:
            yield plain, parameter.data


def sync(trainer):
    """Give vLLM the policy of this step, in the place of TRL's sync_weights: one call for all layers, and only those that
    changed; TRL calls for each of them, which at 7B is 339 times through vLLM's table of names."""
    import torch

    engine = trainer.vllm_generation
    asleep = engine.enable_sleep_mode and engine._llm_weights_sleeping
    if asleep:  # what sleeps has forgotten its weights
        device.empty_cache()
        engine.llm.wake_up(tags=["weights"])
        engine._llm_weights_sleeping = False
    model = trainer.accelerator.unwrap_model(trainer.model)
    generator = torch.Generator(model.device).manual_seed(trainer.state.global_step)  # training draws none of its own
    with torch.no_grad():
        weights = merged(model, asleep, generator)
        engine.llm.llm_engine.model_executor.driver_worker.model_runner.model.load_weights(weights)
    engine.llm.reset_prefix_cache()


def make_room(model):
    """Before vLLM takes its share: our decoder's caches, from measuring the base model, go."""
    model.__dict__.pop("_decoders", None)
    device.empty_cache()


def start(trainer, rollout):
    """Let a trainer that TRL has given a colocated vLLM have its weights from `sync`, and look at the slope."""
    if trainer.vllm_generation.mode == "colocate":
        trainer.vllm_generation.sync_weights = partial(sync, trainer)
    rollout.check = look


# -- is it the policy that was sampled?


def logprobs(model, prompts, completions, temperature):
    """log p of each completion's tokens under the model, one tensor for each, float32. A row at a time: no padding."""
    import torch

    made = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=len(completion) + 1, use_cache=False).logits[0, :-1]
        chosen = ids[0, -len(completion) :, None]
        made.append((logits.float() / temperature).log_softmax(-1).gather(1, chosen)[:, 0].cpu())
    return made


@contextlib.contextmanager
def scaled(model, factor):
    """A PEFT model whose active adapter counts `factor` times."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    kept = [dict(module.scaling) for module in layers]
    for module in layers:
        for name in module.active_adapters:
            module.scaling[name] *= factor
    try:
        yield
    finally:
        for module, scaling in zip(layers, kept, strict=True):
            module.scaling.update(scaling)


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

    rows = []
    for p, b, s, h in zip(policy, base, sampled, hint, strict=True):
        known = s.isfinite()
        rows.append([each[known].double() for each in (p - b, s - b, h)])
    x, y, z = (torch.cat(each) for each in zip(*rows, strict=True))
    found = dict(slope=math.nan, error=math.nan, tokens=len(x), update=0.0, noise=math.nan, verdict=None)
    shared = (z @ x).item()
    if not shared:
        return found
    value = (z @ y).item() / shared
    error = math.sqrt(sum((w @ (v - value * u)).item() ** 2 for u, v, w in rows)) / abs(shared)
    noise = (y - value * x).square().mean().sqrt().item()
    found |= dict(slope=value, error=error, update=max(shared / len(x), 0) ** 0.5, noise=noise)
    if 2 * error < WIDE:
        near = {"policy": abs(value - 1) <= WIDE, "base": abs(value) <= WIDE, "part": 0 < value < 1, "other": True}
        found["verdict"] = next(name for name, is_so in near.items() if is_so)
    return found


VERDICTS = {
    "policy": "vLLM samples from the policy",
    "part": "only a part of the update is in vLLM's weights; the importance correction weighs what it samples",
    "base": "vLLM samples from the model without the update: the weights do not reach it",
    "other": "vLLM samples from another model: another scale, or another adapter",
    None: "the update is too small to tell",
}


def look(trainer, prompts, completions, sampled):
    """Every CHECK updates: print the slope, and log it as engine_slope."""
    import torch

    from common.models import inference

    if trainer.state.global_step % CHECK:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = [n for n, row in enumerate(completions) if row]
    prompts, completions = [prompts[n] for n in rows], [completions[n] for n in rows]
    sampled = [torch.tensor([math.nan if each is None else each for each in sampled[n]]) for n in rows]
    with torch.no_grad(), inference(model, "hf"):
        ask = partial(logprobs, model, prompts, completions, trainer.temperature)
        policy = ask()
        with model.disable_adapter():
            base = ask()
        with scaled(model, 0.5):
            half = ask()
        with scaled(model, -0.5):
            hint = [plus - minus for plus, minus in zip(half, ask(), strict=True)]
    found = slope(policy, base, sampled, hint)
    print(
        f"engine_slope {found['slope']:.2f} +- {found['error']:.2f} over {found['tokens']:,} tokens (update "
        f"{found['update']:.4f} nats, noise {found['noise']:.4f}): {VERDICTS[found['verdict']]}"
    )
    if found["verdict"]:
        trainer._metrics["train"]["engine_slope"].append(found["slope"])
        trainer._metrics["train"]["engine_slope_tokens"].append(found["tokens"])
    return found
