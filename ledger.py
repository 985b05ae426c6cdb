"""What a run has cost: GPU-seconds by phase, kept in the run folder's ledger.json over all its resumptions.

It begins with the first line of `train_grpo.train` (imports and waiting for nodes come before) and is written after
every step, so work that a crash undoes is counted too, but for the step it happened in.
"""

import json
import time
from pathlib import Path

import torch.distributed as dist

from configs import Config, UserError
from metrics import Timer

PHASES = ("start", "generate", "tail", "reward", "logprobs", "train", "sync", "checkpoint", "eval", "other")
ENTRY = {"rollout": "generate", "probe": "sync"}  # phases of the loop that the ledger calls otherwise


class Ledger:
    """GPU-seconds of all ranks by phase; "other" is what no phase has measured, so they add up to the wall clock.
    All ranks read the file and rank 0 writes it. Raises UserError for one that cannot be read."""

    def __init__(self, run_dir: Path, started: float) -> None:
        """`started`: the time.perf_counter() that this process is charged from."""
        self.path, self.charged_at = run_dir / "ledger.json", started
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.wall_clock = 0.0  # seconds
        if self.path.is_file():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                self.seconds = {phase: float(found["gpu_seconds"][phase]) for phase in PHASES}
                self.wall_clock = float(found["wall_clock"])
            except (OSError, ValueError, KeyError, TypeError) as e:
                raise UserError(f"{self.path}: cannot be read ({e}); without it the costs begin at 0") from None

    def charge(self, timer: Timer) -> None:
        """Add the time since the last charge, of which `timer` knows the phases."""
        now, world = time.perf_counter(), dist.get_world_size()
        elapsed, self.charged_at = now - self.charged_at, now
        for phase, seconds in timer.seconds.items():
            self.seconds[ENTRY.get(phase, phase)] += world * seconds
        self.seconds["other"] += world * (elapsed - sum(timer.seconds.values()))
        self.wall_clock += elapsed
        if dist.get_rank() == 0:
            aside = self.path.with_suffix(".tmp")
            aside.write_text(json.dumps({"wall_clock": self.wall_clock, "gpu_seconds": self.seconds}), encoding="utf-8")
            aside.rename(self.path)

    def columns(self, cfg: Config) -> dict[str, float]:
        """GPU-hours of the run so far, in all and by phase, and dollars where a price is set."""
        hours = sum(self.seconds.values()) / 3600
        columns = {"gpu_hours": hours} | {f"gpu_hours_{phase}": s / 3600 for phase, s in self.seconds.items()}
        return columns | ({"dollars": hours * cfg.gpu_dollars_per_hour} if cfg.gpu_dollars_per_hour else {})

    def table(self, cfg: Config) -> str:
        total, price = sum(self.seconds.values()), cfg.gpu_dollars_per_hour
        lines = [f"{'phase':<12}{'GPU-hours':>12}{'share':>9}" + (f"{'dollars':>12}" if price else "")]
        for phase, seconds in [*self.seconds.items(), ("total", total)]:
            line = f"{phase:<12}{seconds / 3600:>12,.4f}{seconds / max(total, 1e-9):>9.1%}"
            lines.append(line + (f"{seconds / 3600 * price:>12,.2f}" if price else ""))
        return "\n".join(lines)
