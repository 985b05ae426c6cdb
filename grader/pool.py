"""Rewards in worker processes that can be killed: a response is hostile input, and behind the grader's own work budget
stand limits on each item's CPU time, wall-clock time and memory.

A worker is `reward.py --worker` started by path: a fresh interpreter and no fork, so nothing of the trainer (torch,
NCCL, CUDA) exists in it. A line to it is a batch of items, JSON [[function, argument, argument], ...]; a line from it
is one number, sent as soon as it is known. So the pool knows which item a worker hung on.
"""

import collections
import concurrent.futures
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "reward.py"
STARTUP_SECONDS = 60.0  # a worker that is not ready by then never will be
STARTS = 3  # in a row that may fail
WALL_FACTOR = 10  # wall-clock seconds an item may take, for each second of CPU time: a busy machine is no hang
TICK = 0.25  # seconds between two looks at the clock
MAX_BATCH = 64  # items sent to a worker at a time,
MAX_BATCH_CHARS = 4 << 20  # unless their texts are longer than this together
Item = tuple[str, Any, Any]  # name of a function in the worker, and its two arguments


# ------------------------------------------------------------------------------------------------------ in the worker


def work(
    functions: dict[str, Callable[[Any, Any], float]],
    warm_up: Callable[[], None],
    parent: int,
    memory_mb: int,
    cpu_seconds: float,
) -> None:
    """A worker's whole life: answers batches from standard input until it ends.

    functions: what items may name. warm_up: called within the memory limit, before the first item. parent: the process
    that started it, and with which it ends. cpu_seconds: that an item may take, or the system ends the worker. An
    exception ends it too, without a number for the item: the pool counts it, and the traceback stands on the terminal.
    """
    _die_with_parent(parent)
    _limit_memory(memory_mb)
    warm_up()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a reward function prints goes to the terminal
    print("ready", flush=True, file=answers)
    try:
        for line in sys.stdin:
            for name, a, b in json.loads(line):
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF ends it, in the midst of a regex too
                print(float(functions[name](a, b)), flush=True, file=answers)
            signal.setitimer(signal.ITIMER_PROF, 0)
    except MemoryError:  # too little memory for a traceback
        os._exit(1)
    except BrokenPipeError:  # the trainer is gone
        os._exit(1)


def _die_with_parent(parent: int) -> None:
    """Linux kills this process when the thread that started it ends; elsewhere end of input must do (while idle)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG; its argument is a full word
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def block_signals() -> None:
    """In the thread that starts workers, which inherit it: Ctrl-C and a scheduler's warnings, which may reach every
    process of a job, are the trainer's business."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])


