"""Votes become preference pairs · 投票变成偏好数据

A vote is {"id", "winner", "answers": {"base": text, "run": text}, "messages"}; winner is "base", "run" or "tie". Make of each
vote that says which answer is better a row for DPO: {"prompt": messages, "chosen": text, "rejected": text}, texts stripped.
An id that was voted on before counts once, by its first vote. What else says nothing about an order?

一次投票是 {"id", "winner", "answers": {"base": 文本, "run": 文本}, "messages"}；winner 是 "base"、"run" 或 "tie"。把每次能说明哪个回答更好的
投票变成一行 DPO 数据：{"prompt": messages, "chosen": 文本, "rejected": 文本}，文本去掉两边空白。投过票的 id 只算第一次。还有哪些投票
不说明先后？
"""


def pairs(votes):
    """A list of rows."""
    made, seen = [], set()
    for vote in votes:
        if vote["id"] in seen:
            continue
        seen.add(vote["id"])
        if vote["winner"] == "tie":
            continue
        answers = {name: text.strip() for name, text in vote["answers"].items()}
        chosen = answers.pop(vote["winner"])
        (rejected,) = answers.values()
        if chosen and rejected and chosen != rejected:
            made.append({"prompt": vote["messages"], "chosen": chosen, "rejected": rejected})
    return made
