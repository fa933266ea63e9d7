"""common/rows.py and common/tables.py: files of every format as rows, each in its place; what is wrong is told, never mended."""

import io
import json
import zipfile

import pytest

from common import rows, tables
from common.rows import Bad, Place, read, read_splits

QA = {"question": ("question", "问题"), "answer": ("answer", "答案")}


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def found(source, **more):
    """(number, row or reason) of each thing that is read."""
    return [(place.number, row.args[0] if isinstance(row, Bad) else row) for place, row in read(source, **more)]


def refused(source, **more):
    with pytest.raises(SystemExit) as end:
        list(read(source, **more))
    return str(end.value)


# -- JSON


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_a_list_is_read_in_pieces_of_any_size(size):
    items = [{"text": '引号 " 和 ] [ , \\'}, 12, "x", {"a": [1, {"b": None}]}, "y" * 300]
    source = io.StringIO(json.dumps(items, ensure_ascii=False, indent=1)[1:])
    assert [item for _, item in rows._list(source, 1, size)] == items


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1}]\n[{"a": 2}]', "line 2: extra data after the end of the list, which has 1 rows"),
        ('[{"a": 1}]\n\n\n more', "line 4: extra data"),
        ('[\n{"a": 1},\n{"a" 2}\n]', "line 3, column 6: not JSON: Expecting ':' delimiter; 1 rows before it"),
        ('[{"a": 1}, {"a"', "Was the file cut off"),
        ('[{"a": 1},', "ends in the middle of the list, after 1 rows"),
        ('{"data": [{"a": 1}, {"a": 2}]}', "one JSON object; its 2 rows are under 'data'"),
        ('{\n "version": "1",\n "rows": [\n  {"a": 1},\n  {"a": 2}\n ]\n}', "its 2 rows are under 'rows'"),
        ('{\n"a": 1\n}', "one JSON object, not a list of rows"),
        ("[" * 100_000, "nested too deeply"),
        ("a,b\n", "it begins with 'a'"),
    ],
)
def test_json_that_is_refused_says_where(tmp_path, content, said):
    file = write(tmp_path / "x.json", content)
    assert refused(file).startswith(f"{file}: ") and said in refused(file)


def test_what_json_allows_and_what_programs_write(tmp_path):
    content = (
        '{"a": NaN, "b": -Infinity, "n": '
        + "1" * 5000
        + "}\n\n"
        + '{"a": "\u2028"}\r\n{"a": 1, "a": 2}\n{"a": [{"b": 1, "b": 2}]}\n'
    )
    content += '{"a"\n{"messages": [{"role": "user"}, {"role": "assistant"}]}\n' + "[" * 100_000 + "\n"
    number = found(write(tmp_path / "x.jsonl", content))
    assert number[0] == (1, {"a": None, "b": None, "n": "1" * 5000}) and number[1] == (3, {"a": "\u2028"})
    assert [each[0] for each in number] == [1, 3, 4, 5, 6, 7, 8]
    assert [each[1] for each in number if isinstance(each[1], str)] == ["not JSON"] * 4
    one = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert found(write(tmp_path / "one.jsonl", json.dumps(one))) == [(1, one)]  # a row, though its only key has a list


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv"])
def test_every_format_in_every_encoding(tmp_path, encoding, name):
    made = [{"question": f"第{n}个问题要怎么处理", "answer": "先看说明，再问一问。"} for n in range(9)]
    text = {
        "x.json": json.dumps(made, ensure_ascii=False),
        "x.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made),
        "x.csv": "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in made),
    }[name]
    assert [row for _, row in found(write(tmp_path / name, text.encode(encoding)))] == made


def test_what_merely_decodes_as_gb18030_is_refused(tmp_path):
    text = "".join(
        json.dumps({"a": "I can’t sleep since “Monday”, née Dubois"}, ensure_ascii=False) + "\n" for _ in range(3)
    )
    assert "neither UTF-8 nor GB18030" in refused(write(tmp_path / "x.jsonl", text.encode("cp1252")))


