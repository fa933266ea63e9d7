"""Predict: at which KL does a run that goes too far turn? · 预测：走得太远的训练在多大的 KL 处变差？

A run that over-optimises on purpose, small enough for a second. Answers are lengths, 1 to 80 words. The reference writes about
30 (their logs are normal, with a spread of 0.35), 12 is best: gold is -|log(length / 12)|. Of two sampled lengths the one with
more gold is chosen. In all 400 pairs that is the shorter one, so the policy learns "shorter", the one thing that it can learn,
with dpo.py's loss, step after step. Nothing stops it at 12: the loss still falls. At how many nats of KL from the reference is
gold highest? Guess, write the number, then run the check. Within 0.75 is right. The same with a real model takes 2 to 3 minutes
(preference/RESULTS.md has what comes of it): python dpo.py --demo --beta 0.01 --learning_rate 3e-3

一次有意过度优化的训练，小到一秒就能跑完。回答只有长度，1 到 80 个词。参考模型写 30 个左右（取对数后是正态分布，标准差 0.35），12 个最好：gold 是
-|log(长度 / 12)|。采样两个长度，gold 较高的是 chosen。400 对里全是较短的那个，所以策略用 dpo.py 的损失一步一步学会“更短”，它能学的也只有这个。
到了 12 也没有什么会让它停下：损失还在降。离参考模型多少 nat 的 KL 处 gold 最高？先猜，写下数字，再运行检查。差 0.75 以内算对。真实模型上同样的
事要两三分钟（结果见 preference/RESULTS.zh-CN.md）：python dpo.py --demo --beta 0.01 --learning_rate 3e-3
"""

PREDICTION = 3.4  # nats
