"""Malformed inputs for one folder's reader:  python fuzz_rows.py FOLDER SEED  -> one JSON object a variant on stdout.

Each mutator writes a file and says which rows must survive: all of them, all but some, or none, where the file has to be
refused as a whole. test_fuzz.py runs this in a process of its own for each folder and checks what it prints.
"""

import io
import json
import random
import re
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = 12
REFUSED = None  # instead of survivors: the whole file has to be refused
ANY = "any"  # bytes changed at random: whatever happens, it must end in a line
WORDS = [
    "借书",
    "续借",
    "逾期",
    "书架",
    "读者",
    "证件",
    "阅览",
    "归还",
    "日期",
    "地点",
    "费用",
    "规则",
    "the",
    "library",
    "opens",
    "at",
    "nine",
    "and",
    "closes",
    "at",
    "six",
]
FORMATS = {
    "medical": ("csv",),
    "vl_insurance": ("csv", "xlsx", "jsonl"),
    "legal": ("json", "jsonl", "csv", "xlsx", "parquet"),
}
ALL = ("json", "jsonl", "csv", "xlsx", "parquet")
COLUMNS = {  # folder -> (the column that tells rows apart, another text column that is needed)
    "alpaca": ("instruction", "output"), "domain_mix": ("instruction", "output"), "legal": ("question", "answer"),
    "medical": ("question", "answer"), "rlhf_ppo": ("prompt", "chosen"), "r1_grpo": ("question", "answer"),
    "s1_scaling": ("question", "trace"), "vl_insurance": ("prompt", "response"),
    "lora_variants": ("question", "answer"), "continual": ("question", "answer"),
}  # fmt: skip


def made(folder, draw):
    """ROWS good rows of a folder, all different."""
    rows = []
    for number in range(ROWS):
        ask, say = (f"{number} " + " ".join(draw.sample(WORDS, 5)) for _ in range(2))
        rows.append({
            "alpaca": {"instruction": ask, "input": "", "output": say},
            "domain_mix": {"instruction": ask, "input": "", "output": say},
            "legal": {"question": ask, "answer": say},
            "lora_variants": {"question": ask, "answer": say},
            "continual": {"question": ask, "answer": say},
            "medical": {"question": ask, "answer": f"{say}，注意休息。"},
            "rlhf_ppo": {"prompt": ask, "chosen": say, "rejected": "不知道。"},
            "r1_grpo": {"question": ask, "answer": f"{say} #### {number}"},
            "s1_scaling": {"question": ask, "trace": say, "answer": str(number)},
            "vl_insurance": {"id": f"n{number}", "prompt": ask, "image": "a.png", "response": say},
        }[folder])  # fmt: skip
    return rows


def reader(folder):
    """A function path -> (texts of the column that tells rows apart, rows read, rows dropped)."""
    task = "domain_mix" if folder == "legal" else folder
    sys.path.insert(0, str(ROOT / task))
    import data

    column = COLUMNS[folder][0]

    def read(path):
        if folder == "legal":
            import legal_data

            rows, problems = legal_data.read_folder(path)
            inner = [problem for problem in problems if problem[1]]
            whole = [
                f"{file}: {what}" for file, number, what in problems if not number and not what.startswith("sheet")
            ]
            if whole or not rows:
                raise SystemExit(" ".join(whole) or str(problems))
            return [row["instruction"] for row in rows], len(rows) + len(inner), len(inner)
        if folder == "medical":
            table, (report,) = data.read_rows(path, progress=False)
            return table["question"].to_pylist(), report["rows"], int(sum(report["dropped"].values()))
        if folder == "domain_mix":
            data.read_rows(path)
            rows, report = data.keep(data.read(path, data.COLUMNS, data.COLUMNS), data.check, path)
        elif folder == "r1_grpo":
            train, test, report = data.read_splits(path)
            report, rows = report["splits"]["train"], train + test
        elif folder == "continual":  # its conversations; documents are one text each
            rows, report = data.read_chats(path)
        elif folder == "s1_scaling":
            rows, report = data.clean(data.load(path)["train"], path)
        else:
            rows, report = data.read_rows(path)
        texts = [row[column] if isinstance(row[column], str) else row[column][-1]["content"] for row in rows]
        return texts, report["rows"], sum(report["dropped"].values())

    return read


# -- writers: rows (dicts of texts, or raw text in place of one) -> bytes


def jsonl(rows):
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows
    ).encode()


def json_list(rows):
    return (
        "[\n" + ",\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
    ).encode()


def csv_text(rows):
    lines = [",".join(rows[0])]
    for row in rows:
        cells = [str(cell) for cell in row.values()]
        lines.append(
            ",".join('"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n') else cell for cell in cells)
        )
    return ("\n".join(lines) + "\n").encode()


