"""The advantages of GRPO · GRPO 的优势

`rewards` holds the rewards of several questions' samples, G neighbours for each question. Compare each sample with its
group: (reward - mean) / (std + 1e-4), where std is the group's standard deviation as torch.std computes it.

`rewards` 是几道题的样本奖励，每题相邻的 G 个为一组。每个样本与本组比较：(奖励 - 均值) / (标准差 + 1e-4)，标准差按 torch.std 的算法。

    advantages([1, 0, 1, 1], G=2)  ->  [0.707, -0.707, 0, 0]
"""


def advantages(rewards, G):
    """One advantage for each reward, in the same order."""
    made = []
    for start in range(0, len(rewards), G):
        group = rewards[start : start + G]
        mean = sum(group) / G
        std = (sum((each - mean) ** 2 for each in group) / (G - 1)) ** 0.5
        made += [(each - mean) / (std + 1e-4) for each in group]
    return made
