"""Precision and recall of a field · 一个字段的精确率和召回率

`predicted` and `truth` hold one field's values, photo by photo; None in `truth` means that the dashboard does not show it,
None in `predicted` that the model said so. Precision: of the values that were said, how many are right? Recall: of the
values that are shown, how many were said rightly?

`predicted` 和 `truth` 是一个字段在各张照片上的值；`truth` 里的 None 表示仪表盘没有显示，`predicted` 里的 None 表示模型说没有显示。
精确率：说出的值里有多少正确？召回率：显示的值里有多少被正确说出？

    rates([100, None], [100, 200])  ->  (1.0, 0.5)
"""


def rates(predicted, truth):
    """(precision, recall)."""
    # your code here
