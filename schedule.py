"""When to lengthen the context: by fixed steps, or at the turning point that the metrics show.

    python schedule.py out/tiny/metrics.jsonl        # replay the controller; the last line is JSON

The context holds a model back when the reward has stopped rising while ever more responses are cut off: DeepScaleR
switched from 8K to 16K after 1,000 steps, when the share of clipped responses had gone from 4.2 to 6.5% and the reward
had flattened. Or when neither moves any more while many are cut off. A step's reward is a mean over a thousand samples
of other problems each time and moves by 0.03, so both are judged by the slope of a least-squares line over a window of
steps, in units of its own standard error. Reads nothing but the rows of a stage: {reward_mean, response_len_mean,
response_clip_ratio}. The replay takes window and patience from the config.json beside the metrics, if there is one.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs import Config, UserError, run

WINDOW, PATIENCE = Config.stage_window, Config.stage_patience  # 240 and 20 steps: over fewer, noise hides a slow rise
RISING, FLAT = 3.0, 1.5  # standard errors: a share of clipped responses that rises; a reward that does not
CLIPPED, MANY = 0.005, 0.1  # shares of clipped responses: fewer hold nobody back; more do even where they rise no more
LOST = 0.25  # share of its best reward that a collapsed run has lost


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
    """Whether the context is now what holds the model back, from the rows of this stage so far.

    That is so if in each of the last `patience` steps, over the `window` steps before it, either the reward rises by
    less than FLAT standard errors and the share of clipped responses by more than RISING, being above CLIPPED; or the
    reward is flat (less than FLAT either way), the share is steady (less than RISING either way) and above MANY. The
    shares are means over the last third of the window. Not before step window + patience - 1, nor in a run that has
    `collapsed`.
    """
    reward, _, clipped = columns(history)
    if len(reward) < window + patience - 1:
        return False
    for end in range(len(reward) - patience + 1, len(reward) + 1):
        reward_trend, clipped_trend = (trend(x[end - window : end]) for x in (reward, clipped))
        share = clipped[end - window // 3 : end].mean()
        squeezed = reward_trend < FLAT and clipped_trend > RISING and share > CLIPPED
        stalled = abs(reward_trend) < FLAT and abs(clipped_trend) <= RISING and share > MANY
        if not (squeezed or stalled):
            return False
    return not collapsed(history, window)


def smoothing(window: int) -> int:
    """Steps of the means that find the best and the ruin: a tenth of the window, at least 5."""
    return max(5, window // 10)


def smoothed_reward(history: list[dict[str, Any]], window: int = WINDOW) -> float:
    """The mean reward of the last steps: what makes one checkpoint of a stage better than another."""
    reward = columns(history)[0][-smoothing(window) :]
    return float(reward.mean()) if reward.size else 0.0


def collapsed(history: list[dict[str, Any]], window: int = WINDOW) -> bool:
    """Whether training has gone to ruin, where a longer context would only cost more: a mean reward, over a tenth of
    the window, of LOST less than this stage's best, while responses are longer and more of them cut off than then."""
    values, n = columns(history), smoothing(window)
    if values.shape[1] < 2 * n:
        return False
    means = np.apply_along_axis(np.convolve, 1, values, np.ones(n) / n, "valid")
    best, now = means[:, int(np.argmax(means[0]))], means[:, -1]
    return bool(now[0] < (1 - LOST) * best[0] and now[1] > best[1] and now[2] > best[2])


def replay(rows: list[dict[str, Any]], window: int = WINDOW, patience: int = PATIENCE) -> dict[str, Any]:
    """{fire_step, collapse_step, fire_steps}: after which step of a run the controller would first have asked for the
    longer context, and seen a collapse (None: never); fire_steps has the first one of each stage. A stage (rows with
    equal `stage`, if they have one) begins its own history."""
    fires: list[int | None] = []
    collapse, history = None, []
    for row in rows:
        if not history or history[-1].get("stage") != row.get("stage"):
            history, fires = [], [*fires, None]
        history.append(row)
        if fires[-1] is None and turning_point(history, window, patience):
            fires[-1] = row["step"]
        if collapse is None and collapsed(history, window):
            collapse = row["step"]
    first = next((step for step in fires if step is not None), None)
    return {"fire_step": first, "collapse_step": collapse, "fire_steps": fires}


def run_settings(path: Path) -> tuple[int, int]:
    """(window, patience) of a run's config.json, the defaults where there is none. Raises UserError."""
    if not path.is_file():
        return WINDOW, PATIENCE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        return int(config.get("stage_window", WINDOW)), int(config.get("stage_patience", PATIENCE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a crash has torn. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot read the metrics: {e}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("step is no integer")
            rows.append(row)
        except (ValueError, KeyError, TypeError) as e:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a row of metrics: {e}") from None
    return rows


def main(argv: list[str]) -> None:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("usage: python schedule.py out/RUN/metrics.jsonl")
    path = Path(argv[0])
    rows = read_metrics(path)
    window, patience = run_settings(path.parent / "config.json")
    result = replay(rows, window, patience)
    fire, collapse = result["fire_step"], result["collapse_step"]
    text = "no turning point" if fire is None else f"lengthen the context after step {fire}"
    text += "" if collapse is None else f"; collapsed at step {collapse}"
    print(f"{len(rows)} steps, window {window}, patience {patience}: {text}")
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
