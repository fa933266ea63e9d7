"""What one watches: accuracy before and after, the same problems through training, the alarms. Imports torch.

samples.html   test problems answered every few steps, four samples each, with what they earned
rollouts.html  what was trained on: completions of chosen steps, and of those at which an alarm rang (alarms.py)
rewards.png    what is rewarded, what is wanted, and what it costs
"""

from itertools import takewhile

import torch
from tqdm import tqdm
from transformers import TrainerCallback

import alarms
import pages
from common import screen
from common.answers import generate
from common.files import read_json, replace_text, text_table, write_lines
from common.rows import read_lines
from common.speed import graph
from prompt import prompt_ids
from rewards import MOST, NEARLY, PAYS, REWARDS, grade, score

TRIES = 4  # samples of each followed problem
# Plots of rewards.png: title -> {metric: label}
PANELS = {
    f"reward, {MOST:g} at most": {"reward": "mean", "reward_std": "std"},
    "each reward": {f"rewards/{each.__name__}/mean": each.__name__.removesuffix("_reward_func") for each in REWARDS},
    "accuracy": {"accuracy": "samples", "eval_accuracy": "test problems, greedy"},
    "tokens per completion": {"completions/mean_length": "mean", "completions/max_length": "longest"},
    "KL to the start, per token": {"kl": None},
    "entropy, nats per token": {"entropy": None},
    "share cut off, share of dead groups": {"completions/clipped_ratio": "cut off", "frac_reward_zero_std": "dead"},
    "rollouts: tokens/s": {"tokens_per_second": None},
}
SHOWN_IN = {  # alarm -> the metric in whose plot it is marked
    "length_drift": "completions/mean_length",
    "reward_takes_over": "reward",
    "dead_groups": "frac_reward_zero_std",
    "entropy_collapse": "entropy",
    "kl_jump": "kl",
    "truncation": "completions/clipped_ratio",
}


class Watcher(TrainerCallback):
    """Accuracy and tokens/s beside TRL's numbers, alarms, samples.html, rollouts.html, an end where every group is dead.

    rows: the test problems that are followed. rollout: whose tokens and seconds are read, or None. Afterwards:
    generated, the tokens that were sampled. trainer is set by the script that makes both.
    """

    trainer = None

    def __init__(self, run, rollout, tokenizer, rows, args):
        self.run, self.rollout, self.tokenizer, self.rows, self.args = run, rollout, tokenizer, rows, args
        self.generated, self.logs, self.rung, self.golds = 0.0, [], [], None

    def on_log(self, _, state, control, logs=None, **kwargs):
        if "reward" not in logs:
            return
        if (right := logs.get("rewards/correctness_reward_func/mean")) is not None:
            logs["accuracy"] = right / PAYS["correctness"]
        self.generated += logs["completions/mean_length"] * self.run.rows_per_step
        if self.rollout and self.rollout.seconds:
            logs["tokens_per_second"] = round(self.rollout.tokens / self.rollout.seconds, 1)
            self.rollout.tokens = self.rollout.seconds = 0
        before = self.logs[-1]["step"] if self.logs else 0
        self.logs.append(logs | {"step": state.global_step})
        planned = [self.run.steps * n / 4 for n in (1, 2, 3)]
        why = ["between"] if any(before < step <= state.global_step for step in planned) else []
        dead = len(list(takewhile(lambda log: log["frac_reward_zero_std"] > 0.9, reversed(self.logs))))
        stops = self.args.dead_steps and dead >= self.args.dead_steps
        found = alarms.new(self.logs, self.rung)
        if stops and logs["reward"] <= NEARLY and "dead_groups" not in {each["alarm"] for each in self.rung + found}:
            found.append(alarms.dead(self.logs))
        if found:
            self.rung += found
            self.run.note(alarms=self.rung)
            mark(self.rung)
        for each in found if self.run.main else ():
            tqdm.write(alarms.line(each, screen.language()))
        if why := (["first"] if not before else []) + why + ["alarm"] * bool(found) + ["newest"] * bool(stops):
            self.keep(why)
        if stops:
            raise SystemExit(dead_message(logs["reward"], dead, list(self.trainer._logs["completion"])))

    def keep(self, why):
        """Show the newest step's completions in rollouts.html."""
        made = self.trainer._logs
        if not (self.run.main and self.logs and made["completion"]):
            return
        if self.golds is None:  # TRL keeps prompts as text: what stands before and behind the question is taken away
            ids = prompt_ids(self.tokenizer, [{"question": "QUESTION"}])[0]
            self.frame = self.tokenizer.decode(ids, skip_special_tokens=True).split("QUESTION")
            rows = self.trainer.train_dataset
            pairs = zip(rows["prompt"], rows["answer"], strict=True)
            self.golds = {messages[-1]["content"].strip(): gold for messages, gold in pairs}
        groups = pages.groups_of(made, self.trainer.num_generations, self.question, self.golds)
        pages.keep(self.run, self.logs[-1], why, *groups)

    def question(self, prompt):
        return prompt.removeprefix(self.frame[0]).removesuffix(self.frame[-1]).strip()

    def on_save(self, *_, **kwargs):
        self.keep(["newest"])

    on_train_end = on_save

    def on_train_begin(self, _, state, control, model=None, **kwargs):
        self.logs = [log for log in self.run.metrics() if "reward" in log]  # by the processes before this one
        self.generated = sum(log["completions/mean_length"] for log in self.logs) * self.run.rows_per_step
        self.rung = [each for each in self.run.record.get("alarms", []) if each["step"] <= state.global_step]
        self.run.note(alarms=self.rung)  # those of the steps that come again may ring again
        mark(self.rung)
        if self.run.main:
            pages.cut(self.run, state.global_step)
        if not state.global_step:
            follow(self.run, model, self.tokenizer, self.rows, 0, self.args)

    def on_step_end(self, _, state, control, model=None, **kwargs):
        if state.global_step % self.args.follow_steps == 0 or state.global_step == self.run.steps:
            follow(self.run, model, self.tokenizer, self.rows, state.global_step, self.args)


