#!/bin/bash
# A training run under SLURM, on all GPUs of its nodes, which goes on from its state after each time limit:
#
#   sbatch --nodes 4 scripts/slurm.sh configs/flickr8k.yaml --data.path FOLDER --out runs/mine
#
# What sbatch takes goes before the script, what `mmgpt train` takes behind it. All nodes need the same paths.
#SBATCH --job-name mmgpt
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 32
#SBATCH --time 24:00:00
#SBATCH --signal B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode append
set -euo pipefail

# Seconds, of the two minutes below, in which processes end their step and keep their state; else torchrun gives them 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" uv run --no-sync torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node gpu \
    --rdzv-backend c10d --rdzv-endpoint "$host:29500" --rdzv-id "$SLURM_JOB_ID" \
    --no-python mmgpt train "$@" --resume true &
run=$!

# Two minutes before the time is up SLURM tells this script, which tells the run, which keeps its state and ends.
told=
trap 'told=yes; kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
if [[ $told ]]; then
    wait "$run" || true # the first was cut short by the trap
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
