"""Reward model: learn from pairs which of two answers people prefer (Bradley-Terry, a LoRA and a score head).

A language model whose last layer gives one number instead of a word: r(x, y) = w . h, h the hidden state at the answer's
last token. The chance that y_c is preferred to y_r is sigmoid(r(x, y_c) - r(x, y_r)), and its log-likelihood is trained:

    L = - log sigmoid(r_c - r_r) + c (r_c + r_r)^2

The second, small term (c = 0.01) holds the scores around 0: the first knows differences only, and lets them drift.
What departs from the usual script: one function (prompt.rm_ids) decides what is read, here and in PPO; lengths are
watched, since the cheapest way to tell good from bad is to count words; mean and spread of the scores on the SFT
model's own answers are stored, and PPO scores in those units.

One GPU:            python train_reward.py --model outputs/rlhf_ppo/merged/20261122-101500 --data pairs.jsonl
A minute, CPU:      python train_reward.py --demo
Override anything:  python train_reward.py --model MODEL --data pairs.jsonl --learning_rate 5e-5 --center 0
"""

import math
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from common import device, hub, models, screen
from common.cli import LINEAR, arg, parse
from common.files import write_json
from common.paths import DEMO_MODEL, command
from data import DataArgs, encode_pairs, load_splits
from prompt import rm_ids
from stage import LoopArgs, check_quantization, fingerprint, sft_model, tidy

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    learning_rate=1e-4,  # of LoRA and head; 1e-5 would be right for all weights
    epochs=1,  # a reward model overfits in the second: accuracy on its own pairs rises, on new ones it falls
    batch_size=32,  # pairs per update
    micro_batch_size=8,  # pairs at once; changes memory and speed, not the result
    warmup=0.03,  # share of the updates
    center=0.01,  # c above; 0 turns it off
    max_length=1024,  # tokens of prompt + answer; longer pairs are dropped, not cut: the end is what is scored
    max_grad_norm=1.0,
    save_every=50,  # updates that a crash can cost
    eval_every=50,
    sft_samples=128,  # answers sampled for the mean and spread of the scores
    max_new_tokens=256,  # of those answers; the same as in PPO
    seed=3407,
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    data=str(HERE / "sample" / "gold.jsonl"),
    learning_rate=1e-3,  # fourteen updates only
    batch_size=8,
    eval_every=3,
    sft_samples=16,
    max_new_tokens=24,
)


@dataclass
class Args(LoopArgs, DataArgs):
    gradient_checkpointing: bool = arg(False, "keep a layer's input only and compute it again: less memory, slower")


def bradley_terry(chosen, rejected, center=0.0):
    """(losses, margins) of scores (B,) of the better and the worse sides, each (B,)."""
    from torch.nn.functional import logsigmoid

    margin = chosen - rejected
    return -logsigmoid(margin) + center * (chosen + rejected) ** 2, margin


def side_rows(pairs, eos):
    """The rows of the better sides, then those of the worse sides: 2B lists of token ids."""
    return [rm_ids(pair["prompt"], pair[side], eos) for side in ("chosen", "rejected") for pair in pairs]


def evaluate(model, head, pairs, tokenizer):
    """What is reported of a reward model, on pairs it has not seen."""
    from scoring import score_rows

    rows = side_rows(pairs, tokenizer.eos_token_id)
    scores = score_rows(model, head, rows, tokenizer.pad_token_id)
    count = len(pairs)
    margins = [chosen - rejected for chosen, rejected in zip(scores[:count], scores[count:], strict=True)]
    lengths = [len(pair[side]) for side in ("chosen", "rejected") for pair in pairs]
    shorter = [m for m, pair in zip(margins, pairs, strict=True) if len(pair["chosen"]) < len(pair["rejected"])]
    return {
        "pairs": count,
        "accuracy": sum(m > 0 for m in margins) / count,
        "margin": sum(margins) / count,
        "loss": sum(math.log1p(math.exp(-abs(m))) + max(-m, 0) for m in margins) / count,
        # Near 1: it counts words. Then look at the next two, where counting words gives the wrong answer.
        "correlation_with_length": correlation(scores, lengths),
        "accuracy_where_chosen_is_shorter": sum(m > 0 for m in shorter) / len(shorter) if shorter else None,
        "pairs_where_chosen_is_shorter": len(shorter),
        "mean": statistics.fmean(scores),
        "std": statistics.pstdev(scores),
    }


def correlation(a, b):
    """Pearson's r; None where one of them does not vary."""
    try:
        return statistics.correlation(a, b)
    except statistics.StatisticsError:
        return None


