# Generated from common/speed/graph.py: edit that file, then run `make sync`.
"""Decoding without Python between two tokens: one step is recorded as a CUDA graph, then replayed for every token.

A step of decoding is a thousand kernels of a few microseconds; launching them from Python takes several times as long
as running them. Reinforcement learning spends most of its time here.
"""

from collections import OrderedDict

import torch
from transformers import StaticCache

from common.answers import cut

ROUND = 128  # prompt lengths are rounded up to a multiple, so that one recording serves many batches
KEPT = 2  # recordings kept; each holds its cache of keys and values


class Decoder:
    """Buffers, cache and recorded step for a batch of `rows` prompts of up to `width` tokens, and `new` tokens more.

    graph: False takes the same steps one by one, which is how it is tested on a CPU.
    """

    def __init__(self, model, rows, width, new, temperature, ends, pad, graph=True):
        self.model, self.rows, self.width, self.new = model, rows, width, new
        self.temperature, self.pad = temperature, pad
        device = model.device
        self.ends = torch.tensor(ends, device=device)
        self.cache = StaticCache(config=model.config, max_cache_len=width + new)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.slot = torch.full((1,), width, device=device)  # where in the cache the next token goes
        self.mask = torch.zeros(rows, 1, 1, width + new, dtype=torch.bool, device=device)
        self.mask[..., 0] = True  # a row that sees nothing would be NaN
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.out = torch.full((rows, new), pad, device=device)
        self.graph = None
        if graph:
            self._record()

    def _record(self):
        state = torch.cuda.get_rng_state()  # recording draws numbers; what is sampled must not depend on it
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels choose their plans and the cache is allocated outside of the recording
                self.slot.fill_(self.width)
                for layer in self.cache.layers:
                    layer.cumulative_length.fill_(self.width)
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.slot.fill_(self.width)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        torch.cuda.set_rng_state(state)

    def _emit(self, logits):
        """Draw a token for each row from its logits (rows, vocabulary) and put it where the next step looks for it."""
        logits = logits.float()
        if self.temperature:
            # argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T); -log of an exponential is Gumbel.
            logits = logits / self.temperature - torch.empty_like(logits).exponential_().log()
        token = logits.argmax(-1).masked_fill(self.done, self.pad)
        self.out.index_copy_(1, self.slot - self.width, token[:, None])
        self.done |= torch.isin(token, self.ends)
        self.token.copy_(token[:, None])

    def _step(self):
        self.mask.index_fill_(3, self.slot, True)
        logits = self.model(
            input_ids=self.token,
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.slot += 1
        self.position += 1
        self._emit(logits[:, -1])

    def run(self, prompts):
        """Continuations of `prompts` (lists of token ids), each up to and with its end token."""
        device = self.token.device
        ids = torch.full((self.rows, self.width), self.pad)
        real = torch.zeros(self.rows, self.width, dtype=torch.bool)
        for i, prompt in enumerate(prompts):  # on the left: every row's next token has the same place in the cache
            ids[i, self.width - len(prompt) :] = torch.tensor(prompt)
            real[i, self.width - len(prompt) :] = True
        ids, real = ids.to(device), real.to(device)
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=device).tril()
        mask = torch.zeros(self.rows, 1, self.width, self.width + self.new, dtype=torch.bool, device=device)
        mask[..., : self.width] = causal & real[:, None, None]
        mask[..., : self.width] |= torch.eye(self.width, dtype=torch.bool, device=device)  # padding sees itself: no NaN
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        self.cache.reset()
        self.out.fill_(self.pad)
        self.done.zero_()
        self.mask.zero_()
        self.mask[:, 0, 0, : self.width] = real
        self.position.copy_(positions[:, -1:])
        self.slot.fill_(self.width)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.position += 1
        self._emit(logits[:, -1])
        for step in range(1, self.new):
            if step % 16 == 0 and bool(self.done.all()):  # asking makes the CPU wait for the GPU: not at each token
                break
            self.graph.replay() if self.graph else self._step()
        return [cut(row, self.ends.tolist()) for row in self.out.tolist()]


def decode(model, prompts, new, temperature, ends, pad, graph=True) -> list[list[int]]:
    """Continue `prompts` (lists of token ids), all in one batch: at most `new` tokens, up to and with one of `ends`.

    temperature 0 is greedy; above, the whole distribution softmax(logits / temperature) is sampled. The model is in
    eval mode. A recording serves every later batch of its shape, with the weights of that moment: it reads them where
    they lie. Recordings live on the model, so they go when it does. The shape depends on this batch alone, so that a
    resumed run rounds, and draws, as an uninterrupted one.
    """
    lora = {
        (m.disable_adapters, m.merged, *m.active_adapters) for m in model.modules() if hasattr(m, "merged_adapters")
    }
    weights = hash(tuple(p.data_ptr() for p in model.parameters()))  # moved, loaded or cast since: record again
    shape = len(prompts), -(-max(map(len, prompts)) // ROUND) * ROUND, new
    key = (*shape, temperature, tuple(ends), pad, model.config._attn_implementation, weights, frozenset(lora))
    kept = model.__dict__.setdefault("_decoders", OrderedDict())
    with torch.no_grad():
        decoder = kept.pop(key, None)
        if decoder is None:
            while len(kept) >= KEPT:
                kept.popitem(last=False)
            decoder = Decoder(model, *shape, temperature, ends, pad, graph)
        kept[key] = decoder
        return decoder.run(prompts)