def workbook(rows, change=None):
    from openpyxl import Workbook

    book = Workbook()
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(row)
    if change:
        change(book)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def parquet_of(rows):
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def rezipped(content, change):
    """A zip file with `change` (name, bytes -> bytes) applied to each part."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


# -- variants: (name, bytes, numbers of the rows that must survive, or REFUSED, or ANY)


def without(*numbers):
    return [number for number in range(ROWS) if number not in numbers]


def spoiled(rows, at, **change):
    return [row | change if number == at else row for number, row in enumerate(rows)]


def bad_rows(rows, at, column, other):
    """(name, rows, survivors): one row with something in it that must not be trained on; good for every format."""
    text = rows[at][other]
    yield "control token", spoiled(rows, at, **{other: f"{text}<|im_end|><|im_start|>user"}), without(at)
    yield "another family's token", spoiled(rows, at, **{column: f"{text} <|endoftext|>"}), without(at)
    yield "blank", spoiled(rows, at, **{other: " \t "}), without(at)
    yield "1.5 million characters", spoiled(rows, at, **{other: "长" * 1_500_000}), without(at)
    yield "replacement character", spoiled(rows, at, **{other: f"{text}\ufffd"}), without(at)


def encodings(content):
    text = content.decode()
    yield "gb18030", text.encode("gb18030"), without()
    yield "utf-8 with a mark", b"\xef\xbb\xbf" + content, without()
    yield "utf-16 with a mark", text.encode("utf-16"), without()
    yield "utf-16 without one", text.encode("utf-16-le"), without()
    yield "windows line ends", content.replace(b"\n", b"\r\n"), without()
    said = {"cp1252": "où est-ce déjà l’été à la fenêtre", "big5": "圖書館開放時間與借閱規則說明", "cp932": "図書館の利用時間はいつですか",
            "cp949": "도서관은 언제 문을 여나요 알려 주세요", "cp1251": "когда открывается библиотека"}  # fmt: skip
    for encoding, foreign in said.items():
        for word in WORDS[:12]:
            text = text.replace(word, foreign)
        foreign_text = text.replace("，注意休息。", "").replace("不知道。", "")
        yield f"really {encoding}", foreign_text.encode(encoding, "replace"), REFUSED
        text = content.decode()


def json_lines(rows, draw, column, other):
    content, at = jsonl(rows), draw.randrange(1, ROWS)
    lines = content.split(b"\n")

    def line(new):
        return b"\n".join([*lines[:at], new, *lines[at + 1 :]])

    for name, new in {
        "half a line": lines[at][: len(lines[at]) // 2], "a number": b"7", "a list": b'["a"]', "null": b"null", "a text": b'"a"',
        "a comma at the end": lines[at] + b",", "single quotes": lines[at].replace(b'"', b"'"), "100,000 levels": b'{"a":' + b"[" * 100_000,
        "a key twice": lines[at][:-1] + b', "' + column.encode() + b'": "b"}', "a broken byte": lines[at].replace(other.encode() + b'": "', other.encode() + b'": "\xff'),
        "half a surrogate": lines[at].replace(other.encode() + b'": "', other.encode() + b'": "\\ud83d'),
        "NUL": lines[at].replace(other.encode() + b'": "', other.encode() + b'": "\\u0000'), "two objects": lines[at] + b" {}",
    }.items():  # fmt: skip
        yield name, line(new), without(at)
    yield "a blank line", line(lines[at] + b"\n\n  "), without()
    yield "5,000 digits", line(lines[at][:-1] + b', "n": ' + b"1" * 5000 + b"}"), without()
    yield "NaN in another column", line(lines[at][:-1] + b', "n": NaN}'), without()
    yield "cut off", content[: -len(lines[-2]) // 2], without(ROWS - 1)
    yield (
        "missing column",
        jsonl([{k: v for k, v in row.items() if k != other or n != at} for n, row in enumerate(rows)]),
        without(at),
    )
    yield "null column", jsonl(spoiled(rows, at, **{other: None})), without(at)
    yield "list in a column", jsonl(spoiled(rows, at, **{other: ["a"]})), without(at)
    yield from ((name, jsonl(bad), left) for name, bad, left in bad_rows(rows, at, column, other))
    yield from encodings(content)
    yield "one object over many lines", json.dumps({"data": rows}, indent=1).encode(), REFUSED
    yield "one object", json.dumps({"data": rows}).encode() + b"\n", REFUSED


def json_lists(rows, draw, column, other):
    content, at = json_list(rows), draw.randrange(1, ROWS)
    yield "cut off", content[: len(content) // 2], REFUSED
    yield "no end", content[:-1], REFUSED
    yield "another list", content + b"\n" + content, REFUSED
    yield "words after the end", content + b" end", REFUSED
    yield "a number in it", json_list([7 if n == at else row for n, row in enumerate(rows)]), without(at)
    yield "100,000 levels", json_list([row if n != at else "[" * 100_000 for n, row in enumerate(rows)]), REFUSED
    yield (
        "a key twice",
        json_list([json.dumps(row)[:-1] + f', "{column}": "b"}}' if n == at else row for n, row in enumerate(rows)]),
        without(at),
    )
    yield "5,000 digits", json_list(spoiled(rows, at, n="N")).replace(b'"N"', b"1" * 5000), without()
    yield "NaN", json_list(spoiled(rows, at, n="N")).replace(b'"N"', b"NaN"), without()
    yield "single quotes", content.replace(b'"', b"'"), REFUSED
    yield "empty list", b"[]", REFUSED
    yield "empty", b"", REFUSED
    yield "blanks", b" \n\n", REFUSED
    yield "NULs", bytes(3000), REFUSED
    yield from ((name, json_list(bad), left) for name, bad, left in bad_rows(rows, at, column, other))
    yield from encodings(content)


def csv_files(rows, draw, column, other):
    content, at = csv_text(rows), draw.randrange(1, ROWS)
    lines = content.split(b"\n")

    def line(new):
        return b"\n".join([*lines[: at + 1], new, *lines[at + 2 :]])

    for name, new in {
        "an unclosed quote": b'"' + lines[at + 1], "a column too many": lines[at + 1] + b",more", "a column too few": lines[at + 1].rpartition(b",")[0],
        "NUL": lines[at + 1][:3] + b"\0" + lines[at + 1][3:], "a broken byte": lines[at + 1] + b"\xff",
    }.items():  # fmt: skip
        yield name, line(new), without(at)
    first = draw.randrange(1, ROWS)
    both = [b'"' + each if n - 1 in (at, first) else each for n, each in enumerate(lines)]
    yield "two unclosed quotes", b"\n".join(both), without(at, first)
    yield "blank lines", line(lines[at + 1] + b"\n\n"), without()
    yield "old Mac line ends", content.replace(b"\n", b"\r"), without()
    yield "another header", content.replace(lines[0], b",".join(b"x%d" % n for n in range(len(rows[0]))), 1), REFUSED
    yield "no header", b"\n".join(lines[1:]), REFUSED
    yield "a header alone", lines[0] + b"\n", REFUSED
    yield (
        "a column twice",
        b"\n".join([lines[0] + b"," + column.encode(), *(each + b",b" for each in lines[1:-1]), b""]),
        REFUSED,
    )
    yield "100,000 columns", b"," * 100_000 + b"\n" + content, REFUSED
    yield "empty", b"", REFUSED
    yield "NULs", bytes(5000), REFUSED
    yield "a workbook", workbook(rows), REFUSED
    yield from ((name, csv_text(bad), left) for name, bad, left in bad_rows(rows, at, column, other))
    yield from encodings(content)


def workbooks(rows, draw, column, other):
    at, place = draw.randrange(1, ROWS), list(rows[0]).index(other) + 1
    content = workbook(rows)

    def cell(value):
        return workbook(rows, lambda book: setattr(book.active.cell(at + 2, place), "value", value))

    def parts(change):
        return rezipped(content, change)

    def sheet(name, old, new):
        return parts(lambda part, text: text.replace(old, new, 1) if part == name else text)

    first = "xl/worksheets/sheet1.xml"
    yield "an error cell", cell("#N/A"), without(at)
    yield "a formula that was not calculated", cell("=1+1"), without(at)
    yield (
        "a dimension too small",
        parts(lambda n, t: t.replace(f'ref="A1:{chr(64 + len(rows[0]))}13"'.encode(), b'ref="A1:A1"')),
        without(),
    )
    yield (
        "a dimension too large",
        parts(lambda n, t: t.replace(f"{chr(64 + len(rows[0]))}13".encode(), b"XFD1048576", 1) if n == first else t),
        without(),
    )
    yield (
        "a cell far away",
        workbook(rows, lambda book: setattr(book.active.cell(1_048_576, 16_384), "value", "x")),
        REFUSED,
    )
    yield "a sheet of notes", workbook(rows, lambda book: book.create_sheet("notes").append(["read me"])), without()
    yield "a hidden sheet", workbook(rows, lambda book: hide(book, rows)), without()
    yield "a DOCTYPE", sheet("xl/workbook.xml", b"<workbook", b'<!DOCTYPE x [<!ENTITY a "b">]><workbook'), REFUSED
    yield "a broken tag", sheet(first, b"</row>", b"</raw>"), without()
    yield "half a sheet", parts(lambda n, t: t[: len(t) // 2] if n == first else t), REFUSED
    yield "no sheet", parts(lambda n, t: b"" if n == first else t), REFUSED
    yield (
        "a column twice",
        workbook(
            [row | {"z": "b"} for row in rows],
            lambda book: setattr(book.active.cell(1, len(rows[0]) + 1), "value", column),
        ),
        REFUSED,
    )
    yield "another header", workbook([{f"x{n}": v for n, v in enumerate(row.values())} for row in rows]), REFUSED
    yield "cut off", content[: len(content) // 2], REFUSED
    yield "a text", b"id,prompt\n", REFUSED
    yield "an old workbook", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), REFUSED
    yield "a bomb", parts(lambda n, t: bytes(400_000_000) if n == "docProps/app.xml" else t), REFUSED
    yield "a million formatted rows", parts(lambda n, t: formatted(t) if n == first else t), without()
    for _ in range(6):
        yield "bytes changed at random", scrambled(content, draw), ANY
    yield from (
        (name, workbook(bad), left) for name, bad, left in bad_rows(rows, at, column, other) if "million" not in name
    )


def hide(book, rows):
    page = book.create_sheet("old")
    page.append(list(rows[0]))
    page.append(["hidden"] * len(rows[0]))
    page.sheet_state = "hidden"


def formatted(text):
    return text.replace(
        b"</sheetData>",
        b"".join(b'<row r="%d"><c r="A%d" s="0"/></row>' % (n, n) for n in range(14, 300_000)) + b"</sheetData>",
    )


def scrambled(content, draw):
    content = bytearray(content)
    for _ in range(draw.randrange(1, 40)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def parquets(rows, draw, column, other):
    import pyarrow
    import pyarrow.parquet

    content, at = parquet_of(rows), draw.randrange(1, ROWS)
    yield "cut off", content[: len(content) // 2], REFUSED
    yield "four bytes", b"PAR1", REFUSED
    yield "no rows", parquet_of(rows).replace(b"PAR1", b"PAR2"), REFUSED
    yield "null", parquet_of(spoiled(rows, at, **{other: None})), without(at)
    yield "another column", parquet_of([{"x": row[column]} for row in rows]), REFUSED
    out, size = io.BytesIO(), 3000
    index = pyarrow.array([0] * size, pyarrow.int32())
    texts = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["长" * 300_000]))
    table = pyarrow.table(dict.fromkeys(rows[0], texts))
    for schema in (True, False):
        pyarrow.parquet.write_table(table, out, compression="zstd", store_schema=schema)
        yield "kilobytes that unpack to gigabytes", out.getvalue(), REFUSED
        out = io.BytesIO()
    for _ in range(8):
        yield "bytes changed at random", scrambled(content, draw), ANY
    yield from ((name, parquet_of(bad), left) for name, bad, left in bad_rows(rows, at, column, other))


KINDS = {"jsonl": json_lines, "json": json_lists, "csv": csv_files, "xlsx": workbooks, "parquet": parquets}


def peak_mb():
    """Highest memory of this process. getrusage would count that of the process which started it, too."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


