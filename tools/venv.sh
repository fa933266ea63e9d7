#!/usr/bin/env bash
# Makes .venv from requirements-cpu.txt with any Python from 3.11 on. Called by `make venv`; run again, it repairs.
set -euo pipefail
fail() { printf '\nset-up stopped: %s\n' "$1" >&2; exit 1; }

python=
for name in python3 python3.12 python3.11 python3.13 python3.14; do
  "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { python=$name; break; }
done
[ -n "$python" ] || fail "no Python 3.11 or newer found. Install one, e.g. 'sudo apt install python3.11 python3.11-venv' or from python.org."

if [ ! -x .venv/bin/pip ]; then
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv || fail "'$python -m venv' does not work. On Debian and Ubuntu: sudo apt install python3-venv"
fi
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 4 ] || fail "the packages and the demo need 4 GB of disk here, $free GB are free."

# torch comes by itself, before the packages that are held against their hashes (tools/lock.sh says why). PyPI's torch for
# Linux brings gigabytes of CUDA; without an NVIDIA GPU the CPU build is enough.
torch=$(grep -oE '^torch==[^ ;]+' requirements-cpu.in)
cpu_index=https://download.pytorch.org/whl/cpu
have=$(.venv/bin/python -c 'from importlib.metadata import version; print(version("torch").split("+")[0])' 2>/dev/null || true)
if [ "torch==$have" != "$torch" ]; then
  from=()
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    if .venv/bin/python -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=3)" 2>/dev/null; then
      from=(--index-url "$cpu_index" --no-deps)  # what it needs is in the lock
    else
      echo "PyTorch's CPU wheel index did not answer within 3 seconds: pip takes the torch that it finds (up to 3 GB)."
    fi
  fi
  echo "installing $torch${from:+, CPU build}"
  .venv/bin/pip install --quiet ${from[@]+"${from[@]}"} "$torch" || fail "pip could not install $torch; its last lines say why. Check the network (or set PIP_INDEX_URL to a mirror) and run the same command again."
fi
echo "installing requirements-cpu.txt"
.venv/bin/pip install --quiet --no-deps -r requirements-cpu.txt || fail "pip could not install requirements-cpu.txt; its last lines say why. Check the network (or set PIP_INDEX_URL to a mirror) and run the same command again: what is there is kept."
touch .venv/.ready
