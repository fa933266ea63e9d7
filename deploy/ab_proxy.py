"""A/B in use: a proxy in front of serve.py that gives each user one of the two models, and counts thumbs.

    arm(user) = the run, if sha256(salt, user) / 2^256 < share, else base

A user keeps an arm, whatever is asked and however often the proxy is started: an answer of each in turn would be a blend of
both. Clients ask for the model `ab`. There is no verdict before each arm has the number of thumbs that was set beforehand
(--needed): who looks after every thumb and stops when the interval happens to leave out 0 finds a difference between two equal
models in far more than 5% of all tests.

    OPENAI_API_KEY=... python ab_proxy.py outputs/medical/20261122-101500 --port 8080
    curl http://127.0.0.1:8080/ab -H "Authorization: Bearer $OPENAI_API_KEY"

POST /v1/chat/completions {"model": "ab", "user": ..., "messages": ...}; POST /v1/feedback {"id": ..., "thumb": "up"|"down"};
GET /ab. Its own key is AB_KEY, else that of the server, OPENAI_API_KEY.
"""

import hashlib
import hmac
import json
import os
import sys
import time
from dataclasses import dataclass

from common.cli import arg, parse
from common.paths import output_dir
from found import with_run
from votes import append, needed, newcombe, read, wilson

DEFAULTS = dict(
    url="http://127.0.0.1:8000/v1",  # of serve.py
    host="127.0.0.1",
    port=8080,
    share=0.5,  # of the users that get the trained model
    needed=needed(0.5, 0.6),  # thumbs per arm: tells 50% up from 60% up, 5% false alarms, 80% found
    salt="ab",  # another one draws the users anew: for the next test
    timeout=600.0,  # seconds for one answer
)
BODY = 1_000_000  # bytes of a request


@dataclass
class Args:
    adapter: str | None = arg(None, "the run's folder (default: the one that is served); also without the flag")
    log_prompts: bool = arg(False, "keep messages and answers in ab.jsonl: KTO rows are made of these (votes.py)")


def arm_of(user: str, salt: str, share: float) -> bool:
    """Whether a user gets the trained model: the same every time."""
    drawn = int.from_bytes(hashlib.sha256(f"{salt}\n{user}".encode()).digest(), "big")
    return drawn < share * 2**256