# -- CSV


def test_a_quote_that_is_never_closed_costs_its_own_row(tmp_path):
    lines = [f"第{n}个问题怎么办,第{n}个答案" for n in range(30)]
    lines[3] = '"定金合同从何时起成立,自实际交付定金时成立'
    lines[19] = '"违约金过高可以要求减少吗,可以请求适当减少'
    made = found(write(tmp_path / "qa.csv", "question,answer\n" + "\n".join(lines)), names=QA)
    assert [number for number, row in made] == list(range(2, 32))
    assert [number for number, row in made if row == "unclosed quote"] == [5, 21]
    assert all(
        row == dict(zip(("question", "answer"), line.split(","), strict=True))
        for (number, row), line in zip(made, lines, strict=True)
        if number not in (5, 21)
    )


def test_rows_over_several_lines_keep_their_line_numbers(tmp_path):
    text = 'question,answer\n"a\nb","c\nd"\ne,f\n\n"g ""h""\n\ni",j\nk\nl,m,n\n"o","p\nq"\n'
    assert found(write(tmp_path / "x.csv", text), names=QA) == [
        (2, {"question": "a\nb", "answer": "c\nd"}), (5, {"question": "e", "answer": "f"}), (7, {"question": 'g "h"\n\ni', "answer": "j"}),
        (10, "wrong number of columns"), (11, "wrong number of columns"), (12, {"question": "o", "answer": "p\nq"}),
    ]  # fmt: skip


def test_columns_are_known_by_several_names_and_others_keep_theirs(tmp_path):
    file = write(tmp_path / "x.csv", " 问题 ,Answer,note\na,b,c\n,,\n")
    assert found(file, names=QA) == [(2, {"question": "a", "answer": "b", "note": "c"})]
    for header, said in (
        ("question,x", "no answer column (answer, 答案). Columns found: question, x"),
        ("question,answer,Question", "the column question is there twice"),
        ("question,answer,x,x", "the column x is there twice"),
        ("," * 5000, "its first line has 5,001 columns"),
    ):
        assert said in refused(write(file, f"{header}\na,b\n"), names=QA, needed=("question", "answer"))


def test_a_field_of_half_a_million_characters_is_a_field(tmp_path):
    file = write(tmp_path / "x.csv", "question,answer\na,b\nc," + "长" * 500_000 + "\n")
    assert len(found(file)[1][1]["answer"]) == 500_000


# -- workbooks


def workbook(file, *lines, more=None):
    from openpyxl import Workbook

    book = Workbook()
    for line in lines:
        book.active.append(line)
    if more:
        more(book)
    book.save(file)
    return file


def rewritten(file, part, change):
    old = io.BytesIO(file.read_bytes())
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(name, change(text) if name == part else text)
    return file


@pytest.mark.parametrize("claimed", [b"A1", b"A1:B3", b"A1:XFD1048576"])
def test_a_sheet_is_read_by_its_data_and_not_by_the_size_it_claims(tmp_path, claimed):
    file = workbook(tmp_path / "x.xlsx", ("问题", "答案"), *[(f"q{n}", f"a{n}") for n in range(8)])
    rewritten(file, "xl/worksheets/sheet1.xml", lambda text: text.replace(b'ref="A1:B9"', b'ref="%s"' % claimed))
    assert [row["answer"] for _, row in found(file, names=QA)] == [f"a{n}" for n in range(8)]


def test_a_million_formatted_rows_cost_what_their_data_costs(tmp_path):
    import time

    file = workbook(tmp_path / "x.xlsx", ("question", "answer"), ("q", 12))
    blank = b"".join(b'<row r="%d" s="1" customFormat="1"/>' % n for n in range(3, 1_000_000))
    rewritten(file, "xl/worksheets/sheet1.xml", lambda text: text.replace(b"</sheetData>", blank + b"</sheetData>"))
    began = time.process_time()
    assert found(file, names=QA) == [(2, {"question": "q", "answer": "12"})]
    assert time.process_time() - began < 5


