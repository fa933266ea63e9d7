"""The dashboard recipe: answers and scores, hostile spreadsheets and pictures, the collator, the miniature, a run."""

import csv
import importlib
import io
import itertools
import json
import random
import re
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASK = ROOT / "vl_insurance"
NAMES = (
    "gauges", "fields", "pictures", "prompt", "sheet", "data", "digits", "render", "lessons", "windows", "fast", "model", "answers", "miniature",
    "pretrain", "train", "infer", "evaluate",
)  # fmt: skip
FACTS = {"mileage": 528915, "unit": "km", "speed": 62, "time": "14:07", "temperature": 22, "gear": "D"}
CAP = 336 * 168


@pytest.fixture(scope="module")
def vl():
    """The folder's modules. They import each other by these names also later, so the names are theirs until the end."""
    kept = {name: sys.modules.pop(name, None) for name in NAMES}
    sys.path.insert(0, str(TASK))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(TASK))
        for name, module in kept.items():
            sys.modules.pop(name, None)
            if module:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def tiny(vl, tmp_path_factory):
    """A miniature with random weights."""
    return vl.miniature.build(tmp_path_factory.mktemp("vl") / "tiny")


@pytest.fixture(scope="module")
def processor(vl, tiny):
    return vl.model.load_processor(tiny, CAP)


@pytest.fixture(scope="module")
def model(tiny):
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32).eval()


def picture(seed=0, split="train"):
    from render import dashboard

    return dashboard(random.Random(seed), split)[0]


# -- answers


COURSE = [
    "根据图片，仪表盘显示的信息如下：\n\n- **总里程**：528,915公里\n- **当前速度**：0公里/小时\n- **当前时间**：14:07\n"
    "- **当前温度**：22摄氏度\n- **当前挡位**：P挡（驻车挡）",
    "图片中的仪表盘显示：\n\n1. **总里程**: 86,240公里\n2. **当前速度**: 未显示\n3. **当前时间**: 9:05\n"
    "4. **当前温度**: -3℃\n5. **当前挡位**: D",
]


def test_both_forms_of_the_course(vl):
    assert vl.fields.parse(COURSE[0]) == FACTS | {"speed": 0, "gear": "P"}
    assert vl.fields.parse(COURSE[1]) == {
        "mileage": 86240, "unit": "km", "speed": None, "time": "09:05", "temperature": -3, "gear": "D",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("总里程：５２８，９１５公里；车速：６２ｋｍ／ｈ", dict(mileage=528915, unit="km", speed=62)),
        ("该车已行驶52.8万公里，当前车速为 62 km/h。", dict(mileage=528000, unit="km", speed=62)),
        ("Odometer: 45,210 miles. Speed: 0 mph. Time: 2:07 PM. Outside temperature: 72°F. Gear: Park.",
         dict(mileage=45210, unit="mi", speed=0, time="14:07", temperature=22, gear="P")),
        ("里程表读数是 123 456 km，挡位：倒车挡(R)，温度为零下5度", dict(mileage=123456, unit="km", gear="R", temperature=-5)),
        ("时间：下午3点05，气温无法看清，档位 N", dict(time="15:05", gear="N")),
        ("小计里程：123.4公里\n总里程：9876公里", dict(mileage=9876, unit="km")),
        ("总里程（公里）：528915", dict(mileage=528915, unit="km")),
        ("| 总里程 | 528915 km |\n| 挡位 | M3 |", dict(mileage=528915, unit="km", gear="M3")),
        ('```json\n{"mileage": "528,915", "unit": "km", "gear": null, "时间": "08:00"}\n```', dict(mileage=528915, unit="km", time="08:00")),
        ("时间：25:99", {}),
        ("抱歉，我看不清这张图片。", {}),
        ("", {}),
        ("{broken", {}),
        ("[1, 2]", {}),
    ],
)  # fmt: skip
def test_what_models_write(vl, text, found):
    assert vl.fields.parse(text) == dict.fromkeys(vl.fields.FIELDS) | found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # Gauges that are not asked for, before and after the one that is.
        ("Oil temp 101 C; ambient temp 21 C", dict(temperature=21)),
        ("The oil temperature is 90°C and the outside temperature is 12°C.", dict(temperature=12)),
        ("Temperature (engine): 88\nTemperature (outside): 7", dict(temperature=7)),
        ("水温：90℃\n车外温度：-4℃", dict(temperature=-4)),
        ("车内温度：24℃，车外温度：9℃", dict(temperature=9)),
        ("电池的温度是35℃；室外的温度是21℃", dict(temperature=21)),
        ("温度：车内24℃，车外19℃", dict(temperature=19)),
        ("变速箱温度：80℃", {}),
        ("| Gauge | Value |\n|---|---|\n| Cabin temperature | 24 |\n| Speed | 51 |", dict(speed=51)),
        ("最高车速：180\n车速：45 km/h", dict(speed=45)),
        ("限速60，车速45", dict(speed=45)),
        ("速度限制：60\n当前速度：45公里/小时", dict(speed=45)),
        ("Top speed: 120\nEngine speed: 2100 rpm\nSpeed warning at 130\nCurrent speed: 60 mph", dict(speed=60)),
        ("Speed:\nAdBlue: 40\nTime: 9:00", dict(time="09:00")),
        ("Elapsed time 3:20. Time remaining: 0:40. Current time 4:20 PM.", dict(time="16:20")),
        ("预计到达时间：17:30\n时间（24小时制）：16:20", dict(time="16:20")),
        ("Trip odometer: 123.4 km\nMileage since reset: 9 km\nOdometer: 98765 km", dict(mileage=98765, unit="km")),
        ("自上次保养已行驶3000公里，累计里程52000公里", dict(mileage=52000, unit="km")),
        ("已行驶2小时，总里程3000公里", dict(mileage=3000, unit="km")),
        # What leaves a name its meaning.
        ("In the photo the speed shown on the left gauge is 54 km/h, and the clock reads 14:07.", dict(speed=54, time="14:07")),
        ("可以看到该车的总里程为12345公里，时速0", dict(mileage=12345, unit="km", speed=0)),
        ("The car's mileage is 45,210 miles", dict(mileage=45210, unit="mi")),
        ("平均时速：35\n瞬时速度：62", dict(speed=62)),
        ("Mileage 12345 km Speed 54 km/h Temperature 22 C Gear D", dict(mileage=12345, unit="km", speed=54, temperature=22, gear="D")),
        # Numbers and units.
        ("Kilometerstand: 123.456 km, Geschwindigkeit: 54 km/h, Außentemperatur: -3,5 °C", dict(mileage=123456, unit="km", speed=54, temperature=-4)),
        ("Odometer: 1.234.567 km", dict(mileage=1234567, unit="km")),
        ("Mileage: 45.210,6 km", dict(mileage=45210, unit="km")),
        ("Mileage: 123.4 km", dict(mileage=123, unit="km")),
        ("Mileage: 45,210.7 miles", dict(mileage=45210, unit="mi")),
        ("总里程：12.345万公里", dict(mileage=123450, unit="km")),
        ("总里程（万公里）：5.2", dict(mileage=52000, unit="km")),
        ("总里程：12万3456公里", dict(mileage=123456, unit="km")),
        ("里程：5.28 万千米；速度：62千米/时", dict(mileage=52800, unit="km", speed=62)),
        ("总里程：52891千米", dict(mileage=52891, unit="km")),
        ("Odometer: 45k miles", dict(mileage=45000, unit="mi")),
        ("Temperature: 22°C (72°F)", dict(temperature=22)),
        ("Temperature (°F): 72", dict(temperature=22)),
        ("华氏温度：72", dict(temperature=22)),
        ("温度（℃）：19", dict(temperature=19)),
        # Gears.
        ("档位：B", dict(gear="B")), ("Gear: low", dict(gear="L")), ("挡位：低速挡", dict(gear="L")), ("Gear: 3rd", dict(gear="3")),
        ("挡位：S挡（运动）", dict(gear="S")), ("Gear: D, parking brake engaged", dict(gear="D")), ("Gear: it's in 'R'", dict(gear="R")),
        ("Gear oil temperature: 80", {}),
        # JSON in JSON.
        ('{"dashboard": {"odometer": {"value": "12.345", "unit": "mi"}, "speed": {"value": 54, "unit": "km/h"}, "clock": "9:05"}}',
         dict(mileage=12345, unit="mi", speed=54, time="09:05")),
        ('{"temperature": {"oil": 99, "outside": 19}, "speed": {"limit": 70, "current": 54}}', dict(temperature=19, speed=54)),
        ('{"engine": {"temperature": 88}, "speedLimit": 70, "vehicle_speed": 54}', dict(speed=54)),
        ('{"trip": {"mileage": 12, "time": "1:45", "speed": 33}, "mileage": {"km": 45210}}', dict(mileage=45210, unit="km")),
        ('[{"name": "水温", "value": 90}, {"name": "总里程", "value": "528,915", "unit": "公里"}]', dict(mileage=528915, unit="km")),
        ('{"mileage": {"value": null, "unit": "km"}, "speed": 3}', dict(speed=3)),
        ('So {it is}: {"speed": 5} and not {"speed": 6}', dict(speed=5)),
    ],
)  # fmt: skip
def test_other_gauges_other_numbers_and_json_in_json(vl, text, found):
    assert vl.fields.parse(text) == dict.fromkeys(vl.fields.FIELDS) | found


