"""Labels of a chat with two turns · 两轮对话的标签

A chat is one list of token ids. The assistant's turns begin with the tokens `header` and stop with the token `end`. The
model shall learn what the assistant writes in every turn, the end token too, and nothing else: all other labels are -100,
which the loss skips. A turn may be cut off: then it goes to the end of the list. Labels are not shifted.

一段对话是一个 token id 列表。助手的每一轮以 `header` 这几个 token 开头，以 token `end` 结束。模型要学习助手在每一轮写下的内容，
包括结束 token，除此之外都不学：其余标签为 -100，损失会跳过。最后一轮可能被截断：那就一直到列表末尾。标签不移位。

    labels([1, 30, 40, 2, 1, 31, 50, 2], header=[1, 31], end=2)  ->  [-100, -100, -100, -100, -100, -100, 50, 2]
"""


def labels(ids, header, end):
    """One label for each id."""
    # your code here
