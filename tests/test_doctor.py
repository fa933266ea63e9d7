"""docker/doctor.py: each check on a good machine with one thing wrong, and the whole as a user runs it."""

import ast
import importlib.util
import json
import os
import re
import shutil
import string
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from common import hub as models
from common import paths

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docker/doctor.py"
spec = importlib.util.spec_from_file_location("doctor", SCRIPT)
doctor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(doctor)


def smi(driver="580.95.05", total=81559, free=80000, capability=", 9.0"):
    return f"NVIDIA H100 80GB HBM3, {driver}, {total}, {free}{capability}\n"


GPU = doctor.parse_gpus(smi())
TORCH = dict(version="2.11.0+cu130", cuda="13.0", works=True, arch_list=["sm_80", "sm_90"])
BROKEN = TORCH | dict(works=False)
ENDPOINT = "https://huggingface.co"


def machine(**facts):
    """A machine on which medical trains, but for these facts."""
    good = dict(
        task="medical", recipe="medical", model="org/name", other_model=False, card=10, size=15.2, script=None,
        gpus=GPU, gpu_error=None, torch=TORCH, lock="requirements.txt", compiler="/usr/bin/gcc", header=True,
        python=(3, 12), system="Linux x86_64", hashed=True, lock_file="requirements.txt", locked={"torch": "2.11.0"},
        direct={"torch"}, installed={"torch": "2.11.0+cu130"}, values={"MODEL_SOURCE": "huggingface"}, env_errors={},
        places=[], ram=64, shm=8, found="/models/org/name", broken="", source="huggingface", folder="/models/org/name",
        endpoint=ENDPOINT, xet=True, urls={}, outcomes={},
    )  # fmt: skip
    assert facts.keys() <= good.keys()
    return SimpleNamespace(**good | facts)


def says(text, key):
    """Whether this text is the one of that key, whatever was filled in."""
    template = doctor.TEXTS[key] if isinstance(doctor.TEXTS[key], str) else doctor.TEXTS[key][0]
    return re.fullmatch(re.sub(r"\\\{.*?\\\}", ".*", re.escape(template)), text) is not None


def expect(check, status, text=None, fix=None):
    assert check["status"] == status, check
    assert text is None or says(check["text"], text), check
    assert says(check["fix"], fix) if fix else status == "ok" or check["fix"], check
    return check


def old(driver):
    return doctor.parse_gpus(smi(driver))


def cards(**sizes):
    return doctor.parse_gpus(smi(**sizes))


LOCKED = {"torch": "2.11.0", "trl": "1.14.2", "huggingface-hub": "1.33.0"}
INSTALLED = LOCKED | {"torch": "2.11.0+cu130", "other": "1"}


def versions(**installed):
    return dict(locked=LOCKED, direct={"torch", "trl"}, installed=INSTALLED | installed)


