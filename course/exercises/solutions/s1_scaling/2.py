"""Test questions that the training knows · 训练见过的测试题

A test question is known if it has eight words in a row in common with a training question; one with fewer than eight words,
if all its words stand there in this order as a whole question. Case and signs do not count: a word is what `\\w+` finds. How
many of `test` are known?

测试题若与某道训练题有连续八个词相同，就算见过；不足八个词的，若全部的词按顺序正好是一道训练题，也算见过。大小写和标点不计：
词就是 `\\w+` 找到的。`test` 里有几道见过？

    overlap(["What is 2 + 2?"], ["what is 2+2"])  ->  1
"""

import re


def overlap(train, test):
    """A whole number."""

    def grams(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 8]) for i in range(max(1, len(words) - 7))}

    known = set().union(*map(grams, train))
    return sum(bool(grams(question) & known) for question in test)
