"""SFT adapter + base -> one plain model: what the reward model and PPO start from, and what KL is measured against.

    W' = W + (alpha / r) B A, added in 32 bits, saved in bfloat16

Why a merge and not two adapters on top of each other: PPO's reference is "the backbone with all adapters off". If the
SFT were still an adapter, that would be the raw base model, and the policy would be pulled back to a model that never
learnt to answer. Merge in 16 bits and quantise afterwards: adding to weights that were rounded to 4 bits loses quality.

One command:  python merge.py --adapter outputs/alpaca/20261122-101500
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from common import adapters, hub, models
from common.cli import arg, parse
from common.paths import check_disk, command
from stage import StageArgs, fingerprint

DEFAULTS = dict(
    model=None  # the base that the adapter's adapter_config.json names
)


@dataclass
class Args(StageArgs):
    adapter: str | None = arg(None, "the SFT adapter's folder, as alpaca/ or domain_mix/ leave it")
    model: str | None = arg(None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub")


def merge(adapter: Path, base: Path, folder: Path):
    """Write adapter + base to `folder` as a plain bfloat16 model with the adapter's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = hub.load(AutoModelForCausalLM, base, dtype=torch.float32)
    merged = adapters.attach(model, adapter).merge_and_unload(safe_merge=True)
    tokenizer = models.load_tokenizer(adapter if (adapter / "tokenizer_config.json").is_file() else base)
    new = folder / ".merged.new"
    shutil.rmtree(new, ignore_errors=True)
    merged.to(torch.bfloat16).save_pretrained(new)
    tokenizer.save_pretrained(new)
    for file in sorted(new.iterdir(), key=lambda file: file.name == "config.json"):  # last: it makes a folder a model
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    new.rmdir()


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, {}, Args, argv=argv)
    if not args.adapter:
        raise SystemExit("--adapter FOLDER is needed: the SFT run to merge. A whole model needs no merging.")
    adapter = Path(args.adapter).expanduser()
    if not (adapter / "adapter_config.json").exists():
        raise SystemExit(f"{adapter} holds no adapter (no adapter_config.json). Give the folder that the SFT named.")
    base = hub.resolve_model(args.model or adapters.base_of(adapter))
    adapters.check(adapter, base, adapters.read_record(adapter).get("arguments"))
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    inputs = {"base": fingerprint(base), "adapter": digest_adapter(adapter)}

    from common import runs  # torch is loaded from here on: what can be wrong above has been said

    run = runs.Run(args, stage="merged", inputs=inputs)
    if run.finished:
        return run.folder
    check_disk(run.folder.parent, 2 * weights, "the merged model")
    if (adapter / "prompt_template.txt").is_file():
        print(
            "note: this SFT was trained in the alpaca template; the stages here ask in the chat template. An SFT from "
            "alpaca/train_chat_template.py or domain_mix/ fits better."
        )
    with run:
        merge(adapter, base, run.folder)
        run.note(fingerprint=fingerprint(run.folder))
    print(f"Next: {command('train_reward.py', '--model', run.folder)}")
    return run.folder


def digest_adapter(adapter: Path) -> str:
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
