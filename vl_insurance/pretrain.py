"""Teach a miniature Qwen2.5-VL to read dashboards, from random weights, on pictures that are drawn while it trains.

The published models were shown billions of pictures; this one of 7.9 million parameters sees a few million, all of one
kind, and so can read nothing else. It is what `train.py --demo` fine-tunes: a model that reads, in a form of its own.

    L = - 1/n * sum over the answer's tokens of log p(token | picture, question, tokens before)
        - 1/m * sum over the picture's m patches of log p(the character that stands there, or none)

The second term is only for this training. Answers alone tell a model that has never seen a digit too little: which of 72
places an answer's digit came from it must guess, and for a long time it says likely numbers without looking (440,000
pictures did not end that; with the second term, unseen mileages were read after 515,000). But whoever draws a picture
knows what stands where.

A lesson is a picture, a question about it, the answer (`lesson`). Processes draw lessons into shared memory, 512 a block,
and the loop takes whichever block is there, so the GPU never waits; difficulty grows from clean pictures to bad photos.
Every so often pictures with fonts and layouts that training never draws are read greedily: that is the learning curve.

Nine minutes, one GPU:  python pretrain.py --out reader
As miniature/ was made: python pretrain.py --out reader --minutes 12.5 --evaluations 13 --workers 40
A look on a laptop:     python pretrain.py --out /tmp/look --minutes 3 --batch_size 16 --eval_pictures 32 --shape tiny
"""

import functools
import json
import math
import mmap
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import arg, parse
from fields import FIELDS, LABELS, score
from fields import parse as parse_answer
from render import GLYPHS, HEIGHT, WIDTH, dashboard, dashboard_and_glyphs, random_facts

DEFAULTS = dict(
    minutes=8.5,  # learning rate and difficulty follow the clock, so a slow machine learns less and not worse
    batch_size=512,  # pictures a step
    learning_rate=1.5e-3,  # high for a model so small, and after warming up; cosine to a twentieth
    weight_decay=0.05,
)

ASKED = {"mileage": "里程？", "speed": "速度？", "time": "时间？", "temperature": "温度？", "gear": "挡位？"}
WITH_COMMAS, ALL = "里程，千分位？", "全部？"
TOKENS = WIDTH * HEIGHT // 28**2  # of a picture
PATCHES = 4 * TOKENS  # 14 x 14 pixels each
SPLITS = ("train", "test")  # splits of render.py: what training draws, what the curve is measured on


@dataclass
class Args:
    out: str = arg("reader", "a new folder for the model")
    shape: Literal["reader", "tiny"] = arg("reader", "7.9 or 1.8 million parameters")
    max_steps: int = arg(-1, "end after so many steps; -1: the clock decides")
    minutes: float = arg(8.5, "")
    batch_size: int = arg(512, "")
    learning_rate: float = arg(1.5e-3, "")
    weight_decay: float = arg(0.05, "")
    hardest: float = arg(1.0, "difficulty of the hardest pictures, 0 to 1")
    workers: int = arg(0, "processes that draw (0: one a core, less one)")
    pool: int = arg(48, "blocks of lessons kept in memory: 0.1 GB each at batch size 512")
    evaluations: int = arg(10, "points of the learning curve")
    eval_pictures: int = arg(512, "pictures of a point")
    compile: bool = arg(False, "torch.compile: a minute of compiling, then faster steps")
    seed: int = arg(3407, "of the weights and of the pictures")


# -- lessons


def plain(facts):
    """All facts as the miniature says them: a line each, nothing around the values."""
    units = {"km": "公里", "mi": "英里"}
    values = {
        "mileage": f"{facts['mileage']} {units[facts['unit']]}",
        "speed": f"{facts['speed']} {units[facts['unit']]}/小时",
        "time": facts["time"],
        "temperature": f"{facts['temperature']}℃",
        "gear": f"{facts['gear']}挡",
    }
    return {name: "未显示" if facts[name] is None else value for name, value in values.items()}


