"""What a run says: in the person's language, one line per logged step, aligned; and that training does not notice."""

import ast
import io
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import screen  # noqa: E402

NAMES = ("LC_ALL", "LC_MESSAGES", "LANG")
ASKED = ("text", "heading", "bar", "label")  # functions of screen whose first argument is English to be found


@pytest.fixture
def speak(monkeypatch):
    """Sets the locale."""

    def to(lang):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LANG", lang)

    return to


def sources():
    """Scripts and common/, without the copies and without the table itself."""
    files = [file for file in ROOT.glob("*/*.py") if file.parent.name not in ("tests", "tools")]
    return [file for file in files if file != ROOT / "common" / "screen.py"]


def fields(text):
    return sorted((name, how, shape) for _, name, how, shape in string.Formatter().parse(text) if name is not None)


def test_both_languages_have_the_same_values():
    for english, chinese in screen.CHINESE.items():
        assert fields(english) == fields(chinese), english
        assert re.findall(r"--\w+", english) == re.findall(r"--\w+", chinese) or len(re.findall("--", chinese)) > 1
        assert re.search("[\u4e00-\u9fff]|token/秒", chinese), english


def test_every_english_text_occurs_in_the_code():
    said = set(screen.COLUMNS.values())
    for file in [*sources(), ROOT / "common" / "screen.py"]:
        tree = ast.parse(file.read_text("utf-8"))
        table = next((node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "CHINESE"
                      if isinstance(node.targets[0], ast.Name)), None) if file.name == "screen.py" else None  # fmt: skip
        within = set(map(id, ast.walk(table))) if table else set()
        said |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within
        }
    # report.show is given names by its callers
    assert set(screen.CHINESE) - said == set()


