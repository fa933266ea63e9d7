"""From an upload to an A/B page in one command: unpack, clean, train, measure, export, prove, serve, compare.

    ingest -> clean -> train -> evaluate -> export -> gate -> serve -> ab

Each step is a command of the recipe or of this folder, and is kept in OUTPUT_DIR/deploy/pipelines/<name>/<step>/. After a
kill at any moment the same command goes on: what was done with the same inputs is skipped, training goes on from its last
checkpoint. The gate reads files, so export comes before it. A model that is worse than its base ends here, with exit code
5, and no flag changes that; other codes are the gate's, or the step's that failed.

A zip of CSV files:    python pipeline.py --data upload.zip --recipe medical
Files only:            python pipeline.py --data upload.zip --recipe medical --until gate
Flags for train.py:    python pipeline.py --data rows.jsonl --recipe alpaca -- --max_steps 200 --learning_rate 1e-4
A rented machine:      python pipeline.py --data upload.zip --recipe medical --runner ssh --host root@HOST --folder /root/pipeline
Running on it:         python pipeline.py --data upload.zip --recipe medical --until gate --when_done "shutdown -h now"
"""

import os
import re
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import steps
import upload
from common.cli import arg, parse
from common.files import read_json, write_json
from common.paths import TASK_DIR, output_dir

DEFAULTS = dict(
    until="ab",  # the last step
    limit=200,  # held-out rows that the tuned model and its base are measured on
    max_new_tokens=128,  # the longest answer while they are
    to="gguf,ollama",  # what export.py makes
    quant="q8_0",  # with commas: one GGUF each
    port=8000,  # of the server; 0: any free one
    page_port=7860,  # of the A/B page; 0: any free one
    grace=180,  # seconds in which Ctrl-C stops --when_done
)
STEPS = ("ingest", "clean", "train", "evaluate", "export", "gate", "serve", "ab")
WORSE = 5
MOST_FORGOTTEN = 0.05  # of the loss on a kind of rows that is measured apart
LEAST_TOKENS = 200  # in fewer, 5% is noise
OURS = ("data", "output_dir", "estimate", "rehearse", "stop_after", "longest_steps")  # or no run comes out


@dataclass
class Args:
    data: str | None = arg(None, "what to train on: a .zip, a folder, or one file of rows")
    recipe: Literal["alpaca", "domain_mix", "medical"] | None = arg(None, "whose data.py, train.py and evaluate.py")
    name: str | None = arg(None, "of the pipeline's folder (default: the recipe and the upload)")
    when_done: str | None = arg(
        None, "a shell command, run after the files are made or something failed; knows PIPELINE_STATUS"
    )
    runner: Literal["local", "ssh"] = arg("local", "ssh: everything up to the gate on another machine, files come back")
    host: str | None = arg(None, "ssh: user@machine, ssh://user@machine:port, or a name of your ssh config")
    folder: str = arg("pipeline", "ssh: a folder there, that is the pipeline's alone")
    python: str = arg("python3", "ssh: the Python there that has the recipe's and deploy's requirements")
    ssh_config: str | None = arg(None, "ssh: a config file to use in place of your own")
    host_key: Literal["yes", "accept-new"] = arg("yes", "ssh: accept-new takes the key of a machine never seen before")


def checked(args, flags: list[str]):
    """Raises SystemExit for what is wrong before anything is begun."""
    for name in ("data", "recipe"):
        if not getattr(args, name):
            raise SystemExit(f"pipeline.py: error: --{name} is needed; --help shows how")
    if args.until not in STEPS:
        raise SystemExit(f"pipeline.py: error: --until {args.until!r}: choose from {', '.join(STEPS)}")
    if not Path(args.data).expanduser().exists():
        raise SystemExit(f"{args.data}: no such file or folder.")
    if args.name and not re.fullmatch(r"\w[\w.-]{0,99}", args.name):
        raise SystemExit(f"pipeline.py: error: --name {args.name!r}: letters, digits and _ . - only")
    for flag in flags:
        name = flag.split("=")[0].lstrip("-").replace("-", "_")
        if flag.startswith("--") and name in OURS:
            raise SystemExit(f"pipeline.py: error: --{name} after --: the pipeline decides that")
        if flag.startswith("--") and steps.SECRET.search(name) and name not in ("eos_token", "pad_token"):
            raise SystemExit(f"pipeline.py: error: --{name} after --: others can read command lines. Set it in the "
                             "environment or in .env")  # fmt: skip
    if not (TASK_DIR.parent / args.recipe / "train.py").is_file():
        raise SystemExit(f"{TASK_DIR.parent / args.recipe}: the recipe's folder has to lie beside deploy/.")
    if (args.runner == "ssh") != bool(args.host):
        raise SystemExit("pipeline.py: error: --runner ssh and --host belong together")


