"""GRPO, Dr. GRPO, DAPO and GSPO side by side: what each changes is a line of flags, given to r1_grpo/train.py.

    python bench/grpo_variants.py --jobs 16 --out DIR     every run that DIR does not hold yet, then the report
    python bench/grpo_variants.py --report --out DIR      table and plots from DIR's results alone
    python bench/grpo_variants.py --out DIR --only grpo gspo --seeds 3407 --samples 256

The model of r1_grpo's demo, word problems of one and of two steps, LoRA. A warm-up on both kinds comes first: the model itself
writes 23 to 26 tokens to nearly whatever it is asked, right (24.7 in the mean) or wrong (24.6), and where all completions are
equally long no weighting by length can show. After the warm-up right completions have 25.3 tokens and wrong ones 30.6 (seed 3407).
Every variant then trains on equally many samples.

Two settings. "reused": 128 completions are sampled in one go, cut into four mini-batches, and each is used twice: eight updates, of
which seven see samples of an older policy. Only there rho is not 1, and clipping and GSPO's ratio do something. "once": one
update of all 128. There rho is 1, nothing is clipped, GSPO's gradient is GRPO's, and what is left is the weighting.

The negative control: GRPO whose rewards change places inside each group. Advantages are as large as before, and say nothing.

"late", in the setting "once": GRPO on what the policy of one update before has sampled, as if on-policy. This is what sampling
the next batch while this one is trained would cost at most: an importance correction is left out.

Left out, for TRL has no flag for it: DAPO's dynamic sampling (groups of equal rewards are drawn anew) and its soft overlong
punishment (what it has is a reward function); its mask of cut-off completions is on. The papers of Dr. GRPO, DAPO and GSPO have no
KL; here all have the same beta, or the KL would be what differs.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
TASK = HERE.parent / "r1_grpo"

PAPER = dict(  # GRPO, arXiv 2402.03300: a mean per completion, rewards by the group's standard deviation, PPO's clip
    loss_type="grpo", scale_rewards="group", epsilon=0.2, importance_sampling_level="token"
)
VARIANTS = {  # what each changes, and nothing else
    "grpo": {},
    "dr_grpo": dict(loss_type="dr_grpo", scale_rewards="none"),  # 2503.20783: divided by a constant; no deviation
    "dapo": dict(loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=True),  # 2503.14476: a mean per token
    "gspo": dict(
        importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4
    ),  # 2507.18071: a ratio per sequence
}
NAMES = {"grpo": "GRPO", "dr_grpo": "Dr. GRPO", "dapo": "DAPO", "gspo": "GSPO", "late": "GRPO, one update late",
    "shuffled": "rewards shuffled"}  # fmt: skip
COLOURS = {
    "grpo": "#0072b2",
    "dr_grpo": "#d55e00",
    "dapo": "#009e73",
    "gspo": "#cc79a7",
    "late": "#e69f00",
    "shuffled": "#888888",
}
GROUP, AT_ONCE = 8, 128  # completions of a problem, sampled in one go
SETTINGS = {
    "reused": dict(per_device_train_batch_size=32, steps_per_generation=4, num_iterations=2),
    "once": dict(per_device_train_batch_size=128, steps_per_generation=1, num_iterations=1),
}
RATES = {"reused": 5e-4, "once": 1e-3}  # eight updates with the samples of one
SHARED = dict(
    num_generations=GROUP,
    gradient_accumulation_steps=1,
    max_completion_length=48,  # its solutions take 23 to 38
    bf16=False,  # rounding would move rho by more than GSPO's clip allows
    warmup_sft=60,
    warmup_sft_lr=1e-3,
    beta=0.04,
    max_grad_norm=1.0,  # the demo's 0.2 would cut the variants' gradients, which differ in size, by different shares
    save_strategy="no",
    probe_prompts=0,
    follow=0,
    dead_steps=0,
)
PROBLEMS = {"train": {2: 450, 3: 150}, "test": {2: 150, 3: 50}}  # of each level
TRIED = 64  # test problems that are also sampled, eight times each
COLUMNS = {  # TRL's name -> ours
    "kl": "kl",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "clip_ratio/region_mean": "clipped",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "cut",
}


# -- the runs


def runs(seeds):
    """All runs, the more important first: (setting, variant, seed)."""
    reused = [("reused", variant, seed) for seed in seeds for variant in (*VARIANTS, "shuffled")]
    return reused + [("once", variant, seed) for seed in seeds for variant in (*VARIANTS, "late")]


def flags(setting, variant, seed, samples):
    """Flags of r1_grpo/train.py, name -> value."""
    how = SETTINGS[setting]
    steps = samples // AT_ONCE * how["steps_per_generation"] * how["num_iterations"]
    rate = RATES[setting]
    return SHARED | how | PAPER | VARIANTS.get(variant, {}) | dict(learning_rate=rate, max_steps=steps, seed=seed)


def command(setting, variant, seed, samples, data, folder):
    """The command line of a run: the demo, and what differs from it."""
    given = flags(setting, variant, seed, samples) | dict(
        data=data, output_dir=folder, eval_prompts=sum(PROBLEMS["test"].values())
    )
    return ["--demo", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def exchanged(paid, draw, group=GROUP):
    """Rewards whose owners have changed places inside each group: the same ones, by chance."""
    return [paid[start + at] for start in range(0, len(paid), group) for at in draw.sample(range(group), group)]


def rewards_for(real, aim, told, seed, shuffled):
    """for_trl of rewards.py, seen from outside: `told` learns of each sampling how many tokens right and wrong completions took.

    shuffled: a completion is paid what another one of its group has earned, for all rewards the same one.
    """

    def for_trl(reward):
        inner, draw = real(reward), random.Random(f"shuffled {seed}")  # one for each reward, so all draw alike

        def paid(completions, answer, completion_ids, **more):
            earned = inner(completions, answer, **more)
            if reward is aim:
                lengths = list(map(len, completion_ids))
                right = [length for length, each in zip(lengths, earned, strict=True) if each > 0]
                told(sampled=[len(right), sum(right), len(lengths) - len(right), sum(lengths) - sum(right)])
            return exchanged(earned, draw) if shuffled else earned

        paid.__name__ = inner.__name__
        return paid

    return for_trl


def late(real):
    """Rollout of rollout.py that samples with the trained weights of its call before."""

    class Late(real):
        kept = None

        def __call__(self, prompts, trainer):
            trained = [each for each in trainer.model.parameters() if each.requires_grad]
            now = [each.detach().clone() for each in trained]
            for each, value in zip(trained, self.kept or now, strict=True):
                each.data.copy_(value)
            made = super().__call__(prompts, trainer)
            for each, value in zip(trained, now, strict=True):
                each.data.copy_(value)
            self.kept = now
            return made

    return Late


def examiner(told):
    """watch.py's measure, seen from outside: each test problem's verdict is told, and what is not needed is left out."""
    import evaluate
    from prompt import prompt_ids

    def measure(model, tokenizer, rows, args):
        if not (stages := measure.stages):
            return {}
        stage = stages.pop(0)
        if stage == "bare":  # the start is the model after the warm-up
            return {}
        how = dict(max_new_tokens=args.max_completion_length, batch_size=200, backend=args.backend, samples=0)
        how |= dict(pass_k=GROUP, temperature=1.0, seed=3407)
        prompts = prompt_ids(tokenizer, rows)
        found = evaluate.measure(model, tokenizer, rows, prompts, SimpleNamespace(**how))
        how |= dict(samples=GROUP)
        tried = evaluate.measure(model, tokenizer, rows[:TRIED], prompts[:TRIED], SimpleNamespace(**how))
        means = {name: mean([each[name] for each in found]) for name in ("strict", "flexible", "format", "tokens")}
        many = {name: mean([each[name] for each in tried]) for name in ("pass@1", f"pass@{GROUP}")}
        verdicts = "".join(str(int(each["strict"])) for each in found)
        told(stage=stage, right=verdicts, **means, **many)
        many = dict(sampled=many["pass@1"], any=many[f"pass@{GROUP}"], tries=GROUP)
        return means | dict(problems=len(rows)) | many

    measure.stages = ["bare", "start", "end"]
    return measure


def one(out, setting, variant, seed, samples):
    """Train, in this process, and write the results of the run line by line."""
    began = time.time()
    sys.path.insert(0, str(TASK))
    import rewards
    import rollout
    import train
    import watch

    if variant == "late":
        rollout.Rollout = late(rollout.Rollout)
    with (
        open(file_of(out, setting, variant, seed), "w", encoding="utf-8") as file,
        tempfile.TemporaryDirectory(prefix="grpo_variants_") as scratch,
    ):

        def told(**facts):
            file.write(json.dumps(facts) + "\n")
            file.flush()

        aim, folder = rewards.correctness_reward_func, Path(scratch) / "run"
        train.for_trl = rewards_for(rewards.for_trl, aim, told, seed, variant == "shuffled")
        watch.measure = examiner(told)
        told(setting=setting, variant=variant, seed=seed, samples=samples, flags=flags(setting, variant, seed, samples))
        train.main(command(setting, variant, seed, samples, out / "data", folder))
        logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        logs = [log for log in logs if "kl" in log]  # each update; TRL tells of rewards once for each sampling
        logged = {ours: [log.get(theirs) for log in logs] for theirs, ours in COLUMNS.items()}
        record, whole = json.loads((folder / "run.json").read_text("utf-8")), round(time.time() - began, 1)
        told(logs=logged, seconds=record["seconds"], whole=whole, alarms=record.get("alarms", []))


def file_of(out, setting, variant, seed):
    return out / f"{setting}-{variant}-{seed}.jsonl"


def finished(out, run, samples):
    """Whether a run's results are there to the last line, by these very flags."""
    lines = read(file_of(out, *run))
    return bool(lines) and "logs" in lines[-1] and lines[0]["flags"] == json.loads(json.dumps(flags(*run, samples)))