def test_no_answer_stops_the_reading(vl):
    parts = ("速度", "时间", "temperature", "gear", "limit", "12.345", "万", "km", "°F", "：", ":", "\n", " ", "(", ")", "{", '"', "}", "[", "]",
             ",", "D", "未显示", "|", "İ", "\x00", "²", "٣", "is", "的", "外")  # fmt: skip
    rng = random.Random(5)
    texts = ["".join(rng.choices(parts, k=rng.randrange(25))) for _ in range(2000)]
    texts += [
        "{" * 100_000,
        '{"a":' * 100_000,
        "mileage " + "9" * 5000,
        '{"speed": ' + "9" * 5000 + "}",
        "温度外" * 100_000,
    ]
    for text in texts:
        assert set(vl.fields.parse(text)) == set(vl.fields.FIELDS)


def test_what_is_written_is_read_again(vl):
    rng = random.Random(1)
    for _ in range(300):
        facts = vl.render.random_facts(rng)
        assert vl.fields.parse(vl.fields.as_course(facts)) == facts
        assert vl.fields.parse(vl.fields.as_json(facts)) == facts
        assert (
            vl.fields.parse("\n".join(f"{vl.fields.LABELS[k]} {v}" for k, v in vl.lessons.plain(facts).items()))
            == facts
        )


def test_scores_by_hand(vl):
    truth = [FACTS, FACTS | {"gear": None}]
    guess = [FACTS | {"mileage": 528916}, FACTS | {"speed": None}]  # one wrong; one missed and one made up
    scores = vl.fields.score(guess, truth)
    assert scores["document_exact"] == 0 and scores["documents"] == 2 and scores["parsed"] == 1
    assert scores["mileage_digits"] == pytest.approx(11 / 12) and scores["mileage_within_1"] == 1
    assert scores["mileage_one_digit_off"] == 0.5 and scores["fields"]["mileage"]["exact"] == 0.5
    assert scores["fields"]["gear"]["hallucination_rate"] == 1 and scores["fields"]["speed"]["miss_rate"] == 0.5
    # 11 values are shown: 9 right, 1 wrong, 1 missed; 1 is made up.
    assert scores["micro"]["precision"] == pytest.approx(9 / 11) and scores["micro"]["recall"] == pytest.approx(9 / 11)
    assert vl.fields.score(truth, truth)["micro"]["f1"] == vl.fields.score(truth, truth)["macro_f1"] == 1
    assert vl.fields.score([dict.fromkeys(FACTS)], [FACTS])["micro"]["f1"] == 0


# -- spreadsheets


HEADERS = ["ID ", " Prompt", "IMAGE", "response"]


def sheet(folder, *rows, headers=HEADERS, name="qwen-vl-train.xlsx"):
    """An xlsx with these rows; each row (id, image, ...) as (id, prompt, image, response) or shorter with defaults."""
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(headers)
    for row in rows:
        book.active.append(row)
    book.save(folder / name)
    return folder / name


@pytest.fixture
def folder(vl, tmp_path):
    """A folder with two good pictures."""
    (tmp_path / "in").mkdir()
    for seed, name in ((1, "a.jpg"), (2, "b.png")):
        picture(seed).save(tmp_path / "in" / name)
    return tmp_path / "in"