# -- the steps


def train(recipe: str, rows: Path, run: str, flags: list, lock: int, place: Path):
    """The recipe's train.py. A run's folder has the digest of its inputs in its name: what is there was made of the same."""
    wanted = output_dir(recipe) / run
    argv = [*steps.script(recipe, "train.py"), "--data", rows, "--output_dir", wanted, *flags]
    if not finished(wanted):
        steps.child(argv, place, lock)
    if not (made := finished(wanted)):
        raise SystemExit(f"train: train.py left no finished run in {wanted}; the log: {place / steps.LOG}")
    facts = {"run": steps.told(made), "command": list(map(str, argv))}
    return [made / "adapter_model.safetensors", made / "run.json"], facts


def finished(wanted: Path) -> Path | None:
    """The finished run of a name; train.py takes another one (name-2) where a run was killed before its first checkpoint."""
    names = re.compile(re.escape(wanted.name) + r"(-\d+)?")
    found = [each for each in wanted.parent.glob("*") if names.fullmatch(each.name)]
    found = [each for each in found if read_json(each / "run.json").get("status") == "finished"]
    return max(found, key=lambda each: read_json(each / "run.json")["finished"]) if found else None


def evaluate(recipe: str, run: Path, rows: Path, args, lock: int, place: Path):
    out = place / "results"
    argv = ["--adapter", run, "--data", rows, "--out", out, "--limit", args.limit]
    argv += ["--max_new_tokens", args.max_new_tokens]
    facts = steps.child([*steps.script(recipe, "evaluate.py"), *argv], place, lock)
    return [out / "metrics.json"], facts


def worse(metrics: dict, record: dict) -> str:
    """Why a run must not be deployed, from metrics.json and run.json; "" if it may be.

    Worse: the whole 95% interval of (tuned - base) of the held-out loss is above 0. Or something was forgotten: a kind of
    rows that training measured apart (a language, a source of the mixture) lost more than 5%.
    """
    try:
        low, high = metrics["difference_95"]["loss"]
        base, tuned = metrics["base"]["loss"], metrics["tuned"]["loss"]
    except (KeyError, TypeError, ValueError):
        return "metrics.json names no held-out loss with an interval"
    if not low <= 0:  # NaN is no proof of anything good, either
        return f"held-out loss {tuned:.3f}, the base's {base:.3f}: worse by {low:+.3f} to {high:+.3f} (95%)"
    before, after = record.get("before") or {}, record.get("after") or {}
    for name in before.keys() & after.keys():
        one, two = before[name], after[name]
        measured = isinstance(one, dict) and isinstance(two, dict) and one.get("tokens", 0) >= LEAST_TOKENS
        if measured and not two["loss"] <= (1 + MOST_FORGOTTEN) * one["loss"]:
            return (f"rows of kind {name!r}: loss {two['loss']:.3f}, the base's {one['loss']:.3f}: more than "
                    f"{MOST_FORGOTTEN:.0%} was forgotten")  # fmt: skip
    return ""


def export(run: Path, args, lock: int, place: Path):
    from gate import newest_export  # what export.py names when nothing was done, too

    facts = steps.child(
        [*steps.script("deploy", "export.py"), run, "--to", args.to, "--quant", args.quant], place, lock
    )
    folder = newest_export(SimpleNamespace(adapter=run))
    names = read_json(folder / "manifest.json")["files"]
    return [folder / "manifest.json", *(folder / name for name in names)], facts | {"folder": steps.told(folder)}


def gate(run: Path, folder: Path, lock: int, place: Path):
    facts = steps.child([*steps.script("deploy", "gate.py"), run, "--files", folder], place, lock)
    return [folder / "gate.json"], facts


