"""Budget forcing (arXiv 2501.19393, section 3): decide at inference how long a model thinks. All on token ids.

    <|im_start|>think
    ... the model writes; a stop token (<|im_start|> or the end token) is the end of its thinking, and is not kept
    Wait                       instead of that end, num_ignore times: it has to look again
    ...                        after max_think tokens, injected ones included, thinking is cut off:
    <|im_start|>answer
    Final Answer:              only where it was cut off; a model that ended by itself goes on by itself

Text is never tokenized again: two ids that decode to a text and the ids of that text may differ, and the model would go
on from tokens that it did not write. The loop knows one function only,

    gen(prompts, max_new, min_new, stop) -> ids

prompts: lists of token ids. max_new: most new ids of each. min_new: of all, 0 or 1 (1: no stop token at once, or a Wait
would be ignored). stop: the set of ids that end a text. Returns a list of ids per prompt, a stop token as the last where it
stopped; none that the tokenizer does not know, which a model's wider matrix can draw. hf_engine and vllm_engine below are two
such functions; the tests' third is a list of texts.
"""

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from common import device, models
from common.files import read_json
from common.hub import weight_bytes
from prompt import answer_text

WORK = 3e9  # bytes that vLLM takes beside the weights, a small cache among them
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA, that vLLM 0.26 takes
PIECE = 128  # tokens that a batch writes before those that have ended leave it
# The paper compares with "class-conditional" control: a short, middle or long class is asked for in words, and the
# model may or may not comply. These are the same three classes as budgets, which it cannot exceed.
EFFORTS = {
    "low": dict(max_think=64, num_ignore=0),
    "medium": dict(max_think=512, num_ignore=0),
    "high": dict(max_think=2048, num_ignore=2),
}


@dataclass
class Budget:
    """max_think: most thinking tokens, injected ones included. num_ignore: ends of thinking that are refused.
    max_answer: most tokens of the answer."""

    max_think: int = 512
    num_ignore: int = 0
    max_answer: int = 32


def context_of(path) -> int | None:
    """Most tokens a model was made for; None where its config does not say."""
    return read_json(Path(path) / "config.json").get("max_position_embeddings")


def room(prompts, budget, mark, context):
    """Most thinking tokens for which a model's context has room (None: not known, and no limit)."""
    other = max(map(len, prompts), default=0) + len(mark.open + mark.newline + mark.forced) + budget.max_answer
    return max(0, context - other) if context else budget.max_think


def check_context(prompts, budget, mark, context):
    """Stop where prompt + thinking + closing + answer could grow over the model's context. Returns their tokens."""
    longest = max(map(len, prompts), default=0)
    needed = longest + len(mark.open) + budget.max_think + len(mark.newline + mark.forced) + budget.max_answer
    if context and needed > context:
        raise SystemExit(
            f"the longest prompt ({longest} tokens), {budget.max_think} of thinking and {budget.max_answer} of answer need "
            f"{needed} tokens, and the model has {context}. Lower --max_think."
        )
    return needed


def force(gen, prompts, mark, budget, watch=lambda event, row, ids: None):
    """Think within a budget, then answer. budget: of all prompts, or a list with each one's. Returns a dict per prompt:

    think: ids, the injected Waits among them. waits: where in think each begins. reason: "stop" or "length".
    answer: ids without the end token. ended: whether the answer did. watch is called with "open", "wait", "close" as
    it happens.
    """
    budgets = budget if isinstance(budget, list) else [budget] * len(prompts)
    for each in budgets:
        if each.max_think < 0 or each.num_ignore < 0 or each.max_answer < 1:
            raise SystemExit(f"{each}: no number may be negative, and an answer takes a token at least.")
    made = [{"think": [], "waits": [], "reason": "length"} for _ in prompts]
    opened = [prompt + mark.open for prompt in prompts]
    live = [n for n, each in enumerate(budgets) if each.max_think]
    for n in live:
        watch("open", n, mark.open)
    min_new = 0
    while live:
        left = [budgets[n].max_think - len(made[n]["think"]) for n in live]
        written = gen([opened[n] + made[n]["think"] for n in live], left, min_new, mark.stop)
        going_on = []
        for n, ids in zip(live, written, strict=True):
            row = made[n]
            stopped = bool(ids) and ids[-1] in mark.stop
            row["think"] += ids[:-1] if stopped else ids
            if not stopped:
                continue
            if len(row["waits"]) == budgets[n].num_ignore:
                row["reason"] = "stop"
            elif len(row["think"]) + len(mark.wait) < budgets[n].max_think:  # else no token would be left to think with
                row["waits"].append(len(row["think"]))
                row["think"] += mark.wait
                going_on.append(n)
                watch("wait", n, mark.wait)
        live, min_new = going_on, 1

    closed = []
    for n, row in enumerate(made):
        close = mark.answer if row["reason"] == "stop" else mark.forced
        if row["think"] and not mark.breaks(row["think"][-1]):
            close = mark.newline + close
        watch("close", n, close)
        closed.append(opened[n] + row["think"] + close)
    # A turn that begins ends the answer as well: small models, once cut off, tend to start over.
    answers = gen(closed, [each.max_answer for each in budgets], 0, mark.stop)
    for row, ids in zip(made, answers, strict=True):
        row["ended"] = bool(ids) and ids[-1] in mark.stop
        row["answer"] = ids[:-1] if row["ended"] else ids
    return made


