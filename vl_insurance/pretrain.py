"""Teach a miniature Qwen2.5-VL to read dashboards, from random weights, on pictures that are drawn while it trains.

The published models were shown billions of pictures; this one of 7.9 million parameters sees a few million, all of one
kind, and so can read nothing else. It is what `train.py --demo` fine-tunes: a model that reads, in a form of its own.

    L = - 1/n * sum over the answer's tokens of log p(token | picture, question, tokens before)
        - 1/m * sum over the picture's m patches of log p(the character that stands there, or none)

The second term is only for this training. Answers alone tell a model that has never seen a digit too little: which of 72
places an answer's digit came from it must guess, and for a long time it says likely numbers without looking (440,000
pictures did not end that; with the second term, unseen mileages were read after 515,000). But whoever draws a picture
knows what stands where.

A lesson is a picture, a question about it, the answer (lessons.py). Processes draw lessons into shared memory, 512 a block,
and the loop takes whichever block is there, so the GPU never waits; difficulty grows from clean pictures to bad photos.
Every so often pictures with fonts and layouts that training never draws are read greedily: that is the learning curve.

Nine minutes, one GPU:  python pretrain.py --out reader
As miniature/ was made: python pretrain.py --out reader --minutes 9 --workers 15
A look on a laptop:     python pretrain.py --out /tmp/look --minutes 3 --batch_size 16 --eval_pictures 32 --shape tiny
"""

import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import device
from common.cli import arg, parse
from common.files import save_figure, write_json
from digits import GLYPHS
from fields import FIELDS
from lessons import Lessons, lesson, tokenize
from render import dashboard, random_facts

DEFAULTS = dict(
    minutes=8.5,  # learning rate and difficulty follow the clock, so a slow machine learns less and not worse
    batch_size=512,  # pictures per step
    learning_rate=1.5e-3,  # high for a model so small, and after warming up; cosine to a twentieth
    weight_decay=0.05,
)

SPLITS = ("train", "test")  # splits of render.py: what training draws, what the curve is measured on


@dataclass
class Args:
    out: str = arg("reader", "a new folder for the model")
    shape: Literal["reader", "tiny"] = arg("reader", "7.9 or 1.8 million parameters")
    max_steps: int = arg(-1, "end after so many steps; -1: the clock decides")
    hardest: float = arg(1.0, "difficulty of the hardest pictures, 0 to 1")
    workers: int = arg(0, "processes that draw (0: one a core, less one)")
    pool: int = arg(48, "blocks of lessons kept in memory: 0.1 GB each at batch size 512")
    evaluations: int = arg(10, "points of the learning curve")
    eval_pictures: int = arg(512, "pictures of a point")
    compile: bool = arg(False, "torch.compile: a minute of compiling, then faster steps")
    seed: int = arg(3407, "of the weights and of the pictures")


def look_through(pixels, rng):
    """Cheap variety on the GPU, for pictures that are seen twice: inverted, channels exchanged, moved a little."""
    if rng.random() < 0.3:
        pixels = 255 - pixels
    if rng.random() < 0.5:
        pixels = pixels[..., rng.sample(range(3), 3)]
    return pixels.roll((rng.randrange(-4, 5), rng.randrange(-4, 5)), (1, 2))


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    out = Path(args.out)
    if out.exists():
        raise SystemExit(f"{out} exists and is kept: give another --out, or move it away.")
    import numpy
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    import miniature
    from common.finite import stop

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked below
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    miniature.build(scratch, args.shape, args.seed)
    tokenizer = miniature.load_processor(scratch).tokenizer
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

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(scratch, dtype=torch.float32).to(where).train()
    head = torch.nn.Linear(model.config.vision_config.hidden_size, 1 + len(GLYPHS)).to(where)  # not saved
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {workers} processes draw, {length} tokens per lesson, on {where}")
    every = [*model.parameters(), *head.parameters()]
    matrices, others = [p for p in every if p.ndim > 1], [p for p in every if p.ndim < 2]
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, args.learning_rate, betas=(0.9, 0.98), fused=where.type == "cuda")
    step_losses = torch.compile(miniature.losses_of, dynamic=False) if args.compile else miniature.losses_of

    first = miniature.picture_place(tokenizer)
    began, step, seen, curve, total, counted = time.time(), 0, 0, [], [0.0, 0.0], 0
    log = open(scratch / "metrics.jsonl", "w")  # noqa: SIM115 (closed at the end of the run)
    while True:
        done = step / args.max_steps if args.max_steps > 0 else (time.time() - began) / (args.minutes * 60)
        if done >= len(curve) / args.evaluations or done >= 1:
            means = [round(each / max(counted, 1), 4) for each in total]
            curve.append(point(model, tokenizer, exams, where, step, seen, lessons.drawn, began, means))
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
            name: torch.from_numpy(array).to(where, non_blocking=True)
            for name, array in lessons.take(rng, args.pool).items()
        }
        pixels = look_through(block.pop("pixels"), rng)
        longs = {name: array.long() for name, array in block.items()}
        with miniature.autocast(where):
            loss, glyph_loss = step_losses(model, head, pixels, first=first, **longs)
        (loss + glyph_loss).backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + args.batch_size
        if step % 10 == 0:  # to look at the loss makes the CPU wait for the GPU
            total = [a + b.item() for a, b in zip(total, (loss, glyph_loss), strict=True)]
            counted += 1
            if not math.isfinite(sum(total)):
                stop("the loss is not finite", step, folder=scratch)
    lessons.stop()
    log.close()
    minutes = round((time.time() - began) / 60, 2)
    model = model.to(torch.bfloat16)
    scores = {
        split: miniature.examine(model, tokenizer, exam, where)[0] for split, exam in exams.items()
    }  # of what is saved
    arguments = {name: getattr(args, name) for name in sorted({*args.own_flags, *DEFAULTS})}
    facts = dict(parameters=count, tokens_a_lesson=length, minutes=minutes, arguments=arguments, processes=workers)
    finish(model, scratch, out, facts | {"last": curve[-1], "saved": scores}, curve)


def point(model, tokenizer, exams, where, step, seen, drawn, began, losses):
    """One point of the learning curve, printed."""
    from miniature import examine

    made = dict(step=step, pictures_seen=seen, pictures_drawn=drawn, seconds=round(time.time() - began, 1))
    made |= dict(zip(("loss", "glyph_loss"), losses, strict=True))
    for split, exam in exams.items():
        scores, said = examine(model, tokenizer, exam, where)
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
    model.save_pretrained(scratch)
    for file in scratch.iterdir():
        file.chmod(0o644)
    write_json(scratch / "pretrain.json", {"device": device.name()} | facts)
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
    save_figure(figure, file, dpi=110)


if __name__ == "__main__":
    main()
