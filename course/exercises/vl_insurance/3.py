"""The mileage in an answer · 回答里的总里程

To score a model one has to read its answers. Return the mileage behind 总里程 (and a colon, : or ：) as a whole number, rounded
down, or None where none is given. Numbers come as 52,891 and 12345.6 and 5.2万 (万 is ten thousand).

要给模型打分，先得读懂它的回答。返回“总里程”和冒号（: 或 ：）后面的里程，向下取整；没有给出时返回 None。数字会写成 52,891、12345.6、
5.2万。

    mileage("总里程：52,891 km")  ->  52891
"""

import re


def mileage(text):
    """A whole number or None."""
    # your code here
