"""Reasoning from rewards alone, R1 style: GRPO (arXiv 2402.03300) on math problems whose answer can be checked (LoRA).

No solution is ever shown. The model answers each question G times; rules (rewards.py) say what each answer earns; an
answer is made likelier or less likely by how much better it is than its own group's mean:

    A_i  = (r_i - mean(r_1..r_G)) / (std(r_1..r_G) + 0.0001)
    loss = - 1/n * sum over the completions' n tokens of  min(rho A, clip(rho, 0.8, 1.2) A) - beta KL
    rho  = p(token) / p_when_sampled(token), here 1, since each sample is used once
    KL   = q/p - log(q/p) - 1, q of the model at the beginning

From the course come the rates, 250 steps, G = 6 and the five rewards' sizes. What departs from it: rewards that pay as
they say (rewards_course.py shows the copied ones); 4 prompts an update, not 1, for less noise; 512 tokens, not 200, since
an answer that is cut off earns nothing; r 32; KL in the paper's form; checkpoints on the way; rollouts by common/, which
need no vLLM (--fast_inference: Unsloth with vLLM, as in the course); groups that all earn the same stop the run.

One GPU:            python train.py
Three minutes, CPU: python train.py --demo
As in the course:   python train.py --config course.yaml
Override anything:  python train.py --data sample --warmup_sft 16 --num_generations 8 --per_device_train_batch_size 8
"""

import html
import importlib.util
import json
import math
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.evaluation import generate
from common.memory import estimate
from common.models import LoraArgs, choose_quantization, find_model, import_backend, load_model, load_tokenizer
from common.paths import DEMO_MODEL
from common.runs import Run, gradient_guard, replace_text, write_json
from data import DataArgs, format_report, ideal, prompt_ids, prompts_of, read_splits
from rewards import REWARDS, grade, score, self_test

HERE = Path(__file__).resolve().parent

DEFAULTS = dict(
    model="Qwen/Qwen2.5-7B-Instruct",
    quantization="auto",  # 16-bit weights where they fit, they are faster; else 4-bit, as in the course
    auto=False,  # --auto measures rows that are known before; completions are not
    lora_r=32,  # the adapter only has to shift what the model does already
    lora_alpha=32,  # alpha = r keeps the update's scale at 1
    learning_rate=5e-6,  # a fortieth of SFT's: the signal is noisy, and a policy that breaks samples only rubbish
    lr_scheduler_type="cosine",
    warmup_steps=0.1,  # a share of the steps, while Adam's averages of so noisy a gradient settle
    max_steps=250,  # 1,000 prompts, a seventh of GSM8K
    num_generations=6,  # G: the group's mean is the baseline, so it needs some members
    per_device_train_batch_size=6,  # completions at once in the backward pass: one group
    gradient_accumulation_steps=4,  # 4 groups an update; all 24 completions are sampled in one go
    max_completion_length=512,  # watch clipped_ratio: what is cut off has no answer
    temperature=1.0,  # samples from the model itself, which is what the formula is about
    beta=0.04,  # weight of the KL to the start, the paper's
    use_bias_correction_kl=False,  # the paper's formula; it is the same as long as rho is 1
    loss_type="dapo",  # every token of the batch counts the same; the paper's mean a completion favours short ones
    scale_rewards="group",  # divided by the group's standard deviation, as in the paper
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
    model=DEMO_MODEL,
    quantization="none",
    lora_target_modules=["q_proj", "v_proj"],  # adapters on all seven take as long as the model itself, on a CPU
    data=str(HERE / "sample"),
    warmup_sft=4,  # 135M parameters never write the tags by themselves: without it every reward is 0
    warmup_sft_lr=1e-3,
    learning_rate=1e-3,  # 8 updates only: a small model bears, and needs, larger steps
    max_steps=8,
    num_generations=8,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=1,
    max_completion_length=40,  # the form with one line of reasoning takes 32
    beta=0.02,
    gradient_checkpointing=False,
    save_steps=8,
    probe_prompts=4,
    eval_prompts=16,
    follow=2,
    follow_steps=4,
)


