#!/usr/bin/env python3
"""Say what would stop a training run on this machine, and the one thing to do about each problem.

One file, standard library only, Python 3.8 or newer; torch is asked where it is installed.

In the repository:     python docker/doctor.py --task medical      (make doctor TASK=medical)
In an image:           docker run --gpus all medical-train doctor
On a strange machine:  ssh the-machine python3 - --task medical < docker/doctor.py

One line per check: ok, warn (the run starts, but read this) or fail (the run stops), and the remedy below it. The exit
code is 1 if a check failed, else 0. look() collects facts, check_*() judge them, TEXTS at the end says it in words.
"""

import argparse
import glob
import http.client
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

# A recipe's default model, its size on disk in GB (16 bits), and the smallest card in GB that trains it.
SEVEN = ("Qwen/Qwen2.5-7B-Instruct", 15.2)
RECIPES = {
    "medical": SEVEN + (10,),
    "alpaca": SEVEN + (10,),
    "domain_mix": SEVEN + (10,),
    "s1_scaling": SEVEN + (24,),
    "r1_grpo": SEVEN + (24,),
    "rlhf_ppo": ("Qwen/Qwen2.5-0.5B-Instruct", 1.0, 8),
    "vl_insurance": ("Qwen/Qwen2.5-VL-3B-Instruct", 7.5, 8),
    "math_demos": (None, 0, 0),
}
# NVIDIA's compatibility table. A driver runs every minor version of a CUDA that it is new enough for.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
CU128 = ("medical", "alpaca", "domain_mix", "vl_insurance")  # these also have a lock for CUDA 12.8
CHECKPOINTS = 3.0  # GB: three checkpoints with optimizer states, the best one and the adapter
AUTODL = "/root/autodl-tmp"
HUB = "https://huggingface.co"
LANG = "en"


def say(key, **facts):
    text = TEXTS[key]
    return (text if isinstance(text, str) else text[LANG == "zh"]).format(**facts)


def result(m, name, status, text, fix=None, **more):
    """One check's outcome. text, fix: keys of TEXTS, filled in with the facts about the machine (m) and more."""
    facts = dict(vars(m), **more)
    return {"name": name, "status": status, "text": say(text, **facts), "fix": say(fix, **facts) if fix else ""}


def read_text(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# ---------------------------------------------------------------- GPU, driver, torch
def ask_nvidia_smi():
    """(GPUs, error): error is None where there is no nvidia-smi."""
    fields = "name,driver_version,memory.total,memory.free"
    for query in (fields + ",compute_cap", fields):  # drivers before 470 do not know compute_cap
        command = ["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
        except FileNotFoundError:
            return [], None
        except (OSError, subprocess.TimeoutExpired) as problem:
            return [], str(problem)
        text = done.stdout.decode(errors="replace")
        output = " ".join(text.split())[:200]
        if done.returncode == 0:
            try:
                return parse_gpus(text), say("gpu_list_empty")
            except ValueError:
                return [], say("gpu_list_unreadable", output=output)
    return [], output


def parse_gpus(text):
    """nvidia-smi's CSV (name, driver, MiB in total, MiB free, capability) as dicts, with GB and (major, minor).

    Memory is None where nvidia-smi prints [N/A]: the GPU shares the machine's RAM, or is split into parts.
    """
    gpus = []
    for line in text.strip().splitlines():
        name, driver, total, free, capability = (field.strip() for field in (line + ",").split(",")[:5])
        major(driver)  # raises ValueError where this is no list of GPUs
        total, free = (None if size.startswith("[") else float(size) * 2**20 / 1e9 for size in (total, free))
        capability = tuple(map(int, capability.split("."))) if capability[:1].isdigit() else None
        gpus.append({"name": name, "driver": driver, "total": total, "free": free, "capability": capability})
    return gpus


def major(version):
    return int(version.split(".")[0])


# In a process of its own: importing torch can crash.
TORCH_PROBE = """
import json, warnings
warnings.simplefilter("ignore")
import torch
facts = dict(version=torch.__version__, cuda=torch.version.cuda, arch_list=torch.cuda.get_arch_list(), works=False)
try:
    if torch.version.cuda:
        x = torch.ones(64, 64, device="cuda")
        facts["works"] = float((x @ x).sum()) == 64.0**3
except Exception as error:
    facts["reason"] = " ".join(str(error).split())[:160]
print(json.dumps(facts))
"""


def ask_torch():
    """What torch says of itself; {} where it is not installed, {"error": ...} where it cannot be imported."""
    if importlib.util.find_spec("torch") is None:
        return {}
    try:
        done = subprocess.run([sys.executable, "-c", TORCH_PROBE], capture_output=True, timeout=180)
        return json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    except (ValueError, IndexError):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1][:200]}


