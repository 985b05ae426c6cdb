"""When to lengthen the context: by fixed steps, or at the turning point that the metrics show.

    python schedule.py out/tiny/metrics.jsonl        # replay the controller; the last line is JSON

The context holds a model back when the reward has stopped rising while ever more responses are cut off: DeepScaleR
switched from 8K to 16K after 1,000 steps, when the share of clipped responses had gone from 4.2 to 6.5% and the reward
had flattened. Or when neither moves any more while many are cut off. A step's reward is a mean over a thousand samples
of other problems each time and moves by 0.03, so both are judged by the slope of a least-squares line over a window of
steps, in units of its own standard error. Reads nothing but the rows of a stage: {reward_mean, response_len_mean,
response_clip_ratio}. The replay takes these settings from the config.json beside the metrics, if there is one.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from configs import HELP, Config, UserError, read_json, run, show_help

FIGURES = ("reward_mean", "response_len_mean", "response_clip_ratio")
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


def measured(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that have all three FIGURES as finite numbers (null: nothing was sampled)."""
    return [row for row in history if all(is_figure(row.get(name)) for name in FIGURES)]


def is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e100  # nan is not


def columns(history: list[dict[str, Any]]) -> np.ndarray:
    """(3, steps): reward, length, share clipped; steps without one of them left out."""
    rows = [[row[name] for name in FIGURES] for row in measured(history)]
    return np.array(rows, np.float64).reshape(-1, 3).T


def held_back(reward: np.ndarray, clipped: np.ndarray) -> bool:
    """Whether one window of steps looks as if the context held the model back (see `turning_point`)."""
    reward_trend, clipped_trend = trend(reward), trend(clipped)
    share = clipped[len(clipped) - len(clipped) // 3 :].mean()
    squeezed = reward_trend < FLAT and clipped_trend > RISING and share > CLIPPED
    stalled = abs(reward_trend) < FLAT and abs(clipped_trend) <= RISING and share > MANY
    return bool(squeezed or stalled)


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
    ends = range(len(reward) - patience + 1, len(reward) + 1)
    agreed = all(held_back(reward[end - window : end], clipped[end - window : end]) for end in ends)
    return agreed and not collapsed(history, window)


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
    return bool(collapses(columns(history), window)[-1:].any())


def collapses(values: np.ndarray, window: int) -> np.ndarray:
    """(steps,), from (3, steps): `collapsed` after each step."""
    n, after = smoothing(window), np.zeros(values.shape[1], bool)
    if len(after) < 2 * n:
        return after
    means = np.apply_along_axis(np.convolve, 1, values, np.ones(n) / n, "valid")  # (3, steps - n + 1)
    highest = np.maximum.accumulate(means[0])
    is_new = np.concatenate(([True], means[0, 1:] > highest[:-1]))
    best = means[:, np.maximum.accumulate(np.where(is_new, np.arange(len(is_new)), 0))]  # so far, at each step
    ruined = (means[0] < (1 - LOST) * best[0]) & (means[1] > best[1]) & (means[2] > best[2])
    after[2 * n - 1 :] = ruined[n:]
    return after


def settling(partial_rollouts: bool, max_staleness: int) -> int:
    """The first steps of a stage, which say nothing of it: with partial rollouts these finish the short responses
    first, which are right more often and not cut off, and then the long ones that were too old to wait longer."""
    return max_staleness + 1 if partial_rollouts else 0


def replay(
    rows: list[dict[str, Any]], window: int = WINDOW, patience: int = PATIENCE, skipped: int = 0
) -> dict[str, Any]:
    """{fire_step, collapse_step, fire_steps}: after which step of a run the controller would first have asked for the
    longer context, and seen a collapse (None: never); fire_steps has the first one of each stage. A stage (rows with
    equal `stage`, if they have one) begins its own history, after `skipped` steps.

    As `turning_point` and `collapsed` after each step, but each window is looked at once.
    """
    fires: list[int | None] = []
    collapse = None
    for _, stage in itertools.groupby(rows, key=lambda row: row.get("stage")):
        history = measured(list(stage)[skipped:])
        reward, _, clipped = values = columns(history)
        after, fire, in_a_row = collapses(values, window), None, 0
        if collapse is None and after.any():
            collapse = history[int(after.argmax())]["step"]
        for end in range(window, len(history) + 1):
            agrees = held_back(reward[end - window : end], clipped[end - window : end])
            in_a_row = in_a_row + 1 if agrees else 0
            if in_a_row >= patience and not after[end - 1]:
                fire = history[end - 1]["step"]
                break
        fires.append(fire)
    first = next((step for step in fires if step is not None), None)
    return {"fire_step": first, "collapse_step": collapse, "fire_steps": fires}


def run_settings(path: Path) -> tuple[int, int, int]:
    """(window, patience, steps to skip) of a run's config.json, the defaults where there is none. Raises UserError."""
    if not path.exists():
        return WINDOW, PATIENCE, 0
    try:
        config = read_json(path)["config"]
        window, patience = config.get("stage_window", WINDOW), config.get("stage_patience", PATIENCE)
        staleness = config.get("max_staleness", Config.max_staleness)
        if any(type(n) is not int for n in (window, patience, staleness)) or window < 8 or min(patience, staleness) < 1:
            raise ValueError(
                "needs whole numbers: a stage_window from 8 on, stage_patience and max_staleness from 1 on"
            )
        return window, patience, settling(bool(config.get("partial_rollouts")), staleness)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read: {type(e).__name__}: {e}") from None


def read_text(path: Path) -> str:
    """Raises OSError, ValueError."""
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")  # a pipe would be waited for
    return path.read_text(encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a crash has torn. Raises UserError."""
    try:
        lines = read_text(path).removesuffix("\n").split("\n")
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot read the metrics: {e}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError("step is no integer")
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a row of metrics: {e}") from None
    return rows


def main(argv: list[str]) -> None:
    if HELP & set(argv):
        return show_help(__doc__)
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UserError("usage: python schedule.py out/RUN/metrics.jsonl")
    path = Path(argv[0])
    rows = read_metrics(path)
    window, patience, skipped = run_settings(path.parent / "config.json")
    result = replay(rows, window, patience, skipped)
    fire, collapse = result["fire_step"], result["collapse_step"]
    text = "no turning point" if fire is None else f"lengthen the context after step {fire}"
    text += "" if collapse is None else f"; collapsed at step {collapse}"
    print(f"{len(rows)} steps, window {window}, patience {patience}: {text}")
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
