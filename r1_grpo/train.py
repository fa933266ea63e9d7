"""Reasoning from rewards alone, R1 style: GRPO (arXiv 2402.03300) on math problems whose answer can be checked (LoRA).

No solution is ever shown. The model answers each question G times; rules (rewards.py) say what each answer earns; an
answer is made likelier or less likely by how much better it is than its own group's mean:

    A_i  = (r_i - mean(r_1..r_G)) / (std(r_1..r_G) + 0.0001)
    loss = - 1/n * sum over the completions' n tokens of  min(rho A, clip(rho, 0.8, 1.2) A) - beta KL
    rho  = p(token) / p_when_sampled(token), here 1, since each sample is used once
    KL   = q/p - log(q/p) - 1, q of the model at the beginning

From the course come the rates, 250 steps, G = 6 and the five rewards' sizes. What departs from it: rewards that pay as
they say (rewards_course.py shows the copied ones); 4 prompts per update, not 1, for less noise; 512 tokens, not 200, since
an answer that is cut off earns nothing; r 32; KL in the paper's form; checkpoints on the way; rollouts by TRL's own vLLM
where it fits on the card (engine.py), else by a decoder that needs none (rollout.py); groups that all earn the same stop
the run.

One GPU:            python train.py
Three minutes, CPU: python train.py --demo
As in the course:   python train.py --config course.yaml
Override anything:  python train.py --data sample --warmup_sft 16 --num_generations 8 --per_device_train_batch_size 8
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import engine
import rewards_course
from common import device, models, screen
from common.cli import LoraArgs, arg, parse, trainer_config
from common.contract import next_steps
from common.hub import choose_quantization, resolve_model
from common.paths import command
from common.speed import fit
from data import load_splits, prompts_of
from prompt import SYSTEM, TEMPLATE, ideal
from rewards import REWARDS, for_trl, self_test

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit, as in the course
    lora_r=32,  # the adapter only has to shift what the model does already
    lora_alpha=32,  # alpha = r keeps the update's scale at 1
    learning_rate=5e-6,  # a fortieth of SFT's: the signal is noisy, and a policy that breaks samples only rubbish
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # a share of the steps, while Adam's averages of so noisy a gradient settle
    max_steps=250,  # 1,000 prompts, a seventh of GSM8K
    num_generations=6,  # G: the group's mean is the baseline, so it needs some members
    per_device_train_batch_size=6,  # completions at once in the backward pass: one group
    gradient_accumulation_steps=4,  # 4 groups per update; all 24 completions are sampled in one go
    max_completion_length=512,  # watch clipped_ratio: what is cut off has no answer
    temperature=1.0,  # samples from the model itself, which is what the formula is about
    beta=0.04,  # weight of the KL to the start, the paper's
    use_bias_correction_kl=False,  # the paper's formula: rho would change the KL's gradient even where it is 1
    loss_type="dapo",  # every token of the batch counts the same; the paper's mean per completion favours short ones
    scale_rewards="group",  # divided by the group's standard deviation, as in the paper
    vllm_importance_sampling_mode="token_truncate",  # p / p_vLLM per token; a sequence's is mostly rounding errors
    num_iterations=1,  # each completion is used for one update
    adam_beta2=0.99,  # forgets sooner than 0.999: 250 steps are few
    weight_decay=0.1,
    max_grad_norm=0.2,  # one lucky group must not tear the policy away
    gradient_checkpointing=True,  # layers are computed again: the card has the rollouts' cache to hold, too
    optim="adamw_torch_fused",
    seed=3407,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen
    save_steps=50,  # what a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    report_to=["none"],
)
DEMO = dict(
    model=str(HERE / "miniature"),  # right on three problems of ten, see pretrain.py
    quantization="none",
    data=str(HERE / "sample"),
    learning_rate=1e-3,  # a model of 1.7 million parameters bears, and needs, larger steps
    max_steps=80,
    fused_lora=True,  # half the time of a step
    num_generations=8,
    per_device_train_batch_size=64,  # 8 groups
    gradient_accumulation_steps=1,
    max_completion_length=40,  # its solutions take 23 to 26
    gradient_checkpointing=False,
    save_steps=40,
    follow_steps=20,
)
# QLoRA (arXiv 2305.14314): frozen weights in 4 bits that are spaced as normally distributed numbers are.
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@dataclass
class Args(LoraArgs):
    data: str | None = arg(None, "a folder, JSONL file or hub name (default: R1_GRPO_DATA_DIR, DATA_DIR/r1_grpo, hub)")
    max_prompt_tokens: int = arg(256, "longer prompts are left out and counted: TRL has no such option any more")
    system_prompt: str | None = arg(None, "what the model is told (default: prompt.py's); saved beside the adapter")
    rewards: Literal["here", "course"] = arg("here", "course: the copied ones of rewards_course.py, faults and all")
    warmup_sft: int = arg(0, "first N updates of SFT on gold solutions in the form, for models that never write it")
    warmup_sft_lr: float = arg(2e-4, "learning rate of these")
    warmup_sft_rows: int = arg(8, "rows per update of these")
    probe_prompts: int = arg(32, "prompts answered G times before training: can the model earn anything yet?")
    eval_prompts: int = arg(100, "test problems answered greedily before and after")
    follow: int = arg(3, "test problems whose answers are kept in samples.html")
    follow_steps: int = arg(25, "answered every so many steps")
    dead_steps: int = arg(20, "stop after so many steps with over 90% dead groups (all rewards equal); 0: never")
    rollouts: Literal["auto", "vllm", "hf"] = arg("auto", "auto: vLLM where it is installed and fits, else our decoder")


def sampling(args):
    """(completions that are sampled in one go, backward passes that they are made for), by TRL's rules."""
    micro = args.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    asked = args.generation_batch_size or micro * args.gradient_accumulation_steps
    passes = args.steps_per_generation or asked // micro
    completions = args.generation_batch_size or micro * passes
    if completions % args.num_generations:
        raise SystemExit(
            f"{completions} completions are sampled in one go. The number must be divisible by num_generations "
            f"({args.num_generations}), or a group would be cut: change --per_device_train_batch_size."
        )
    return completions, passes


