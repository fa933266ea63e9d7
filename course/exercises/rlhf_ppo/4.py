"""The clipped loss of PPO · PPO 的裁剪损失

rho = p / p_old is how much likelier a token has become since it was sampled; logprobs and old are logs. The loss of a token
with advantage A is -min(rho A, clip(rho, 1 - clip, 1 + clip) A). Return one loss for each token.

rho = p / p_old 是一个 token 自采样以来概率变为几倍；logprobs 和 old 是对数。优势为 A 的 token 的损失是
-min(rho A, clip(rho, 1 - clip, 1 + clip) A)。返回每个 token 的损失。

    policy_loss([-1.0], [-1.0], [2.0], clip=0.2)  ->  [-2.0]
"""

import math


def policy_loss(logprobs, old, advantages, clip):
    """A list with one loss for each token."""
    # your code here
