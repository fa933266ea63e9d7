"""The small gate before serve.py says "ready": do base and adapter answer there as they do in PyTorch?

Three held-out texts, the likeliest next tokens at eight places of each answer. As in gate.py, a slope tells what is served:

    slope of  log p_served - log p_base  over  log p_adapter - log p_base:   1 for the run, 0 for the base

PyTorch's side, and files for llama.cpp that no export made, are written once for a run, in a process of its own: serve.py
itself never loads PyTorch for them.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from common.files import read_json, take_lock, write_json

TEXTS, PLACES, KNOWN = 3, 8, 40
FAILED = 5  # the exit code; also gate.py's for "another model"


def prepare(run, folder: Path, quant: str | None, merged: Path | None) -> tuple[dict, dict]:
    """({arm: GGUF file}, PyTorch's side of the gate) of a run, from `folder`, or made there.

    quant: type of the GGUF files; None: none are needed. merged: the run's own, where export.py made it.
    PyTorch's side: {"dtype", "moved", "places": [{"ids", "tokens", "base", "adapter"}]}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while (lock := take_lock(folder)) is None:  # another server of this run is preparing it
        time.sleep(0.5)
    try:
        for left in folder.glob(".new-*"):
            left.unlink()
        return prepared(run, folder, quant, merged)
    finally:
        lock.release()


def prepared(run, folder: Path, quant: str | None, merged: Path | None) -> tuple[dict, dict]:
    from found import digest, name_of

    known, inputs = folder / "reference.json", {"adapter": digest(run.adapter), "base": str(run.base), "format": 1}
    fresh = read_json(known).get("inputs") == inputs
    files = (
        {"base": folder / f"base-{quant}.gguf", name_of(run): merged or folder / f"run-{quant}.gguf"} if quant else {}
    )
    missing = {arm: str(file) for arm, file in files.items()
               if not file.is_file() or not fresh and file.parent == folder}  # fmt: skip
    if missing or not fresh:
        order = {"adapter": str(run.adapter), "base": str(run.base), "folder": str(folder), "quant": quant,
                 "files": missing, "inputs": inputs, "reference": not fresh}  # fmt: skip
        done = subprocess.run([sys.executable, __file__], input=json.dumps(order), text=True, capture_output=True)
        if done.returncode:
            raise SystemExit((done.stderr.strip().splitlines() or ["preparing the run failed."])[-1])
    return files, read_json(known)


async def check(backend, name: str, known: dict, kind: str) -> str:
    """What is wrong with what is served; "" if nothing is. kind: of the file, one of gate.LIMITS."""
    import numpy

    from gate import LIMITS, NEAR, NOTHING, slope, verdict
    from served import bucketed

    if known["moved"] <= NOTHING[known["dtype"]]:
        return "training changed nothing: base and adapter give the same probabilities"
    limit = LIMITS[kind] if known["dtype"] == "float32" else max(LIMITS[kind], 5e-3)
    limit = max(limit, 1e-3)
    for arm, near, far in ((name, "adapter", "base"), ("base", "base", "adapter")):
        x, y, groups, kl = [], [], [], 0.0
        for at, place in enumerate(known["places"]):
            told = await backend.likeliest(arm, place["ids"])
            own = dict(zip(place["tokens"], zip(place[near], place[far], strict=True), strict=True))
            both = [token for token in told if token in own]
            kl += bucketed(
                numpy.array([own[token][0] for token in both]), dict(enumerate(told[token] for token in both))
            )
            x += [own[token][0] - own[token][1] for token in both]
            y += [told[token] - own[token][1] for token in both]
            groups += [at] * len(both)
        x, y, groups = numpy.array(x), numpy.array(y), numpy.array(groups)
        at, low, high = slope(x, y, groups, 0)
        explained = at * at * float((x * x).sum()) / max(float((y * y).sum()), 1e-30)
        code = verdict(low, high, kl / len(known["places"]), limit, explained)
        if code:
            undecided = "undecided which of the two is" if code == 6 else "another model is"
            other = f"the {far} is" if abs(at) < NEAR else undecided
            what = "the run" if arm == name else "the base"
            return (f"{other} served as {arm!r}, not {what}: slope {at:.2f} ({low:.2f} to {high:.2f}) of 1, "
                    f"KL {kl / len(known['places']):.2g} per token (limit {limit:g})")  # fmt: skip
    return ""


def main():
    """Write what `prepare` asks for; its order comes as JSON on stdin."""
    import os

    if sys.argv[1:]:
        return print(__doc__)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the GPU is the server's
    order = json.load(sys.stdin)
    from common import paths
    from found import open_run

    paths.load_env()
    run, folder = open_run(order["adapter"], order["base"]), Path(order["folder"])
    for arm, file in order["files"].items():
        write_gguf(run, arm, Path(file), order["quant"])
    if order["reference"]:  # comes last: it says that the files are this run's
        write_json(folder / "reference.json", in_torch(run) | {"inputs": order["inputs"]})


def write_gguf(run, arm: str, file: Path, quant: str):
    import os

    import gguf_file
    import merged
    import quantise
    from common.paths import check_disk
    from found import contract, threads

    weights = sum(each.stat().st_size for each in run.base.glob("*.safetensors"))
    check_disk(file.parent, int(1.1 * weights * (2 if quant.endswith("_m") else 1)), "the served files")
    serving, template = contract(run)
    adapter = merged.Adapter(None if arm == "base" else run.adapter, run.base)
    new, half = file.with_name(f".new-{file.name}"), file.with_name(".new-f16.gguf")
    if quant.endswith("_m"):
        gguf_file.write_model(adapter, run.adapter, half, "f16", serving, template, arm)
        quantise.quantise(half, new, quant, threads())
        half.unlink()
    else:
        gguf_file.write_model(adapter, run.adapter, new, quant, serving, template, arm)
    os.replace(new, file)


def in_torch(run) -> dict:
    """PyTorch's side: of each place the likeliest tokens, with log-probabilities of base and adapter."""
    import torch
    from peft import PeftModel

    import scores
    from found import contract, free_memory, tokenizer_of

    (serving, template), tokenizer = contract(run), tokenizer_of(run)
    dtype = scores.dtype_for(run.base, free_memory())
    model = PeftModel.from_pretrained(scores.load(run.base, dtype, "cpu"), str(run.adapter)).eval()
    try:
        pairs = scores.texts(run, tokenizer, template, None, serving["max_length"])
    except SystemExit:  # an old run without its recipe's folder: the adapter's own answers
        pairs = written(model, tokenizer, template)
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))[:: max(1, len(pairs) // TEXTS)][:TEXTS]
    places, moved = [], []
    for ids, first in pairs:
        ids = ids[: first + PLACES]
        adapter = after(model, ids, first)
        with model.disable_adapter():
            base = after(model, ids, first)
        for at in range(len(adapter)):
            tokens = sorted({*adapter[at].topk(KNOWN).indices.tolist(), *base[at].topk(KNOWN).indices.tolist()})
            moved.append((adapter[at] - base[at])[tokens].square().mean())
            places.append({"ids": ids[: first + at], "tokens": tokens,
                           "base": base[at][tokens].tolist(), "adapter": adapter[at][tokens].tolist()})  # fmt: skip
    moved = float(torch.stack(moved).mean().sqrt())
    return {"dtype": str(dtype).removeprefix("torch."), "moved": moved, "places": places}


def after(model, ids, first):
    """Log-probabilities (tokens, vocabulary) for the tokens from ids[first] on."""
    import torch

    with torch.inference_mode():
        made = model(torch.tensor([ids[:-1]], device=model.device), use_cache=False).logits[0, first - 1 :]
    return torch.log_softmax(made.float(), -1)


def written(model, tokenizer, template):
    import torch

    from common.contract import probe_ids

    pairs = []
    for ids in probe_ids(tokenizer, template):
        made = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=PLACES, do_sample=False)
        pairs.append((made[0].tolist(), len(ids)))
    return pairs


if __name__ == "__main__":
    main()
