#!/usr/bin/env bash
# Makes one folder that trains a recipe on a machine without any network:  make bundle TASK=medical [ARGS="..."]
#
#   tools/bundle.sh TASK [--model ORG/NAME] [--data FOLDER] [--out FOLDER] [--lock FILE] [--python X.Y]
#
# In it: the task, its wheels, doctor.py, run.sh, SHA256SUMS, and with --model and --data what is to be trained on what.
# --lock requirements-cpu.txt --python 3.11 makes it for a machine without a GPU. Needs pip and the network here;
# there, Linux x86-64, a Python of that version and nothing else.
set -euo pipefail
fail() { echo "bundle: $1" >&2; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
task=${1:?usage: tools/bundle.sh TASK [--model ORG/NAME] [--data FOLDER] [--out FOLDER] [--lock FILE] [--python X.Y]}
shift
[ -f "$task/requirements.txt" ] || task=$root/$task
[ -f "$task/requirements.txt" ] || fail "$task holds no requirements.txt"
task=$(cd "$task" && pwd)
name=$(basename "$task")
model='' data='' out=$root/outputs/bundle-$name lock=$task/requirements.txt version=3.12
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || fail "$1 needs a value"
  case $1 in
    --model) model=$2 ;;
    --data) data=$2 ;;
    --out) out=$2 ;;
    --lock) lock=$2 ;;
    --python) version=$2 ;;
    *) fail "unknown flag $1" ;;
  esac
  shift 2
done
[ -f "$lock" ] || fail "no lock file $lock"
[ -z "$data" ] || [ -e "$data" ] || fail "no data at $data"
[ ! -e "$out" ] || fail "$out is there already: move it away, or name another with --out"
made=$out.part
rm -rf "$made"
mkdir -p "$made/wheels"

# pip takes each of these tags by itself and does not know that 2.28 includes 2.17.
platforms=(--platform linux_x86_64 --platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
for minor in $(seq 5 28); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
echo "fetching the wheels of $lock" >&2
"$python" -m pip download --quiet --dest "$made/wheels" --no-deps --only-binary :all: --implementation cp \
  --python-version "$version" "${platforms[@]}" -r "$lock" \
  || fail "pip could not fetch every wheel; its last lines say which. Disk: a GPU recipe's wheels take about 5 GB."
cp "$lock" "$made/requirements.txt"
echo "$version" >"$made/python-version"

# What lies in the folder but is not the task's stays here: weights, data, results, and .env, which may hold a token.
tar -C "$(dirname "$task")" --exclude="$name/models" --exclude="$name/data" --exclude="$name/outputs" --exclude='.env*' \
  --exclude=__pycache__ --exclude=unsloth_compiled_cache -c "$name" | tar -C "$made" -x
cp "$root/docker/doctor.py" "$made/"
if [ -n "$model" ]; then
  folder=$("$python" "$root/tools/fetch.py" "$model" | tail -n 1)
  mkdir -p "$made/models/$model"
  cp -rL "$folder/." "$made/models/$model/"
fi
if [ -n "$data" ]; then
  mkdir -p "$made/data"
  if [ -d "$data" ]; then cp -rL "$data" "$made/data/$name"; else cp -L "$data" "$made/data/"; fi
fi
echo "$name" >"$made/task"
cp "$root/tools/bundle_run.sh" "$made/run.sh"
chmod +x "$made/run.sh"
(cd "$made" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$made.sums"
mv "$made.sums" "$made/SHA256SUMS"
mv "$made" "$out"
echo "$out: $(du -sh "$out" | cut -f1), $(find "$out/wheels" -name '*.whl' | wc -l) wheels. Copy it over and run: bash ${out##*/}/run.sh --demo" >&2
