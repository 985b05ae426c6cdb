#!/bin/bash
# One stage on 4 nodes of 8 GPUs under Slurm: `sbatch slurm.sh configs/16k.py [--key=value ...]`, from this folder, which
# all nodes must see. A job that is requeued, or sent again, goes on from the newest checkpoint.
#SBATCH --job-name=nanoscaler
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=7-00:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.log

set -euo pipefail
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=4

# one torchrun a node; c10d makes the first node the meeting point
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    .venv/bin/torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=8 --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$first_node:29500" \
    train_grpo.py "$@" --resume=true
