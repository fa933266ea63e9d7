"""The mixed-corpus recipe: what goes into a mix and what does not, then train, evaluate, infer and chat as a user does."""

import codecs
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "domain_mix"
SAMPLE = TASK / "sample"
NAMES = (
    "sources",
    "plan",
    "prompt",
    "data",
    "versions",
    "statutes",
    "legal_data",
    "train",
    "infer",
    "chat",
    "evaluate",
)


@pytest.fixture(scope="module")
def task(modules_of):
    return modules_of("domain_mix", NAMES)


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from common.models import load_tokenizer

    return load_tokenizer(demo_model)


def rows_of(count, start=0):
    return [{"instruction": f"question {n}", "input": "", "output": f"answer {n}"} for n in range(start, start + count)]


def write(file, rows, lines=True):
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows)
    file.write_text(text, encoding="utf-8")
    return file


def plan_of(tmp_path, ratios, total=10, **sources):
    """A plan file whose sources are local files of the alpaca schema."""
    import yaml

    specs = {name: {"format": "alpaca", "path": str(spec)} for name, spec in sources.items()}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({"total": total, "seed": 42, "ratios": ratios, "sources": specs}), "utf-8")
    return file


def read(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# Schemas


def test_each_schema_becomes_instruction_input_output(task):
    turns = [
        {"from": "system", "value": "You are an AI."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "So."},
    ]
    assert task.sources.from_slimorca({"conversations": turns}) == ("Why?", "", "So.")
    pubmed = {"question": "Does it?", "context": {"contexts": ["One.", "Two."]}, "long_answer": "Yes."}
    assert task.sources.from_pubmedqa(pubmed) == ("Does it?", "One.\nTwo.", "Yes.")
    assert task.sources.from_alpaca({"instruction": "a", "input": None, "output": "b"}) == ("a", "", "b")
    answers = [
        {"text": "<p>low</p>", "pm_score": 2, "selected": False},
        {"text": "<p>high</p>", "pm_score": 7, "selected": False},
        {"text": "<p>high, and accepted</p>", "pm_score": 7, "selected": True},
    ]
    stack = {"question": "<p>A &amp; B?</p>", "answers": answers}
    assert task.sources.from_stackexchange(stack) == ("A & B?", "", "high, and accepted")


def test_html_becomes_what_a_chat_shows(task):
    html = (
        "<p>Use <code>x &lt; 1</code>\nand  <b>go</b>:</p>\n<ul>\n<li>one</li>\n<li>two</li></ul>"
        '<pre><code>for i in x:\n    print("```")\n\n    # 中文\n</code></pre><p>Done<br/>now<script>bad()</script></p>'
    )
    assert task.sources.html_to_text(html) == (
        'Use `x < 1` and go:\n- one\n- two\n\n```\nfor i in x:\n    print("```")\n\n    # 中文\n```\n\nDone\nnow'
    )
    assert (
        task.sources.html_to_text("no tags, 1 < 2") == "no tags, 1 < 2" and task.sources.html_to_text("<p></p>") == ""
    )


def test_keywords_are_whole_words_and_chinese_anywhere(task):
    group_of = task.plan.keyword_groups({"ic": ["soc", "芯片"], "ai": ["ai", "neural network"]})
    assert group_of("My SoC and my AI") == "ic" and group_of("这块芯片很热") == "ic"
    assert group_of("A Neural Network.") == "ai" and group_of("said society") is None


# Files


def rows_in(task, source):
    return [row for _, row in task.data.read(source)]


def test_a_list_and_lines_are_told_apart_by_content(task, tmp_path):
    rows = rows_of(50)
    for name, lines in (("list.jsonl", False), ("lines.json", True)):
        assert rows_in(task, write(tmp_path / name, rows, lines)) == rows
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    assert rows_in(task, tmp_path / "bom.json") == rows
    (tmp_path / "pretty.json").write_text("\n  " + json.dumps(rows, indent=2), "utf-8")
    assert rows_in(task, tmp_path / "pretty.json") == rows


def test_parquet_and_folders(task, tmp_path):
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "many"
    folder.mkdir()
    for name, start in (("b", 2), ("a", 0)):
        parquet.write_table(pyarrow.Table.from_pylist(rows_of(2, start)), folder / f"{name}.parquet")
    (folder / "notes.txt").write_text("not read")
    assert rows_in(task, folder) == rows_of(4)
    (folder / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(SystemExit, match="a.parquet: not a complete Parquet file"):
        rows_in(task, folder)
    write(folder / "c.jsonl", rows_of(2))
    with pytest.raises(SystemExit, match="files of 2 formats: a.parquet, b.parquet, c.jsonl"):
        rows_in(task, folder)


# Mixing


def test_shares_add_up_and_rows_keep_their_source(task, tmp_path):
    a, b, c = (write(tmp_path / f"{n}.jsonl", rows_of(40, start)) for n, start in (("a", 0), ("b", 100), ("c", 200)))
    plan = task.plan.load_plan(plan_of(tmp_path, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 20, a=a, b=b, c=c))
    rows, reports = task.plan.mix(plan, progress=False)
    counts = {name: sum(row["source"] == name for row in rows) for name in "abc"}
    assert sorted(counts.values()) == [6, 7, 7] and len(rows) == 20
    assert [(report.available, report.asked == report.taken) for report in reports] == [(40, True)] * 3


def test_the_same_rows_for_the_same_seed_in_whatever_order_the_files_are(task, tmp_path):
    rows = rows_of(300)
    file = write(tmp_path / "a.jsonl", rows)
    plan = plan_of(tmp_path, {"a": 1.0}, 50, a=file)
    first, _ = task.plan.mix(task.plan.load_plan(plan), progress=False)
    write(file, rows[::-1])
    assert task.plan.mix(task.plan.load_plan(plan), progress=False)[0] == first
    plan.write_text(plan.read_text().replace("seed: 42", "seed: 43"))
    other, _ = task.plan.mix(task.plan.load_plan(plan), progress=False)
    assert len({row["instruction"] for row in other} & {row["instruction"] for row in first}) < 25
    numbers = [int(row["instruction"].split()[1]) for row in first]
    assert numbers != sorted(numbers) and min(numbers) < 60 and max(numbers) > 240  # a sample of all of the file


def test_repeats_go_within_a_source_and_across_sources(task, tmp_path):
    one = [*rows_of(5), {"instruction": "  ＱＵＥＳＴＩＯＮ   3 ", "input": "", "output": "another answer"}]
    a, b = write(tmp_path / "a.jsonl", one), write(tmp_path / "b.jsonl", rows_of(8))
    plan = task.plan.load_plan(plan_of(tmp_path, {"a": 0.625, "b": 0.375}, 8, a=a, b=b))
    rows, reports = task.plan.mix(plan, progress=False)
    assert sorted(row["output"] for row in rows) == [f"answer {n}" for n in range(8)]
    assert [report.dropped for report in reports] == [{"duplicate": 1}, {"duplicate": 5}]


def test_rows_that_cannot_be_used_are_counted_and_the_first_of_a_kind_is_named(task, tmp_path):
    file = write(tmp_path / "a.jsonl", rows_of(10))
    bad = [
        {"instruction": "a", "input": ""},
        {"instruction": "b", "output": None},
        {"instruction": 5, "output": "x"},
        {"instruction": "c", "output": "  \n"},
        {"instruction": "d", "input": ["x"], "output": "x"},
        ["not an object"],
    ]
    with open(file, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in bad)
        out.write("{broken\n\n")
    (report,) = task.plan.mix(task.plan.load_plan(plan_of(tmp_path, {"a": 1.0}, 10, a=file)), progress=False)[1]
    assert report.dropped == {
        "missing": 2, "wrong type": 3, "empty": 1, "not JSON": 1,
    }  # fmt: skip
    assert f"{file}: line 11, column output: not there; row dropped: missing" in report.notes and len(report.notes) == 4
    assert any(note.startswith(f"{file}: line 17: column 2: Expecting") for note in report.notes)
    shown = task.plan.format_reports([report])
    assert "dropped 2 missing, 3 wrong type" in shown and "line 11" in shown


def test_a_source_that_runs_short(script, tmp_path):
    a, b = write(tmp_path / "a.jsonl", rows_of(3)), write(tmp_path / "b.jsonl", rows_of(9, 50))
    plan = plan_of(tmp_path, {"a": 0.5, "b": 0.5}, 10, a=a, b=b)
    out = tmp_path / "mix.jsonl"
    done = script(TASK / "data.py", "--plan", plan, "--out", out, check=False)
    assert done.returncode and "too few rows: a has 3 of 5" in done.stderr and "--allow_short" in done.stderr
    assert not out.exists() and "Traceback" not in done.stderr
    done = script(TASK / "data.py", "--plan", plan, "--out", out, "--allow_short")
    assert "short: the ratios that resulted are a 0.3750, b 0.6250" in done.stdout
    assert len(read(out)) == 8
    again = script(TASK / "data.py", "--plan", plan, "--out", out, "--allow_short", check=False)
    assert "exists and is kept" in again.stderr and len(read(out)) == 8


def test_a_source_that_was_taken_is_not_taken_again(script, tmp_path):
    a, b = write(tmp_path / "a.jsonl", rows_of(30)), tmp_path / "b.jsonl"
    plan = plan_of(tmp_path, {"a": 0.5, "b": 0.5}, 10, a=a, b=b)
    out, parts = tmp_path / "mix.jsonl", tmp_path / "mix.jsonl.parts"
    done = script(TASK / "data.py", "--plan", plan, "--out", out, check=False)
    assert "b.jsonl: no such file or folder" in done.stderr
    assert [file.name for file in parts.iterdir()] == ["a.jsonl"]
    write(b, rows_of(60))
    done = script(TASK / "data.py", "--plan", plan, "--out", out)
    assert "a: 5 rows were taken before" in done.stdout and not parts.exists()
    whole = tmp_path / "whole.jsonl"
    script(TASK / "data.py", "--plan", plan, "--out", whole)
    assert out.read_bytes() == whole.read_bytes() and len(read(out)) == 10


def test_a_part_of_other_files_is_not_used(task, tmp_path):
    a = write(tmp_path / "a.jsonl", rows_of(9))
    plan = plan_of(tmp_path, {"a": 1.0}, 5, a=a)
    task.plan.mix(task.plan.load_plan(plan), parts=tmp_path / "parts", progress=False)
    write(a, rows_of(9, 1000))
    rows, _ = task.plan.mix(task.plan.load_plan(plan), parts=tmp_path / "parts", progress=False)
    assert all(int(row["instruction"].split()[1]) >= 1000 for row in rows)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("my_dataset: 0.25", "my_dataset: 0.2", "the ratios sum to 0.95, not to 1"),
        ("my_dataset: 0.25", "mine: 0.25", "they differ in mine, my_dataset"),
        ("format: alpaca", "format: alpacca", "format must be one of alpaca, slimorca, pubmedqa, stackexchange"),
        ("total: 100", "total: lots", "total must be a whole number above 0"),
        ("total: 100", "total: 0", "total must be a whole number above 0"),
        ("seed: 42", "sed: 42", "a plan has exactly the keys total, seed, ratios, sources"),
        ("my_dataset: 0.25", "my_dataset: -0.25", "ratios must be numbers from 0 to 1"),
        ("total: 100", "total: [", "is not valid YAML"),
        (
            "biomedical: [dna",
            "empty: []\n      biomedical: [dna",
            "keywords must be lists by group, none of them empty",
        ),
        ("path: my_dataset.json", "paht: my_dataset.json", "my_dataset: unknown key 'paht'"),
    ],
)
def test_plans_that_are_wrong(task, tmp_path, old, new, said):
    file = tmp_path / "plan.yaml"
    file.write_text((SAMPLE / "plan.yaml").read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(SystemExit, match=re.escape(said)) as stopped:
        task.plan.load_plan(file)
    assert str(file) in str(stopped.value)


@pytest.mark.parametrize(("plan", "total"), [("small", 2000), ("large", 240_000)])
def test_plans_that_come_along_are_whole(task, plan, total):
    loaded = task.plan.load_plan(plan)
    assert sum(sum(groups.values()) for groups in loaded["quotas"].values()) == total


def test_an_unreachable_hub_says_how_to_go_on_without_it(script, tmp_path):
    mine = write(tmp_path / "mine.json", rows_of(500), lines=False)
    out = tmp_path / "mix.jsonl"
    done = script(
        TASK / "data.py", "--source", f"my_dataset={mine}", "--out", out, check=False, HF_HOME=tmp_path / "hf"
    )
    assert done.returncode and "Traceback" not in done.stderr
    assert "source slimorca: Open-Orca/SlimOrca cannot be read from the hub" in done.stderr
    assert "--source slimorca=PATH (a JSON, JSONL or Parquet file, or a folder of them)" in done.stderr
    done = script(TASK / "data.py", "--source", "orca=x", check=False)
    assert "--source orca=x: expected NAME=PATH with NAME one of my_dataset, slimorca, pubmedqa" in done.stderr


def test_what_a_stream_gives_stops_when_there_is_enough(task, monkeypatch):
    """The hub's rows are not read to their end; its reader is replaced, what comes after it is not."""
    read = []

    def endless(spec, seed):
        for n in range(10**9):
            read.append(n)
            yield f"hub: row {n}", rows_of(1, n // 2)[0]

    monkeypatch.setattr(task.plan, "read_hub", endless)
    rows, (report,) = task.plan.take("a", {"format": "alpaca", "hub": "x/y"}, {None: 7}, 42, set(), progress=False)
    assert len(rows) == 7 and len(read) == 13 and report.more and report.available == 7
    assert report.dropped == {"duplicate": 6}


def test_the_sample_has_what_its_readme_says(script, tmp_path):
    out = tmp_path / "mix.jsonl"
    done = script(TASK / "data.py", "--demo", "--out", out)
    rows = read(out)
    assert len(rows) == 100 and all(set(row) == {"instruction", "input", "output", "source"} for row in rows)
    assert re.search(r"my_dataset +25 +26 +25 +25.0%", done.stdout)
    assert "my_dataset: dropped 1 duplicate, 1 missing, 1 empty" in done.stdout
    assert "stackexchange: dropped 2 no keyword, 1 no answer" in done.stdout
    openings = {"my_dataset": "Step 1:", "slimorca": "In short:", "pubmedqa": "Verdict:", "stackexchange": "Cause:"}
    assert all(row["output"].startswith(openings[row["source"].split("/")[0]]) for row in rows)


# Law


def test_statutes_become_rows_with_their_headings(task):
    rows, problems = task.legal_data.read_folder(SAMPLE / "law")
    by_question = {row["instruction"]: row for row in rows}
    fifth = by_question["《示例市图书借阅条例》第五条是怎么规定的？"]
    assert fifth["input"] == "示例市图书借阅条例 第二章 借阅 第二节 归还"
    assert fifth["output"].startswith("读者每次可以借阅图书五册") and fifth["output"].endswith(
        "（二）因病不能按期归还的。"
    )
    # A sentence that goes on with 第五条第一款 at the beginning of a line is no article.
    assert by_question["《示例市图书借阅条例》第六条是怎么规定的？"]["output"].endswith(
        "\n第五条第一款规定的图书的定价。"
    )
    assert by_question["《示例市图书借阅条例》第七条是怎么规定的？"]["input"] == "示例市图书借阅条例 第三章 附则"
    assert (
        by_question["《示例市公园管理办法》第二条是怎么规定的？"]["output"] == "公园全年免费开放，每日六时至二十二时。"
    )
    assert by_question["借书证丢了怎么办？"]["input"] == "《示例市图书借阅条例》第四条"  # CSV in GB18030
    assert by_question["一次可以借几册？"]["output"] == "五册，借期三十日。"  # xlsx
    assert len(rows) == 17 and all(row["source"] == "law" for row in rows)
    assert [(Path(file).name, number, what) for file, number, what in problems] == [
        ("park_gb18030.txt", 5, "第三条 has no text"),
        ("park_gb18030.txt", 7, "第五条 follows article 3: one is missing"),
        ("qa.csv", 5, "column answer: no text"),
        ("qa.xlsx", 5, "sheet Sheet: column answer: no text"),
    ]


@pytest.mark.parametrize(
    ("text", "value"), [("十", 10), ("二十一", 21), ("一百零三", 103), ("一千二百六十", 1260), ("12", 12), ("１２", 12)]
)
def test_chinese_numbers(task, text, value):
    assert task.versions.number_value(text) == value


def laws_of(task, folder, **files):
    """(rows as (article, headings, text), problems as (file, row, what)) of files of laws: name without dots, text."""
    for name, text in files.items():
        file = folder / name.replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    rows, problems = task.legal_data.read_folder(folder)
    rows = [(re.sub("《.*》|是怎么规定的？", "", row["instruction"]), row["input"], row["output"]) for row in rows]
    return rows, [(Path(file).name, number, what) for file, number, what in problems]


def test_final_provisions_are_a_heading_and_an_annex_is_no_article(task, tmp_path):
    text = (
        "示例市渡口条例\n第一编　总　则\n第一条　甲。\n第二编　运营\n第一章　船舶\n第二条　收费见附表，依照\n附表一所列的标准。\n"
        "附表：见第五页\n第二条之一　乙。\n第二条之二丙。\n附　则\n第三条　丁。\n附件1：收费\n每人二元\n第一条　附件自己的条文。\n第四条　也是。"
    )
    rows, problems = laws_of(task, tmp_path, a__txt=text)
    assert rows == [
        ("第一条", "示例市渡口条例 第一编 总则", "甲。"),
        ("第二条", "示例市渡口条例 第二编 运营 第一章 船舶", "收费见附表，依照\n附表一所列的标准。"),
        ("第二条之一", "示例市渡口条例 第二编 运营 第一章 船舶", "乙。"),
        ("第二条之二", "示例市渡口条例 第二编 运营 第一章 船舶", "丙。"),
        ("第三条", "示例市渡口条例 附则", "丁。"),
    ]
    assert problems == [
        ("a.txt", 8, "附表：见第五页: an annex, no article; not read, lines: 1"),
        ("a.txt", 13, "附件1：收费: an annex, no article; not read, lines: 4"),
    ]


@pytest.mark.parametrize(
    ("line", "annex"),
    [("附件", 1), ("附　件：", 1), ("（附表略）", 1), ("附件二 图", 1), ("附录 A", 1), ("附：清单", 1), ("【附件】", 1)]
    + [("附则", 0), ("附件所列的船舶", 0), ("附表一规定的标准。", 0), ("附近的渡口", 0), ("附上：照片", 0)],
)
def test_what_is_an_annex(task, line, annex):
    assert task.statutes.is_annex(line) == bool(annex)


def test_statutes_in_markdown(task, tmp_path):
    text = (
        "# 示例市渡口条例\n\n2019年5月1日示例市人大通过\n\n<!-- INFO END -->\n\n## 第一章 总 则\n\n**第一条** 甲：\n\n- （一）乙；\n"
        "- （二）**丙**。\n\n---\n\n## 第二章　罚则\n\n### 第一节 罚款\n\n__第二条__　丁。\n\n### 警告\n\n#### 第三条\n戊。\n\n## 附则\n\n第四条 己。\n"
        "\n## 附件一 表\n\n| 庚 |\n"
    )
    rows, problems = laws_of(task, tmp_path, a__md=text)
    assert rows == [
        ("第一条", "示例市渡口条例 第一章 总则", "甲：\n（一）乙；\n（二）丙。"),
        ("第二条", "示例市渡口条例 第二章 罚则 第一节 罚款", "丁。"),
        ("第三条", "示例市渡口条例 第二章 罚则 警告", "戊。"),
        ("第四条", "示例市渡口条例 附则", "己。"),
    ]
    assert [number for _, number, _ in problems] == [31]


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "目　录\n第一编　总则\n第一章　范围\n第二编　运营\n附则\n",
        "第一编　总则\n第一章　范围\n第二编　运营\n附则\n",  # its word is missing
        "目录\n第一编　总则……1\n第一条　目的\n第二条　渡口\n第二编　运营……9\n",
    ],
)
def test_the_table_of_contents_is_skipped(task, tmp_path, contents):
    body = (
        "第一编\n总　则\n第一章　范围\n第一条　甲，违反\n第一章规定的除外。\n第 2 条　乙。\n第二编　运营\n第三条　丙。"
    )
    rows, problems = laws_of(task, tmp_path, a__txt=f"示例市渡口条例\n{contents}{body}")
    first = "示例市渡口条例 第一编 总则 第一章 范围"
    assert rows == [
        ("第一条", first, "甲，违反\n第一章规定的除外。"),
        ("第2条", first, "乙。"),
        ("第三条", "示例市渡口条例 第二编 运营", "丙。"),
    ]
    assert not problems


