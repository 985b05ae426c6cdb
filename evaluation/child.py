"""A command in a process of its own, which signals to this one end too. `eval.py` runs a process a compute type, since
vLLM on a GPU can be started only once in a process (CuMemAllocator, 0.32).
"""

import os
import signal
import socket
import subprocess
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # of users, launchers and schedulers


class Child:
    """The process, and the first signal that this one has had since."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.signal = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if self.process:
            self.process.terminate()

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Its exit status, negative if a signal has ended it."""
        earlier_handlers = {number: signal.signal(number, self.on_signal) for number in SIGNALS}
        # Ctrl-C in a terminal is sent to both. The child, which inherits what is blocked, leaves the answer to us.
        earlier_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process = subprocess.Popen(command, env=os.environ | environment)
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier_mask)
            if self.signal:  # it came before the process was there
                self.process.terminate()
            return self.process.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier_mask)
            for number, handler in earlier_handlers.items():
                signal.signal(number, handler)


def run_child(command: list[str], environment: dict[str, str]) -> None:
    """Runs the command with these variables added to its environment. If it fails, which it has said itself, this
    process ends with its status: raises SystemExit. After a signal to this process: SystemExit or KeyboardInterrupt."""
    child = Child()
    status = child.run(command, environment)
    if child.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if child.signal:
        raise SystemExit(128 + child.signal)  # as a shell reports it
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]
