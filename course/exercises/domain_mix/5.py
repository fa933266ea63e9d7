"""Shares of tokens, not of rows · 按 token 而不是按行混合

The loss counts answer tokens, so a source weighs as many tokens as its answers have. `shares` says which share of all
answer tokens each source shall have (together 1), `tokens` how many its answers have in the mean. Return how many rows of
each to take, `total` together. Round down, and give the rows that are left to the largest remainders, as in exercise 1.

损失计算的是回答的 token，一个来源的分量等于它回答的 token 数。`shares` 是每个来源应占全部回答 token 的比例（合计 1），`tokens` 是它的
回答平均有多少 token。返回各取多少行，合计 `total`。先向下取整，剩下的行分给余数最大的，与练习 1 相同。

    rows_for(100, {"law": 0.5, "code": 0.5}, {"law": 30, "code": 270})  ->  {"law": 90, "code": 10}
"""


def rows_for(total, shares, tokens):
    """{name: rows}."""
    # your code here
