"""What is right in the exercises of s1_scaling, and the usual mistakes."""

import random
import re
from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import budget
import data
import evaluate
import scaling
from check import Function, Number

STOP, WAIT = 2, [90, 91]

# -- 1: budget forcing


def script(*chunks):
    """A model that writes chunk after chunk: the next one each time that it finds one more Wait in its text."""

    def gen(ids, left):
        chunk = chunks[min(ids.count(WAIT[0]), len(chunks) - 1)]
        return chunk[:left]

    gen.__name__ = f"gen_{sum(map(len, chunks))}"
    return gen


def right_1(gen, prompt, wait, stop, most, ignore):
    mark = SimpleNamespace(open=[], answer=[], forced=[], newline=[], wait=wait, stop={stop}, breaks=lambda token: True)

    def engine(prompts, left, min_new, stops):
        return [gen(ids, count) for ids, count in zip(prompts, left, strict=True)]

    made = budget.force(engine, [prompt], mark, budget.Budget(most, ignore))[0]
    return made["think"], made["reason"]


def loop(
    gen, prompt, wait, stop, most, ignore, keep_stop=False, free_waits=False, refused=None, close=True, no_room=False
):
    think, waits = [], 0
    ignore = ignore if refused is None else ignore + refused
    while True:
        left = most - len(think) + (waits * len(wait) if free_waits else 0)
        if left <= 0:
            return think, "length"
        ids = gen(prompt + think, left)
        stopped = bool(ids) and ids[-1] == stop
        think = think + (ids[:-1] if stopped and not keep_stop else ids)
        if not stopped:
            return think, "length"
        if waits == ignore:
            return think, "stop" if close else "length"
        if not no_room and len(think) + len(wait) >= most + (waits * len(wait) if free_waits else 0):
            return think, "length"
        think, waits = think + wait, waits + 1


def stop_token_kept(*given):
    return loop(*given, keep_stop=True)


def waits_are_free(*given):
    return loop(*given, free_waits=True)


def one_wait_more(*given):
    return loop(*given, refused=1)


def never_refused(gen, prompt, wait, stop, most, ignore):
    return loop(gen, prompt, wait, stop, most, 0)


def wait_without_room(*given):
    return loop(*given, no_room=True)


def prompt_alone(gen, prompt, wait, stop, most, ignore):
    return loop(lambda ids, left: gen(prompt, left), prompt, wait, stop, most, ignore)


def task_1():
    two = script([10, 11, STOP], [20, 21, 22, STOP], [30, STOP])
    long = script(list(range(10, 40)))
    cases = [(two, [5, 6], WAIT, STOP, 50, 0), (two, [5, 6], WAIT, STOP, 50, 1), (two, [5], WAIT, STOP, 50, 2), (long, [5], WAIT, STOP, 8, 0),
             (two, [5], WAIT, STOP, 6, 1), (two, [5], WAIT, STOP, 4, 1), (two, [5], WAIT, STOP, 7, 1)]  # fmt: skip
    return Function(
        "think",
        right_1,
        cases,
        [
            (stop_token_kept, "The end that was refused is still in the text: the model goes on behind its own end. Take it out first.",
             "被拒绝的结束 token 还留在文本里：模型会接在自己的结尾之后往下写。先去掉它。"),
            (waits_are_free, "The Waits are thinking tokens as well: they count in the budget.", "Wait 也是思考 token：要算进预算。"),
            (one_wait_more, "One end too many is refused.", "多拒绝了一次结束。"),
            (never_refused, "`ignore` is not used: so many ends are replaced by `wait`.", "没有用到 `ignore`：要把这么多次结束换成 `wait`。"),
            (wait_without_room, "A Wait at the very end of the budget leaves no token to think with: then thinking is over (\"length\").",
             "预算末尾再放一个 Wait，就没有 token 可以思考了：这时思考结束（\"length\"）。"),
            (prompt_alone, "gen() has to see the prompt, all the thinking so far, and the Waits.", "gen() 要看到提示词、到目前为止的全部思考和 Wait。"),
        ],
        ("Play it by hand: what does the model write first, what stands there after the first refusal, how much budget is left?",
         "手工走一遍：模型先写什么，第一次拒绝之后文本是什么，预算还剩多少？"),
        "s1_scaling/budget.py, force",
    )  # fmt: skip


