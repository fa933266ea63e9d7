"""What is right in the exercises of math_demos, and the usual mistakes."""

import numpy as np

import als
import image_svd
from check import Function, Number

RANDOM = np.random.default_rng(0)

# -- 1: energy


def right_1(singular_values, k):
    return image_svd.energy([np.asarray(singular_values, float)])[k]


def not_squared(singular_values, k):
    return sum(singular_values[:k]) / sum(singular_values)


def one_more(singular_values, k):
    return right_1(singular_values, min(k + 1, len(singular_values)))


def one_less(singular_values, k):
    return right_1(singular_values, max(k - 1, 0))


def lost(singular_values, k):
    return 1 - right_1(singular_values, k)


def count_only(singular_values, k):
    return k / len(singular_values)


def task_1():
    cases = [([3.0, 1.0], 1), ([5.0, 4.0, 3.0, 0.5], 2), ([10.0, 1.0, 1.0, 1.0], 1), ([2.0, 1.0], 2), ([2.0, 1.0], 0)]
    return Function(
        "energy",
        right_1,
        cases,
        [
            (not_squared, "|A|_F^2 is the sum of the SQUARES of the singular values.", "|A|_F^2 是奇异值的平方和。"),
            (one_more, "One layer too many: s[:k] are the first k already.", "多了一层：s[:k] 就是前 k 个。"),
            (one_less, "One layer is missing: s[:k] are the first k, the one at k - 1 included.", "少了一层：s[:k] 包含下标 k - 1 的那个。"),
            (lost, "That is what the cut has lost. What is kept?", "这是截掉的部分。留下的是多少？"),
            (count_only, "Layers do not weigh the same: the first is the strongest.", "各层分量不同：第一层最强。"),
        ],
        ("With k = 0 nothing is kept, with all of them everything. Is that so?", "k = 0 时什么也不留，全部时留下全部。你的是这样吗？"),
        "math_demos/image_svd.py, energy",
    )  # fmt: skip


# -- 2: the best matrix of rank k


def right_2(matrix, k):
    return image_svd.reconstruct(image_svd.decompose(np.asarray(matrix)[:, :, None]), k)[:, :, 0]


def columns_of_vh(matrix, k):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:, :k].T


def weakest(matrix, k):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, len(s) - k :] * s[len(s) - k :]) @ vh[len(s) - k :]


def no_singular_values(matrix, k):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k] @ vh[:k]


def k_th_alone(matrix, k):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return s[k - 1] * np.outer(u[:, k - 1], vh[k - 1])


def rows_scaled(matrix, k):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :k] @ (vh[:k] * s[:k, None] ** 2)


def task_2():
    matrix = RANDOM.normal(size=(5, 5)).round(2)
    cases = [(matrix, 1), (matrix, 2), (RANDOM.normal(size=(6, 4)).round(2), 3), (np.outer([1.0, 2, 3], [4.0, 5]), 1)]
    return Function(
        "rank_k",
        right_2,
        cases,
        [
            (columns_of_vh, "numpy gives V transposed already: its rows are the directions. vh[:k], not vh[:, :k].",
             "numpy 给的已经是转置的 V：它的行才是方向。用 vh[:k]，不是 vh[:, :k]。"),
            (weakest, "You keep the weakest layers. The singular values come in falling order.", "你保留了最弱的层。奇异值是从大到小排的。"),
            (no_singular_values, "U V' without the singular values: all layers equally strong.", "缺了奇异值：各层都一样强。"),
            (k_th_alone, "That is layer k alone. Rank k is the sum of the first k layers.", "这只是第 k 层。秩 k 是前 k 层之和。"),
            (rows_scaled, "The singular values came in twice.", "奇异值乘了两次。"),
        ],
        ("numpy.linalg.svd(matrix, full_matrices=False) gives U, s, V'. Check shapes: (m, k) times (k, n).",
         "numpy.linalg.svd(matrix, full_matrices=False) 返回 U、s、V'。看形状：(m, k) 乘 (k, n)。"),
        "math_demos/image_svd.py, reconstruct",
    )  # fmt: skip


# -- 3: a half-step of ALS


def right_3(Q, rated, ratings, ridge):
    solved = np.zeros((1, np.shape(Q)[1]))
    als.half_step(
        [([0], [np.asarray(rated)], [np.asarray(ratings, float)])], np.asarray(Q, float), solved, np.array([ridge])
    )
    return solved[0]


def solve(Q, ratings, ridge):
    return np.linalg.solve(Q.T @ Q + ridge * np.eye(Q.shape[1]), Q.T @ ratings)


def zeros_for_missing(Q, rated, ratings, ridge):
    full = np.zeros(len(Q))
    full[rated] = ratings
    return solve(Q, full, ridge)


def no_ridge(Q, rated, ratings, ridge):
    return solve(Q[rated], np.asarray(ratings, float), 0)


