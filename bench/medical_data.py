"""Reading 660,000 medical dialogues: a row loop against Arrow columns, on the same files, in one run.

    python bench/medical_data.py                     six GB18030 files, 660,000 rows, about two minutes
    python bench/medical_data.py --rows 60000        a small run
    python bench/medical_data.py --repeat 5          median and spread

Both ways keep rows whose two sides have 1 to 200 characters. Only ours drops duplicates and boilerplate answers, and
takes the title where the question is 无; the comparison at the end checks that nothing else differs.

The loop is what many courses teach: `pandas.read_csv` for each file, `tqdm` over `iterrows()` with the length filter,
`datasets.Dataset.from_list`, then `dataset.map` that formats the prompt. Ours is medical/data.py, then the same text
column by pyarrow. Both start from files on disk and end with a `datasets.Dataset` that has the text. The clock starts
after the imports; memory is the highest resident size of the process, imports included. Each run has a process of its
own. The text is made up (common characters by Zipf's law), its lengths and repeats are those of the real set.
"""

import argparse
import csv
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "你是一个专业的医疗助手。请根据患者的问题提供专业、准确的回答。\n\n### 问题：\n{}\n\n### 回答：\n{}<eos>"
MAX_CHARS = 200
SEED = 3407

# Share of each department in the public set of 792,099 rows: files of unequal size are what threads have to cope with.
DEPARTMENTS = {
    "Andriatria_男科": 94596,
    "IM_内科": 220606,
    "OAGD_妇产科": 183751,
    "Oncology_肿瘤科": 75553,
    "Pediatric_儿科": 101602,
    "Surgical_外科": 115991,
}
# Lengths in characters at quantiles, measured on 5,953 real rows; the answers' tail is longer than there, so that 84 %
# of the rows pass the filter, as in the whole set.
QUANTILES = (0, 0.01, 0.10, 0.25, 0.50, 0.75, 0.84, 0.90, 0.99, 1)
LENGTHS = {
    "title": (3, 8, 9, 10, 11, 12, 13, 14, 18, 22),
    "ask": (4, 14, 27, 33, 49, 83, 89, 94, 150, 255),
    "answer": (37, 110, 124, 131, 149, 181, 200, 206, 230, 742),
}
# What happens to a row, and how often.
CHANGES = {
    "none": 0.934,
    "repeat of an earlier row": 0.05,
    "earlier question, other answer": 0.01,
    "no question": 0.001,
    "boilerplate": 0.001,
    "quoted words": 0.003,
    "line break": 0.001,
}
BOILERPLATE = ("您好，建议您去医院检查。", "谢谢您的咨询，祝您健康！", "请尽快到正规医院就诊。")


