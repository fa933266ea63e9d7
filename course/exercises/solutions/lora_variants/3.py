"""DoRA: length and direction · DoRA：长度与方向

DoRA replaces W by V = W + s B A and gives every output its own trained length: row i of the result is m[i] times row i of V, divided by
that row's 2-norm. w and update (which is s B A) are matrices as lists of rows, one row for each output; m has a number for each row.
Return the matrix that is multiplied with x. At the beginning m[i] is the norm of row i of W, and the result is W.

DoRA 用 V = W + s B A 代替 W，并给每个输出一个可训练的长度：结果的第 i 行是 m[i] 乘以 V 的第 i 行，再除以这一行的 2-范数。w 和 update（即 s B A）
是“行的列表”，每个输出一行；m 每行一个数。返回与 x 相乘的矩阵。训练开始时 m[i] 是 W 第 i 行的范数，结果就是 W。

    dora([[3, 4]], [[0, 0]], [10])  ->  [[6.0, 8.0]]
"""

import math


def dora(w, update, m):
    """The weight that DoRA computes with."""
    made = []
    for row, more, length in zip(w, update, m, strict=True):
        whole = [x + y for x, y in zip(row, more, strict=True)]
        norm = math.sqrt(sum(x * x for x in whole))
        made.append([length * x / norm for x in whole])
    return made
