"""A finished run -> files that other programs read: merged weights, GGUF, the adapter as GGUF, an Ollama Modelfile.

    W' = W + (alpha / r) B A, added in 32 bits, one matrix at a time; from that bfloat16, f16, q8_0 and K-quants

Each file carries the serving contract: the template that the run was trained in, and the tokens that end an answer. Nothing
is overwritten: what is there with the same inputs is kept, with other inputs another folder is taken. gate.py then says
whether a file is the trained model.

Newest run:      python export.py
All forms:       python export.py outputs/medical/20261122-101500 --to merged,gguf,adapter_gguf,ollama --quant f16,q8_0,q4_k_m
"""

import importlib.util
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import contract, device, hub
from common.cli import arg, parse
from common.files import is_full, read_json, take_lock, write_json
from common.paths import check_disk, command, output_dir
from found import contract as contract_of
from found import digest, free_memory, name_of, open_run, sha256, threads, tokenizer_of, with_run

DEFAULTS = dict(
    to="merged,gguf,ollama",  # also: merged_4bit (a GPU), adapter_gguf
    quant="q8_0,q4_k_m",  # also: f16, q5_k_m. Each is a file of its own
)
FORMS = ("merged", "merged_4bit", "gguf", "adapter_gguf", "ollama")
QUANTS = ("f16", "q8_0", "q4_k_m", "q5_k_m")
BYTES = {
    "merged": 2.0,
    "merged_4bit": 0.7,
    "f16": 2.0,
    "q8_0": 1.07,
    "q4_k_m": 0.9,
    "q5_k_m": 0.9,
}  # per weight, at most
MANIFEST = "manifest.json"


@dataclass
class Args:
    adapter: str | None = arg(
        None, "a finished run's folder (default: the newest of all recipes); also without the flag"
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )
    merge_into: Literal["published", "nf4"] = arg(
        "published", "nf4: the base as a QLoRA run saw it, rounded to 4 bits and back (bitsandbytes)"
    )
    out: str | None = arg(None, "the folder to write to (default: OUTPUT_DIR/deploy/<recipe>-<run>)")


def listed(text: str, known: tuple, flag: str) -> list[str]:
    """A list that is given with commas, in the order of `known`, checked."""
    names = [each.strip().lower() for each in text.split(",") if each.strip()]
    if wrong := [each for each in names if each not in known] or ([""] if not names else []):
        raise SystemExit(
            f"export.py: error: --{flag} {wrong[0]!r}: choose from {', '.join(known)}, with commas between them"
        )
    return [each for each in known if each in names]


def open_folder(args, run, inputs) -> tuple[Path, dict]:
    """(the folder to write to, its manifest): one with the same inputs is gone on with, one with others is left alone."""
    wanted = Path(args.out).expanduser() if args.out else output_dir("deploy") / name_of(run)
    for folder in [wanted, *(wanted.with_name(f"{wanted.name}-{n}") for n in range(2, 1000))]:
        manifest = read_json(folder / MANIFEST)
        if manifest.get("inputs") == inputs:
            return folder, manifest
        if not folder.exists() or not any(not each.name.startswith(".") for each in folder.iterdir()):
            return folder, {"inputs": inputs, "files": {}}
        print(f"{folder} was made of something else and is kept.")
    raise SystemExit(f"{wanted}: a thousand exports have this name. Name another folder with --out.")


def make(folder: Path, name: str, write, record):
    """Write one file or folder under a temporary name, record it, then rename it.

    In this order a kill at any moment leaves a part that is complete and recorded, or none. record(files, path): is given
    {relative name: {sha256, bytes}} and where the part lies now.
    """
    new, target = folder / f".new-{name}", folder / name
    if target.exists():
        raise SystemExit(
            f"{target} exists and is not what this run gives. Move it away, or name another folder with --out."
        )
    try:
        write(new)
    except Exception as error:
        shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)
        if not is_full(error):
            raise
        raise SystemExit(f"{folder}: the disk is full. What was finished is kept; the same command goes on.") from None
    known = {}
    for each in [each for each in sorted(new.rglob("*")) if each.is_file()] if new.is_dir() else [new]:
        each.chmod(0o644)  # safetensors writes 0600, and a container runs as another user
        known[str(Path(name) / each.relative_to(new))] = {"sha256": sha256(each), "bytes": each.stat().st_size}
    record(known, new)
    os.replace(new, target)


