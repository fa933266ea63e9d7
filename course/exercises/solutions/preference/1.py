"""The loss of DPO · DPO 的损失

`chosen` and `rejected` hold log p(y|x) of the better and the worse answers under the policy, `ref_chosen` and `ref_rejected`
the same under the reference. The reward that a policy implies is beta (log p - log p of the reference). The loss of a pair
is -log sigmoid(reward of chosen - reward of rejected). Return one loss for each pair. Margins may be -1000: mind exp().

`chosen` 和 `rejected` 是较好和较差的回答在策略下的 log p(y|x)，`ref_chosen` 和 `ref_rejected` 是在参考模型下的。策略隐含的奖励是
beta (log p - 参考模型的 log p)。一对的损失是 -log sigmoid(chosen 的奖励 - rejected 的奖励)。返回每一对的损失。两者之差可能到 -1000：
注意 exp() 溢出。

    losses([-10.0], [-12.0], [-10.0], [-12.0], beta=0.1)  ->  [0.6931]
"""

import math


def losses(chosen, rejected, ref_chosen, ref_rejected, beta):
    """A list with one loss for each pair."""
    made = []
    for c, r, rc, rr in zip(chosen, rejected, ref_chosen, ref_rejected, strict=True):
        margin = beta * ((c - rc) - (r - rr))
        made.append(math.log1p(math.exp(-abs(margin))) + max(-margin, 0))
    return made
