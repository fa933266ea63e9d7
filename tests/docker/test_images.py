"""The images are built and run for real, on a stand-in base and with the CPU pins: no registry and no GPU needed.

Where no Docker engine runs, base.sh says why and these tests are skipped (`pytest -rs` prints it).
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BASE, MEDICAL = "finetune-test-base", "finetune-test-medical"
DEMO_MODEL = "demo/SmolLM2-135M-Instruct"
BUILD = ["build", "--network", "host"]


@pytest.fixture(scope="module")
def docker():
    """Call as docker(*arguments) -> CompletedProcess with stdout and stderr as text."""
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

    return call


@pytest.fixture(scope="module")
def medical(docker, tmp_path_factory):
    """The medical image, built from a copy of its folder in which lies what must stay outside."""
    docker(*BUILD, "--build-arg", "CUDA_IMAGE=finetune-test-cuda", "-t", BASE, REPO / "docker", check=True)
    context = copy_context("medical", tmp_path_factory)
    for planted in (".env", "weights.safetensors", "models/a/model.gguf", "data/a.csv", "outputs/run/run.json"):
        (context / planted).parent.mkdir(parents=True, exist_ok=True)
        (context / planted).write_text("HF_TOKEN=hf_planted\n")
    (context / "infer.py").chmod(0o600)  # as on a machine with umask 077
    docker(*BUILD, "--build-arg", f"BASE_IMAGE={BASE}", "-t", MEDICAL, context, check=True, timeout=1200)
    return MEDICAL


def only_in_full(whether=True):
    """An image takes a minute or two to build: CI builds three, `make test-docker` all."""
    if whether and not os.environ.get("TEST_DOCKER_ALL"):
        pytest.skip("make test-docker builds this image")


def copy_context(task, tmp_path_factory):
    """A copy of a task's folder with the CPU pins as its requirements."""
    context = tmp_path_factory.mktemp("context") / task
    shutil.copytree(REPO / task, context, ignore=shutil.ignore_patterns("__pycache__", "outputs", "models", "data"))
    pins = (REPO / "requirements-cpu.txt").read_text()
    if not os.environ.get("PIP_FIND_LINKS"):  # no torch wheel at hand: the CPU build's own index has it
        pins = f"--extra-index-url https://download.pytorch.org/whl/cpu\n{pins}"
    (context / "requirements.txt").write_text(pins)
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
    return lambda options, *arguments: docker("run", "--rm", "--network=none", *options, medical, *arguments)


def mount(host, folder, mode="rw"):
    return f"-v{host}:/workspace/{folder}:{mode}"


@pytest.fixture(scope="module")
def trained(docker, medical, models, tmp_path_factory):
    """The outputs of a two-step demo, written to a folder which Docker made, as root."""
    outputs = tmp_path_factory.mktemp("host") / "outputs"
    demo = ["train", "--demo", "--max_steps", "2", "--max_new_tokens", "16"]
    mounts = [mount(models, "models", "ro"), mount(outputs, "outputs")]
    done = docker("run", "--rm", "--network=none", *mounts, medical, *demo)
    assert done.returncode == 0, done.stdout + done.stderr
    return outputs


def test_image_runs_as_a_user_without_rights(docker, medical, run):
    assert docker("image", "inspect", medical, "--format", "{{.Config.User}}").stdout.strip() == "1000:1000"
    done = run([], "bash", "-c", "id -u; id -un; for d in /app /app/medical /opt/venv; do test -w $d || echo $d; done")
    assert done.stdout.split() == ["1000", "app", "/app", "/app/medical", "/opt/venv"]


