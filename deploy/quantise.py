"""A GGUF of 16-bit weights -> K-quants: q4_k_m, q5_k_m. No compiler needed.

A llama-quantize on PATH comes first. Else libllama, as the npm package @node-llama-cpp/linux-x64 ships it (MIT, 11 MB),
fetched once and checked. Called in a process of its own: two builds of llama.cpp in one process would mix.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from common.paths import TASK_DIR, check_disk, models_dir

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
SHA256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"  # of its .tgz
INSIDE = "package/bins/linux-x64"
LIBRARIES = ("libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.5.0.so")  # in the order in which they need each other
CHILD = "import sys; sys.path.insert(0, sys.argv[1]); import quantise; quantise.write(*sys.argv[2:])"
TYPES = {"q4_k_m": 15, "q5_k_m": 17}  # llama_ftype


class Params(ctypes.Structure):
    """llama_model_quantize_params: its first fields, and room for the rest."""

    _fields_ = [(name, ctypes.c_int32) for name in ("nthread", "ftype", "output_type", "embedding_type")]
    _fields_ += [("rest", ctypes.c_uint8 * 240)]


def places() -> list[Path]:
    """Where the library may lie: built into the image, or fetched before."""
    return [TASK_DIR / "lib", models_dir() / "llama.cpp" / PACKAGE.rpartition("@")[2]]


def fetch() -> Path:
    """The folder that holds libllama, fetched once."""
    for folder in places():
        if all((folder / name).is_file() for name in LIBRARIES):
            return folder
    own = "Put llama.cpp's llama-quantize on PATH, or leave K-quants out (--quant q8_0)."
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(f"q4_k_m and q5_k_m: the library that is fetched is for Linux x86-64. {own}")
    if not shutil.which("npm"):
        raise SystemExit(
            f"q4_k_m and q5_k_m need llama.cpp's quantiser, which is fetched with npm, and npm is not here. {own}"
        )
    folder = places()[-1]
    check_disk(folder.parent, 100_000_000, "llama.cpp's quantiser")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        print(f"fetching the quantiser: npm pack {PACKAGE} (11 MB, once)")
        done = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, capture_output=True, text=True)
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not packed:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            raise SystemExit(f"the quantiser could not be fetched: {reason}. {own}")
        unpack(packed[0], folder)
    return folder


def unpack(file: Path, folder: Path):
    """Unpack the package's libraries to `folder`, if its checksum is the known one."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{PACKAGE} is another file (sha256 {found}, expected {SHA256}). Nothing was installed.")
    made = file.parent / "made"
    made.mkdir()
    with tarfile.open(file) as package:
        for member in package.getmembers():
            if member.isfile() and member.name.startswith(INSIDE) and member.name.endswith(".so"):
                (made / Path(member.name).name).write_bytes(package.extractfile(member).read())
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(folder)
    except OSError:  # another process finished first
        if not folder.is_dir():
            raise


def quantise(source: Path, file: Path, kind: str, threads: int):
    """Write `source`, a GGUF in 16 bits, as `file` in q4_k_m or q5_k_m."""
    program = shutil.which("llama-quantize")
    command = [program, source, file, kind.upper(), threads] if program else None
    command = command or [
        sys.executable,
        "-c",
        CHILD,
        Path(__file__).parent,
        fetch(),
        source,
        file,
        TYPES[kind],
        threads,
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, encoding="utf-8", errors="replace"
    )  # half characters of tokens
    if done.returncode or not file.is_file():
        reason = ([line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no reason given"])[
            -1
        ]
        raise SystemExit(f"{'llama-quantize' if program else 'llama.cpp'} could not write {kind}: {reason[:300]}")


def fallen_back(types: dict, kind: str) -> str:
    """What to say of a K-quant whose rows are no multiple of 256 values: these tensors have another type."""
    others = {name: count for name, count in types.items() if not name.endswith("_K") and name != "F32"}
    if not others:
        return ""
    named = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
    return f"{sum(others.values())} of {sum(types.values())} tensors are not in {kind}'s types ({named}): rows of K-quants are multiples of 256"


def write(folder, source, file, ftype, threads):
    """Quantise with libllama. Runs in a process of its own; all arguments are texts."""
    for name in LIBRARIES:
        library = ctypes.CDLL(str(Path(folder) / name), mode=ctypes.RTLD_GLOBAL)
        if "ggml.v" in name:
            library.ggml_backend_load_all_from_path(folder.encode())
    library.llama_backend_init()
    library.llama_model_quantize_default_params.restype = Params
    params = library.llama_model_quantize_default_params()
    params.nthread, params.ftype = int(threads), int(ftype)
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
    if library.llama_model_quantize(source.encode(), file.encode(), ctypes.byref(params)):
        raise SystemExit("llama.cpp refused")
