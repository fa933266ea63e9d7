"""What is right in the exercises of lora_variants, and the usual mistakes."""

import math

import paired
from check import Function, Number

# -- 1: the scale


def right_1(alpha, r, rslora):
    return 2 * r, alpha * (math.sqrt(2) if rslora else 2)


def alpha_as_it_was(alpha, r, rslora):
    return 2 * r, alpha


def doubled_always(alpha, r, rslora):
    return 2 * r, 2 * alpha


def root_always(alpha, r, rslora):
    return 2 * r, alpha * math.sqrt(2)


def rank_as_it_was(alpha, r, rslora):
    return r, alpha


def task_1():
    return Function(
        "converted",
        right_1,
        [(16, 8, False), (32, 16, False), (16, 16, True), (8, 4, True)],
        [
            (alpha_as_it_was, "The rank doubles and alpha stays: then s halves, and so does the update that is served.",
             "秩加倍而 alpha 不变：s 减半，部署出来的更新也只剩一半。"),
            (doubled_always, "Right for LoRA. rsLoRA divides by the root: how much does that grow when r doubles?",
             "对 LoRA 是对的。rsLoRA 除以平方根：r 加倍时它变大多少？"),
            (root_always, "Right for rsLoRA. LoRA divides by r itself.", "对 rsLoRA 是对的。LoRA 除以 r 本身。"),
            (rank_as_it_was, "The new adapter has twice as many rows in A: its r has to say so.",
             "新的适配器里 A 的行数是原来的两倍：r 也要写成两倍。"),
        ],
        ("Write down s before and s after. They must be equal.", "写出转换前的 s 和转换后的 s，两者必须相等。"),
        "lora_variants/variants.py, plain_on_save; PEFT's save_pretrained",
    )  # fmt: skip


# -- 2: PiSSA as a plain LoRA


def right_2(a, b, a0, b0):
    return a + a0, [row + [-each for each in more] for row, more in zip(b, b0, strict=True)]


def without_minus(a, b, a0, b0):
    return a + a0, [row + more for row, more in zip(b, b0, strict=True)]


def differences(a, b, a0, b0):
    def minus(one, two):
        return [[x - y for x, y in zip(*pair, strict=True)] for pair in zip(one, two, strict=True)]

    return minus(a, a0), minus(b, b0)


def minus_twice(a, b, a0, b0):
    return a + [[-each for each in row] for row in a0], right_2(a, b, a0, b0)[1]


def start_first(a, b, a0, b0):
    return a0 + a, [[-each for each in more] + row for row, more in zip(b, b0, strict=True)]


def task_2():
    one = ([[1.0, 2.0, 0.5]], [[3.0], [4.0]], [[5.0, 6.0, -1.0]], [[7.0], [8.0]])
    two = ([[1, 0], [0, 2]], [[1, 2], [3, 4], [5, 6]], [[1, 1], [2, -1]], [[0, 1], [1, 0], [2, 2]])
    return Function(
        "plain",
        right_2,
        [one, two],
        [
            (without_minus, "That adds B0 A0 once more. Where is the minus?", "这样又加了一次 B0 A0。负号在哪里？"),
            (differences, "(B - B0)(A - A0) has mixed terms, B A0 and B0 A, that nobody trained. Put the matrices side by side instead.",
             "(B - B0)(A - A0) 会多出 B A0 和 B0 A 这样的交叉项，谁也没有训练过。应当把矩阵并排放。"),
            (minus_twice, "Two minuses make a plus: one at B0 is enough.", "两个负号等于正号：只在 B0 上放一个。"),
            (start_first, "The product is right; the task asks for the trained part first.", "乘积是对的；题目要求训练得到的部分在前。"),
        ],
        ("Multiply your B' and A' for r = 1: two products must come out, one with a minus.", "取 r = 1，把你的 B' 和 A' 乘出来：应当是两个乘积，其中一个带负号。"),
        "PEFT's subtract_mutated_init, called by lora_variants/variants.py, plain_on_save",
    )  # fmt: skip


# -- 3: DoRA


def right_3(w, update, m):
    made = []
    for row, more, length in zip(w, update, m, strict=True):
        whole = [x + y for x, y in zip(row, more, strict=True)]
        norm = math.sqrt(sum(x * x for x in whole))
        made.append([length * x / norm for x in whole])
    return made


def norm_of_w(w, update, m):
    return [[length * (x + y) / math.sqrt(sum(each * each for each in row)) for x, y in zip(row, more, strict=True)]
            for row, more, length in zip(w, update, m, strict=True)]  # fmt: skip


