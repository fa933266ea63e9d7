"""The score and the price of KL, token by token · 逐个 token 的分数和 KL 代价

PPO needs a reward for each token of an answer. Every real token (mask 1) pays kl_coef for each nat that the policy gives it
more than the reference: -kl_coef (logprob - ref). The answer's score comes on top at its last real token. Padding gets 0.

PPO 需要回答中每个 token 的奖励。每个真实 token（mask 为 1）按策略比参考模型多给的 nat 数扣分：-kl_coef (logprob - ref)。
整个回答的分数加在最后一个真实 token 上。填充处为 0。

    token_rewards([-1.0, -1.0, 0.0], [-1.0, -2.0, 0.0], [1, 1, 0], score=3.0, kl_coef=0.1)  ->  [0, 2.9, 0]
"""


def token_rewards(logprobs, ref, mask, score, kl_coef):
    """A list with one reward for each token."""
    # your code here