def lock_for(task, torch, driver, cu128):
    """The task's lock to compare with: that of the torch which is installed, else the one for the driver.

    cu128: {name: version} of the lock for CUDA 12.8, {} where there is none.
    """
    if "torch" in cu128 and torch.get("version", "").split("+")[0] == cu128["torch"]:
        return "requirements-cu128.txt"
    compatible = torch.get("works") and major(torch["cuda"]) == 13
    old = driver and major(driver) < OLDEST_DRIVER[13] and not compatible
    return "requirements-cu128.txt" if old and task in CU128 else "requirements.txt"


def check_gpu(m):
    if m.gpus:
        names = ", ".join(sorted({gpu["name"] for gpu in m.gpus}))
        return result(m, "GPU", "ok", "gpu", count=len(m.gpus), names=names)
    if m.gpu_error is None:
        return result(m, "GPU", "warn", "gpu_none", "gpu_none_fix")
    return result(
        m, "GPU", "fail", "gpu_error", "gpu_restart" if "version mismatch" in m.gpu_error else "gpu_reinstall"
    )


def check_driver(m):
    """Torch that computes is proof enough: NVIDIA's compatibility package runs a newer CUDA on an older driver."""
    driver, cuda = m.gpus[0]["driver"], m.torch.get("cuda")
    facts = {"driver": driver, "cuda": cuda or "13.0", "need": OLDEST_DRIVER.get(major(cuda or "13.0"), 0)}
    if major(driver) >= facts["need"] or m.torch.get("works"):
        return result(m, "driver", "ok", "driver", **facts)
    if facts["need"] == OLDEST_DRIVER[13] and major(driver) >= OLDEST_DRIVER[12] and m.task in CU128:
        # Before torch is installed the other lock is still open.
        return result(m, "driver", "fail" if cuda else "warn", "driver_old", "driver_or_cu128", **facts)
    return result(m, "driver", "fail", "driver_old", "driver_update", **facts)


def check_kernels(m):
    """sm_86 runs on 8.6 and 8.9, not on 9.0; sm_90a on 9.0 alone; compute_80 is translated by any newer GPU's driver."""
    capability, archs = m.gpus[0]["capability"], " ".join(m.torch.get("arch_list", []))
    if not capability or not archs:
        return None
    covered, newest = False, (0, 0)
    for kind, digits, exact in re.findall(r"\b(sm|compute)_(\d+)([af]?)\b", archs):
        have = divmod(int(digits), 10)
        newest = max(newest, have)
        if exact:
            covered |= kind == "sm" and have == capability
        else:
            covered |= have <= capability and (kind == "compute" or have[0] == capability[0])
    facts = {"version": m.torch["version"], "sm": "sm_{}{}".format(*capability), "archs": archs}
    if covered:
        return result(m, "kernels", "ok", "kernels", **facts)
    return result(m, "kernels", "fail", "kernels_none", "kernels_lock" if capability > newest else "gpu_old", **facts)


def check_torch(m):
    facts = dict({"reason": say("torch_wrong")}, **m.torch)
    if not m.torch or "error" in m.torch:
        return result(m, "torch", "fail", "torch_broken" if m.torch else "torch_none", "torch_install", **facts)
    if not m.gpus:
        return result(m, "torch", "ok", "torch_cpu", **facts)
    if facts["cuda"] is None:
        return result(m, "torch", "fail", "torch_cpu_build", "torch_install", **facts)
    if not facts["works"]:
        return result(m, "torch", "fail", "torch_no_gpu", "torch_no_gpu_fix", **facts)
    return result(m, "torch", "ok", "torch", **facts)


