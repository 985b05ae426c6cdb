"""Preemption: real signals at every moment of a run, on one rank and on two; then the bytes of an unbroken run."""

import json
import os
import pkgutil
import signal
import subprocess
import time
from functools import partial

import pytest

import train_grpo
from configs import PREEMPTED_STATUS, load_config
from runs import ENV, ROOT, assert_same_run, flags, metrics, run_ranks, train
from training import checkpoint
from training.preemption import Preemption

TWO_RANKS = [pytest.mark.slow, pytest.mark.xdist_group("two_ranks")]


def signal_at_call(owner, name, number, fault=signal.SIGTERM):
    """From now on the `number`th call of owner.name begins with a signal to this process, on the last rank alone."""
    function, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            os.kill(os.getpid(), fault)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def signalled_main(moment, argv):
    """train_grpo.main with a signal at a moment: ("module.function", its call, signal)."""
    path, number, fault = moment
    owner, _, name = path.rpartition(".")
    signal_at_call(pkgutil.resolve_name(owner), name, number, fault)
    train_grpo.main(argv)


GENERATION = ("train_grpo.sample", 3, signal.SIGUSR1)
TRAINING = ("train_grpo.optimizer_step", 4, signal.SIGTERM)
VALIDATION = ("eval.sample", 3, signal.SIGTERM)  # the first two are the base model's
VALIDATION_AT_THE_END_OF_A_STAGE = ("eval.sample", 4, signal.SIGTERM)
LAST_STEP_OF_A_STAGE = ("train_grpo.sample", 4, signal.SIGTERM)
FIRST_STEP_OF_A_STAGE = ("train_grpo.sample", 5, signal.SIGTERM)
SAVE = ("training.checkpoint.save", 1, signal.SIGTERM)
BEFORE_THE_FIRST_STEP = ("training.packing.load_model", 1, signal.SIGUSR1)
# torch.distributed.checkpoint takes whatever is raised in it for a failure of its own
LOAD_OF_A_CHECKPOINT = ("torch.distributed.checkpoint.FileSystemReader.read_data", 1, signal.SIGTERM)


@pytest.mark.parametrize(
    "ranks, moment, seconds, saved, words",
    [
        (1, GENERATION, 100, 3, "the step under way was finished"),
        (1, GENERATION, 0, 2, "the step under way was given up"),
        (1, TRAINING, 0, 2, "the step under way was finished"),
        (1, VALIDATION, 0, 3, "the step under way was given up"),
        (1, VALIDATION_AT_THE_END_OF_A_STAGE, 0, 4, "the step under way was given up"),
        (1, FIRST_STEP_OF_A_STAGE, 0, 4, "the step under way was given up"),
        (1, SAVE, 100, 3, "the step under way was finished"),
        pytest.param(2, GENERATION, 0, 2, "the step under way was given up", marks=TWO_RANKS),
        pytest.param(2, TRAINING, 0, 2, "the step under way was finished", marks=TWO_RANKS),
        pytest.param(2, VALIDATION, 0, 3, "the step under way was given up", marks=TWO_RANKS),
    ],
)
def test_a_preempted_run_leaves_a_checkpoint_and_resumes_exactly(
    world, tmp_path, request, ranks, moment, seconds, saved, words
):
    whole = request.getfixturevalue("six_steps" if ranks == 1 else "two_ranks")
    argv = flags(world, tmp_path, eval_every=3, preempt_seconds=seconds)
    output = run_ranks(ranks, argv, PREEMPTED_STATUS, partial(signalled_main, moment))
    assert output.count(f"preempted: {words}") == ranks and "Traceback" not in output
    assert f"preempted: --resume=true goes on after step {saved}" in output
    assert checkpoint.find(tmp_path / "run").name == f"step_{saved:06d}" and not (tmp_path / "run/lock").exists()
    train([*argv, "--resume=true"], ranks)
    assert_same_run(tmp_path / "run", whole)


