"""docker/doctor.py: each check fed with what a bad machine says, and the whole as a user runs it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from common import paths

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("doctor", ROOT / "docker/doctor.py")
doctor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(doctor)


def smi(driver="580.95.05", total=81559, free=80000, capability=", 9.0"):
    return f"NVIDIA H100 80GB HBM3, {driver}, {total}, {free}{capability}\n"


def test_nvidia_smis_list():
    one, two = doctor.parse_gpus(smi() + smi(capability=""))
    assert (one["name"], one["driver"], one["capability"]) == ("NVIDIA H100 80GB HBM3", "580.95.05", (9, 0))
    assert one["total"] == pytest.approx(85.5, abs=0.1) and one["free"] == pytest.approx(83.9, abs=0.1)
    assert two["capability"] is None  # an old driver does not tell


@pytest.mark.parametrize(
    "driver, cuda, works, status",
    [
        ("580.65.06", "13.0", False, "ok"),
        ("575.57.08", "13.0", False, "fail"),
        ("575.57.08", "13.0", True, "ok"),  # NVIDIA's forward-compatibility package is there
        ("575.57.08", "13.0", None, "warn"),  # no torch yet: the one for CUDA 12.8 will do
        ("470.256.02", "13.0", None, "fail"),
        ("525.60.13", "12.8", False, "ok"),
        ("470.256.02", "12.8", False, "fail"),
    ],
)
def test_driver_against_cuda(driver, cuda, works, status):
    assert doctor.check_driver(driver, cuda, works, "medical")["status"] == status


def test_an_old_driver_is_told_the_way_out():
    said = doctor.check_driver("550.54.15", "13.0", False, "medical")
    assert said["text"] == "driver 550.54.15, torch for CUDA 13.0: needs 580 or newer"
    assert "make image TASK=medical CUDA=12.8" in said["fix"] and "requirements-cu128.txt" in said["fix"]
    for driver, task in (("470.82.01", "medical"), ("550.54.15", "r1_grpo")):  # too old for that, too; no such lock
        assert "cu128" not in doctor.check_driver(driver, "13.0", False, task)["fix"]


def test_every_lock_for_older_drivers_is_known():
    assert sorted(doctor.CU128) == sorted(file.parent.name for file in ROOT.glob("*/requirements-cu128.txt"))


@pytest.mark.parametrize(
    "task, torch, driver, old",
    [
        ("medical", None, "580.65.06", False),
        ("medical", None, "570.86.10", True),  # nothing installed yet: what is to be installed
        ("r1_grpo", None, "570.86.10", False),  # has no lock for CUDA 12.8
        ("medical", {"version": "2.10.0+cu128", "cuda": "12.8", "works": True}, "580.65.06", True),  # the image's own
        ("medical", {"version": "2.10.0+cu128", "cuda": "12.8", "works": False}, None, True),
        ("medical", {"version": "2.6.0+cu124", "cuda": "12.4", "works": True}, "570.86.10", True),  # the rented one's
        ("medical", {"version": "2.11.0+cu130", "cuda": "13.0", "works": False}, "570.86.10", True),
        ("medical", {"version": "2.11.0+cu130", "cuda": "13.0", "works": True}, "570.86.10", False),
        ("medical", {"error": "undefined symbol"}, None, False),
    ],
)
def test_which_lock_a_machine_is_held_against(task, torch, driver, old):
    found = doctor.lock_for(task, torch, driver, {"torch": "2.10.0"})
    assert found == ("requirements-cu128.txt" if old else "requirements.txt")


@pytest.mark.parametrize(
    "capability, archs, covered",
    [
        ((8, 0), "sm_75 sm_80 sm_90", True),
        ((8, 9), "sm_75 sm_80 sm_86", True),  # the same major version, newer minor
        ((8, 0), "sm_75 sm_86", False),
        ((9, 0), "sm_80 sm_86", False),
        ((12, 0), "sm_80 sm_90 compute_90", True),  # the driver translates
        ((12, 0), "sm_80 sm_90a compute_90a", False),
        ((9, 0), "sm_90a", True),
        ((12, 0), "sm_75 sm_100 sm_120", True),
        ((7, 0), "sm_75 sm_80 compute_80", False),
    ],
)
def test_kernels_against_the_gpu(capability, archs, covered):
    assert doctor.covers(archs.split(), capability) is covered
    said = doctor.check_arch(capability, archs.split(), "2.11.0")
    assert said["status"] == ("ok" if covered else "fail")


def test_a_gpu_too_old_and_one_too_new_are_told_apart():
    archs = ["sm_75", "sm_80", "sm_90"]
    assert "too old" in doctor.check_arch((6, 1), archs, "2.11.0")["fix"]
    assert "requirements.txt" in doctor.check_arch((12, 0), archs, "2.6.0")["fix"]


def test_torch():
    gpus = doctor.parse_gpus(smi())
    good = dict(version="2.11.0+cu130", cuda="13.0", works=True)
    cases = [
        (good, gpus, "ok"),
        (None, gpus, "fail"),
        ({"error": "undefined symbol"}, gpus, "fail"),
        (good | dict(cuda=None, works=False), gpus, "fail"),
        (good | dict(cuda=None, works=False), [], "ok"),
        (good | dict(works=False, reason="no kernel image"), gpus, "fail"),
    ]
    assert [doctor.check_torch(torch, cards)["status"] for torch, cards, _ in cases] == [each[2] for each in cases]
    assert "no kernel image" in doctor.check_torch(*cases[-1][:2])["text"]


def test_gpu_memory_tells_a_small_card_from_one_in_use():
    assert doctor.check_gpu_memory(doctor.parse_gpus(smi()), 24, "r1_grpo")["status"] == "ok"
    small = doctor.check_gpu_memory(doctor.parse_gpus(smi(total=8192, free=8000)), 10, "medical")
    assert small["status"] == "fail" and "smaller model" in small["fix"]
    busy = doctor.check_gpu_memory(doctor.parse_gpus(smi(free=2000)), 10, "medical")
    assert busy["status"] == "fail" and "nvidia-smi lists" in busy["fix"]
    assert doctor.check_gpu_memory(doctor.parse_gpus(smi(total=9900, free=9700)), 10, "medical")["status"] == "ok"


def test_no_gpu_and_a_broken_one_differ():
    assert doctor.check_gpu([], None)["status"] == "warn"
    broken = doctor.check_gpu([], "Failed to initialize NVML: Driver/library version mismatch")
    assert broken["status"] == "fail" and "restart" in broken["fix"]


LOCK = """# a comment
torch==2.11.0 \\
    --hash=sha256:00
