"""medical/data.py: what is read, what is dropped and why, and what each kind of bad input is told."""

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "medical" / "data.py"

sys.path.insert(0, str(SCRIPT.parent))  # for csv_bytes; data under a name of its own, which other folders have, too
spec = importlib.util.spec_from_file_location("medical_data", SCRIPT)
data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data)
sys.path.remove(str(SCRIPT.parent))

HEADER = "department,title,ask,answer"
ANSWER = "少吃盐，多运动，按时吃药，每天早晚各量一次血压。"


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def dialogues(count, start=0):
    return [f"内科,标题{n},第{n}个问题怎么办？,第{n}个回答：{ANSWER}" for n in range(start, start + count)]


def lines(*rows, end="\n"):
    return end.join(rows) + end


def read(folder, **options):
    return data.read_rows(folder, progress=False, **options)


def only(reports):
    (report,) = reports
    return report


def questions(table):
    return table["question"].to_pylist()


def run(*arguments, **environment):
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, encoding="utf-8", env=environment
    )


# What is read


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("gbk", "gb18030"),
        ("gb18030", "gb18030"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
    ],
)
def test_encodings(tmp_path, encoding, name):
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(3), f"内科,三,上火怎么办？,{ANSWER}"), encoding)
    table, reports = read(tmp_path)
    assert only(reports)["encoding"] == name
    assert questions(table) == ["第0个问题怎么办？", "第1个问题怎么办？", "第2个问题怎么办？", "上火怎么办？"]
    assert table["answer"].to_pylist()[-1] == ANSWER
    assert only(reports)["problems"] == []


def test_utf16_with_big_endian_mark(tmp_path):
    write(tmp_path, "a.csv", b"\xfe\xff" + lines(HEADER, *dialogues(2)).encode("utf-16-be"))
    table, reports = read(tmp_path)
    assert (only(reports)["encoding"], len(table)) == ("utf-16", 2)


def test_character_that_only_gb18030_has(tmp_path):
    write(tmp_path, "a.csv", lines("question,answer", f"张㛃头晕怎么办？,{ANSWER}"), "gb18030")
    table, _ = read(tmp_path)
    assert questions(table) == ["张㛃头晕怎么办？"]


def test_encoding_is_judged_by_the_whole_file(tmp_path):
    ascii_rows = [f"question number {n}?,drink enough water and rest for {n} days" for n in range(20_000)]
    write(tmp_path, "gb.csv", lines("question,answer", *ascii_rows, f"头晕怎么办？,{ANSWER}"), "gb18030")
    late = lines("question,answer", *ascii_rows, f"发烧怎么办？,{ANSWER}").encode()
    write(tmp_path, "utf8.csv", late)
    write(tmp_path, "utf8_truncated.csv", late + "咳嗽怎么办？,喝水".encode()[:-1])
    table, reports = read(tmp_path)
    assert [report["encoding"] for report in reports] == ["gb18030", "utf-8", "utf-8"]
    assert questions(table)[20_000:] == ["头晕怎么办？", "发烧怎么办？"]


@pytest.mark.parametrize("header", ["Question , ANSWER", "﻿问题,回答", " ASK,Response", '"ask","答案","回答"'])
def test_column_names(tmp_path, header):
    row = ["头疼怎么办？", *["不是回答"] * (header.count(",") - 1), ANSWER]
    write(tmp_path, "儿科/a.CSV", lines(header, ",".join(row)))
    table, _ = read(tmp_path)
    assert table.to_pylist() == [{"question": "头疼怎么办？", "answer": ANSWER, "department": "儿科"}]


def test_department_is_the_column_or_else_the_folder(tmp_path):
    write(
        tmp_path, "IM_内科/deep/a.csv", lines("answer,科室,问题", f"一：{ANSWER},心血管科,问一", f"二：{ANSWER}, ,问二")
    )
    write(tmp_path, "top.csv", lines("ask,answer", f"问三,三：{ANSWER}"))
    table, reports = read(tmp_path)
    assert table["department"].to_pylist() == ["心血管科", "deep", tmp_path.name]
    assert [report["file"] for report in reports] == ["IM_内科/deep/a.csv", "top.csv"]


