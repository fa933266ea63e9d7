"""Many clients at once on a server of deploy/serve.py: how long an answer takes, how much is lost, and whose answer it is.

Each question is asked alone first, of each model, at temperature 0. Then `--clients` ask them all together for `--seconds`,
each of them the models in turn. Batches of other sizes round otherwise, so a greedy answer may part from the one that was
given alone; it is mixed up where it begins more like an answer of another model than like its own model's.

A server:               python bench/serve_load.py --url http://127.0.0.1:8000/v1 --models base,NAME --clients 8
Its backend alone:      the same with the backend's own URL; for llama.cpp, whose servers serve.py keeps to itself:
                        python bench/serve_load.py --files base.gguf,run.gguf
One server, switched:   python bench/serve_load.py --files base.gguf --lora adapter.gguf
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

QUESTIONS = ("头痛怎么办？", "感冒了应该吃什么药？", "高血压患者能吃党参吗？", "失眠有什么好的治疗方法？",
             "What helps against a cold?", "Why is the sky blue?", "Name three fruits.", "How do I sleep better?")  # fmt: skip


async def ask(http, target, question: str, most: int):
    """(answer, tokens) of one request. target: (URL of /v1, model's name, more fields)."""
    url, model, more = target
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": most, "temperature": 0}
    answer = await http.post(f"{url}/chat/completions", json=body | more)
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:120]}")
    said = answer.json()
    return said["choices"][0]["message"]["content"], said["usage"]["completion_tokens"]


def alike(a: str, b: str) -> int:
    """How many characters two texts have in common at the beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def whose(text: str, model: str, question: str, alone: dict) -> str:
    """ "same" as alone, "parted" from it, or "mixed": more like what another model said alone."""
    own = alike(text, alone[model, question])
    others = [alike(text, said) for (name, asked), said in alone.items() if name != model and asked == question]
    return "same" if text == alone[model, question] else "mixed" if max(others, default=0) > own else "parted"


async def load(http, targets: dict, clients: int, seconds: float, most: int) -> dict:
    """The figures of a load. targets: model's name -> target."""
    alone, began, tokens = {}, time.monotonic(), 0
    for name, question in itertools.product(targets, QUESTIONS):
        alone[name, question], count = await ask(http, targets[name], question, most)
        tokens += count
    one = tokens / (time.monotonic() - began)
    turns = itertools.cycle(list(itertools.product(QUESTIONS, targets)))
    took, kinds, faults, tokens, began = [], {"same": 0, "parted": 0, "mixed": 0}, {}, 0, time.monotonic()

    async def client():
        nonlocal tokens
        while time.monotonic() - began < seconds:
            (question, name), asked = next(turns), time.monotonic()
            try:
                text, count = await ask(http, targets[name], question, most)
            except (RuntimeError, httpx.HTTPError, KeyError, ValueError) as error:
                said = f"{type(error).__name__} {error}"[:140]
                faults[said] = faults.get(said, 0) + 1
                await asyncio.sleep(0.1)
                continue
            took.append(time.monotonic() - asked)
            kinds[whose(text, name, question, alone)] += 1
            tokens += count

    await asyncio.gather(*(client() for _ in range(clients)))
    wall, took = time.monotonic() - began, sorted(took) or [float("nan")]
    return {"clients": clients, "seconds": round(wall, 1), "answers": sum(kinds.values()), **kinds,
            "errors": sum(faults.values()), "p50_s": round(took[len(took) // 2], 2),
            "p99_s": round(took[min(len(took) - 1, int(len(took) * 0.99))], 2), "tokens_per_s": round(tokens / wall, 1),
            "tokens_per_s_alone": round(one, 1), "faults": faults}  # fmt: skip


def llama(files: list[str], lora: str | None, template: str | None, slots: int, threads: int):
    """(process, targets) of llama.cpp's own servers, without a front. template: a file, how the base is asked."""
    arms = {"base": files[0], **({"run": files[1]} if len(files) > 1 else {})}
    order = {"llama": arms, "key": os.environ["OPENAI_API_KEY"], "context": 2048, "slots": slots, "threads": threads, "lora": lora,
             "templates": {"base": Path(template).read_text(encoding="utf-8")} if template else {}}  # fmt: skip
    child = Path(__file__).resolve().parents[1] / "deploy" / "child.py"
    started = subprocess.Popen([sys.executable, str(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started.stdin.write(json.dumps(order).encode() + b"\n")
    started.stdin.flush()
    urls = json.loads(started.stdout.readline())
    targets = {arm: (f"{url}/v1", arm, {}) for arm, url in urls.items()}
    if lora:
        targets = {arm: (f"{urls['base']}/v1", arm, {"lora": [{"id": 0, "scale": scale}]})
                   for arm, scale in (("base", 0.0), ("run", 1.0))}  # fmt: skip
    return started, targets


async def run(args):
    key = args.key or os.environ.setdefault("OPENAI_API_KEY", "bench")
    none, started = httpx.Limits(max_connections=None), None
    http = httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=600, limits=none, trust_env=False)
    if args.files:
        started, targets = llama(args.files.split(","), args.lora, args.base_template, args.slots, args.threads)
    else:
        targets = {name: (args.url.rstrip("/"), name, {}) for name in args.models.split(",")}
    try:
        for clients in map(int, args.clients.split(",")):
            print(
                json.dumps(await load(http, targets, clients, args.seconds, args.max_tokens), ensure_ascii=False),
                flush=True,
            )
    finally:
        await http.aclose()
        if started:
            started.stdin.close()
            started.wait()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", help="default: OPENAI_API_KEY")
    parser.add_argument("--models", default="base", help="names, with commas")
    parser.add_argument("--clients", default="8,64", help="one load for each number")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max_tokens", type=int, default=48)
    parser.add_argument("--files", help="GGUF files of base and run: llama.cpp's own servers, without a front")
    parser.add_argument("--lora", help="an adapter's GGUF on the first of --files, switched for each request")
    parser.add_argument("--base_template", help="with --files: the base's chat template, as serve.py asks it")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asyncio.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