def read(file):
    """The lines of a results file; of one that is cut off, those that are whole."""
    lines = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def write_problems(out):
    """The word problems, both levels in turn: out/data/train.jsonl and test.jsonl, the same ones each time."""
    sys.path.insert(0, str(TASK))
    from data import arithmetic

    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, counts in PROBLEMS.items():
        rows = [row for level, count in counts.items() for row in arithmetic(count, level, split, seed=22)]
        random.Random(22).shuffle(rows)
        (out / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def run_all(args):
    """Run what is missing, args.jobs processes at a time, and cut off what is not done after args.seconds."""
    began, out = time.time(), args.out
    write_problems(out)
    wanted = [run for run in runs(args.seeds) if not args.only or run[1] in args.only]
    wanted = [run for run in wanted if not args.setting or run[0] == args.setting]
    waiting = deque(run for run in wanted if not finished(out, run, args.samples))
    print(f"{len(wanted) - len(waiting)} of {len(wanted)} runs are there, {len(waiting)} to go", flush=True)
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(threads, str(args.threads))
    environment |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

    def work():
        while waiting and time.time() - began < args.seconds:
            run = waiting.popleft()
            name, start = "-".join(map(str, run)), time.time()
            argv = [sys.executable, __file__, "--out", out, "--samples", args.samples, "--run", *run]
            with open(out / f"{name}.log", "w") as log:
                child = subprocess.Popen(list(map(str, argv)), env=environment, stdout=log, stderr=log)
                try:
                    code = child.wait(max(1, args.seconds - (time.time() - began)))
                    said = "finished" if not code else f"FAILED with {code}, see {name}.log"
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                    said = "cut off"
            print(f"{time.time() - began:>5.0f} s  {name}: {said} after {time.time() - start:.0f} s", flush=True)

    threads = [threading.Thread(target=work) for _ in range(min(args.jobs, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in waiting:
        print(f"not begun: {'-'.join(map(str, run))}")


# -- the report


def mean(values):
    values = [each for each in values if each is not None and math.isfinite(each)]
    return sum(values) / len(values) if values else math.nan


def paired(one, other, times=10_000, seed=0):
    """(mean of other - one, low, high of its 95% interval, p): numbers by seed and problem, drawn anew by both.

    one, other: arrays of the same seeds (rows) and problems (columns). Seeds and problems are drawn with replacement, each for
    itself, the same ones for both: what a new seed and what a new problem would change is in the interval. p is of no
    difference, two-sided: twice the share of draws on the other side of 0 (or on it).
    """
    import numpy

    difference = numpy.asarray(other, float) - numpy.asarray(one, float)
    draw = numpy.random.default_rng(seed)
    rows = numpy.zeros((times, len(difference)))
    numpy.add.at(rows, (numpy.arange(times)[:, None], draw.integers(len(difference), size=(times, len(difference)))), 1)
    count = difference.shape[1]
    columns = draw.multinomial(count, numpy.full(count, 1 / count), size=times)
    means = numpy.einsum("ts,sp,tp->t", rows, difference, columns) / difference.size
    low, high = numpy.percentile(means, (2.5, 97.5))
    p = min(1.0, 2 * (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (times + 1))
    return float(difference.mean()), float(low), float(high), float(p)


def holm(ps):
    """Holm's adjusted p values, in the order given: the smallest times their number, the next times one less, never falling."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[at]))
        adjusted[at] = highest
    return adjusted


def load(out):
    """{(setting, variant): {seed: {"start", "end", "sampled", "logs", "seconds", "cut"}}} of a folder's results."""
    found = {}
    for file in sorted(out.glob("*-*-*.jsonl")):
        lines = read(file)
        if not lines or "variant" not in lines[0]:
            continue
        head, last = lines[0], lines[-1]
        run = {each["stage"]: each for each in lines if "stage" in each}
        run |= dict(sampled=[each["sampled"] for each in lines if "sampled" in each], samples=head["samples"])
        run |= dict(logs=last.get("logs"), seconds=last.get("seconds"), alarms=last.get("alarms", []))
        found.setdefault((head["setting"], head["variant"]), {})[head["seed"]] = run
    return found


def lengths(sampled, begin, end):
    """(mean tokens of right completions, of wrong ones, share right) of the samplings from begin to end, shares of the run."""
    part = sampled[int(begin * len(sampled)) : max(1, math.ceil(end * len(sampled)))]
    right, right_tokens, wrong, wrong_tokens = (sum(column) for column in zip(*part, strict=True))
    return (
        right_tokens / max(1, right) if right else math.nan,
        wrong_tokens / wrong if wrong else math.nan,
        right / (right + wrong),
    )


def alike(one, other):
    """How many samplings at the beginning gave two runs the same numbers: as long as their updates are the same."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def summary(found, setting):
    """Rows of one setting's table: a dict for each variant, differences to GRPO paired by seed and problem among them."""
    rows, names = [], [name for name in NAMES if (setting, name) in found]
    done = {name: {seed: run for seed, run in found[setting, name].items() if run["logs"]} for name in names}
    for name in names:
        every, cut = done[name], sorted(found[setting, name].keys() - done[name].keys())
        row = dict(variant=name, seeds=sorted(every), unfinished=cut)
        if every:
            ends = [run["end"] for run in every.values()]
            starts = [run["start"] for run in every.values()]
            row |= dict(right=[each["strict"] for each in ends], before=mean([each["strict"] for each in starts]))
            row |= dict(start_any=mean([each[f"pass@{GROUP}"] for each in starts]))
            row |= dict(
                start_one=mean([each["pass@1"] for each in starts]), end_one=mean([each["pass@1"] for each in ends])
            )
            row |= dict(
                end_any=mean([each[f"pass@{GROUP}"] for each in ends]), form=mean([each["format"] for each in ends])
            )
            for when, share in (("first", (0, 0.1)), ("last", (0.75, 1))):
                long = [lengths(run["sampled"], *share) for run in every.values()]
                row |= {
                    f"{when}_right": mean([each[0] for each in long]),
                    f"{when}_wrong": mean([each[1] for each in long]),
                }
            tail = {at: [run["logs"][at][-10:] for run in every.values()] for at in ("kl", "entropy")}
            row |= {at: mean(sum(values, [])) for at, values in tail.items()}
            row |= {
                at: mean(sum((run["logs"][at] for run in every.values()), [])) for at in ("clipped", "grad_norm", "cut")
            }
            row |= dict(samplings=max(len(run["sampled"]) for run in every.values()))
            row |= dict(seconds=mean([run["seconds"] for run in every.values()]))
            shared = sorted(every.keys() & done.get("grpo", {}).keys())
            if name != "grpo" and shared:
                row |= dict(alike=min(alike(done["grpo"][seed]["sampled"], every[seed]["sampled"]) for seed in shared))
                verdicts = [
                    [list(map(int, done[which][seed]["end"]["right"])) for seed in shared] for which in ("grpo", name)
                ]
                row |= dict(difference=paired(*verdicts), paired_seeds=shared)
                row |= dict(by_seed=[mean(other) - mean(one) for one, other in zip(*verdicts, strict=True)])
        rows.append(row)
    compared = [row for row in rows if "difference" in row]
    for row, p in zip(compared, holm([row["difference"][3] for row in compared]), strict=True):
        row["p"] = p
    return rows


HEADS = {
    "en": ("", "right, greedy, by seed", "− GRPO, points [95%]; by seed", "p (Holm)", f"pass@{GROUP} of the start", "pass@1 of the end",
           f"pass@{GROUP} of the end", "tokens, right: first → last", "tokens, wrong: first → last", "clipped", "KL", "entropy", "s"),
    "zh": ("", "贪心正确率，各种子", "减 GRPO，百分点 [95%]；各种子", "p（Holm）", f"开始时 pass@{GROUP}", "结束时 pass@1",
           f"结束时 pass@{GROUP}", "正确回答 token 数：始 → 末", "错误回答 token 数：始 → 末", "裁剪比例", "KL", "熵", "秒"),
}  # fmt: skip


def markdown(rows, lang):
    """The rows of `summary` as a table."""
    names = NAMES | ({"shuffled": "奖励打乱", "late": "GRPO，采样晚一次更新"} if lang == "zh" else {})
    lines = ["| " + " | ".join(HEADS[lang]) + " |", "|---" * len(HEADS[lang]) + "|"]
    for row in rows:
        cells = [names[row["variant"]]]
        if row["unfinished"]:
            cells[0] += (
                f" ({'cut off: seed' if lang == 'en' else '未完成：种子'} {', '.join(map(str, row['unfinished']))})"
            )
        if not row["seeds"]:
            lines.append("| " + " | ".join(cells + [""] * (len(HEADS[lang]) - 1)) + " |")
            continue
        cells.append(f"{row['before']:.0%} → " + ", ".join(f"{each:.1%}" for each in row["right"]))
        if "difference" in row:
            gain, low, high, _ = (100 * each for each in row["difference"])
            each = ", ".join(f"{100 * one:+.1f}" for one in row["by_seed"])
            cells += [f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]; {each}", f"{row['p']:.2g}"]
        else:
            cells += ["", ""]
        cells += [f"{row[name]:.0%}" for name in ("start_any", "end_one", "end_any")]
        cells += [f"{row[f'first_{kind}']:.1f} → {row[f'last_{kind}']:.1f}" for kind in ("right", "wrong")]
        cells += [f"{row['clipped']:.1%}", f"{row['kl']:.2f}", f"{row['entropy']:.2f}", f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(rows):
    """What may be said of the differences: no ranking inside the spread."""
    said = []
    for row in rows:
        if "difference" in row:
            gain, low, high, _ = row["difference"]
            clear = row["p"] < 0.05 and (low > 0 or high < 0)
            what = f"{'above' if gain > 0 else 'below'} GRPO" if clear else "no difference to GRPO is shown"
            same = f"its first {row['alike']} samplings of {row['samplings']} are GRPO's, in every seed"
            said.append(f"{NAMES[row['variant']]}: {what}; {same}")
    return "\n".join(said)


def curves(sampled, window):
    """{"samples", "share", "right", "wrong"} of a run, over windows of so many samplings."""
    lines = dict(samples=[], share=[], right=[], wrong=[])
    for end in range(window, len(sampled) + 1):
        right, wrong, share = lengths(sampled[end - window : end], 0, 1)
        lines["samples"].append(end * AT_ONCE)
        for name, value in (("share", share), ("right", right), ("wrong", wrong)):
            lines[name].append(value)
    return lines


def plot(found, setting, file):
    """Three panels: share right, tokens of wrong and of right completions, against samples. Thin: seeds; thick: their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    titles = {
        "share": "share of samples that are right",
        "wrong": "tokens of wrong completions",
        "right": "tokens of right completions",
    }
    for name, seeds in ((name, found.get((setting, name), {})) for name in NAMES):
        drawn = [curves(run["sampled"], min(4, len(run["sampled"]))) for run in seeds.values() if run["logs"]]
        for axis, what in zip(axes, titles, strict=True):
            for each in drawn:
                axis.plot(each["samples"], each[what], color=COLOURS[name], linewidth=0.6, alpha=0.35)
            if drawn:
                middle = [mean(values) for values in zip(*(each[what] for each in drawn), strict=False)]
                axis.plot(
                    drawn[0]["samples"][: len(middle)], middle, color=COLOURS[name], linewidth=2.2, label=NAMES[name]
                )
    for axis, title in zip(axes, titles.values(), strict=True):
        axis.set(title=title, xlabel="samples seen")
        axis.grid(alpha=0.3)
    if axes[0].lines:
        axes[0].legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def report(out):
    """Print the tables and write them, with a plot for each setting, into the folder."""
    found = load(out)
    if not found:
        raise SystemExit(f"{out}: no results. Run without --report first.")
    texts = {"en": [], "zh": []}
    for setting in SETTINGS:
        rows = summary(found, setting)
        if not rows:
            continue
        for lang, parts in texts.items():
            parts.append(f"{setting}\n\n{markdown(rows, lang)}\n")
        texts["en"].append(verdict(rows) + "\n")
        plot(found, setting, out / f"{setting}.png")
    (out / "table.md").write_text("\n".join(texts["en"]), "utf-8")
    (out / "table.zh-CN.md").write_text("\n".join(texts["zh"]), "utf-8")
    print("\n".join(texts["en"]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "grpo_variants", help="folder of the results")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--seconds", type=float, default=460, help="what is not done then is cut off")
    parser.add_argument(
        "--samples", type=int, default=4096, help=f"completions that each run trains on; multiples of {AT_ONCE}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[3407, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these variants")
    parser.add_argument("--setting", choices=SETTINGS, help="this setting")
    parser.add_argument("--report", action="store_true", help="no runs: table and plots of what is there")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.samples % AT_ONCE or args.samples <= 0:
        parser.error(f"--samples {args.samples}: takes a multiple of {AT_ONCE}.")
    args.out = args.out.resolve()
    if args.run:
        setting, variant, seed = args.run
        return one(args.out, setting, variant, int(seed), args.samples)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.report:
        run_all(args)
    report(args.out)


if __name__ == "__main__":
    main()
