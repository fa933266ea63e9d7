"""Predict: how many parameters does LoRA train? · 预测：LoRA 训练多少参数？

Qwen2.5-7B has 28 layers. Each has seven projections: q (3584 to 3584), k and v (3584 to 512), o (3584 to 3584), gate and up
(3584 to 18944), down (18944 to 3584). LoRA with r = 16 stands beside each of them. How many million numbers are trained?
Estimate in your head, write it down, then run the check. Within 5 million is right.

Qwen2.5-7B 有 28 层。每层七个投影：q（3584 到 3584）、k 和 v（3584 到 512）、o（3584 到 3584）、gate 和 up（3584 到 18944）、
down（18944 到 3584）。每个旁边都有 r = 16 的 LoRA。训练的参数有多少百万？心算估计，写下来，再运行检查。差 5 百万以内算对。
"""

PREDICTION = 40  # millions
