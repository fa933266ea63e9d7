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


@pytest.fixture
def make(tmp_path):
    """Makes a bundle of a tiny task, with flags -> CompletedProcess."""
    (tmp_path / "index").mkdir()
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/requirements.txt").write_text(make_wheel(tmp_path / "index"))
    (tmp_path / "tiny/train.py").write_text("")
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}

    def run(*flags):
        command = [ROOT / "tools/bundle.sh", tmp_path / "tiny", "--python", VERSION, "--out", tmp_path / "made", *flags]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_it_removes_nothing_that_it_did_not_make(make, tmp_path):
    for name in ("made.part", "made.wheels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / "made.part.sums").write_text("mine")
    before = {file.name for file in tmp_path.iterdir()}
    assert make().returncode == 0
    assert {file.name for file in tmp_path.iterdir()} == before | {"made"}
    for file in ("made.part/mine.txt", "made.wheels/mine.txt", "made.part.sums"):
        assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize("where", ["rows", "tiny"])
@pytest.mark.parametrize("kind", ["file", "folder", "relative", "loop", "deep"])
def test_a_link_that_leads_out_is_named_and_nothing_is_made(make, tmp_path, where, kind):
    (tmp_path / "home/keys").mkdir(parents=True)
    (tmp_path / "home/id_rsa").write_text("secret")
    (tmp_path / "home/keys/id_rsa").write_text("secret")
    folder = tmp_path / where
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("a,b\n")
    link = folder / ("sub/link" if kind == "deep" else "link")
    targets = {"file": tmp_path / "home/id_rsa", "folder": tmp_path / "home", "relative": Path("../home/keys/id_rsa")}
    link.symlink_to({"loop": folder, "deep": Path("../../home/id_rsa")}.get(kind) or targets[kind])
    done = make(*(["--data", folder] if where == "rows" else []))
    assert done.returncode == 1 and f"{link} is a link to " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("made*"))


def test_links_inside_are_packed_as_files_and_env_files_are_not(make, tmp_path):
    rows = tmp_path / "rows"
    (rows / "2026").mkdir(parents=True)
    (rows / "2026/a.csv").write_text("a,b\n")
    (rows / "latest").symlink_to("2026")
    (rows / "a.csv").symlink_to(rows / "2026/a.csv")
    for private in (".env", "2026/.env.local"):
        (rows / private).write_text("HF_TOKEN=hf_secret\n")
    (tmp_path / "by-another-name").symlink_to(rows)  # the folder itself may be a link: it was named
    done = make("--data", tmp_path / "by-another-name")
    assert done.returncode == 0, done.stderr
    packed = {str(file.relative_to(tmp_path / "made/data/tiny")) for file in (tmp_path / "made/data/tiny").rglob("*")}
    assert packed == {"2026", "2026/a.csv", "latest", "latest/a.csv", "a.csv"}
    assert not [file for file in (tmp_path / "made").rglob("*") if file.is_symlink()]


def test_torch_comes_along_where_the_lock_leaves_it_to_its_own_index(make, tmp_path):
    lock = tmp_path / "tiny/requirements.txt"
    (tmp_path / "cpu.txt").write_text(lock.read_text())
    (tmp_path / "cpu.in").write_text("torch==2.13.0\ntinywheel==1.0\n")
    with zipfile.ZipFile(tmp_path / "index/torch-2.13.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch-2.13.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("torch-2.13.0.dist-info/WHEEL", tag)
    done = make("--lock", tmp_path / "cpu.txt")
    assert done.returncode == 0 and "2 wheels" in done.stderr, done.stderr
    digest = hashlib.sha256((tmp_path / "index/torch-2.13.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert f"torch==2.13.0 --hash=sha256:{digest}\n" in (tmp_path / "made/requirements.txt").read_text()


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
