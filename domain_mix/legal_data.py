"""Build training rows for law: from statutes in plain text, and from files of questions and answers.

A statute is a list of articles (第X条) under headings (编 part, 章 chapter, 节 section). An article by itself often makes
no sense, so each row carries the headings above it:

    instruction  《示例图书馆借阅条例》第五条是怎么规定的？
    input        示例图书馆借阅条例 第二章 借阅
    output       读者每次可以借阅图书五册，借期三十日。……

Question files: JSON, JSONL, CSV or .xlsx with a question and an answer column, perhaps one with context. Text may be
UTF-8, UTF-16 or GB18030. What is wrong is listed by file and row; a row that cannot be used is left out, never mended.

Build:        python legal_data.py FOLDER --out law.jsonl
Only check:   python legal_data.py FOLDER
The sample:   python legal_data.py --demo
Then mix it:  a source {format: alpaca, path: law.jsonl} in a plan of data.py
"""

import argparse
import csv
import io
import re
from pathlib import Path

from sources import normalise, read_json, write_jsonl

HERE = Path(__file__).resolve().parent
COLUMNS = {
    "question": ("question", "instruction", "ask", "问题", "提问", "咨询"),
    "answer": ("answer", "output", "response", "回答", "答案", "答复"),
    "context": ("context", "input", "basis", "依据", "法条", "背景"),
}
NUMBER = r"[零〇一二两三四五六七八九十百千0-9０-９]+"
HEADING = re.compile(rf"第({NUMBER})(编|分编|章|节)(?=\s|$|[^\s，。、的])\s*(.*)")
ARTICLE = re.compile(rf"第({NUMBER})条((?:之{NUMBER})?)(\s*)(.*)")
LEVELS = ("编", "分编", "章", "节")


def read_folder(path):
    """(rows, problems) of a file or a folder: rows as dicts, problems as (file, row number or "", what is wrong)."""
    path = Path(path)
    if not path.exists():
        raise SystemExit(f"{path}: no such file or folder.")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    rows, problems, seen = [], [], {}
    for file in files:
        reader = READERS.get(file.suffix.lower())
        if file.name.startswith((".", "~$")):  # ~$: what Excel leaves beside an open file
            continue
        if reader is None:
            problems.append(
                (file, "", f"not read: {file.suffix or 'no suffix'}. Save it as .txt, .csv, .xlsx or .json.")
            )
            continue
        for number, row in reader(file):
            if isinstance(row, str):
                problems.append((file, number, row))
                continue
            key = normalise(f"{row['instruction']}\n{row['input']}")
            if key in seen:
                problems.append((file, number, f"the same question as {seen[key]}"))
                continue
            seen[key] = f"{file.name}, row {number}"
            rows.append(row | {"source": "law"})
    return rows, problems


def decode(file) -> str:
    """A text file in UTF-8, UTF-16 (with its mark) or GB18030. Raises ValueError with what to do."""
    content = file.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            byte = error.start
    raise ValueError(f"neither UTF-8 nor GB18030 (byte {byte}). Save it as UTF-8.")


def read_statute(file):
    """(line number, row or what is wrong) for each article of a statute."""
    try:
        lines = decode(file).splitlines()
    except ValueError as error:
        yield "", str(error)
        return
    title, headings, article, last, count = None, {}, None, 0, 0
    for number, line in enumerate([*lines, "第END条"], 1):
        line = line.strip()  # Python's strip takes the full-width space, too
        heading, found = HEADING.fullmatch(line), ARTICLE.fullmatch(line)
        if found and not starts_article(found, last):
            found = None
        if (found or heading or line == "第END条") and article:
            count += 1
            yield article["line"], statute_row(title or file.stem, article)
            article = None
        if found:
            value = number_value(found[1])
            if not found[2] and value != last + 1:
                yield (
                    number,
                    f"第{found[1]}条 follows article {last}: {'a repeat' if value <= last else 'one is missing'}",
                )
            last = value
            name = f"第{found[1]}条{found[2]}"
            article = {"line": number, "name": name, "text": [found[4]], "headings": list(headings.values())}
        elif heading:
            level = LEVELS.index(heading[2])
            headings = {above: text for above, text in headings.items() if above < level}
            headings[level] = f"第{heading[1]}{heading[2]} {heading[3]}".strip()
        elif article:
            article["text"].append(line)
        elif title is None and line:
            title = line.strip("《》")
    if not count:
        yield "", "no article: no line begins with 第X条"


def starts_article(found, last):
    """第五条　读者… begins an article; 第五条第二款规定的… is a sentence that was broken at a line's end."""
    if found[3] or not found[4]:
        return True
    return number_value(found[1]) == last + 1 and found[4][0] not in "第规的之、，和或至以中"


def number_value(text) -> int:
    """一百二十三 or 123 or １２３ -> 123."""
    if text.isdecimal():
        return int(text)
    total, digit = 0, 0
    for char in text:
        unit = {"十": 10, "百": 100, "千": 1000}.get(char)
        if unit:
            total, digit = total + (digit or 1) * unit, 0
        else:
            digit = "零一二三四五六七八九".find(char.replace("〇", "零").replace("两", "二"))
    return total + digit


def statute_row(title, article):
    text = "\n".join(line for line in article["text"] if line)
    if not text:
        return f"{article['name']} has no text"
    context = " ".join([title, *article["headings"]])
    return {"instruction": f"《{title}》{article['name']}是怎么规定的？", "input": context, "output": text}


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
        for number, row in enumerate(read_json(file), 1):
            if not isinstance(row, dict):
                yield number, str(row) if isinstance(row, ValueError) else f"not an object but {type(row).__name__}"
                continue
            columns = find_columns(row)
            yield number, question_row({name: row.get(column) for name, column in columns.items()}, columns)
    except SystemExit as error:  # the whole file is of no use; the others are still read
        yield "", str(error).removeprefix(f"{file}: ")


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
    ".json": read_questions,
    ".jsonl": read_questions,
    ".csv": read_csv,
    ".xlsx": read_xlsx,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("path", nargs="?", help="a file, or a folder of statutes (.txt) and question files")
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
