"""PPO (proximal policy optimisation, arXiv 1707.06347) for RLHF, on one backbone.

RLHF has four models: the policy that is trained, the reference that it may not leave too far, the reward model that
judges, the value model that guesses the judgement in advance. Here they are one frozen SFT backbone and three LoRAs:

    policy     backbone + LoRA "policy" + lm_head            trained
    value      backbone + LoRA "value"  + a linear head      trained, begins as a copy of the reward model
    reward     backbone + LoRA "reward" + its linear head    frozen
    reference  backbone with all LoRAs off                   frozen, costs nothing

One update: (1) sample answers; (2) reward of token t: r_t = -kl_coef (log p(t) - log p_ref(t)), the last one plus the
score of the answer; (3) advantages by GAE: how much better than the value model expected; (4) some passes over these
samples that make better-than-expected tokens likelier, clipped where a token's probability has changed by over 20%.

Where vLLM samples (--rollouts), rho in (4) is still p / p_old, both of the training's forward pass, so that it begins at 1; what
vLLM's q is off from p_old weighs each token's loss by min(p_old / q, 3) (sampler.py says why).

Read from top to bottom: the formulas, the backbone, the rollout, the update, the loop.

One GPU:            python train_ppo.py --model outputs/rlhf_ppo/merged/RUN --reward outputs/rlhf_ppo/reward/RUN
A minute, CPU:      python train_reward.py --demo && python train_ppo.py --demo
Override anything:  python train_ppo.py --model MODEL --reward RUN --kl_coef 0.1 --updates 200
"""

import contextlib
import math
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sampler
from common import contract, device, models, screen
from common.cli import LINEAR, arg, parse
from common.paths import DEMO_MODEL, TASK_DIR, command
from data import DataArgs, encode_prompts, load_splits, prompts_of_update
from estimate import minibatch_size, rows_at_once, show_estimate, work_beside
from prompt import cut_at_eos, rm_ids
from stage import LoopArgs, check_quantization, ends, fingerprint, ready, show_course, show_examples, tidy

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    updates=100,  # rollouts; each is followed by epochs x minibatches optimizer steps
    rollout_size=64,  # answers per update; fewer make the advantages noisy, more make the samples old
    epochs=2,  # passes over a rollout; more learn faster until the clipping stops them
    minibatches=2,  # optimizer steps per pass
    micro_batch_size=0,  # answers at once in forward and backward; 0: as many as fit. Changes speed, not the result
    max_new_tokens=256,  # an answer that has no end by then is judged as it is and pays eos_penalty
    temperature=1.0,  # also divides the logits in training: what is scored is the distribution that was sampled
    learning_rate=1e-5,  # of the policy's LoRA
    value_learning_rate=5e-5,  # the value model may follow faster: its errors become the policy's noise
    kl_coef=0.05,  # price of one nat of KL in units of the score's standard deviation
    kl_target=0.0,  # above 0: kl_coef is adapted until the KL of an answer is this many nats
    gamma=1.0,  # a token's share in the score does not fade with its distance from the end
    gae_lambda=0.95,  # 1: the real outcome, noisy; 0: what the value model believes, biased
    clip=0.2,  # how far a token's probability may move in one rollout's updates, as a ratio
    value_clip=0.2,  # the same for values; presumes normalised scores, 0 turns it off
    max_grad_norm=1.0,  # for the policy and for the value model separately: one must not drown the other
    eos_penalty=1.0,  # off the score of an answer without an end: it must not pay to be cut off
    value_warmup=0,  # first updates that train the value model only; 5-10 where it does not begin as the reward model
    lora_r=16,  # of the policy; the value model's is the reward model's
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    save_every=10,  # updates that a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    snapshot_every=0,  # above 0: keep the policy's adapter every so many updates, for compare.py
    seed=3407,
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    data=str(HERE / "sample" / "gold.jsonl"),
    updates=7,
    rollout_size=16,
    max_new_tokens=24,
    learning_rate=1e-3,  # seven updates only: a small model bears, and needs, larger steps
    value_learning_rate=5e-4,
    kl_coef=0.15,  # at 0.05 one seed in three learned to say next to nothing
    eos_penalty=0.5,  # at first no answer has an end: at 1 the first thing learned is to say next to nothing
    show_answers=12,  # all that are held out
)


