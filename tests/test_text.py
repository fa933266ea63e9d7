"""What encoding_of makes of short rows, whole files and damaged ones. Rows are pairs of encodings.json's sentences."""

import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from common import text

SENTENCES = json.loads((Path(__file__).parent / "encodings.json").read_text("utf-8"))


def rows(language, codec, count=500):
    """`count` rows `question,answer` of 15 to 80 characters, not all ASCII, that the codec can write."""
    rng, found = random.Random(language), []
    while len(found) < count:
        row = ",".join(rng.choices(SENTENCES[language], k=2))
        with_codec = row.encode(codec, "ignore").decode(codec) == row
        if 15 <= len(row) <= 80 and not row.isascii() and with_codec:
            found.append(row)
    return found


def guess(data):
    try:
        return text.encoding_of_bytes(data)
    except text.Undecodable as error:
        return str(error)


def counts(language, codec):
    return Counter(guess(row.encode(codec)) for row in rows(language, codec))


def test_rows_of_simplified_chinese_in_gb18030():
    assert counts("simplified", "gb18030") == {"gb18030": 500}


def test_rows_of_traditional_chinese_in_gb18030():
    assert counts("traditional", "gb18030")["gb18030"] >= 490


@pytest.mark.parametrize(
    "language, codec, name",
    [
        ("french", "cp1252", "Windows-1252"),
        ("german", "cp1252", "Windows-1252"),
        ("traditional", "cp950", "Big5"),
        ("japanese", "cp932", "Shift-JIS"),
        ("japanese", "euc_jp", "EUC-JP"),
        ("korean", "cp949", "EUC-KR"),
        ("russian", "cp1251", "Windows-1251"),
        ("russian", "koi8_r", "KOI8-R"),
    ],
)
def test_rows_of_other_encodings(language, codec, name):
    found = counts(language, codec)
    assert found["gb18030"] + found["utf-8"] <= 5, found
    file = "question,answer\r\n" + "\r\n".join(rows(language, codec, 100))
    with pytest.raises(text.Undecodable, match=f"neither UTF-8 nor GB18030; it looks like {name}. Save it as UTF-8."):
        text.encoding_of_bytes(file.encode(codec))


def test_curly_quotes_of_windows_are_not_hanzi():
    for row in ("I can’t sleep,It’s stress", "Don’t,“No” – she said", "the tenant’s consent,they can’t just walk in…"):
        assert "Windows-1252" in guess(row.encode("cp1252"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
@pytest.mark.parametrize("count", [1, 10, 300])
def test_files(encoding, count, tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(("question,answer\r\n" + "\r\n".join(rows("simplified", "gb18030", count))).encode(encoding))
    assert text.encoding_of(file) == encoding == text.encoding_of_bytes(file.read_bytes())


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_damaged_files(encoding):
    rng = random.Random(0)
    for count in (10, 100) * 10:
        data = bytearray("\n".join(rows("simplified", "gb18030", count)).encode(encoding))
        for _ in range(count // 10):
            data[rng.randrange(len(data))] = rng.randrange(256)
            at = rng.randrange(len(data))
            data[at : at + 3] = bytes(rng.choice((1, 2, 50)))  # NULs of a crashed disk
        assert guess(bytes(data)) == encoding


@pytest.mark.parametrize("where", [20, 700_000, text.PIECE - 1, text.PIECE, 1_399_000])
@pytest.mark.parametrize(
    "word, codec, expected",
    [
        ("备注", "gb18030", "gb18030"),
        ("元", "gb18030", "gb18030"),
        ("备注", "utf-8", "utf-8"),
        ("can’t", "cp1252", "Windows-1252"),
        ("資料", "cp950", "Big5"),
    ],
)
def test_one_word_in_a_megabyte_of_ascii(where, word, codec, expected):
    ascii_lines = b"1234,some plain text\n" * 70_000
    at = ascii_lines.rfind(b"\n", 0, where + 1) + 1 + 5
    assert expected in guess(ascii_lines[:at] + word.encode(codec) + ascii_lines[at:])


@pytest.mark.parametrize(
    "row",
    [
        "姓名,字\n张䶮,男\n李㛃,女",
        "王喆,李祎,张珺,刘翀,陈玥,赵昶,孙玮,周琰",
        "㐀䶿𠀀𪛖",
        "帝高阳之苗裔兮，朕皇考曰伯庸。摄提贞于孟陬兮，惟庚寅吾以降。",
        "第一条 为了规范图书借阅，制定本条例。",
        "\n".join(f"{number},{number * 7}" for number in range(1000)) + "\n合计,3",
    ],
)
def test_rare_characters_names_classical_text_and_digits(row):
    assert guess(row.encode("gb18030")) == "gb18030"


def test_a_nul_makes_no_utf16():
    for encoding in ("utf-8", "gb18030"):
        data = "\n".join(rows("simplified", "gb18030", 20)).encode(encoding)
        for at in range(0, 300, 7):
            for count in (1, 2, 3, 4096):
                assert guess(data[:at] + bytes(count) + data[at:]) == encoding


def test_binary_files_are_called_that():
    assert "not text" in guess(random.Random(0).randbytes(100_000))


def test_one_line_longer_than_a_piece():
    line = '["' + "".join(rows("simplified", "gb18030")).replace(",", "，").replace(" ", "") * 40 + '"]'
    for encoding in ("gb18030", "utf-8"):
        data = line.encode(encoding)
        assert len(data) > 2 * text.PIECE and guess(data) == encoding


def test_empty_and_ascii_are_utf8():
    assert guess(b"") == guess(b"a,b\n1,2\n") == "utf-8"


def test_a_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    file, sizes = tmp_path / "large.csv", []
    file.write_bytes("\n".join(rows("simplified", "gb18030")).encode("gb18030") * 200)

    class Watched(io.FileIO):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    with Watched(file) as opened:
        monkeypatch.setattr(text, "open", lambda *_: io.BufferedReader(opened), raising=False)
        assert text.encoding_of(file) == "gb18030"
