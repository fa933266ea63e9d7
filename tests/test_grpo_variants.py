"""bench/grpo_variants.py: the variants' command lines, the paired interval, the report, and a control that really shuffles."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("grpo_variants", ROOT / "bench" / "grpo_variants.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

# Parses command lines by train.py's own parser and checks, and prints all values: nothing is trained.
VALUES = """
import json, sys
sys.path[0] = "."
import train
def parse(*args):
    global made
    made = real(*args)
    train.check(made)
    raise EOFError
real, train.parse, found = train.parse, parse, []
for argv in json.loads(sys.stdin.read()):
    try:
        train.main(argv)
    except EOFError:
        found.append(vars(made))
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="module")
def parsed():
    """{(setting, variant): the values that train.py's parser makes of the run's command line}, and () of the demo."""
    every = [(setting, variant) for setting, variant, _ in bench.runs([1])]
    argvs = [["--demo"], *(bench.command(*each, 1, 1024, "DATA", "FOLDER") for each in every)]
    done = subprocess.run(
        [sys.executable, "-c", VALUES], cwd=bench.TASK, input=json.dumps(argvs), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip([(), *every], json.loads(done.stdout.splitlines()[-1]), strict=True))


def changed(one, other):
    return {name: other[name] for name in other if one.get(name) != other[name] and name != "given"}


def test_each_variant_changes_its_own_lines_and_nothing_else(parsed):
    assert len(parsed) == 1 + 5 + 5
    for setting in bench.SETTINGS:
        grpo = parsed[setting, "grpo"]
        assert {name: grpo[name] for name in bench.PAPER} == bench.PAPER
        for variant, lines in bench.VARIANTS.items():
            assert changed(grpo, parsed[setting, variant]) == lines
    assert parsed["reused", "shuffled"] == parsed["reused", "grpo"]  # the control has no flag: it is made from outside
    assert parsed["once", "late"] == parsed["once", "grpo"]


def test_the_settings_see_the_same_samples_and_differ_in_how_often_they_use_them(parsed):
    seen = {}
    for setting, how in bench.SETTINGS.items():
        args = parsed[setting, "grpo"]
        assert how.items() <= args.items()
        at_once = args["per_device_train_batch_size"] * args["steps_per_generation"]
        assert at_once == bench.AT_ONCE and not at_once % args["num_generations"]
        updates = args["steps_per_generation"] * args["num_iterations"] / args["gradient_accumulation_steps"]
        seen[setting] = args["max_steps"] / updates * at_once
    assert seen == {"reused": 1024, "once": 1024}
    named = (
        set(bench.SHARED)
        | set(bench.PAPER)
        | {"data", "output_dir", "eval_prompts", "learning_rate", "max_steps", "seed"}
    )
    once = changed(parsed[()], parsed["once", "grpo"])
    assert set(once) <= named | set(bench.SETTINGS["once"])
    assert once["bf16"] is False  # of 8 bits of mantissa, rho would be noise


def test_completions_are_dealt_out_anew_inside_their_group_only():
    paid = random.Random(3).choices((0.5, 2.0, 4.0), k=64)
    dealt = bench.exchanged(paid, random.Random(1))
    groups = [slice(start, start + 8) for start in range(0, 64, 8)]
    assert all(sorted(paid[each]) == sorted(dealt[each]) for each in groups)
    assert sum(one != other for one, other in zip(paid, dealt, strict=True)) > 16


