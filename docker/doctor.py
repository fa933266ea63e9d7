#!/usr/bin/env python3
"""Looks at a machine before it costs money: what would stop a training run here, and the one thing to do about each.

One file, standard library, Python 3.8 or newer; torch is asked only where it is installed. Three ways to run it:

In the repository:     python docker/doctor.py --task medical      (make doctor TASK=medical)
In an image:           docker run --gpus all medical-train doctor
On a strange machine:  ssh the-machine python3 - --task medical < docker/doctor.py

A line a check: ok, warn (it runs, but read this) or fail (it does not run), and under it the remedy. Chinese where the
locale is Chinese, or with --lang zh. --json for programs. The exit code is 1 if anything failed, else 0.
"""

import argparse
import glob
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

# What each recipe asks for by default: its model, that model's size on disk in GB (16 bits), and the smallest card in GB.
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
# The oldest driver for each CUDA that a torch wheel may be built for (NVIDIA's compatibility table).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
CU128 = ("medical", "alpaca", "domain_mix", "vl_insurance")  # these have a lock for CUDA 12.8, too
CHECKPOINTS = 3.0  # GB: three checkpoints, the best and the adapter, with optimizer states
AUTODL = "/root/autodl-tmp"
LANG = "en"


def say(en, zh):
    return zh if LANG == "zh" else en


def result(name, status, text, fix=""):
    """One check's outcome. status: ok, warn or fail. fix: the one thing to do."""
    return {"name": name, "status": status, "text": text, "fix": fix}


# ---------------------------------------------------------------- GPU, driver, torch


def parse_gpus(text):
    """nvidia-smi's CSV (name, driver, MiB in all, MiB free, capability) as a list of dicts; GB and (major, minor)."""
    gpus = []
    for line in text.strip().splitlines():
        name, driver, total, free = (field.strip() for field in line.split(",")[:4])
        capability = line.split(",")[4].strip() if line.count(",") > 3 else ""
        gpus.append(
            {
                "name": name,
                "driver": driver,
                "total": float(total) * 2**20 / 1e9,
                "free": float(free) * 2**20 / 1e9,
                "capability": tuple(map(int, capability.split("."))) if capability[:1].isdigit() else None,
            }
        )
    return gpus


def check_gpu(gpus, error):
    """error: why nvidia-smi gave no list; None where the program is not there at all."""
    if gpus:
        names = ", ".join(sorted({gpu["name"] for gpu in gpus}))
        return result("GPU", "ok", f"{len(gpus)} x {names}")
    if error is None:
        return result(
            "GPU",
            "warn",
            say("no nvidia-smi here: only --demo runs", "没有 nvidia-smi：只能运行 --demo"),
            say(
                "in Docker add --gpus all (and install the NVIDIA Container Toolkit on the host); else rent a machine "
                "with a GPU",
                "在 Docker 里加 --gpus all（宿主机需安装 NVIDIA Container Toolkit）；否则租一台有 GPU 的机器",
            ),
        )
    mismatch = "version mismatch" in error
    return result(
        "GPU",
        "fail",
        say("nvidia-smi fails: %s", "nvidia-smi 出错：%s") % error,
        say("restart the machine: its driver was updated under it", "重启机器：驱动在运行中被更新了")
        if mismatch
        else say(
            "take another machine, or install the driver again: no CUDA program can run",
            "换一台机器，或重装驱动：现在任何 CUDA 程序都跑不了",
        ),
    )


def lock_for(task, torch, driver, cu128):
    """Which of a task's locks is meant for this machine: the one whose torch is here, else by the driver.

    torch: what TORCH_PROBE printed, or None. driver: as nvidia-smi says it, or None. cu128: {name: version} of the lock
    for CUDA 12.8, {} where it is not at hand.
    """
    torch = torch or {}
    if "torch" in cu128 and torch.get("version", "").split("+")[0] == cu128["torch"]:
        return "requirements-cu128.txt"
    compatible = torch.get("works") and torch["cuda"].startswith("13.")
    old = driver and int(driver.split(".")[0]) < OLDEST_DRIVER[13] and not compatible
    return "requirements-cu128.txt" if old and task in CU128 else "requirements.txt"