huggingface-hub==1.33.0
trl[extra]==1.14.2 ; python_full_version >= '3.11'
numpy==1.0 ; python_full_version < '3.11'
"""


def test_versions_against_a_lock(tmp_path):
    locked = doctor.parse_lock(LOCK)
    assert locked == {"torch": "2.11.0", "huggingface-hub": "1.33.0", "trl": "1.14.2"}

    def check(installed):
        return doctor.check_versions(locked, installed, {"torch", "trl"}, "requirements.txt")

    good = {"torch": "2.11.0+cu130", "huggingface-hub": "1.33.0", "trl": "1.14.2", "other": "1"}
    assert check(good)["status"] == "ok"
    assert check(good | {"huggingface-hub": "1.0"})["status"] == "warn"  # nobody asked for it by name
    said = check(good | {"torch": "2.6.0+cu124"})
    assert said["status"] == "fail" and "torch 2.6.0+cu124 (2.11.0)" in said["text"]
    assert said["fix"] == "pip install --no-deps -r requirements.txt"
    assert "2 of 3 locked packages are not installed" in check({"torch": "2.11.0"})["text"]


def test_every_lock_of_the_repository_is_read():
    for file in ROOT.glob("*/requirements.in"):
        direct, locked = doctor.parse_lock(file.read_text()), doctor.parse_lock(file.with_suffix(".txt").read_text())
        assert direct.items() <= locked.items() and len(locked) > 40, file
    for file in ROOT.glob("*/requirements-cu128.txt"):
        direct = doctor.parse_lock(file.with_name("requirements.in").read_text()) | {"torch": "2.10.0"}
        assert direct.items() <= doctor.parse_lock(file.read_text()).items(), file


def test_what_another_torch_left_behind():
    said = doctor.check_strangers({"torch": "2.11.0"}, {"xformers": "0.0.29", "flash-attn": "2.7", "torch": "2.11.0"})
    assert (said["status"], said["fix"]) == ("warn", "pip uninstall -y xformers flash-attn")
    assert doctor.check_strangers({"torchvision": "0.26.0"}, {"torchvision": "0.26.0"})["status"] == "ok"


def test_disk_adds_up_what_shares_a_file_system():
    apart = [("HF_HOME", "/a", 15.2, 20, 1), ("OUTPUT_DIR", "/b", 18.2, 20, 2)]
    assert doctor.check_disk(apart)["status"] == "ok"
    same = [place[:4] + (1,) for place in apart]
    said = doctor.check_disk(same)
    assert (said["status"], said["text"]) == ("fail", "HF_HOME+OUTPUT_DIR: free 20.0 GB, needed 33.4")
    assert "HF_HOME OUTPUT_DIR" in said["fix"]


def test_ram_of_the_machine_and_of_its_container():
    meminfo = "MemTotal: 65000000 kB\nMemAvailable:   60000000 kB\n"
    assert doctor.available_ram(meminfo, None, None) == pytest.approx(61.44)
    assert doctor.available_ram(meminfo, 16 * 10**9, 2 * 10**9) == pytest.approx(14)
    assert doctor.available_ram(meminfo, 2**63 - 4096, 10**9) == pytest.approx(61.44)  # cgroup v1's "no limit"
    assert [doctor.check_ram(free, 15.2)["status"] for free in (61, 14, 4)] == ["ok", "warn", "fail"]
    assert doctor.check_ram(4, 1.0)["status"] == "ok"


def test_shared_memory():
    assert doctor.check_shm(0.067, 1)["status"] == "warn" and doctor.check_shm(0.067, 2)["status"] == "fail"
    assert doctor.check_shm(8.0, 2)["status"] == doctor.check_shm(None, 1)["status"] == "ok"


def test_write_access(tmp_path):
    assert doctor.check_write([("OUTPUT_DIR", tmp_path / "new" / "er", True)])["status"] == "ok"
    assert not list(tmp_path.iterdir())
    closed = "/proc/self"  # where root cannot make a file either
    assert doctor.check_write([("OUTPUT_DIR", closed, True), ("HF_HOME", closed, False)])["status"] == "fail"
    said = doctor.check_write([("HF_HOME", closed, False), ("OUTPUT_DIR", tmp_path, True)])
    assert said["status"] == "warn" and "HF_HOME (/proc/self" in said["text"]


def test_python_and_compiler():
    assert doctor.check_python((3, 10), "Linux", "x86_64", True)["status"] == "fail"
    assert doctor.check_python((3, 13), "Linux", "x86_64", True)["status"] == "warn"
    assert doctor.check_python((3, 12), "Linux", "aarch64", True)["status"] == "warn"
    assert doctor.check_python((3, 12), "Linux", "x86_64", True)["status"] == "ok"
    assert (
        doctor.check_compiler(None, True)["status"] == doctor.check_compiler("/usr/bin/gcc", False)["status"] == "fail"
    )
    assert doctor.check_compiler("/usr/bin/gcc", True)["status"] == "ok"


ENV_FILES = [
    "",
    "MODELS_DIR=/m\nDATA_DIR='/d e'\n# OUTPUT_DIR=/no\nexport OUTPUT_DIR=/o # a comment\n",
    'MODELS_DIR=\nMEDICAL_DATA_DIR="~/rows"\nMODEL_SOURCE=modelscope\n',
    "DATA_DIR=data#1\n",
]


@pytest.mark.parametrize("text", ENV_FILES)
def test_paths_are_those_of_common_paths(text, tmp_path, monkeypatch):
    """doctor.py stands alone, so it reads .env files by itself: as python-dotenv and common/paths.py do."""
    (tmp_path / ".env").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    names = ("MODELS_DIR", "DATA_DIR", "OUTPUT_DIR", "MODEL_SOURCE", "HF_HOME", "MEDICAL_DATA_DIR")
    with mock.patch.dict(os.environ):  # load_env writes into it, and other tests must not see that
        for name in names:
            os.environ.pop(name, None)
        values = doctor.settings(os.environ, str(tmp_path), str(tmp_path))
        found = doctor.check_data("medical", values)["text"].removesuffix(" is not there")
        paths.load_env()
        assert values["MODELS_DIR"] == str(paths.models_dir())
        assert values["OUTPUT_DIR"] == str(paths.output_dir("medical").parent)
        assert values["MODEL_SOURCE"] == os.environ.get("MODEL_SOURCE", "huggingface")
        assert found == str(paths.data_dir("medical"))


def test_autodl_has_a_root_of_its_own(tmp_path):
    values = doctor.settings({"OUTPUT_DIR": "/mine"}, "/cwd", "/cwd/medical", str(tmp_path))
    assert (values["MODELS_DIR"], values["OUTPUT_DIR"]) == (str(tmp_path / "models"), "/mine")
    assert values["HF_HOME"] == str(tmp_path / "huggingface")


@pytest.mark.parametrize("place", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2___5-7B-Instruct"])
def test_models_are_found_where_the_resolver_finds_them(place, tmp_path, monkeypatch):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "config.json").write_text("{}")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    values = {"MODELS_DIR": str(tmp_path), "HF_HOME": str(tmp_path)}
    found = doctor.find_model("Qwen/Qwen2.5-7B-Instruct", values)
    assert found == str(paths.resolve_model("Qwen/Qwen2.5-7B-Instruct"))


def test_a_model_in_the_hubs_cache_is_found(tmp_path):
    snapshot = tmp_path / "hub/models--org--name/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert doctor.find_model("org/name", {"MODELS_DIR": "/none", "HF_HOME": str(tmp_path)}) == str(snapshot)


def test_half_a_model_is_seen(demo_model, tmp_path):
    assert doctor.broken_weights(demo_model) == ""
    shutil.copytree(demo_model, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    assert doctor.broken_weights(tmp_path / "model") == f"model.safetensors is cut off or damaged ({size - 1} bytes)"
    os.truncate(file, 0)
    assert "0 bytes" in doctor.broken_weights(tmp_path / "model")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    assert doctor.broken_weights(tmp_path / "model") == "model-00001-of-00002.safetensors is missing"
    broken = doctor.check_model("org/name", tmp_path, "x is missing", "huggingface", 1, "make fetch MODEL=org/name")
    assert broken["status"] == "fail" and broken["fix"].endswith("again: make fetch MODEL=org/name")


def test_the_command_that_gets_a_model_exists_where_it_is_said():
    values = {"MODELS_DIR": "/m", "MODEL_SOURCE": "huggingface"}
    assert doctor.how_to_get("org/name", values, str(ROOT / "docker/doctor.py")) == "make fetch MODEL=org/name"
    assert doctor.how_to_get("org/name", values, None) == "hf download org/name --local-dir /m/org/name"
    other = doctor.how_to_get("org/name", values | {"MODEL_SOURCE": "modelscope"}, "/usr/local/bin/doctor.py")
    assert other.endswith("modelscope download --model org/name --local_dir /m/org/name")


@pytest.fixture
def hub():
    """A local hub: /200, /404 and so on answer with that, /slow with nothing, /moved with a redirection."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            if self.path == "/slow":
                time.sleep(3)
                return
            tokens.append(self.headers.get("Authorization"))
            self.send_response(302 if self.path == "/moved" else int(self.path[1:]))
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()

    tokens = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", tokens=tokens)
    server.shutdown()
    server.server_close()


