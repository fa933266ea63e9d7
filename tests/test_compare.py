"""deploy/: answers side by side, blind votes, thumbs behind a proxy, and the rows that training makes of them."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("found", "gate", "votes", "asking", "compare_page", "compare", "backends",
         "chat_request", "front", "ab_proxy", "compare_web")  # fmt: skip
RUN = "medical-20261126-101500"
EVIL = "<script>alert(1)</script> & <b>"


@pytest.fixture(scope="module")
def deploy(modules_of):
    found = modules_of("deploy", NAMES)
    before = {name: sys.modules.get(name) for name in NAMES}
    sys.modules.update(vars(found))  # functions import some of them late
    yield found
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module:
            sys.modules[name] = module


@pytest.fixture(scope="module")
def server():
    """serve.py's form without a model: each arm says its name and the question. -> (URL of /v1, requests so far)."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    asked = []

    async def chat(request):
        body = await request.json()
        asked.append(body | {"key": request.headers["authorization"]})
        text, at = f"{body['model']} says {body['messages'][-1]['content']}", f"chat-{len(asked)}"
        if body.get("stream"):
            pieces = [{"id": at, "model": body["model"], "choices": [{"delta": {"content": each}}]} for each in text]
            if (body.get("stream_options") or {}).get("include_usage"):
                pieces.append({"id": at, "model": body["model"], "choices": [], "usage": {"completion_tokens": 7}})
            lines = [f"data: {json.dumps(each)}\n\n" for each in pieces] + ["data: [DONE]\n\n"]
            return StreamingResponse(iter(lines), media_type="text/event-stream")
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        return JSONResponse({"id": at, "model": body["model"], "choices": [choice], "usage": usage})

    listed = JSONResponse({"data": [{"id": "base"}, {"id": RUN}]})
    app = Starlette(
        routes=[Route("/v1/models", lambda _: listed), Route("/v1/chat/completions", chat, methods=["POST"])]
    )
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    threading.Thread(target=running.run, daemon=True).start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/v1", asked
    running.should_exit = True


# -- statistics


def test_intervals_are_those_of_the_papers(deploy):
    assert deploy.votes.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert deploy.votes.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert deploy.votes.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998a, table I
    assert deploy.votes.newcombe(56, 70, 48, 80) == pytest.approx(
        (0.0524, 0.3339), abs=1e-4
    )  # Newcombe 1998b, table II
    assert deploy.votes.wilson(0, 0) == (0, 1) and deploy.votes.newcombe(1, 2, 0, 0) == (-1, 1)
    assert deploy.votes.needed(0.5, 0.6) == 388 and deploy.votes.needed_votes(0.6) == 194


def test_a_user_keeps_an_arm_and_half_of_them_have_each(deploy):
    arms = [deploy.ab_proxy.arm_of(f"user-{n}", "ab", 0.5) for n in range(2000)]
    assert arms == [deploy.ab_proxy.arm_of(f"user-{n}", "ab", 0.5) for n in range(2000)]
    assert abs(sum(arms) - 1000) < 3.3 * 22.4  # 3.3 sigma of 2,000 coins
    other = [deploy.ab_proxy.arm_of(f"user-{n}", "second test", 0.5) for n in range(2000)]
    assert 800 < sum(a == b for a, b in zip(arms, other, strict=True)) < 1200  # drawn anew
    assert not any(deploy.ab_proxy.arm_of(f"{n}", "ab", 0) for n in range(50))


def test_there_is_no_verdict_before_the_number_that_was_set(deploy):
    def log(base_up, run_up, n):
        rows = [{"id": f"{arm}{i}", "arm": arm, "seconds": 1.0} for arm in ("base", RUN) for i in range(n)]
        ups = {"base": base_up, RUN: run_up}
        return rows + [{"id": f"{arm}{i}", "thumb": "up" if i < ups[arm] else "down"} for arm in ups for i in range(n)]

    assert "not enough" in deploy.ab_proxy.result(log(0, 30, 30), RUN, 31)["verdict"]
    assert deploy.ab_proxy.result(log(10, 25, 30), RUN, 30)["verdict"] == f"{RUN} is better"
    assert deploy.ab_proxy.result(log(25, 10, 30), RUN, 30)["verdict"] == "base is better"
    assert "no difference" in deploy.ab_proxy.result(log(15, 16, 30), RUN, 30)["verdict"]
    say = deploy.compare_web.TEXTS["en"]
    assert set(say) == set(deploy.compare_web.TEXTS["zh"])


