"""Held-out questions that were trained on · 训练时见过的留出问题

Two questions are the same if they differ in nothing but case, blanks and signs (Chinese ones too). Return the questions of
`test` that are also in `train`, as they stand there and in their order. A row-by-row split of real data leaks one in twenty.

只差大小写、空格和标点（包括中文标点）的问题是同一个问题。返回 `test` 中也出现在 `train` 里的问题，保持原样和顺序。
真实数据逐行划分时，二十个里会泄漏一个。

    leaks(["头疼怎么办？"], ["头疼怎么办", "失眠"])  ->  ["头疼怎么办"]
"""


def leaks(train, test):
    """A list of questions."""
    # your code here
