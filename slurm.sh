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
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# The network interface of the route to a node.
interface_to() {
    local address
    address=$(getent ahosts "$1" | awk '{ print $1; exit }')
    PATH=$PATH:/usr/sbin:/sbin ip -o route get "$address" 2>/dev/null | sed -n 's/.* dev \([^ ]*\) .*/\1/p'
}

# A task: one GPU. Its arguments: the second node, "" where there is only one, and then the program's.
run_task() {
    local second_node=$1 disk caches peer interface
    shift
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE

    # Compiled kernels go on a disk of the node: they are many small files, and the home is often on the network.
    for disk in "${SLURM_TMPDIR:-}" "${TMPDIR:-}" /tmp; do
        if [ -d "$disk" ] && [ -w "$disk" ]; then break; fi
    done
    caches=$disk/nanoscaler-caches-$UID
    export VLLM_CACHE_ROOT="${VLLM_CACHE_ROOT:-$caches/vllm}" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$caches/triton}"
    export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$caches/inductor}"

    # Gloo and NCCL may choose an interface that does not lead to the other nodes: take the one of the route to the
    # first node, and there, where that would be the loopback interface, of the route to the second.
    if [ -n "$second_node" ] && { [ -z "${GLOO_SOCKET_IFNAME:-}" ] || [ -z "${NCCL_SOCKET_IFNAME:-}" ]; }; then
        peer=$MASTER_ADDR
        if [ "$SLURM_NODEID" -eq 0 ]; then peer=$second_node; fi
        interface=$(interface_to "$peer")
        if [ -n "$interface" ] && [ "$interface" != lo ]; then
            export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"
            export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-=$interface}" # "=": this name, not all that begin so
        elif [ "$SLURM_LOCALID" -eq 0 ]; then
            echo "slurm.sh: $(hostname): no route to $peer is found (getent ahosts, ip route get): if the ranks do" \
                "not meet, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface between the nodes" >&2
        fi
    fi
    # A copy of the weights in every node: only gradients cross the network. A flag of the user's is later, so it wins.
    exec .venv/bin/python train_grpo.py --shard_size="$SLURM_NTASKS_PER_NODE" "$@" --resume=true
}

# A task a GPU, without torchrun: that gives its processes 30 s after a signal, and hides their status.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c "$(declare -f interface_to run_task); run_task \"\$@\"" task "${nodes[1]:-}" "$@" &
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
