"""Figures of files that are no run's, or are damaged: a figure or one line, never a traceback."""

import contextlib
import json
import os

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

import plot
import schedule
from configs import UserError

CONFIG = {"config": {"eval_max_len": 0, "stage_window": 8, "stage_patience": 1}}
BENCHMARKS = {"test": {"accuracy": 0.1}}
SUMMARY = {"first_context": 8, "last_context": 16, "base_first_benchmarks": BENCHMARKS, "base_last_benchmarks": {}}
DEEP = "[" * 100_000


def a_run(count=6, **changes):
    """Rows of two stages; `changes` are set in the third row, or removed from it where they are `...`."""
    rows = []
    for step in range(1, count + 1):
        row = {"step": step, "stage": step // 4, "max_response_len": 8, "reward_mean": 0.1 * step, "eval_test": 0.5}
        rows.append(row | {"response_len_mean": 9, "response_clip_ratio": 0.2, "tokens_generated": 1000})
    if changes:
        rows[2] = {name: value for name, value in (rows[2] | changes).items() if value is not ...}
    return rows


def of_all(count=6, **changes):
    return [{name: value for name, value in (row | changes).items() if value is not ...} for row in a_run(count)]


DRAWN = {  # metrics.jsonl, as rows or as text
    "a run": a_run(), "one row": a_run()[:1], "no evaluations": of_all(eval_test=...), "mixed stages": a_run(stage=7),
    "a stage that comes back": a_run(stage=0) + a_run(), "no stage": of_all(stage=...), "text": a_run(reward_mean="1"),
    "a stage of text": a_run(stage="x"), "a stage that is a list": a_run(stage=[1]), "inf": a_run(reward_mean=-1e999),
    "no reward": of_all(reward_mean=...), "nan": a_run(reward_mean=float("nan")), "huge": a_run(reward_mean=1e308),
    "a huge int": a_run(reward_mean=10**400), "tiny": of_all(reward_mean=1e-320), "all text": of_all(reward_mean="1"),
    "a list": a_run(response_clip_ratio=[1]), "true": a_run(reward_mean=True), "odd accuracy": a_run(eval_test="x"),
    "accuracies of null": of_all(eval_test=None), "no tokens": of_all(tokens_generated=...), "no context":
    a_run(max_response_len=...), "tokens of text": a_run(tokens_generated="9"), "a huge step": a_run(step=10**300),
    "a context of text": of_all(max_response_len="$\\frac{$"), "a torn end": json.dumps(a_run()[0]) + '\n{"step',
    "steps backwards": a_run()[::-1], "a long name": a_run(**{"eval_" + "x" * 10_000: 0.5}),
    "odd benchmarks": a_run(**{"eval_$\\frac{_^": 0.5, "eval_\ud800\0\n": 1, "eval_": 2}),
    "U+2028": json.dumps({**a_run()[0], "x": "\u2028"}, ensure_ascii=False),
}  # fmt: skip
NOT_METRICS = {
    "a number": ("7\n{}\n", "not a row"), "a list": ("[]\n{}\n", "not a row"), "text": ('"step"\n{}\n', "not a row"),
    "deep": (f"{DEEP}\n{{}}\n", "not a row"), "no step": (of_all(step=...), "not a row"),
    "a step of text": (of_all(step="1"), "not a row"), "a fractional step": (of_all(step=0.5), "not a row"),
    "no text": (b"\xff\xfe\n", "cannot read"), "a blank line": ('{"step": 1}\n\n{"step": 2}\n', ":2: not"),
}  # fmt: skip
NOT_DRAWN = {
    "empty": ("", "no steps yet"), "blank": ("\n", "no steps yet"), "huge steps": (of_all(step=10**300), "no steps"),
    "many stages": (a_run() * 60, "more than 100"), "many benchmarks": (a_run(**{f"eval_{i}": 1 for i in range(101)}),
    "more than 100"),
}  # fmt: skip
SUMMARIES = {  # summary.json, config.json
    "a list": ([], CONFIG), "no context": ({}, CONFIG), "a list in it": ({**SUMMARY, "last_context": []}, CONFIG),
    "no benchmarks": ({**SUMMARY, "base_first_benchmarks": 5}, CONFIG), "deep": (DEEP, CONFIG), "torn": ("{", CONFIG),
    "a list of figures": ({**SUMMARY, "base_first_benchmarks": {"test": []}}, CONFIG), "no config": (SUMMARY, None),
    "a config without settings": (SUMMARY, {}), "a config of text": (SUMMARY, "x"), "a deep config": (SUMMARY, DEEP),
    "settings that are a list": (SUMMARY, {"config": []}), "an odd one": (SUMMARY, {"config": {"eval_max_len": []}}),
}  # fmt: skip


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, list) and path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))


