"""DPO: learn from pairs without a reward model, since the policy is one (arXiv 2305.18290).

RLHF looks for the policy with the highest reward at a price of beta per nat of distance from a reference. That problem has
a closed solution, and read backwards it says which reward a policy is the best for: beta log p(y|x) / p_ref(y|x), up to
something that depends on x alone and cancels in a pair. Put into Bradley-Terry's likelihood (rlhf_ppo/train_reward.py):

    L = - log sigmoid( beta [ log p(y_c|x) / p_ref(y_c|x)  -  log p(y_r|x) / p_ref(y_r|x) ] )

At the first step p = p_ref and L = ln 2. Only the difference counts: both log-probabilities may fall, and usually do.
log p sums over tokens, so a longer answer has more to say in it: watch the length.

One GPU:            python dpo.py --data pairs.jsonl
From an SFT run:    python dpo.py --start outputs/alpaca/RUN --data pairs.jsonl
Minutes, CPU:        python dpo.py --demo
Override anything:  python dpo.py --data pairs.jsonl --beta 0.3 --learning_rate 1e-5
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import adapters, hub, screen
from common.cli import LoraArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.paths import DEMO_MODEL, command
from common.speed import fit
from data import DataArgs, load_splits

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    fused_lora=True,  # LoRA in fewer passes over memory; the same result
    beta=0.1,  # how much a nat of distance costs: smaller goes further from the reference
    max_length=1024,  # tokens of prompt + answer; longer pairs are dropped, not cut
    learning_rate=2e-5,  # of LoRA; 1e-6, TRL's, is for all weights. Ten times less than in SFT: this loss goes on for ever
    lr_scheduler_type="linear",
    warmup_steps=0.1,  # a share of the steps
    num_train_epochs=1,  # in the second, accuracy on its own pairs is 1.0 and says nothing any more
    per_device_train_batch_size=4,  # pairs: eight rows
    gradient_accumulation_steps=4,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False},  # the other way needs an input with a gradient
    optim="adamw_torch_fused",
    weight_decay=0.0,
    max_grad_norm=1.0,
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen
    eval_strategy="steps",
    eval_steps=20,
    per_device_eval_batch_size=8,
    save_steps=20,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    remove_unused_columns=False,  # the rejected side is one
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    auto=False,  # what this file says is what happens, with a GPU, too
    quantization="none",
    data=str(HERE / "sample" / "gold.jsonl"),
    eval_ratio=0.2,  # 24 held-out prompts: fewer say little
    learning_rate=1e-3,  # sixteen updates only: a small model bears, and needs, larger steps
    max_steps=16,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    gradient_checkpointing=False,
    fused_lora=False,
    bf16=False,
    eval_steps=8,
    save_steps=8,
    show_answers=24,
    max_new_tokens=36,
)


@dataclass
class PairArgs(DataArgs, LoraArgs):
    """Flags of all four methods."""

    start: str | None = arg(
        None, "an SFT run's folder: its adapter is trained on, and its frozen copy is the reference"
    )
    auto: bool = arg(True, "choose what the card decides: quantization, packing, micro-batch, checkpointing")
    rows_per_step: int | None = arg(None, "pairs (KTO: rows) per step (default: batch size x gradient accumulation)")
    max_length: int = arg(1024, "longest prompt + answer in tokens; longer ones are dropped")
    packing: bool = arg(True, "rows end to end without padding where the card has a kernel for it; the same numbers")
    show_answers: int = arg(12, "held-out prompts answered before and after")
    max_new_tokens: int = arg(256, "longest answer, in tokens")
    reuse: bool = arg(False, "a finished run with the same arguments and data is taken instead")
    stop_after: int | None = arg(None, "stop after this step as SIGTERM would; the same command without it goes on")


@dataclass
class Args(PairArgs):
    beta: float = arg(0.1, "price of distance from the reference")


def dpo_loss(policy, reference, lengths, beta):
    """(losses, margins) of pairs, (B,) each. policy, reference: log p(y|x), (2B,), the chosen answers first.

    The margin is the difference of the rewards that policy and reference imply.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = (beta * (policy - reference)).chunk(2)
    margin = chosen - rejected
    return -logsigmoid(margin), margin


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "transformers:TrainingArguments", argv)
    return run_pairs(args, partial(dpo_loss, beta=args.beta))


