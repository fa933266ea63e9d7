"""Is an adapter W + s B A on the public base? That is all that vLLM, llama.cpp and deploy/ compute, whatever its config says.

    python portable.py outputs/lora_variants/RUN                  the newest run without an argument
    python portable.py outputs/lora_variants/RUN/checkpoint-20    a checkpoint of PiSSA's is not

Logits of some rows, once as PEFT reads the folder and once as plain W + s B A: the largest difference. Below 1e-3 of logits that
are some tens large the two are the same model in float32; DoRA, and PiSSA or OLoRA as they were trained, are off by tenths or more.
"""

import argparse
import math
import re
from pathlib import Path

from common import adapters, models
from common.files import read_json
from common.hub import resolve_model
from common.paths import load_env
from data import CATALOGUE, read_rows
from prompt import TEMPLATE, encode

SAME = 1e-3


def read_plain(model, folder):
    """Add s B A of a saved adapter to a model's weights, in place, as a program does that knows nothing else. Returns it."""
    import torch
    from safetensors.torch import load_file

    settings, weights = read_json(folder / "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
    for name, a in weights.items():
        if found := re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", name):
            weight = model.get_parameter(f"{found[1]}.weight")
            b = weights[name.replace("lora_A", "lora_B")]
            with torch.no_grad():
                weight += (scale * b.float() @ a.float()).to(weight)
    return model


def logits_of(model, rows):
    """Logits of lists of token ids, in float32, one after the other: (tokens, vocabulary) on the CPU."""
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        made = [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in rows]
    model.train(training)
    return torch.cat(made)


def error(one, other) -> float:
    """The largest difference of two models' logits."""
    return float((one - other).abs().max())


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "adapter", nargs="?", help="a run's folder, or a checkpoint's (default: the newest finished run)"
    )
    parser.add_argument("--model", help="the base (default: the one that the adapter names)")
    args = parser.parse_args(argv)
    load_env()
    folder = Path(args.adapter).expanduser() if args.adapter else models.latest()
    if not (folder / "adapter_config.json").is_file():
        raise SystemExit(f"{folder} holds no adapter (no adapter_config.json). Give a run's folder or a checkpoint's.")
    path = resolve_model(args.model or adapters.base_of(folder))
    import torch

    tokenizer = models.load_tokenizer(path)
    rows = encode(tokenizer, read_rows(CATALOGUE)[0][:16], TEMPLATE)[0]

    def base():
        return models.load_base(path, "hf", None, torch.float32)

    found = error(logits_of(adapters.attach(base(), folder), rows), logits_of(read_plain(base(), folder), rows))
    print(
        f"{folder}: as PEFT reads it against W + s B A: logits differ by {found:.1e} at most ({sum(map(len, rows))} tokens)"
    )
    if found > SAME:
        raise SystemExit(
            "not portable: merge it first (../deploy/export.py), or take the run's own folder, not a checkpoint."
        )
    print("portable: W + s B A on the public base is this model")


if __name__ == "__main__":
    main()
