"""The s1_scaling recipe: made-up tasks, the funnel, budget forcing on token ids, the paper's numbers, and the scripts."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import grading
from common.tokens import tokenize

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "s1_scaling"
MODULES = ("domains", "tasks", "data", "funnel", "prompt", "budget", "scaling", "evaluate", "infer", "train", "grade")
DOMAINS = {"sums", "letters", "dates", "units", "clock"}


@pytest.fixture(scope="module")
def s1(modules_of):
    return modules_of("s1_scaling", MODULES)


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def row(number, domain="sums", trace=None, **more):
    texts = dict(question=f"Question {number}?", trace=trace or f"Because of {number}.", answer=str(number))
    return texts | dict(domain=domain, source="here") | more


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    return file


# -- made-up tasks


def solve(question, domain):
    """The answer, worked out from the question by other means than the maker's."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    if domain == "sums":
        return str(sum(numbers))
    if domain == "clock":
        minutes = numbers[0] * 60 + numbers[1]
        spans = re.findall(r"(\d+) (hours|minutes)", question)
        minutes += sum(int(n) * (60 if unit == "hours" else 1) for n, unit in spans)
        return f"{minutes // 60}:{minutes % 60:02}"
    if domain == "letters":
        asked = (r"letter (\w) occur in the word (\w+)", r'letter (\w) in "(\w+)', r"many (\w) in (\w+)")
        ((letter, word),) = [found for each in asked for found in re.findall(each, question)]
        return str(word.count(letter))
    if domain == "dates":
        days = re.findall(r"(\w+day)\b", question)
        if days:
            week = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
            day = next(each for each in days if each in week)
            return week[(week.index(day) + numbers[0]) % 7]
        found = re.findall(r"(March|April|May|June|July|August|September|October|November) (\d+)", question)
        names = [date(2001, m, 1).strftime("%B") for m in range(1, 13)]
        dates = [date(2001, names.index(month) + 1, int(day)) for month, day in found]
        if len(dates) == 2:
            return str((dates[1] - dates[0]).days)
        later = dates[0] + timedelta(int(re.search(r"(\d+) days", question)[1]))
        return f"{later:%B} {later.day}"
    factor = {
        ("hours", "minutes"): 60, ("minutes", "seconds"): 60, ("days", "hours"): 24, ("weeks", "days"): 7,
        ("feet", "inches"): 12, ("metres", "centimetres"): 100, ("kilograms", "grams"): 1000,
        ("kilometres", "metres"): 1000,
    }  # fmt: skip
    units = set(re.findall("|".join(sorted({u for pair in factor for u in pair}, key=len, reverse=True)), question))
    (pair,) = [pair for pair in factor if set(pair) == units]
    spans = re.findall(r"(\d+) (\w+)", question)
    total = sum(int(n) * (factor[pair] if unit == pair[0] else 1) for n, unit in spans)
    if len(numbers) == 2:
        return str(total)
    return f"{total // factor[pair]} {pair[0]} {total % factor[pair]} {pair[1]}"


@pytest.mark.parametrize("level", [1, 2, 3])
def test_made_up_tasks_are_right_and_the_test_has_other_sentences(s1, level):
    train, test = (s1.tasks.make(300, split, (level,), seed=3) for split in ("train", "test"))
    assert {each["domain"] for each in train} == {each["domain"] for each in test} == DOMAINS
    for each in train + test:
        assert each["answer"] == solve(each["question"], each["domain"]), each
        said = re.findall(r"So it is (.+)\.", each["trace"])
        assert said[-1] == each["answer"]
        # Sums in a right look are right: every "a + b = c", "a - b = c" and "a x b = c".
        right = each["trace"].split(s1.tasks.AGAIN)[-1]
        for left, result in re.findall(r"(\d+(?: [-+x] \d+)+) = (\d+)", right):
            assert eval(left.replace("x", "*")) == int(result), each
        assert (len(said) == 1) == (each["look"] == "once") and (s1.tasks.AGAIN in each["trace"]) == (len(said) == 2)
        if each["look"] == "corrected":
            assert said[0] != said[1]
        if each["look"] == "confirmed":
            assert said[0] == said[1]
    assert len({each["question"] for each in train}) == 300
    assert s1.data.overlap(train, test) == 0
    assert train == s1.tasks.make(300, "train", (level,), seed=3) != s1.tasks.make(300, "train", (level,), seed=4)


def test_shares_of_second_looks_are_as_told(s1):
    looks = Counter(each["look"] for each in s1.tasks.make(1500, "train"))
    assert looks["corrected"] / 1500 == pytest.approx(s1.tasks.CORRECTED, abs=0.05)
    assert looks["confirmed"] / 1500 == pytest.approx(s1.tasks.CONFIRMED, abs=0.03)
    assert not set(s1.domains.WORDS) & set(s1.domains.TEST_WORDS)


def test_the_sample_is_what_its_commands_make(s1, script, tmp_path):
    script(TASK / "tasks.py", "--generate", 240, "--levels", 1, "--out", tmp_path)
    shown = script(TASK / "funnel.py", "--select", 144, "--pool", tmp_path / "pool.jsonl", "--out", tmp_path).stdout
    for name in ("pool.jsonl", "test.jsonl", "train.jsonl"):
        assert (tmp_path / name).read_bytes() == (TASK / "sample" / name).read_bytes(), name
    assert re.search(r"collected +234 +59,029  3 duplicate, 3 test question", shown)
    assert re.search(r"complete +228 +54,116  3 empty, 3 missing", shown)
    assert re.search(r"well formed +213 +51,581  3 control token, 3 drawing, 3 heading, 3 image, 3 numbering", shown)
    assert re.search(r"diverse +144 +1,000  69 not drawn", shown) and "no --grades" in shown
    stages = json.loads((tmp_path / "funnel.json").read_text())["stages"]
    assert [stage["kept"] for stage in stages] == [240, 234, 228, 213, 213, 144]
    assert (tmp_path / "funnel.png").read_bytes()[:4] == b"\x89PNG"
    for again in (["tasks.py", "--generate", 240], ["funnel.py", "--select", 144, "--pool", tmp_path / "pool.jsonl"]):
        done = script(TASK / again[0], *again[1:], "--out", tmp_path, check=False)
        assert done.returncode and "exists and is kept" in done.stderr


# -- the funnel