@pytest.mark.parametrize(
    "check, facts, status, text, fix",
    [
        ("gpu", {}, "ok", "gpu", None),
        ("gpu", dict(gpus=[]), "warn", "gpu_none", "gpu_none_fix"),
        ("gpu", dict(gpus=[], gpu_error="it fails"), "fail", "gpu_error", "gpu_reinstall"),
        ("gpu", dict(gpus=[], gpu_error="Driver/library version mismatch"), "fail", "gpu_error", "gpu_restart"),
        ("driver", dict(torch=BROKEN), "ok", "driver", None),
        ("driver", dict(torch=BROKEN, gpus=old("575.57.08")), "fail", "driver_old", "driver_or_cu128"),
        ("driver", dict(gpus=old("575.57.08")), "ok", "driver", None),  # NVIDIA's compatibility package is there
        ("driver", dict(torch={}, gpus=old("575.57.08")), "warn", "driver_old", "driver_or_cu128"),
        ("driver", dict(torch={}, gpus=old("575.57.08"), task="r1_grpo"), "fail", "driver_old", "driver_update"),
        ("driver", dict(torch={}, gpus=old("470.256.02")), "fail", "driver_old", "driver_update"),
        ("driver", dict(torch=BROKEN | dict(cuda="12.8"), gpus=old("525.60.13")), "ok", "driver", None),
        ("driver", dict(torch=BROKEN | dict(cuda="12.8"), gpus=old("470.1")), "fail", "driver_old", "driver_update"),
        ("driver", dict(torch=BROKEN | dict(cuda="10.2")), "ok", "driver", None),
        ("torch", {}, "ok", "torch", None),
        ("torch", dict(torch={}), "fail", "torch_none", "torch_install"),
        ("torch", dict(torch={}, gpus=[]), "fail", "torch_none", "torch_install"),
        ("torch", dict(torch={"error": "undefined symbol"}), "fail", "torch_broken", "torch_install"),
        ("torch", dict(torch=BROKEN | dict(cuda=None)), "fail", "torch_cpu_build", "torch_install"),
        ("torch", dict(torch=BROKEN | dict(cuda=None), gpus=[]), "ok", "torch_cpu", None),
        ("torch", dict(torch=BROKEN | dict(reason="no image")), "fail", "torch_no_gpu", "torch_no_gpu_fix"),
        ("torch", dict(torch=BROKEN), "fail", "torch_no_gpu", "torch_no_gpu_fix"),
        ("gpu_memory", {}, "ok", "gpu_memory", None),
        ("gpu_memory", dict(gpus=cards(total=9900, free=9700)), "ok", "gpu_memory", None),
        ("gpu_memory", dict(gpus=cards(total=8192, free=8000)), "fail", "gpu_memory", "gpu_memory_small"),
        ("gpu_memory", dict(gpus=cards(free=2000)), "fail", "gpu_memory", "gpu_memory_busy"),
        ("gpu_memory", dict(gpus=cards(free=2000) + GPU), "ok", "gpu_memory", None),
        ("gpu_memory", dict(gpus=cards(free=2000), other_model=True), "warn", "gpu_memory", "gpu_memory_busy"),
        ("gpu_memory", dict(gpus=cards(total="[N/A]")), "warn", "gpu_memory_unknown", "gpu_memory_unknown_fix"),
        ("compiler", {}, "ok", "compiler", None),
        ("compiler", dict(compiler=None), "fail", "compiler_none", "compiler_fix"),
        ("compiler", dict(header=False), "fail", "header_none", "compiler_fix"),
        ("python", {}, "ok", "python", None),
        ("python", dict(python=(3, 10)), "fail", "python", "python_old"),
        ("python", dict(python=(3, 13)), "warn", "python", "python_lock"),
        ("python", dict(python=(3, 13), hashed=False), "ok", "python", None),
        ("python", dict(system="Linux aarch64"), "warn", "python", "python_lock"),
        ("versions", versions(), "ok", "versions", None),
        ("versions", versions(**{"huggingface-hub": "1.0"}), "warn", "versions_differ", "pip_lock"),
        ("versions", versions(trl="1.0"), "fail", "versions_differ", "pip_lock"),
        ("versions", versions() | dict(installed={"torch": "2.11.0"}), "fail", "versions_missing", "pip_lock"),
        ("versions", dict(locked={}), "warn", "versions_no_lock", "versions_no_lock_fix"),
        ("leftovers", {}, "ok", "leftovers_none", None),
        ("leftovers", dict(locked={"vllm": "1"}, installed={"vllm": "1"}), "ok", "leftovers_none", None),
        ("leftovers", dict(installed={"vllm": "1"}), "warn", "leftovers", "leftovers_fix"),
        ("ram", dict(ram=61), "ok", "ram", None),
        ("ram", dict(ram=14), "warn", "ram_merge", "ram_fix"),
        ("ram", dict(ram=4), "fail", "ram_small", "ram_fix"),
        ("ram", dict(ram=4, size=1.0), "ok", "ram", None),
        ("shm", {}, "ok", "shm", None),
        ("shm", dict(shm=None), "ok", "shm_none", None),
        ("shm", dict(shm=0.067), "warn", "shm_small", "shm_fix"),
        ("shm", dict(shm=0.067, gpus=GPU * 2), "fail", "shm_small", "shm_fix"),
        ("model", {}, "ok", "model", None),
        ("model", dict(broken="x is missing"), "fail", "model_broken", "model_again"),
        ("model", dict(found=None), "warn", "model_to_fetch", "get_huggingface"),
        ("model", dict(found=None, source="modelscope"), "warn", "model_to_fetch", "get_modelscope"),
        ("model", dict(found=None, script=str(SCRIPT)), "warn", "model_to_fetch", "get_ours"),
        ("model", dict(found=None, script="/usr/local/bin/doctor.py"), "warn", "model_to_fetch", "get_huggingface"),
        ("model", dict(found=None, model="/data/none"), "fail", "model_nowhere", "model_nowhere_fix"),
    ],
)
def test_what_a_check_says(check, facts, status, text, fix):
    expect(getattr(doctor, "check_" + check)(machine(**facts)), status, text, fix)


def test_facts_that_a_remedy_has_to_name():
    assert "TASK=alpaca CUDA=12.8" in doctor.check_driver(machine(task="alpaca", torch={}, gpus=old("550.1")))["fix"]
    assert "no image" in doctor.check_torch(machine(torch=BROKEN | dict(reason="no image")))["text"]
    assert "torch 2.6.0+cu124 (2.11.0)" in doctor.check_versions(machine(**versions(torch="2.6.0+cu124")))["text"]
    left = doctor.check_leftovers(machine(installed={"xformers": "0.0.29", "flash-attn": "2.7"}))
    assert left["fix"] == "pip uninstall -y xformers flash-attn"
    again = doctor.check_model(machine(broken="x is missing", script=str(SCRIPT)))
    assert again["fix"].endswith("make fetch MODEL=org/name")


