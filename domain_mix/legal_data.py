"""Build training rows for law: from statutes in plain text or markdown, and from files of questions and answers.

An article of a statute (第X条) by itself often makes no sense, so each row carries the headings above it (statutes.py):

    instruction  《示例图书馆借阅条例》第五条是怎么规定的？
    input        示例图书馆借阅条例 第二章 借阅
    output       读者每次可以借阅图书五册，借期三十日。……

Question files: JSON, JSONL, Parquet, CSV or .xlsx with a question and an answer column, perhaps one with context. Text may
be UTF-8, UTF-16 or GB18030. What is wrong is listed by file and row; a row that cannot be used is left out, never mended.
Two versions of a law, repeats, and questions with two answers are told apart in settle().

Build:        python legal_data.py FOLDER --out law.jsonl
Only check:   python legal_data.py FOLDER
The sample:   python legal_data.py --demo
Then mix it:  a source {format: alpaca, path: law.jsonl} in a plan of data.py
"""

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import statutes
import versions
from common.rows import MISSING, Bad, Unusable, checked, object_of, read_file, read_text, said, text_of
from common.tables import find_columns
from sources import normalise, write_jsonl

HERE = Path(__file__).resolve().parent
COLUMNS = {
    "question": ("question", "instruction", "ask", "问题", "提问", "咨询"),
    "answer": ("answer", "output", "response", "回答", "答案", "答复"),
    "context": ("context", "input", "basis", "依据", "法条", "背景"),
}
NEEDED = ("question", "answer")


@dataclass(eq=False)
class Entry:
    """A row and where it was read; law: the text that it is an article of."""

    file: Path
    number: int
    row: dict
    law: statutes.Law | None = None

    def __post_init__(self):
        question = self.row["instruction"]
        self.key = versions.question_key(question) or normalise(f"{question}\n{self.row['input']}")
        self.answer = "".join(normalise(self.row["output"]).split())  # a line's end inside a sentence changes nothing
        self.place = f"{self.file.name}, row {self.number}"


def read_folder(path):
    """(rows, problems) of a file or a folder: rows as dicts, problems as (file, row number or "", what is wrong)."""
    path = Path(path)
    if not path.exists():
        raise SystemExit(f"{path}: no such file or folder.")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    entries, problems = [], []
    for file in files:
        reader = READERS.get(file.suffix.lower())
        if file.name.startswith((".", "~$")):  # ~$: what Excel leaves beside an open file
            continue
        if reader is None:
            problems.append(
                (file, "", f"not read: {file.suffix or 'no suffix'}. Save it as .txt, .csv, .xlsx or .json.")
            )
            continue
        for number, row, *law in reader(file):
            if isinstance(row, str):
                problems.append((file, number, row))
            else:
                entries.append(Entry(file, number, row, *law))
    rows, left_out = settle(entries)
    order = {file: at for at, file in enumerate(files)}
    return rows, sorted(problems + left_out, key=lambda problem: (order[problem[0]], problem[1] or 0))


def settle(entries):
    """(rows, problems): each question once, with one answer. Each row left out is a problem, or counted in its text's.

    Of a law in several versions the newest stays, where dates tell it. An equal question with an equal answer is a
    repeat; with another answer it is a conflict. Of two articles nobody knows which one is in force, so neither stays;
    a question file gives way to a statute, and to the row that was read before.
    """
    texts, groups = {}, {}
    for entry in entries:
        if entry.law:
            texts.setdefault(entry.law, []).append(entry)
    old = versions.superseded(texts)
    out, problems = {entry for law in old for entry in texts[law]}, []
    for law, new in old.items():
        articles, answers = texts[law], {entry.key: entry.answer for entry in texts[new]}
        same = sum(answers.get(entry.key) == entry.answer for entry in articles)
        said = (
            f"an older version ({date_text(law.date)}) of 《{law.title}》: its articles are left out "
            f"({len(articles)}, {same} of them unchanged) for those of {texts[new][0].place} "
            f"({date_text(new.date)})"
        )
        problems.append((articles[0].file, articles[0].number, said))
    for entry in entries:
        if entry not in out:
            groups.setdefault(entry.key, []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: entry.law is None)
        first = group[0]
        other = next((entry for entry in group if entry.law and entry.answer != first.answer), None)
        for entry in group if other else group[1:]:
            out.add(entry)
            against = first if entry.answer != first.answer else other
            said = f"the same question and answer as {first.place}"
            if against:
                said = f"another answer than {against.place} to the same question: "
                said += "neither is kept. Keep the one in force" if other else "left out. Keep the right one"
            problems.append((entry.file, entry.number, said))
    return [entry.row | {"source": "law"} for entry in entries if entry not in out], problems


