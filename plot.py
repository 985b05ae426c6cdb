"""Figures of a run: `python plot.py out/tiny [out/other ...]` reads metrics.jsonl, writes figures/*.png beside it.

The paper's story in four panels: reward, response length, share of clipped responses, accuracy on held-out problems,
with the context switches marked. One file each and all four in curves.png; tokens.png has the accuracy against the
tokens generated for it, which is what runs with other contexts are compared by. Further runs are drawn into the first
one's figures (a control, say).
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from configs import UserError, run
from schedule import read_metrics

PANELS = {  # file name: (title, metric key, y label)
    "reward": ("Reward", "reward_mean", "mean reward"),
    "length": ("Response length", "response_len_mean", "tokens"),
    "clip_ratio": ("Clipped responses", "response_clip_ratio", "share cut off"),
    "accuracy": ("Held-out accuracy", "eval_", "accuracy"),
}


def read_steps(run_dir: Path) -> list[dict]:
    """The rows of a run, at least one. Raises UserError."""
    path = run_dir / "metrics.jsonl"
    rows = read_metrics(path)
    if not rows:
        raise UserError(f"{path}: no steps yet")
    return rows


def smooth(values: list[float], window: int) -> list[float]:
    """Centred moving average; near the ends the window shrinks to what is there."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(p) / len(p) for p in parts]


def base_accuracy(run_dir: Path, key: str) -> float | None:
    """The base model's accuracy at the context of the evaluations within the run: the first one, unless `eval_max_len`
    is the last; from summary.json, where the run has ended."""
    path = run_dir / "summary.json"
    if not path.is_file():
        return None
    limit = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["config"].get("eval_max_len", 0)
    summary = json.loads(path.read_text(encoding="utf-8"))
    context = {0: "first", summary["first_context"]: "first", summary["last_context"]: "last"}.get(limit)
    if context is None:
        return None
    return summary[f"base_{context}_benchmarks"][key.removeprefix("eval_")]["accuracy"]


def draw(axes: Axes, runs: dict[Path, list[dict]], title: str, key: str, label: str) -> None:
    """One panel: raw values thin, a moving average within each stage thick, stage switches dashed."""
    for color, (run_dir, rows) in enumerate(runs.items()):
        if key == "eval_":
            for name in sorted({k for row in rows for k in row if k.startswith("eval_")}):
                points = [(row["step"], row[name]) for row in rows if name in row]
                base = base_accuracy(run_dir, name)
                points = ([(0, base)] if base is not None else []) + points
                axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=f"{run_dir.name}: {name[5:]}")
            continue
        for stage in sorted({row["stage"] for row in rows}):
            part = [row for row in rows if row["stage"] == stage and row[key] is not None]
            steps, values = [row["step"] for row in part], [row[key] for row in part]
            axes.plot(steps, values, color=f"C{color}", alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values, max(3, len(rows) // 16)), color=f"C{color}", linewidth=2,
                      label=run_dir.name if stage == rows[0]["stage"] else None)  # fmt: skip
    rows = next(iter(runs.values()))
    for before, after in zip([{"stage": None}, *rows], rows, strict=False):
        if before["stage"] != after["stage"]:
            if before["stage"] is not None:
                axes.axvline(after["step"] - 0.5, color="gray", linestyle="--", linewidth=1)
            axes.annotate(f"context {after['max_response_len']}", (after["step"], 1), fontsize=7, color="gray",
                          xycoords=("data", "axes fraction"), xytext=(2, -9), textcoords="offset points")  # fmt: skip
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.margins(y=0.12)
    axes.grid(alpha=0.2)
    if len(runs) > 1 or key == "eval_":
        axes.legend(fontsize=8)


def draw_by_tokens(axes: Axes, runs: dict[Path, list[dict]]) -> None:
    """Held-out accuracy against the tokens generated up to then, with context switches as larger marks."""
    for color, (run_dir, rows) in enumerate(runs.items()):
        tokens, total = [], 0
        for row in rows:
            total += row["tokens_generated"]
            tokens.append(total / 1e6)
        switches = [i for i in range(1, len(rows)) if rows[i]["stage"] != rows[i - 1]["stage"]]
        for name in sorted({k for row in rows for k in row if k.startswith("eval_")}):
            points = [(t, row[name]) for t, row in zip(tokens, rows, strict=True) if name in row]
            base = base_accuracy(run_dir, name)
            points = ([(0.0, base)] if base is not None else []) + points
            axes.plot(*zip(*points, strict=True), ".-", color=f"C{color}", label=f"{run_dir.name}: {name[5:]}")
        for i in switches:
            axes.axvline(tokens[i - 1], color=f"C{color}", linestyle="--", linewidth=1)
    axes.set(title="Held-out accuracy", xlabel="million tokens generated", ylabel="accuracy")
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)


def main(argv: list[str]) -> None:
    if not argv or any(a.startswith("-") for a in argv):
        raise UserError("usage: python plot.py out/RUN [out/OTHER ...]")
    runs = {Path(a): read_steps(Path(a)) for a in argv}
    folder = Path(argv[0]) / "figures"
    panels = {
        n: p for n, p in PANELS.items() if p[1] != "eval_" or any("eval_" in k for r in runs[Path(argv[0])] for k in r)
    }
    try:
        folder.mkdir(exist_ok=True)
        for name, panel in panels.items():
            figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
            draw(axes, runs, *panel)
            figure.savefig(folder / f"{name}.png", dpi=120)
            plt.close(figure)
        figure, grid = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", squeeze=False)
        for axes, panel in zip(grid.flat, panels.values(), strict=False):
            draw(axes, runs, *panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        figure.savefig(folder / "curves.png", dpi=110)
        written = [*panels, "curves"]
        if "accuracy" in panels:
            figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
            draw_by_tokens(axes, runs)
            figure.savefig(folder / "tokens.png", dpi=120)
            written.append("tokens")
    except OSError as e:
        raise UserError(f"{folder}: cannot write the figures: {e.strerror}") from None
    print(f"wrote {', '.join(f'{folder}/{n}.png' for n in written)}")


if __name__ == "__main__":
    run(main)
