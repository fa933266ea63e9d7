#!/usr/bin/env bash
# Installs a GPU lock into an empty Python 3.12 container, every file held against its hash, and imports what each recipe
# stands on. No GPU needed; 3 to 4.5 GB are fetched, 6 to 8.5 GB written and removed again:
#
#   tools/test_lock.sh medical/requirements.txt
#   PYTHON_IMAGE=finetune-base tools/test_lock.sh medical/requirements-cu128.txt    # any image with python3.12 and venv
set -euo pipefail
lock=$(realpath "$1")
docker run --rm --network host --user 0 --entrypoint bash -v "$lock:/lock.txt:ro" "${PYTHON_IMAGE:-python:3.12-slim}" -euc '
  python3.12 -m venv /tmp/venv
  /tmp/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /lock.txt
  echo "$(grep -c == /lock.txt) packages in $SECONDS s, $(du -sBMB /tmp/venv | cut -f1)"
  /tmp/venv/bin/python -c "
import torch, transformers, trl, peft
for module in (torch, transformers, trl, peft): print(module.__name__, module.__version__)
print(\"CUDA\", torch.version.cuda)"'
