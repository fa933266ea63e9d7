"""The answer in a completion · 回答里的答案

The reward compares the text between <answer> and </answer> with the gold number. Return that text without the blanks and
line breaks around it: of the last complete block if there are several, None if there is none. Completions have several
lines, and some are cut off in the middle.

奖励比较 <answer> 和 </answer> 之间的文本与标准答案。返回这段文本，去掉两边的空格和换行：有几个块时取最后一个完整的，一个也没有时
返回 None。回答有多行，有的在中间被截断。

    answer_of("<answer>\\n42\\n</answer>")  ->  "42"
"""

import re


def answer_of(text):
    """The text of the last complete answer block, or None."""
    # your code here
