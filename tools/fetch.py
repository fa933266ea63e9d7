#!/usr/bin/env python3
"""Fetch a model into MODELS_DIR/<org>/<name>, whole or not at all.

    make fetch MODEL=Qwen/Qwen2.5-7B-Instruct
    make fetch MODEL=Qwen/Qwen2.5-7B-Instruct SOURCE=modelscope
    HF_ENDPOINT=https://hf-mirror.com make fetch MODEL=Qwen/Qwen2.5-7B-Instruct

The hub's own downloader does the work, in a folder .<name>.part beside the place; only when every file is there, as long
as the hub says and with its sha256, is the folder renamed. Interrupted, the same command goes on: files that were
complete are kept. The last line on stdout is the model's folder.
"""

import argparse
import fcntl
import glob
import hashlib
import os
import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docker")]

from doctor import broken_weights  # noqa: E402

from common import hub, paths  # noqa: E402

HUGGINGFACE = "https://huggingface.co"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="<org>/<name>, as on the hub")
    parser.add_argument(
        "--source", choices=["huggingface", "modelscope"], help="default: MODEL_SOURCE, else huggingface"
    )
    args = parser.parse_args(argv)
    paths.load_env()
    source = (args.source or os.environ.get("MODEL_SOURCE", "huggingface")).lower()
    if args.model == paths.DEMO_MODEL:
        print(hub.resolve_model(args.model))
        return
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", args.model, re.ASCII):
        raise SystemExit(f"{args.model!r} is not of the form <org>/<name>, e.g. Qwen/Qwen2.5-7B-Instruct")
    if source not in HUBS:
        raise SystemExit(f"MODEL_SOURCE={source}: expected {' or '.join(HUBS)}.")
    print(fetch(args.model, source, paths.models_dir() / args.model))


def fetch(name: str, source: str, folder: Path) -> Path:
    """Make `folder` hold the model `name` of the hub `source`. Raises SystemExit with what to try next."""
    if (folder / "config.json").is_file() and not broken_weights(folder):
        say(f"{name} is there already")
        return folder
    if folder.exists() and any(folder.iterdir()):
        fault = broken_weights(folder) if (folder / "config.json").is_file() else "no config.json"
        raise SystemExit(
            f"{folder} is there but is not a whole model: {fault}. Move it away (mv {folder} {folder}.old) and run the "
            "same command again."
        )
    part = folder.with_name(f".{folder.name}.part")
    paths.check_disk(part, 0, name)
    lock = open(part.with_name(f"{part.name}.lock"), "w")  # noqa: SIM115 (held to the end)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SystemExit(f"another process is fetching {name}: wait for it.") from None
    HUBS[source](name, part)
    if not (part / "config.json").is_file() or (fault := broken_weights(part)):
        fault = "no config.json" if not (part / "config.json").is_file() else fault
        raise SystemExit(f"{name} on {source} is not a model for these recipes: {fault}. What came is in {part}.")
    for litter in (".cache", "._____temp", ".msc", ".mv", ".mdl"):  # the downloaders' bookkeeping
        shutil.rmtree(part / litter, ignore_errors=True) if (part / litter).is_dir() else (part / litter).unlink(True)
    if folder.exists():
        folder.rmdir()  # empty: see above
    part.rename(folder)
    Path(lock.name).unlink()
    return folder


def from_huggingface(name, part):
    endpoint = os.environ.get("HF_ENDPOINT", HUGGINGFACE).rstrip("/")
    if endpoint != HUGGINGFACE:
        # Xet asks a host of its own for large files, abroad, whatever mirror is set. Read when the library is imported.
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import httpx
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=15)
        files = [file for file in info.siblings if wanted(file.rfilename)]
        names = inside(name, [file.rfilename for file in files])
        check_space(name, part, {file.rfilename: file.size or 0 for file in files})
        if large := [file for file in files if file.lfs]:
            url = hf_hub_url(name, large[0].rfilename, revision=info.sha)
            host = urlsplit(get_hf_file_metadata(url).location).netloc
            say(f"from {urlsplit(endpoint).netloc}, its large files from {host}")
        # By commit, not by branch: with a branch a hub that fails halfway makes this return what is there so far.
        snapshot_download(name, revision=info.sha, local_dir=part, allow_patterns=names, max_workers=4)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        response = getattr(error, "response", None)
        stop(name, "huggingface", endpoint, error, response.status_code if response is not None else None, part)
    for file in files:
        verify(part / file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)