@pytest.fixture
def coarse(monkeypatch):
    """Figures of few pixels, not laid out, and each panel once (in curves.png): all is drawn, but soon."""
    save, subplots = Figure.savefig, plt.subplots

    def save_soon(figure, path, dpi):
        return path.touch() if path.stem in plot.PANELS else save(figure, path, dpi=20)

    monkeypatch.setattr(Figure, "savefig", save_soon)
    monkeypatch.setattr(plt, "subplots", lambda *args, figsize, layout: subplots(*args, figsize=figsize))


def drawn(run_dir, *others):
    plot.main([str(run_dir), *map(str, others)])
    names = {path.name for path in (run_dir / "figures").iterdir()}
    assert names >= {"reward.png", "length.png", "clip_ratio.png", "curves.png"}
    return names


@pytest.mark.parametrize("name", DRAWN)
def test_what_can_be_drawn_of_odd_metrics_is(tmp_path, coarse, name):
    write(tmp_path / "metrics.jsonl", DRAWN[name])
    drawn(tmp_path)
    schedule.main([str(tmp_path / "metrics.jsonl")])


@pytest.mark.parametrize("name", [*NOT_METRICS, *NOT_DRAWN])
def test_metrics_that_are_none_are_refused_in_one_line(tmp_path, name):
    content, message = (NOT_METRICS | NOT_DRAWN)[name]
    write(tmp_path / "metrics.jsonl", content)
    with pytest.raises(UserError, match=message) as refused:
        plot.main([str(tmp_path)])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=message) if name in NOT_METRICS else contextlib.nullcontext():
        schedule.main([str(tmp_path / "metrics.jsonl")])


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_that_is_none_is_refused_in_one_line(tmp_path, name):
    summary, config = SUMMARIES[name]
    write(tmp_path / "metrics.jsonl", a_run())
    write(tmp_path / "summary.json", summary)
    if config is not None:
        write(tmp_path / "config.json", config)
    with pytest.raises(UserError, match=r"summary\.json, or config\.json beside it: not a run's") as refused:
        plot.base_accuracy(tmp_path, "eval_test")
    assert "\n" not in str(refused.value)


def test_an_accuracy_that_a_summary_lacks_is_not_drawn(tmp_path, coarse):
    for benchmarks in ({}, {"test": {}}, {"test": {"accuracy": "x"}}, {"test": {"accuracy": float("nan")}}):
        write(tmp_path / "config.json", CONFIG)
        write(tmp_path / "summary.json", SUMMARY | {"base_first_benchmarks": benchmarks})
        assert plot.base_accuracy(tmp_path, "eval_test") is None
    write(tmp_path / "metrics.jsonl", a_run())
    assert drawn(tmp_path) >= {"accuracy.png", "tokens.png"}


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="not a regular file"):
        plot.main([str(tmp_path)])
    write(tmp_path / "config.json", CONFIG)
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(UserError, match="not a regular file"):
        plot.base_accuracy(tmp_path, "eval_test")


@pytest.mark.parametrize("name", ["$\\frac{a$", "_hidden", "x" * 200, "a\tb", "$", "^_{}"])
def test_a_run_may_have_any_name(tmp_path, coarse, name):
    for folder in (name, "other"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "metrics.jsonl", a_run())
    drawn(tmp_path / name, tmp_path / "other")


def test_a_run_is_named_by_its_folder_wherever_it_is_drawn_from(tmp_path, coarse, monkeypatch):
    (tmp_path / "_run").mkdir()
    write(tmp_path / "_run" / "metrics.jsonl", a_run())
    monkeypatch.chdir(tmp_path / "_run")
    figure = Figure()
    axes = figure.subplots()
    rows = plot.read_steps(plot.Path("."))
    plot.draw(axes, {plot.Path("."): rows}, "Accuracy", "eval_", "accuracy")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [" _run: test"]


def test_watch_waits_for_a_first_step_and_writes_it_again_until_it_is_interrupted(tmp_path, monkeypatch):
    def later(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in a_run(count=9)))

    pauses: list[float] = []
    (tmp_path / "metrics.jsonl").write_text("")  # no step yet
    monkeypatch.setattr(plot.time, "sleep", later)
    with pytest.raises(KeyboardInterrupt):
        plot.main([str(tmp_path), "--watch=30"])
    page = (tmp_path / "report.html").read_text()
    assert (
        pauses == [30, 30] and "Accuracy on test: 50.0% at step 1 -> 50.0% at step 9." in page and '"9 steps."' in page
    )
    for argv, message in (([], "usage"), ([str(tmp_path), "--watch=-1"], "--watch"), (["--watch=x"], "watch: 'x'")):
        with pytest.raises(UserError, match=message):
            plot.main(argv)
