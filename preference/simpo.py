"""SimPO: DPO without a reference, per token, with a target for the margin (arXiv 2405.14734).

DPO's reward is a ratio to a reference, which an answer can raise by being long. When a model answers, it goes by the mean
log-probability of a token; SimPO takes that as the reward, so length pays nothing, and asks for a margin of gamma:

    L = - log sigmoid( beta / |y_c| log p(y_c|x)  -  beta / |y_r| log p(y_r|x)  -  gamma )

One model, one pass, no reference to load. Nothing holds the policy near where it began, either, but a small learning rate:
with a large one answers fall apart. beta is larger than DPO's, since a mean per token is a small number.

One GPU:            python simpo.py --data pairs.jsonl
Minutes, CPU:        python simpo.py --demo
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dpo
from common.cli import arg, parse

DEFAULTS = dpo.DEFAULTS | dict(
    beta=2.0,  # the paper's range is 2 to 10
    margin=1.0,  # gamma; the paper's range for gamma / beta is 0.3 to 1.6
    learning_rate=1e-5,  # half of DPO's: no reference holds it
)
DEMO = dpo.DEMO


@dataclass
class Args(dpo.PairArgs):
    beta: float = arg(2.0, "scale of the mean log-probability of a token")
    margin: float = arg(1.0, "by which the chosen side should lead (the paper's gamma)")


def simpo_loss(policy, reference, lengths, beta, gamma):
    """(losses, margins) of pairs, (B,) each. policy: log p(y|x), (2B,), the chosen answers first; lengths: their tokens.

    The margin is that of the rewards, before gamma is taken off.
    """
    from torch.nn.functional import logsigmoid

    chosen, rejected = (beta * policy / lengths).chunk(2)
    margin = chosen - rejected
    return -logsigmoid(margin - gamma), margin


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "transformers:TrainingArguments", argv)
    return dpo.run_pairs(args, partial(simpo_loss, beta=args.beta, gamma=args.margin), needs_reference=False)


if __name__ == "__main__":
    main()
