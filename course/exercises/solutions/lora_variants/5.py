"""Predict: what does a random A see? · 预测：随机的 A 能看见多少？

LoRA-FA never trains A. Its update B A can only have rows that lie in the space of A's r rows. Take a gradient G (512 x 576) without any
structure and a random A with 16 rows. How many percent of the squared sum of G lie in the space of A's rows? Think first: with 576 rows A
would see everything. The check draws both and measures. Within 0.7 points is right.

LoRA-FA 从不训练 A。它的更新 B A 的每一行都落在 A 的 r 行张成的空间里。取一个没有任何结构的梯度 G（512 x 576）和一个随机的 16 行的 A。G 的平方和有百分之
几落在 A 的行空间里？先想一想：如果 A 有 576 行，就能看见全部。检查程序会把两者抽出来测量。差 0.7 个百分点以内算对。
"""

PREDICTION = 2.8  # percent
