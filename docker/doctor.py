#!/usr/bin/env python3
"""Say what would stop a training run on this machine, and the one thing to do about each problem.

In the repository:     python docker/doctor.py --task medical      (make doctor TASK=medical)
In an image:           docker run --gpus all medical-train doctor
On a strange machine:  ssh the-machine python3 - --task medical < docker/doctor.py

One file, standard library only, Python 3.8 or newer; torch is asked where it is installed. One line per check: ok, warn
(the run starts, but read this) or fail (the run stops), and the remedy below it. The exit code is 1 if a check failed.
look() collects the facts (m), each check_...(m) judges some of them, and TEXTS at the end holds every text.
"""

import argparse
import glob
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
    "continual": ("Qwen/Qwen2.5-7B", 15.2, 12),
    "lora_variants": SEVEN + (10,),
    "s1_scaling": SEVEN + (24,),
    "r1_grpo": SEVEN + (24,),
    "rlhf_ppo": ("Qwen/Qwen2.5-0.5B-Instruct", 1.0, 8),
    "preference": SEVEN + (12,),
    "vl_insurance": ("Qwen/Qwen2.5-VL-3B-Instruct", 7.5, 8),
    "math_demos": (None, 0, 0),
}
# NVIDIA's compatibility table. A driver runs every minor version of a CUDA that it is new enough for.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# These also have a lock for CUDA 12.8.
CU128 = ("medical", "alpaca", "domain_mix", "lora_variants", "preference", "vl_insurance")
CHECKPOINTS = 3.0  # GB: three checkpoints with optimizer states, the best one and the adapter
AUTODL = "/root/autodl-tmp"
FOLDERS = ("MODELS_DIR", "DATA_DIR", "OUTPUT_DIR", "HF_HOME")
ENV_NAMES = FOLDERS + ("MODEL_SOURCE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET")  # and <TASK>_DATA_DIR
ENV_NAMES += ("MODELSCOPE_API_TOKEN", "WANDB_API_KEY", "SWANLAB_API_KEY")
HUB = "https://huggingface.co"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LANG = "en"


def say(key, **facts):
    text = TEXTS[key]
    return (text if isinstance(text, str) else text[LANG == "zh"]).format(**facts)


def result(m, name, status, text, fix=None, **more):
    """One check's outcome. text, fix: keys of TEXTS, filled in with the facts in m and more."""
    facts = dict(vars(m), **more)
    return {"name": name, "status": status, "text": say(text, **facts), "fix": say(fix, **facts) if fix else ""}


def read_text(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# ---------------------------------------------------------------- GPU, driver, torch
def major(version):
    return int(version.split(".")[0])


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


def ask_nvidia_smi():
    """(GPUs, error): error is None where there is no nvidia-smi."""
    fields, error = "name,driver_version,memory.total,memory.free", None
    for query in (fields + ",compute_cap", fields):  # drivers before 470 do not know compute_cap
        command = ["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30)
            error = " ".join((done.stdout + done.stderr).split())[:200]
            if done.returncode == 0:
                return parse_gpus(done.stdout), say("gpu_list_empty")
        except FileNotFoundError:
            return [], None
        except ValueError:
            return [], say("gpu_list_unreadable", output=error)
        except (OSError, subprocess.TimeoutExpired) as problem:
            return [], str(problem)
    return [], error


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
        command = [sys.executable, "-c", TORCH_PROBE]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=180)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    except (ValueError, IndexError):
        return {"error": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1][:200]}


def lock_for(task, torch, driver, cu128):
    """The lock to compare with: that of the torch which is installed, else the one for the driver.

    cu128: {name: version} of the task's lock for CUDA 12.8, {} where there is none.
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
    fix = "gpu_restart" if "version mismatch" in m.gpu_error else "gpu_reinstall"
    return result(m, "GPU", "fail", "gpu_error", fix)


def check_driver(m):
    """Torch that computes is proof enough: NVIDIA's compatibility package runs a newer CUDA on an older driver."""
    driver, cuda = m.gpus[0]["driver"], m.torch.get("cuda") or "13.0"
    need = OLDEST_DRIVER.get(major(cuda), 0)
    status, text, fix = "fail", "driver_old", "driver_update"
    if major(driver) >= need or m.torch.get("works"):
        status, text, fix = "ok", "driver", None
    elif major(cuda) == 13 and major(driver) >= OLDEST_DRIVER[12] and m.task in CU128:
        # Before torch is installed, the other lock is still open.
        status, fix = "fail" if m.torch.get("cuda") else "warn", "driver_or_cu128"
    return result(m, "driver", status, text, fix, driver=driver, cuda=cuda, need=need)