def whole(folder: Path, name: str, manifest: dict) -> bool:
    """Whether a part was made before and is still as it was made: sizes, and sha256."""
    files = {file: known for file, known in manifest["files"].items() if Path(file).parts[0] == name}
    sizes = all(
        (folder / file).is_file() and (folder / file).stat().st_size == known["bytes"] for file, known in files.items()
    )
    return bool(files) and sizes and all(sha256(folder / file) == known["sha256"] for file, known in files.items())


def plan(args, run, weights: int) -> tuple[dict, float]:
    """({part's file name: form} of what is asked for, bytes that it takes), or SystemExit where this run cannot give it."""
    forms, quants = listed(args.to, FORMS, "to"), listed(args.quant, QUANTS, "quant")
    if "merged_4bit" in forms:
        need_bitsandbytes("merged_4bit")
    serving, name = contract_of(run)[0], name_of(run)
    parts = {}
    for form in forms:
        if form in ("merged", "merged_4bit"):
            parts[form] = form
        elif form == "adapter_gguf":
            if serving["kind"] == "whole":
                raise SystemExit("adapter_gguf: this run trained every weight and has no adapter (--to gguf).")
            if serving["kind"] != "plain":
                raise SystemExit("adapter_gguf: this adapter (DoRA, PiSSA or OLoRA) is not W + s B A in other programs: "
                                 "merge it (--to gguf).")  # fmt: skip
            parts[f"{name}-adapter.gguf"] = form
        elif form == "gguf":
            parts |= {f"{name}-{quant}.gguf": quant for quant in quants}
            if serving["question"]:  # a model that sees: the image encoder is a file of its own
                parts[f"{name}-mmproj.gguf"] = "mmproj"
        elif form == "ollama":
            parts["Modelfile"] = form
    if "ollama" in forms and not any(form in QUANTS or form == "merged" for form in parts.values()):
        raise SystemExit("--to ollama needs a file that its Modelfile names: add gguf.")
    need = weights * sum(BYTES.get(form, 0) for form in parts.values())
    if {"q4_k_m", "q5_k_m"} & set(parts.values()) and "f16" not in parts.values():
        need += 2 * weights  # made of a GGUF in 16 bits, which is taken away again
    return parts, need


def main(argv=None) -> Path:
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    listed(args.to, FORMS, "to"), listed(args.quant, QUANTS, "quant")
    run = open_run(args.adapter, args.model, whole=True)
    serving, template = contract_of(run)
    weights = sum(file.stat().st_size for file in run.base.glob("*.safetensors")) // 2
    parts, need = plan(args, run, weights)
    inputs = {"base": serving["base_digest"], "adapter": digest(run.adapter),
              "contract": contract.digest_ids([template, serving["stop_ids"], serving["max_length"]])}  # fmt: skip
    if args.merge_into == "nf4" and serving["kind"] == "whole":
        raise SystemExit("--merge_into nf4: this run trained every weight and has no adapter to merge.")
    if args.merge_into == "nf4":
        need_bitsandbytes("--merge_into nf4")
        inputs["merge_into"] = "nf4"
    folder, manifest = open_folder(args, run, inputs)
    parts = {name: form for name, form in parts.items() if not whole(folder, name, manifest) or form == "ollama"}
    check_disk(folder, 0, "")
    if not (lock := take_lock(folder)):
        raise SystemExit(f"{folder}: another export is writing there.")
    try:
        check_disk(folder, int(1.1 * need * bool(set(parts) - {"Modelfile"})), "the export")
        for left in folder.glob(".new-*"):  # of an export that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        export(run, folder, manifest, parts, serving, template, weights)
    finally:
        lock.release()
    print(f"\nIs it the trained model? {command('gate.py', run.adapter, '--files', folder)}")
    return folder


def need_bitsandbytes(what: str):
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SystemExit(f"{what} needs bitsandbytes: pip install bitsandbytes==0.50.2")


def largest(base: Path) -> int:
    """Values of a model's largest matrix."""
    return max(
        math.prod(each["shape"]) for file in base.glob("*.safetensors") for each in hub._header(file)[1].values()
    )


