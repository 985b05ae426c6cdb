#!/bin/bash
# One stage on 4 nodes of 8 GPUs under Slurm: `sbatch slurm.sh configs/16k.py [--key=value ...]`, from this folder, which
# all nodes must see. Five minutes before its time is over the run writes a checkpoint and leaves with status 75, and this
# script queues the job again. After a preemption Slurm does so itself. Either goes on from the newest checkpoint, as does
# a job that is sent again by hand.
#SBATCH --job-name=nanoscaler
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -uo pipefail
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# A task a GPU, without torchrun: that gives its processes 30 s after a signal, and hides their status.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec .venv/bin/python train_grpo.py "$@" --resume=true' task "$@" &
srun=$!
time_is_over=no
trap 'time_is_over=yes; kill -USR1 $srun' USR1 # srun hands USR1 on to its tasks
trap : TERM # Slurm has told the tasks too: let them write their checkpoint
wait $srun
status=$?
while kill -0 $srun 2>/dev/null; do # a signal ends a wait, not srun
    wait $srun
    status=$?
done
if [ $status -eq 75 ] && [ $time_is_over = yes ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