def test_the_longest_trace_comes_first_as_often_as_it_should(s1):
    """P = 1 / (1 + 1/2 + ... + 2^-(n-1)) = 1 / (2 - 2^(1-n)): 0.516 for five."""
    rows = [row(n, trace="word " * (n + 1)) for n in range(5)]
    first = Counter(s1.funnel.diverse(rows, 1, seed)[0]["answer"] for seed in range(4000))
    assert first["4"] / 4000 == pytest.approx(1 / (2 - 2**-4), abs=0.025)
    assert first["3"] / 4000 == pytest.approx(0.5 / (2 - 2**-4), abs=0.025)


def test_domains_are_drawn_alike_however_large(s1):
    rows = [row(n, "large") for n in range(900)] + [row(1000 + n, "small") for n in range(100)]
    chosen = s1.funnel.diverse(rows, 100, 0)
    assert Counter(each["domain"] for each in chosen)["small"] == pytest.approx(50, abs=17)
    assert s1.funnel.entropy(chosen) > 0.9 > s1.funnel.entropy(rows)


def test_choosing_is_deterministic_unique_and_ends(s1):
    rows = [row(n, f"domain {n % 3}") for n in range(50)]
    one, other = s1.funnel.diverse(rows, 20, 7), s1.funnel.diverse(rows[::-1], 20, 7)
    assert one == other != s1.funnel.diverse(rows, 20, 8)  # the order of the file does not matter
    assert len({each["question"] for each in one}) == 20
    everything = s1.funnel.diverse(rows, 99, 7)
    assert len(everything) == 50 and {each["answer"] for each in everything} == {str(n) for n in range(50)}
    assert s1.funnel.diverse([], 5, 0) == []


def test_every_stage_takes_out_what_is_its_own(s1):
    shared = "the quick brown fox jumps over the lazy"
    raw = [
        *[row(n, f"domain {n % 2}", "word " * n) for n in range(1, 21)],
        row(3),  # asked already
        row(50, question=f"Why, {shared.upper()} dog?"),
        {"question": "No trace?", "answer": "1"},
        row(51, trace=7),
        "text",
        row(52, answer=" "),
        row(53, question="See ![figure](x.png)"),
        row(54, question="[asy] draw(); [/asy]"),
        row(55, question="p12. Why?"),
        row(56, question="**Exercise 3** Why?"),
        row(57, trace="a <|im_start|>answer b"),
        row(58, question="**Why** and keep p in it?"),
    ]
    against = [f"Today {shared} cat", "Question 4?"]  # a short one must match as a whole
    grades = {s1.data.key(f"Question {n}?"): {"a": n == 1, "b": n == 2} for n in range(1, 20)}
    grades[s1.data.key("**Why** and keep p in it?")] = {"a": False}
    chosen, stages = s1.funnel.funnel(raw, 5, against, grades, ("best",), 0)
    dropped = {stage["stage"]: stage["dropped"] for stage in stages}
    assert dropped["collected"] == {"duplicate": 1, "test question": 2}
    assert dropped["complete"] == {"missing": 1, "wrong type": 2, "empty": 1}
    assert dropped["well formed"] == {"image": 1, "drawing": 1, "numbering": 1, "heading": 1, "control token": 1}
    assert dropped["difficult"] == {"solved by a grader": 2, "not graded": 1}
    assert [stage["kept"] for stage in stages] == [len(raw), 29, 25, 20, 17, 5]
    for before, after in zip(stages, stages[1:], strict=False):
        assert before["kept"] == after["kept"] + sum(after["dropped"].values())
    banned = set().union(*map(s1.data.grams, against))
    assert not any(s1.data.grams(each["question"]) & banned for each in chosen)
    assert [stage.get("paper") for stage in stages[1:]] == [59_029, 54_116, 51_581, 24_496, 1_000]


def test_trusted_rows_come_first_and_only_once(s1):
    raw = [row(n, source="AIME" if n < 3 else "web") for n in range(12)]
    chosen, stages = s1.funnel.funnel(raw, 6, trusted=("AIME",))
    assert [each["source"] for each in chosen].count("AIME") == 3 == stages[-1]["first"]
    assert len({each["question"] for each in chosen}) == 6
    assert len(s1.funnel.funnel(raw, 2, trusted=("AIME",))[0]) == 2


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([], [], "it is empty"),
        ([{"question": "a", "answer": "b"}], [], "no column 'trace'. Columns found: answer, question."),
        ([row(1)], ["--select", 0], "expected 1 or more, got 0"),
        ([row(1, trace="<|im_end|>")], [], "no row is left after the stage 'well formed'"),
        ([row(1)], ["--against", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ([row(1)], ["--grades", "POOL"], "line 1: no grade (id, grader, right)"),
    ],
)
def test_a_pool_that_cannot_be_chosen_from(script, tmp_path, rows, arguments, said):
    pool = write(tmp_path / "pool.jsonl", rows)
    arguments = [pool if each == "POOL" else each for each in arguments]
    done = script(TASK / "funnel.py", "--select", 3, "--pool", pool, "--out", tmp_path / "out", *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_more_asked_for_than_there_is_and_one_domain_only(script, tmp_path):
    pool = write(tmp_path / "pool.jsonl", [row(n) for n in range(4)])
    shown = script(TASK / "funnel.py", "--select", 9, "--pool", pool, "--out", tmp_path / "out").stdout
    assert "9 rows were asked for and 4 were left: all are taken" in shown
    assert "there is one domain only" in shown and "no test questions were given" in shown
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 4


# -- reading and comparing


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("Answer: 132", "132", True),
        ("1,600.00", "1600", True),
        ("$１，６００", "1600", True),
        ("**Final Answer: 5.**", "5", True),
        ("not 5 but 6", "5", False),
        ("5 - or 6? 5", "5", True),
        ("−5", "-5", True),
        ("5", "-5", False),
        (r"so \boxed{72}.", "72", True),
        ("It is Friday.", "Friday", True),
        ("Friday or Monday", "Friday", False),
        ("115:25", "15:25", False),
        ("It ends at 15:25.", "15:25", True),
        ("3 hours and 25 minutes", "3 hours 25 minutes", True),
        ("13 hours 25 minutes", "3 hours 25 minutes", False),
        ("April 24", "April 2", False),
        ("", "5", False),
        ("", "", False),
    ],
)  # fmt: skip
def test_what_counts_as_right(s1, text, gold, right):
    assert grading.is_right(text, gold) == right


