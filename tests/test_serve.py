"""deploy/serve.py: what a client of OpenAI's API gets, what it may not do, and that both models are what they are called.

The base is made to say one text, character by character; the run's adapter is random, so that it says something else.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_deploy import make_run

from common import contract

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("found", "merged", "gguf_file", "llama", "quantise", "scores", "served", "gate", "export", "chat_request",
         "backends", "in_torch", "front", "ready", "serve")  # fmt: skip
TEXT = "Rest 休息党参🍵"  # several tokens for some characters, and none of them twice
NAME = "medical-run"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deploy(modules_of):
    pytest.importorskip("xllamacpp")
    found = modules_of("deploy", NAMES)
    sys.modules.update(vars(found))  # some are imported late; no other folder has these names
    yield found
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


def make_chain(folder, tokenizer):
    """A Llama that says TEXT after a line's end, whatever was asked: each token's logits are the next one's embedding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    config = LlamaConfig(vocab_size=49152, eos_token_id=2, pad_token_id=0, initializer_range=0.25, **shape,
                         tie_word_embeddings=False, max_position_embeddings=8192)  # fmt: skip
    model = LlamaForCausalLM(config)
    chain = [tokenizer("\n").input_ids[0], *tokenizer(TEXT).input_ids, 2]
    assert len(set(chain)) == len(chain) > len(TEXT)
    with torch.no_grad():
        embedding, head, layer = model.model.embed_tokens.weight, model.lm_head.weight, model.model.layers[0]
        embedding.copy_(torch.nn.functional.normalize(torch.randn_like(embedding)))
        head.normal_(0, 0.02)
        for now, following in zip(chain, chain[1:], strict=False):
            head[following] = 2 * embedding[now]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """(run's folder, OUTPUT_DIR)."""
    outputs = tmp_path_factory.mktemp("outputs")
    base = make_chain(tmp_path_factory.mktemp("chain"), tokenizer)
    return make_run(outputs / "medical" / "run", base, tokenizer, scale=4.0), outputs


def start(made, *flags, port=0, key=None):
    """A server that is ready: process, url, key, port, log."""
    run, outputs = made
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    environment |= {"OUTPUT_DIR": str(outputs), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = outputs / f"serve-{time.time_ns()}.log"
    command = [sys.executable, str(ROOT / "deploy" / "serve.py"), str(run), "--port", str(port), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(log, "wb"), env=environment, text=True)  # noqa: SIM115
    for line in process.stdout:
        if line.startswith("key: "):
            key = line.split()[1]
        if line.startswith("ready: "):
            assert line.split("models: ")[1].strip() == f"base, {NAME}"
            url = line.split()[1]
            return SimpleNamespace(
                process=process, url=url, key=key, log=log, port=int(url.split(":")[2].split("/")[0])
            )
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def server(made):
    running = start(made, "--slots", 2, "--max_requests", 24, "--context", 8000)
    yield running
    running.process.kill()


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)


def ask(client, model, text="Is tea good?", **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


# -- the official client


def test_a_whole_answer(client):
    said = ask(client, "base", max_tokens=100)
    assert said.choices[0].message.content == TEXT and said.choices[0].finish_reason == "stop"
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    cut = ask(client, "base", max_completion_tokens=3)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 3
    assert TEXT.startswith(cut.choices[0].message.content)
    assert [each.id for each in client.models.list()] == ["base", NAME]


def test_a_stream_has_whole_characters_only(client):
    chunks = list(ask(client, "base", stream=True, stream_options={"include_usage": True}))
    pieces = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(pieces) == TEXT and "\ufffd" not in "".join(pieces) and len([p for p in pieces if p]) > 5
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 10 and not chunks[-1].choices
    assert {each.id for each in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"
    streamed = "".join(each.choices[0].delta.content or "" for each in ask(client, NAME, stream=True, max_tokens=40))
    assert streamed == ask(client, NAME, max_tokens=40).choices[0].message.content != TEXT


def test_stop_texts_seed_and_temperature(client):
    assert ask(client, "base", stop=["息", "never"]).choices[0].message.content == TEXT.split("息")[0]
    parts = ask(client, "base", stop="党参", stream=True)
    assert "".join(each.choices[0].delta.content or "" for each in parts) == TEXT.split("党")[0]
    how = dict(temperature=1.5, top_p=0.95, seed=7, max_tokens=12)
    first, again, other = (ask(client, NAME, **how | more).choices[0].message.content for more in ({}, {}, {"seed": 8}))
    assert first == again != other


def test_parts_of_text_and_what_is_refused(client, server):
    import openai

    parts = [{"type": "text", "text": "Is "}, {"type": "text", "text": "tea good?"}]
    assert ask(client, NAME, parts, max_tokens=9).choices == ask(client, NAME, max_tokens=9).choices
    picture = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    for more in (dict(n=2), dict(logprobs=True), dict(temperature=3), dict(max_tokens=0), dict(extra_body={"top_k": 1}),
                 dict(text=picture), dict(tools=[{"type": "function", "function": {"name": "f"}}]), dict(stop=[""])):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, "base", **more)
        assert refused.value.body["type"] == "invalid_request_error" and refused.value.body["message"]
    assert ask(client, "base", n=1, user="me", frequency_penalty=0).choices[0].message.content == TEXT
    with pytest.raises(openai.NotFoundError, match="does not exist here: base, medical-run"):
        ask(client, "../../etc/passwd")
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(base_url=server.url, api_key=server.key[:-1], max_retries=0), "base")