def check_driver(driver, cuda, works, task):
    """driver: as nvidia-smi says it. cuda: what torch was built for, e.g. "13.0". works: torch saw the GPU and computed,
    or None where it is still to be installed.

    CUDA 12 runs on any driver since 525 and CUDA 13 on any since 580, whatever the minor version is.
    """
    major = int(cuda.split(".")[0])
    need = OLDEST_DRIVER.get(major)
    text = say("driver %s, torch for CUDA %s", "驱动 %s，torch 的 CUDA 版本 %s") % (driver, cuda)
    if need is None or int(driver.split(".")[0]) >= need or works:
        return result("driver", "ok", text)
    status, fix = "fail", say("update the driver to %d or newer", "把驱动升级到 %d 或更新") % need
    if major >= 13 and int(driver.split(".")[0]) >= OLDEST_DRIVER[12] and task in CU128:
        fix += say(
            ", take a machine that has one, or CUDA 12.8: of images the tag cu128 (make image TASK=@ CUDA=12.8), else "
            "pip install --no-deps -r requirements-cu128.txt",
            "，换一台驱动够新的机器，或用 CUDA 12.8：镜像用标签 cu128（make image TASK=@ CUDA=12.8），否则 "
            "pip install --no-deps -r requirements-cu128.txt",
        ).replace("@", task)
        status = "warn" if works is None else "fail"
    else:
        fix += say(" or take a machine that has one", "，或换一台驱动够新的机器")
    return result("driver", status, text + say(": needs %d or newer", "：需要 %d 或更新") % need, fix)


def covers(arch_list, capability):
    """Whether a torch with these kernels runs on a GPU of this compute capability, e.g. (8, 9).

    sm_86 runs on 8.6 and 8.9 but not on 9.0; compute_80 is a program that any newer GPU's driver translates.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        exact = digits[-1:] in ("a", "f")  # sm_90a runs on 9.0 alone
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        have = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and not exact and have <= capability:
            return True
        if kind == "sm" and (have == capability or (not exact and have[0] == capability[0] and have <= capability)):
            return True
    return False


def check_arch(capability, arch_list, version, lock="requirements.txt"):
    """arch_list: torch.cuda.get_arch_list(). lock: of lock_for."""
    sm = "sm_{}{}".format(*capability)
    if covers(arch_list, capability):
        return result("kernels", "ok", say("torch %s has kernels for %s", "torch %s 有 %s 的内核") % (version, sm))
    newest = max((arch for arch in arch_list if arch.startswith("sm_")), key=lambda a: int(re.sub(r"\D", "", a)))
    newer = capability[0] * 10 + capability[1] > int(re.sub(r"\D", "", newest))
    return result(
        "kernels",
        "fail",
        say("torch %s has no kernels for this GPU (%s); it has %s", "torch %s 没有这块 GPU（%s）的内核；只有 %s")
        % (version, sm, " ".join(arch_list)),
        say(
            f"install the torch of this folder's {lock}" if newer else "take a newer GPU: this one is too old",
            f"安装本目录 {lock} 里的 torch" if newer else "换一块更新的 GPU：这块太旧了",
        ),
    )


def check_torch(torch, gpus, lock="requirements.txt"):
    """torch: what TORCH_PROBE printed; None where torch is not installed. lock: of lock_for."""
    install = say("in the task's folder: %s", "在任务目录里：%s") % f"pip install --no-deps -r {lock}"
    if torch is None:
        return result("torch", "fail", say("torch is not installed", "没有安装 torch"), install)
    if torch.get("error"):
        return result("torch", "fail", say("torch does not work: %s", "torch 无法工作：%s") % torch["error"], install)
    text = f"torch {torch['version']}"
    if not gpus:
        return result("torch", "ok", text + say(", on the CPU", "，用 CPU"))
    if torch["cuda"] is None:
        return result("torch", "fail", text + say(" is a CPU build", " 是 CPU 版"), install)
    if not torch["works"]:
        reason = torch.get("reason") or say("torch.cuda.is_available() is False", "torch.cuda.is_available() 为 False")
        return result(
            "torch",
            "fail",
            text + say(" cannot use the GPU: %s", " 用不了 GPU：%s") % reason,
            say(
                "first what the lines driver and kernels say; in a container, start it anew with --gpus all",
                "先看“driver”和“kernels”两行；在容器里请用 --gpus all 重新启动",
            ),
        )
    return result("torch", "ok", text + say(" computes on the GPU", " 能在 GPU 上计算"))


def check_gpu_memory(gpus, need, recipe):
    """need: GB of the smallest card that the recipe's default model trains on."""
    best = max(gpus, key=lambda gpu: gpu["free"])
    text = say("%.0f of %.0f GB free, %s needs %.0f", "空闲 %.0f / %.0f GB，%s 需要 %.0f") % (
        best["free"],
        best["total"],
        recipe,
        need,
    )
    if best["free"] >= 0.9 * need:  # a "10 GB" card has 9.7, less what the driver takes
        return result("GPU memory", "ok", text)
    if best["total"] >= 0.9 * need:
        return result(
            "GPU memory",
            "fail",
            text,
            say(
                "nvidia-smi lists the programs that hold the rest: end those that are yours",
                "nvidia-smi 会列出占用显存的程序：结束属于你的那些",
            ),
        )
    return result(
        "GPU memory",
        "fail",
        text,
        say(
            "a larger card, or a smaller model: --model Qwen/Qwen2.5-1.5B-Instruct",
            "换更大的显卡，或更小的模型：--model Qwen/Qwen2.5-1.5B-Instruct",
        ),
    )