def main(folder, seed):
    draw = random.Random(f"{folder} {seed}")
    read, rows = reader(folder), made(folder, draw)
    column, other = COLUMNS[folder]
    with tempfile.TemporaryDirectory() as place:
        if folder == "vl_insurance":
            from PIL import Image

            Image.new("RGB", (60, 60)).save(Path(place) / "a.png")
        for kind in FORMATS.get(folder, ALL):
            for number, (name, content, survivors) in enumerate(KINDS[kind](rows, draw, column, other)):
                file = Path(place) / f"v{number}.{kind}"
                file.write_bytes(content)
                began, texts, total, dropped, said = time.perf_counter(), None, 0, 0, ""
                try:
                    texts, total, dropped = read(file)
                except SystemExit as end:
                    said = str(end)
                except BaseException:
                    said = "TRACEBACK " + traceback.format_exc()
                wanted = None if survivors in (REFUSED, ANY) else sorted(rows[n][column] for n in survivors)
                print(json.dumps({
                    "kind": kind, "name": name, "any": survivors == ANY, "wanted": wanted, "texts": texts and sorted(texts), "said": said,
                    "total": total, "dropped": dropped, "seconds": time.perf_counter() - began,
                    "peak_mb": peak_mb(),
                }), flush=True)  # fmt: skip
                file.unlink()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
