"""How long domain_mix/data.py takes for 100,000 local rows, and how much memory.

    python bench/mix_data.py                   makes the rows, three runs, about a minute
    python bench/mix_data.py --rows 10000      a small run

The rows are made up in each source's own schema, with lengths near the real ones: SlimOrca as JSON lines, PubMedQA as
Parquet, Stack Exchange (HTML, three answers a question) as Parquet, your own as a JSON list; 5 of 100 are repeats, one in
ten Stack Exchange questions has no keyword. A run is `mix` and the writing of the JSONL in a fresh process, with the
time it takes to import. Memory is the highest resident size of that process.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "domain_mix"
SHARES = {"my_dataset": 0.1, "slimorca": 0.4, "pubmedqa": 0.2, "stackexchange": 0.3}
WORDS = [
    "signal",
    "model",
    "cell",
    "gene",
    "protein",
    "timing",
    "data",
    "network",
    "patient",
    "study",
    "result",
    "circuit",
]
KEYWORDS = {"ic": ["fpga", "verilog"], "biomedical": ["dna", "antibody"], "ai": ["pytorch", "transformer"]}


def make(folder, rows):
    """Write four files with `rows` rows in all and the plan that takes nine tenths of them."""
    import pyarrow
    from pyarrow import parquet

    rng = random.Random(0)
    pool = WORDS + ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(5000)]

    def words(count):
        return " ".join(rng.choices(pool, k=count))

    def repeated(made):
        for i in range(len(made)):
            if rng.random() < 0.05:
                made[i] = made[rng.randrange(len(made))]
        return made

    count = {name: round(rows * share) for name, share in SHARES.items()}
    own = [{"instruction": words(15), "input": "", "output": words(80)} for _ in range(count["my_dataset"])]
    (folder / "my_dataset.json").write_text(json.dumps(repeated(own)), encoding="utf-8")
    orca = [
        {
            "conversations": [
                {"from": "system", "value": "You are an AI assistant."},
                {"from": "human", "value": words(90)},
                {"from": "gpt", "value": words(130)},
            ]
        }
        for _ in range(count["slimorca"])
    ]
    (folder / "slimorca.jsonl").write_text("\n".join(map(json.dumps, repeated(orca))), encoding="utf-8")
    medical = [
        {"question": words(13), "context": {"contexts": [words(70) for _ in range(3)]}, "long_answer": words(40)}
        for _ in range(count["pubmedqa"])
    ]
    parquet.write_table(pyarrow.Table.from_pylist(repeated(medical)), folder / "pubmedqa.parquet")
    terms = [term for group in KEYWORDS.values() for term in group]

    def html(*parts):
        return "".join(f"<p>{part} <em>{words(3)}</em> &amp; <code>{words(2)}</code></p>\n" for part in parts)

    pages = [
        {
            "question": html(f"{words(30)} {'' if rng.random() < 0.1 else rng.choice(terms)}", words(40)),
            "answers": [
                {"text": html(words(50)) + f"<pre><code>{words(20)}\n</code></pre>", "pm_score": i, "selected": i == 1}
                for i in range(3)
            ],
        }
        for _ in range(count["stackexchange"])
    ]
    parquet.write_table(pyarrow.Table.from_pylist(repeated(pages)), folder / "stackexchange.parquet")
    plan = {
        "total": round(rows * 0.9),
        "seed": 42,
        "ratios": {
            "my_dataset": 0.1,
            "slimorca": 0.42,
            "pubmedqa": 0.2,
            **{f"stackexchange/{g}": 0.28 / 3 for g in KEYWORDS},
        },
        "sources": {
            "my_dataset": {"format": "alpaca", "path": "my_dataset.json"},
            "slimorca": {"format": "slimorca", "path": "slimorca.jsonl"},
            "pubmedqa": {"format": "pubmedqa", "path": "pubmedqa.parquet"},
            "stackexchange": {"format": "stackexchange", "path": "stackexchange.parquet", "keywords": KEYWORDS},
        },
    }
    (folder / "plan.yaml").write_text(json.dumps(plan), encoding="utf-8")  # JSON is YAML


def one_run(folder):
    """Mix once in this process and print the numbers as JSON."""
    start = time.perf_counter()
    sys.path.insert(0, str(FOLDER))
    from common.paths import load_env
    from plan import load_plan, mix
    from sources import write_jsonl

    load_env()
    rows, reports = mix(load_plan(folder / "plan.yaml"), allow_short=True, progress=False)
    out = folder / "mix.jsonl"
    write_jsonl(rows, out)
    seconds, cpu = time.perf_counter() - start, time.process_time()
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": memory, "taken": len(rows), "out": out.stat().st_size}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one_run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_run:
        return one_run(args.one_run)
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: a child would inherit this one's peak memory.
        maker = f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import mix_data; "
        maker += f"mix_data.make(pathlib.Path({folder!r}), {args.rows})"
        subprocess.run([sys.executable, "-c", maker], check=True)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        runs = []
        for _ in range(args.repeat):
            command = [sys.executable, __file__, "--one_run", folder]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds = statistics.median(run["seconds"] for run in runs)
    spread = f"{min(run['seconds'] for run in runs):.1f} to {max(run['seconds'] for run in runs):.1f}"
    print(
        f"{args.rows:,} rows read ({size / 1e6:.0f} MB), {runs[0]['taken']:,} taken ({runs[0]['out'] / 1e6:.0f} MB), "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
        f"median of {args.repeat}: {seconds:.1f} s ({spread}), {args.rows / seconds:,.0f} rows/s, "
        f"{statistics.median(run['cpu'] for run in runs):.1f} CPU seconds, "
        f"peak memory {max(run['bytes'] for run in runs) / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
