"""The frozen SFT model and what is done with it in every stage: load it, put adapters on it, read scores from it."""

import contextlib
import hashlib
import json
import shutil
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg
from common.evaluation import generate
from common.memory import card_bytes, fastest, needs, shape_of
from common.models import choose_quantization, has_bf16, load_base, load_tokenizer
from common.paths import resolve_model
from data import rm_ids
from stage import latest

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class ModelArgs:
    """Flags of every script that loads the merged model."""

    model: str = arg("Qwen/Qwen2.5-0.5B-Instruct", "the SFT model, whole: what merge.py made, or an instruct model")
    quantization: Literal["none", "4bit"] = arg("none", "of the frozen weights; the same in every stage")


@dataclass
class BackboneArgs(ModelArgs):
    bf16: bool | None = arg(None, "compute in bfloat16 (default: where the hardware has it, else float32)")


def sft_model(name: str) -> Path:
    """The folder of a whole model. A LoRA adapter is refused: with adapters off its base would be the reference."""
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        raise SystemExit(
            f"{folder} is an unmerged LoRA adapter. These stages measure KL against the backbone with adapters off, "
            "which must be the SFT model; here it would be the raw base.\n"
            f"Merge it first: python merge.py --adapter {folder}   then give --model the folder that it names."
        )
    return resolve_model(name)


def fingerprint(path: Path) -> str:
    """A digest of a model: its config, and 64 pieces of 64 KB from each weight file. Adapters name it, so that an
    adapter on the wrong backbone is an error and not a bad score. Reads a few MB, whatever the model's size."""
    state = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        state.update(str(size).encode())
        with open(file, "rb") as content:
            for piece in range(64):
                content.seek(size * piece // 64)
                state.update(content.read(65536))
    return state.hexdigest()[:16]


def compute_dtype(args):
    import torch

    bf16 = has_bf16() if args.bf16 is None else args.bf16
    return torch.bfloat16 if bf16 else torch.float32  # no float16: without a loss scale small gradients become 0


def load_backbone(path: Path, args):
    """The SFT model as a causal LM, frozen, in eval mode."""
    four_bit = choose_quantization(args.quantization, path)
    model = load_base(path, "hf", four_bit, compute_dtype(args), 0)
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()


def check_quantization(args):
    import torch

    if args.quantization == "4bit" and not torch.cuda.is_available():
        raise SystemExit("--quantization 4bit needs an NVIDIA GPU.")


# -- the score


def pad_right(rows, pad, device):
    """(ids, last): lists of token ids as one tensor (B, L), and the index of each row's last real token (B,).

    Padding on the right: a causal model's real tokens cannot see what comes after them, so no attention mask is needed
    and positions count from 0 by themselves. What cannot be passed in cannot be wrong.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) - 1 for row in rows], device=device)


def hidden_states(model, ids):
    """Last hidden states (B, L, H) of the backbone with the active adapter; no lm_head, whose logits nobody asked for.

    Weights in bfloat16: autocast, which also computes the float32 adapters in bfloat16.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = base.model if hasattr(base, "model") else base  # a bare transformer (PPO's full value model)
    half = inner.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
        return inner(input_ids=ids, use_cache=False).last_hidden_state


def scores_of(model, head, ids, last):
    """Scores (B,) of padded rows: the head's dot product with the hidden state of each row's last real token, float32."""
    import torch

    hidden = hidden_states(model, ids)
    return hidden[torch.arange(len(ids), device=ids.device), last].float() @ head.float()


def score_rows(model, head, rows, pad, batch_size=16):
    """The scores of rows made by data.rm_ids, as a list of floats. The reward adapter must be the active one."""
    import torch

    order, scores = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True), [0.0] * len(rows)
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = order[start : start + batch_size]
            found = scores_of(model, head, *pad_right([rows[i] for i in batch], pad, head.device))
            for i, score in zip(batch, found.tolist(), strict=True):
                scores[i] = score
    return scores


# -- log-probabilities

CHUNK = 512  # tokens whose logits exist at a time: 512 x 152,000 words in float32 are 0.3 GB