def check_compiler(compiler, header):
    """compiler: path of gcc, cc or clang. header: whether Python.h is there. Triton compiles a small C file a kernel."""
    if compiler and header:
        return result("compiler", "ok", say("%s, and Python's headers", "%s，以及 Python 头文件") % compiler)
    lack = (
        say("a C compiler", "C 编译器")
        if not compiler
        else say("Python's headers (Python.h)", "Python 头文件（Python.h）")
    )
    return result(
        "compiler",
        "fail",
        say("%s missing: Triton cannot make its kernels", "缺少 %s：Triton 无法生成内核") % lack,
        "apt-get install -y gcc libc6-dev python{}.{}-dev".format(*sys.version_info[:2]),
    )


# ---------------------------------------------------------------- Python and its packages


def check_python(version, system, machine, hashed):
    """version: (major, minor). hashed: whether a lock for Linux x86-64, Python 3.12 is to be installed."""
    text = f"Python {version[0]}.{version[1]}, {system} {machine}"
    if version < (3, 11):
        return result(
            "Python",
            "fail",
            text,
            say("install Python 3.12: the code needs 3.11", "安装 Python 3.12：代码需要 3.11 以上"),
        )
    if hashed and (version != (3, 12) or (system, machine) != ("Linux", "x86_64")):
        return result(
            "Python",
            "warn",
            text,
            say(
                "requirements.txt is locked for Linux x86-64 and Python 3.12: take that, or the image",
                "requirements.txt 是为 Linux x86-64 + Python 3.12 锁定的：请用它，或用镜像",
            ),
        )
    return result("Python", "ok", text)


def parse_lock(text):
    """{normalised name: version} of the `name==version` lines whose marker, if any, is about another system than ours."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(?:;\s*(.*?))?\s*\\?$", line)
        if match and marker_holds(match.group(3)):
            found[normal(match.group(1))] = match.group(2)
    return found


def marker_holds(marker):
    """Whether a lock line's `python_full_version < '3.12'` holds; markers about anything else count as holding."""
    match = re.match(r"python_(?:full_)?version (<|>=) '(\d+)\.(\d+)'$", marker or "")
    if not match:
        return True
    older = sys.version_info[:2] < (int(match.group(2)), int(match.group(3)))
    return older == (match.group(1) == "<")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_packages():
    from importlib import metadata

    return {normal(each.metadata["Name"]): each.version for each in metadata.distributions() if each.metadata["Name"]}


def check_versions(locked, installed, direct, lock_file):
    """direct: names in requirements.in. A drift in those is a failure, in what they pull in a warning."""
    install = f"pip install --no-deps -r {lock_file}"
    wrong = {name: installed.get(name) for name in locked if installed.get(name, "").split("+")[0] != locked[name]}
    missing = [name for name in wrong if wrong[name] is None]
    if not wrong:
        return result("versions", "ok", say("all %d packages are as locked", "%d 个包都与锁文件一致") % len(locked))
    if len(missing) > len(locked) / 2:
        text = say("%d of %d locked packages are not installed", "锁文件中 %d / %d 个包没有安装") % (
            len(missing),
            len(locked),
        )
        return result("versions", "fail", text, install)
    ours = sorted(name for name in wrong if name in direct)
    shown = ours or sorted(wrong)
    drift = ", ".join(f"{name} {wrong[name] or say('missing', '缺失')} ({locked[name]})" for name in shown[:4])
    more = " …" if len(shown) > 4 else ""
    text = say("%d packages differ from the lock: %s%s", "%d 个包与锁文件不同：%s%s") % (len(wrong), drift, more)
    return result("versions", "fail" if ours else "warn", text, install)


