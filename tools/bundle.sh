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
out=${out%/}
there() { [ -e "$out" ] || [ -L "$out" ]; }
! there || fail "$out is there already: move it away, or name another with --out"
mkdir -p "$(dirname "$out")"
# A folder of its own, on the same disk: whatever else lies there stays, and what did not become a bundle goes.
scratch=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
made=$scratch/made
mkdir -p "$made/wheels"

# pip takes each of these tags by itself and does not know that 2.28 includes 2.17.
platforms=(--platform linux_x86_64 --platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
for minor in $(seq 5 28); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
echo "fetching the wheels of $lock" >&2
"$python" -m pip download --quiet --dest "$made/wheels" --no-deps --only-binary :all: --implementation cp \
  --python-version "$version" "${platforms[@]}" -r "$lock" \
  || fail "pip could not fetch every wheel; its last lines say which. Disk: a GPU recipe's wheels take about 5 GB."
cp "$lock" "$made/requirements.txt"
# requirements-cpu.txt leaves torch to its own index, and has it pinned in the file beside it. Which file came is noted.
pins=${lock%.txt}.in
torch=$(grep -hoE '^torch==[^ ;]+' "$pins" 2>/dev/null || true)
if [ -n "$torch" ] && ! grep -q '^torch==' "$lock"; then
  "$python" -m pip download --quiet --dest "$made/wheels" --no-deps --only-binary :all: --implementation cp \
    --python-version "$version" "${platforms[@]}" "$torch" || fail "pip could not fetch $torch; its last lines say why."
  hash=$(sha256sum "$made"/wheels/torch-*.whl | cut -d' ' -f1)
  printf '%s --hash=sha256:%s\n' "$torch" "$hash" >>"$made/requirements.txt"
fi
echo "$version" >"$made/python-version"

# What lies in the folder but is not the task's stays here: weights, data, results, and .env, which may hold a token.
"$python" "$root/tools/pack.py" "$task" "$made/$name" models data outputs
cp "$root/docker/doctor.py" "$made/"
if [ -n "$model" ]; then
  folder=$("$python" "$root/tools/fetch.py" "$model" | tail -n 1)
  "$python" "$root/tools/pack.py" "$folder" "$made/models/$model"
fi
if [ -d "$data" ]; then
  "$python" "$root/tools/pack.py" "$data" "$made/data/$name"
elif [ -n "$data" ]; then
  mkdir -p "$made/data"
  cp -L "$data" "$made/data/"
fi
echo "$name" >"$made/task"
cp "$root/tools/bundle_run.sh" "$made/run.sh"
chmod +x "$made/run.sh"
(cd "$made" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$scratch/sums"
mv "$scratch/sums" "$made/SHA256SUMS"
! there || fail "$out was made meanwhile: name another with --out"
mv "$made" "$out"
echo "$out: $(du -sh "$out" | cut -f1), $(find "$out/wheels" -name '*.whl' | wc -l) wheels. Copy it over and run: bash ${out##*/}/run.sh --demo" >&2
