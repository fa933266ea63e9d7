"""Answers by vLLM for the loops that are ours: PPO's rollouts, best-of-n, what compare.py measures.

One vllm.LLM beside the backbone: prompt ids in, answer ids out, by the merged weights of the adapter that is on
(common/speed/engine.py: whether both fit, the merge, the slope). GRPO's belongs to TRL (engine.py).

vLLM samples from q, the policy as its kernels and its 16-bit merge round it. PPO's rho stays p / p_old with p_old computed
again by the training's forward pass: so the first ratio is 1, and the clip counts only what the update itself has moved.
What q is off is weighed apart: each token's loss counts min(p_old / q, CAP) times. That is decoupled PPO (arXiv 2110.00641), with
q as the behaviour policy and p_old as the proximal one, and it is what TRL's importance correction does in r1_grpo.
"""

import contextlib
import os

from common import device
from common.speed import engine as beside

CAP = 3.0  # TRL's vllm_importance_sampling_clip_max: one token that q nearly ruled out must not be the whole gradient
ROWS = 256  # answers that vLLM works on at once; more wait


def check(args):
    """Stop, before anything loads, where --rollouts vllm cannot be."""
    if args.rollouts == "vllm" and (reason := beside.refusal(args)):
        raise SystemExit(f"--rollouts vllm: {reason}.")


def choose(args, path, length, rows, **work):
    """Decide args.rollouts. Returns what `opened` takes: vLLM's share of the card and whether it sleeps, or None.

    length: tokens of prompt and answer; rows: answers that are asked for at once. work: what training takes, as arguments of
    fit.needs; by default what the reward model takes to judge 16 answers.
    """
    half = device.has_bf16() if args.bf16 is None else args.bf16
    judging = dict(tokens=16 * length, r=16, checkpointing=True, code="plain")
    work = judging | work | dict(cached=min(rows, ROWS) * length)
    found = beside.choose(
        args, path, None if half else "it samples in bfloat16, and the backbone is in float32", **work
    )
    if found:
        print(f"rollouts by vLLM, in {found[0]:.0%} of the memory{', given back in between' * found[1]}")
    return found


@contextlib.contextmanager
def opened(found, path, dtype, length, rows, seed, scored=False):
    """A Sampler while the block runs, or None where `choose` found none. scored: log-probabilities, too."""
    if not found:
        yield None
        return
    sampler = Sampler(found, path, dtype, length, rows, seed, scored)
    try:
        yield sampler
    finally:
        sampler.close()


class Sampler:
    """vLLM with the weights in `path`, or those that `write` gives it. logprobs: where scored, of the last answers."""

    def __init__(self, found, path, dtype, length, rows, seed, scored):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over within this process
        from vllm import LLM

        device.empty_cache()
        share, self.sleeps = found
        self.llm = LLM(
            model=str(path),
            skip_tokenizer_init=True,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=length,
            max_num_seqs=min(rows, ROWS),
            max_num_batched_tokens=4096,
            gpu_memory_utilization=share,
            enable_sleep_mode=self.sleeps,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled, temperature and all
            seed=seed,
        )
        self.scored, self.logprobs, self.rollouts = scored, None, 0
        self.plain, self.asleep = True, False  # plain: it has the weights in `path`
        self.rest()

    def rest(self):
        if self.sleeps:
            self.llm.sleep(level=2)
            self.asleep = True

    def wake(self, model, adapter):
        """Give it the weights of the model as it is: of its active adapter, or with adapters off (adapter None)."""
        import torch

        if self.asleep:  # what slept has forgotten its weights
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        if self.asleep or adapter or not self.plain:
            beside.give(self.llm, model, self.asleep, torch.randint(2**31, ()).item())
            self.plain = adapter is None
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False

    def write(self, model, adapter, prompts, new, temperature, ends):
        """One answer to each prompt (lists of token ids), up to and with one of `ends`. Each has a seed of its own, drawn from
        torch's generator, whose state is part of a checkpoint."""
        import torch
        from vllm import SamplingParams

        self.wake(model, adapter)
        how = dict(temperature=temperature, max_tokens=new, stop_token_ids=ends, ignore_eos=True, detokenize=False)
        how |= dict(logprobs=0 if self.scored else None)
        asked = [SamplingParams(seed=seed, **how) for seed in torch.randint(2**31, (len(prompts),)).tolist()]
        made = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        self.rest()
        rows = [each.outputs[0] for each in made]
        if self.scored:
            told = [zip(row.token_ids, row.logprobs, strict=True) for row in rows]
            self.logprobs = [[known[token].logprob for token, known in each] for each in told]
        return [list(row.token_ids) for row in rows]

    def close(self):
        """Leave the card: the next stage may start an engine of its own."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        del self.llm
        cleanup_dist_env_and_memory()
        device.empty_cache()


def correction(sampler, model, prompts, responses, logprobs, mask, temperature, pad, rows):
    """(min(p_old / q, CAP) at every token of a rollout (B, T), what is to be logged). Of our own decoder ones: q is p_old.

    logprobs: p_old's (B, T). rows: answers at once, of the passes for the slope, every beside.CHECK rollouts. The policy's
    adapter must be the active one.
    """
    import torch

    from backbone import response_logprobs

    if not sampler:
        return mask, {}
    sizes = [len(response) for response in responses]
    sampled = [torch.tensor(row[:size]) for row, size in zip(sampler.logprobs, sizes, strict=True)]
    q = mask.new_zeros(mask.shape).masked_scatter(mask.bool(), torch.cat(sampled).to(mask.device))
    off = (logprobs - q) * mask
    seen = {"sampling_gap": (off.abs().sum() / mask.sum()).item(), "sampling_ratio_max": off.max().exp().item()}

    def ask():
        cuts = range(0, len(prompts), rows)
        with torch.no_grad():
            parts = [
                response_logprobs(model, prompts[n : n + rows], responses[n : n + rows], pad, temperature) for n in cuts
            ]
        return torch.cat(parts).cpu().split(sizes)

    if sampler.rollouts % beside.CHECK == 0:
        found = beside.look(model, ask, sampled)
        if found["verdict"]:
            seen |= {"engine_slope": found["slope"], "engine_slope_tokens": found["tokens"]}
    sampler.rollouts += 1
    return off.exp().clamp(max=CAP), seen