def test_a_prompt_longer_than_the_context(client):
    import openai

    with pytest.raises(
        openai.BadRequestError, match="maximum context length is 8000 tokens.* resulted in 80[0-9][0-9] tokens"
    ):
        ask(client, "base", "tea " * 8000)
    capped = ask(client, NAME, "tea " * 7930, temperature=2, seed=1, max_tokens=500)
    assert capped.usage.total_tokens == 8000 and capped.choices[0].finish_reason == "length"


def test_eight_at_once_over_both_models_are_not_mixed_up(client):
    asked = [(model, f"{what}?") for what in ("Tea", "茶", "Sleep", "头痛") for model in ("base", NAME)]

    def one(each):
        return ask(client, *each, max_tokens=30).choices[0].message.content

    alone = [one(each) for each in asked]
    assert alone[::2] == [TEXT] * 4 and len(set(alone[1::2])) > 1
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, asked * 3))
    assert together[::2] == [TEXT] * 12  # greedy answers of the run may part where two tokens are as likely
    for said, own in zip(together[1::2], alone[1::2] * 3, strict=True):
        assert said[:2] == own[:2] and said != TEXT


def test_a_client_that_leaves_frees_its_place(client, server):
    """Six answers of 7,000 tokens in two places: each is given up early, so a seventh client does not wait for them."""
    import openai

    endless = dict(temperature=2, seed=1, max_tokens=7000)
    began = time.monotonic()
    for _ in range(4):
        stream = ask(client, NAME, **endless, stream=True)
        next(stream), next(stream), next(stream)
        stream.close()
    for _ in range(2):
        with pytest.raises(openai.APITimeoutError):
            ask(client, NAME, **endless, timeout=0.3)
    assert ask(client, NAME, max_tokens=2).usage.completion_tokens == 2
    took = time.monotonic() - began
    time.sleep(0.2)
    gone = [json.loads(line) for line in server.log.read_text().splitlines() if '"gone"' in line]
    assert len(gone) == 6 and sum(each["seconds"] for each in gone) < took + 0.5
    began = time.monotonic()
    ask(client, NAME, temperature=2, seed=1, max_tokens=700)
    assert took < 20 * (time.monotonic() - began)  # six whole ones in two places would take 30 times as long


# -- curl, and what no client should send