def chunk_logprobs(head, hidden, targets, temperature, entropy=False):
    """log p of each target token (N,) from hidden states (N, H); with entropy=True also the distribution's entropy."""
    import torch
    from torch.nn.functional import cross_entropy

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

    lm_head sees response positions only, a chunk at a time, and its logits are computed again in the backward pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    hidden = response_states(model, prompts, responses, pad)
    targets = torch.tensor([token for response in responses for token in response], device=model.device)
    head, made = model.get_base_model().lm_head, []
    for start in range(0, len(targets), CHUNK):
        chunk = head, hidden[start : start + CHUNK], targets[start : start + CHUNK], temperature, entropy
        learning = torch.is_grad_enabled()
        made.append(checkpoint(chunk_logprobs, *chunk, use_reentrant=False) if learning else chunk_logprobs(*chunk))
    return [torch.cat(each) for each in zip(*made, strict=True)] if entropy else torch.cat(made)


def response_states(model, prompts, responses, pad):
    """(N, H): the last hidden states BEFORE each response token, row after row. The state at i predicts token i + 1."""
    import torch

    ids, _ = pad_right([p + r for p, r in zip(prompts, responses, strict=True)], pad, model.device)
    hidden = hidden_states(model, ids)
    rows = [i for i, response in enumerate(responses) for _ in response]
    columns = [len(p) - 1 + t for p, r in zip(prompts, responses, strict=True) for t in range(len(r))]
    return hidden[torch.tensor(rows, device=hidden.device), torch.tensor(columns, device=hidden.device)]


# -- the reward model on a causal backbone, beside other adapters


def read_reward(folder, path) -> dict:
    """reward.json of a reward model: mean and std of its scores and what was measured. Stops where it was trained on
    another backbone than the model in `path`."""
    folder = Path(folder).expanduser()
    if not (folder / "reward.json").is_file():
        raise SystemExit(
            f"{folder} holds no reward model (no reward.json). Give the folder that train_reward.py named."
        )
    reward = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    if reward["fingerprint"] != fingerprint(path):
        raise SystemExit(
            f"{folder} was trained on another model than {path} ({reward['model']}). An adapter fits one backbone only: "
            "train the reward model on the merged SFT model that PPO starts from."
        )
    return reward


def check_reward(reward, args):
    if reward["quantization"] != args.quantization:
        raise SystemExit(
            f"the reward model was trained with --quantization {reward['quantization']}, this run has "
            f"{args.quantization}: rounding the backbone moves its scores. Use the same in every stage."
        )


