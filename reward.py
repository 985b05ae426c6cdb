"""Rule-based outcome reward: 1.0 for a well-formed response whose boxed answer is right, else 0.0 (DeepScaleR's rule).

`extract_answer`, `grade` and `reward` are pure functions of text; `answers.py` holds the mathematics.
`python reward.py --explain "<answer>" "<gold>"` prints how both are read, what is compared, and the verdict.
`RewardPool` runs them in worker processes that can be killed: a response is hostile input, and behind grade's own work
budget stand a wall-clock and a memory limit per item. A worker is this file run by path (`python reward.py --worker`),
a fresh interpreter and no fork, so nothing of the trainer (torch, NCCL, CUDA) exists in it.
"""

import collections
import concurrent.futures
import ctypes
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from grader import compare as answers
from grader.text import MAX_CHARS
from grader.values import warm_up

STARTUP_SECONDS = 60.0  # a worker that is not ready by then never will be
MAX_BATCH = 64  # items sent to a worker at a time


def extract_answer(response: str) -> str | None:
    """The content of the last \\boxed{...} after the thinking, or None.

    `response` starts with what the chat template opened (`<think>\\n`). The thinking ends at the first `</think>` after
    the first `<think>`; without both there is no answer.
    """
    start = response.find("<think>")
    end = response.find("</think>", start) if start >= 0 else -1
    if end < 0:
        return None
    return last_boxed(response[end:])


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, or None; if that one is unclosed or empty, no earlier one counts."""
    opening = None
    for opening in re.finditer(r"\\boxed\s*\{", text):  # noqa: B007 (the last match is wanted)
        pass
    if opening is None:
        return None
    begin, depth = opening.end(), 1
    for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin):  # \{ and \} do not count, as in TeX
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            return text[begin : mark.start()].strip() or None
    return None


def grade(answer: str, gold: str) -> bool:
    """Whether two final answers are mathematically equal. Pure; answers any text at all, what is unclear with False.

    Exact equality; units and labels (`x =`) may be absent, lists come in any order, tuples and intervals do not.
    Symmetric but for a gold that is rounded (`answers.agrees_with_rounded`).
    """
    try:
        return _grade(answer, gold)
    except MemoryError:
        return False


def _grade(answer: str, gold: str) -> bool:
    try:
        return answers.equal(answer, gold)
    except MemoryError:
        raise
    except Exception:  # untrusted text: outside the grammar, over a bound, or undefined
        return False


def _is_right(answer: str | None, gold: str | list[str], same: Callable[[str, str], bool] = grade) -> bool:
    return answer is not None and any(same(answer, g) for g in ([gold] if isinstance(gold, str) else gold))


def reward(response: str, gold: str | list[str]) -> float:
    """1.0 or 0.0; of several golds any one counts."""
    return float(_is_right(extract_answer(response), gold))


# ---------------------------------------------------------------- worker process


def _die_with_parent(parent: int) -> None:
    """Linux kills this process when the thread that started it ends; elsewhere end of input must do (while idle)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG; its argument is a full word
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _limit_memory(megabytes: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (ValueError, OSError):  # macOS refuses it; the work budget bounds memory there
        pass


def work(parent: int, memory_mb: int) -> None:
    """The worker: a line in is a batch [[answer, gold], ...], a line out is one score, as soon as it is known."""
    _die_with_parent(parent)
    _limit_memory(memory_mb)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's business
    warm_up()
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            for answer, gold in json.loads(line):
                print(int(_is_right(answer, gold, _grade)), flush=True)
    except MemoryError:  # end without a score: the pool counts the item and starts another worker
        os._exit(1)
    except BrokenPipeError:  # the trainer is gone
        os._exit(1)


class _Worker:
    """One child process, what is still to be written to it and the items it owes scores for, in order."""

    def __init__(self, memory_mb: int) -> None:
        command = [sys.executable, os.path.abspath(__file__), "--worker", str(os.getpid()), str(memory_mb)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.set_blocking(self.process.stdin.fileno(), False)  # a hung child must not block us with a full pipe
        os.set_blocking(self.process.stdout.fileno(), False)
        self.ready, self.outgoing, self.incoming = False, b"", b""
        self.owed: collections.deque[int] = collections.deque()
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def send(self, batch: list[tuple[int, str, str | list[str]]], timeout: float) -> None:
        self.owed.extend(index for index, _, _ in batch)
        self.outgoing = json.dumps([[answer, gold] for _, answer, gold in batch]).encode() + b"\n"
        self.deadline = time.monotonic() + timeout

    def write(self) -> None:
        try:
            self.outgoing = self.outgoing[os.write(self.process.stdin.fileno(), self.outgoing) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # read() will see the end of its output
            self.outgoing = b""

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
    from tqdm import tqdm  # here, so that the workers and a plain import do without it

    return tqdm(total=total, desc=name, unit=" answers", disable=not name)


class RewardPool:
    """Persistent workers with a wall-clock limit per item; `timeouts` counts the items lost to a hang or a crash.

    timeout: seconds a worker may go without finishing an item before it is killed (SIGKILL) and replaced.
    memory_mb: address space of a worker. Workers start at the first call and end with `close()` or with their parent.
    """

    def __init__(self, workers: int, timeout: float = 2.0, memory_mb: int = 1024) -> None:
        if workers < 1:
            raise ValueError(f"RewardPool needs at least one worker, got {workers}")
        self.size, self.timeout, self.memory_mb = workers, timeout, memory_mb
        self.timeouts = 0
        self.workers: list[_Worker] = []
        self.lock = threading.Lock()
        # A worker dies with the thread that started it (see _die_with_parent), which must not be a passing caller's.
        self.starter = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def rewards(self, responses: list[str], golds: list[str | list[str]], progress: str = "") -> list[float]:
        """`reward` of each pair, in order. Extraction is linear and happens here, so only short answers travel.

        progress: what to call the bar on the terminal; no bar without.
        """
        return self.grades([extract_answer(response) for response in responses], golds, progress)

    def grades(self, found: list[str | None], golds: list[str | list[str]], progress: str = "") -> list[float]:
        """1.0 where an answer equals its gold or any one of them, in order; 0.0 for None and for what is lost.

        One call at a time; an interrupted one leaves the pool fit for use. Raises TypeError for a gold that is no text.
        """
        for i, gold in enumerate(golds):
            if not isinstance(gold, str) and not (isinstance(gold, list) and all(isinstance(g, str) for g in gold)):
                raise TypeError(f"gold {i} is {gold!r}, not a text or a list of texts")
        scores = [0.0] * len(found)
        items = {
            i: (i, answer, gold)
            for i, (answer, gold) in enumerate(zip(found, golds, strict=True))
            if answer is not None and len(answer) <= MAX_CHARS
        }
        with self.lock, _progress_bar(progress, len(items)) as bar:
            try:
                self._work_off(items, scores, bar)
            except BaseException:  # what is under way belongs to no later call
                self._kill([worker for worker in self.workers if worker.owed or worker.outgoing])
                raise
        return scores

    def _work_off(self, items: dict[int, tuple[int, str, str | list[str]]], scores: list[float], bar: Any) -> None:
        todo = collections.deque(items.values())
        batch_size = max(1, min(MAX_BATCH, len(todo) // (4 * self.size)))
        if todo:
            self._kill([w for w in self.workers if w.process.poll() is not None])  # died while idle: nobody's fault
            self._fill()
        while todo or any(w.owed for w in self.workers):
            for worker in self.workers:
                if worker.ready and not worker.owed and todo:
                    worker.send([todo.popleft() for _ in range(min(batch_size, len(todo)))], self.timeout)
            self._wait()
            for worker in list(self.workers):
                alive = self._collect(worker, scores)
                if alive and (not (worker.owed or not worker.ready) or time.monotonic() < worker.deadline):
                    continue
                if not worker.ready:
                    self.close()
                    raise RuntimeError(
                        f"a reward worker did not start; are {self.memory_mb} MB too little (memory_mb)?"
                    )
                if worker.owed:
                    worker.owed.popleft()  # the culprit scores 0
                    self.timeouts += 1
                    todo.extendleft(items[i] for i in reversed(worker.owed))
                self._kill([worker])
                self._fill()
            bar.update(len(items) - len(todo) - sum(len(w.owed) for w in self.workers) - bar.n)

    def _kill(self, workers: list[_Worker]) -> None:
        for worker in workers:
            worker.kill()
            self.workers.remove(worker)

    def _fill(self) -> None:
        while len(self.workers) < self.size:
            self.workers.append(self.starter.submit(_Worker, self.memory_mb).result())

    def _wait(self) -> None:
        """Until a pipe is ready or the next deadline."""
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ)
                if worker.outgoing:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE)
            deadlines = [w.deadline for w in self.workers if w.owed or not w.ready]
            selector.select(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)

    def _collect(self, worker: _Worker, scores: list[float]) -> bool:
        """Moves bytes both ways without blocking and books the scores; False when the worker has ended."""
        if worker.outgoing:
            worker.write()
        lines = worker.read()
        for line in lines or []:
            if line == b"ready":
                worker.ready = True
            else:
                scores[worker.owed.popleft()] = float(line)
                worker.deadline = time.monotonic() + self.timeout
        return lines is not None

    def close(self) -> None:
        """Kills the workers; the pool cannot be used again."""
        self._kill(list(self.workers))
        self.starter.shutdown()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--worker":
        work(int(sys.argv[2]), int(sys.argv[3]))
    elif len(sys.argv) == 4 and sys.argv[1] == "--explain":
        print(answers.explain(sys.argv[2], sys.argv[3]))
    else:
        print('usage: python reward.py --explain "<answer>" "<gold>"', file=sys.stderr)
        sys.exit(2)
