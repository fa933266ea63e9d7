"""Read a folder of messy CSV files into one table of medical questions and answers.

The Chinese medical dialogue set is one folder a department, each with CSV files that people saved in whatever their
program offered: GB18030 here, UTF-8 with a byte-order mark there, `ask` in one header and `问题` in the next. A reader
that expects one encoding loses a whole department; one that replaces bad bytes trains the model on them. This one
reads what can be read (common/tables.py), drops the rest for a named reason, and says where (file, line, column) it did so.

    python data.py --check FOLDER                  a table: file, encoding, rows, kept, dropped by reason
    python data.py FOLDER --out prepared.jsonl     the same, and the prepared rows, one JSON object a line
    python data.py FOLDER --max_chars 500          keep longer questions and answers too

What touches every row is done by Arrow on whole columns. Python loops run over files and over quotes only.
"""

import argparse
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from common import screen
from common.files import new_file, text_table
from common.paths import data_dir, load_env
from common.rows import CONTROL, CONTROL_TOKEN, EMPTY, EXAMPLES, Bad, Place, drop, piped
from common.tables import MISFIT, UNCLOSED, UNDECODABLE, Unusable, csv_blocks

# A column is known by any of these names, in any case; where a file has two of them, the one listed first counts.
COLUMNS = {
    "question": ("question", "问题", "ask"),
    "answer": ("answer", "回答", "response"),
    "title": ("title", "标题"),
    "department": ("department", "科室"),
}
OUTPUT = ("question", "answer", "department")
# A row is dropped for the first of these that is true of it.
LONG, BOILERPLATE, DUPLICATE = "too long", "boilerplate", "duplicate"
REASONS = (MISFIT, UNCLOSED, UNDECODABLE, EMPTY, LONG, CONTROL, BOILERPLATE, DUPLICATE)

IGNORED = r"[\pZ\pP\pC]+"  # blanks, punctuation, control characters: questions that differ in these alone are one

# Answers made of nothing but this teach the model to say nothing: greetings, wishes, and "go and see a doctor" in
# words that name no disease, department, drug or test. 建议去神经内科做脑电图 names two, so it stays.
FILLER = (
    "建议|请|最好|还是|应该|应当|需要|先|你|您|患者|及时|尽快|尽早|立即|马上|去|到|前往|在|看|找|咨询|当地|附近|正规|专业|"
    "三甲|大|好|的|进行|做|一下|一个|个|详细|仔细|全面|相关|进一步|明确|检查|治疗|诊断|确诊|看看|吧|后|再"
)
SEE_A_DOCTOR = "医院|医生|大夫|就医|就诊"
PHRASES = (
    "[你您]好|谢谢|感谢|[你您]的(?:咨询|提问|信任)|很?高兴(?:能)?为[你您](?:解答|服务)|祝[你您]?(?:身体|早日)*(?:健康|康复)|"
    "希望(?:以上|我的)?(?:回答|解答|建议)?(?:能够?|可以)?(?:对[你您]有所?|给[你您])?帮助(?:到?[你您])?|"
    f"(?:{FILLER})*(?:{SEE_A_DOCTOR})(?:{FILLER}|{SEE_A_DOCTOR})*|"
    "hello|hi|thank you|thanks|for your question|get well soon|take care|"
    "(?:please |you should )?(?:see|consult|visit|go to) (?:a|your|the) (?:doctor|hospital)(?: as soon as possible)?"
)
NOTHING_ELSE = f"^(?:{IGNORED}|{PHRASES})*$"


def read_rows(folder=None, max_chars=200, progress=True):
    """Read FOLDER/<department>/*.csv (any depth, or one .csv file) -> (table, reports).

    folder: None: MEDICAL_DATA_DIR, else DATA_DIR/medical.
    table: pyarrow.Table of the string columns question, answer, department: files in sorted order, rows in theirs,
    however many threads read them. Questions and answers have 1 to max_chars characters, blanks around them removed.
    reports: one dict a file: file, encoding, rows, kept, dropped {reason: rows}, problems [one-line texts that name
    file, line and column].
    Raises SystemExit where the folder is missing, holds no .csv file, or has no usable row.
    """
    import numpy as np
    import pyarrow as pa

    folder = folder or data_dir()
    root, paths = find_csv_files(folder)
    # Threads, of which Arrow makes use. Processes were measured: no faster end to end, since the rows have to travel
    # back, and with half as much memory again. Decoding holds the interpreter's lock, so more than four threads would
    # mostly wait, each with a file in memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda path: read_file(path, root, max_chars), paths)
        results = list(screen.bar("reading", len(paths), " files", results, hidden=not progress))
        parts, reports = map(list, zip(*results, strict=True))
        keep = first_of_each(pa.concat_tables(parts))
        masks = np.split(keep, np.cumsum([len(part) for part in parts])[:-1])
        parts = list(pool.map(lambda part, mask: part.select(OUTPUT).filter(pa.array(mask)), parts, masks))
    for report, part, mask in zip(reports, parts, masks, strict=True):
        report["kept"] = len(part)
        report["dropped"][DUPLICATE] = len(mask) - len(part)
        report["dropped"] = +report["dropped"]  # without the reasons that did not occur
    table = pa.concat_tables(parts)
    if not len(table):
        raise SystemExit(f"{format_report(reports)}\n{folder}: no usable row (--max_chars {max_chars}).")
    return table, reports


