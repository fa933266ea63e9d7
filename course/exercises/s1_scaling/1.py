"""Budget forcing · 预算强制

The model thinks until it writes the token `stop`. `gen(ids, left)` lets it go on after `ids` (the prompt and all thinking so
far) and returns at most `left` new ids; the last is `stop` if it wanted to end. Write the loop:

    an end is refused `ignore` times: `stop` is taken away, the ids `wait` are put there, and the model thinks on
    the thinking, Waits included, never has more than `most` ids
    no Wait is put where not one id would be left after it: then thinking is over, with the reason "length"

模型一直思考到写出 token `stop`。`gen(ids, left)` 让它接着 `ids`（提示词加到目前为止的思考）往下写，最多返回 `left` 个新 id；
想结束时最后一个是 `stop`。请写出循环：结束被拒绝 `ignore` 次，即去掉 `stop`，放入 `wait` 的 id，让模型继续想；思考连同 Wait 在内
不超过 `most` 个 id；如果放入 Wait 之后一个 id 也不剩，就不放，思考结束，原因是 "length"。
"""


def think(gen, prompt, wait, stop, most, ignore):
    """(thinking ids without `stop`, "stop" where the model ended by itself, else "length"). `most` is above 0."""
    # your code here
