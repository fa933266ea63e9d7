"""What the four methods share: the pair batch, log-probabilities of answers, the reference, and a trainer that adds nothing.

A batch holds the chosen rows and then the rejected ones, prompt + answer each, and goes through the model once. On a GPU
they lie end to end, each seeing itself only (common/speed/packing.py); on a CPU they are padded: the same numbers. A row's
number is

    log p(y | x) = sum over the answer's tokens, its end token too, of log p(token | everything before it)

The reference is the same model with its adapter off. A run that starts from an SFT run's adapter (--start) loads that one
twice: "default" is trained, "reference" stays. What is saved is one adapter on the public base.
"""

import contextlib
from collections import defaultdict
from functools import partial

import torch
from transformers import Trainer

from common import tokens
from common.speed import packing
from prompt import TEMPLATE, answer_ids, prompt_ids

CHUNK = 1024  # answer tokens whose logits exist at a time: 0.6 GB in float32 for Qwen's 152,000 words
REFERENCE = "reference"


# -- rows


def rows_of(tokenizer, rows, side, template=TEMPLATE):
    """(lists of input_ids, lists of labels) of prompt + rows' answers in the column `side`; a prompt's labels are -100."""
    prompts, answers = prompt_ids(tokenizer, rows, template), answer_ids(tokenizer, [row[side] for row in rows])
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    return ids, [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]


def tokenize(rows, tokenizer, max_length, name, template=TEMPLATE, sides=("chosen", "rejected"), **more):
    """Rows as a datasets.Dataset: input_ids and labels of the first side, NAME_ids and NAME_labels of the others.

    more: columns of integers, one list for each row. Rows of which a side is over max_length are dropped, never cut: a cut
    answer has no end, and to end is part of what is preferred.
    """
    from datasets import Dataset

    made = {}
    for side in sides:
        ids, labels = rows_of(tokenizer, rows, side, template)
        made |= {f"{side}_ids": ids, f"{side}_labels": labels}
    keep = [max(lengths) <= max_length for lengths in zip(*(map(len, made[f"{s}_ids"]) for s in sides), strict=True)]
    tokens.report_dropped(len(rows), sum(keep), max_length, name)
    columns = {
        key: [each for each, fits in zip(values, keep, strict=True) if fits] for key, values in (made | more).items()
    }
    first = {"input_ids": columns.pop(f"{sides[0]}_ids"), "labels": columns.pop(f"{sides[0]}_labels")}
    return Dataset.from_dict(first | columns)


def flat(rows, sides):
    """Rows of a dataset as single ones, {input_ids, labels} each: all of the first side, then all of the second."""
    return [{"input_ids": row[ids], "labels": row[labels]} for ids, labels in sides for row in rows]


PAIR = (("input_ids", "labels"), ("rejected_ids", "rejected_labels"))


def collate(rows, tokenizer, packed, sides=PAIR):
    """A batch of rows: padded, or end to end. lengths: tokens of each row's answer, a list."""
    made = flat(rows, sides)
    batch = dict(packing.collator(tokenizer, packed, "hf")([dict(each) for each in made]))
    return batch | {"lengths": [sum(label != -100 for label in each["labels"]) for each in made]}


def collator(tokenizer, packed):
    return partial(collate, tokenizer=tokenizer, packed=packed)


# -- log-probabilities


class LogProbs(torch.autograd.Function):
    """log p of targets (n,) after hidden states (n, width) through a frozen head (words, width): (n,), float32.

    The logits of a chunk exist once. Since the head is frozen, d log p / d hidden = W[target] - softmax W is all that a
    backward pass needs, and it is made from the same logits: nothing is computed again.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        made, ctx.gradient = [], torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = (part.to(weight.dtype) @ weight.T).float()
            total = logits.logsumexp(-1, keepdim=True)
            made.append((logits.gather(1, wanted) - total)[:, 0])
            if ctx.gradient is not None:
                share = logits.sub_(total).exp_().neg_()
                share.scatter_add_(1, wanted, torch.ones_like(wanted, dtype=share.dtype))
                ctx.gradient[start : start + CHUNK] = share.to(weight.dtype) @ weight
        return torch.cat(made)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.gradient * gradient[:, None].to(ctx.gradient.dtype), None, None


def head_of(model):
    """The frozen output layer. Stops where logits are more than its product: other numbers would be trained on."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    changed = [
        name for name in ("final_logit_softcapping", "logit_scale", "output_multiplier") if getattr(config, name, None)
    ]
    if changed or type(head) is not torch.nn.Linear or head.bias is not None:
        why = changed[0] if changed else "its output layer is no plain matrix, or is trained"
        raise SystemExit(f"{type(model).__name__} is not supported here: {why}.")
    return head


@contextlib.contextmanager
def hidden_states(head):
    """A model's call returns hidden states in the place of logits, whatever the model is wrapped in."""
    before, head.forward = vars(head).get("forward"), lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward
        if before:
            head.forward = before


