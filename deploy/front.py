"""The OpenAI-style face of serve.py: GET /health, GET /v1/models, POST /v1/chat/completions, and nothing else.

It checks the key and the request, renders the messages, and hands token ids to a backend. Errors have OpenAI's form.
"""

import asyncio
import hmac
import json
import sys
import time
import uuid

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from backends import Fault
from chat_request import Wrong, asked, talk_of

BODY = 1_000_000  # bytes of a request
DRAIN = 64_000_000  # of a longer one, read and thrown away, so that the client gets to read the answer
KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error",
         429: "rate_limit_error", 504: "timeout_error"}  # fmt: skip


def failed(status, text, param=None, code=None):
    error = {"message": text, "type": KINDS.get(status, "server_error"), "param": param, "code": code}
    return JSONResponse({"error": error}, status, {"Retry-After": "1"} if status == 429 else None)


async def read(request) -> dict:
    """The body of a request as JSON."""
    size, pieces = 0, []
    if int(request.headers.get("content-length") or 0) > DRAIN:
        raise Wrong(413, f"the request is longer than {BODY:,} bytes.")
    async for piece in request.stream():
        size += len(piece)
        if size <= BODY:
            pieces.append(piece)
        elif size > DRAIN:
            break
    if size > BODY:
        raise Wrong(413, f"the request is longer than {BODY:,} bytes.")
    try:
        body = json.loads(b"".join(pieces).decode("utf-8"))
        json.dumps(body, ensure_ascii=False).encode("utf-8")  # a lone surrogate is no text
    except (ValueError, RecursionError):
        raise Wrong(400, "the body is not JSON in UTF-8.") from None
    if not isinstance(body, dict):
        raise Wrong(400, "the body must be a JSON object.")
    return body


async def in_time(stream, deadline: float):
    """What a stream yields, until a time of the loop's clock: then TimeoutError, also where different tasks ask for it."""
    while True:
        async with asyncio.timeout_at(deadline):
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
        yield piece


def app(backend, prompts: dict, context: int, key: str, most: int, timeout: float, log_prompts: bool):
    """The application. prompts: model's name -> a function from messages to token ids. context: tokens, prompt and answer."""
    running, started = set(), int(time.time())

    def guarded(handler):
        async def handle(request):
            given = request.headers.get("authorization", "").encode("latin-1")
            try:
                if not hmac.compare_digest(given, f"Bearer {key}".encode()):
                    raise Wrong(401, "Incorrect API key provided.", None, "invalid_api_key")
                return await handler(request)
            except Wrong as error:
                return failed(*error.args)
            except ClientDisconnect:
                return failed(499, "the client left.")

        return handle

    async def health(request):
        return JSONResponse({"status": "ok"})

    async def models(request):
        entries = [{"id": name, "object": "model", "created": started, "owned_by": "local"} for name in prompts]
        return JSONResponse({"object": "list", "data": entries})

    async def chat(request):
        try:
            async with asyncio.timeout(60):
                body = await read(request)
        except TimeoutError:
            raise Wrong(408, "the request did not arrive within 60 seconds.") from None
        name = body.get("model")
        if not isinstance(name, str) or name not in prompts:
            raise Wrong(
                404,
                f"The model {str(name)[:80]!r} does not exist here: {', '.join(prompts)}.",
                "model",
                "model_not_found",
            )
        ask, talk = asked(body), talk_of(body)
        try:
            ids = await asyncio.to_thread(prompts[name], talk)
        except Exception as error:  # a template's own refusal, such as roles that do not alternate
            raise Wrong(400, f"the chat template refuses these messages: {str(error)[:200]}", "messages") from None
        if len(ids) >= context:
            raise Wrong(400, f"This model's maximum context length is {context} tokens. However, your messages resulted in "
                        f"{len(ids)} tokens.", "messages", "context_length_exceeded")  # fmt: skip
        ask["max_tokens"] = min(ask["max_tokens"] or context, context - len(ids))
        facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        pieces = answer(facts, name, ids, ask, talk)
        if not ask["stream"]:
            return await unless_gone(request, whole(pieces, facts))
        first = await unless_gone(request, anext(pieces))  # a fault before it still gets a status of its own
        if isinstance(first, JSONResponse):
            return first
        return StreamingResponse(server_events(first, pieces, facts, ask), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip

    async def answer(facts, name, ids, ask, talk):
        """Pieces of text, then the end's facts; in the log, one line whatever happens."""
        if len(running) >= most:
            raise Wrong(429, f"{most} requests are being answered: try again.", None, "rate_limit_exceeded")
        running.add(facts["id"])
        began, text, end = time.monotonic(), [], {"finish": "gone", "tokens": 0}
        stream = backend.stream(name, ids, ask)
        try:
            async for piece in in_time(stream, asyncio.get_running_loop().time() + timeout):
                if isinstance(piece, dict):
                    used = {"prompt_tokens": len(ids), "completion_tokens": piece["tokens"]}
                    end = piece | {"usage": used | {"total_tokens": len(ids) + piece["tokens"]}}
                    yield end
                else:
                    text.append(piece)
                    yield piece
        except TimeoutError:
            end["finish"] = "timeout"
            raise Wrong(504, f"no whole answer within {timeout:g} seconds.") from None
        except Fault as error:
            end["finish"] = "fault"
            raise Wrong(500, str(error)) from None
        finally:
            running.discard(facts["id"])
            line = {"time": facts["created"], "id": facts["id"], "model": name, "prompt_tokens": len(ids),
                    "tokens": end["tokens"], "seconds": round(time.monotonic() - began, 3), "finish": end["finish"]}  # fmt: skip
            if log_prompts:
                line |= {"messages": talk, "answer": "".join(text)}
            print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)
            await stream.aclose()

    async def whole(pieces, facts):
        text = []
        async for piece in pieces:
            if isinstance(piece, dict):
                message = {"role": "assistant", "content": "".join(text), "refusal": None}
                choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": piece["finish"]}
                return JSONResponse(
                    {**facts, "object": "chat.completion", "choices": [choice], "usage": piece["usage"]}
                )
            text.append(piece)
        raise Wrong(500, "the backend ended without an end.")

    async def unless_gone(request, work):
        """A response, unless the client leaves first: then the work is stopped."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left(request))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else failed(499, "the client left.")
        finally:
            task.cancel()
            gone.cancel()

    async def left(request):
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def chained(first, pieces):
        yield first
        async for piece in pieces:
            yield piece

    async def server_events(first, pieces, facts, ask):
        def event(choices, **more):
            content = {**facts, "object": "chat.completion.chunk", "choices": choices, **more}
            return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

        def part(delta, finish=None):
            return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

        empty = {"usage": None} if ask["usage"] else {}
        try:
            yield event(part({"role": "assistant", "content": ""}), **empty)
            async for piece in chained(first, pieces):
                if isinstance(piece, dict):
                    yield event(part({}, piece["finish"]), **empty)
                    if ask["usage"]:
                        yield event([], usage=piece["usage"])
                else:
                    yield event(part({"content": piece}), **empty)
            yield "data: [DONE]\n\n"
        except Wrong as error:
            yield f"data: {failed(*error.args).body.decode()}\n\n"
        finally:
            await pieces.aclose()

    routes = [Route("/health", health), Route("/v1/models", guarded(models)),
              Route("/v1/chat/completions", guarded(chat), methods=["POST"])]  # fmt: skip
    errors = {status: lambda request, error: failed(error.status_code, error.detail) for status in (404, 405)}
    errors[Exception] = lambda request, error: failed(500, "an error of the server's own; its log has it.")
    return Starlette(routes=routes, exception_handlers=errors)
