"""A/B in use: a proxy in front of serve.py that gives each user one of the two models, and counts thumbs.

    arm(user) = the run, if sha256(salt, user) / 2^256 < share, else base

A user keeps an arm, whatever is asked and however often the proxy is started: an answer of each in turn would be a blend of
both. Clients ask for the model `ab`. Of each user the first thumb counts: the draw was of users, and the thumbs of one are
not independent. There is no verdict before each arm has the number of them that was set beforehand (--needed), and that
many, the first ones, decide: who looks after every thumb and stops when the interval happens to leave out 0 finds a
difference between two equal models in far more than 5% of all tests.

    OPENAI_API_KEY=... python ab_proxy.py outputs/medical/20261122-101500 --port 8080
    curl http://127.0.0.1:8080/ab -H "Authorization: Bearer $OPENAI_API_KEY"

POST /v1/chat/completions {"model": "ab", "user": ..., "messages": ...}; POST /v1/feedback {"id": ..., "thumb": "up"|"down"};
GET /v1/models, GET /ab. Its own key is AB_KEY, else that of the server, OPENAI_API_KEY.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass
from functools import partial

from common.cli import arg, parse
from common.paths import output_dir
from found import with_run
from votes import append, needed, read, result

DEFAULTS = dict(
    url="http://127.0.0.1:8000/v1",  # of serve.py
    host="127.0.0.1",
    port=8080,
    share=0.5,  # of the users that get the trained model
    needed=needed(0.5, 0.6),  # users per arm with a thumb: tells 50% up from 60% up, 5% false alarms, 80% found
    timeout=600.0,  # seconds for one answer
)


@dataclass
class Args:
    adapter: str | None = arg(
        None,
        "a finished run's folder (default: the one that --url serves, else the newest of all recipes); also without the flag",
    )
    salt: str | None = arg(
        None, "what users are drawn with (default: drawn once, kept beside the log); another: drawn anew"
    )
    log_prompts: bool = arg(False, "keep messages and answers in ab.jsonl: KTO rows are made of these (votes.py)")


def arm_of(user: str, salt: str, share: float) -> bool:
    """Whether a user gets the trained model: the same every time."""
    drawn = int.from_bytes(hashlib.sha256(f"{salt}\n{user}".encode()).digest(), "big")
    return drawn < share * 2**256


def salt_of(folder) -> str:
    """The salt that is kept in a folder, drawn once. Nobody else knows it: the users behind the log can't be guessed."""
    file = folder / "salt.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), open(file, "x", opener=partial(os.open, mode=0o600)) as made:
        made.write(secrets.token_hex())
    if not (salt := file.read_text().strip()):  # killed in between
        raise SystemExit(f"{file} is empty. Delete it: another salt is drawn.")
    return salt