def work(args, new, rows):
    """What a micro-batch of `rows` completions of `new` tokens takes, for --estimate: arguments of fit.needs."""
    length = args.max_prompt_tokens + new
    whole = 0 if args.use_liger_kernel else 8 * rows * new  # of all these, and their gradient, in float32
    return dict(
        tokens=rows * length,
        logits=None if args.backend == "unsloth" else whole,  # Unsloth's loss takes them in chunks
        cached=sampling(args)[0] * length,  # all are sampled in one go, and their cache is kept
        adapter=20 if args.warmup_sft else 16,  # then the KL's reference is a frozen copy of the adapter
    )


def check(args):
    """Stop, before anything loads, where flags cannot work together. args.backend may still be "auto"."""
    if args.rollouts == "vllm" and (reason := engine.refusal(args)):
        raise SystemExit(f"--rollouts vllm: {reason}.")
    if args.warmup_sft and args.beta and args.backend == "unsloth":
        raise SystemExit("Unsloth measures the KL to the bare model, without the form: give --beta 0 or --backend hf.")
    # TRL keeps samples in memory only: a checkpoint between two samplings would go on with others.
    every = sampling(args)[1] * args.num_iterations  # backward passes
    period = every // math.gcd(every, args.gradient_accumulation_steps)
    if args.save_strategy == "steps" and args.save_steps % period:
        raise SystemExit(
            f"--save_steps {args.save_steps:g}: completions are sampled every {period} steps, and a checkpoint between "
            f"two samplings cannot be resumed exactly. Take a multiple of {period}."
        )


