"""What a model says about pictures, before and after training. Imports torch: for after the parsing."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from common import device, runs, screen
from common.files import text_table
from common.models import BY_ROW
from fast import cut, see_bytes
from fields import FIELDS, parse, score
from pictures import load_image
from prompt import prompt_text


@contextlib.contextmanager
def inference(model, backend):
    """Switch a model to generation and back. Attention by row makes room, since batches are padded here."""
    training, attention = model.training, model.config._attn_implementation
    if backend == "unsloth":
        from unsloth import FastVisionModel

        FastVisionModel.for_inference(model)
    model.eval()
    if attention == BY_ROW:
        model.config._attn_implementation = "sdpa"
    yield
    model.config._attn_implementation = attention
    if backend == "unsloth" and training:
        FastVisionModel.for_training(model)
    model.train(training)


def ready(processor, backend, pictures, prompts):
    """A batch of pictures (PIL images, or paths of files) and prompts as `generate` gives it to the model."""
    images = [load_image(each) if isinstance(each, str | Path) else each for each in pictures]
    # Padding on the left: a decoder goes on from the last position.
    how = dict(padding=True, padding_side="left", return_tensors="pt")
    if backend == "unsloth":
        texts = [prompt_text(processor, {"prompt": each}) for each in prompts]
        return processor(text=texts, images=[[each] for each in images], **how)
    cells, grids = zip(*(cut(each, processor.image_processor.size["longest_edge"]) for each in images), strict=True)
    texts = [
        prompt_text(processor, {"prompt": each}, len(cell) // 4) for each, cell in zip(prompts, cells, strict=True)
    ]
    batch = processor.tokenizer(texts, add_special_tokens=False, **how)
    batch["mm_token_type_ids"] = (batch["input_ids"] == processor.image_token_id).int()
    return batch | {"pixel_values": torch.cat(cells), "image_grid_thw": torch.tensor(grids)}


def at_once():
    """Photos that are answered at once where nobody says: on a GPU a token of 64 answers takes as long as one of 8."""
    free, on_gpu = device.free_bytes()
    return max(8, min(64, int(free / 5e8))) if on_gpu else 8  # 0.5 GB: a 3B and a photo of 1,024 tokens need less


@torch.no_grad()
def generate(model, processor, pictures, prompts, max_new_tokens=200, batch_size=8, backend="hf"):
    """The model's answer to each prompt about each picture, greedily, in order.

    pictures: PIL images, or paths of files, so that a thousand of them are never in memory together. The next batch's are
    opened while the model answers. batch_size: 0 lets `at_once` decide.
    """
    made, tokenizer, batch_size = [], processor.tokenizer, batch_size or at_once()
    starts = range(0, len(prompts), batch_size)
    if backend == "hf":
        see_bytes(model.get_base_model() if hasattr(model, "get_base_model") else model)
    with inference(model, backend), ThreadPoolExecutor(1) as ahead:
        parts = [(pictures[start : start + batch_size], prompts[start : start + batch_size]) for start in starts]
        coming = ahead.submit(ready, processor, backend, *parts[0]) if parts else None
        for number in screen.bar("sampling answers", None, " batches", range(len(parts))):
            batch = coming.result()
            if number + 1 < len(parts):
                coming = ahead.submit(ready, processor, backend, *parts[number + 1])
            output = model.generate(
                **{name: each.to(model.device) for name, each in batch.items()},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # Qwen's own settings have 1.05, which is not greedy any more
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = output[:, batch["input_ids"].shape[1] :]
            made += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return made


def measure(trainer, processor, shown, args):
    """Held-out loss, and answers to the shown rows: as they are, and with the pictures exchanged."""
    prompts, paths = [row["prompt"] for row in shown], [row["image"] for row in shown]
    runs.quiet(trainer)
    made = {"loss": trainer.evaluate()["eval_loss"]} if trainer.eval_dataset is not None else {}
    # Each row gets the next one's picture. A model that answers the same to it does not look.
    for name, pictures in (("answers", paths), ("exchanged", paths[1:] + paths[:1])):
        made[name] = generate(trainer.model, processor, pictures, prompts, args.max_new_tokens, 0, args.backend)
    return made


PRINTED = 6  # answers that are shown whole; all are counted


def learned(before, after, shown):
    """What was and what wasn't learned, as a table and a line: answers to the letter and each fact, counted before and after."""
    truth = [parse(row["response"]) for row in shown]
    counts = {"the whole answer": [sum(map(str.__eq__, each["answers"], [row["response"] for row in shown]))
                                         for each in (before, after)]}  # fmt: skip
    for name in FIELDS:
        counts[name] = [
            sum(parse(text)[name] == gold[name] for text, gold in zip(each["answers"], truth, strict=True))
            for each in (before, after)
        ]
    cells = [
        (name, f"{old} of {len(shown)}", f"{new} of {len(shown)}", f"{new - old:+d}")
        for name, (old, new) in counts.items()
    ]
    kinds = {
        "learned": [name for name, (old, new) in counts.items() if new > old],
        "known before, and kept": [name for name, (old, new) in counts.items() if new == old == len(shown)],
        "not learned": [name for name, (old, new) in counts.items() if new == old < len(shown)],
        "lost on the way": [name for name, (old, new) in counts.items() if new < old],
    }
    said = [f"{screen.text(kind)}: {', '.join(names)}" for kind, names in kinds.items() if names]
    return "\n".join([text_table(("right on held-out pictures", "before", "after", "change"), cells), *said])


def show(before, after, shown):
    """Print what a person wants to see: the same photos read before and after, and what was learned."""
    truth = [parse(row["response"]) for row in shown]
    for row, old, new in list(zip(shown, before["answers"], after["answers"], strict=True))[:PRINTED]:
        print(
            f"\n{'=' * 100}\npicture:     {row['image']}\nquestion:    {row['prompt']}\nreference:   {row['response']}"
        )
        print(f"{'-' * 100}\nbefore:      {old or '(empty)'}\n{'-' * 100}\nafter:       {new or '(empty)'}")
    print("=" * 100)
    others = truth[1:] + truth[:1]
    for name, each in (("before", before), ("after", after)):
        if shown:
            facts = [parse(text) for text in each["answers"]]
            moved = [parse(text) for text in each["exchanged"]]
            letters = sum(text == row["response"] for text, row in zip(each["answers"], shown, strict=True))
            scores = score(facts, truth)
            print(f"{name}: {letters} of {len(shown)} answers to the letter; mileage {scores['fields']['mileage']['exact']:.2f}, "
                  f"all {len(FIELDS)} facts {scores['document_exact']:.2f}; with the next row's picture "
                  f"{score(moved, others)['document_exact']:.2f} say what that picture shows and "
                  f"{score(moved, truth)['document_exact']:.2f} what they said before")  # fmt: skip
    if shown:
        print(learned(before, after, shown))
    if "loss" in before:
        print(f"held-out loss: {before['loss']:.3f} before, {after['loss']:.3f} after")