def test_every_check_names_a_remedy_for_what_is_not_there():
    place = dict(name="OUTPUT_DIR", folder="/proc/self", need=9, free=1, device=1)
    bad = machine(
        gpus=GPU * 2, torch={}, compiler=None, locked={}, env_errors={"/.env": "?"}, shm=0.1, found=None, ram=1,
        values={"DATA_DIR": "/none"}, places=[place], urls=dict.fromkeys(["huggingface", "modelscope"], "https://x/"),
        outcomes=dict.fromkeys(["huggingface", "modelscope", "xet"], (None, "no route")),
    )  # fmt: skip
    checks = doctor.examine(bad)
    assert [check["name"] for check in checks if check["status"] != "ok"] == [
        "torch", "compiler", "versions", ".env", "disk", "RAM", "/dev/shm", "write access", "model", "data",
        "huggingface", "modelscope", "Xet",
    ]  # fmt: skip
    assert all(bool(check["fix"]) == (check["status"] != "ok") for check in checks)


def test_nvidia_smis_list():
    one, two, three = doctor.parse_gpus(smi() + smi(capability="") + smi(total="[N/A]", free="[N/A]"))
    assert (one["name"], one["driver"], one["capability"]) == ("NVIDIA H100 80GB HBM3", "580.95.05", (9, 0))
    assert one["total"] == pytest.approx(85.5, abs=0.1) and one["free"] == pytest.approx(83.9, abs=0.1)
    assert two["capability"] is None  # an old driver does not tell
    assert three["total"] is three["free"] is None
    for garbage in ("No devices were found", "a, b, c, d", smi(total="much")):
        with pytest.raises(ValueError):
            doctor.parse_gpus(garbage)


@pytest.mark.parametrize(
    "capability, archs, fix",
    [
        ((8, 0), "sm_75 sm_80 sm_90", None),
        ((8, 9), "sm_75 sm_80 sm_86", None),  # the same major version, newer minor
        ((8, 0), "sm_75 sm_86", "gpu_old"),
        ((9, 0), "sm_80 sm_86", "kernels_lock"),
        ((12, 0), "sm_80 sm_90 compute_90", None),  # the driver translates
        ((12, 0), "sm_80 sm_90a compute_90a", "kernels_lock"),
        ((9, 0), "sm_90a", None),
        ((9, 0), "sm_80 compute_90a", None),
        ((12, 0), "sm_75 sm_100 sm_120", None),
        ((7, 0), "sm_75 sm_80 compute_80", "gpu_old"),
    ],
)
def test_kernels_against_the_gpu(capability, archs, fix):
    m = machine(gpus=[GPU[0] | dict(capability=capability)], torch=TORCH | dict(arch_list=archs.split()))
    status, text = ("fail", "kernels_none") if fix else ("ok", "kernels")
    expect(doctor.check_kernels(m), status, text, fix)


def test_kernels_are_not_judged_where_nobody_tells():
    for facts in (dict(torch={}), dict(torch={"error": "?"}), dict(gpus=doctor.parse_gpus(smi(capability="")))):
        assert doctor.check_kernels(machine(**facts)) is None