def export(run, folder: Path, manifest: dict, parts: dict, serving: dict, template: str, weights: int):
    """Make each part that is not there yet, and keep the manifest."""
    if not set(parts) - {"Modelfile"}:
        print(f"already done, with the same digests: {folder}")
    elif (need := 500_000_000 + 12 * largest(run.base) + min(2_000_000_000, 2 * weights)) > (free := free_memory()):
        raise SystemExit(f"not enough memory: about {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free.")
    if not parts:
        return
    import four_bit  # torch is loaded from here on: what can be wrong above has been said
    import gguf_file
    import merged
    import mmproj
    import quantise

    if any(form in QUANTS or form == "adapter_gguf" for form in parts.values()):
        gguf_file.architecture(run.base)
    name, trained = name_of(run), serving["kind"] == "whole"
    nf4 = manifest["inputs"].get("merge_into") == "nf4"
    adapter = merged.Adapter(None if trained else run.adapter, run.base, nf4, trained)
    half = folder / f"{name}-f16.gguf"

    def write_merged(new):
        new.mkdir()
        merged.write(adapter, new)
        merged.write_texts(run.adapter, run.base, new)

    def write_gguf(new, form):
        gguf_file.write_model(adapter, run.adapter, new, form, serving, template, name)

    def write_k_quant(new, form):
        source = half if half.is_file() else folder / ".new-f16-for-k-quants.gguf"
        if not source.is_file():
            write_gguf(source, "f16")
        quantise.quantise(source, new, form, threads())

    def write_part(new, form):
        if form == "merged":
            write_merged(new)
        elif form == "merged_4bit":
            four_bit.write(run, new, write_merged)
        elif form == "adapter_gguf":
            gguf_file.write_adapter(adapter, new, name)
        elif form == "mmproj":
            mmproj.write(adapter, run.adapter, new, name)
        else:
            (write_gguf if form in ("f16", "q8_0") else write_k_quant)(new, form)

    def keep(part, known):
        others = {file: old for file, old in manifest["files"].items() if Path(file).parts[0] != part}
        manifest["files"] = others | known
        manifest.update(plain_error=max(adapter.worst, manifest.get("plain_error", 0)), **device.peak_memory())
        write_json(folder / MANIFEST, manifest)

    for part, form in parts.items():
        if form == "ollama":
            continue
        began = time.time()

        def record(known, new, part=part, form=form, began=began):
            size, said = sum(each["bytes"] for each in known.values()), ""
            if part.endswith(".gguf"):
                what = gguf_file.describe(new)
                known[part] |= {"types": what["types"], "bits_per_weight": what["bits"]}
                said = f", {what['bits']} bits per weight"
                if form.endswith("_m") and (fallback := quantise.fallen_back(what["types"], form)):
                    said += f"\n      {fallback}"
            keep(part, known)
            print(f"{part}: {size / 1e6:,.1f} MB, {time.time() - began:.1f} s{said}")

        make(folder, part, lambda new, form=form: write_part(new, form), record)
    (folder / ".new-f16-for-k-quants.gguf").unlink(missing_ok=True)
    if "Modelfile" in parts:
        write_modelfile(run, folder, manifest, serving, template, keep)
    if adapter.worst > 1e-3:
        print(
            f"this adapter is not W + s B A (relative error {adapter.worst:.2g}): serve the merged files, not the adapter."
        )
    print(f"peak memory of this process: {next(iter(device.peak_memory().values()))} GB\nexported: {folder}")


def write_modelfile(run, folder: Path, manifest: dict, serving: dict, template: str, keep):
    """Write and check the Modelfile of the smallest GGUF that is there; of a model that sees, of the merged folder."""
    import modelfile

    sizes = {file: known["bytes"] for file, known in manifest["files"].items() if "bits_per_weight" in known}
    sizes = {file: size for file, size in sizes.items() if "-adapter" not in file and "-mmproj" not in file}
    source = "merged" if serving["question"] or not sizes else min(sizes, key=sizes.get)
    text, target = modelfile.write(f"./{source}", template, serving), folder / "Modelfile"
    parsed = modelfile.lint(text, folder, serving)
    if not serving["question"] and (wrong := modelfile.differences(parsed, tokenizer_of(run), template)):
        raise SystemExit(f"Modelfile: Ollama would ask {wrong[0]!r} in other tokens than training did: this chat template is not "
                         "ChatML. Leave ollama out of --to.")  # fmt: skip
    old = manifest["files"].get("Modelfile", {}).get("sha256")
    if target.exists() and sha256(target) != old and target.read_text(encoding="utf-8") != text:
        return print(f"{target} was changed by hand and is kept.")
    target.unlink(missing_ok=True)
    make(
        folder,
        "Modelfile",
        lambda new: new.write_text(text, encoding="utf-8"),
        lambda known, _: keep("Modelfile", known),
    )
    print(f"Modelfile: FROM {source}; on a machine with Ollama: ollama create {name_of(run)} -f Modelfile")


if __name__ == "__main__":
    main()