def lesson(rng, facts):
    """(question, answer) about a picture. All facts at once in half of the lessons: most digits for a picture."""
    values = plain(facts)
    draw = rng.random()
    if draw < 0.5:
        return ALL, "\n".join(f"{LABELS[name]} {value}" for name, value in values.items())
    if draw < 0.6:
        return WITH_COMMAS, values["mileage"].replace(str(facts["mileage"]), f"{facts['mileage']:,}")
    name = rng.choice(("mileage", "mileage", *ASKED))
    return ASKED[name], values[name]


@functools.lru_cache(32)
def question_ids(tokenizer, question):
    """A question's ids with the chat template around it and the picture's tokens before it."""
    from data import conversation

    text = tokenizer.apply_chat_template(conversation(question), add_generation_prompt=True, tokenize=False)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * TOKENS)
    return tokenizer(text, add_special_tokens=False).input_ids


def tokenize(tokenizer, question, answer, length):
    """One row of ids, padded to `length`, and how many of them are the question's and how many are real."""
    asked = question_ids(tokenizer, question)
    whole = asked + tokenizer(answer + "<|im_end|>\n", add_special_tokens=False).input_ids
    if len(whole) > length:
        raise ValueError(f"a lesson has {len(whole)} tokens, {length} are planned for")
    return whole + [tokenizer.pad_token_id] * (length - len(whole)), len(asked), len(whole)


def copying(rng, tokenizer, length):
    """A lesson without looking: repeat ten random tokens. Else tokens that no answer has would keep random embeddings,
    and no later fine-tuning could make the model write them."""
    word = rng.choices(range(len(tokenizer)), k=10)
    word = [each for each in word if each not in tokenizer.all_special_ids]
    row, asked, whole = tokenize(tokenizer, "照写：\x00", "\x00", length)
    mark = tokenizer("\x00", add_special_tokens=False).input_ids
    assert len(mark) == 1
    first, second = (i for i, each in enumerate(row) if each == mark[0])
    made = row[:first] + word + row[first + 1 : second] + word + row[second + 1 : whole]
    return made + [tokenizer.pad_token_id] * (length - len(made)), asked + len(word) - 1, len(made)


# -- drawing in other processes


class Lessons:
    """Blocks of lessons in shared memory, which processes draw anew while the loop trains on those that are ready.

    A block is being written, or ready, or free; it is given back for writing only after a newer one took its place, so
    nobody reads what is being written. Memory is mapped before the processes start and so needs no /dev/shm.
    """

    def __init__(self, tokenizer, length, rows, blocks, workers, seed):
        import numpy

        context = multiprocessing.get_context("fork")
        sizes = {"pixels": (HEIGHT, WIDTH, 3), "glyphs": (PATCHES,), "ids": (length,), "asked": (), "whole": ()}
        kinds = dict.fromkeys(("ids", "asked", "whole"), numpy.int16) | dict.fromkeys(("pixels", "glyphs"), numpy.uint8)
        self.arrays = {}
        for name, size in sizes.items():
            shape = (blocks, rows, *size)
            memory = mmap.mmap(-1, max(1, math.prod(shape)) * numpy.dtype(kinds[name]).itemsize)
            self.arrays[name] = numpy.frombuffer(memory, kinds[name])[: math.prod(shape)].reshape(shape)
        self.free, self.filled, self.ready = context.Queue(), context.Queue(), []
        self.difficulty = context.Value("d", 0.0)
        self.drawn, self.rows = 0, rows
        for block in range(blocks):
            self.free.put(block)
        self.processes = [
            context.Process(target=self._draw, args=(tokenizer, length, f"{seed} {n}"), daemon=True)
            for n in range(workers)
        ]
        for process in self.processes:
            process.start()

    def _draw(self, tokenizer, length, seed):
        import numpy

        os.environ["OMP_NUM_THREADS"] = "1"
        rng = random.Random(seed)
        while (block := self.free.get()) is not None:
            for row in range(self.rows):
                hard = math.sqrt(rng.random()) * self.difficulty.value
                picture, glyphs, facts, _ = dashboard_and_glyphs(rng, "train", hard)
                self.arrays["pixels"][block, row] = picture
                self.arrays["glyphs"][block, row] = in_order(numpy.asarray(glyphs)[7::14, 7::14])
                made = (
                    copying(rng, tokenizer, length)
                    if rng.random() < 0.06
                    else tokenize(tokenizer, *lesson(rng, facts), length)
                )
                for name, value in zip(("ids", "asked", "whole"), made, strict=True):
                    self.arrays[name][block, row] = value
            self.filled.put(block)

    def take(self, rng, keep):
        """A block as a dict of arrays, waiting only for the first one. keep: how many ready blocks to keep at most."""
        while not self.ready or not self.filled.empty():
            if not any(process.is_alive() for process in self.processes):
                raise SystemExit("the drawing processes have ended: see the error above.")
            try:
                self.ready.append(self.filled.get(timeout=5))
            except Exception:  # nothing yet: the first block of a slow machine
                continue
            self.drawn += self.rows
            while len(self.ready) > keep:
                self.free.put(self.ready.pop(0))
        block = rng.choice(self.ready)
        return {name: array[block] for name, array in self.arrays.items()}

    def stop(self):
        for process in self.processes:
            process.terminate()