def check_gpu_memory(m):
    known = [gpu for gpu in m.gpus if gpu["free"] is not None and gpu["total"] is not None]
    if not known:
        return result(m, "GPU memory", "warn", "gpu_memory_unknown", "gpu_memory_unknown_fix")
    best = max(known, key=lambda gpu: gpu["free"])
    if best["free"] >= 0.9 * m.card:  # a "10 GB" card has 9.7, less what the driver takes
        return result(m, "GPU memory", "ok", "gpu_memory", **best)
    fix = "gpu_memory_busy" if best["total"] >= 0.9 * m.card else "gpu_memory_small"
    # The recipe's figure says little about another model.
    return result(m, "GPU memory", "warn" if m.other_model else "fail", "gpu_memory", fix, **best)


def check_compiler(m):
    """Triton compiles a C file for each kernel."""
    if m.compiler and m.header:
        return result(m, "compiler", "ok", "compiler")
    return result(m, "compiler", "fail", "header_none" if m.compiler else "compiler_none", "compiler_fix")


# ---------------------------------------------------------------- Python and its packages
def parse_lock(text):
    """{normalised name: version} of the `name==version` lines, less those for another Python."""
    marker = r"(?:\s*;\s*python_(?:full_)?version (<|>=) '3\.(\d+)')?"
    lines = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)" + marker, text, re.MULTILINE)
    ours = sys.version_info[1]
    return {normal(name): version for name, version, op, minor in lines if not op or (ours < int(minor)) == (op == "<")}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_packages():
    from importlib import metadata

    found = {}
    for each in metadata.distributions():  # in the order of sys.path, and the first one is imported
        if each.metadata["Name"]:
            found.setdefault(normal(each.metadata["Name"]), each.version)
    return found


def check_python(m):
    if m.python < (3, 11):
        return result(m, "Python", "fail", "python", "python_old")
    if m.hashed and (m.python, m.system) != ((3, 12), "Linux x86_64"):
        return result(m, "Python", "warn", "python", "python_lock")
    return result(m, "Python", "ok", "python")


def check_versions(m):
    """A difference in what requirements.in names is a failure, in what that pulls in a warning."""
    if not m.locked:
        return result(m, "versions", "warn", "versions_no_lock", "versions_no_lock_fix")
    have, total = m.installed, len(m.locked)
    wrong = sorted(name for name in m.locked if have.get(name, "").split("+")[0] != m.locked[name])
    missing = sum(name not in have for name in wrong)
    if not wrong:
        return result(m, "versions", "ok", "versions", total=total)
    if missing > total / 2:
        return result(m, "versions", "fail", "versions_missing", "pip_lock", missing=missing, total=total)
    ours = [name for name in wrong if name in m.direct]
    shown = [f"{name} {have.get(name) or say('missing')} ({m.locked[name]})" for name in ours or wrong]
    drift = ", ".join(shown[:4]) + (" …" if len(shown) > 4 else "")
    status = "fail" if ours else "warn"
    return result(m, "versions", status, "versions_differ", "pip_lock", count=len(wrong), drift=drift)


def check_leftovers(m):
    """Packages compiled for the torch of the machine's own image break the import of another torch."""
    if not m.locked:
        return None
    names = ("torchvision", "torchaudio", "xformers", "flash-attn", "vllm")
    left = [name for name in names if name in m.installed and name not in m.locked]
    if not left:
        return result(m, "leftovers", "ok", "leftovers_none")
    return result(
        m, "leftovers", "warn", "leftovers", "leftovers_fix", names=", ".join(left), packages=" ".join(left)
    )


