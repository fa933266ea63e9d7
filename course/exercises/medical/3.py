"""Rows that are too long · 太长的行

`rows` holds pairs (ids, labels). Return those that may be trained on with this max_length, unchanged and in their order.
What would the model learn from the others if they were cut?

`rows` 是 (ids, labels) 的列表。返回在这个 max_length 下可以训练的行，不改动，保持顺序。想一想：其余的行若被截断，模型会学到什么？

    fitting([([5, 6, 2], [-100, 6, 2]), ([5, 2], [-100, 2])], 2)  ->  [([5, 2], [-100, 2])]
"""


def fitting(rows, max_length):
    """A list of pairs (ids, labels)."""
    # your code here
