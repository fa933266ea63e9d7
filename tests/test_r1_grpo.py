"""The r1_grpo recipe: its rewards, its data, GRPO's invariants in TRL, and the scripts as a user runs them."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "r1_grpo"
MODULES = ("data", "prompt", "rewards", "rewards_course", "rollout", "warmup", "watch", "evaluate", "infer", "train")


@pytest.fixture(scope="module")
def r1(modules_of):
    return modules_of("r1_grpo", MODULES)


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


def form(answer, reasoning="1 + 1 = 2\nso it is"):
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def total(r1, text, gold="5"):
    return sum(r1.rewards.score(text, gold).values())


# -- rewards


def gold_rows(r1):
    """The sample's rows, and with GSM8K_DIR all of GSM8K's."""
    sources = [TASK / "sample"] + ([os.environ["GSM8K_DIR"]] if os.environ.get("GSM8K_DIR") else [])
    return [row for source in sources for rows in r1.data.read_splits(source)[:2] for row in rows]


def test_every_gold_solution_in_the_form_earns_four(r1):
    rows = gold_rows(r1)
    assert len(rows) >= 400
    for end in ("", "\n"):
        assert {total(r1, r1.prompt.ideal(row) + end, row["gold"]) for row in rows} == {4.0}
    assert "earn 4.0 each" in r1.rewards.self_test(rows, r1.prompt.ideal).splitlines()[0]


@pytest.mark.parametrize(
    "written", ["1600", "1,600", "$1,600.00", "1600.", "1600.0", "１６００", "１，６００", " 1600 ", "01600"]
)
def test_one_number_written_in_many_ways(r1, written):
    earned = r1.rewards.score(form(written), "1,600")
    assert earned["correctness"] == 2.0 and earned["int"] == 0.5


@pytest.mark.parametrize(
    ("written", "gold", "right", "whole"),
    [
        ("-5", "-5", 1, 1),
        ("−5", "-5", 1, 1),  # unicode minus
        ("-$5", "-5", 1, 1),
        ("5", "-5", 0, 1),
        ("5.0", "5", 1, 1),
        ("5.5", "5", 0, 0),
        ("1/2", "2", 0, 0),
        ("1/2", "1/2", 1, 1),  # gold is no whole number: any plain number is of the right kind
        ("1,5", "15", 0, 0),  # a decimal comma is no thousand
        ("5 apples", "5", 0, 0),
        ("", "5", 0, 0),
        ("½", "5", 0, 0),
        ("1e3", "1000", 0, 0),
        ("٥", "5", 0, 0),  # another script's digit
    ],
)
def test_what_counts_as_the_number(r1, written, gold, right, whole):
    earned = r1.rewards.score(form(written), gold)
    assert (earned["correctness"], earned["int"]) == (2.0 * right, 0.5 * whole)


@pytest.mark.parametrize(
    ("written", "gold", "right", "number"),
    [
        # whole gold: the int reward wants it written as a whole number, as before
        ("64.0", "64", 1, 1),
        ("64.00", "64", 1, 1),
        ("+64", "64", 1, 1),
        ("128/2", "64", 1, 0),
        ("64.5/1", "64", 0, 0),
        ("-0", "0", 1, 1),
        ("64%", "64", 0, 0),
        ("64 pens", "64", 0, 0),
        ("32*2", "64", 0, 0),
        ("64/0", "64", 0, 0),
        ("64/", "64", 0, 0),
        ("8²", "82", 0, 0),  # 64, and no 82
        ("12½", "12/2", 0, 0),
        ("0,250", "250", 0, 0),  # a decimal comma
        ("1,2,300", "12300", 0, 0),
        ("6.4e1", "64", 0, 0),
        ("inf", "64", 0, 0),
        ("nan", "64", 0, 0),
        ("64.0000000000000000000000001", "64", 0, 0),  # equal as floats
        # gold that is not whole: any plain number earns the int reward
        ("9.25", "9.250", 1, 1),
        ("$9.25", "9.25", 1, 1),
        ("37/4", "9.25", 1, 1),
        ("9.25", "37/4", 1, 1),
        ("74/8", "37/4", 1, 1),
        ("2,400.75", "2400.75", 1, 1),
        ("２，４００．７５", "2,400.750", 1, 1),
        (".25", "0.25", 1, 1),
        ("−.25", "-0.25", 1, 1),
        ("9", "9.25", 0, 1),  # wrong, but no worse in kind than a wrong 9.5
        ("9.5", "9.25", 0, 1),
        ("0.3333333333333333", "1/3", 0, 1),
        ("2/6", "1/3", 1, 1),
        ("9.25 km", "9.25", 0, 0),
        ("925%", "9.25", 0, 0),
        ("1/0", "9.25", 0, 0),
        ("", "9.25", 0, 0),
    ],
)
def test_numbers_are_worth_what_they_equal(r1, written, gold, right, number):
    earned = r1.rewards.score(form(written), gold)
    assert (earned["correctness"], earned["int"]) == (2.0 * right, 0.5 * number)
    assert r1.rewards.grade(form(written), gold)["strict"] == right


def test_a_number_of_ten_thousand_digits_stops_nothing(r1):
    """int() raises over 4,300 digits, and a model that repeats itself writes them."""
    for written in ("7" * 10_000, "0." + "7" * 10_000, "1/" + "7" * 10_000, "7" * 10_000 + "/7"):
        for gold in ("7", "7.5"):
            assert r1.rewards.score(form(written), gold)["correctness"] == 0
            assert r1.rewards.grade(written, gold)["flexible"] == 0
    assert r1.data.gold_of("#### " + "7" * 10_000) is None


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("That makes 37/4.", "9.25", 1),
        ("That makes $9.250.", "37/4", 1),
        ("She pays .5", "0.5", 1),
        ("She pays .5", "5", 0),
        ("And then...5", "5", 1),
        ("It is 128/2", "64", 1),
        ("It is 8²", "82", 0),
        ("It is 8²", "64", 1),
        ("The garden has 96 m^2.", "96", 1),
        ("The garden has 96 m^2.", "2", 0),
        ("She keeps 3/7 of it", "7", 0),
        ("96 (see line 4)", "96", 1),
        ("So it is +96", "96", 1),
        ("It is not 96", "96", 0),
        ("41 + 55", "55", 0),
        ("41 + 55", "96", 0),
        ("She leaves at 7:45", "45", 0),
        (r"So \boxed{\frac{37}{4}}.", "9.25", 1),
        (r"\boxed{1{,}600}", "1600", 1),
        (r"Thus $\frac{37}{4}$ kg", "37/4", 1),
        (r"\boxed{9^{9^{9}}}", "9", 0),
        ("所以是96个", "96", 1),
        ("2950 songs on her mp3 player.", "2950", 1),
    ],
)
def test_what_a_text_answers_is_graded_by_its_value(r1, text, gold, right):
    assert r1.rewards.grade(text, gold) == {"strict": 0.0, "flexible": float(right), "format": 0.0}


@pytest.mark.parametrize(
    ("text", "strict", "soft", "count", "correct"),
    [
        (form(5), 0.5, 0.5, 0.5, 2.0),
        (form(5) + "\n", 0.5, 0.5, 0.5, 2.0),
        (form(5) + "\n" + form(5), 0, 0.5, -0.064, 2.0),  # two blocks: 64 characters follow the first end
        ("Well. " + form(5), 0, 0.5, 0.5, 2.0),
        (form(5) + "\nDone.", 0, 0.5, 0.495, 2.0),
        (form(5) + "\n" + "x" * 900, 0, 0.5, 0.25, 2.0),
        (form(5).replace("\n", " "), 0, 0.5, 0.5, 2.0),
        ("<reasoning>\n<reasoning>\na\n</reasoning>\n</reasoning>\n<answer>\n5\n</answer>", 0, 0, 0.25, 2.0),
        ("<reasoning>\na\n<answer>\n5\n</answer>\n</reasoning>", 0, 0, 0.5 - 0.012, 2.0),
        ("<answer>\n5\n</answer>\n<reasoning>\na\n</reasoning>", 0, 0, 0.5 - 0.026, 2.0),
        ("<answer>\n5\n</answer>", 0, 0, 0.25, 2.0),
        ("<answer><answer>5</answer></answer>", 0, 0, 0, 2.0),
        ("<answer>5</answer>" * 9 + "<answer>6</answer>", 0, 0, 0, 0),  # the last one counts
        (form(5)[: -len("</answer>")], 0, 0, 0.375, 0),  # cut off
        ("<reasoning>\na\n</reasoning>\n5", 0, 0, 0.25, 0),
        ("5", 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
    ],
)
def test_adversarial_completions(r1, text, strict, soft, count, correct):
    earned = r1.rewards.score(text, "5")
    assert (earned["strict_format"], earned["soft_format"], earned["correctness"]) == (strict, soft, correct)
    assert earned["xmlcount"] == pytest.approx(count)


def test_only_the_ideal_form_earns_all_and_length_of_reasoning_is_free(r1):
    assert {total(r1, form(5, "x" * length)) for length in (1, 50, 1000)} == {4.0}
    assert total(r1, form(6)) == 2.0 and total(r1, "5") == 0


def test_every_reward_can_be_given_to_trl(r1):
    texts = [form(5), "", "<answer>5</answer>"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    for reward in [*r1.rewards.REWARDS, *r1.rewards_course.REWARDS]:
        called = r1.rewards.for_trl(reward)
        paid = called(
            prompts=[None] * 3, completions=completions, answer=["5"] * 3, trainer_state=None, question=["?"] * 3
        )
        assert len(paid) == 3 and all(isinstance(each, float) for each in paid), reward.__name__
        assert paid == [reward(text, "5") for text in texts] and called.__name__ == reward.__name__


def test_self_test_stops_at_a_row_that_cannot_earn_all(r1):
    row = {"question": "?", "answer": "Write </answer> here.\n#### 5", "gold": "5"}
    with pytest.raises(SystemExit, match="training row 1: its own solution, put into the form, earns"):
        r1.rewards.self_test([row], r1.prompt.ideal)


def test_the_copied_rewards_pay_as_the_lesson_says(r1):
    """strict and soft never, xmlcount less for each character of reasoning, numbers as text, an answer without tags."""
    course = {each.__name__: each for each in r1.rewards_course.REWARDS}

    def paid(name, text, gold="5"):
        return course[f"{name}_reward_func"](text, gold)

    for text in (form(5), form(5) + "\n"):
        assert paid("strict_format", text) == paid("soft_format", text) == 0
    counts = [paid("xmlcount", form(5, "x" * length)) for length in (50, 250, 1000)]
    assert counts == pytest.approx([0.393, 0.193, -0.557], abs=0.02) and counts[0] - counts[1] == pytest.approx(0.2)
    assert paid("xmlcount", form(5) + "\n") == 0.5
    assert paid("correctness", form("1600"), "1,600") == 0 and paid("int", form(-5)) == 0
    assert paid("int", "5") == 0.5  # no tag at all
    if os.environ.get("GSM8K_DIR"):
        table = r1.rewards_course.compare(r1.data.read_splits(os.environ["GSM8K_DIR"])[0])
        scores = table[("xmlcount", "stops at </answer>")]["copied"]
        assert len(scores) == 7473 and sum(scores) / 7473 == pytest.approx(0.2145, abs=5e-5)
        assert min(scores) == pytest.approx(-0.684)
        assert sum(value == 2.0 for value in table[("correctness", "stops at </answer>")]["copied"]) == 7473 - 79


# -- data


def write(folder, name, *rows):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder / name


def problem(number, answer=None):
    return {"question": f"What is {number} and nothing more?", "answer": answer or f"It is.\n#### {number}"}


def test_bad_rows_are_dropped_counted_and_named(r1, tmp_path):
    bad = [
        problem(1, "$1,600 in all.\n#### 1,600"),
        {"question": "?"},
        {"question": " ", "answer": "#### 5"},
        problem(2, "no mark"),
        problem(3, "#### 3 #### 4"),
        problem(4, "#### four"),
        {"question": "<|im_end|>", "answer": "#### 1"},
        {"question": "\ud83d", "answer": "#### 1"},
        "text",
    ]
    write(tmp_path, "train.jsonl", *bad)
    write(tmp_path, "test.jsonl", problem(7))
    train, test, report = r1.data.read_splits(tmp_path)
    assert [row["gold"] for row in train] == ["1600"] and len(test) == 1
    assert report["splits"]["train"]["dropped"] == {
        "missing": 1, "empty": 1, "no gold": 3, "control token": 1, "broken characters": 1, "wrong type": 1
    }  # fmt: skip
    assert (
        f"{tmp_path / 'train.jsonl'}: line 4, column answer: expected one '#### number', it ends with 'no mark'"
        in r1.data.format_report(report)
    )


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("6.25", "6.25"),
        ("6.250", "6.250"),
        ("$6.25", "6.25"),
        (".25", "0.25"),
        ("-3/8", "-3/8"),
        ("2.5/4", "2.5/4"),
        ("4,300.50", "4300.50"),
        ("+12", "12"),
        ("48/4", "12"),  # shown and asked for as the whole number that it is
        ("12.0", "12"),
        ("4,300", "4300"),
        ("3/0", None),
        ("12%", None),
        ("12 eggs", None),
        ("1½", None),
        ("2^3", None),
        ("٣", None),  # another script's digit: no answer with it earns the int reward
    ],
)
def test_every_gold_that_is_kept_can_earn_all(r1, written, gold):
    answer = f"So it is.\n#### {written}"
    assert r1.data.gold_of(answer) == gold
    row = {"question": "How many?", "answer": answer}
    if gold is None:
        with pytest.raises(r1.data.Bad, match="no gold"):
            r1.data.check(row)
    else:
        row = r1.data.check(row)
        assert row["gold"] == gold
        assert total(r1, r1.prompt.ideal(row), gold) == 4.0
        assert "1 gold solutions in the form earn 4.0" in r1.rewards.self_test(
            [row], r1.prompt.ideal
        )  # broken ones too


def test_check_and_training_agree(script, tmp_path):
    """What --check passes, train.py takes; what one drops, the other drops, in the same words."""
    golds = ["2.75", "5/8", "0.50", "60/4", "7", "8/0", "٣", "9 m", "-1.5"]
    rows = [problem(n, f"Thus.\n#### {gold}") for n, gold in enumerate(golds)]
    rows.append(problem(10, "He writes </answer> there.\n#### 4"))
    rows.append(problem(11, "An <answer> more.\n#### 4.5"))
    write(tmp_path / "data", "train.jsonl", *rows)
    write(tmp_path / "data", "test.jsonl", problem(20, "Thus.\n#### 1.25"))
    checked = script(TASK / "data.py", "--check", tmp_path / "data").stdout
    # A model that is nowhere ends it after the data: nothing loads.
    trained = script(TASK / "train.py", "--data", tmp_path / "data", "--model", tmp_path / "none", check=False)
    assert "Traceback" not in trained.stderr
    said = trained.stdout.splitlines()[2:]  # behind the heading
    assert said and checked.splitlines()[: len(said)] == said
    assert "dropped: 3 no gold, 2 tag of the form" in said[0]
    assert any("6 gold solutions in the form earn 4.0 each" in line for line in said)
    for number in (6, 7, 8, 10, 11):
        assert f"line {number}, column answer: " in checked


@pytest.mark.slow
def test_golds_that_are_not_whole_are_trained_on(script, tiny_model, tmp_path):
    rows = [problem(n, f"{n} and a bit.\n#### {n}.75") for n in range(6)]
    write(tmp_path / "data", "train.jsonl", *rows)
    small = [*SMALL, "--dead_steps", 0, "--model", tiny_model]
    shown = script(TASK / "train.py", "--demo", *small, "--data", tmp_path / "data").stdout
    assert "5 gold solutions in the form earn 4.0 each" in shown and "after GRPO" in shown


def test_a_file_alone_is_split_by_question(r1, tmp_path):
    file = write(tmp_path, "rows.jsonl", *[problem(n // 2) for n in range(40)])
    train, test, _ = r1.data.read_splits(file)
    assert len(train) == 36 and len(test) == 4
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    with pytest.raises(SystemExit, match="1 different row"):
        r1.data.read_splits(write(tmp_path, "one.jsonl", problem(1), problem(1)))


def test_overlap_counts_shared_runs_of_eight_words(r1):
    row = {"question": "One two three four five six seven eight nine?"}
    near = {"question": "So, ONE two, three four five six seven eight!"}
    far = {"question": "One two three four five six seven and eight."}
    assert r1.data.overlap([row], [near, far]) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "no usable row"),
        ('{"a" 1}', "line 1: column 6: .*; row dropped: not JSON"),
        ("\udcff", "neither UTF-8 nor GB18030"),
        ("", "it is empty"),
    ],
)
def test_files_that_cannot_be_read(r1, tmp_path, content, said):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SystemExit, match=said):
        r1.data.read_splits(file)
    with pytest.raises(SystemExit, match="no train.jsonl"):
        r1.data.read_splits(tmp_path)
    with pytest.raises(SystemExit, match="the hub did not give it"):
        r1.data.read_splits("nobody/nothing")


def test_prompts_are_whole_or_left_out(r1, tokenizer, capsys):
    rows = [problem(1) | {"gold": "1"}, {"question": "word " * 300, "answer": "#### 1", "gold": "1"}]
    made = r1.data.prompts_of(rows, tokenizer, 256, "training rows")
    assert "training rows: 1 prompts over --max_prompt_tokens 256 left out" in capsys.readouterr().out
    assert len(made) == 1 and made[0]["answer"] == "1"
    assert tokenizer.decode(made[0]["input_ids"]) == (
        f"<|im_start|>system\n{r1.prompt.SYSTEM}<|im_end|>\n<|im_start|>user\nWhat is 1 and nothing more?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with pytest.raises(SystemExit, match="no prompt fits"):
        r1.data.prompts_of(rows, tokenizer, 5, "training rows")


def test_the_warm_up_learns_the_ideal_completion_and_its_end(r1, tokenizer):
    rows = [problem(1, "It is <<1=1>>1.\n#### 1") | {"gold": "1"}, problem(22) | {"gold": "22"}]
    ids, labels = r1.prompt.encode(tokenizer, rows)
    for row, one, counted, prompt in zip(rows, ids, labels, r1.prompt.prompt_ids(tokenizer, rows), strict=True):
        assert one[: len(prompt)] == prompt and counted[: len(prompt)] == [-100] * len(prompt)
        assert one[len(prompt) :] == counted[len(prompt) :]
        assert tokenizer.decode(counted[len(prompt) :]) == r1.prompt.ideal(row) + tokenizer.eos_token
    assert "<<" not in r1.prompt.ideal(rows[0])


def test_a_run_is_asked_with_its_own_system_prompt(r1, tokenizer):
    rows = [problem(1)]
    own, bare = (r1.prompt.prompt_ids(tokenizer, rows, texts) for texts in ({"system_prompt": "Be brief."}, {}))
    assert "system\nBe brief.<" in tokenizer.decode(own[0])
    assert bare == r1.prompt.prompt_ids(tokenizer, rows)  # runs from before it was saved


@pytest.mark.parametrize("level", [1, 2, 3])
def test_made_up_problems_are_right_and_the_test_has_other_sentences(r1, level):
    train, test = (r1.data.arithmetic(200, level, split, seed=3) for split in ("train", "test"))
    assert train == r1.data.arithmetic(200, level, "train", seed=3) != r1.data.arithmetic(200, level, "train", seed=4)
    for row in train + test:
        *steps, last = row["answer"].split("\n")
        assert len(steps) == (2 if level == 3 else 1) and last == "#### " + steps[-1].split(" = ")[1]
        for step in steps:
            left, right = step.split(" = ")
            assert re.fullmatch(r"\d+ [+-] \d+", left) and eval(left) == int(right) >= 0
        numbers = re.findall(r"\d+", row["question"])
        assert numbers == [n for i, step in enumerate(steps) for n in re.findall(r"\d+", step)[i and 1 : 2]]
    assert len({row["question"] for row in train}) == 200
    assert r1.data.overlap(train, test) == 0


def test_the_sample_is_what_its_command_makes(r1, script, tmp_path):
    script(TASK / "data.py", "--arithmetic", 300, "--level", 2, "--out", tmp_path / "made")
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "made" / name).read_bytes() == (TASK / "sample" / name).read_bytes()
    again = script(TASK / "data.py", "--arithmetic", 300, "--out", tmp_path / "made", check=False)
    assert again.returncode and "train.jsonl exists and is kept" in again.stderr


# -- measuring


def test_grades_of_hand_scored_answers(r1):
    hand = [
        (form(5), "5", (1, 1, 1)),
        (form("5 apples"), "5", (0, 1, 1)),
        ("So Ann has 5 apples.", "5", (0, 1, 0)),
        ("It costs $1,600.00.", "1600", (0, 1, 0)),
        ("From 7 to -5", "-5", (0, 1, 0)),
        (form(5) + "\nOr 6?", "5", (1, 0, 0)),
        ("I do not know.", "5", (0, 0, 0)),
    ]
    for text, gold, (strict, flexible, shape) in hand:
        assert r1.rewards.grade(text, gold) == {"strict": strict, "flexible": flexible, "format": shape}, text


def test_training_needs_no_math_verify(r1):
    """Rewards are rules that can be read; only what is measured beside them is graded by more."""
    code = (
        "import sys; sys.modules['math_verify'] = sys.modules['sympy'] = None\n"
        "import rewards, subprocess; subprocess.Popen = None\n"
        "text = '<reasoning>\\n1\\n</reasoning>\\n<answer>\\n5\\n</answer>'\n"
        "print(sum(rewards.score(text, '5').values()), rewards.grade(text, '5'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TASK, capture_output=True, text=True)
    assert done.stdout == "4.0 {'strict': 1.0, 'flexible': 1.0, 'format': 1.0}\n", done.stderr


def test_pass_at_k_is_unbiased(r1):
    pass_at_k = r1.evaluate.pass_at_k
    assert (pass_at_k(0, 8, 8), pass_at_k(1, 8, 8), pass_at_k(8, 8, 1)) == (0, 1, 1)
    assert pass_at_k(3, 10, 1) == pytest.approx(0.3) and pass_at_k(2, 4, 2) == pytest.approx(5 / 6)
    n, k, p = 6, 3, 0.3  # averaged over what n draws give, it is 1 - (1 - p)^k
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(c, n, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k)
    with pytest.raises(ValueError, match="at least 3 samples"):
        pass_at_k(1, 2, 3)


def test_the_interval_is_paired(r1):
    one, other = [0.0, 1.0] * 50, [1.0, 0.0] * 50
    assert r1.evaluate.bootstrap(one, [value + 0.5 for value in one], 0) == [0.5, 0.5]
    low, high = r1.evaluate.bootstrap(one, other, 0)
    assert low < 0 < high and high - low == pytest.approx(0.4, abs=0.06)  # 2 x 1.96 / sqrt(100)


def test_reasoning_and_answer_apart(r1):
    assert r1.infer.parts(form("$5", "a\nb")) == ("a\nb", "5")
    assert r1.infer.parts("5") == (None, None)


# -- GRPO's invariants, in the TRL that is pinned


@pytest.fixture
def trainer(r1, tokenizer, tiny_model, tmp_path, monkeypatch):
    """Makes a GRPOTrainer on the tiny model in float32: trainer(reward_funcs, rollout_func, warm, **config)."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    rows = [row | {"gold": r1.data.gold_of(row["answer"])} for row in r1.data.arithmetic(6)]

    def make(reward_funcs, rollout_func=None, warm=False, **flags):
        defaults = dict(
            output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=4,
            max_completion_length=6, gradient_checkpointing=False, report_to=[], logging_steps=1, max_steps=1, seed=5,
            learning_rate=1e-2, beta=0.0, use_bias_correction_kl=False, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        torch.manual_seed(1)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules=["q_proj"])
        )
        if warm:
            r1.warmup.warm_up(model, tokenizer, rows, 2, 1e-2, 4, 0)
        made = GRPOTrainer(
            model=model, reward_funcs=reward_funcs, args=GRPOConfig(**defaults | flags), processing_class=tokenizer,
            train_dataset=r1.data.prompts_of(rows, tokenizer, 256, "rows"), rollout_func=rollout_func,
        )  # fmt: skip
        r1.warmup.set_reference(model, warm)
        made.rows = [
            row for n in range(2) for row in [made.train_dataset[n]] * 4
        ]  # one step's prompts, as TRL repeats them
        model.train()
        made.current_gradient_accumulation_steps = 1  # what train() sets
        return made

    return make


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(r1, trainer, capsys, value):
    import torch

    from common.runs import GradientGuard

    made = trainer([characters])
    watch = GradientGuard()
    weights = [each for each in made.model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1.0)
    before = [each.clone() for each in weights]

    def update(last):
        for each in weights:
            each.grad = torch.ones_like(each)
        weights[-1].grad[0, 0] = float(last)
        watch.on_pre_optimizer_step(None, SimpleNamespace(global_step=6), None, model=made.model, optimizer=optimizer)
        optimizer.step()

    update(value)
    assert "step 7: the gradient is not finite" in capsys.readouterr().out
    assert all(torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    update(1.0)
    assert all(new.isfinite().all() and not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    assert (watch.skipped, watch.in_a_row) == (1, 0)
    with pytest.raises(SystemExit, match="5 gradients in a row"):
        for _ in range(5):
            update(value)


def characters(completions, **kwargs):
    """A reward in which random texts differ."""
    return [float(len(completion[0]["content"]) % 5) for completion in completions]


def test_advantages_sum_to_zero_in_a_group_and_go_with_it(r1, trainer):
    import torch

    rollout = r1.rollout.Rollout()
    made = trainer(characters, rollout)
    first = made._generate_and_score_completions(made.rows)
    advantages = first["advantages"].view(2, 4)
    assert advantages.abs().max() > 0.1 and advantages.sum(1).abs().max() < 1e-5
    # The same completions with the groups exchanged: the advantages are exchanged.
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(first["completion_ids"], first["completion_mask"], strict=True)
    ]
    prompts = [row["input_ids"] for row in made.rows]

    def replay(_, trainer):
        return {"prompt_ids": prompts[4:] + prompts[:4], "completion_ids": ids[4:] + ids[:4], "logprobs": None}

    made.rollout_func = replay
    second = made._generate_and_score_completions(made.rows[4:] + made.rows[:4])
    assert torch.allclose(second["advantages"].view(2, 4), advantages.flip(0), atol=1e-6)


def test_equal_rewards_give_no_gradient(r1, trainer):
    made = trainer(lambda completions, **kwargs: [1.0] * len(completions), r1.rollout.Rollout())
    inputs = made._generate_and_score_completions(made.rows)
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in made.model.parameters() if p.requires_grad)
    assert made._metrics["train"]["frac_reward_zero_std"] == [1.0]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.slow
