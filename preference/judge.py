"""A second opinion on pairs: how often a reward model of rlhf_ppo/ prefers the side that was chosen, and where it does not.

    python data.py --check pairs.jsonl --reward_run ../outputs/rlhf_ppo/reward/RUN

A reward model is no truth, but it errs in other places than a slip of the hand: where it disagrees most, read the pair. Far
under 50% the two columns may be swapped. About pairs that it was trained on it says little: it has learned their labels.
"""

from pathlib import Path

from common import adapters, hub
from common.files import fingerprint
from prompt import answer_ids, prompt_ids

SHOWN = 5  # pairs that are printed


def open_reward(folder):
    """(folder, its base's folder) of a reward model. Stops where it is none, and says what it is."""
    folder = Path(folder).expanduser()
    record = adapters.read_record(folder)
    if not (folder / "reward.json").is_file():
        of = "/".join(record[name] for name in ("task", "stage") if record.get(name))
        what = f"it is a run of {of}" if of else "it has no reward.json"
        raise SystemExit(
            f"{folder} holds no reward model: {what}. Give the folder that rlhf_ppo/train_reward.py named."
        )
    reward = hub.read_object(folder / "reward.json", model=str, fingerprint=str)
    base = hub.resolve_model(adapters.base_of(folder))
    if reward["fingerprint"] != fingerprint(base):
        raise SystemExit(
            f"{folder} was trained on another model than {base} ({reward['model']}): it would score noise."
        )
    adapters.check(folder, base)
    return folder, base


def scores_of(folder, base, pairs, max_length, batch_size=8):
    """[(score of chosen, of rejected)], None for a pair that is too long. Scores are of the reward model's own scale."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from common import device, models

    device.decide_backend("hf")
    tokenizer = models.load_tokenizer(folder)
    where = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    model = hub.load(
        AutoModelForSequenceClassification,
        base,
        fresh=["score.weight"],
        num_labels=1,
        dtype=torch.float32,  # in bfloat16 scores that lie near become ties
        device_map=where,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model = adapters.attach(model, folder).eval()
    prompts = prompt_ids(tokenizer, pairs)
    sides = [answer_ids(tokenizer, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")]
    rows = [prompt + answer for answers in sides for prompt, answer in zip(prompts, answers, strict=True)]
    found, order = [None] * len(rows), sorted(range(len(rows)), key=lambda i: len(rows[i]))
    order = [i for i in order if len(rows[i]) <= max_length]
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        longest = max(len(rows[i]) for i in part)
        gaps = [longest - len(rows[i]) for i in part]
        ids = torch.tensor([rows[i] + [tokenizer.pad_token_id] * gap for i, gap in zip(part, gaps, strict=True)])
        mask = torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps])
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0]
        for i, score in zip(part, logits.float().tolist(), strict=True):
            found[i] = score
    both = zip(found[: len(pairs)], found[len(pairs) :], strict=True)
    return [None if None in pair else pair for pair in both]


def told(pairs, places, scores):
    """Lines: the share of pairs whose chosen side scores higher, and the pairs where the other side wins by most."""
    margins = [(pair[0] - pair[1], i) for i, pair in enumerate(scores) if pair]
    if not margins:
        yield "reward model: every pair is over --max_length"
        return
    share = sum(margin > 0 for margin, _ in margins) / len(margins)
    swapped = ": are the columns swapped?" if share < 0.4 else ""
    yield f"reward model prefers the chosen side: {share:.0%} of {len(margins):,} pairs{swapped}"
    wrong = sorted(each for each in margins if each[0] < 0)
    for margin, i in wrong[:SHOWN]:
        asked = pairs[i]["prompt"][-1]["content"]
        sides = (f"{name} {short(pairs[i][name])}" for name in ("chosen", "rejected"))
        yield f"  {places[i].inside}: {margin:+.2f}  {short(asked)}: {', '.join(sides)}"


def short(text, most=48):
    text = " ".join(text.split())
    return repr(text if len(text) <= most else text[: most - 2] + " …")