def test_hubs_are_asked_at_once_and_not_waited_for(hub):
    pages = {"huggingface": "/200", "moved": "/moved", "gated": "/403", "gone": "/404", "ill": "/503", "slow": "/slow"}
    urls = {name: hub.url + page for name, page in pages.items()} | {"nobody": "http://127.0.0.1:9/"}
    began = time.monotonic()
    found = doctor.probe_all(urls, 0.5, token="secret")
    assert time.monotonic() - began < 1.5
    statuses = {name: outcome[0] for name, outcome in found.items()}
    assert statuses == dict(huggingface=200, moved=302, gated=403, gone=404, ill=503, slow=None, nobody=None)
    assert hub.tokens.count("Bearer secret") == 1  # the token goes to the one hub whose it is

    def check(name, needed=True):
        return doctor.check_hub("huggingface", urls[name], found[name], needed, other=False)

    assert [check(name)["status"] for name in ("huggingface", "moved")] == ["ok", "ok"]
    assert [check(name)["status"] for name in ("gated", "gone", "ill", "slow", "nobody")] == ["fail"] * 5
    assert check("nobody", needed=False)["status"] == "warn"
    assert "HF_TOKEN" in check("gated")["fix"] and "HF_ENDPOINT=https://hf-mirror.com" in check("slow")["fix"]
    assert "refused" in check("nobody")["text"]
    other = doctor.check_hub("huggingface", urls["slow"], found["slow"], True, other=True)
    assert other["fix"] == "MODEL_SOURCE=modelscope, which answers from here"