def classifier(path, args):
    """The SFT model with a fresh reward LoRA and a score head, all of it trainable in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, set_seed

    from backbone import NF4, compute_dtype

    device.decide_backend("hf")  # before any model: it also chooses torch's attention
    set_seed(args.seed)  # head and LoRA's A are random
    dtype = compute_dtype(args)
    four_bit = NF4 | dict(bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=["score"])  # the head is trained
    model = hub.load(
        AutoModelForSequenceClassification,
        path,
        fresh=["score.weight"],
        num_labels=1,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(**four_bit) if args.quantization == "4bit" else None,
        device_map={"": torch.cuda.current_device()} if torch.cuda.is_available() else None,
    )
    lora_config = LoraConfig(
        task_type="SEQ_CLS",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=0.0,  # PPO compares scores of one text at different times: they must be equal
        target_modules=LINEAR,
        modules_to_save=["score"],  # PEFT does it for SEQ_CLS anyway; unsaved, each reload would have a random head
    )
    model = get_peft_model(model, lora_config)
    models.widen_adapters(model)  # in bfloat16 an update of 1e-4 of a weight is rounded away
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def head_of(model):
    """The trainable score head (H,) of a SEQ_CLS PeftModel."""
    return model.get_base_model().score.modules_to_save["default"].weight[0]


def train(model, train_pairs, eval_pairs, tokenizer, args, run):
    """Minimise the Bradley-Terry loss; every number goes to metrics.jsonl. Goes on from run.checkpoint."""
    import torch

    from backbone import pad_right
    from common.finite import GradientGuard, check_weights
    from scoring import scores_of

    guard, trained = GradientGuard(), {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=args.learning_rate, weight_decay=0.0)
    steps_per_epoch = math.ceil(len(train_pairs) / args.batch_size)
    steps, pad, eos, start = steps_per_epoch * args.epochs, tokenizer.pad_token_id, tokenizer.eos_token_id, 0
    if state := run.load_state():
        start = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for name, parameter in trained.items():
            parameter.data.copy_(state["weights"][name])
    lines = screen.Steps("reward model", steps, start)
    if not start:  # the plot begins before the first update
        held = evaluate(model.eval(), head_of(model), eval_pairs, tokenizer)
        run.log(0, tidy({f"eval_{name}": held[name] for name in ("loss", "accuracy", "margin")}))
    for step in range(start + 1, steps + 1):
        epoch, at = divmod(step - 1, steps_per_epoch)
        order = random.Random(f"{args.seed}-{epoch}").sample(range(len(train_pairs)), len(train_pairs))
        batch = [train_pairs[i] for i in order[at * args.batch_size : (at + 1) * args.batch_size]]
        ramp = max(1, round(args.warmup * steps))
        rate = args.learning_rate * min(step / ramp, (steps - step + 1) / max(1, steps - ramp))
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        began, losses, margins = time.time(), 0.0, []
        for first in range(0, len(batch), args.micro_batch_size):
            micro = batch[first : first + args.micro_batch_size]
            # Both sides in one forward pass: half as many, and the same kernels for both.
            rows, last = pad_right(side_rows(micro, eos), pad, model.device)
            chosen, rejected = scores_of(model, head_of(model), rows, last).chunk(2)
            loss, margin = bradley_terry(chosen, rejected, args.center)
            (loss.sum() / len(batch)).backward()
            losses += loss.sum().item() / len(batch)
            margins += margin.tolist()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), args.max_grad_norm or math.inf).item()
        if guard.takes(norm, step):
            optimizer.step()
        optimizer.zero_grad()
        accuracy = sum(m > 0 for m in margins) / len(margins)
        metrics = dict(loss=losses, accuracy=accuracy, margin=statistics.fmean(margins), grad_norm=norm, lr=rate)
        if step % args.eval_every == 0 or step == steps:
            held = evaluate(model.eval(), head_of(model), eval_pairs, tokenizer)
            metrics |= {f"eval_{name}": held[name] for name in ("loss", "accuracy", "margin")}
        run.log(step, tidy(metrics | {"seconds": time.time() - began}))
        lines.log(step, metrics)
        if step % args.save_every == 0 or run.stop:
            check_weights(trained.items(), run.folder)
            weights = {name: p.detach().cpu() for name, p in trained.items()}
            run.save_state(step, {"weights": weights, "optimizer": optimizer.state_dict()})
        run.end_if_stopped()
    run.plot("reward.png", PANELS)


# Title of a plot: metric -> its label.
PANELS = {
    "loss": {"loss": "loss", "eval_loss": "eval_loss"},
    "accuracy": {"accuracy": "accuracy", "eval_accuracy": "eval_accuracy"},
    "margin: r(chosen) - r(rejected)": {"margin": "margin", "eval_margin": "eval_margin"},
}


def sft_scores(path, folder, pairs, tokenizer, args):
    """Scores of the SFT model's own answers to some prompts: the units in which PPO counts."""
    from backbone import WHOLE, add_adapter, answers_of, load_backbone
    from scoring import reward_head, score_rows

    model = add_adapter(load_backbone(path, args), "reward", folder)
    prompts = [pairs[i % len(pairs)]["prompt"] for i in range(args.sft_samples)]
    answers = answers_of(model, None, tokenizer, prompts, args.max_new_tokens, **WHOLE)
    model.set_adapter("reward", inference_mode=True)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    head = reward_head(folder, model.device)
    rows = [rm_ids(prompt, answer, eos) for prompt, answer in zip(prompts, answers, strict=True)]
    return score_rows(model, head, rows, pad), score_rows(model, head, side_rows(pairs[:4], eos), pad)


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, argv=argv)
    check_quantization(args)
    train_pairs, eval_pairs = load_splits(args)
    path = sft_model(args.model)
    tokenizer = models.load_tokenizer(path)
    fit = args.max_prompt_length, args.max_length
    train_rows = encode_pairs(train_pairs, tokenizer, *fit, "training pairs")
    eval_rows = encode_pairs(eval_pairs, tokenizer, *fit, "held-out pairs")

    from common import runs  # torch is loaded from here on: what can be wrong above has been said
    from common.finite import check_weights
    from scoring import score_rows

    inputs = {"model": fingerprint(path), "data": runs.digest([train_rows, eval_rows])}
    run = runs.Run(args, stage="reward", inputs=inputs, marker="state.pt")
    if run.finished:
        return run.folder
    with run:
        model = classifier(path, args)
        steps = math.ceil(len(train_rows) / args.batch_size) * args.epochs
        trained, total = model.get_nb_trainable_parameters()
        print(
            f"plan: {len(train_rows):,} pairs, {len(eval_rows):,} held out; {steps:,} updates of {args.batch_size} pairs; "
            f"{trained:,} of {total:,} parameters are trained"
        )
        train(model, train_rows, eval_rows, tokenizer, args, run)
        report = evaluate(model.eval(), head_of(model), eval_rows, tokenizer)
        probe = score_rows(
            model, head_of(model), side_rows(train_rows[:4], tokenizer.eos_token_id), tokenizer.pad_token_id
        )
        check_weights(((name, p) for name, p in model.named_parameters() if p.requires_grad), run.folder)
        model.save_pretrained(run.folder)
        tokenizer.save_pretrained(run.folder)
        (run.folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        del model
        # What was saved is read back onto the causal model, as PPO will: the same scores, or nothing after this counts.
        scores, again = sft_scores(path, run.folder, train_rows, tokenizer, args)
        worst = max(abs(a - b) for a, b in zip(probe, again, strict=True))
        if worst > 0.02 * (1 + max(map(abs, probe))):
            raise SystemExit(f"{run.folder}: the saved reward model scores differently by {worst:.3g}: do not use it.")
        mean, std = statistics.fmean(scores), statistics.pstdev(scores)
        made = {"model": args.model, "fingerprint": fingerprint(path), "quantization": args.quantization}
        made |= {"sft_mean": mean, "sft_std": max(std, 1e-3), "sft_samples": len(scores), "held_out": report}
        write_json(run.folder / "reward.json", made)
        run.note(held_out=report, sft_mean=mean, sft_std=std)
    show(report, mean, std)
    print(f"Next: {command('train_ppo.py', '--model', args.model, '--reward', run.folder)}")
    return run.folder


def show(report, mean, std):
    shorter, length = report["accuracy_where_chosen_is_shorter"], report["correlation_with_length"]
    print(
        f"held out, {report['pairs']} pairs: accuracy {report['accuracy']:.3f}, margin {report['margin']:.2f}\n"
        f"score and length correlate by {'-' if length is None else f'{length:.2f}'}; accuracy where the chosen side is "
        f"the shorter one: {'-' if shorter is None else f'{shorter:.3f}'} ({report['pairs_where_chosen_is_shorter']} pairs)\n"
        f"scores of the SFT model's own answers: mean {mean:.2f}, std {std:.2f}"
    )


if __name__ == "__main__":
    main()
