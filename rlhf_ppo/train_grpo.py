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

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import engine
from common import contract, models
from common.cli import LINEAR, arg, parse, trainer_config
from common.paths import DEMO_MODEL, TASK_DIR, command
from data import DataArgs, encode_prompts, load_splits
from prompt import prompt_texts
from stage import BackboneArgs, check_quantization, ends, fingerprint, ready, show_course, show_examples

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    max_steps=200,  # optimizer steps; one rollout each
    num_generations=8,  # G: answers of a group; more make the mean that they are compared with less noisy
    per_device_train_batch_size=8,  # answers at once in forward and backward
    gradient_accumulation_steps=8,  # 8 x 8 = 64 answers = 8 groups per update, as many answers as PPO's rollout
    max_completion_length=256,  # PPO's --max_new_tokens
    temperature=1.0,
    learning_rate=1e-5,
    lr_scheduler_type="constant",
    beta=0.05,  # price of KL, in the loss; the scores are normalised as PPO's
    loss_type="dapo",  # mean over the batch's tokens: a long answer is not excused by its length
    vllm_importance_sampling_mode="token_truncate",  # p / p_vLLM per token; a sequence's is mostly rounding errors
    max_grad_norm=1.0,
    eos_penalty=1.0,  # off the score of an answer without an end: it must not pay to be cut off
    lora_r=16,
    lora_alpha=16,  # alpha = r keeps the update's scale at 1
    gradient_checkpointing=False,
    save_steps=20,  # updates that a crash can cost; a stop by SIGTERM or Ctrl-C saves at once
    save_total_limit=2,
    logging_steps=1,
    logging_nan_inf_filter=False,  # a NaN should be seen
    seed=3407,
    disable_tqdm=True,  # common/screen.py has a bar of its own
    report_to=["none"],
)
DEMO = dict(
    model=DEMO_MODEL,
    data=str(HERE / "sample" / "gold.jsonl"),
    max_steps=10,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=1,
    max_completion_length=24,
    learning_rate=2e-3,  # ten updates only: a small model bears, and needs, larger steps
    beta=0.0,  # no reference pass
    eos_penalty=0.5,  # see train_ppo.py
    show_answers=12,  # all that are held out
)


@dataclass
class Args(BackboneArgs, DataArgs):
    reward: str | None = arg(None, "the reward model's folder (default: the newest run of train_reward.py)")
    eos_penalty: float = arg(1.0, "off the score of an answer without an end")
    lora_r: int = arg(16, "rank of the LoRA update")
    lora_alpha: int = arg(16, "the update is scaled by lora_alpha / lora_r")
    show_answers: int = arg(4, "held-out prompts answered before and after")
    rollouts: Literal["auto", "vllm", "hf"] = arg("auto", "auto: vLLM where it is installed and fits, else our decoder")


def work(args):
    """What a micro-batch takes, as arguments of fit.needs."""
    rows, new = args.per_device_train_batch_size, args.max_completion_length
    length = args.max_prompt_length + new
    # TRL has the logits of a micro-batch and their gradient in float32. The reward model's adapter is not trained.
    cached = rows * args.gradient_accumulation_steps * length
    return dict(tokens=rows * length, logits=8 * rows * new, cached=cached, adapter=16 + 4)


def learned_reward(model, head, reward, tokenizer, eos_penalty):
    """TRL's reward callable: normalised scores of token ids, minus the penalty where an answer has no end."""
    from scoring import judge

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


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "trl:GRPOConfig", argv)
    args.backend = "hf"  # three adapters take turns here, which is PEFT's way
    check_quantization(args)
    if args.rollouts == "vllm" and (reason := engine.refusal(args)):
        raise SystemExit(f"--rollouts vllm: {reason}.")
    train_pairs, eval_pairs = load_splits(args)
    path, reward = ready(args)
    tokenizer = models.load_tokenizer(path)
    prompts, prompt_ids = encode_prompts(train_pairs, tokenizer, args.max_prompt_length, "training prompts")
    shown, ids = encode_prompts(eval_pairs[: args.show_answers], tokenizer, args.max_prompt_length, "held-out prompts")

    engine.choose(args, path, work(args))
    config = trainer_config(args)  # torch is loaded from here on: what can be wrong above has been said
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOTrainer

    from backbone import add_adapter, load_backbone, save_adapter
    from common import runs
    from rollout import Rollout
    from scoring import examples, reward_head
    from watch import PANELS, Watcher

    asked = SimpleNamespace(**(config.to_dict() | {name: getattr(args, name) for name in args.own_flags}))
    inputs = {"model": fingerprint(path), "reward": reward, "data": runs.digest(prompt_ids)}
    run = runs.Run(asked, stage="grpo", inputs=inputs)
    if run.finished:
        return run.folder
    with run:
        config.output_dir = str(run.folder)
        texts = prompt_texts(tokenizer, [{"prompt": prompt} for prompt in prompts])
        dataset = Dataset.from_dict({"prompt": texts, "prompt_ids": prompt_ids})
        groups = config.per_device_train_batch_size * config.gradient_accumulation_steps / config.num_generations
        print(
            f"plan: {len(prompts):,} prompts; {config.max_steps:,} updates of {groups:g} groups of "
            f"{config.num_generations} answers of up to {config.max_completion_length} tokens"
        )
        lora_config = LoraConfig(
            task_type="CAUSAL_LM", r=args.lora_r, lora_alpha=args.lora_alpha, target_modules=LINEAR
        )
        rewards, rollout = [], Rollout()  # filled below: the callable needs the model that the trainer makes

        def learned_score(**batch):
            return rewards[0](**batch)

        trainer = GRPOTrainer(
            model=load_backbone(path, asked),
            reward_funcs=learned_score,
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config,  # so the reference is the backbone with adapters off
            rollout_func=rollout,  # PPO and GRPO sample alike
            callbacks=[runs.GradientGuard(), Watcher(run)],
        )
        if args.use_vllm:
            engine.start(trainer, rollout)
        model = add_adapter(trainer.model, "reward", args.reward)
        model.set_adapter("default")
        models.widen_adapters(model)
        head = reward_head(args.reward, model.device)
        rewards.append(learned_reward(model, head, reward, tokenizer, args.eos_penalty))
        show = model, "default", head, reward, tokenizer, ids, config.max_completion_length
        if not run.checkpoint:
            run.note(before=examples(*show))
            model.set_adapter("default")
        run.go_on(trainer)
        run.end_if_stopped()
        save_adapter(model, "default", tokenizer, run.folder)
        run.note_weights(model)
        contract.write(run.folder, TASK_DIR.name, tokenizer, run.record, inputs["model"])
        run.note(after=examples(*show))
        run.plot("grpo.png", PANELS, more=ends(run, config.max_steps))
    show_examples(shown, before=run.record["before"], after=run.record["after"])
    show_course(run.metrics(), ("reward", "completions/mean_length", "completions/clipped_ratio"))
    print(f"Ask it: {command('infer.py', '--grpo', run.folder, '--reward', Path(args.reward))}")
    print(contract.next_steps(run.folder))
    return run.folder


if __name__ == "__main__":
    main()
