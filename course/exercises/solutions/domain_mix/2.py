"""A conversation in ChatML · ChatML 格式的对话

Write messages {"role", "content"} as one text, up to where the assistant begins to write:

    <|im_start|>ROLE\\nTEXT<|im_end|>\\n      for each message, TEXT without blanks and line breaks around it
    <|im_start|>assistant\\n                  at the end

What people wrote must not be able to end its turn: take <|im_start|>, <|im_end|> and <|endoftext|> out of it, and strip after
that.

把消息 {"role", "content"} 写成一段文本，写到助手开始说话为止，格式如上；TEXT 去掉两边的空格和换行。人写的文本不能结束自己的一轮：
先从中去掉 <|im_start|>、<|im_end|> 和 <|endoftext|>，再去空白。
"""


def chatml(messages):
    """A text."""
    text = ""
    for message in messages:
        content = message["content"]
        for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
            content = content.replace(mark, "")
        text += f"<|im_start|>{message['role']}\n{content.strip()}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"
