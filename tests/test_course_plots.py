"""Plots of PPO and GRPO begin at step 0: what was measured before training is the first point, after it the last."""

import json
from types import SimpleNamespace

import pytest

from common import files, runs


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(record, lines, panels, more): title -> label -> [(step, value)] of the figure that Run.plot saves."""
    figures = []
    monkeypatch.setattr(files, "save_figure", lambda figure, file, dpi=None: figures.append(figure))
    (tmp_path / "metrics.jsonl").write_text("", "utf-8")

    def draw(lines, panels, more):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text, "utf-8")
        run = SimpleNamespace(folder=tmp_path)
        run.metrics = lambda: runs.Run.metrics(run)
        runs.Run.plot(run, "plot.png", panels, more=more)
        return {
            axis.get_title(): {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
            for axis in figures[-1].axes
            if axis.get_title()
        }

    return draw


def test_the_plots_of_r1_begin_with_what_was_sampled_before(modules_of, drawn):
    watch = modules_of("r1_grpo", ("data", "prompt", "rewards", "alarms", "pages", "watch")).watch
    record = {"probe": {"reward": 2.5, "pass_at_1": 0.25}, "stages": {"base": {"strict": 0.1}}}
    lines = [{"step": 1, "reward": 2.6, "accuracy": 0.3}, {"step": 2, "reward": 3.0, "accuracy": 0.5}]
    found = drawn(lines, watch.PANELS, watch.ends(SimpleNamespace(record=record, steps=2)))
    assert found["accuracy"]["samples"] == [(0, 0.25), (1, 0.3), (2, 0.5)]
    assert found["accuracy"]["test problems, greedy"] == [(0, 0.1)]  # killed before the last measure
    assert found["reward, 4 at most"]["mean"] == [(0, 2.5), (1, 2.6), (2, 3.0)]
    record["stages"]["after warm-up"], record["after"] = {"strict": 0.2}, {"strict": 0.6}
    found = drawn(lines, watch.PANELS, watch.ends(SimpleNamespace(record=record, steps=2)))
    assert found["accuracy"]["test problems, greedy"] == [(0, 0.2), (2, 0.6)]
    nothing = SimpleNamespace(
        record={"probe": {}, "stages": {"base": {}}}, steps=2
    )  # --probe_prompts 0 --eval_prompts 0
    assert list(drawn(lines, watch.PANELS, watch.ends(nothing))["accuracy"]) == ["samples"]


@pytest.mark.parametrize("script", ["train_ppo", "watch"])
def test_the_plots_of_rlhf_begin_with_the_held_out_score(script, modules_of, drawn):
    rlhf = modules_of("rlhf_ppo", ("stage", "data", "prompt", "sources", "sampler", script))
    record = {"before": [{"score": 1.0}, {"score": 2.0}], "after": [{"score": 3.0}, {"score": 4.0}]}
    name = "score" if script == "train_ppo" else "reward"
    panels = vars(rlhf)[script].PANELS
    found = drawn([{"step": 1, name: 0.5}], panels, rlhf.stage.ends(SimpleNamespace(record=record), 7))
    ((title, lines),) = [(title, lines) for title, lines in found.items() if title.startswith(name)]
    assert [(0, 1.5), (7, 3.5)] in lines.values() and [(1, 0.5)] in lines.values()
    assert rlhf.stage.ends(SimpleNamespace(record={"before": []}), 7) == []  # --show_answers 0


def test_the_scripts_hand_it_over():
    """Each call of plot has the ends, and one comes when the last of them has been measured."""
    for script, after in (("rlhf_ppo/train_ppo.py", ".plot("), ("rlhf_ppo/train_grpo.py", ".plot("), ("r1_grpo/train.py", "draw_loss()")):  # fmt: skip
        text = (files.Path(__file__).parents[1] / script).read_text("utf-8")
        assert all("ends(run" in line for line in text.splitlines() if ".plot(" in line)
        assert after in text.split("run.note(after=")[1]
