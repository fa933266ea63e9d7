"""What a chat request may ask for, as OpenAI's API has it.

A field that would change the answer and is not computed here is refused with 400 rather than ignored.
"""

UNREAD = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Fields that are taken where they say what happens anyway.
ONLY = {"n": (1,), "logprobs": (False,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
        "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"), "modalities": (["text"],),
        "top_logprobs": (0,), "functions": ([],)}  # fmt: skip


class Wrong(Exception):
    """A request that is answered with an error. Arguments: status, text, the field, OpenAI's code."""


def number(body, name, low, high, default, kind=(int, float)):
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise Wrong(400, f"'{name}' must be {what} from {low} to {high}.", name)
    return value


def asked(body: dict) -> dict:
    """What a request asks for, checked: max_tokens (or None), temperature, top_p, seed, stop, stream, usage."""
    known = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
             "seed", "stop", *UNREAD, *ONLY}  # fmt: skip
    for name, value in body.items():
        if name not in known:
            raise Wrong(400, f"Unrecognized request argument supplied: {name[:60]}", name[:60])
        if name in ONLY and value is not None and value not in ONLY[name]:
            raise Wrong(400, f"'{name}' is not supported here beyond {ONLY[name][0]!r}.", name, "unsupported_value")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(each, str) and each for each in stop):
        raise Wrong(400, "'stop' must be a text or a list of at most 4 texts.", "stop")
    options = body.get("stream_options") or {}
    if not isinstance(body.get("stream"), bool | None) or not isinstance(options, dict):
        raise Wrong(400, "'stream' must be true or false, 'stream_options' an object.", "stream")
    limit = number(body, "max_completion_tokens", 1, 2**31, None, int)
    return {"max_tokens": number(body, "max_tokens", 1, 2**31, None, int) if limit is None else limit,
            "temperature": number(body, "temperature", 0, 2, 0), "top_p": number(body, "top_p", 0, 1, 1),
            "seed": number(body, "seed", -(2**63), 2**63 - 1, None, int), "stop": stop,
            "stream": bool(body.get("stream")), "usage": bool(options.get("include_usage"))}  # fmt: skip


def talk_of(body: dict) -> list[dict]:
    """The messages as role and text. Parts of text are joined."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Wrong(400, "'messages' must be a list with at least one message.", "messages")
    talk = []
    for at, each in enumerate(messages):
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text"
                                             and isinstance(part.get("text"), str) for part in content):  # fmt: skip
            content = "".join(part["text"] for part in content)
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise Wrong(
                400, "a message has a role (system, user or assistant) and a content of text.", f"messages[{at}]"
            )
        talk.append({"role": role, "content": content})
    if not any(each["role"] == "user" for each in talk):
        raise Wrong(400, "a user message is needed.", "messages")
    return talk
