"""Predict: does voting help a model that is mostly wrong? · 预测：多数答错的模型，投票有用吗？

A model is right in 40% of its samples. Its wrong answers are spread evenly over ten numbers. Each question is sampled 16
times, and the most frequent answer is taken. How many percent of the questions are right then? Guess, write the number,
then run the check. Within 5 points is right.

一个模型的样本有 40% 正确，错误答案均匀分布在十个数上。每题采样 16 次，取出现最多的答案。这样百分之几的题正确？先猜，写下数字，
再运行检查。差 5 个百分点以内算对。
"""

PREDICTION = 93  # percent