def result(log: list[dict], name: str, needed: int) -> dict:
    """Counts, shares of thumbs up with 95% intervals, their difference, and a verdict once there are enough."""
    arms = {row["id"]: row["arm"] for row in log if row.get("arm") in ("base", name)}
    thumbs = {row["id"]: row["thumb"] for row in log if row.get("thumb") in ("up", "down")}  # the last one counts
    found = {}
    for arm in ("base", name):
        given = [thumb for each, thumb in thumbs.items() if arms.get(each) == arm]
        seconds = sorted(row["seconds"] for row in log if row.get("arm") == arm)
        up, n = given.count("up"), len(given)
        found[arm] = {"answers": len(seconds), "thumbs": n, "up": up, "interval": wilson(up, n),
                      "median_seconds": seconds[len(seconds) // 2] if seconds else None}  # fmt: skip
    low, high = newcombe(found[name]["up"], found[name]["thumbs"], found["base"]["up"], found["base"]["thumbs"])
    missing = max(0, needed - min(each["thumbs"] for each in found.values()))
    verdict = f"not enough thumbs yet: {missing} more for the arm that has fewer"
    if not missing:
        verdict = f"{name} is better" if low > 0 else "base is better" if high < 0 else "no difference was found"
    return {"arms": found, "difference": [low, high], "needed": needed, "verdict": verdict}


def app(args, name: str, key: str, file):
    """The proxy. name: of the trained model on the server. file: ab.jsonl."""
    import httpx
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    client = httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(args.timeout, connect=5))

    def failed(status, text):
        return JSONResponse({"error": {"message": text, "type": "invalid_request_error"}}, status)

    async def body_of(request):
        """The request as an object, or an answer that says what is wrong with it."""
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), key.encode()):
            return failed(401, "Wrong key.")
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > BODY:
                return failed(413, f"The request is over {BODY:,} bytes.")
        try:
            body = json.loads(content.decode()) if content else {}
        except (ValueError, RecursionError):
            return failed(400, "The body is no JSON in UTF-8.")
        return body if isinstance(body, dict) else failed(400, "The body is no JSON object.")

    async def chat(request):
        if not isinstance(body := await body_of(request), dict):
            return body
        if body.get("model") != "ab":
            return failed(404, "The model here is 'ab'.")
        user = body.get("user") or request.headers.get("x-user")
        if not isinstance(user, str) or not user:
            return failed(400, "Say who asks, in 'user' or the header X-User: an arm belongs to a user.")
        arm = name if arm_of(user, args.salt, args.share) else "base"
        line = {"user": hashlib.sha256(f"{args.salt}\n{user}".encode()).hexdigest()[:16], "arm": arm, "tokens": 0}
        began, text = time.monotonic(), []
        try:
            sent = client.build_request(
                "POST", f"{args.url}/chat/completions", json=body | {"model": arm}, headers=headers
            )
            answer = await client.send(sent, stream=True)
        except httpx.HTTPError as error:
            return failed(502, f"The model server does not answer: {type(error).__name__}.")

        def note(event):
            """Read what the log keeps of an answer, or of a piece of one, and hide whose it is."""
            line["id"] = event.get("id", line.get("id"))
            line["tokens"] = (event.get("usage") or {}).get("completion_tokens", line["tokens"])
            for choice in event.get("choices", ()):
                text.append((choice.get("message") or choice.get("delta") or {}).get("content") or "")
            return event | {"model": "ab"}

        def write(**more):
            kept = {"messages": body.get("messages"), "answer": "".join(text)} if args.log_prompts else {}
            append(file, line | {"seconds": round(time.monotonic() - began, 3), "thumb": None} | kept | more)

        if answer.status_code != 200 or not body.get("stream"):
            content = await answer.aread()
            await answer.aclose()
            try:
                made = json.loads(content)
            except ValueError:
                return failed(502, "The model server's answer is no JSON.")
            if answer.status_code == 200:
                made = note(made)
                write()
            return JSONResponse(made, answer.status_code)

        async def pieces():
            whole = False
            try:
                async for piece in answer.aiter_lines():
                    if piece.startswith("data: {"):
                        piece = "data: " + json.dumps(note(json.loads(piece[6:])), ensure_ascii=False)
                    whole = whole or piece == "data: [DONE]"
                    yield piece + "\n"
            finally:
                await answer.aclose()  # of a client that left, too: the server stops writing
                if "id" in line:
                    write(**({} if whole else {"left": True}))

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def feedback(request):
        if not isinstance(body := await body_of(request), dict):
            return body
        if body.get("thumb") not in ("up", "down") or not isinstance(body.get("id"), str):
            return failed(400, "Feedback is {'id': an answer's id, 'thumb': 'up' or 'down'}.")
        if body["id"] not in {row["id"] for row in read(file)[0] if "arm" in row}:
            return failed(404, "No answer has this id.")
        append(file, {"id": body["id"], "thumb": body["thumb"]})
        return JSONResponse({"ok": True})

    async def show(request):
        if not isinstance(body := await body_of(request), dict):
            return body
        return JSONResponse(result(read(file)[0], name, args.needed))

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/feedback", feedback, methods=["POST"]),
              Route("/ab", show), Route("/health", lambda _: JSONResponse({"status": "ok"}))]  # fmt: skip
    return Starlette(routes=routes)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    key = os.environ.get("AB_KEY") or os.environ.get("OPENAI_API_KEY")
    if not key:
        raise SystemExit("set OPENAI_API_KEY to the key of serve.py (and AB_KEY, if the proxy is to have another one).")
    import uvicorn

    from asking import Unanswered, served
    from compare import run_of

    try:
        name = served(args.url)
    except Unanswered as error:
        raise SystemExit(error.args[0]) from None
    run_of(args.adapter, None, name)  # refuses another run than the served one
    file = output_dir("deploy") / "votes" / name / "ab.jsonl"
    print(
        f"ready: http://{args.host}:{args.port}/v1  model: ab ({args.share:.0%} of the users get {name}); log: {file}",
        flush=True,
    )
    uvicorn.run(app(args, name, key, file), host=args.host, port=args.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