# ---------------------------------------------------------------- disk, RAM, /dev/shm, rights
def nearest(folder):
    """The folder, or the one above it that exists: where it would be made."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def free_ram(meminfo="/proc/meminfo", cgroup="/sys/fs/cgroup"):
    """GB that this process may still take, by the machine and by its container (cgroup v2, v1); None if unknown."""
    match = re.search(r"MemAvailable:\s+(\d+)", read_text(meminfo))
    if not match:
        return None
    free = int(match[1]) * 1024
    v2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    v1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")
    for *files, cache in (v2, v1):
        limit, used, stat = (read_text(os.path.join(cgroup, file)) for file in files)
        if limit.strip().isdigit():  # not "max"; v1 has a huge number for that
            # The cache of files that were read counts as used, but the kernel gives it up on demand.
            match = re.search(rf"^{cache} (\d+)", stat, re.MULTILINE)
            free = min(free, int(limit) - int(used or 0) + int(match[1] if match else 0))
            break
    return free / 1e9


def check_disk(m):
    """Needs on one file system are added up."""
    short, texts = [], []
    for device in dict.fromkeys(place["device"] for place in m.places):
        here = [place for place in m.places if place["device"] == device]
        names, need, free = [place["name"] for place in here], sum(place["need"] for place in here), here[0]["free"]
        texts.append(say("disk_place", names="+".join(names), free=free, need=need))
        short += names if free < need else []
    status, fix = ("fail", "disk_fix") if short else ("ok", None)
    return result(m, "disk", status, "disk", fix, places="; ".join(texts), names=" ".join(short))


def check_ram(m):
    """Loading goes file by file (4 GB each at most); merging an adapter holds the 16-bit model."""
    if m.ram is None:
        return None
    if m.ram < min(6, max(2, m.size)):
        return result(m, "RAM", "fail", "ram_small", "ram_fix")
    if m.ram < m.size:
        return result(m, "RAM", "warn", "ram_merge", "ram_fix")
    return result(m, "RAM", "ok", "ram")


def check_shm(m):
    """Data loaders and NCCL pass their batches through it."""
    if m.shm is None or m.shm >= 0.95:
        return result(m, "/dev/shm", "ok", "shm_none" if m.shm is None else "shm")
    return result(m, "/dev/shm", "fail" if len(m.gpus) > 1 else "warn", "shm_small", "shm_fix", mb=m.shm * 1000)


def check_write(m):
    failed = {}
    for place in m.places:
        try:
            with tempfile.NamedTemporaryFile(dir=nearest(place["folder"]), prefix=".doctor-"):
                pass
        except OSError as error:
            failed[f"{place['name']} ({place['folder']}: {error.strerror})"] = place["need"] > 0
    if not failed:
        return result(m, "write access", "ok", "write", names=" ".join(place["name"] for place in m.places))
    status = "fail" if any(failed.values()) else "warn"
    user = os.getuid() if hasattr(os, "getuid") else 0
    return result(m, "write access", status, "write_denied", "write_fix", failed=", ".join(failed), user=user)


# ---------------------------------------------------------------- paths: the same rules as common/paths.py
def find_task(task, cwd, script):
    """(task, its folder): --task, else the folder we stand in if it is one. script: this file, or None from a pipe."""
    roots = [cwd, os.path.dirname(cwd)] + ([os.path.dirname(os.path.dirname(script))] if script else [])
    if task is None and os.path.isfile(os.path.join(cwd, "requirements.in")):
        task = os.path.basename(cwd)
    for root in roots:
        if task and os.path.isfile(os.path.join(root, task, "requirements.in")):
            return task, os.path.join(root, task)
    return task, cwd


def read_env_file(path, values):
    """Add the NAME=VALUE lines of a .env file to values, as python-dotenv does. Returns why it cannot be read, or ""."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError:
        return say("not_utf8")
    except OSError as error:
        return error.strerror if os.path.isfile(path) else ""
    known = dict(values)
    for line in lines:
        match = re.match(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*$", line)
        if match:
            quoted = re.match(r"(['\"])(.*)\1", match[2])
            value = quoted[2] if quoted else re.split(r"\s+#", match[2])[0]
            value = re.sub(r"\$\{([^}:]*)(?::-([^}]*))?\}", lambda part: known.get(part[1], part[2] or ""), value)
            known[match[1]] = value
            values.setdefault(match[1], value)
    return ""


def settings(environ, cwd, task_dir, autodl=AUTODL):
    """(the variables as the recipes' scripts see them: environment, .env files, defaults; {.env file: error})."""
    values, errors = dict(environ), {}
    for folder in dict.fromkeys((cwd, task_dir, os.path.dirname(task_dir))):
        path = os.path.join(folder, ".env")
        errors[path] = read_env_file(path, values)
    values = {name: value for name, value in values.items() if value}
    rented = os.path.isdir(autodl)
    for name, folder in (("MODELS_DIR", "models"), ("DATA_DIR", "data"), ("OUTPUT_DIR", "outputs")):
        values.setdefault(name, os.path.join(autodl if rented else cwd, folder))
    values.setdefault("HF_HOME", os.path.join(autodl, "huggingface") if rented else "~/.cache/huggingface")
    for name in ("MODELS_DIR", "DATA_DIR", "OUTPUT_DIR", "HF_HOME"):
        values[name] = os.path.expanduser(values[name])
    values.setdefault("MODEL_SOURCE", "huggingface")
    return values, {path: error for path, error in errors.items() if error}


def check_env(m):
    """Every script of the recipes stops at such a file, too."""
    for path, error in m.env_errors.items():
        return result(m, ".env", "fail", "unreadable", "env_fix", path=path, error=error)
    return None


# ---------------------------------------------------------------- model and data
def find_model(name, values):
    """The folder of a model on this machine, or None: a path, MODELS_DIR in both spellings, the hub's cache."""
    modelscope = name.replace(".", "___")
    root, cache = values["MODELS_DIR"], os.path.join(values["HF_HOME"], "hub", "models--" + name.replace("/", "--"))
    places = [os.path.expanduser(name), os.path.join(root, name), os.path.join(root, modelscope)]
    places.append(os.path.join(root, "models", modelscope))
    if values["MODEL_SOURCE"] != "modelscope":
        # A download into the cache that broke off is no fault: the run completes it.
        snapshots = sorted(glob.glob(os.path.join(cache, "snapshots", "*")))
        places += [place for place in snapshots if not broken_weights(place)]
    return next((place for place in places if os.path.isfile(os.path.join(place, "config.json"))), None)


def model_size(name, found, default):
    """GB on disk: of the files that are there, else by the name ("-1.5B-", 16 bits), else default."""
    if found:
        return sum(os.path.getsize(each) for each in glob.glob(os.path.join(found, "*.safetensors"))) / 1e9 or default
    match = re.search(r"[-_](\d+(?:\.\d+)?)([BM])(?![a-z0-9])", name, re.IGNORECASE)
    return float(match[1]) * (2 if match[2] in "Bb" else 0.002) if match else default


def broken_weights(folder):
    """What is wrong with a model's *.safetensors, as text; "" where every file is there and as long as it says it is."""
    names = {os.path.basename(path) for path in glob.glob(os.path.join(folder, "*.safetensors"))}
    index = os.path.join(folder, "model.safetensors.index.json")
    try:
        if os.path.isfile(index):
            with open(index, encoding="utf-8") as file:
                names |= set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return say("file_damaged", file=os.path.basename(index), size=os.path.getsize(index))
    for name in sorted(names):
        path, whole = os.path.join(folder, name), None
        if not os.path.isfile(path):
            return say("file_missing", file=name)
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length < 10**8 else {}
            whole = 8 + length + max(each["data_offsets"][1] for key, each in header.items() if key != "__metadata__")
        except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError):
            pass
        if os.path.getsize(path) != whole:
            return say("file_damaged", file=name, size=os.path.getsize(path))
    return "" if names else say("weights_none")


