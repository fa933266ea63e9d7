"""Labels of documents end to end · 首尾相接的文档的标签

Several documents lie in one sequence of token ids. Nothing before a document says how it begins, so the loss skips the first
token of each (-100); every other token counts. The model compares its output at t with the label at t + 1 by itself: do not
shift.

几篇文档首尾相接，放在同一个 token 序列里。一篇文档如何开头，前面的内容并没有说明，所以损失跳过每篇的第一个 token（-100），其余都计入。
模型自己会把 t 处的输出与 t + 1 处的标签比较：不要移位。

    labels([[5, 6, 7], [8, 9]])  ->  [-100, 6, 7, -100, 9]
"""


def labels(documents):
    """One list of labels for the whole sequence."""
    return [token for document in documents for token in [-100, *document[1:]]]