def test_a_cell_far_away_is_told_before_memory_is_spent(tmp_path):
    file = workbook(
        tmp_path / "x.xlsx", ("question", "answer"), ("q", "a"), more=lambda book: book.active.cell(900_000, 9_000, "x")
    )
    assert "its cells reach over 900,000 rows and 9,000 columns" in refused(file)


@pytest.mark.parametrize(
    ("value", "layout", "text"),
    [
        (0.35, "0%", "35%"), (0.3512, "0.0%", "35.1%"), (123456, "#,##0", "123,456"), (1234.5, "#,##0.00", "1,234.50"),
        (2, "000", "002"), (1e-05, "General", "0.00001"), (12.0, "General", "12"), (3.25, "General", "3.25"), (7, "0.00", "7.00"),
        (-1234, "#,##0;[Red]-#,##0", "-1,234"), (5, '0"公里"', "5公里"), (12, "@", "12"), (True, "General", "TRUE"),
        ("2024-01-05", "yyyy/m/d", "2024/1/5"), ("2024-01-05", 'yyyy"年"m"月"d"日"', "2024年1月5日"), ("2024-01-05", "yyyy-mm-dd", "2024-01-05"),
        ("12:30", "h:mm", "12:30"), ("2024-01-05 09:05", "yyyy/m/d h:mm", "2024/1/5 9:05"), ("13:05:09", "h:mm:ss AM/PM", "1:05:09 PM"),
    ],
)  # fmt: skip
def test_a_cell_is_read_as_it_is_shown(tmp_path, value, layout, text):
    from datetime import datetime, time

    if isinstance(value, str):
        value = time.fromisoformat(value) if value[2] == ":" else datetime.fromisoformat(value)

    def dress(book):
        book.active["B2"].value, book.active["B2"].number_format = value, layout

    file = workbook(tmp_path / "x.xlsx", ("question", "answer"), ("q", "-"), more=dress)
    assert found(file, names=QA) == [(2, {"question": "q", "answer": text})]


def test_cells_that_are_no_text_are_named(tmp_path):
    def dress(book):
        page = book.active
        page["B2"], page["B3"], page["B4"] = "#N/A", "=1+1", 5
        page["B4"].number_format = "# ?/?"
        page["A5"] = page["B5"] = None

    file = workbook(tmp_path / "x.xlsx", ("question", "answer"), *[("q", "a")] * 5, more=dress)
    made = list(read(file, QA))
    assert [(place.number, row.args[0] if isinstance(row, Bad) else row["answer"]) for place, row in made] == [
        (2, "error cell"), (3, "formula without a value"), (4, "cell format"), (6, "a")
    ]  # fmt: skip
    assert str(made[0][0]) == f"{file}: sheet Sheet, row 2" and made[0][1].args[1:] == ("answer", "#N/A")


def test_a_line_break_that_excel_wrote_in_its_own_way(tmp_path):
    file = workbook(tmp_path / "x.xlsx", ("question", "answer"), ("q", "one_x000D_\ntwo"))
    assert found(file, names=QA)[0][1]["answer"].split() == ["one", "two"]


def test_every_sheet_is_read_or_named(tmp_path):
    def more(book):
        for name, line in (
            ("民法", ("问题", "答案")),
            ("notes", ("read", "me")),
            ("hidden", ("问题", "答案")),
            ("empty", ()),
        ):
            page = book.create_sheet(name)
            page.append(line)
            page.append((f"q {name}", "a"))
        book["hidden"].sheet_state = "hidden"

    file = workbook(tmp_path / "x.xlsx", ("question", "answer"), ("q", "a"), more=more)
    made = list(read(file, QA, needed=("question", "answer")))
    assert [(place.sheet, place.number, row["question"]) for place, row in made if isinstance(row, dict)] == [
        ("Sheet", 2, "q"), ("民法", 2, "q 民法")
    ]  # fmt: skip
    named = {place.sheet: str(row) for place, row in made if isinstance(row, tables.Unusable)}
    assert (
        "Columns found: read, me" in named["notes"]
        and "hidden" in named["hidden"]
        and set(named) == {"notes", "hidden", "empty"}
    )
    assert [row["question"] for _, row in read(file, QA, sheet="hidden")] == ["q hidden"]
    assert "Sheets: Sheet, 民法, notes, hidden, empty" in refused(file, sheet="x")


