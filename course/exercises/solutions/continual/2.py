"""How alike are two documents? · 两篇文档有多像？

A reprint has another date and a changed line. Shingles find it: all runs of `size` words of a document, as a set. Two documents
are as alike as the share of shingles that both have among the shingles that either has (Jaccard). Text is cut into words by
`text.lower().split()`; a text with fewer than `size` words is one shingle, all of it.

重印的文档换了日期，改了一行。用 shingle 可以找出来：把一篇文档中所有连续 `size` 个词的片段放进一个集合。两篇文档的相似度，是两边都有的片段
在两边全部片段中所占的比例（Jaccard）。用 `text.lower().split()` 切词；不足 `size` 个词的文本整篇算一个片段。

    alike("a b c d", "a b c e", size=2)  ->  0.5
"""


def alike(one, other, size):
    """The share, between 0 and 1."""
    sets = []
    for text in (one, other):
        words = text.lower().split()
        sets.append({tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])
