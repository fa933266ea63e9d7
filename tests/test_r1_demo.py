"""The model of r1_grpo's demo: what was shipped, what its script makes, and that GRPO is seen to work on it."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "r1_grpo"
SHIPPED = TASK / "miniature"
MODULES = ("data", "prompt", "rewards", "pretrain", "watch")


@pytest.fixture(scope="module")
def r1(modules_of):
    return modules_of("r1_grpo", MODULES)


@pytest.fixture(scope="module")
def shipped():
    """The miniature as train.py loads it: (model, tokenizer)."""
    import torch

    from common import hub, models

    path = hub.resolve_model(str(SHIPPED))
    return models.load_base(path, "hf", None, torch.float32).eval(), models.load_tokenizer(path)


def test_what_is_shipped_is_small_safe_and_says_how_it_was_made(r1, shipped):
    model, tokenizer = shipped
    assert {file.suffix for file in SHIPPED.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 5e6
    record = json.loads((SHIPPED / "pretrain.json").read_text("utf-8"))
    assert record["parameters"] == sum(each.numel() for each in model.parameters())
    made = {name: value for name, value in record["arguments"].items() if name != "out"}
    assert (
        made == r1.pretrain.DEFAULTS | {"seed": 3407, "eval_problems": 200} and record["tokens"] and record["seconds"]
    )
    built = r1.pretrain.build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab() and built.chat_template == tokenizer.chat_template
    ends = (model.config.eos_token_id, model.generation_config.eos_token_id)
    assert ends == (tokenizer.eos_token_id,) * 2 and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_its_ids_are_as_the_template_says(r1, shipped):
    _, tokenizer = shipped
    row = {"question": "Ana has 25 pens and loses 14.", "answer": "25 - 14 = 11\n#### 11", "gold": "11"}
    (ids,) = r1.prompt.prompt_ids(tokenizer, [row])
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{r1.prompt.SYSTEM}<|im_end|>\n<|im_start|>user\n{row['question']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(one) for one in tokenizer("1407").input_ids] == list("1407")
    for text in ("naïve 安娜有25支笔 🙂\tif x:", r1.prompt.ideal(row)):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    (answer,) = r1.prompt.answer_ids(tokenizer, [row])
    assert len(answer) <= 40  # --max_completion_length of the demo


def test_it_is_right_now_and_then(r1, shipped):
    """Greedy and sampled 15 to 45% on problems that neither it nor the demo's training has seen; of 8 samples one often is."""
    scores, _ = r1.pretrain.examine(*shipped, 60)
    assert 0.15 <= scores["greedy_strict"] <= 0.45 and 0.15 <= scores["pass_at_1"] <= 0.45, scores
    assert scores["pass_at_8"] >= scores["pass_at_1"] + 0.25 and scores["greedy_format"] >= 0.9, scores


def test_homework_has_the_bugs_that_it_says(r1):
    import random

    by_digits, written = r1.pretrain.by_digits, r1.pretrain.written
    assert (by_digits(25, "+", 38), by_digits(41, "-", 17), by_digits(23, "+", 45)) == (53, 36, 68)
    rng = random.Random(0)
    said = {kind: written(rng, 41, "-", 17, {kind: 1}) for kind in r1.pretrain.PUPILS["-"]}
    assert said == {
        "right": ("41 - 17 = 24", 24),
        "digits": ("41 - 17 = 36", 36),
        "off by one": ("41 - 17 = 25", 25),
        "other sign": ("41 + 17 = 58", 58),
    }
    assert written(rng, 25, "+", 38, {"off by one": 1}) == ("25 + 38 = 62", 62)
    graded = [r1.rewards.grade(text, "0")["format"] for _, text in (r1.pretrain.homework(rng) for _ in range(50))]
    assert graded == [1.0] * 50


def test_neither_sentences_nor_sums_of_the_test_are_known(r1):
    data, pretrain = r1.data, r1.pretrain
    read = {
        *pretrain.BEGINNINGS,
        *sum(pretrain.EVENTS.values(), ()),
        *sum(pretrain.JOINED.values(), ()),
        *pretrain.ASKED,
    }
    tested = {text for part in (data.STEPS, data.SECOND) for text, _ in part["test"]} | {data.ASKED["test"]}
    assert not read & tested
    for level in data.LEVELS:
        sums = {}
        for split in ("train", "test"):
            lines = [row["answer"].split("\n")[:-1] for row in data.arithmetic(200, level, split)]
            kin = [[frozenset(re.findall(r"\d+", line)) for line in each] for each in lines]
            sums[split] = kin
        known = {kin for each in sums["train"] for kin in each}
        assert all(set(each) - known for each in sums["test"])


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (dict(sampled=0.7, any=0.85, tries=8), "sharpening: what many tries held is now said at the first"),
        (dict(sampled=0.9, any=0.95, tries=8), "learning: one try now is right more often than one of many was"),
        (dict(sampled=0.3, any=0.9, tries=8), "nothing gained"),
    ],
)
def test_sharpening_is_told_from_learning(r1, after, said):
    numbers, verdict = r1.watch.sharpened(dict(sampled=0.3, any=0.85, tries=8), after).split("\n")
    assert verdict == said and "pass@1 30% and pass@8 85% before GRPO, pass@1" in numbers
    assert r1.watch.sharpened({}, {}) == r1.watch.sharpened({"strict": 0.1}, after) == ""


@pytest.mark.slow
def test_the_script_makes_such_a_folder(script, tmp_path):
    out = tmp_path / "made"
    small = ("--max_steps", 2, "--batch_size", 2, "--eval_problems", 2)
    shown = script(TASK / "pretrain.py", "--out", out, *small).stdout
    assert f"saved: {out} (3.4 MB of weights)" in shown
    assert {file.name for file in out.iterdir()} == {file.name for file in SHIPPED.iterdir()}
    again = script(TASK / "pretrain.py", "--out", out, *small, check=False)
    assert again.returncode and f"{out} exists and is kept" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 runs the demo three times")
@pytest.mark.parametrize("seed", [3407, 1, 2])
def test_the_demo_shows_that_rl_works(copied, script, seed, tmp_path):
    """From 15 to 45% on test problems to at least 60%, greedy and sampled, by the answer block and by the last number."""
    task = copied("r1_grpo")
    nothing = tmp_path / "no-models"
    script(task / "train.py", "--demo", "--seed", seed, MODELS_DIR=str(nothing))
    assert not nothing.exists()  # it needs no other model
    (folder,) = (tmp_path / "outputs" / "r1_grpo").iterdir()
    stages = json.loads((folder / "run.json").read_text("utf-8"))["stages"]
    before, after = stages["base"], stages["after GRPO"]
    for share in ("strict", "flexible", "sampled"):
        assert 0.15 <= before[share] <= 0.45 and after[share] >= 0.6, (share, before, after)
    assert before["format"] > 0.9  # so the form is not what was learned