def how_to_get(name, values, script):
    """The command that brings a model to where it will be found: ours in the repository, else the hub's own."""
    key = "get_modelscope" if values["MODEL_SOURCE"] == "modelscope" else "get_huggingface"
    if script and os.path.isfile(os.path.join(os.path.dirname(os.path.dirname(script)), "tools", "fetch.py")):
        key = "get_ours"
    return say(key, model=name, folder=os.path.join(values["MODELS_DIR"], name))


def on_a_hub(name):
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name)


def check_model(m):
    if m.found:
        if m.broken:
            return result(m, "model", "fail", "model_broken", "model_again")
        return result(m, "model", "ok", "model")
    if not on_a_hub(m.model):
        return result(m, "model", "fail", "model_nowhere", "model_nowhere_fix")
    return result(m, "model", "warn", "model_to_fetch", "model_get")


def check_data(m):
    """The data folder of a task: <TASK>_DATA_DIR, else DATA_DIR/<task>."""
    own, error, key = m.task.upper() + "_DATA_DIR", "", "data_empty"
    path = os.path.expanduser(m.values.get(own) or os.path.join(m.values["DATA_DIR"], m.task))
    try:
        if os.path.isfile(path) or os.listdir(path):
            return result(m, "data", "ok", "data", path=path)
    except FileNotFoundError:
        key = "data_none"
    except OSError as problem:
        key, error = "unreadable", problem.strerror
    return result(m, "data", "warn", key, "data_fix", path=path, error=error, own=own)


# ---------------------------------------------------------------- hubs
class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None  # an answer that points elsewhere is an answer