def from_modelscope(name, part):
    try:
        from modelscope import snapshot_download
        from modelscope.hub.api import HubApi
    except ImportError:
        raise SystemExit(
            "modelscope is not installed: pip install modelscope, and run the same command again."
        ) from None
    try:
        sizes = {file["Path"]: file["Size"] for file in HubApi().get_model_files(name) if wanted(file["Path"])}
        names = inside(name, sizes)
        check_space(name, part, sizes)
        snapshot_download(name, local_dir=str(part), allow_patterns=names)
    except Exception as error:  # its errors have no common class
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None) or getattr(error, "status_code", None)
        stop(
            name, "modelscope", os.environ.get("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"), error, status, part
        )
    for path, size in sizes.items():
        verify(part / path, size, None)  # it has compared the sha256 itself


def wanted(file):
    return any(fnmatch(file, pattern) for pattern in hub.MODEL_FILES)


def inside(name, listed) -> list:
    """Patterns that match the files of a hub's list and no others. Raises SystemExit where one leads out of its folder.

    The downloader asks for the list again: what is in the second answer only, is not fetched.
    """
    for path in listed:
        parts = path.split("/")
        if any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts) or re.search(
            r"[\\:\x00-\x1f\ud800-\udfff]", path
        ):
            raise SystemExit(
                f"the hub lists a file {path[:80]!r} in {name}, a name that no model has. Nothing was fetched: take another source."
            )
    return [glob.escape(path) for path in listed]


def check_space(name, part, sizes):
    if not sizes:
        raise SystemExit(f"{name} has no {' '.join(hub.MODEL_FILES)}: it is not a model that these recipes can load.")
    there = sum(min((part / file).stat().st_size, size) for file, size in sizes.items() if (part / file).is_file())
    say(f"{name}: {len(sizes)} files, {sum(sizes.values()) / 1e9:.2f} GB, of which {there / 1e9:.2f} are here")
    paths.check_disk(part, sum(sizes.values()) - there, name)


def verify(file: Path, size: int | None, sha256: str | None):
    """Stop where a file is not what the hub has, and remove it, so that the next run fetches it anew."""
    found = file.stat().st_size if file.is_file() else None
    if found is not None and (size is None or found == size):
        if not sha256:
            return
        with open(file, "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() == sha256:
                return
    file.unlink(missing_ok=True)
    raise SystemExit(
        f"{file.name} is not what the hub has (size or sha256 differ); it was removed. Run the same command again; if "
        "that repeats itself, a proxy or mirror between here and the hub changes files: take another source."
    )


def stop(name, source, endpoint, error, status, part):
    """End with what went wrong, where, and what to try next. status: of the HTTP answer, None if there was none."""
    # The hub's library hides the cause of a connection that failed behind an error of its own.
    cause = error
    while status is None and (cause := cause.__cause__ or cause.__context__) is not None:
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
    other = "modelscope" if source == "huggingface" else "huggingface"
    elsewhere = [f"make fetch MODEL={name} SOURCE={other}"]
    if source == "huggingface" and endpoint == HUGGINGFACE:
        elsewhere.append(f"HF_ENDPOINT=https://hf-mirror.com make fetch MODEL={name}")
    if status in (401, 403):
        token = "The HF_TOKEN that is set does not open it." if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set."
        if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            token = "None was sent: a .env file that names HF_ENDPOINT has to hold HF_TOKEN, too."
        advice = [
            f"the name may be wrong, or the model is private or gated: open {endpoint}/{name}, accept its licence, make "
            f"a token there and set HF_TOKEN. {token}"
        ]
    elif status == 404:
        advice = ["check the name, capital letters included", *elsewhere[:1]]
    elif status is not None:
        advice = ["the hub's own trouble: the same command again in some minutes goes on where it stopped", *elsewhere]
    elif getattr(error, "errno", None) == 28:
        advice = ["the disk is full: free some, or set MODELS_DIR to a larger one; the same command goes on"]
    else:
        advice = ["the same command again: it goes on where it stopped", *elsewhere, "a proxy: export HTTPS_PROXY=..."]
    reason = f"HTTP {status}" if status else " ".join(str(error).split())[:200] or type(error).__name__
    kept = sum(file.stat().st_size for file in part.rglob("*") if file.is_file()) / 1e9
    kept = f" {kept:.2f} GB are kept in {part}." if kept >= 0.01 else ""
    advice = "\n  ".join(advice)
    raise SystemExit(
        f"{name} could not be fetched from {endpoint}: {reason}.{kept}\nTo try next:\n  {advice}"
    ) from None


def say(text):
    print(text, file=sys.stderr)  # stdout is the folder alone


HUBS = {"huggingface": from_huggingface, "modelscope": from_modelscope}

if __name__ == "__main__":
    main()