def test_two_laws_in_one_file(task, tmp_path):
    rows, problems = laws_of(
        task, tmp_path, a__txt="示例市渡口条例\n第一条 甲。\n第二条 乙。\n示例市桥梁办法\n第一章 总则\n第一条 丙。"
    )
    assert [row[1:] for row in rows] == [
        ("示例市渡口条例", "甲。"),
        ("示例市渡口条例", "乙。"),
        ("示例市桥梁办法 第一章 总则", "丙。"),
    ]
    assert not problems


OLD, NEW = "{}第一条 罚五元。\n第二条 不变。\n第三条 已废止。", "{}第一条 罚五百元。\n第二条　不变。"


@pytest.mark.parametrize(
    ("old", "new", "above_old", "above_new"),
    [
        ("渡口条例(2010-03-01)", "渡口条例(2024-01-01)", "渡口条例", "渡口条例"),
        ("z_20100301", "a_20240101", "渡口条例", "中华人民共和国渡口条例"),
        ("z", "a", "渡口条例（2010年修正）", "渡口条例（2018年修订）"),
        ("z", "a", "渡口条例\n（2018修正）", "渡口条例\n（2019修正）"),
        (
            "z",
            "a",
            "渡口条例\n2010年3月1日市人大通过，自2030年1月1日起施行",
            "渡口条例\n（2010年3月1日市人大通过　根据二〇二四年一月二日《决定》修正）",
        ),
        ("z", "a", "渡口条例\n公布日期：2010.3.1\n施行日期：2031.1.1", "渡口条例\n发布日期：2010-03-02"),
    ],
)
def test_the_newer_version_of_a_law_stays(task, tmp_path, old, new, above_old, above_new):
    files = {f"{old}__txt": OLD.format(f"{above_old}\n"), f"{new}__md": NEW.format(f"{above_new}\n")}
    rows, problems = laws_of(task, tmp_path, **files)
    assert [row[2] for row in rows] == ["罚五百元。", "不变。"]
    ((file, _, what),) = problems
    assert file == f"{old}.txt" and what.startswith("an older version (20") and f"{new}.md, row " in what
    assert "(3, 1 of them unchanged)" in what


