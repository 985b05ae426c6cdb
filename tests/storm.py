"""A storm of faults over a training run: whatever happens and whenever, the end is that of an unbroken run, bit by bit.

    python tests/storm.py --kills=100 --ranks=1 [--seed=0] [--partial_rollouts]

Starts a run of twelve steps, lets a random fault happen at a random moment, resumes it, and so on until it is finished;
then compares metrics, responses, weights and summary with those of the unbroken run, and begins again, until `kills`
faults have happened. A rank that is left behind must end by itself, and nothing may print a traceback.
"""

import argparse
import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_grpo
from configs import PREEMPTED_STATUS
from runs import assert_same_run, flags, make_world, run_ranks, start_ranks, status_of
from training import checkpoint

FAULTS = ("SIGKILL", "SIGKILL of one rank", "SIGTERM", "SIGUSR1", "full disk", "unreadable checkpoint")
GUARD = 120.0  # seconds after which a run hangs


def storm_flags(world, folder, partial_rollouts):
    changes = dict(partial_rollouts=True, rollout_correction="truncate", max_staleness=2) if partial_rollouts else {}
    return flags(world, folder, stage_steps="8,4", eval_every=3, save_every=2, process_group_timeout=60, **changes)


def faulty_main(fault, seconds, argv):
    """train_grpo.main with a fault of its own machine, after so many seconds."""
    if fault == "full disk":  # from then on, files do not grow beyond some size
        size = int(1e6 * random.Random(seconds).random() ** 4)
        limit = (size, resource.RLIM_INFINITY)
        threading.Timer(seconds, resource.setrlimit, [resource.RLIMIT_FSIZE, limit]).start()
    if fault == "unreadable checkpoint":
        hash_file, rng = checkpoint.hash_file, random.Random(seconds)

        def failing(path):
            if "ckpt" in str(path) and rng.random() < 0.2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return hash_file(path)

        checkpoint.hash_file = failing
    train_grpo.main(argv)


def strike(argv, ranks, fault, seconds):
    """A run that a fault strikes after so many seconds. Returns what is wrong with its end, or None; and its status."""
    started = start_ranks(ranks, argv, partial(faulty_main, fault, seconds))
    victims = [process for process, _ in started]
    if fault == "SIGKILL of one rank":
        victims = victims[-1:]
    number = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}.get(fault, signal.SIGKILL)

    def send():
        for process in victims:
            if process.is_alive():
                os.kill(process.pid, number)

    timers = [threading.Timer(GUARD, lambda: [process.kill() for process, _ in started])]
    if fault not in ("full disk", "unreadable checkpoint"):
        timers.append(threading.Timer(seconds, send))
    begun = time.monotonic()
    for timer in timers:
        timer.start()
    output = "".join(stream.read() for _, stream in started)
    statuses = [status_of(process) for process, _ in started]
    for timer in timers:
        timer.cancel()
    return judge(output, statuses, fault, time.monotonic() - begun), statuses


def judge(output, statuses, fault, seconds):
    """What is wrong with the end of a run, or None."""
    allowed = {0}  # finished before it
    if fault == "full disk" or (fault == "unreadable checkpoint" and "cannot be saved" in output):
        allowed |= {1}
    if len(statuses) > 1 and "lost contact with another rank" in output:
        allowed |= {1}
    if fault.startswith("SIGKILL"):
        allowed |= {-signal.SIGKILL}
    if fault in ("SIGTERM", "SIGUSR1"):  # or killed before there was a handler
        allowed |= {PREEMPTED_STATUS, -getattr(signal, fault)}
    if fault == "unreadable checkpoint" and "error: " in output:  # all of them, or the KL reference, this time
        allowed |= {2}
    if seconds >= GUARD:
        return f"hung: {output[-2000:]}"
    if "Traceback" in output or "terminate called" in output:
        return f"traceback: {output[-4000:]}"
    if not set(statuses) <= allowed:
        return f"statuses {statuses}: {output[-2000:]}"
    return None


def storm(kills, ranks, seed, folder, report=print, partial_rollouts=False):
    """Returns (faults by kind, finished runs, [what went wrong])."""
    rng, world = random.Random(seed), make_world(folder / "world")
    started = time.monotonic()
    run_ranks(ranks, storm_flags(world, folder / "unbroken", partial_rollouts))
    duration = time.monotonic() - started
    argv = storm_flags(world, folder / "storm", partial_rollouts)
    counts, finished, failures = Counter(), 0, []
    run_dir = folder / "storm/run"
    while sum(counts.values()) < kills or run_dir.exists():
        if sum(counts.values()) < kills:
            fault, seconds = rng.choice(FAULTS), rng.uniform(0, 0.8 * duration)
            patience = f"--preempt_seconds={rng.choice((0, 180))}"
            problem, statuses = strike([*argv, "--resume=true", patience], ranks, fault, seconds)
        else:
            fault, seconds, statuses = "none", 0.0, [0] * ranks
            run_ranks(ranks, [*argv, "--resume=true"])
            problem = None
        if statuses != [0] * ranks:
            counts[fault] += 1
        if problem:
            failures.append(f"{fault} after {seconds:.2f} s: {problem}")
        if statuses == [0] * ranks:
            try:
                assert_same_run(run_dir, folder / "unbroken/run")
            except AssertionError as e:
                failures.append(f"the run differs from the unbroken one: {e}")
            finished += 1
            shutil.rmtree(run_dir)
        report(f"{sum(counts.values())} faults, {finished} runs finished, {len(failures)} failures: {fault} {statuses}")
    return counts, finished, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--partial_rollouts", action="store_true")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, finished, failures = storm(
            args.kills, args.ranks, args.seed, Path(folder), partial_rollouts=args.partial_rollouts
        )
    for failure in failures:
        print(failure)
    kinds = ", ".join(f"{number} {fault}" for fault, number in counts.most_common())
    minutes = (time.monotonic() - started) / 60
    end = f"{finished} runs finished, each compared with the unbroken one; {len(failures)} failures"
    print(f"{sum(counts.values())} faults on {args.ranks} ranks in {minutes:.1f} min ({kinds}); {end}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