@pytest.mark.parametrize(
    "task, torch, driver, old",
    [
        ("medical", {}, "580.65.06", False),
        ("medical", {}, "570.86.10", True),  # nothing installed yet: what is to be installed
        ("r1_grpo", {}, "570.86.10", False),  # has no lock for CUDA 12.8
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


def test_every_lock_for_older_drivers_is_known():
    assert sorted(doctor.CU128) == sorted(file.parent.name for file in ROOT.glob("*/requirements-cu128.txt"))


LOCK = """# a comment
torch==2.11.0 \\
    --hash=sha256:00
Huggingface_Hub==1.33.0
trl[extra]==1.14.2 ; python_full_version >= '3.11'
numpy==1.0 ; python_full_version < '3.11'
"""


def test_a_lock_is_read_for_this_python():
    assert doctor.parse_lock(LOCK) == LOCKED


def test_every_lock_of_the_repository_is_read():
    for file in ROOT.glob("*/requirements.in"):
        direct, locked = doctor.parse_lock(file.read_text()), doctor.parse_lock(file.with_suffix(".txt").read_text())
        assert direct.items() <= locked.items() and len(locked) > 40, file
    for file in ROOT.glob("*/requirements-cu128.txt"):
        direct = doctor.parse_lock(file.with_name("requirements.in").read_text()) | {"torch": "2.10.0"}
        assert direct.items() <= doctor.parse_lock(file.read_text()).items(), file


def test_of_two_installed_versions_the_imported_one_counts(tmp_path, monkeypatch):
    for place, version in (("first", "2.0"), ("second", "1.0")):
        folder = tmp_path / place / f"some_package-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: Some_Package\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert doctor.installed_packages() == {"some-package": "2.0"}


def test_disk_adds_up_what_shares_a_file_system():
    apart = [
        dict(name="HF_HOME", folder="/a", need=15.2, free=20, device=1),
        dict(name="OUTPUT_DIR", folder="/b", need=18.2, free=20, device=2),
    ]
    expect(doctor.check_disk(machine(places=apart)), "ok")
    said = expect(doctor.check_disk(machine(places=[place | dict(device=1) for place in apart])), "fail")
    assert said["text"] == "HF_HOME+OUTPUT_DIR: free 20.0 GB, needed 33.4" and "HF_HOME OUTPUT_DIR" in said["fix"]
    said = doctor.check_disk(machine(places=[place | dict(free=1) for place in apart]))
    assert "HF_HOME OUTPUT_DIR" in said["fix"]  # both are too small


V1 = "memory/memory."


@pytest.mark.parametrize(
    "files, free",
    [
        ({}, 61.44),
        ({"memory.max": "max\n", "memory.current": "5"}, 61.44),
        ({"memory.max": "16000000000\n", "memory.current": "2000000000\n"}, 14),
        # A fetched model fills the cache: that memory can be had.
        (
            {
                "memory.max": "16000000000",
                "memory.current": "15000000000",
                "memory.stat": "a 1\ninactive_file 13000000000",
            },
            14,
        ),
        ({V1 + "limit_in_bytes": str(2**63 - 4096), V1 + "usage_in_bytes": "9"}, 61.44),  # no limit
        ({V1 + "limit_in_bytes": "4000000000", V1 + "usage_in_bytes": "3000000000"}, 1),
        ({V1 + "limit_in_bytes": "4000000000", V1 + "stat": "inactive_file 5\ntotal_inactive_file 0"}, 4),
    ],
)
def test_ram_of_the_machine_and_of_its_container(files, free, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 65000000 kB\nMemAvailable:   60000000 kB\n")
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert doctor.free_ram(tmp_path / "meminfo", tmp_path) == pytest.approx(free)
    assert doctor.free_ram(tmp_path / "none", tmp_path) is None


def test_write_access(tmp_path):
    def check(*places):
        return doctor.check_write(machine(places=[dict(name=n, folder=str(f), need=need) for n, f, need in places]))

    expect(check(("OUTPUT_DIR", tmp_path / "new" / "er", 1)), "ok", "write")
    assert not list(tmp_path.iterdir())
    closed = "/proc/self"  # where root cannot make a file either
    for order in (1, -1):
        expect(
            check(*[("OUTPUT_DIR", closed, 1), ("HF_HOME", closed, 0)][::order]), "fail", "write_denied", "write_fix"
        )
    said = expect(check(("HF_HOME", closed, 0), ("OUTPUT_DIR", tmp_path, 1)), "warn", "write_denied")
    assert "HF_HOME (/proc/self" in said["text"] and "OUTPUT_DIR" not in said["text"]


ENV_FILES = [
    "",
    "MODELS_DIR=/m\nDATA_DIR='/d e'\n# OUTPUT_DIR=/no\nexport OUTPUT_DIR=/o # a comment\n",
    'MODELS_DIR=\nMEDICAL_DATA_DIR="~/rows"\nMODEL_SOURCE=modelscope\n',
    "DATA_DIR=data#1\n",
    "ROOT=/r\nMODELS_DIR=${ROOT}/m\nDATA_DIR=${NOT_SET:-/d}/x\nOUTPUT_DIR=${NOT_SET}/o\n",
    "\ufeffMODELS_DIR=/with/a/byte/order/mark\n",
    "ROOT=/r\nHF_ENDPOINT=https://mirror.example/${ROOT}\nALPACA_DATA_DIR=/r\n",
]


@pytest.mark.parametrize("text", ENV_FILES)
def test_paths_are_those_of_common_paths(text, tmp_path, monkeypatch):
    """doctor.py stands alone, so it reads .env files by itself: as python-dotenv and common/paths.py do."""
    (tmp_path / ".env").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ):  # load_env writes into it, and other tests must not see that
        for name in (*paths.VARIABLES, "MEDICAL_DATA_DIR"):
            os.environ.pop(name, None)
        monkeypatch.setattr(paths, "TASK_DIR", tmp_path / "medical")
        values, errors = doctor.settings(os.environ, str(tmp_path), str(tmp_path / "medical"))
        found = doctor.check_data(machine(values=values))["text"].removesuffix(" is not there")
        paths.load_env()
        assert not errors
        assert values["MODELS_DIR"] == str(paths.models_dir())
        assert values["OUTPUT_DIR"] == str(paths.output_dir("medical").parent)
        assert values["MODEL_SOURCE"] == os.environ.get("MODEL_SOURCE", "huggingface")
        assert found == str(paths.data_dir("medical"))
        assert values.get("HF_ENDPOINT") == os.environ.get("HF_ENDPOINT")
        assert values.get("ALPACA_DATA_DIR") == os.environ.get("ALPACA_DATA_DIR") is None


def test_an_env_file_may_set_what_common_paths_allows(tmp_path):
    assert set(doctor.ENV_NAMES) == set(paths.VARIABLES)
    (tmp_path / ".env").write_text("LD_PRELOAD=/x\nHF_ENDPOINT=https://mirror.example\n")
    values, _ = doctor.settings({}, str(tmp_path), str(tmp_path))
    assert values["HF_ENDPOINT"] == "https://mirror.example" and "LD_PRELOAD" not in values


def test_the_environment_comes_before_env_files(tmp_path):
    (tmp_path / ".env").write_text("MODELS_DIR=/file\nDATA_DIR=/file\n")
    values, _ = doctor.settings({"MODELS_DIR": "/mine"}, str(tmp_path), str(tmp_path))
    assert (values["MODELS_DIR"], values["DATA_DIR"]) == ("/mine", "/file")


def test_autodl_has_a_root_of_its_own(tmp_path):
    values, _ = doctor.settings({"OUTPUT_DIR": "/mine"}, "/cwd", "/cwd/medical", str(tmp_path))
    assert (values["MODELS_DIR"], values["OUTPUT_DIR"]) == (str(tmp_path / "models"), "/mine")
    assert values["HF_HOME"] == str(tmp_path / "huggingface")


def test_data_that_is_there_empty_or_closed(tmp_path):
    m = machine(values={"DATA_DIR": str(tmp_path)})
    expect(doctor.check_data(m), "warn", "data_none", "data_fix")
    (tmp_path / "medical").mkdir()
    expect(doctor.check_data(m), "warn", "data_empty", "data_fix")
    with mock.patch("os.listdir", side_effect=PermissionError(13, "Permission denied")):
        expect(doctor.check_data(m), "warn", "unreadable", "data_fix")
    (tmp_path / "medical/rows.csv").touch()
    expect(doctor.check_data(m), "ok", "data")


def make_model(folder, name="model.safetensors"):
    """A folder that is a model to whoever reads headers only."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"__metadata__": {}, "x": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return folder


@pytest.mark.parametrize("place", ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2___5-7B-Instruct"])
def test_models_are_found_where_the_resolver_finds_them(place, tmp_path, monkeypatch):
    make_model(tmp_path / place)
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    values = {"MODELS_DIR": str(tmp_path), "HF_HOME": str(tmp_path), "MODEL_SOURCE": "huggingface"}
    found = doctor.find_model("Qwen/Qwen2.5-7B-Instruct", values)
    assert found == str(models.resolve_model("Qwen/Qwen2.5-7B-Instruct"))


def test_a_whole_model_in_the_hubs_cache_is_found(tmp_path):
    snapshot = make_model(tmp_path / "hub/models--org--name/snapshots/0123")
    values = {"MODELS_DIR": "/none", "HF_HOME": str(tmp_path), "MODEL_SOURCE": "huggingface"}
    assert doctor.find_model("org/name", values) == str(snapshot)
    assert doctor.find_model("org/name", values | {"MODEL_SOURCE": "modelscope"}) is None  # which does not look there
    (snapshot / "model.safetensors").write_bytes(b"")  # the run goes on with this download
    assert doctor.find_model("org/name", values) is None


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize(
    "file, content, key",
    [
        ("README.md", b"", None),
        (WEIGHTS, b"", "file_damaged"),
        (WEIGHTS, struct.pack("<Q", 80) + b"{", "file_damaged"),
        (WEIGHTS, struct.pack("<Q", 2) + b"[]", "file_damaged"),
        (WEIGHTS, None, "file_damaged"),  # one byte short
        ("a second.safetensors", b"", "file_damaged"),
        (INDEX, b'{"weight', "file_damaged"),
        (INDEX, b"\xff\xfe", "file_damaged"),
        (INDEX, b'{"weight_map": {"a": "a shard.safetensors"}}', "file_missing"),
    ],
)
def test_half_a_model_is_seen(file, content, key, tmp_path):
    folder = make_model(tmp_path / "a [b]")  # not a pattern
    content = (folder / WEIGHTS).read_bytes()[:-1] if content is None else content
    (folder / file).write_bytes(content)
    named = "a shard.safetensors" if key == "file_missing" else file
    said = doctor.say(key, file=named, size=len(content)) if key else ""
    assert doctor.broken_weights(folder) == said
    assert models.broken_weights(folder) == said.partition(" (")[0]  # what a run says to the same files


def test_a_model_without_weights_is_none(tmp_path):
    (make_model(tmp_path) / WEIGHTS).unlink()
    assert says(doctor.broken_weights(tmp_path), "weights_none")


def test_a_models_size(tmp_path):
    assert doctor.model_size("org/name", make_model(tmp_path / "m"), 15.2) < 1e-6
    names = {
        "Qwen/Qwen2.5-1.5B-Instruct": 3,
        "HuggingFaceTB/SmolLM2-135M": 0.27,
        "Qwen/Qwen3-30B-A3B": 60,
        "org/7Boats": 15.2,
    }
    assert {name: doctor.model_size(name, None, 15.2) for name in names} == pytest.approx(names)


@pytest.fixture
def hub():
    """A local hub: /200, /404 and so on answer with that, /slow with nothing, /moved with a redirection."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            if self.path == "/slow":
                over.wait(3)
                return
            headers.append(self.headers)
            code = re.fullmatch(r"/(\d+)", self.path)
            self.send_response(302 if self.path == "/moved" else int(code[1]) if code else 401)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()

    headers, over = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", headers=headers)
    over.set()
    server.shutdown()
    server.server_close()


def test_hubs_are_asked_at_once_and_not_waited_for(hub):
    pages = {"fine": "/200", "moved": "/moved", "gated": "/403", "gone": "/404", "ill": "/503", "slow": "/slow"}
    urls = {name: hub.url + page for name, page in pages.items()} | {"nobody": "http://127.0.0.1:9/"}
    began = time.monotonic()
    found = doctor.probe_all(urls, 0.5, token="secret")
    assert time.monotonic() - began < 1.5
    statuses = {name: outcome[0] for name, outcome in found.items()}
    assert statuses == dict(fine=200, moved=302, gated=403, gone=404, ill=503, slow=None, nobody=None)
    assert "refused" in found["nobody"][1]
    assert len(hub.headers) == 5 and not any("Authorization" in each for each in hub.headers)


@pytest.mark.parametrize(
    "url, host",
    [
        ("mirror.example/org/name", "mirror.example/org/name"),  # HF_ENDPOINT without https://
        ("https://user:word@host:port/org/name", "host:port"),
        ("http://[::1/org/name", "[::1"),
    ],
)
def test_a_hub_that_cannot_be_asked_is_one_that_does_not_answer(url, host):
    status, reason = doctor.probe(url, 0.2)
    assert status is None and reason
    m = machine(urls={"huggingface": url}, outcomes={"huggingface": (None, reason), "modelscope": (None, "")})
    said = doctor.check_hub(m, "huggingface", "modelscope")
    assert said["text"] == doctor.say("hub_silent", host=host, more=reason)


@pytest.mark.parametrize(
    "url, sent",
    [
        ("https://huggingface.co/org/name", True),
        ("http://huggingface.co/org/name", False),
        ("https://hf-mirror.com/org/name", False),
        ("https://huggingface.co.evil.example/org/name", False),
        ("https://huggingface.co@evil.example/org/name", False),
        ("https://evil.example/https://huggingface.co/org/name", False),
    ],
)
def test_the_token_goes_to_the_hub_alone_and_encrypted(url, sent, monkeypatch):
    asked = []

    def opener(*handlers):
        assert doctor.NoRedirect in handlers
        return SimpleNamespace(open=lambda request, timeout: asked.append(request) or 1 / 0)

    monkeypatch.setattr(urllib.request, "build_opener", opener)
    doctor.probe(url, 1, token="secret\n")
    assert asked[0].get_header("Authorization") == ("Bearer secret" if sent else None)


@pytest.mark.parametrize(
    "code, facts, status, text, fix",
    [
        (200, {}, "ok", "hub", None),
        (307, {}, "ok", "hub", None),
        (401, {}, "fail", "hub_closed", "hub_licence"),
        (403, dict(found="/m"), "warn", "hub_closed", "hub_licence"),
        (404, {}, "fail", "hub_no_model", "hub_no_model_fix"),
        (503, {}, "fail", "hub_error", "hub_later"),
        (None, {}, "fail", "hub_silent", "hub_mirror"),
        (None, dict(source="modelscope"), "warn", "hub_silent", "hub_mirror"),
        (None, dict(other=200), "fail", "hub_silent", "hub_other"),
        (401, dict(token=True), "fail", "hub_closed", "hub_licence"),
        (401, dict(token=True, endpoint="https://mirror.example"), "warn", "hub_closed", "hub_token_kept"),
        (401, dict(endpoint="https://mirror.example"), "fail", "hub_closed", "hub_licence"),
    ],
)
def test_what_a_hubs_answer_means(code, facts, status, text, fix):
    facts = {"found": None, "endpoint": ENDPOINT} | facts
    other, token = facts.pop("other", None), facts.pop("token", None)
    m = machine(
        urls={"huggingface": facts["endpoint"] + "/org/name"},
        outcomes={"huggingface": (code, 0.1 if code else "no route"), "modelscope": (other, 0.1)},
        values={"HF_TOKEN": "secret"} if token else {},
        **facts,
    )
    said = expect(doctor.check_hub(m, "huggingface", "modelscope"), status, text, fix)
    assert said["name"] == "huggingface" and "secret" not in said["fix"] + said["text"]


def test_the_other_hub_is_advised_by_its_own_words():
    m = machine(
        found=None, source="modelscope", urls={"modelscope": "https://x/"}, outcomes={"modelscope": (None, "no route")}
    )
    expect(doctor.check_hub(m, "modelscope", "huggingface"), "fail", "hub_silent", "hub_proxy")


@pytest.mark.parametrize(
    "facts, reachable, status, text",
    [
        ({}, True, "ok", "xet"),
        ({}, False, "warn", "xet_silent"),
        (dict(endpoint="https://mirror.example"), True, "warn", "xet_mirror"),
        (dict(endpoint="https://mirror.example", xet=False), True, "ok", "xet_off"),
        (dict(endpoint="https://mirror.example", values={"HF_HUB_DISABLE_XET": "1"}), True, "ok", "xet_off"),
    ],
)
def test_xet_goes_past_a_mirror(facts, reachable, status, text):
    m = machine(outcomes={"xet": (200 if reachable else None, 0.1)}, **facts)
    expect(doctor.check_xet(m), status, text, "xet_fix" if status == "warn" else None)


# ---------------------------------------------------------------- texts


def test_every_text_is_used_and_says_the_same_in_both_languages():
    source = SCRIPT.read_text("utf-8")
    code = source[: source.index("TEXTS = {")]
    used = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    used |= {"help_" + name for name in ("task", "model", "lock", "offline", "json")}
    assert doctor.TEXTS.keys() <= used

    def fields(text):
        return sorted(field for _, field, _, _ in string.Formatter().parse(text) if field)

    for key, text in doctor.TEXTS.items():
        if not isinstance(text, str):
            english, chinese = text
            assert fields(english) == fields(chinese), key
            assert not re.search("[\u4e00-\u9fff]", english) and re.search("[\u4e00-\u9fff]", chinese), key


# ---------------------------------------------------------------- as a user runs it


def run(*arguments, cwd=ROOT, stdin=None, python=sys.executable, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "HF_"))}
    text = dict(capture_output=True, encoding="utf-8", input=stdin)
    return subprocess.run([python, *map(str, arguments)], cwd=cwd, env=environment | more, **text)


