"""Is it still an answer? · 这还算回答吗？

After continued pretraining a model may go on as a document does. Say of each answer whether it kept its form: it ended by itself
(its last id is `end`), it says something before that, and it did not run on into another turn (no id of `marks` in it).
Return the share of answers that kept it.

继续预训练之后，模型可能像文档一样一直写下去。判断每个回答是否保持了对话形式：自己结束（最后一个 id 是 `end`），结束之前有内容，
并且没有写进下一轮（其中没有 `marks` 里的 id）。返回保持形式的回答所占的比例。

    share([[7, 2], [7, 8], [2], [7, 1, 7, 2]], end=2, marks={1})  ->  0.25
"""


def share(answers, end, marks):
    """The share, between 0 and 1."""
    # your code here
