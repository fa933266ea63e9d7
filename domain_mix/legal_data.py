"""Build training rows for law: from statutes in plain text or markdown, and from files of questions and answers.

An article of a statute (第X条) by itself often makes no sense, so each row carries the headings above it (statutes.py):

    instruction  《示例图书馆借阅条例》第五条是怎么规定的？
    input        示例图书馆借阅条例 第二章 借阅
    output       读者每次可以借阅图书五册，借期三十日。……

Question files: JSON, JSONL, CSV or .xlsx with a question and an answer column, perhaps one with context. Text may be
UTF-8, UTF-16 or GB18030. What is wrong is listed by file and row; a row that cannot be used is left out, never mended. Two versions of a law, repeats, and
questions with two answers are told apart in settle().

Build:        python legal_data.py FOLDER --out law.jsonl
Only check:   python legal_data.py FOLDER
The sample:   python legal_data.py --demo
Then mix it:  a source {format: alpaca, path: law.jsonl} in a plan of data.py
"""

import argparse
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import statutes
import versions
from sources import normalise, read_list, write_jsonl

HERE = Path(__file__).resolve().parent
COLUMNS = {
    "question": ("question", "instruction", "ask", "问题", "提问", "咨询"),
    "answer": ("answer", "output", "response", "回答", "答案", "答复"),
    "context": ("context", "input", "basis", "依据", "法条", "背景"),
}


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


def decode(file) -> str:
    """A text file in UTF-8, UTF-16 (with its mark) or GB18030. Raises ValueError with what to do."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            byte = error.start
    raise ValueError(f"neither UTF-8 nor GB18030 (byte {byte}). Save it as UTF-8.")


def read_statute(file):
    """(line number, row or what is wrong, its law) for each article of a statute."""
    try:
        laws = statutes.read(decode(file), file.stem)
    except ValueError as error:
        yield "", str(error)
        return
    for law in laws:
        yield from ((line, what, law) for line, what in law.found)
    if not any(law.articles for law in laws):
        yield "", "no article: no line begins with 第X条"


def read_csv(file):
    try:
        lines = csv.reader(io.StringIO(decode(file), newline=""))
        yield from question_rows((lines.line_num, values) for values in lines)
    except (ValueError, csv.Error) as error:
        yield "", str(error)


def read_xlsx(file):
    """The first sheet of a workbook; its formulas as the values that Excel saved."""
    import zipfile

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        sheet = load_workbook(file, read_only=True, data_only=True).worksheets[0]
        yield from question_rows(enumerate(sheet.iter_rows(values_only=True), 1))
    except (InvalidFileException, zipfile.BadZipFile, KeyError, OSError) as error:
        yield "", f"not an .xlsx workbook: {error}"


def read_questions(file):
    """Objects of a JSON list or JSON lines."""
    try:
        text = decode(file).lstrip()
        rows = read_list(file, io.StringIO(text[1:])) if text.startswith("[") else read_lines(text)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                yield number, str(row) if isinstance(row, ValueError) else f"not an object but {type(row).__name__}"
                continue
            columns = find_columns(row)
            yield number, question_row({name: row.get(column) for name, column in columns.items()}, columns)
    except (ValueError, RecursionError, SystemExit) as error:  # the whole file is of no use; the others are still read
        yield "", str(error).removeprefix(f"{file}: ")


def read_lines(text):
    for line in text.split("\n"):  # not splitlines: U+2028 may stand inside a string
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield ValueError(f"not JSON: {error}")


def question_rows(numbered):
    """Rows of a table whose first row has the names of the columns."""
    columns = None
    for number, values in numbered:
        if not any(str(value).strip() for value in values if value is not None):
            continue
        if columns is None:
            columns = find_columns([str(value or "") for value in values])
            places = {name: [str(value or "") for value in values].index(column) for name, column in columns.items()}
            if missing := {"question", "answer"} - set(columns):
                yield number, missing_columns(missing, values)
                return
            continue
        yield (
            number,
            question_row({name: values[at] if at < len(values) else None for name, at in places.items()}, columns),
        )
    if columns is None:
        yield "", "no row in it"


def find_columns(names):
    """{question, answer, context: the column's own name}, as far as they are there; case and spaces do not matter."""
    by_name = {normalise(str(name)): name for name in names}
    found = {part: next((by_name[each] for each in known if each in by_name), None) for part, known in COLUMNS.items()}
    return {part: name for part, name in found.items() if name is not None}


def missing_columns(missing, found):
    known = "; ".join(f"{part}: {', '.join(COLUMNS[part])}" for part in sorted(missing))
    return f"no {' and no '.join(sorted(missing))} column. Names known: {known}. Found: {', '.join(map(str, found))}"


def question_row(cells, columns):
    """A row for training, or what is wrong with it."""
    if missing := {"question", "answer"} - set(columns):
        return missing_columns(missing, columns.values())
    for part, value in cells.items():
        if value is not None and not isinstance(value, str | int | float):
            return f"column {columns[part]}: not text but {type(value).__name__}"
    cells = {part: "" if value is None else str(value).strip() for part, value in cells.items()}
    for part in ("question", "answer"):
        if not cells[part]:
            return f"column {columns[part]}: empty"
    return {"instruction": cells["question"], "input": cells.get("context", ""), "output": cells["answer"]}


READERS = {
    ".txt": read_statute,
    ".md": read_statute,
    ".json": read_questions,
    ".jsonl": read_questions,
    ".csv": read_csv,
    ".xlsx": read_xlsx,
}


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
        csv.writer(text).writerows([("file", "row", "problem"), *problems])
        report.write_text(text.getvalue(), encoding="utf-8-sig")  # so that Excel reads the Chinese
        print(f"written: {args.out} and {report}")


if __name__ == "__main__":
    main()
