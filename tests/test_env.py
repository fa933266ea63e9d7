"""What a .env file may do: set the documented names, and send no secret to a host of its choice."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a script does first, and then what transformers, datasets and TRL do: ask the hub with the token that is there.
ASK = """
import sys
sys.path.insert(0, {root!r})
from common import paths
paths.load_env()
from huggingface_hub import HfApi
try:
    HfApi().model_info("org/name")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def hub():
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append((self.path, self.headers.get("Authorization")))
            body = json.dumps({"id": "org/name", "sha": "0" * 40, "siblings": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads, server.asked = True, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(folder, code=ASK, cached=False, **more):
    """Runs the code in the folder, as a user who is logged in or not -> CompletedProcess."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "TOKEN" not in name}
    (folder / "home").mkdir(exist_ok=True)
    if cached:
        (folder / "home/token").write_text("hf_cached")
    code = code.replace("{root!r}", repr(str(ROOT)))
    environment = {name: value for name, value in keep.items() if not name.endswith(("_DIR", "SOURCE"))}
    environment |= {"HF_HOME": str(folder / "home"), **more}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("cached", "more"), [(False, {"HF_TOKEN": "hf_secret"}), (True, {})])
def test_an_endpoint_of_a_downloaded_env_file_gets_no_token(tmp_path, hub, cached, more):
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub.url}\n")
    done = ask(tmp_path, cached=cached, **more)
    assert hub.asked == [("/api/models/org/name", None)], done.stdout + done.stderr
    assert done.stderr == f"{tmp_path}/.env: HF_ENDPOINT={hub.url} is sent no token but HF_TOKEN from the same file.\n"


def test_no_word_where_there_is_no_token(tmp_path, hub):
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub.url}\n")
    assert ask(tmp_path).stderr == "" and hub.asked == [("/api/models/org/name", None)]


def test_a_mirror_gets_the_token_of_its_own_file(tmp_path, hub):
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub.url}\nHF_TOKEN=hf_for_the_mirror\n")
    assert ask(tmp_path, cached=True).stderr == "" and hub.asked[0][1] == "Bearer hf_for_the_mirror"
    ask(tmp_path, HF_TOKEN="hf_secret")  # the environment wins over the file: it is another token then
    assert hub.asked[1][1] is None


def test_an_endpoint_of_the_environment_gets_the_token(tmp_path, hub):
    (tmp_path / ".env").write_text("HF_TOKEN=hf_mine\nHF_ENDPOINT=http://127.0.0.1:9\n")
    done = ask(tmp_path, HF_ENDPOINT=hub.url)
    assert hub.asked[0][1] == "Bearer hf_mine" and done.stderr == ""


def test_an_address_carries_no_secret_away(tmp_path, hub):
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub.url}/${{AWS_SECRET}}/${{HF_TOKEN}}\nMODELS_DIR=${{HOME}}/m\n")
    code = "print(paths.models_dir())\nfrom huggingface_hub import HfApi"
    done = ask(tmp_path, ASK.replace("from huggingface_hub import HfApi", code), HF_TOKEN="hf_secret", AWS_SECRET="key")
    assert hub.asked and not any("hf_secret" in path or "key" in path for path, _ in hub.asked), hub.asked
    assert f"{Path.home()}/m" in done.stdout  # in folders it counts


SET = ASK.split("from huggingface_hub")[0] + "import os, json; print(json.dumps(dict(os.environ)))"


def test_only_the_documented_names_are_read(tmp_path):
    documented = [line for line in (ROOT / ".env.example").read_text("utf-8").splitlines() if line.endswith("=")]
    sys.path.insert(0, str(ROOT))
    from common import paths

    tasks = {f"{file.parent.name.upper()}_DATA_DIR" for file in ROOT.glob("*/data.py")}
    assert {line[:-1] for line in documented} == set(paths.VARIABLES) | tasks
    for key in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "WANDB_API_KEY", "SWANLAB_API_KEY"):
        assert key in paths.VARIABLES
    foreign = ("LD_PRELOAD", "PYTHONPATH", "WANDB_BASE_URL", "MODELSCOPE_ENDPOINT", "WANDB_DATA_DIR", "PIP_INDEX_URL")
    text = "".join(f"{name}=/from-the-file\n" for name in (*foreign, "WANDB_API_KEY", "MODELS_DIR"))
    (tmp_path / ".env").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", SET.replace("{root!r}", repr(str(ROOT)))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert [name for name in foreign if found.get(name) == "/from-the-file"] == []
    assert found["WANDB_API_KEY"] == found["MODELS_DIR"] == "/from-the-file"


def test_a_nul_in_an_env_file_is_one_line(tmp_path):
    (tmp_path / ".env").write_bytes(b"MODELS_DIR=/a\0b\n")
    done = ask(tmp_path)
    assert done.returncode == 1 and done.stderr == f"{tmp_path}/.env: not UTF-8. Save it as UTF-8.\n"
    doctor = [sys.executable, "-I", "-S", ROOT / "docker/doctor.py", "--offline", "--json"]
    checks = json.loads(subprocess.run(doctor, cwd=tmp_path, capture_output=True, text=True).stdout)
    assert next(check for check in checks if check["name"] == ".env")["status"] == "fail"
