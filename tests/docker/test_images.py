"""The images are built and run for real, on a stand-in base and with the CPU pins: no registry and no GPU needed.

Where no Docker engine runs, base.sh says why and these tests are skipped (`pytest -rs` prints it).
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BASE, MEDICAL = "finetune-test-base", "finetune-test-medical"
DEMO_MODEL = "demo/SmolLM2-135M-Instruct"
BUILD = ["build", "--network", "host"]
# No network, and nothing to be written but the mounts and /tmp; `exec`, since Triton's kernels are compiled to there.
RUN = ["run", "--network=none", "--read-only", "--tmpfs=/tmp:exec"]


@pytest.fixture(scope="module")
def docker():
    """Call as docker(*arguments) -> CompletedProcess with stdout and stderr as text. docker.client: the program."""
    base = subprocess.run([REPO / "tests/docker/base.sh"], check=False, capture_output=True, text=True)
    if base.returncode:
        pytest.skip(base.stderr.strip().splitlines()[-1])
    client = base.stdout.strip()

    def call(*arguments, check=False, timeout=600):
        environment = os.environ | {"DOCKER_BUILDKIT": "1"}
        command = [client, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    call.client = client
    return call


@pytest.fixture(scope="module")
def medical(docker, tmp_path_factory):
    """The medical image, and the base that all others stand on, too."""
    docker(*BUILD, "--build-arg", "CUDA_IMAGE=finetune-test-cuda", "-t", BASE, REPO / "docker", check=True)
    return build(docker, "medical", tmp_path_factory)


def build(docker, task, tmp_path_factory, lock="requirements.txt", more=()):
    """Builds a folder's image with the CPU pins in place of this lock -> its name."""
    image = f"finetune-test-{task.replace('_', '-')}"
    context = copy_context(task, tmp_path_factory, lock)
    given = ["--build-arg", f"BASE_IMAGE={BASE}"] + (["--build-arg", f"LOCK={lock}"] if "cu128" in lock else [])
    docker(*BUILD, *given, *more, "-t", image, context, check=True, timeout=1200)
    return image


def only_in_full():
    """An image takes a minute or two to build: CI builds medical's and runs its demo, `make test-docker` does all."""
    if not os.environ.get("TEST_DOCKER_ALL"):
        pytest.skip("make test-docker does this")


def copy_context(task, tmp_path_factory, lock):
    """A copy of a task's folder with the CPU pins in its lock, and in it what must stay outside of an image."""
    context = tmp_path_factory.mktemp("context") / task
    shutil.copytree(REPO / task, context, ignore=shutil.ignore_patterns("__pycache__", "outputs", "models", "data"))
    pins = (REPO / "requirements-cpu.txt").read_text()
    pins = re.sub(r" \\\n +--hash=\S+", "", pins)  # torch comes from its own index or a folder: its digest is not known
    if not re.search(r"^torch==", pins, re.MULTILINE):
        pins += re.search(r"^torch==.*\n", (REPO / "requirements-cpu.in").read_text(), re.MULTILINE)[0]
    if not os.environ.get("PIP_FIND_LINKS"):  # no torch wheel at hand: the CPU build's own index has it
        pins = f"--extra-index-url https://download.pytorch.org/whl/cpu\n{pins}"
    (context / lock).write_text(pins)
    for planted in (
        ".env",
        "sample/.env.local",
        "weights.safetensors",
        "models/a/model.gguf",
        "data/a.csv",
        "outputs/run/run.json",
    ):
        (context / planted).parent.mkdir(parents=True, exist_ok=True)
        (context / planted).write_text("HF_TOKEN=hf_planted\n")
    for file in context.glob("*.py"):
        file.chmod(0o600)  # as on a machine with umask 077
    return context


@pytest.fixture(scope="module")
def models():
    """The folder to mount as /workspace/models: the images hold no weights."""
    folder = Path(os.environ.get("MODELS_DIR", REPO / "models")).expanduser().resolve()
    if not (folder / DEMO_MODEL / "config.json").is_file():
        fetch = "import sys, pathlib; from common.demo_model import fetch; fetch(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", fetch, folder / DEMO_MODEL], cwd=REPO, check=True)
    return folder


@pytest.fixture
def run(docker, medical):
    """Call as run([docker's arguments], *arguments after the image's name); there is no network inside."""
    return lambda options, *arguments: docker(*RUN, "--rm", *options, medical, *arguments)


def mount(host, folder, mode="rw"):
    return f"-v{host}:/workspace/{folder}:{mode}"