@dataclass
class Args(DataArgs):
    warmup_sft: int = arg(
        0, "first N updates of SFT on gold solutions in the form: for models that never write the tags"
    )
    warmup_sft_lr: float = arg(2e-4, "learning rate of these")
    warmup_sft_rows: int = arg(8, "rows of each of these")
    probe_prompts: int = arg(32, "prompts answered G times before training: can the model earn anything yet?")
    eval_prompts: int = arg(100, "test problems answered greedily before and after")
    follow: int = arg(3, "test problems whose answers are kept in samples.html")
    follow_steps: int = arg(25, "every so many steps")
    dead_steps: int = arg(20, "stop after so many steps with over 90% dead groups (all rewards equal); 0: never")
    fast_inference: bool = arg(False, "rollouts by vLLM inside Unsloth, as in the course; both must be installed")
    gpu_memory_utilization: float = arg(0.5, "vLLM's share of the GPU's memory with --fast_inference")
    price_per_hour: float | None = arg(None, "what the machine costs: the plan then says what the run will cost")


def check(args, model_args, config):
    """Stop, before anything loads, where flags cannot work together."""
    if model_args.auto or model_args.packing:
        raise SystemExit("--auto and --packing are for supervised training: here the rows are made on the way.")
    if args.fast_inference:
        missing = [name for name in ("unsloth", "vllm") if importlib.util.find_spec(name) is None]
        if missing:
            raise SystemExit(f"--fast_inference needs {' and '.join(missing)}, not installed here. Leave the flag out.")
        if import_backend(model_args.backend) != "unsloth":
            raise SystemExit("--fast_inference is Unsloth's: give --backend unsloth as well.")
    if args.warmup_sft and config.beta and import_backend(model_args.backend) == "unsloth":
        raise SystemExit(
            "Unsloth compares with the bare model, not with the warmed-up one: the KL would pull the form away again. "
            "Give --beta 0 or --backend hf."
        )
    # TRL samples every steps_per_generation * num_iterations backward passes and keeps the samples in memory only. A
    # checkpoint in between would go on with other samples than the run that was not stopped.
    every = config.steps_per_generation * config.num_iterations
    period = every // math.gcd(every, config.gradient_accumulation_steps)
    if config.save_strategy == "steps" and config.save_steps % period:
        raise SystemExit(
            f"--save_steps {config.save_steps}: completions are sampled every {period} steps, and a checkpoint between "
            f"two samplings cannot be resumed exactly. Take a multiple of {period}."
        )


def load_fast(model_args, config, args):
    """Unsloth's model with a vLLM engine inside that shares its weights. model.vllm_engine makes Unsloth's trainer use it."""
    from unsloth import FastLanguageModel

    path = find_model(model_args)
    model, _ = FastLanguageModel.from_pretrained(
        str(path),
        max_seq_length=config.max_length,
        load_in_4bit=choose_quantization(model_args.quantization, path),
        fast_inference=True,
        max_lora_rank=model_args.lora_r,
        gpu_memory_utilization=args.gpu_memory_utilization,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        target_modules=model_args.lora_target_modules,
        use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
        random_state=config.seed,
    )


