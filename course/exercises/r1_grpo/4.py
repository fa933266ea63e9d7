"""pass@k from n samples · 由 n 个样本算 pass@k

A question was answered `samples` times, and `right` of these answers are right. k different ones of them are drawn. What is
the chance that at least one is right?

一道题回答了 `samples` 次，其中 `right` 次正确。从中抽取 k 个不同的回答，至少有一个正确的概率是多少？

    pass_at_k(1, 4, 2)  ->  0.5
"""

import math


def pass_at_k(right, samples, k):
    """A number from 0 to 1."""
    # your code here