def _limit_memory(megabytes: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (ValueError, OSError):  # macOS refuses it; the work budget bounds memory there
        pass


# ----------------------------------------------------------------------------------------------------- in the trainer


class _Worker:
    """One child process, what is still to be written to it and the items it owes numbers for, in order."""

    def __init__(self, memory_mb: int, cpu_seconds: float, rule: str, now: float) -> None:
        command = [sys.executable, str(SCRIPT), "--worker", str(os.getpid()), str(memory_mb), str(cpu_seconds), rule]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.set_blocking(self.process.stdin.fileno(), False)  # a hung child must not block us with a full pipe
        os.set_blocking(self.process.stdout.fileno(), False)
        self.ready, self.outgoing, self.incoming = False, memoryview(b""), b""
        self.owed: collections.deque[int] = collections.deque()
        self.deadline = now + STARTUP_SECONDS

    def send(self, batch: dict[int, Item], deadline: float) -> None:
        self.owed.extend(batch)
        self.outgoing = memoryview(json.dumps(list(batch.values())).encode() + b"\n")
        self.deadline = deadline

    def write(self) -> None:
        try:
            self.outgoing = self.outgoing[os.write(self.process.stdin.fileno(), self.outgoing) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # read() will see the end of its output
            self.outgoing = memoryview(b"")

    def read(self) -> list[bytes] | None:
        """The lines that arrived, or None when the process has ended."""
        try:
            chunk = os.read(self.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return []
        *lines, self.incoming = (self.incoming + chunk).split(b"\n")
        return lines if chunk else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _progress_bar(name: str, total: int) -> Any:
    from tqdm import tqdm  # here, so that the workers do without it

    return tqdm(total=total, desc=name, unit=" answers", disable=not name)


class RewardPool:
    """Persistent workers with a time limit per item; `timeouts` counts the items lost to a hang or a crash.

    timeout: seconds of CPU time that an item may take; ten times as many on the clock, after which its worker is killed
    and replaced. The clock stands still while this process does: a suspended job loses no answer. memory_mb: address
    space of a worker. rule: which answers are right, one of `reward.RULES`. Workers start at the first call and end
    with `close()` or with their parent.
    """

    def __init__(self, workers: int, timeout: float = 2.0, memory_mb: int = 1024, rule: str = "exact") -> None:
        if workers < 1:
            raise ValueError(f"RewardPool needs at least one worker, got {workers}")
        self.size, self.timeout, self.memory_mb, self.rule = workers, timeout, memory_mb, rule
        self.timeouts = 0
        self.failed_starts = 0  # in a row
        self.clock, self.looked_at = 0.0, time.monotonic()  # seconds in which this process ran
        self.workers: list[_Worker] = []
        self.lock = threading.Lock()
        # A worker dies with the thread that started it (see _die_with_parent), which must not be a passing caller's.
        self.starter = concurrent.futures.ThreadPoolExecutor(max_workers=1, initializer=block_signals)

    def rewards(self, problems: list[Any], responses: list[str], progress: str = "") -> list[float]:
        """`reward.reward_fn` of each Problem and response, in order; 0.0 for what is lost.

        progress: what to call the bar on the terminal; no bar without.
        """
        pairs = zip(problems, responses, strict=True)  # the worker knows the rule
        return self._scores([("reward", (p.id, p.problem, p.answer), text) for p, text in pairs], progress)

    def grades(self, answers: list[str], golds: list[str], progress: str = "") -> list[float]:
        """1.0 where `reward.grade` finds an answer equal to its gold by the pool's rule, else 0.0, in order."""
        return self._scores([("grade", answer, gold) for answer, gold in zip(answers, golds, strict=True)], progress)

    def _scores(self, items: list[Item], progress: str) -> list[float]:
        """One call at a time; an interrupted one leaves the pool fit for use."""
        scores = [0.0] * len(items)
        with self.lock, _progress_bar(progress, len(items)) as bar:
            try:
                self._work_off(items, scores, bar)
            except BaseException:  # what is under way belongs to no later call
                self._kill([worker for worker in self.workers if worker.owed or worker.outgoing])
                raise
        return scores

    def _work_off(self, items: list[Item], scores: list[float], bar: Any) -> None:
        todo = collections.deque(range(len(items)))
        self.looked_at = time.monotonic()
        batch_size = max(1, min(MAX_BATCH, len(todo) // (4 * self.size)))
        if todo:
            self._kill([w for w in self.workers if w.process.poll() is not None])  # died while idle: nobody's fault
            self._fill()
        while todo or any(w.owed for w in self.workers):
            for worker in self.workers:
                if worker.ready and not worker.owed and todo:
                    worker.send(_next_batch(todo, items, batch_size), self._deadline())
            self._wait()
            for worker in list(self.workers):
                alive = self._collect(worker, scores)
                waiting_for = worker.owed or not worker.ready
                if alive and (not waiting_for or self.clock < worker.deadline):
                    continue
                if not worker.ready:
                    self._count_failed_start()
                if worker.owed:
                    worker.owed.popleft()  # the culprit scores 0
                    self.timeouts += 1
                    todo.extendleft(reversed(worker.owed))
                self._kill([worker])
                self._fill()
            bar.update(len(items) - len(todo) - sum(len(w.owed) for w in self.workers) - bar.n)

    def _kill(self, workers: list[_Worker]) -> None:
        for worker in workers:
            worker.kill()
            self.workers.remove(worker)

    def _fill(self) -> None:
        while len(self.workers) < self.size:
            arguments = self.memory_mb, self.timeout, self.rule, self.clock
            self.workers.append(self.starter.submit(_Worker, *arguments).result())

    def _count_failed_start(self) -> None:
        """Another process may have killed it; but not three times in a row."""
        self.failed_starts += 1
        if self.failed_starts == STARTS:
            self.close()
            reason = f"are {self.memory_mb} MB too little (memory_mb)?"
            raise RuntimeError(f"reward workers do not start, {STARTS} in a row: {reason}")

    def _deadline(self) -> float:
        return self.clock + WALL_FACTOR * self.timeout

    def _wait(self) -> None:
        """Until a pipe is ready or the next deadline, but not long; then set the clock."""
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ)
                if worker.outgoing:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE)
            deadlines = [w.deadline for w in self.workers if w.owed or not w.ready]
            selector.select(max(0.0, min([TICK, *(deadline - self.clock for deadline in deadlines)])))
        now = time.monotonic()
        self.clock += min(now - self.looked_at, 2 * TICK)  # more has passed where this process was stopped
        self.looked_at = now

    def _collect(self, worker: _Worker, scores: list[float]) -> bool:
        """Moves bytes both ways without blocking and books the scores; False when the worker has ended."""
        if worker.outgoing:
            worker.write()
        lines = worker.read()
        for line in lines or []:
            if line == b"ready":
                worker.ready, self.failed_starts = True, 0
            else:
                scores[worker.owed.popleft()] = float(line)
                worker.deadline = self._deadline()
        return lines is not None

    def close(self) -> None:
        """Kills the workers; the pool cannot be used again."""
        self._kill(list(self.workers))
        self.starter.shutdown()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _next_batch(todo: collections.deque[int], items: list[Item], size: int) -> dict[int, Item]:
    """The next items to send, taken out of `todo`: {place in items: item}."""
    batch, chars = {}, 0
    while todo and len(batch) < size and (not batch or chars < MAX_BATCH_CHARS):
        index = todo.popleft()
        batch[index] = items[index]
        chars += len(items[index][2])
    return batch