def test_a_signal_before_the_first_step_ends_the_run_at_once(world, tmp_path):
    output = run_ranks(1, flags(world, tmp_path), PREEMPTED_STATUS, partial(signalled_main, BEFORE_THE_FIRST_STEP))
    assert output.endswith(
        "preempted: SIGUSR1 while no step was under way: nothing is lost, start again with --resume=true\n"
    )
    assert not (tmp_path / "run/ckpt").exists()


def test_a_signal_in_the_load_of_a_checkpoint_is_no_damage(world, tmp_path):
    argv = flags(world, tmp_path)
    train([*argv, "--max_steps=3"])
    output = run_ranks(1, [*argv, "--resume=true"], PREEMPTED_STATUS, partial(signalled_main, LOAD_OF_A_CHECKPOINT))
    assert "preempted: SIGTERM while no step was under way" in output and "does not fit" not in output


def test_signals_are_one_warning_for_some_seconds_and_the_next_gives_the_step_up(monkeypatch, capfd):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Preemption(180) as preemption:
        preemption.training = True
        for at, seconds_left in ((0.0, 180), (1.0, 180), (10.0, 0)):
            now[0] = at
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.requested and signal.getitimer(signal.ITIMER_REAL)[0] <= max(seconds_left, 1)
        assert preemption.interruptible(signal.pause) is None  # the alarm ends it
        assert preemption.is_late
    assert capfd.readouterr().out.count("SIGTERM: this step has") == 2


def test_without_checkpoints_a_preempted_run_does_not_ask_to_be_started_again(world, tmp_path):
    output = run_ranks(1, flags(world, tmp_path, save_every=0), 1, partial(signalled_main, GENERATION))
    assert "preempted, and save_every=0 keeps no checkpoint" in output


@pytest.mark.slow
def test_a_signal_LAST_STEP_OF_A_STAGEs_gpus_ends_the_run_with_the_next_command(world, tmp_path):
    output = run_ranks(1, flags(world, tmp_path, stage_gpus="1,2"), 0, partial(signalled_main, LAST_STEP_OF_A_STAGE))
    assert "the next stage wants 2 GPUs. Go on with" in output


# A stand-in for Slurm: two tasks on this machine. It signals the job as Slurm does before its time is over, once the
# first step is reported, and hands the signal on to the tasks, whose largest status is its own.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
command = sys.argv[3:]
environment = os.environ | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
tasks = []
for rank in ("0", "1"):
    task = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    tasks.append(subprocess.Popen(command, env=environment | task, stdout=subprocess.PIPE, text=True))
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for line in tasks[0].stdout:
    print(line, end="", flush=True)
    if line.startswith("step 1/") and not os.path.exists("requeued"):
        os.kill(os.getppid(), signal.SIGUSR1)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # until one of them has ended
for task in tasks:  # --kill-on-bad-exit: the others are ended, and a signal would be the status
    task.terminate()
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS_PER_NODE": "2"}
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && touch "$OUT/requeued" || echo 127.0.0.1
"""


@pytest.mark.slow
@pytest.mark.xdist_group("two_ranks")
def test_slurm_sh_queues_a_preempted_job_again_and_it_goes_on(world, tmp_path, two_ranks):
    if not (ROOT / ".venv/bin/python").exists():
        pytest.skip("slurm.sh runs .venv/bin/python, and there is no .venv here")
    for name, text in (("srun", SRUN.replace("requeued", f"{tmp_path}/requeued")), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = ENV | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path)} | JOB
    command = ["bash", "slurm.sh", *flags(world, tmp_path, eval_every=3)]
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert first.returncode == PREEMPTED_STATUS and (tmp_path / "requeued").exists(), first.stdout + first.stderr
    assert len(metrics(tmp_path / "run")) < 6
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["shard_size"] == 2
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert_same_run(tmp_path / "run", two_ranks)


# Stand-ins for a job of two tasks on each of two nodes, and for the program, which says what has reached it.
TWO_NODES = """#!/usr/bin/env python3
import os, subprocess, sys
for rank in range(4):
    task = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURM_NODEID": str(rank // 2)}
    subprocess.run(sys.argv[3:], env=os.environ | task, check=True)
