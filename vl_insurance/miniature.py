"""The miniature: a Qwen2.5-VL of a few million parameters, built from nothing, and a fast way through it.

The published code takes pictures of any mix of sizes and so loops over them in Python. Here all pictures have one size,
and a whole batch goes through the encoder at once, with the same numbers (a test). Imports torch: for after the parsing.
"""

import json
import random
from pathlib import Path

import numpy
import torch
import trl
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from common import device
from fields import as_course, as_json, parse, score
from lessons import in_order, lesson, question_ids
from model import load_processor
from prompt import IMAGE, PROMPT, SYSTEM
from render import HEIGHT, WIDTH, random_facts

SHAPES = {
    # 1.8 million parameters: for tests.
    "tiny": dict(text=dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                           num_key_value_heads=2),
                 vision=dict(hidden_size=128, intermediate_size=256, depth=4, num_heads=4)),
    # 7.9 million: learns to read in minutes on a GPU (pretrain.py), 16 MB in bfloat16.
    "reader": dict(text=dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
                             num_key_value_heads=4),
                   vision=dict(hidden_size=256, intermediate_size=640, depth=4, num_heads=8)),
}  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
VOCABULARY = 640


def build_tokenizer():
    """Qwen's kind of tokenizer (byte pairs, digits one by one) with a small vocabulary, trained on dashboards' answers."""
    rng, texts = random.Random(0), [f"system\n{SYSTEM}", "user\n", "assistant\n", PROMPT]
    for _ in range(500):
        facts = random_facts(rng)
        texts += [as_course(facts), as_json(facts), *lesson(rng, facts)]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
    # TRL ships Qwen2.5-VL's own template.
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def build(folder, shape="tiny", seed=0):
    """A Qwen2.5-VL with random weights, and its processor, in `folder`. Needs no network. Returns the folder."""
    folder = Path(folder)
    tokenizer = build_tokenizer()
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    text, vision = SHAPES[shape]["text"], SHAPES[shape]["vision"]
    half_head = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half_head // 4, 3 * half_head // 8, 3 * half_head // 8]  # time, height, width; their sum is half a head
    config = Qwen2_5_VLConfig(
        text_config=text
        | dict(
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            tie_word_embeddings=True,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        # Every block sees the whole picture: it has 288 patches, and windows would only cut numbers in two.
        vision_config=vision
        | dict(out_hidden_size=text["hidden_size"], fullatt_block_indexes=list(range(vision["depth"]))),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    load_processor(folder, max_pixels=WIDTH * HEIGHT).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
    return folder


# -- the model, for pictures of one size


def patches(pixels):
    """uint8 pictures (n, HEIGHT, WIDTH, 3) -> what Qwen's image processor makes of them, (n, patches, 3 * 2 * 14 * 14).

    On the GPU, all at once; equal to the processor's (a test).
    """
    mean, std = (torch.tensor(each, device=pixels.device) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    values = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    n, channels, height, width = values.shape
    # Cut into 28 x 28, each into four of 14 x 14: the four that are merged into one token stand together.
    cut = values.reshape(n, channels, height // 28, 2, 14, width // 28, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)
    cut = cut.unsqueeze(6).expand(
        -1, -1, -1, -1, -1, -1, 2, -1, -1
    )  # two frames: a picture is a film that stands still
    return cut.reshape(n, height * width // 196, channels * 2 * 196)


def see(model, pixels):
    """Image features (n, image tokens, hidden) of equal-sized pictures in one batch, and the patches' states that they
    are merged from, (n, patches, hidden).

    The same numbers as model.model.visual (a test), which takes any mix of sizes and so loops over pictures in Python.
    """
    visual = model.model.visual
    assert len(visual.fullatt_block_indexes) == len(visual.blocks), "windows are not written here"
    cells = patches(pixels)
    n, length, _ = cells.shape
    hidden = linear(cells, visual.patch_embed.proj.weight.flatten(1))
    rows, columns = torch.meshgrid(
        torch.arange(HEIGHT // 14, device=hidden.device), torch.arange(WIDTH // 14, device=hidden.device), indexing="ij"
    )
    cos, sin = visual.rotary_pos_emb(hidden, torch.stack([in_order(rows), in_order(columns)], -1))
    cos, sin = cos.repeat(n, 1), sin.repeat(n, 1)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).reshape(n * length, 3, attention.num_heads, -1)
        q, k, v = qkv.unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        q, k, v = (each.reshape(n, length, attention.num_heads, -1).transpose(1, 2) for each in (q, k, v))
        mixed = scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).reshape(n, length, -1)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden.flatten(0, 1)).reshape(n, length // 4, -1), hidden


def positions(first, length, where):
    """Qwen's three positions (time, height, width) of every token, (3, 1, length), with the picture from token `first` on."""
    tall, wide = HEIGHT // 28, WIDTH // 28
    height, width = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
    picture = torch.stack([torch.zeros(tall * wide, dtype=torch.long), height.flatten(), width.flatten()]) + first
    before = torch.arange(first).expand(3, -1)
    after = torch.arange(length - first - tall * wide).expand(3, -1) + first + max(tall, wide)
    return torch.cat([before, picture, after], 1)[:, None].to(where)


def logits_of(model, ids, features, first):
    """Logits (n, length, vocabulary). Rows are padded on the right, so that causal attention needs no mask.

    first: where the picture's tokens begin, which is the same in each row, since every prompt begins alike.
    """
    embedded = model.model.language_model.embed_tokens(ids)
    features = features.to(embedded.dtype)
    embedded = torch.cat([embedded[:, :first], features, embedded[:, first + features.shape[1] :]], 1)
    where = positions(first, ids.shape[1], ids.device).expand(-1, len(ids), -1)
    hidden = model.model.language_model(inputs_embeds=embedded, position_ids=where, use_cache=False).last_hidden_state
    return model.lm_head(hidden)


def losses_of(model, head, pixels, glyphs, ids, asked, whole, first):
    """Two mean cross-entropies: over the answers' tokens, and over the pictures' patches."""
    features, states = see(model, pixels)
    logits = logits_of(model, ids, features, first)[:, :-1]
    place = torch.arange(1, ids.shape[1], device=ids.device)
    labels = ids[:, 1:].masked_fill((place < asked[:, None]) | (place >= whole[:, None]), -100)
    answers = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    return answers, cross_entropy(head(states).flatten(0, 1).float(), glyphs.flatten())


def picture_place(tokenizer):
    """Where the picture's tokens begin."""
    return question_ids(tokenizer, PROMPT).index(tokenizer.convert_tokens_to_ids(IMAGE))


def read(model, tokenizer, pixels, question, new_tokens=56):
    """Greedy answers to one question about pictures (n, HEIGHT, WIDTH, 3), all at once, without a cache: for the curve."""
    ids = question_ids(tokenizer, question)
    asked, first = len(ids), picture_place(tokenizer)
    ids = torch.tensor(ids, device=pixels.device).repeat(len(pixels), 1)
    with torch.no_grad():
        features, _ = see(model, pixels)
        done = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        for _ in range(new_tokens):
            new = logits_of(model, ids, features, first)[:, -1].argmax(-1)
            new = torch.where(done, tokenizer.pad_token_id, new)
            done |= new == tokenizer.eos_token_id
            ids = torch.cat([ids, new[:, None]], 1)
            if done.all():
                break
    return tokenizer.batch_decode(ids[:, asked:], skip_special_tokens=True)


def examine(model, tokenizer, exam, where):
    """Scores on pictures (a list of (pixels, facts)), as fields.score gives them, and the answers. where: a torch.device."""
    said, training = [], model.training
    model.eval()
    with autocast(where):
        for start in range(0, len(exam), 256):
            pixels = torch.from_numpy(numpy.stack([pixels for pixels, _ in exam[start : start + 256]])).to(where)
            said += read(model, tokenizer, pixels, PROMPT)
    model.train(training)
    return score([parse(text) for text in said], [facts for _, facts in exam]), said


def autocast(where):
    """bfloat16 where this machine has it. where: a torch.device."""
    return torch.autocast(where.type, torch.bfloat16, enabled=device.has_bf16())
