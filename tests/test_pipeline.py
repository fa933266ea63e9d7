"""deploy/pipeline.py: from an upload to an A/B page; killed at each step; uploads that lie; another machine over ssh."""

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [("头痛怎么办?", "多休息,多喝水。"), ("发烧怎么办?", "量体温,看医生。"), ('咳嗽 "一周"了', "去医院\n拍片。")]

# Scripts of a few lines in place of the real ones. Each notes that it began, and waits while hold/<step> is there.
HOLD = """
import json, os, pathlib, sys, time
def hold(step):
    folder = pathlib.Path(os.environ["HOLD"])
    with open(folder / "began", "a") as file: print(step, os.getpid(), file=file)
    while (folder / step).exists(): time.sleep(0.02)
def flag(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default
def url(port, handler):
    import http.server
    return http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
"""
RECIPE = {
    "data.py": """
hold("clean")
files = sorted(pathlib.Path(flag("--check")).rglob("*.csv"))
print("rows:", len(files), "dropped: 1 (empty)")
with open(flag("--out"), "x") as out:
    for file in files: out.write(json.dumps({"question": file.name, "answer": "a, \\"b\\"\\nc"}) + "\\n")
""",
    "train.py": """
run = pathlib.Path(flag("--output_dir")); run.mkdir(parents=True, exist_ok=True)
try: (run / "running").touch(exist_ok=False)
except FileExistsError: print("TWO TRAIN AT ONCE")
def save(*_):
    time.sleep(1)
    print("saved at the last moment")  # to nobody: the pipeline was killed
    (run / "running").unlink()
    sys.exit(143)
import signal; signal.signal(signal.SIGTERM, save)
print("goes on" if (run / "checkpoint-1").exists() else "begins", "with", open(flag("--data")).readline().strip())
(run / "checkpoint-1").mkdir(exist_ok=True)
hold("train")
print("the token is", os.environ.get("HF_TOKEN"))
if flag("--fail"): (run / "running").unlink(); sys.exit(int(flag("--fail")))
(run / "adapter_model.safetensors").write_text("weights")
print("50%", end="\\r"); print("100%")
loss = {"en": {"loss": 2.0, "tokens": 500}}
(run / "running").unlink()
record = {"status": "finished", "finished": time.time(), "before": loss, "after": {"en": {"loss": float(flag("--after", "1")), "tokens": 500}}}
(run / "run.json").write_text(json.dumps(record))
""",
    "evaluate.py": """
hold("evaluate")
out = pathlib.Path(flag("--out")); out.mkdir(exist_ok=True)
shift = float(open(pathlib.Path(os.environ["HOLD"]) / "shift").read())
(out / "metrics.json").write_text(json.dumps({"base": {"loss": 2.0}, "tuned": {"loss": 2 + shift}, "difference_95": {"loss": [shift - .1, shift + .1]}}))
""",
}
DEPLOY = {
    "export.py": """
hold("export")
out = pathlib.Path(os.environ["OUTPUT_DIR"], "deploy", "export"); out.mkdir(parents=True, exist_ok=True)
(out / "model-q8_0.gguf").write_text("gguf")
(out / "manifest.json").write_text(json.dumps({"files": {"model-q8_0.gguf": {}}}))
""",
    "gate.py": """
def newest_export(run): return pathlib.Path(os.environ["OUTPUT_DIR"], "deploy", "export")
if __name__ == "__main__":
    hold("gate")
    (newest_export(0) / "gate.json").write_text("{}")
    sys.exit(int(os.environ.get("GATE", 0)))
""",
    "serve.py": """
import http.server
hold("serve")
class Handler(http.server.SimpleHTTPRequestHandler): pass
server = url(flag("--port"), Handler)
assert os.environ["OPENAI_API_KEY"] not in sys.argv
print(f"ready: http://127.0.0.1:{server.server_address[1]}/v1  models: base, {sys.argv[1].split('/')[-1]}", flush=True)
server.serve_forever()
""",
    "compare.py": """
hold("ab")
pathlib.Path(flag("--out"), "compare.html").write_text("<html>both</html>")
""",
    "compare_web.py": """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"the A/B page")
server = url(flag("--port"), Handler)
print(f"open http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
""",
}


class Old(zipfile.ZipInfo):
    """An entry as old Chinese programs write it: its name in GB18030, which nothing says."""

    def _encodeFilenameFlags(self):
        return self.filename.encode("gb18030"), 0