"""
PROGRAM = """#!/usr/bin/env python3
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], **os.environ}))
"""
# Each node reaches the other over ib0, and itself over lo.
GETENT = """#!/bin/sh
[ "$2" = first ] && echo "10.0.0.1  STREAM first" || echo "10.0.0.2  STREAM $2"
"""
IP = """#!/bin/sh
[ "$SLURM_NODEID" = 0 ] && own=10.0.0.1 || own=10.0.0.2
[ "$4" = $own ] && echo "local $own dev lo src $own uid 0" || echo "$4 dev ib0 src $own uid 0"
"""


def job_of_two_nodes(folder, *argv, ip=IP, **environment):
    """What reaches the program from slurm.sh: (each rank's arguments and environment, what was written to stderr)."""
    names = {"srun": TWO_NODES, "scontrol": "#!/bin/sh\necho first\necho second\n", ".venv/bin/python": PROGRAM}
    for name, text in {**names, "getent": GETENT, "ip": ip}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_TMPDIR": str(folder)} | JOB
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "slurm.sh"), *argv]
    job = subprocess.run(command, cwd=folder, env=path | slurm | environment, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    return [json.loads(line) for line in job.stdout.splitlines()], job.stderr


def test_slurm_sh_gives_every_rank_its_place_a_copy_of_the_weights_a_node_and_a_local_cache(tmp_path):
    ranks, errors = job_of_two_nodes(tmp_path, "configs/16k.py", "--lr=2e-6")
    assert [(r["RANK"], r["LOCAL_RANK"]) for r in ranks] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    argv = ["train_grpo.py", "--shard_size=2", "configs/16k.py", "--lr=2e-6", "--resume=true"]
    caches = f"{tmp_path}/nanoscaler-caches-{os.getuid()}"
    for r in ranks:
        assert r["argv"] == argv and (r["WORLD_SIZE"], r["LOCAL_WORLD_SIZE"]) == ("4", "2")
        assert (r["MASTER_ADDR"], r["MASTER_PORT"], r["OMP_NUM_THREADS"]) == ("first", "20007", "4")
        assert (r["GLOO_SOCKET_IFNAME"], r["NCCL_SOCKET_IFNAME"]) == ("ib0", "=ib0")
        assert (r["VLLM_CACHE_ROOT"], r["TRITON_CACHE_DIR"]) == (f"{caches}/vllm", f"{caches}/triton")
        assert r["TORCHINDUCTOR_CACHE_DIR"] == f"{caches}/inductor"
    assert errors == ""


def test_what_the_user_has_set_stays_in_slurm_sh(tmp_path):
    own = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "^lo", "VLLM_CACHE_ROOT": "/data/cache"}
    ranks, _ = job_of_two_nodes(tmp_path, "configs/16k.py", "--shard_size=4", **own)
    assert all(r[name] == value for r in ranks for name, value in own.items())
    assert load_config(ranks[0]["argv"][1:]).shard_size == 4


def test_slurm_sh_says_where_it_finds_no_interface_once_a_node_and_goes_on(tmp_path):
    ranks, errors = job_of_two_nodes(tmp_path, "configs/16k.py", ip="#!/bin/sh\nexit 2\n", SLURM_TMPDIR="/none")
    assert [line.split(": ", 2)[2].split(" is found")[0] for line in errors.splitlines()] == [
        "no route to second",
        "no route to first",
    ]
    assert not any("GLOO_SOCKET_IFNAME" in r or "NCCL_SOCKET_IFNAME" in r for r in ranks)
    assert ranks[0]["VLLM_CACHE_ROOT"] == f"/tmp/nanoscaler-caches-{os.getuid()}/vllm"
