"""KTO: learn from thumbs, single answers that were liked or not; no pairs needed (arXiv 2402.01306).

People weigh a loss more than a gain, both as seen from where they stand (Kahneman and Tversky). The reward is DPO's,
r = log p(y|x) / p_ref(y|x), and where one stands is z0, the policy's distance from the reference:

    L = w_good [1 - sigmoid(beta (r - z0))]  of an answer that was liked
    L = w_bad  [1 - sigmoid(beta (z0 - r))]  of one that was not           z0 = max(0, mean of r over mismatched rows)

z0 is an estimate of KL(p || p_ref) without sampling: each prompt with the answer to the prompt before it, all such rows of
one optimizer step, and no gradient flows through it. TRL takes the rows of a micro-batch instead: its z0, and so its loss,
changes with gradient accumulation, and at one row per micro-batch there is no mismatched one. At the first step r = z0 = 0
and L = 0.5. A pair is two rows here; thumbs of deploy/votes.py are read as they are.

One GPU:            python kto.py --data thumbs.jsonl
Minutes, CPU:        python kto.py --demo
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dpo
from common.cli import arg, parse
from data import key_of

DEFAULTS = dpo.DEFAULTS | dict(
    good_weight=1.0,  # good_weight x liked rows should be 1 to 1.33 of bad_weight x the others (the paper, eq. 8)
    bad_weight=1.0,
    per_device_train_batch_size=8,  # rows, and as many mismatched ones
)
DEMO = dpo.DEMO | dict(per_device_train_batch_size=12)  # sixteen updates: each row once


@dataclass
class Args(dpo.PairArgs):
    beta: float = arg(0.1, "price of distance from the reference")
    good_weight: float = arg(1.0, "of the rows that were liked")
    bad_weight: float = arg(1.0, "of the others")


def kto_loss(policy, reference, liked, z0, beta, good_weight, bad_weight):
    """(losses, margins), (B,) each. policy, reference: log p(y|x), (B,); liked: (B,) of bool; z0: a number, 0 or more.

    The margin is beta (r - z0) of liked rows and beta (z0 - r) of the others: above 0 the row is on its side.
    """
    import torch

    margin = beta * (policy - reference - z0)
    margin = torch.where(liked, margin, -margin)
    return torch.where(liked, good_weight, bad_weight) * (1 - margin.sigmoid()), margin


def mismatched(rows):
    """Rows with the answer to another prompt as `mismatched`: that of the row before, or of the next one that asks
    something else. A pairing of the data set, so that it does not depend on batches."""
    keys, made = [key_of(row["prompt"]) for row in rows], []
    for i, row in enumerate(rows):
        other = next((k for k in range(i - 1, i - len(rows), -1) if keys[k] != keys[i]), None)
        if other is None:
            raise SystemExit("all rows ask the same: KTO needs different prompts to estimate z0.")
        made.append(row | {"mismatched": rows[other]["completion"]})
    return made


def trainer_class():
    """KTO's trainer. In a function, because it is made after the command line was read: torch is slow to load."""
    import torch

    import pairs

    class KTOTrainer(pairs.PairTrainer):
        sides = (("input_ids", "labels"),)

        def prepared(self, batches):
            """Puts z0, estimated from the mismatched rows of all these micro-batches, into each of them."""
            model, ratios = self.accelerator.unwrap_model(self.model), []
            training = model.training
            model.eval()
            with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
                for batch in batches:
                    rows = self._prepare_inputs(batch.pop("mismatched"))
                    place = ("mismatched", batch["place"]) if "place" in batch else None
                    ratios.append(pairs.logprobs(model, rows, self.head) - self.reference_of(rows, place))
            model.train(training)
            if batches:
                mean = self.accelerator.gather(torch.cat(ratios).mean()).mean()
                z0 = mean.clamp(min=0)
            return [batch | {"z0": z0} for batch in batches]

        def get_batch_samples(self, *args, **kwargs):
            batches, count = super().get_batch_samples(*args, **kwargs)
            return self.prepared(batches), count

        def measure(self, model, batch):
            batch = dict(batch)
            z0, liked = batch.pop("z0"), batch.pop("liked")
            before = self.reference_of(batch, batch.get("place"))
            policy = pairs.logprobs(model, batch, self.head)
            losses, margins = self.loss(policy, before, liked, z0)
            table = torch.stack(
                [margins.detach(), policy.detach(), policy.detach() - before, liked.float(), z0 + 0 * before]
            ).tolist()
            facts = {"margin": table[0], "accuracy": [((m > 0) + (m >= 0)) / 2 for m in table[0]], "z0": table[4][:1]}
            for name, kind in (("chosen", 1.0), ("rejected", 0.0)):
                mine = [i for i, label in enumerate(table[3]) if label == kind]
                facts |= {f"logp_{name}": [table[1][i] for i in mine], f"ratio_{name}": [table[2][i] for i in mine]}
            return losses, facts

    return KTOTrainer


def collate(rows, tokenizer, packed):
    import torch

    import pairs

    batch = pairs.collate(rows, tokenizer, packed, KTO_SIDES[:1])
    batch["mismatched"] = pairs.collate(rows, tokenizer, packed, KTO_SIDES[1:])
    return batch | {"liked": torch.tensor([bool(row["liked"][0]) for row in rows])}


def collator(tokenizer, packed):
    return partial(collate, tokenizer=tokenizer, packed=packed)


KTO_SIDES = (("input_ids", "labels"), ("mismatched_ids", "mismatched_labels"))


def to_set(rows, tokenizer, max_length, name, template):
    import pairs

    how = dict(sides=("completion", "mismatched"), liked=[[int(row["label"])] for row in rows])
    return pairs.tokenize(mismatched(rows), tokenizer, max_length, name, template, **how)


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, DEMO, Args, "transformers:TrainingArguments", argv)
    loss = partial(kto_loss, beta=args.beta, good_weight=args.good_weight, bad_weight=args.bad_weight)
    return dpo.run_method(args, lambda: (to_set, collator, partial(trainer_class(), loss=loss)), single=True)


if __name__ == "__main__":
    main()
