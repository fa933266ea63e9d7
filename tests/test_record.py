"""The recording of `make demo`: kept as it came, shortened in the picture, and as long as the READMEs say."""

import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyte", reason="no pyte in .venv: make record installs it")
if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import record  # noqa: E402
from PIL import Image  # noqa: E402

SCRIPT = """
import os, sys, time
print(sys.stdout.isatty(), *os.get_terminal_size(), os.environ["LANG"], "OUTPUT_DIR" in os.environ, flush=True)
for share in range(4):
    print(f"\\r{share}/3", end="", flush=True)
    time.sleep(0.2)
print("\\n\\033[32mgreen\\033[0m")
print("in", sys.argv[1])
"""


def lines(cast):
    return [json.loads(line) for line in cast.read_text("utf-8").splitlines()]


def seconds(picture):
    image, shown = Image.open(picture), 0
    for frame in range(image.n_frames):
        image.seek(frame)
        shown += image.info["duration"]
    return shown / 1000


def test_pauses_are_shortened_and_the_whole_is_not_too_long():
    assert record.schedule([0, 1, 20, 20.25]) == pytest.approx(
        [0, record.PAUSE, 2 * record.PAUSE, 2 * record.PAUSE + 0.25]
    )
    long = record.schedule([at * 0.5 for at in range(1000)])
    assert long[-1] == pytest.approx(record.LONGEST) and long == sorted(long)


def test_a_command_is_recorded_as_in_a_terminal_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    (tmp_path / "say.py").write_text(SCRIPT)
    cast = tmp_path / "demo.cast"
    took = record.record(f"{sys.executable} {tmp_path / 'say.py'} {ROOT}", cast, "zh")
    header, *events = lines(cast)
    assert header["version"] == 2 and (header["width"], header["height"]) == (record.COLUMNS, record.ROWS)
    text = "".join(event[2] for event in events)
    assert f"True {record.COLUMNS} {record.ROWS} zh_CN.UTF-8 False\r\n" in text and "\r0/3\r1/3\r2/3\r3/3" in text
    assert f"in {record.HOME}\r\n" in text
    times = [event[0] for event in events]
    assert times == sorted(times) and 0.8 <= times[-1] <= took
    shown, real = record.draw(cast, tmp_path / "demo.gif")
    assert real == times[-1] and shown == pytest.approx(seconds(tmp_path / "demo.gif"), abs=0.2)
    screen = record.screens(events)[-1][1]
    rows = ["".join(letter for letter, *_ in row).rstrip() for row in screen]
    assert "3/3" in rows and "green" in rows and ("g", "green", False) in screen[rows.index("green")]
    image = Image.open(tmp_path / "demo.gif")
    image.seek(image.n_frames - 1)
    assert image.n_frames >= 4 and (0x98, 0xC3, 0x79) in {colour for _, colour in image.convert("RGB").getcolors(9999)}


def test_a_command_that_fails_leaves_the_recording_alone(tmp_path):
    cast = tmp_path / "demo.cast"
    cast.write_text("before")
    with pytest.raises(SystemExit, match="exit status 3; nothing was written"):
        record.record("exit 3", cast)
    assert cast.read_text() == "before"


@pytest.mark.parametrize("end", ["", ".zh-CN"])
def test_the_readme_shows_the_recording_and_says_how_long_it_was(end):
    cast, picture = (record.FIGURES / f"demo{end}.{kind}" for kind in ("cast", "gif"))
    readme = (ROOT / f"README{end}.md").read_text("utf-8")
    header, *events = lines(cast)
    assert header["title"] == "make demo" and picture.stat().st_size <= 1.5e6 and seconds(picture) <= 120
    assert not re.search(r"(?<![\w~.])/(?:home|root|work|Users)/", "".join(event[2] for event in events))
    said = re.search(r"`make demo`[^\n]*?(\d+) (?:s,|秒)[^\n]*?(\d+) (?:s|秒)", readme)
    assert f"(course/figures/{picture.name})" in readme and f"(course/figures/{cast.name})" in readme
    assert int(said[1]) == round(events[-1][0]) and int(said[2]) == round(seconds(picture))