def test_one_file_may_be_given(tmp_path):
    path = write(tmp_path, "外科/a.csv", lines(HEADER, *dialogues(2)))
    write(tmp_path, "外科/b.csv", lines(HEADER, *dialogues(2, start=7)))
    table, reports = read(path)
    assert (len(table), only(reports)["file"]) == (2, "a.csv")


def test_title_stands_in_for_no_question(tmp_path):
    write(
        tmp_path,
        "a.csv",
        lines(HEADER, f"内科,肝炎传染吗？,无,一{ANSWER}", f"内科,血压高？,,二{ANSWER}", f"内科,,无,三{ANSWER}"),
    )
    write(tmp_path, "untitled.csv", lines("ask,answer", f"无,四{ANSWER}"))
    table, reports = read(tmp_path)
    assert questions(table) == ["肝炎传染吗？", "血压高？"]
    assert [report["dropped"] for report in reports] == [{"empty": 1}, {"empty": 1}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
def test_line_ends_and_quoted_line_breaks(tmp_path, end):
    text = end.join(
        [HEADER, *dialogues(1), '内科,标题,"咳嗽，', "有痰,黄色", f'怎么办？","{ANSWER}"', *dialogues(1, start=1)]
    )
    write(tmp_path, "a.csv", text.replace("有痰,黄色", '有痰,""黄色""'))
    table, reports = read(tmp_path)
    assert questions(table) == ["第0个问题怎么办？", '咳嗽，\n有痰,"黄色"\n怎么办？', "第1个问题怎么办？"]
    assert (only(reports)["rows"], only(reports)["problems"]) == (3, [])


def test_order_does_not_depend_on_threads(tmp_path, monkeypatch):
    for department in ("b", "a", "c"):
        write(tmp_path, f"{department}/x.csv", lines(HEADER, *dialogues(50, start=ord(department))))
    monkeypatch.setattr(data.os, "cpu_count", lambda: 1)
    alone, reports_alone = read(tmp_path)
    monkeypatch.setattr(data.os, "cpu_count", lambda: 4)
    threaded, reports_threaded = read(tmp_path)
    assert alone.equals(threaded) and reports_alone == reports_threaded
    assert [report["kept"] for report in reports_alone] == [50, 1, 1]  # b and c repeat all but one row of their elder


def test_agrees_with_the_csv_module_on_well_formed_files(tmp_path):
    fields = [
        "plain",
        "comma, blank",
        "comma,none",
        '"quoted"',
        "two\nlines",
        "\n",
        ",",
        '"',
        '",',
        'a","b',
        ' "x"',
        'x"y',
        "，。",
        "'",
    ]
    rows = [[f"问{a}{one}", f"答{b}{two}{ANSWER}"] for a, one in enumerate(fields) for b, two in enumerate(fields)]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        text = io.StringIO()
        csv.writer(text, quoting=quoting).writerows([["question", "answer"], *rows])
        write(tmp_path, "a.csv", text.getvalue())
        table, reports = read(tmp_path)
        assert only(reports)["rows"] == len(rows) and only(reports)["problems"] == []
        expected = [(question.strip(), answer) for question, answer in rows]
        got = list(zip(questions(table), table["answer"].to_pylist(), strict=True))
        assert set(got) == set(expected)


# What is dropped


def test_each_reason_is_counted_apart(tmp_path):
    rows = [
        f"内科,标题,一共两列,{ANSWER},多一列",
        f"内科,标题,少一列{ANSWER}",
        f"内科,标题,,{ANSWER}",
        "内科,,无, 　",
        f"内科,标题,{'长' * 201},{ANSWER}",
        f"内科,标题,回答太长怎么办？,{'长' * 201}",
        f"内科,标题,正好怎么办？,{'长' * 200}",
        "内科,标题,谁？,建议到正规医院就诊。",
        f"内科,标题,头疼，怎么办？,{ANSWER}",
        f"外科,另一个标题,头疼怎么办,{ANSWER}",
        f"内科,标题,头疼怎么办,别的回答：{ANSWER}",
    ]
    write(tmp_path, "a.csv", lines(HEADER, *rows))
    table, reports = read(tmp_path)
    assert only(reports)["rows"] == 11 and only(reports)["kept"] == 4
    assert only(reports)["dropped"] == {
        "wrong number of columns": 2,
        "empty": 1,
        "too long": 2,
        "boilerplate": 1,
        "duplicate": 1,
    }
    assert questions(table) == ["标题", "正好怎么办？", "头疼，怎么办？", "头疼怎么办"]


def test_blanks_do_not_count(tmp_path):
    write(tmp_path, "a.csv", lines("question,answer", f"　 {'问' * 200} 　, {ANSWER}　"))
    table, _ = read(tmp_path)
    assert table["question"][0].as_py() == "问" * 200 and table["answer"][0].as_py() == ANSWER


def test_duplicates_are_found_over_all_files_and_encodings(tmp_path):
    write(tmp_path, "a/a.csv", lines(HEADER, f"内科,标题,HBV 阳性,要紧吗？,{ANSWER}".replace("阳性,", "阳性，")))
    write(tmp_path, "b/b.csv", lines("回答,问题", f" {ANSWER},hbv阳性要紧吗"), "gb18030")
    table, reports = read(tmp_path)
    assert questions(table) == ["HBV 阳性，要紧吗？"]
    assert [report["dropped"] for report in reports] == [{}, {"duplicate": 1}]


@pytest.mark.parametrize(
    "answer",
    [
        "您好！",
        "你好，建议您去医院检查一下。",
        "请尽快到当地正规医院就诊，祝您早日康复！",
        "谢谢您的咨询，祝您健康！",
        "您好，很高兴为您解答。希望我的回答对您有所帮助，谢谢！",
        "建议及时就医。",
        "最好还是去大医院找专业的医生看看吧",
        "。",
        "Hello, please see a doctor as soon as possible. Take care!",
    ],
)
def test_boilerplate_goes(tmp_path, answer):
    write(tmp_path, "a.csv", lines("question,answer", f'头疼怎么办？,"{answer}"', f"发烧怎么办？,{ANSWER}"))
    table, reports = read(tmp_path)
    assert only(reports)["dropped"]["boilerplate"] == 1 and questions(table) == ["发烧怎么办？"]


@pytest.mark.parametrize(
    "answer",
    [
        "可以。",
        "不会传染。",
        "能",
        "需要检查",
        "建议检查一下血糖。",
        "您好，建议去神经内科做脑电图。",
        "去医院做胃镜。",
        "建议去医院输液治疗",
        "马上打120。",
        "多喝水，好好休息。",
        "你好，不严重。",
        "See a dentist.",
        "Drink water and see a doctor.",
    ],
)
def test_real_short_answers_stay(tmp_path, answer):
    write(tmp_path, "a.csv", lines("question,answer", f"怎么办？,{answer}"))
    table, _ = read(tmp_path)
    assert table["answer"].to_pylist() == [answer]


# Bad input


def test_missing_folder(tmp_path):
    with pytest.raises(SystemExit, match=r"nowhere: no such folder. Expected .*nowhere/<department>/\*\.csv"):
        read(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    write(tmp_path, "notes.txt", "x")
    write(tmp_path, "._a.csv", "macOS leaves this")
    with pytest.raises(SystemExit, match=r"no \.csv file in it or below it"):
        read(tmp_path)


def test_workbook_named_csv(tmp_path):
    write(tmp_path, "a.csv", b"PK\x03\x04" + bytes(100))
    write(tmp_path, "b.csv", lines(HEADER, *dialogues(1)))
    table, reports = read(tmp_path)
    assert len(table) == 1
    assert reports[0]["problems"] == ["a.csv: an Excel workbook, not CSV. Open it and save it as 'CSV UTF-8'."]
    with pytest.raises(SystemExit, match="a.csv: an Excel workbook, not CSV. Open it and save it as 'CSV UTF-8'"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_truncated_utf8_stays_utf8(tmp_path, cut, count):
    whole = lines(HEADER, *dialogues(count)).strip().encode()
    write(tmp_path, "a.csv", whole[:-cut])
    write(tmp_path, "b.csv", lines(HEADER, *dialogues(1, start=99)))
    table, reports = read(tmp_path)
    assert reports[0]["encoding"] == "utf-8"
    assert reports[0]["problems"] == [f"a.csv: line {count + 1}, column answer: not utf-8; row dropped: undecodable"]
    assert len(table) == count  # the truncated row is gone, b.csv has one


def test_utf8_that_gb18030_would_take(tmp_path):
    # Even runs of bytes above 0x7F: as GB18030 there is no error in this file, as UTF-8 there is one.
    text = (
        lines("question,answer", "头疼,吃药,", "发烧,喝水,").replace(",\n", "\n").encode() + "咳嗽,休息".encode()[:-2]
    )
    text.decode("gb18030")
    write(tmp_path, "a.csv", text)
    table, reports = read(tmp_path)
    assert only(reports)["encoding"] == "utf-8" and questions(table) == ["头疼", "发烧"]


@pytest.mark.parametrize("broken", [b"\xff", b"\x80", b"\x81", b"\xb1\x30", "\ufffd".encode("gb18030"), b"\0"])
def test_broken_bytes_cost_one_row(tmp_path, broken):
    before, bad, after = (row.encode("gb18030") for row in dialogues(3))
    rows = [before, bad[:-30] + broken, after]  # the broken byte is the last one of its line
    write(tmp_path, "a.csv", b"\n".join([HEADER.encode(), *rows, b""]))
    table, reports = read(tmp_path)
    assert questions(table) == ["第0个问题怎么办？", "第2个问题怎么办？"]
    assert only(reports)["dropped"] == {"undecodable": 1}
    assert only(reports)["problems"] == ["a.csv: line 3, column answer: not gb18030; row dropped: undecodable"]


def test_damage_in_any_column_and_its_line(tmp_path):
    rows = dialogues(4)
    text = lines(
        HEADER, "", rows[0], '内科,题,"两\n行",' + ANSWER, "内科,缺两列", rows[1].replace("标题", "标\ufffd题"), rows[2]
    )
    write(tmp_path, "a.csv", text)
    table, reports = read(tmp_path)
    assert only(reports)["problems"] == [
        "a.csv: line 6: 2 columns where the header has 4; row dropped: wrong number of columns",
        "a.csv: line 7, column title: not utf-8; row dropped: undecodable",
    ]
    assert questions(table) == ["第0个问题怎么办？", "两\n行", "第2个问题怎么办？"]


def test_many_problems_are_summed_up(tmp_path):
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(1), *["内科,两列"] * 25))
    _, reports = read(tmp_path)
    problems = only(reports)["problems"]
    assert len(problems) == 11 and problems[-1] == "a.csv: 15 more rows dropped: wrong number of columns"


def quote_message(line, column):
    return f"a.csv: line {line}, column {column}: a quote is opened here; row dropped: unclosed quote"


def test_quote_left_open_at_the_end(tmp_path):
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(2), '内科,标题,"怎么办？,没有下文'))
    table, reports = read(tmp_path)
    assert len(table) == 2 and only(reports)["problems"] == [quote_message(4, "ask")]


