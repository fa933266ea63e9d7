"""GRPO (group relative policy optimisation, arXiv 2402.03300) on PPO's prompts with PPO's reward model, by TRL.

PPO's value model says what score was to be expected; GRPO asks the policy itself: it samples G answers to one prompt and
takes their mean. An answer's advantage is (score - mean) / std within its group, the same for all of its tokens.

    L = - mean over tokens of min(ratio A, clip(ratio) A) + beta KL(policy || reference)

No value model, no GAE; in exchange G answers to each prompt, and no idea which token earned the score. Here as in
train_ppo.py one backbone carries policy and reward model, and the reference is the backbone with adapters off.

What departs from passing TRL a reward model: TRL decodes an answer and renders it through the chat template again, and
an answer that was cut off gets an <|im_end|> that it never wrote. `learned_reward` scores the very token ids.

One GPU:            python train_grpo.py --model outputs/rlhf_ppo/merged/RUN --reward outputs/rlhf_ppo/reward/RUN
A minute, CPU:      python train_reward.py --demo && python train_grpo.py --demo
Override anything:  python train_grpo.py --model MODEL --reward RUN --num_generations 16 --beta 0.1
"""

import os
from pathlib import Path
from types import SimpleNamespace

from backbone import (
    PROJECTIONS,
    ModelArgs,
    add_adapter,
    examples,
    fingerprint,
    judge,
    load_backbone,
    ready,
    reward_head,
    save_adapter,
    show_course,
    show_examples,
)
from common.cli import arg, parse
from common.evaluation import generate
from common.models import widen_adapters
from common.paths import DEMO_MODEL
from common.runs import gradient_guard
from data import DataArgs, encode_prompts, load_splits, prompt_texts, token_ids
from stage import Stage, StageArgs, digest, flags

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    max_steps=200,  # optimizer steps; one rollout each
    num_generations=8,  # G: answers of a group; more make the mean that they are compared with less noisy
    per_device_train_batch_size=8,  # answers at once in forward and backward
    gradient_accumulation_steps=8,  # 8 x 8 = 64 answers = 8 groups an update, as many answers as PPO's rollout
    max_completion_length=256,  # PPO's --max_new_tokens
    temperature=1.0,
    learning_rate=1e-5,
    lr_scheduler_type="constant",
    beta=0.05,  # price of KL, in the loss; the scores are normalised as PPO's
    loss_type="dapo",  # mean over the batch's tokens: a long answer is not excused by its length
    max_grad_norm=1.0,
    eos_penalty=1.0,  # off the score of an answer without an end: it must not pay to be cut off
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    gradient_checkpointing=False,
    save_steps=20,  # updates that a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    save_total_limit=2,
    logging_steps=1,
    seed=3407,
    disable_tqdm=True,  # recorder() has a bar of its own
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    data=str(HERE / "sample" / "pairs.jsonl"),
    max_steps=6,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=1,
    max_completion_length=20,
    learning_rate=1e-3,  # six updates only: a small model bears, and needs, larger steps
    beta=0.0,  # no reference pass
)

own = {name: DEFAULTS[name] for name in ("model", "eos_penalty", "lora_r", "lora_alpha")}
Args = flags(
    "Args",
    own,
    (ModelArgs, DataArgs, StageArgs),
    reward=(str | None, arg(None, "the reward model's folder (default: the newest run of train_reward.py)")),
    show_answers=(int, arg(4, "held-out prompts answered before and after")),
)

PANELS = {
    "reward: score in stds - EOS penalty": ["reward"],
    "KL from the reference, a token": ["kl"],
    "entropy, nats a token": ["entropy"],
    "length, tokens": ["completions/mean_length"],
    "share of groups whose rewards are all equal": ["frac_reward_zero_std"],
    "share of answers cut off": ["completions/clipped_ratio"],
}


def learned_reward(model, head, reward, tokenizer, eos_penalty):
    """TRL's reward callable: normalised scores of token ids, minus the penalty where an answer has no end."""

    def score(prompts, completion_ids, prompt_ids, **_):
        training = model.training
        model.eval()
        scores = judge(model, head, reward, tokenizer, prompt_ids, completion_ids)
        model.set_adapter("default")  # the policy again, and trainable
        model.train(training)
        ended = [ids[-1:] == [tokenizer.eos_token_id] for ids in completion_ids]
        clamped = [max(-10.0, min(10.0, each)) for each in scores]
        return [each - eos_penalty * (not end) for each, end in zip(clamped, ended, strict=True)]

    return score