# Kind -> (text, gold, right?). Each kind is one that public graders got wrong.
HOSTILE = {
    "boxes": [
        (r"So we get \boxed{\frac{3}{11}}.", r"\frac{3}{11}", 1),
        (r"\boxed{\dfrac{3}{11}}", "3/11", 1),
        (r"\boxed{\frac{3}{11}}", r"\frac{11}{3}", 0),
        (r"\frac{5}{9}", r"Hence \boxed{\frac{5}{9}}", 1),
        (r"\boxed{\text{B}}", "B", 1),
        (r"\boxed{\textbf{(B)}}", "B", 1),
        (r"\boxed{\text{B}}", "C", 0),
        (r"\boxed{9{,}400}", "9400", 1),
        (r"First \boxed{3}, no: \boxed{4}", "4", 1),
        (r"First \boxed{3}, no: \boxed{4}", "3", 0),
        (r"\boxed{4", "4", 1),  # cut off: the last number
        (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1),
        (r"The final answer is \(\boxed{\sqrt{8}}\)", r"2\sqrt{2}", 1),
        (r"\boxed{x = 12}", "12", 1),
        (r"\boxed{12\text{ cm}^2}", "12", 1),
        (r"\boxed{30^\circ}", "30", 1),
        (r"\boxed{}", "7", 0),
    ],
    "numbers by value": [
        ("6.5", "6.50", 1),
        ("$6.50", "6.5", 1),
        ("The price is $6.50.", "6.5", 1),
        ("-$6.50", "-6.5", 1),
        (".25", "0.25", 1),
        ("0.25", ".25", 1),
        ("25", ".25", 0),
        ("And then...5", "5", 1),
        ("+9", "9", 1),
        ("-9", "9", 0),
        ("9", "-9", 0),
        ("007", "7", 1),
        ("1 1/2", "1.5", 1),
        ("1½", "3/2", 1),
        ("0.125", "1/8", 1),
        ("0.333", "1/3", 0),
        ("1,5", "5", 0),  # a decimal comma, or two numbers
        ("250%", "2.5", 1),
        ("250%", "250", 1),
        ("1,234,567.8", "1234567.8", 1),
        ("答案是48。", "48", 1),
        ("version 1.2.3", "3", 0),
        ("H2O", "2", 0),
    ],
    "units and exponents": [
        ("The field has 52 m^2", "52", 1),
        ("The field has 52 m^2", "2", 0),
        ("52 m²", "52", 1),
        ("52 cm³ of it", "52", 1),
        ("9.8 m s^-2", "9.8", 1),
        ("52 km/h", "52", 1),
        ("52平方米", "52", 1),
        ("5²", "52", 0),
        ("5²", "25", 1),
        ("2^3", "3", 0),
        ("2^3", "8", 1),
        ("3 × 10^8", "300000000", 1),
        ("3 × 10^8", "8", 0),
    ],
    "denominators and operands": [
        ("The share is 7/9", "9", 0),
        ("The share is 14/18", "7/9", 1),
        ("7 + 9", "9", 0),
        ("7 + 9", "16", 0),  # the sum is what was asked for
        ("7 + 9 = 16", "16", 1),
        ("7 -9", "-9", 0),
        ("3 x 4", "4", 0),
        ("11:25", "25", 0),
        ("Week 3:210 pages", "210", 1),
        ("2024-05-12", "12", 0),
        ("1/0", "0", 0),
    ],
    "remarks": [
        ("52 (see step 3)", "52", 1),
        ("52 (see step 3)", "3", 0),
        ("52 (4 x 13)", "52", 1),
        ("52, as in step 3", "52", 1),
        ("52（见第3步）", "52", 1),
        ("(52 apples)", "52", 1),
        ("Step 3: 52", "52", 1),
        ("a speed of (2/3*6=4 miles per hour).", "4", 1),
    ],
    "negations": [
        ("not 52", "52", 0),
        ("It isn't 52", "52", 0),
        ("It is not equal to 52", "52", 0),
        ("不是52", "52", 0),
        ("52, not 53", "52", 1),
        ("52, not 53", "53", 0),
        ("not 51 but 52", "52", 1),
        ("52 rather than 50", "52", 1),
        ("It is not Friday", "Friday", 0),
        ("not Monday, but Friday", "Friday", 1),
    ],
    "formulas": [
        ("(x+1)^2", "x^2 + 2x + 1", 1),
        ("x^2+1", "x^2 + 2x + 1", 0),
        ("(2, 3)", "(2,3)", 1),
        ("(3, 2)", "(2,3)", 0),
        ("(0, 1]", "[0,1)", 0),
        (r"-\frac{2}{7}", r"\frac{2}{7}", 0),
        ("0.5", r"\frac{1}{2}", 1),
        (r"Thus $\frac{15}{2}$ metres", "7.5", 1),
        (r"\frac{7}{9} (see step 2)", "7/9", 1),
        (r"It is not $\frac{1}{2}$", "1/2", 0),
        (r"x \neq 5", "5", 0),
        ("The roots are real, and there are many words before the set, " * 9 + r"which is $\{1, 2\}$.", r"\{2, 1\}", 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_are_graded_by_what_they_say(s1, kind):
    wrong = [(text, gold) for text, gold, right in HOSTILE[kind] if grading.is_right(text, gold) != bool(right)]
    assert not wrong
    # An answer is the same vote as gold just where it is right.
    gold_votes = [
        (text, gold) for text, gold, right in HOSTILE[kind]
        if (grading.short_answer(text, gold) == grading.normalise(gold)) != bool(right)
    ]  # fmt: skip
    assert not gold_votes


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9", r"\boxed{9^{9^{9^9}}}", r"$9^{9^{9}}$", r"\boxed{10^{9}!}", r"\boxed{\sum_{n=1}^{10^{9}} \frac{1}{n^2}}",
        r"\boxed{\frac{1}{0}}", "7" * 10_000, "(" * 290, r"\boxed{" * 5_000, r"\frac{" * 2_000, "not 5 " * 3_000, "\ud800", "\0",
    ],
)  # fmt: skip
def test_no_answer_takes_longer_than_a_second_or_ends_in_a_traceback(s1, text):
    grading.is_right(r"\frac{1}{2}", "0.5")  # the process is there
    began = time.monotonic()
    assert not grading.is_right(text, "7") and not grading.is_right(text, "x^2")
    assert time.monotonic() - began < 10  # a second twice, and a process that starts; without a limit hours
    assert grading.is_right(r"\boxed{\frac{14}{4}}", "3.5")  # it goes on


def test_formulas_are_graded_in_threads_too(s1):
    """math-verify's own time limit is a signal, which raises outside the main thread."""
    pairs = [(rf"\boxed{{\frac{{{n}}}{{3}}}}", f"{2 * n}/6") for n in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(grading.is_right, *zip(*pairs, strict=True)))


def test_equal_answers_are_one_vote(s1):
    """Right or wrong: or else the right ones would win by being counted together."""
    texts = ("So 7.50.", "$7.5", "15/2", "eight", "8.0", "The sum is 8.", r"\boxed{\frac{1}{2}}", "2")
    short = [grading.short_answer(text, "8") for text in texts]
    assert short == ["15/2"] * 3 + ["", "8", "8", r"\frac{1}{2}", "2"]
    assert grading.short_answer("It is Monday.", "Friday") == "it is monday"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("1. Let x be it.\nThe final answer is \\(\\boxed{\\frac{3}{4}}\\)", r"\frac{3}{4}"),
        (r"\boxed{A} is wrong, so \boxed{B}.", "B"),
        ("The law says so.\n\nAnswer: C", "C"),
        ("### Explanation: a pun\n### Answer: SOFTLY", "SOFTLY"),
        ("It follows.\n**Answer:** 7", "7"),
        ("Twice the half.\n#### 42", "42"),
        ("The sides are 3 and 4, so the answer is 12.", "12"),
        ("所以\n答案：12", "12"),
        ("204", "204"),
        ("ABD", "ABD"),
        ("Suppose not.\nThen there were two.\nThat cannot be.", ""),  # a proof
        ("It grows with the square of the radius because the area does, and with its height, as one sees from it.", ""),
        ("", ""),
    ],
)
def test_the_answer_in_a_solution(s1, solution, answer):
    assert grading.answer_of(solution) == answer