def load_model(args, config, path):
    """The frozen base with fresh adapters: W x + alpha / r * B A x, with B and A of rank r, of which only these train."""
    from peft import LoraConfig

    from common.speed import lora

    lora_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        bias="none",
    )
    nf4 = NF4 if choose_quantization(args.quantization, path) else None
    longest = args.max_prompt_tokens + args.max_completion_length
    model = models.load_base(path, args.backend, nf4, device.dtype(config), longest)
    model = models.attach(model, lora_config, args.backend, config)
    if args.fused_lora and args.backend == "hf":
        lora.fuse(model)
        config.liger_kernel_config = {"swiglu": False}  # part of fuse() already
    return model


def main(argv=None):
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:GRPOConfig", argv)
    if args.estimate:
        fit.estimate(args, "max_completion_length", partial(work, args))
        return engine.on_cards(args, work(args, args.max_completion_length, args.per_device_train_batch_size))
    check(args)
    TEMPLATE["system_prompt"] = args.system_prompt or SYSTEM  # of all that builds prompts here
    screen.heading("data")
    train_rows, test_rows = load_splits(args)
    print(self_test(train_rows, ideal))
    path = resolve_model(args.model)

    engine.choose(args, path, work(args, args.max_completion_length, args.per_device_train_batch_size))
    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    choose_quantization(args.quantization, path)  # says now, and not in minutes, that the model cannot fit
    check(args)  # again: now it is known what backend "auto" is
    from transformers import set_seed
    from trl import GRPOTrainer

    from common import runs
    from rollout import Rollout
    from warmup import drop_reference, set_reference, start_policy
    from watch import PANELS, Watcher, ends, measure, probe, show

    tokenizer = models.load_tokenizer(path)
    train_set = prompts_of(train_rows, tokenizer, args.max_prompt_tokens, "training rows")
    tests = test_rows[: args.eval_prompts]

    with runs.Run(args, config, train_set, draw=lambda _: run.plot("rewards.png", PANELS, "step", ends(run))) as run:
        model = load_model(args, config, path)
        resumed, stages = bool(run.checkpoint), run.record.get("stages", {})
        screen.heading("before training")
        if not resumed:
            stages["base"] = measure(model, tokenizer, tests, args)
        start_policy(model, tokenizer, train_rows, args, run)
        if not resumed and args.warmup_sft:
            stages["after warm-up"] = measure(model, tokenizer, tests, args)
        if not resumed:
            found = probe(model, tokenizer, train_rows[: args.probe_prompts], args)
            run.note(before=stages["base"], stages=stages, probe=found)

        if args.use_vllm:
            engine.make_room(model)
        rollout = Rollout() if args.backend == "hf" else None  # Unsloth samples by itself
        watch = Watcher(run, rollout, tokenizer, test_rows[: args.follow], args)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[for_trl(each) for each in (REWARDS if args.rewards == "here" else rewards_course.REWARDS)],
            args=config,
            train_dataset=train_set,
            processing_class=tokenizer,
            callbacks=[runs.GradientGuard(), watch],
            rollout_func=rollout,
        )
        watch.trainer = trainer
        if args.use_vllm:
            engine.start(trainer, rollout)
        set_reference(model, args.warmup_sft)
        set_seed(config.seed)  # the samples do not depend on how much was measured before
        run.train(trainer)
        drop_reference(model)
        run.save(trainer, tokenizer, **TEMPLATE)
        screen.heading("after training")
        stages["after GRPO"] = measure(model, tokenizer, tests, args)
        run.note(after=stages["after GRPO"], tokens=round(watch.generated))
        run.draw_loss()  # again, with what was measured last
    show(run.folder, stages)
    print(f"\nwatch it learn: {run.folder / 'samples.html'} and rewards.png beside it")
    print(screen.text("Ask it yourself: {command}", command=command("infer.py", "--adapter", run.folder)))
    print(next_steps(run.folder))


if __name__ == "__main__":
    main()
