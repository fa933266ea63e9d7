"""TRL's vLLM beside the trainer on one GPU: when it is taken, and how it gets the weights of each step.

TRL starts the engine (use_vllm, colocate) and asks it for every step's completions; Rollout passes them on. What is not
TRL's, whether both fit, the merge and the slope that says what arrived, is in common/speed/engine.py. r1_grpo and rlhf_ppo
have this same file.
"""

import math
from functools import partial

from common import device
from common.hub import choose_quantization
from common.speed import engine as beside
from common.speed import fit


def refusal(args):
    """Why vLLM cannot write the rollouts, as far as the flags say it, or None."""
    whole = {"top_k": 0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    cut = [name for name, value in whole.items() if getattr(args, name) not in (value, value or 0.0)]
    if cut:
        return f"--{cut[0]} cuts the distribution, and the trainer's log-probabilities are of the whole one"
    if args.backend == "unsloth":
        return "Unsloth patches the trainer that TRL's vLLM belongs to (--backend hf)"
    if device.sharded():
        return "FSDP has the weights in pieces"
    return beside.refusal(args)


def choose(args, path, work):
    """Decide args.rollouts, "vllm" or "hf", and for vLLM the flags of TRL that were not given. Says it in a line.

    work: what a micro-batch takes, as arguments of fit.needs.
    """
    import torch

    reason = args.rollouts != "hf" and refusal(args)
    if reason is None and torch.cuda.is_available() and args.quantization == "auto":
        reason = "the model fits in 4 bits only" if choose_quantization("auto", path) else None
    found = beside.choose(args, path, reason, **_training(args), **work)
    args.use_vllm = found is not None
    if found:
        length = work["tokens"] // args.per_device_train_batch_size
        chosen = dict(zip(("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"), found, strict=True))
        chosen |= dict(vllm_max_model_length=length)
        vars(args).update({name: value for name, value in chosen.items() if name not in args.given})
        args.backend = "hf"
        share, sleeps = args.vllm_gpu_memory_utilization, args.vllm_enable_sleep_mode
        print(f"rollouts by vLLM, in {share:.0%} of the memory{', given back while a step is trained' * sleeps}")


def _training(args):
    code = "fast" if getattr(args, "fused_lora", False) else "plain"
    return dict(r=args.lora_r, checkpointing=args.gradient_checkpointing, code=code)


def on_cards(args, work):
    """--estimate, below its table: on which cards vLLM fits beside the training. work: as in `choose`."""
    if args.rollouts == "hf" or args.quantization == "4bit":
        return
    taken = fit.needs(fit.shape_of(args.model), four_bit=False, **_training(args), **work)
    weights, cache, said = taken.pop("weights"), 1.1 * taken.pop("cache"), []
    for card in fit.CARDS:
        found = beside.plan(weights, cache, sum(taken.values()), card * 1e9)
        share = found and f"{found[0]:.0%}{', given back while a step is trained' * found[1]}"
        said.append(f"{card}: {share or 'no'}")
    print(f"\nvLLM beside it, with 16-bit weights of its own (--rollouts), and its share of a card: {'; '.join(said)}")


def sync(trainer):
    """Give vLLM the policy of this step, in the place of TRL's sync_weights: one call for all layers, and only those that
    changed; TRL calls for each of them, which at 7B is 339 times through vLLM's table of names."""
    engine = trainer.vllm_generation
    asleep = engine.enable_sleep_mode and engine._llm_weights_sleeping
    if asleep:  # what sleeps has forgotten its weights
        device.empty_cache()
        engine.llm.wake_up(tags=["weights"])
        engine._llm_weights_sleeping = False
    beside.give(engine.llm, trainer.accelerator.unwrap_model(trainer.model), asleep, trainer.state.global_step)


def make_room(model):
    """Before vLLM takes its share: our decoder's caches, from measuring the base model, go."""
    model.__dict__.pop("_decoders", None)
    device.empty_cache()


def start(trainer, rollout):
    """Let a trainer that TRL has given a colocated vLLM have its weights from `sync`, and look at the slope."""
    if trainer.vllm_generation.mode == "colocate":
        trainer.vllm_generation.sync_weights = partial(sync, trainer)
    rollout.check = look


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


def look(trainer, prompts, completions, sampled):
    """Every beside.CHECK updates: print the slope, and log it as engine_slope."""
    import torch

    from common.models import inference

    if trainer.state.global_step % beside.CHECK:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = [n for n, row in enumerate(completions) if row]
    prompts, completions = [prompts[n] for n in rows], [completions[n] for n in rows]
    sampled = [torch.tensor([math.nan if each is None else each for each in sampled[n]]) for n in rows]
    with torch.no_grad(), inference(model, "hf"):
        found = beside.look(model, partial(logprobs, model, prompts, completions, trainer.temperature), sampled)
    if found["verdict"]:
        trainer._metrics["train"]["engine_slope"].append(found["slope"])
        trainer._metrics["train"]["engine_slope_tokens"].append(found["tokens"])
    return found
