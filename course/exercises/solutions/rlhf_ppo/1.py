"""The reward model's loss · 奖励模型的损失

`chosen` and `rejected` hold the scores of the better and the worse answers of some pairs. The model says that the chosen
one is better with probability sigmoid(chosen - rejected). Return the mean of the negative log-likelihoods. Scores may lie
a thousand apart: the result has to be finite. Plain Python will do.

`chosen` 和 `rejected` 是若干对回答中较好和较差的分数。模型认为前者更好的概率是 sigmoid(chosen - rejected)。返回负对数似然的均值。
分数可能相差上千：结果必须有限。用普通 Python 就够。

    loss([1.0], [0.0])  ->  0.3133
"""

import math


def loss(chosen, rejected):
    """Mean of -log sigmoid(chosen - rejected)."""
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    return sum(math.log1p(math.exp(-abs(m))) + max(-m, 0) for m in margins) / len(margins)
