"""Prompt and answer become ids and labels · 提示词和回答变成 ids 和标签

At inference the model gets the prompt alone and goes on from its last token. Make the training row such that the prompt
has the same tokens there. The answer and the end token are learned, the prompt is skipped (-100).
`tokenize(text)` gives a list of ids, without special tokens.

推理时模型只拿到提示词，从它的最后一个 token 往下写。请让训练数据里提示词的 token 与推理时相同。学习的是回答和结束 token，
提示词跳过（-100）。`tokenize(text)` 返回 id 列表，不带特殊 token。

    encode(tokenize, "Add 1 and 2.", "3", end=2)  ->  (ids, labels), equally long
"""


def encode(tokenize, prompt, answer, end):
    """(ids, labels) of one row."""
    before = tokenize(prompt)
    after = [*tokenize(answer), end]
    return before + after, [-100] * len(before) + after
