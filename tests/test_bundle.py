"""tools/bundle.sh: a folder is made, carried off, checked, installed without an index and trained from."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERSION = "{}.{}".format(*sys.version_info[:2])


def make_wheel(folder):
    """A real wheel of one module -> its line in a lock."""
    files = {
        "tinywheel.py": "ANSWER = 42\n",
        "tinywheel-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\n",
        "tinywheel-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files["tinywheel-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    path = folder / "tinywheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return f"tinywheel==1.0 \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


TRAIN = "import os, sys, tinywheel\nprint(tinywheel.ANSWER, sys.argv[1:], os.environ['DATA_DIR'], os.environ['HF_HUB_OFFLINE'])\n"


@pytest.fixture
def bundle(tmp_path):
    """A bundle of a tiny task, moved to another place after it was made."""
    (tmp_path / "index").mkdir()
    task = tmp_path / "tiny"
    for name, text in {
        "train.py": TRAIN,
        "requirements.txt": make_wheel(tmp_path / "index"),
        ".env": "HF_TOKEN=hf_secret\n",
        "outputs/run/run.json": "{}",
        "__pycache__/train.pyc": "",
        "data/own.csv": "a",
        "common/data/kept.txt": "of the folders named data, only the task's own stays behind",
    }.items():
        (task / name).parent.mkdir(parents=True, exist_ok=True)
        (task / name).write_text(text)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/数据.csv").write_text("question,answer\n", "utf-8")
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}
    command = [
        ROOT / "tools/bundle.sh",
        task,
        "--python",
        VERSION,
        "--data",
        tmp_path / "rows",
        "--out",
        tmp_path / "made",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 wheels" in done.stderr
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 1 and "is there already" in again.stderr
    shutil.rmtree(tmp_path / "index")
    return (tmp_path / "made").rename(tmp_path / "usb stick")


def run(bundle, *arguments):
    """run.sh where pip reaches no index."""
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "HTTPS_PROXY": "http://127.0.0.1:9"}
    for name in ("DATA_DIR", "MODELS_DIR", "OUTPUT_DIR"):
        environment.pop(name, None)
    return subprocess.run(["bash", bundle / "run.sh", *arguments], env=environment, capture_output=True, text=True)


def test_a_bundle_holds_the_task_and_nothing_private(bundle):
    files = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    assert files == {
        "SHA256SUMS",
        "data/tiny/数据.csv",
        "doctor.py",
        "python-version",
        "requirements.txt",
        "run.sh",
        "task",
        "tiny/common/data/kept.txt",
        "tiny/requirements.txt",
        "tiny/train.py",
        "wheels/tinywheel-1.0-py3-none-any.whl",
    }


@pytest.mark.slow
def test_it_is_checked_installed_and_trained_from_without_a_network(bundle):
    done = run(bundle, "--max_steps", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"42 ['--max_steps', '3'] {bundle}/data 1\n"
    (bundle / "wheels/tinywheel-1.0-py3-none-any.whl").unlink()  # it is installed, and not installed again
    assert run(bundle, "python", "-c", "import tinywheel; print(tinywheel.ANSWER)").stdout == "42\n"
    unknown = run(bundle, "trian")
    assert unknown.returncode == 1 and "unknown verb 'trian'" in unknown.stderr


@pytest.mark.parametrize("file", ["wheels/tinywheel-1.0-py3-none-any.whl", "tiny/train.py", "data/tiny/数据.csv"])
def test_one_changed_byte_stops_it_before_anything_is_installed(bundle, file):
    content = bytearray((bundle / file).read_bytes())
    content[-1] ^= 1
    (bundle / file).write_bytes(content)
    done = run(bundle)
    assert done.returncode == 1 and f"./{file}: FAILED" in done.stderr.replace("\\", "")
    assert "copy them again. Nothing was installed." in done.stderr and not (bundle / "venv").exists()


def test_a_file_that_was_lost_on_the_way_is_named(bundle):
    (bundle / "tiny/train.py").unlink()
    done = run(bundle)
    assert done.returncode == 1 and "./tiny/train.py: FAILED open or read" in done.stderr


def test_the_wrong_python_is_said(bundle):
    (bundle / "python-version").write_text("3.99\n")
    lines = (bundle / "SHA256SUMS").read_text("utf-8").splitlines()
    (bundle / "SHA256SUMS").write_text("".join(f"{x}\n" for x in lines if "python-version" not in x), "utf-8")
    done = run(bundle)
    assert done.returncode == 1 and "the wheels are for Python 3.99" in done.stderr


def test_a_wheel_that_cannot_be_had_leaves_no_bundle(tmp_path):
    (tmp_path / "lock.txt").write_text("tinywheel==1.0\n")
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    command = [ROOT / "tools/bundle.sh", "medical", "--lock", tmp_path / "lock.txt", "--out", tmp_path / "made"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "could not fetch every wheel" in done.stderr and not (tmp_path / "made").exists()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck")
def test_shellcheck():
    scripts = [*ROOT.glob("tools/*.sh"), *ROOT.glob("docker/**/*.sh")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
