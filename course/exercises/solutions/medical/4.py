"""Perplexity of held-out rows · 留出数据的困惑度

For each held-out row you have a pair: the sum of -log p over its counted tokens, and how many these are. Return the
perplexity of all of them together. Rows have different lengths.

每一行留出数据给出两个数：计入的 token 的 -log p 之和，以及这些 token 的个数。返回全部数据的困惑度。各行长短不一。

    perplexity([(2.0, 1)])  ->  7.389
"""

import math


def perplexity(rows):
    """A number, 1 or more."""
    return math.exp(sum(loss for loss, _ in rows) / sum(count for _, count in rows))
