"""Questions that are different · 不重复的问题

Sources repeat each other. Two questions are the same if they differ only in case, in width (Ａ and A, ？ and ?) and in
spaces (how many there are, line breaks, around the text). Return the different ones as they stand there, the first of each.

各来源之间有重复。只差大小写、全角半角（Ａ 和 A，？ 和 ?）和空白（空格个数、换行、两边）的问题是同一个问题。返回不同的问题，
保持原文，每个取第一次出现的。

    different(["What is RNA?", "what  is rna?", "什么是AI？"])  ->  ["What is RNA?", "什么是AI？"]
"""

import unicodedata


def different(questions):
    """A list of texts."""
    # your code here