def test_the_mirror_that_is_set_is_the_one_that_is_asked():
    urls = doctor.hub_urls({"HF_ENDPOINT": "https://mirror.example/"}, "org/name")
    assert urls["huggingface"] == "https://mirror.example/org/name/resolve/main/config.json"


def test_xet_goes_past_a_mirror():
    mirror, real = "https://mirror.example", "https://huggingface.co"
    assert doctor.check_xet(mirror, True, False, True)["fix"] == "export HF_HUB_DISABLE_XET=1"
    assert doctor.check_xet(real, True, False, False)["status"] == "warn"
    for case in ((real, True, False, True), (mirror, False, False, True), (mirror, True, True, True)):
        assert doctor.check_xet(*case)["status"] == "ok"


def run(*arguments, cwd=ROOT, stdin=None, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "HF_"))}
    command = [sys.executable, *map(str, arguments)]
    text = dict(capture_output=True, encoding="utf-8", input=stdin)
    return subprocess.run(command, cwd=cwd, env=environment | more, **text)


def fake_nvidia_smi(folder, text, code=0):
    """A machine's nvidia-smi: what it prints is all that doctor.py sees of a driver."""
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text.strip()}\nEND\nexit {code}\n")
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_as_a_user_runs_it(tmp_path):
    home = dict(MODELS_DIR=str(tmp_path), OUTPUT_DIR=str(tmp_path), DATA_DIR=str(tmp_path))
    done = run(ROOT / "docker/doctor.py", "--task", "medical", "--offline", "--json", **home)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    failed = [name for name, check in checks.items() if check["status"] == "fail"]
    assert done.returncode == bool(failed), done.stderr
    assert {"GPU", "torch", "Python", "versions", "disk", "RAM", "/dev/shm", "write access", "model", "data"} <= set(
        checks
    )
    assert checks["torch"]["status"] == "ok" and "torch" not in failed
    assert all(check["fix"] for check in checks.values() if check["status"] != "ok")


