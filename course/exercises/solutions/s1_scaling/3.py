"""Majority vote · 投票

A question was answered several times. Return the most frequent answer; of equally frequent ones the one that came first. An
empty text means that the budget ran out before an answer came: it is no vote. Without any vote return "".

一道题回答了几次。返回出现最多的答案；一样多时取最早出现的。空文本表示预算用完还没写出答案：不算一票。一票也没有时返回 ""。

    vote(["4", "5", "4"])  ->  "4"
"""

from collections import Counter


def vote(answers):
    """A text."""
    counts = Counter(answer for answer in answers if answer)
    return counts.most_common(1)[0][0] if counts else ""
