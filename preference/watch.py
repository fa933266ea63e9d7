"""What one watches in preference training: a picture of the run, and the model's own answers before and after.

The training's numbers are about given answers. What the model writes by itself, how long, and how far that is from the
reference, only sampling shows: look() samples an answer to held-out prompts and reports

    KL      mean over answers of log p(y|x) - log p_ref(y|x), in nats per answer; unbiased, with its standard error
    words   of the answers, and the share that ended by themselves
    gold    gold.py's formula, where the pairs were ranked by it
"""

import math
import statistics

import torch

import pairs
from common import models
from common.answers import generate
from common.speed import graph
from gold import gold, words_of
from prompt import prompt_ids

PANELS = {
    "loss": {"loss": "training", "eval_loss": "held out"},
    "held out: log p(y|x), nats per answer": {"eval_logp_chosen": "chosen", "eval_logp_rejected": "rejected"},
    "held out: log p - log p of the reference": {"eval_ratio_chosen": "chosen", "eval_ratio_rejected": "rejected"},
    "margin": {"margin": "training", "eval_margin": "held out"},
    "accuracy: the margin is above 0": {"accuracy": "training", "eval_accuracy": "held out"},
    "KTO: z0": {"z0": "training"},
}


def draw(run):
    """loss.png of a run: the panels of which something was logged."""
    known = {name for log in run.metrics() for name in log}
    run.plot("loss.png", {title: names for title, names in PANELS.items() if known & set(names)}, x="optimizer step")


@torch.no_grad()
def sampled(model, tokenizer, prompts, new, head, batch_size=16, temperature=1.0):
    """Sampled answers to prompts (token ids): [{ids, text, kl, ended}]. kl is of one answer; only its mean means something."""
    how = dict(temperature=temperature, top_k=0, top_p=1.0, return_ids=True) if temperature else dict(return_ids=True)
    training = model.training
    model.eval()
    answers, made = generate(model, tokenizer, prompts, new, batch_size, decode=graph.decode, **how), []
    for start in range(0, len(prompts), batch_size):
        rows = [
            (p, a)
            for p, a in zip(prompts[start : start + batch_size], answers[start : start + batch_size], strict=True)
        ]
        batch = batch_of(rows, tokenizer.pad_token_id, model.device)
        with models.inference(model, "hf"):
            policy = pairs.logprobs(model, batch, head)
            kls = (policy - pairs.reference_logprobs(model, batch, head)).tolist()
        for (_, ids), kl in zip(rows, kls, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            made.append(dict(ids=ids, text=text, kl=kl, ended=ids[-1:] == [tokenizer.eos_token_id]))
    model.train(training)
    return made


def batch_of(rows, pad, device):
    """(prompt, answer) token ids as a padded batch of pairs.logprobs."""
    longest = max(len(p) + len(a) for p, a in rows)
    gaps = [longest - len(p) - len(a) for p, a in rows]
    made = {
        "input_ids": [p + a + [pad] * gap for (p, a), gap in zip(rows, gaps, strict=True)],
        "labels": [[-100] * len(p) + a + [-100] * gap for (p, a), gap in zip(rows, gaps, strict=True)],
        "attention_mask": [[1] * (longest - gap) + [0] * gap for gap in gaps],
    }
    batch = {name: torch.tensor(value, device=device) for name, value in made.items()}
    return batch | {"lengths": [len(a) for _, a in rows]}


def facts_of(made):
    """Means of `sampled`'s answers, with standard errors."""
    kls, golds = [each["kl"] for each in made], [gold(each["text"]) for each in made]
    error = math.sqrt(len(made)) if len(made) > 1 else math.inf
    return {
        "kl": statistics.fmean(kls),
        "kl_error": statistics.pstdev(kls) / error,
        "gold": statistics.fmean(golds),
        "gold_error": statistics.pstdev(golds) / error,
        "words": statistics.fmean(len(words_of(each["text"])) for each in made),
        "tokens": statistics.fmean(len(each["ids"]) for each in made),
        "ended": statistics.fmean(each["ended"] for each in made),
    }


def look(trainer, tokenizer, rows, template, args):
    """Held-out numbers of the trainer, and sampled answers: what is compared before and after training.

    The random state is put back: a run trains the same whether it is looked at or not.
    """
    from common.runs import random_state, set_random_state

    state = random_state()
    torch.manual_seed(args.seed)
    different = {str(row["prompt"]): row for row in rows}
    shown = list(different.values())[: args.show_answers]
    model = trainer.accelerator.unwrap_model(trainer.model)
    made = (
        sampled(model, tokenizer, prompt_ids(tokenizer, shown, template), args.max_new_tokens, trainer.head)
        if shown
        else []
    )
    found = trainer.held_out() | (facts_of(made) if made else {})
    set_random_state(state)
    answers = [
        {"prompt": row["prompt"][-1]["content"], "answer": each["text"]} for row, each in zip(shown, made, strict=True)
    ]
    return found | {"answers": answers}


def show(before, after, count=3):
    """Print what changed: held-out numbers, the model's own answers."""
    from common.files import text_table

    for old, new in list(zip(before["answers"], after["answers"], strict=True))[:count]:
        print(f"\n{old['prompt']}\n  before: {old['answer'] or '(empty)'}\n  after:  {new['answer'] or '(empty)'}")
    names = ("loss", "accuracy", "margin", "logp_chosen", "logp_rejected", "kl", "words", "tokens", "ended", "gold")
    lines = [(name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in names if name in before and name in after]
    print("\n" + text_table(("held out", "before", "after"), lines))
    print("gold: gold.py's formula for short plain answers; it means something for the sample's pairs only")
