"""A conversation that grows too long · 越来越长的对话

`history` is a list of messages {"role", "content"}, user and assistant in turn, that ends with the user's question.
`length(messages)` counts tokens. Return the messages for the model, {"role": "system", "content": system} first, of at most
`room` tokens: what must go goes from the old end, question and answer together. One of them always fits.

`history` 是消息 {"role", "content"} 的列表，用户和助手交替，以用户的问题结尾。`length(messages)` 数 token。返回给模型的消息，
第一条是 {"role": "system", "content": system}，总共不超过 `room` 个 token：要去掉的从最旧的一端去，问和答一起去。总有一种放得下。
"""


def fit(length, system, history, room):
    """A list of messages."""
    first = [{"role": "system", "content": system}]
    for cut in range(0, len(history), 2):
        if length(first + history[cut:]) <= room:
            return first + history[cut:]
