"""tools/fetch.py against a hub of our own that breaks off, stalls and refuses."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME, SHA = "org/tiny-model", "0123456789abcdef0123456789abcdef01234567"


def weights(size):
    """A real safetensors file of one tensor of `size` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(size)


FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": weights(24_000_000), "evil.bin": b"pickle"}


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: the model's card, its file list, HEAD and GET (with Range) of each file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server, self.path.split("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.status and hub.refuses in path:
            return self.answer(hub.status, b'{"error": "no"}', hub.headers)
        if path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            siblings = [{"rfilename": name} | self.entry(name) for name in FILES]
            siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in hub.lists]
            return self.answer(200, json.dumps({"id": NAME, "sha": SHA, "siblings": siblings}).encode(), JSON)
        if path == f"/api/models/{NAME}/tree/{SHA}":
            tree = [{"type": "file", "path": name, "oid": "0" * 40} | self.entry(name) for name in FILES]
            return self.answer(200, json.dumps(tree).encode(), JSON)
        if path == f"/api/v1/models/{NAME}/repo/files":  # ModelScope's list, and below its files
            listed = [
                {"Path": name, "Type": "blob", "Size": len(FILES[name]), "Sha256": digest(name)} for name in FILES
            ]
            return self.answer(
                200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode(), JSON
            )
        name = path.removeprefix(f"/{NAME}/resolve/{SHA}/")
        if path == f"/api/v1/models/{NAME}/repo":
            name = parse_qs(urlsplit(self.path).query)["FilePath"][0]
        if name not in FILES:
            return self.answer(404, b"{}")
        self.send_file(name)

    def entry(self, name):
        size = len(FILES[name])
        lfs = {"sha256": digest(name), "oid": digest(name), "size": size, "pointerSize": 130}
        return {"size": size, "blobId": "0" * 40} | ({"lfs": lfs} if name.endswith(".safetensors") else {})

    def send_file(self, name):
        hub, content = self.server, hub_content(self.server, name)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{digest(name)}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name.endswith(".safetensors") and hub.breaks > 0:
            hub.breaks -= 1
            self.wfile.write(content[start : start + 12_000_000])
            self.wfile.flush()
            if hub.stalls:
                hub.closing.wait(20)
            self.close_connection = True
            return
        self.wfile.write(content[start:])


JSON = {"Content-Type": "application/json"}


def digest(name):
    return hashlib.sha256(FILES[name]).hexdigest()


def hub_content(hub, name):
    return FILES[name][:-1] + b"?" if hub.corrupts and name.endswith(".safetensors") else FILES[name]


