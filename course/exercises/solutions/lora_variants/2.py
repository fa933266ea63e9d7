"""PiSSA as a plain LoRA · 把 PiSSA 变成普通的 LoRA

PiSSA takes B0 A0 out of W before training: its model is W - B0 A0 + B A (s = 1). Served on the public W, its file (B, A) alone would
count B0 A0 twice. Build B' and A' of rank 2r with B' A' = B A - B0 A0. A has r rows, B has r columns; matrices are lists of rows. The
trained part comes first, and the minus stands at B0.

PiSSA 在训练之前从 W 中取出 B0 A0：它的模型是 W - B0 A0 + B A（s = 1）。如果只把 (B, A) 放到公开的 W 上，B0 A0 就被算了两次。请构造秩为 2r 的 B' 和
A'，使 B' A' = B A - B0 A0。A 有 r 行，B 有 r 列；矩阵用“行的列表”表示。训练得到的部分在前，负号放在 B0 上。

    plain([[1, 2]], [[3], [4]], [[5, 6]], [[7], [8]])  ->  ([[1, 2], [5, 6]], [[3, -7], [4, -8]])
"""


def plain(a, b, a0, b0):
    """(A', B') of rank 2r."""
    return a + a0, [row + [-each for each in row0] for row, row0 in zip(b, b0, strict=True)]