# -- the model, for pictures of one size


def in_order(grid):
    """What belongs to the patches (HEIGHT / 14, WIDTH / 14), flat, in the encoder's order: the four that are merged into
    one token stand together."""
    return grid.reshape(HEIGHT // 28, 2, WIDTH // 28, 2).swapaxes(1, 2).flatten()


def patches(pixels):
    """uint8 pictures (n, HEIGHT, WIDTH, 3) -> what Qwen's image processor makes of them, (n, patches, 3 * 2 * 14 * 14).

    On the GPU, all at once; equal to the processor's (a test).
    """
    import torch
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

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
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

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


def positions(first, length, device):
    """Qwen's three positions (time, height, width) of every token, (3, 1, length), with the picture from token `first` on."""
    import torch

    tall, wide = HEIGHT // 28, WIDTH // 28
    height, width = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
    picture = torch.stack([torch.zeros(tall * wide, dtype=torch.long), height.flatten(), width.flatten()]) + first
    before = torch.arange(first).expand(3, -1)
    after = torch.arange(length - first - tall * wide).expand(3, -1) + first + max(tall, wide)
    return torch.cat([before, picture, after], 1)[:, None].to(device)


def logits_of(model, ids, features, first):
    """Logits (n, length, vocabulary). Rows are padded on the right, so that causal attention needs no mask.

    first: where the picture's tokens begin, which is the same in each row, since every prompt begins alike.
    """
    import torch

    embedded = model.model.language_model.embed_tokens(ids)
    features = features.to(embedded.dtype)
    embedded = torch.cat([embedded[:, :first], features, embedded[:, first + features.shape[1] :]], 1)
    where = positions(first, ids.shape[1], ids.device).expand(-1, len(ids), -1)
    hidden = model.model.language_model(inputs_embeds=embedded, position_ids=where, use_cache=False).last_hidden_state
    return model.lm_head(hidden)


def losses_of(model, head, pixels, glyphs, ids, asked, whole, first):
    """Two mean cross-entropies: over the answers' tokens, and over the pictures' patches."""
    import torch
    from torch.nn.functional import cross_entropy

    features, states = see(model, pixels)
    logits = logits_of(model, ids, features, first)[:, :-1]
    place = torch.arange(1, ids.shape[1], device=ids.device)
    labels = ids[:, 1:].masked_fill((place < asked[:, None]) | (place >= whole[:, None]), -100)
    answers = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    return answers, cross_entropy(head(states).flatten(0, 1).float(), glyphs.flatten())


def picture_place(tokenizer):
    """Where the picture's tokens begin."""
    return question_ids(tokenizer, ALL).index(tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def read(model, tokenizer, pixels, question, new_tokens=56):
    """Greedy answers to one question about pictures (n, HEIGHT, WIDTH, 3), all at once, without a cache: for the curve."""
    import torch

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


def examine(model, tokenizer, exam, device):
    """Scores on pictures (a list of (pixels, facts)), as fields.score gives them."""
    import numpy
    import torch

    said, training = [], model.training
    model.eval()
    with autocast(device):
        for start in range(0, len(exam), 256):
            pixels = torch.from_numpy(numpy.stack([pixels for pixels, _ in exam[start : start + 256]])).to(device)
            said += read(model, tokenizer, pixels, ALL)
    model.train(training)
    return score([parse_answer(text) for text in said], [facts for _, facts in exam]), said


def autocast(device):
    import torch

    from common.models import has_bf16

    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16())


def look_through(pixels, rng):
    """Cheap variety on the GPU, for pictures that are seen twice: inverted, channels exchanged, moved a little."""
    import torch

    if rng.random() < 0.3:
        pixels = 255 - pixels
    if rng.random() < 0.5:
        pixels = pixels[..., rng.sample(range(3), 3)]
    return torch.roll(pixels, (rng.randrange(-4, 5), rng.randrange(-4, 5)), (1, 2))


# -- the loop


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, (Args,), argv=argv)
    out = Path(args.out)
    if out.exists():
        raise SystemExit(f"{out} exists and is kept: give another --out, or move it away.")
    if args.batch_size < 1 or args.minutes <= 0:
        raise SystemExit("--batch_size and --minutes have to be larger than 0.")
    import numpy
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from model import build_miniature, load_processor

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked below
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    build_miniature(scratch, args.shape, args.seed)
    tokenizer = load_processor(scratch).tokenizer
    rng = random.Random(args.seed)
    # The longest lesson of a thousand, and room for a longer number.
    length = max(tokenize(tokenizer, *lesson(rng, random_facts(rng)), 999)[2] for _ in range(1000)) + 4
    # Before CUDA starts, which does not survive a fork.
    workers = args.workers or max(1, len(os.sched_getaffinity(0)) - 1)
    lessons = Lessons(tokenizer, length, args.batch_size, args.pool + workers, workers, args.seed)
    exams = {}
    for split in SPLITS:  # seeds of their own: also the pictures of the split "train" are new
        drawn = [dashboard(random.Random(f"exam {split} {n}"), split) for n in range(args.eval_pictures)]
        exams[split] = [(numpy.asarray(picture), facts) for picture, facts, _ in drawn]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(scratch, dtype=torch.float32).to(device).train()
    head = torch.nn.Linear(model.config.vision_config.hidden_size, 1 + len(GLYPHS)).to(device)  # not saved
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {workers} processes draw, {length} tokens a lesson, on {device}")
    every = [*model.parameters(), *head.parameters()]
    matrices, others = [p for p in every if p.ndim > 1], [p for p in every if p.ndim < 2]
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, args.learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda")
    step_losses = torch.compile(losses_of, dynamic=False) if args.compile else losses_of

    first = picture_place(tokenizer)
    began, step, seen, curve, total, counted = time.time(), 0, 0, [], [0.0, 0.0], 0
    log = open(scratch / "metrics.jsonl", "w")  # noqa: SIM115 (closed at the end of the run)
    while True:
        done = step / args.max_steps if args.max_steps > 0 else (time.time() - began) / (args.minutes * 60)
        if done >= len(curve) / args.evaluations or done >= 1:
            means = [round(each / max(counted, 1), 4) for each in total]
            curve.append(point(model, tokenizer, exams, device, step, seen, lessons.drawn, began, means))
            log.write(json.dumps(curve[-1]) + "\n")
            log.flush()
            model.save_pretrained(scratch)  # what is left if the machine goes away
            total, counted = [0.0, 0.0], 0
            if done >= 1:
                break
        # Clean pictures first; all kinds from half of the time on.
        lessons.difficulty.value = args.hardest * min(1.0, 2 * done)
        rate = min(1.0, done / 0.03 + 0.01) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate
        block = {
            name: torch.from_numpy(array).to(device, non_blocking=True)
            for name, array in lessons.take(rng, args.pool).items()
        }
        pixels = look_through(block.pop("pixels"), rng)
        longs = {name: array.long() for name, array in block.items()}
        with autocast(device):
            loss, glyph_loss = step_losses(model, head, pixels, first=first, **longs)
        (loss + glyph_loss).backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + args.batch_size
        if step % 10 == 0:  # to look at the loss makes the CPU wait for the GPU
            total = [a + b.item() for a, b in zip(total, (loss, glyph_loss), strict=True)]
            counted += 1
    lessons.stop()
    log.close()
    minutes = round((time.time() - began) / 60, 2)
    model = model.to(torch.bfloat16)
    scores = {split: examine(model, tokenizer, exam, device)[0] for split, exam in exams.items()}  # of what is saved
    facts = dict(parameters=count, tokens_a_lesson=length, minutes=minutes, arguments=vars(args), processes=workers)
    finish(model, scratch, out, facts | {"last": curve[-1], "saved": scores}, curve)