def probe(url, timeout, token=None):
    """(HTTP status or None, seconds or the reason why there was no answer)."""
    began = time.time()
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "doctor"})
        # A .env file can name any host as HF_ENDPOINT: the token is for the hub alone, and not for http.
        if token and url.startswith(HUB + "/"):
            # Python's error about a line break in a header would show the token.
            request.add_header("Authorization", "Bearer " + "".join(token.split()))
        with urllib.request.build_opener(NoRedirect).open(request, timeout=timeout) as answer:
            return answer.status, time.time() - began
    except urllib.error.HTTPError as error:
        return error.code, time.time() - began
    except (OSError, ValueError, http.client.HTTPException) as error:
        return None, str(getattr(error, "reason", error)) or type(error).__name__


def probe_all(urls, timeout, token=None):
    """Probe several at once: {name: url} -> {name: (status, seconds or reason)}. Nothing takes longer than the timeout.

    The resolver of names knows no timeout, so each probe is a thread that may be left behind.
    """
    found = {name: (None, say("timed_out")) for name in urls}

    def ask(name, url):
        found[name] = probe(url, timeout, token)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in urls.items()]
    for thread in threads:
        thread.start()
    deadline = time.time() + timeout + 0.5
    for thread in threads:
        thread.join(max(0.0, deadline - time.time()))
    return dict(found)


def hub_urls(endpoint, model):
    """What each hub is asked for: Hugging Face for a file of the model itself, which tells gated from gone."""
    return {
        "huggingface": f"{endpoint}/{model}/resolve/main/config.json",
        "modelscope": f"https://www.modelscope.cn/api/v1/models/{model}",
        "xet": "https://cas-server.xethub.hf.co/",
    }


def check_hub(m, hub, other):
    """The model may still have to come from here; then a hub that does not give it stops the run."""
    url, (status, more) = m.urls[hub], m.outcomes[hub]
    host = url.partition("://")[2].split("/")[0].rpartition("@")[2] or url  # no scheme: all of it is wrong
    bad = "fail" if not m.found and m.values["MODEL_SOURCE"] == hub else "warn"
    if status is None:
        text, fix = "hub_silent", "hub_proxy"
        if hub == "huggingface":
            fix = "hub_mirror" if m.outcomes[other][0] is None else "hub_other"
    elif status in (401, 403):
        text, fix = "hub_closed", "hub_licence"
        if hub == "huggingface" and m.values.get("HF_TOKEN") and m.endpoint != HUB:
            bad, fix = "warn", "hub_token_kept"
    elif status == 404:
        text, fix = "hub_no_model", "hub_no_model_fix"
    elif status >= 400:
        text, fix = "hub_error", "hub_later"
    else:
        bad, text, fix = "ok", "hub", None
    return result(m, hub, bad, text, fix, host=host, code=status, more=more)


def check_xet(m):
    """Xet fetches large files from a host of its own: past a mirror, and where that host is blocked, not at all."""
    disabled = m.values.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
    if disabled or not m.xet:
        return result(m, "Xet", "ok", "xet_off")
    if m.endpoint != HUB:
        return result(m, "Xet", "warn", "xet_mirror", "xet_fix")
    if m.outcomes["xet"][0] is None:
        return result(m, "Xet", "warn", "xet_silent", "xet_fix")
    return result(m, "Xet", "ok", "xet")


