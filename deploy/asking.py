"""A client of serve.py: which run it serves, and its answer to a question. The key comes from OPENAI_API_KEY."""

import json
import os
import time


class Unanswered(Exception):
    """The server gave no answer. Arguments: one line for a person, the HTTP status or 0."""


def call(url: str, path: str, body=None, timeout=30.0) -> dict:
    """One request with the key of the environment. Raises Unanswered. No proxy is used: the server is a local one."""
    import httpx

    key = os.environ.get("OPENAI_API_KEY", "")
    try:
        with httpx.Client(trust_env=False, timeout=httpx.Timeout(timeout, connect=5)) as client:
            answer = client.request("POST" if body else "GET", url.rstrip("/") + path, json=body,
                                    headers={"Authorization": f"Bearer {key}"} if key else {})  # fmt: skip
        content = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise Unanswered(
            f"{url}: {' '.join(str(error).split()) or type(error).__name__}. Is serve.py running there?", 0
        ) from None
    except ValueError:
        content = None
    if answer.status_code == 401:
        raise Unanswered(f"{url}: wrong key. Set OPENAI_API_KEY to the one that serve.py printed.", 401)
    if not isinstance(content, dict):
        raise Unanswered(
            f"{url}{path}: {answer.status_code}: {' '.join(answer.text[:300].split())}", answer.status_code
        )
    return content


def served(url: str) -> str:
    """The trained model's name on a server that has it beside `base`."""
    known = [str(each.get("id")) for each in call(url, "/models").get("data", [])]
    others = [name for name in known if name != "base"]
    if "base" not in known or len(others) != 1:
        raise Unanswered(f"{url} serves {', '.join(known) or 'nothing'}: not base and one run, as serve.py does.", 0)
    return others[0]


def ask(url: str, model: str, messages: list, max_new_tokens: int, timeout: float) -> dict:
    """{text, tokens, seconds, cut} of one greedy answer. Waits a little where the server is full. Raises Unanswered."""
    body = {"model": model, "messages": messages, "max_tokens": max_new_tokens, "temperature": 0}
    for pause in (1, 3, 9, None):
        began = time.monotonic()
        try:
            made = call(url, "/chat/completions", body, timeout)
            break
        except Unanswered as error:
            if error.args[1] not in (429, 503) or pause is None:
                raise
        time.sleep(pause)
    try:
        choice = made["choices"][0]
        return {"text": choice["message"]["content"] or "", "tokens": made["usage"]["completion_tokens"],
                "seconds": round(time.monotonic() - began, 2), "cut": choice["finish_reason"] == "length"}  # fmt: skip
    except (KeyError, IndexError, TypeError):
        raise Unanswered(f"{url}: an answer without a text: {json.dumps(made)[:200]}", 200) from None