def curl(server, *arguments, path="/chat/completions", key=None, body=None):
    command = [
        "curl",
        "-sS",
        "-i",
        "-H",
        f"Authorization: Bearer {key or server.key}",
        *arguments,
        f"{server.url}{path}",
    ]
    done = subprocess.run(command, input=body, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, content = content.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode().lower(), content


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(server):
    status, head, content = curl(server, path="/../health", key="none")
    assert status == 200 and json.loads(content) == {"status": "ok"}
    assert "access-control" not in head and "server:" not in head
    asked = json.dumps({"model": "base", "messages": [{"role": "user", "content": "Hi 🙂"}]}).encode()
    status, head, content = curl(server, "--data-binary", "@-", body=asked)
    assert status == 200 and json.loads(content)["choices"][0]["message"]["content"] == TEXT
    for status, body, more in (
        (413, b'{"model": "' + b"x" * 10_000_000 + b'"}', ()), (400, b'{"model": "\xff\xfe"}', ()), (400, b"{", ()),
        (400, b"[1]", ()), (400, b'{"model": "base", "messages": []}', ()), (400, b'{"a": "\\ud800"}', ()),
        (400, b"[" * 100_000, ()), (404, b'{"model": "other"}', ()), (401, asked, ("-H", "Authorization: Bearer x")),
        (413, b" " * 3_000_000, ("-H", "Transfer-Encoding: chunked")),
    ):  # fmt: skip
        got, head, content = curl(server, "--data-binary", "@-", *more, body=body, key="x" if status == 401 else None)
        assert got == status and json.loads(content)["error"]["message"], (status, got, body[:40])
    assert curl(server, path="/completions")[0] == 404 and curl(server)[0] == 405
    assert curl(server, path="/models", key="x")[0] == 401


def test_the_log_has_no_prompts(server, client):
    ask(client, "base", "a very private question")
    log = server.log.read_text()
    assert "private" not in log and "Rest" not in log and server.key not in log
    assert json.loads(log.splitlines()[-1])["finish"] == "stop"


# -- the process


def children(process):
    psutil = pytest.importorskip("psutil")
    return psutil.Process(process.pid).children(recursive=True)


def call(main, *argv):
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    return end.value.code


def test_what_the_command_line_refuses(deploy, made, server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "open to others: give --key" in call(deploy.serve.main, made[0], "--host", "0.0.0.0")
    assert "Address already in use" in call(deploy.serve.main, made[0], "--port", server.port)
    assert "a port from 0 to 65535" in call(deploy.serve.main, made[0], "--port", 99999)
    monkeypatch.setenv("OUTPUT_DIR", str(made[1]))
    assert "no such file" in call(deploy.serve.main, made[0], "--port", 0, "--files", "/nowhere", "--backend", "llama")


def test_kill_9_leaves_nothing_and_the_same_command_starts_again(made, server):
    """Comes after all that ask this server."""
    left = children(server.process)
    assert left and all(len(" ".join(each.cmdline())) < 300 and server.key not in each.cmdline() for each in left)
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 5
    while any(each.is_running() and each.status() != "zombie" for each in left):
        assert time.monotonic() < end
        time.sleep(0.05)
    second = start(made, "--log_prompts", port=server.port)
    assert second.port == server.port and second.key and second.key != server.key
    openai = pytest.importorskip("openai")
    ask(openai.OpenAI(base_url=second.url, api_key=second.key), "base", "Not so private")
    assert "Not so private" in second.log.read_text() and TEXT in second.log.read_text()
    left = children(second.process)
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(6) == 0 and "Traceback" not in second.log.read_text()
    assert not any(each.is_running() and each.status() != "zombie" for each in left)


# -- what is served is what was trained


@pytest.fixture(scope="module")
def opened(deploy, made, server):
    """The run, with its files for llama.cpp and PyTorch's side of the gate, as the server left them."""
    run = deploy.found.open_run(made[0])
    serving, template = deploy.found.contract(run)
    prompts, stops, tokenizer = deploy.serve.prompts_of(run, NAME, serving, template)
    files, known = deploy.ready.prepare(run, made[1] / "deploy" / "serve" / NAME, "q8_0", None)
    return SimpleNamespace(run=run, serving=serving, template=template, prompts=prompts, stops=stops, files=files,
                           known=known, tokenizer=tokenizer)  # fmt: skip


def test_prompts_are_the_contracts(deploy, opened, tokenizer):
    assert [opened.prompts[NAME](probe) for probe in contract.PROBES] == contract.probe_ids(tokenizer, opened.template)
    assert [opened.prompts["base"](probe) for probe in contract.PROBES] == contract.probe_ids(
        tokenizer, tokenizer.chat_template
    )
    assert opened.stops[NAME] == opened.serving["stop_ids"] and 2 in opened.stops["base"]


def test_another_template_ends_with_code_5(deploy, opened, made, tmp_path, capsys):
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    template = run / contract.TEMPLATE
    template.write_text(template.read_text() + "{{ ' ' }}")
    assert call(deploy.serve.main, run, "--port", 0, "--backend", "transformers") == 5
    assert "was changed after training" in capsys.readouterr().err


class Served:
    """A backend that gives for an arm what another arm is asked."""

    def __init__(self, real, arms):
        self.real, self.arms = real, arms

    async def likeliest(self, arm, ids):
        return await self.real.likeliest(self.arms.get(arm, arm), ids)


def test_transformers_answers_as_llama_cpp_and_the_gate_tells_arms_apart(deploy, opened, tmp_path):
    files = {arm: tmp_path / f"{arm}-f16.gguf" for arm in ("base", NAME)}
    for arm, file in files.items():
        deploy.ready.write_gguf(opened.run, arm, file, "f16")
    backend = deploy.in_torch.Torch(opened.run, opened.tokenizer, opened.stops)

    async def answer(arm, **more):
        ids = opened.prompts[arm]([{"role": "user", "content": "Is tea good?"}])
        told = {"max_tokens": 60, "temperature": 0, "top_p": 1, "seed": None, "stop": []} | more
        pieces = [piece async for piece in backend.stream(arm, ids, told)]
        return "".join(pieces[:-1]), pieces[-1]["finish"]

    async def work():
        await backend.ready()
        llama = deploy.backends.Llama(files, {"base": [], NAME: []}, 512, 2, 1, tmp_path / "log")
        try:
            await llama.ready()
            for real, kind in ((backend, "served"), (llama, "f16")):
                wrong = [await deploy.ready.check(Served(real, arms), NAME, opened.known, kind)
                         for arms in ({}, {NAME: "base"}, {"base": NAME})]  # fmt: skip
                assert wrong[0] == "" and "the base is served as 'medical-run'" in wrong[1], wrong
                assert "the adapter is served as 'base'" in wrong[2], wrong
            ids = opened.prompts[NAME]([{"role": "user", "content": "Is tea good?"}])
            one, other = await backend.likeliest(NAME, ids), await llama.likeliest(NAME, ids)
            both = set(one) & set(other)
            assert len(both) > 10 and max(abs(one[token] - other[token]) for token in both) < 0.03
        finally:
            llama.close()
        assert await answer("base") == (TEXT, "stop")
        assert await answer("base", stop=["党参"]) == (TEXT.split("党")[0], "stop")
        cut, finish = await answer("base", max_tokens=3)
        assert finish == "length" and cut and TEXT.startswith(cut)
        said = await asyncio.gather(answer(NAME, max_tokens=12), answer("base"), answer(NAME, max_tokens=12))
        assert said[0] == said[2] != said[1] == (TEXT, "stop")

    asyncio.run(work())
    backend.close()


# -- the front alone


def asgi(deploy, backend, requests, most=2, timeout=5.0):
    """The answers of several requests at once, from an application in this process."""
    import httpx

    face = deploy.front.app(backend, {"base": lambda talk: [1, 2, 3]}, 16, "k", most, timeout, False)

    async def work():
        http = httpx.AsyncClient(transport=httpx.ASGITransport(face), base_url="http://x")
        body = {"model": "base", "messages": [{"role": "user", "content": "a"}]}
        posts = (
            http.post("/v1/chat/completions", json=body | more, headers={"Authorization": "Bearer k"})
            for more in requests
        )
        return await asyncio.gather(*posts)

    return asyncio.run(work())


class Slow:
    def __init__(self, seconds, fault=None):
        self.seconds, self.fault = seconds, fault

    async def stream(self, arm, ids, ask):
        if ask["seed"]:
            yield "first"
        await asyncio.sleep(self.seconds)
        if self.fault:
            raise self.fault
        yield "x"
        yield {"finish": "stop", "tokens": 1}


def test_too_many_requests_too_slow_ones_and_a_backend_that_fails(deploy):
    made = asgi(deploy, Slow(0.3), [{}] * 2 + [{"stream": True}] * 2)
    assert sorted(each.status_code for each in made) == [200, 200, 429, 429]
    (late,) = asgi(deploy, Slow(3), [{}], timeout=0.2)
    assert late.status_code == 504 and late.json()["error"]["type"] == "timeout_error"
    (late,) = asgi(deploy, Slow(3), [{"stream": True, "seed": 1}], timeout=0.3)
    events = [line.removeprefix("data: ") for line in late.text.split("\n\n") if line]
    assert "first" in events[1] and json.loads(events[-1])["error"]["type"] == "timeout_error"
    for more in ({}, {"stream": True}):
        (failed,) = asgi(deploy, Slow(0, deploy.backends.Fault("gone wrong")), [more])
        assert failed.status_code == 500 and failed.json()["error"]["message"] == "gone wrong"


# -- vLLM: the command line, what it is not given, and the wiring to a server that answers as it does

PLAIN = {"r": 16, "lora_alpha": 16, "use_dora": False, "init_lora_weights": True}


def test_the_command_line_of_vllm(deploy):
    argv = deploy.backends.vllm_command("/b", "/runs/x", NAME, PLAIN, 8001, 2048)
    said = dict(zip(argv[3::1], argv[4::1], strict=False))
    assert argv[:3] == ["vllm", "serve", "/b"] and "--enable-lora" in argv
    assert said["--lora-modules"] == f"{NAME}=/runs/x" and said["--served-model-name"] == "base"
    assert said["--host"] == "127.0.0.1" and said["--port"] == "8001" and said["--max-model-len"] == "2048"
    ranks = {8: 8, 9: 16, 100: 128, 320: 320, 321: 512}
    for rank, known in ranks.items():
        argv = deploy.backends.vllm_command("/b", "/r", NAME, PLAIN | {"r": 4, "rank_pattern": {"q": rank}}, 1, 2)
        assert argv[argv.index("--max-lora-rank") + 1] == str(known)
    with pytest.raises(SystemExit, match="up to 512, this one is 600"):
        deploy.backends.vllm_command("/b", "/r", NAME, PLAIN | {"r": 600}, 1, 2)


@pytest.mark.parametrize("settings, serving, tensors, says", [
    ({}, {}, [], ""), ({"use_dora": True}, {}, [], "DoRA"), ({"modules_to_save": ["lm_head"]}, {}, [], "lm_head"),
    ({}, {}, ["base_model.model.visual.blocks.0.q.lora_A.weight"], "visual"),
    ({"init_lora_weights": "pissa"}, {"kind": "merge", "init": "pissa"}, [], "pissa"),
])  # fmt: skip
def test_what_vllm_is_not_given(deploy, settings, serving, tensors, says):
    why = deploy.backends.vllm_refusal(
        PLAIN | settings, {"kind": "plain", "init": True} | serving, tensors, "export --to merged"
    )
    assert says in why and (not says or why.endswith("Merge it: export --to merged"))


FAKE_VLLM = """
import http.server, json, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"] and asked["prompt"] == [5, 6]
        self.send_response(200 if good else 401); self.end_headers()
        if asked.get("logprobs"):
            told = {"logprobs": {"top_logprobs": [{"token_id:7": -0.5, "token_id:9": -1.5}]}}
            return self.wfile.write(json.dumps({"choices": [told]}).encode())
        for text, finish in ((asked["model"], None), (str(asked["stop_token_ids"]), "stop")):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish}]}).encode() + b"\\n\\n")
        self.wfile.write(b'data: {"choices": [], "usage": {"completion_tokens": 4}}\\n\\ndata: [DONE]\\n\\n')
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_the_wiring_to_vllm_and_that_its_children_end(deploy, tmp_path):
    port = deploy.serve.free_port()
    (tmp_path / "fake.py").write_text(FAKE_VLLM)
    argv = [sys.executable, str(tmp_path / "fake.py"), str(port)]
    backend = deploy.backends.Vllm(argv, port, {"base": [2], NAME: [2, 3]}, tmp_path / "log")

    async def work():
        await backend.ready()
        told = {"max_tokens": 60, "temperature": 0, "top_p": 1, "seed": None, "stop": []}
        pieces = [piece async for piece in backend.stream(NAME, [5, 6], told)]
        assert pieces == [NAME, "[2, 3]", {"finish": "stop", "tokens": 4}]
        assert await backend.likeliest("base", [5, 6]) == {7: -0.5, 9: -1.5}
        with pytest.raises(deploy.backends.Fault, match="401"):
            [piece async for piece in backend.stream(NAME, [5], told)]

    asyncio.run(work())
    left = children(backend.child.process)
    assert len(left) == 2
    began = time.monotonic()
    backend.close()
    assert time.monotonic() - began < 6
    while any(each.is_running() and each.status() != "zombie" for each in left):
        assert time.monotonic() - began < 10
        time.sleep(0.05)


def test_the_load_knows_whose_answer_it_was_given(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from serve_load import whose

    alone = {("base", "q"): "Tea is good.", ("run", "q"): "Ten cups.", ("run", "r"): "Tea is green."}
    assert whose("Tea is good.", "base", "q", alone) == "same"
    assert whose("Tea is goodly", "base", "q", alone) == "parted"  # rounded otherwise
    assert whose("Ten cups.", "base", "q", alone) == whose("Tea is good.", "run", "q", alone) == "mixed"