@pytest.fixture(scope="module")
def trained(docker, medical, models, tmp_path_factory):
    """The outputs of a two-step demo, written to a folder which Docker made, as root."""
    outputs = tmp_path_factory.mktemp("host") / "outputs"
    demo = ["train", "--demo", "--max_steps", "2", "--max_new_tokens", "16"]
    mounts = [mount(models, "models", "ro"), mount(outputs, "outputs")]
    done = docker(*RUN, "--rm", *mounts, medical, *demo)
    assert done.returncode == 0, done.stdout + done.stderr
    return outputs


def test_image_runs_as_a_user_without_rights(docker, medical):
    script = "id -u; id -un; for d in /app /app/medical /opt/venv; do test -w $d || echo $d; done"
    done = docker("run", "--rm", "--network=none", medical, "bash", "-c", script)  # not for want of a writable disk
    assert done.stdout.split() == ["1000", "app", "/app", "/app/medical", "/opt/venv"]


def layers(docker, image):
    """The files of every layer of an image, those that a later layer hides among them."""
    files, size = [], 2**20
    with (
        subprocess.Popen([docker.client, "save", image], stdout=subprocess.PIPE) as save,
        tarfile.open(fileobj=save.stdout, mode="r|", bufsize=size) as saved,
    ):
        for part in filter(tarfile.TarInfo.isreg, saved):
            with (
                contextlib.suppress(tarfile.ReadError),  # a manifest, which is no archive
                tarfile.open(fileobj=saved.extractfile(part), mode="r|", bufsize=size) as layer,
            ):
                files += [f"/{each.name.removeprefix('./')}" for each in layer if not each.isdir()]
    return files


def check_contents(docker, image, task):
    """An image's user, and that nothing planted, no secret, weight or cache is in a layer, the settings or the history."""
    assert docker("image", "inspect", image, "--format", "{{.Config.User}}").stdout.strip() == "1000:1000"
    files = layers(docker, image)
    assert f"/app/{task}/common/paths.py" in files and "/usr/local/bin/claim-mounts" in files  # it does see them
    # the stand-in base's own wheels, Debian's pip, and vl_insurance's miniature of a model
    files = [each for each in files if not each.startswith(("/wheels/", "/usr/share/", f"/app/{task}/miniature/"))]
    outside = tuple(f"/app/{task}/{folder}/" for folder in ("models", "data", "outputs"))
    unwanted = [each for each in files if each.startswith(outside) or "/.cache/" in each or "/.env" in each]
    unwanted += [each for each in files if each.endswith((".safetensors", ".gguf", ".whl"))]
    assert unwanted == []
    history = docker("history", "--no-trunc", image, check=True).stdout + docker("image", "inspect", image).stdout
    assert "pip install --no-deps" in history and "hf_planted" not in history


def test_image_holds_no_weights_secrets_or_caches(docker, medical):
    check_contents(docker, medical, "medical")


def test_demo_trains_into_a_folder_that_docker_made(trained, run):
    [adapter] = trained.glob("medical/*/adapter_model.safetensors")
    assert adapter.stat().st_size > 100_000
    owners = run([mount(trained, "outputs")], "bash", "-c", "find /workspace/outputs -printf '%u\\n' | sort -u")
    assert owners.stdout.split() == ["app"]


