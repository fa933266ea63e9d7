#!/usr/bin/env bash
# Writes the lock files, with hashes: requirements-cpu.txt for laptops and tests, requirements-site.txt for the site, the
# notebooks and the recording, TASK/requirements.txt for GPUs, and TASK/requirements-cu128.txt, for drivers before 580, and TASK/requirements-vllm.txt, with vLLM, where the task has them.
set -euo pipefail
uv() { .venv/bin/python -m uv "$@"; }
[ -x .venv/bin/pip ] || python3 -m venv .venv
.venv/bin/pip install --quiet uv==0.13.9

# torch is left out: Linux has it from PyTorch's CPU index, a Mac from PyPI, this repository's tests from a file, and one
# lock cannot hold the digests of all of them. tools/venv.sh installs the pin of requirements-cpu.in first, over TLS and by
# the digest that the index gives. torch's CUDA packages go with it: its CPU build needs none, its CUDA build pins them.
# gradio and trackio say "pillow below 13"; both work with the 13 that the recipes have (tests/test_compare.py).
uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header \
  --override <(grep ^pillow== requirements-cpu.in) requirements-cpu.in |
  awk '/^[A-Za-z0-9]/ { keep = !/^(torch==|nvidia-|cuda-|triton==)/ } keep' >.requirements-cpu.new
{
  echo "# Written by \`make lock\` from requirements-cpu.in: every package that \`make demo\` and \`make test\` install, but"
  echo "# torch, which comes first (tools/venv.sh, \`make venv\`). Any system, Python 3.11 and newer."
  cat .requirements-cpu.new
} >requirements-cpu.txt
rm .requirements-cpu.new

# Into the same .venv, so with the same versions of what both need.
{
  echo "# Written by \`make lock\` from requirements-site.in: what \`make site\`, \`make notebooks\` and \`make record\` add to .venv."
  uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-header \
    -c <(grep -oE '^[A-Za-z0-9._-]+==[^ \\]+( ;[^\\]*)?' requirements-cpu.txt) requirements-site.in
} >requirements-site.txt

# Reads pins on stdin. xformers, which Unsloth asks for, does not load on torch 2.11: it is left out, so the lock is
# installed with --no-deps.
lock() {  # file to write, CUDA and driver
  uv pip compile --quiet --generate-hashes --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
    --no-emit-package xformers - -o "$1.new"
  { echo "# Written by \`make lock\` from requirements.in: Linux x86-64, Python 3.12, $2."; echo "# It is complete: pip install --no-deps -r ${1##*/}"; cat "$1.new"; } >"$1"
  rm "$1.new"
}
for task in "$@"; do
  lock "$task/requirements.txt" "CUDA 13 (driver 580 or newer)" <"$task/requirements.in"
  if [ -f "$task/requirements-cu128.txt" ]; then  # torch 2.11's ordinary wheel is built for CUDA 13, 2.10's for 12.8
    sed 's/^torch==.*/torch==2.10.0/' "$task/requirements.in" | lock "$task/requirements-cu128.txt" "CUDA 12.8 (driver 525 or newer)"
  fi
  if [ -f "$task/requirements-vllm.txt" ]; then
    { cat "$task/requirements.in"; echo vllm==0.26.0; } | lock "$task/requirements-vllm.txt" "CUDA 13 (driver 580 or newer), with vLLM"
  fi
done