def fake_nvidia_smi(folder, text, code=0):
    """A machine's nvidia-smi: what it prints is all that doctor.py sees of a driver."""
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text.strip()}\nEND\nexit {code}\n")
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_in_the_repository(tmp_path):
    home = dict(MODELS_DIR=str(tmp_path), OUTPUT_DIR=str(tmp_path), DATA_DIR=str(tmp_path))
    done = run(SCRIPT, "--task", "medical", "--offline", "--json", **home)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert all(list(check) == ["name", "status", "text", "fix"] for check in checks.values())
    failed = [name for name, check in checks.items() if check["status"] == "fail"]
    assert done.returncode == bool(failed), done.stderr
    names = {"GPU", "torch", "Python", "versions", "disk", "RAM", "/dev/shm", "write access", "model", "data"}
    assert names <= set(checks) and "huggingface" not in checks
    assert checks["torch"]["status"] == "ok"


def test_a_machine_with_an_old_driver_fails(tmp_path):
    path = fake_nvidia_smi(tmp_path, smi(driver="550.54.15"))
    done = run("-I", "-S", SCRIPT, "--task", "medical", "--offline", PATH=path)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0] == "ok    GPU           1 x NVIDIA H100 80GB HBM3"
    assert lines[1] == "warn  driver        driver 550.54.15, torch for CUDA 13.0: needs 580 or newer"
    assert f"{'':17} -> in the task's folder: pip install --no-deps -r requirements-cu128.txt" in lines
    assert "ok    GPU memory    84 of 86 GB free, medical needs 10" in lines
    assert re.fullmatch(r"\d+ ok, \d+ warn, [1-9]\d* fail", lines[-1])