def test_the_process_says_where_math_verify_is_missing(tmp_path):
    """Golds that cannot be compared must not be taken for wrong answers."""
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    code = r"from common import grading; grading.is_right(r'\frac{1}{2}', '0.5')"
    how = dict(cwd=TASK, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert (
        done.returncode == 1
        and done.stderr.startswith("math-verify cannot be imported")
        and done.stderr.count("\n") == 1
    )


def tried(solution, attempt=r"I add.\n\n**Answer:** \boxed{31}", **more):
    """A row as s1K-1.1 has them."""
    texts = dict(question=f"What is {solution}?", deepseek_thinking_trajectory="Think. " * 9, deepseek_attempt=attempt)
    other = dict(gemini_thinking_trajectory="Or so.", gemini_attempt="32", deepseek_grade="No", metadata="{}")
    return texts | other | dict(solution=solution, cot_type="math", source_type="made/up") | more


def test_gsm8k_and_s1k_are_taken_as_they_are(s1):
    gsm = {"question": "?", "answer": "5 + <<5+6=11>>6 = 11\n#### 1,100"}
    old = {"question": "?", "thinking_trajectories": ["a", "b"], "attempt": "7", "solution": "8", "source_type": "x"}
    only = tried("Thus 7.\n#### 7", None)  # the other teacher's thinking goes with the other teacher's answer
    rows = [s1.data.check(each) for each in (gsm, old, tried("27"), only)]
    assert [each["trace"][:6] for each in rows] == ["5 + 6 ", "a", "Think.", "Or so."]
    assert [each["answer"][-4:] for each in rows] == [",100", "7", "{31}", "32"]
    assert [s1.data.gold_of(each) for each in rows] == ["1,100", "8", "27", "7"]
    assert [each["domain"] for each in rows] == ["all", "all", "math", "math"] and rows[1]["source"] == "x"
    # A test set has no teacher; a teacher's answer alone is no gold.
    assert (
        s1.data.gold_of(s1.data.check({"question": "?", "solution": r"So \boxed{3}."}, ("question", "answer"))) == "3"
    )
    assert s1.data.gold_of(s1.data.check(tried(None))) == ""


def test_the_teachers_mistakes_are_trained_on_counted_and_never_gold(s1, tokenizer, tmp_path, capsys):
    rows = [tried("27"), tried(r"Nine less.\n\nSo \boxed{31}."), tried("Suppose not.\nThen two.\n"), tried("31.0")]
    file = write(tmp_path / "train.jsonl", rows)
    train, test = s1.data.load_splits(s1.data.DataArgs(str(file), 0.25))
    said = capsys.readouterr().out
    known = [each for each in train + test if s1.data.gold_of(each)]
    assert sorted(map(s1.data.gold_of, known)) == ["27", "31", "31.0"] and "\\boxed{31}" in train[0]["answer"]
    assert "1 of 3 teacher's answers are not the solution's" in said  # the held-out ones are teacher's, too
    assert "solution '27', teacher '31': 'What is 27?'" in said
    assert s1.prompt.completion(train[0]).endswith(r"\boxed{31}")  # the target stays the attempt
    assert len(s1.data.with_gold(train + test)) == 3
    assert "1 of 4 solutions have no answer that could be compared: not graded" in capsys.readouterr().out


def test_funnel_graders_and_training_compare_with_the_solution(s1, tokenizer, tmp_path, monkeypatch):
    chosen, _ = s1.funnel.funnel([tried("27"), tried("28")], 2)
    again = [s1.data.check(json.loads(json.dumps(each))) for each in chosen]  # what is read from its train.jsonl
    assert sorted(map(s1.data.gold_of, again)) == ["27", "28"] and all("31" in each["answer"] for each in again)
    s1.grade.grade(lambda rows: ["31", "It is 28."], sorted(again, key=s1.data.gold_of), "weak", tmp_path / "grades", 9)
    assert [json.loads(line)["right"] for line in (tmp_path / "grades").read_text().splitlines()] == [False, True]
    made = [dict(think=[1], answer=tokenizer(text).input_ids, reason="stop") for text in ("31", "28")]
    monkeypatch.setitem(s1.train.measure.__globals__, "force", lambda *_: made)
    monkeypatch.setitem(s1.train.measure.__globals__, "hf_engine", lambda *_, **__: None)
    monkeypatch.setattr("common.answers.heldout_loss", lambda *_: {"loss": 1.0})
    args = SimpleNamespace(backend="hf", batch_size=1, max_think=9, max_answer=9)
    assert s1.train.measure(None, tokenizer, None, sorted(again, key=s1.data.gold_of), args)["accuracy"] == 0.5


def test_bad_rows_are_dropped_counted_and_named(s1, tmp_path, capsys):
    file = write(tmp_path / "rows.jsonl", [row(1), row(2, trace="x<|im_end|>"), row(3, answer=None), "text", row(4)])
    read = lambda source: s1.data.load_splits(s1.data.DataArgs(str(source)))  # noqa: E731
    train, test = read(file)
    said = capsys.readouterr().out
    assert len(train) == len(test) == 1
    assert "5 rows, 2 kept; dropped: 1 control token, 1 missing, 1 wrong type" in said
    assert "line 2, column trace: <|im_end|>; row dropped: control token" in said
    (tmp_path / "broken.jsonl").write_text('{"a" 1}')
    with pytest.raises(SystemExit, match="line 1: column 6: .*; row dropped: not JSON"):
        read(tmp_path / "broken.jsonl")
    with pytest.raises(SystemExit, match="one to train on and one to hold out"):
        read(write(tmp_path / "one.jsonl", [row(1), row(1)]))


# -- what is trained on


def encoded(s1, tokenizer, *rows):
    (ids,), (labels,) = s1.prompt.encode(tokenizer, rows)
    return {"input_ids": ids, "labels": labels}


def test_the_question_is_read_and_the_rest_is_learned(s1, tokenizer):
    made = encoded(s1, tokenizer, row(7, trace="Three\nlines\nhere."))
    learned = [token for token in made["labels"] if token != -100]
    assert tokenizer.decode(learned) == (
        "<|im_start|>think\nThree\nlines\nhere.\n<|im_start|>answer\nAnswer: 7<|im_end|>"
    )
    read = made["input_ids"][: len(made["input_ids"]) - len(learned)]
    assert tokenizer.decode(read).endswith("user\nQuestion 7?<|im_end|>\n<|im_start|>assistant\n")
    assert made["labels"][: len(read)] == [-100] * len(read) and tokenizer.pad_token_id not in made["input_ids"]
    # What inference puts in are the ids that training saw.
    mark = s1.prompt.marks(tokenizer)
    assert learned[: len(mark.open)] == mark.open
    start = learned.index(mark.answer[0], 1)
    assert learned[start : start + len(mark.answer)] == mark.answer and learned[start] in mark.stop


def test_a_wait_in_a_trace_is_the_wait_that_is_put_in(s1, tokenizer):
    made = encoded(s1, tokenizer, row(7, trace="So it is 8.\nWait, let me check."))
    (wait,) = s1.prompt.marks(tokenizer).wait
    assert made["labels"].count(wait) == 1 and tokenizer.decode([wait]) == "Wait"


def test_rows_that_do_not_fit_are_dropped_and_never_cut(s1, tokenizer, capsys):
    rows = [row(1), row(2, trace="word " * 300)]
    to_ids = partial(s1.prompt.encode, tokenizer)
    made = tokenize(rows, to_ids, 100, "training rows")
    assert len(made) == 1 and made[0]["labels"][-1] == tokenizer.eos_token_id
    assert "training rows: 1 of 2 rows are over --max_length 100: dropped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no row fits"):
        tokenize(rows, to_ids, 9, "training rows")


