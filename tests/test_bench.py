"""The benches' own arithmetic; what they measure needs a GPU or an idle machine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_speed_table_compares_within_a_machine(tmp_path):
    results = json.loads((ROOT / "bench/results/sft_speed.json").read_text())
    assert {"course", "same_updates", "fast", "fast_24gb"} <= {row["name"] for row in results}
    for row in results:
        assert {"samples_per_s", "tokens_per_s", "peak_gb", "mfu", "loss"} <= set(row)
    (tmp_path / "speed.json").write_text(json.dumps(results))
    command = [sys.executable, ROOT / "bench/sft_speed.py", "--plot", "--out", tmp_path / "speed.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    course = {row["machine"]: row["samples_per_s"] for row in results if row["name"] == "course"}
    for row in results:
        assert f"| {row['name']} | {row['samples_per_s']} |" in done.stdout
        if row["name"] != "course":
            assert f"| {row['samples_per_s'] / course[row['machine']]:.1f} |" in done.stdout
