"""The demo of s1_scaling: the miniature that is shipped, what its script makes, and that thinking is seen to help."""

import json
import os
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "s1_scaling"
SHIPPED = TASK / "miniature"


@pytest.fixture(scope="module")
def s1(modules_of):
    return modules_of("s1_scaling", ("domains", "tasks", "data", "prompt", "suggest", "scaling", "pretrain"))


@pytest.fixture(scope="module")
def tokenizer():
    from common.models import load_tokenizer

    return load_tokenizer(SHIPPED)


def test_what_is_shipped_is_small_and_says_how_it_was_made(s1, tokenizer):
    assert {file.suffix for file in SHIPPED.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 5e6
    record, parts = json.loads((SHIPPED / "pretrain.json").read_text("utf-8")), []
    while record:
        assert record["parameters"] and record["tokens"] and record["seconds"]
        parts.append(record["arguments"])
        record = parts[-1].get("start")
    assert len(parts) == 4 and parts[0]["own_sentences"] and parts[0]["again"] == s1.tasks.AGAIN
    assert {name: parts[3][name] for name in s1.pretrain.DEFAULTS} == s1.pretrain.DEFAULTS and parts[3]["seed"] == 3407
    told = s1.pretrain.__doc__
    for part in parts[:3]:
        assert f"--max_steps {part['max_steps']} --learning_rate {part['learning_rate']:g}" in told.replace(
            "1.5e-3", "0.0015"
        )
    built = s1.pretrain.build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab() and built.chat_template == tokenizer.chat_template
    mark = s1.prompt.marks(tokenizer)
    assert mark.stop == {0, 1, 2} and tokenizer.decode(mark.wait) == "Wait"
    text = "raspberry: r a s p b e r r y.\nr 1, 3:07 安娜"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_books_teach_neither_the_form_nor_a_question_of_the_test(s1):
    draw, pretrain = random.Random(0), s1.pretrain
    last = (0.5, ["sums", "units", "clock"], s1.tasks.AGAIN, True)
    books = ["".join(pretrain.row(draw, *last)) for _ in range(400)]
    text = "\n".join(books)
    for absent in ("<|im_start|>think", "<|im_start|>answer", "Final Answer:"):
        assert absent not in text
    tested = [json.loads(line)["question"] for line in (TASK / "sample_numbers" / "test.jsonl").open(encoding="utf-8")]
    assert len(tested) == 60 and not [question for question in tested if question in text]
    shown = [book for book in books if "Answer: " not in book]
    assert 0.15 < sum(book.count(s1.tasks.AGAIN) for book in shown) / (len(shown) * pretrain.PROBLEMS) < 0.35
    # none of the first books' sentences is the tasks', and none of their words is of the test
    asked = {
        each
        for domain in s1.domains.ASKED.values()
        for level in domain.values()
        for kind in level.values()
        for each in kind
    }
    assert not asked & {each for kind in pretrain.BOOKS.values() for each in kind}
    first = "\n".join("".join(pretrain.row(draw)) for _ in range(100))
    assert not set(first.replace('"', " ").replace(":", " ").replace("?", " ").split()) & set(s1.domains.TEST_WORDS)
    assert "Wait" not in first


def test_a_question_of_the_test_is_drawn_again(s1, monkeypatch):
    draws = [s1.pretrain.problem(random.Random(n), ["sums"], True)[1] for n in range(30)]
    monkeypatch.setattr(s1.pretrain, "TESTED", set(draws[:10]))
    again = [s1.pretrain.problem(random.Random(n), ["sums"], True)[1] for n in range(30)]
    assert not set(again) & set(draws[:10]) and again[10:] == draws[10:]


@pytest.mark.slow
def test_the_script_makes_such_a_folder(script, tmp_path):
    out = tmp_path / "made"
    small = ("--max_steps", 2, "--batch_size", 2)
    shown = script(TASK / "pretrain.py", "--out", out, *small).stdout
    assert f"saved: {out} (3.4 MB of weights)" in shown
    assert {file.name for file in out.iterdir()} == {file.name for file in SHIPPED.iterdir()}
    again = script(TASK / "pretrain.py", "--out", out, *small, check=False)
    assert again.returncode and f"{out} exists and is kept" in again.stderr and "Traceback" not in again.stderr


def test_the_demo_s_data_are_what_their_commands_make(script, tmp_path):
    script(
        TASK / "tasks.py", "--generate", 240, "--levels", 1, "--domains", "sums", "units", "clock", "--out", tmp_path
    )
    script(TASK / "funnel.py", "--select", 9999, "--pool", tmp_path / "pool.jsonl", "--out", tmp_path)
    for name in ("pool.jsonl", "test.jsonl", "train.jsonl"):
        assert (tmp_path / name).read_bytes() == (TASK / "sample_numbers" / name).read_bytes(), name


@pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 runs the demo three times")
@pytest.mark.parametrize("seed", [3407, 1, 2])
def test_the_demo_shows_that_thinking_helps(copied, script, seed, tmp_path):
    """Nothing is right at once, most is after thinking, half of a thought is not enough; a Wait that mends an answer is shown."""
    task = copied("s1_scaling")
    nothing = tmp_path / "no-models"
    said = script(task / "train.py", "--demo", "--seed", seed, MODELS_DIR=str(nothing)).stdout
    assert not nothing.exists()  # it needs no other model
    (folder,) = (tmp_path / "outputs" / "s1_scaling").iterdir()
    found = json.loads((folder / "run.json").read_text("utf-8"))
    right = {run["name"]: run["right"] for run in found["curve"]["budgets"]}
    assert found["before"]["accuracy"] <= 0.1 and right["at most 0"] <= 0.1, right
    assert right["at most 32"] <= 0.4 and right["0 Waits"] >= 0.5, right
    assert right["0 Waits"] >= right["at most 32"] + 0.2, right
    assert found["curve"]["mended"] >= 1 and "60 held-out questions, accuracy over thinking tokens" in said
    _, natural, waited = [text.split("=> ")[1].split("   ")[0] for text in list(found["shown"].values())[:3]]
    asked = said.split("[num_ignore 1,")[0].rsplit("\n", 1)[1].strip()
    rows = map(json.loads, (task / "sample_numbers" / "test.jsonl").open(encoding="utf-8"))
    (gold,) = [row["answer"] for row in rows if row["question"] == asked]
    assert waited == gold != natural and "[Wait 1] Wait, let me check." in said