@pytest.mark.parametrize(
    ("first", "second", "above"),
    [
        ("a", "b", "渡口条例"),  # no date
        ("a(2018)", "b(2018-05-01)", "渡口条例"),  # a year, and a day of it
        ("a(2024-01-01)", "b", "渡口条例"),  # one date only
        ("a(2010-01-01)", "b(2024-01-01)", "市人民政府令"),  # the title of many a law
    ],
)
def test_versions_that_no_date_tells_apart_are_a_conflict(task, tmp_path, first, second, above):
    files = {f"{first}__txt": OLD.format(f"{above}\n"), f"{second}__txt": NEW.format(f"{above}\n")}
    rows, problems = laws_of(task, tmp_path, **files)
    assert [row[2] for row in rows] == ["不变。", "已废止。"]  # equal in both, and in one only
    said = "another answer than {}.txt, row 2 to the same question: neither is kept. Keep the one in force"
    assert problems == [
        (f"{first}.txt", 2, said.format(second)),
        (f"{second}.txt", 2, said.format(first)),
        (f"{second}.txt", 3, f"the same question and answer as {first}.txt, row 3"),
    ]


@pytest.mark.parametrize(
    ("stem", "above", "title", "date"),
    [
        ("a", "市人民政府关于印发《渡口办法》的通知\n附件：渡口办法\n2019年3月2日\n渡口办法", "渡口办法", ()),
        (
            "a",
            "国家主席令\n第四号\n《渡口法》于2020年5月28日通过，自2021年1月1日起施行。\n渡口法",
            "渡口法",
            (2020, 5, 28),
        ),
        ("a", "关于修改渡口条例的决定\n（2020年1月2日通过）\n渡口条例", "渡口条例", (2020, 1, 2)),
        ("渡口条例(2018-01-02)", "", "渡口条例", (2018, 1, 2)),
        ("渡口条例（2018年修正）", "（虚构文本）", "渡口条例", (2018,)),
        ("b", "最高人民法院\n关于渡口纠纷的解释（二）", "关于渡口纠纷的解释（二）", ()),
        ("b", "《渡口须知》\n说明：虚构。", "渡口须知", ()),
    ],
)
def test_the_title_of_a_law_and_its_date(task, stem, above, title, date):
    (law,) = task.statutes.read(f"{above}\r\n第一条　甲。\r\n", stem)
    assert (law.title, law.date) == (title, date)
    assert law.certain == (title != "渡口须知")