def refused(vl, file, **more):
    """The reason and the text of the only problem of a file whose first row is good."""
    rows, report = vl.data.read_rows(file, **more)
    assert report["kept"] == 1 and len(report["problems"]) == 1, report
    ((reason, count),) = report["dropped"].items()
    assert count == 1
    return reason, report["problems"][0]


GOOD = ("001", "里程？", "a.jpg", "总里程：1公里")


def test_text_stays_text(vl, folder):
    file = sheet(folder, ("002", "NA", "a.jpg", "007"), (None,) * 4, (3, "里程？", "b.png", 528915))
    rows, report = vl.data.read_rows(file)
    assert [(row["id"], row["prompt"], row["response"]) for row in rows] == [
        ("002", "NA", "007"),
        ("3", "里程？", "528915"),
    ]
    assert (
        report["rows"] == 2 and rows[0]["size"] == (336, 168) and Path(rows[0]["image"]) == (folder / "a.jpg").resolve()
    )
    from openpyxl import load_workbook

    book = load_workbook(file)
    book.active["A4"].number_format = "000"
    book.save(file)
    assert vl.data.read_rows(file)[0][1]["id"] == "003"


def test_csv_and_jsonl(vl, folder):
    text = io.StringIO()
    csv.writer(text).writerows([HEADERS, ["002", "里程？", "a.jpg", "总里程：1公里"]])
    (folder / "t.csv").write_bytes(text.getvalue().encode("gb18030"))
    line = dict(zip(("id", "Prompt", "image", "response"), ("002", "里程？", "a.jpg", "总里程：1公里"), strict=True))
    (folder / "t.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    read = [vl.data.read_rows(folder / name)[0] for name in ("t.csv", "t.jsonl")]
    assert read[0] == read[1] and read[0][0]["prompt"] == "里程？"
    (folder / "photos").mkdir()
    (folder / "a.jpg").rename(folder / "photos" / "a.jpg")
    assert vl.data.read_rows(folder / "t.csv", image_root=folder / "photos")[0][0]["id"] == "002"


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "link.jpg", "inside/../../secret.jpg", "..\\secret.jpg"]
)
def test_paths_that_lead_out(vl, folder, name):
    picture(3).save(folder.parent / "secret.jpg")
    (folder / "inside").mkdir()
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    reason, text = refused(vl, sheet(folder, GOOD, ("2", "里程？", name, "x")))
    assert reason == "outside the root" and "row 3, column image" in text


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1/a.jpg", "https://x.y/a.jpg", "file:///etc/passwd", "data:image/png;base64,AA"]
)
def test_addresses_are_not_fetched(vl, folder, name):
    assert refused(vl, sheet(folder, GOOD, ("2", "里程？", name, "x")))[0] == "not a path"


def test_a_sibling_folder_whose_name_begins_alike_is_outside(vl, folder):
    (folder.parent / "in_evil").mkdir()
    picture(3).save(folder.parent / "in_evil" / "a.jpg")
    assert refused(vl, sheet(folder, GOOD, ("2", "里程？", "../in_evil/a.jpg", "x")))[0] == "outside the root"


def png_of(width, height):
    """A small PNG that says it has so many pixels, all black."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + width // 8 + 1)) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def bad_pictures(folder):
    from PIL import Image

    Image.new("I;16", (60, 60)).save(folder / "deep.png")
    whole = io.BytesIO()
    picture(5).save(whole, "JPEG")
    (folder / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "bomb.png").write_bytes(png_of(30_000, 30_000))
    (folder / "large.png").write_bytes(png_of(13_000, 13_000))  # under PIL's own error limit
    (folder / "text.jpg").write_text("no picture")
    picture(5).save(folder / "gif.gif")
    picture(5).save(folder / "gif_as.jpg", format="GIF")
    (folder / "line.png").write_bytes(png_of(9000, 8))
    (folder / "folder.jpg").mkdir()
    (folder / "empty.jpg").touch()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deep.png", "wrong format"), ("half.jpg", "truncated"), ("bomb.png", "too large"), ("large.png", "too large"),
        ("text.jpg", "wrong format"), ("gif.gif", "wrong format"), ("gif_as.jpg", "wrong format"), ("line.png", "wrong format"),
        ("folder.jpg", "wrong format"), ("empty.jpg", "wrong format"), ("nowhere.jpg", "missing file"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_pictures_that_are_refused(vl, folder, name, reason):
    bad_pictures(folder)
    assert refused(vl, sheet(folder, GOOD, ("2", "里程？", name, "x")))[0] == reason


def test_pictures_that_are_put_right(vl, tmp_path):
    from PIL import Image

    upright = picture(4)
    exif = Image.Exif()
    exif[0x0112], exif[0x8825] = 6, {1: "N"}  # lies on its side; GPS
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    loaded = vl.pictures.load_image(tmp_path / "turned.jpg")
    assert (
        loaded.size == (336, 168)
        and vl.pictures.is_rotated(tmp_path / "turned.jpg")
        and not loaded.getexif().get(0x8825)
    )
    difference = [
        abs(a - b) for a, b in zip(loaded.convert("L").tobytes(), upright.convert("L").tobytes(), strict=True)
    ]
    assert sum(difference) / len(difference) < 3
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert vl.pictures.load_image(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)  # not red, not black
    upright.convert("CMYK").save(tmp_path / "cmyk.jpg")
    upright.convert("LA").save(tmp_path / "la.png")
    upright.convert("P").save(tmp_path / "p.png")
    assert {vl.pictures.load_image(tmp_path / name).mode for name in ("cmyk.jpg", "la.png", "p.png")} == {"RGB"}


def exif_of(*entries):
    """A JPEG's EXIF of entries (tag, type, the four bytes of its value), with two signed numbers after them."""
    import struct

    body = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<Iii", 0, -50, 1)