# -- budget forcing, with a scripted generator

END, START, WAIT, NEWLINE = 2, 1, 90, 80


@pytest.fixture
def mark():
    return SimpleNamespace(
        open=[START, 70, NEWLINE], answer=[START, 71, NEWLINE], forced=[START, 71, NEWLINE, 72], newline=[NEWLINE],
        wait=[WAIT, 91], stop={START, END}, breaks=lambda token: token == NEWLINE,
    )  # fmt: skip


class Script:
    """A gen() that plays one list of texts a prompt, a text a call, and keeps what it was asked."""

    def __init__(self, *texts):
        self.texts = [list(each) for each in texts]
        self.calls, self.order = [], {}

    def __call__(self, prompts, max_new, min_new, stop):
        self.calls.append((prompts, max_new, min_new, stop))
        made = []
        for prompt, most in zip(prompts, max_new, strict=True):
            text = self.texts[prompt[0] - 1000].pop(0)
            made.append(text[:most])
        return made


def forced(s1, mark, texts, max_think, num_ignore, max_answer=5):
    gen = Script(*texts)
    prompts = [[1000 + n, 5, 5] for n in range(len(texts))]
    return s1.budget.force(gen, prompts, mark, s1.budget.Budget(max_think, num_ignore, max_answer)), gen


def test_no_wait_at_zero(s1, mark):
    (made,), gen = forced(s1, mark, [[[10, 11, NEWLINE, START], [50, END]]], 100, 0)
    assert made == {"think": [10, 11, NEWLINE], "waits": [], "reason": "stop", "answer": [50], "ended": True}
    (think, answer) = gen.calls
    assert think == ([[1000, 5, 5, *mark.open]], [100], 0, {START, END})
    assert answer == ([[1000, 5, 5, *mark.open, 10, 11, NEWLINE, *mark.answer]], [5], 0, {START, END})


@pytest.mark.parametrize("ends", [[START], [END]])
def test_exactly_as_many_waits_as_asked_for(s1, mark, ends):
    texts = [[10, *ends], [11, *ends], [12, *ends], [50, END]]
    (made,), gen = forced(s1, mark, [texts], 100, 2)
    assert made["think"] == [10, WAIT, 91, 11, WAIT, 91, 12] and made["waits"] == [1, 4] and made["reason"] == "stop"
    assert [call[2] for call in gen.calls] == [0, 1, 1, 0]  # a token at least after a Wait
    assert [call[1][0] for call in gen.calls] == [100, 97, 94, 5]  # what was put in counts
    assert gen.calls[-1][0][0][-4:] == [NEWLINE, *mark.answer]  # a line break where thinking ended without one


def test_the_cap(s1, mark):
    (made,), gen = forced(s1, mark, [[list(range(10, 30)), [50]]], 8, 0)
    assert made["think"] == list(range(10, 18)) and made["reason"] == "length" and not made["ended"]
    assert gen.calls[-1][0][0][-5:] == [NEWLINE, *mark.forced]
    # An end as the very last token is an end by itself.
    (made,), _ = forced(s1, mark, [[[10, 11, START], [50, END]]], 3, 0)
    assert made["think"] == [10, 11] and made["reason"] == "stop"


def test_the_cap_after_a_wait_and_no_room_for_one(s1, mark):
    (made,), _ = forced(s1, mark, [[[10, START], [11] * 20, [50, END]]], 6, 3)
    assert made["think"] == [10, WAIT, 91, 11, 11, 11] and made["waits"] == [1] and made["reason"] == "length"
    (made,), gen = forced(s1, mark, [[[10, 10, 10, 10, START], [50, END]]], 6, 3)
    assert made["think"] == [10] * 4 and made["waits"] == [] and made["reason"] == "length" and len(gen.calls) == 2
    assert gen.calls[-1][0][0][-5:] == [NEWLINE, *mark.forced]


