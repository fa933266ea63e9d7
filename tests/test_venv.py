"""tools/venv.sh with an index of our own: torch comes first and as it is, the rest only as the lock's hashes say."""

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def wheel(folder, name, needs="", version="1.0"):
    """A wheel with one module -> its digest."""
    info, path = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as made:
        for file, text in files.items():
            made.writestr(zipfile.ZipInfo(file), text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository with a small index, in which torch needs a package that the lock does not have, as CUDA's are."""
    home = tmp_path_factory.mktemp("venv")
    (home / "index").mkdir()
    (home / "tools").mkdir()
    shutil.copy(ROOT / "tools/venv.sh", home / "tools")
    wheel(home / "index", "torch", "Requires-Dist: cudathing\n")
    wheel(home / "index", "cudathing")
    digest = wheel(home / "index", "trl", "Requires-Dist: torch>=0.5\n")
    (home / "requirements-cpu.in").write_text("# pins\ntorch==1.0\ntrl==1.0\n")
    (home / "requirements-cpu.txt").write_text(f"# a lock\ntrl==1.0 \\\n    --hash=sha256:{digest}\n")
    return home


def run(home):
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(home / "index"), "PIP_NO_CACHE_DIR": "1"}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "HTTPS_PROXY": "http://127.0.0.1:9"}
    return subprocess.run(["bash", "tools/venv.sh"], cwd=home, env=environment, capture_output=True, text=True)


def installed(home):
    listed = [home / ".venv/bin/python", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    return set(subprocess.run(listed, capture_output=True, text=True).stdout.split())


@pytest.mark.slow
def test_torch_comes_first_and_a_changed_package_is_refused(made):
    done = run(made)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"torch==1.0", "cudathing==1.0", "trl==1.0"} <= installed(made) and (made / ".venv/.ready").is_file()
    assert "installing torch==1.0" in done.stdout
    again = run(made)  # with what torch brought along, which no hash is known of
    assert again.returncode == 0 and "installing torch" not in again.stdout, again.stdout + again.stderr

    subprocess.run([made / ".venv/bin/python", "-m", "pip", "uninstall", "-qy", "trl"], check=True)
    wheel(made / "index", "trl", "Requires-Dist: torch>=0.5\nSummary: another file under the same name\n")
    done = run(made)
    assert done.returncode == 1 and "DO NOT MATCH THE HASHES" in done.stderr, done.stdout + done.stderr
    assert "trl==1.0" not in installed(made)


@pytest.mark.slow
def test_a_new_pin_of_torch_is_installed(made):
    wheel(made / "index", "torch", version="1.1")
    (made / "requirements-cpu.in").write_text("torch==1.1\ntrl==1.0\n")
    (made / "requirements-cpu.txt").write_text("# a lock of nothing else\n")
    done = run(made)
    assert done.returncode == 0 and "torch==1.1" in installed(made), done.stdout + done.stderr


def test_every_package_of_the_laptops_lock_has_its_hashes():
    """Torch has none: it comes from another index on each system (tools/lock.sh)."""
    text = (ROOT / "requirements-cpu.txt").read_text()
    blocks = [block for block in text.replace(" \\\n", " ").splitlines() if block and not block.startswith("#")]
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    names = {block.split("==")[0] for block in blocks}
    assert "torch" not in names and {"transformers", "trl", "peft", "numpy"} <= names
