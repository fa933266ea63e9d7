"""Records `make demo` for the root READMEs:  make record  (minutes: the demo itself)

    python tools/record.py                  # runs it, writes course/figures/demo.cast and demo.gif
    python tools/record.py --lang zh        # with a Chinese screen: demo.zh-CN.cast and demo.zh-CN.gif
    python tools/record.py --draw           # draws the pictures again from the .cast files
    python tools/record.py --command "..."  # another command

A pseudo-terminal runs the command; what it prints, and when, is kept as it came (asciicast v2, which asciinema plays at its
real speed), but for the path of this repository, which becomes HOME. The picture shortens waiting: no pause longer than PAUSE, and at most LONGEST seconds in all.
"""

import argparse
import codecs
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "course" / "figures"
COLUMNS, ROWS = 112, 30
PAUSE, LONGEST, FRAME, END = 0.8, 75, 0.08, 5  # seconds: a pause, the whole picture, the shortest frame, the last one
HOME = "~/recipes"
SIZE = 14  # of the letters, in pixels
# Solarized-like: terminals' eight colours and their bright forms, as pyte names them.
COLOURS = {"default": "#d8dee9", "black": "#3b4252", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef",
           "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#eceff4", "brightblack": "#7d8797"}  # fmt: skip
PAPER = "#20242c"
CJK = ["/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc", "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
       "/System/Library/Fonts/PingFang.ttc", "C:/Windows/Fonts/msyh.ttc"]  # fmt: skip


def record(command, file, lang="en"):
    """Run a shell command in a pseudo-terminal; write what it prints to an asciicast file. Returns its seconds."""
    dropped = ("OUTPUT_DIR", "MODELS_DIR", "DATA_DIR", "MAKEFLAGS", "MAKELEVEL", "LANGUAGE", "LC_ALL", "LC_MESSAGES")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    environment["LANG"] = "zh_CN.UTF-8" if lang == "zh" else "C.UTF-8"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    events = [[0.0, "o", f"$ {command}\r\n"]]
    start, decoder = time.monotonic(), codecs.getincrementaldecoder("utf-8")("replace")
    with subprocess.Popen(command, shell=True, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=theirs,
                          stderr=theirs, start_new_session=True) as child:  # fmt: skip
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 65536) if select.select([ours], [], [], 1)[0] else None
            except OSError:  # Linux says so when the other end is closed
                break
            if data == b"":
                break
            if data and (text := decoder.decode(data)):
                events.append([round(time.monotonic() - start, 3), "o", text.replace(str(ROOT), HOME)])
                sys.stdout.write(text)
                sys.stdout.flush()
    os.close(ours)
    if child.returncode:
        raise SystemExit(f"{command}: exit status {child.returncode}; nothing was written")
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": command, "env": {"TERM": "xterm-256color"}}
    lines = [json.dumps(each, ensure_ascii=False) for each in (header, *events)]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return time.monotonic() - start


def schedule(times):
    """Times of the events in the picture: pauses shortened, then all of it, if it is still too long."""
    made, now, before = [], 0.0, 0.0
    for at in times:
        now, before = now + min(at - before, PAUSE), at
        made.append(now)
    stretch = min(1.0, LONGEST / now) if now else 1.0
    return [at * stretch for at in made]


def screens(events):
    """[(seconds, screen as rows of (text, colour, bold))] of the frames, each shown for its seconds."""
    import pyte

    terminal = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(terminal)
    times, shown = schedule([event[0] for event in events]), []
    for at, (_, _, text) in zip(times, events, strict=True):
        stream.feed(text)
        rows = []
        for row in range(ROWS):
            line = terminal.buffer[row]
            rows.append(tuple((line[x].data, line[x].fg, line[x].bold) for x in range(COLUMNS)))
        if shown and at - shown[-1][0] < FRAME:
            shown[-1] = (shown[-1][0], rows)
        elif not shown or rows != shown[-1][1]:
            shown.append((at, rows))
    ends = [at for at, _ in shown[1:]] + [shown[-1][0] + END]
    return [(end - at, rows) for (at, rows), end in zip(shown, ends, strict=True)]


def draw(cast, picture):
    """Draw an asciicast file as an animated GIF. Returns (seconds that it shows, seconds that it took)."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    lines = [json.loads(line) for line in cast.read_text("utf-8").splitlines()]
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # matplotlib brings DejaVu
    fonts = [ImageFont.truetype(folder / f"DejaVuSansMono{bold}.ttf", SIZE) for bold in ("", "-Bold")]
    wide = next((ImageFont.truetype(file, SIZE) for file in CJK if Path(file).is_file()), None)
    if not wide and any(ord(letter) > 0x2E80 for line in lines[1:] for letter in line[2]):
        raise SystemExit(f"no font with Chinese characters: {' '.join(CJK)}. On Debian: apt install fonts-wqy-microhei")
    width, height = fonts[0].getlength("m"), SIZE + 4
    palette = Image.new("P", (1, 1))
    colours = [PAPER, *COLOURS.values()]
    steps = [tuple(int(each[at : at + 2], 16) for at in (1, 3, 5)) for each in colours]
    mixed = [tuple(round(p + (c - p) * share) for p, c in zip(steps[0], colour, strict=True))
             for colour in steps[1:] for share in (0.5, 1)]  # letters' edges  # fmt: skip
    palette.putpalette([value for colour in (steps[0], *mixed) for value in colour])
    pictures, lasting = [], []
    for seconds, rows in screens(lines[1:]):
        image = Image.new("RGB", (round(width * COLUMNS) + 16, height * ROWS + 16), PAPER)
        canvas = ImageDraw.Draw(image)
        for y, row in enumerate(rows):
            for x, (letter, colour, bold) in enumerate(row):
                if letter.strip():
                    font = wide if wide and ord(letter[0]) > 0x2E80 else fonts[bool(bold)]
                    colour = COLOURS.get(colour) or COLOURS.get(colour.removeprefix("bright"), COLOURS["default"])
                    canvas.text((8 + x * width, 8 + y * height), letter, font=font, fill=colour)
        pictures.append(image.quantize(palette=palette, dither=Image.Dither.NONE))
        lasting.append(round(seconds * 1000))
    pictures[0].save(
        picture, save_all=True, append_images=pictures[1:], duration=lasting, loop=0, optimize=False, disposal=1
    )
    return sum(lasting) / 1000, lines[-1][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", default="make demo")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the recorded screen")
    parser.add_argument("--draw", action="store_true", help="draw the .cast files that there are, record nothing")
    parser.add_argument(
        "--out", type=Path, default=FIGURES, help="folder of demo.cast and demo.gif (default: course/figures)"
    )
    args = parser.parse_args()
    cast = args.out / ("demo.zh-CN.cast" if args.lang == "zh" else "demo.cast")
    if not args.draw:
        record(args.command, cast, args.lang)
    for file in sorted(args.out.glob("demo*.cast")) if args.draw else [cast]:
        shown, took = draw(file, file.with_suffix(".gif"))
        size = file.with_suffix(".gif").stat().st_size / 1e6
        print(f"{file.with_suffix('.gif')}: {size:.2f} MB, {took:.0f} s shown in {shown:.0f} s")


if __name__ == "__main__":
    main()