@pytest.mark.parametrize(
    "output, code, key", [("couldn't communicate", 9, "gpu_error"), ("caf\u00e9", 0, "gpu_list_unreadable")]
)
def test_a_driver_that_does_not_answer_fails(output, code, key, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", fake_nvidia_smi(tmp_path, output, code))
    gpus, error = doctor.ask_nvidia_smi()
    assert gpus == [] and output in error and (key == "gpu_error" or says(error, key))
    expect(doctor.check_gpu(machine(gpus=gpus, gpu_error=error)), "fail", "gpu_error")


def test_the_mirror_that_is_set_is_asked_and_no_token_goes_there(hub, tmp_path):
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub.url}/\n")  # a folder from elsewhere brings this along
    arguments = ("--model", "org/name", "--timeout", "1", "--json")
    nowhere = dict(HTTPS_PROXY="http://127.0.0.1:9")  # for the other hubs
    done = run("-I", "-S", SCRIPT, *arguments, cwd=tmp_path, HF_TOKEN="secret", **nowhere)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    expect(checks["huggingface"], "warn", "hub_closed", "hub_token_kept")
    assert len(hub.headers) == 1 and hub.headers[0]["Authorization"] is None
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("data", ["# 模型\nMODELS_DIR=/m\n".encode("gbk"), "MODELS_DIR=/m\n".encode("utf-16")])
def test_an_env_file_that_is_not_utf8_is_one_line_not_a_traceback(data, tmp_path):
    (tmp_path / ".env").write_bytes(data)
    done = run("-I", "-S", SCRIPT, "--offline", "--json", cwd=tmp_path)
    said = next(check for check in json.loads(done.stdout) if check["name"] == ".env")
    expect(said, "fail", "unreadable", "env_fix")
    assert str(tmp_path / ".env") in said["text"] and "\n" not in said["text"]
    assert done.returncode == 1 and not done.stderr