def test_kl_is_zero_at_the_start_and_not_later(r1, trainer, warm):
    made = trainer(characters, r1.rollout.Rollout(), warm, beta=0.1, max_steps=3, warmup_steps=0)
    assert ("ref" in made.model.peft_config) == warm
    names = [name for name, p in made.model.named_parameters() if p.requires_grad]
    assert names and not any(".ref." in name for name in names)
    made.train()
    kl = [log["kl"] for log in made.state.log_history if "kl" in log]
    assert kl[0] == 0.0 and kl[2] > 0


def test_a_rollout_is_to_trl_what_its_own_samples_are(r1, trainer, tokenizer):
    """Given the same completions, the same tensors and the same loss: no logprobs, masks and ends as TRL makes them."""
    import torch

    own = trainer(characters, beta=0.1)
    torch.manual_seed(3)
    theirs = own._generate_and_score_completions(own.rows)
    pairs = zip(theirs["completion_ids"], theirs["completion_mask"], strict=True)
    ids = [row[mask.bool()].tolist() for row, mask in pairs]
    ids[1] = [*ids[1][:2], tokenizer.eos_token_id]  # one that ended by itself

    def replay(prompts, trainer):
        texts = [
            trainer.processing_class.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            for p in prompts
        ]
        return {"prompt_ids": texts, "completion_ids": ids, "logprobs": None}

    own._generate_single_turn = lambda *args, **kwargs: (ids, None)
    theirs = own._generate_and_score_completions(own.rows)
    ours_trainer = trainer(characters, replay, beta=0.1)
    ours = ours_trainer._generate_and_score_completions(ours_trainer.rows)
    assert ours.keys() == theirs.keys() and "old_per_token_logps" not in ours
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert ours_trainer.compute_loss(ours_trainer.model, ours).item() == own.compute_loss(own.model, theirs).item()
    clipped = ours_trainer._metrics["train"]["completions/clipped_ratio"]
    assert clipped == own._metrics["train"]["completions/clipped_ratio"][-1:] and clipped[0] < 1


