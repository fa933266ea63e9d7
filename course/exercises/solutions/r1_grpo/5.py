"""Predict: how many groups teach nothing? · 预测：多少组学不到东西？

A model always writes the form and gives the right number in one of ten samples. G is 6: six samples for each question. A
group whose rewards are all equal has advantage 0 everywhere, so it teaches nothing. How many percent of the groups are
that? Guess, write the number, then run the check. Within 4 points is right.

一个模型格式总是对的，十个样本里有一个数字正确。G 是 6：每题六个样本。一组里奖励全相等时优势处处为 0，学不到东西。这样的组占百分之几？
先猜，写下数字，再运行检查。差 4 个百分点以内算对。
"""

PREDICTION = 53  # percent
