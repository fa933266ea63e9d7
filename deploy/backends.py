"""What computes the answers, behind serve.py: llama.cpp, vLLM or PyTorch. Each is given token ids, never messages.

So a model is asked in the tokens of its training, whatever template a backend would have used. Each has
    stream(arm, ids, ask): pieces of text, then {"finish": "stop" or "length", "tokens": how many}
    likeliest(arm, ids): {token: log-probability} of the TOP likeliest next tokens
and ends a computation when its stream is closed.

llama.cpp has two servers in one process, of base and merged file. One server that switches an adapter for each request
would need half the memory; it computes requests of different arms one after the other, see RESULTS.md.
"""

import asyncio
import json
import secrets
import subprocess
import sys
from pathlib import Path

import httpx

TOP = 20  # vLLM's --max-logprobs unless told otherwise
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's kernels know


class Fault(Exception):
    """The backend could not answer: a short text for the client."""


class Child:
    """The process of a backend, see child.py. log: where it and its program write."""

    def __init__(self, order: dict, log: Path):
        self.log = log
        script = Path(__file__).with_name("child.py")
        log.unlink(missing_ok=True)  # another server of this run may still write to the old one
        with open(log, "wb") as file:
            self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=file, start_new_session=True)  # fmt: skip
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def died(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() or [""]
        return f"the backend ended (code {self.process.poll()}): {lines[-1][:200]} See {self.log}."

    def close(self):
        self.process.stdin.close()  # which ends it
        try:
            self.process.wait(8)
        except subprocess.TimeoutExpired:
            self.process.kill()


def client(key: str) -> httpx.AsyncClient:
    none = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    return httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=httpx.Timeout(None, connect=10),
                             limits=none, trust_env=False)  # fmt: skip


async def events(http: httpx.AsyncClient, url: str, body: dict):
    """The JSON events of a streamed answer."""
    try:
        async with http.stream("POST", url, json=body) as answer:
            if answer.status_code != 200:
                raise Fault(said(await answer.aread(), answer.status_code))
            async for line in answer.aiter_lines():
                kind, _, content = line.partition(": ")
                if kind == "error" or kind == "data" and content.startswith('{"error"'):
                    raise Fault(said(content, 500))
                if kind == "data" and content != "[DONE]":
                    yield json.loads(content)
    except httpx.HTTPError as error:
        raise Fault(f"the backend cannot be reached: {type(error).__name__}") from None


def said(content, status) -> str:
    try:
        content = json.loads(content)
        return str(content.get("error", content).get("message", content))[:300]
    except (ValueError, AttributeError):
        return f"the backend answered with {status}"


class Llama:
    """llama.cpp. files: arm -> GGUF. stops: arm -> texts of the tokens that end an answer."""

    def __init__(self, files: dict, stops: dict, context: int, slots: int, threads: int, log: Path):
        self.stops, key = stops, secrets.token_urlsafe()
        self.http = client(key)
        self.child = Child({"llama": {arm: str(file) for arm, file in files.items()}, "key": key, "context": context,
                            "slots": slots, "threads": threads}, log)  # fmt: skip

    async def ready(self):
        line = await asyncio.to_thread(self.child.process.stdout.readline)
        if not line:
            self.child.process.wait()
            raise SystemExit(self.child.died())
        self.addresses = json.loads(line)
        answer = await self.http.post(f"{next(iter(self.addresses.values()))}/tokenize", json={"content": "a"})
        self.letter = answer.json()["tokens"][0]

    async def stream(self, arm: str, ids: list[int], ask: dict):
        body = {"prompt": ids, "stream": True, "n_predict": ask["max_tokens"], "cache_prompt": True,
                "temperature": ask["temperature"], "top_p": ask["top_p"], "samplers": ["top_p", "temperature"],
                "seed": -1 if ask["seed"] is None else ask["seed"] % 2**32,
                "stop": ask["stop"] + self.stops[arm], "preserved_tokens": self.stops[arm]}  # fmt: skip
        async for event in events(self.http, f"{self.addresses[arm]}/completion", body):
            if event["content"]:
                yield event["content"]
            if event["stop"]:
                finish = "length" if event["stop_type"] == "limit" else "stop"
                yield {"finish": finish, "tokens": event["tokens_predicted"]}

    async def likeliest(self, arm: str, ids: list[int]) -> dict:
        # Told of tokens that are whole characters only: so it is made to say "a". What is told is from before that.
        body = {"prompt": ids, "n_predict": 1, "n_probs": TOP, "temperature": 0, "logit_bias": [[self.letter, 1000]]}
        answer = await self.http.post(f"{self.addresses[arm]}/completion", json=body)
        if answer.status_code != 200:
            raise Fault(said(answer.content, answer.status_code))
        return {each["id"]: each["logprob"] for each in answer.json()["completion_probabilities"][0]["top_logprobs"]}

    def close(self):
        self.child.close()


