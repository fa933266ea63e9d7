"""Predict: what does best-of-16 cost in KL? · 预测：best-of-16 的 KL 是多少？

Best-of-16 samples sixteen answers and keeps the one with the highest score; nothing is trained. What you get is no longer
distributed as the model's answers are. How far is it from them, in nats of KL per answer? PPO turns worse in gold at 10 to
13 nats (README). Guess, write the number, then run the check. Within 0.25 is right.

best-of-16 采样十六个回答，保留分数最高的一个；什么也不训练。得到的回答不再服从模型原来的分布。两者相距多少，以每个回答的 KL 计，
单位 nat？PPO 的真实质量在 10 到 13 nat 处开始变差（见 README）。先猜，写下数字，再运行检查。差 0.25 以内算对。
"""

PREDICTION = 1.8  # nats