def test_rollouts_end_where_trl_would_end_them(r1, trainer, tokenizer):
    """Qwen2.5's settings name a second end token beside the tokenizer's."""
    made = trainer(characters, r1.rollout.Rollout(), max_completion_length=40)
    prompts = [row["prompt"] for row in made.rows[:3]]
    free = made.rollout_func(prompts, made)
    second = free["completion_ids"][0][3]
    made.model.generation_config.eos_token_id = [tokenizer.eos_token_id, second]
    ended = made.rollout_func(prompts, made)
    assert ended["prompt_ids"] == r1.prompt.prompt_ids(tokenizer, r1.data.arithmetic(1) * 3)
    assert ended["logprobs"] is None
    texts = [tokenizer.decode(ids) for ids in ended["prompt_ids"]]
    assert made.rollout_func(texts, made)["prompt_ids"] == ended["prompt_ids"]  # rlhf_ppo's prompts are texts
    for row in ended["completion_ids"]:
        assert not {tokenizer.eos_token_id, second} & set(row[:-1])
    how = dict(max_new_tokens=40, backend="hf", return_ids=True)
    ids = free["prompt_ids"][:1]
    greedy = r1.rollout.generate(made.model, tokenizer, ids, **how)[0]
    made.model.generation_config.eos_token_id = [tokenizer.eos_token_id, greedy[5]]
    cut = r1.rollout.generate(made.model, tokenizer, ids, **how)[0]
    assert cut == greedy[: greedy.index(greedy[5]) + 1]


