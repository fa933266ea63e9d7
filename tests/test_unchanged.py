"""Ids and labels of each recipe's sample by the demo model's tokenizer, as one number: whoever moves code sees here what it moves.

The numbers were taken before the folders got their prompt.py. Another number means that the model is trained on something
else: then say so in RESULTS.md, measure again, and put the new number here.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIGESTS = {  # sha256 of the demo's training rows, its first twelve digits
    "alpaca": "f51651db83dc",
    "medical": "35e86ce63888",
    "domain_mix": "cc6b0dc53679",
    "s1_scaling": "d437953e3632",
    "r1_grpo": "6fb0f2e19230",
    "vl_insurance": "2ddbe00d3918",
}
OLD_DEMO = {"s1_scaling": ["--model", "demo/SmolLM2-135M-Instruct", "--data", "sample", "--max_length", "512"]}
CODE = """
import json, sys
sys.path[0] = "."
from common import runs
import train
class Rows(BaseException): pass
def digest(args, config=None, dataset=None, *more, **named):
    raise Rows(runs.dataset_digest(dataset))
runs.Run = digest
try:
    train.main(["--demo", *sys.argv[1:]])
except Rows as rows:
    print(json.dumps(rows.args[0][:12]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", ["alpaca", "medical", "domain_mix", "s1_scaling", "r1_grpo", "vl_insurance"])
def test_ids_and_labels_are_what_they_were(task, environment, demo_model):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *OLD_DEMO.get(task, ())],
        cwd=ROOT / task,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == DIGESTS[task]