# -- the files


def vote(n, winner, base="no", tuned="yes"):
    return {"id": str(n), "messages": [{"role": "user", "content": f"question {n}?"}], "left": "base", "winner": winner,
            "answers": {"base": base, RUN: tuned}, "voter": "v"}  # fmt: skip


def test_two_writers_and_a_kill_in_a_line_lose_nothing(deploy, tmp_path):
    file = tmp_path / "votes.jsonl"
    code = ("import sys; from pathlib import Path; from votes import append\n"
            "for n in range(40): append(Path(sys.argv[1]), {'id': f'{sys.argv[2]}-{n}', 'text': '字' * 2000})")  # fmt: skip
    writers = [subprocess.Popen([sys.executable, "-c", code, file, name], cwd=ROOT / "deploy") for name in "ab"]
    assert [each.wait() for each in writers] == [0, 0]
    rows, bad = deploy.votes.read(file)
    assert len(rows) == 80 and bad == 0
    with open(file, "ab") as log:  # what kill -9 leaves, inside a character
        log.write('{"id": "cut", "text": "字'.encode()[:-1])
    deploy.votes.append(file, {"id": "after"})
    rows, bad = deploy.votes.read(file)
    assert len(rows) == 81 and rows[-1]["id"] == "after" and bad == 1


def test_votes_become_pairs_that_the_reward_models_reader_takes(deploy, modules_of, tmp_path):
    votes, thumbs = tmp_path / "votes.jsonl", tmp_path / "ab.jsonl"
    rows = [
        vote(1, RUN),
        vote(2, "base"),
        vote(3, "tie"),
        vote(4, RUN, tuned=" "),
        vote(5, "base", "same", "same"),
        vote(6, RUN),
    ]
    votes.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"id": "cut')
    talk = [{"role": "user", "content": "Why?"}]
    lines = [{"id": "x", "arm": RUN, "messages": talk, "answer": "So.", "thumb": None}, {"id": "y", "arm": "base", "thumb": None},
             {"id": "x", "thumb": "down"}, {"id": "x", "thumb": "up"}, {"id": "y", "thumb": "up"}]  # fmt: skip
    thumbs.write_text("\n".join(map(json.dumps, lines)))
    deploy.votes.main([str(votes), str(thumbs), "--out", str(tmp_path / "rows")])
    pairs = [json.loads(line) for line in (tmp_path / "rows" / "pairs.jsonl").read_text().splitlines()]
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("yes", "no"), ("no", "yes"), ("yes", "no")]
    (rated,) = [json.loads(line) for line in (tmp_path / "rows" / "kto.jsonl").read_text().splitlines()]
    assert rated == {"prompt": talk, "completion": "So.", "label": True}
    data = modules_of("rlhf_ppo", ("data",)).data
    train, held_out = data.load_splits(SimpleNamespace(data=str(tmp_path / "rows" / "pairs.jsonl"), eval_ratio=0.4, split_seed=0,
                                                       max_pairs=None))  # fmt: skip
    assert len(train) + len(held_out) == 3


# -- the pages and the proxy


def test_the_page_shows_both_answers_as_text(deploy, server, tmp_path, monkeypatch):
    url, _ = server
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"{EVIL} {n}", "reference": EVIL}) for n in range(3)))
    made = deploy.compare.main(["--url", url, "--prompts", str(file), "--out", str(tmp_path / "out"), "--lang", "zh"])
    text = made.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") >= 9 and "基座模型" in text
    assert "<mark>base</mark>" in text and f"<mark>{RUN.split('-')[0]}" in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched, nothing linked
    rows = [json.loads(line) for line in (tmp_path / "out" / "compare.jsonl").read_text().splitlines()]
    assert [row["answers"]["base"]["text"] for row in rows] == [f"base says {EVIL} {n}" for n in range(3)]