def check_strangers(locked, installed):
    """Packages compiled against one torch, left over from the machine's own image, that break the next torch."""
    names = ("torchvision", "torchaudio", "xformers", "flash-attn", "vllm")
    left = [name for name in names if name in installed and name not in locked]
    if not left:
        return result("leftovers", "ok", say("no package of another torch", "没有为其他 torch 编译的包"))
    return result(
        "leftovers",
        "warn",
        say("built for another torch, perhaps: %s", "可能是为别的 torch 编译的：%s") % ", ".join(left),
        "pip uninstall -y " + " ".join(left),
    )


# ---------------------------------------------------------------- disk, RAM, /dev/shm, rights


def check_disk(places):
    """places: (label, folder, GB needed, GB free, id of the file system). Needs on one file system are added up."""
    short, texts = [], []
    for device in dict.fromkeys(place[4] for place in places):
        here = [place for place in places if place[4] == device]
        need, free, names = sum(place[2] for place in here), here[0][3], "+".join(place[0] for place in here)
        texts.append(f"{names}: {say('free', '空闲')} {free:.1f} GB, {say('needed', '需要')} {need:.1f}")
        if free < need:
            short.append(here)
    text = "; ".join(texts)
    if not short:
        return result("disk", "ok", text)
    names = " ".join(place[0] for place in short[0])
    fix = say(
        "point %s to a larger disk (in .env or the environment), or free some",
        "把 %s 指到更大的磁盘（在 .env 或环境变量里），或清理空间",
    )
    return result("disk", "fail", text, fix % names)


def available_ram(meminfo, limit, used):
    """GB that this process may still take. meminfo: /proc/meminfo. limit, used: of the container, or None."""
    free = int(re.search(r"MemAvailable:\s+(\d+)", meminfo).group(1)) * 1024
    if limit is not None and limit < 2**60:
        free = min(free, limit - (used or 0))
    return free / 1e9


def check_ram(free, model_gb):
    """Loading goes file by file (4 GB each at most); merging an adapter holds the 16-bit model."""
    text = say("%.0f GB free", "空闲 %.0f GB") % free
    fix = say(
        "a machine or container with more memory (docker run --memory)", "换内存更大的机器或容器（docker run --memory）"
    )
    if free < min(6, max(2, model_gb)):
        return result("RAM", "fail", text + say(": too little to load the model", "：不够加载模型"), fix)
    if free < model_gb:
        text += say("; merging the adapter on this machine takes %.0f", "；在本机合并 adapter 需要 %.0f") % model_gb
        return result("RAM", "warn", text, fix)
    return result("RAM", "ok", text)


def check_shm(size, gpus):
    """size: GB of /dev/shm, None where there is none. Data loaders and NCCL pass their batches through it."""
    if size is None or size >= 0.95:
        return result(
            "/dev/shm", "ok", say("none, none needed", "没有，也不需要") if size is None else f"{size:.1f} GB"
        )
    return result(
        "/dev/shm",
        "fail" if gpus > 1 else "warn",
        say("%.0f MB: too small for several GPUs or data-loader workers", "%.0f MB：多 GPU 或多个数据加载进程不够用")
        % (size * 1000),
        say(
            "docker run --shm-size 8g (Kubernetes: an emptyDir of medium Memory)",
            "docker run --shm-size 8g（Kubernetes：medium 为 Memory 的 emptyDir）",
        ),
    )


