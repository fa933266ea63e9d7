"""What one watches: accuracy before and after, the same problems through training, the alarms. Imports torch.

samples.html  test problems answered every few steps, four samples each, with what they earned
rewards.png   what is rewarded, what is wanted, and what it costs
"""

import html

import torch
from transformers import TrainerCallback

from common.answers import generate
from common.files import replace_text, text_table, write_lines
from common.rows import read_lines
from common.speed import graph
from prompt import prompt_ids
from rewards import MOST, NEARLY, PAYS, REWARDS, grade, score

TRIES = 4  # samples of each followed problem
# Plots of rewards.png: title -> {metric: label}
PANELS = {
    f"reward, {MOST:g} at most": {"reward": "mean", "reward_std": "std"},
    "each reward": {f"rewards/{each.__name__}/mean": each.__name__.removesuffix("_reward_func") for each in REWARDS},
    "accuracy of the samples": {"accuracy": None},
    "tokens per completion": {"completions/mean_length": "mean", "completions/max_length": "longest"},
    "KL to the start, per token": {"kl": None},
    "entropy, nats per token": {"entropy": None},
    "share cut off, share of dead groups": {"completions/clipped_ratio": "cut off", "frac_reward_zero_std": "dead"},
    "rollouts: tokens/s": {"tokens_per_second": None},
}


class Watcher(TrainerCallback):
    """Accuracy and tokens/s beside TRL's numbers, samples.html, and an end where every group is dead.

    rows: the test problems that are followed. rollout: whose tokens and seconds are read, or None. Afterwards:
    generated, the tokens that were sampled. trainer is set by the script that makes both.
    """

    trainer = None

    def __init__(self, run, rollout, tokenizer, rows, args):
        self.run, self.rollout, self.tokenizer, self.rows, self.args = run, rollout, tokenizer, rows, args
        self.dead, self.generated = 0, 0.0

    def on_log(self, _, state, control, logs=None, **kwargs):
        if "reward" not in logs:
            return
        if (right := logs.get("rewards/correctness_reward_func/mean")) is not None:
            logs["accuracy"] = right / PAYS["correctness"]
        self.generated += logs["completions/mean_length"] * self.run.rows_per_step
        if self.rollout and self.rollout.seconds:
            logs["tokens_per_second"] = round(self.rollout.tokens / self.rollout.seconds, 1)
            self.rollout.tokens = self.rollout.seconds = 0
        self.dead = self.dead + 1 if logs["frac_reward_zero_std"] > 0.9 else 0
        if self.args.dead_steps and self.dead >= self.args.dead_steps:
            raise SystemExit(dead_message(logs["reward"], self.dead, list(self.trainer._logs["completion"])))

    def on_train_begin(self, _, state, control, model=None, **kwargs):
        lengths = [log["completions/mean_length"] for log in self.run.metrics() if "reward" in log]
        self.generated = sum(lengths) * self.run.rows_per_step  # by the processes before this one
        if not state.global_step:
            follow(self.run, model, self.tokenizer, self.rows, 0, self.args)

    def on_step_end(self, _, state, control, model=None, **kwargs):
        if state.global_step % self.args.follow_steps == 0 or state.global_step == self.run.steps:
            follow(self.run, model, self.tokenizer, self.rows, state.global_step, self.args)


def dead_message(reward, steps, completions):
    """Why the run stopped, three of its completions, and what to do. reward: the mean."""
    shown = "\n".join(f"--- completion {n}\n{text}" for n, text in enumerate(completions[:3], 1))
    if reward > NEARLY:
        advice = "Every answer earns nearly all there is: nothing is left to learn here. Take harder problems."
    else:
        advice = (
            "All of a group earn the same, so nothing says which is better. Look above: no tags at all: --warmup_sft 20; "
            "cut off: a larger --max_completion_length; never right: easier problems (data.py --arithmetic N --level 1) "
            "or a larger model; all alike: --temperature 1.0, a lower --learning_rate."
        )
    return (
        f"stopped: for {steps} steps over 90% of the groups were dead, that is, G equal rewards and no gradient "
        f"(mean reward {reward:.2f}).\n{shown}\n---\n{advice}"
    )


# -- before and after


def sample(model, tokenizer, rows, tries, batch_size, args):
    """`tries` sampled answers to each row's question, as training samples them: a list of lists of texts."""
    prompts = [ids for ids in prompt_ids(tokenizer, rows) for _ in range(tries)]
    how = dict(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, decode=graph.decode)
    texts = generate(model, tokenizer, prompts, args.max_completion_length, batch_size, args.backend, **how)
    return [texts[start : start + tries] for start in range(0, len(texts), tries)]