def mark(rung):
    """Say in the titles of PANELS' plots at which step an alarm rang."""
    plots = {title.split("\n")[0]: names for title, names in PANELS.items()}
    PANELS.clear()
    for title, names in plots.items():
        said = [
            f"{each['alarm'].replace('_', ' ')}: step {each['step']}"
            for each in rung
            if SHOWN_IN[each["alarm"]] in names
        ]
        PANELS["\n".join([title, *said])] = names


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
    """Greedy answers to test problems: shares right (strict, flexible) and in the form, mean tokens.

    The first --probe_prompts of them are also sampled G times: sampled, the share right of all these; any, the share of
    problems with a right one, pass@G.
    """
    if not rows:
        return {}
    how = dict(backend=args.backend, return_ids=True, decode=graph.decode)
    made = generate(model, tokenizer, prompt_ids(tokenizer, rows), args.max_completion_length, 32, **how)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]
    graded = [grade(text, row["gold"]) for text, row in zip(texts, rows, strict=True)]
    means = {name: sum(each[name] for each in graded) / len(graded) for name in graded[0]}
    means |= {"tokens": sum(map(len, made)) / len(made), "problems": len(rows)}
    if tried := rows[: args.probe_prompts]:
        answers = sample(model, tokenizer, tried, args.num_generations, 64, args)
        right = [
            [grade(text, row["gold"])["strict"] for text in texts] for row, texts in zip(tried, answers, strict=True)
        ]
        means |= {"sampled": sum(map(sum, right)) / len(right) / args.num_generations}
        means |= {"any": sum(map(any, right)) / len(right), "tries": args.num_generations}
    return means


def ends(run):
    """What the record holds from before training and from after it, as log lines: the plots' points at step 0 and the last."""
    found, stages = run.record.get("probe", {}), run.record.get("stages", {})
    first, last = stages.get("after warm-up") or stages.get("base") or {}, run.record.get("after") or {}
    start = {"reward": found.get("reward"), "accuracy": found.get("pass_at_1"), "eval_accuracy": first.get("strict")}
    return [{"step": 0} | start, {"step": run.steps, "eval_accuracy": last.get("strict")}]


def sharpened(before, after):
    """Sharpening, or learning? pass@G of the start beside pass@1 of the end, as two lines; none where nothing was sampled."""
    if not (before and "any" in before and after and "any" in after):
        return ""
    group = f"pass@{before['tries']}"
    numbers = (
        f"test problems, sampled: pass@1 {before['sampled']:.0%} and {group} {before['any']:.0%} before GRPO, "
        f"pass@1 {after['sampled']:.0%} and {group} {after['any']:.0%} after it"
    )
    if after["sampled"] <= before["sampled"]:
        return f"{numbers}\n{screen.text('nothing gained')}"
    kind = "sharpening: what many tries held is now said at the first"
    if after["sampled"] > before["any"]:
        kind = "learning: one try now is right more often than one of many was"
    return f"{numbers}\n{screen.text(kind)}"


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
        print(screen.text("{count} test problems, answered greedily", count=count))
        columns = map(screen.text, ("right by the answer block", "by the last number", "in the form", "tokens"))
        print(text_table(("", *columns), table))
        start = stages.get("after warm-up") or stages.get("base")
        print(sharpened(start, stages.get("after GRPO")))
    lang = screen.language()
    for each in read_json(folder / "run.json").get("alarms", []):
        print(alarms.line(each, lang))
    print(f"completions that were trained on, with rewards and advantages: {folder / 'rollouts.html'}")


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
    replace_text(run.folder / "samples.html", pages.samples(told, run.folder.name))