def nearest(folder):
    """The folder, or the one above it that exists: where it would be made."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def check_write(places):
    """places: (label, folder, whether a read-only one is a failure). A file is written and removed again."""
    failed, status = [], "ok"
    for label, folder, needed in places:
        try:
            with tempfile.NamedTemporaryFile(dir=nearest(folder), prefix=".doctor-"):
                pass
        except OSError as error:
            failed.append(f"{label} ({folder}: {error.strerror})")
            status = "fail" if needed else max(status, "warn", key=("ok", "warn", "fail").index)
    if not failed:
        return result("write access", "ok", " ".join(place[0] for place in places))
    return result(
        "write access",
        status,
        say("cannot write to %s", "无法写入 %s") % ", ".join(failed),
        say(
            "run on the host: sudo chown -R %d FOLDER, or point the variable elsewhere",
            "在宿主机上：sudo chown -R %d 目录，或把变量指到别处",
        )
        % (os.getuid() if hasattr(os, "getuid") else 0),
    )


# ---------------------------------------------------------------- paths: the same rules as common/paths.py


def read_env_file(path):
    """NAME=VALUE lines of a .env file."""
    values = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return values
    for line in lines:
        match = re.match(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*$", line)
        if match:
            quoted = re.match(r"(['\"])(.*)\1", match.group(2))
            values[match.group(1)] = quoted.group(2) if quoted else re.split(r"\s+#", match.group(2))[0]
    return values


def settings(environ, cwd, task_dir, autodl=AUTODL):
    """The variables as every script of the recipes sees them: the environment, then .env files, then the defaults."""
    values = dict(environ)
    for folder in (cwd, task_dir, os.path.dirname(task_dir)):
        for name, value in read_env_file(os.path.join(folder, ".env")).items():
            values.setdefault(name, value)
    values = {name: value for name, value in values.items() if value}
    rented = os.path.isdir(autodl)
    root = autodl if rented else cwd
    for name, folder in (("MODELS_DIR", "models"), ("DATA_DIR", "data"), ("OUTPUT_DIR", "outputs")):
        values.setdefault(name, os.path.join(root, folder))
    values.setdefault("HF_HOME", os.path.join(autodl, "huggingface") if rented else "~/.cache/huggingface")
    for name in ("MODELS_DIR", "DATA_DIR", "OUTPUT_DIR", "HF_HOME"):
        values[name] = os.path.expanduser(values[name])
    values.setdefault("MODEL_SOURCE", "huggingface")
    return values


def find_model(name, values):
    """The folder of a model that is on this machine, or None: a path, MODELS_DIR in both spellings, the hub's cache."""
    modelscope = name.replace(".", "___")
    root, cache = values["MODELS_DIR"], os.path.join(values["HF_HOME"], "hub", "models--" + name.replace("/", "--"))
    places = [os.path.expanduser(name), os.path.join(root, name), os.path.join(root, modelscope)]
    places += [os.path.join(root, "models", modelscope)] + sorted(glob.glob(os.path.join(cache, "snapshots", "*")))
    return next((place for place in places if os.path.isfile(os.path.join(place, "config.json"))), None)