def test_strict_ooxml_is_read(tmp_path):
    file = workbook(tmp_path / "x.xlsx", ("question", "answer"), ("q", "a"), ("r", 2))
    old, new = (
        b"http://schemas.openxmlformats.org/spreadsheetml/2006/main",
        b"http://purl.oclc.org/ooxml/spreadsheetml/main",
    )
    for part in ("xl/workbook.xml", "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/styles.xml"):
        rewritten(file, part, lambda text: text.replace(old, new))
    assert [row["answer"] for _, row in found(file, names=QA)] == ["a", "2"]


# -- which files


def lines(*questions):
    return "".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in questions)


def test_sets_are_not_joined_by_guess(tmp_path):
    for number, (names, said) in enumerate((
        (("main/train-00000-of-00001.jsonl", "socratic/train-00000-of-00001.jsonl"), "several sets in 2 folders"),
        (("train.jsonl", "train (1).jsonl"), "train (1).jsonl looks like a copy"),
        (("train.jsonl", "train - 副本.jsonl"), "looks like a copy"),
        (("train.jsonl", "train.json"), "files of 2 formats"),
        (("train-00000-of-00003.jsonl", "train-00001-of-00003.jsonl"), "not all the parts"),
        (("train-00000-of-00001.jsonl", "train.jsonl"), "more than one set"),
        (("train-a-00000-of-00001.jsonl", "train-b-00000-of-00001.jsonl"), "more than one set"),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        for name in names:
            write(folder / name, lines("a"))
        for reader in (read_splits, lambda folder: list(read(folder))):
            with pytest.raises(SystemExit) as end:
                reader(folder)
            assert said in str(end.value) and all(name in str(end.value) for name in names)


def test_shards_and_parts_are_joined_in_order(tmp_path):
    for name in ("train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "test.jsonl", ".train.jsonl"):
        write(tmp_path / name, lines(name))
    splits = read_splits(tmp_path)
    assert [row["question"][:11] for _, row in splits["train"]] == ["train-00000", "train-00001"] and len(
        splits["test"]
    ) == 1
    assert str(splits["train"][1][0]) == f"{tmp_path / 'train-00001-of-00002.jsonl'}: line 1"
    assert "a zip file. Unpack it" in refused(write(tmp_path / "x.json", b"PK\x03\x04" + bytes(40)))


def test_a_folder_of_save_to_disk_that_is_not_complete(tmp_path):
    write(tmp_path / "state.json", "{}")
    assert "not a complete folder of save_to_disk" in refused(tmp_path)


# -- keep, drop, report


def keep(raw, **more):
    """rows.keep of rows that need a text in the column q."""
    pairs = [(Place("x.jsonl", number), row) for number, row in enumerate(raw, 1)]
    return rows.keep(pairs, lambda row: {"q": rows.text_of(rows.object_of(row, "q"), "q")}, "x.jsonl", **more)


def test_rows_that_are_kept_and_dropped_are_all_rows():
    raw = [{"q": " a "}, {"q": ""}, {"q": None}, {}, {"q": 7}, 7, {"q": "\ud800"}, {"q": "x\0"}, {"q": "x\ufffd"}, {"q": "a<|eot_id|>"},
           {"q": "x" * 1_000_001}, Bad("not JSON", None, "?"), {"q": "1 <| 2 |> 3"}]  # fmt: skip
    kept, report = keep(raw)
    assert [row["q"] for row in kept] == ["a", "1 <| 2 |> 3"] and report["rows"] == len(raw) == report["kept"] + sum(
        report["dropped"].values()
    )
    assert report["dropped"] == {
        "empty": 1,
        "missing": 2,
        "wrong type": 2,
        "broken characters": 3,
        "control token": 1,
        "too long": 1,
        "not JSON": 1,
    }
    assert "x.jsonl: line 10, column q: <|eot_id|>; row dropped: control token" in report["problems"]


def test_what_is_kept_and_should_be_known():
    raw = [
        {"q": "a", "system": "Be brief.", "id": 1},
        {"q": "I am {{name}}."},
        {"q": "<image> What is it?", "system": None},
        {"q": "a"},
        {"q": "def f(): {{}}"},
    ]
    _, report = keep(raw, used={"q", "id"}, key=lambda row: (row["q"], "same"))
    shown = rows.format_report(report)
    for said in (
        "5 rows, 5 kept", "columns not used: system (in 1 rows)", "1 rows with {{placeholders}} that nobody filled in (the first: line 2)",
        "1 rows with <image> tags", "1 rows repeat an earlier row (the first: line 4, after line 1)",
    ):  # fmt: skip
        assert said in shown
    answers = iter("ab")
    _, report = keep([{"q": "a"}, {"q": "a"}], key=lambda row: (row["q"], next(answers)))
    assert "1 rows ask what an earlier row asks and answer otherwise" in rows.format_report(report)


def test_many_problems_are_summed_up_and_nothing_usable_ends_here():
    with pytest.raises(SystemExit) as end:
        keep([{"q": 1}] * 25 + [{"r": "b\ud800"}])
    shown = str(end.value)
    assert shown.count("expected text, got int") == 10 and "15 more rows dropped: wrong type" in shown
    assert "no usable row in it. Columns found: q, r." in shown
    with pytest.raises(SystemExit, match=r"^x.jsonl: no column 'q'. Columns found: r.$"):
        keep([{"r": 1}] * 25, needed=("q",))


@pytest.mark.parametrize(
    ("text", "kept"),
    [(" a\n", "a"), ("    y = 1\n    return y\n", "    y = 1\n    return y"), ("\n\n\tx\n", "\tx"), (" one space", "one space"), ("\n  \n  a", "  a")],
)  # fmt: skip
def test_code_keeps_its_indent(text, kept):
    assert rows.text_of({"a": text}, "a", indented=True) == kept and rows.text_of({"a": text}, "a") == text.strip()


def test_questions_in_a_text_file(tmp_path):
    for encoding in ("utf-8", "gb18030", "utf-16"):
        file = write(
            tmp_path / "q.txt", "问题一：有\f分页符的\n问题二：有\u2028分隔符\r\n\n 问题三怎么办 ".encode(encoding)
        )
        made, out = rows.text_lines(file, None, "questions")
        assert (
            made == ["问题一：有\f分页符的", "问题二：有\u2028分隔符", "问题三怎么办"]
            and out.name == "q.txt.answers.jsonl"
        )
    for content, said in (
        ("", "no questions in it"),
        ("¿Dónde está la estación? ¡Mañana!".encode("cp1252"), "neither UTF-8 nor GB18030"),
    ):
        with pytest.raises(SystemExit, match=said):
            rows.text_lines(write(file, content), None, "questions")


def test_control_tokens_of_the_models_are_known():
    tokens = [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<|vision_start|>",
        "<|reserved_special_token_7|>",
        "<|fim-prefix|>",
    ]
    assert all(rows.text_fault(f"a {token} b") == ("control token", token) for token in tokens)
    assert rows.text_fault("a < b | c > d, <|>, <||>, x <| y |> z") is None


def test_pieces_that_unpack_to_gigabytes_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 3000, pyarrow.int32()), pyarrow.array(["x" * 1_000_000])
    )
    pyarrow.parquet.write_table(pyarrow.table({"a": texts}), tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 20_000 and "unpacks to more than 100 MB" in refused(
        tmp_path / "x.parquet"
    )
