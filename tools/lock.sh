#!/usr/bin/env bash
# Writes the lock files: requirements-cpu.txt for laptops and tests, TASK/requirements.txt (with hashes) for GPUs.
set -euo pipefail
uv() { .venv/bin/python -m uv "$@"; }
[ -x .venv/bin/pip ] || python3 -m venv .venv
.venv/bin/pip install --quiet uv==0.13.9

# torch's CPU build needs none of the CUDA packages, and its CUDA build pins them itself.
uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header requirements-cpu.in |
  grep -vE '^(nvidia-|cuda-|triton==)' >.requirements-cpu.new
{ echo "# Written by \`make lock\` from requirements-cpu.in: every package that \`make demo\` and \`make test\` install."; cat .requirements-cpu.new; } >requirements-cpu.txt
rm .requirements-cpu.new
# xformers, which Unsloth asks for, does not load on torch 2.11. So the lock is installed with --no-deps.
for task in "$@"; do
  uv pip compile --quiet --generate-hashes --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
    --no-emit-package xformers "$task/requirements.in" -o "$task/requirements.txt.new"
  { echo "# Written by \`make lock\` from requirements.in: Linux x86-64, Python 3.12, CUDA 13 (driver 580 or newer)."; echo "# It is complete: pip install --no-deps -r requirements.txt"; cat "$task/requirements.txt.new"; } >"$task/requirements.txt"
  rm "$task/requirements.txt.new"
done
