"""Is a file the trained model? Base, adapter and every exported file read the same held-out texts, token by token.

    slope of  log p_file - log p_base  over  log p_adapter - log p_base
    0: this file is the base    1: the trained model    2: alpha counted twice    below 0: a sign was lost

with a 95% interval from resampling the prompts; and how far from the adapter: KL(adapter || file) per token. KL alone would
not do: a small update, counted twice, is as far from the adapter as the base is. Also compared: token ids of the prompt,
the token that ends an answer, and that it ends it. Never generated text: two equal models drift apart at the first tie.

Exit code: 0 right; 3 training changed nothing; 4 a file is the base; 5 another model, or asked in another prompt;
6 undecided. The page is gate.html beside the files.

Newest run:      python gate.py
One run, files:  python gate.py outputs/medical/20261122-101500 --files outputs/deploy/medical-20261122-101500
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import contract
from common.cli import arg, parse
from common.files import read_json, text_table, write_json
from common.paths import check_disk, command, output_dir
from found import contract as contract_of
from found import digest, free_memory, name_of, open_run, public_of, threads, tokenizer_of, with_run

DEFAULTS = dict(
    seed=0  # of the resampling
)
# KL per token that a file of a kind may be away from the adapter: about ten times what was measured of good ones.
LIMITS = {"f16": 1e-4, "merged": 5e-3, "adapter": 1e-3, "q8_0": 0.02, "q4_k_m": 0.2, "q5_k_m": 0.2, "served": 0.02,
          "merged_4bit": 0.5}  # fmt: skip
FILE_TYPES = {1: "f16", 7: "q8_0", 15: "q4_k_m", 17: "q5_k_m"}
NEAR = 0.25  # a slope this close to 1, or to 0, is one
NOTHING = {"float32": 1e-4, "bfloat16": 2e-2}  # nats: below that, adapter and base differ by rounding only
CODES = {0: "the trained model", 3: "training changed nothing", 4: "the base: the training is not in it",
         5: "another model", 6: "undecided: more texts are needed"}  # fmt: skip


@dataclass
class Args:
    adapter: str | None = arg(
        None, "a finished run's folder (default: the newest of all recipes); also without the flag"
    )
    model: str | None = arg(
        None, "its base: a path, MODELS_DIR/<org>/<name>, or a name on the hub (default: as recorded)"
    )
    files: str | None = arg(None, "an exported folder, or one GGUF file (default: what export.py made of this run)")
    rows: str | None = arg(None, "JSON lines with prompt and response (default: the run's own held-out rows)")
    base: Literal["published", "nf4"] = arg("published", "nf4: base and adapter as a QLoRA run saw them (bitsandbytes)")
    served: str | None = arg(None, "URL of a running vLLM server that serves the run: one more arm")
    name: str | None = arg(None, "the model's name there (default: the only one)")


def slope(x, y, groups, seed, draws=2000):
    """(slope of y over x through 0, lower and upper end of its 95% interval). groups: each token's prompt."""
    import numpy

    count = int(groups.max()) + 1
    xy, xx = numpy.bincount(groups, x * y, count), numpy.bincount(groups, x * x, count)
    drawn = numpy.random.default_rng(seed).integers(0, count, (draws, count))
    made = xy[drawn].sum(1) / numpy.maximum(xx[drawn].sum(1), 1e-30)
    low, high = numpy.quantile(made, [0.025, 0.975])
    return float(xy.sum() / max(xx.sum(), 1e-30)), float(low), float(high)


def verdict(low: float, high: float, kl: float, limit: float, explained=1.0, faults=(), apart=1.0) -> int:
    """0, 4, 5 or 6 of an arm. A slope decides only where its interval leaves out what else it could be.

    explained: the share of the arm's distance to the base that lies along the adapter's. Where most of it does not, as of
    a coarse file of a lightly trained run, an odd slope is the rounding's, and no proof of another scale. apart: its
    squared distance to the base, of the adapter's; a slope of 0 is the base's only where that is near 0 as well.
    """
    if faults:
        return 5
    if low > -NEAR and high < NEAR:
        return 4 if kl <= 10 * limit or kl < 0.5 or apart < 0.1 else 5
    if low > 1 - NEAR and high < 1 + NEAR:
        return 0 if kl <= limit else 5
    odd = high < -NEAR or low > 1 + NEAR or low > NEAR and high < 1 - NEAR
    return 5 if kl > 10 * limit and kl > 0.5 or odd and (explained > 0.5 or kl > limit) else 6


