"""KL per token, never negative · 每个 token 的 KL，永不为负

p and q are the log-probabilities that the model and the reference give to the sampled tokens. The KL of a token by the
estimate k3 is q/p - log(q/p) - 1, with probabilities and not logs. Return its mean over the tokens whose mask is 1.

p、q 是模型和参考模型给采样 token 的对数概率。按 k3 估计，一个 token 的 KL 是 q/p - log(q/p) - 1，式中是概率而不是对数。
返回 mask 为 1 的 token 上的均值。

    kl([-1.0, -2.0], [-1.0, -2.0], [1, 1])  ->  0.0
"""

import math


def kl(p, q, mask):
    """Mean KL per token, in nats."""
    # your code here
