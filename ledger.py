"""What a run has cost: GPU-seconds by phase, from the first line of the program on, over all its resumptions.

Work that a crash has undone is not counted, nor what comes before the program (waiting for nodes, imports).
"""

from configs import Config
from metrics import Timer

LEDGER = ("start", "generate", "tail", "reward", "logprobs", "train", "sync", "checkpoint", "eval", "other")
_ENTRY = {"rollout": "generate", "probe": "sync"}  # phases that the ledger calls otherwise


def charge(ledger: dict[str, float], timer: Timer, elapsed: float, world: int) -> dict[str, float]:
    """The ledger, GPU-seconds by phase, after `elapsed` more seconds of `world` GPUs, of which `timer` knows the
    phases; "other" is what no phase has measured, so that the entries always add up to the wall clock."""
    ledger = dict.fromkeys(LEDGER, 0.0) | ledger
    for phase, seconds in timer.seconds.items():
        ledger[_ENTRY.get(phase, phase)] += world * seconds
    ledger["other"] += world * (elapsed - sum(timer.seconds.values()))
    return ledger


def ledger_columns(ledger: dict[str, float], cfg: Config) -> dict[str, float]:
    """GPU-hours of the run so far, in all and by phase, and dollars where a price is set: columns of metrics.jsonl."""
    hours = sum(ledger.values()) / 3600
    columns = {"gpu_hours": hours} | {f"gpu_hours_{phase}": seconds / 3600 for phase, seconds in ledger.items()}
    return columns | ({"dollars": hours * cfg.gpu_dollars_per_hour} if cfg.gpu_dollars_per_hour else {})


def ledger_lines(ledger: dict[str, float], cfg: Config) -> list[str]:
    """The ledger as a table."""
    total, price = sum(ledger.values()), cfg.gpu_dollars_per_hour
    lines = [f"{'phase':<12}{'GPU-hours':>12}{'share':>9}" + (f"{'dollars':>12}" if price else "")]
    for phase, seconds in [*ledger.items(), ("total", total)]:
        line = f"{phase:<12}{seconds / 3600:>12,.4f}{seconds / max(total, 1e-9):>9.1%}"
        lines.append(line + (f"{seconds / 3600 * price:>12,.2f}" if price else ""))
    return lines
