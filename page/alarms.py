"""What may be wrong with a run, from its metrics: each alarm once, with its worst step."""

from collections.abc import Callable, Sequence
from typing import Any

from schedule import is_figure

UNIFORM = 0.9  # share of groups that are all right or all wrong, from which they teach little
CLIPPED = 0.3  # share of responses that are cut off
NO_ANSWER = 0.3  # share of responses without a box
ENTROPY = 0.2  # of its first value, or less, has collapsed
NEAR = 0.5  # of mismatch_limit


def alarms(rows: list[dict[str, Any]], settings: dict[str, Any], dumped: Sequence[int]) -> list[dict[str, Any]]:
    """[{step, text, samples, filter}]: `samples` is the dumped step nearest to it, None without dumps, `filter` which
    of its samples to show."""
    found = []

    def alarm(row: dict[str, Any] | None, text: str, filter: str = "all") -> None:
        if row is not None:
            step = row["step"]
            nearest = min(dumped, key=lambda s: abs(s - step)) if dumped else None
            found.append({"step": step, "text": text, "samples": nearest, "filter": filter})

    skipped = rises(rows, "updates_skipped")
    for row in skipped[:5]:
        alarm(row, f"{row['updates_skipped']:,} updates skipped so far: loss or gradient was not finite")
    late = rises(rows, "reward_timeouts")
    if late:
        worst = late[-1]["reward_timeouts"]
        alarm(late[0], f"first of {worst:,} answers that the grader gave up on (too slow, or it failed)")
    row = worst_row(rows, lambda r: uniform_share(r))
    if row and uniform_share(row) > UNIFORM:
        alarm(row, f"{uniform_share(row):.0%} of the groups all right or all wrong: they teach nothing")
    row = worst_row(rows, lambda r: number(r, "response_clip_ratio"))
    if row and number(row, "response_clip_ratio") > CLIPPED:
        share = number(row, "response_clip_ratio")
        alarm(row, f"{share:.0%} of the responses were cut off{at_the_end(rows, 'response_clip_ratio')}", "cut off")
    row = worst_row(rows, lambda r: -number(r, "answered_ratio", 1.0))
    if row and number(row, "answered_ratio", 1.0) < 1 - NO_ANSWER:
        share, last = 1 - row["answered_ratio"], at_the_end(rows, "answered_ratio", lambda x: 1 - x)
        alarm(row, f"{share:.0%} of the responses had no boxed answer{last}", "no answer")
    first = next((number(r, "entropy") for r in rows if number(r, "entropy") > 0), 0.0)
    low = [r for r in rows if is_figure(r.get("entropy")) and r["entropy"] < ENTROPY * first]
    if low:
        alarm(low[0], f"entropy {low[0]['entropy']:.3g}, of {first:.3g} at the start: few answers are still tried")
    limit = settings.get("mismatch_limit")
    if is_figure(limit):
        row = worst_row(rows, lambda r: mismatch(r))
        if row and mismatch(row) > NEAR * limit:
            alarm(row, f"mismatch k3 {mismatch(row):.3g}, near its limit of {limit:.3g}")
    return sorted(found, key=lambda a: a["step"])


def number(row: dict[str, Any], name: str, otherwise: float = 0.0) -> float:
    return row[name] if is_figure(row.get(name)) else otherwise


def uniform_share(row: dict[str, Any]) -> float:
    return number(row, "solve_none") + number(row, "solve_all")


def mismatch(row: dict[str, Any]) -> float:
    return max(number(row, "mismatch_k3"), number(row, "mismatch_sync_k3"))


def at_the_end(rows: list[dict[str, Any]], name: str, of: Callable[[float], float] = float) -> str:
    """The last value of a share, since what was bad at first may have passed."""
    values = [row[name] for row in rows if is_figure(row.get(name))]
    return f", {of(values[-1]):.1%} at the end"


def worst_row(rows: list[dict[str, Any]], badness: Callable[[dict[str, Any]], float]) -> dict[str, Any] | None:
    return max(rows, key=badness, default=None)


def rises(rows: list[dict[str, Any]], counter: str) -> list[dict[str, Any]]:
    """The rows in which a counter is higher than ever before."""
    found, highest = [], 0.0
    for row in rows:
        if number(row, counter) > highest:
            highest = row[counter]
            found.append(row)
    return found
