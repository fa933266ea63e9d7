"""tools/lock_check.py on a small repository in which one thing at a time goes wrong."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("lock_check", ROOT / "tools/lock_check.py")
lock_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock_check)

FILES = {
    "requirements-cpu.in": "torch==2.13.0\ntrl==1.14.2\n",
    "requirements-cpu.txt": "numpy==2.4.6 ; python_full_version < '3.12'\nnumpy==2.5.5 ; python_full_version >= '3.12'\n"
    "torch==2.13.0\ntrl==1.14.2\n",
    "requirements-site.in": "zensical==0.0.73\n",
    "requirements-site.txt": "numpy==2.5.5\nzensical==0.0.73\n",
    "medical/requirements.in": "# by hand\ntorch==2.11.0\ntrl==1.14.2\nunsloth_zoo==2026.10.7\n",
    "medical/requirements.txt": "rich==15.0.0 \\\n    --hash=sha256:00\ntorch==2.11.0 \\\n    --hash=sha256:01 \\\n"
    "    --hash=sha256:02\ntrl==1.14.2 \\\n    --hash=sha256:03\nunsloth-zoo==2026.10.7 \\\n    --hash=sha256:04\n",
    "medical/requirements-cu128.txt": "rich==15.0.0\ntorch==2.10.0\ntrl==1.14.2\nunsloth-zoo==2026.10.7\n",
    "r1_grpo/requirements.in": "trl==1.14.2\n",
    "r1_grpo/requirements.txt": "trl==1.14.2\n",
}


@pytest.fixture
def repository(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "locks"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    "file, old, new, problem",
    [
        ("medical/requirements.txt", "rich==15.0.0", "rich==15.1.0", None),
        ("medical/requirements.txt", "rich==15.0.0", "rich==9.9.0", "rich went down from 15.0.0 to 9.9.0"),
        ("medical/requirements.txt", "trl==1.14.2", "trl==1.15.0", "trl 1.15.0, pinned 1.14.2: make lock"),
        ("medical/requirements.txt", "unsloth-zoo==2026.10.7", "other==1", "unsloth-zoo is missing, pinned 2026.10.7: make lock"),
        ("medical/requirements-cu128.txt", "torch==2.10.0", "torch==2.11.0", None),  # newer than before, as pinned
        ("medical/requirements-cu128.txt", "torch==2.10.0", "torch==2.12.0", "torch 2.12.0, pinned 2.11.0: make lock"),
        ("medical/requirements-cu128.txt", "torch==2.10.0", "torch==2.9.1", "torch went down from 2.10.0 to 2.9.1"),
        ("requirements-cpu.txt", "numpy==2.4.6", "numpy==2.4.5", "numpy went down from 2.5.5 to 2.4.5"),
        ("requirements-site.txt", "zensical==0.0.73", "zensical==0.0.74", "zensical 0.0.74, pinned 0.0.73: make lock"),
        ("requirements-site.txt", "numpy==2.5.5", "numpy==2.5.6", "numpy 2.5.6, but requirements-cpu.txt has 2.5.5: make lock"),
        ("requirements-cpu.txt", "torch==2.13.0", "torch==2.14.0", "torch 2.14.0, pinned 2.13.0: make lock"),
    ],
)  # fmt: skip
def test_what_a_new_lock_may_not_do(repository, file, old, new, problem):
    assert lock_check.check(repository) == []
    text = (repository / file).read_text()
    assert old in text
    (repository / file).write_text(text.replace(old, new))
    assert lock_check.check(repository) == ([f"{file}: {problem}"] if problem else [])


def test_a_pin_is_the_same_in_every_recipe(repository):
    for name in ("requirements.in", "requirements.txt"):
        (repository / "r1_grpo" / name).write_text("trl==1.15.0\n")
    assert lock_check.check(repository) == ["r1_grpo/requirements.in: trl==1.15.0, but requirements-cpu.in has 1.14.2"]


def test_the_locks_of_this_repository():
    assert lock_check.check(ROOT) == []


def test_a_laptops_lock_leaves_torch_out(repository):
    lock = repository / "requirements-cpu.txt"
    lock.write_text(lock.read_text().replace("torch==2.13.0\n", ""))
    assert lock_check.check(repository) == []
