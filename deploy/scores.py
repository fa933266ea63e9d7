"""The texts that a gate reads, and what each arm thinks of them: log-probabilities of every token, in one pass per text.

Teacher-forced: all arms read the same tokens, so they are compared where a generated text would drift apart. What all
prompts begin with is not counted. KL needs the whole distribution: the adapter's is kept on disk, the others come by.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from common import adapters, contract, hub, models, rows
from common.contract import HELD_OUT
from common.files import read_json
from common.paths import TASK_DIR
from found import reads_of

PROMPTS, TOKENS = 20, 2000  # at least so many, where there are so many
AT_ONCE = 32  # tokens whose distributions are computed with: more of them leave the cache

# Runs in a recipe's folder: its own data.py and prompt.py give the run's held-out rows as token ids.
ENCODE = """
import contextlib, inspect, json, sys
from types import SimpleNamespace
given = json.load(sys.stdin)
sys.path[0] = given["folder"]
with contextlib.redirect_stdout(sys.stderr):
    from common import models, paths
    paths.load_env()
    import prompt
    from data import load_splits
    tokenizer = models.load_tokenizer(given["tokenizer"])
    train, held_out = load_splits(SimpleNamespace(**given["arguments"]))
    known, options = inspect.signature(prompt.encode).parameters, {}
    if "template" in known:
        options["template"] = given["texts"]
    if "loss_on" in known:
        options["loss_on"] = "answer"
    found, tokens = [], 0
    for part in (held_out, train):
        for row in part[:400].to_pylist() if hasattr(part, "to_pylist") else part[:400]:
            if len(found) >= 200:
                break
            if hasattr(prompt, "IMAGE"):  # the text part is asked without the picture
                found.append({"prompt": row["prompt"], "response": row["response"]})
                continue
            try:
                made = prompt.encode(tokenizer, [row], **options)
            except KeyError:
                continue
            if isinstance(made, tuple):
                (ids,), (labels,) = made
                first = next((i for i, label in enumerate(labels) if label != -100), len(ids))
            else:
                ids, first = made[0]["prompt"] + made[0]["chosen"], len(made[0]["prompt"])
            found.append({"input_ids": ids, "answer": first})