@contextmanager
def serve(status=None, refuses="", headers=JSON, breaks=0, stalls=False, corrupts=False, lists=()):
    """A hub that answers `status` where `refuses` is in the path, and breaks off or stalls `breaks` times.

    lists: names that the model's card has besides."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads, server.asked, server.closing = True, [], threading.Event()
    server.status, server.refuses, server.headers = status, refuses, headers
    server.breaks, server.stalls, server.corrupts, server.lists = breaks, stalls, corrupts, lists
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(tmp_path):
    """Runs the script as a user does -> CompletedProcess."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODEL"))}
    keep |= {"MODELS_DIR": str(tmp_path / "models"), "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}

    def run(url, *arguments, name=NAME, **more):
        command = [sys.executable, ROOT / "tools/fetch.py", name, *arguments]
        return subprocess.run(
            command, env=keep | {"HF_ENDPOINT": url} | more, cwd=tmp_path, capture_output=True, text=True
        )

    run.folder = tmp_path / "models" / NAME
    run.part = run.folder.with_name(".tiny-model.part")
    return run


def ranges(hub):
    return [span for method, path, span in hub.asked if method == "GET" and path.endswith(".safetensors")]


def test_a_model_is_fetched_whole_and_without_pickles(fetch):
    with serve() as hub:
        done = fetch(hub.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{fetch.folder}\n"
        assert sorted(file.name for file in fetch.folder.iterdir()) == ["config.json", "model.safetensors"]
        assert (fetch.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert [file.name for file in fetch.folder.parent.iterdir()] == ["tiny-model"]  # no .part, no lock
        assert f"its large files from {hub.url[7:]}" in done.stderr
        before = len(hub.asked)
        assert "is there already" in fetch(hub.url).stderr and len(hub.asked) == before


@pytest.mark.parametrize("stalls", [False, True])
@pytest.mark.slow
def test_a_connection_that_breaks_or_stalls_goes_on_in_the_middle(fetch, stalls):
    with serve(breaks=1, stalls=stalls) as hub:
        done = fetch(hub.url)
        assert done.returncode == 0, done.stderr
        assert ranges(hub) == [None, f"bytes={10 * 2**20}-"]  # it writes in pieces of 10 MiB
        assert (fetch.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_hub_that_dies_leaves_no_model_and_the_next_run_goes_on(fetch):
    with serve(status=500, refuses=".safetensors") as hub:
        done = fetch(hub.url)
    assert done.returncode == 1 and not fetch.folder.exists()
    assert f"could not be fetched from {hub.url}: HTTP 500" in done.stderr
    assert f"make fetch MODEL={NAME} SOURCE=modelscope" in done.stderr
    assert "Traceback" not in done.stderr
    with serve() as hub:
        assert fetch(hub.url).returncode == 0
    assert fetch.folder.is_dir() and not fetch.part.exists()


def test_complete_files_are_not_fetched_twice(fetch):
    with serve(corrupts=True) as hub:  # everything arrives, the weights are not what the hub says
        done = fetch(hub.url)
        assert done.returncode == 1 and "model.safetensors is not what the hub has" in done.stderr
        assert not fetch.folder.exists() and [file.name for file in fetch.part.glob("[!.]*")] == ["config.json"]
        hub.corrupts, hub.asked = False, []
        assert fetch(hub.url).returncode == 0
        assert [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path] == [
            f"/{NAME}/resolve/{SHA}/model.safetensors"
        ]


GATED = JSON | {"X-Error-Code": "GatedRepo"}


@pytest.mark.parametrize(
    "status, headers, advice",
    [
        (401, JSON, "accept its licence, make a token there and set HF_TOKEN. HF_TOKEN is not set."),
        (403, GATED, "accept its licence, make a token there and set HF_TOKEN. HF_TOKEN is not set."),
        (404, JSON | {"X-Error-Code": "RepoNotFound"}, "check the name, capital letters included"),
        (500, JSON, "the same command again in some minutes goes on where it stopped"),
    ],
)
def test_each_refusal_says_what_to_try(fetch, status, headers, advice):
    with serve(status=status, headers=headers) as hub:
        done = fetch(hub.url)
    assert done.returncode == 1 and not fetch.folder.exists()
    assert f"HTTP {status}" in done.stderr and advice in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_no_hub_at_all_names_the_mirror_and_modelscope(fetch):
    with serve() as hub:
        gone = hub.url
    done = fetch(gone)
    assert done.returncode == 1 and "the same command again" in done.stderr and "SOURCE=modelscope" in done.stderr
    offline = fetch("https://huggingface.co", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "HF_ENDPOINT=https://hf-mirror.com make fetch" in offline.stderr


def test_half_a_model_of_somebody_elses_is_left_alone_and_named(fetch):
    fetch.folder.mkdir(parents=True)
    (fetch.folder / "config.json").write_bytes(FILES["config.json"])
    (fetch.folder / "model.safetensors").write_bytes(FILES["model.safetensors"][:1000])
    done = fetch("http://127.0.0.1:9")
    assert done.returncode == 1
    assert "is not a whole model: model.safetensors is cut off or damaged (1000 bytes)" in done.stderr
    assert (fetch.folder / "model.safetensors").stat().st_size == 1000


@pytest.mark.parametrize(
    "name",
    ["../../../victim.json", "{}/victim.json", "a/../../../../victim.json", "..\\..\\victim.json", "C:victim.json"]
    + ["a//victim.json", "./victim.json", "nul\0.json", "n" * 300 + ".json"],
)
def test_a_hub_that_lists_a_path_out_of_the_folder_deletes_and_fetches_nothing(fetch, tmp_path, name):
    victim = tmp_path / "victim.json"
    victim.write_text("a file of the user's, of another size than the hub says")
    with serve(lists=[name.format(tmp_path)]) as hub:
        done = fetch(hub.url)
        assert victim.exists() and not fetch.folder.exists()
        assert done.returncode == 1 and "the hub lists a file" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not [path for _, path, _ in hub.asked if "/resolve/" in path]


def test_the_second_list_of_a_hub_adds_no_file(fetch, monkeypatch):
    """What the card names is checked; the downloader asks for the list again, which can be another one."""
    answer = Hub.answer

    def more(self, status, body=b"", headers=()):
        if "/tree/" in self.path:
            body = json.dumps([*json.loads(body), {"type": "file", "path": "late.json", "oid": "0" * 40, "size": 2}])
            body = body.encode()
        answer(self, status, body, headers)

    monkeypatch.setattr(Hub, "answer", more)
    with serve() as hub:
        done = fetch(hub.url)
        assert done.returncode == 0, done.stderr
        assert not [path for _, path, _ in hub.asked if "late" in path]


@pytest.mark.parametrize("name", ["../victim", "org/..", "/etc/passwd", "org/a/../../b", "org/" + "n" * 300, "org/a\n"])
def test_a_model_name_is_no_path(fetch, name):
    done = fetch("http://127.0.0.1:9", name=name)
    assert done.returncode == 1 and "is not of the form <org>/<name>" in done.stderr
    assert not fetch.folder.parent.exists()


def test_an_unknown_source_is_one_line(fetch):
    done = fetch("http://127.0.0.1:9", MODEL_SOURCE="hub")
    assert done.returncode == 1 and done.stderr == "MODEL_SOURCE=hub: expected huggingface or modelscope.\n"


def test_a_full_disk_is_said_before_anything_is_fetched(fetch, monkeypatch):
    monkeypatch.setattr(Hub, "entry", lambda self, name: {"size": 10**15})
    with serve() as hub:
        done = fetch(hub.url)
        assert done.returncode == 1 and f"not enough disk space for {NAME}" in done.stderr
        assert not [path for _, path, _ in hub.asked if "/resolve/" in path]


def test_xet_is_off_behind_a_mirror_only(monkeypatch):
    code = (
        "import sys; sys.path.insert(0, 'tools'); import os, fetch\n"
        "try: fetch.from_huggingface('a/b', fetch.Path('/nonexistent'))\n"
        "except SystemExit: pass\n"
        "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_XET)"
    )
    for url, off in (("http://127.0.0.1:9", "True"), ("https://huggingface.co", "False")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [off], done.stderr


def test_two_at_once_do_not_mix(fetch):
    import fcntl

    fetch.part.mkdir(parents=True)
    with open(fetch.part.with_name(".tiny-model.part.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = fetch("http://127.0.0.1:9")
    assert done.returncode == 1 and "another process is fetching" in done.stderr


def test_modelscope(fetch):
    pytest.importorskip("modelscope", reason="modelscope is not installed")
    with serve(breaks=1) as hub:
        done = fetch("", "--source", "modelscope", MODELSCOPE_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in fetch.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (fetch.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    with serve(status=404) as hub:
        done = fetch("", "--source", "modelscope", name="org/other", MODELSCOPE_ENDPOINT=hub.url)
    assert done.returncode == 1 and "HTTP 404" in done.stderr and "Traceback" not in done.stderr


def test_modelscope_that_is_not_installed_is_named(fetch, tmp_path):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/modelscope.py").write_text("raise ImportError")
    done = fetch("", "--source", "modelscope", PYTHONPATH=str(tmp_path / "hidden"))
    assert done.returncode == 1 and "pip install modelscope" in done.stderr