# ---------------------------------------------------------------- all of it
def look(args, environ, cwd, script):
    """The facts about this machine and this run that the checks judge."""
    m = SimpleNamespace()
    m.task, task_dir = find_task(args.task, cwd, script)
    default, m.size, m.card = RECIPES.get(m.task, RECIPES["medical"])
    m.recipe, m.model = m.task or "7B", args.model or default
    m.other_model = m.model != default
    m.values, m.env_errors = settings(environ, cwd, task_dir)

    m.gpus, m.gpu_error = ask_nvidia_smi()
    m.torch = ask_torch()
    compilers = (shutil.which(name) for name in (environ.get("CC") or "gcc", "cc", "clang"))
    m.compiler = next(filter(None, compilers), None)
    m.header = os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
    m.python, m.system = sys.version_info[:2], f"{platform.system()} {platform.machine()}"
    m.python_name = "{}.{}".format(*m.python)

    cu128 = parse_lock(read_text(os.path.join(task_dir, "requirements-cu128.txt")))
    m.lock = lock_for(m.task, m.torch, m.gpus[0]["driver"] if m.gpus else None, cu128)
    laptop = os.path.join(os.path.dirname(task_dir), "requirements-cpu.txt")
    default_lock = laptop if not m.gpus and os.path.isfile(laptop) else os.path.join(task_dir, m.lock)
    m.lock_file = args.lock or default_lock
    lock_text = read_text(m.lock_file)
    m.locked, m.hashed = parse_lock(lock_text), "--hash" in lock_text
    # requirements-cpu.txt has an .in file of its own; others share the task's.
    sources = (os.path.splitext(m.lock_file)[0] + ".in", os.path.join(task_dir, "requirements.in"))
    m.direct = next(filter(None, (parse_lock(read_text(path)) for path in sources)), m.locked)
    m.installed = installed_packages() if m.locked else {}

    m.found = find_model(m.model, m.values) if m.model else None
    m.broken = broken_weights(m.found) if m.found else ""
    if m.found or m.other_model:
        m.size = model_size(m.model, m.found, m.size)
    m.source = m.values["MODEL_SOURCE"]
    m.command = how_to_get(m.model, m.values, script) if m.model else ""
    fetched_to = "MODELS_DIR" if m.source == "modelscope" else "HF_HOME"
    m.places = [
        {"name": fetched_to, "need": 0 if m.found else m.size},
        {"name": "OUTPUT_DIR", "need": CHECKPOINTS + m.size},
    ]
    for place in m.places:
        place["folder"] = m.values[place["name"]]
        place["free"] = shutil.disk_usage(nearest(place["folder"])).free / 1e9
        place["device"] = os.stat(nearest(place["folder"])).st_dev
    m.ram = free_ram()
    m.shm = shutil.disk_usage("/dev/shm").total / 1e9 if os.path.isdir("/dev/shm") else None

    m.urls = {}
    if m.model and not args.offline and on_a_hub(m.model):
        m.endpoint = m.values.get("HF_ENDPOINT", HUB).rstrip("/")
        m.urls = hub_urls(m.endpoint, m.model)
        m.outcomes = probe_all(m.urls, args.timeout, m.values.get("HF_TOKEN"))
        m.xet = importlib.util.find_spec("hf_xet")
    return m


def examine(m):
    """Run every check that applies -> list of results."""
    checks = [check_gpu(m)]
    if m.gpus:
        checks += [check_driver(m), check_kernels(m)]
    checks.append(check_torch(m))
    if m.gpus:
        checks += [check_gpu_memory(m) if m.card else None, check_compiler(m)]
    checks += [check_python(m), check_versions(m), check_leftovers(m), check_env(m)]
    checks += [check_disk(m), check_ram(m), check_shm(m), check_write(m)]
    checks += [check_model(m) if m.model else None, check_data(m) if m.task in RECIPES else None]
    if m.urls:
        checks += [check_hub(m, "huggingface", "modelscope"), check_hub(m, "modelscope", "huggingface"), check_xet(m)]
    return [check for check in checks if check]


def main(argv=None):
    global LANG
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # `ssh machine python3 -` comes without a locale
    variables = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    locale = next(filter(None, map(os.environ.get, variables)), "")
    language = argparse.ArgumentParser(add_help=False)
    language.add_argument("--lang", choices=["en", "zh"], help=", ".join(variables))
    LANG = language.parse_known_args(argv)[0].lang or ("zh" if locale.lower().startswith("zh") else "en")
    parser = argparse.ArgumentParser(description=say("help"), parents=[language])
    for flag in ("task", "model", "lock"):
        parser.add_argument("--" + flag, help=say("help_" + flag))
    parser.add_argument("--offline", action="store_true", help=say("help_offline"))
    parser.add_argument("--timeout", type=float, default=5, help=say("help_timeout"))
    parser.add_argument("--json", action="store_true", help=say("help_json"))
    args = parser.parse_args(argv)
    script = globals().get("__file__")
    script = os.path.abspath(script) if script and os.path.isfile(script) else None
    checks = examine(look(args, os.environ, os.getcwd(), script))
    if args.json:
        print(json.dumps(checks, ensure_ascii=False, indent=1))
    else:
        for check in checks:
            print(f"{check['status']:<4}  {check['name']:<12}  {check['text']}")
            if check["fix"]:
                print(f"{'':17} -> {check['fix']}")
        counts = {status: sum(check["status"] == status for check in checks) for status in ("ok", "warn", "fail")}
        print(say("summary", **counts))
    return int(any(check["status"] == "fail" for check in checks))


