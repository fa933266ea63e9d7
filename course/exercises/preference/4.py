"""Mismatched answers for KTO's z0 · KTO 的 z0 用的错配回答

KTO asks how far the policy has moved, and estimates it on answers that do not belong to their prompt: row i gets the answer
of the row before it (the first row that of the last one). Where that row asks the same question its answer would belong
here, too: go on to the row before that one. Return the list of answers, one for each row.

KTO 要知道策略走了多远，用不属于该提示词的回答来估计：第 i 行取它前一行的回答（第一行取最后一行的）。如果前一行问的是同一个问题，它的回答也属于
这里：再往前找一行。返回每行一个回答的列表。

    mismatched(["a", "a", "b"], ["1", "2", "3"])  ->  ["3", "3", "2"]
"""


def mismatched(prompts, answers):
    """A list of answers: for each row one of another prompt."""
    # your code here