def test_a_server_that_is_not_there_and_rows_without_a_question_are_named(deploy, server, tmp_path):
    with pytest.raises(SystemExit, match=r"Is serve\.py running there"):
        deploy.compare.main(["--url", "http://127.0.0.1:9/v1"])
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a"}\n{"text": "b"}\n')
    with pytest.raises(SystemExit, match=r"questions\.jsonl.*line 2.*needs question"):
        deploy.compare.main(["--url", server[0], "--prompts", str(file)])


def test_the_salt_is_drawn_once_and_nobody_elses(deploy, tmp_path):
    salt = deploy.ab_proxy.salt_of(tmp_path / "a")
    assert len(salt) == 64 and deploy.ab_proxy.salt_of(tmp_path / "a") == salt != deploy.ab_proxy.salt_of(
        tmp_path / "b"
    )
    assert (tmp_path / "a" / "salt.txt").stat().st_mode & 0o777 == 0o600
    (tmp_path / "a" / "salt.txt").write_text("")
    with pytest.raises(SystemExit, match="salt.txt is empty"):
        deploy.ab_proxy.salt_of(tmp_path / "a")


def test_the_proxy_hides_the_arm_keeps_the_log_and_takes_thumbs(deploy, server, tmp_path, monkeypatch):
    from starlette.testclient import TestClient

    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "upstream")
    args = SimpleNamespace(url=url, timeout=20.0, salt="ab", share=0.5, needed=3, log_prompts=False)
    file = tmp_path / "ab.jsonl"
    arms = {user: RUN if deploy.ab_proxy.arm_of(user, "ab", 0.5) else "base" for user in map(str, range(6))}
    assert len(set(arms.values())) == 2
    with TestClient(deploy.ab_proxy.app(args, RUN, "own", file)) as client:
        client.headers["authorization"] = "Bearer own"
        for user, arm in arms.items():
            body = {"model": "ab", "messages": [{"role": "user", "content": "secret 头痛"}], "user": user}
            said = client.post("/v1/chat/completions", json=body).json()
            assert said["model"] == "ab" and said["choices"][0]["message"]["content"] == f"{arm} says secret 头痛"
            assert asked[-1]["key"] == "Bearer upstream"
            assert client.post("/v1/feedback", json={"id": said["id"], "thumb": "up"}).json() == {"ok": True}
        streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
        pieces = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        assert "".join(each["choices"][0]["delta"]["content"] for each in pieces) == f"{arm} says secret 头痛"
        assert {each["model"] for each in pieces} == {"ab"} and "data: [DONE]" in streamed
        found = client.get("/ab").json()["arms"]
        assert (
            sum(each["thumbs"] for each in found.values()) == 6 and sum(each["answers"] for each in found.values()) == 7
        )
        for body, code in (
            (b"\xff", 400),
            (b"[1]", 400),
            (b'{"model": "base"}', 404),
            (b'{"model": "ab"}', 400),
            (b"1" * 1_000_001, 413),
        ):
            assert client.post("/v1/chat/completions", content=body).status_code == code
        assert client.post("/v1/feedback", json={"id": "none", "thumb": "up"}).status_code == 404
        client.headers["authorization"] = "Bearer upstream"
        assert client.get("/ab").status_code == client.post("/v1/chat/completions", json={}).status_code == 401
    log = file.read_text(encoding="utf-8")
    assert "secret" not in log and '"user": "5"' not in log  # neither texts nor who


def test_users_decide_not_thumbs_and_only_the_first_ones(deploy):
    """One user's thumbs are not independent: at 20 each, two equal models "differ" in half of all tests. And who goes on
    looking after the number that was set is peeking, too."""

    def log(arm, ups, user=None, at=0):
        answers = [
            {"id": f"{arm}{at + n}", "arm": arm, "user": user or f"{arm} {at + n}", "seconds": 1}
            for n in range(len(ups))
        ]
        return answers + [
            {"id": each["id"], "thumb": "up" if up else "down"} for each, up in zip(answers, ups, strict=True)
        ]

    many = deploy.ab_proxy.result(log(RUN, [1] * 50, "one") + log("base", [0] * 50, "another"), RUN, 20)
    assert [each["thumbs"] for each in many["arms"].values()] == [1, 1] and many["verdict"].startswith("not enough")
    even = log(RUN, [0, 1] * 10) + log("base", [0, 1] * 10)
    assert deploy.ab_proxy.result(even, RUN, 20)["verdict"] == "no difference was found"
    more = even + log(RUN, [1] * 100, at=20) + log("base", [0] * 100, at=20)
    assert deploy.ab_proxy.result(more, RUN, 20)["verdict"] == "no difference was found"
    assert deploy.ab_proxy.result(more, RUN, 120)["verdict"] == f"{RUN} is better"


