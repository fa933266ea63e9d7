"""Predict: what rank does noise have? · 预测：噪声的秩是多少？

A portrait keeps 99% of its energy in a few of its layers (image_svd.py). Now a matrix of 100 x 100 independent random
numbers, normally distributed around 0: how many of its 100 layers does one need for 90% of the energy? Guess, write the
number, then run the check. Within 7 is right.

一张肖像用很少几层就保留了 99% 的能量（image_svd.py）。换成 100 x 100 个独立的随机数，均值为 0 的正态分布：要多少层才能保留 90% 的能量？
先猜，写下数字，再运行检查。差 7 以内算对。
"""

PREDICTION = 50  # layers
