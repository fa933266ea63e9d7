"""How much does thinking gain? · 多想一点，好多少？

`points` are runs: (thinking tokens, accuracy in percent), in any order. s1's paper measures scaling as the mean of the
slopes of all pairs of points. Return it in points per 100 tokens. Two runs may have the same number of tokens.

`points` 是若干次运行：(思考 token 数, 准确率百分数)，顺序任意。s1 的论文把所有点对的斜率求均值。返回每 100 个 token 多少个百分点。
两次运行的 token 数可能相同。

    scaling([(100, 20.0), (200, 40.0)])  ->  20.0
"""

from itertools import combinations


def scaling(points):
    """Points per 100 tokens."""
    slopes = [(g - f) / (b - a) for (a, f), (b, g) in combinations(sorted(points), 2) if b > a]
    return 100 * sum(slopes) / len(slopes)
