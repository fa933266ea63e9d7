"""When do two thin matrices save bytes? · 什么时候两个小矩阵更省字节？

A grey picture of m x n pixels takes a byte per pixel. Its SVD of rank k is stored as U (m x k), the k singular values and
V' (k x n), all in float32. Up to which k is that smaller than the picture? Return 0 if for none.

m x n 的灰度图每个像素一个字节。秩 k 的 SVD 存 U（m x k）、k 个奇异值和 V'（k x n），都是 float32。k 最大到多少时仍比原图小？
没有这样的 k 时返回 0。

    largest_k(100, 100)  ->  12
"""


def largest_k(m, n):
    """A whole number."""
    return (m * n - 1) // (4 * (m + n + 1))