def said_of(code: int, low: float, high: float) -> str:
    """What the table says of an arm without other faults."""
    if code == 5 and (low > 1 - NEAR and high < 1 + NEAR or low > -NEAR and high < NEAR):
        return "another model: damaged, or made of another base (its KL is above the limit)"
    if code == 5:
        return f"another model: {at_scale(low, high)}"
    return CODES[code]


def at_scale(low: float, high: float) -> str:
    if high < 0:
        return "the update has the wrong sign"
    return f"{(low + high) / 2:.2g} times the update"


def newest_export(run) -> Path | None:
    """What export.py made of this adapter last."""
    wanted = digest(run.adapter)
    made = [file for file in output_dir("deploy").glob("*/manifest.json")
            if read_json(file).get("inputs", {}).get("adapter") == wanted]  # fmt: skip
    return max(made, key=lambda file: file.stat().st_mtime).parent if made else None


def arms_of(folder: Path | None) -> dict:
    """{name: path} of the files to be judged."""
    if folder is None:
        return {}
    if folder.is_file():
        return {folder.name: folder}
    found = [folder / name for name in ("merged", "merged_4bit") if (folder / name / "config.json").is_file()]
    found += [file for file in sorted(folder.glob("*.gguf")) if "-mmproj" not in file.name and file.name[0] != "."]
    if not found and (folder / "config.json").is_file():
        found = [folder]
    if not found:
        raise SystemExit(f"{folder} holds no merged model and no GGUF: run export.py first.")
    return {path.name: path for path in found}


def judge_folder(path, reference, expected, serving, dtype):
    """(log-probabilities, KL, faults, kind) of a merged folder."""
    import torch

    import scores

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = scores.load(path, dtype, device)
    found, kl, finite = reference.score(scores.of_torch(model), path.name)
    faults = [] if finite else ["values that are not finite"]
    if expected and scores.prompts_of_folder(path) != expected:
        faults.append("its chat template asks in other tokens than training did")
    ends = read_json(path / "generation_config.json").get("eos_token_id")
    if serving["eos_id"] not in (ends if isinstance(ends, list) else [ends]):
        faults.append(f"{serving['eos']} does not end its answers")
    return found, kl, faults, "merged_4bit" if path.name == "merged_4bit" else "merged"


def judge_gguf(path, reference, expected, serving, base_gguf=None):
    """(log-probabilities, KL, faults, kind) of a GGUF. base_gguf: for an adapter, a function that gives its base as one."""
    import gguf_file
    import llama

    what = gguf_file.describe(path)
    lora = what["fields"].get("general.type") == "adapter"
    longest = max(len(ids) for ids, _ in reference.pairs)
    model = llama.File(base_gguf() if lora else path, longest, threads(), path if lora else None)
    found, kl, finite = reference.score(lambda ids, first: model.logits(ids[:-1], first - 1), path.name)
    faults, ends, eos = [] if finite else ["values that are not finite"], model.ends(serving["eos_id"]), model.eos
    model.close()
    if lora:
        return found, kl, faults, "adapter"
    if not ends or eos != serving["eos_id"]:
        faults.append(f"{serving['eos']} does not end its answers: its end token is {eos}")
    with llama.server(path, longest + 64, threads()) as ask:
        if expected and [llama.prompt_ids(ask, probe) for probe in contract.PROBES] != expected:
            faults.append("its chat template asks in other tokens than training did")
        ids = reference.pairs[0][0][:8]  # the end token is made certain: does the answer end there?
        said = ask(
            "/completion", {"prompt": ids, "n_predict": 4, "logit_bias": [[serving["eos_id"], 1000]], "n_probs": 0}
        )
        if said.get("stop_type") != "eos" or said.get("tokens_predicted", 9) > 1:
            faults.append(f"an answer goes on after {serving['eos']}")
    return found, kl, faults, FILE_TYPES.get(what["fields"].get("general.file_type"), "q4_k_m")