def check_kernels(m):
    """sm_86 runs on 8.6 and 8.9, not on 9.0; sm_90a on 9.0 alone; compute_80 is translated by any newer GPU's driver."""
    capability, archs = m.gpus[0]["capability"], " ".join(m.torch.get("arch_list", []))
    if not capability or not archs:
        return None
    covered, newest = False, (0, 0)
    for kind, digits, exact in re.findall(r"\b(sm|compute)_(\d+)([af]?)\b", archs):
        have = divmod(int(digits), 10)
        newest = max(newest, have)
        newer = not exact and have <= capability and (kind == "compute" or have[0] == capability[0])
        covered = covered or newer or have == capability
    fix = "kernels_lock" if capability > newest else "gpu_old"
    status, text, fix = ("ok", "kernels", None) if covered else ("fail", "kernels_none", fix)
    sm = "sm_{}{}".format(*capability)
    return result(m, "kernels", status, text, fix, version=m.torch["version"], sm=sm, archs=archs)


def check_torch(m):
    status, text, fix = "fail", "torch_none", "torch_install"
    if m.torch.get("error"):
        text = "torch_broken"
    elif m.torch and not m.gpus:
        status, text, fix = "ok", "torch_cpu", None
    elif m.torch and m.torch["cuda"] is None:
        text = "torch_cpu_build"
    elif m.torch and not m.torch["works"]:
        text, fix = "torch_no_gpu", "torch_no_gpu_fix"
    elif m.torch:
        status, text, fix = "ok", "torch", None
    return result(m, "torch", status, text, fix, **dict({"reason": say("torch_wrong")}, **m.torch))


def check_gpu_memory(m):
    known = [gpu for gpu in m.gpus if None not in (gpu["free"], gpu["total"])]
    if not known:
        return result(m, "GPU memory", "warn", "gpu_memory_unknown", "gpu_memory_unknown_fix")
    free, total = max((gpu["free"], gpu["total"]) for gpu in known)
    enough = 0.9 * m.card  # a "10 GB" card has 9.7, less what the driver takes
    if free >= enough:
        return result(m, "GPU memory", "ok", "gpu_memory", free=free, total=total)
    status = "warn" if m.other_model else "fail"  # the recipe's figure says little about another model
    fix = "gpu_memory_busy" if total >= enough else "gpu_memory_small"
    return result(m, "GPU memory", status, "gpu_memory", fix, free=free, total=total)


def check_compiler(m):
    """Triton compiles a C file for each kernel."""
    if m.compiler and m.header:
        return result(m, "compiler", "ok", "compiler")
    return result(m, "compiler", "fail", "header_none" if m.compiler else "compiler_none", "compiler_fix")


# ---------------------------------------------------------------- Python and its packages
def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_lock(text):
    """{normalised name: version} of the `name==version` lines, less those for another Python."""
    marker = r"(?:\s*;\s*python_(?:full_)?version (<|>=) '3\.(\d+)')?"
    lines = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)" + marker, text, re.MULTILINE)
    ours = sys.version_info[1]
    return {normal(name): version for name, version, op, minor in lines if not op or (ours < int(minor)) == (op == "<")}


def installed_packages():
    from importlib import metadata

    found = reversed(list(metadata.distributions()))  # of two versions the first on sys.path is imported
    return {normal(each.metadata["Name"]): each.version for each in found if each.metadata["Name"]}


def check_python(m):
    status, fix = "ok", None
    if m.python < (3, 11):
        status, fix = "fail", "python_old"
    elif m.hashed and (m.python, m.system) != ((3, 12), "Linux x86_64"):
        status, fix = "warn", "python_lock"
    return result(m, "Python", status, "python", fix)


def check_versions(m):
    """A difference in what requirements.in names is a failure, in what that pulls in a warning."""
    if not m.locked:
        return result(m, "versions", "warn", "versions_no_lock", "versions_no_lock_fix")
    have, total = m.installed, len(m.locked)
    wrong = sorted(name for name in m.locked if (have.get(name) or "").split("+")[0] != m.locked[name])
    missing = sum(not have.get(name) for name in wrong)
    if not wrong:
        return result(m, "versions", "ok", "versions", total=total)
    if missing > total / 2:
        return result(m, "versions", "fail", "versions_missing", "pip_lock", missing=missing, total=total)
    ours = [name for name in wrong if name in m.direct]
    shown = [f"{name} {have.get(name) or say('missing')} ({m.locked[name]})" for name in ours or wrong]
    drift, status = ", ".join(shown[:4]) + (" …" if len(shown) > 4 else ""), "fail" if ours else "warn"
    return result(m, "versions", status, "versions_differ", "pip_lock", count=len(wrong), drift=drift)