def test_the_verdict_of_votes_is_that_of_the_first_ones(deploy, tmp_path):
    say, file = deploy.compare_web.TEXTS["en"], tmp_path / "votes.jsonl"

    def row(n, winner):
        return json.dumps({"id": str(n), "answers": {"base": "", RUN: ""}, "winner": winner}) + "\n"

    even = "".join(row(n, ("base", RUN)[n % 2]) for n in range(20)) + row(20, "tie")
    file.write_text(even + "".join(row(n, RUN) for n in range(21, 99)))
    assert say["same"].format(needed=20) in deploy.compare_web.standing(file, RUN, 20, say)
    assert say["better"].format(needed=98) in deploy.compare_web.standing(file, RUN, 98, say)


def test_the_proxy_counts_a_streams_tokens_and_refuses_what_is_no_text(deploy, server, tmp_path, monkeypatch):
    from starlette.testclient import TestClient

    monkeypatch.setenv("OPENAI_API_KEY", "upstream")
    args = SimpleNamespace(url=server[0], timeout=20.0, salt="ab", share=0.5, needed=3, log_prompts=False)
    body = {"model": "ab", "user": "u", "stream": True, "messages": [{"role": "user", "content": "q"}]}
    with TestClient(
        deploy.ab_proxy.app(args, RUN, "own", tmp_path / "ab.jsonl"), raise_server_exceptions=False
    ) as client:
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer own"
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["ab"]
        for asked in ({}, {"stream_options": {"include_usage": True}}):
            text = client.post("/v1/chat/completions", json=body | asked).text
            assert ('"choices": []' in text) == bool(asked)  # the usage is passed on to who asked for it
            assert deploy.votes.read(tmp_path / "ab.jsonl")[0][-1]["tokens"] == 7
        for text in (b'"user": "\\ud800"', b'"user": "u", "temperature": NaN', b'"user": "u", "stop": "\\udfff"'):
            assert client.post("/v1/chat/completions", content=b'{"model": "ab", ' + text + b"}").status_code == 400


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="make nightly runs a browser")
def test_a_blind_vote_in_a_browser(deploy, server, tmp_path):
    """Cast, written, then revealed; nothing is asked of another host; no sideways scrolling on a phone."""
    browser = next((each for each in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(each).exists()), None)
    if not browser:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": EVIL}))
    environment = os.environ | {"OPENAI_API_KEY": "k", "OUTPUT_DIR": str(tmp_path)}
    command = [
        sys.executable,
        "compare_web.py",
        "--url",
        server[0],
        "--port",
        "0",
        "--lang",
        "en",
        "--prompts",
        str(file),
    ]
    with subprocess.Popen(command, cwd=ROOT / "deploy", env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            ready = page.stdout.readline()
            assert ready.startswith("ready: "), ready
            with sync_playwright() as play:
                chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
                tab, foreign = chromium.new_page(viewport={"width": 390, "height": 800}), []
                tab.on("request", lambda each: None if "127.0.0.1" in each.url or each.url.startswith(("data:", "blob:"))
                       else foreign.append(each.url))  # fmt: skip
                tab.goto(ready.split()[1])
                tab.click("button:has-text('Another question')")
                tab.click("button:has-text('Right is better'):not([disabled])")
                revealed = tab.wait_for_selector("text=/Left: .*Right: /").inner_text()
                right = revealed.split("Right: ")[1].rstrip(".").strip()
                assert tab.evaluate("document.documentElement.scrollWidth") <= 390 and foreign == []
                assert "not enough votes" in tab.inner_text("body").lower()
                chromium.close()
        finally:
            page.kill()
            page.communicate(timeout=20)  # ends when nobody holds its output any more: a worker that outlives it would
    (row,) = deploy.votes.read(tmp_path / "deploy" / "votes" / RUN / "votes.jsonl")[0]
    assert (
        row["winner"] == {"base model": "base"}.get(right, right)
        and set(row["answers"]) == {"base", RUN}
        and row["voter"]
    )
