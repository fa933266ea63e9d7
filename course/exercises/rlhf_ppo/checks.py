"""What is right in the exercises of rlhf_ppo, and the usual mistakes."""

import math
import statistics

import torch

import best_of_n
import train_ppo
import train_reward
from check import Function, Number


def row(*numbers):
    """One answer's numbers as train_ppo.py has them: (1, T)."""
    return torch.tensor([numbers], dtype=torch.float64)


# -- 1: the reward model's loss


def right_1(chosen, rejected):
    pair = (torch.tensor(each, dtype=torch.float64) for each in (chosen, rejected))
    return float(train_reward.bradley_terry(*pair)[0].mean())


def overflows(chosen, rejected):
    return statistics.fmean(-math.log(1 / (1 + math.exp(r - c))) for c, r in zip(chosen, rejected, strict=True))


def log_of_zero(chosen, rejected):
    pairs = zip(chosen, rejected, strict=True)
    return statistics.fmean(-math.log(math.exp(min(0, c - r)) / (1 + math.exp(-abs(c - r)))) for c, r in pairs)


def sides_swapped(chosen, rejected):
    return right_1(rejected, chosen)


def no_log(chosen, rejected):
    margins = torch.tensor(rejected, dtype=torch.float64) - torch.tensor(chosen, dtype=torch.float64)
    return float(torch.sigmoid(margins).mean())


def loss_of_the_mean(chosen, rejected):
    return right_1([statistics.fmean(chosen)], [statistics.fmean(rejected)])


def each_by_itself(chosen, rejected):
    pair = (torch.tensor(each, dtype=torch.float64) for each in (chosen, rejected))
    right, wrong = (torch.nn.functional.logsigmoid(each) for each in pair)
    return float(-(right + (-wrong.expm1()).log()).mean())


def task_1():
    return Function(
        "loss",
        right_1,
        [([1.0], [0.0]), ([2.0, -1.0], [0.5, 1.0]), ([3.0, 3.0], [3.0, -3.0]), ([-500.0, 1.0], [500.0, 0.0]), ([40.0], [-700.0])],
        [
            (overflows, "Right until scores lie far apart: exp() of a large number overflows. -log sigmoid(m) = log(1 + exp(-m)): which "
             "form of that has only small exponents?",
             "分数相差不大时是对的；相差很大时 exp() 会溢出。-log sigmoid(m) = log(1 + exp(-m))：怎样改写，指数才不会大？"),
            (log_of_zero, "exp() no longer overflows, but becomes 0, and log(0) fails. Take the log before, on paper.",
             "exp() 不再溢出，却变成 0，log(0) 出错。先在纸上取对数。"),
            (sides_swapped, "Yours is small where the rejected answer wins.", "被拒绝的回答得分更高时，你的损失反而小。"),
            (no_log, "That is the chance of being wrong, not its negative log-likelihood. Far off it has no gradient.",
             "这是判错的概率，不是负对数似然。差得远时它没有梯度。"),
            (loss_of_the_mean, "One loss for each pair, then the mean. A mean of scores hides the pair that is wrong.",
             "先算每一对的损失，再求均值。先平均分数会掩盖判错的那一对。"),
            (each_by_itself, "You judge each answer by itself. Only the difference of the two scores counts: adding 5 to both changes nothing.",
             "你在单独评判每个回答。只有两个分数的差有意义：两边都加 5，什么也不变。"),
        ],
        ("With equal scores the loss is log 2. Is yours?", "两个分数相等时损失是 log 2。你的呢？"),
        "rlhf_ppo/train_reward.py, bradley_terry",
    )  # fmt: skip


# -- 2: rewards of tokens


def right_2(logprobs, ref, mask, score, kl_coef):
    return train_ppo.token_rewards(
        row(*logprobs), row(*ref), torch.tensor([float(score)], dtype=torch.float64), row(*mask), kl_coef
    )[0]


def penalties(logprobs, ref, mask, kl_coef):
    return [-kl_coef * (p - q) * m for p, q, m in zip(logprobs, ref, mask, strict=True)]


def score_at_the_end_of_the_list(logprobs, ref, mask, score, kl_coef):
    made = penalties(logprobs, ref, mask, kl_coef)
    return [*made[:-1], made[-1] + score]


def score_everywhere(logprobs, ref, mask, score, kl_coef):
    return [each + score * m for each, m in zip(penalties(logprobs, ref, mask, kl_coef), mask, strict=True)]


def bonus(logprobs, ref, mask, score, kl_coef):
    return right_2(logprobs, ref, mask, score, -kl_coef)


def padding_too(logprobs, ref, mask, score, kl_coef):
    made = penalties(logprobs, ref, [1] * len(mask), kl_coef)
    made[sum(mask) - 1] += score
    return made


