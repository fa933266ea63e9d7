"""Metrics against closed forms, and evaluate.py as a user runs it."""

import json
import os
from pathlib import Path

import pytest

from common import report

ROOT = Path(__file__).resolve().parents[1]


def test_an_identical_pair_scores_one_in_any_language():
    for text in ("可以吃党参，但要少量。", "Rest, and drink water.", "混合 mixed 文本 42"):
        assert report.rouge(text, text) == {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0}
    assert report.bleu(["可以吃党参，少量。"], ["可以吃党参，少量。"]) == pytest.approx(100)
    assert report.rouge("", "") == {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0}


def test_rouge_by_hand():
    scores = report.rouge("the cat sat", "the cat is on the mat")
    assert scores["rouge_1"] == pytest.approx(2 * 2 / (3 + 6))  # the, cat
    assert scores["rouge_2"] == pytest.approx(2 * 1 / (2 + 5))  # the cat
    assert scores["rouge_l"] == pytest.approx(2 * 2 / (3 + 6))
    chinese = report.rouge("多喝水", "多喝温水")
    assert chinese["rouge_1"] == pytest.approx(6 / 7) and chinese["rouge_2"] == pytest.approx(2 * 1 / (2 + 3))
    assert report.rouge("完全不同", "another thing")["rouge_1"] == 0


def test_units_are_words_and_characters():
    assert report.units("Take 2 pills，早晚各一次。") == ["take", "2", "pills", "早", "晚", "各", "一", "次"]


def test_diversity_sees_a_loop():
    assert report.diversity("a b c d")["repetition"] == 0
    loop = report.diversity("留意饮食，" * 10)
    assert loop["repetition"] > 0.8 and loop["distinct_1"] == pytest.approx(4 / 40)


def rows(losses, tokens=10):
    return [{"answer": "a", "loss_sum": loss * tokens, "loss_tokens": tokens, "empty": 0.0, "stopped": 1.0, "tokens": 3,
             "reference_tokens": tokens} | report.diversity("a") for loss in losses]  # fmt: skip


def test_intervals_are_paired():
    """Each row gets better by 0.1, while rows differ by whole units: unpaired, nothing could be seen."""
    base = [float(i % 7) for i in range(100)]
    low, high = report.bootstrap(rows(base), rows([loss - 0.1 for loss in base]), seed=1, times=200)["loss"]
    assert low == pytest.approx(-0.1) and high == pytest.approx(-0.1)
    noisy = report.bootstrap(rows(base), rows(base[::-1]), seed=1, times=200)["loss"]
    assert noisy[0] < 0 < noisy[1]


def test_perplexity_is_weighted_by_tokens():
    import math

    uneven = rows([1.0], 10) + rows([3.0], 30)
    assert report.summary(uneven)["loss"] == pytest.approx(2.5)
    assert report.summary(uneven)["perplexity"] == pytest.approx(math.exp(2.5))


def test_reference_losses_are_those_of_heldout_loss(tiny_model):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from common.answers import heldout_loss

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    prompts, completions = [[5, 6, 7], [8] * 9], [[10, 11, 2], [12, 2]]
    labels = [[-100] * len(p) + c for p, c in zip(prompts, completions, strict=True)]
    ids = [p + c for p, c in zip(prompts, completions, strict=True)]
    expected = heldout_loss(model, Dataset.from_dict({"input_ids": ids, "labels": labels}), 0)
    losses = report.reference_losses(model, prompts, completions, 0)
    assert sum(losses) / 5 == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains and measures")
def test_evaluate_medical(copied, script, tiny_model, tmp_path):
    task = copied("medical")
    run = tmp_path / "run"
    quick = [
        "--model",
        tiny_model,
        "--show_answers",
        0,
        "--max_steps",
        3,
        "--learning_rate",
        "1e-2",
        "--warmup_steps",
        0,
    ]
    script(task / "train.py", "--demo", *quick, "--output_dir", run)
    shown = script(task / "evaluate.py", "--adapter", run, "--limit", 6, "--max_new_tokens", 4, "--rouge").stdout
    made = run / "evaluation_results"
    assert {file.name for file in made.iterdir()} == {"metrics.json", "predictions.jsonl", "report.html"}
    metrics = json.loads((made / "metrics.json").read_text())
    assert metrics["facts"]["rows"] == 6 and metrics["tuned"]["loss"] < metrics["base"]["loss"]
    low, high = metrics["difference_95"]["loss"]
    assert low <= metrics["tuned"]["loss"] - metrics["base"]["loss"] <= high < 0
    assert "better" in shown and "tokens/s" in shown
    pairs = [json.loads(line) for line in (made / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(pairs) == 6 and set(pairs[0]) == {"instruction", "input", "reference", "base", "tuned"}
    page = (made / "report.html").read_text("utf-8")
    assert page.count("<tr>") > 15 and "http" not in page and "data:image/png;base64," in page


def test_evaluate_needs_a_run(script, tmp_path):
    done = script(ROOT / "medical" / "evaluate.py", "--adapter", tmp_path, check=False)
    assert done.returncode and "holds no adapter" in done.stderr
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (tmp_path / "prompt_template.txt").write_text("{question}")
    done = script(ROOT / "medical" / "evaluate.py", "--adapter", tmp_path, check=False)
    assert done.returncode and "has no run.json" in done.stderr


def test_what_is_trained_on_is_counted_and_shown(capsys, tiny_model):
    from datasets import Dataset

    from common import tokens
    from common.models import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    ask, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in ("Name a fruit:", " an apple"))
    row = {"input_ids": ask + answer, "labels": [-100] * len(ask) + answer}
    data = Dataset.from_list([row])
    tokens.show_mask(data, tokenizer, 3)
    said = capsys.readouterr().out
    assert "⟦ an apple⟧" in said and f"{len(answer)} of {len(ask + answer)} tokens" in said
    assert tokens.trained_share(data) == len(answer) / len(ask + answer)
    by_mask = Dataset.from_list(
        [{"input_ids": row["input_ids"], "completion_mask": [0] * len(ask) + [1] * len(answer)}]
    )
    assert tokens.trained_share(by_mask) == tokens.trained_share(data)
    assert tokens.labels_of(by_mask[0]) == row["labels"]
    with pytest.raises(SystemExit, match="no token is trained on"):
        tokens.trained_share(Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, -100]}]))
