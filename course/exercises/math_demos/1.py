"""How much of a matrix do k layers keep? · 前 k 层保留多少？

SVD writes a matrix as a sum of layers, the strongest first. Given all its singular values in falling order, return the
share of |A|_F^2 (the sum of all squared entries) that the first k layers keep: a number from 0 to 1.

SVD 把矩阵写成各层之和，最强的在前。给出从大到小的全部奇异值，返回前 k 层保留的 |A|_F^2（所有元素的平方和）的比例：0 到 1 之间的数。

    energy([3.0, 1.0], 1)  ->  0.9
"""


def energy(singular_values, k):
    """The share that the first k keep."""
    # your code here
