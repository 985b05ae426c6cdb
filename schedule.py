"""When to lengthen the context: by fixed steps, or at the turning point that the metrics show.

    python schedule.py out/tiny/metrics.jsonl        # replay the controller; the last line is JSON

The context holds a model back when the reward has stopped rising while ever more responses are cut off: DeepScaleR
switched from 8K to 16K after 1,000 steps, when the share of clipped responses had gone from 4.2 to 6.5% and the reward
had flattened. A step's reward is a mean over a thousand samples of other problems each time and moves by 0.03, so both
are judged by the slope of a least-squares line over a window of steps, in units of its own standard error. Reads
nothing but the rows of a stage: {reward_mean, response_len_mean, response_clip_ratio}.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs import UserError, run

WINDOW = 240  # steps of a line: over fewer, noise of 0.03 hides a slow rise
PATIENCE = 20  # steps in a row that must agree, against spikes
RISING, FLAT = 3.0, 1.5  # standard errors: a share of clipped responses that rises; a reward that does not
CLIPPED = 0.005  # share of clipped responses below which the context holds nobody back
LOST = 0.25  # share of its best reward that a collapsed run has lost


def stage_at(step: int, stage_steps: tuple[int, ...]) -> int:
    """The stage (from 0) that step `step` (from 1) belongs to; past the end, the last one."""
    end = 0
    for stage, steps in enumerate(stage_steps):
        end += steps
        if step <= end:
            return stage
    return len(stage_steps) - 1


def trend(values: np.ndarray) -> float:
    """The slope of the least-squares line in standard errors, which are widened for noise that wanders: by
    sqrt((1 + r) / (1 - r)), r the correlation of neighbouring residuals (an AR(1) process), if it is positive."""
    n = len(values)
    x = np.arange(n) - (n - 1) / 2
    slope = (x @ values) / (x @ x)
    residuals = values - values.mean() - slope * x
    variance = (residuals @ residuals) / (n - 2)
    if variance < 1e-18:  # no noise at all
        return 0.0 if abs(slope) < 1e-12 else float(np.sign(slope)) * np.inf
    r = min(0.99, max(0.0, (residuals[1:] @ residuals[:-1]) / (residuals @ residuals)))
    return float(slope / np.sqrt(variance / (x @ x) * (1 + r) / (1 - r)))


def columns(history: list[dict[str, Any]]) -> np.ndarray:
    """(3, steps): reward, length, share clipped; steps without one of them (null: nothing was sampled) left out."""
    names = ("reward_mean", "response_len_mean", "response_clip_ratio")
    rows = [[row.get(name) for name in names] for row in history]
    return np.array([r for r in rows if all(isinstance(v, (int, float)) for v in r)], np.float64).reshape(-1, 3).T


def turning_point(history: list[dict[str, Any]], window: int = WINDOW, patience: int = PATIENCE) -> bool:
    """Whether the context is now what holds the model back, from the rows of this stage so far: in each of the last
    `patience` steps, over the `window` before it, the reward rises by less than FLAT standard errors and the share of
    clipped responses by more than RISING, being above CLIPPED. Never in the first window + patience - 1 steps, nor in a
    run that has `collapsed`."""
    reward, _, clipped = columns(history)
    if len(reward) < window + patience - 1:
        return False
    for end in range(len(reward) - patience + 1, len(reward) + 1):
        part = slice(end - window, end)
        if (trend(clipped[part]) <= RISING or trend(reward[part]) >= FLAT
                or clipped[end - window // 3 : end].mean() <= CLIPPED):  # fmt: skip
            return False
    return not collapsed(history, window)


def collapsed(history: list[dict[str, Any]], window: int = WINDOW) -> bool:
    """Whether training has gone to ruin, where a longer context would only cost more: a mean reward, over a tenth of
    the window, of LOST less than this stage's best, while responses are longer and more of them cut off than then."""
    values, n = columns(history), max(5, window // 10)
    if values.shape[1] < 2 * n:
        return False
    means = np.apply_along_axis(np.convolve, 1, values, np.ones(n) / n, "valid")
    best, now = means[:, int(np.argmax(means[0]))], means[:, -1]
    return bool(now[0] < (1 - LOST) * best[0] and now[1] > best[1] and now[2] > best[2])


def replay(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """{fire_step, collapse_step}: after which step of a run the controller would first have asked for the longer
    context, and seen a collapse. A stage (rows with equal `stage`, if they have one) begins its own history."""
    found: dict[str, int | None] = {"fire_step": None, "collapse_step": None}
    history: list[dict[str, Any]] = []
    for row in rows:
        if history and history[-1].get("stage") != row.get("stage"):
            history = []
        history.append(row)
        if found["fire_step"] is None and turning_point(history):
            found["fire_step"] = row["step"]
        if found["collapse_step"] is None and collapsed(history):
            found["collapse_step"] = row["step"]
    return found


def main(argv: list[str]) -> None:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("usage: python schedule.py out/RUN/metrics.jsonl")
    rows = []
    try:
        lines = Path(argv[0]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{argv[0]}: cannot read the metrics: {e}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("step is no integer")
            rows.append(row)
        except (ValueError, KeyError, TypeError) as e:
            if number < len(lines):  # the last may be torn
                raise UserError(f"{argv[0]}:{number}: not a row of metrics: {e}") from None
    found = replay(rows)
    print(f"{len(rows)} steps: " + ("no turning point" if found["fire_step"] is None else
          f"lengthen the context after step {found['fire_step']}"))  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    run(main)