def text_of(row, tokenizer):
    """A result as text, with what was forced in brackets."""
    parts, begin = [], 0
    for number, place in enumerate(row["waits"], 1):
        parts.append(tokenizer.decode(row["think"][begin:place]).rstrip("\n") + f"\n[Wait {number}] ")
        begin = place
    end = "" if row["reason"] == "stop" else "\n[cut off: the budget is spent]"
    thinking = "".join(parts) + tokenizer.decode(row["think"][begin:]).strip("\n")
    answer = answer_text(tokenizer, row["answer"]) or "(none)"
    return f"{thinking}{end}\n=> {answer}   ({len(row['think'])} thinking tokens, {len(row['answer'])} of answer)"


# -- two engines


def hf_engine(
    model, tokenizer, backend="hf", batch_size=32, temperature=0.0, streamer=None, decode=None, by_steps=False
):
    """gen() by transformers. temperature 0 is greedy; above, the whole distribution is sampled.

    streamer: prints one prompt's text while it is written. decode: common/speed/graph.py's function, which writes the
    tokens on a GPU where it can: it records a step once and replays it. by_steps: True takes decode's steps one by one, on
    a CPU, too (for the tests).
    """
    import torch

    from common.answers import cut

    cuda = model.device.type == "cuda" and streamer is None and not device.sharded()
    recorded = decode and (by_steps or cuda and backend == "hf")
    pad, known = tokenizer.pad_token_id, len(tokenizer)

    def padded(prompts):
        """(ids, mask): a decoder goes on from the last position, so padding stands on the left."""
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        return ids, mask

    def first_tokens(prompts, stop):
        """One token per prompt, drawn from what is no stop token: a recorded step knows no such rule."""
        ids, mask = padded(prompts)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1]
        logits = logits.float().index_fill(1, torch.tensor(sorted(stop), device=model.device), -torch.inf)
        if temperature:
            return torch.multinomial((logits / temperature).softmax(-1), 1).tolist()
        return logits.argmax(-1, keepdim=True).tolist()

    def by_decode(prompts, new, min_new, stop):
        first = first_tokens(prompts, stop) if min_new else [[] for _ in prompts]
        if new == min_new:
            return first
        # Lengths are rounded up, so that a recording serves more than one round; what is too much is cut off below.
        room = new - min_new if by_steps else -(-(new - min_new) // 64) * 64
        longer = [prompt + begun for prompt, begun in zip(prompts, first, strict=True)]
        rest = decode(model, longer, room, temperature, sorted(stop), pad, not by_steps)
        return [begun + row for begun, row in zip(first, rest, strict=True)]

    def by_generate(prompts, new, min_new, stop):
        ids, mask = padded(prompts)
        how = dict(temperature=temperature, top_k=0, top_p=1.0) if temperature else {}
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=min_new or None,
            do_sample=bool(temperature),
            eos_token_id=sorted(stop),
            pad_token_id=pad,
            repetition_penalty=1.0,  # Qwen's own settings have 1.05, which is not greedy any more
            streamer=streamer,
            **how,
        )
        return output[:, ids.shape[1] :].tolist()

    def gen(prompts, max_new, min_new, stop):
        made, live = [[] for _ in prompts], list(range(len(prompts)))
        # A few texts spend the whole budget, most end early: after each piece only the rest goes on.
        write, piece = (by_decode, PIECE) if recorded else (by_generate, max(max_new, default=0))
        with models.inference(model, backend), torch.no_grad():
            while live:
                # The longest first: if memory is short, that shows at once.
                live.sort(key=lambda n: len(prompts[n]) + len(made[n]), reverse=True)
                for start in range(0, len(live), batch_size):
                    batch = live[start : start + batch_size]
                    left = [max_new[n] - len(made[n]) for n in batch]
                    most = min(max(left), piece)
                    rows = write([prompts[n] + made[n] for n in batch], most, min_new, stop)
                    for n, room, row in zip(batch, left, rows, strict=True):
                        made[n] += cut(row, stop)[: min(most, room)]
                live, min_new = [n for n in live if made[n][-1] not in stop and len(made[n]) < max_new[n]], 0
        return [[token for token in row if token < known] for row in made]

    return gen