def test_the_control_shuffles_whole_completions_and_what_is_recorded_is_the_truth(modules_of):
    rewards = modules_of("r1_grpo", ("rewards",)).rewards
    good, bad = (f"<reasoning>\n{n}\n</reasoning>\n<answer>\n{n}\n</answer>" for n in (42, 41))
    texts, lengths = [good, bad, "42", bad, good, "", bad, f"{good} and more"] * 2, list(range(10, 26))
    seen = dict(completions=[[{"content": text}] for text in texts], answer=["42"] * 16, trainer_state=None)
    seen["completion_ids"] = [[0] * length for length in lengths]

    def earned(shuffled):
        told = []
        made = bench.rewards_for(
            rewards.for_trl, rewards.correctness_reward_func, lambda **facts: told.append(facts), 7, shuffled
        )
        paid = [made(each) for each in rewards.REWARDS]
        assert [each.__name__ for each in paid] == [each.__name__ for each in rewards.REWARDS]
        return list(zip(*(each(**seen) for each in paid), strict=True)), told

    (real, told), (dealt, told_again) = earned(False), earned(True)
    right = [length for length, each in zip(lengths, real, strict=True) if each[-1] > 0]
    assert told == told_again == [{"sampled": [len(right), sum(right), 16 - len(right), sum(lengths) - sum(right)]}]
    assert real != dealt and 0 < len(right) < 16
    for start in (0, 8):  # whole completions: the five rewards of one stay together
        assert sorted(real[start : start + 8]) == sorted(dealt[start : start + 8])
    sums = [[sum(each) for each in rows] for rows in (real, dealt)]
    means = [[sum(each[start : start + 8]) / 8 for start in (0, 8)] for each in sums]
    advantages = [
        [each - mean[at // 8] for at, each in enumerate(rows)] for rows, mean in zip(sums, means, strict=True)
    ]
    assert means[0] == pytest.approx(means[1]) and advantages[0] != pytest.approx(advantages[1])


def test_late_samples_by_the_weights_of_the_update_before():
    torch = pytest.importorskip("torch")
    frozen, trained = torch.nn.Parameter(torch.ones(2), requires_grad=False), torch.nn.Parameter(torch.zeros(2))
    trainer = SimpleNamespace(model=torch.nn.ParameterList([frozen, trained]))

    class Rollout:
        def __call__(self, prompts, trainer):
            return [float(each.data[0]) for each in trainer.model]

    rollout, seen = bench.late(Rollout)(), []
    for update in range(4):
        seen.append(rollout(["?"], trainer)[1])
        assert float(trained.data[0]) == update and float(frozen.data[0]) == 1  # the trainer's weights are back
        trained.data += 1
    assert seen == [0, 0, 1, 2]


def test_the_interval_is_of_differences_by_seed_and_problem():
    numpy = pytest.importorskip("numpy")
    draw = numpy.random.default_rng(0)
    hard = draw.uniform(size=(1, 200))  # problems differ far more than the two variants do
    one = (hard + 0.05 * draw.normal(size=(3, 200)) > 0.5).astype(float)
    other = one.copy()
    other[:, :20] = 1.0
    gain, low, high, p = bench.paired(one, other)
    assert gain == pytest.approx((other - one).mean()) and 0 < low < gain < high < 0.1 and p < 0.05
    assert bench.paired(one, one)[:3] == (0, 0, 0) and bench.paired(one, one)[3] == 1
    assert bench.paired(other, one)[0] == -gain

    # One number for a whole seed: three values, and the interval of their mean over 27 draws that are equally likely.
    whole = numpy.array([0.0, 0.1, 0.2])[:, None] * numpy.ones((3, 50))
    gain, low, high, p = bench.paired(numpy.zeros((3, 50)), whole)
    assert (gain, low, high) == pytest.approx((0.1, 0.0, 0.2)) and p == pytest.approx(2 / 27, abs=0.02)

    # Of independent problems alone it is the textbook's: 1.96 standard errors.
    flips = (draw.uniform(size=(1, 400)) < 0.5).astype(float)
    gain, low, high, _ = bench.paired(numpy.zeros((1, 400)), flips)
    error = 1.96 * (gain * (1 - gain) / 400) ** 0.5
    assert (low, high) == pytest.approx((gain - error, gain + error), abs=0.006)


def test_holm():
    assert bench.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert bench.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and bench.holm([]) == []


def made_up(out, setting, variant, seed, right, whole=True):
    """Results of a run as `one` writes them: `right` of 200 problems, wrong completions that grow."""
    draw = random.Random(f"{variant} {seed}")
    order = sorted(range(200), key=lambda at: (at % 7, at))
    end = "".join("01"[at in set(order[:right])] for at in range(200))
    means = {"flexible": 0.3, "format": 1.0, "tokens": 25.0}
    flags = json.loads(json.dumps(bench.flags(setting, variant, seed, 1024)))
    lines = [dict(setting=setting, variant=variant, seed=seed, samples=1024, flags=flags)]
    lines += [dict(stage="start", right="0" * 140 + "1" * 60, strict=0.3, **means, **{"pass@1": 0.2, "pass@8": 0.8})]
    lines += [dict(sampled=[32, 32 * 25, 96, 96 * (28 + at)]) for at in range(8)]
    if whole:
        ends = {"strict": right / 200, "pass@1": 0.61, "pass@8": 0.9}
        lines += [dict(stage="end", right=end, **means, **ends)]
        logs = {name: [draw.uniform(0.01, 0.02) for _ in range(64)] for name in bench.COLUMNS.values()}
        lines += [dict(logs=logs, seconds=100 + seed, whole=120, alarms=[])]
    bench.file_of(out, setting, variant, seed).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def test_the_report_is_made_from_results_alone(tmp_path, capsys):
    counts = dict(grpo=120, dr_grpo=121, dapo=160, gspo=119, late=118, shuffled=40)
    for setting, variant, seed in bench.runs([1, 2, 3]):
        made_up(tmp_path, setting, variant, seed, counts[variant] + seed, whole=(variant, seed) != ("gspo", 3))
    bench.main(["--report", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    for file in ("table.md", "table.zh-CN.md", "reused.png", "once.png"):
        assert (tmp_path / file).stat().st_size > 500
    table = (tmp_path / "table.md").read_text("utf-8")
    rows = {cells[1].strip().split(" (")[0]: cells for line in table.splitlines() if len(cells := line.split("|")) > 10}
    assert "30% → 60.5%, 61.0%, 61.5%" in rows["GRPO"][2]
    assert rows["DAPO"][3].strip().startswith("+20.0 [") and rows["DAPO"][3].strip().endswith("; +20.0, +20.0, +20.0")
    assert "cut off: seed 3" in rows["GSPO"][1] and rows["GSPO"][3].count("-0.5") >= 2  # the seeds that both have
    assert "28.0 → 34.5" in rows["GRPO"][9] and "25.0 → 25.0" in rows["GRPO"][8]
    assert "DAPO: above GRPO" in said and "Dr. GRPO: no difference to GRPO is shown" in said
    assert "rewards shuffled: below GRPO; its first 8 samplings of 8" in said  # these were made up the same


def test_how_long_two_runs_are_one():
    assert bench.alike([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 1
    assert bench.alike([[1, 2], [3, 4]], [[1, 2]]) == 1 and bench.alike([[0, 0]], [[1, 1]]) == 0


def test_what_is_finished_is_not_run_again(tmp_path):
    run = ("reused", "grpo", 1)
    assert not bench.finished(tmp_path, run, 1024)
    made_up(tmp_path, *run, 100, whole=False)
    assert not bench.finished(tmp_path, run, 1024)
    with open(bench.file_of(tmp_path, *run), "a") as file:
        file.write('{"logs": {"kl')  # cut in the middle of a line
    assert not bench.finished(tmp_path, run, 1024)
    made_up(tmp_path, *run, 100)
    assert bench.finished(tmp_path, run, 1024) and not bench.finished(tmp_path, run, 2048)


def test_no_results_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="no results"):
        bench.main(["--report", "--out", str(tmp_path)])
