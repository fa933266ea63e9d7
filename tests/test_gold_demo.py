"""The demo of rlhf_ppo: its pairs pay for neither length nor emptiness, and gold rises. Beside it, what says when it does not."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "rlhf_ppo"


@pytest.fixture(scope="module")
def rlhf(modules_of):
    return modules_of("rlhf_ppo", ("gold", "gold_pairs"))


def test_the_demo_s_pairs_pay_for_neither_length_nor_emptiness(rlhf):
    gold, words = rlhf.gold.gold, rlhf.gold.words_of
    pairs = [json.loads(line) for line in (TASK / "sample" / "gold.jsonl").read_text("utf-8").splitlines()]
    assert len(pairs) == len({pair["prompt"] for pair in pairs}) == 120
    assert all(gold(pair["chosen"]) > gold(pair["rejected"]) + 0.25 for pair in pairs)
    longer = sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs) / len(pairs)
    assert 0.4 <= longer <= 0.6, longer
    stubs = [pair for pair in pairs if len(words(pair["rejected"])) <= 4]
    assert len(stubs) >= 50 and min(len(words(pair["chosen"])) for pair in pairs) >= 7


def test_a_pair_is_made_in_each_way_or_not_at_all(rlhf):
    import random

    text = "Rain is what falls from clouds when the drops in them have grown too heavy for the air to hold up"
    made = {way: rlhf.gold_pairs.pair(random.Random(1), way, text) for way in rlhf.gold_pairs.WAYS}
    for way, (better, worse) in made.items():
        assert better.endswith(".") and text.startswith(better[:-1]) and rlhf.gold.gold(better) > rlhf.gold.gold(worse)
        assert worse.endswith(".") == (way == "stub"), way
    assert made["runs on"][1] == text and len(made["stub"][1].split()) <= 4
    assert rlhf.gold_pairs.pair(random.Random(1), "stub", "Too short to be cut.") is None


def test_a_score_that_rose_by_emptiness_is_called_so(rlhf):
    full, empty = "Rain is what falls from clouds when drops in them grow heavy.", "Yes."
    before = [{"answer": full, "score": 0.0}, {"answer": full, "score": 0.0}]
    better = [{"answer": full, "score": 1.0}, {"answer": full, "score": 1.0}]
    hollow = [{"answer": empty, "score": 2.0}, {"answer": full, "score": 1.0}]
    said = rlhf.gold.course(before, hollow, by_gold=True)
    assert "gold +0.50 -> -0.74; words 12.0 -> 6.5; empty (under 3 words) 0 -> 1 of 2" in said
    assert said.endswith("\n  the score rose by emptiness: 1 of 2 answers more say nothing")
    assert rlhf.gold.course(before, better) == "words 12.0 -> 12.0; empty (under 3 words) 0 -> 0 of 2"
    fallen = [dict(each, score=-1.0) for each in hollow]
    assert "emptiness:" not in rlhf.gold.course(before, fallen)


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 runs the demo three times")
@pytest.mark.parametrize("seed", [3407, 1, 2])
def test_gold_rises_in_the_demo(copied, script, seed, tmp_path, modules_of, demo_model):
    task = copied("rlhf_ppo")
    (tmp_path / "ppo.yaml").write_text(f"seed: {seed}\n")
    said = script(task / "train.py", "--demo", "--ppo_config", tmp_path / "ppo.yaml").stdout
    gold = modules_of("rlhf_ppo", ("gold",)).gold
    (folder,) = (tmp_path / "outputs" / "rlhf_ppo" / "ppo").iterdir()
    record = json.loads((folder / "run.json").read_text("utf-8"))
    texts = {name: [each["answer"] for each in record[name]] for name in ("before", "after")}
    golds = {name: sum(map(gold.gold, each)) / len(each) for name, each in texts.items()}
    assert golds["after"] >= golds["before"] + GAIN[seed], golds
    assert sum(len(gold.words_of(text)) < gold.SAYS_NOTHING for text in texts["after"]) <= 1, texts["after"]
    assert said.count("  gold ") == 1


# as measured: +0.7, +0.1 and +0.6; with seed 1 hardly an answer of the first rollouts has an end (RESULTS.md)
GAIN = {3407: 0.3, 1: 0.0, 2: 0.3}
