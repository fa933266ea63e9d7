"""Predict: how much would be padding? · 预测：填充会占多少？

The documents of continual/sample/everyday.jsonl are short. Put one into each sequence of 256 tokens and fill the rest with
padding: how many percent of all tokens are padding? Laid end to end it is almost nothing. Look at the file, guess, write the
number, then run the check. It counts words and signs as tokens. Within 6 points is right.

continual/sample/everyday.jsonl 中的文档很短。每个 256 token 的序列只放一篇，剩下的用填充（padding）补满：填充占全部 token 的百分之几？
首尾相接时几乎没有填充。先看文件，猜一猜，写下数字，再运行检查。检查把词和标点当作 token。差 6 个百分点以内算对。
"""

PREDICTION = 82  # percent
