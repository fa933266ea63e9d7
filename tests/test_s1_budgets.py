"""Budgets by difficulty, by name and by the model's context, and the curve as text."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def s1(modules_of):
    return modules_of("s1_scaling", ("domains", "tasks", "data", "prompt", "suggest", "scaling"))


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


def test_a_budget_is_what_questions_like_it_took(s1, tokenizer):
    short = [{"question": f"Add {n} and {n + 1}.", "trace": "1 2 3."} for n in range(20, 30)]
    long = [{"question": f"Count the days from May {n} to June {n}.", "trace": "1 2 3. " * 20} for n in range(10, 20)]
    size = {
        name: len(tokenizer(rows[0]["trace"], add_special_tokens=False).input_ids)
        for name, rows in (("s", short), ("l", long))
    }
    asked = ["Add 55 and 66.", "Count the days from July 11 to July 30."]
    room = s1.suggest.ROOM
    found = s1.suggest.budgets(tokenizer, [*short, {"question": "no trace"}, *long], asked)
    assert found == [round(room * size["s"]), round(room * size["l"])]
    # one hard question among those like it is enough
    hard = [short[0] | {"trace": "1 2 3. " * 9}, *short[1:6]]
    assert s1.suggest.budgets(tokenizer, hard, asked[:1])[0] > found[0] * 5
    assert s1.suggest.words("What is 17 + 1,748?") == {"what", "is", "00", "0", "000"}
    with pytest.raises(SystemExit, match="its data has none"):
        s1.suggest.budgets(tokenizer, [{"question": "no trace"}], asked)
    table = s1.suggest.as_text([{"domain": "a"}, {"domain": "b"}, {"domain": "a"}], [4, 9, 8])
    assert [line.split() for line in table.splitlines()[1:]] == [["a", "2", "4", "6", "8"], ["b", "1", "9", "9", "9"]]


def test_the_curve_as_text(s1):
    runs = [
        {"kind": "wait", "name": "0 Waits", "tokens": [30, 50], "right": [True, False]},
        {"kind": "wait", "name": "1 Waits", "tokens": [60, 80], "right": [False, True]},
        {"kind": "cap", "name": "at most 0", "tokens": [0, 0], "right": [False, False]},
        {"kind": "vote", "name": "2 votes", "tokens": [9, 9], "right": [True, True]},
    ]
    lines = s1.scaling.bars(runs, width=4).splitlines()
    assert [line.split("|")[1] for line in lines] == ["    ", "##  ", "##  "]
    assert lines[1].split() == ["0", "Waits", "40.0", "thinking", "tokens", "|##", "|", "50%", "right"]
    assert s1.scaling.mended(runs) == ([1], [0])


def test_an_effort_is_cut_to_the_model_s_context(modules_of):
    budget = modules_of("s1_scaling", ("prompt", "budget")).budget
    mark = SimpleNamespace(open=[1], newline=[2], forced=[3, 4])
    asked = budget.Budget(2048, 2, 32)
    assert budget.room([[5] * 60, [5]], asked, mark, 1024) == 1024 - 60 - 4 - 32
    assert budget.room([[5]], asked, mark, None) == 2048 and budget.room([[5] * 99], asked, mark, 50) == 0
