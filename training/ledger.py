"""What a run has cost: GPU-seconds by phase, over all its resumptions, in hours and dollars."""

import json
import time
from pathlib import Path

import torch.distributed as dist

from configs import Config, read_json, write_whole
from training.metrics import Timer
from training.packing import from_rank0
from training.run_folder import set_aside

PHASES = ("start", "generate", "tail", "reward", "logprobs", "train", "sync", "checkpoint", "eval", "other")
LEDGER_PHASE = {"rollout": "generate", "probe": "sync"}  # phase of the loop: its name in the ledger, if another


class Ledger:
    """The figures of ledger.json, which all ranks read and rank 0 writes.

    "other" is the time outside every measured phase, so that the phases add up to the wall clock. It begins with the
    first line of `train_grpo.main` (imports and waiting for nodes come before) and is written after every step, so work
    that a crash undoes is counted too, but for the step it happened in.
    """

    def __init__(self, run_dir: Path, started: float) -> None:
        """`started`: the time.perf_counter() from which this process is charged. What an older file lacks begins at 0;
        a file that cannot be read is set aside."""
        self.path, self.charged_at = run_dir / "ledger.json", started
        self.seconds, self.wall_clock = from_rank0(self._read)

    def _read(self) -> tuple[dict[str, float], float]:
        """Seconds by phase and of the wall clock so far. Rank 0 calls it."""
        if self.path.is_file():
            try:
                saved = read_json(self.path)
                seconds = {phase: float(saved["gpu_seconds"].get(phase, 0.0)) for phase in PHASES}
                return seconds, float(saved.get("wall_clock", sum(seconds.values())))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
                set_aside(self.path, f"cannot be read ({type(e).__name__}), so the costs begin at 0")
        return dict.fromkeys(PHASES, 0.0), 0.0

    def charge(self, timer: Timer) -> None:
        """Add the time since the last charge; `timer` has measured the phases of it."""
        now, world_size = time.perf_counter(), dist.get_world_size()
        elapsed, self.charged_at = now - self.charged_at, now
        for phase, seconds in timer.seconds.items():
            self.seconds[LEDGER_PHASE.get(phase, phase)] += world_size * seconds
        self.seconds["other"] += world_size * (elapsed - sum(timer.seconds.values()))
        self.wall_clock += elapsed
        if dist.get_rank() == 0:
            write_whole(self.path, json.dumps({"wall_clock": self.wall_clock, "gpu_seconds": self.seconds}))

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