def find_csv_files(folder):
    """-> (the folder that reports name files from, the sorted paths of its .csv files)."""
    root = Path(folder)
    if root.is_file():
        return root.parent, [root]
    if not root.is_dir():
        raise SystemExit(f"{folder}: no such folder. Expected {folder}/<department>/*.csv, or one .csv file.")
    # macOS zips a binary ._name.csv beside each name.csv.
    paths = [p for p in root.rglob("*") if p.suffix.lower() == ".csv" and not p.name.startswith(".") and p.is_file()]
    if not paths:
        raise SystemExit(f"{folder}: no .csv file in it or below it. Expected {folder}/<department>/*.csv.")
    return root, sorted(paths, key=Path.as_posix)


def read_file(path, root, max_chars):
    """One CSV file -> (table of question, answer, department and key, report). Bad content is reported, not raised."""
    import pyarrow as pa

    name, folder = path.relative_to(root).as_posix(), path.absolute().parent.name
    report = dict(file=name, encoding="-", rows=0, kept=0, dropped=Counter(), problems=[], what="row")
    parts = [pa.schema([*((column, pa.string()) for column in OUTPUT), ("key", pa.int64())]).empty_table()]
    try:
        for table in csv_blocks(path, COLUMNS, ("question", "answer"), report):
            parts.append(prepare(table, folder, max_chars, report))
        for line, *bad in report["bad"]:
            drop(report, Place(name, line), Bad(*bad))
        for reason in (MISFIT, UNCLOSED, UNDECODABLE):
            if (more := report["dropped"][reason] - EXAMPLES) > 0:
                report["problems"].append(f"{name}: {more:,} more rows dropped: {reason}")
    except Unusable as why:
        report.update(rows=0, dropped=Counter(), problems=[f"{name}: {why}"])
        del parts[1:]
    for work in ("bad", "lines", "angles"):
        report.pop(work, None)
    return pa.concat_tables(parts), report