def broken_weights(folder):
    """What is wrong with a model's *.safetensors, as text; "" where every file is there and as long as it says it is."""
    try:
        with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    except (OSError, ValueError, KeyError):
        names = sorted(os.path.basename(path) for path in glob.glob(os.path.join(folder, "*.safetensors")))
    if not names:
        return say("no *.safetensors", "没有 *.safetensors")
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return say("%s is missing", "缺少 %s") % name
        size, told = os.path.getsize(path), None
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length < 10**8 else {}
            ends = [each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"]
            told = 8 + length + max(ends) if ends else None
        except (struct.error, ValueError, KeyError, TypeError):
            pass
        if size != told:
            return say("%s is cut off or damaged (%d bytes)", "%s 不完整或已损坏（%d 字节）") % (name, size)
    return ""


def how_to_get(name, values, script):
    """The command that brings a model to where it will be found: ours in the repository, else the hub's own."""
    if script and os.path.isfile(os.path.join(os.path.dirname(os.path.dirname(script)), "tools", "fetch.py")):
        return f"make fetch MODEL={name}"
    folder = os.path.join(values["MODELS_DIR"], name)
    if values["MODEL_SOURCE"] == "modelscope":
        return f"pip install modelscope && modelscope download --model {name} --local_dir {folder}"
    return f"hf download {name} --local-dir {folder}"


def check_model(name, folder, broken, source, size, command):
    """folder: where find_model found it, or None. size: GB, of a fetch. command: what fetches it."""
    if folder is None:
        return result(
            "model",
            "warn",
            say(
                f"{name} is not here: {size:.1f} GB to come from {source}",
                f"本机没有 {name}：需从 {source} 下载 {size:.1f} GB",
            ),
            command,
        )
    if broken:
        fix = say(f"move the folder away and fetch it again: {command}", f"移走这个目录再重新下载：{command}")
        return result("model", "fail", f"{folder}: {broken}", fix)
    return result("model", "ok", folder)


def check_data(task, values):
    """The data folder of a task: <TASK>_DATA_DIR, else DATA_DIR/<task>."""
    own = task.upper() + "_DATA_DIR"
    path = os.path.expanduser(values.get(own) or os.path.join(values["DATA_DIR"], task))
    if os.path.isfile(path) or (os.path.isdir(path) and os.listdir(path)):
        return result("data", "ok", path)
    empty = say("%s is empty", "%s 是空的") if os.path.isdir(path) else say("%s is not there", "没有 %s")
    return result(
        "data",
        "warn",
        empty % path,
        say(
            "copy the data there, set %s, or give --data (--demo needs none)",
            "把数据放到那里，或设置 %s，或用 --data（--demo 不需要）",
        )
        % own,
    )


# ---------------------------------------------------------------- hubs


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None  # an answer that points elsewhere is an answer


def probe(url, timeout, token=None):
    """Ask for a page's head -> (HTTP status or None, seconds or the reason why there was no answer)."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "doctor"})
    if token:
        request.add_header("Authorization", "Bearer " + token)
    began = time.time()
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=timeout) as answer:
            return answer.status, time.time() - began
    except urllib.error.HTTPError as error:
        return error.code, time.time() - began
    except (OSError, ValueError) as error:
        return None, str(getattr(error, "reason", error)) or type(error).__name__


def probe_all(urls, timeout, token=None):
    """Probe several at once: {name: url} -> {name: (status, seconds or reason)}. Nothing takes longer than the timeout.

    The resolver of names knows no timeout, so each probe is a thread that may be left behind.
    """
    found = {name: (None, "timed out") for name in urls}

    def ask(name, url):
        found[name] = probe(url, timeout, token if name == "huggingface" else None)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in urls.items()]
    for thread in threads:
        thread.start()
    deadline = time.time() + timeout + 0.5
    for thread in threads:
        thread.join(max(0.0, deadline - time.time()))
    return dict(found)


def hub_urls(values, model):
    """What is asked of each hub: for Hugging Face a file of the model itself, which tells gated from gone."""
    endpoint = values.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return {
        "huggingface": f"{endpoint}/{model}/resolve/main/config.json",
        "modelscope": f"https://www.modelscope.cn/api/v1/models/{model}",
        "xet": "https://cas-server.xethub.hf.co/",
    }


def check_hub(hub, url, outcome, needed, other):
    """outcome: of probe(). needed: whether the model still has to come from here. other: whether the other hub answers."""
    status, more = outcome
    host = url.split("/")[2]
    bad = "fail" if needed else "warn"
    if status is None:
        if hub == "huggingface":
            fix = say(
                "MODEL_SOURCE=modelscope, which answers from here"
                if other
                else "a mirror: export HF_ENDPOINT=https://hf-mirror.com (on AutoDL also: source /etc/network_turbo)",
                "改用 MODEL_SOURCE=modelscope，它在这里可以访问"
                if other
                else "用镜像：export HF_ENDPOINT=https://hf-mirror.com（AutoDL 上还可以：source /etc/network_turbo）",
            )
        else:
            fix = say("MODEL_SOURCE=huggingface, or HTTPS_PROXY", "改用 MODEL_SOURCE=huggingface，或设置 HTTPS_PROXY")
        return result(hub, bad, say("%s does not answer: %s", "%s 无响应：%s") % (host, more), fix)
    if status in (401, 403):
        return result(
            hub,
            bad,
            say("%s answers %d: gated, private, or no such model", "%s 返回 %d：需要授权、私有或不存在")
            % (host, status),
            say(
                "accept the licence on the model's page and set HF_TOKEN, or check the name",
                "在模型页面同意许可并设置 HF_TOKEN，或检查名字",
            ),
        )
    if status == 404:
        return result(
            hub,
            bad,
            say("%s does not have this model", "%s 上没有这个模型") % host,
            say("check --model, or take the other hub", "检查 --model，或换另一个站点"),
        )
    if status >= 400:
        return result(
            hub,
            bad,
            say("%s answers %d", "%s 返回 %d") % (host, status),
            say("try again later, or take the other hub", "稍后再试，或换另一个站点"),
        )
    return result(hub, "ok", say("%s answers in %.1f s", "%s 响应时间 %.1f 秒") % (host, more))


def check_xet(endpoint, installed, disabled, reachable):
    """Xet fetches large files from a host of its own: past a mirror, and where that host is blocked, not at all."""
    if not installed or disabled:
        return result("Xet", "ok", say("off", "未使用"))
    mirror = endpoint.rstrip("/") != "https://huggingface.co"
    if mirror or not reachable:
        text = (
            say("it would fetch past your mirror", "它会绕过你设置的镜像")
            if mirror
            else say("its host does not answer", "它的主机无响应")
        )
        return result("Xet", "warn", text, "export HF_HUB_DISABLE_XET=1")
    return result("Xet", "ok", say("its host answers", "它的主机可访问"))


# ---------------------------------------------------------------- what this machine says


def ask_nvidia_smi():
    """(GPUs, error): error is None where there is no nvidia-smi."""
    fields, error = "name,driver_version,memory.total,memory.free", None
    for query in (fields + ",compute_cap", fields):  # drivers before 470 do not know compute_cap
        command = ["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30)
        except FileNotFoundError:
            return [], None
        except (OSError, subprocess.TimeoutExpired) as problem:
            return [], str(problem)
        if done.returncode == 0:
            try:
                return parse_gpus(done.stdout.decode()), say("it lists no GPU", "没有列出 GPU")
            except ValueError:  # [N/A]: memory that is shared with the CPU, or a card cut into parts
                return [], say("its list cannot be read: ", "无法读取它的输出：") + done.stdout.decode().strip()
        error = " ".join((done.stdout + done.stderr).decode(errors="replace").split())[:200]
    return [], error


# In a process of its own: importing torch may crash, and takes seconds.
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
    """What torch says of itself; None where it is not installed, {"error": ...} where it cannot be imported."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return None
    try:
        done = subprocess.run([sys.executable, "-c", TORCH_PROBE], capture_output=True, timeout=180)
        return json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    except (ValueError, IndexError):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1][:200]}


