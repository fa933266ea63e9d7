"""The scale of a converted adapter · 转换之后的缩放系数

LoRA computes W x + s B A x with s = alpha / r; rsLoRA takes s = alpha / sqrt(r). PiSSA's adapter becomes a plain one by doubling its
rank (exercise 2). Programs read r and alpha from adapter_config.json and compute s themselves, so alpha has to change as well, or s
would. Return the new (r, alpha) with which s stays what it was.

LoRA 计算 W x + s B A x，其中 s = alpha / r；rsLoRA 取 s = alpha / sqrt(r)。PiSSA 的适配器把秩加倍就成为普通的 LoRA（练习 2）。各种程序从
adapter_config.json 里读 r 和 alpha，自己算出 s，所以 alpha 也要跟着变，否则 s 就变了。返回使 s 保持不变的新的 (r, alpha)。

    converted(alpha=16, r=8, rslora=False)  ->  (16, 32)
"""


def converted(alpha, r, rslora):
    """(r, alpha) of the adapter of twice the rank."""
    # your code here