def check_leftovers(m):
    """Packages compiled for the torch of the machine's own image break the import of another torch."""
    names = ("torchvision", "torchaudio", "xformers", "flash-attn", "vllm")
    left = [name for name in names if name in m.installed and name not in m.locked]
    status, text, fix = ("warn", "leftovers", "leftovers_fix") if left else ("ok", "leftovers_none", None)
    return result(m, "leftovers", status, text, fix, names=", ".join(left), packages=" ".join(left))


# ---------------------------------------------------------------- disk, RAM, /dev/shm, rights
def nearest(folder):
    """The folder, or the one above it that exists: where it would be made."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def free_ram(meminfo="/proc/meminfo", cgroup="/sys/fs/cgroup"):
    """GB that this process may still take, by the machine and by its container (cgroup v2, v1); None if unknown."""
    available = re.search(r"MemAvailable:\s+(\d+)", read_text(meminfo))
    if not available:
        return None
    free = int(available[1]) * 1024
    v2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    v1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")
    for *files, cache in (v2, v1):
        limit, used, stat = (read_text(os.path.join(cgroup, file)) for file in files)
        if limit.strip().isdigit():  # not "max"; v1 has a huge number for that
            # The cache of files that were read counts as used, but the kernel gives it up on demand.
            cached = re.search(rf"^{cache} (\d+)", stat, re.MULTILINE)
            free = min(free, int(limit) - int(used or 0) + int(cached[1] if cached else 0))
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
    failed, status, fix = [], "ok", None
    for place in reversed(m.places):
        try:
            with tempfile.NamedTemporaryFile(dir=nearest(place["folder"]), prefix=".doctor-"):
                pass
        except OSError as error:
            failed.append(f"{place['name']} ({place['folder']}: {error.strerror})")
            status, fix = "fail" if place["need"] or status == "fail" else "warn", "write_fix"
    names, user = " ".join(place["name"] for place in reversed(m.places)), os.getuid() if hasattr(os, "getuid") else 0
    text = "write_denied" if failed else "write"
    return result(m, "write access", status, text, fix, names=names, failed=", ".join(failed), user=user)


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


def read_env_file(path, values, own):
    """Add a .env file's NAME=VALUE lines to values, as common/paths.py reads them. Returns why it cannot be read, or "".

    own: the <TASK>_DATA_DIR that the recipe reads.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError:
        return say("not_utf8")
    except OSError as error:
        return error.strerror if os.path.isfile(path) else ""
    if "\0" in "".join(lines):  # no variable can hold it
        return say("not_utf8")
    known = dict(values)
    for match in filter(None, (re.match(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*$", line) for line in lines)):
        quoted = re.match(r"(['\"])(.*)\1", match[2])
        value = quoted[2] if quoted else re.split(r"\s+#", match[2])[0]
        plain = value
        value = re.sub(r"\$\{([^}:]*)(?::-([^}]*))?\}", lambda part: known.get(part[1], part[2] or ""), value)
        known[match[1]] = value
        if match[1] in ENV_NAMES or match[1] == own:
            # ${NAME} counts in folders only: in an address it would carry a secret of the environment away.
            values.setdefault(match[1], value if match[1].endswith(("_DIR", "_HOME")) else plain)
    return ""


def settings(environ, cwd, task_dir, autodl=AUTODL, task=None):
    """(the variables as the recipes' scripts see them: environment, .env files, defaults; {.env file: error})."""
    values, folders = dict(environ), dict.fromkeys((cwd, task_dir, os.path.dirname(task_dir)))
    own = (task or os.path.basename(task_dir)).upper() + "_DATA_DIR"
    errors = {path: read_env_file(path, values, own) for path in (os.path.join(folder, ".env") for folder in folders)}
    values = {name: value for name, value in values.items() if value}
    rented = os.path.isdir(autodl)
    for name, folder in (("MODELS_DIR", "models"), ("DATA_DIR", "data"), ("OUTPUT_DIR", "outputs")):
        values.setdefault(name, os.path.join(autodl if rented else cwd, folder))
    values.setdefault("HF_HOME", os.path.join(autodl, "huggingface") if rented else "~/.cache/huggingface")
    for name in FOLDERS:
        values[name] = os.path.expanduser(values[name])
    values.setdefault("MODEL_SOURCE", "huggingface")
    return values, {path: error for path, error in errors.items() if error}


# ---------------------------------------------------------------- model and data
def inside(folder, pattern):
    return sorted(glob.glob(os.path.join(glob.escape(str(folder)), pattern)))


def find_model(name, values):
    """The folder of a model on this machine, or None: a path, MODELS_DIR in both spellings, the hub's cache."""
    modelscope = name.replace(".", "___")
    root, cache = values["MODELS_DIR"], os.path.join(values["HF_HOME"], "hub", "models--" + name.replace("/", "--"))
    places = [os.path.expanduser(name), os.path.join(root, name), os.path.join(root, modelscope)]
    places.append(os.path.join(root, "models", modelscope))
    if values["MODEL_SOURCE"].lower() != "modelscope":
        # A download into the cache that broke off is no fault: the run completes it.
        places += [place for place in inside(cache, "snapshots/*") if not broken_weights(place)]
    return next((place for place in places if os.path.isfile(os.path.join(place, "config.json"))), None)


def model_size(name, found, default):
    """GB on disk: of the files that are there, else by the name ("-1.5B-", 16 bits), else default."""
    if found:
        return sum(map(os.path.getsize, inside(found, "*.safetensors"))) / 1e9 or default
    match = re.search(r"[-_](\d+(?:\.\d+)?)([BM])(?![a-z0-9])", name, re.IGNORECASE)
    return float(match[1]) * (2 if match[2] in "Bb" else 0.002) if match else default


def broken_weights(folder):
    """What is wrong with a model's *.safetensors, as text; "" where every file is there and as long as it says it is."""
    paths = set(inside(folder, "*.safetensors"))
    path = os.path.join(folder, "model.safetensors.index.json")
    try:
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                paths |= {os.path.join(folder, name) for name in json.load(file)["weight_map"].values()}
        for path in sorted(paths):
            if os.path.normpath(os.path.dirname(path)) != os.path.normpath(folder) or not os.path.isfile(path):
                return say("file_missing", file=os.path.basename(path))
            with open(path, "rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length)) if length < 10**8 else {}
            ends = [each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"]
            if os.path.getsize(path) != 8 + length + max(ends):
                raise ValueError
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError):
        return say("file_damaged", file=os.path.basename(path), size=os.path.getsize(path))
    return "" if paths else say("weights_none")


def check_model(m):
    command = "get_modelscope" if m.source == "modelscope" else "get_huggingface"
    if m.script and os.path.isfile(os.path.join(os.path.dirname(os.path.dirname(m.script)), "tools", "fetch.py")):
        command = "get_ours"
    if m.broken:
        command = say(command, **vars(m))
        return result(m, "model", "fail", "model_broken", "model_again", command=command)
    if m.found:
        return result(m, "model", "ok", "model")
    if not HUB_NAME.fullmatch(m.model):
        return result(m, "model", "fail", "model_nowhere", "model_nowhere_fix")
    return result(m, "model", "warn", "model_to_fetch", command)


def check_data(m):
    """The data folder of a task: <TASK>_DATA_DIR, else DATA_DIR/<task>."""
    own, error, text = m.task.upper() + "_DATA_DIR", "", "data_empty"
    path = os.path.expanduser(m.values.get(own) or os.path.join(m.values["DATA_DIR"], m.task))
    try:
        if os.path.isfile(path) or os.listdir(path):
            return result(m, "data", "ok", "data", path=path)
    except FileNotFoundError:
        text = "data_none"
    except OSError as problem:
        text, error = "unreadable", problem.strerror
    return result(m, "data", "warn", text, "data_fix", path=path, error=error, own=own)


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
    except Exception as error:  # a wrong URL, no network, no HTTP: all of them are no answer
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


def check_hub(m, hub, other):
    """A hub that the model still has to come from stops the run if it does not give it."""
    url, (code, more) = m.urls[hub], m.outcomes[hub]
    host = url.partition("://")[2].split("/")[0].rpartition("@")[2] or url  # all of it where the scheme is missing
    status = "fail" if not m.found and m.source == hub else "warn"
    if code is None:
        text, fix = "hub_silent", "hub_proxy"
        if hub == "huggingface":
            fix = "hub_mirror" if m.outcomes[other][0] is None else "hub_other"
    elif code in (401, 403):
        text, fix = "hub_closed", "hub_licence"
        if hub == "huggingface" and m.values.get("HF_TOKEN") and m.endpoint != HUB:
            status, fix = "warn", "hub_token_kept"
    elif code == 404:
        text, fix = "hub_no_model", "hub_no_model_fix"
    elif code >= 400:
        text, fix = "hub_error", "hub_later"
    else:
        status, text, fix = "ok", "hub", None
    return result(m, hub, status, text, fix, host=host, code=code, more=more)


def check_xet(m):
    """Xet fetches large files from a host of its own: past a mirror, and where that host is blocked, not at all."""
    disabled = m.values.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
    if disabled or not m.xet:
        return result(m, "Xet", "ok", "xet_off")
    if m.endpoint == HUB and m.outcomes["xet"][0] is not None:
        return result(m, "Xet", "ok", "xet")
    return result(m, "Xet", "warn", "xet_silent" if m.endpoint == HUB else "xet_mirror", "xet_fix")


# ---------------------------------------------------------------- all of it
def look(args, environ, cwd, script):
    """The facts about this machine and this run."""
    m = SimpleNamespace(script=script)
    m.task, task_dir = find_task(args.task, cwd, script)
    default, m.size, m.card = RECIPES.get(m.task, RECIPES["medical"])
    m.recipe, m.model = m.task or "7B", args.model or default
    m.other_model = m.model != default
    m.values, m.env_errors = settings(environ, cwd, task_dir, task=m.task)
    m.gpus, m.gpu_error = ask_nvidia_smi()
    m.torch = ask_torch()
    m.compiler = next(filter(None, map(shutil.which, (environ.get("CC") or "gcc", "cc", "clang"))), None)
    m.header = os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
    m.python, m.system = sys.version_info[:2], f"{platform.system()} {platform.machine()}"

    cu128 = parse_lock(read_text(os.path.join(task_dir, "requirements-cu128.txt")))
    m.lock = lock_for(m.task, m.torch, m.gpus[0]["driver"] if m.gpus else None, cu128)
    laptop = os.path.join(os.path.dirname(task_dir), "requirements-cpu.txt")
    default_lock = laptop if not m.gpus and os.path.isfile(laptop) else os.path.join(task_dir, m.lock)
    m.lock_file = args.lock or default_lock
    lock_text = read_text(m.lock_file)
    m.locked, laptop = parse_lock(lock_text), os.path.basename(m.lock_file) == "requirements-cpu.txt"
    m.hashed = "--hash" in lock_text and not laptop
    # requirements-cpu.txt has an .in file of its own; the others share the task's.
    sources = (os.path.splitext(m.lock_file)[0] + ".in", os.path.join(task_dir, "requirements.in"))
    m.direct = next(filter(None, (parse_lock(read_text(path)) for path in sources)), m.locked)
    if laptop and "torch" in m.direct:  # which comes before what the lock holds
        m.locked.setdefault("torch", m.direct["torch"])
    m.installed = installed_packages() if m.locked else {}

    m.found = find_model(m.model, m.values) if m.model else None
    m.broken = broken_weights(m.found) if m.found else ""
    if m.found or m.other_model:
        m.size = model_size(m.model, m.found, m.size)
    m.source = m.values["MODEL_SOURCE"].lower()
    fetched_to = "MODELS_DIR" if m.source == "modelscope" else "HF_HOME"
    m.folder = os.path.join(m.values["MODELS_DIR"], m.model or "")
    m.places = []
    for name, need in ((fetched_to, 0 if m.found else m.size), ("OUTPUT_DIR", CHECKPOINTS + m.size)):
        there = nearest(m.values[name])
        free, device = shutil.disk_usage(there).free / 1e9, os.stat(there).st_dev
        m.places.append({"name": name, "folder": m.values[name], "need": need, "free": free, "device": device})
    m.ram = free_ram()
    m.shm = shutil.disk_usage("/dev/shm").total / 1e9 if os.path.isdir("/dev/shm") else None

    m.endpoint = m.values.get("HF_ENDPOINT", HUB).rstrip("/")
    m.xet = importlib.util.find_spec("hf_xet") is not None
    m.urls = {}
    if m.model and not args.offline and HUB_NAME.fullmatch(m.model):
        m.urls = {  # a file of the model itself tells gated from gone
            "huggingface": f"{m.endpoint}/{m.model}/resolve/main/config.json",
            "modelscope": f"https://www.modelscope.cn/api/v1/models/{m.model}",
            "xet": "https://cas-server.xethub.hf.co/",
        }
        m.outcomes = probe_all(m.urls, args.timeout, m.values.get("HF_TOKEN"))
    return m


def examine(m):
    """Every check that applies -> list of results."""
    checks = [check_gpu(m)]
    checks += [check_driver(m), check_kernels(m)] if m.gpus else []
    checks += [check_torch(m)]
    checks += [check_gpu_memory(m)] if m.gpus and m.card else []
    checks += [check_compiler(m)] if m.gpus else []
    checks += [check_python(m), check_versions(m)]
    checks += [check_leftovers(m)] if m.locked else []
    for path, error in m.env_errors.items():  # every script of the recipes stops at such a file, too
        checks.append(result(m, ".env", "fail", "unreadable", "env_fix", path=path, error=error))
    checks += [check_disk(m)]
    checks += [check_ram(m)] if m.ram is not None else []
    checks += [check_shm(m), check_write(m)]
    checks += [check_model(m)] if m.model else []
    checks += [check_data(m)] if m.task in RECIPES else []
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
    parser.add_argument("--timeout", type=float, default=5, help=say("help_timeout"))
    for flag in ("offline", "json"):
        parser.add_argument("--" + flag, action="store_true", help=say("help_" + flag))
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


# key: (English, Chinese); one string where both are the same
# fmt: off
TEXTS = {
    "help": ("Say what would stop a training run on this machine, and what to do about it. Exit code 1: a check failed.",
             "检查这台机器上什么会让训练失败，以及该怎么办。退出码 1：有检查项失败。"),
    "help_task": ("a recipe's folder, e.g. medical (default: this folder)", "任务目录，如 medical（默认：当前目录）"),
    "help_model": ("the model to train (default: the recipe's)", "要训练的模型（默认：任务自带的）"),
    "help_lock": ("the requirements.txt to compare with (default: the recipe's)", "要对照的锁文件（默认：任务自带的）"),
    "help_timeout": ("seconds to wait for a hub (5)", "等待模型站点的秒数（5）"),
    "help_offline": ("ask no hub", "不访问模型站点"),
    "help_json": ("print a JSON list of {{name, status, text, fix}}", "输出 JSON 列表：{{name, status, text, fix}}"),
    "summary": ("{ok} ok, {warn} warn, {fail} fail", "{ok} 项正常，{warn} 项警告，{fail} 项失败"),
    "unreadable": ("cannot read {path}: {error}", "无法读取 {path}：{error}"),
    "gpu": "{count} x {names}",
    "gpu_none": ("no nvidia-smi here: only --demo runs", "没有 nvidia-smi：只能运行 --demo"),
    "gpu_none_fix": ("in Docker add --gpus all, with the NVIDIA Container Toolkit on the host; else rent a machine with a GPU",
                     "在 Docker 里加 --gpus all，宿主机要装 NVIDIA Container Toolkit；否则租一台有显卡的机器"),
    "gpu_error": ("nvidia-smi fails: {gpu_error}", "nvidia-smi 出错：{gpu_error}"),
    "gpu_list_empty": ("it lists no GPU", "没有列出显卡"),
    "gpu_list_unreadable": ("cannot read its list: {output}", "无法读取它的输出：{output}"),
    "gpu_restart": ("restart the machine: its driver was updated while in use", "重启机器：驱动在使用中被更新了"),
    "gpu_reinstall": ("take another machine or reinstall the driver: no CUDA program can run here",
                      "换一台机器，或重装驱动：现在任何 CUDA 程序都跑不了"),
    "gpu_old": ("take a newer GPU: this one is too old", "换一块更新的显卡：这块太旧了"),
    "driver": ("driver {driver}, torch for CUDA {cuda}", "驱动 {driver}，torch 的 CUDA 版本 {cuda}"),
    "driver_old": ("driver {driver}, torch for CUDA {cuda}: needs {need} or newer",
                   "驱动 {driver}，torch 的 CUDA 版本 {cuda}：需要 {need} 或更新的驱动"),
    "driver_update": ("update the driver to {need} or newer, or take a machine that has one",
                      "把驱动升级到 {need} 或更新，或换一台驱动够新的机器"),
    "driver_or_cu128": (
        "update the driver to {need} or newer, take a machine that has one, or use CUDA 12.8: in Docker the tag cu128 "
        "(make image TASK={task} CUDA=12.8), else pip install --no-deps -r requirements-cu128.txt",
        "把驱动升级到 {need} 或更新，换一台驱动够新的机器，或用 CUDA 12.8：Docker 用标签 cu128"
        "（make image TASK={task} CUDA=12.8），否则 pip install --no-deps -r requirements-cu128.txt"),
    "kernels": ("torch {version} has kernels for {sm}", "torch {version} 有 {sm} 的内核"),
    "kernels_none": ("torch {version} has no kernels for this GPU ({sm}); it has {archs}",
                     "torch {version} 没有这块显卡（{sm}）的内核；只有 {archs}"),
    "kernels_lock": ("install the torch in this folder's {lock}", "安装本目录 {lock} 里的 torch"),
    "torch": ("torch {version} computes on the GPU", "torch {version} 能在显卡上计算"),
    "torch_cpu": ("torch {version} will run on the CPU", "torch {version} 将在 CPU 上运行"),
    "torch_none": ("torch is not installed", "没有安装 torch"),
    "torch_broken": ("torch does not work: {error}", "torch 无法工作：{error}"),
    "torch_cpu_build": ("torch {version} is a CPU build", "torch {version} 是 CPU 版"),
    "torch_no_gpu": ("torch {version} cannot use the GPU: {reason}", "torch {version} 用不了显卡：{reason}"),
    "torch_wrong": ("it computes a wrong sum", "算出的和不对"),
    "torch_install": ("in the task's folder: pip install --no-deps -r {lock}",
                      "在任务目录里：pip install --no-deps -r {lock}"),
    "torch_no_gpu_fix": ("see the lines driver and kernels first; in a container, start it again with --gpus all",
                         "先看 driver 和 kernels 两行；在容器里请用 --gpus all 重新启动"),
    "gpu_memory": ("{free:.0f} of {total:.0f} GB free, {recipe} needs {card}",
                   "显存空闲 {free:.0f} / {total:.0f} GB，{recipe} 需要 {card}"),
    "gpu_memory_unknown": ("nvidia-smi does not say; {recipe} needs {card} GB",
                           "nvidia-smi 没有给出显存；{recipe} 需要 {card} GB"),
    "gpu_memory_unknown_fix": ("if the GPU shares the machine's RAM, see the line RAM; if it is split (MIG), see nvidia-smi",
                               "显存与内存共用时看 RAM 一行；显卡切分过（MIG）时看 nvidia-smi"),
    "gpu_memory_busy": ("other programs hold the rest: nvidia-smi lists them, stop those that are yours",
                        "其余显存被别的程序占用：用 nvidia-smi 查看，结束属于你的那些"),
    "gpu_memory_small": ("use a larger GPU or a smaller --model: python train.py --estimate shows what fits",
                         "换更大的显卡，或用 --model 换更小的模型：python train.py --estimate 会列出放得下的设置"),
    "compiler": ("{compiler}, and Python's headers", "{compiler}，以及 Python 头文件"),
    "compiler_none": ("no C compiler: Triton cannot build its kernels", "缺少 C 编译器：Triton 无法生成内核"),
    "header_none": ("no Python.h: Triton cannot build its kernels", "缺少 Python 头文件（Python.h）：Triton 无法生成内核"),
    "compiler_fix": "apt-get install -y gcc libc6-dev python{python[0]}.{python[1]}-dev",
    "python": "Python {python[0]}.{python[1]}, {system}",
    "python_old": ("install Python 3.12: the code needs 3.11 or newer", "安装 Python 3.12：代码需要 3.11 或更新"),
    "python_lock": ("requirements.txt is locked for Python 3.12 on Linux x86-64: use that, or the image",
                    "requirements.txt 是为 Linux x86-64 + Python 3.12 锁定的：请用它，或用镜像"),
    "versions": ("all {total} packages match the lock", "{total} 个包都与锁文件一致"),
    "versions_missing": ("{missing} of {total} locked packages are not installed", "{missing} / {total} 个锁定的包没有安装"),
    "versions_differ": ("{count} packages differ from the lock: {drift}", "{count} 个包与锁文件不同：{drift}"),
    "versions_no_lock": ("no lock at {lock_file}: versions are not compared", "{lock_file} 没有锁文件：未比较版本"),
    "versions_no_lock_fix": ("give --task or --lock", "请用 --task 或 --lock 指定"),
    "missing": ("missing", "缺失"),
    "pip_lock": "pip install --no-deps -r {lock_file}",
    "leftovers": ("perhaps built for another torch: {names}", "可能是为别的 torch 编译的：{names}"),
    "leftovers_none": ("no package was built for another torch", "没有为别的 torch 编译的包"),
    "leftovers_fix": "pip uninstall -y {packages}",
    "not_utf8": ("it is not UTF-8", "不是 UTF-8 编码"),
    "env_fix": ("save it as UTF-8 text that this user may read", "存成 UTF-8 文本，并让当前用户可读"),
    "disk": "{places}",
    "disk_place": ("{names}: free {free:.1f} GB, needed {need:.1f}", "{names}: 空闲 {free:.1f} GB, 需要 {need:.1f}"),
    "disk_fix": ("point {names} to a larger disk (in .env or the environment), or free some space",
                 "把 {names} 指到更大的磁盘（在 .env 或环境变量里），或清理磁盘空间"),
    "ram": ("{ram:.0f} GB free", "空闲 {ram:.0f} GB"),
    "ram_small": ("{ram:.0f} GB free: too little to load the model", "空闲 {ram:.0f} GB：不够加载模型"),
    "ram_merge": ("{ram:.0f} GB free; merging the adapter on this machine takes {size:.0f}",
                  "空闲 {ram:.0f} GB；在本机合并低秩适配器需要 {size:.0f}"),
    "ram_fix": ("use a machine or container with more memory (docker run --memory)",
                "换内存更大的机器或容器（docker run --memory）"),
    "shm": "{shm:.1f} GB",
    "shm_none": ("there is none, and none is needed", "没有，也不需要"),
    "shm_small": ("{mb:.0f} MB: too small for several GPUs or data-loader workers", "{mb:.0f} MB：不够多块显卡或多个数据加载进程用"),
    "shm_fix": ("start Docker with --shm-size 8g (Kubernetes: mount an emptyDir of medium Memory)",
                "启动 Docker 时加 --shm-size 8g（Kubernetes：挂载 medium 为 Memory 的 emptyDir）"),
    "write": "{names}",
    "write_denied": ("cannot write to {failed}", "无法写入 {failed}"),
    "write_fix": ("run on the host: sudo chown -R {user} FOLDER, or point the variable elsewhere",
                  "在宿主机上：sudo chown -R {user} 目录，或把变量指到别处"),
    "file_missing": ("{file} is missing", "缺少 {file}"),
    "file_damaged": ("{file} is cut off or damaged ({size} bytes)", "{file} 不完整或已损坏（{size} 字节）"),
    "weights_none": ("no *.safetensors", "没有 *.safetensors"),
    "model": "{found}",
    "model_broken": "{found}: {broken}",
    "model_again": ("move the folder away and fetch it again: {command}", "移走这个目录再重新下载：{command}"),
    "model_nowhere": ("{model} is neither a folder here nor an <org>/<name> on a hub",
                      "{model} 既不是本机目录，也不是站点上的 <组织>/<名字>"),
    "model_nowhere_fix": ("check --model", "检查 --model"),
    "model_to_fetch": ("{model} is not here: the run fetches {size:.1f} GB from {source}",
                       "本机没有 {model}：训练时要从 {source} 下载 {size:.1f} GB"),
    "get_ours": "make fetch MODEL={model}",
    "get_modelscope": "pip install modelscope && modelscope download --model {model} --local_dir {folder}",
    "get_huggingface": "hf download {model} --local-dir {folder}",
    "data": "{path}",
    "data_none": ("{path} is not there", "没有 {path}"),
    "data_empty": ("{path} is empty", "{path} 是空的"),
    "data_fix": ("copy the data there, set {own}, or give --data (--demo needs none)",
                 "把数据放到那里，或设置 {own}，或用 --data（--demo 不需要）"),
    "timed_out": ("timed out", "超时"),
    "hub": ("{host} answers in {more:.1f} s", "{host} 响应时间 {more:.1f} 秒"),
    "hub_silent": ("{host} does not answer: {more}", "{host} 无响应：{more}"),
    "hub_proxy": ("set MODEL_SOURCE=huggingface or HTTPS_PROXY", "改用 MODEL_SOURCE=huggingface，或设置 HTTPS_PROXY"),
    "hub_mirror": ("use a mirror: export HF_ENDPOINT=https://hf-mirror.com (on AutoDL also: source /etc/network_turbo)",
                   "用镜像：export HF_ENDPOINT=https://hf-mirror.com（AutoDL 上还可以：source /etc/network_turbo）"),
    "hub_other": ("set MODEL_SOURCE=modelscope: that hub answers from here", "改用 MODEL_SOURCE=modelscope，它在这里可以访问"),
    "hub_closed": ("{host} answers {code}: gated, private, or no such model", "{host} 返回 {code}：需授权、私有或不存在"),
    "hub_licence": ("accept the licence on the model's page and set HF_TOKEN, or check the name",
                    "在模型页面同意许可并设置 HF_TOKEN，或检查名字"),
    "hub_token_kept": ("asked without HF_TOKEN, which doctor sends to huggingface.co only; the run sends it to HF_ENDPOINT "
                       "where that is set in the environment, or in the .env file that HF_TOKEN is in",
                       "doctor 只把 HF_TOKEN 发给 huggingface.co，这次没有带上；训练时只有 HF_ENDPOINT 设在环境变量里，或与 HF_TOKEN "
                       "写在同一个 .env 里，才会发给它"),
    "hub_no_model": ("{host} does not have this model", "{host} 上没有这个模型"),
    "hub_no_model_fix": ("check --model, or take the other hub", "检查 --model，或换另一个站点"),
    "hub_error": ("{host} answers {code}", "{host} 返回 {code}"),
    "hub_later": ("try again later, or take the other hub", "稍后再试，或换另一个站点"),
    "xet": ("its host answers", "它的主机可访问"),
    "xet_off": ("off", "未使用"),
    "xet_mirror": ("it would fetch past your mirror", "它会绕过你设置的镜像"),
    "xet_silent": ("its host does not answer", "它的主机无响应"),
    "xet_fix": "export HF_HUB_DISABLE_XET=1",
}
# fmt: on

if __name__ == "__main__":
    sys.exit(main())