@dataclass
class Args(LoopArgs, DataArgs):
    reward: str | None = arg(None, "the reward model's folder (default: the newest run of train_reward.py)")
    gradient_checkpointing: bool = arg(False, "keep a layer's input only and compute it again: less memory, slower")
    show_answers: int = arg(4, "held-out prompts answered before and after")
    rollouts: Literal["auto", "vllm", "hf"] = arg("auto", "auto: vLLM where it is installed and fits, else our decoder")
    estimate: bool = arg(False, "print which cards the run fits on, what would make it fit, and end")


# -- the formulas, all on tensors (B, T): B answers of up to T tokens, mask 1 at an answer's tokens, eos included


def response_mask(responses):
    """1 up to and with each answer's eos (all of it where there is none). By position and not by `ids != pad`: where
    pad and eos are one token, that would mask the eos, the only token that has a score."""
    import torch

    mask = torch.zeros(len(responses), max(map(len, responses)))
    for row, response in zip(mask, responses, strict=True):
        row[: len(response)] = 1
    return mask


def token_rewards(logprobs, ref_logprobs, scores, mask, kl_coef):
    """-kl_coef (log p - log p_ref) at every token, plus the score at the last real one (B, T).

    The KL estimate is the plain difference (k1): in a reward it must be right on average, and may be negative once.
    """
    rewards = -kl_coef * (logprobs - ref_logprobs) * mask
    last = mask.sum(1).long() - 1  # not T - 1: behind the eos is padding, which has no gradient
    return rewards.scatter_add(1, last[:, None], scores[:, None])


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (arXiv 1506.02438): (advantages, returns), both 0 at padding.

        delta_t = r_t + gamma V_{t+1} - V_t          A_t = delta_t + gamma lam A_{t+1}

    After the last token nothing follows: no V is added there, also where the answer was cut off at its longest, which is
    what eos_penalty is for. Returns are A + V with A before any normalisation: they have the score's units.
    """
    advantages, ahead, next_value = rewards.new_zeros(rewards.shape), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = (delta + gamma * lam * ahead) * mask[:, t]  # 0 at padding, so that the last token's A sees none of it
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = ahead
    return advantages, (advantages + values) * mask


def whiten(x, mask):
    """x with mean 0 and variance 1 over the real tokens of the WHOLE rollout. Over a micro-batch each would be compared
    with its neighbours only, and the result would depend on how memory made us cut."""
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = ((x - mean) ** 2 * mask).sum() / (count - 1).clamp(min=1)
    return (x - mean) * (variance + 1e-8).rsqrt() * mask


def policy_losses(logprobs, old, advantages, clip):
    """Clipped surrogate of each token: -min(ratio A, clip(ratio) A). The minimum takes away the reward for moving further
    than `clip`, and never the penalty for having moved the wrong way."""
    ratio = (logprobs - old).exp()
    return -(advantages * ratio).minimum(advantages * ratio.clamp(1 - clip, 1 + clip))


def value_losses(values, old, returns, clip):
    """0.5 (V - R)^2 of each token, the larger one of V and of V held within `clip` of what it was at the rollout."""
    loss = (values - returns) ** 2
    if clip:
        loss = loss.maximum((old + (values - old).clamp(-clip, clip) - returns) ** 2)
    return 0.5 * loss


def explained_variance(values, returns):
    """1: the value model knows every return; 0: no better than a constant; below: worse than one."""
    variance = returns.var(unbiased=False)
    return (1 - (returns - values).var(unbiased=False) / variance.clamp(min=1e-8)).item()


# -- the backbone with its three adapters


class Backbone:
    """One frozen model; `use` says which adapter is on. Trained: policy, value and the value head, in float32."""

    def __init__(self, path, reward_folder, reward, args):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        from backbone import add_adapter, load_backbone
        from common.finite import GradientGuard
        from common.speed import lora
        from scoring import reward_head

        self.guard, self.sampler = GradientGuard(), None  # sampler: vLLM, where main() has opened it
        set_seed(args.seed)  # LoRA's A is random
        # Dropout 0: with it the same tokens would have other log-probabilities in the update than in the rollout.
        shared = dict(task_type="CAUSAL_LM", lora_dropout=0.0, target_modules=LINEAR)
        policy = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha, **shared)
        self.model = get_peft_model(load_backbone(path, args), policy, "policy")
        add_adapter(self.model, "reward", reward_folder)
        judge = self.model.peft_config["reward"]
        self.model.add_adapter("value", LoraConfig(r=judge.r, lora_alpha=judge.lora_alpha, **shared))
        self.head = reward_head(reward_folder, self.model.device)
        self.mean, self.std = reward["sft_mean"], reward["sft_std"]
        # The value model begins as the reward model, in the same units: (score - mean) / std is linear, too.
        self.value_head = torch.nn.Linear(len(self.head), 1, device=self.model.device)
        self.value_head.weight.data.copy_(self.head[None] / self.std)
        self.value_head.bias.data.fill_(-self.mean / self.std)
        for name, parameter in self.model.named_parameters():
            if ".value." in name:
                parameter.data.copy_(self.model.get_parameter(name.replace(".value.", ".reward.")).data)
        lora.fuse(self.model, mlp=False)  # half of the kernels; W x alone stays W x, so that KL is exactly 0 at first
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        named = list(self.model.named_parameters())
        self.policy_parameters = {n: p for n, p in named if ".policy." in n}
        self.value_parameters = {n: p for n, p in named if ".value." in n}
        self.value_parameters |= {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}
        self.use("policy")

    def use(self, name):
        """Switch the adapter. PEFT turns requires_grad off for all adapters but the active one, so a graph must have had
        its backward pass before the switch: a joint backward afterwards leaves the first adapter without gradients, and
        no error says so. The reward adapter is switched on frozen."""
        self.model.set_adapter(name, inference_mode=name == "reward")

    @contextlib.contextmanager
    def reference(self):
        """All adapters off. Leaving PEFT's context makes the active adapter trainable: it has to be the policy, or the
        judge would begin to learn."""
        self.use("policy")
        with self.model.disable_adapter():
            yield

    def values(self, prompts, responses, pad):
        """V before every response token, flat (N,): what score does the value model expect at this point? The adapter
        "value" must be the active one."""
        from backbone import response_states

        return self.value_head(response_states(self.model, prompts, responses, pad).float())[:, 0]


# -- one rollout


def slices(count, size):
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def fill(mask, rows, flat):
    """Flat values of some rows' tokens as a (len(rows), T) tensor, 0 at padding."""
    mask = mask[rows]
    return mask.new_zeros(mask.shape).masked_scatter(mask.bool(), flat)