def by_columns(w, update, m):
    whole = [[x + y for x, y in zip(*pair, strict=True)] for pair in zip(w, update, strict=True)]
    norms = [math.sqrt(sum(x * x for x in column)) for column in zip(*whole, strict=True)]
    return [
        [length * x / norm for x, norm in zip(row, norms, strict=True)] for row, length in zip(whole, m, strict=True)
    ]


def no_root(w, update, m):
    return [[x * length / sum(y * y for y in each) for x in each] for each, length in
            zip([[x + y for x, y in zip(*pair, strict=True)] for pair in zip(w, update, strict=True)], m, strict=True)]  # fmt: skip


def directions_alone(w, update, m):
    return right_3(w, update, [1.0] * len(m))


def task_3():
    return Function(
        "dora",
        right_3,
        [([[3.0, 4.0]], [[0.0, 0.0]], [10.0]), ([[3.0, 4.0], [1.0, 0.0]], [[1.0, -1.0], [0.0, 2.0]], [5.0, 0.5]),
         ([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]], [[0.5, 0.0, -0.5], [1.0, 1.0, 1.0]], [3.0, 6.0])],  # fmt: skip
        [
            (norm_of_w, "You divide by the norm of W. The direction is that of W + s B A: divide by its norm.",
             "你除的是 W 的范数。方向是 W + s B A 的方向：应当除以它的范数。"),
            (by_columns, "Each output has a length of its own, and outputs are rows here. You took columns.",
             "每个输出有自己的长度，而输出在这里是行。你取的是列。"),
            (no_root, "That is the squared norm: a root is missing.", "这是范数的平方：少了开方。"),
            (directions_alone, "Rows of length 1: where is m?", "每行长度都成了 1：m 在哪里？"),
        ],
        ("Check the length of your first row: it must be m[0].", "检查结果第一行的长度：它必须等于 m[0]。"),
        "lora_variants/variants.py, dora; PEFT's tuners/lora/dora.py",
    )  # fmt: skip


# -- 4: Holm


def bonferroni(values):
    return {name: min(1.0, p * len(values)) for name, p in values.items()}


def may_fall(values):
    names = sorted(values, key=values.get)
    return {name: min(1.0, values[name] * (len(values) - place)) for place, name in enumerate(names)}


def from_the_largest(values):
    names = sorted(values, key=values.get, reverse=True)
    return {name: min(1.0, values[name] * (len(values) - place)) for place, name in enumerate(names)}


def above_one(values):
    made, before = {}, 0.0
    for place, name in enumerate(sorted(values, key=values.get)):
        before = max(before, values[name] * (len(values) - place))
        made[name] = before
    return made


def task_4():
    cases = [
        dict(a=0.01, b=0.04, c=0.03, d=0.005),
        dict(x=0.2, y=0.6, z=0.55),
        dict(lora=0.04),
        dict(p=0.02, q=0.021, r=0.9),
    ]
    return Function(
        "holm",
        paired.holm,
        [(case,) for case in cases],
        [
            (bonferroni, "Every p times n is Bonferroni: right, but stricter than it need be. Only the smallest takes the whole n.",
             "每个 p 都乘 n 是 Bonferroni：没有错，但过于严格。只有最小的那个乘 n。"),
            (may_fall, "A larger p came out smaller than the one before it. Keep the largest value so far.",
             "较大的 p 校正之后反而比前一个小。要记住到目前为止的最大值。"),
            (from_the_largest, "You begin at the largest p. The smallest one is multiplied by n.", "你从最大的 p 开始了。应当是最小的乘 n。"),
            (above_one, "A probability above 1?", "概率大于 1？"),
        ],
        ("Do the first case on paper: sort, multiply by 4, 3, 2, 1, then look at each and the one before it.",
         "在纸上做第一个用例：排序，依次乘 4、3、2、1，再把每个数与前一个比较。"),
        "lora_variants/paired.py, holm",
    )  # fmt: skip


# -- 5: what a random A sees


def seen():
    import torch

    torch.manual_seed(0)
    gradient, rows = torch.randn(512, 576), torch.linalg.qr(torch.randn(16, 576).T).Q
    return float(100 * (gradient @ rows).square().sum() / gradient.square().sum())


def task_5():
    return Number(
        seen,
        0.7,
        [
            ((5, 100), "16 directions of 576, and G prefers none of them.", "576 个方向里的 16 个，而 G 对哪个方向都没有偏好。"),
            ((0, 1.5), "Sixteen directions, not one.", "是十六个方向，不是一个。"),
        ],
        ("Each direction holds the same share of a G without structure. How many are there, and how many does A have?",
         "G 没有结构，每个方向占的份额相同。一共有多少个方向，A 有多少个？"),
        "lora_variants/variants.py, lorafa; real gradients have structure: compare.py --only reach",
    )  # fmt: skip