def app(args, name: str, key: str, file):
    """The proxy. name: of the trained model on the server. file: ab.jsonl."""
    import httpx
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    from chat_request import Wrong
    from front import failed
    from front import read as body_of

    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}", "Content-Type": "application/json"}
    client = httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(args.timeout, connect=5))
    known = {row["id"] for row in read(file)[0] if "arm" in row}  # a log of a month is not read again for each thumb

    def guarded(handler):
        async def handle(request):
            try:
                if not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {key}".encode()):
                    raise Wrong(401, "Wrong key.")
                async with asyncio.timeout(60):
                    body = await body_of(request) if request.method == "POST" else {}
                return await handler(request, body)
            except Wrong as error:
                return failed(*error.args)
            except TimeoutError:
                return failed(408, "The request did not arrive within 60 seconds.")
            except ClientDisconnect:
                return failed(499, "The client left.")

        return handle

    async def chat(request, body):
        if body.get("model") != "ab":
            raise Wrong(404, "The model here is 'ab'.")
        user = body.get("user") or request.headers.get("x-user")
        if not isinstance(user, str) or not user:
            raise Wrong(400, "Say who asks, in 'user' or the header X-User: an arm belongs to a user.")
        arm = name if arm_of(user, args.salt, args.share) else "base"
        line = {"user": hashlib.sha256(f"{args.salt}\n{user}".encode()).hexdigest()[:16], "arm": arm, "tokens": 0}
        began, text, asked = time.monotonic(), [], body | {"model": arm}
        options = body.get("stream_options") if isinstance(body.get("stream_options"), dict) else {}
        if body.get("stream"):  # tokens are counted whether or not the client asks for it
            asked["stream_options"] = options | {"include_usage": True}
        try:
            content = json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()
            sent = client.build_request("POST", f"{args.url}/chat/completions", content=content, headers=headers)
            answer = await client.send(sent, stream=True)
        except ValueError:
            raise Wrong(400, "NaN and Infinity are no JSON.") from None
        except httpx.HTTPError as error:
            raise Wrong(502, f"The model server does not answer: {type(error).__name__}.") from None

        def note(event):
            """Read what the log keeps of an answer, or of a piece of one, and hide whose it is."""
            if event.get("id"):
                line["id"] = event["id"]
                known.add(event["id"])
            line["tokens"] = (event.get("usage") or {}).get("completion_tokens", line["tokens"])
            for choice in event.get("choices", ()):
                text.append((choice.get("message") or choice.get("delta") or {}).get("content") or "")
            return event | {"model": "ab"}

        def write(**more):
            kept = {"messages": body.get("messages"), "answer": "".join(text)} if args.log_prompts else {}
            append(file, line | {"seconds": round(time.monotonic() - began, 3), "thumb": None} | kept | more)

        if answer.status_code != 200 or not body.get("stream"):
            try:
                made = json.loads(await answer.aread())
            except (ValueError, httpx.HTTPError):
                raise Wrong(502, "The model server's answer is no JSON.") from None
            finally:
                await answer.aclose()
            if answer.status_code == 200:
                made = note(made)
                write()
            return JSONResponse(made, answer.status_code)

        async def pieces():
            whole = False
            try:
                async for piece in answer.aiter_lines():
                    if piece.startswith("data: {"):
                        event = note(json.loads(piece[6:]))
                        if not options.get("include_usage") and not event.get("choices") and event.get("usage"):
                            continue
                        piece = "data: " + json.dumps(event, ensure_ascii=False)
                    whole = whole or piece == "data: [DONE]"
                    yield piece + "\n"
            finally:
                await answer.aclose()  # of a client that left, too: the server stops writing
                if "id" in line:
                    write(**({} if whole else {"left": True}))

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def feedback(request, body):
        if body.get("thumb") not in ("up", "down") or not isinstance(body.get("id"), str):
            raise Wrong(400, "Feedback is {'id': an answer's id, 'thumb': 'up' or 'down'}.")
        if body["id"] not in known:
            raise Wrong(404, "No answer has this id.")
        append(file, {"id": body["id"], "thumb": body["thumb"]})
        return JSONResponse({"ok": True})

    async def show(request, body):
        return JSONResponse(result((await asyncio.to_thread(read, file))[0], name, args.needed))

    async def models(request, body):
        return JSONResponse(
            {"object": "list", "data": [{"id": "ab", "object": "model", "created": 0, "owned_by": "local"}]}
        )

    routes = [Route("/v1/chat/completions", guarded(chat), methods=["POST"]), Route("/ab", guarded(show)),
              Route("/v1/feedback", guarded(feedback), methods=["POST"]), Route("/v1/models", guarded(models)),
              Route("/health", lambda _: JSONResponse({"status": "ok"}))]  # fmt: skip
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
    args.salt = args.salt or salt_of(file.parent)
    print(
        f"ready: http://{args.host}:{args.port}/v1  model: ab ({args.share:.0%} of the users get {name}); log: {file}",
        flush=True,
    )
    uvicorn.run(app(args, name, key, file), host=args.host, port=args.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
