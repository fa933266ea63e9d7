#!/usr/bin/env bash
# Trains from this folder alone, with no network:  bash run.sh [VERB] [ARGUMENTS]
#
#   (nothing), train, or a flag   python train.py ARGUMENTS
#   infer, data, evaluate, ...    python VERB.py ARGUMENTS, for any script of the task
#   doctor, install, python       what would stop a run here; install and no more; Python as it is
#
# The first call compares every file with SHA256SUMS and installs the wheels into venv/, beside this file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fail() { echo "run.sh: $1" >&2; exit 1; }
called_from=$PWD
cd "$here"
version=$(cat python-version) task=$(cat task)

if [ ! -e venv/.ready ]; then
  sha256sum --check --quiet SHA256SUMS >&2 || fail "the files named above are not as they were packed: copy them again. Nothing was installed."
  python=
  for name in "python$version" python3; do
    "$name" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null && { python=$name; break; }
  done
  [ -n "$python" ] || fail "the wheels are for Python $version, and this machine has none. Install it, or make the bundle with --python."
  "$python" -m venv --clear venv || fail "'$python -m venv' does not work: install the package python$version-venv, or take a Python that has it."
  venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels --no-deps \
    -r requirements.txt || fail "pip could not install the wheels; its last lines say why."
  touch venv/.ready
fi

export MODELS_DIR=${MODELS_DIR:-$here/models} OUTPUT_DIR=${OUTPUT_DIR:-$here/outputs} HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
if [ -e data ]; then export DATA_DIR=${DATA_DIR:-$here/data}; fi
verb=train
if [ $# -gt 0 ] && [[ $1 != -* ]]; then verb=$1; shift; fi
cd "$called_from"
case $verb in
  install) echo "installed: $here/venv" >&2 ;;
  python) exec "$here/venv/bin/python" "$@" ;;
  doctor) cd "$here/$task" && exec "$here/venv/bin/python" "$here/doctor.py" --offline --lock "$here/requirements.txt" "$@" ;;
  *)
    [ -f "$here/$task/$verb.py" ] || fail "unknown verb '$verb': there is no $task/$verb.py"
    exec "$here/venv/bin/python" "$here/$task/$verb.py" "$@"
    ;;
esac
