"""Supervised fine-tuning after continued pretraining: the same adapter goes on, and learns to answer.

    L = - 1/n * sum over the answers' tokens of log p(token | question, tokens before)

--start RUN takes the run of train.py: its adapter is trained further, so what comes out is one adapter on the public base. An
embedding that was trained there stays as it is now. Without --start a fresh adapter learns on the base: the arm to compare with.
Documents (--data, --general) are not trained on here; they are measured, since answering well can cost knowledge, too.

After train.py:     python sft.py --start outputs/continual/RUN --chats chats.jsonl --data texts/
Without it:         python sft.py --model Qwen/Qwen2.5-7B --chats chats.jsonl
Seconds, CPU:       python sft.py --demo
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import train
from common import adapters, device, hub, models
from common.cli import arg, parse
from prompt import encode

DEFAULTS = {name: value for name, value in train.DEFAULTS.items() if name not in ("replay", "num_train_epochs")} | dict(
    num_train_epochs=2  # the learning rate stays: the adapter holds what was read, and larger steps would take it back
)
DEMO = train.DEMO | dict(
    model=str(train.HERE / "miniature" / "base"),
    learning_rate=1e-3,  # at 3e-3 what was read before is gone
    max_steps=30,  # ten times through a hundred conversations
)


@dataclass
class Args(train.TrainArgs):
    start: str | None = arg(None, "a run of train.py, whose adapter goes on; without it a fresh one")


def rows_of(tokenizer, splits, template, args):
    """Training rows (ids, labels) of conversations; those over max_length are dropped, and counted."""
    if not splits["chats"][0]:
        raise SystemExit("no --chats: give the conversations to learn from, rows with a question and an answer.")
    rows = list(zip(*encode(tokenizer, splits["chats"][0], template), strict=True))
    fit = [row for row in rows if len(row[0]) <= args.max_length]
    if len(fit) < len(rows):
        print(
            f"{len(rows) - len(fit):,} of {len(rows):,} conversations are over --max_length {args.max_length}: dropped"
        )
    if not fit:
        raise SystemExit(f"{args.chats}: no conversation fits in --max_length {args.max_length} tokens.")
    return fit


def check(args):
    """--start brings its base; what is in it is part of a run's identity, as the data is."""
    if not args.start:
        return
    folder = Path(args.start).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(
            f"{args.start} holds no adapter (no adapter_config.json). Give the folder that train.py named."
        )
    args.backend = "hf"
    args.model = args.model if "model" in args.given else adapters.base_of(folder)
    settings = hub.read_object(folder / "adapter_config.json", r=int, lora_alpha=(int, float))
    args.lora_r, args.lora_alpha = settings["r"], settings["lora_alpha"]
    weights = folder / adapters.WEIGHTS
    args.start_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def load_model(args, config, path):
    """As in train.py, with the adapter of --start in a fresh one's place."""
    if not args.start:
        return train.load_model(args, config, path)
    from common.speed import lora, packing

    folder = Path(args.start).expanduser()
    adapters.check(folder, path)
    nf4 = train.NF4 if hub.choose_quantization(args.quantization, path) else None
    model = models.load_base(path, args.backend, nf4, device.dtype(config), args.max_length)
    model = adapters.attach(model, folder, trainable=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    print(f"start: {folder}; its rank and layers count, not the flags'")
    if args.fused_lora:
        lora.fuse(model)
        config.liger_kernel_config = {"swiglu": False}
    if args.packing:
        packing.attend_by_row(model, args.backend)
    return model


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:SFTConfig", argv)
    return train.run_method(__file__, args, argv, rows_of, check, load_model)


if __name__ == "__main__":
    main()