def test_a_lock_that_is_no_text_is_no_lock(tmp_path):
    (tmp_path / "lock.txt").write_bytes(b"\xff\xfe\x00")
    done = run("-I", "-S", SCRIPT, "--offline", "--json", "--lock", "lock.txt", cwd=tmp_path)
    expect(next(check for check in json.loads(done.stdout) if check["name"] == "versions"), "warn", "versions_no_lock")


def test_a_bundles_lock_is_judged_by_the_tasks_requirements(tmp_path):
    """tools/bundle_run.sh stands in the task's folder and gives the lock beside it."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/requirements.in").write_text("asked==1\n")
    (tmp_path / "requirements.txt").write_text("asked==1\npulled==1\n")
    args = SimpleNamespace(task=None, model=None, lock=str(tmp_path / "requirements.txt"), offline=True, timeout=1)
    with mock.patch.object(doctor, "ask_torch", return_value={}):
        m = doctor.look(args, {}, str(tmp_path / "tiny"), None)
    assert m.task == "tiny" and m.direct == {"asked": "1"} and set(m.locked) == {"asked", "pulled"}


def pythons():
    for version in ("3.8", "3.9", "3.13"):
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
        program = pyenv[-1] if pyenv else shutil.which("python" + version)
        works = program and subprocess.run([program, "-c", ""], capture_output=True).returncode == 0
        reason = pytest.mark.skipif(not works, reason=f"no Python {version} here")
        yield pytest.param(program, id=version, marks=reason)


@pytest.mark.parametrize("python", [pytest.param(sys.executable, id="this"), *pythons()])
def test_piped_to_a_strange_machine_it_stands_alone(python, tmp_path):
    """`ssh machine python3 - < doctor.py`: no file, no repository, no packages, perhaps an old Python."""
    source = SCRIPT.read_text("utf-8")
    done = run("-I", "-S", "-", "--task", "medical", "--offline", "--json", cwd=tmp_path, stdin=source, python=python)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    expect(checks["torch"], "fail", "torch_none")
    expect(checks["versions"], "warn", "versions_no_lock")
    assert done.returncode == 1 and not done.stderr


def test_it_is_written_for_python_3_8():
    ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize(
    "arguments, locale, chinese",
    [
        ([], {}, False),
        ([], {"LANG": "zh_CN.UTF-8"}, True),
        ([], {"LC_MESSAGES": "zh_TW", "LANG": "en_US"}, True),
        ([], {"LC_ALL": "C", "LANG": "zh_CN"}, False),
        ([], {"LANGUAGE": "zh_CN:en", "LC_ALL": "en_US.UTF-8"}, True),
        (["--lang", "en"], {"LANG": "zh_CN.UTF-8"}, False),
        (["--lang", "zh"], {}, True),
    ],
)
def test_language_follows_the_locale_and_the_flag(arguments, locale, chinese, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "look", lambda *facts: machine())
    monkeypatch.setattr(doctor, "examine", lambda m: [doctor.check_gpu(m), doctor.check_shm(machine(shm=None))])
    monkeypatch.setattr(doctor, "LANG", "en")
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    assert doctor.main(arguments) == 0
    assert (doctor.TEXTS["shm_none"][chinese]) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^0$"):
        doctor.main([*arguments, "--help"])
    assert doctor.TEXTS["help_offline"][chinese] in capsys.readouterr().out


def test_the_readmes_sample_is_what_it_says():
    """Each line of the pasted output is a text of the table, with other names and numbers in it."""
    templates = {
        re.sub(r"\\{.*?\\}", ".*", re.escape(text if isinstance(text, str) else text[0]))
        for text in doctor.TEXTS.values()
    }
    for page in ("README.md", "README.zh-CN.md"):
        sample = re.search(r"```\n(ok    GPU .*?)\n```", (ROOT / "docker" / page).read_text("utf-8"), re.DOTALL)[1]
        for line in sample.splitlines()[:-1]:
            said = re.sub(r"^((ok|warn|fail) +.{12}  ?| +-> )", "", line)
            assert any(re.fullmatch(each, said) or re.search(each + "$", line) for each in templates), line