def made_of(args, flags: list, name: str, folder: Path, lock: int) -> tuple[Path, Path] | None:
    """(the run, its files) after all steps up to the gate; None where --until names an earlier one."""
    recipe, data, wanted = args.recipe, Path(args.data).expanduser().absolute(), STEPS.index(args.until)

    def values(record):
        return sorted(record["outputs"].values())

    def do(step, inputs, work, *given):
        return STEPS.index(step) <= wanted and steps.step(folder, step, inputs, lambda place: work(*given, place))

    inputs = {"data": steps.digest_of(data), "path": str(data) if data.is_dir() else data.name}
    if not (one := do("ingest", inputs, upload.ingest, data)):
        return None
    source = steps.found(one["rows_in"])
    inputs = {"recipe": recipe, "upload": values(one), "flags": upload.given(flags, "max_chars")}
    if not (two := do("clean", inputs, upload.clean, recipe, source, flags, lock)):
        return None
    rows, inputs = steps.found(next(iter(two["outputs"]))), {"recipe": recipe, "rows": values(two), "flags": flags}
    run_name = f"{name.removeprefix(recipe + '-')}-{steps.digest_ids(inputs)[:8]}"
    if not (three := do("train", inputs, train, recipe, rows, run_name, flags, lock)):
        return None
    run, limits = steps.found(three["run"]), {"limit": args.limit, "max_new_tokens": args.max_new_tokens}
    inputs = {"run": values(three), "rows": values(two), **limits}
    if not do("evaluate", inputs, evaluate, recipe, run, rows, args, lock):
        return None
    if why := worse(read_json(folder / "evaluate" / "results" / "metrics.json"), read_json(run / "run.json")):
        print(f"\nnot deployed: {why}. The run is kept: {run}", flush=True)
        raise SystemExit(WORSE)
    five = do("export", {"run": values(three), "to": args.to, "quant": args.quant}, export, run, args, lock)
    if not five:
        return None
    files = steps.found(five["folder"])
    return (run, files) if do("gate", {"files": values(five), "run": values(three)}, gate, run, files, lock) else None


def serve(args, run: Path, files: Path, folder: Path, lock: int, key: str):
    """(the server's process, its address): ready, which it is after a small gate of its own. It is never skipped."""
    place = folder / "serve"
    place.mkdir(exist_ok=True)
    print("\n== serve", flush=True)
    argv = [*steps.script("deploy", "serve.py"), run, "--files", files, "--port", args.port]
    began, process = time.time(), steps.start(argv, lock, OPENAI_API_KEY=key)
    ready = steps.follow(process, place / steps.LOG, r"^ready: (\S+)")
    if steps.stop or not ready:
        code = 128 + steps.stop[0] if steps.stop else process.returncode or 1
        raise SystemExit(code if code > 0 else 128 - code)
    write_json(place / steps.STEP, {"step": "serve", "seconds": round(time.time() - began, 1), "code": 0, "url": ready[1],
                                    "command": list(map(str, argv)), "outputs": {}})  # fmt: skip
    steps.background(process, place / steps.LOG)
    return process, ready[1]


def compare(args, run: Path, files: Path, url: str, folder: Path, lock: int, key: str):
    """The process of the A/B page, which can be asked for: compare.html is made once, the page for votes each time."""
    os.environ["OPENAI_API_KEY"] = key

    def work(place):
        argv = [run, "--url", url, "--out", place, "--max_new_tokens", args.max_new_tokens]
        facts = steps.child([*steps.script("deploy", "compare.py"), *argv], place, lock)
        return [place / "compare.html"], facts

    made = steps.digest_of(files / "manifest.json")
    steps.step(folder, "ab", {"run": steps.digest_of(run / "adapter_model.safetensors"), "files": made}, work)
    print(f"side by side: {folder / 'ab' / 'compare.html'}", flush=True)
    argv = [*steps.script("deploy", "compare_web.py"), run, "--url", url, "--port", args.page_port]
    process = steps.start(argv, lock)
    if not (found := steps.follow(process, folder / "ab" / steps.LOG, r"https?://\S+")):
        raise SystemExit(128 + steps.stop[0] if steps.stop else process.returncode or 1)
    steps.background(process, folder / "ab" / steps.LOG)
    print(f"A/B page: {found[0]}", flush=True)
    return process


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    args, flags = parse(__file__, DEFAULTS, {}, Args, argv=argv[:cut]), argv[cut + 1 :]
    checked(args, flags)
    stem = re.sub(r"[^\w.-]+", "_", Path(args.data).expanduser().absolute().stem).strip("._-") or "upload"
    name = args.name or f"{args.recipe}-{stem[:60]}"
    folder = output_dir() / "pipelines" / name
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, steps.on_signal)
    lock, until = steps.take(folder), STEPS.index(args.until)
    try:
        if args.runner == "ssh":
            import runner

            made = runner.made_there(args, flags, name, folder)
        else:
            made = made_of(args, flags, name, folder, lock)
    except SystemExit as end:
        if not steps.stop:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr, flush=True)
            steps.when_done(args.when_done, "failure", args.grace)
            raise SystemExit(end.code if isinstance(end.code, int) else 1) from None
        raise
    steps.when_done(args.when_done, "success", args.grace)
    if made and until >= STEPS.index("serve"):
        key = os.environ.get("OPENAI_API_KEY") or secrets.token_urlsafe()
        server, url = serve(args, *made, folder, lock, key)
        try:
            page = [compare(args, *made, url, folder, lock, key)] if args.until == "ab" else []
            print(f"served: {url}   key: {key}   Ctrl-C ends it", flush=True)
            steps.stay(server, *page)
        finally:
            steps.end(server)


if __name__ == "__main__":
    main()