def logprobs(model, batch, head):
    """log p(y | x) of each row of a batch: (rows,), float32."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "lengths")}
    with hidden_states(head):
        hidden = model(**inputs, use_cache=False).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    counted = targets != -100
    each = LogProbs.apply(hidden[counted], head.weight, targets[counted])
    return torch.stack([part.sum() for part in each.split(batch["lengths"])])


@contextlib.contextmanager
def reference(model):
    """Inside, the PEFT model is the reference: the frozen copy of the adapter that it started from, or the base."""
    training = model.training
    model.eval()
    try:
        if REFERENCE in model.peft_config:
            model.base_model.set_adapter(REFERENCE, inference_mode=True)
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        model.set_adapter("default")
        model.train(training)


@torch.no_grad()
def reference_logprobs(model, batch, head):
    with reference(model):
        return logprobs(model, batch, head)


# -- the trainer


class PairTrainer(Trainer):
    """transformers' Trainer with another loss, which is averaged over all rows of an optimizer step.

    loss(policy, reference, lengths) -> (losses, margins), (rows,) each; policy, reference: log p(y | x), lengths: tokens of
    the answers, each (2 x rows,), the chosen sides first. reference is None where needs_reference is False.
    So gradient accumulation changes nothing: not a mean of means where the last micro-batch has fewer rows.
    """

    sides = PAIR

    def __init__(self, *args, loss, needs_reference=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss, self.needs_reference = loss, needs_reference
        self.head = head_of(self.accelerator.unwrap_model(self.model).get_base_model())
        self.model_accepts_loss_kwargs = True  # or the Trainer divides by the micro-batches once more
        self._metrics = {"train": defaultdict(list)}  # of the rows since the last log; common/runs.py keeps it
        self._known = None, {}  # the weights that were measured last on the held-out rows, and what was found
        self._references = {}  # of the held-out batches

    def rows_in(self, batch):
        return len(batch["lengths"]) // len(self.sides)

    def _get_num_items_in_batch(self, batch_samples, device):
        count = torch.tensor(sum(map(self.rows_in, batch_samples)), device=device)
        return self.accelerator.gather(count).sum()

    def measure(self, model, batch):
        """(losses (rows,), {metric: one number per row}) of a batch."""
        before = self.reference_of(batch, batch.get("place")) if self.needs_reference else None
        policy = logprobs(model, batch, self.head)
        lengths = torch.tensor(batch["lengths"], device=policy.device)
        losses, margins = self.loss(policy, before, lengths)
        (chosen, rejected), sizes = policy.detach().chunk(2), lengths.float().chunk(2)
        facts = {
            "margin": margins.detach(),
            "accuracy": ((margins > 0).float() + (margins >= 0).float()) / 2,  # a tie is half right: 0.5 at first
            "logp_chosen": chosen,
            "logp_rejected": rejected,
        }
        facts |= {"length_chosen": sizes[0], "length_rejected": sizes[1]}
        if before is not None:
            facts |= dict(zip(("ratio_chosen", "ratio_rejected"), (policy.detach() - before).chunk(2), strict=True))
        names, table = list(facts), torch.stack(list(facts.values())).tolist()  # one wait for the GPU
        return losses, dict(zip(names, table, strict=True))

    def reference_of(self, batch, place):
        """log p_ref(y | x), (rows,). place: which held-out batch it is, computed once since its reference stays; None: another."""
        if place in self._references:
            return self._references[place]
        found = reference_logprobs(self.accelerator.unwrap_model(self.model), batch, self.head)
        if place is not None:
            self._references[place] = found
        return found

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses, facts = self.measure(model, inputs)
        for name, values in facts.items():
            self._metrics["train"][name] += values
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        return losses.sum() * self.accelerator.num_processes / count

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {name: mean(values) for name, values in self._metrics["train"].items() if values}
            self._metrics["train"].clear()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self.callback_handler.eval_dataloader = self.get_eval_dataloader(eval_dataset)
        found = self.held_out(eval_dataset, self.callback_handler.on_prediction_step)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def held_out(self, dataset=None, told=None):
        """Means over the held-out rows; rows count alike, whatever batch they are in. told: called after each batch.

        Weights that were measured a moment ago are not measured again: before and after training a person asks, too.
        """
        model, found, weights = self.model, defaultdict(list), self.weights()
        if dataset is None and weights == self._known[0]:
            return self._known[1]
        training = model.training
        model.eval()
        batches = [self._prepare_inputs(batch) for batch in self.get_eval_dataloader(dataset)]
        if dataset is None:
            batches = [batch | {"place": place} for place, batch in enumerate(batches)]
        for batch in self.prepared(batches):
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                losses, facts = self.measure(model, batch)
            for name, values in ({"loss": losses.tolist()} | facts).items():
                found[name] += values
            if told:
                self.control = told(self.args, self.state, self.control)
        model.train(training)
        means = {name: mean(self.gathered(values)) for name, values in found.items()}
        if dataset is None:
            self._known = weights, means
        return means

    def weights(self):
        """Sums of the trained weights, which tell whether they have moved."""
        return torch.stack([each.double().sum() for each in self.model.parameters() if each.requires_grad]).tolist()

    def gathered(self, values):
        from accelerate.utils import gather_object

        return gather_object(values) if self.accelerator.num_processes > 1 else values

    def prepared(self, batches):
        """The micro-batches of one optimizer step, or of one evaluation. KTO estimates its z0 from them."""
        return batches


def mean(values):
    return sum(values) / max(1, len(values))
