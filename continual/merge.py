"""Adapter + base -> one plain model, proved to be the one that was trained.

    W' = W + (alpha / r) B A, added in 32 bits

The trap is in the words. Where embed_tokens and lm_head are one matrix (SmolLM2, Qwen2.5 up to 3B), LoRA in the embedding moves
only what goes in; merged, it moves what comes out as well, and the model is another one. train.py --embeddings therefore trains
the one matrix itself. So that nobody has to believe it, logits are taken before merging and, from the files written, after.

One command:  python merge.py --adapter outputs/continual/20261122-101500 --out merged
Then:         python ../alpaca/train.py --model merged
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import adapters, hub, models
from common.cli import arg, parse
from common.files import read_json
from common.paths import check_disk, command
from common.rows import read_lines

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)
EXACT = 1e-3  # of the largest logit, in 32 bits: what adding up in another order may cost
ROUNDED = 0.1  # of the files, after bfloat16's 8 bits went through all layers
ROWS = 8  # held-out rows of the run whose logits are compared


@dataclass
class Args:
    adapter: str | None = arg(None, "a finished run's folder (default: the newest)")
    model: str | None = arg(None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub")
    out: str | None = arg(None, "a new folder for the model (default: merged in the run's folder)")
    dtype: Literal["bfloat16", "float16", "float32"] = arg("bfloat16", "of the files")


def rows_of(folder, tokenizer):
    """Token ids to compare on: the run's held-out rows, else a sentence."""
    file = folder / "heldout.jsonl"
    rows = [row["input_ids"][:256] for row in read_lines(file)] if file.is_file() else []
    return rows[:ROWS] or [tokenizer("The harbour master levies four crowns.").input_ids]


def logits_of(model, rows):
    """Float32 logits of each row, on a list."""
    import torch

    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].float() for row in rows]


def difference(before, after) -> float:
    """The largest difference of two lists of logits, as a share of the largest logit."""
    largest = max(each.abs().max().item() for each in before)
    return max((one - other).abs().max().item() for one, other in zip(before, after, strict=True)) / largest


def merge(adapter: Path, base: Path, folder: Path, dtype="bfloat16") -> float:
    """Write adapter + base to `folder` as a plain model with the adapter's tokenizer. Returns how far its logits are from the
    trained ones (see difference). Raises SystemExit, and writes nothing, where they are another model's."""
    import torch
    from transformers import AutoModelForCausalLM

    model = adapters.attach(hub.load(AutoModelForCausalLM, base, dtype=torch.float32), adapter).eval()
    tokenizer = models.load_tokenizer(adapter if (adapter / "tokenizer_config.json").is_file() else base)
    rows = rows_of(adapter, tokenizer)
    trained = logits_of(model, rows)
    merged = model.merge_and_unload(safe_merge=True).eval()
    wrong = difference(trained, logits_of(merged, rows))
    new = folder / ".merged.new"
    shutil.rmtree(new, ignore_errors=True)
    if wrong <= EXACT:
        merged.to(getattr(torch, dtype)).save_pretrained(new)
        tokenizer.save_pretrained(new)
        del merged, model
        error = difference(trained, logits_of(hub.load(AutoModelForCausalLM, new, dtype=torch.float32).eval(), rows))
        wrong = error if error > ROUNDED else 0
    if wrong > EXACT:
        tied = read_json(base / "config.json").get("tie_word_embeddings")
        shutil.rmtree(new, ignore_errors=True)
        why = "Its embedding and lm_head are one matrix, and the adapter changes one side of it. " if tied else ""
        raise SystemExit(
            f"{adapter} cannot be merged: the logits of the merged model are {wrong:.0%} from the trained one's. {why}"
            "Serve the adapter beside its base, or train again with --embeddings, which trains the matrix itself."
        )
    for file in sorted(new.iterdir(), key=lambda file: file.name == "config.json"):  # last: it makes a folder a model
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    new.rmdir()
    return error


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    run = models.open_run(args.adapter, args.model)
    folder = Path(args.out).expanduser() if args.out else run.adapter / "merged"
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty and is kept: give another --out.")
    check_disk(folder, int(1.2 * hub.weight_bytes(run.base, False)), "the merged model")
    error = merge(run.adapter, run.base, folder, args.dtype)
    print(f"merged: {folder}; its logits are {error:.1e} of the largest one from the trained model's")
    print(f"Teach it to answer: {command('sft.py', '--model', folder, '--chats', 'chats.jsonl')}")
    return folder


if __name__ == "__main__":
    main()
