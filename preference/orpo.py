"""ORPO: SFT and preference in one loss, without a reference (arXiv 2403.07691).

SFT on the chosen answers alone makes the rejected ones likelier, too: they are alike. ORPO adds a term that holds them
apart, by the odds of an answer, odds(y|x) = P / (1 - P), where P is the mean probability of its tokens (geometric):

    L = - log P(y_c|x)  -  lambda log sigmoid( log odds(y_c|x) - log odds(y_r|x) )

No second model and no second pass; and nothing that holds the policy near where it began, except that the chosen answers
are good ones. It is meant to begin from a base model: where an SFT run is at hand, DPO starts from more.
TRL (and the authors' code) count the prompt's tokens in the first term, and average it over all tokens of a micro-batch,
so that it changes with gradient accumulation. Here, as in the paper, it is the answer's, and each row counts the same.

One GPU:            python orpo.py --model Qwen/Qwen2.5-7B --data pairs.jsonl
Minutes, CPU:        python orpo.py --demo
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dpo
from common.cli import arg, parse

DEFAULTS = dpo.DEFAULTS | dict(
    weight=0.1,  # lambda: more, and the first term no longer holds the language together
    learning_rate=1e-4,  # it is an SFT loss as well, and there is no ratio to a reference that would run away
)
del DEFAULTS["beta"]
DEMO = dpo.DEMO | dict(weight=1.0)  # sixteen updates only


@dataclass
class Args(dpo.PairArgs):
    weight: float = arg(0.1, "of the odds ratio (the paper's lambda, TRL's beta)")


def orpo_loss(policy, reference, lengths, weight):
    """(losses, margins) of pairs, (B,) each. policy: log p(y|x), (2B,), the chosen answers first; lengths: their tokens.

    log odds = log P - log(1 - P). Near P = 1 the last is exact only as log(-expm1(log P)). The margin is the log odds ratio.
    """
    import torch
    from torch.nn.functional import logsigmoid

    mean = policy / lengths
    odds = mean - torch.log(-torch.expm1(mean))
    margin = odds.chunk(2)[0] - odds.chunk(2)[1]
    return -mean.chunk(2)[0] - weight * logsigmoid(margin), margin


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "transformers:TrainingArguments", argv)
    return dpo.run_pairs(args, partial(orpo_loss, weight=args.weight), needs_reference=False)


if __name__ == "__main__":
    main()
