"""One short training of one variant, in this process, and what is measured of it. compare.py makes many of them.

A plain loop: the same rows in the same order for every variant (a seed decides), linear decay after a short warm-up, gradients
clipped at 1. Weights stay in float32 (a variant's effect is small beside W's rounding), products are in bfloat16 on a GPU.
"""

import copy
import random
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed

import portable
import variants
from common import device, models
from common.cli import LINEAR
from flora import Flora
from prompt import encode

TARGETS = {"all": LINEAR, "attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": LINEAR[4:]}
SHOWN = 8  # held-out rows whose logits say whether an adapter is what was trained
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def encoded(tokenizer, rows):
    """[(ids, labels)] of rows."""
    return list(zip(*encode(tokenizer, rows), strict=True))


def batch_of(rows, where):
    """(ids, labels), (B, L) each, padded on the right: under a causal mask no real token sees that."""
    ids, labels = ([torch.tensor(row[part]) for row in rows] for part in (0, 1))
    return pad_sequence(ids, True, 0).to(where), pad_sequence(labels, True, -100).to(where)


def losses(model, ids, labels):
    """-log p of each counted token, (tokens,), and the row of each. Logits of the prompt are not computed."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=device.has_bf16()):
        hidden = inner.model(input_ids=ids, use_cache=False)[0]
        row, place = (labels[:, 1:] != -100).nonzero(as_tuple=True)  # hidden states at t are about the token at t + 1
        logits = inner.lm_head(hidden[row, place])
    return cross_entropy(logits.float(), labels[row, place + 1], reduction="none"), row


@torch.no_grad()
def row_losses(model, rows, size=64):
    """(sum of -log p, counted tokens) of each row."""
    made, where = [], next(model.parameters()).device
    model.eval()
    for start in range(0, len(rows), size):
        ids, labels = batch_of(rows[start : start + size], where)
        each, row = losses(model, ids, labels)
        sums = torch.zeros(len(ids), device=where).index_add_(0, row, each)
        made += zip(sums.tolist(), (labels[:, 1:] != -100).sum(1).tolist(), strict=True)
    return made


def order(count, steps, size, seed):
    """`steps` lists of `size` row numbers: epoch after epoch, each in an order of its own."""
    draw, line = random.Random(seed), []
    while len(line) < steps * size:
        line += draw.sample(range(count), count)
    return [line[k * size : (k + 1) * size] for k in range(steps)]


def start(job, args, base, path, rows, where):
    """(model, optimizer) of a job on a copy of base, the seed set."""
    set_seed(job["seed"])
    if job["name"] in ("adamw", "flora"):
        model = copy.deepcopy(base).to(where).requires_grad_(True)
        if job["name"] == "flora":
            return model, Flora(model.parameters(), lr=job["lr"], rank=args.flora_rank, seed=job["seed"])
        return model, adamw(model, job)
    fields = dict(r=job["rank"], lora_alpha=args.lora_alpha, target_modules=TARGETS[job["targets"]])

    def build(**more):
        if job["name"] == "loftq":
            model = models.load_base(path, "hf", NF4, torch.bfloat16)
        else:
            model = copy.deepcopy(base).to(where)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields | more))

    def batches():
        made = [batch_of(rows[k : k + 32], where) for k in range(0, min(256, len(rows)), 32)]
        return [dict(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels) for ids, labels in made]

    how = SimpleNamespace(learning_rate=job["lr"], lora_r=job["rank"], lora_alpha=args.lora_alpha, loraplus_ratio=16.0)
    model, optimizer = variants.make(
        job["name"], build, how, path, batches, init_of(job, args), not init_of(job, args).is_dir()
    )
    models.widen_adapters(model)
    return model, optimizer or adamw(model, job)


def init_of(job, args):
    """Where A and B are kept as they began: an SVD or a pass over the data once, for all runs of a comparison."""
    return Path(args.out) / "init" / f"{job['name']}-{job['rank']}-{job['targets']}"


def adamw(model, job):
    trained = [each for each in model.parameters() if each.requires_grad]
    return torch.optim.AdamW(trained, job["lr"], weight_decay=0.0, fused=trained[0].is_cuda)


def train(model, optimizer, rows, job):
    """Train; returns the loss of each step."""
    where, steps, seen = next(model.parameters()).device, job["steps"], []
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = [each for each in model.parameters() if each.requires_grad]
    model.train()
    for step, numbers in enumerate(order(len(rows), steps, job["size"], job["seed"])):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min((step + 1) / (0.05 * steps + 1), 1 - step / steps)
        loss = losses(model, *batch_of([rows[k] for k in numbers], where))[0].mean()
        loss.backward()
        if job["name"] != "flora":  # whose gradients are compressed and gone
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(loss.detach())
    return torch.stack(seen).tolist()


def run(job, args, base, path, rows, held, where, keep=None):
    """Train and measure a job: a dict of numbers. keep(model): more numbers, before the model is let go."""
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        device.empty_cache()
        if cuda := torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        began = time.time()
        model, optimizer = start(job, args, base, path, rows, where)
        ready = time.time()
        seen = train(model, optimizer, rows, job)  # its last line waits for the GPU
        seconds, peak = time.time() - ready, torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        made = row_losses(model, held)
        found = dict(
            loss=sum(each for each, _ in made) / sum(count for _, count in made), rows=[round(each, 5) for each, _ in made],
            counts=[count for _, count in made], train=[round(each, 4) for each in seen], init_seconds=round(ready - began, 2),
            seconds=round(seconds, 2), peak_gb=peak and round(peak, 3),
            trained=sum(each.numel() for each in model.parameters() if each.requires_grad),
        )  # fmt: skip
        if hasattr(model, "peft_config"):
            found |= saved(model, job, args, Path(folder), base, held, where)
        if keep:
            found |= keep(model)
    return found


def saved(model, job, args, folder, base, held, where):
    """Size of the adapter, and its error: logits of the saved file as W + s B A on the base against the trained model's.

    unconverted: the same of the file that a checkpoint of pissa or olora holds; of loftq on its own 4-bit base nothing is asked.
    """
    ids, found = [row[0] for row in held[:SHOWN]], {}
    for what in ("unconverted", "error") if job["name"] in variants.MUTATES else ("error",):
        if what == "error":
            variants.plain_on_save(job["name"], model, init_of(job, args))
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        model.save_pretrained(folder / "adapter")
        if job["measure"] and job["name"] != "loftq":
            plain = portable.read_plain(copy.deepcopy(base).to(where), folder / "adapter")
            found[what] = portable.error(portable.logits_of(model, ids), portable.logits_of(plain, ids))
            del plain
    if job["measure"] and found.get("error", 0) > portable.SAME:  # then merged it is what was trained?
        before, merged = portable.logits_of(model, ids), copy.deepcopy(model).merge_and_unload()
        found["merged"] = portable.error(before, portable.logits_of(merged, ids))
    return found | dict(mb=round((folder / "adapter" / "adapter_model.safetensors").stat().st_size / 1e6, 4))
