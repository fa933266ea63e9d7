"""The demo's pairs: openings of the SFT model's own answers, cut in four ways and ranked by gold.py.

Each prompt is answered once; the answer's beginning becomes a whole sentence of 9 to 14 words, the better side, and in turn
something that gold thinks worse: the same words without an end, the text as it ran on, a stub of one to four words. So neither
the shorter nor the longer side wins by rule, and a stub has lost to a sentence: a reward model that would pay for saying nothing
has seen pairs against it.

As sample/gold.jsonl was made:  python gold_pairs.py --out NEW.jsonl
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from common import models
from common.cli import arg, parse
from common.files import write_lines
from common.hub import resolve_model
from common.paths import DEMO_MODEL
from gold import gold, prompts
from prompt import prompt_ids

DEFAULTS = dict(model=DEMO_MODEL, pairs=120, max_new_tokens=36, seed=3407)
WAYS = ("no end", "runs on", "stub", "stub")  # what the worse side is, in turn: two shorter, one longer, one as long


@dataclass
class Args:
    out: str | None = arg(None, "a new file for the pairs")


def cut(words, count):
    """The first `count` words as a sentence with an end."""
    return re.sub(r"[^\w]*$", "", " ".join(words[:count])) + "."


def pair(draw, way, text):
    """(better, worse) made of an answer's beginning, or None where it is too short or gold does not agree."""
    words = text.split()
    if len(words) < 18:
        return None
    better = cut(words, draw.randint(9, 14))
    count = len(better.split())
    worse = {
        "no end": " ".join(words[: count + draw.randint(1, 3)]).rstrip(".!?"),
        "runs on": " ".join(words).rstrip(".!?"),
        "stub": cut(words, draw.randint(1, 4)),
    }[way]
    return (better, worse) if gold(better) > gold(worse) + 0.25 else None


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if not args.out:
        raise SystemExit("give --out FILE: where the pairs go.")
    out = Path(args.out)
    if out.exists():
        raise SystemExit(f"{out} exists and is kept: give another --out, or move it away.")
    path, draw = resolve_model(args.model), random.Random(args.seed)
    talks = prompts(min(480, 2 * args.pairs), args.seed)
    import torch

    from common.answers import generate

    torch.manual_seed(args.seed)
    tokenizer, model = models.load_tokenizer(path), models.load_base(path, "hf", None, torch.float32)
    ids = prompt_ids(tokenizer, [{"prompt": talk} for talk in talks])
    texts = generate(model, tokenizer, ids, args.max_new_tokens, 64, temperature=0.7, top_k=0, top_p=1.0)
    lines = []
    for talk, text in zip(talks, texts, strict=True):
        made = pair(draw, WAYS[len(lines) % len(WAYS)], text)
        if made and len(lines) < args.pairs:
            lines.append({"prompt": talk[-1]["content"], "chosen": made[0], "rejected": made[1]})
    write_lines(out, lines)
    print(f"{len(lines)} pairs: {out}")


if __name__ == "__main__":
    main()