def generate(folder, rows):
    """Write six CSV files of GB18030 text, `rows` rows in all, the same ones every time."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    # The 3,755 common characters of GB2312, in an order of their own, the n-th as likely as 1/n.
    common = [bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)][:3755]
    alphabet = np.array([ord(char.decode("gb2312")) for char in common], np.uint16)
    rng.shuffle(alphabet)
    cumulated = np.cumsum(1 / np.arange(1, len(alphabet) + 1))

    def texts(column, count):
        lengths = np.interp(rng.random(count), QUANTILES, LENGTHS[column]).astype(int)
        ends = np.cumsum(lengths)
        chars = alphabet[np.searchsorted(cumulated, rng.random(ends[-1]) * cumulated[-1])]
        kind = rng.random(len(chars))
        chars[kind < 0.08] = ord("，")
        chars[(kind > 0.08) & (kind < 0.10)] = rng.choice(np.frombuffer(b"0123456789ABC", np.uint8))
        chars[ends - 1] = ord("？" if column == "ask" else "。")
        text = chars.tobytes().decode("utf-16-le")
        return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    shares = np.cumsum([0, *DEPARTMENTS.values()]) / sum(DEPARTMENTS.values())
    for department, count in zip(DEPARTMENTS, np.diff((rows * shares).round().astype(int)), strict=True):
        titles, asks, answers = (texts(column, count) for column in LENGTHS)
        changes = rng.choice(list(CHANGES), count, p=list(CHANGES.values()))
        earlier = rng.integers(0, np.arange(1, count + 1))
        path = folder / department / f"{department.split('_')[1]}.csv"
        path.parent.mkdir(parents=True)
        with open(path, "w", encoding="gb18030", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("department", "title", "ask", "answer"))
            for row, (change, other) in enumerate(zip(changes, earlier, strict=True)):
                if change == "repeat of an earlier row":
                    titles[row], asks[row], answers[row] = titles[other], asks[other], answers[other]
                elif change == "earlier question, other answer":
                    asks[row] = asks[other]
                elif change == "no question":
                    asks[row] = "无"
                elif change == "boilerplate":
                    answers[row] = BOILERPLATE[row % len(BOILERPLATE)]
                elif change == "quoted words":
                    answers[row] = f'{answers[row][:10]}"{answers[row][10:14]}",{answers[row][14:]}'
                elif change == "line break":
                    answers[row] = f"{answers[row][:20]}\n{answers[row][20:]}"
                writer.writerow((department, titles[row], asks[row], answers[row]))


def run_loop(folder):
    import datasets
    import pandas
    from tqdm import tqdm

    start = time.perf_counter()
    rows, kept = 0, []
    for path in sorted(folder.rglob("*.csv")):
        frame = pandas.read_csv(path, encoding="gb18030")
        rows += len(frame)
        for _, row in tqdm(frame.iterrows(), total=len(frame)):
            question, answer = str(row["ask"]).strip(), str(row["answer"]).strip()
            if 1 <= len(question) <= MAX_CHARS and 1 <= len(answer) <= MAX_CHARS:
                kept.append({"question": question, "answer": answer})
    dataset = datasets.Dataset.from_list(kept)
    dataset = dataset.map(lambda row: {"text": PROMPT.format(row["question"], row["answer"])})
    return rows, dataset, time.perf_counter() - start


def run_columns(folder):
    import datasets
    import pyarrow.compute as pc

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "medical"))
    import data

    start = time.perf_counter()
    table, reports = data.read_rows(folder, max_chars=MAX_CHARS)
    before, between, after = PROMPT.split("{}")
    text = pc.binary_join_element_wise(before, table["question"], between, table["answer"], after, "")
    # With a name of our own, datasets does not hash half a gigabyte to find one.
    dataset = datasets.Dataset(table.append_column("text", text), fingerprint="medical")
    return sum(report["rows"] for report in reports), dataset, time.perf_counter() - start


def measure(way, folder, keep):
    """Run one way in this process; print its figures as JSON, and leave its dataset in `keep` for the comparison."""
    import pyarrow as pa

    rows, dataset, seconds = {"loop": run_loop, "columns": run_columns}[way](folder)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit
    table = dataset.data.table
    with pa.OSFile(str(keep), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    print(json.dumps(dict(rows=rows, kept=len(dataset), seconds=seconds, peak=peak)))


def compare(loop_file, columns_file):
    """Check that the two ways kept the same rows, but for the rules that only ours has; SystemExit where they don't."""
    import pyarrow as pa

    def read(path):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return {row["question"] + "\0" + row["answer"]: row["text"] for row in rows_of(table)}

    def rows_of(table):
        for batch in table.select(["question", "answer", "text"]).to_batches(10_000):
            yield from batch.to_pylist()

    def normalised(pair):
        question, answer = pair.split("\0")
        return re.sub(r"[\W_]+", "", question.lower()), re.sub(r"[\W_]+", "", answer.lower())

    loop, ours = read(loop_file), read(columns_file)
    both = loop.keys() & ours.keys()
    same_text = all(loop[pair] == ours[pair] for pair in both)
    answers_without_question = {pair.split("\0")[1] for pair in loop if pair.startswith("无\0")}
    only_ours = ours.keys() - both
    title_used = {pair for pair in only_ours if pair.split("\0")[1] in answers_without_question}
    only_loop = loop.keys() - both
    no_question = {pair for pair in only_loop if pair.startswith("无\0")}
    boilerplate = {pair for pair in only_loop - no_question if pair.split("\0")[1] in BOILERPLATE}
    ours_normalised = {normalised(pair) for pair in ours}
    repeats = {pair for pair in only_loop - no_question - boilerplate if normalised(pair) in ours_normalised}
    unexplained = len(only_ours - title_used) + len(only_loop - no_question - boilerplate - repeats)
    print(
        f"kept by both: {len(both):,} different question-answer pairs, text {'equal' if same_text else 'DIFFERENT'}\n"
        f"only by the loop: {len(no_question):,} whose question is 无, {len(boilerplate):,} that are boilerplate, "
        f"{len(repeats):,} that repeat another pair but for punctuation\n"
        f"only by ours: {len(title_used):,} of the 无 rows, with the title as the question"
    )
    if unexplained or not same_text:
        raise SystemExit(f"the two ways disagree: {unexplained:,} pairs that no difference of rules explains")


def cpu_model():
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def step(name, *paths):
    """Run one step of this script in a process of its own -> what it printed."""
    # This process imports nothing heavy: on Linux a child's ru_maxrss begins with the size of what started it.
    command = [sys.executable, __file__, "--step", name, *map(str, paths)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return result.stdout


def show(way, runs):
    rates = sorted(run["rows"] / run["seconds"] for run in runs)
    peak = max(run["peak"] for run in runs)
    print(
        f"{way:8}  {runs[0]['rows']:>9,} rows  {runs[0]['kept']:>9,} kept  {statistics.median(rates):>9,.0f} rows/s"
        f" ({rates[0]:,.0f} to {rates[-1]:,.0f})  {peak / 1e9:.2f} GB peak"
    )
    return statistics.median(rates)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=int, default=660_000, help="rows in all (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()) / "bench_medical_data", help="cache")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step:
        name, folder, *rest = args.step
        if name == "generate":
            generate(Path(folder), int(rest[0]))
        elif name == "compare":
            compare(folder, *rest)
        else:
            measure(name, Path(folder), *rest)
        return

    files = args.dir / f"rows_{args.rows}_seed_{SEED}"
    if not files.is_dir():
        print(f"generating {args.rows:,} rows in {files}")
        args.dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.dir) as unfinished:
            step("generate", unfinished, args.rows)
            os.rename(unfinished, files)
            os.mkdir(unfinished)
    size = sum(path.stat().st_size for path in files.rglob("*.csv"))
    print(f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}; 6 files, {size / 1e6:.0f} MB")

    runs = {"loop": [], "columns": []}
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        kept = {way: Path(scratch) / f"{way}.arrow" for way in runs}
        for _ in range(args.repeat):
            for way in runs:
                runs[way].append(json.loads(step(way, files, kept[way])))
        agreement = step("compare", *kept.values())
    loop, columns = (show(way, results) for way, results in runs.items())
    print(f"ratio     {columns / loop:.1f}x\n{agreement}", end="")


if __name__ == "__main__":
    main()