def ridge_everywhere(Q, rated, ratings, ridge):
    part = Q[rated]
    return np.linalg.solve(part.T @ part + ridge, part.T @ np.asarray(ratings, float))


def ridge_times_count(Q, rated, ratings, ridge):
    return solve(Q[rated], np.asarray(ratings, float), ridge * len(rated))


def first_items(Q, rated, ratings, ridge):
    return solve(Q[: len(rated)], np.asarray(ratings, float), ridge)


def task_3():
    Q = RANDOM.normal(size=(6, 2)).round(2)
    cases = [(Q, [0, 1, 2], [1.0, -0.5, 2.0], 0.5), (Q, [4], [1.5], 2.0), (Q, [5, 0, 3, 1], [0.5, 0.5, -1.0, 1.0], 0.1)]
    return Function(
        "factors",
        right_3,
        cases,
        [
            (zeros_for_missing, "You take a missing rating for a rating of 0. Leave out the films that this person has not rated.",
             "你把没有评分当成评 0 分。没评过的电影不要放进来。"),
            (no_ridge, "Without the ridge a person with fewer ratings than factors has no solution, and others a wild one.",
             "没有岭项，评分比因子少的用户没有唯一解，其余的也会很离谱。"),
            (ridge_everywhere, "The ridge belongs on the diagonal only: ridge times the identity.", "岭项只加在对角线上：ridge 乘单位矩阵。"),
            (ridge_times_count, "That is weighted regularisation (--weighted). Here the ridge is the same for everybody.",
             "这是按评分数加权的正则化（--weighted）。这里每个人的岭项相同。"),
            (first_items, "You take the first films instead of those that were rated: Q[rated].", "你取了最前面的电影，而不是评过的：Q[rated]。"),
        ],
        ("Set the gradient of |r - Q p|^2 + ridge |p|^2 to zero, over the rated films only.",
         "令 |r - Q p|^2 + ridge |p|^2 的梯度为零，只对评过的电影。"),
        "math_demos/als.py, half_step",
        1e-6,
    )  # fmt: skip


# -- 4: when do factors save anything?


def right_4(m, n):
    """Counted: bytes of U, s and V' of rank k as float32, against one byte for each pixel."""
    k = 0
    while sum(np.zeros(shape, np.float32).nbytes for shape in ((m, k + 1), (k + 1,), (k + 1, n))) < m * n:
        k += 1
    return k


def numbers_for_bytes(m, n):
    return (m * n - 1) // (m + n + 1)


def without_s(m, n):
    return (m * n - 1) // (4 * (m + n))


def full_rank(m, n):
    return min(m, n)


def half_rank(m, n):
    return min(m, n) // 2


def equal_counts(m, n):
    return m * n // (4 * (m + n + 1))


def task_4():
    return Function(
        "largest_k",
        right_4,
        [(512, 512), (600, 400), (100, 100), (80, 78), (10, 7), (9, 8), (7, 3)],
        [
            (numbers_for_bytes, "You compare counts of numbers. A float32 takes four bytes, a pixel one.", "你比较的是数的个数。float32 占四个字节，像素占一个。"),
            (without_s, "The k singular values have to be stored, too.", "k 个奇异值也要存。"),
            (full_rank, "At full rank two matrices are stored instead of one.", "满秩时存的是两个矩阵而不是一个。"),
            (half_rank, "Not half: count bytes, those of both factors, and four for each number.", "不是一半：数字节，两个因子都算，每个数四个字节。"),
            (equal_counts, "At exactly equal size nothing is saved: smaller is asked.", "正好一样大时没有节省：要求更小。"),
        ],
        ("Write the bytes of rank k as a formula in k, m and n; then ask when they are fewer than m n.",
         "把秩 k 的字节数写成 k、m、n 的公式，再问何时小于 m n。"),
        "math_demos/image_svd.py, compare; the README's table at equal bytes",
    )  # fmt: skip


# -- 5: noise


def rank_for_noise(share=0.9):
    noise = np.random.default_rng(1).normal(size=(100, 100, 1))
    kept = image_svd.energy([s for _, s, _ in image_svd.decompose(noise)])
    return int(np.argmax(kept >= share))


def task_5():
    return Number(
        rank_for_noise,
        7,
        [
            ((0, 30), "A photo needs so few, because its neighbours are alike. In noise no direction is preferred.",
             "照片只要这么少，因为相邻像素相似。噪声里没有哪个方向更重要。"),
            ((80, 100), "Not quite so many: even in noise the largest singular values are several times the smallest, and squares count.",
             "没有这么多：就算是噪声，最大的奇异值也是最小的许多倍，而且算的是平方。"),
        ],
        ("Try it: numpy.linalg.svd of a random matrix, squares, cumulative sum.", "试一试：对随机矩阵做 numpy.linalg.svd，平方，累加。"),
        "math_demos/image_svd.py, energy; lora_lowrank.py asks the same of an update",
    )  # fmt: skip