STRAYS = {
    "before each question": ['内科,题,"问一怎么办？,答一{}', '内科,题,"问二怎么办？,答二{}'],
    "before, then after a question": ['内科,题,"问一怎么办？,答一{}', '内科,题,问二怎么办？",答二{}'],
    "before, then after an answer": ['内科,题,问一怎么办？,"答一{}', '内科,题,问二怎么办？,答二{}"'],
    "as a whole field": ['内科,题,",答一{}', '内科,题,",答二{}'],
    "at the start of lines": ['"内科,题,问一怎么办？,答一{}', '"内科,题,问二怎么办？,答二{}'],
    "before a well-formed quoted row": ['内科,题,"问一怎么办？,答一{}', '内科,题,"问二，""急"",怎么办？",答二{}'],
}


@pytest.mark.parametrize("case", STRAYS)
def test_an_even_number_of_stray_quotes_swallows_nothing(tmp_path, case):
    first, second = (row.format(ANSWER) for row in STRAYS[case])
    write(
        tmp_path, "a.csv", lines(HEADER, *dialogues(2), first, *dialogues(40, start=2), second, *dialogues(2, start=42))
    )
    table, reports = read(tmp_path)
    assert {f"第{n}个问题怎么办？" for n in range(44)} <= set(questions(table))
    assert only(reports)["rows"] == 46
    assert only(reports)["dropped"]["unclosed quote"] >= 1
    assert only(reports)["problems"][0].startswith("a.csv: line 4, column ")
    assert all(len(question) < 30 for question in questions(table))


