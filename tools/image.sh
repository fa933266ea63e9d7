#!/usr/bin/env bash
# Builds the shared base and one recipe's image on it:  make image TASK=medical [CUDA=12.8]
#
# As it is, CUDA 13 for drivers from 580 on: medical-train. With 12.8, for older drivers: medical-train:cu128.
set -euo pipefail
fail() { echo "image: $1" >&2; exit 1; }
task=${1:?usage: tools/image.sh TASK [12.8]} cuda=${2:-13.0}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -f "$task/Dockerfile" ] || fail "no recipe '$task': there is no $task/Dockerfile"
export DOCKER_BUILDKIT=1
case $cuda in
  13.0)
    docker build -t finetune-base docker
    docker build -t "$task-train" "$task"
    ;;
  12.8)
    [ -f "$task/requirements-cu128.txt" ] || fail "$task has no requirements-cu128.txt: it comes with CUDA 13.0 only"
    docker build -t finetune-base:cu128 --build-arg CUDA_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04 docker
    docker build -t "$task-train:cu128" --build-arg BASE_IMAGE=finetune-base:cu128 --build-arg LOCK=requirements-cu128.txt "$task"
    ;;
  *) fail "no images for CUDA $cuda: take 13.0 (the default) or 12.8" ;;
esac
