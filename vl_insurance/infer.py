"""Ask a fine-tuned model about a photo, or about every photo in a folder, in words or as JSON.

One photo:        python infer.py --image dashboard.jpg
Before and after: python infer.py --image dashboard.jpg --compare        the course's way to look at a run
As JSON:          python infer.py --image dashboard.jpg --json
A folder:         python infer.py --image photos/ --out facts.jsonl      a line a photo, bad files named and left out
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from common.cli import arg, parse
from common.models import ModelArgs
from common.runs import latest_adapter, read_record, replace_text
from data import FORMATS, BadPicture, find_picture, load_image
from fields import parse as parse_answer
from model import answers, load_adapter
from render import PROMPT

DEFAULTS = dict(
    model=None,  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args:
    image: str | None = arg(None, "a photo, or a folder of them (.jpg .jpeg .png .webp)")
    prompt: str | None = arg(None, "the question (default: the one that the adapter was trained with)")
    json: bool = arg(False, "print the facts that the answer gives as JSON, not the answer")
    compare: bool = arg(False, "also ask the base model, without the adapter")
    out: str | None = arg(None, "write the answers and their facts to this new file, as JSON lines")
    adapter: str | None = arg(None, "an adapter folder (default: the newest finished run)")
    max_pixels: int | None = arg(None, "pixel cap (default: what the adapter was trained with; keep it)")
    max_new_tokens: int = arg(200, "longest answer, in tokens")
    batch_size: int = arg(8, "photos answered at once")


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


def question_of(adapter):
    file = Path(adapter) / "prompt.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else PROMPT


def main(argv=None):
    args, model_args = parse(__file__, DEFAULTS, {}, (Args, ModelArgs), argv=argv)
    out = Path(args.out) if args.out else None
    if out and out.exists():
        raise SystemExit(f"{out} exists and is kept. Name another file with --out.")
    files, bad = find_pictures(args.image)
    for line in bad:
        print(line)
    adapter = Path(args.adapter) if args.adapter else latest_adapter()
    model, processor = load_adapter(adapter, model_args, args.max_pixels)
    prompt = args.prompt or question_of(adapter)
    own = read_record(adapter).get("arguments", {}).get("base_prompt")  # the base may know no other question
    if not args.json:
        print(f"adapter: {adapter}\n{prompt}")
    said = {}
    for name in ("base", "tuned") if args.compare else ("tuned",):
        with model.disable_adapter() if name == "base" else contextlib.nullcontext():
            pictures = [lambda file=file: load_image(file) for file in files]
            prompts = [own if name == "base" and own and not args.prompt else prompt] * len(files)
            said[name] = answers(
                model, processor, pictures, prompts, args.max_new_tokens, args.batch_size, model_args.backend
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
        replace_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"{len(lines)} answers: {out}")


if __name__ == "__main__":
    main()