def warm_up(model, tokenizer, rows, steps, learning_rate, batch_rows, seed):
    """`steps` updates of SFT on gold solutions in the form, so that GRPO has something to choose from.

    Rewards can only prefer what is sampled. A small model never samples the tags; this shows it what they look like.
    Returns the last loss.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from tqdm import trange

    draw, trained = random.Random(seed), [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    model.train()
    for _ in trange(steps, desc="warm-up", leave=False):
        batch = draw.sample(rows, min(batch_rows, len(rows)))
        prompts = prompt_ids(tokenizer, [row["question"] for row in batch])
        answers = tokenizer([ideal(row) for row in batch], add_special_tokens=False).input_ids
        pairs = [(prompt, answer + [tokenizer.eos_token_id]) for prompt, answer in zip(prompts, answers, strict=True)]
        ids = pad_sequence([torch.tensor(p + a) for p, a in pairs], True, tokenizer.pad_token_id).to(model.device)
        labels = pad_sequence([torch.tensor([-100] * len(p) + a) for p, a in pairs], True, -100).to(model.device)
        mask = pad_sequence([torch.ones(len(p + a), dtype=torch.long) for p, a in pairs], True, 0).to(model.device)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def start_policy(model, tokenizer, rows, args, model_args, config, folder):
    """The model that GRPO starts from: warmed up if asked for. The adapter is kept, as folder/warmup.

    A run that goes on loads it from there: it is also what the KL is measured to.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    if not args.warmup_sft:
        return
    kept = folder / "warmup"
    if kept.exists():
        set_peft_model_state_dict(model, load_peft_weights(str(kept), device=str(model.device)))
        return
    loss = warm_up(model, tokenizer, rows, args.warmup_sft, args.warmup_sft_lr, args.warmup_sft_rows, config.seed)
    print(f"warm-up: {args.warmup_sft} updates on gold solutions in the form, last loss {loss:.2f}")
    new = folder / ".warmup"
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    settings = json.loads((new / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = model_args.model  # as asked for: a path here means nothing elsewhere
    write_json(new / "adapter_config.json", settings)
    new.rename(kept)


def set_reference(model, warmed_up):
    """What the KL is measured to: the model as it is now, so that the KL is 0 at step 1.

    TRL gives a model that comes with an adapter a second one, "ref", a copy of the first. After a warm-up that is what
    is wanted (the bare model has never written a tag: a KL to it would pull the form away), but TRL has copied it
    before rounding the first to 16 bits in a 4-bit model. Without a warm-up the bare model is the same and costs nothing.
    """
    if "ref" not in model.peft_config:
        return
    if not warmed_up:
        return model.delete_adapter("ref")
    for name, parameter in model.named_parameters():
        if ".default." in name:
            reference = model.get_parameter(name.replace(".default.", ".ref."))
            reference.data = parameter.data.float().clone()


class Rollout:
    """TRL's rollout_func: the completions of a step. prompts come repeated, each G times in a row.

    TRL's own way through model.generate launches thousands of small kernels a token; common.evaluation.generate is one
    call for all. No logprobs: TRL takes those of the backward pass, as it does for its own samples.
    """

    def __init__(self, backend):
        self.backend, self.tokens, self.seconds = backend, 0, 0.0

    def __call__(self, prompts, trainer):
        tokenizer = trainer.processing_class
        ids = [tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in prompts]
        how = dict(
            temperature=trainer.temperature,
            top_k=trainer.top_k,
            top_p=trainer.top_p,
            repetition_penalty=trainer.repetition_penalty,
        )
        start = time.perf_counter()
        longest = trainer.max_completion_length
        made = generate(trainer.model, tokenizer, ids, longest, len(ids), self.backend, return_ids=True, **how)
        self.seconds += time.perf_counter() - start
        self.tokens += sum(map(len, made))
        return {"prompt_ids": ids, "completion_ids": made, "logprobs": None}


def watcher(run, rollout, tokenizer, rows, args, config, backend):
    """A trainer's callback: accuracy and tokens/s beside TRL's numbers, samples.html, and the alarms."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        dead, generated, trainer = 0, 0.0, None

        def on_log(self, _, state, control, logs=None, **kwargs):
            if "reward" not in logs:
                return
            logs["accuracy"] = logs["rewards/correctness_reward_func/mean"] / 2
            self.generated += logs["completions/mean_length"] * run.rows_a_step
            if rollout and rollout.seconds:
                logs["tokens_per_second"] = round(rollout.tokens / rollout.seconds, 1)
                rollout.tokens = rollout.seconds = 0
            self.dead = self.dead + 1 if logs["frac_reward_zero_std"] > 0.9 else 0
            if args.dead_steps and self.dead >= args.dead_steps:
                raise SystemExit(dead_message(logs, self.dead, list(self.trainer._logs["completion"])))

        def on_train_begin(self, _, state, control, model=None, **kwargs):
            if not state.global_step:
                follow(run, model, tokenizer, rows, 0, config, backend)

        def on_step_end(self, _, state, control, model=None, **kwargs):
            if state.global_step % args.follow_steps == 0 or state.global_step == run.steps:
                follow(run, model, tokenizer, rows, state.global_step, config, backend)

    return Watcher()


def dead_message(logs, steps, completions):
    """Why the run stopped, three of its completions, and what to do."""
    shown = "\n".join(f"--- completion {n}\n{text}" for n, text in enumerate(completions[:3], 1))
    if logs["reward"] > 3.5:
        advice = "Every answer earns nearly all there is: nothing is left to learn here. Take harder problems."
    else:
        advice = (
            "All of a group earn the same, so nothing says which is better. Look above: no tags at all: --warmup_sft 20; "
            "cut off: a larger --max_completion_length; never right: easier problems (data.py --arithmetic N --level 1) "
            "or a larger model; all alike: --temperature 1.0, a lower --learning_rate."
        )
    return (
        f"stopped: for {steps} steps over 90% of the groups were dead, that is, G equal rewards and no gradient "
        f"(mean reward {logs['reward']:.2f}).\n{shown}\n---\n{advice}"
    )


def probe(model, tokenizer, rows, config, backend):
    """G samples of each prompt before training: what can be earned at all? Returns the numbers it prints."""
    if not rows:
        return {}
    group = config.num_generations
    prompts = [ids for ids in prompt_ids(tokenizer, [row["question"] for row in rows]) for _ in range(group)]
    how = dict(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    texts = generate(model, tokenizer, prompts, config.max_completion_length, 8 * group, backend, **how)
    earned = [score(text, rows[n // group]["gold"]) for n, text in enumerate(texts)]
    groups = [earned[n : n + group] for n in range(0, len(earned), group)]
    right = [[each["correctness"] > 0 for each in members] for members in groups]
    found = {
        "pass_at_1": sum(map(sum, right)) / len(earned),
        f"pass_at_{group}": sum(map(any, right)) / len(groups),
        "reward": sum(sum(each.values()) for each in earned) / len(earned),
        "live_groups": sum(len({sum(each.values()) for each in members}) > 1 for members in groups) / len(groups),
    }
    print(
        f"before GRPO, {len(rows)} prompts x {group}: {found['pass_at_1']:.0%} right, pass@{group} "
        f"{found[f'pass_at_{group}']:.0%}, mean reward {found['reward']:.2f} of 4, {found['live_groups']:.0%} of the groups "
        "have different rewards"
    )
    if not found[f"pass_at_{group}"]:
        print("never right: correctness gives no signal yet, only the form can be learned. Easier problems would help.")
    return found


def measure(model, tokenizer, rows, config, backend):
    """Greedy answers to test problems: shares right (strict, flexible) and in the form, mean tokens."""
    if not rows:
        return {}
    prompts = prompt_ids(tokenizer, [row["question"] for row in rows])
    made = generate(model, tokenizer, prompts, config.max_completion_length, 32, backend, return_ids=True)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    graded = [grade(text, row["gold"]) for text, row in zip(texts, rows, strict=True)]
    means = {name: sum(each[name] for each in graded) / len(graded) for name in graded[0]}
    return means | {"tokens": sum(map(len, made)) / len(made), "problems": len(rows)}


# -- what one looks at


def follow(run, model, tokenizer, rows, step, config, backend, tries=4):
    """Answer the same problems again, with the same random numbers, and write samples.html anew."""
    import torch

    if not rows or not run.main:
        return
    file = run.folder / "samples.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    told = [each for each in map(json.loads, lines) if each["step"] < step]  # after a resume some steps are done again
    prompts = [ids for ids in prompt_ids(tokenizer, [row["question"] for row in rows]) for _ in range(tries)]
    with torch.random.fork_rng():  # training must not notice that it is watched
        torch.manual_seed(0)
        how = dict(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
        texts = generate(model, tokenizer, prompts, config.max_completion_length, len(prompts), backend, **how)
    for number, row in enumerate(rows):
        mine = texts[number * tries : (number + 1) * tries]
        answers = [{"text": text, "rewards": score(text, row["gold"])} for text in mine]
        told.append({"step": step, "question": row["question"], "gold": row["gold"], "completions": answers})
    replace_text(file, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in told))
    replace_text(run.folder / "samples.html", samples_page(told, run.folder.name))


def samples_page(told, name):
    """A page that needs nothing else: a table a problem, a row a step, a cell a completion with what it earned."""
    parts = [
        f"""<!doctype html><meta charset="utf-8"><title>samples: {html.escape(name)}</title>
<style>body{{font:15px/1.5 sans-serif;margin:2em}}table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;
padding:.4em;vertical-align:top;text-align:left}}pre{{white-space:pre-wrap;max-width:22em;margin:0}}small{{color:#555}}
</style><h1>The same problems through training</h1><p>Green: reward 4 of 4. White: 0. Each cell is one sample.</p>"""
    ]
    for question in dict.fromkeys(each["question"] for each in told):
        mine = [each for each in told if each["question"] == question]
        parts.append(f"<h2>{html.escape(question)}</h2><p>gold: {html.escape(mine[0]['gold'])}</p><table>")
        for each in mine:
            cells = []
            for answer in each["completions"]:
                total = sum(answer["rewards"].values())
                detail = ", ".join(f"{reward} {value:g}" for reward, value in answer["rewards"].items() if value)
                shade = max(0.0, min(1.0, total / 4)) * 0.5
                cells.append(
                    f'<td style="background:rgba(60,180,75,{shade:.2f})"><b>{total:.2f}</b> '
                    f"<small>{html.escape(detail)}</small><pre>{html.escape(answer['text'])}</pre></td>"
                )
            parts.append(f"<tr><th>step {each['step']}</th>{''.join(cells)}</tr>")
        parts.append("</table>")
    return "\n".join(parts)


def draw_rewards(folder):
    """rewards.png from metrics.jsonl: what is rewarded, what is wanted, and what it costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    logs = [log for log in logs if "reward" in log]
    if not logs:
        return
    parts = {f"rewards/{each.__name__}/mean": each.__name__.removesuffix("_reward_func") for each in REWARDS}
    panels = (
        ("reward, 4 at most", {"reward": "mean", "reward_std": "std"}),
        ("each reward", parts),
        ("accuracy of the samples", {"accuracy": None}),
        ("tokens a completion", {"completions/mean_length": "mean", "completions/max_length": "longest"}),
        ("KL to the start", {"kl": None}),
        ("entropy a token", {"entropy": None}),
        (
            "share cut off, share of dead groups",
            {"completions/clipped_ratio": "cut off", "frac_reward_zero_std": "dead"},
        ),
        ("rollouts: tokens/s", {"tokens_per_second": None}),
    )
    figure, axes = pyplot.subplots(2, 4, figsize=(17, 7), layout="constrained")
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key, label in keys.items():
            points = [(log["step"], log[key]) for log in logs if log.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if any(keys.values()) and axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(folder / ".rewards.png", format="png", dpi=90)
    pyplot.close(figure)
    os.replace(folder / ".rewards.png", folder / "rewards.png")


def show(folder, stages):
    """Print the first problem's samples at the first and the last step, then the table of accuracies."""
    file = folder / "samples.jsonl"
    told = list(map(json.loads, file.read_text("utf-8").splitlines())) if file.exists() else []
    for each in (
        (told[0], next(one for one in reversed(told) if one["question"] == told[0]["question"])) if told else ()
    ):
        print(f"\n{'=' * 100}\nstep {each['step']}: {each['question']} (gold {each['gold']})")
        for answer in each["completions"][:2]:
            print(f"{'-' * 100}\n{answer['text'] or '(empty)'}\n[reward {sum(answer['rewards'].values()):.2f}]")
    print("=" * 100)
    for name, each in stages.items():
        if each:
            print(
                f"{name:<14} {each['strict']:>5.0%} right by the answer block, {each['flexible']:.0%} by the last number; "
                f"{each['format']:.0%} in the form; {each['tokens']:.0f} tokens ({each['problems']} test problems, greedy)"
            )


def main(argv=None):
    args, model_args, config = parse(__file__, DEFAULTS, DEMO, (Args, LoraArgs), "trl:GRPOConfig", argv)
    check(args, model_args, config)
    if model_args.estimate:

        def work(new, rows):  # what `rows` completions of `new` tokens take at once
            length, sampled = args.max_prompt_tokens + new, config.generation_batch_size
            return dict(
                tokens=rows * length,
                logits=0 if config.use_liger_kernel else 8 * rows * new,  # of all these, and their gradient, in float32
                cached=sampled * length,  # all of a step's completions are sampled in one go, and their cache is kept
                adapter=20 if args.warmup_sft else 16,  # then the KL's reference is a frozen copy of the adapter
            )

        return estimate(config, model_args, "max_completion_length", config.max_completion_length, work)
    train_rows, test_rows, report = read_splits(args.data)
    print(format_report(report))
    print("\n".join(self_test(train_rows, ideal)))
    tokenizer = load_tokenizer(find_model(model_args))
    train_set = prompts_of(train_rows, tokenizer, args.max_prompt_tokens, "training rows")
    config.max_length = args.max_prompt_tokens + config.max_completion_length  # what Unsloth sizes its buffers by

    with Run(config, args, model_args, train_set, draw_rewards) as run:
        # Imported here and not above, so that --help and bad input answer at once.
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func may change; TRL is pinned
        from transformers import set_seed
        from trl import GRPOTrainer

        backend = model_args.backend
        model = load_fast(model_args, config, args) if args.fast_inference else load_model(model_args, config)
        tests, stages = test_rows[: args.eval_prompts], {}
        resumed = run.checkpoint is not None
        if not resumed:
            stages["base"] = measure(model, tokenizer, tests, config, backend)
        start_policy(model, tokenizer, train_rows, args, model_args, config, run.folder)
        if not resumed and args.warmup_sft:
            stages["after warm-up"] = measure(model, tokenizer, tests, config, backend)
        if not resumed:
            probed = probe(model, tokenizer, train_rows[: args.probe_prompts], config, backend)
            run.note(before=stages, probe=probed)
        stages = run.record.get("before", stages)

        rollout = Rollout(backend) if import_backend(backend) == "hf" else None
        watch = watcher(run, rollout, tokenizer, test_rows[: args.follow], args, config, backend)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=REWARDS,
            args=config,
            train_dataset=train_set,
            processing_class=tokenizer,
            callbacks=[gradient_guard(), watch],
            rollout_func=rollout,
        )
        watch.trainer = trainer
        set_reference(model, args.warmup_sft)
        if resumed:  # transformers would load this adapter and leave ours out
            shutil.rmtree(run.checkpoint / "ref", ignore_errors=True)
        set_seed(config.seed)  # the samples do not depend on how much was measured before
        run.train(trainer)
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        run.save(trainer, tokenizer)
        stages["after GRPO"] = measure(model, tokenizer, tests, config, backend)
        run.note(after=stages["after GRPO"], tokens=round(watch.generated))
    show(run.folder, stages)
    print(f"\nwatch it learn: {run.folder / 'samples.html'} and rewards.png beside it")
    print(f"Ask it yourself: python {HERE.name}/infer.py --adapter {run.folder}")


if __name__ == "__main__":
    main()
