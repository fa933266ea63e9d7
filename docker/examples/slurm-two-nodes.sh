#!/usr/bin/env bash
#SBATCH --job-name=finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# One run on two nodes, a process per GPU. Folder, venv, models, data and outputs lie on a disk that both nodes see:
#
#   sbatch slurm-two-nodes.sh ~/medical --data ~/data/medical --config fast.yaml
#
# The GPUs share the rows of a step (DDP). Slurm itself starts the processes: with `accelerate launch` in between, SIGTERM
# would come twice, and the launcher would give them 30 seconds to save and hide their exit code. Five minutes before its
# time is over Slurm sends SIGTERM: all stop after the same step, the run saves a checkpoint and every process ends with
# 143. The job is then put back in the queue, and the same command goes on from that checkpoint.
set -euo pipefail
task=$(realpath "${1:?usage: sbatch slurm-two-nodes.sh FOLDER [flags of train.py]}")
shift
cd "$task"
export MODELS_DIR=${MODELS_DIR:-$HOME/models} OUTPUT_DIR=${OUTPUT_DIR:-$HOME/outputs} HF_HUB_OFFLINE=1
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")  # the first of them
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

code=0
# shellcheck disable=SC2016  # each process has a number of its own
srun --unbuffered --kill-on-bad-exit=1 bash -c \
  'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$0" train.py "$@"' \
  "${PYTHON:-venv/bin/python}" "$@" || code=$?
if [ "$code" -eq 143 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
