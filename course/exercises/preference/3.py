"""The odds of an answer in ORPO · ORPO 里一个回答的几率比

ORPO compares answers by their odds, P / (1 - P), where P is the geometric mean of the tokens' probabilities: its log is the
mean log-probability of a token. Return log(odds of chosen / odds of rejected) from log p(y|x) and the number of tokens of
each. After long training P comes near 1: 1 - P must not become 0.

ORPO 用几率（odds）P / (1 - P) 比较回答，P 是各 token 概率的几何平均：它的对数就是每个 token 的平均对数概率。由两个回答的 log p(y|x) 和
token 数，返回 log(chosen 的几率 / rejected 的几率)。训练久了 P 会接近 1：1 - P 不能变成 0。

    log_odds_ratio(-4.0, 4, -10.0, 5)  ->  1.3132
"""

import math


def log_odds_ratio(chosen, chosen_tokens, rejected, rejected_tokens):
    """log odds of chosen less log odds of rejected, a number."""
    # your code here
