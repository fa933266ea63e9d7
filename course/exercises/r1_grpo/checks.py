"""What is right in the exercises of r1_grpo, and the usual mistakes."""

import math
import random
import re
import statistics

import evaluate
import rewards
from check import Function, Number

# -- 1: advantages


def advantages_by(rewards, G, spread=statistics.stdev, small=1e-4, over_all=False):
    made = []
    for start in range(0, len(rewards), G):
        group = rewards if over_all else rewards[start : start + G]
        mean, std = statistics.fmean(group), spread(group)
        made += [(each - mean) / (std + small) for each in rewards[start : start + G]]
    return made


def right_1(rewards, G):
    """README: A_i = (r_i - mean) / (std + 1e-4), torch's std, that of a sample; TRL's GRPOTrainer computes it so."""
    return advantages_by(rewards, G)


def population(rewards, G):
    return advantages_by(rewards, G, statistics.pstdev)


def whole_batch(rewards, G):
    return advantages_by(rewards, G, over_all=True)


def no_small_number(rewards, G):
    return advantages_by(rewards, G, small=0)


def mean_only(rewards, G):
    return advantages_by(rewards, G, lambda group: 1, small=0)


def wrong_axis(rewards, G):
    count = len(rewards) // G
    order = [g * G + i for i in range(G) for g in range(count)]
    made = advantages_by([rewards[place] for place in order], count) if count > 1 else right_1(rewards, G)
    return [made[order.index(place)] for place in range(len(rewards))]


def task_1():
    cases = [
        ([4.0, 1.5, 1.5, 0.5], 4),
        ([2, 0, 0, 0, 2, 2, 2, 0], 4),
        ([1, 1, 1, 4, 0, 2], 3),
        ([0.5] * 6 + [2.0] * 6, 6),
    ]
    return Function(
        "advantages",
        right_1,
        cases,
        [
            (population, "Close. torch.std divides by G - 1, not by G: the standard deviation of a sample.",
             "很接近。torch.std 除以 G - 1 而不是 G：样本标准差。"),
            (whole_batch, "You compare with the whole batch. A hard question's best answer is then punished for the question: compare "
             "within its group of G.", "你和整个批次比较。难题的最好回答会因为题难而受罚：请在 G 个一组之内比较。"),
            (no_small_number, "A group whose rewards are all equal has std 0. Which small number stands in the formula, and what is "
             "the advantage then?", "一组奖励全相等时标准差为 0。公式里有哪个小数？这时优势是多少？"),
            (mean_only, "The mean is taken away; what divides the difference?", "已经减去均值；差还要除以什么？"),
            (wrong_axis, "You average over the first answers of all questions, then over the second ones: the axes are swapped. A group is "
             "G neighbours in the list.", "你对各题的第一个回答求平均，再对第二个……：轴反了。一组是列表里相邻的 G 个。"),
        ],
        ("Take the first case by hand: mean, standard deviation, then one advantage.", "手算第一个用例：均值、标准差，再算一个优势。"),
        "TRL's GRPOTrainer, with --num_generations G; the formula stands in r1_grpo/README.md",
        1e-5,
    )  # fmt: skip


# -- 2: the KL


def kl_by(p, q, mask, each):
    return sum(m * each(b - a) for a, b, m in zip(p, q, mask, strict=True)) / sum(mask)


def right_2(p, q, mask):
    """README: KL_t = q/p - log(q/p) - 1, the estimate k3 of Schulman (2020) that TRL computes."""
    return kl_by(p, q, mask, lambda d: math.exp(d) - d - 1)


def ratio_swapped(p, q, mask):
    return right_2(q, p, mask)


def k1(p, q, mask):
    return kl_by(p, q, mask, lambda d: -d)


def over_padding(p, q, mask):
    return right_2(p, q, [1] * len(mask))


def masked_but_all_counted(p, q, mask):
    return right_2(p, q, mask) * sum(mask) / len(mask)


def not_logs(p, q, mask):
    return kl_by(p, q, mask, lambda d: 0) + sum(
        m * (b / a - math.log(abs(b / a)) - 1) for a, b, m in zip(p, q, mask, strict=True)
    ) / sum(mask)


def task_2():
    cases = [([-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5], [1, 1, 1]), ([-1.0, -2.0, -0.5], [-1.2, -1.0, -0.5], [1, 1, 1]),
             ([-0.3, -4.0, -1.0, -9.0], [-0.9, -2.5, -1.1, -1.0], [1, 1, 1, 0]), ([-3.0, -7.0], [-1.0, -2.0], [1, 0])]  # fmt: skip
    return Function(
        "kl",
        right_2,
        cases,
        [
            (ratio_swapped, "Your ratio is upside down. The samples come from p, the model; the formula has q / p.",
             "你的比值颠倒了。样本来自模型 p；公式里是 q / p。"),
            (k1, "That is log p - log q, the estimate k1: right in the mean, but negative for single tokens. k3 is never below 0.",
             "这是 log p - log q，即 k1 估计：平均是对的，单个 token 却可能为负。k3 永远不小于 0。"),
            (over_padding, "Padding has numbers, too, and you count them. Only where mask is 1.", "填充处也有数值，你把它们算进去了。只算 mask 为 1 的地方。"),
            (masked_but_all_counted, "The sum is right. Divide by the number of real tokens, not by the length of the list.",
             "总和是对的。请除以真实 token 的个数，而不是列表长度。"),
            (not_logs, "p and q are given as logs. A ratio of probabilities is exp of a difference of logs.",
             "给出的 p、q 是对数。概率之比是对数之差的 exp。"),
        ],
        ("With p = q every token gives 0, and nothing is ever negative. Is that so for yours?", "p = q 时每个 token 都是 0，而且永不为负。你的是这样吗？"),
        "TRL's GRPOTrainer, with --beta; the formula stands in r1_grpo/README.md",
    )  # fmt: skip