def test_stray_quote_after_a_quoted_line_break_drops_the_whole_row(tmp_path):
    row = f'内科,"题\n目","怎么办？,{ANSWER}'
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(1), row, *dialogues(1, start=1)))
    table, reports = read(tmp_path)
    assert questions(table) == ["第0个问题怎么办？", "第1个问题怎么办？"]
    assert only(reports)["problems"] == [quote_message(4, "ask")]


def test_prose_with_commas_in_quoted_lines_is_no_stray_quote(tmp_path):
    answer = "Likely cause: a cold\nWhat to do: rest, drink water\nSee a doctor if: it lasts, or gets worse"
    write(tmp_path, "a.csv", lines("question,answer", f'What helps?,"{answer}"', "Is it serious?,Rarely"))
    table, reports = read(tmp_path)
    assert table["answer"].to_pylist() == [answer, "Rarely"] and only(reports)["problems"] == []


def test_no_answer_column(tmp_path):
    write(tmp_path, "a.csv", lines("department,question,reply", "内科,怎么办？,吃药"))
    message = r"a\.csv: no answer column \(answer, 回答, response\)\. Columns found: department, question, reply"
    with pytest.raises(SystemExit, match=message):
        read(tmp_path)


def test_no_question_column(tmp_path):
    write(tmp_path, "a.csv", lines("title,answer", "怎么办？,吃药"))
    with pytest.raises(
        SystemExit, match=r"a\.csv: no question column \(question, 问题, ask\)\. Columns found: title, answer"
    ):
        read(tmp_path)