def run_pairs(args, loss, needs_reference=True) -> Path:
    """run_method for the losses of pairs: DPO, ORPO and SimPO."""

    def parts():
        import pairs

        how = dict(loss=loss, needs_reference=needs_reference)
        return pairs.tokenize, pairs.collator, partial(pairs.PairTrainer, **how)

    return run_method(args, parts)


def begin(args):
    """--start brings its base, its rank and its alpha; what is in it is part of a run's identity, as the data is."""
    args.backend = "hf"  # adapters take turns here, which is PEFT's way
    if not args.start:
        return
    folder = Path(args.start).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(
            f"{args.start} holds no adapter (no adapter_config.json). Give the folder that an SFT train.py named."
        )
    if "model" not in args.given:
        args.model = adapters.base_of(folder)
    shape = hub.read_object(folder / "adapter_config.json", r=int, lora_alpha=(int, float))
    args.lora_r, args.lora_alpha = shape["r"], shape["lora_alpha"]  # run.json is to say what the adapter has
    weights = folder / "adapter_model.safetensors"
    args.start_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def run_method(args, parts, single=False) -> Path:
    """Data, model, trainer, training, saving, showing: the same for all four methods.

    parts() -> (rows to data set, collator of (tokenizer, packed), trainer); it is called when torch may be loaded. single: rows
    are single answers with a label.
    """
    begin(args)
    # Beside the rows that are trained on: logits of pairs.CHUNK answer tokens, and their gradient; the reference's adapter.
    more, sides = dict(logits=12 * 1024) | ({"adapter": 16 + 4} if args.start else {}), 1 if single else 2
    if args.estimate:
        return fit.estimate(args, "max_length", lambda length, rows: dict(tokens=sides * rows * length) | more)
    screen.heading("data")
    train_rows, eval_rows = load_splits(args, single)

    path = hub.resolve_model(args.model)

    import policy  # torch is loaded from here on: what can be wrong above has been said

    config = trainer_config(args)
    hub.choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit

    import watch
    from common import runs

    (tokenizer, template), (to_set, collator, make_trainer) = policy.tokenizer_of(args, path), parts()
    what = "rows" if single else "pairs"
    train_set = to_set(train_rows, tokenizer, args.max_length, f"training {what}", template)
    eval_set = to_set(eval_rows, tokenizer, args.max_length, f"held-out {what}", template)
    # LoRA is fused with or without Liger, whose losses are of labels.
    fit.tune(config, args, path, train_set, settled=("fused_lora", "use_liger_kernel"), **more)
    run = runs.Run(args, config, train_set, draw=lambda _: watch.draw(run))
    if run.finished:
        return run.folder
    with run:
        trainer = make_trainer(
            model=policy.load_model(args, config, path),
            args=config,
            train_dataset=train_set,
            eval_dataset=eval_set,
            data_collator=collator(tokenizer, policy.packs(args, config)),
        )
        screen.heading("before training")
        look = partial(watch.look, trainer, tokenizer, eval_rows, template, args)
        before = look()
        run.train(trainer)
        screen.heading("after training")
        after = look()
        policy.drop_reference(trainer.model)
        run.save(trainer, tokenizer, **template)
        run.note(before=before, after=after)
    watch.show(before, after)
    print(
        "\n"
        + screen.text("Ask it yourself: {command}", command=command("infer.py", "--adapter", run.folder, "--compare"))
    )
    print(next_steps(run.folder))
    return run.folder


if __name__ == "__main__":
    main()
