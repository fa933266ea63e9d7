"""Serve a finished run beside its base: an OpenAI-style server, models "base" and the run's name. Ready once it is proved.

    client -> serve.py: key, limits, chat template -> token ids -> backend: llama.cpp | vLLM | PyTorch

The messages are rendered here, the run's in the prompt of its training, the base's in its own chat template, and backends
get token ids: what is asked is what was trained, whatever computes it. Before "ready", next-token probabilities of both are
compared with PyTorch's (exit code 5 if one is not what its name says). A random key and 127.0.0.1 unless told otherwise.

Newest run:   python serve.py
One run:      python serve.py outputs/medical/20261122-101500 --port 8000
A GPU:        python serve.py --backend vllm
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg, parse
from common.files import read_json
from common.paths import command, output_dir
from found import contract as contract_of
from found import name_of, open_run, threads, tokenizer_of, with_run

DEFAULTS = dict(
    host="127.0.0.1",  # another address needs a key of yours
    port=8000,  # 0: any free one
    max_requests=128,  # being answered or waiting; more are refused with 429
    timeout=600.0,  # seconds for one answer
    slots=8,  # answers that llama.cpp computes at once, for each of the two models
)
KINDS = ("q8_0", "f16", "q5_k_m", "q4_k_m")  # of the files of an export, the first one that is there


@dataclass
class Args:
    adapter: str | None = arg(
        None, "a finished run's folder (default: the newest of all recipes); also without the flag"
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )
    key: str | None = arg(None, "what clients have to send (default: OPENAI_API_KEY, else a random one, printed)")
    backend: Literal["auto", "llama", "transformers", "vllm"] = arg(
        "auto", "auto: vLLM on an NVIDIA GPU where it is installed, PyTorch on one where it is not, else llama.cpp"
    )
    files: str | None = arg(None, "an exported folder, or one GGUF file, for llama.cpp (default: the newest export)")
    context: int | None = arg(None, "tokens of prompt and answer (default: as trained, at least 2048)")
    log_prompts: bool = arg(False, "write messages and answers to the log (stderr), too")


def choose(backend: str) -> str:
    """The backend that "auto" stands for here."""
    import importlib.util

    if backend != "auto":
        return backend
    if shutil.which("nvidia-smi"):
        return "vllm" if vllm_program() else "transformers"
    return "llama" if importlib.util.find_spec("xllamacpp") else "transformers"


def vllm_program() -> str | None:
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.is_file() else shutil.which("vllm")


def listen(host: str, port: int) -> socket.socket:
    """A socket that has the address, and answers nobody yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    if os.name != "nt":
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        raise SystemExit(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}. "
                         "Give another --port (0: any free one).") from None  # fmt: skip
    return taken


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def merged_file(given: str | None, run) -> tuple[Path | None, str]:
    """(the run's GGUF file or None, its kind): the file or folder that is given, else of the newest export."""
    from gate import newest_export

    folder = Path(given).expanduser() if given else newest_export(run)
    if folder is None:
        return None, KINDS[0]
    if given and not folder.exists():
        raise SystemExit(f"{folder}: no such file or folder.")
    found = [folder] if folder.is_file() else sorted(folder.glob("*.gguf"))
    for kind in KINDS:
        for file in found:
            if file.stem.endswith(f"-{kind}"):
                return file, kind
    if given:
        raise SystemExit(f"{folder}: no GGUF named ...-{', ...-'.join(KINDS)}: run export.py first.")
    return None, KINDS[0]


def prompts_of(run, name: str, serving: dict, template: str) -> tuple[dict, dict, object]:
    """({arm: a function from messages to token ids}, {arm: ids that end an answer}, the run's tokenizer)."""
    from common import contract, models

    tuned, base = tokenizer_of(run), models.load_tokenizer(run.base)
    if serving["prompt_sha256"] and contract.digest_probes(tuned, template) != serving["prompt_sha256"]:
        fail(f"{run.adapter}: serving_template.jinja or the tokenizer was changed after training.")
    if not base.chat_template:
        print(f"{run.base} has no chat template: base is asked in the run's.")

    def renderer(tokenizer, text):
        return lambda talk: tokenizer.apply_chat_template(
            talk, chat_template=text, add_generation_prompt=True, return_dict=False
        )

    ends = read_json(run.base / "generation_config.json").get("eos_token_id")
    ends = {*(ends if isinstance(ends, list) else [ends]), base.eos_token_id} - {None}
    prompts = {"base": renderer(base, base.chat_template or template), name: renderer(tuned, template)}
    return prompts, {"base": sorted(ends), name: serving["stop_ids"]}, tuned


