"""Is this file the trained model? · 这个文件是训练出的模型吗？

Three models read the same tokens; `base`, `adapter` and `file` are the log-probabilities that they give them. Let x be how
far the training moved a token (adapter - base), y how far the file is from the base (file - base). Return the slope of the
line through 0 that fits y over x by least squares: 1 is the trained model, 0 the base, 2 an update counted twice.

三个模型读同样的 token；`base`、`adapter`、`file` 是它们给出的对数概率。x 是训练移动了多少（adapter - base），y 是文件离基座多少
（file - base）。返回过原点、按最小二乘拟合 y 对 x 的直线斜率：1 是训练出的模型，0 是基座，2 是更新算了两次。

    slope([-2.0], [-1.0], [-1.5])  ->  0.5
"""


def slope(base, adapter, file):
    """A number."""
    x = [a - b for a, b in zip(adapter, base, strict=True)]
    y = [f - b for f, b in zip(file, base, strict=True)]
    return sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