def prepare(table, folder, max_chars, report):
    """Parsed rows -> the table of OUTPUT and key of those that pass the filters; counts the others in report["dropped"]."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    text = {column: pc.utf8_trim_whitespace(table[column]) for column in table.column_names}
    untold = pc.is_in(text["question"], pa.array(["", "无"]))  # "none", written by those whose title says it all
    text["question"] = pc.if_else(untold, text.get("title", ""), text["question"])
    department = text.get("department", pa.chunked_array([pa.repeat("", len(table))]))
    text["department"] = pc.if_else(pc.equal(department, ""), folder, department)

    lengths = [pc.utf8_length(text[column]).to_numpy() for column in ("question", "answer")]
    keep = np.ones(len(table), bool)
    for reason, bad in {
        EMPTY: np.minimum(*lengths) == 0,
        LONG: np.maximum(*lengths) > max_chars,
        CONTROL: holds_token(text, report["angles"]),
        BOILERPLATE: pc.match_substring_regex(text["answer"], NOTHING_ELSE, ignore_case=True).to_numpy(),
    }.items():
        report["dropped"][reason] += np.count_nonzero(keep & bad)
        keep &= ~bad
    table = pa.table({column: text[column] for column in OUTPUT}).filter(pa.array(keep))
    return table.append_column("key", pa.array(text_keys(table["answer"])))


def holds_token(text, angles):
    """-> boolean array: True for a row with a control token, which ends a turn or a text wherever it stands.

    angles: whether the file has a "<" at all; most have none, and are done with.
    """
    import numpy as np
    import pyarrow.compute as pc

    found = np.zeros(len(text["answer"]), bool)
    for column in ("question", "answer") if angles else ():
        if pc.any(pc.match_substring(text[column], "<|")).as_py():
            found |= pc.match_substring_regex(text[column], CONTROL_TOKEN.pattern).to_numpy()
    return found


def normalise(column):
    """What is left of a text when case, blanks and punctuation are not looked at; questions are the same by this."""
    import pyarrow.compute as pc

    return pc.replace_substring_regex(pc.ascii_lower(column), IGNORED, "")


def text_keys(column):
    """A column of texts -> array of 64-bit hashes: what is equal has equal ones, in this process."""
    import numpy as np
    import pyarrow as pa

    # As bytes, which needs half the time: they are not decoded.
    keys = (map(hash, chunk.cast(pa.binary()).to_pylist()) for chunk in column.chunks)
    return np.fromiter(chain.from_iterable(keys), np.int64, len(column))


def first_of_each(table):
    """-> boolean array: False for a row whose answer and normalised question stood in an earlier row."""
    import numpy as np
    import pyarrow as pa

    key = table["key"].to_numpy()
    keys, counts = np.unique(key, return_counts=True)
    repeated = np.isin(key, keys[counts > 1])  # few, and only their questions are normalised
    pairs = 3 * key[repeated] + text_keys(normalise(table["question"].filter(pa.array(repeated))))
    keep = ~repeated
    keep[np.flatnonzero(repeated)[np.unique(pairs, return_index=True)[1]]] = True
    return keep


def format_report(reports):
    """The reports as an aligned table with totals, and the problems below it."""
    dropped = sum((report["dropped"] for report in reports), Counter())
    total = dict(file="all", encoding="", dropped=dropped, **{k: sum(r[k] for r in reports) for k in ("rows", "kept")})
    reasons = [reason for reason in REASONS if dropped[reason]]
    table = []
    for report in (*reports, total):
        counts = (report["rows"], report["kept"], *(report["dropped"][reason] for reason in reasons))
        table.append((report["file"], report["encoding"], *(f"{count:,}" for count in counts)))
    problems = [problem for report in reports for problem in report["problems"]]
    return "\n".join([text_table(("file", "encoding", "rows", "kept", *reasons), table), *problems])


def split(table, held_out, seed):
    """-> (train, eval): tables with no question in common; eval has held_out rows, or the most that whole questions
    add up to. Raises SystemExit where one of the two would be empty.

    A random split of rows puts a twentieth of the questions on both sides, and the held-out loss then praises a model
    for what it has memorised.
    """
    import numpy as np
    import pyarrow as pa

    if not 0 < held_out < len(table):
        raise SystemExit(f"--held_out {held_out} of {len(table)} rows: leave at least one on each side.")
    _, first, question, repeats = np.unique(
        text_keys(normalise(table["question"])), return_index=True, return_inverse=True, return_counts=True
    )
    chosen, missing = [], held_out
    # Ordered by their first rows before they are shuffled, because the keys differ from process to process.
    for group in np.random.default_rng(seed).permutation(np.argsort(first)):
        if repeats[group] <= missing:
            chosen.append(group)
            missing -= repeats[group]
        if not missing:
            break
    if not chosen:
        raise SystemExit(
            f"every question has more than {held_out} rows: none can be held out. Give a larger --held_out."
        )
    held = np.isin(question, chosen)
    return table.filter(pa.array(~held)), table.filter(pa.array(held))


def load_splits(args):
    """Read, report and split: (training rows, held-out rows) of a script's flags, as tables."""
    table, reports = read_rows(args.data, args.max_chars)
    print(format_report(reports))
    return split(table, args.held_out, args.split_seed)


def write_jsonl(table, out):
    """Write one JSON object a row, under another name until it is complete."""
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            for batch in table.to_batches():
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
        os.replace(temporary, out)
    except OSError as error:
        raise SystemExit(f"can't write {out}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "folder",
        nargs="?",
        help="folder of CSV files, or one CSV file (default: MEDICAL_DATA_DIR, else DATA_DIR/medical)",
    )
    parser.add_argument("--check", metavar="FOLDER", nargs="?", const="", help="the same folder, named after a flag")
    parser.add_argument("--max_chars", type=int, default=200, help="longest question and answer (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="X.jsonl", help="write the prepared rows to this new file")
    args = parser.parse_args(argv)
    folder = args.check or args.folder
    if args.check and args.folder:
        parser.error("give the folder once")
    if args.max_chars < 1:
        parser.error("--max_chars must be 1 or more")
    if args.out:
        new_file(args.out)
    load_env()
    table, reports = read_rows(folder, args.max_chars)
    print(format_report(reports))
    if args.out:
        write_jsonl(table, args.out)
        print(f"{len(table):,} rows written to {args.out}")


if __name__ == "__main__":
    piped(main)
