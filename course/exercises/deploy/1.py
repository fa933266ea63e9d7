"""Merge a LoRA into its weight · 把 LoRA 合并进权重

W (out, in) is a linear layer's weight, A (r, in) and B (out, r) are its trained LoRA, all numpy arrays. The layer computes
W x + (alpha / r) B A x. Return the one matrix that computes the same.

W（输出, 输入）是线性层的权重，A（r, 输入）和 B（输出, r）是训练好的 LoRA，都是 numpy 数组。这一层计算 W x + (alpha / r) B A x。
返回一个矩阵，计算结果相同。
"""


def merge(W, A, B, alpha, r):
    """An array of W's shape."""
    # your code here