def choose_engine(args, path):
    """The share of the card that vLLM takes, or None where transformers writes; says why in a line."""
    import torch

    if args.engine == "hf":
        return None
    cuda, reason, share = torch.cuda.is_available(), None, 0.0
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed (pip install --no-deps -r requirements-vllm.txt)"
    elif not cuda:
        reason = f"it needs an NVIDIA GPU. {device.no_cuda()}"
    elif args.quantization == "4bit" or args.backend == "unsloth":
        reason = "it has the weights in 16 bits, and its own kernels (--quantization, --backend)"
    else:
        (free, card), weights = torch.cuda.mem_get_info(), weight_bytes(path, False)
        share = min(0.9, int(100 * (free - 1e9) / card) / 100)
        if weights + WORK > share * card:
            reason = f"{weights / 1e9:.1f} GB of weights and a cache do not fit in {free / 1e9:.0f} GB"
    if args.engine == "vllm" and reason:
        raise SystemExit(f"--engine vllm: {reason}.")
    if reason and cuda:
        print(f"without vLLM: {reason}")
    return None if reason else share


def vllm_engine(path, adapter, tokenizer, length, rows=256, share=0.9, seed=0):
    """A function temperature -> gen() by vLLM 0.26, the adapter beside the base.

    length: most tokens of a text, prompt and all. rows: texts at once; one that has ended makes room for the next, so that
    budgets of all sizes go together. share: of the card's memory. Prefixes are cached: going on after a Wait, or with another
    budget, does not read the question and the thinking again.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # else it reports the machine and the model to its makers
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the card was looked at: no fork from here
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    rank = read_json(adapter / "adapter_config.json")["r"]
    if rank > RANKS[-1]:
        raise SystemExit(f"{adapter}: vLLM knows LoRA ranks up to {RANKS[-1]}, this one is {rank}. Take --engine hf.")
    llm = LLM(
        model=str(path),
        skip_tokenizer_init=True,  # ids in, ids out
        max_model_len=length,
        max_num_seqs=rows,
        gpu_memory_utilization=share,
        enable_prefix_caching=True,
        enable_lora=True,
        max_lora_rank=next(known for known in RANKS if known >= rank),
        seed=seed,
    )
    return by_vllm(llm, LoRARequest("tuned", 1, str(adapter)), len(tokenizer))


def by_vllm(llm, request, known):
    """A function temperature -> gen(). llm: a vllm.LLM; request: its LoRARequest, or None; known: tokens of the tokenizer."""
    import torch
    from vllm import SamplingParams

    def gen(prompts, max_new, min_new, stop, temperature):
        # Each text has a seed of its own, drawn from torch's generator; only our stop tokens end one.
        seeds = torch.randint(2**31, (len(prompts),)).tolist() if temperature else [None] * len(prompts)
        same = dict(temperature=temperature, stop_token_ids=sorted(stop), ignore_eos=True, detokenize=False)
        how = [
            SamplingParams(max_tokens=most, min_tokens=min(min_new, most), seed=seed, **same)
            for most, seed in zip(max_new, seeds, strict=True)
        ]
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, how, lora_request=request, use_tqdm=False)
        return [[token for token in output.outputs[0].token_ids if token < known] for output in outputs]

    return lambda temperature: functools.partial(gen, temperature=temperature)
