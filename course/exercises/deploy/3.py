"""Ten of ten votes: how sure is that? · 十票全中：有多可靠？

`count` of `n` blind votes went to the tuned model. Return the 95% interval of its true share by Wilson's formula, with
p = count / n and z = 1.96:

    ( p + z^2 / 2n  ±  z sqrt( p (1 - p) / n + z^2 / 4n^2 ) ) / ( 1 + z^2 / n )          (0, 1) without votes

`n` 次盲投里有 `count` 票投给微调后的模型。按上面的威尔逊公式返回真实比例的 95% 区间，p = count / n，z = 1.96。还没有投票时返回 (0, 1)。

    wilson(5, 10)  ->  (0.237, 0.763)
"""

import math


def wilson(count, n):
    """(lower end, upper end)."""
    # your code here