# -- runs


SMALL = (
    "--max_steps", 2, "--num_generations", 2, "--per_device_train_batch_size", 2, "--max_completion_length", 6,
    "--warmup_sft", 1, "--probe_prompts", 1, "--eval_prompts", 2, "--follow", 1, "--follow_steps", 1,
)  # fmt: skip


def logs_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, demo_model, tmp_path):
    """cp -r r1_grpo elsewhere; python train.py --demo; infer.py; evaluate.py: nothing else of the repo."""
    task = copied("r1_grpo")
    shown = script(task / "train.py", "--demo", *SMALL).stdout
    (folder,) = (tmp_path / "outputs" / "r1_grpo").iterdir()
    names = {file.name for file in folder.iterdir()}
    assert (folder / "system_prompt.txt").read_text("utf-8").startswith("Think before you answer.")
    assert {"adapter_config.json", "adapter_model.safetensors", "rewards.png", "samples.html", "samples.jsonl"} <= names
    assert {"warmup", "metrics.jsonl", "run.json"} <= names and not {"ref", "loss.png", ".warmup"} & names
    for said in ("300 gold solutions in the form earn 4.0 each", "plan: 300 prompts of", "before GRPO, 1 prompts x 2:"):
        assert said in shown
    for stage in ("base ", "after warm-up ", "after GRPO "):
        assert re.search(rf"^{stage} +(\d+% +){{3}}\d+$", shown, re.M), shown
    logs = [log for log in logs_of(folder) if "reward" in log]
    assert [log["step"] for log in logs] == [1, 2] and logs[0]["kl"] == 0
    for name in (
        "accuracy",
        "tokens_per_second",
        "entropy",
        "completions/clipped_ratio",
        "rewards/int_reward_func/mean",
    ):
        assert all(name in log for log in logs), name
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["tokens"] == 2 * sum(
        log["completions/mean_length"] for log in logs
    )
    told = [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [each["step"] for each in told] == [0, 1, 2] and len(told[0]["completions"]) == 4
    page = (folder / "samples.html").read_text("utf-8")
    assert "http" not in page and "<reasoning" not in page  # nothing from elsewhere; what a model writes is escaped

    said = script(task / "infer.py", "--max_new_tokens", 3).stdout
    assert f"adapter: {folder}" in said and "\nbase\n" in said and "\ntuned\n" in said
    said = script(task / "evaluate.py", "--limit", 2, "--samples", 2, "--pass_k", 2).stdout
    assert re.search(r"^metric +base +warm-up +tuned ", said, re.M) and "pass@2" in said
    results = folder / "evaluation_results"
    pairs = [json.loads(line) for line in (results / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(pairs) == 2 and set(pairs[0]) == {"question", "gold", "base", "warm-up", "tuned"}
    table = json.loads((results / "results.json").read_text())["table"]
    assert [row["metric"] for row in table][:2] == ["strict", "flexible"] and (results / "report.html").is_file()


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(copied, environment, tiny_model, tmp_path):
    """Four steps at once, and two steps, a new process and two more: the same numbers and the same adapter."""
    task = copied("r1_grpo")
    with open(task / "rewards.py", "a") as file:  # random texts must earn different rewards
        file.write("\n\ndef length_reward_func(text, gold):\n    return len(text) % 7 / 7\n")
        file.write("\n\nREWARDS = [*REWARDS, length_reward_func]\n")
    command = [sys.executable, task / "train.py", "--demo", *SMALL, "--model", tiny_model, "--bf16", "false"]
    command += ["--max_steps", 4, "--save_steps", 2, "--num_generations", 4, "--per_device_train_batch_size", 4]
    command += ["--gradient_accumulation_steps", 2]

    def run(outputs):
        done = subprocess.run(
            [*map(str, command)],
            cwd=task,
            env=environment | {"OUTPUT_DIR": str(outputs)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = (outputs / "r1_grpo").iterdir()
        numbers = ("loss", "reward", "kl", "entropy", "grad_norm", "completions/mean_length")
        return (
            folder,
            done.stdout,
            {log["step"]: [log[n] for n in numbers] for log in logs_of(folder) if "reward" in log},
        )

    straight, _, numbers = run(tmp_path / "straight")
    assert numbers[4][2] > 0 and len({step[1] for step in numbers.values()}) > 1  # something was learned
    cut = Path(shutil.copytree(tmp_path / "straight", tmp_path / "cut")) / "r1_grpo" / straight.name
    shutil.rmtree(cut / "checkpoint-4")
    (cut / "adapter_model.safetensors").unlink()
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(record | {"status": "unfinished"}))
    resumed, said, again = run(tmp_path / "cut")
    assert "goes on from checkpoint-2" in said and resumed == cut
    assert again == numbers
    assert (resumed / "adapter_model.safetensors").read_bytes() == (straight / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_dead_groups_stop_the_run(script, tiny_model, tmp_path):
    """A random model earns 0 every time."""
    done = script(
        TASK / "train.py", "--demo", *SMALL, "--model", tiny_model, "--max_steps", 9, "--dead_steps", 3, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "stopped: for 3 steps over 90% of the groups were dead" in done.stderr
    assert done.stderr.count("--- completion ") == 2  # what a step of two completions has
    assert "--warmup_sft 20" in done.stderr
    (folder,) = (tmp_path / "outputs" / "r1_grpo").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "unfinished" and "dead" in record["stopped_by"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num_iterations", "2", "--save_steps", "5"], "Take a multiple of 2."),
        (["--steps_per_generation", "4", "--save_steps", "6"], "Take a multiple of 4."),
        (["--rollouts", "vllm"], "--rollouts vllm: vLLM is not installed"),
        (["--packing"], "unknown flag --packing"),
        (["--warmup_sft", "2", "--backend", "unsloth"], "give --beta 0 or --backend hf"),
        (["--num_generations", "7"], "must be divisible by num_generations"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        pytest.param(
            ["--max_prompt_tokens", "9"],
            "training rows: no prompt fits in --max_prompt_tokens 9",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_is_said_in_a_line_before_a_model_loads(script, arguments, said):
    done = script(TASK / "train.py", "--demo", *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def test_evaluation_and_inference_refuse_early(script, tmp_path):
    for file, arguments, said in (
        ("evaluate.py", ["--samples", "4", "--pass_k", "8"], "takes a number from 1 to --samples 4"),
        ("infer.py", ["--adapter", tmp_path], "holds no adapter"),
        ("infer.py", ["--engine", "vllm"], "vLLM is not installed here"),
    ):
        done = script(TASK / file, *arguments, check=False)
        assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def test_the_course_preset_names_flags_that_exist(script):
    done = script(TASK / "train.py", "--config", TASK / "course.yaml", "--data", "nowhere.jsonl", check=False)
    assert "nowhere.jsonl: no such file" in done.stderr
    said = script(TASK / "train.py", "--config", TASK / "course.yaml", "--estimate").stdout
    assert "code: unsloth" in said and "--max_completion_length 200" in said