def point(model, tokenizer, exams, device, step, seen, drawn, began, losses):
    """One point of the learning curve, printed."""
    made = dict(step=step, pictures_seen=seen, pictures_drawn=drawn, seconds=round(time.time() - began, 1))
    made |= dict(zip(("loss", "glyph_loss"), losses, strict=True))
    for split, exam in exams.items():
        scores, said = examine(model, tokenizer, exam, device)
        made[split] = {name: scores[name] for name in ("document_exact", "mileage_digits")} | {
            name: scores["fields"][name]["exact"] for name in FIELDS
        }
    unseen = made["test"]
    print(
        f"{made['seconds']:>6.0f} s  step {step:>6,}  {seen:>9,} seen, {drawn:>9,} drawn  loss {losses[0]:.4f}, of patches {losses[1]:.4f}  unseen fonts and layouts: "
        f"mileage {unseen['mileage']:.3f} (digits {unseen['mileage_digits']:.3f}), all {unseen['document_exact']:.3f}; "
        f"known ones: mileage {made['train']['mileage']:.3f}  | {said[0]!r}",
        flush=True,
    )
    return made


def finish(model, scratch, out, facts, curve):
    """Save the model with its curve and its record, then give the folder its name."""
    from common.runs import device_name, write_json

    model.save_pretrained(scratch)
    for file in scratch.iterdir():
        file.chmod(0o644)
    write_json(scratch / "pretrain.json", {"device": device_name()} | facts)
    draw(curve, scratch / "learning_curve.png")
    os.replace(scratch, out)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6
    unseen = facts["saved"]["test"]
    print(f"saved: {out} ({size:.1f} MB of weights); unseen fonts and layouts: mileage {unseen['fields']['mileage']['exact']:.3f}, "
          f"its digits {unseen['mileage_digits']:.3f}, all six facts {unseen['document_exact']:.3f}")  # fmt: skip


def draw(curve, file):
    """learning_curve.png: how much of unseen pictures is read, over pictures seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for split, style, name in (("test", "-", "unseen fonts and layouts"), ("train", ":", "known ones")):
        for field, label in (
            ("mileage", "mileage"),
            ("mileage_digits", "its digits"),
            ("document_exact", "all six facts"),
        ):
            axes.plot(
                [p["pictures_seen"] for p in curve], [p[split][field] for p in curve], style, label=f"{label}, {name}"
            )
    axes.set(xlabel="pictures seen", ylabel="share read exactly", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