def test_nothing_left_after_filtering(tmp_path):
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(2)))
    with pytest.raises(SystemExit) as error:
        read(tmp_path, max_chars=5)
    assert "no usable row (--max_chars 5)" in str(error.value)
    assert ["a.csv", "utf-8", "2", "0", "2"] in [line.split() for line in str(error.value).splitlines()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.csv: no question column .* Columns found: none, it is empty"),
        (HEADER.encode(), "a.csv: a header and no rows"),
        ((HEADER + "\r\n\r\n").encode(), "a.csv: a header and no rows"),
        (bytes(5000), "a.csv: no question column"),
        (b"question,answer\n" + b"x" * (20 << 20) + b",y\n", "a.csv: can't be read as CSV"),
    ],
    ids=["empty", "header only", "header and blank lines", "NULs only", "endless line"],
)
def test_files_without_rows(tmp_path, content, message):
    write(tmp_path, "a.csv", content)
    with pytest.raises(SystemExit, match=message):
        read(tmp_path)
    write(tmp_path, "b.csv", lines(HEADER, *dialogues(2)))
    assert len(read(tmp_path)[0]) == 2


def test_nul_bytes_of_a_crash(tmp_path):
    rows = [row.encode() for row in dialogues(3)]
    write(tmp_path, "a.csv", b"\n".join([HEADER.encode(), rows[0], rows[1][:40] + bytes(20 << 20), rows[2]]))
    table, reports = read(tmp_path)
    assert only(reports)["encoding"] == "utf-8"
    assert questions(table) == ["第0个问题怎么办？", "第2个问题怎么办？"]
    assert "line 3" in only(reports)["problems"][0]


# The split


@pytest.fixture
def repeated(tmp_path):
    rows = [f"问题{n % 30}{'，？' if n % 2 else ''},回答{n}" for n in range(90)] + [
        "常见问题,回答x",
        "常见问题？,回答y",
    ]
    write(tmp_path, "a.csv", lines("question,answer", *rows))
    return read(tmp_path)[0]


def test_split_keeps_questions_apart(repeated):
    train, held_out = data.split(repeated, 10, seed=3407)
    normalised = [set(data.normalise(side["question"]).to_pylist()) for side in (train, held_out)]
    assert not normalised[0] & normalised[1]
    assert len(train) + len(held_out) == len(repeated) == 92
    assert len(held_out) in (9, 10, 8) and len(normalised[1]) * 3 in range(9, 13)