def test_image_holds_no_weights_secrets_or_caches(run):
    # Root may look everywhere. Two files of the image's own prove that the search finds what is there.
    find = "find / -xdev -type f ( -name .env -o -name *.safetensors -o -name *.gguf -o -path /root/.cache/*"
    find += " -o -path /app/medical/data/* -o -path /app/medical/outputs/* -o -path /app/medical/models/*"
    find += " -o -name *.whl -not -path /wheels/* -not -path /usr/share/* -o -name train.py -path /app/* -o -name claim-mounts )"
    found = run(["--user=0", "--entrypoint=/usr/bin/env"], *find.split()).stdout.split()
    assert sorted(found) == ["/app/medical/train.py", "/usr/local/bin/claim-mounts"]


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
    done = run(["--env-file", tmp_path / ".env"], "bash", "-c", f"for name in {names}; do echo ${{!name-unset}}; done")
    folders = ["/workspace/models", "/workspace/data", "/workspace/outputs", "/workspace/models/.hf"]
    assert done.stdout.split() == [*folders, "unset", "x"]


def test_docker_stop_ends_training_before_its_first_step(docker, medical, models, tmp_path):
    mounts = [mount(models, "models", "ro"), mount(tmp_path / "outputs", "outputs")]
    container = docker("run", "-d", "--network=none", *mounts, medical, "train", "--demo", check=True).stdout.strip()
    try:
        time.sleep(2)  # by now Python imports; process 1 would not hear a SIGTERM
        start = time.monotonic()
        docker("stop", "--time=30", container, check=True)
        assert time.monotonic() - start < 20
        assert docker("inspect", container, "--format", "{{.State.ExitCode}}").stdout.strip() == "143"
    finally:
        docker("rm", "-f", container)


DEMOS = ["image_svd", "als_movielens", "lora_lowrank --steps 1 --ranks 1 --lora_ranks 1"]
OTHERS = {  # flags that make a demo a matter of seconds; rlhf_ppo's is a chain of stages, and runs whole
    "alpaca": "--max_steps 1 --max_new_tokens 4",
    "domain_mix": "--max_steps 1 --max_new_tokens 4",
    "r1_grpo": "--max_steps 1 --save_steps 1 --max_completion_length 8 --warmup_sft 1 --probe_prompts 0 --eval_prompts 1 --follow 1",
    "rlhf_ppo": "",
    "vl_insurance": "--max_steps 1 --max_new_tokens 4",
    "s1_scaling": "--max_steps 1 --eval_rows 4 --eval_answers 2 --max_think 12 --cap 4 --max_answer 3",
}


@pytest.mark.parametrize("task", OTHERS)
def test_every_other_folder_is_an_image_too(docker, medical, models, task, tmp_path, tmp_path_factory):
    """Built from its folder alone, it trains its demo with no network. (medical stands for the base being there.)"""
    only_in_full(task not in ("alpaca", "domain_mix"))
    image = f"finetune-test-{task.replace('_', '-')}"
    context = copy_context(task, tmp_path_factory)
    docker(*BUILD, "--build-arg", f"BASE_IMAGE={BASE}", "-t", image, context, check=True, timeout=1200)
    outputs = tmp_path / "outputs"
    mounts = [mount(models, "models", "ro"), mount(outputs, "outputs")]
    demo = ["--demo", *OTHERS[task].split()]
    done = docker("run", "--rm", "--network=none", *mounts, image, *demo)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(outputs.glob(f"{task}/**/adapter_model.safetensors"))


def test_math_demos_image_draws_its_figures(docker, medical, models, tmp_path, tmp_path_factory):
    only_in_full()
    image, outputs = "finetune-test-math-demos", tmp_path / "outputs"
    context = copy_context("math_demos", tmp_path_factory)
    docker(*BUILD, "--build-arg", f"BASE_IMAGE={BASE}", "-t", image, context, check=True, timeout=1200)
    mounts = [mount(models, "models", "ro"), mount(outputs, "outputs")]
    for demo in DEMOS:
        done = docker("run", "--rm", "--network=none", *mounts, image, *demo.split())
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((outputs / "math_demos").glob("*.png"))) == len(DEMOS)
