"""A batch padded to its longest row · 填充到最长一行的批次

Fill the rows up on the right. input_ids get the token `pad`, labels get what the loss skips, and attention_mask says with
1 and 0 which tokens are real. `pad` may be the same token as the end token, which many models have: real end tokens stay
visible and stay in the labels.

在右边填充各行。input_ids 用 token `pad`，labels 用损失会跳过的数，attention_mask 用 1 和 0 表示哪些 token 是真的。`pad` 可能与结束
token 相同（许多模型如此）：真正的结束 token 要保持可见，并留在标签里。

    collate([{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [8], "labels": [8]}], pad=0)
"""


def collate(rows, pad):
    """{"input_ids", "labels", "attention_mask"}: lists of equally long lists."""
    longest = max(len(row["input_ids"]) for row in rows)
    made = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        length = len(row["input_ids"])
        gap = longest - length
        made["input_ids"].append(row["input_ids"] + [pad] * gap)
        made["labels"].append(row["labels"] + [-100] * gap)
        made["attention_mask"].append([1] * length + [0] * gap)
    return made