def test_exif_that_cannot_be_written_back(vl, folder):
    """A signed number where the standard has an unsigned one is read, but PIL cannot write it."""
    import struct

    from PIL import Image

    for turn in (*range(1, 9), 0, 9):
        exif = exif_of((0x0112, 3, struct.pack("<HH", turn, 0)), (0x011A, 10, struct.pack("<I", 8 + 2 + 2 * 12 + 4)))
        picture(4).save(folder / "odd.jpg", exif=exif)
        upright = vl.pictures.load_image(folder / "odd.jpg")
        assert upright.size == ((168, 336) if 5 <= turn <= 8 else (336, 168)) and not upright.info
        assert vl.pictures.is_rotated(folder / "odd.jpg") == (2 <= turn <= 8)
        plain = Image.Exif()
        plain[0x0112] = turn
        picture(4).save(folder / "plain.jpg", exif=plain)
        assert vl.pictures.load_image(folder / "plain.jpg").tobytes() == upright.tobytes()
    rows, report = vl.data.read_rows(sheet(folder, GOOD, ("2", "里程？", "odd.jpg", "总里程：200 km")))
    assert len(rows) == 2 and not report["dropped"]


def test_exif_that_cannot_be_read_is_named(vl, folder):
    picture(4).save(folder / "odd.webp", exif=b"no TIFF at all")
    reason, text = refused(vl, sheet(folder, GOOD, ("2", "里程？", "odd.webp", "总里程：200 km")))
    assert reason == "unreadable EXIF" and "odd.webp" in text


def test_rows_that_are_refused(vl, folder):
    file = sheet(
        folder, GOOD, ("001", "x", "b.png", "y"), ("4", "x", "b.png", "  "), ("5", "", "b.png", "y"), ("6", "x", "", "y"),
        ("7", "say <|im_end|>", "b.png", "y"), ("8", "x", '=DISPIMG("ID_1",1)', "y"),
    )  # fmt: skip
    rows, report = vl.data.read_rows(file)
    assert report["dropped"] == {
        "duplicate id": 1, "empty": 3, "control token": 1, "picture in the cell": 1,
    }  # fmt: skip
    text = vl.data.format_report(report)
    assert "row 3, column id: 001 stands in an earlier row, too; row dropped: duplicate id" in text
    assert all(f"column {name}: no text" in text for name in ("response", "prompt", "image")) and "xl/media" in text


def test_a_picture_laid_over_the_cell_is_named(vl, folder):
    from openpyxl import load_workbook
    from openpyxl.drawing.image import Image

    file = sheet(folder, GOOD, ("2", "x", "", "y"))
    book = load_workbook(file)
    book.active.add_image(Image(str(folder / "a.jpg")), "C3")
    book.save(file)
    assert refused(vl, file)[0] == "picture in the cell"


def zip_bomb(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b"<x/>")
        with archive.open("xl/big.xml", "w", force_zip64=True) as part:
            for _ in range(400):
                part.write(bytes(1_000_000))


def with_doctype(file):
    whole = io.BytesIO(file.read_bytes())
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            new.writestr(name, text.replace(b"<workbook", b'<!DOCTYPE x [<!ENTITY a "b">]><workbook', 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: file.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)), "password-protected"),
        (lambda file: file.write_text("id,prompt"), "not an .xlsx file"),
        (lambda file: file.write_bytes(file.read_bytes()[:2000]), "not an .xlsx file"),
        (zip_bomb, "unpacks to 400 MB"),
        (with_doctype, "has a DOCTYPE"),
        (lambda file: sheet(file.parent), "no usable row in it"),
        (lambda file: sheet(file.parent, headers=["id", "prompt", "response"]), "no image column"),
        (lambda file: sheet(file.parent, headers=[*HEADERS, "id"]), "column id is there twice"),
        (lambda file: file.unlink(), "no such file"),
    ],
)  # fmt: skip
def test_spreadsheets_that_are_refused(vl, folder, make, said):
    file = sheet(folder, GOOD)
    make(file)
    with pytest.raises(SystemExit, match=said):
        vl.data.read_rows(file)


def test_wrong_sheet_and_no_usable_row(vl, folder):
    file = sheet(folder, ("1", "x", "nowhere.jpg", "y"))
    with pytest.raises(SystemExit, match="no sheet 'Tabelle1'. Sheets: Sheet"):
        vl.data.read_rows(file, sheet="Tabelle1")
    with pytest.raises(SystemExit, match="(?s)missing file.*no usable row"):
        vl.data.read_rows(file)


def test_equal_pictures_stay_on_one_side(vl):
    rows = [{"sha256": f"{n % 20:064d}", "id": n} for n in range(60)]
    train, held = vl.data.split(rows, 0.2, 42)
    assert len(held) == 12 and not {row["sha256"] for row in train} & {row["sha256"] for row in held}
    assert vl.data.split(rows, 0.2, 42)[1] == held and vl.data.split(rows, 0.2, 7)[1] != held
    with pytest.raises(SystemExit, match="1 different row"):
        vl.data.split(rows[:1], 0.2, 42)


@pytest.mark.parametrize(
    ("size", "cap", "tokens"),
    [((4032, 3024), 12_845_056, 15552), ((1920, 1080), 12_845_056, 2691), ((1280, 720), 12_845_056, 1196),
     ((4032, 3024), 1280 * 784, 1230), ((1920, 1080), 1024 * 784, 1008), ((1280, 720), 256 * 784, 252), ((336, 168), CAP, 72)],
)  # fmt: skip
def test_image_tokens(vl, size, cap, tokens):
    assert vl.pictures.image_tokens(size, cap) == tokens


# -- drawing


def test_the_same_seed_draws_the_same_pictures(vl, tmp_path):
    one, other = (vl.render.write(tmp_path / name, 3, seed=5) for name in ("one", "other"))
    assert [f.read_bytes() for f in sorted((one.parent / "images").iterdir())] == [
        f.read_bytes() for f in sorted((other.parent / "images").iterdir())
    ]
    rows, report = vl.data.read_rows(one)
    assert report["kept"] == 3 and [row["id"] for row in rows] == ["0001", "0002", "0003"]
    assert all(vl.fields.parse(row["response"])["mileage"] is not None for row in rows)
    with pytest.raises(SystemExit, match="is not empty"):
        vl.render.write(one.parent, 1)


def test_the_test_split_has_its_own_fonts_layouts_and_segments(vl):
    assert not set(vl.digits.FONTS["train"]) & set(vl.digits.FONTS["test"])
    families = {split: {name.split("-")[0] for name in names} for split, names in vl.digits.FONTS.items()}
    assert not families["train"] & families["test"]
    assert not set(vl.render.LAYOUTS["train"]) & set(vl.render.LAYOUTS["test"])
    shapes = {
        split: {vl.digits.segment_shape(random.Random(n), split)["pointed"] for n in range(20)}
        for split in ("train", "test")
    }
    assert shapes == {"train": {False}, "test": {True}}


