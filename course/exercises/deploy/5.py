"""Predict: how much of an update is lost to rounding? · 预测：舍入会丢掉多少更新？

A weight matrix in bfloat16 has entries of about 0.02 (standard deviation, mean 0). A light training changes each by about
0.00003. The sum is rounded to the nearest bfloat16 number, as most merges do. How many percent of the entries are exactly
what they were before? Guess, write the number, then run the check. Within 10 is right.

一个 bfloat16 权重矩阵的元素约为 0.02（标准差，均值 0）。一次轻量训练把每个元素改变约 0.00003。相加后舍入到最近的 bfloat16 数，多数合并
工具就是这样做的。百分之几的元素与原来完全相同？先猜，写下数字，再运行检查。差 10 以内算对。
"""

PREDICTION = None  # percent
