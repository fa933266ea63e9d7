"""The frozen SFT model: load it, put adapters on it, read hidden states and log-probabilities from it, let it answer."""

import contextlib
import shutil
from pathlib import Path

import torch
from peft import PeftConfig
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from common import adapters, device, hub, models
from common.answers import end_tokens, generate
from common.finite import check_weights
from common.hub import choose_quantization
from common.speed import graph
from estimate import CHUNK

# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
WHOLE = dict(temperature=1.0, top_k=0, top_p=1.0)  # samples of the whole distribution, as the formulas presume


def compute_dtype(args):
    bf16 = device.has_bf16() if args.bf16 is None else args.bf16
    return torch.bfloat16 if bf16 else torch.float32  # no float16: without a loss scale small gradients become 0


def load_backbone(path: Path, args):
    """The SFT model as a causal LM, frozen, in eval mode."""
    device.decide_backend("hf")  # before any model: it also chooses torch's attention
    nf4 = NF4 if choose_quantization(args.quantization, path) else None
    model = models.load_base(path, "hf", nf4, compute_dtype(args))
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()


# -- adapters


def add_adapter(model, name, folder, trainable=False):
    """Load the adapter of `folder` under `name`; `model` is a causal LM, or one that has adapters. Returns a PeftModel."""
    with hub.loading(folder, "adapter_config.json"):
        config = PeftConfig.from_pretrained(str(folder))
    # A reward model's adapter is saved for sequence classification. Here it sits on the causal model: same layers, and
    # its head, which the causal model has no place for, is read by scoring.reward_head.
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    return adapters.attach(model, folder, name, config, trainable, beside=["score.weight"])


def save_adapter(model, name, tokenizer, folder):
    """One adapter as a folder of its own, which PEFT, vLLM and infer.py load."""
    check_weights(((each, p) for each, p in model.named_parameters() if f".{name}." in each), folder)
    model.save_pretrained(folder, selected_adapters=[name])
    made = folder / name  # PEFT makes a subfolder for every name but "default"
    for file in made.iterdir() if name != "default" else ():
        shutil.move(file, folder / file.name)
    if name != "default":
        made.rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    tokenizer.save_pretrained(folder)


# -- hidden states


def pad_right(rows, pad, device):
    """(ids, last): lists of token ids as one tensor (B, L), and the index of each row's last real token (B,).

    Padding on the right: a causal model's real tokens cannot see what comes after them, so no attention mask is needed
    and positions count from 0 by themselves. What cannot be passed in cannot be wrong.
    """
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) - 1 for row in rows], device=device)


def hidden_states(model, ids):
    """Last hidden states (B, L, H) of the backbone with the active adapter; no lm_head, whose logits nobody asked for.

    Weights in bfloat16: autocast, which also computes the float32 adapters in bfloat16.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = base.model if hasattr(base, "model") else base  # a bare transformer (PPO's full value model)
    half = inner.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
        return inner(input_ids=ids, use_cache=False).last_hidden_state


def response_states(model, prompts, responses, pad):
    """(N, H): the last hidden states BEFORE each response token, row after row. The state at i predicts token i + 1."""
    ids, _ = pad_right([p + r for p, r in zip(prompts, responses, strict=True)], pad, model.device)
    hidden = hidden_states(model, ids)
    rows = [i for i, response in enumerate(responses) for _ in response]
    columns = [len(p) - 1 + t for p, r in zip(prompts, responses, strict=True) for t in range(len(r))]
    return hidden[torch.tensor(rows, device=hidden.device), torch.tensor(columns, device=hidden.device)]


# -- log-probabilities


def chunk_logprobs(head, hidden, targets, temperature, entropy=False):
    """log p of each target token (N,) from hidden states (N, H); with entropy=True also the distribution's entropy."""
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=head.weight.dtype == torch.bfloat16):
        logits = head(hidden)
    logits = logits.float() / temperature  # in bfloat16 a log-probability would have three digits
    logprobs = -cross_entropy(logits, targets, reduction="none")
    if not entropy:
        return logprobs
    full = logits.log_softmax(-1)
    return logprobs, -(full.exp() * full).sum(-1)


def response_logprobs(model, prompts, responses, pad, temperature, entropy=False):
    """log p of every response token under the active adapter, flat (N,), row after row. THE forward pass: rollout and
    update both call it. What generate() computed while sampling differs in the last digits (its cache, its kernels),
    and then the first ratio would not be 1.

    lm_head sees response positions only, CHUNK at a time, and its logits are computed again in the backward pass.
    """
    hidden = response_states(model, prompts, responses, pad)
    targets = torch.tensor([token for response in responses for token in response], device=model.device)
    head, made = model.get_base_model().lm_head, []
    for start in range(0, len(targets), CHUNK):
        chunk = head, hidden[start : start + CHUNK], targets[start : start + CHUNK], temperature, entropy
        learning = torch.is_grad_enabled()
        made.append(checkpoint(chunk_logprobs, *chunk, use_reentrant=False) if learning else chunk_logprobs(*chunk))
    return [torch.cat(each) for each in zip(*made, strict=True)] if entropy else torch.cat(made)


# -- answers


def answers_of(model, adapter, tokenizer, prompts, max_new_tokens, batch_size=64, sampler=None, **sampling):
    """Token ids of one answer to each prompt by an adapter of the model, or by the SFT model (adapter None).

    sampling: WHOLE, or another temperature with its top_k and top_p; nothing: greedy. sampler: vLLM (sampler.py), which
    samples whole distributions only.
    """
    with model.disable_adapter() if adapter is None else contextlib.nullcontext():
        if adapter is not None:
            model.set_adapter(adapter, inference_mode=True)
        if sampler:
            ends = end_tokens(model, tokenizer)
            return sampler.write(model, adapter, prompts, max_new_tokens, sampling.get("temperature", 0.0), ends)
        how = dict(return_ids=True, decode=graph.decode) | sampling
        return generate(model, tokenizer, prompts, max_new_tokens, batch_size, **how)