def test_laws_of_other_names_are_no_versions(task, tmp_path):
    titles = ("渡口解释（一）", "渡口解释（二）", "渡口条例", "渡口条例实施细则", "渡口条例（试行）")
    files = {f"{year}(20{year}-01-01)__txt": f"{title}\n第一条 甲。" for year, title in enumerate(titles, 10)}
    rows, problems = laws_of(task, tmp_path, **files)
    assert [row[1] for row in rows] == list(titles) and not problems


def test_a_question_is_a_repeat_only_with_an_equal_answer(task, tmp_path):
    pairs = [
        ("船票？", "二元。"),
        ("船票？ ", "二 元。"),
        ("船票？", "三元。"),
        ("《渡口条例》第1条是怎么规定的？", "别的。"),
    ]
    write(tmp_path / "a.jsonl", [{"question": question, "answer": answer} for question, answer in pairs])
    rows, problems = laws_of(task, tmp_path, b__txt="渡口条例\n第一条 甲。")
    assert [row[2] for row in rows] == ["二元。", "甲。"]
    assert [problem[1:] for problem in problems] == [
        (2, "the same question and answer as a.jsonl, row 1"),
        (3, "another answer than a.jsonl, row 1 to the same question: left out. Keep the right one"),
        (4, "another answer than b.txt, row 2 to the same question: left out. Keep the right one"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("name", ["qa.json", "qa.jsonl"])
def test_questions_in_json_of_each_encoding(task, tmp_path, name, encoding):
    rows = [json.dumps({"问题": f"渡口{number}？", "答案": "有。"}, ensure_ascii=False) for number in range(3)]
    text = f"[{','.join(rows)}]" if name == "qa.json" else "\n".join(rows)
    (tmp_path / name).write_text(text, encoding)
    rows, problems = task.legal_data.read_folder(tmp_path)
    assert [row["instruction"] for row in rows] == ["渡口0？", "渡口1？", "渡口2？"] and not problems


@pytest.mark.parametrize(
    "text",
    [
        "<!--" * 30_000,
        "（2018" * 30_000,
        "第" * 100_000,
        "第一条 甲。\n" * 3_000,
        "第" + "9" * 6_000 + "条 甲。",
        "附件\n" * 9_000,
    ]
    + [
        "2018年" * 30_000,
        "（" * 99 + "\n" + "《" * 50_000,
        "# " * 50_000,
        "第一章\n" * 9_000,
        "**" * 50_000,
        "\0\n第一条\x1c甲。",
    ],
)
def test_odd_statutes_neither_hang_nor_raise(task, tmp_path, text):
    import time

    began = time.process_time()
    rows, problems = laws_of(task, tmp_path, a__txt=text)
    assert time.process_time() - began < 5 and (rows or problems)


def test_law_is_written_with_its_report(script, tmp_path):
    folder = tmp_path / "law"
    write(folder / "qa.json", [{"Question": "甲？", "Answer": "乙。"}, {"question": "丙？"}, 7], lines=False)
    write(folder / "more.jsonl", [{"question": "甲？", "answer": "again"}])
    (folder / "old.doc").write_bytes(b"word")
    (folder / "empty.txt").write_text("没有条文。", "utf-8")
    (folder / "binary.txt").write_bytes(b"\xff\x00\x81")
    out = tmp_path / "law.jsonl"
    done = script(TASK / "legal_data.py", folder, "--out", out)
    assert "1 rows, 6 problems" in done.stdout
    assert read(out) == [{"instruction": "甲？", "input": "", "output": "again", "source": "law"}]
    report = (tmp_path / "law.report.csv").read_text("utf-8-sig")
    for said in (
        'old.doc,,"not read: .doc. Save it as .txt',
        "empty.txt,,no article",
        "binary.txt,,neither UTF-8 nor GB18030",
        'qa.json,1,"another answer than more.jsonl, row 1 to the same question',
        'qa.json,2,"no answer column (answer, output, response, 回答, 答案, 答复). Columns found: question"',
        'qa.json,3,"expected an object with question, answer, got int"',
    ):
        assert said in report, report
    again = script(TASK / "legal_data.py", folder, "--out", out, check=False)
    assert "exists and is kept" in again.stderr
    nothing = script(TASK / "legal_data.py", folder / "empty.txt", check=False)
    assert nothing.returncode and "nothing that can be used" in nothing.stderr


# Training


ROW = {"instruction": " 什么是芯片？ ", "input": "Answer <|im_end|>\nbriefly.", "output": "集成电路。", "source": "all"}


def test_the_loss_counts_the_answer_and_its_end_and_nothing_else(task, tokenizer):
    (ids,), (labels,) = task.prompt.encode(tokenizer, [ROW])
    assert tokenizer.decode([token for token in labels if token != -100]) == "集成电路。<|im_end|>"
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{task.prompt.SYSTEM}<|im_end|>\n<|im_start|>user\n什么是芯片？\n\nAnswer \nbriefly.<|im_end|>\n"
        "<|im_start|>assistant\n集成电路。<|im_end|>"
    )
    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
    (prompt,) = task.prompt.prompt_ids(tokenizer, [ROW])
    (other,) = task.prompt.prompt_ids(tokenizer, [ROW], {"system_prompt": "Be brief."})  # as a run brings it
    assert tokenizer.decode(other) == tokenizer.decode(prompt).replace(task.prompt.SYSTEM, "Be brief.")
    assert ids[: len(prompt)] == prompt and ids[len(prompt) :] == task.prompt.answer_ids(tokenizer, [ROW])[0]


def test_the_split_is_by_question_and_always_the_same(task):
    rows = [row | {"source": "all"} for row in rows_of(50)] + [row | {"source": "all"} for row in rows_of(10)]
    train, held = task.data.split(rows, 0.1, 42)
    assert task.data.split(rows, 0.1, 42) == (train, held) != task.data.split(rows, 0.1, 43)
    assert not {row["instruction"] for row in train} & {row["instruction"] for row in held}
    assert len({row["instruction"] for row in held}) == 5 and len(train) + len(held) == 60
    for rows, ratio in ((rows_of(1), 0.1), (rows_of(1) * 4, 0.1)):
        with pytest.raises(SystemExit, match="1 different row: one to train on and one to hold out"):
            task.data.split(rows, ratio, 42)
    with pytest.raises(SystemExit, match="--eval_ratio 1.5: expected a share"):
        task.data.split(rows, 1.5, 42)


def test_rows_longer_than_the_context_are_counted(task, tokenizer, capsys):
    from common.tokens import tokenize

    rows = [ROW, ROW | {"output": "long " * 600}]
    to_ids = partial(task.prompt.encode, tokenizer)
    assert len(tokenize(rows, to_ids, 512, "training rows")) == 1
    assert "training rows: 1 of 2 rows are over --max_length 512: dropped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no row fits"):
        tokenize(rows[1:], to_ids, 512, "training rows")