def sampler(tokenizer, config):
    """TRL's rollout function: answers by common.evaluation.generate, so that PPO and GRPO sample alike."""

    def roll_out(prompts, trainer):
        ids = token_ids(tokenizer, prompts)
        how = dict(backend="hf", return_ids=True, temperature=config.temperature, top_k=0, top_p=1.0)
        completions = generate(trainer.model, tokenizer, ids, config.max_completion_length, len(ids), **how)
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    return roll_out


def recorder(stage):
    """Numbers to metrics.jsonl and a progress bar, and a checkpoint where a signal asks to stop."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.bar = tqdm(desc="GRPO", initial=state.global_step, total=state.max_steps)

        def on_log(self, args, state, control, logs=None, **_):
            if "reward" in logs:
                stage.log(state.global_step, logs)
                self.bar.set_postfix(reward=f"{logs['reward']:.2f}", length=f"{logs['completions/mean_length']:.0f}")

        def on_step_end(self, args, state, control, **_):
            self.bar.update()
            if stage.stop:
                control.should_save = control.should_training_stop = True

        def on_save(self, args, state, control, **_):
            stage.plot("grpo.png", PANELS)

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    return Recorder()


def main(argv=None) -> Path:
    args, config = parse(__file__, DEFAULTS, DEMO, (Args,), "trl:GRPOConfig", argv)
    path, reward, tokenizer = ready(args)
    train_pairs, eval_pairs = load_splits(args)
    prompts, prompt_ids = encode_prompts(train_pairs, tokenizer, args.max_prompt_length, "training prompts")
    shown, ids = encode_prompts(eval_pairs[: args.show_answers], tokenizer, args.max_prompt_length, "held-out prompts")
    asked = SimpleNamespace(**(config.to_dict() | vars(args)))
    inputs = {"model": fingerprint(path), "reward": reward, "data": digest(prompt_ids)}
    stage = Stage("grpo", asked, inputs, marker="trainer_state.json")  # the trainer writes it last
    if stage.finished:
        return stage.folder
    with stage:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func's warning; its version is pinned
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import PrinterCallback
        from trl import GRPOTrainer

        config.output_dir = str(stage.folder)
        dataset = Dataset.from_dict({"prompt": prompt_texts(tokenizer, prompts), "prompt_ids": prompt_ids})
        groups = config.per_device_train_batch_size * config.gradient_accumulation_steps / config.num_generations
        print(
            f"plan: {len(prompts):,} prompts; {config.max_steps:,} updates of {groups:g} groups of "
            f"{config.num_generations} answers of up to {config.max_completion_length} tokens"
        )
        lora = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        rewards = []  # filled below: the callable needs the model that the trainer makes

        def learned_score(**batch):
            return rewards[0](**batch)

        trainer = GRPOTrainer(
            model=load_backbone(path, SimpleNamespace(quantization=args.quantization, bf16=config.bf16)),
            reward_funcs=learned_score,
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora,  # so the reference is the backbone with adapters off
            rollout_func=sampler(tokenizer, config),
            callbacks=[gradient_guard(), recorder(stage)],
        )
        trainer.remove_callback(PrinterCallback)  # thirty numbers a step: they are in metrics.jsonl
        model = add_adapter(trainer.model, "reward", args.reward)
        model.set_adapter("default")
        widen_adapters(model)
        head = reward_head(args.reward, model.device)
        rewards.append(learned_reward(model, head, reward, tokenizer, args.eos_penalty))
        show = model, "default", head, reward, tokenizer, ids, config.max_completion_length
        if not stage.checkpoint:
            stage.note(before=examples(*show))
            model.set_adapter("default")
        else:
            stage.cut_metrics(int(stage.checkpoint.name.split("-")[1]))
        trainer.train(resume_from_checkpoint=str(stage.checkpoint) if stage.checkpoint else None)
        stage.plot("grpo.png", PANELS)
        stage.end_if_stopped()
        save_adapter(model, "default", tokenizer, stage.folder)
        stage.note(after=examples(*show))
    show_examples(shown, before=stage.record["before"], after=stage.record["after"])
    show_course(stage.metrics(), ("reward", "completions/mean_length", "completions/clipped_ratio"))
    print(f"Ask it: python infer.py --grpo {stage.folder} --reward {args.reward}")
    return stage.folder


if __name__ == "__main__":
    main()
