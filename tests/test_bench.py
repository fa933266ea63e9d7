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


def test_ahead_trains_on_what_the_weights_of_the_update_before_have_sampled():
    sys.path.insert(0, str(ROOT / "bench"))
    import grpo_speed

    class Generation:
        weights, told = 0, 0

        def sync_weights(self):
            self.told = self.weights

        def generate(self, prompts):
            return prompts, self.told

    generation = Generation()
    ahead = grpo_speed.Ahead(generation)

    def update(prompts):
        generation.sync_weights()  # TRL does, before it asks; Ahead must not let it in the middle of a sampling
        made = generation.generate(prompts)
        generation.weights += 1
        return made

    assert [update("a"), update("b")] == [("a", 0), ("b", 1)]
    ahead.on = True
    assert [update("c"), update("d"), update("e")] == [("c", 2), ("c", 2), ("d", 3)]
