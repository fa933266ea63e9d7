"""Advantages by GAE · 用 GAE 算优势

For one answer, from its tokens' rewards and the value model's guesses V:

    delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        R_t = A_t + V_t

Behind the last real token (mask 1) nothing follows: no V and no A. At padding A and R are 0.

对一个回答，由各 token 的奖励和价值模型的估计 V 计算上面三式。最后一个真实 token（mask 为 1）之后什么也没有：没有 V，也没有 A。
填充处 A 和 R 都是 0。

    gae([0.0, 1.0], [0.0, 0.0], [1, 1], gamma=1.0, lam=0.5)  ->  ([0.5, 1.0], [0.5, 1.0])
"""


def gae(rewards, values, mask, gamma, lam):
    """(advantages, returns), two lists with a number for each token."""
    # your code here
