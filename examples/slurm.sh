#!/bin/bash
# Trains over several machines, and goes on where it was when the time limit ends it:
#   sbatch --nodes 2 --time 4:00:00 examples/slurm.sh runs/mine --data FOLDER --preset imagenet-100ep
# One torchrun a machine starts a process a GPU. Two minutes before the limit SLURM tells this script, which stops the run
# (its processes write a checkpoint at the end of their batch) and puts the job back into the queue.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

run=${1:?give the folder of the run, then options of fastvicreg train}
shift

stop_and_requeue() {
    trap '' USR1
    scancel --signal=TERM "$SLURM_JOB_ID" # to the steps, not to this script
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap stop_and_requeue USR1

read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# A process that dies costs the steps since the last checkpoint: torchrun starts all again, up to three times.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    -m fastvicreg train --resume --out "$run" "$@" &
step=$!
wait "$step"
