"""A running server as one more arm of the gate: what it serves, and not what lies in the file that it was given.

vLLM tells the log-probabilities of a prompt's own tokens (prompt_logprobs), and of the likeliest ones beside each. The
slope needs the former only. KL is taken over the tokens that are told, and all others as one: a lower bound.
"""

import json
import urllib.error
import urllib.request

import numpy

TOP = 20  # of each token so many alternatives; vLLM's --max-logprobs is 20 unless told otherwise


def post(url: str, path: str, body=None):
    request = urllib.request.Request(url.rstrip("/") + path, json.dumps(body).encode() if body else None,
                                     {"Content-Type": "application/json"})  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, ValueError) as error:
        reason = error.read().decode(errors="replace")[:300] if isinstance(error, urllib.error.HTTPError) else error
        raise SystemExit(f"--served {url}: {path}: {reason}") from None


def pick(url: str, name: str | None) -> str:
    """The model's name on the server."""
    known = [each["id"] for each in post(url, "/v1/models")["data"]]
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        raise SystemExit(f"--name: the server has {', '.join(known)}.")
    return name


def judge(url: str, name: str | None, reference, expected):
    """(log-probabilities, KL, faults, kind) of a served model."""
    name, found, kl, at, faults = pick(url, name), [], 0.0, 0, []
    for ids, _ in reference.pairs:
        body = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": TOP}
        told = post(url, "/v1/completions", body)["choices"][0].get("prompt_logprobs")
        if not told or len(told) != len(ids):
            raise SystemExit(f"--served {url}: no prompt_logprobs in its answer. The gate asks vLLM's server.")
        for token, each in zip(ids[reference.first :], told[reference.first :], strict=True):
            known = {int(key): value["logprob"] for key, value in each.items()}
            found.append(known[token])
            kl += bucketed(numpy.asarray(reference.kept[at], numpy.float64), known)
            at += 1
    if expected:
        from common.contract import PROBES

        for probe, ids in zip(PROBES, expected, strict=True):
            asked = post(url, "/tokenize", {"model": name, "messages": probe, "add_generation_prompt": True})
            if asked["tokens"] != ids and not faults:
                faults.append("its chat API asks in other tokens than training did: start it with --chat-template "
                              "serving_template.jinja")  # fmt: skip
    found = numpy.array(found)
    if not numpy.isfinite(found).all():
        faults.append("values that are not finite")
    return found, kl / at, faults, "served"


def bucketed(own, known: dict) -> float:
    """KL over the tokens that a server names, all others being one. own: log-probabilities of the whole vocabulary."""
    tokens = list(known)
    p, q = numpy.exp(own[tokens]), numpy.exp([known[token] for token in tokens])
    p, q = numpy.append(p, max(1 - p.sum(), 1e-12)), numpy.append(q, max(1 - q.sum(), 1e-12))
    return float((p * numpy.log(numpy.maximum(p, 1e-12) / numpy.maximum(q, 1e-12))).sum())