def test_split_is_the_same_in_every_process(repeated, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import data\n"
        f"table, _ = data.read_rows({str(tmp_path)!r}, progress=False)\n"
        "print(*data.split(table, 10, 3407)[1]['answer'].to_pylist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    here = " ".join(data.split(repeated, 10, 3407)[1]["answer"].to_pylist())
    assert outputs == {here}
    assert here != " ".join(data.split(repeated, 10, 1)[1]["answer"].to_pylist())


@pytest.mark.parametrize("held_out", [0, 92, 1000])
def test_split_leaves_no_side_empty(repeated, held_out):
    with pytest.raises(SystemExit, match=f"--held_out {held_out} of 92 rows"):
        data.split(repeated, held_out, seed=1)


def test_split_of_one_question(tmp_path):
    write(tmp_path, "a.csv", lines("question,answer", *(f"头疼怎么办？,回答{n}" for n in range(9))))
    with pytest.raises(SystemExit, match="every question has more than 3 rows"):
        data.split(read(tmp_path)[0], 3, seed=1)


# The command


def test_check_prints_an_aligned_table(tmp_path):
    write(tmp_path, "IM_内科/内科.csv", lines(HEADER, *dialogues(3), "内科,缺列"), "gb18030")
    write(tmp_path, "en.csv", lines("question,answer", "Is it bad?,No", f"Long?,{'x' * 201}"))
    result = run("--check", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "file              encoding  rows  kept  wrong number of columns  too long",
        "IM_内科/内科.csv  gb18030      4     3                        1         0",
        "en.csv            utf-8        2     1                        0         1",
        "all                            6     4                        1         1",
        "IM_内科/内科.csv: line 5: 2 columns where the header has 4; row dropped: wrong number of columns",
    ]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_table_in_the_readme_is_what_the_sample_gives(page):
    printed = run("--check", SCRIPT.parent / "sample").stdout
    assert f"```\n{printed}```\n" in (SCRIPT.parent / page).read_text("utf-8")


def test_check_fails_where_nothing_is_usable(tmp_path):
    write(tmp_path, "a.csv", lines("a,b", "1,2"))
    result = run(tmp_path)
    assert result.returncode == 1
    assert "a.csv: no question column" in result.stderr and f"{tmp_path}: no usable row" in result.stderr
    assert "Traceback" not in result.stderr


def test_out_writes_json_lines_once(tmp_path):
    write(tmp_path, "in/儿科/a.csv", lines("ask,answer", f"发烧？,{ANSWER}"))
    out = tmp_path / "prepared.jsonl"
    result = run(tmp_path / "in", "--out", out)
    assert result.returncode == 0, result.stderr
    expected = {"question": "发烧？", "answer": ANSWER, "department": "儿科"}
    assert out.read_text(encoding="utf-8") == json.dumps(expected, ensure_ascii=False) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "prepared.jsonl"]

    out.write_text("mine")
    result = run(tmp_path / "in", "--out", out)
    assert result.returncode == 1 and "exists and is kept" in result.stderr
    assert out.read_text() == "mine"


def test_out_that_cannot_be_written(tmp_path):
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(1)))
    result = run(tmp_path, "--out", tmp_path / "no" / "such" / "x.jsonl")
    assert result.returncode == 1 and f"{tmp_path / 'no' / 'such'}: no such folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_flags_are_strict(tmp_path):
    assert "unrecognized arguments: --max_char" in run(tmp_path, "--max_char", "5").stderr
    assert "--max_chars must be 1 or more" in run(tmp_path, "--max_chars", "0").stderr
    assert "give the folder once" in run(tmp_path, "--check", tmp_path).stderr


def test_the_folder_of_the_environment(tmp_path):
    write(tmp_path, "a.csv", lines(HEADER, *dialogues(2)))
    for arguments in ([], ["--check"]):
        result = run(*arguments, MEDICAL_DATA_DIR=str(tmp_path))
        assert result.returncode == 0 and "a.csv  utf-8        2     2" in result.stdout, result.stderr


def test_importing_it_is_light():
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import data; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "numpy", "pandas", "datasets", "torch"} & set(modules)