print(json.dumps(found))
"""


def texts(run, tokenizer, template: str, file: str | None, longest: int) -> list[tuple[list[int], int]]:
    """(token ids, index of the answer's first token) of the run's held-out rows, then of training rows if these are few.

    From `file` (JSON lines: prompt, a text or messages, and response), from the run's folder, or from its recipe's folder.
    """
    beside = TASK_DIR.parent / str(run.record.get("task"))
    if file:
        found, where = given_rows(rows.read(file), tokenizer, template), file
    elif (run.adapter / HELD_OUT).is_file():
        found, where = rows.read_lines(run.adapter / HELD_OUT), run.adapter / HELD_OUT
    elif (beside / "prompt.py").is_file():
        found, where = recipe_rows(run, beside), beside
        if "response" in found[0]:
            found = given_rows(enumerate(found, 1), tokenizer, template)
    else:
        raise SystemExit(f"{run.adapter} keeps no held-out rows ({HELD_OUT}), and {beside} is not there. Copy the recipe's "
                         "folder beside this one, or give --rows FILE: JSON lines with prompt and response.")  # fmt: skip
    # By its ids, so that a text that comes twice is no second one.
    cut = {tuple(row["input_ids"][:longest]): row["answer"] for row in found}
    fitting = [(list(ids), first) for ids, first in cut.items() if first < len(ids)]
    if not fitting:
        raise SystemExit(f"{where}: no row fits in {longest} tokens.")
    pairs, count, head = [], 0, shared(fitting[:PROMPTS])
    for ids, first in fitting:
        if len(pairs) >= PROMPTS and count >= TOKENS:
            break
        pairs.append((ids, first))
        count += len(ids) - head
    return pairs


def given_rows(found, tokenizer, template) -> list[dict]:
    """(place, row) pairs with prompt (a text, or messages) and response, as token ids in the serving template."""
    made = []
    for place, row in found:
        if isinstance(row, rows.Bad):
            raise SystemExit(f"{place}{rows.said(row)}.")
        row = row if isinstance(row, dict) else {}
        prompt = row.get("prompt") or row.get("question") or row.get("instruction")
        answer = row.get("response") or row.get("answer") or row.get("output")
        if not isinstance(prompt, (str, list)) or not prompt or not isinstance(answer, str):
            raise SystemExit(f"{place}: a row needs prompt (a text, or messages) and response.")
        talk = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = tokenizer.apply_chat_template(talk, chat_template=template, add_generation_prompt=True, return_dict=False)
        answer = tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        made.append({"input_ids": list(ids) + answer, "answer": len(ids)})
    return made


def recipe_rows(run, folder: Path):
    given = {"folder": str(folder), "tokenizer": str(reads_of(run)), "arguments": run.arguments, "texts": run.texts}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", ENCODE], input=json.dumps(given, default=str), capture_output=True,
                          text=True, env=environment)  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"the held-out rows of {run.adapter} cannot be read again: {reason}\nGive --rows FILE: JSON lines with "
                         "prompt and response.")  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def shared(pairs) -> int:
    """How many tokens all prompts begin with: a template's head, which says nothing of one text."""
    prompts = [ids[:first] for ids, first in pairs]
    short, count = min(map(len, prompts)), 0
    while len(prompts) > 1 and count < short and len({prompt[count] for prompt in prompts}) == 1:
        count += 1
    return max(1, count)


class Reference:
    """Base and adapter in PyTorch: log-probabilities of every token, and on disk the adapter's whole distributions.

    public: the base that the run began with, of one that trained every weight; the model it made is "the adapter" then.
    """

    def __init__(self, run, pairs, dtype, folder: Path, nf4=False, public=None):
        self.pairs, self.first = pairs, shared(pairs)
        self.groups = numpy.repeat(range(len(pairs)), [len(ids) - self.first for ids, _ in pairs])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, public = load(run.base, dtype, device, nf4), public or run.base
        if public == run.base:
            model = adapters.attach(model, run.adapter).eval()
        self.size = model.config.get_text_config().vocab_size
        self.file = tempfile.NamedTemporaryFile(dir=folder, prefix=".new-reference-")  # noqa: SIM115
        self.kept = numpy.memmap(self.file, numpy.float32, "w+", shape=(len(self.groups), self.size))
        adapter = []
        for at, each, tokens in self.read(of_torch(model), "adapter"):
            self.kept[at : at + len(each)] = each.cpu().numpy()
            adapter.append(of_token(each, tokens))
        self.adapter = numpy.concatenate(adapter)
        alone = model.disable_adapter() if public == run.base else None
        if not alone or model.peft_config["default"].init_lora_weights in contract.MERGED_ONLY:  # PEFT changed the base
            model, alone = load(public, dtype, device, nf4), contextlib.nullcontext()
        with alone:
            self.base, self.kl_base, finite = self.score(of_torch(model), "base")
        if not finite:
            raise SystemExit(f"{run.adapter}: base or adapter gives values that are not finite.")

    def read(self, logits, name: str):
        """Yield (number of the first token, log-probabilities (tokens, vocabulary), token ids), a few tokens at a time.

        With a bar that says which arm reads: at 7B that takes minutes.
        """
        at = 0
        for ids, _ in tqdm(self.pairs, name, unit=" texts", leave=False, disable=None):
            made, tokens = torch.as_tensor(logits(ids, self.first)), ids[self.first :]
            for start in range(0, len(made), AT_ONCE):
                part = made[start : start + AT_ONCE, : self.size].float()
                yield at, torch.log_softmax(part, -1), tokens[start : start + AT_ONCE]
                at += len(part)

    def score(self, logits, name="file") -> tuple[numpy.ndarray, float, bool]:
        """(log-probability of each token, KL(adapter || arm) per token, all finite) of an arm.

        logits(ids, first): logits (tokens, vocabulary) for the tokens from ids[first] on. name: what the bar says.
        """
        found, kl = [], 0.0
        for at, made, tokens in self.read(logits, name):
            own = torch.from_numpy(self.kept[at : at + len(made)]).to(made.device)
            kl += float((own.exp() * (own - made)).sum())
            found.append(of_token(made, tokens))
        found = numpy.concatenate(found)
        return found, kl / len(self.groups), bool(numpy.isfinite(found).all() and numpy.isfinite(kl))


def of_token(distributions, ids):
    return distributions[range(len(ids)), ids].cpu().numpy().astype(numpy.float64)


def of_torch(model):
    """logits(ids, first) of a model, as Reference.score wants them. What all texts begin with is computed once."""
    past = None

    @torch.inference_mode()
    def logits(ids, first):
        nonlocal past
        tokens = torch.tensor([ids[:-1]], device=model.device)
        head = first - 1
        if past is None and head:
            past = model(tokens[:, :head], use_cache=True, logits_to_keep=1).past_key_values
        made = model(tokens[:, head:], past_key_values=past, use_cache=past is not None).logits[0]
        if past is not None:
            past.crop(head - tokens.shape[1])
        return made

    return logits


def load(folder: Path, dtype, device, nf4=False):
    """A whole model of text, or of pictures of which the text part is asked. nf4: its linear layers in 4 bits, as QLoRA's."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    config, four_bit = read_json(folder / "config.json"), None
    if nf4:
        four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype)  # fmt: skip
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    placed = {"": 0 if device == "cuda" else "cpu"} if nf4 or "quantization_config" in config else None
    model = hub.load(kind, folder, dtype=dtype, quantization_config=four_bit, device_map=placed).eval()
    return model if placed else model.to(device)


def dtype_for(base: Path, free: int):
    """float32 where a model takes less than half of the free memory in it, else bfloat16."""
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    return torch.float32 if 2 * weights < free / 2 else torch.bfloat16


def prompts_of_folder(folder: Path) -> list[list[int]]:
    """What a merged folder's own chat template makes of the probes."""
    tokenizer = models.load_tokenizer(folder)
    return contract.probe_ids(tokenizer, tokenizer.chat_template)