def test_an_immediate_end_and_no_budget_at_all(s1, mark):
    (made,), gen = forced(s1, mark, [[[START], [50, END]]], 9, 0)
    assert made["think"] == [] and made["reason"] == "stop" and gen.calls[-1][0][0][-6:] == mark.open + mark.answer
    (made,), _ = forced(s1, mark, [[[START], [12, START], [50, END]]], 9, 1)
    assert made["think"] == [WAIT, 91, 12] and made["waits"] == [0]
    (made,), gen = forced(s1, mark, [[[50, END]]], 0, 2)
    assert made["think"] == [] and made["reason"] == "length" and len(gen.calls) == 1
    assert gen.calls[0][0][0] == [1000, 5, 5, *mark.open, *mark.forced]


def test_a_batch_is_what_its_rows_are_alone(s1, mark):
    texts = [[[10, START], [11, START], [50, END]], [[12] * 30, [51]], [[13, 13, 13, 13, START], [14, END], [52, END]]]
    together, gen = forced(s1, mark, texts, 9, 1)
    alone = []
    for each in texts:
        alone += forced(s1, mark, [each], 9, 1)[0]
    assert together == alone
    assert [len(call[0]) for call in gen.calls] == [3, 2, 3]  # a row that is cut off is out of the next round
    assert gen.calls[1][1] == [6, 3]  # each row has a budget of its own
    for each in together:
        assert not {START, END} & set(each["think"]) and len(each["think"]) <= 9


def test_budgets_that_make_no_sense_stop(s1, mark, tokenizer):
    with pytest.raises(SystemExit, match="no number may be negative"):
        forced(s1, mark, [[]], -1, 0)
    with pytest.raises(SystemExit, match="the longest prompt .100 tokens., 50 of thinking and 9 of answer"):
        s1.budget.check_context([[1] * 100], s1.budget.Budget(50, 0, 9), mark, 165)
    s1.budget.check_context([[1] * 100], s1.budget.Budget(50, 0, 9), mark, 167)
    assert set(s1.budget.EFFORTS) == {"low", "medium", "high"}
    broken = SimpleNamespace(
        convert_tokens_to_ids=lambda text: None, backend_tokenizer=tokenizer.backend_tokenizer, unk_token_id=0
    )
    with pytest.raises(SystemExit, match="no token <|im_start|>"):
        s1.prompt.marks(broken)


def test_text_of_a_result_marks_what_was_forced(s1, tokenizer):
    ids = s1.prompt.marks(tokenizer)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    first = encode("One.\n")
    made = dict(
        think=first + ids.wait + encode(", two."), waits=[len(first)], reason="length", answer=encode(" 5"), ended=True
    )
    text = s1.budget.text_of(made, tokenizer)
    assert text.startswith("One.\n[Wait 1] Wait, two.\n[cut off: the budget is spent]\n=> 5   (")


# -- budget forcing, with a model


def plain(model, prompt, new, ends):
    import torch

    ids = torch.tensor([prompt])
    how = dict(max_new_tokens=new, do_sample=False, eos_token_id=sorted(ends), pad_token_id=0)
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)[0, len(prompt) :].tolist()


def asked(*questions):
    return [{"question": question} for question in questions]


def how(way):
    """Arguments of hf_engine: generate(), or a GPU's decoder, whose steps are taken one by one here."""
    from common.speed import graph

    return dict(decode=graph.decode, by_steps=True) if way == "decode" else {}


def stopping(s1, model, tokenizer, prompts, place=6):
    """Marks whose stop tokens are ones that the random model does write: its own tokens at `place`."""
    mark = s1.prompt.marks(tokenizer)
    free = [plain(model, prompt + mark.open, place + 1, mark.stop)[place] for prompt in prompts]
    mark.stop = mark.stop | set(free)
    return mark


@pytest.mark.parametrize("way", ["generate", "decode"])
def test_without_forcing_it_is_plain_greedy(s1, tiny, tokenizer, way):
    prompts = s1.prompt.prompt_ids(
        tokenizer, asked("How many r in raspberry?", "Hi", "What is 1 + 1, and why is it so?")
    )
    mark = stopping(s1, tiny, tokenizer, prompts)
    gen = s1.budget.hf_engine(tiny, tokenizer, "hf", batch_size=2, **how(way))
    made = s1.budget.force(gen, prompts, mark, s1.budget.Budget(40, 0, 4))
    for prompt, each in zip(prompts, made, strict=True):
        greedy = plain(tiny, prompt + mark.open, 40, mark.stop)
        assert each["reason"] == "stop" and greedy[-1] in mark.stop and each["think"] == greedy[:-1]
        close = (mark.newline if each["think"] and not mark.breaks(each["think"][-1]) else []) + mark.answer
        answer = plain(tiny, prompt + mark.open + each["think"] + close, 4, mark.stop)
        assert each["answer"] == [token for token in answer if token not in mark.stop]


@pytest.mark.parametrize("way", ["generate", "decode"])
def test_waits_and_caps_with_a_model(s1, tiny, tokenizer, way):
    prompts = s1.prompt.prompt_ids(tokenizer, asked("How many r in raspberry?", "What is 1 + 1, and why is it so?"))
    mark = stopping(s1, tiny, tokenizer, prompts)
    # Right after a Wait the model would stop at once, were it allowed to.
    for prompt in prompts:
        begun = plain(tiny, prompt + mark.open, 40, mark.stop)[:-1] + mark.wait
        mark.stop.add(plain(tiny, prompt + mark.open + begun, 1, mark.stop)[0])
    gen = s1.budget.hf_engine(tiny, tokenizer, "hf", **how(way))
    for each in s1.budget.force(gen, prompts, mark, s1.budget.Budget(60, 2, 4)):
        assert not mark.stop & (set(each["think"]) - set(mark.wait)) and len(each["think"]) <= 60
        assert each["reason"] == "length" or len(each["waits"]) == 2
        assert each["waits"], "the model never ended by itself"
        for place, after in zip(each["waits"], [*each["waits"][1:], len(each["think"])], strict=True):
            assert each["think"][place : place + len(mark.wait)] == mark.wait
            assert after - place > len(mark.wait)  # something was thought after each Wait
    for each in s1.budget.force(gen, prompts, mark, s1.budget.Budget(3, 2, 4)):
        assert len(each["think"]) == 3 and each["reason"] == "length"