def fail(text: str):
    """End with one line and the gate's exit code."""
    from ready import FAILED

    print(f"not served: {text}", file=sys.stderr)
    raise SystemExit(FAILED)


def started(args, run, name: str, serving: dict, context: int, stops: dict, tokenizer):
    """(the backend, not ready yet; PyTorch's side of the gate; the kind of what is served)."""
    from ready import prepare

    folder, chosen = output_dir("deploy") / "serve" / name, choose(args.backend)
    log = folder / "backend.log"
    if chosen == "llama":
        from backends import Llama
        from llama import installed

        installed()
        merged, kind = merged_file(args.files, run)
        files, known = prepare(run, folder, kind, merged)
        texts = {arm: tokenizer.convert_ids_to_tokens(ids) for arm, ids in stops.items()}
        return Llama(files, texts, context, args.slots, threads(), log), known, kind
    if chosen == "vllm":
        from backends import Vllm, vllm_command, vllm_refusal
        from common import adapters, hub

        settings, merge = (
            read_json(run.adapter / "adapter_config.json"),
            command("export.py", run.adapter, "--to", "merged"),
        )
        if why := vllm_refusal(settings, serving, hub.tensors(run.adapter / adapters.WEIGHTS), merge):
            raise SystemExit(why)
        if not (program := vllm_program()):
            raise SystemExit("vLLM is not installed here: pip install vllm==0.26.0, or --backend llama.")
        port = free_port()
        argv = vllm_command(run.base, run.adapter, name, settings, port, context, program)
        known = prepare(run, folder, None, None)[1]
        return Vllm(argv, port, stops, log), known, "served"
    from in_torch import Torch

    return Torch(run, tokenizer, stops), prepare(run, folder, None, None)[1], "served"


async def serve(args, run, name: str, taken: socket.socket, key: str, drawn: bool):
    import uvicorn

    from front import app
    from ready import check

    serving, template = contract_of(run)
    config = read_json(run.base / "config.json")
    longest = (config | config.get("text_config", {})).get("max_position_embeddings") or 2048
    context = min(args.context or max(serving["max_length"], 2048), longest)
    prompts, stops, tokenizer = prompts_of(run, name, serving, template)
    began = time.time()
    backend, known, kind = started(args, run, name, serving, context, stops, tokenizer)
    try:
        await backend.ready()
        if wrong := await check(backend, name, known, kind):
            fail(wrong)
        face = app(backend, prompts, context, key, args.max_requests, args.timeout, args.log_prompts)
        server = uvicorn.Server(uvicorn.Config(face, log_level="warning", access_log=False, server_header=False,
                                               timeout_graceful_shutdown=3, lifespan="off"))  # fmt: skip
        server.capture_signals = contextlib.nullcontext  # which raises them again at the end
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, server.handle_exit)
        task = asyncio.create_task(server.serve(sockets=[taken]))
        while not server.started and not task.done():
            await asyncio.sleep(0.02)
        host, port = taken.getsockname()[:2]
        if drawn:
            print(f"key: {key}")
        print(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}/v1  models: base, {name}", flush=True)
        print(f"{type(backend).__name__}, {kind}, context {context}, {time.time() - began:.1f} s", file=sys.stderr)
        while not task.done():
            await asyncio.wait([task], timeout=1)
            if (child := getattr(backend, "child", None)) and child.process.poll() is not None:
                raise SystemExit(child.died())
        await task
    finally:
        backend.close()


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    given = args.key or os.environ.get("OPENAI_API_KEY")
    if args.host not in ("127.0.0.1", "localhost", "::1") and not given:
        raise SystemExit(f"--host {args.host} is open to others: give --key, or set OPENAI_API_KEY.")
    taken = listen(args.host, args.port)
    run = open_run(args.adapter, args.model)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(args, run, name_of(run), taken, given or secrets.token_urlsafe(), not given))
    sys.stdout.flush()
    os._exit(0)  # all is closed; Python would take seconds more to clear its memory


if __name__ == "__main__":
    main()
