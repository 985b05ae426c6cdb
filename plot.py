"""Figures of a run: `python plot.py out/tiny [out/other ...]` reads its files, writes figures/*.png and report.html.

report.html shows curves, costs, rollouts and warnings in a browser (`page/`); `--watch=30` writes it again every 30
seconds. The figures are for papers.

The paper's story in four panels: reward, response length, share of clipped responses, accuracy on held-out problems,
with the context switches marked. One file each and all four in curves.png; tokens.png has the accuracy against the
tokens generated for it, which is what runs with other contexts are compared by. Further runs are drawn into the first
one's figures (a control, say).
"""

import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from configs import HELP, UserError, parse_flags, read_json, run, show_help
from page.report import write_report
from schedule import read_metrics

PANELS = {  # file name: (title, metric, y label)
    "reward": ("Reward", "reward_mean", "mean reward"),
    "length": ("Response length", "response_len_mean", "tokens"),
    "clip_ratio": ("Clipped responses", "response_clip_ratio", "share cut off"),
    "accuracy": ("Held-out accuracy", "eval_", "accuracy"),  # all metrics that begin so
}
MAX_PARTS = 100  # benchmarks, and stages, of one run


@dataclass(frozen=True)
class Options:
    watch: int = 0  # seconds after which all is written again, for ever; 0: once


def read_steps(run_dir: Path) -> list[dict]:
    """The rows of a run, at least one; what cannot be drawn as a number is None. Raises UserError."""
    path = run_dir / "metrics.jsonl"
    rows = [{name: drawable(name, value) for name, value in row.items()} for row in read_metrics(path)]
    rows = [{"stage": None, "max_response_len": None, **row} for row in rows if row["step"] is not None]
    if not rows:
        raise UserError(f"{path}: no steps yet")
    if len(evaluations(rows)) > MAX_PARTS or len(switches(rows)) > MAX_PARTS:
        raise UserError(f"{path}: more than {MAX_PARTS} benchmarks or stages: not one run's metrics")
    return rows


def number(value: Any) -> float | None:
    """The value if it is a number that can be drawn, else None."""
    return value if type(value) in (int, float) and abs(value) < 1e15 else None  # nan is not


def drawable(name: str, value: Any) -> float | list[float | None] | None:
    """The number of a column, or the two of an `interval_*`."""
    if name.startswith("interval_"):
        return [number(x) for x in value] if isinstance(value, list) and len(value) == 2 else None
    return number(value)


def plain(text: str) -> str:
    """A name as a label: no formula, nothing that cannot be drawn, and not too long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = " " + text if text.startswith("_") else text  # matplotlib leaves out what begins with _
    return (text if len(text) <= 40 else text[:37] + "...").replace("$", r"\$")


def smooth(values: list[float], window: int) -> list[float]:
    """Centred moving average; near the ends the window shrinks to what is there."""
    half, sums = window // 2, [0.0, *accumulate(values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in windows]


def evaluations(rows: list[dict]) -> list[str]:
    """The metrics of a run that are accuracies, `eval_<benchmark>`."""
    return sorted({name for row in rows for name in row if name.startswith("eval_") and row[name] is not None})


def switches(rows: list[dict]) -> list[int]:
    """The places of the rows that begin another stage than the row before."""
    return [i for i in range(1, len(rows)) if rows[i]["stage"] != rows[i - 1]["stage"]]


def base_accuracy(run_dir: Path, metric: str) -> float | None:
    """The base model's accuracy at the context of the evaluations within the run: the first one, unless `eval_max_len`
    is the last; from summary.json, where the run has ended. Raises UserError."""
    path = run_dir / "summary.json"
    if not path.exists():
        return None
    try:
        limit = read_json(run_dir / "config.json")["config"].get("eval_max_len", 0)
        summary = read_json(path)
        context = {0: "first", summary["first_context"]: "first", summary["last_context"]: "last"}.get(limit)
        if context is None:
            return None
        return number(summary[f"base_{context}_benchmarks"].get(metric.removeprefix("eval_"), {}).get("accuracy"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        problem = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise UserError(f"{path}, or config.json beside it: not a run's: {problem}; move it away") from None


def draw_accuracies(
    axes: Axes, run_dir: Path, rows: list[dict], positions: list[float], color: str | None, markersize: float
) -> None:
    """The base model at 0, then each evaluated step at the position of its row."""
    for metric in evaluations(rows):
        base = base_accuracy(run_dir, metric)
        points = [] if base is None else [(0, base)]
        points += [(x, row[metric]) for x, row in zip(positions, rows, strict=True) if row.get(metric) is not None]
        label = f"{plain(run_dir.resolve().name)}: {plain(metric.removeprefix('eval_'))}"
        axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=markersize, label=label)


def draw_curve(axes: Axes, rows: list[dict], metric: str, color: str, name: str) -> None:
    """Raw values thin, a moving average within each stage thick."""
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = [row for row in rows if row["stage"] == stage and row.get(metric) is not None]
        steps, values = [row["step"] for row in of_stage], [row[metric] for row in of_stage]
        label = name if stage == rows[0]["stage"] else None  # once a run
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values, max(3, len(rows) // 16)), color=color, linewidth=2, label=label)


def mark_contexts(axes: Axes, rows: list[dict]) -> None:
    """Name each stage's context at its first step; dashed lines between stages."""
    place = {"xycoords": ("data", "axes fraction"), "xytext": (2, -9), "textcoords": "offset points"}
    for i in [0, *switches(rows)]:
        if i:
            axes.axvline(rows[i]["step"] - 0.5, color="gray", linestyle="--", linewidth=1)
        context = f"context {rows[i]['max_response_len']}"
        axes.annotate(context, (rows[i]["step"], 1), fontsize=7, color="gray", **place)