def last_without_kl(logprobs, ref, mask, score, kl_coef):
    made = penalties(logprobs, ref, mask, kl_coef)
    made[sum(mask) - 1] = score
    return made


def task_2():
    p, q = [-1.0, -0.5, -2.0, -3.0], [-1.5, -0.5, -1.0, -1.0]
    return Function(
        "token_rewards",
        right_2,
        [(p, p, [1, 1, 1, 1], 2.0, 0.1), (p, q, [1, 1, 1, 1], 2.0, 0.1), (p, q, [1, 1, 1, 0], -1.0, 0.5), (p, q, [1, 0, 0, 0], 0.5, 1.0)],
        [
            (score_at_the_end_of_the_list, "Behind a short answer's end there is padding, which has no gradient: the score is lost. Which "
             "is the last real token?", "短回答的末尾之后是填充，没有梯度：分数丢了。最后一个真实的 token 是哪个？"),
            (score_everywhere, "A score for every token pays for length. It comes once, where the answer ends.",
             "每个 token 都给分等于奖励长度。分数只给一次，在回答结束处。"),
            (bonus, "The sign: tokens that the policy likes more than the reference does shall cost.",
             "符号：策略比参考模型更偏爱的 token 应当扣分。"),
            (padding_too, "Padding is charged for KL. Multiply by mask.", "填充处也扣了 KL。乘上 mask。"),
            (last_without_kl, "The last token has both: its KL and the score.", "最后一个 token 两样都有：KL 和分数。"),
        ],
        ("Take kl_coef 0: where does the score stand? Then score 0: what remains?", "先令 kl_coef 为 0：分数在哪里？再令分数为 0：还剩什么？"),
        "rlhf_ppo/train_ppo.py, token_rewards",
    )  # fmt: skip


# -- 3: GAE


def right_3(rewards, values, mask, gamma, lam):
    return [each[0] for each in train_ppo.gae(row(*rewards), row(*values), row(*mask), gamma, lam)]


def backwards(rewards, values, mask, gamma, lam, bootstrap=False, decay=None):
    made, ahead = [0.0] * len(rewards), 0.0
    for t in reversed(range(sum(mask))):
        following = values[t + 1] if t + 1 < (len(values) if bootstrap else sum(mask)) else 0.0
        ahead = rewards[t] + gamma * following - values[t] + (gamma * lam if decay is None else decay) * ahead
        made[t] = ahead
    return made, [(a + v) * m for a, v, m in zip(made, values, mask, strict=True)]


def value_of_padding(rewards, values, mask, gamma, lam):
    return backwards(rewards, values, mask, gamma, lam, bootstrap=True)


def lam_alone(rewards, values, mask, gamma, lam):
    return backwards(rewards, values, mask, gamma, lam, decay=lam)


def gamma_alone(rewards, values, mask, gamma, lam):
    return backwards(rewards, values, mask, gamma, lam, decay=gamma)


def deltas_only(rewards, values, mask, gamma, lam):
    return backwards(rewards, values, mask, gamma, lam, decay=0.0)


def returns_are_rewards_to_go(rewards, values, mask, gamma, lam):
    made, ahead = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        made[t] = ahead = rewards[t] * mask[t] + gamma * ahead
    return right_3(rewards, values, mask, gamma, lam)[0], [each * m for each, m in zip(made, mask, strict=True)]


def returns_with_padding(rewards, values, mask, gamma, lam):
    made = right_3(rewards, values, mask, gamma, lam)[0].tolist()
    return made, [a + v for a, v in zip(made, values, strict=True)]


def task_3():
    rewards, values = [0.1, -0.2, 0.0, 1.0], [0.5, 0.4, 0.6, 0.9]
    cases = [([0.0, 1.0], [0.0, 0.0], [1, 1], 1.0, 0.95), (rewards, values, [1, 1, 1, 1], 1.0, 0.95), (rewards, values, [1, 1, 1, 1], 0.9, 0.8),
             ([0.1, 2.0, 0.0, 0.0], values, [1, 1, 0, 0], 0.9, 0.95)]  # fmt: skip
    return Function(
        "gae",
        right_3,
        cases,
        [
            (value_of_padding, "Behind the last token nothing follows: V there is 0, whatever the value model says of padding.",
             "最后一个 token 之后什么也没有：那里的 V 是 0，不管价值模型对填充说什么。"),
            (lam_alone, "A_t = delta_t + gamma lam A_{t+1}: you left gamma out. With gamma 1 nobody would have noticed.",
             "A_t = delta_t + gamma lam A_{t+1}：你漏了 gamma。gamma 为 1 时看不出来。"),
            (gamma_alone, "A_t = delta_t + gamma lam A_{t+1}: you left lam out.", "A_t = delta_t + gamma lam A_{t+1}：你漏了 lam。"),
            (deltas_only, "These are the deltas. Each advantage adds the next one, times gamma lam: go from the end to the beginning.",
             "这些是 delta。每个优势还要加上 gamma lam 乘以后一个优势：从末尾往前算。"),
            (returns_are_rewards_to_go, "The advantages are right. Returns here are A + V, what the value model learns.",
             "优势是对的。这里的回报是 A + V，价值模型学的就是它。"),
            (returns_with_padding, "At padding both lists are 0; your returns hold the value of padding.",
             "填充处两个列表都是 0；你的回报里留着填充处的价值。"),
        ],
        ("Compute the last token's delta by hand, then the one before it.", "手算最后一个 token 的 delta，再算它前面那个。"),
        "rlhf_ppo/train_ppo.py, gae",
    )  # fmt: skip