def packed(file, files, kind=Old):
    """A zip of {name: text or bytes}, texts in GB18030."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = name if isinstance(name, zipfile.ZipInfo) else kind(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.encode("gb18030") if isinstance(content, str) else content)
    return file


def table(rows):
    text = io.StringIO()
    csv.writer(text).writerows([("问题", "回答"), *rows])
    return text.getvalue()


def messy(file, rows=ROWS):
    """What people upload: GB18030 names and contents, empty rows, rows twice, files of macOS, a README."""
    rows = [*rows, ("", ""), rows[0], ("发冷", "")]
    return packed(file, {"上传/内科/内科.csv": table(rows), "上传/README.txt": "说明", "上传/.DS_Store": b"\0",
                         "__MACOSX/上传/内科/._内科.csv": b"\0\5\x16\7"})  # fmt: skip


@pytest.fixture
def tree(tmp_path, environment):
    """A copy of deploy/ with short scripts, a recipe of short scripts, and an upload."""
    for name, scripts in (("medical", RECIPE), ("deploy", DEPLOY)):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for file, text in scripts.items():
            (tmp_path / "tree" / name / file).write_text(HOLD + text)
    for name in ("pipeline.py", "steps.py", "upload.py", "runner.py"):
        shutil.copy(ROOT / "deploy" / name, tmp_path / "tree" / "deploy")
    shutil.copytree(ROOT / "deploy" / "common", tmp_path / "tree" / "deploy" / "common")
    (tmp_path / "hold").mkdir()
    (tmp_path / "hold" / "shift").write_text("-0.5")
    upload = messy(tmp_path / "upload.zip")
    environment |= {"HOLD": str(tmp_path / "hold"), "HF_TOKEN": "hf_verysecret"}
    environment.pop("OPENAI_API_KEY", None)
    deploy, outputs = tmp_path / "tree" / "deploy", Path(environment["OUTPUT_DIR"])
    return SimpleNamespace(deploy=deploy, hold=tmp_path / "hold", upload=upload, outputs=outputs, tmp=tmp_path,
                           environment=environment, place=outputs / "deploy" / "pipelines" / "medical-upload")  # fmt: skip


def started(tree, *argv, data=None):
    """The pipeline as a process in a group of its own, its output in a file."""
    flags, cut = list(map(str, argv)), list(argv).index("--") if "--" in argv else len(argv)
    flags[cut:cut] = ["--port", "0", "--page_port", "0"]
    command = [
        sys.executable,
        tree.deploy / "pipeline.py",
        "--data",
        data or tree.upload,
        "--recipe",
        "medical",
        *flags,
    ]
    return begun(tree, command)


def begun(tree, command):
    with open(tree.tmp / "out", "w") as out:
        return subprocess.Popen(list(map(str, command)), env=tree.environment, cwd=tree.tmp, stdin=subprocess.DEVNULL,
                                start_new_session=True, stdout=out, stderr=subprocess.STDOUT)  # fmt: skip


def said(tree):
    return (tree.tmp / "out").read_text(errors="replace")


def until(true, seconds=20.0):
    end = time.time() + seconds
    while not (found := true()):
        assert time.time() < end, "it did not come"
        time.sleep(0.02)
    return found


def run(tree, *argv, **more):
    process = started(tree, *argv, **more)
    code = process.wait(60)
    return code, said(tree)


def gone(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def steps_of(tree):
    return {file.parent.name: json.loads(file.read_text()) for file in tree.place.glob("*/step.json")}


def test_from_a_messy_upload_to_the_page_killed_at_each_step(tree):
    """kill -9 of the pipeline: what it started ends, too, and the same command skips what was done and goes on."""
    order = ("clean", "train", "evaluate", "export", "gate", "serve", "ab")
    for at, step in enumerate(order):
        (tree.hold / step).touch()
        process = started(tree)
        began = until(lambda step=step: [line.split() for line in (tree.hold / "began").read_text().splitlines()
                                         if line.startswith(step)] if (tree.hold / "began").exists() else None)  # fmt: skip
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if step != "train":  # which takes a second to save: the next command has to wait for it
            number = int(began[-1][1])
            until(lambda number=number: gone(number))
        for done in order[:at] if at < 6 else order[:5]:
            assert f"== {done}: already done" in said(tree) or at == order.index(done) + 1, (step, done, said(tree))
        assert "code" not in steps_of(tree).get(step, {}) or step == "serve"
        (tree.hold / step).unlink()
    process = started(tree)
    served = until(lambda: re.search(r"served: (\S+)/v1   key: (\S+)", said(tree)))
    page = re.search(r"A/B page: (\S+)", said(tree))[1]
    assert urllib.request.urlopen(page).read() == b"the A/B page"
    assert (tree.place / "ab" / "compare.html").read_text() == "<html>both</html>"
    process.terminate()
    assert process.wait(10) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(served[1])
    # One run, gone on with; what was dropped is told; nothing secret is in a log.
    assert len(list((tree.outputs / "medical").iterdir())) == 1
    log = (tree.place / "train" / "log.txt").read_text()
    assert (
        "TWO TRAIN" not in log
        and log.count("begins") == 1
        and log.count("goes on") == 1
        and "50%" not in log
        and "100%" in log
    )
    assert "hf_verysecret" not in log + said(tree) and "the token is ***" in log
    assert "dropped: 1" in (tree.place / "clean" / "report.txt").read_text()
    assert all(served[2] not in file.read_text() for file in tree.place.rglob("log.txt"))
    record = steps_of(tree)
    assert (
        record["train"]["code"] == 0 and record["train"]["seconds"] >= 0 and "train.py" in record["train"]["command"][1]
    )
    assert record["train"]["inputs"]["rows"] == list(record["clean"]["outputs"].values())


def test_killed_while_it_unpacks(tree):
    upload = packed(tree.tmp / "upload.zip", {f"{n}/{'x' * 100}.csv": "a,b\n" for n in range(4_000)})
    process = started(tree, "--until", "ingest", data=upload)
    until(lambda: (tree.place / "ingest" / ".new-files").exists())
    process.kill()
    process.wait()
    assert not (tree.place / "ingest" / "files").exists() and not steps_of(tree)
    code, out = run(tree, "--until", "ingest", data=upload)
    assert code == 0 and "4,000 files unpacked" in out
    assert not (tree.place / "ingest" / ".new-files").exists()


def test_other_inputs_are_other_steps_and_damage_is_done_again(tree):
    assert run(tree, "--until", "evaluate")[0] == 0
    _, out = run(tree, "--until", "evaluate", "--limit", "7")
    assert out.count("already done") == 3 and "--limit 7" in out
    _, out = run(tree, "--until", "train", "--", "--seed", "7")
    assert out.count("already done") == 2 and "begins" in out  # a run of its own
    rows = tree.place / "clean" / "rows.csv"
    rows.write_text("gone")
    _, out = run(tree, "--until", "clean")
    assert out.count("already done") == 1 and "a, " in rows.read_text()


def test_two_pipelines_do_not_write_one_folder(tree):
    (tree.hold / "clean").touch()
    first = started(tree, "--until", "clean")
    until(lambda: (tree.hold / "began").exists())
    shutil.copy(tree.tmp / "out", tree.tmp / "first")
    code, out = run(tree, "--until", "clean")
    assert code == 1 and f"another pipeline (process {first.pid})" in out
    (tree.hold / "clean").unlink()
    assert first.wait(10) == 0


@pytest.mark.parametrize("shift, flags, why", [
    ("0.5", (), "worse by +0.400 to +0.600"),
    ("nan", (), "worse by"),
    ("-0.5", ("--", "--after", "2.2"), "more than 5% was forgotten"),
])  # fmt: skip
def test_a_worse_model_is_not_deployed(tree, shift, flags, why):
    (tree.hold / "shift").write_text(shift)
    for _ in range(2):  # the second time the evaluation is skipped, and says the same
        code, out = run(tree, "--until", "gate", *flags)
        assert code == 5 and "not deployed" in out and why in out
        assert not (tree.place / "export").exists()


def test_no_flag_deploys_a_worse_model(tree):
    code, out = run(tree, "--deploy_anyway")
    assert code == 1 and "unknown flag --deploy_anyway" in out


@pytest.mark.parametrize("gate", [3, 4, 5, 6])
def test_what_the_gate_refuses_is_not_served(tree, gate):
    tree.environment["GATE"] = str(gate)
    code, out = run(tree)
    assert code == gate and "== serve" not in out and steps_of(tree)["gate"]["code"] == gate


def test_when_done_after_success_and_failure_and_cancelled(tree):
    command = f'echo "$PIPELINE_STATUS" >> {tree.tmp}/done'
    done = lambda: (tree.tmp / "done").read_text().split() if (tree.tmp / "done").exists() else []  # noqa: E731
    assert run(tree, "--until", "gate", "--grace", "0", "--when_done", command)[0] == 0
    assert done() == ["success"]
    code, out = run(tree, "--until", "gate", "--grace", "1", "--when_done", command, "--", "--fail", "9")
    assert code == 9 and done() == ["success", "failure"] and "failure: in 1 s this is run: echo" in out
    for number in (signal.SIGINT, signal.SIGTERM):
        process = started(tree, "--until", "gate", "--when_done", command)
        until(lambda: "success: in 180 s this is run" in said(tree))
        process.send_signal(number)
        assert process.wait(10) == 0 and "cancelled" in said(tree) and len(done()) == 2
    (tree.hold / "train").touch()  # stopped by hand: nobody wants the machine to be shut down then
    process = started(tree, "--grace", "0", "--when_done", command, "--", "--seed", "1")
    until(lambda: "begins" in said(tree))
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130 and len(done()) == 2


@pytest.mark.parametrize("argv, why", [
    (("--", "--output_dir", "x"), "--output_dir after --"),
    (("--", "--hub-token=x"), "--hub_token after --"),
    (("--until", "deploy"), "choose from ingest, clean"),
    (("--name", "../x"), "letters, digits"),
    (("--host", "me@there"), "belong together"),
    (("--grace", "-1"), "expected 0 or more"),
])  # fmt: skip
def test_wrong_flags_are_told_at_once(tree, argv, why):
    code, out = run(tree, *argv)
    assert code == 1 and why in out and out.count("\n") == 1 and not tree.place.exists()


# -- uploads


def link():
    entry = zipfile.ZipInfo("link.csv")
    entry.external_attr, entry.create_system = 0o120777 << 16, 3
    return entry


UPLOADS = {
    "slip": ({"../evil.csv": "a"}, "'../evil.csv' would be written outside"),
    "slip in the middle": ({"a/../../evil.csv": "a"}, "outside of the folder"),
    "absolute": ({"/tmp/evil.csv": "a"}, "outside of the folder"),
    "of Windows": ({"..\\evil.csv": "a"}, "outside of the folder"),
    "drive": ({"C:\\evil.csv": "a"}, "outside of the folder"),
    "link": ({link(): "/etc/passwd"}, "is a link or a device"),
    "bomb": ({"b.csv": b"0" * 30_000_000}, "a zip bomb"),
    "many bombs": ({f"{n}.csv": b"0" * 5_000_000 for n in range(25)}, "a zip bomb"),
    "empty": ({}, "no file in it"),
    "nothing for us": ({"__MACOSX/._a.csv": "a", ".DS_Store": "a"}, "no file in it"),
    "a file that is a folder": ({"a": "1", "a/b.csv": "1"}, "cannot be unpacked"),
    "control character": ({"a\x1b[2J.csv": "1"}, "control character"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_that_is_not_safe_is_one_line(deploy_steps, tmp_path, name):
    files, why = UPLOADS[name]
    upload = packed(tmp_path / "upload.zip", files, zipfile.ZipInfo)
    refused(deploy_steps, upload, why)


def refused(steps, upload, why):
    (upload.parent / "place").mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as end:
        steps.unzip(upload, upload.parent / "place" / "files")
    assert why in end.value.code and "\n" not in end.value.code and str(upload) in end.value.code
    left = [file for file in upload.parent.rglob("*") if file.is_file()]
    assert left == [upload] and not Path("/tmp/evil.csv").exists()


@pytest.fixture(scope="module")
def deploy_steps(modules_of):
    return modules_of("deploy", ["steps", "upload"]).upload


def test_encrypted_damaged_cut_and_no_zip(deploy_steps, tmp_path):
    good = packed(tmp_path / "upload.zip", {"a.csv": "x" * 1000 + "abc"}, zipfile.ZipInfo).read_bytes()
    for change, why in ((encrypted, "has a password"), (damaged, "damaged"), (lambda data: data[:-9], "not a zip"),
                        (lambda data: b"question,answer", "not a zip"), (lambda data: b"", "not a zip")):  # fmt: skip
        (tmp_path / "upload.zip").write_bytes(change(good))
        refused(deploy_steps, tmp_path / "upload.zip", why)


def encrypted(data):
    data = bytearray(data)
    data[data.find(b"PK\3\4") + 6] |= 1
    data[data.find(b"PK\1\2") + 8] |= 1
    return bytes(data)


def damaged(data):
    at = data.find(b"a.csv") + 8
    return data[:at] + b"\xff\xff" + data[at + 2 :]


def test_two_files_of_one_name(deploy_steps, tmp_path):
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "u.zip", "w") as archive:
        archive.writestr("a.csv", "1")
        archive.writestr("a.csv", "2")
    refused(deploy_steps, tmp_path / "u.zip", "two files in it are named a.csv")


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_names_of_old_programs(deploy_steps, tmp_path, encoding):
    class Entry(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):
            return self.filename.encode(encoding), 0

    upload = packed(tmp_path / "u.zip", {"妇产科\\门诊.csv": "a", "./内科/男科.csv": "b", "内科/": ""}, Entry)
    assert deploy_steps.unzip(upload, tmp_path / "files") == 2
    found = sorted(file.relative_to(tmp_path / "files").as_posix() for file in (tmp_path / "files").rglob("*.csv"))
    assert found == ["内科/男科.csv", "妇产科/门诊.csv"]


# -- another machine


class Machine:
    """An SSH server in this process that runs commands here, in a home of its own. break_now() cuts all connections."""

    def __init__(self, home, environment):
        self.asyncssh = pytest.importorskip("asyncssh")
        self.home, self.environment, self.connections, self.commands = home, environment, [], []
        self.loop = asyncio.new_event_loop()
        for name in ("host", "user", "other"):
            self.asyncssh.generate_private_key("ssh-ed25519").write_private_key(home / name)
            (home / name).chmod(0o600)
        self.key = self.asyncssh.read_private_key(home / "user").convert_to_public()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = self.call(self.listen())
        self.port = self.server.sockets[0].getsockname()[1]

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def listen(self):
        machine = self

        class Server(self.asyncssh.SSHServer):
            def connection_made(self, connection):
                machine.connections.append(connection)

            def begin_auth(self, user):
                return True

            def public_key_auth_supported(self):
                return True

            def validate_public_key(self, user, key):
                return key == machine.key

        return await self.asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=[str(self.home / "host")],
                                          process_factory=self.process, encoding=None)  # fmt: skip

    async def process(self, process):
        self.commands.append(process.command)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
        child = await asyncio.create_subprocess_shell(process.command, cwd=self.home, env=self.environment, **pipes)

        async def pump(source, target):
            with contextlib.suppress(self.asyncssh.Error, OSError):
                while piece := await source.read(1 << 16):
                    target.write(piece)
                    await target.drain()

        async def feed():
            await pump(process.stdin, child.stdin)
            child.stdin.close()

        feeding = asyncio.ensure_future(feed())
        await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
        process.exit(await child.wait())
        feeding.cancel()

    async def cut(self):
        for connection in self.connections:
            connection.abort()
        self.connections.clear()

    def break_now(self):
        self.call(self.cut())

    async def close(self):
        await self.cut()
        self.server.close()

    def config(self, key="user", known="host"):
        """An ssh config for the client: its key, and the host keys that it knows."""
        public = (self.asyncssh.read_private_key(self.home / known).export_public_key().decode()) if known else ""
        hosts = self.home / f"known-{known}"
        hosts.write_text(f"[127.0.0.1]:{self.port} {public}" if known else "")
        file = self.home / "config"
        file.write_text(f'IdentityFile "{self.home / key}"\nIdentitiesOnly yes\nUserKnownHostsFile "{hosts}"\n'
                        "GlobalKnownHostsFile /dev/null\n")  # fmt: skip
        return file


@pytest.fixture
def machine(tree, tmp_path):
    if not shutil.which("ssh"):
        pytest.skip("no ssh")
    (tmp_path / "home of another").mkdir()
    # There is another HOLD, and nothing of this one's environment but what a login gives.
    environment = {"PATH": os.environ["PATH"], "HOLD": str(tree.hold), "HOME": str(tmp_path / "home of another")}
    made = Machine(tmp_path / "home of another", environment)
    yield made
    made.call(made.close())
    made.loop.call_soon_threadsafe(made.loop.stop)


def there(machine, *argv, **config):
    return ["--runner", "ssh", "--host", f"ssh://me@127.0.0.1:{machine.port}", "--folder", "a 'folder' $HOME", "--python",
            sys.executable, "--ssh_config", machine.config(**config), *argv]  # fmt: skip


def test_another_machine_does_it_through_connections_that_break(tree, machine):
    (tree.deploy / ".env").write_text("HF_TOKEN=hf_other")
    (tree.hold / "train").touch()
    process = started(tree, *there(machine))
    until(lambda: "begins" in said(tree))
    machine.break_now()
    until(lambda: "again in 1 s" in said(tree))
    until(lambda: machine.connections)
    process.terminate()  # this terminal goes away
    assert process.wait(10) == 143 and "goes on without this terminal" in said(tree)
    process = started(tree, *there(machine))
    until(lambda: "it is running; its log is followed" in said(tree))
    (tree.hold / "train").unlink()
    page = until(lambda: re.search(r"A/B page: (\S+)", said(tree)))[1]
    until(lambda: "served:" in said(tree))
    assert urllib.request.urlopen(page).read() == b"the A/B page"  # served here, made there
    process.terminate()
    assert process.wait(10) == 0
    [begun] = [line for line in (tree.hold / "began").read_text().splitlines() if line.startswith("train")]
    folder = machine.home / "a 'folder' $HOME"
    assert not (folder / "deploy" / ".env").exists() and "hf_" not in "".join(machine.commands)
    fetched = tree.outputs / "medical"
    [run] = fetched.iterdir()
    assert (run / "adapter_model.safetensors").is_file() and not (run / "checkpoint-1").exists()
    assert (tree.outputs / "deploy" / "export" / "model-q8_0.gguf").is_file()
    log = next(tree.place.glob("there-*.log")).read_text()
    assert (
        "TWO TRAIN" not in log and log.count("begins") == 1 and log.count("== clean:") == 1
    )  # each line once, however often it broke
    # Again: nothing is copied, made or fetched twice.
    before, copies = (tree.hold / "began").read_text(), sum("tar -xof" in each for each in machine.commands)
    code, out = run_there(tree, machine, "--until", "gate")
    assert code == 0 and (tree.hold / "began").read_text() == before and "are copied" not in out
    assert copies == 1


def run_there(tree, machine, *argv, **config):
    cut = list(argv).index("--") if "--" in argv else len(argv)
    return run(tree, *there(machine, *argv[:cut], **config), *argv[cut:])


def test_a_connection_that_breaks_while_it_copies(tree, machine):
    upload = packed(tree.upload, {"a.csv": "a", "b.bin": os.urandom(40_000_000)})
    process = started(tree, *there(machine, "--until", "clean"), data=upload)
    until(lambda: list(machine.home.glob("*/.new/data/*")))
    machine.break_now()
    assert process.wait(30) == 0 and "again in 1 s" in said(tree), said(tree)
    [copy] = machine.home.glob("*/data/upload.zip")
    assert copy.read_bytes() == upload.read_bytes()


def test_half_a_copy_is_none(modules_of, tmp_path):
    """GNU tar takes a beginning of an archive for a whole one, if it ends between two files."""
    runner, whole = modules_of("deploy", ["steps", "runner"]).runner, io.BytesIO()
    (tmp_path / "a").write_text("a")
    runner.send([(tmp_path / "a", "deploy/a")], "digest", whole)
    for data, good in ((whole.getvalue()[:1024], False), (whole.getvalue(), True)):
        done = subprocess.run(
            ["sh", "-c", runner.COPY, "sh", tmp_path / "there", "job", "digest"], input=data, capture_output=True
        )
        assert (done.returncode == 0) == good and (tmp_path / "there" / "copied").exists() == good, done.stderr


def test_a_failure_there_is_one_here_and_is_tried_again(tree, machine):
    (tree.hold / "shift").write_text("0.5")
    code, out = run_there(tree, machine, "--until", "gate")
    assert code == 5 and "not deployed" in out and "ended there with exit code 5" in out
    assert steps_of(tree)["evaluate"]["code"] == 0 and not (tree.outputs / "medical").exists()
    (tree.hold / "shift").write_text("-0.5")
    code, out = run_there(tree, machine, "--until", "gate", "--limit", "7")
    assert code == 0 and out.count("already done") == 3


@pytest.mark.parametrize("config, flags, why", [
    ({"key": "other"}, (), "Permission denied"),
    ({"known": "other"}, (), "Host key verification failed"),
    ({"known": None}, (), "Host key verification failed"),
])  # fmt: skip
def test_a_machine_that_is_not_known_or_does_not_know_us(tree, machine, config, flags, why):
    began = time.time()
    code, out = run_there(tree, machine, "--until", "clean", *flags, **config)
    assert code == 1 and why in out.splitlines()[-1] and time.time() - began < 10
    assert not machine.commands


def test_a_new_machine_is_taken_when_asked_for(tree, machine):
    code, out = run_there(tree, machine, "--until", "ingest", "--host_key", "accept-new", known=None)
    assert code == 0, out


def test_a_folder_with_something_else_in_it_is_kept(tree, machine):
    (machine.home / "a 'folder' $HOME" / "deploy").mkdir(parents=True)
    code, out = run_there(tree, machine, "--until", "ingest")
    assert code == 1 and "is not empty and no pipeline's" in out


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", ""])
def test_a_host_is_no_option(tree, host):
    code, out = run(tree, "--runner", "ssh", f"--host={host}")
    assert code == 1 and ("user@machine" in out or "belong together" in out)


# -- the real scripts


def test_a_table_reads_back_as_it_was(tree, modules_of, tmp_path):
    """medical's train.py reads CSV: the rows that data.py kept go there without a change."""
    upload = modules_of("deploy", ["steps", "upload"]).upload
    rows = [{"question": q, "answer": a, "department": "内\r科"} for q, a in ROWS] + [
        {"question": ' " ', "answer": ',"",\n\n,\'', "department": ""},
        {"question": "a\tb", "answer": "= 1; \\n", "department": "x"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(upload.as_csv(tmp_path / "rows.jsonl"), newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows


@pytest.mark.parametrize("recipe, upload, kept", [
    ("medical", {"内科.csv": table([*ROWS, ROWS[0], ("发冷", "")])}, 3),
    ("alpaca", {"a/rows.jsonl": '{"instruction": "Say hi.", "input": "", "output": "Hi."}\n{"instruction": ""}\n'}, 1),
    ("domain_mix", {"a/rows.jsonl": '{"instruction": "Say hi.", "input": "", "output": "Hi."}\n{"instruction": ""}\n'}, 1),
    ("domain_mix", {"plan.yaml": "total: 1\nseed: 1\nratios: {a: 1}\nsources: {a: {format: alpaca, path: rows.json}}\n",
                    "rows.json": '[{"instruction": "Say hi.", "output": "Hi."}, {"instruction": "b", "output": "c"}]'}, 1),
    ("domain_mix", {"plan.yaml": "total: 1\nseed: 1\nratios: {a: 1}\nsources: {a: {format: alpaca, path: /etc/hostname}}\n"},
     "/etc/hostname is outside of the upload"),
    ("domain_mix", {"x/plan.yaml": "total: 1\nseed: 1\nratios: {a: 1}\nsources: {a: {format: alpaca, path: ../../../../x}}\n"},
     "is outside of the upload"),
])  # fmt: skip
def test_each_recipe_cleans_an_upload(tree, modules_of, recipe, upload, kept):
    """With the recipe's own data.py; its reader takes what comes out, and drops nothing more."""
    file = packed(tree.tmp / "upload.zip", upload, zipfile.ZipInfo)
    done = subprocess.run([sys.executable, ROOT / "deploy/pipeline.py", "--data", file, "--recipe", recipe, "--until", "clean"],
                          env=tree.environment, capture_output=True, text=True)  # fmt: skip
    place = tree.outputs / "deploy" / "pipelines" / f"{recipe}-upload" / "clean"
    if isinstance(kept, str):
        assert done.returncode == 1 and kept in done.stderr.splitlines()[-1]
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((place / "rows.jsonl").read_text().splitlines()) == kept
    told = {"medical": "duplicate", "alpaca": "row dropped", "domain_mix": "available"}[recipe]
    assert told in (place / "report.txt").read_text()
    [rows] = json.loads((place / "step.json").read_text())["outputs"]
    data = modules_of(
        recipe, {"medical": ["data"], "alpaca": ["data"], "domain_mix": ["data", "prompt", "plan", "sources"]}[recipe]
    )
    assert len(data.data.read_rows(str(tree.outputs / rows))[0]) == kept


def real(tree, *argv, data=None):
    """The real pipeline, as a process in a group of its own."""
    command = [sys.executable, ROOT / "deploy/pipeline.py", "--data", data or tree.upload, "--recipe", "medical", "--port", "0",
               "--page_port", "0", *argv]  # fmt: skip
    return begun(tree, command)


def test_the_real_scripts_know_the_flags_that_they_are_called_with(tree, modules_of, monkeypatch):
    """What the pipeline would run, run on paths that are not there: that is what they say, and nothing of flags."""
    names = ["steps", "upload", "gate", "found", "pipeline"]
    loaded, nothing = modules_of("deploy", names), tree.tmp / "nothing"
    asked, args = [], SimpleNamespace(limit=3, max_new_tokens=4, to="gguf", quant="q8_0", port=0, page_port=0)
    monkeypatch.setattr(loaded.steps, "child", lambda argv, place, lock: asked.append(argv) or {})
    monkeypatch.setattr(loaded.steps, "start", lambda argv, lock, **more: asked.append(argv))
    monkeypatch.setattr(loaded.steps, "follow", lambda *_: None)
    monkeypatch.setattr(loaded.steps, "step", lambda folder, name, inputs, work: work(nothing))
    monkeypatch.setattr(loaded.steps, "digest_of", lambda path: "")
    monkeypatch.setattr(loaded.steps, "TASK_DIR", ROOT / "deploy")
    monkeypatch.setenv("OUTPUT_DIR", tree.environment["OUTPUT_DIR"])
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setitem(sys.modules, "gate", SimpleNamespace(newest_export=lambda run: nothing))
    pipeline = loaded.pipeline
    (tree.tmp / "serve").mkdir()
    for work in (
        lambda: pipeline.train("medical", nothing, "run", [], 0, nothing),
        lambda: pipeline.evaluate("medical", nothing, nothing, args, 0, nothing),
        lambda: pipeline.export(nothing, args, 0, nothing),
        lambda: pipeline.gate(nothing, nothing, 0, nothing),
        lambda: pipeline.serve(args, nothing, nothing, tree.tmp, 0, "key"),
        lambda: pipeline.compare(args, nothing, nothing, "http://127.0.0.1:9/v1", tree.tmp, 0, "key"),
    ):
        with contextlib.suppress(SystemExit, AttributeError, KeyError):
            work()
    assert [Path(argv[1]).name for argv in asked] == [
        "train.py", "evaluate.py", "export.py", "gate.py", "serve.py", "compare.py", "compare_web.py"]  # fmt: skip
    for argv in asked:
        done = subprocess.run(list(map(str, argv)), env=tree.environment, capture_output=True, text=True, timeout=60)
        assert argv[1].is_file() and done.returncode and "Traceback" not in done.stderr, (argv, done.stderr)
        assert not re.search("unknown flag|error: argument|unrecognized", done.stderr), done.stderr


NIGHTLY = pytest.mark.skipif(not os.environ.get("TEST_NIGHTLY"), reason="TEST_NIGHTLY=1 trains for minutes")


@NIGHTLY
@pytest.mark.slow
def test_a_random_model_goes_through_the_real_scripts(tree, tiny_model):
    rows = [
        (f"第{n}个问题: {n * 7919 % 97} 怎么办?", f"第{n}: 多休息, 多喝水, 看医生 {n * 31 % 17}。") for n in range(40)
    ]
    messy(tree.upload, rows)
    train = ["--model", tiny_model, "--auto", "false", "--quantization", "none", "--held_out", "20", "--show_answers", "1",
             "--max_new_tokens", "4", "--max_steps", "12", "--save_steps", "6", "--eval_steps", "6", "--warmup_steps", "0",
             "--learning_rate", "2e-2"]  # fmt: skip
    flags = ["--until", "gate", "--to", "gguf", "--limit", "4", "--max_new_tokens", "4"]
    process = real(tree, *flags, "--", *train)
    assert process.wait(300) == 0, said(tree)
    assert (
        "passed: the trained model" in said(tree)
        and "上传/内科/内科.csv" in (tree.place / "clean/report.txt").read_text()
    )
    assert {name: each["code"] for name, each in steps_of(tree).items()} == dict.fromkeys(
        ("ingest", "clean", "train", "evaluate", "export", "gate"), 0
    )


@NIGHTLY
@pytest.mark.slow
def test_smollm2_from_the_messy_sample_to_the_page_killed_at_each_step(tree, demo_model):
    sample = ROOT / "medical" / "sample"
    files = {f"上传/{file.relative_to(sample)}": file.read_bytes() for file in sorted(sample.rglob("*.csv"))}
    faults = table([*ROWS, ROWS[0], ("", ""), ("发冷", "")])
    packed(tree.upload, files | {"上传/乱/乱.csv": faults, "上传/README.txt": "说明", "__MACOSX/._乱.csv": b"\0\5"})
    # Each step is killed once it has written something of its own: a checkpoint of training, a line of the others.
    signs = {"clean": "== clean", "train": "", "evaluate": r"\d+ answers, ", "export": r"\$ .*export\.py", "gate": r"\d+ texts, ",
             "serve": "== serve", "ab": "== ab"}  # fmt: skip
    flags = ["--limit", "6", "--max_new_tokens", "24", "--", "--demo", "--show_answers", "1", "--max_new_tokens", "16"]
    for step, sign in signs.items():
        process = real(tree, *flags)
        sees = (lambda: list(tree.outputs.glob("medical/*/checkpoint-8/manifest.json"))) if step == "train" else (
            lambda sign=sign: re.search(sign, said(tree)))  # fmt: skip
        until(sees, 600)
        process.kill()
        process.wait()
    process = real(tree, *flags)
    served = until(lambda: re.search(r"served: (\S+)   key: (\S+)", said(tree)), 600)
    assert (
        len(list((tree.outputs / "medical").iterdir())) == 1
        and "goes on from checkpoint-" in (tree.place / "train" / "log.txt").read_text()
    )
    ask = urllib.request.Request(f"{served[1]}/models", headers={"Authorization": f"Bearer {served[2]}"})
    names = {each["id"] for each in json.loads(urllib.request.urlopen(ask).read())["data"]}
    assert "base" in names and len(names) == 2
    assert "<html" in (tree.place / "ab" / "compare.html").read_text().lower()
    page = re.search(r"A/B page: (\S+)", said(tree))[1]
    assert b"gradio" in urllib.request.urlopen(page).read().lower()
    process.terminate()
    assert process.wait(60) == 0


@NIGHTLY
@pytest.mark.slow
def test_a_ruined_model_is_measured_and_not_exported(tree, demo_model):
    process = real(tree, "--limit", "6", "--max_new_tokens", "4", "--", "--demo", "--learning_rate", "1", "--max_steps", "6",
                   "--show_answers", "1", "--max_new_tokens", "4", data=ROOT / "medical" / "sample")  # fmt: skip
    assert process.wait(600) == 5, said(tree)
    assert "not deployed: held-out loss" in said(tree)
    assert not list((tree.outputs / "deploy").glob("*/manifest.json"))