# -- 3: the answer block


def first_block(text):
    found = rewards.ANSWER.findall(text)
    return found[0].strip() if found else None


def by_split(text):
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


def no_line_breaks(text):
    found = re.findall(r"<answer>(.*?)</answer>", text)
    return found[-1].strip() if found else None


def over_two_blocks(text):
    found = re.findall(r"<answer>(.*)</answer>", text, re.S)
    return found[-1].strip() if found else None


def unfinished_too(text):
    return by_split(text) if "<answer>" in text else None


def not_stripped(text):
    found = re.findall(r"<answer>(.*?)</answer>", text, re.S)
    return found[-1] if found else None


def task_3():
    form = "<reasoning>\n20 + 22 = 42\n</reasoning>\n<answer>\n{}\n</answer>"
    texts = [form.format(42), "The answer is 42.", form.format(41) + "\n" + form.format(42), "<answer>7</answer>",
             "<reasoning>\n20 + 22\n</reasoning>\n<answer>\n4", "<answer>1</answer> no: <answer> 2 </answer>"]  # fmt: skip
    return Function(
        "answer_of",
        rewards.extract,
        [(text,) for text in texts],
        [
            (first_block, "The model corrected itself. Which of two answers counts?", "模型改正了自己。两个答案里算哪一个？"),
            (by_split, "Without tags split() hands back the whole text, and text that was cut off passes for an answer. "
             "Ask first whether the block is there, and closed.", "没有标签时 split() 返回全文，被截断的文本也会被当成答案。先问：块在不在，闭合了没有。"),
            (no_line_breaks, "In a regular expression the dot stops at line breaks, unless re.S says otherwise. Good answers have them.",
             "正则里的点不匹配换行，除非写 re.S。好的回答里有换行。"),
            (over_two_blocks, "`.*` takes all it can get: from the first <answer> to the last </answer>. Make it stop early.",
             "`.*` 能吃多少吃多少：从第一个 <answer> 到最后一个 </answer>。让它早点停。"),
            (unfinished_too, "A block that is not closed was cut off at max_completion_length: no answer, so None.",
             "没有闭合的块是被 max_completion_length 截断的：没有答案，应为 None。"),
            (not_stripped, "Right block. The form puts the number on a line of its own: strip what stands around it.",
             "块是对的。格式把数字单独放一行：去掉两边的空白。"),
        ],
        ("Print what yours finds in the text above. Is it the last block that is closed?", "打印你在上面文本里找到的内容。是最后一个闭合的块吗？"),
        "r1_grpo/rewards.py, extract",
    )  # fmt: skip


# -- 4: pass@k


def with_replacement(right, samples, k):
    return 1 - (1 - right / samples) ** k


def share(right, samples, k):
    return right / samples


def times_k(right, samples, k):
    return min(1.0, k * right / samples)


def all_right(right, samples, k):
    return math.comb(right, k) / math.comb(samples, k)


def all_wrong(right, samples, k):
    return math.comb(samples - right, k) / math.comb(samples, k)


def task_4():
    return Function(
        "pass_at_k",
        evaluate.pass_at_k,
        [(1, 8, 1), (2, 8, 4), (0, 8, 8), (5, 8, 4), (8, 8, 2), (3, 100, 10)],
        [
            (with_replacement, "You draw with replacement, as if one sample could be drawn twice. That is too low: k different samples "
             "are drawn.", "你是有放回地抽，好像同一个样本可以抽两次。这样偏低：抽的是 k 个不同的样本。"),
            (share, "That is pass@1, whatever k is.", "不论 k 是多少，这都是 pass@1。"),
            (times_k, "Chances do not add up: two right samples in one draw count once.", "概率不能这样相加：一次抽到两个对的也只算一次。"),
            (all_right, "That is the chance that all k are right. One is enough.", "这是 k 个全对的概率。对一个就够。"),
            (all_wrong, "That is the chance that all k are wrong.", "这是 k 个全错的概率。"),
        ],
        ("How many ways are there to draw k of n samples? In how many of them is every one wrong?", "从 n 个样本里取 k 个有多少种取法？其中全错的有多少种？"),
        "r1_grpo/evaluate.py, pass_at_k",
    )  # fmt: skip


# -- 5: dead groups


def dead_share(chance=0.1, G=6, groups=20_000):
    form = "<reasoning>\n1 + 1 = {0}\n</reasoning>\n<answer>\n{0}\n</answer>"
    earned = {right: sum(rewards.score(form.format(2 if right else 3), "2").values()) for right in (True, False)}
    draw = random.Random(0)
    samples = [[earned[draw.random() < chance] for _ in range(G)] for _ in range(groups)]
    return 100 * sum(len(set(group)) == 1 for group in samples) / groups


def task_5():
    return Number(
        dead_share,
        4,
        [
            ((85, 100), "One sample is wrong with chance 0.9. A group is dead only if all six are.", "一个样本错的概率是 0.9。六个全错，这一组才没有梯度。"),
            ((0, 15), "The small rewards for the form do not help: every sample earns them, so they are equal.",
             "格式的小奖励帮不上忙：每个样本都拿到，彼此相等。"),
        ],
        ("What is the chance that six samples in a row are wrong? And that all six are right?", "连续六个样本全错的概率是多少？六个全对呢？"),
        "r1_grpo's metric frac_reward_zero_std, and the alarm dead_groups in alarms.py",
    )  # fmt: skip
