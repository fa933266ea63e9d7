"""Nine comparisons, one lucky one · 九次比较，一次碰运气

Compare nine variants with LoRA at p < 0.05, and one of three such tables shows a "winner" although all are equal. Holm's correction: sort
the p-values; the smallest is multiplied by their number n, the next one by n - 1, and so on; none may become smaller than the one
before it, none larger than 1. values is a dict name -> p; return a dict name -> corrected p.

把九个变体分别与 LoRA 比较，都用 p < 0.05，那么即使它们完全一样，三张这样的表里也会有一张出现“赢家”。Holm 校正：把 p 值从小到大排列；最小的乘以个数
n，下一个乘以 n - 1，依此类推；每个都不能小于前一个，也不能大于 1。values 是字典 名字 -> p；返回字典 名字 -> 校正后的 p。

    holm({"a": 0.04, "b": 0.01})  ->  {"b": 0.02, "a": 0.04}
"""


def holm(values):
    """name -> corrected p."""
    made, before = {}, 0.0
    for place, name in enumerate(sorted(values, key=values.get)):
        before = max(before, min(1.0, values[name] * (len(values) - place)))
        made[name] = before
    return made