def date_text(date):
    return "-".join(f"{part:02}" for part in date)


def read_statute(file):
    """(line number, row or what is wrong, its law) for each article of a statute."""
    try:
        laws = statutes.read(read_text(file), file.stem)
    except Unusable as error:
        yield "", str(error)
        return
    for law in laws:
        yield from ((line, what, law) for line, what in law.found)
    if not any(law.articles for law in laws):
        yield "", "no article: no line begins with 第X条"


def read_questions(file):
    """(row number, row or what is wrong) of a file of questions and answers."""
    place = None
    try:
        for place, _, made in checked(read_file(file, COLUMNS, NEEDED), question_row):
            sheet = f"sheet {place.sheet}: " if place.sheet else ""
            if isinstance(made, Bad):
                made = f"{sheet}{said(made).strip(', :')}"
            yield place.number or "", f"{sheet}{made}" if isinstance(made, Unusable) else made
        if place is None:
            yield "", "no row in it"
    except Unusable as why:  # the other files are still read
        yield "", str(why)


def question_row(row):
    """A row for training. Raises Bad."""
    names, values = [str(name) for name in object_of(row, *NEEDED)], list(row.values())
    try:
        columns = find_columns(names, COLUMNS, NEEDED)
    except Unusable as why:
        raise Bad(MISSING, None, str(why)) from None
    cells = {part: values[at] for part, at in columns.items()}
    cells |= {part: str(value) for part, value in cells.items() if type(value) in (int, float)}
    question, answer = text_of(cells, "question"), text_of(cells, "answer", indented=True)
    return {"instruction": question, "input": text_of(cells, "context", empty=True), "output": answer}


READERS = {
    ".txt": read_statute,
    ".md": read_statute,
    ".json": read_questions,
    ".jsonl": read_questions,
    ".csv": read_questions,
    ".xlsx": read_questions,
    ".parquet": read_questions,
}


def as_text(cell):
    """A cell that no spreadsheet takes for a formula: a file may be called =HYPERLINK(...)."""
    return f"'{cell}" if str(cell).startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("path", nargs="?", help="a file, or a folder of statutes (.txt, .md) and question files")
    parser.add_argument(
        "--out", type=Path, metavar="X.jsonl", help="write the rows here, what is wrong to X.report.csv"
    )
    parser.add_argument("--demo", action="store_true", help="read sample/law")
    args = parser.parse_args(argv)
    path = HERE / "sample" / "law" if args.demo else args.path
    if not path:
        parser.error("name a file or a folder")
    report = args.out.with_suffix(".report.csv") if args.out else None
    for file in (args.out, report):
        if file and file.exists():
            raise SystemExit(f"{file} exists and is kept. Name another file with --out, or move it away.")
    rows, problems = read_folder(path)
    for file, number, what in problems[:50]:
        print(f"{file}{f': row {number}' if number else ''}: {what}")
    if len(problems) > 50:
        print(f"... and {len(problems) - 50:,} more; --out writes all of them")
    print(f"{len(rows):,} rows, {len(problems):,} problems")
    if not rows:
        raise SystemExit(f"{path}: nothing that can be used.")
    if args.out:
        write_jsonl(rows, args.out)
        text = io.StringIO()
        csv.writer(text).writerows([("file", "row", "problem"), *(map(as_text, row) for row in problems)])
        report.write_text(text.getvalue(), encoding="utf-8-sig")  # so that Excel reads the Chinese
        print(f"written: {args.out} and {report}")


if __name__ == "__main__":
    main()
