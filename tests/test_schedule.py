"""When the context is lengthened: on labelled curves, on noise of known size, and from the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

import schedule
from configs import UserError
from conftest import SHARED
from runs import ROOT
from schedule import collapsed, main, replay, trend, turning_point

CURVES = SHARED / "golden" / "controller"
EXPECTED = json.loads((CURVES / "expected.json").read_text())["curves"] if CURVES.is_dir() else {}


def test_a_trend_is_the_slope_over_its_standard_error():
    rng = np.random.default_rng(0)
    x = np.arange(50)
    for slope in (-0.02, 0.0, 0.05):
        y = slope * x + rng.normal(size=50)
        fit, covariance = np.polyfit(x, y, 1, cov=True)
        r = np.corrcoef((y - np.polyval(fit, x))[1:], (y - np.polyval(fit, x))[:-1])[0, 1]
        expected = fit[0] / np.sqrt(covariance[0, 0])
        assert trend(y) == pytest.approx(expected / np.sqrt((1 + max(0, r)) / (1 - max(0, r))), rel=0.1)
    assert trend(np.ones(20)) == 0 and trend(np.arange(20.0)) == np.inf


def test_wandering_noise_is_no_trend():
    """Of noise without a trend, white or wandering (AR(1), 0.6), few windows seem to rise by three standard errors."""
    rng, alarms = np.random.default_rng(1), {0.0: 0, 0.6: 0}
    for r in alarms:
        for _ in range(500):
            noise, value = [], 0.0
            for e in rng.normal(size=240):
                value = r * value + e
                noise.append(value)
            alarms[r] += trend(np.array(noise)) > schedule.RISING
    assert alarms[0.0] <= 5 and alarms[0.6] <= 10


def rows(reward, clipped, length=None, stage=1):
    length = np.full(len(reward), 1000.0) if length is None else length
    names = ("reward_mean", "response_len_mean", "response_clip_ratio")
    curves = np.stack([reward, length, clipped], axis=1).tolist()
    return [{"step": i, "stage": stage, **dict(zip(names, values, strict=True))} for i, values in enumerate(curves, 1)]


def test_a_flat_reward_with_rising_clips_is_a_turning_point_and_neither_alone_is():
    rng, n = np.random.default_rng(0), 90
    flat, rising = 0.6 + 0.02 * rng.normal(size=n), 0.4 + 0.01 * np.arange(n) + 0.02 * rng.normal(size=n)
    calm, clips = 0.05 + 0.005 * rng.normal(size=n), 0.05 + 0.004 * np.arange(n) + 0.005 * rng.normal(size=n)
    assert turning_point(rows(flat, clips), window=80, patience=5)
    assert not turning_point(rows(rising, clips), window=80, patience=5)
    assert not turning_point(rows(flat, calm), window=80, patience=5)
    assert not turning_point(rows(flat, clips)[:83], window=80, patience=5)  # too early to tell
    assert not turning_point(rows(flat, clips / 100), window=80, patience=5)  # hardly anything is cut off
    with_a_gap = rows(flat, clips)
    with_a_gap[7]["reward_mean"] = None
    assert turning_point(with_a_gap, window=80, patience=5)


def test_a_collapse_is_not_answered_with_a_longer_context():
    n = 60
    reward, clips = np.full(n, 0.6), np.full(n, 0.05)
    reward[40:], clips[40:] = np.linspace(0.6, 0.1, 20), np.linspace(0.05, 0.8, 20)
    length = np.where(np.arange(n) < 40, 1000.0, 5000.0)
    assert collapsed(rows(reward, clips, length), window=30) and not turning_point(rows(reward, clips, length), 30, 5)
    assert not collapsed(rows(reward, np.full(n, 0.05), length), window=30)  # worse, but not for length
    assert not collapsed(rows(reward, clips, length)[:41], window=30)


@pytest.mark.parametrize(
    "name", EXPECTED or [pytest.param("", marks=pytest.mark.skip("the labelled curves are not here"))]
)
def test_labelled_curves(name):
    expected, curve = EXPECTED[name], [json.loads(line) for line in (CURVES / name).read_text().splitlines()]
    result = replay(curve)
    if expected["kind"] == "should_fire":
        assert expected["fire_in"][0] <= result["fire_step"] <= expected["fire_in"][1]
        assert result["collapse_step"] is None
    else:
        assert result["fire_step"] is None  # after a collapse too
        if "alarm_in" in expected:
            assert expected["alarm_in"][0] <= result["collapse_step"] <= expected["alarm_in"][1]
        else:
            assert result["collapse_step"] is None


def stepwise_replay(rows, window, patience):
    """The controller asked after every step, as in training."""
    fires, collapse, history = [], None, []
    for row in rows:
        if not history or history[-1]["stage"] != row["stage"]:
            fires, history = [*fires, None], []
        history.append(row)
        if fires[-1] is None and turning_point(history, window, patience):
            fires[-1] = row["step"]
        if collapse is None and collapsed(history, window):
            collapse = row["step"]
    first = next((step for step in fires if step is not None), None)
    return {"fire_step": first, "collapse_step": collapse, "fire_steps": fires}


def test_a_replay_is_the_controller_asked_after_every_step():
    rng, fired, ruined = np.random.default_rng(0), 0, 0
    for _ in range(60):
        n, window, patience = (int(rng.integers(low, high)) for low, high in ((1, 120), (8, 50), (1, 8)))
        reward = 0.5 + rng.choice([0, 0.001, -0.01]) * np.arange(n) + rng.choice([0, 0.02]) * rng.normal(size=n)
        clips = 0.2 + rng.choice([0, 0.002]) * np.arange(n) + rng.choice([0, 0.01]) * rng.normal(size=n)
        history = rows(reward, clips, 1000 + 10.0 * np.arange(n))
        for row in history:
            row["stage"] += int(row["step"] > rng.choice([50, 200]))
            row["reward_mean"] = rng.choice([row["reward_mean"], None, float("nan")], p=[0.9, 0.05, 0.05])
        result = replay(history, window, patience)
        assert result == stepwise_replay(history, window, patience)
        fired, ruined = fired + (result["fire_step"] is not None), ruined + (result["collapse_step"] is not None)
    assert fired > 5 and ruined > 5


def test_a_long_replay_looks_at_each_window_once(monkeypatch):
    looks, look = [], schedule.held_back
    monkeypatch.setattr(schedule, "held_back", lambda *window: looks.append(1) or look(*window))
    noise = np.random.default_rng(0).normal(size=(2, 20_000))
    result = replay(rows(0.5 + 1e-4 * np.arange(20_000) + 0.03 * noise[0], 0.05 + 0.01 * noise[1]))
    assert result["fire_step"] is None and len(looks) == 20_000 - schedule.WINDOW + 1


@pytest.mark.parametrize("config", [
    "x", "[", "[" * 100_000, "{}", '{"config": []}', '{"config": {"stage_window": 7}}',
    '{"config": {"stage_window": "240"}}', '{"config": {"max_staleness": null}}',
    '{"config": {"stage_patience": 0}}', '{"config": {"stage_window": 1e999}}',
])  # fmt: skip
def test_settings_that_are_none_are_refused_in_one_line(tmp_path, config):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config\.json: cannot be read") as refused:
        main([str(tmp_path / "metrics.jsonl")])
    assert "\n" not in str(refused.value)


def test_a_stage_begins_its_own_history():
    clips = np.linspace(0.1, 0.3, 8)
    one, other = rows(np.full(8, 0.5), clips), rows(np.full(8, 0.5), clips, stage=2)
    assert replay(one, 8, 1)["fire_steps"] == [8]
    assert replay(one[:4] + other[4:], 8, 1) == {"fire_step": None, "collapse_step": None, "fire_steps": [None, None]}
    assert replay(one[:4] + other, 8, 1)["fire_steps"] == [None, 8]
    assert replay(one + other, 8, 1)["fire_steps"] == [8, 8]
    assert replay(one + other, 7, 1, skipped=1)["fire_steps"] == [8, 8]
    assert replay(one + other, 8, 1, skipped=1)["fire_steps"] == [None, None]


def test_many_clipped_responses_and_no_progress_are_a_turning_point_too():
    rng, n = np.random.default_rng(3), 90
    flat, noise = 0.6 + 0.02 * rng.normal(size=n), 0.01 * rng.normal(size=n)
    slope = 0.002 * np.arange(n)
    assert turning_point(rows(flat, 0.3 + noise), window=80, patience=5)
    assert not turning_point(rows(flat, 0.05 + noise), window=80, patience=5)  # few are cut off
    assert not turning_point(rows(flat + slope, 0.3 + noise), window=80, patience=5)  # still learning
    assert not turning_point(rows(flat - slope, 0.3 + noise), window=80, patience=5)  # something else is wrong
    assert not turning_point(rows(flat, 0.5 + noise - slope), window=80, patience=5)  # ever fewer are


def test_the_replay_command_ends_with_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows(np.zeros(3), np.zeros(3))) + '{"step": 4, "rew')
    done = subprocess.run([sys.executable, "schedule.py", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"fire_step": None, "collapse_step": None, "fire_steps": [None]}
    path.write_text("nonsense\n{}\n")
    for argv, message in (
        ([str(path)], "not a row of metrics"),
        ([str(tmp_path / "none")], "cannot read"),
        ([], "usage"),
    ):
        with pytest.raises(UserError, match=message):
            main(argv)
