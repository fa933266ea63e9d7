#!/usr/bin/env bash
#SBATCH --job-name=finetune
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# A recipe on a cluster, from a copied folder and its venv (python3.12 -m venv venv; install requirements.txt into it):
#
#   sbatch slurm.sh ~/medical --data ~/data/medical --config fast.yaml
#
# Five minutes before its time is over Slurm sends SIGTERM: the run saves a checkpoint and ends with 143. The job is then
# put back in the queue, and the same command goes on from that checkpoint.
set -euo pipefail
task=$(realpath "${1:?usage: sbatch slurm.sh FOLDER [flags of train.py]}")
shift
cd "$task"
export MODELS_DIR=${MODELS_DIR:-$HOME/models} OUTPUT_DIR=${OUTPUT_DIR:-$HOME/outputs} HF_HUB_OFFLINE=1

code=0
srun --unbuffered "${PYTHON:-venv/bin/python}" train.py "$@" || code=$?
if [ "$code" -eq 143 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
