"""What is right in the exercises of deploy, and the usual mistakes."""

import math

import numpy as np

from check import Function, Number

RANDOM = np.random.default_rng(0)

# -- 1: merging


def right_1(W, A, B, alpha, r):
    """PEFT's own merge of a LoRA into a linear layer."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    W, A, B = (torch.tensor(np.asarray(each, np.float32)) for each in (W, A, B))
    model = torch.nn.Sequential(torch.nn.Linear(W.shape[1], W.shape[0], bias=False))
    model = inject_adapter_in_model(LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"]), model)
    layer = model[0]
    layer.base_layer.weight.data = W
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = A, B
    layer.merge()
    return layer.base_layer.weight.detach().numpy()


def alpha_alone(W, A, B, alpha, r):
    return W + alpha * B @ A


def no_scale(W, A, B, alpha, r):
    return W + B @ A


def root_of_r(W, A, B, alpha, r):
    return W + alpha / math.sqrt(r) * B @ A


def transposed(W, A, B, alpha, r):
    return W + alpha / r * (B @ A).T


def update_alone(W, A, B, alpha, r):
    return alpha / r * B @ A


def twice(W, A, B, alpha, r):
    return W + 2 * alpha / r * B @ A


def task_1():
    def case(n, m, alpha, r):
        return tuple(RANDOM.normal(size=shape).round(2) for shape in ((n, m), (r, m), (n, r))) + (alpha, r)

    return Function(
        "merge",
        right_1,
        [case(3, 3, 4, 2), case(4, 4, 16, 3), case(5, 5, 8, 1)],
        [
            (alpha_alone, "The scale is alpha / r: with r = 16 yours counts the update 16 times.", "系数是 alpha / r：r = 16 时你把更新放大了 16 倍。"),
            (no_scale, "The scale is missing: right only where alpha = r.", "缺了系数：只有 alpha = r 时才对。"),
            (root_of_r, "alpha / sqrt(r) is rsLoRA's scale. This one is plain LoRA.", "alpha / sqrt(r) 是 rsLoRA 的系数。这里是普通 LoRA。"),
            (transposed, "W is stored as (out, in), and so is B A: do not transpose.", "W 按（输出, 输入）存放，B A 也是：不要转置。"),
            (update_alone, "That is the update alone: add it to W.", "这只是更新：要加到 W 上。"),
            (twice, "The update counts twice: the gate would show a slope of 2.", "更新算了两次：检验会显示斜率 2。"),
        ],
        ("Shapes: A (r, in), B (out, r), W (out, in). And which scale?", "形状：A (r, in)，B (out, r)，W (out, in)。系数呢？"),
        "deploy/merged.py, which lets PEFT do it",
        1e-4,
    )  # fmt: skip


# -- 2: the gate's slope


def right_2(base, adapter, file):
    import gate

    base, adapter, file = (np.asarray(each, float) for each in (base, adapter, file))
    return gate.slope(adapter - base, file - base, np.zeros(len(base), int), 0)[0]


def moves(base, adapter, file):
    base, adapter, file = (np.asarray(each, float) for each in (base, adapter, file))
    return adapter - base, file - base


def mean_of_ratios(base, adapter, file):
    x, y = moves(base, adapter, file)
    return float((y / np.where(x == 0, 1e-9, x)).mean())


def other_axis(base, adapter, file):
    x, y = moves(base, adapter, file)
    return float((x * y).sum() / (y * y).sum())


def correlation(base, adapter, file):
    x, y = moves(base, adapter, file)
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def with_intercept(base, adapter, file):
    return float(np.polyfit(*moves(base, adapter, file), 1)[0])


def ratio_of_sums(base, adapter, file):
    x, y = moves(base, adapter, file)
    return float(y.sum() / x.sum())


def of_the_logs(base, adapter, file):
    adapter, file = np.asarray(adapter, float), np.asarray(file, float)
    return float((adapter * file).sum() / (adapter * adapter).sum())


def task_2():
    base = [-2.0, -1.0, -0.5, -3.0]
    adapter = [-1.0, -1.2, -0.4, -1.5]
    twice = [2 * a - b for a, b in zip(adapter, base, strict=True)]
    noisy = [-1.1, -1.1, -0.5, -1.2]
    cases = [
        (base, adapter, adapter),
        (base, adapter, twice),
        (base, adapter, noisy),
        ([-1.0, -2.0], [-0.5, -2.4], [-0.9, -2.3]),
    ]
    return Function(
        "slope",
        right_2,
        cases,
        [
            (mean_of_ratios, "A token that training hardly moved has a wild ratio, and rules your mean. Weigh tokens by how far they moved.",
             "训练几乎没有移动的 token 比值乱跳，却左右了你的均值。按移动的大小给 token 加权。"),
            (other_axis, "You divide by the file's squares. Then an update counted twice looks like half of one.",
             "你除以了文件的平方和。这样更新算两次会看成半次。"),
            (correlation, "A correlation is 1 for an update counted twice, too. The size counts.", "相关系数在更新算两次时也是 1。大小也要看。"),
            (with_intercept, "The line goes through 0: what training did not move, the file must not move.", "直线过原点：训练没有移动的，文件也不应移动。"),
            (ratio_of_sums, "Moves up and down cancel in your sums.", "上移和下移在你的和里互相抵消。"),
            (of_the_logs, "Both are counted from the base: subtract its log-probabilities first.", "两者都从基座算起：先减去基座的对数概率。"),
        ],
        ("Least squares for y = slope x, through 0.", "对 y = slope x 做过原点的最小二乘。"),
        "deploy/gate.py, slope",
    )  # fmt: skip


# -- 3: how sure are the votes?


def right_3(count, n):
    import votes

    return votes.wilson(count, n)


def plus_minus(count, n, z=1.959964, clipped=False, corrected=0):
    if not n:
        return 0.0, 1.0
    share = count / n
    half = z * math.sqrt(share * (1 - share) / n)
    return (max(0.0, share - half), min(1.0, share + half)) if clipped else (share - half, share + half)


def wald_clipped(count, n):
    return plus_minus(count, n, clipped=True)


def centred_on_the_share(count, n):
    if not n:
        return 0.0, 1.0
    low, high = right_3(count, n)
    return count / n - (high - low) / 2, count / n + (high - low) / 2


def ninety_percent(count, n):
    if not n:
        return 0.0, 1.0
    z, share = 1.644854, count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def z_not_squared(count, n):
    if not n:
        return 0.0, 1.0
    z, share = 1.959964, count / n
    middle = (share + z / (2 * n)) / (1 + z / n)
    return middle - z * math.sqrt(share * (1 - share) / n + z / (4 * n * n)) / (1 + z / n), middle + z * math.sqrt(
        share * (1 - share) / n + z / (4 * n * n)
    ) / (1 + z / n)


def fails_without_votes(count, n):
    return right_3(count, n) if n else 1 / n


def task_3():
    return Function(
        "wilson",
        right_3,
        [(5, 10), (10, 10), (0, 3), (81, 263), (0, 0), (1, 1), (1, 10)],
        [
            (fails_without_votes, "No votes yet: nothing is known, so the interval is (0, 1).", "还没有投票：什么都不知道，区间是 (0, 1)。"),
            (plus_minus, "p ± 1.96 s says that ten of ten is 100% with certainty, and leaves 0 to 1. Wilson's formula stands above.",
             "p ± 1.96 s 会说十票全中就是百分之百，毫无疑问，还会超出 0 到 1。威尔逊公式在上面。"),
            (wald_clipped, "Clipped to 0 to 1, but ten of ten still gives the interval from 1 to 1: as if ten votes proved it.",
             "截到了 0 到 1，可是十票全中的区间还是从 1 到 1：好像十票就证明了。"),
            (centred_on_the_share, "The width is right. Its middle is not the share itself: it is pulled towards one half.",
             "宽度是对的。中点不是比例本身：它向二分之一靠拢。"),
            (ninety_percent, "1.645 makes an interval of 90%. For 95% it is 1.96.", "1.645 是 90% 区间。95% 是 1.96。"),
            (z_not_squared, "z stands squared beside n.", "n 旁边的 z 是平方。"),
        ],
        ("Try 10 of 10: the upper end is 1, the lower one 0.72.", "试试 10 票全中：上端是 1，下端是 0.72。"),
        "deploy/votes.py, wilson",
        2e-5,
    )  # fmt: skip


# -- 4: preference pairs


def right_4(votes):
    import votes as folder

    return folder.export(votes)[0]


def paired(votes, ties=False, repeats=False, empty=False, equal=False, winner=None, swapped=False, strip=True):
    made, seen = [], set()
    for vote in votes:
        if vote["id"] in seen and not repeats:
            continue
        seen.add(vote["id"])
        best = winner or vote["winner"]
        if vote["winner"] == "tie":
            if not ties:
                continue
            best = next(iter(vote["answers"]))
        chosen = vote["answers"][best]
        rejected = next(text for name, text in vote["answers"].items() if name != best)
        chosen, rejected = (text.strip() if strip else text for text in (chosen, rejected))
        if (not empty and not (chosen.strip() and rejected.strip())) or (
            not equal and chosen.strip() == rejected.strip()
        ):
            continue
        sides = (rejected, chosen) if swapped else (chosen, rejected)
        made.append({"prompt": vote["messages"], "chosen": sides[0], "rejected": sides[1]})
    return made


def ties_too(votes):
    return paired(votes, ties=True)


def voted_twice(votes):
    return paired(votes, repeats=True)


def empty_too(votes):
    return paired(votes, empty=True)


def equal_too(votes):
    return paired(votes, equal=True)


def run_always_wins(votes):
    return paired(votes, winner="run")


def upside_down(votes):
    return paired(votes, swapped=True)


def all_kept(votes):
    return paired(votes, ties=True, repeats=True, empty=True, equal=True)


def task_4():
    def vote(name, winner, base, run):
        return {
            "id": name,
            "winner": winner,
            "answers": {"base": base, "run": run},
            "messages": [{"role": "user", "content": f"Question {name}?"}],
        }

    one = [vote("a", "run", "No.", "Yes, twice a day. "), vote("b", "base", "Rest.", "Run.")]
    cases = [(one,), ([*one, vote("c", "tie", "Tea.", "Milk.")],), ([*one, vote("a", "base", "No.", "Yes, twice a day.")],),
             ([vote("d", "run", " ", "Water."), *one],), ([*one, vote("e", "run", "Same.", "Same. ")],), ([vote("f", "tie", "1", "2"), vote("f", "run", "1", "2")],)]  # fmt: skip
    return Function(
        "pairs",
        right_4,
        cases,
        [
            (all_kept, "Every vote makes a pair for you. Some say nothing about an order: ties, equal answers, empty ones, a second vote.",
             "你把每次投票都变成了一对。有的并不说明先后：平局、相同的回答、空回答、重复投票。"),
            (ties_too, "A tie says nothing about an order. Whichever you call chosen, it is invented.", "平局不说明先后。把哪个当 chosen 都是编造。"),
            (voted_twice, "The same pair of answers was voted on twice: the first vote counts, even if it was a tie.",
             "同一对回答投了两次：只算第一次，哪怕第一次是平局。"),
            (empty_too, "An empty answer teaches only that something is better than nothing.", "空回答只能教会模型：有总比没有好。"),
            (equal_too, "Equal answers cannot be chosen and rejected at once.", "相同的回答不能既被选中又被拒绝。"),
            (run_always_wins, "You take the run's answer as chosen, whoever won.", "不管谁赢，你都把 run 的回答当作 chosen。"),
            (upside_down, "Chosen and rejected are swapped: DPO would train the opposite.", "chosen 和 rejected 反了：DPO 会往相反方向训练。"),
        ],
        ("Go through the votes one by one: what does each say about an order of its two answers?", "逐条看投票：它说明两个回答谁先谁后吗？"),
        "deploy/votes.py, export",
    )  # fmt: skip


# -- 5: rounding


def lost(spread=3e-5):
    import torch

    draw = torch.Generator().manual_seed(0)
    W = (0.02 * torch.randn(1000, 1000, generator=draw)).bfloat16()
    update = spread * torch.randn(1000, 1000, generator=draw)
    return 100 * float(((W.float() + update).bfloat16() == W).float().mean())


def task_5():
    return Number(
        lost,
        10,
        [
            ((0, 20), "bfloat16 has 8 significant bits: near 0.02 the next number is 0.00012 away, four times the update.",
             "bfloat16 只有 8 位有效位：在 0.02 附近，下一个数相距 0.00012，是更新的四倍。"),
            ((90, 100), "Not all: small weights have finer steps, and some updates are several times their typical size.",
             "不是全部：小的权重间隔更细，有些更新比典型值大几倍。"),
        ],
        ("How far apart are two bfloat16 numbers near 0.02? A sum is lost below half of that.", "0.02 附近两个 bfloat16 数相距多远？小于一半的更新就丢了。"),
        "deploy/merged.py, in_bfloat16, which rounds at random instead; deploy/RESULTS.md",
    )  # fmt: skip