def test_every_text_that_is_asked_for_has_its_chinese():
    lacks = []
    for file in [*sources(), ROOT / "common" / "screen.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = ast.unparse(node.func)
                ours = name in [f"screen.{each}" for each in ASKED] or (file.name == "screen.py" and name in ASKED)
                if ours and node.args[0].value not in screen.CHINESE:
                    lacks.append(f"{file.relative_to(ROOT)}:{node.lineno}: {node.args[0].value}")
    names = {"PPO", "GRPO"}  # as they are in both languages
    assert [each for each in lacks if each.split(": ", 1)[1] not in names] == []


@pytest.mark.parametrize(
    ("set_to", "lang"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
    ],
)
def test_the_locale_decides_the_language(monkeypatch, set_to, lang):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert screen.language() == lang


def printed(capsys, steps, logs):
    for step, metrics, speed in logs:
        steps.log(step, metrics, speed)
    return capsys.readouterr().out.splitlines()


LOGS = [
    (0, {"eval_loss": 3.4}, None),
    (9, {"loss": 2.5, "grad_norm": 1.25, "mean_token_accuracy": 0.5, "entropy": 1.0}, 1234.5),
    (10, {"loss": 12.5, "grad_norm": 11.25, "learning_rate": 1e-4}, 12.0),
    (12, {"train_runtime": 3.0, "train_loss": 2.0}, None),
]


def test_a_line_for_each_log_is_aligned_and_tells_what_matters(capsys, speak):
    speak("C.UTF-8")
    start, nine, ten = printed(capsys, screen.Steps("training", 120), LOGS)
    assert start == "step   0/120  held-out loss  3.400"
    assert nine.startswith("step   9/120  loss  2.500  gradient  1.25   1,234 tok/s  00:0") and "left" in nine
    assert "accuracy" not in nine and "entropy" not in nine
    assert [nine.index(word) for word in ("loss", "gradient", "tok/s")] == [
        ten.index(word) for word in ("loss", "gradient", "tok/s")
    ]
    assert screen.width(nine) <= 80


def test_chinese_lines_are_aligned_where_a_character_takes_two_columns(capsys, speak):
    speak("zh_CN.UTF-8")
    _, nine, ten = printed(capsys, screen.Steps("training", 120), LOGS)
    assert nine.startswith("第   9/120 步  损失  2.500  梯度  1.25   1,234 token/秒  剩余 ")
    ends = [screen.width(line[: line.index("token/秒")]) for line in (nine, ten)]
    assert ends[0] == ends[1]
    assert screen.width("损失 1") == 6


def test_where_a_reward_is_the_loss_is_not_shown(capsys, speak):
    speak("C")
    log = {"reward": 1.5, "loss": 0.01, "grad_norm": 0.2, "accuracy": 0.25, "completions/mean_length": 23.4, "kl": 0.011,
           "frac_reward_zero_std": 0.5}  # fmt: skip
    (line,) = printed(capsys, screen.Steps("GRPO", 80), [(7, log, 99)])
    assert line.startswith(
        "step  7/80  reward  1.50  accuracy 25%  length   23  KL  0.011  dead groups  50%      99 tok"
    )


@pytest.mark.parametrize("lang", ["C.UTF-8", "zh_CN.UTF-8"])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_on_a_terminal_no_line_is_wider_than_it(monkeypatch, speak, lang, columns):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    speak(lang)
    screen_out = Terminal()
    monkeypatch.setattr(sys, "stdout", screen_out)
    monkeypatch.setenv("COLUMNS", str(columns))
    log = {"reward": 1.5, "accuracy": 0.25, "completions/mean_length": 23.4, "kl": 0.011, "frac_reward_zero_std": 0.5}
    screen.Steps("GRPO", 250).log(7, log, 1234)
    (line,) = screen_out.getvalue().splitlines()
    assert screen.width(line) < columns and ("left" in line or "剩余" in line), line
    assert (columns == 60 or "23" in line) and ("KL" in line) == (columns == 120)


def test_the_price_is_said_with_the_time(capsys, speak):
    speak("C")
    (line,) = printed(capsys, screen.Steps("training", 100, price=2.5), [(50, {"loss": 1.0}, None)])
    assert line.endswith("left, 0.00 at 2.5 per hour")


def test_bars_are_for_terminals_only(speak):
    """A log file has no carriage return, neither of our bars nor of the libraries'."""
    code = (
        "from types import SimpleNamespace\n"
        "from common import screen, tokens\n"
        "import datasets\n"
        "rows = datasets.Dataset.from_dict({'input_ids': [[1, 2]], 'labels': [[-100, 2]]})\n"
        "tokens.show_mask(rows, SimpleNamespace(decode=str), 1)\n"
        "with screen.bar('held-out loss', 3, ' tokens') as bar: bar.update(3)\n"
        "datasets.Dataset.from_dict({'a': [1, 2]}).map(lambda row: row, desc='tokenizing')\n"
        "screen.heading('data')\n"
        "screen.Steps('training', 3).log(1, {'loss': 1.0})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and done.stderr == ""
    assert done.stdout.startswith("[1]⟦[2]⟧\n-- 1 of 2 tokens are trained on (50%)\n\n\n== data (")  # no colours
    assert re.search(r"\n== data \(\d+ s\)\nstep 1/3  loss  1.000  00:0", done.stdout), done.stdout


def test_errors_are_said_in_chinese(speak, tmp_path):
    def said(lang, *command):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | {"LC_ALL": lang, "OUTPUT_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
        )  # fmt: skip
        assert done.returncode
        return done.stderr.strip()

    assert (
        said("zh_CN.UTF-8", "alpaca/train.py", "--dataa", "x")
        == "train.py: 错误：没有 --dataa 这个参数；是不是 --data？"
    )
    assert (
        said("C.UTF-8", "alpaca/train.py", "--dataa", "x")
        == "train.py: error: unknown flag --dataa; did you mean --data?"
    )
    assert said("zh_CN.UTF-8", "medical/infer.py") == (
        f"{tmp_path / 'medical'} 里没有训练完的运行：请先运行 train.py，或指定文件夹。"
    )


@pytest.mark.slow
def test_training_does_not_notice_that_it_is_watched(tmp_path):
    """The step-0 evaluation draws random numbers; afterwards they are as before, and so is every loss."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True 4 0"
    assert "{" not in done.stdout  # the libraries' dictionaries
    assert re.findall(r"^step (\d)/4  (loss|held-out loss) ", done.stdout, re.M) == [
        ("0", "held-out loss"), *((str(n), "loss") for n in (1, 2, 3, 4)), ("4", "held-out loss")
    ]  # fmt: skip


WATCHED = """
import sys, types, torch
from pathlib import Path
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
sys.path.insert(0, "")
from common import runs

class Rows(Dataset):
    def __init__(self): self.rows = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    def __len__(self): return 16
    def __getitem__(self, i): return {"x": self.rows[i], "labels": self.rows[i].sum()}

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop = torch.nn.Linear(4, 1), torch.nn.Dropout(0.5)
    def forward(self, x, labels):
        loss = ((self.layer(self.drop(x))[:, 0] - labels) ** 2).mean()
        return {"loss": loss, "logits": x}

def weights(folder, watched):
    torch.manual_seed(0)
    args = TrainingArguments(output_dir=str(folder), max_steps=4, logging_steps=1, eval_strategy="steps" if watched else "no", eval_steps=10,
        per_device_train_batch_size=4, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        learning_rate=0.1)
    trainer = Trainer(model=Net(), args=args, train_dataset=Rows(), eval_dataset=Rows() if watched else None)
    if not watched:
        runs.quiet(trainer)
        trainer.train()
        return trainer.model.layer.weight
    run = types.SimpleNamespace(checkpoint=None, trainer=trainer, stage="", price=None, progress={}, main=True, config=args,
        world=1, stop=None, stop_after=None, log=lambda step, logs: lines.append((step, logs)), folder=folder)
    runs.quiet(trainer)
    trainer.add_callback(runs.Recorder(run))
    trainer.train()
    return trainer.model.layer.weight

lines, folder = [], Path(sys.argv[1])
plain = weights(folder / "a", False)
watched = weights(folder / "b", True)
train = [logs for step, logs in lines if "loss" in logs]
start = [step for step, logs in lines if "eval_loss" in logs]
print(torch.equal(plain, watched), len(train), *start[:1])
"""
