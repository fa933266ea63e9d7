"""Ask a fine-tuned model about a photo, or about every photo in a folder, in words or as JSON.

One photo:        python infer.py --image dashboard.jpg
Before and after: python infer.py --image dashboard.jpg --compare        the course's way to look at a run
As JSON:          python infer.py --image dashboard.jpg --json
A folder:         python infer.py --image photos/ --out facts.jsonl      a line per photo; bad files are named and left out
"""

import contextlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import device, models
from common.cli import ModelArgs, arg, parse
from common.files import new_file, write_lines
from fields import parse as parse_answer
from pictures import FORMATS, BadPicture, find_picture, load_image

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)  # fmt: skip


@dataclass
class Args(ModelArgs):
    image: str | None = arg(None, "a photo, or a folder of them (.jpg .jpeg .png .webp)")
    prompt: str | None = arg(None, "the question (default: the one that the adapter was trained with)")
    json: bool = arg(False, "print the facts that the answer gives as JSON, not the answer")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    out: str | None = arg(None, "write the answers and their facts to this new file, as JSON lines")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_pixels: int | None = arg(None, "pixel cap (default: what the adapter was trained with; keep it)")
    max_new_tokens: int = arg(200, "longest answer, in tokens")
    batch_size: int = arg(0, "photos answered at once (0: 8, on a GPU up to 64 as its memory allows)")


def find_pictures(name):
    """(files that can be read, lines about those that cannot) of a photo or a folder."""
    if not name:
        raise SystemExit("--image: which photo, or which folder?")
    path = Path(name).expanduser()
    if not path.exists():
        raise SystemExit(f"{path}: no such file or folder.")
    names = [path.name]
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if each.suffix.lower() in FORMATS)
        if not names:
            raise SystemExit(f"{path}: no {', '.join(FORMATS)} in this folder.")
    root, good, bad = path if path.is_dir() else path.parent, [], []
    for each in names:
        try:
            file = find_picture(each, root)
            load_image(file)
            good.append(file)
        except BadPicture as problem:
            bad.append(f"{root / each}: {problem}; left out")
    if not good:
        raise SystemExit("\n".join([*bad, f"{path}: no picture that can be read."]))
    return good, bad


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    out = new_file(args.out) if args.out else None
    files, bad = find_pictures(args.image)
    for line in bad:
        print(line)
    run = models.open_run(args.adapter, args.model, needed=("prompt",))
    args.backend = device.decide_backend(args.backend)  # before transformers, which Unsloth patches
    from answers import generate
    from model import load_base, load_processor

    model, processor = models.load_run(run, args, load_base, partial(load_processor, max_pixels=args.max_pixels))
    prompt = args.prompt or run.texts["prompt"]
    if not args.json:
        print(f"adapter: {run.adapter}\n{prompt}")
    said = {}
    for name in ("base", "tuned") if args.compare else ("tuned",):
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            said[name] = generate(
                model, processor, files, [prompt] * len(files), args.max_new_tokens, args.batch_size, args.backend
            )
    lines = []
    for i, file in enumerate(files):
        facts = parse_answer(said["tuned"][i])
        lines.append({"image": str(file)} | {name: each[i] for name, each in said.items()} | {"facts": facts})
        if args.json:
            print(json.dumps(facts if len(files) == 1 else {"image": str(file)} | facts, ensure_ascii=False))
            continue
        print(f"{'=' * 100}\n{file}")
        for name, each in said.items():
            print(f"{name + ': ' if args.compare else ''}{each[i] or '(empty)'}")
    if out:
        write_lines(out, lines)
        print(f"{len(lines)} answers: {out}")


if __name__ == "__main__":
    main()
