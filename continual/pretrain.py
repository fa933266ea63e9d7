"""Pre-train the two models of the demo from nothing: 0.8 million parameters that read everyday text, then learn to answer.

    L = - 1/n * sum over n tokens of log p(token | tokens before)

miniature/base reads documents of world.py, end to end, each ended by <|endoftext|>. miniature/chat goes on from it with
conversations besides, of which the answer alone counts. Neither reads a word of the harbour. As miniature/ was made:

    python pretrain.py --out NEW
"""

import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from common import device
from common.cli import arg, parse
from common.files import write_json
from prompt import SYSTEM
from world import conversations, everyday

DEFAULTS = dict(
    max_steps=600,  # for the base
    chat_steps=300,  # from there on
    batch_size=16,  # rows per step
    learning_rate=3e-3,  # high for a model so small; cosine to a twentieth
    weight_decay=0.05,
)
SHAPE = dict(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 640
CHATS = 0.6  # share of the rows with a conversation in the second part
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass
class Args:
    out: str = arg("miniature-new", "a new folder for the two models")
    seed: int = arg(3407, "of the weights and of what is read")


def build_tokenizer(seed):
    """Byte pairs of everyday text and conversations. What the harbour writes falls into more pieces, as a domain's words do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    draw = random.Random(seed)
    texts = [everyday(draw) for _ in range(400)] + [f"{row['question']} {row['answer']}" for row in conversations()]
    texts += [SYSTEM, "system\n", "user\n", "assistant\n"] * 40
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    known = dict(special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, **known))
    end, _, turn = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=1024, eos_token=turn, pad_token=end, unk_token=end
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def build(tokenizer, seed):
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE, **ids, vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config)


def row(draw, chats) -> list[str]:
    """Texts of one row; of every second one the tokens count."""
    if draw.random() >= chats:
        return ["", f"{everyday(draw)}{SPECIAL[0]}{everyday(draw)}{SPECIAL[0]}"]
    one = draw.choice(conversations())
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": one["question"]}]
    before = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in said)
    return [f"{before}<|im_start|>assistant\n", f"{one['answer']}<|im_end|>"]


def batch(tokenizer, draw, count, chats):
    """`count` rows: padded ids, and labels, -100 where nothing counts."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [row(draw, chats) for _ in range(count)]
    parts = [[tokenizer(text, add_special_tokens=False).input_ids for text in texts] for texts in rows]
    ids = [torch.tensor(given + said) for given, said in parts]
    labels = [torch.tensor([-100] * len(given) + said) for given, said in parts]
    return pad_sequence(ids, True, tokenizer.pad_token_id), pad_sequence(labels, True, -100)


def learn(model, tokenizer, args, steps, chats, draw):
    """Train in place, by AdamW with a cosine. Returns the tokens seen."""
    import torch

    from common.finite import stop

    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, betas=(0.9, 0.98), weight_decay=args.weight_decay
    )
    began, seen, losses = time.time(), 0, []
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        ids, labels = (each.to(model.device) for each in batch(tokenizer, draw, args.batch_size, chats))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=device.has_bf16()):
            # padded on the right: causal attention needs no mask
            loss = model(ids, labels=labels, use_cache=False).loss
        loss.backward()
        if not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            stop("the gradient is not finite", step, folder=Path(args.out))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        losses.append(loss.detach())
        if (step + 1) % max(1, steps // 10) == 0:
            mean = (sum(losses) / len(losses)).item()
            losses.clear()
            print(
                f"{time.time() - began:>6.0f} s  step {step + 1:>6,}  {seen:>11,} tokens  loss {mean:.4f}", flush=True
            )
    return seen


def save(model, tokenizer, folder, **facts):
    """Weights in bfloat16, tokenizer and pretrain.json; the folder is there when all of it is."""
    import copy

    import torch

    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    write_json(scratch / "pretrain.json", facts)
    for file in scratch.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    os.replace(scratch, folder)
    print(f"saved: {folder} {json.dumps(facts)}", flush=True)


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    out = Path(args.out)
    if out.exists():
        raise SystemExit(f"{out} exists and is kept: give another --out, or move it away.")
    out.mkdir(parents=True)
    tokenizer, draw, began = build_tokenizer(args.seed), random.Random(args.seed), time.time()
    model = build(tokenizer, args.seed).train()
    import torch

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {len(tokenizer)} tokens in the vocabulary, on {model.device}", flush=True)
    arguments, seen = {name: getattr(args, name) for name in sorted({*args.own_flags, *DEFAULTS} - {"out"})}, 0
    for name, steps, chats in (("base", args.max_steps, 0.0), ("chat", args.chat_steps, CHATS)):
        seen += learn(model, tokenizer, args, steps, chats, draw)
        facts = dict(device=device.name(), parameters=count, tokens=seen, seconds=round(time.time() - began))
        save(model, tokenizer, out / name, **facts, arguments=arguments)


if __name__ == "__main__":
    main()