def vllm_refusal(settings: dict, serving: dict, tensors, command: str) -> str:
    """Why vLLM cannot serve an adapter beside its base; "" if it can. tensors: names in its file. command: how to merge."""
    why = ""
    if settings.get("use_dora"):
        why = "DoRA scales whole columns, which vLLM does not"
    elif settings.get("modules_to_save"):
        why = f"it trained whole modules ({', '.join(settings['modules_to_save'])})"
    elif any("visual." in name for name in tensors):
        why = "it changes the image encoder (visual.*)"
    elif serving["kind"] != "plain":
        why = f"init_lora_weights={serving['init']} is not W + s B A until it is converted"
    return f"vLLM cannot put this adapter on its base: {why}. Merge it: {command}" if why else ""


def vllm_command(base, adapter, name: str, settings: dict, port: int, context: int, program="vllm") -> list[str]:
    """The command line of vLLM's server with base and adapter. settings: adapter_config.json. The key is not in it."""
    rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    fits = next((known for known in RANKS if known >= rank), None)
    if fits is None:
        raise SystemExit(
            f"vLLM knows LoRA ranks up to {RANKS[-1]}, this one is {rank}: merge it (export.py --to merged)."
        )
    return [program, "serve", str(base), "--served-model-name", "base", "--enable-lora",
            "--lora-modules", f"{name}={adapter}", "--max-lora-rank", str(fits), "--max-loras", "1",
            "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(context),
            "--max-logprobs", str(TOP), "--generation-config", "vllm"]  # fmt: skip


class Vllm:
    """A vLLM server with base and adapter. stops: arm -> ids of the tokens that end an answer."""

    def __init__(self, argv: list[str], port: int, stops: dict, log: Path):
        self.stops, key = stops, secrets.token_urlsafe()
        self.http, self.url = client(key), f"http://127.0.0.1:{port}"
        self.child = Child({"command": argv, "environment": {"VLLM_API_KEY": key}}, log)

    async def ready(self):
        while self.child.process.poll() is None:
            try:
                if (await self.http.get(f"{self.url}/health", timeout=5)).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.5)
        raise SystemExit(self.child.died())

    def body(self, arm, ids, ask) -> dict:
        return {"model": arm, "prompt": ids, "temperature": ask["temperature"], "top_p": ask["top_p"], "seed": ask["seed"],
                "max_tokens": ask["max_tokens"], "stop": ask["stop"] or None, "stop_token_ids": self.stops[arm]}  # fmt: skip

    async def stream(self, arm: str, ids: list[int], ask: dict):
        finish, tokens = None, 0
        body = self.body(arm, ids, ask) | {"stream": True, "stream_options": {"include_usage": True}}
        async for event in events(self.http, f"{self.url}/v1/completions", body):
            for choice in event["choices"]:
                if choice["text"]:
                    yield choice["text"]
                finish = choice["finish_reason"] or finish
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
        yield {"finish": "length" if finish == "length" else "stop", "tokens": tokens}

    async def likeliest(self, arm: str, ids: list[int]) -> dict:
        ask = dict(temperature=0, top_p=1, seed=0, max_tokens=1, stop=[])
        body = self.body(arm, ids, ask) | {"logprobs": TOP, "return_tokens_as_token_ids": True}
        answer = await self.http.post(f"{self.url}/v1/completions", json=body)
        if answer.status_code != 200:
            raise Fault(said(answer.content, answer.status_code))
        (top,) = answer.json()["choices"][0]["logprobs"]["top_logprobs"]
        return {int(token.removeprefix("token_id:")): value for token, value in top.items()}

    def close(self):
        self.child.close()
