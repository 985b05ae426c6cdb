"""Leaving when told to: SIGTERM and SIGUSR1, a scheduler's warnings, end a run at the boundary of a step.

The step under way has `preempt_seconds` to end. After that it is given up if no weight has moved yet, so that the
weights are those of the last boundary; a step that has begun to move them ends. Then a checkpoint is written and the
run leaves with a status of its own (configs.PREEMPTED_STATUS), on which `slurm.sh` sends the job again. Signals reach
ranks at different times, so what to do is agreed upon in `check` and `check_boundary`, which all ranks call together.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar

from configs import PREEMPTED_STATUS, Preempted
from training.packing import all_sum

Value = TypeVar("Value")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ONE_WARNING = 5.0  # seconds within which signals are one warning: launchers hand on what their children have had too


class GivenUp(BaseException):
    """Raised by the alarm within `Preemption.interruptible`, which catches it. (A BaseException, as KeyboardInterrupt
    is: no library between the two may take it for an error of its own.)"""


class Preemption:
    """Handlers of this process's signals, for the length of a `with` block."""

    def __init__(self, seconds: int) -> None:
        """seconds: that a step may go on after a signal."""
        self.seconds = seconds
        self.training = False  # else there is nothing to save, and the process ends at once
        self.requested, self.requested_at = False, 0.0  # a signal has come
        self.is_late = False  # and `seconds` have passed since
        self.may_interrupt = False
        self.earlier_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        handlers = dict.fromkeys(SIGNALS, self._on_signal) | {signal.SIGALRM: self._on_alarm}
        for number, handler in handlers.items():
            self.earlier_handlers[number] = signal.signal(number, handler)
            signal.siginterrupt(number, False)  # libraries in C++ may not expect that a signal ends their reads
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """A preempted rank ends with its own status, whatever a launcher sends once the first of the others is gone."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.earlier_handlers.items():
            signal.signal(number, signal.SIG_IGN if kind is Preempted and number in SIGNALS else handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        """The first one starts the clock, one some seconds later stops waiting. (print() may not be called here: it may
        be what the signal has interrupted. And an exception might be swallowed by what it meets.)"""
        name = signal.Signals(number).name
        if not self.training:
            message = f"preempted: {name} while no step was under way: nothing is lost, start again with --resume=true"
            with contextlib.suppress(OSError):
                os.write(2, f"{message}\n".encode())
            os._exit(PREEMPTED_STATUS)
        if self.requested and time.monotonic() - self.requested_at < ONE_WARNING:
            return
        seconds = 0 if self.requested else self.seconds
        self.requested, self.requested_at = True, time.monotonic()
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(1, f"{name}: this step has {seconds} s to end, then a checkpoint is written\n".encode())
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), 1.0)  # every second, should one be swallowed

    def _on_alarm(self, *_: Any) -> None:
        self.is_late = True
        if self.may_interrupt:
            raise GivenUp

    def interruptible(self, function: Callable[..., Value], *args: Any) -> Value | None:
        """`function(*args)`, work that ranks do apart; None if the alarm ends it. `check` must follow."""
        try:
            self.may_interrupt = True
            if self.is_late:
                raise GivenUp
            value = function(*args)
            self.may_interrupt = False
            return value
        except GivenUp:
            self.may_interrupt = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            return None

    def check(self) -> None:
        """Raises Preempted on every rank if one is late: this step is given up. Not after a weight has moved."""
        if all_sum([self.is_late])[0]:
            raise Preempted("the step under way was given up")

    def check_boundary(self) -> None:
        """Raises Preempted on every rank if one has had a signal."""
        if all_sum([self.requested])[0]:
            raise Preempted("the step under way was finished")