def test_infer_asks_the_newest_run(trained, models, run):
    mounts = [mount(models, "models", "ro"), mount(trained, "outputs", "ro")]
    done = run(mounts, "infer", "--question", "How much water should I drink?", "--max_new_tokens", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    [adapter] = trained.glob("medical/*/adapter_config.json")
    _, answer = done.stdout.split(f"adapter: /workspace/outputs/medical/{adapter.parent.name}\n")
    assert answer.strip()


def test_data_checks_a_mounted_folder(run):
    done = run([mount(REPO / "medical/sample", "data", "ro")], "data", "--check", "/workspace/data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gb18030" in done.stdout.lower()


def test_help_needs_no_mounts(run):
    for arguments in (["--help"], ["train", "--help"], ["infer", "--help"], ["data", "--help"]):
        done = run([], *arguments)
        assert done.returncode == 0 and "--" in done.stdout, (arguments, done.stderr)


def test_unknown_verb_names_those_there_are(run):
    done = run([], "trian")
    assert done.returncode == 2
    assert done.stderr == "unknown verb 'trian'; this image has: data evaluate infer train doctor bash python\n"


def test_doctor_is_in_the_image_and_finds_the_missing_gpu(run):
    done = run([], "doctor", "--lang", "en")
    assert "no nvidia-smi here" in done.stdout and "--gpus all" in done.stdout
    assert "Traceback" not in done.stderr


def test_nothing_mounted_ends_at_once_with_the_flags_to_add(run):
    flags = [f'  -v "$PWD/{name}":/workspace/{name}' for name in ("models", "outputs", "data")]
    for arguments, expected in ([], flags), (["train", "--demo"], flags[:2]), (["infer", "--question", "?"], flags[:2]):
        start = time.monotonic()
        done = run([], *arguments)
        assert done.returncode == 1 and time.monotonic() - start < 5
        assert done.stderr.splitlines()[-len(expected) :] == expected, arguments


def test_empty_data_folder_is_named(run, tmp_path):
    done = run([mount(tmp_path / name, name) for name in ("models", "outputs", "data")])
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("/workspace/data is empty")


def test_any_user_can_write_to_a_folder_that_docker_made(run, tmp_path):
    mounts = [mount(tmp_path / "models", "models"), mount(tmp_path / "outputs", "outputs")]
    script = "id -u; touch $OUTPUT_DIR/x $MODELS_DIR/x $HOME/x && stat -c %u $OUTPUT_DIR/x;"
    script += "python -c 'import getpass; print(getpass.getuser())'"  # torch asks; that user is not in /etc/passwd
    assert run(["--user=4321", *mounts], "bash", "-c", script).stdout.split() == ["4321", "4321", "app"]
    # It is 4321's now: the image's own user is told, and nothing changes hands.
    done = run(mounts, "train", "--demo")
    assert done.returncode == 1
    assert "/workspace/outputs belongs to user 4321" in done.stderr and "--user 4321:" in done.stderr


def test_a_folder_of_roots_with_something_in_it_stays_roots(run, tmp_path):
    mounts = [mount(tmp_path / name, name) for name in ("models", "outputs")]
    assert run(["--user=0", *mounts], "bash", "-c", "touch /workspace/outputs/kept").returncode == 0
    done = run(mounts, "train", "--demo")
    assert done.returncode == 1
    assert "run on the host: sudo chown -R 1000 outputs" in done.stderr
    assert run(mounts, "bash", "-c", "stat -c %u /workspace/outputs").stdout.strip() == "0"


def test_without_the_right_to_hand_over_the_message_says_what_to_do(run, tmp_path):
    mounts = [mount(tmp_path / name, name) for name in ("models", "outputs")]
    done = run(["--cap-drop=ALL", "--security-opt=no-new-privileges", *mounts], "train", "--demo")
    assert done.returncode == 1
    assert "run on the host: sudo chown -R 1000 outputs" in done.stderr


def test_env_file_of_the_host_keeps_the_images_folders(run, tmp_path):
    env = (REPO / ".env.example").read_text(encoding="utf-8")
    env += "\nMODELS_DIR=/root/autodl-tmp/models\nDATA_DIR=/d\nOUTPUT_DIR=/o\nHF_HOME=/h\n"
    env += "MEDICAL_DATA_DIR=/root/autodl-tmp/medical\nHF_ENDPOINT=x\n"
    (tmp_path / ".env").write_text(env, encoding="utf-8")
    names = "MODELS_DIR DATA_DIR OUTPUT_DIR HF_HOME MEDICAL_DATA_DIR HF_ENDPOINT"
    options = ["--env-file", tmp_path / ".env", mount(tmp_path / "models", "models")]
    done = run(options, "bash", "-c", f"for name in {names}; do echo ${{!name-unset}}; done")
    folders = ["/workspace/models", "/workspace/data", "/workspace/outputs", "/workspace/models/.hf"]
    assert done.stdout.split() == [*folders, "unset", "x"]


def test_docker_stop_ends_training_before_its_first_step(docker, medical, models, tmp_path):
    mounts = [mount(models, "models", "ro"), mount(tmp_path / "outputs", "outputs")]
    container = docker(*RUN, "-d", *mounts, medical, "train", "--demo", check=True).stdout.strip()
    try:
        time.sleep(2)  # by now Python imports; process 1 would not hear a SIGTERM
        start = time.monotonic()
        docker("stop", "--time=30", container, check=True)
        assert time.monotonic() - start < 20
        assert docker("inspect", container, "--format", "{{.State.ExitCode}}").stdout.strip() == "143"
    finally:
        docker("rm", "-f", container)


def test_docker_stop_leaves_a_checkpoint_that_the_same_command_goes_on_from(docker, medical, models, tmp_path):
    only_in_full()
    mounts = [mount(models, "models", "ro"), mount(tmp_path / "outputs", "outputs")]
    flags = {"max_steps": 6, "save_steps": 100, "eval_steps": 100, "held_out": 4, "show_answers": 0}
    demo = ["--demo", *(f"--{name}={value}" for name, value in flags.items())]
    container = docker(*RUN, "-d", *mounts, medical, *demo, check=True).stdout.strip()
    try:
        deadline = time.monotonic() + 300
        while not [log for log in (tmp_path / "outputs").glob("medical/*/metrics.jsonl") if log.read_text().strip()]:
            assert time.monotonic() < deadline, docker("logs", container)
            time.sleep(0.2)
        docker("stop", "--time=120", container, check=True)
        assert docker("inspect", container, "--format", "{{.State.ExitCode}}").stdout.strip() == "143"
    finally:
        docker("rm", "-f", container)
    [checkpoint] = (tmp_path / "outputs").glob("medical/*/checkpoint-*")
    done = docker(*RUN, "--rm", *mounts, medical, *demo)
    assert f"this data goes on from {checkpoint.name}" in done.stdout, done.stdout + done.stderr
    assert (checkpoint.parent / "adapter_model.safetensors").is_file() and done.returncode == 0


@pytest.fixture
def with_driver(docker, medical, tmp_path):
    """Call as with_driver(driver, torch's CUDA, *arguments): the image with an nvidia-smi that tells of this driver."""
    find = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    torch = docker("run", "--rm", medical, "python", "-c", find, check=True).stdout.strip()

    def run(driver, cuda, *arguments, options=()):
        doctors = f"case $1 in *name*) echo NVIDIA L4, {driver}, 23034, 22500, 8.9; exit ;; esac"
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{doctors}\necho {driver}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        (tmp_path / "version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = '{cuda}'\n")
        there = {"nvidia-smi": "/usr/local/bin/nvidia-smi", "version.py": f"{torch}/version.py"}
        mounts = [f"-v{tmp_path / name}:{place}:ro" for name, place in there.items()]
        return docker(*RUN, "--rm", *mounts, *options, medical, *arguments)

    return run


UPDATE = "Update it, or take a machine with a newer one."
OTHER = "Take medical-train:cu128 (make image TASK=medical CUDA=12.8), or a newer driver."


@pytest.mark.parametrize(
    "driver, cuda, said",
    [
        ("570.86.10", "13.0", f"this image, for CUDA 13.0, needs 580 or newer. {OTHER}"),
        ("470.256.02", "13.0", f"this image, for CUDA 13.0, needs 580 or newer. {UPDATE}"),
        ("470.256.02", "12.8", f"this image, for CUDA 12.8, needs 525 or newer. {UPDATE}"),
        ("580.65.06", "13.0", None),
        ("570.86.10", "12.8", None),
        ("NVIDIA-SMI has failed", "13.0", None),  # torch says more about that
    ],
)
def test_a_driver_that_is_too_old_ends_the_run_and_the_other_tag_is_named(with_driver, driver, cuda, said):
    for verb in ([], ["--demo"], ["infer", "--question", "?"]):
        done = with_driver(driver, cuda, *verb)
        assert done.returncode == 1
        if said:
            assert done.stderr == f"The driver here is {driver}; {said}\n"
        else:
            assert done.stderr.startswith("/workspace/models is not mounted")  # the next check's word


def test_an_old_driver_is_in_nobodys_way_who_does_not_train(with_driver):
    assert with_driver("570.86.10", "13.0", "bash", "-c", "echo in").stdout == "in\n"
    assert "--max_steps" in with_driver("570.86.10", "13.0", "train", "--help").stdout
    assert "make image TASK=medical CUDA=12.8" in with_driver("570.86.10", "13.0", "doctor", "--offline").stdout


def test_an_old_driver_with_nvidias_compatibility_libraries_will_do(with_driver):
    for version, said in (13000, "/workspace/models is not mounted"), (12080, "The driver here is 570.86.10"):
        libcuda = f"int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}"
        script = f"echo '{libcuda}' | gcc -shared -x c - -o /tmp/libcuda.so.1; LD_LIBRARY_PATH=/tmp entrypoint.sh train"
        assert with_driver("570.86.10", "13.0", "bash", "-c", script).stderr.startswith(said)


DEMOS = ["image_svd", "als_movielens", "lora_lowrank --steps 1 --ranks 1 --lora_ranks 1"]
OTHERS = {  # flags that make a demo a matter of seconds; rlhf_ppo's is a chain of stages, and runs whole
    "alpaca": "--max_steps 1 --max_new_tokens 4",
    "domain_mix": "--max_steps 1 --max_new_tokens 4",
    "r1_grpo": "--max_steps 1 --save_steps 1 --max_completion_length 8 --warmup_sft 1 --probe_prompts 0 --eval_prompts 1 --follow 1",
    "rlhf_ppo": "",
    "preference": "--max_steps 1 --max_new_tokens 4 --show_answers 2 --eval_rows 4",
    "lora_variants": "--variant pissa --max_steps 1 --max_new_tokens 4 --eval_rows 4",
    "continual": "--max_steps 1 --max_new_tokens 4 --ask 2",
    "vl_insurance": "--max_steps 1 --max_new_tokens 4",
    "s1_scaling": "--max_steps 1 --eval_rows 4 --eval_answers 2 --max_think 12 --cap 4 --max_answer 3",
}


@pytest.mark.parametrize("task", OTHERS)
def test_every_other_folder_is_an_image_too(docker, medical, models, task, tmp_path, tmp_path_factory):
    """Built from its folder alone, it trains its demo with no network. (medical stands for the base being there.)"""
    only_in_full()
    # alpaca's is built from its other lock, as every image for CUDA 12.8 is.
    image = build(docker, task, tmp_path_factory, "requirements-cu128.txt" if task == "alpaca" else "requirements.txt")
    check_contents(docker, image, task)
    unknown = docker(*RUN, "--rm", image, "trian")
    assert unknown.returncode == 2 and unknown.stderr.endswith(" doctor bash python\n") and " infer " in unknown.stderr
    assert "no nvidia-smi here" in docker(*RUN, "--rm", image, "doctor", "--lang", "en", "--offline").stdout
    outputs = tmp_path / "outputs"
    mounts = [mount(models, "models", "ro"), mount(outputs, "outputs")]
    script = ["dpo"] if task == "preference" else []  # it has four in the place of a train.py
    done = docker(*RUN, "--rm", *mounts, image, *script, "--demo", *OTHERS[task].split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(outputs.glob(f"{task}/**/adapter_model.safetensors"))


def test_math_demos_image_draws_its_figures(docker, medical, models, tmp_path, tmp_path_factory):
    only_in_full()
    image, outputs = build(docker, "math_demos", tmp_path_factory), tmp_path / "outputs"
    check_contents(docker, image, "math_demos")
    mounts = [mount(models, "models", "ro"), mount(outputs, "outputs")]
    for demo in DEMOS:
        done = docker(*RUN, "--rm", *mounts, image, *demo.split())
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((outputs / "math_demos").glob("*.png"))) == len(DEMOS)


@pytest.fixture(scope="module")
def node(docker, medical, tmp_path_factory):
    """An image with this machine's node and npm, in the place of node:22-slim."""
    npm = shutil.which("npm") and Path(shutil.which("npm")).resolve().parents[1]
    if not npm or not shutil.which("node"):
        pytest.skip("no npm here to stand in for the node image")
    context = tmp_path_factory.mktemp("node")
    shutil.copytree(npm, context / "npm")
    shutil.copyfile(Path(shutil.which("node")).resolve(), context / "node")
    (context / "Dockerfile").write_text(
        "FROM finetune-test-cuda\nCOPY --chmod=755 node /usr/bin/node\nCOPY npm /usr/lib/npm\n"
        "RUN ln -s ../lib/npm/bin/npm-cli.js /usr/bin/npm && chmod 755 /usr/lib/npm/bin/npm-cli.js\n"
        "ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt\n"
    )
    docker(*BUILD, "-t", "finetune-test-node", context, check=True)
    return ["--build-arg", "NODE_IMAGE=finetune-test-node"]


def test_the_deploy_image_exports_and_judges_a_run(docker, trained, models, node, tmp_path_factory):
    """With no network, a read-only disk and the quantiser that was built in."""
    only_in_full()
    image = build(docker, "deploy", tmp_path_factory, more=node)
    check_contents(docker, image, "deploy")
    mounts = [mount(models, "models", "ro"), mount(trained, "outputs")]
    done = docker(*RUN, "--rm", *mounts, image, "export", "--to", "merged,gguf,ollama", "--quant", "q4_k_m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(trained.glob("deploy/*/*-q4_k_m.gguf")) and list(trained.glob("deploy/*/Modelfile"))
    done = docker(*RUN, "--rm", *mounts, image, "gate")
    # Two steps are an update that bfloat16 and K-quants round away in part, which the gate says: 5 or 6.
    assert done.returncode in (0, 5, 6) and "KL per token" in done.stdout, done.stdout + done.stderr
    assert list(trained.glob("deploy/*/gate.html"))