def read_number(*paths):
    """The number in the first of these files that has one, else None ("max" means no limit)."""
    for path in paths:
        try:
            with open(path) as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return None


def read_text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def find_task(task, cwd, script):
    """(task, its folder): --task, else the folder we stand in if it is one. script: this file, or None from a pipe."""
    roots = [cwd, os.path.dirname(cwd)] + ([os.path.dirname(os.path.dirname(script))] if script else [])
    if task is None and os.path.isfile(os.path.join(cwd, "requirements.in")):
        task = os.path.basename(cwd)
    for root in roots:
        if task and os.path.isfile(os.path.join(root, task, "requirements.in")):
            return task, os.path.join(root, task)
    return task, cwd


def examine(args, environ, cwd, script):
    """Run every check that applies here -> list of results."""
    task, task_dir = find_task(args.task, cwd, script)
    model, size, card = RECIPES.get(task, RECIPES["medical"])
    model = args.model or model
    values = settings(environ, cwd, task_dir)
    gpus, error = ask_nvidia_smi()
    torch, driver = ask_torch(), gpus[0]["driver"] if gpus else None
    lock = lock_for(task, torch, driver, parse_lock(read_text(os.path.join(task_dir, "requirements-cu128.txt"))))
    lock_file = args.lock or os.path.join(task_dir, lock)
    laptop = os.path.join(os.path.dirname(task_dir), "requirements-cpu.txt")
    if not args.lock and not gpus and os.path.isfile(laptop):
        lock_file = laptop
    lock_text = read_text(lock_file)
    locked = parse_lock(lock_text)
    checks = [check_gpu(gpus, error)]
    if gpus:
        cuda = (torch or {}).get("cuda")
        checks.append(check_driver(driver, cuda or "13.0", torch["works"] if cuda else None, task))
        if torch and torch.get("arch_list") and gpus[0]["capability"]:
            checks.append(check_arch(gpus[0]["capability"], torch["arch_list"], torch["version"], lock))
    checks.append(check_torch(torch, gpus, lock))
    if gpus:
        if card:
            checks.append(check_gpu_memory(gpus, card, task or "7B"))
        compilers = [shutil.which(name) for name in (os.environ.get("CC") or "gcc", "cc", "clang")]
        header = os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
        checks.append(check_compiler(next(filter(None, compilers), None), header))

    checks.append(check_python(sys.version_info[:2], platform.system(), platform.machine(), "--hash" in lock_text))
    if locked:
        installed = installed_packages()
        direct = set(parse_lock(read_text(re.sub(r"(-cu128)?\.txt$", ".in", lock_file)))) or set(locked)
        checks += [check_versions(locked, installed, direct, lock_file), check_strangers(locked, installed)]
    else:
        text = say("no lock at %s: not compared", "%s 没有锁文件：未比较") % lock_file
        checks.append(result("versions", "warn", text, say("give --task or --lock", "请用 --task 或 --lock 指定")))

    found = find_model(model, values) if model else None
    if found:
        size = sum(os.path.getsize(each) for each in glob.glob(os.path.join(found, "*.safetensors"))) / 1e9 or size
    fetched_to = "MODELS_DIR" if values["MODEL_SOURCE"] == "modelscope" else "HF_HOME"
    places = [
        (fetched_to, values[fetched_to], 0 if found else size),
        ("OUTPUT_DIR", values["OUTPUT_DIR"], CHECKPOINTS + size),
    ]
    measured = []
    for label, folder, need in places:
        exists = nearest(folder)
        measured.append((label, folder, need, shutil.disk_usage(exists).free / 1e9, os.stat(exists).st_dev))
    checks.append(check_disk(measured))
    if os.path.isfile("/proc/meminfo"):
        limit = read_number("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
        used = read_number("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
        checks.append(check_ram(available_ram(read_text("/proc/meminfo"), limit, used), size))
    shm = shutil.disk_usage("/dev/shm").total / 1e9 if os.path.isdir("/dev/shm") else None
    checks.append(check_shm(shm, len(gpus)))
    checks.append(
        check_write(
            [("OUTPUT_DIR", values["OUTPUT_DIR"], True), (fetched_to, values[fetched_to], not found and bool(model))]
        )
    )
    if model:
        broken = broken_weights(found) if found else ""
        checks.append(
            check_model(model, found, broken, values["MODEL_SOURCE"], size, how_to_get(model, values, script))
        )
    if task in RECIPES:
        checks.append(check_data(task, values))
    if model and not args.offline and re.match(r"[\w.-]+/[\w.-]+$", model):
        urls = hub_urls(values, model)
        outcomes = probe_all(urls, args.timeout, values.get("HF_TOKEN"))
        for hub, other in (("huggingface", "modelscope"), ("modelscope", "huggingface")):
            needed = not found and values["MODEL_SOURCE"] == hub
            checks.append(check_hub(hub, urls[hub], outcomes[hub], needed, outcomes[other][0] is not None))
        import importlib.util

        disabled = values.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
        endpoint = values.get("HF_ENDPOINT", "https://huggingface.co")
        xet = importlib.util.find_spec("hf_xet") is not None
        checks.append(check_xet(endpoint, xet, disabled, outcomes["xet"][0] is not None))
    return checks


def main(argv=None):
    global LANG
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="a recipe's folder, e.g. medical (default: the folder you stand in)")
    parser.add_argument("--model", help="the model to be trained (default: the recipe's)")
    parser.add_argument("--lock", help="requirements.txt to compare with (default: the recipe's)")
    parser.add_argument("--offline", action="store_true", help="ask no hub")
    parser.add_argument("--timeout", type=float, default=5, help="seconds that a hub has to answer (5)")
    parser.add_argument("--lang", choices=["en", "zh"], help="default: by LC_ALL, LC_MESSAGES, LANG")
    parser.add_argument("--json", action="store_true", help="a JSON list of {name, status, text, fix}")
    args = parser.parse_args(argv)
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    LANG = args.lang or ("zh" if locale.lower().startswith("zh") else "en")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # `ssh machine python3 -` comes without a locale
    script = globals().get("__file__")
    checks = examine(
        args, os.environ, os.getcwd(), os.path.abspath(script) if script and os.path.isfile(script) else None
    )
    if args.json:
        print(json.dumps(checks, ensure_ascii=False, indent=1))
    else:
        for check in checks:
            print(f"{check['status']:<4}  {check['name']:<12}  {check['text']}")
            if check["fix"]:
                print(f"{'':17} -> {check['fix']}")
        count = {status: sum(check["status"] == status for check in checks) for status in ("ok", "warn", "fail")}
        print(say("%(ok)d ok, %(warn)d warn, %(fail)d fail", "%(ok)d 项正常，%(warn)d 项警告，%(fail)d 项失败") % count)
    return int(any(check["status"] == "fail" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
