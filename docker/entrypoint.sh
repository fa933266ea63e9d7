#!/usr/bin/env bash
# The entrypoint of every task image:  docker run [OPTIONS] IMAGE [VERB] [ARGUMENTS]
#
#   (nothing), train, or a flag   python train.py ARGUMENTS
#   infer, data, ...              python VERB.py ARGUMENTS, for any script of the task
#   doctor                        what would stop a run on this machine
#   bash, python                  as they are
#
# What would fail after minutes of imports, or lose the results with the container, is checked here in milliseconds.
set -euo pipefail

# A .env file is written for the host; --env-file brings its paths in here, where they are other folders or none.
export MODELS_DIR=/workspace/models DATA_DIR=/workspace/data OUTPUT_DIR=/workspace/outputs HF_HOME=/workspace/models/.hf
own=$(tr '[:lower:]' '[:upper:]' <<<"${PWD##*/}")_DATA_DIR
for name in $(compgen -e); do  # MEDICAL_DATA_DIR and the like
  if [[ $name != *_DATA_DIR || -e ${!name} ]]; then continue; fi
  # A path of the host means nothing here. One that was written for the container is a mistake: other data must not be
  # trained on in its place.
  if [[ $name == "$own" && ${!name} =~ ^[\"\']?/workspace ]]; then
    echo "$name is ${!name}, which is not there. Mount it, or correct the path; in an --env-file quotes are part of the value." >&2
    exit 1
  fi
  unset "$name"
done

# A folder counts as mounted where it, all of /workspace or something inside of it is.
is_mounted() {
  local point
  while read -r _ _ _ _ point _; do
    if [[ $point == /workspace || $point/ == "$1"/* ]]; then return; fi
  done </proc/self/mountinfo
  return 1
}

problems=() flags=()
need_mount() {  # folder, why
  if ! is_mounted "$1"; then
    problems+=("$1 is not mounted: $2")
    flags+=("  -v \"\$PWD/${1##*/}\":$1")
  elif [[ ! -r $1 || ! -x $1 ]]; then
    need_rights "$1" read
  else
    return 0
  fi
  return 1
}
need_writable() {  # folder
  if [[ -w $1 ]]; then return; fi
  if [[ $(touch "$1/.write-test" 2>&1) == *"Read-only file system"* ]]; then
    problems+=("$1 is mounted read-only: leave out the :ro")
  else
    need_rights "$1" write
  fi
}
need_rights() {  # folder, read or write
  local owner fix
  owner=$(stat -c %u:%g "$1")
  if [[ $owner == 0:* ]]; then
    fix="run on the host: sudo chown -R $(id -u) ${1##*/}"
  else
    fix="add to docker run: --user $owner"
  fi
  problems+=("$1 belongs to user ${owner%:*} and user $(id -u), who runs this container, can't $2 there; $fix")
}
stop_if_problems() {
  [[ ${#problems[@]} -eq 0 ]] && return
  printf '%s\n' "${problems[@]}" >&2
  if [[ ${#flags[@]} -gt 0 ]]; then printf '%s\n' "Add to docker run, before the image's name:" "${flags[@]}" >&2; fi
  exit 1
}

# With a driver that is too old torch warns once and takes the CPU. Where no GPU is, there is no driver to look at.
check_driver() {
  local cuda driver need way="Update it, or take a machine with a newer one"
  cuda=$(sed -n "s/^cuda.*'\(.*\)'.*/\1/p" /opt/venv/lib/python3*/site-packages/torch/version.py 2>/dev/null) || return 0
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || return 0
  case $cuda in 13.*) need=580 ;; 12.*) need=525 ;; *) return 0 ;; esac
  if [[ ! $driver =~ ^[0-9]+\. || ${driver%%.*} -ge $need ]] || cuda_runs "${cuda%%.*}"; then return 0; fi
  if [[ $need == 580 && ${driver%%.*} -ge 525 && -f requirements-cu128.txt ]]; then
    way="Take ${PWD##*/}-train:cu128 (make image TASK=${PWD##*/} CUDA=12.8), or a newer driver"
  fi
  echo "The driver here is $driver; this image, for CUDA $cuda, needs $need or newer. $way." >&2
  exit 1
}
cuda_runs() {  # major version: NVIDIA's compatibility libraries bring a newer CUDA to an older driver of a data centre
  python - "$1" 2>/dev/null <<'END'
import ctypes, sys
version = ctypes.c_int()
ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))  # e.g. 13000
sys.exit(version.value < 1000 * int(sys.argv[1]))
END
}

check_train() {
  local data=$DATA_DIR
  for argument; do
    case $argument in
      -h | --help | --help_all | --help-all) return ;;
      --demo | --data | --data=* | --config | --config=*) data= ;;  # its own, or named there: train.py looks
    esac
  done
  check_driver
  if compgen -e | grep -q '._DATA_DIR$'; then data=; fi
  need_mount "$MODELS_DIR" "the base model is read from it or downloaded to it" || true
  need_mount "$OUTPUT_DIR" "without it the results go when the container goes" && need_writable "$OUTPUT_DIR"
  if [[ $data ]] && need_mount "$data" "it holds the training data (--demo needs none)" \
    && [[ -z $(ls -A "$data") ]]; then
    problems+=("$data is empty: is the path right? Docker makes a folder that is missing")
    flags+=("  -v /path/to/data:$data")
  fi
  stop_if_problems
}

check_infer() {  # the base model or a merged one: which folder it is in, infer.py finds out
  case " $* " in *" -h "* | *" --help"*) return ;; esac
  check_driver
  if is_mounted "$MODELS_DIR" || is_mounted "$OUTPUT_DIR"; then return; fi
  need_mount "$MODELS_DIR" "the base model is read from it or downloaded to it" || true
  need_mount "$OUTPUT_DIR" "it holds what was trained" || true
  stop_if_problems
}

claim-mounts 2>/dev/null || true
# Where all of /workspace is one mounted disk, its folders are made on first use.
if is_mounted /workspace && [[ -w /workspace ]]; then mkdir -p "$MODELS_DIR" "$DATA_DIR" "$OUTPUT_DIR"; fi
if [[ ! -w $MODELS_DIR ]]; then export HF_HOME=/tmp/huggingface; fi  # models mounted read-only

verb=train
if [[ $# -gt 0 && $1 != -* ]]; then verb=$1; shift; fi
case $verb in
  bash | python) exec "$verb" "$@" ;;
  doctor) exec python /usr/local/bin/doctor.py "$@" ;;
esac
scripts=$(grep -l '^if __name__ == "__main__"' ./*.py | sed 's/^..//; s/\.py$//' | sort | tr '\n' ' ')  # the rest are modules
if [[ " $scripts" != *" $verb "* ]]; then
  echo "unknown verb '$verb'; this image has: ${scripts}doctor bash python" >&2
  exit 2
fi
case $verb in train | dpo | orpo | simpo | kto) check_train "$@" ;; infer | chat | evaluate) check_infer "$@" ;; esac
exec python "$verb.py" "$@"