def test_both_ways_of_the_engine_write_the_same(s1, tiny, tokenizer):
    prompts = s1.prompt.prompt_ids(tokenizer, asked("How many r in raspberry?", "Hi", "What is 1 + 1?"))
    mark = stopping(s1, tiny, tokenizer, prompts[:1])
    engines = [s1.budget.hf_engine(tiny, tokenizer, "hf", **how(way)) for way in ("generate", "decode")]
    for min_new in (0, 1):
        one, other = (gen(prompts, [20, 1, 7], min_new, mark.stop) for gen in engines)
        assert one == other and len(one[1]) == 1 and len(one[2]) <= 7


def test_in_pieces_the_texts_are_the_same_and_those_that_ended_leave(s1, tiny, tokenizer, monkeypatch):
    prompts = s1.prompt.prompt_ids(tokenizer, asked("How many r in raspberry?", "Hi", "What is 1 + 1?"))
    mark = stopping(s1, tiny, tokenizer, prompts[:1])
    whole = s1.budget.hf_engine(tiny, tokenizer, "hf")(prompts, [20, 1, 11], 1, mark.stop)
    sizes, decode = [], how("decode")["decode"]
    monkeypatch.setattr(s1.budget, "PIECE", 4)
    seen = lambda model, p, *rest: sizes.append(len(p)) or decode(model, p, *rest)  # noqa: E731
    gen = s1.budget.hf_engine(tiny, tokenizer, "hf", decode=seen, by_steps=True)
    pieces = gen(prompts, [20, 1, 11], 1, mark.stop)
    assert pieces == whole and max(map(len, whole)) > 4
    assert sizes[0] == 3 and len(sizes) > 1 and max(sizes[1:]) < 3


def test_on_a_gpu_the_recorded_steps_are_taken(s1, tokenizer):
    import torch

    calls = []
    model = torch.nn.Module()
    model.device, model.config = torch.device("cuda"), SimpleNamespace(_attn_implementation="sdpa")

    def decode(model, prompts, room, temperature, ends, pad, graph):
        calls.append((room, temperature, ends, graph))
        return [[7, END, 9] for _ in prompts]

    gen = s1.budget.hf_engine(model, tokenizer, "hf", temperature=0.5, decode=decode)
    assert gen([[5, 6], [5]], [10, 70], 0, {END}) == [[7, END], [7, END]]
    assert calls == [(128, 0.5, [END], True)]  # room is rounded up, so that a recording serves more than one round


def test_sampling_differs_and_is_seeded(s1, tiny, tokenizer):
    import torch

    prompts = s1.prompt.prompt_ids(tokenizer, asked("Hi")) * 2
    mark = s1.prompt.marks(tokenizer)
    for way in ("generate", "decode"):
        gen = s1.budget.hf_engine(tiny, tokenizer, "hf", temperature=1.0, **how(way))
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append(gen(prompts, [8, 8], 1, mark.stop))
        assert runs[0] == runs[1] != runs[2] and runs[0][0] != runs[0][1]


# -- grading


def test_grades_go_on_where_they_stopped(s1, tmp_path, capsys):
    rows, out, asked = [row(n) for n in range(5)], tmp_path / "grades.jsonl", []

    def ask(rows):
        questions = [each["question"] for each in rows]
        asked.extend(questions)
        return [f"It is {re.search(r'[0-9]+', question)[0]}" if "2" not in question else "?" for question in questions]

    s1.grade.grade(ask, rows[:3], "weak", out, 2)
    with open(out, "a") as file:
        file.write('{"id": "half a li')
    s1.grade.grade(ask, rows, "weak", out, 2)
    assert asked == [each["question"] for each in rows]  # nothing twice
    s1.grade.grade(ask, rows[:1], "other", out, 2)
    grades = s1.funnel.read_grades([out])
    assert [grades[s1.data.key(each["question"])]["weak"] for each in rows] == [True, True, False, True, True]
    assert grades[s1.data.key(rows[0]["question"])] == {"weak": True, "other": True}
    assert "weak: 2 asked, 2 of them right (100.0%); 3 were in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_grades_a_pool(script, tiny_model, tmp_path):
    pool = write(tmp_path / "pool.jsonl", [row(n) for n in range(3)])
    out = tmp_path / "grades.jsonl"
    arguments = ["--pool", pool, "--out", out, "--graders", tiny_model, "--max_new_tokens", 3]
    assert "3 asked" in script(TASK / "grade.py", *arguments).stdout
    assert "0 asked; 3 were in" in script(TASK / "grade.py", *arguments).stdout
    assert len(out.read_text().splitlines()) == 3
    done = script(TASK / "grade.py", *arguments, "--engine", "vllm", check=False)
    assert "vLLM is not installed" in done.stderr


# -- the paper's numbers


def test_control_scaling_and_performance_by_hand(s1):
    assert s1.scaling.control([(5, 0, 8), (8, 0, 8), (9, 0, 8), (3, 4, 8)]) == 50
    points = [(100, 10.0), (200, 30.0), (400, 30.0)]
    # slopes per token: 0.2, 20/300, 0; their mean is 0.08888..
    assert s1.scaling.scaling(points) == pytest.approx(100 * (0.2 + 20 / 300) / 3)
    assert s1.scaling.scaling(points[::-1]) == s1.scaling.scaling(points)
    assert s1.scaling.scaling([(100, 10.0), (100, 20.0)]) is None and s1.scaling.scaling(points[:1]) is None
    assert s1.scaling.scaling([(100, 30.0), (200, 10.0)]) == -20 and s1.scaling.performance(points) == 30


def test_votes(s1):
    assert s1.evaluate.vote(["5", "6", "6"]) == "6"
    assert s1.evaluate.vote(["5", "6"]) == "5"  # the earliest of equals
    assert s1.evaluate.vote(["", "", "7"]) == "7" and s1.evaluate.vote([""]) == ""


