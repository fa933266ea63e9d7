"""The backend of a machine with PyTorch alone: base and adapter in one model, one answer at a time, in a thread.

The adapter is switched off for the base's answers. As slow as model.generate is; nothing else has to be installed.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from backends import TOP, Fault


class Torch:
    """stops: arm -> ids of the tokens that end an answer."""

    def __init__(self, run, tokenizer, stops: dict, dtype=None):
        self.run, self.tokenizer, self.stops, self.dtype = run, tokenizer, stops, dtype
        self.thread = ThreadPoolExecutor(1)  # its queue is the turn that each request waits for

    async def ready(self):
        await asyncio.get_running_loop().run_in_executor(self.thread, self.load)

    def load(self):
        import torch
        from peft import PeftModel

        import scores
        from found import free_memory

        dtype = self.dtype or scores.dtype_for(self.run.base, free_memory())
        model = scores.load(self.run.base, dtype, "cuda" if torch.cuda.is_available() else "cpu")
        self.model = PeftModel.from_pretrained(model, str(self.run.adapter)).eval()

    def on(self, arm):
        from contextlib import nullcontext

        return self.model.disable_adapter() if arm == "base" else nullcontext()

    async def stream(self, arm: str, ids: list[int], ask: dict):
        loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def work():
            if gone.is_set():
                return
            try:
                self.generate(arm, ids, ask, gone, lambda each: loop.call_soon_threadsafe(queue.put_nowait, each))
            except Exception as error:
                loop.call_soon_threadsafe(queue.put_nowait, Fault(f"{type(error).__name__}: {str(error)[:200]}"))

        self.thread.submit(work)
        try:
            while True:
                piece = await queue.get()
                if isinstance(piece, Fault):
                    raise piece
                yield piece
                if isinstance(piece, dict):
                    return
        finally:
            gone.set()

    def generate(self, arm, ids, ask, gone, say):
        """Say pieces of text, then the end."""
        import torch
        from tokenizers.decoders import DecodeStream

        decoder, text, state = DecodeStream(skip_special_tokens=True), Held(ask["stop"]), {"tokens": 0}
        ends = set(self.stops[arm])

        class Watch:  # what generate() calls a streamer: each token as it comes
            def put(watch, tokens):
                if "prompt" not in state:
                    state["prompt"] = True
                    return
                for token in tokens.flatten().tolist():
                    state["tokens"] += 1
                    if token in ends:
                        state["ended"] = True
                    elif piece := text.add(decoder.step(self.tokenizer._tokenizer, token) or ""):
                        say(piece)

            def end(watch):
                pass

        def over(input_ids, scores, **more):
            return torch.full((len(input_ids),), gone.is_set() or text.found, device=input_ids.device)

        prompt = torch.tensor([ids], device=self.model.device)
        sampling = dict(do_sample=True, temperature=float(ask["temperature"]), top_p=max(ask["top_p"], 1e-6), top_k=0)
        how = sampling if ask["temperature"] > 0 else dict(do_sample=False, temperature=None, top_p=None, top_k=None)
        if ask["seed"] is not None:
            torch.manual_seed(ask["seed"] % 2**63)
        with self.on(arm), torch.inference_mode():
            self.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), streamer=Watch(), **how,
                                max_new_tokens=ask["max_tokens"], eos_token_id=sorted(ends), repetition_penalty=1.0,
                                pad_token_id=min(ends), stopping_criteria=[over])  # fmt: skip
        if rest := text.rest():
            say(rest)
        say({"finish": "stop" if text.found or "ended" in state else "length", "tokens": state["tokens"]})

    async def likeliest(self, arm: str, ids: list[int]) -> dict:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.top, arm, ids)

    def top(self, arm, ids):
        import torch

        with self.on(arm), torch.inference_mode():
            logits = self.model(torch.tensor([ids], device=self.model.device), use_cache=False).logits[0, -1]
        values, tokens = torch.log_softmax(logits.float(), -1).topk(TOP)
        return dict(zip(tokens.tolist(), values.tolist(), strict=True))

    def close(self):
        self.thread.shutdown(wait=False, cancel_futures=True)


class Held:
    """Text on its way out, kept back as long as it may be the beginning of a stop text."""

    def __init__(self, stops: list[str]):
        self.stops, self.kept, self.found = stops, "", False

    def add(self, piece: str) -> str:
        """What may be said now."""
        if self.found:
            return ""
        text = self.kept + piece
        if at := [text.index(stop) for stop in self.stops if stop in text]:
            self.found, self.kept = True, ""
            return text[: min(at)]
        keep = max(
            (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        self.kept = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        kept, self.kept = self.kept, ""
        return kept