def add_adapter(model, name, folder, trainable=False):
    """Load the adapter of `folder` under `name`; `model` is a causal LM, or one that has adapters. Returns a PeftModel."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    # A reward model's adapter is saved for sequence classification. Here it sits on the causal model: same layers, and
    # its head, which the causal model has no place for, is read by reward_head.
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    config.inference_mode = not trainable
    with warnings.catch_warnings():  # that the head has no place here
        warnings.simplefilter("ignore")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name, is_trainable=trainable)
        else:
            model = PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable, config=config)
    return model


def ready(args):
    """(model's folder, reward.json, tokenizer) of a script that scores, after every check that costs nothing."""
    check_quantization(args)
    args.reward = str(args.reward or latest("reward"))
    path = sft_model(args.model)
    reward = read_reward(args.reward, path)
    check_reward(reward, args)
    return path, reward, load_tokenizer(path)


def reward_head(folder, device):
    """The score head's weight (H,), float32, from an adapter folder."""
    from safetensors.torch import load_file

    weights = load_file(Path(folder) / "adapter_model.safetensors")
    heads = [tensor for name, tensor in weights.items() if name.endswith("score.weight")]
    if len(heads) != 1:
        raise SystemExit(f"{folder}: its adapter file has no score head: the scores would be random. Train it again.")
    return heads[0][0].float().to(device)


# -- answers


def answers_of(model, adapter, tokenizer, prompts, max_new_tokens, batch_size=64, **sampling):
    """Token ids of one answer to each prompt by an adapter of the model, or by the SFT model (adapter None).

    sampling: temperature=1.0, top_k=0, top_p=1.0 for samples of the whole distribution; nothing: greedy.
    """
    with model.disable_adapter() if adapter is None else contextlib.nullcontext():
        if adapter is not None:
            model.set_adapter(adapter, inference_mode=True)
        how = dict(backend="hf", return_ids=True) | sampling
        return generate(model, tokenizer, prompts, max_new_tokens, batch_size, **how)


def judge(model, head, reward, tokenizer, prompts, responses, batch_size=16):
    """Scores of responses (token ids) in units of the SFT model's own: (score - mean) / std. Leaves "reward" active."""
    model.set_adapter("reward", inference_mode=True)
    rows = [
        rm_ids(prompt, response, tokenizer.eos_token_id) for prompt, response in zip(prompts, responses, strict=True)
    ]
    scores = score_rows(model, head, rows, tokenizer.pad_token_id, batch_size)
    return [(score - reward["sft_mean"]) / reward["sft_std"] for score in scores]


def examples(model, adapter, head, reward, tokenizer, prompts, max_new_tokens):
    """Greedy answers to some prompts with their scores, to be shown before and after."""
    ids = answers_of(model, adapter, tokenizer, prompts, max_new_tokens)
    scores = judge(model, head, reward, tokenizer, prompts, ids)
    texts = [tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
    return [{"answer": text, "score": score} for text, score in zip(texts, scores, strict=True)]


def show_examples(prompts, **columns):
    """Print the same prompts answered by several models: columns are name=examples."""
    for number, prompt in enumerate(prompts):
        print(f"\n{'=' * 100}\nprompt: {prompt[-1]['content']}")
        for name, each in columns.items():
            each = each[number]
            print(f"{'-' * 100}\n{name}, score {each['score']:+.2f}: {each['answer'] or '(empty)'}")
    print("=" * 100)


def show_course(logs, names):
    """How metrics went: their means over the first and the last fifth of a run's lines."""
    size = max(1, len(logs) // 5)
    for name in names:
        first, last = (
            statistics.fmean(log[name] for log in part if name in log) for part in (logs[:size], logs[-size:])
        )
        print(f"{name:12} {first:8.2f} in the first fifth of the updates, {last:8.2f} in the last")


def save_adapter(model, name, tokenizer, folder):
    """One adapter as a folder of its own, which PEFT, vLLM and infer.py load."""
    model.save_pretrained(folder, selected_adapters=[name])
    made = folder / name  # PEFT makes a subfolder for every name but "default"
    for file in made.iterdir() if name != "default" else ():
        shutil.move(file, folder / file.name)
    if name != "default":
        made.rmdir()
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    tokenizer.save_pretrained(folder)


def update_needs(args, length, rows):
    """What PPO's update takes with `rows` answers at once, as arguments of memory.needs. length: of prompt and answer."""
    # Policy and value model are trained, 16 bytes a parameter each, the reward model is not.
    return dict(tokens=rows * length, logits=CHUNK * 12, cached=args.rollout_size * length, adapter=16 + 16 + 4)


def rows_at_once(path, length, most, args):
    """PPO's largest micro-batch, up to `most`, that fits the GPU by --estimate's formula. SystemExit if not even one row does."""
    import torch

    if not torch.cuda.is_available():
        return 8
    shape, total = shape_of(path), card_bytes()

    def size(four_bit, checkpointing, rows):
        more = update_needs(args, length, rows) | dict(r=args.lora_r, code="plain")
        return sum(needs(shape, four_bit=four_bit, checkpointing=checkpointing, **more).values())

    fixed = {"four_bit": args.quantization == "4bit", "checkpointing": args.gradient_checkpointing}
    found = fastest(size, most, total, fixed, lambda rows: rows * length)
    if not found:
        raise SystemExit(
            f"a rollout of {args.rollout_size} texts of up to {length} tokens does not fit in {total / 1e9:.0f} GB, not "
            "even with an answer at a time in the update. Try --gradient_checkpointing, --quantization 4bit, a smaller "
            "--rollout_size or --max_new_tokens; --estimate tells what takes the memory, --micro_batch_size 1 tries all "
            "the same."
        )
    return found[2]
