"""What r1_grpo says while it trains: alarms on planted faults and none on healthy runs, and the page behind them."""

import json
import os
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "r1_grpo"
MODULES = ("data", "prompt", "rewards", "alarms", "pages", "watch")
# Logs of real runs of the demo's model, as they were recorded: name -> {metric: values}.
RECORDED = json.loads((ROOT / "tests" / "r1_runs.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def r1(modules_of):
    return modules_of("r1_grpo", MODULES)


def lines(**metrics):
    """{metric: values} as log lines; "form" stands for the reward of the form, "right" for that of the answer."""
    names = {"form": "rewards/xmlcount_reward_func/mean", "right": "rewards/correctness_reward_func/mean"}
    names |= {"length": "completions/mean_length", "cut": "completions/clipped_ratio", "dead": "frac_reward_zero_std"}
    count = len(next(iter(metrics.values())))
    return [
        {"step": at + 1} | {names.get(name, name): values[at] for name, values in metrics.items()}
        for at in range(count)
    ]


def rings(r1, logs):
    """{alarm: step} of a run whose logs come one by one."""
    rung = []
    for end in range(1, len(logs) + 1):
        rung += r1.alarms.new(logs[:end], rung)
    assert len({each["alarm"] for each in rung}) == len(rung)  # each rings once
    for each in rung:
        for lang in ("en", "zh"):
            line = r1.alarms.line(each, lang)
            assert "\n" not in line and "{" not in line and str(each["step"]) in line
    return {each["alarm"]: each["step"] for each in rung}


def healthy(steps, seed=0, samples=24, **changed):
    """A run in which a model gets better, with the scatter of `samples` completions a step."""
    draw, right = random.Random(seed), []
    for at in range(steps):
        share = 0.3 + 0.5 * at / steps
        right.append(sum(draw.random() < share for _ in range(samples)) / samples)
    noisy = lambda value, scatter: value * draw.uniform(1 - scatter, 1 + scatter)  # noqa: E731
    metrics = dict(
        accuracy=right,
        right=[2 * each for each in right],
        form=[noisy(0.48, 0.04) for _ in right],
        length=[noisy(120, 0.25) for _ in right],
        cut=[draw.choice((0, 0.04, 0.08, 0.17)) for _ in right],
        entropy=[noisy(0.09 - 0.05 * at / steps, 0.3) for at in range(steps)],
        kl=[noisy(0.08 * at / steps, 0.8) for at in range(steps)],
        dead=[draw.choice((0, 0.25, 0.5, 0.75)) for _ in right],
    )
    metrics["reward"] = [form + answer for form, answer in zip(metrics["form"], metrics["right"], strict=True)]
    return metrics | changed


def ramp(start, end, steps, over=None):
    """From start to end within `over` steps, with 20% scatter, then there."""
    draw, over = random.Random(1), over or steps
    return [(start + (end - start) * min(1, at / over)) * draw.uniform(0.8, 1.2) for at in range(steps)]


# -- rules


@pytest.mark.parametrize("seed", range(20))
def test_noise_rings_nothing(r1, seed):
    assert rings(r1, lines(**healthy(120, seed))) == {}


STUCK = dict(accuracy=[0.3, 0.31, 0.29, 0.3] * 15, right=[0.6, 0.62, 0.58, 0.6] * 15)


@pytest.mark.parametrize(
    ("changed", "rung"),
    [
        (dict(length=ramp(100, 220, 60), **STUCK), {"length_drift"}),
        (dict(length=ramp(100, 220, 60)), set()),  # accuracy rises: longer reasoning
        (dict(length=ramp(100, 40, 60), accuracy=[0.02] * 60, right=[0.04] * 60), {"length_drift"}),
        (dict(length=ramp(100, 40, 60), **STUCK), set()),  # shorter, and as right
        (dict(form=ramp(0.1, 1.5, 60), **STUCK), {"reward_takes_over"}),
        (dict(form=ramp(0.1, 1.5, 60)), set()),  # the form, and with it the answers
        (dict(form=ramp(0.1, 1.5, 60), right=ramp(1, 0.3, 60), accuracy=ramp(0.5, 0.15, 60)), {"reward_takes_over"}),
        (dict(form=[0.4] * 10 + [0.45] * 50, right=[0.4] * 10 + [0.48] * 50, accuracy=[0.2] * 10 + [0.24] * 50), set()),
        (dict(dead=ramp(0.2, 0.95, 60, 20), **STUCK), {"dead_groups"}),
        (dict(dead=ramp(0.2, 0.95, 60, 20), accuracy=ramp(0.5, 1, 60, 20)), set()),  # solved
        (dict(entropy=ramp(0.5, 0.02, 60, 30), **STUCK), {"entropy_collapse"}),
        (dict(entropy=ramp(0.5, 0.02, 60, 30)), set()),
        (dict(entropy=ramp(0.5, 0.15, 60, 30), **STUCK), set()),
        (dict(kl=ramp(0, 0.05, 40) + ramp(1, 4, 20)), {"kl_jump"}),
        (dict(kl=[0, 0, 0.3, 5, 9, 9, 7, 9] + [6] * 52), {"kl_jump"}),
        (dict(kl=[0.6] * 60), set()),  # far, but it stays there
        (dict(cut=[0.9] * 60), {"truncation"}),
        (dict(cut=ramp(0.9, 0.1, 60, 55)), set()),  # learns to end
        (dict(cut=ramp(0, 0.6, 60, 25)), {"truncation"}),
    ],
)
def test_planted_faults_ring_and_what_looks_like_them_does_not(r1, changed, rung):
    metrics = healthy(60, **changed)
    metrics["reward"] = [form + right for form, right in zip(metrics["form"], metrics["right"], strict=True)]
    assert set(rings(r1, lines(**metrics))) == rung


def test_a_few_wild_steps_ring_nothing(r1):
    """Two side by side and four of sixty, each in all metrics at once; also values that are none."""
    for wild in ((30, 31), (3, 20, 40, 59)):
        metrics = healthy(60)
        for at in wild:
            for name, value in dict(length=900, cut=1, entropy=1e-4, kl=2e3, dead=1, accuracy=0, form=9).items():
                metrics[name][at] = value
        for name in ("length", "entropy", "kl", "cut", "dead"):
            metrics[name][10:12] = [None, float("nan")]
        assert rings(r1, lines(**metrics)) == {}


def test_short_runs_and_missing_metrics_are_not_judged(r1):
    bad = dict(length=[10] * 10 + [90] * 9, cut=[1] * 19, dead=[1] * 19, entropy=[1] * 10 + [0] * 9)
    assert rings(r1, lines(reward=[1] * 19, **bad)) == {}
    assert rings(r1, lines(kl=[0, 0, 9, 9, 9, 9, 9])) == {}
    assert rings(r1, [{"step": at, "reward": 1.0} for at in range(60)]) == {}
    # without correctness among the rewards nothing excuses
    assert "length_drift" in rings(r1, lines(length=[10] * 10 + [90] * 10))


def test_what_is_said_has_the_numbers(r1):
    length = [100] * 10 + [250] * 10
    (alarm,) = r1.alarms.new(lines(length=length, accuracy=[0.3] * 20), [])
    assert alarm == dict(
        step=20, alarm="length_drift", case="longer", early=100, late=250, before=pytest.approx(0.3), after=0.3
    )
    said = r1.alarms.line(alarm, "en")
    assert said.startswith(
        "ALARM, step 20: length drift: 100 → 250 tokens per completion, accuracy 30% → 30%. Usually: "
    )
    assert "Try: read the longest" in said
    form = [0.1] * 10 + [0.5] * 30
    metrics = dict(form=form, right=[0.4] * 40, accuracy=[0.2] * 40, reward=[each + 0.4 for each in form])
    (alarm,) = r1.alarms.new(lines(**metrics), [])
    assert "reward 0.50 → 0.90, 100% of the gain from xmlcount; accuracy 20% → 20%" in r1.alarms.line(alarm, "en")
    assert {key.split()[0] for key in r1.alarms.TEXTS["en"]} == set(r1.alarms.ALARMS) == set(r1.watch.SHOWN_IN)
    assert r1.alarms.TEXTS["en"].keys() == r1.alarms.TEXTS["zh"].keys()


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs(r1, name):
    """Real runs: the demo, which learns, and those with a planted fault."""
    run = RECORDED[name]
    assert set(rings(r1, lines(**run["metrics"]))) == set(run["rings"])


# -- the page


def kept_of(tokenizer=None, groups=8, count=4):
    """trainer._logs of one step, in TRL's form: the wider the rewards, the later the group."""
    logs = {"prompt": [], "completion": [], "rewards": {"xmlcount_reward_func": [], "correctness_reward_func": []}}
    logs["advantages"] = []
    for group in range(groups):
        for n in range(count):
            logs["prompt"].append(f"system\nrules\nuser\nquestion {group} <b>\nassistant\n")
            logs["completion"].append(f"<answer>{group}.{n}</answer>")
            logs["rewards"]["xmlcount_reward_func"].append(0.5)
            logs["rewards"]["correctness_reward_func"].append(0.1 * group * n)
            logs["advantages"].append(0.5 * group * n - 1)
    return logs


def question(prompt):
    return prompt.split("\nuser\n")[1].split("\nassistant")[0]


def test_groups_of_a_step(r1):
    count, groups = r1.pages.groups_of(kept_of(), 4, question, {"question 7 <b>": "42"})
    assert count == 8 and [each["question"] for each in groups] == [f"question {n} <b>" for n in (7, 4, 0)]
    widest, _, dead = groups
    assert (
        widest["gold"] == "42" and dead["gold"] is None and dead["std"] == 0 and widest["mean"] == pytest.approx(1.55)
    )
    assert [each["advantage"] for each in widest["completions"]] == [9.5, 6.0, 2.5, -1.0]
    assert widest["std"] == pytest.approx(0.9037, abs=1e-4)  # unbiased, as TRL divides by it
    assert widest["completions"][0]["text"] == "<answer>7.3</answer>"
    assert widest["completions"][0]["rewards"] == {"xmlcount": 0.5, "correctness": pytest.approx(2.1)}
    _, (large, *_) = r1.pages.groups_of(kept_of(count=20), 20, question, {})
    assert len(large["completions"]) == 8 and large["left_out"] == 12
    assert r1.pages.groups_of({"prompt": [], "completion": [], "rewards": {}, "advantages": []}, 4, question, {}) == (
        0,
        [],
    )


def fake_run(folder, **record):
    folder.mkdir(exist_ok=True)
    run = SimpleNamespace(folder=folder, record=record, main=True, steps=100, rows_per_step=32, metrics=lambda: [])
    run.note = run.record.update
    return run


def test_a_page_is_bounded_escaped_and_needs_nothing(r1, tmp_path):
    """A hundred steps of long and hostile texts, six alarms."""
    logs = kept_of(count=20)
    hostile = '<script src="http://x">alert(1)</script>"><img onerror=1>' + "é\u202e" * 3000 + "the end"
    logs["completion"] = [hostile] * len(logs["completion"])
    logs["prompt"] = [f"system\nrules\nuser\n{hostile}\nassistant\n"] * len(logs["prompt"])
    numbers = dict(early=1.0, late=2.0, before=0.1, after=0.1, top="<i>x", share=0.9)
    run, rung = fake_run(tmp_path / "run"), []
    for step in range(1, 101):
        if step % 15 == 0 and len(rung) < 6:
            name = list(r1.alarms.ALARMS)[len(rung)]
            rung.append(dict(step=step, alarm=name, **numbers) | ({"case": "longer"} if name == "length_drift" else {}))
            run.note(alarms=rung)
        why = ["alarm"] if rung and rung[-1]["step"] == step else ["between"] if step in (25, 50, 75) else ["newest"]
        log = {"step": step, "reward": 1.0, "kl": float("nan"), "accuracy": 0.5}
        r1.pages.keep(run, log, ["first"] if step == 1 else why, *r1.pages.groups_of(logs, 20, question, {}))
    page = (run.folder / "rollouts.html").read_text("utf-8")
    steps = [1, 15, 25, 30, 45, 50, 60, 75, 90, 100]
    assert [int(each) for each in re.findall(r'<details id="step-(\d+)"', page)] == steps
    assert len(page) < 500_000 and page.count('<section class="cell">') == 8 * 3 * len(steps)
    for each in rung:
        assert f'href="#step-{each["step"]}"' in page and f'<details id="step-{each["step"]}" open>' in page
    assert (
        "<script" not in page
        and "<img" not in page
        and "<i>x" not in page
        and "src=" not in page.replace("src=&quot;", "")
    )
    assert not re.findall(r"""(?:href|src)=["'](?!#)""", page) and "url(" not in page
    assert "characters left out" in page and "the end" in page and "12 between these are left out" in page
    assert {each.name for each in run.folder.iterdir()} == {"rollouts.html", "rollouts.jsonl"}  # no half-written file
    r1.pages.cut(run, 50)
    assert [each["step"] for each in r1.pages.read(run.folder)] == steps[:6]


def test_why_a_step_is_kept(r1, tmp_path):
    run = fake_run(tmp_path / "run")
    for step, why in (
        (1, "first"),
        (2, "newest"),
        (3, "between"),
        (3, "newest"),
        (4, "newest"),
        (4, "alarm"),
        (5, "newest"),
    ):
        r1.pages.keep(run, {"step": step}, [why], 0, [])
    told = {each["step"]: each["why"] for each in r1.pages.read(run.folder)}
    assert told == {1: ["first"], 3: ["between"], 4: ["alarm"], 5: ["newest"]}
    r1.pages.keep(run, {"step": 2}, ["newest"], 0, [])  # as after a resume that nobody has cut
    assert {each["step"] for each in r1.pages.read(run.folder)} == {1, 2}


@pytest.mark.parametrize(("lang", "said"), [("zh_CN.UTF-8", "训练用的回答"), ("en_US.UTF-8", "What was trained on")])
def test_the_page_speaks_the_readers_language(r1, tmp_path, monkeypatch, lang, said):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    monkeypatch.setenv("LANG", lang)
    run = fake_run(tmp_path / "run")
    r1.pages.keep(run, {"step": 1, "reward": 2.0}, ["first"], *r1.pages.groups_of(kept_of(), 4, question, {}))
    page = (run.folder / "rollouts.html").read_text("utf-8")
    assert f"<h1>{said}</h1>" in page and 'name="viewport"' in page
    assert r1.pages.LABELS["en"].keys() == r1.pages.LABELS["zh"].keys()


# -- the watcher


class Tokenizer:
    """Prompts as the template frames them; ids are code points."""

    def apply_chat_template(self, talk, **_):
        return [*map(ord, "".join(f"{each['role']}\n{each['content']}\n" for each in talk) + "assistant\n")]

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def watched(r1, run, steps, start=0, dead_steps=0, metrics=None, save=()):
    """Drives a Watcher as a trainer does, over steps start + 1 to `steps`; returns it."""
    args = SimpleNamespace(dead_steps=dead_steps, follow_steps=10**9)
    watch = r1.watch.Watcher(run, None, Tokenizer(), [], args)
    rows = [{"question": f"question {n} <b>", "gold": str(n)} for n in range(8)]
    talks = [r1.prompt.conversation(row) for row in rows]
    logs = kept_of()
    frame = Tokenizer().decode(Tokenizer().apply_chat_template(r1.prompt.conversation({"question": "?"}))).split("?")
    logs["prompt"] = [f"{frame[0]}{question(prompt)}{frame[-1]}" for prompt in logs["prompt"]]
    dataset = {"prompt": talks, "answer": [row["gold"] for row in rows]}
    watch.trainer = SimpleNamespace(_logs=logs, num_generations=4, train_dataset=dataset)
    state = SimpleNamespace(global_step=start)
    watch.on_train_begin(None, state, None, model=None)
    for state.global_step in range(start + 1, steps + 1):
        log = {"reward": 1.0, "frac_reward_zero_std": 0.0, "completions/mean_length": 10.0, "kl": 0.01}
        watch.on_log(None, state, None, logs=log | (metrics(state.global_step) if metrics else {}))
        if state.global_step in save:
            watch.on_save(None, state, None)
    watch.on_train_end(None, state, None)
    return watch


def jump(step):
    return {"kl": 4.0 if step > 30 else 0.01}


def test_an_alarm_is_printed_recorded_marked_and_shown(r1, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    run = fake_run(tmp_path / "run")
    watched(r1, run, 100, metrics=jump, save=(40, 80))
    (alarm,) = run.record["alarms"]
    assert alarm["alarm"] == "kl_jump" and alarm["step"] == 33 and alarm["late"] == 4.0
    said = capsys.readouterr().out
    assert said.count("ALARM") == 1 and said.startswith("ALARM, step 33: KL jump: 0.01 → 4 nats per token")
    assert "KL to the start, per token\nkl jump: step 33" in r1.watch.PANELS and len(r1.watch.PANELS) == 8
    told = r1.pages.read(run.folder)
    whys = {each["step"]: each["why"] for each in told}
    assert whys == {1: ["first"], 25: ["between"], 33: ["alarm"], 50: ["between"], 75: ["between"], 100: ["newest"]}
    assert told[0]["groups"][0]["question"] == "question 7 <b>" and told[0]["groups"][0]["gold"] == "7"
    page = (run.folder / "rollouts.html").read_text("utf-8")
    assert 'KL jump</b> · <a href="#step-33">' in page and "question 7 &lt;b&gt;" in page
    two = fake_run(tmp_path / "two")
    watched(r1, two, 100, metrics=lambda step: jump(step) | {"completions/clipped_ratio": 1.0})
    assert [(each["alarm"], each["step"]) for each in two.record["alarms"]] == [("truncation", 30), ("kl_jump", 33)]
    assert capsys.readouterr().out.count("ALARM") == 2
    quiet = fake_run(tmp_path / "quiet")
    watched(r1, quiet, 100)
    assert quiet.record["alarms"] == [] and "No alarm rang." in (quiet.folder / "rollouts.html").read_text("utf-8")
    assert all("\n" not in title for title in r1.watch.PANELS)


def test_steps_that_come_again_replace_themselves(r1, tmp_path, capsys):
    """Killed at step 47 after a checkpoint at 30: the alarm of step 33 is forgotten, and rings again only if it must."""

    def cut_off(name):
        run = fake_run(tmp_path / name)
        watch = watched(r1, run, 47, metrics=jump, save=(30,))
        run.metrics = lambda: [log for log in watch.logs if log["step"] <= 30]  # what Run.cut_metrics leaves
        return run

    whole, again, well = fake_run(tmp_path / "whole"), cut_off("again"), cut_off("well")
    watched(r1, whole, 100, metrics=jump, save=(30, 60, 90))
    watched(r1, again, 100, start=30, metrics=jump, save=(60, 90))
    assert again.record["alarms"] == whole.record["alarms"] != []
    assert r1.pages.read(again.folder) == r1.pages.read(whole.folder)
    capsys.readouterr()
    watched(r1, well, 100, start=30, save=(60, 90))  # this time all goes well
    assert well.record["alarms"] == [] and "ALARM" not in capsys.readouterr().out
    assert [each["step"] for each in r1.pages.read(well.folder)] == [1, 25, 50, 75, 100]


def test_dead_groups_count_on_after_a_resume_and_are_shown(r1, tmp_path):
    """Three dead steps before the checkpoint and two after it are five."""
    run = fake_run(tmp_path / "run")
    dead = dict(metrics=lambda step: {"frac_reward_zero_std": 1.0}, dead_steps=5)
    watch = watched(r1, run, 3, **dead)
    run.metrics = lambda: watch.logs
    with pytest.raises(SystemExit, match="stopped: for 5 steps over 90% of the groups were dead"):
        watched(r1, run, 9, start=3, **dead)
    (alarm,) = run.record["alarms"]
    assert (alarm["alarm"], alarm["step"]) == ("dead_groups", 5)
    assert '<details id="step-5" open>' in (run.folder / "rollouts.html").read_text("utf-8")


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains until it breaks")
def test_a_learning_rate_a_hundred_times_too_high(copied, script, tmp_path):
    """The demo's model: KL jump within ten updates; cut off and gone on with, the page and the alarms are the same."""
    task = copied("r1_grpo")
    flags = ["--demo", "--bf16", "false", "--learning_rate", "1e-1", "--lr_scheduler_type", "constant"]
    flags += ["--warmup_steps", 0, "--max_steps", 10, "--save_steps", 5]
    flags += ["--per_device_train_batch_size", 8, "--num_generations", 4, "--max_completion_length", 28]
    flags += ["--probe_prompts", 1, "--eval_prompts", 1, "--follow", 1, "--follow_steps", 10, "--dead_steps", 0]
    done = script(task / "train.py", *flags)
    (straight,) = (tmp_path / "outputs" / "r1_grpo").iterdir()
    record = json.loads((straight / "run.json").read_text("utf-8"))
    assert [each["alarm"] for each in record["alarms"]] == ["kl_jump"] and "ALARM, step " in done.stdout
    step = record["alarms"][0]["step"]
    page = (straight / "rollouts.html").read_text("utf-8")
    assert f'<details id="step-{step}" open>' in page and "://" not in page and "<reasoning" not in page
    told = [json.loads(line) for line in (straight / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert [told[0]["step"], told[-1]["step"]] == [1, 10] and step in {each["step"] for each in told}
    rows = [json.loads(line) for line in (task / "sample" / "train.jsonl").read_text("utf-8").splitlines()]
    golds = {row["question"]: row["answer"].split("####")[1].strip() for row in rows}
    for group in (group for each in told for group in each["groups"]):
        assert golds[group["question"]] == group["gold"] and len(group["completions"]) == 4
        assert abs(sum(each["advantage"] for each in group["completions"])) < 1e-3
    cut = Path(shutil.copytree(tmp_path / "outputs", tmp_path / "cut")) / "r1_grpo" / straight.name
    shutil.rmtree(cut / "checkpoint-10")
    (cut / "adapter_model.safetensors").unlink()
    (cut / "run.json").write_text(json.dumps(record | {"status": "unfinished"}))
    script(task / "train.py", *flags, OUTPUT_DIR=str(tmp_path / "cut"))
    assert (cut / "rollouts.jsonl").read_text("utf-8") == (straight / "rollouts.jsonl").read_text("utf-8")
    assert json.loads((cut / "run.json").read_text("utf-8"))["alarms"] == record["alarms"]