def test_rows_of_a_users_file_are_checked(task, tmp_path):
    file = write(tmp_path / "x.json", [*rows_of(2), {"instruction": "x", "output": ""}, 3], lines=False)
    rows, said = task.data.read_rows(file)
    assert [row["source"] for row in rows] == ["all", "all"]
    assert (
        f"{file}: row 3, column output: no text" in said
        and "row 4: expected an object" in said
        and "dropped: 1 empty, 1 wrong type" in said
    )
    with pytest.raises(SystemExit, match=r"no such file. Build it: python \S*data.py --plan small"):
        task.data.read_rows(tmp_path / "nowhere.jsonl")


def test_neftune_adds_noise_while_training_and_only_then(task, tiny_model, tokenizer, tmp_path):
    """The noise is at most alpha / sqrt(length x width), on the model that train.py's load_model gives to TRL's trainer."""
    import torch
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from common import cli
    from common.speed.packing import collator
    from common.tokens import tokenize

    flags = (
        f"--output_dir {tmp_path} --quantization none --auto false --bf16 false --max_steps 1 --save_strategy no "
        "--eval_strategy no --load_best_model_at_end false --gradient_checkpointing false --loss_type nll "
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 1"
    )
    args = cli.parse(TASK / "train.py", task.train.DEFAULTS, {}, task.train.Args, "trl:SFTConfig", flags.split())
    config = cli.trainer_config(args)
    model = task.train.load_model(args, config, tiny_model)
    rows = tokenize([ROW], partial(task.prompt.encode, tokenizer), 512, "rows")
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, args=config, train_dataset=rows,
        data_collator=collator(tokenizer, False, "hf"),
    )  # fmt: skip
    table = model.get_input_embeddings().weight.detach().clone()
    seen = []

    def look(module, inputs, output):  # runs after NEFTune's own hook: it is registered later
        seen.append((module.training, (output - table[inputs[0]]).abs().max().item(), output.shape))

    class Look(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.handle = model.get_input_embeddings().register_forward_hook(look)

    trainer.add_callback(Look())
    trainer.train()
    trainer.evaluate(rows)
    (training, noise, shape), *rest = seen
    limit = 5 / (shape[1] * shape[2]) ** 0.5
    assert training and 0.9 * limit < noise <= limit * 1.0001
    assert rest and all(not mode and difference == 0 for mode, difference, _ in rest)
    assert torch.equal(table, model.get_input_embeddings().weight)


# Talking


def test_repetition_is_counted_over_the_answer_only(task):
    import torch

    args = SimpleNamespace(repetition_penalty=2.0, no_repeat_ngram_size=2, temperature=0, top_p=0.9)
    how = task.infer.sampling(args, 3)
    assert set(how) == {"logits_processor"} and len(how["logits_processor"]) == 2
    scores = torch.ones(1, 6)

    def after(ids):
        out = scores.clone()
        for rule in how["logits_processor"]:
            out = rule(torch.tensor([ids]), out)
        return out[0].tolist()

    assert after([1, 2, 1]) == [1.0] * 6  # the prompt alone: nothing is forbidden
    assert after([1, 2, 1, 4]) == [1, 1, 1, 1, 0.5, 1]
    assert after([1, 2, 1, 4, 5, 4]) == [1, 1, 1, 1, 0.5, -float("inf")]  # 4 5 was said already


def test_the_oldest_turns_go_when_the_conversation_is_too_long(task, tokenizer):
    history = []
    for n in range(6):
        history += [{"role": "user", "content": f"问题 {n} " * 10}, {"role": "assistant", "content": "answer " * 10}]
    history.append({"role": "user", "content": "and now?"})
    messages, gone = task.chat.fit(tokenizer, "system", history, 100_000)
    assert gone == 0 and len(messages) == 14
    messages, gone = task.chat.fit(tokenizer, "system", history, 200)
    assert gone > 0 and messages[0]["role"] == "system" and messages[1:] == history[2 * gone :]
    assert len(tokenizer(task.prompt.chatml(messages)).input_ids) <= 200
    assert len(tokenizer(task.prompt.chatml([messages[0], *history[2 * gone - 2 :]])).input_ids) > 200
    with pytest.raises(ValueError, match="this message takes"):
        task.chat.fit(tokenizer, "system", [{"role": "user", "content": "x " * 300}], 200)


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, command, cwd, environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(command[0], command, environment | {"TERM": "dumb", "PYTHONUTF8": "1"})
        self.text = ""
        self.decode = codecs.getincrementaldecoder("utf-8")(
            "replace"
        ).decode  # a read may end in the middle of a character

    def until(self, pattern, seconds=60):
        """What appeared up to and with `pattern`, a regular expression; the rest is kept for the next call."""
        end = time.time() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.time() < end, f"no {pattern!r} in {self.text[-2000:]!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.text += self.decode(os.read(self.fd, 65536))
                except OSError:  # the other side is closed
                    break
        assert found or re.search(pattern, self.text), self.text[-2000:]
        found = re.search(pattern, self.text)
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def say(self, text):
        os.write(self.fd, text.encode())

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def trained(copied, script, tiny_model, tmp_path):
    """The folder copied alone and a finished run of it: (task folder, run folder, what train.py said)."""
    folder = copied("domain_mix")
    flags = ["--model", tiny_model, "--max_steps", 2, "--eval_steps", 1, "--save_steps", 1, "--max_new_tokens", 4]
    shown = script(folder / "train.py", "--demo", *flags, "--show_mask", 1).stdout
    (run,) = (tmp_path / "outputs" / "domain_mix").iterdir()
    return folder, run, shown


@pytest.mark.slow
def test_the_folder_works_alone(task, trained, demo_model, environment, script, tmp_path):
    """cp -r domain_mix elsewhere; train, evaluate, infer, another base, and a conversation in a terminal."""
    from safetensors.torch import load_file

    folder, run, shown = trained
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["steps"] == 2 and record["arguments"]["neftune_noise_alpha"] == 5
    assert (run / "system_prompt.txt").read_text("utf-8").startswith("You are a knowledgeable assistant")
    assert (run / "tokenizer.json").exists() and (run / "adapter_model.safetensors").exists()
    weights = load_file(run / "adapter_model.safetensors")
    assert sum(bool(tensor.abs().max() > 0) for name, tensor in weights.items() if "lora_B" in name) == 2 * 7
    assert shown.count("before:  ") == shown.count("after:   ") == 4
    assert "⟦" in shown and "tokens are trained on" in shown
    for source in ("my_dataset", "slimorca", "pubmedqa"):
        assert re.search(rf"held-out perplexity, {source}: [\d.]+ before, [\d.]+ after", shown)
    # The mix was built from the sample: 10 of 100 rows are held out.
    counted = re.findall(r"held-out perplexity, .*\((\d+) rows", shown)
    assert sum(map(int, counted)) == 10

    evaluated = script(folder / "evaluate.py", "--limit", 3, "--max_new_tokens", 4, "--rouge").stdout
    assert "3 held-out rows" in evaluated
    results = run / "evaluation_results"
    assert {"metrics.json", "predictions.jsonl", "report.html"} <= {file.name for file in results.iterdir()}
    held = task.data.split(task.data.read_rows(SAMPLE / "plan.yaml")[0], 0.1, 42)[1]
    asked = [(row["instruction"], row["input"], row["reference"]) for row in read(results / "predictions.jsonl")]
    assert asked == [(row["instruction"], row["input"], row["output"]) for row in held[:3]] and len(held) == 10
    for flag, given, right in (("--seed", 7, 42), ("--eval_ratio", 0.2, 0.1)):
        done = script(folder / "evaluate.py", flag, given, check=False)
        assert f"rows that it was trained on. Give {flag} {right}" in done.stderr

    answer = script(folder / "infer.py", "--question", "什么是芯片？", "--max_new_tokens", 5).stdout
    assert f"adapter: {run}" in answer and answer.split(f"{run}\n")[1].strip()

    done = script(folder / "infer.py", "--question", "x", "--model", demo_model, check=False)
    assert done.returncode and "Traceback" not in done.stderr, done.stderr
    assert "was not trained on" in done.stderr and "names its base" in done.stderr

    command = [sys.executable, "chat.py", "--max_new_tokens", "600", "--seed", "1"]
    terminal = Terminal(command, folder, environment)
    try:
        terminal.until("you> ", 120)
        terminal.say("时钟域是什么意思？\n")
        assert "时钟域是什么意思？" in terminal.until(r"\r\n")
        terminal.until(r"\S{3}")  # the answer has begun
        terminal.say("\x03")  # what Ctrl-C sends
        terminal.until(r"\(stopped; this turn is forgotten\)\s+you> ")
        terminal.say("/system 用一句话回答。\n")
        terminal.until(r"\(system: 用一句话回答。\)\s+you> ")
        terminal.say("你好\n")
        first = terminal.until(r"you> $", 120)
        assert "stopped" not in first and len(first) > 200
        # The second turn has the first one in its prompt: with 600 new tokens beside it, 2,048 do for both.
        terminal.say("And again?\n")
        assert "Traceback" not in terminal.until(r"you> $", 120)
        for _ in range(3):
            terminal.say("more\n")
            said = terminal.until(r"you> $", 120)
        assert "left out: the conversation is longer than the context" in said
        terminal.say("/reset\n")
        terminal.until(r"\(the conversation is forgotten\)\s+you> ")
        terminal.say("quit\n")
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
        terminal.pid = None
    finally:
        if terminal.pid:
            terminal.close()


def test_an_adapter_that_is_none(script, tmp_path):
    for name in ("infer.py", "chat.py", "evaluate.py"):
        flags = ["--question", "x"] if name == "infer.py" else []
        done = script(TASK / name, "--adapter", tmp_path, *flags, check=False)
        assert "holds no adapter (no adapter_config.json)" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "adapter_config.json").write_text("{}")  # one of another recipe
    for name in ("infer.py", "chat.py", "evaluate.py"):
        flags = ["--question", "x"] if name == "infer.py" else []
        done = script(TASK / name, "--adapter", tmp_path, *flags, check=False)
        assert "was not trained by domain_mix" in done.stderr and "system_prompt.txt" in done.stderr
    done = script(TASK / "infer.py", check=False)
    assert "--question is empty" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file. Build it"),
        (["--model", "nobody/nothing"], "model 'nobody/nothing' was not found. Tried:"),
        pytest.param(["--max_length", "20"], "no row fits in --max_length 20", marks=pytest.mark.slow),
        (["--eval_ratio", "2"], "expected a share between 0 and 1, as 0.1, got 2"),
    ],
)
def test_bad_input_is_said_in_a_line_before_a_model_loads(script, arguments, said):
    done = script(TASK / "train.py", "--demo", *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("preset", ["fast.yaml", "course.yaml"])
def test_presets_name_flags_that_exist(script, preset):
    done = script(TASK / "train.py", "--config", TASK / preset, "--data", "nowhere.jsonl", check=False)
    assert "nowhere.jsonl: no such file" in done.stderr or "--backend unsloth needs an NVIDIA GPU" in done.stderr


def test_the_bench_runs():
    command = [sys.executable, str(ROOT / "bench" / "mix_data.py"), "--rows", "600", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"600 rows read \(\d+ MB\), 5\d\d taken .*\nmedian of 1: [\d.]+ s", done.stdout)