def test_runs_with_a_scripted_model(s1, tokenizer):
    """Thinking at all makes it right, a Wait makes it wrong, and samples differ: each number can be foreseen."""
    rows = [{"question": "Four?", "answer": "4", "domain": "a"}, {"question": "Five?", "answer": "5", "domain": "b"}]
    mark = s1.prompt.marks(tokenizer)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    end = tokenizer.eos_token_id
    drawn = iter(["4", "4", "9", "8", "8", "5"])

    def engine(temperature):
        def gen(prompts, max_new, min_new, stop):
            made = []
            for prompt, most in zip(prompts, max_new, strict=True):
                text = tokenizer.decode(prompt)
                gold = "4" if "Four?" in text else "5"
                if not text.endswith(("answer\n", "Answer:")):
                    made.append((encode("one two three four")[:4] + [end])[:most])
                elif temperature:
                    made.append(encode(f"Answer: {next(drawn)}") + [end])
                elif text.endswith("Final Answer:"):
                    made.append(encode(" 7") + [end])
                else:
                    made.append(encode("Answer: 6" if "Wait" in text and gold == "5" else f"Answer: {gold}") + [end])
            return made

        return gen

    args = SimpleNamespace(
        caps=["0", "2", "99"], ignores=["0", "1"], votes=["1", "3"], max_think=20, max_answer=5, temperature=1.0
    )
    runs = s1.evaluate.measure(engine, tokenizer, mark, rows, args)
    told = {run["name"]: (sum(run["tokens"]) / 2, sum(run["right"]) / 2) for run in runs}
    assert told == {
        "at most 0": (0, 0), "at most 2": (2, 0), "0 Waits": (4, 1), "1 Waits": (9, 0.5),
        "1 votes": (4, 0.5), "3 votes": (12, 0.5),
    }  # fmt: skip
    found = s1.scaling.summary(runs, rows, 0)
    assert found["control"] == 100 and found["control without forcing"] == 0
    assert found["performance, cap"] == found["performance, wait"] == 100
    assert found["scaling, cap"] == pytest.approx(100 * (0 + 100 / 4 + 100 / 2) / 3)
    assert found["scaling, wait"] == pytest.approx(100 * -50 / 5)
    assert found["gain over no forcing"]["1 Waits"][0] == -0.5 and found["by domain"]["1 Waits"] == {"a": 1, "b": 0}
    text = s1.scaling.as_text(runs, found)
    assert re.search(r"1 Waits +9\.0 +50\.0% .* -50\.0% +\[", text)
    assert "control: 100.0% (the same caps without forcing: 0.0%)" in text


# -- runs

SMALL = (
    "--max_steps",
    2,
    "--eval_rows",
    4,
    "--eval_answers",
    2,
    "--curve_rows",
    2,
    "--max_think",
    12,
    "--cap",
    4,
    "--max_answer",
    3,
)


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, tiny_model, tmp_path):
    """cp -r s1_scaling elsewhere; train.py --demo, infer.py, evaluate.py, --merge: nothing else of the repo."""
    task = copied("s1_scaling")
    shown = script(task / "train.py", "--demo", *SMALL, "--model", tiny_model).stdout
    (folder,) = (tmp_path / "outputs" / "s1_scaling").iterdir()
    names = {file.name for file in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "loss.png", "metrics.jsonl", "run.json"} <= names
    assert "plan: 213 rows" in shown and "0 of 60 held-out questions share 8 words" in shown
    for said in (
        "num_ignore 0, at most 12",
        "num_ignore 1, at most 12",
        "num_ignore 2, at most 12",
        "at most 4 thinking",
    ):
        assert said in shown
    assert "[cut off: the budget is spent]" in shown and "held-out accuracy: 0.000 before" in shown
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["before"]["thinking_tokens"] <= 12
    assert (
        set(record["after"]) >= {"loss", "accuracy", "thinking_tokens", "cut_off"} and len(record["shown"]) == 5
    )  # the base first

    said = script(task / "infer.py", "--max_think", 6, "--num_ignore", 1, "--max_answer", 3).stdout
    assert f"adapter: {folder}" in said and "How many r in raspberry?" in said
    assert (
        "thinking:" in said
        and "[the budget is spent: thinking was ended]\nFinal Answer:" in said
        and re.search(r"\n\d thinking tokens \(\d x 'Wait' put in", said)
    )
    small = ["--limit", 3, "--caps", 0, 4, "--ignores", 0, 1, "--votes", 2, "--max_think", 8, "--max_answer", 3]
    said = script(task / "evaluate.py", *small).stdout
    assert "control: 100.0%" in said and "majority vote" in said
    results = folder / "evaluation_results"
    made = json.loads((results / "results.json").read_text())
    assert [run["name"] for run in made["runs"]] == ["at most 0", "at most 4", "0 Waits", "1 Waits", "2 votes"]
    assert made["facts"]["questions"] == 3 and all(len(run["right"]) == 3 for run in made["runs"])
    assert len((results / "predictions.jsonl").read_text("utf-8").splitlines()) == 3
    assert (results / "scaling.png").read_bytes()[:4] == b"\x89PNG"

    said = script(task / "evaluate.py", "--merge", results, results, "--out", tmp_path / "merged").stdout
    assert (
        "lowest to highest of 2" in said
        and re.search(r"1 Waits .* [-+]\d+\.\d% +\[[-+]", said)
        and (tmp_path / "merged" / "scaling.png").is_file()
    )
    made["facts"]["questions_sha256"] = "other"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text(json.dumps(made))
    done = script(task / "evaluate.py", "--merge", results, tmp_path / "other", check=False)
    assert "has other questions than" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("file", ["infer.py", "evaluate.py"])
def test_what_is_no_run_of_this_recipe_is_refused_by_name(script, tmp_path, file):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "demo/SmolLM2-135M-Instruct"}')
    (tmp_path / "run.json").write_text('{"task": "medical", "arguments": {}}')
    done = script(TASK / file, "--adapter", tmp_path, check=False)
    assert done.returncode and "it is a run of medical" in done.stderr and "Traceback" not in done.stderr
    if file == "evaluate.py":  # what was held out is in the run's record only
        (tmp_path / "run.json").unlink()
        assert "has no run.json" in script(TASK / file, "--adapter", tmp_path, check=False).stderr


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        ("train.py", ["--demo", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        ("train.py", ["--demo", "--max_length", "9"], "training rows: no row fits in --max_length 9"),
        ("train.py", ["--demo", "--max_think", "4000"], "and the model has 512. Lower --max_think"),
        ("infer.py", ["--adapter", "nowhere"], "nowhere holds no adapter"),
        ("infer.py", ["--effort", "huge"], "invalid choice: 'huge'"),
        ("infer.py", ["--engine", "vllm"], "vLLM is not installed here"),
        ("evaluate.py", ["--caps", "8", "x"], "--caps 8 x: takes whole numbers from 0 on"),
        ("evaluate.py", ["--merge", "nowhere"], "nowhere: no results.json that can be read"),
        ("grade.py", [], "--pool FILE and --out FILE are needed"),
        ("tasks.py", ["--generate", "5", "--out", "x"], "takes at least 18"),
        ("tasks.py", ["--generate", "50", "--levels", "4", "--out", "x"], "invalid choice: 4"),
        ("funnel.py", ["--select", "5", "--out", "x"], "the following arguments are required: --pool"),
        ("data.py", ["--check", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_bad_input_is_said_in_a_line(script, file, arguments, said):
    done = script(TASK / file, *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
