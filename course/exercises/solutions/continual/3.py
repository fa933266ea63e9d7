"""How many tokens of replay? · 要回放多少 token？

The domain has `domain` tokens. General text shall make the share `share` of all tokens that are read. From each of `sources`
sources the same number of tokens is taken. How many from each?

领域语料有 `domain` 个 token。通用语料要占读到的全部 token 的 `share`。从 `sources` 个来源各取同样多的 token。每个来源取多少？

    replay(900, 0.1, 1)  ->  100
"""


def replay(domain, share, sources):
    """Tokens from each source, as a float."""
    return domain * share / (1 - share) / sources
