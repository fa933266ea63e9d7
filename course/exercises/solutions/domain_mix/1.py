"""Rows by ratio · 按比例分配行数

A mixture of `total` rows is made from sources by `ratios` (they add up to 1). Return whole numbers that add up to `total`:
round all down, then give the rows that are left, one each, to the sources from which rounding took most. Of equal ones the
earlier source comes first.

按 `ratios`（加起来是 1）从各来源取 `total` 行组成混合数据。返回加起来等于 `total` 的整数：先全部向下取整，剩下的行一行一行分给
舍入损失最大的来源；损失相同时排在前面的优先。

    share_out(10, {"law": 0.25, "code": 0.75})  ->  {"law": 3, "code": 7}
"""


def share_out(total, ratios):
    """{name: rows}."""
    made = {name: int(total * ratio + 1e-9) for name, ratio in ratios.items()}
    by_loss = sorted(ratios, key=lambda name: made[name] - total * ratios[name])
    for name in by_loss[: total - sum(made.values())]:
        made[name] += 1
    return made