def rollout(backbone, tokenizer, prompts, args, kl_coef):
    """Sample answers to prompts (lists of token ids) and compute all that the update needs, as a dict.

    No dropout, no gradients, eval mode; the forward passes use the same micro-batches as the update's first pass.
    """
    import torch

    from backbone import WHOLE, answers_of, response_logprobs
    from scoring import score_rows

    began, model = time.time(), backbone.model.eval()
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    # The whole distribution: with top_k or top_p the sampled one would not be the one that is scored.
    how = WHOLE | dict(temperature=args.temperature, sampler=backbone.sampler)
    responses = answers_of(model, "policy", tokenizer, prompts, args.max_new_tokens, len(prompts), **how)
    responses = [cut_at_eos(response, eos) for response in responses]
    sampled = time.time() - began
    backbone.use("policy")
    mask = response_mask(responses).to(model.device)
    batches = slices(len(prompts), args.micro_batch_size)

    def each(function):
        with torch.no_grad():
            return [function([prompts[i] for i in rows], [responses[i] for i in rows]) for rows in batches]

    def whole(parts):
        return torch.cat([fill(mask, rows, flat) for rows, flat in zip(batches, parts, strict=True)])

    policy = each(lambda p, r: response_logprobs(model, p, r, pad, args.temperature, entropy=True))
    logprobs, entropy = whole([part[0] for part in policy]), whole([part[1] for part in policy])
    with backbone.reference():
        ref_logprobs = whole(each(lambda p, r: response_logprobs(model, p, r, pad, args.temperature)))
    backbone.use("value")
    values = whole(each(lambda p, r: backbone.values(p, r, pad)))
    backbone.use("reward")
    rows = [rm_ids(prompt, response, eos) for prompt, response in zip(prompts, responses, strict=True)]
    raw = torch.tensor(score_rows(model, backbone.head, rows, pad, args.micro_batch_size), device=model.device)
    backbone.use("policy")
    # In units of the SFT model's own spread; clamped, since one absurd score would be the whole gradient.
    scores = ((raw - backbone.mean) / backbone.std).clamp(-10, 10)
    ended = torch.tensor([response[-1] == eos for response in responses], device=model.device)
    rewards = token_rewards(logprobs, ref_logprobs, scores - args.eos_penalty * ~ended, mask, kl_coef)
    advantages, returns = gae(rewards, values, mask, args.gamma, args.gae_lambda)
    d = (logprobs - ref_logprobs) * mask
    lengths = mask.sum(1)
    metrics = {
        "score": scores.mean(), "score_std": scores.std(unbiased=False), "score_raw": raw.mean(),
        "kl": d.sum(1).mean(),  # nats per answer; an average of k1, unbiased
        "kl_k3": (((-d).exp() - 1 + d) * mask).sum(1).mean(),  # never negative, less noisy
        "rlhf_reward": rewards.sum(1).mean(),  # what is maximised: score - penalty - kl_coef KL
        "entropy": (entropy * mask).sum() / mask.sum(),
        "length": lengths.mean(), "eos_rate": ended.float().mean(),
    }  # fmt: skip
    metrics = {name: value.item() for name, value in metrics.items()}
    real = mask.bool()
    metrics["explained_variance"] = explained_variance(values[real], returns[real])
    told = prompts, responses, logprobs, mask, args.temperature, pad, args.micro_batch_size
    correction, seen = sampler.correction(backbone.sampler, model, *told)  # p_old / q: vLLM samples from q
    metrics |= seen | {
        "s_generate": sampled,
        "s_rollout": time.time() - began,
        "tokens_per_s": lengths.sum().item() / sampled,
    }
    made = dict(prompts=prompts, responses=responses, mask=mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    made |= dict(values=values, rewards=rewards, returns=returns, scores=scores, metrics=metrics, correction=correction)
    return made | {"advantages": whiten(advantages, mask)}


# -- one update


def optimize(backbone, optimizer, roll, pad, args, update):
    """Passes over a rollout: epochs x minibatches optimizer steps. Returns metrics, means over the steps."""
    from torch.nn.utils import clip_grad_norm_

    backbone.model.train()  # gradient checkpointing needs it; without dropout both modes compute the same
    began, count, seen = time.time(), len(roll["prompts"]), []
    size = math.ceil(count / args.minibatches)
    for epoch in range(args.epochs):
        order = list(range(count))
        if epoch:  # the prompts came in random order: the first pass keeps it, has the rollout's very micro-batches,
            random.Random(f"{args.seed}-{update}-{epoch}").shuffle(order)  # and its first ratio is 1, not nearly 1
        for minibatch in (order[start : start + size] for start in range(0, count, size)):
            step = minibatch_gradients(backbone, roll, minibatch, pad, args, update > args.value_warmup)
            for name, parameters in (("policy", backbone.policy_parameters), ("value", backbone.value_parameters)):
                step[f"grad_{name}"] = clip_grad_norm_(parameters.values(), args.max_grad_norm or math.inf)
            if backbone.guard.takes(step["grad_policy"] + step["grad_value"], update):
                optimizer.step()
            optimizer.zero_grad()
            seen.append(step)
    return summary(seen) | {"s_update": time.time() - began}


def minibatch_gradients(backbone, roll, minibatch, pad, args, policy_on=True):
    """Backward passes of one minibatch (indices into the rollout): first all of the policy's, then all of the value
    model's, so that adapters are switched twice per minibatch. Each micro-batch adds its sum over tokens divided by the
    minibatch's tokens: the same gradient however it is cut."""
    from backbone import response_logprobs

    batches = [[minibatch[i] for i in rows] for rows in slices(len(minibatch), args.micro_batch_size)]
    tokens = roll["mask"][minibatch].sum()
    sums = dict.fromkeys(("policy_loss", "approx_kl", "clip_fraction", "value_loss", "value_clip_fraction"), 0.0)
    sums |= {"ratio_max": tokens.new_ones(()), "ratio_error": tokens.new_zeros(())}

    def part(rows):
        """Prompts and answers of some rows, and what the rollout noted at their tokens, flat (N,)."""
        mask = roll["mask"][rows].bool()
        texts = [roll["prompts"][i] for i in rows], [roll["responses"][i] for i in rows]
        return texts, lambda name: roll[name][rows][mask]

    backbone.use("policy")
    for rows in batches if policy_on else ():
        texts, noted = part(rows)
        logprobs, old = response_logprobs(backbone.model, *texts, pad, args.temperature), noted("logprobs")
        losses = policy_losses(logprobs, old, noted("advantages"), args.clip)
        loss = (noted("correction") * losses).sum() / tokens
        loss.backward()
        d = (logprobs - old).detach()
        ratio = d.exp()
        sums["policy_loss"] += loss.detach()
        sums["approx_kl"] += (ratio - 1 - d).sum() / tokens  # from the policy that sampled, k3
        sums["clip_fraction"] += ((ratio - 1).abs() > args.clip).sum() / tokens
        sums["ratio_max"] = sums["ratio_max"].maximum(ratio.max())
        sums["ratio_error"] = sums["ratio_error"].maximum((ratio - 1).abs().max())
    backbone.use("value")  # all of the policy's graphs have had their backward pass
    for rows in batches:
        texts, noted = part(rows)
        values, old = backbone.values(*texts, pad), noted("values")
        loss = value_losses(values, old, noted("returns"), args.value_clip).sum() / tokens
        loss.backward()
        sums["value_loss"] += loss.detach()
        sums["value_clip_fraction"] += ((values - old).abs() > (args.value_clip or math.inf)).sum() / tokens
    backbone.use("policy")
    return sums


def summary(steps):
    """Means over an update's steps; the largest ratio of all, and the ratio's error in the first, which must be 0."""
    steps = [{name: float(value) for name, value in step.items()} for step in steps]  # the one wait for the GPU
    means = {name: statistics.fmean(step[name] for step in steps) for name in steps[0]}
    return means | {"ratio_max": max(step["ratio_max"] for step in steps), "ratio_error": steps[0]["ratio_error"]}


def adapted(kl_coef, kl, target, size, horizon=10_000):
    """The controller of arXiv 1909.08593: too much KL makes KL dearer, by at most 20% in `horizon` samples."""
    return kl_coef * (1 + max(-0.2, min(0.2, kl / target - 1)) * size / horizon) if target else kl_coef


# -- the loop


# Title of a plot: metric -> its label.
PANELS = {
    "score, in stds of the SFT model's": {"score": "score", "rlhf_reward": "rlhf_reward", "eval_score": "held out"},
    "KL from the reference, nats per answer": {"kl": "kl", "kl_k3": "kl_k3"},
    "entropy, nats per token": {"entropy": "entropy"},
    "length, tokens": {"length": "length"},
    "explained variance of the value model": {"explained_variance": "explained_variance"},
    "share": {name: name for name in ("eos_rate", "clip_fraction", "value_clip_fraction")},
}


def train(backbone, tokenizer, prompts, args, run):
    """Roll out, optimise, log, save; goes on from run.checkpoint, bit for bit."""
    import torch

    from backbone import save_adapter
    from common.finite import check_weights

    trained = backbone.policy_parameters | backbone.value_parameters
    groups = [
        {"params": list(backbone.policy_parameters.values()), "lr": args.learning_rate},
        {"params": list(backbone.value_parameters.values()), "lr": args.value_learning_rate},
    ]
    # Explicit lists, since requires_grad follows the active adapter. eps: late, tiny gradients stay tiny steps.
    optimizer = torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0)
    start, kl_coef, pad = 0, args.kl_coef, tokenizer.pad_token_id
    if state := run.load_state():
        start, kl_coef = state["step"], state["kl_coef"]
        optimizer.load_state_dict(state["optimizer"])
        for name, parameter in trained.items():
            parameter.data.copy_(state["weights"][name])
    steps = screen.Steps("PPO", args.updates, start)
    for update in range(start + 1, args.updates + 1):
        batch = prompts_of_update(prompts, update, args.rollout_size, args.seed)
        roll = rollout(backbone, tokenizer, batch, args, kl_coef)
        learnt = optimize(backbone, optimizer, roll, pad, args, update)
        metrics = roll["metrics"] | learnt | {"kl_coef": kl_coef} | device.peak_memory()
        kl_coef = adapted(kl_coef, metrics["kl"], args.kl_target, args.rollout_size)
        run.log(update, tidy(metrics))
        steps.log(update, metrics, metrics["tokens_per_s"])
        if args.snapshot_every and update % args.snapshot_every == 0:
            save_adapter(backbone.model, "policy", tokenizer, run.folder / f"snapshot-{update}")
        if update % args.save_every == 0 or run.stop:
            check_weights(trained.items(), run.folder)
            weights = {name: parameter.detach().cpu() for name, parameter in trained.items()}
            state = {"weights": weights, "optimizer": optimizer.state_dict(), "kl_coef": kl_coef}
            run.save_state(update, state | {"mean": backbone.mean, "std": backbone.std})
            run.plot("ppo.png", PANELS, more=ends(run, args.updates))
        run.end_if_stopped()
    steps.close()


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, argv=argv)
    if args.estimate:
        return show_estimate(args)
    check_quantization(args)
    sampler.check(args)
    train_pairs, eval_pairs = load_splits(args)
    path, reward = ready(args)
    tokenizer = models.load_tokenizer(path)
    _, prompts = encode_prompts(train_pairs, tokenizer, args.max_prompt_length, "training prompts")
    shown, ids = encode_prompts(eval_pairs[: args.show_answers], tokenizer, args.max_prompt_length, "held-out prompts")

    from backbone import save_adapter  # torch is loaded from here on: what can be wrong above has been said
    from common import runs
    from engine import make_room
    from scoring import examples

    inputs = {"model": fingerprint(path), "reward": reward, "data": runs.digest(prompts)}
    run = runs.Run(args, stage="ppo", inputs=inputs, marker="state.pt")
    if run.finished:
        return run.folder
    # After the identity is taken: a run may go on on another card, with other pieces of the same batch.
    longest = max(map(len, prompts)) + args.max_new_tokens
    found = sampler.choose(args, path, longest, args.rollout_size, **work_beside(args, longest))
    args.micro_batch_size = args.micro_batch_size or rows_at_once(path, longest, minibatch_size(args), args, found)
    with run:
        run.note(micro_batch_size=args.micro_batch_size, rollouts=args.rollouts)
        backbone = Backbone(path, args.reward, reward, args)
        sizes = [
            sum(p.numel() for p in each.values()) for each in (backbone.policy_parameters, backbone.value_parameters)
        ]
        print(
            f"plan: {len(prompts):,} prompts; {args.updates:,} updates of {args.rollout_size} answers of up to "
            f"{args.max_new_tokens} tokens, {args.epochs * args.minibatches} optimizer steps each, "
            f"{args.micro_batch_size} answers at once\n"
            f"trained: policy {sizes[0]:,}, value {sizes[1]:,} parameters, on one frozen backbone"
        )
        show = backbone.model, "policy", backbone.head, reward, tokenizer, ids, args.max_new_tokens
        if not run.checkpoint:
            run.note(before=examples(*show))
        make_room(backbone.model)
        with sampler.opened(found, path, backbone.model.dtype, longest, args.rollout_size, args.seed, True) as vllm:
            backbone.sampler = vllm
            train(backbone, tokenizer, prompts, args, run)
            backbone.sampler = None
        save_adapter(backbone.model, "policy", tokenizer, run.folder)
        run.note_weights(backbone.model)
        contract.write(run.folder, TASK_DIR.name, tokenizer, run.record, inputs["model"])
        run.note(after=examples(*show))
        run.plot("ppo.png", PANELS, more=ends(run, args.updates))
    show_examples(shown, before=run.record["before"], after=run.record["after"])
    show_course(run.metrics(), ("score", "rlhf_reward", "kl", "length", "eos_rate"))
    print(f"Ask it: {command('infer.py', '--ppo', run.folder, '--reward', Path(args.reward))}")
    print(contract.next_steps(run.folder))
    return run.folder


if __name__ == "__main__":
    main()