def main(argv=None):
    args = parse(__file__, DEFAULTS, {}, Args, argv=with_run(sys.argv[1:] if argv is None else argv))
    run = open_run(args.adapter, args.model, whole=True)
    public = public_of(run, args.model)
    if args.base == "nf4" and public != run.base:
        raise SystemExit("--base nf4: this run trained every weight, none of them in 4 bits.")
    given = Path(args.files).expanduser() if args.files else newest_export(run)
    if given is not None and not given.exists():
        raise SystemExit(f"{given}: no such file or folder.")
    arms = arms_of(given)
    folder = run.adapter if given is None else given
    if folder.is_file() or given is not None and (given / "config.json").is_file():
        folder = folder.parent  # beside the file, or the model
    serving, template = contract_of(run)

    import numpy  # torch is loaded from here on: what can be wrong above has been said

    import page
    import scores

    began = time.time()
    tokenizer = tokenizer_of(run)
    pairs = scores.texts(run, tokenizer, template, args.rows, serving["max_length"])
    expected = contract.probe_ids(tokenizer, template) if serving["prompt_sha256"] else None
    dtype = scores.dtype_for(run.base, free_memory())
    check_disk(folder, 4 * sum(len(ids) for ids, _ in pairs) * len(tokenizer), "the adapter's distributions")
    reference = scores.Reference(run, pairs, dtype, folder, args.base == "nf4", public)
    name = str(dtype).removeprefix("torch.")
    x, tokens = reference.adapter - reference.base, len(reference.groups)
    moved = float(numpy.sqrt((x * x).mean()))
    if serving["trained_in"] == "nf4" and args.base != "nf4":
        print(
            "trained in 4 bits: compared with the adapter on the published weights; --base nf4: on those it was trained on"
        )
    print(f"{name_of(run)}: {len(pairs)} texts, {tokens:,} tokens in {name}; the training moved a token's log-probability by "
          f"{moved:.3g} (root mean square)")  # fmt: skip
    if expected and contract.digest_ids(expected) != serving["prompt_sha256"]:
        raise SystemExit(f"{run.adapter}: serving_template.jinja or the tokenizer was changed after training.")
    rows = [("base", 0.0, 0.0, 0.0, reference.kl_base, None, None, ""), ("adapter", 1.0, 1.0, 1.0, 0.0, None, None, "")]
    changed, worst = moved > NOTHING[name], 0
    order = [0, 6, 4, 5]
    base_gguf = base_writer(run, folder, serving, template)
    if args.served:
        arms = {**arms, args.served: None}
    for arm, path in arms.items() if changed else ():
        started = time.time()
        if path is None:
            from served import judge

            found, kl, faults, kind = judge(args.served, args.name, reference, expected)
        elif path.is_dir():
            found, kl, faults, kind = judge_folder(path, reference, expected, serving, dtype)
        else:
            found, kl, faults, kind = judge_gguf(path, reference, expected, serving, base_gguf)
        print(f"  {arm}: read in {time.time() - started:.0f} s", flush=True)
        limit = LIMITS[kind] if name == "float32" or path is None else max(LIMITS[kind], 5e-3)
        at, low, high = slope(x, found - reference.base, reference.groups, args.seed)
        y = found - reference.base
        whole, far = float((x * x).sum()), float((y * y).sum())
        code = verdict(low, high, kl, limit, at * at * whole / max(far, 1e-30), faults, far / max(whole, 1e-30))
        worst = max(worst, code, key=order.index)
        rows.append((arm, at, low, high, kl, limit, code, "; ".join(faults) or said_of(code, low, high)))
    base_gguf.cache.unlink(missing_ok=True) if getattr(base_gguf, "cache", None) else None
    code = worst if changed else 3
    facts = {"run": str(run.adapter), "texts": len(pairs), "tokens": tokens, "dtype": name, "moved": moved, "code": code,
             "seconds": round(time.time() - began, 1), "min_tokens": scores.TOKENS}  # fmt: skip
    names = ("arm", "slope", "low", "high", "kl", "limit", "code", "verdict")
    write_json(folder / "gate.json", facts | {"arms": [dict(zip(names, row, strict=True)) for row in rows]})
    page.write(folder / "gate.html", facts, rows, CODES)
    shown = [(arm, f"{at:.3f}", f"{low:.3f} to {high:.3f}" if limit else "", f"{kl:.2g}", f"{limit:g}" if limit else "", said)
             for arm, at, low, high, kl, limit, _, said in rows]  # fmt: skip
    print(text_table(("file", "slope", "95% interval", "KL per token", "limit", "it is"), shown))
    if not arms:
        print(f"nothing exported yet: {command('export.py', run.adapter)}")
    print(f"{'' if code else 'passed: '}{CODES[code]}\nthe page: {folder / 'gate.html'}")
    raise SystemExit(code)


def base_writer(run, folder, serving, template):
    """A function that writes the base as a GGUF, once: what an adapter's GGUF is put on."""

    def write():
        import gguf_file
        import merged

        if not getattr(write, "cache", None):
            write.cache = folder / ".new-base-f16.gguf"
            gguf_file.write_model(
                merged.Adapter(None, run.base), run.adapter, write.cache, "f16", serving, template, "base"
            )
        return write.cache

    return write


if __name__ == "__main__":
    main()