def test_ten_digits_of_every_style_differ(vl):
    for pen in (
        lambda d: vl.digits.seven(d, stroke=5, slant=0.06, pointed=True),
        lambda d: vl.digits.letters(d, "cmtt10"),
    ):
        assert len({pen(d)[0].tobytes() for d in "0123456789"}) == 10
    lit = vl.digits.SEGMENTS
    assert [sum(map(int, lit[d])) for d in "0123456789"] == [6, 2, 5, 5, 4, 5, 6, 3, 7, 6]


# -- what the model is given


def rows_of(vl, folder, *pairs):
    made = [(f"{n}", "里程？", image, response) for n, (image, response) in enumerate(pairs)]
    return vl.data.read_rows(sheet(folder, *made))[0]


def test_rows_and_trls_collator_agree(vl, folder, processor):
    """Ids and labels that were computed without opening a picture, and those of TRL's collator that opened it."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    rows = rows_of(vl, folder, ("a.jpg", COURSE[0]), ("b.png", "总里程：1公里"))
    ours = vl.prompt.tokenize(rows, processor, 999, "rows")
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    dataset = vl.prompt.with_pictures(ours, "hf")
    batch = collate([dataset[0], dataset[1]])
    assert batch["pixel_values"].shape == (2 * 288, 1176)
    for i, row in enumerate(rows):
        real = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][real].tolist() == ours["input_ids"][i]
        assert batch["labels"][i][real].tolist() == ours["labels"][i]
        counted = [token for token in ours["labels"][i] if token != -100]
        assert processor.tokenizer.decode(counted) == row["response"] + "<|im_end|>\n"
        assert ours["input_ids"][i].count(processor.image_token_id) == 72
        assert bytes(ours["digest"][i]).hex() == row["sha256"]


def test_unsloths_rows_hold_the_same_text(vl, folder, processor):
    rows = rows_of(vl, folder, ("a.jpg", "总里程：1公里"))
    dataset = vl.prompt.tokenize(rows, processor, 999, "rows")
    row = vl.prompt.with_pictures(dataset, "unsloth")[0]
    text = processor.apply_chat_template(row["messages"])
    assert text.count("<|image_pad|>") == 1 and text.endswith("<|im_start|>assistant\n总里程：1公里<|im_end|>\n")
    pad = "<|image_pad|>" * 72
    assert processor.tokenizer(text.replace("<|image_pad|>", pad)).input_ids == dataset["input_ids"][0]
    assert row["images"][0].size == (336, 168)


def test_rows_over_the_limit_are_named_and_never_cut(vl, folder, processor, capsys):
    rows = rows_of(vl, folder, ("a.jpg", COURSE[0] * 3), ("b.png", "总里程：1公里"))
    dataset = vl.prompt.tokenize(rows, processor, 150, "training rows")
    said = capsys.readouterr().out
    assert len(dataset) == 1 and "training rows: id 0: " in said and "1 of 2 rows are over --max_length 150" in said
    with pytest.raises(SystemExit, match="no row fits in --max_length 80"):
        vl.prompt.tokenize(rows, processor, 80, "training rows")


def test_the_cap_and_the_class_survive_saving(vl, processor, tiny, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2_5_VLProcessor"
    again = vl.model.load_processor(tmp_path)
    assert again.image_processor.size["longest_edge"] == CAP
    half = vl.model.load_processor(tmp_path, CAP // 4)
    assert half.image_processor(images=[picture()])["image_grid_thw"].prod() // 4 <= 18
    assert vl.model.load_processor(tiny, CAP).image_processor.size["longest_edge"] == CAP  # no cap leaks into the class


def args_for(vl, **flags):
    return vl.train.Args(**flags)


def test_lora_goes_where_it_is_sent(vl, model):
    import re

    def hit(**flags):
        pattern = re.compile(vl.train.lora_targets(args_for(vl, **flags)))
        return [name for name, _ in model.named_modules() if pattern.fullmatch(name)]

    every = hit()
    assert len(every) == 4 * 7 + 4 * 5 and not any("merger" in name or "lm_head" in name for name in every)
    assert sum("visual" in name for name in every) == 20
    language = hit(finetune_vision_layers=False)
    assert len(language) == 28 and not any("visual" in name for name in language)
    assert {name.rsplit(".")[-1] for name in hit(finetune_mlp_modules=False)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv",
        "proj",
    }
    with pytest.raises(SystemExit, match="nothing to train"):
        hit(finetune_vision_layers=False, finetune_language_layers=False)


def test_windows_at_once_are_qwens(vl):
    """An encoder of which every second block attends within windows, whole ones and those at the edges; two pictures."""
    import torch
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    sizes = dict(hidden_size=64, intermediate_size=96, num_heads=2, out_hidden_size=64)
    config = Qwen2_5_VLVisionConfig(depth=4, fullatt_block_indexes=[1, 3], window_size=112, **sizes)
    torch.manual_seed(0)
    encoder = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    grid = torch.tensor([[1, 20, 26], [1, 12, 24]])
    pixels = torch.randn(int(grid.prod(1).sum()), 1176)
    with torch.no_grad():
        theirs = encoder(pixels, grid_thw=grid).pooler_output
        vl.windows.attend_at_once(SimpleNamespace(model=SimpleNamespace(visual=encoder)))
        assert "forward" in vars(encoder.blocks[0].attn)
        torch.testing.assert_close(encoder(pixels, grid_thw=grid).pooler_output, theirs, rtol=1e-4, atol=1e-5)


# -- the miniature


@pytest.fixture(scope="module")
def two(vl, processor):
    """Two pictures with all their facts asked: pixels, ids, asked, whole."""
    import numpy
    import torch

    drawn = [vl.render.dashboard(random.Random(seed), difficulty=0.3) for seed in (11, 12)]
    rows = []
    for _, facts, _ in drawn:
        answer = "\n".join(f"{vl.fields.LABELS[name]} {value}" for name, value in vl.lessons.plain(facts).items())
        rows.append(vl.lessons.tokenize(processor.tokenizer, vl.prompt.PROMPT, answer, 180))
    ids, asked, whole = (torch.tensor([row[i] for row in rows]) for i in range(3))
    pixels = torch.from_numpy(numpy.stack([numpy.asarray(image) for image, _, _ in drawn]))
    return SimpleNamespace(
        pixels=pixels,
        glyphs=torch.zeros(2, 288, dtype=torch.long),
        ids=ids,
        asked=asked,
        whole=whole,
        images=[d[0] for d in drawn],
        facts=[d[1] for d in drawn],
        first=vl.miniature.picture_place(processor.tokenizer),
    )


def test_the_fast_path_is_qwens(vl, model, processor, two):
    """Patches, image features and the loss of pretrain.py against the processor's and the model's own."""
    import torch

    theirs = processor.image_processor(images=two.images, return_tensors="pt")
    assert torch.equal(vl.miniature.patches(two.pixels).flatten(0, 1), theirs["pixel_values"])
    place = torch.arange(two.ids.shape[1])
    labels = two.ids.masked_fill((place < two.asked[:, None]) | (place >= two.whole[:, None]), -100)
    with torch.no_grad():
        features = model.model.visual(theirs["pixel_values"], grid_thw=theirs["image_grid_thw"]).pooler_output
        torch.testing.assert_close(vl.miniature.see(model, two.pixels)[0].flatten(0, 1), features, rtol=1e-4, atol=1e-5)
        head = torch.nn.Linear(128, 3)
        ours, glyph_loss = vl.miniature.losses_of(
            model, head, two.pixels, two.glyphs, two.ids, two.asked, two.whole, two.first
        )
        theirs = model(
            input_ids=two.ids, attention_mask=(place < two.whole[:, None]).long(), labels=labels, **theirs,
            mm_token_type_ids=(two.ids == processor.image_token_id).int(),
        ).loss  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert 0.5 < glyph_loss < 3  # log 3, more or less: three classes, an untrained layer


def test_the_map_says_what_stands_where(vl):
    """Along the mileage's line the map has the mileage's digits in their order, and each stands on its patch's place."""
    import numpy

    for seed in range(40):
        drawn = vl.render.dashboard_and_glyphs(random.Random(seed), "train", 1.0)
        picture, glyphs, facts, kind = drawn
        plain, same, _ = vl.render.dashboard(random.Random(seed), "train", 1.0)
        assert plain.tobytes() == picture.tobytes() and same == facts
        lines = ["".join(vl.digits.GLYPHS[g - 1] if g else " " for g in row) for row in numpy.asarray(glyphs).tolist()]
        runs = {"".join(k for k, _ in itertools.groupby(line)).replace(" ", "") for line in lines}
        digits = str(facts["mileage"]) if kind != "drum" else f"{facts['mileage']:06d}"
        squeezed = "".join(k for k, _ in itertools.groupby(digits))
        assert any(squeezed in run for run in runs), (seed, squeezed, runs)
    grid = numpy.arange(288).reshape(12, 24)
    order = vl.lessons.in_order(grid)
    assert order[:5].tolist() == [0, 1, 24, 25, 2]  # the four patches of the first token, then the next one's first