# -- 4: the clipped loss


def right_4(logprobs, old, advantages, clip):
    return train_ppo.policy_losses(row(*logprobs), row(*old), row(*advantages), clip)[0]


def clipped_only(logprobs, old, advantages, clip):
    return [
        -a * min(max(math.exp(p - q), 1 - clip), 1 + clip) for p, q, a in zip(logprobs, old, advantages, strict=True)
    ]


def unclipped(logprobs, old, advantages, clip):
    return [-a * math.exp(p - q) for p, q, a in zip(logprobs, old, advantages, strict=True)]


def larger_one(logprobs, old, advantages, clip):
    both = zip(clipped_only(logprobs, old, advantages, clip), unclipped(logprobs, old, advantages, clip), strict=True)
    return [min(each) for each in both]


def gain(logprobs, old, advantages, clip):
    return -right_4(logprobs, old, advantages, clip)


def ratio_of_logs(logprobs, old, advantages, clip):
    pairs = zip(logprobs, old, advantages, strict=True)
    return [-min(a * p / q, a * min(max(p / q, 1 - clip), 1 + clip)) for p, q, a in pairs]


def task_4():
    return Function(
        "policy_loss",
        right_4,
        [([-1.0, -1.0], [-1.0, -1.0], [2.0, -2.0], 0.2), ([-0.5, -0.5], [-1.0, -1.0], [1.0, -1.0], 0.2),
         ([-2.0, -2.0, -1.1], [-1.0, -1.0, -1.0], [1.0, -1.0, 3.0], 0.2)],
        [
            (clipped_only, "Clipping alone takes the gradient away from a token that has moved the WRONG way, too. What does the minimum "
             "do there?", "只裁剪，会让朝错误方向移动的 token 也没有梯度。min 在那里起什么作用？"),
            (unclipped, "Nothing is clipped: a second step on the same samples may go anywhere.", "没有裁剪：同一批样本上的第二步可以走到任何地方。"),
            (larger_one, "Of the two gains you take the larger one. PPO is careful: it takes the smaller.",
             "两个收益里你取了大的。PPO 很谨慎：取小的。"),
            (gain, "That is the gain. A loss is minimised: mind the sign.", "这是收益。损失是要最小化的：注意符号。"),
            (ratio_of_logs, "A ratio of probabilities is exp of a difference of logs, not a quotient of logs.",
             "概率之比是对数之差的 exp，不是对数之商。"),
        ],
        ("Make a table of four: advantage above or below 0, ratio above or below 1. Where is the gradient 0?",
         "列一张四格表：优势大于或小于 0，比值大于或小于 1。哪里梯度为 0？"),
        "rlhf_ppo/train_ppo.py, policy_losses",
    )  # fmt: skip


# -- 5: what best-of-n costs in KL


def kl_of_best(n=16, answers=2_000):
    """Measured: the chance that each of many equally likely answers is the best of n draws, against 1 / answers."""
    chances = [((k + 1) / answers) ** n - (k / answers) ** n for k in range(answers)]
    measured = sum(chance * math.log(chance * answers) for chance in chances if chance)
    assert abs(measured - best_of_n.kl_of(n)) < 0.01
    return measured


def task_5():
    return Number(
        kl_of_best,
        0.25,
        [
            ((2.6, 2.9), "log 16 is what it would be if the best answer were always the same one. It is not: nearly one nat less.",
             "log 16 是“最好的回答总是同一个”时的值。其实不是：要少将近 1 nat。"),
            ((5, 100), "KL grows with the logarithm of n: 16 tries do not cost 16 times as much as one.",
             "KL 随 n 的对数增长：试 16 次的代价不是 1 次的 16 倍。"),
            ((-1, 0.3), "The model is not changed, but what you get from it is: whoever chooses has another distribution.",
             "模型没有变，但得到的回答变了：挑选之后就是另一个分布。"),
        ],
        ("An answer in the upper sixteenth becomes how much likelier? The lower half is nearly never chosen.",
         "排在前十六分之一的回答，概率大了多少倍？后一半几乎不会被选中。"),
        "rlhf_ppo/best_of_n.py, kl_of",
    )  # fmt: skip