def probe(model, tokenizer, rows, args):
    """G samples of each prompt before training: what can be earned at all? Returns the numbers it prints."""
    if not rows:
        return {}
    group = args.num_generations
    answers = sample(model, tokenizer, rows, group, 8 * group, args)
    earned = [[score(text, row["gold"]) for text in texts] for texts, row in zip(answers, rows, strict=True)]
    sums = [[sum(each.values()) for each in members] for members in earned]
    right = [[each["correctness"] > 0 for each in members] for members in earned]
    count = group * len(rows)
    found = {
        "pass_at_1": sum(map(sum, right)) / count,
        f"pass_at_{group}": sum(map(any, right)) / len(rows),
        "reward": sum(each for members in sums for each in members) / count,
        "live_groups": sum(len(set(members)) > 1 for members in sums) / len(rows),
    }
    print(
        f"before GRPO, {len(rows)} prompts x {group}: {found['pass_at_1']:.0%} right, pass@{group} "
        f"{found[f'pass_at_{group}']:.0%}, mean reward {found['reward']:.2f} of {MOST:g}, {found['live_groups']:.0%} of "
        "the groups have different rewards"
    )
    if not found[f"pass_at_{group}"]:
        print("never right: correctness gives no signal yet, only the form can be learned. Easier problems would help.")
    return found


def measure(model, tokenizer, rows, args):
    """Greedy answers to test problems: shares right (strict, flexible) and in the form, mean tokens."""
    if not rows:
        return {}
    how = dict(backend=args.backend, return_ids=True, decode=graph.decode)
    made = generate(model, tokenizer, prompt_ids(tokenizer, rows), args.max_completion_length, 32, **how)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    graded = [grade(text, row["gold"]) for text, row in zip(texts, rows, strict=True)]
    means = {name: sum(each[name] for each in graded) / len(graded) for name in graded[0]}
    return means | {"tokens": sum(map(len, made)) / len(made), "problems": len(rows)}


def show(folder, stages):
    """Print the first problem's samples at the first and the last step, then the table of accuracies."""
    told = read_samples(folder)
    last = [each for each in told if each["question"] == told[0]["question"]][-1:]
    for each in told[:1] + last:
        print(f"\n{'=' * 100}\nstep {each['step']}: {each['question']} (gold {each['gold']})")
        for answer in each["completions"][:2]:
            print(f"{'-' * 100}\n{answer['text'] or '(empty)'}\n[reward {sum(answer['rewards'].values()):.2f}]")
    print("=" * 100)
    table = [
        (name, *(f"{each[share]:.0%}" for share in ("strict", "flexible", "format")), f"{each['tokens']:.0f}")
        for name, each in stages.items()
        if each
    ]
    if table:
        count = next(each["problems"] for each in stages.values() if each)
        print(f"{count} test problems, answered greedily")
        print(text_table(("", "right by the answer block", "by the last number", "in the form", "tokens"), table))


# -- samples.html


def read_samples(folder):
    file = folder / "samples.jsonl"
    return read_lines(file) if file.exists() else []


def follow(run, model, tokenizer, rows, step, args):
    """Answer the same problems again, with the same random numbers, and write samples.html anew."""
    if not rows or not run.main:
        return
    told = [each for each in read_samples(run.folder) if each["step"] < step]  # after a resume some steps come again
    with torch.random.fork_rng():  # training must not notice that it is watched
        torch.manual_seed(0)
        answers = sample(model, tokenizer, rows, TRIES, TRIES * len(rows), args)
    for row, texts in zip(rows, answers, strict=True):
        completions = [{"text": text, "rewards": score(text, row["gold"])} for text in texts]
        told.append({"step": step, "question": row["question"], "gold": row["gold"], "completions": completions})
    write_lines(run.folder / "samples.jsonl", told)
    replace_text(run.folder / "samples.html", samples_page(told, run.folder.name))


def samples_page(told, name):
    """A page that needs nothing else: a table per problem, a row per step, a cell per completion with what it earned."""
    parts = [
        f"""<!doctype html><meta charset="utf-8"><title>samples: {html.escape(name)}</title>
<style>body{{font:15px/1.5 sans-serif;margin:2em}}table{{border-collapse:collapse}}td,th{{border:1px solid #ccc;
padding:.4em;vertical-align:top;text-align:left}}pre{{white-space:pre-wrap;max-width:22em;margin:0}}small{{color:#555}}
</style><h1>The same problems through training</h1><p>Green: reward {MOST:g} of {MOST:g}. White: 0. Each cell is one sample.</p>"""
    ]
    for question in dict.fromkeys(each["question"] for each in told):
        mine = [each for each in told if each["question"] == question]
        parts.append(f"<h2>{html.escape(question)}</h2><p>gold: {html.escape(mine[0]['gold'])}</p><table>")
        for each in mine:
            cells = []
            for answer in each["completions"]:
                total = sum(answer["rewards"].values())
                detail = ", ".join(f"{reward} {value:g}" for reward, value in answer["rewards"].items() if value)
                shade = max(0.0, min(1.0, total / MOST)) * 0.5
                cells.append(
                    f'<td style="background:rgba(60,180,75,{shade:.2f})"><b>{total:.2f}</b> '
                    f"<small>{html.escape(detail)}</small><pre>{html.escape(answer['text'])}</pre></td>"
                )
            parts.append(f"<tr><th>step {each['step']}</th>{''.join(cells)}</tr>")
        parts.append("</table>")
    return "\n".join(parts)
