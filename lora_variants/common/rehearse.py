# Generated from common/rehearse.py: edit that file, then run `make sync`.
"""A long run in small, before its hours are paid for: what would fail late fails in the first minutes.

Each part is a process of its own, as later: two steps with the longest rows, a stop after the first of them, a second
process that goes on, an evaluation, and, where deploy/ is beside the folder, export and gate.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import screen
from common.files import read_json
from common.paths import TASK_DIR, check_disk, output_dir

STOPPED = 143  # 128 + SIGTERM
UNSURE = (0, 3, 6)  # the gate's: after two steps the update may be too small to be told from nothing


def rehearse(script, argv):
    """Rehearse the command `script argv`. Returns where everything went well; raises SystemExit with the part that did not.

    What it writes is taken away again, and kept where a part failed.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise SystemExit("--rehearse is for one GPU: start it with python, without a launcher.")
    check_disk(output_dir(), 1_000_000_000, "the rehearsal")
    folder = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=output_dir()))
    argv = sys.argv[1:] if argv is None else argv
    run, deploy, seconds = folder / "run", TASK_DIR.parent / "deploy", {}
    train = [script, *without(argv, "rehearse", "output_dir"), "--output_dir", run, "--longest_steps", 2, "--save_steps", 1,
             "--eval_steps", 1, "--eval_rows", 16, "--report_to", "none"]  # fmt: skip
    parts = [
        ("one step with the longest rows, and a checkpoint", [*train, "--stop_after", 1], [STOPPED]),
        ("the next step, by a new process from that checkpoint", train, [0]),
        ("evaluation", [Path(script).with_name("evaluate.py"), "--adapter", run, "--limit", 8], [0]),
    ]
    if (deploy / "export.py").is_file():
        files = folder / "export"
        parts += [
            ("export", [deploy / "export.py", run, "--to", "merged", "--out", files], [0]),
            ("gate", [deploy / "gate.py", run, "--files", files], UNSURE),
        ]
    for name, command, good in parts:
        screen.heading("rehearsal: {name}", name=name)
        began = time.time()
        code = subprocess.run([sys.executable, *map(str, command)]).returncode
        if code not in good:
            raise SystemExit(
                f"\nrehearsal: {name}: failed with exit code {code}, the reason stands above. Kept: {folder}"
            )
        seconds[name] = time.time() - began
    record = read_json(run / "run.json")
    peak = record.get("peak_gb", record.get("peak_gb_process"))
    shutil.rmtree(folder)
    print("\nrehearsed, and nothing failed:")
    for name, taken in seconds.items():
        print(f"  {taken:6.0f} s  {name}")
    print(f"Peak memory with the longest rows: {peak} GB. The same command without --rehearse is the run.")
    if len(parts) == 3:
        print("Export and gate were not rehearsed: the repository's folder deploy/ is not beside this one.")


def without(argv, *names) -> list[str]:
    """A command line without some flags and their values."""
    kept, skip = [], False
    for word in argv:
        flag = word.startswith("--")
        skip = word.split("=")[0][2:].replace("-", "_") in names if flag else skip
        if not skip:
            kept.append(word)
        skip = skip and not (flag and "=" in word)
    return kept
