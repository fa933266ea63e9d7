"""How likely is an answer? · 一个回答的概率有多大？

`ids` are the tokens of a prompt, its answer, and the end token; the answer begins at place `start`. `logprobs[t][v]` is the
log-probability that token v comes after ids[: t + 1]. Return log p(answer | prompt): the sum over the answer's tokens, the
end token too, since to stop there is part of the answer.

`ids` 依次是提示词、回答和结束符的 token；回答从位置 `start` 开始。`logprobs[t][v]` 是 token v 出现在 ids[: t + 1] 之后的对数概率。
返回 log p(回答 | 提示词)：对回答的 token 求和，结束符也算，因为在那里停下来也是回答的一部分。

    answer_logprob([[-0.1, -2.4], [-1.2, -0.4], [-0.7, -0.7]], [0, 1, 0], start=1)  ->  -3.6
"""


def answer_logprob(logprobs, ids, start):
    """log p(answer | prompt), a number."""
    # your code here
