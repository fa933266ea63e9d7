"""docker/compose.yaml and docker/examples: parsed, and held against the folders and scripts that they name."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
TASKS = sorted(file.parent.name for file in ROOT.glob("*/Dockerfile") if file.parent != DOCKER)
FOLDERS = {"/workspace/models", "/workspace/data", "/workspace/outputs"}  # what entrypoint.sh looks for


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))["services"]


def test_every_folder_with_a_dockerfile_is_a_service(services):
    assert sorted(services) == sorted(["base", *(f"{task}-train" for task in TASKS)])
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
        assert devices == (expected if (ROOT / task / "train.py").exists() else None), task


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