def draw(axes: Axes, runs: dict[Path, list[dict]], title: str, metric: str, label: str) -> None:
    """One panel, with the context switches of the first run."""
    for i, (run_dir, rows) in enumerate(runs.items()):
        if metric == "eval_":
            draw_accuracies(axes, run_dir, rows, [row["step"] for row in rows], None, markersize=4)
        else:
            draw_curve(axes, rows, metric, f"C{i}", plain(run_dir.resolve().name))
    mark_contexts(axes, next(iter(runs.values())))
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.margins(y=0.12)
    axes.grid(alpha=0.2)
    if len(runs) > 1 or metric == "eval_":
        axes.legend(fontsize=8)


def draw_by_tokens(axes: Axes, runs: dict[Path, list[dict]]) -> None:
    """Held-out accuracy against the tokens generated up to then, with dashed lines at the context switches."""
    for i, (run_dir, rows) in enumerate(runs.items()):
        millions = [total / 1e6 for total in accumulate(row.get("tokens_generated") or 0 for row in rows)]
        draw_accuracies(axes, run_dir, rows, millions, f"C{i}", markersize=3)
        for step in switches(rows):
            axes.axvline(millions[step - 1], color=f"C{i}", linestyle="--", linewidth=1)
    axes.set(title="Held-out accuracy", xlabel="million tokens generated", ylabel="accuracy")
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)


def draw_figures(folder: Path, runs: dict[Path, list[dict]]) -> list[str]:
    """Write the figures into the folder; returns their names. The accuracy needs evaluations in the first run."""
    panels = dict(PANELS)
    if not evaluations(next(iter(runs.values()))):
        del panels["accuracy"]
    for name, panel in panels.items():
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        draw(axes, runs, *panel)
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)
    figure, grid = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    for axes, panel in zip(grid.flat, panels.values(), strict=False):
        draw(axes, runs, *panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)
    if "accuracy" not in panels:
        return [*panels, "curves"]
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    draw_by_tokens(axes, runs)
    figure.savefig(folder / "tokens.png", dpi=120)
    plt.close(figure)
    return [*panels, "curves", "tokens"]


def main(argv: list[str]) -> None:
    if HELP & set(argv):
        return show_help(__doc__, Options())
    options, folders = parse_flags(argv, Options)
    if not folders or any(a.startswith("-") for a in folders):
        raise UserError("usage: python plot.py out/RUN [out/OTHER ...] [--watch=SECONDS]")
    watch = options.get("watch", 0)
    if watch < 0 or watch > 86_400:
        raise UserError(f"--watch: {watch} is no number of seconds up to a day")
    run_dirs = [Path(folder) for folder in folders]
    if not watch:
        return plot(run_dirs)
    while True:
        try:
            plot(run_dirs)
        except UserError as e:  # no step yet, or a file that is being written: the next time may be better
            print(f"not yet: {e}", flush=True)
        time.sleep(watch)


def plot(run_dirs: list[Path]) -> None:
    """Write figures and page into the first run's folder, and say so. Raises UserError."""
    runs = {run_dir: read_steps(run_dir) for run_dir in run_dirs}
    folder = run_dirs[0] / "figures"
    try:
        folder.mkdir(exist_ok=True)
        names = draw_figures(folder, runs)
    except OSError as e:
        raise UserError(f"{folder}: cannot write the figures: {e.strerror}") from None
    page = write_report(runs)
    print(f"wrote {', '.join(f'{folder}/{name}.png' for name in names)}, {page}", flush=True)


if __name__ == "__main__":
    run(main)