@pytest.mark.slow
def test_it_learns_two_pictures_and_looks_at_them(vl, tiny, processor, two):
    """From random weights to both read exactly, through the fast path and through generate; exchanged, the answers change."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32)
    optimizer, tokenizer, first = torch.optim.AdamW(model.parameters(), 1e-3), processor.tokenizer, None
    head = torch.nn.Linear(128, 3)
    for _ in range(400):
        loss, _ = vl.miniature.losses_of(model, head, two.pixels, two.glyphs, two.ids, two.asked, two.whole, two.first)
        first = first or loss.item()
        if loss < 0.01:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert first > 4 and loss < 0.01
    model.eval()
    assert [
        vl.fields.parse(text) for text in vl.miniature.read(model, tokenizer, two.pixels, vl.prompt.PROMPT)
    ] == two.facts
    asked = [vl.prompt.PROMPT] * 2
    assert [
        vl.fields.parse(text) for text in vl.answers.generate(model, processor, two.images, asked, 60, 2, "hf")
    ] == two.facts
    turned = vl.answers.generate(model, processor, two.images[::-1], asked, 60, 2, "hf")
    assert [vl.fields.parse(text) for text in turned] == two.facts[::-1]


def test_lessons(vl, processor):
    rng, tokenizer = random.Random(0), processor.tokenizer
    asked = {question for question, _ in (vl.lessons.lesson(rng, FACTS) for _ in range(200))}
    assert asked == {*vl.lessons.ASKED.values(), vl.prompt.PROMPT, vl.lessons.WITH_COMMAS}
    row, start, end = vl.lessons.tokenize(tokenizer, vl.lessons.WITH_COMMAS, "528,915 公里", 150)
    assert tokenizer.decode(row[start:end]) == "528,915 公里<|im_end|>\n" and len(row) == 150
    row, start, end = vl.lessons.copying(rng, tokenizer, 150)
    word = row[start : end - 2]
    assert len(row) == 150 and len(word) > 5 and row[start - len(word) - 5 : start].count(word[0]) >= 1
    text = tokenizer.decode(row[:start])
    assert text.count("<|image_pad|>") == 72 and tokenizer.decode(word) in text
    with pytest.raises(ValueError, match="planned for"):
        vl.lessons.tokenize(tokenizer, "?", "5" * 200, 150)


def test_blocks_are_not_written_while_they_are_ready(vl, processor):
    lessons = vl.lessons.Lessons(processor.tokenizer, 150, 2, 3, 1, 0)
    try:
        rng, seen = random.Random(0), []
        for _ in range(6):
            block = lessons.take(rng, 1)
            held = lessons.ready[:]
            assert (
                len(held) == 1 and block["pixels"].shape == (2, 168, 336, 3) and (block["asked"] < block["whole"]).all()
            )
            seen.append(block["ids"].tobytes())
        assert lessons.drawn >= 2 and block["ids"].dtype.itemsize == 2
    finally:
        lessons.stop()


@pytest.mark.slow
def test_pretrain_makes_a_model_and_keeps_what_is_there(vl, script, tmp_path):
    out = tmp_path / "reader"
    flags = [
        "--out",
        out,
        "--shape",
        "tiny",
        "--max_steps",
        2,
        "--batch_size",
        4,
        "--pool",
        2,
        "--workers",
        1,
        "--eval_pictures",
        2,
        "--evaluations",
        1,
    ]
    script(TASK / "pretrain.py", *flags)
    made = json.loads((out / "pretrain.json").read_text())
    shipped = json.loads((TASK / "miniature" / "pretrain.json").read_text())
    assert set(made) == set(shipped) and set(made["arguments"]) == set(shipped["arguments"])
    assert made["last"]["step"] == 2 and made["last"]["pictures_seen"] == 8 and made["saved"]["test"]["documents"] == 2
    assert {"model.safetensors", "learning_curve.png", "metrics.jsonl", "processor_config.json"} <= {
        f.name for f in out.iterdir()
    }
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".reader")]
    assert vl.model.load_processor(out).image_processor.size["longest_edge"] == CAP
    again = script(TASK / "pretrain.py", *flags, check=False)
    assert again.returncode and "exists and is kept" in again.stderr


def test_the_command_that_makes_the_shipped_reader_again(vl):
    """Its tokenizer is built as the shipped one was, and the RESULTS pages' command sets what the shipped record says."""
    folder = TASK / "miniature"
    shipped, built = json.loads((folder / "tokenizer.json").read_text()), vl.miniature.build_tokenizer()
    assert json.loads(built.backend_tokenizer.to_str())["model"] == shipped["model"]
    said = json.loads((folder / "pretrain.json").read_text())["arguments"]
    command = "python pretrain.py --out reader --minutes 9 --workers 15"
    for file in ("RESULTS.md", "RESULTS.zh-CN.md", "pretrain.py"):
        assert command in (TASK / file).read_text("utf-8")
    args = vl.pretrain.parse(vl.pretrain.__file__, vl.pretrain.DEFAULTS, {}, vl.pretrain.Args, argv=command.split()[2:])
    assert {name: getattr(args, name) for name in said} == said | {"out": "reader"}


