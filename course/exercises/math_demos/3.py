"""One person's factors in ALS · ALS 中一个人的因子

Q has a row of factors for each film. A person has rated the films with the numbers `rated` (a list), and given them
`ratings` in the same order. With Q held still, return the factors p that minimise

    sum over the rated films of (rating - Q_film . p)^2  +  ridge |p|^2

Q 的每一行是一部电影的因子。某人给编号为 `rated`（列表）的电影打了分，`ratings` 顺序相同。固定 Q，返回使上式最小的因子 p。
"""

import numpy


def factors(Q, rated, ratings, ridge):
    """An array with as many numbers as Q has columns."""
    # your code here
