"""Predict: how much of a row is the answer? · 预测：回答占一行的多少？

The 80 rows of alpaca/sample/alpaca.jsonl stand in Stanford's template (alpaca/prompt.py). With --loss_on all the loss
counts every token. How many percent of them belong to the answer and its end token, which is what --loss_on answer counts?
Look at one row, guess, write the number, then run the check. It counts words and signs as tokens. Within 6 points is right.

alpaca/sample/alpaca.jsonl 的 80 行套进斯坦福的模板（alpaca/prompt.py）。--loss_on all 时损失计算每个 token。其中百分之几属于回答和
结束 token，也就是 --loss_on answer 所计算的部分？先看一行，猜一猜，写下数字，再运行检查。检查把词和标点当作 token。差 6 个百分点以内算对。
"""

PREDICTION = None  # percent