def test_a_machine_with_an_old_driver_fails(tmp_path):
    path = fake_nvidia_smi(tmp_path, smi(driver="550.54.15"))
    done = run(ROOT / "docker/doctor.py", "--task", "medical", "--offline", PATH=path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "ok    GPU           1 x NVIDIA H100 80GB HBM3" in lines
    assert any(line.startswith("ok    GPU memory    84 of 86 GB free, medical needs 10") for line in lines)
    if not importlib.util.find_spec("torch") or __import__("torch").version.cuda is None:
        assert "warn  driver        driver 550.54.15, torch for CUDA 13.0: needs 580 or newer" in lines
        assert f"{'':17} -> in the task's folder: pip install --no-deps -r requirements-cu128.txt" in lines


def test_a_driver_that_does_not_answer_fails(tmp_path):
    path = fake_nvidia_smi(tmp_path, "NVIDIA-SMI has failed because it couldn't communicate with the driver", 9)
    done = run(ROOT / "docker/doctor.py", "--offline", "--lang", "zh", PATH=path)
    assert done.returncode == 1 and "fail  GPU           nvidia-smi 出错：NVIDIA-SMI has failed" in done.stdout


def test_piped_to_a_strange_machine_it_stands_alone(tmp_path):
    """`ssh machine python3 - < doctor.py`: no file, no repository, no packages, perhaps an old Python."""
    source = (ROOT / "docker/doctor.py").read_text("utf-8")
    done = run("-I", "-S", "-", "--task", "medical", "--offline", cwd=tmp_path, stdin=source, LC_ALL="zh_CN.UTF-8")
    assert "没有安装 torch" in done.stdout and "没有锁文件" in done.stdout, done.stderr
    assert done.returncode == 1
    for name in ("python3.8", "python3.9", "python3.13"):
        old = shutil.which(name)
        if old and subprocess.run([old, "-c", ""], capture_output=True).returncode == 0:
            done = subprocess.run(
                [old, "-", "--offline"], input=source, cwd=tmp_path, capture_output=True, encoding="utf-8"
            )
            assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "locale, language", [({}, "en"), ({"LANG": "zh_CN.UTF-8"}, "zh"), ({"LC_ALL": "C", "LANG": "zh_CN"}, "en")]
)
def test_language_follows_the_locale(locale, language, tmp_path):
    done = run("-I", "-S", ROOT / "docker/doctor.py", "--offline", cwd=tmp_path, **locale)
    assert ("项正常" in done.stdout) == (language == "zh")