# -- 2: contamination


def right_2(train, test):
    return data.overlap([{"question": each} for each in train], [{"question": each} for each in test])


def grams(text, n=8):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def equal_texts(train, test):
    return sum(each in train for each in test)


def of_letters(train, test):
    def parts(text):
        return {text.lower()[i : i + 8] for i in range(max(1, len(text) - 7))}

    known = set().union(*map(parts, train))
    return sum(bool(parts(each) & known) for each in test)


def in_any_order(train, test):
    known = [set(re.findall(r"\w+", each.lower())) for each in train]
    return sum(any(len(set(re.findall(r"\w+", each.lower())) & words) >= 8 for words in known) for each in test)


def signs_count(train, test):
    def parts(text):
        words = text.lower().split()
        return {tuple(words[i : i + 8]) for i in range(max(1, len(words) - 7))}

    known = set().union(*map(parts, train))
    return sum(bool(parts(each) & known) for each in test)


def all_grams(train, test):
    known = set().union(*map(grams, train))
    return sum(len(grams(each) & known) for each in test)


def short_ones_lost(train, test):
    def parts(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    known = set().union(*map(parts, train))
    return sum(bool(parts(each) & known) for each in test)


def task_2():
    long = "A train leaves at 9 and travels 60 miles per hour. When does it arrive in the next town?"
    near = "Tom asks: a train leaves at 9, and travels 60 miles per hour; how far is it at noon?"
    plain = "Yesterday a train leaves at 9 and travels 60 miles"
    other = "A train of 12 wagons leaves the town every hour. How many wagons leave by noon?"
    shuffled = "When 9 travels at a train miles it leaves and hour per 60 arrive."
    cases = [([long], [long]), ([long], [near, other]), ([long], [plain]), ([long], [other, shuffled]), (["What is 2 + 2?"], ["what is 2+2", "What is 2 + 3?"]),
             ([long, "How many r in raspberry?"], ["How many r in raspberry?", near, long])]  # fmt: skip
    return Function(
        "overlap",
        right_2,
        cases,
        [
            (equal_texts, "Only equal texts count for you. A test question with a new first sentence is known all the same.",
             "你只算完全相同的文本。换了第一句话的测试题，模型其实见过。"),
            (of_letters, "Eight letters in a row are shared by nearly all texts. Count words.", "连续八个字母几乎所有文本都有。要数的是词。"),
            (in_any_order, "The same words in another order are another question: eight in a row.", "同样的词换了顺序就是另一道题：要连续八个。"),
            (signs_count, "`9,` and `9` are one word for a reader: leave signs out.", "`9,` 和 `9` 是同一个词：标点不算。"),
            (all_grams, "Count test questions, each once, not the runs of words that they share.", "数的是测试题，每题一次，不是共有词串的个数。"),
            (short_ones_lost, "A question of fewer than eight words has no run of eight: compare all its words.",
             "不到八个词的问题没有八词串：比较它的全部词。"),
        ],
        ("Make of each question the set of its runs of eight words; do two sets meet?", "把每个问题变成八词串的集合；两个集合有没有交集？"),
        "s1_scaling/data.py, grams and overlap",
    )  # fmt: skip


# -- 3: majority vote


def empty_ones_vote(answers):
    return Counter(answers).most_common(1)[0][0] if answers else ""


def last_of_equals(answers):
    counts = Counter(answer for answer in answers if answer)
    return max(reversed(list(counts)), key=counts.get) if counts else ""


def smallest_of_equals(answers):
    counts = Counter(answer for answer in answers if answer)
    return max(sorted(counts), key=counts.get) if counts else ""


def majority_only(answers):
    found = evaluate.vote(answers)
    return found if 2 * answers.count(found) > len(answers) else ""


def with_count(answers):
    return Counter(answer for answer in answers if answer).most_common(1)


def task_3():
    return Function(
        "vote",
        evaluate.vote,
        [(["4", "5", "4"],), (["", "", "", "7", "7", "8"],), (["9", "3", "9", "3"],), (["", ""],), (["3", "1", "2"],), (["2", "7", "", "7", "2", "5"],)],
        [
            (empty_ones_vote, "An answer that never came is no vote: with a small budget nothing would win.",
             "没写出来的回答不是一票：预算小的时候会让“空”获胜。"),
            (last_of_equals, "Of equally frequent answers the earliest one counts.", "票数相同时取最早出现的。"),
            (smallest_of_equals, "Of equally frequent answers the earliest one counts, not the smallest.", "票数相同时取最早出现的，不是最小的。"),
            (majority_only, "The most frequent one wins. It need not have more than half.", "票数最多的获胜，不必过半。"),
            (with_count, "The answer itself is asked, without its count.", "要的是答案本身，不带票数。"),
        ],
        ("Count without the empty ones. Which is most frequent? And if two are?", "去掉空的再数。哪个最多？两个一样多呢？"),
        "s1_scaling/evaluate.py, vote",
    )  # fmt: skip


# -- 4: the slope


def first_to_last(points):
    points = sorted(points)
    return 100 * (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def neighbours(points):
    points = sorted(points)
    slopes = [(g - f) / (b - a) for (a, f), (b, g) in zip(points, points[1:], strict=False) if b > a]
    return 100 * sum(slopes) / len(slopes)


def per_token(points):
    return scaling.scaling(points) / 100


def least_squares(points):
    mean_x, mean_y = (sum(each) / len(points) for each in zip(*points, strict=True))
    return 100 * sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def divides_by_zero(points):
    slopes = [(g - f) / (b - a) for (a, f), (b, g) in combinations(points, 2)]
    return 100 * sum(slopes) / len(slopes)


def task_4():
    cases = [([(100, 20.0), (200, 40.0)],), ([(50, 10.0), (100, 30.0), (400, 35.0)],), ([(400, 35.0), (50, 10.0), (100, 50.0), (200, 30.0)],),
             ([(100, 20.0), (100, 25.0), (300, 45.0)],)]  # fmt: skip
    return Function(
        "scaling",
        scaling.scaling,
        cases,
        [
            (divides_by_zero, "Two runs may use equally many tokens: such a pair has no slope. Leave it out.",
             "两次运行的 token 数可能一样：这一对没有斜率，略过。"),
            (first_to_last, "Only the two ends count for you: a curve that rises and falls looks flat. All pairs.",
             "你只看两端：先升后降的曲线看起来是平的。要所有的点对。"),
            (neighbours, "You take neighbours only. The paper's number is the mean over all pairs.", "你只取了相邻的点。论文的数是所有点对的均值。"),
            (per_token, "Per 100 tokens.", "以每 100 个 token 计。"),
            (least_squares, "That is the least-squares line. The paper takes the mean slope of all pairs.", "这是最小二乘直线。论文取所有点对斜率的均值。"),
        ],
        ("Three points have three pairs. Write down the three slopes.", "三个点有三对。写出三个斜率。"),
        "s1_scaling/scaling.py, scaling",
    )  # fmt: skip


# -- 5: does voting help below one half?


def vote_accuracy(chance=0.4, others=10, samples=16, questions=4_000):
    draw, right = random.Random(0), 0
    for _ in range(questions):
        answers = ["right" if draw.random() < chance else str(draw.randrange(others)) for _ in range(samples)]
        right += evaluate.vote(answers) == "right"
    return 100 * right / questions


def task_5():
    return Number(
        vote_accuracy,
        5,
        [
            ((0, 39), "Below one half a majority is not needed: the most frequent answer wins, and the wrong ones are scattered.",
             "低于一半也不要紧：不需要过半，票数最多的获胜，而错误答案是分散的。"),
            ((39, 60), "Is voting of no use, then? How many of the 16 votes does each single wrong answer get?",
             "那么投票就没有用吗？16 票里每一个错误答案平均得几票？"),
        ],
        ("Of 16 answers 6.4 are right in the mean; each wrong one gets 0.96.", "16 个回答里平均 6.4 个正确；每个错误答案平均得 0.96 票。"),
        "s1_scaling/evaluate.py, --votes",
    )  # fmt: skip