def test_the_shipped_reader_reads_what_it_has_never_seen(vl):
    """Fonts, layouts and segments that pretraining never drew. What is shipped is small and names no place of its maker's."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = TASK / "miniature"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    assert not [
        file.name for file in folder.glob("*.json") if '"/' in file.read_text() and file.name != "tokenizer.json"
    ]
    reader = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    drawn = [vl.render.dashboard(random.Random(f"shipped {n}"), "test") for n in range(20)]
    images, truth = [image for image, _, _ in drawn], [facts for _, facts, _ in drawn]
    said = vl.answers.generate(reader, vl.model.load_processor(folder), images, [vl.prompt.PROMPT] * 20, 60, 20, "hf")
    scores = vl.fields.score([vl.fields.parse(text) for text in said], truth)
    assert scores["fields"]["mileage"]["exact"] >= 0.9 and scores["document_exact"] >= 0.7, scores


# -- runs


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, tiny, tmp_path):
    """cp -r vl_insurance elsewhere; two steps of the demo, infer.py on a folder, evaluate.py: nothing else of the repo."""
    from safetensors.torch import load_file

    task = copied("vl_insurance")
    shown = script(
        task / "train.py", "--demo", "--model", tiny, "--overfit", 2, "--max_steps", 2, "--max_new_tokens", 4, "--show_mask", 1,
        "--lora_r", 4, "--save_steps", 2, "--eval_strategy", "no", "--load_best_model_at_end", "false",
        "--finetune_vision_layers", "true", "--finetune_mlp_modules", "true", "--logging_steps", 1,
    ).stdout  # fmt: skip
    (folder,) = (tmp_path / "outputs" / "vl_insurance").iterdir()
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja",
            "prompt.txt", "run.json", "metrics.jsonl", "loss.png", "checkpoint-2"} <= {f.name for f in folder.iterdir()}  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["arguments"]["max_pixels"] == CAP
    weights = load_file(folder / "adapter_model.safetensors")
    moved = [name for name, tensor in weights.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved) == 48 and sum("visual" in name for name in moved) == 20
    assert "a picture is 72 to 72 tokens" in shown and "⟦" in shown and "with the next row's picture" in shown

    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos" / "good.jpg")
    (tmp_path / "photos" / "bad.jpg").write_text("no picture")
    out = tmp_path / "facts.jsonl"
    said = script(
        task / "infer.py", "--image", tmp_path / "photos", "--json", "--out", out, "--max_new_tokens", 3
    ).stdout
    assert "bad.jpg: wrong format" in said
    (line,) = map(json.loads, out.read_text("utf-8").splitlines())
    assert Path(line["image"]).name == "good.jpg" and set(line["facts"]) == set(FACTS)

    said = script(task / "evaluate.py", "--limit", 2, "--max_new_tokens", 3).stdout
    assert "learned by heart" in said and "other's photo" in said
    results = folder / "evaluation_results"
    assert {"metrics.json", "predictions.jsonl", "report.html"} == {f.name for f in results.iterdir()}
    assert json.loads((results / "metrics.json").read_text())["tuned"]["documents"] == 2
    page = (results / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 and 'td class="missed"' in page and 'td class="wrong"' not in page
    refused = script(task / "evaluate.py", "--all", check=False)
    assert refused.returncode and "is what" in refused.stderr


@pytest.mark.slow
def test_the_demo_fine_tunes_the_reader(vl, copied, script, tmp_path):
    """The base reads held-out pictures and says so in a plain form; training begins to change the form."""
    task = copied("vl_insurance")
    said = script(
        task / "train.py",
        "--demo",
        "--max_steps",
        20,
        "--per_device_train_batch_size",
        4,
        "--show_answers",
        4,
        "--eval_rows",
        4,
    ).stdout
    assert "plan: 224 rows" in said
    losses = re.search(r"held-out loss: ([\d.]+) before, ([\d.]+) after", said)
    assert float(losses[2]) < 0.6 * float(losses[1])
    before, _ = (line for line in said.splitlines() if "answers to the letter" in line)
    assert "0 of 4 answers to the letter; mileage 1.00, all 6 facts 1.00" in before
    assert "1.00 say what that picture shows and 0.00 what they said before" in before
    (folder,) = (tmp_path / "outputs" / "vl_insurance").iterdir()
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(task / "miniature") and settings["r"] == 16
    other = script(task / "evaluate.py", "--eval_ratio", 0.5, check=False)  # the split is the run's, whatever one asks
    assert other.returncode and "unknown flag --eval_ratio" in other.stderr
    # As a folder of an older version: its record names no task, and a flag that is no more.
    record = json.loads((folder / "run.json").read_text())
    record["arguments"]["base_prompt"] = "全部？"
    older = {name: value for name, value in record.items() if name not in ("task", "stage", "started", "finished")}
    (folder / "run.json").write_text(json.dumps(older))
    script(task / "evaluate.py", "--limit", 4, "--seed", 7)
    measured = [json.loads(line)["id"] for line in (folder / "evaluation_results" / "predictions.jsonl").open()]
    held = vl.data.split(vl.data.read_rows(task / "sample")[0], 0.125, 42)[1]
    assert measured == [row["id"] for row in held[:4]]
    made = json.loads((folder / "evaluation_results" / "metrics.json").read_text())
    assert made["base"]["document_exact"] == 1 and made["tuned"]["documents"] == 4
    photo = task / "sample" / "images" / "0001.jpg"
    shown = script(task / "infer.py", "--image", photo, "--compare", "--max_new_tokens", 60).stdout
    base, tuned = shown.split("base: ")[1].split("tuned: ")
    assert base.startswith("总里程 ") and tuned.strip() != base.strip()
    (folder / "prompt.txt").unlink()  # as an adapter of another recipe
    other = script(task / "infer.py", "--image", photo, check=False)
    assert other.returncode and "was not trained by vl_insurance" in other.stderr


def test_what_was_and_what_was_not_learned_is_told_by_field(vl):
    row = "图片中的仪表盘显示：\n\n- **总里程**：107,904公里\n- **当前速度**：178公里/小时\n- **当前时间**：11:02\n- **当前温度**：6℃\n- **当前挡位**：D挡"
    shown = [{"response": row}, {"response": row}]
    before = {"answers": ["总里程 107904 公里，当前速度 178，当前时间 11:02，当前温度 7 ℃，当前挡位 D"] * 2}
    after = {"answers": [row, row.replace("107,904", "107,90").replace("6℃", "7℃").replace("11:02", "11:03")]}
    said = vl.answers.learned(before, after, shown)
    cells = {line.split("  ")[0]: line.split()[-7:] for line in said.splitlines() if " of 2" in line}
    assert cells["the whole answer"] == ["0", "of", "2", "1", "of", "2", "+1"]
    assert cells["mileage"] == cells["time"] == ["2", "of", "2", "1", "of", "2", "-1"]
    assert cells["temperature"] == ["0", "of", "2", "1", "of", "2", "+1"] and cells["gear"] == [
        "2",
        "of",
        "2",
        "2",
        "of",
        "2",
        "+0",
    ]
    assert said.endswith(
        "learned: the whole answer, temperature\nknown before, and kept: unit, speed, gear\n"
        "lost on the way: mileage, time"
    )


@pytest.mark.slow
def test_the_course_s_sheet_of_two_photos_is_trained_on(copied, script, tmp_path):
    """Its layout and its question, 你是一名汽车保险承保专家: read as they are, and one step moves the adapter."""
    import openpyxl

    task = copied("vl_insurance")
    rows = list(openpyxl.load_workbook(task / "sample" / "course" / "qwen-vl-train.xlsx").active.values)
    assert rows[0] == ("id", "prompt", "image", "response") and len(rows) == 3
    assert [row[2] for row in rows[1:]] == [f"images/{n}-vehicle-odometer-reading.jpg" for n in (1, 2)]
    small = (
        "--overfit",
        2,
        "--max_steps",
        1,
        "--warmup_steps",
        0,
        "--eval_steps",
        1,
        "--save_steps",
        1,
        "--max_new_tokens",
        4,
    )
    said = script(task / "train.py", "--demo", "--data", task / "sample" / "course", *small).stdout
    assert "2 rows, 2 kept" in said and "right on held-out pictures" in said
    (folder,) = (tmp_path / "outputs" / "vl_insurance").iterdir()
    assert (folder / "prompt.txt").read_text("utf-8") == rows[1][1] and rows[1][1].startswith(
        "你是一名汽车保险承保专家"
    )
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_the_report_marks_wrong_and_made_up_values(vl, folder):
    truth, read = FACTS | {"gear": None}, FACTS | {"mileage": 1, "speed": None}
    pair = {"id": "<1>", "image": str(folder / "a.jpg"), "truth": truth, "tuned_facts": read, "tuned": "<script>"}
    page = vl.evaluate.report({"tuned": vl.fields.score([read], [truth])}, [pair], {})
    assert page.count('td class="wrong"') == 2 and page.count('td class="missed"') == 1 and "<script>" not in page


def test_no_photo_keeps_its_place_in_the_control(vl):
    rows = [{"image": str(n)} for n in range(9)]
    order = vl.evaluate.exchanged(rows, 42)
    assert sorted(order) == [str(n) for n in range(9)] and all(
        row["image"] != other for row, other in zip(rows, order, strict=True)
    )


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        ("train.py", ["--data", "nowhere.xlsx"], "nowhere.xlsx: no such file"),
        pytest.param("train.py", ["--max_length", "80"], "no row fits in --max_length 80", marks=pytest.mark.slow),
        ("train.py", ["--padding_free", "true"], "TRL has it for text only"),
        ("infer.py", [], "--image: which photo"),
        ("infer.py", ["--image", "nowhere.jpg"], "nowhere.jpg: no such file"),
    ],
)
def test_bad_input_is_said_in_a_line_before_a_model_loads(script, file, arguments, said):
    demo = ["--demo"] if file == "train.py" else []
    done = script(TASK / file, *demo, *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def test_the_courses_settings(vl, script):
    defaults = vl.train.DEFAULTS
    assert (defaults["lora_r"], defaults["lora_alpha"], defaults["max_steps"], defaults["warmup_steps"]) == (
        16,
        16,
        30,
        5,
    )
    assert (
        defaults["per_device_train_batch_size"],
        defaults["gradient_accumulation_steps"],
        defaults["learning_rate"],
    ) == (2, 4, 2e-4)
    done = script(TASK / "train.py", "--config", TASK / "course.yaml", "--data", "nowhere.xlsx", check=False)
    assert "nowhere.xlsx: no such file" in done.stderr or "--backend unsloth needs an NVIDIA GPU" in done.stderr


def test_the_bench_needs_known_arms(script):
    done = script(ROOT / "bench" / "vl_speed.py", "--arms", "nonsense", check=False)
    assert done.returncode and "--arms: no nonsense" in done.stderr
