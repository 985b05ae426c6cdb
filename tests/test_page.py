"""report.html in a real browser: what it shows of a run is what the run's files say, and nothing in them runs."""

import json
import shutil
from pathlib import Path

import pytest

from configs import UserError
from page import alarms, dumps
from page.report import write_report
from plot import read_steps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'><b>bold</b> <!-- "
LONG = "so " * 8000


def rollout(problem, sample, reward, text, **changes):
    row = {"id": f"p{problem}", "sample_id": sample, "prompt": f"What is $\\frac{{{problem}}}{{2}}$?", "response": text}
    row |= {"answer": "1/2" if reward else "3", "gold": "0.5", "reward": reward, "advantage": reward - 0.5}
    return row | {"length": 10 + problem + sample, "finish_reason": "stop"} | changes


def write_run(folder: Path, steps=40, dumped=(20, 40)) -> Path:
    """A run of two stages with all of a run's files."""
    (folder / "rollouts").mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "stage": step // 25, "max_response_len": 8 + 8 * (step // 25), "reward_mean": step / 50}
        row |= {"response_len_mean": 30 - step / 4, "response_clip_ratio": 0.5 / step, "entropy": 1 / step}
        row |= {
            "mismatch_k3": 1e-7 * step,
            "solve_all": 0.1,
            "solve_none": 0.2,
            "answered_ratio": 0.9,
            "grad_norm": 0.3,
        }
        row |= {"time_rollout": 2.0, "time_train": 1.0, "time_step": 3.5, "tokens_per_second": 1000 + step}
        row |= {"eval_test": step / 60, "interval_test": [step / 70, step / 50]} if step % 10 == 0 else {}
        rows.append(row | {"updates_skipped": int(step > 7), "gpu_hours": step / 100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"accuracy": 0.25, "ci_low": 0.2, "ci_high": 0.3, "num_problems": 10, "k": 2, "tokens_mean": 9.5}
    summary = {"first_context": 8, "last_context": 24_576, "steps": steps, "gpu_hours": 0.4, "verdict": None}
    for name in ("base_first", "base_last", "final_first", "final_last"):
        summary[f"{name}_benchmarks"] = {"test": result, "all": result}
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {
        "config": {"model": "data/<b>base</b>", "reward": "exact", "mismatch_limit": 1e-3},
        "git": "abc",
        "command": "python train_grpo.py x",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for step in dumped:
        samples = [rollout(p, s, float((p + s) % 2), f"<think>\n{p} and {s}</think>so \\boxed{{3}}") for p in range(5)
                   for s in range(4)]  # fmt: skip
        samples.append(rollout(5, 0, 0.0, HOSTILE, answer=HOSTILE, gold=HOSTILE, prompt=HOSTILE, id=HOSTILE))
        cut_off = {"answer": None, "length": 8000, "finish_reason": "length"}
        samples.append(rollout(6, 0, 0.0, f"<think>\n{LONG}</think>end", **cut_off))
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text(lines)
    return folder


def page_of(*folders: Path) -> Path:
    return write_report({folder: read_steps(folder) for folder in folders})


# --------------------------------------------------------------------------------------------------- without a browser


def test_no_text_of_a_run_can_end_its_element_and_only_two_scripts_may_run(tmp_path):
    text = page_of(write_run(tmp_path / "run")).read_text()
    scripts = [part.partition(">")[0] for part in text.split("<script")[1:]]
    assert sorted(scripts) == sorted([' type="application/json" id="data"', "", "",
                                      *(f' type="text/plain" id="dump-{step}"' for step in (20, 40))])  # fmt: skip
    assert "script-src 'sha256-" in text and "unsafe-eval" not in text and HOSTILE[:20] not in text
    assert len(text) < 5e6 and "http:" not in text.partition("<body>")[0]


def test_a_page_is_made_of_what_there_is(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in ("summary.json", "config.json"):
        (folder / name).unlink()
        page_of(folder)
    shutil.rmtree(folder / "rollouts")
    page_of(folder)
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "step_000020.jsonl").write_text('{"id": "p", "samp')  # torn by a crash
    page_of(folder)


@pytest.mark.parametrize("rows", [
    [{"step": 1}], [{"step": 1, "stage": 0, "response_clip_ratio": None, "answered_ratio": None, "entropy": "x"}],
    [{"step": 5, "interval_test": 7, "eval_test": 0.5}, {"step": 6, "interval_test": [None, "x"], "eval_test": 0.5}],
])  # fmt: skip
def test_rows_of_few_columns_make_a_page(tmp_path, opened, rows):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text(
        '{"gpu_hours": [1, 2], "final_first_benchmarks": {"a": {"accuracy": [1, 2]}}}'
    )
    assert f"{rows[-1]['step']} step" in opened(page_of(tmp_path)).inner_text("#verdict")


def test_odd_values_are_shown_or_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    odd = dict(
        gold=[1, None, {"a": [float("nan")]}], answer=7, advantage="x", mismatch=float("inf"), finish_reason=None
    )
    rows = [rollout(1, 0, 1.0, "\ud800 x\0", **odd), rollout(2, 10**30, 0.0, "", gold=float("nan"), length=10**400)]
    (folder / "rollouts" / "step_000040.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text('{"config": {"mismatch_limit": NaN, "model": {"a": 1}}, "git": [1]}')
    (folder / "summary.json").write_text(
        '{"base_first_benchmarks": {"a": 1, "b": {"accuracy": NaN}}, "gpu_hours": "x"}'
    )
    assert "</html>" in page_of(folder).read_text()


@pytest.mark.parametrize("name,content,message", [
    ("summary.json", "[]", "not a JSON object"), ("config.json", "{", "config.json: cannot be read"),
    ("rollouts/step_000020.jsonl", "{}\n", "step_000020.jsonl:1: not a row of rollouts"),
    ("rollouts/step_000020.jsonl", '{"id": 1}\n', "step_000020.jsonl:1: not a row of rollouts"),
    ("rollouts/step_000020.jsonl", json.dumps(rollout(1, 0, 1.0, "x", tokens=[["a"]])) + "\n", "tokens are no list"),
    ("rollouts/step_000020.jsonl", json.dumps(rollout(1, True, 1.0, "x")) + "\n", "sample_id is no int"),
    ("rollouts/step_000020.jsonl", "[" * 100_000 + "\n", "step_000020.jsonl:1: not a row of rollouts"),
    ("rollouts/step_000020.jsonl", json.dumps(rollout(1, 0, float("nan"), "x")) + "\n", "reward is no number"),
])  # fmt: skip
def test_what_is_no_run_is_refused_in_one_line_and_the_old_page_stays(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run")
    page = page_of(folder).read_text()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        page_of(folder)
    assert "\n" not in str(refused.value) and (folder / "report.html").read_text() == page


def test_texts_fill_their_share_with_right_and_wrong_samples_of_all_problems_first(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr(dumps, "TEXT_BYTES", 2 * 700)
    assert [d.step for d in dumps.read_dumps(folder, "exact")] == [20, 40]
    for dump in dumps.read_dumps(folder, "exact"):
        samples = dump.data["samples"]
        kept = [(s["problem"], s["reward"] >= 1) for s in samples if s["text"] is not None]
        assert 8 <= dump.num_texts == len(kept) < dump.num_samples == 22 and len(set(kept)) == len(kept)
    monkeypatch.setattr(dumps, "MAX_DUMPS", 1)
    assert [d.step for d in dumps.read_dumps(folder, "exact")] == [40]
    assert '"left_out":1' in page_of(folder).read_text()


def test_why_an_answer_is_right_is_what_the_grader_says_and_a_failing_grader_is_survived(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    right = dumps.read_dumps(folder, "exact")[0].data["samples"][1]
    assert right["why"].endswith("verdict equal")
    samples = [rollout(1, 0, 1.0, "x", gold=["7", "0.5"]), rollout(2, 0, 0.0, "x", answer="0.5")]
    samples.append(rollout(3, 0, 0.0, "x", answer="9" * 3000))
    (folder / "rollouts" / "step_000020.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    one_of_two, unrewarded, too_long = (s["why"] for s in dumps.read_dumps(folder, "exact")[0].data["samples"])
    assert one_of_two.endswith("verdict equal") and "no reward: " in unrewarded and too_long is None
    monkeypatch.setattr(dumps, "EXPLAIN_SECONDS", 0.01)
    assert all(not s.get("why") for s in dumps.read_dumps(folder, "exact")[0].data["samples"])


def test_alarms_name_the_worst_step_and_its_samples():
    rows = [{"step": s, "response_clip_ratio": 0.1, "entropy": 0.5, "updates_skipped": 0} for s in range(1, 9)]
    assert alarms.alarms(rows, {"mismatch_limit": 1e-3}, [5]) == []
    rows[2] |= {"response_clip_ratio": 0.6, "answered_ratio": 0.4, "solve_all": 0.5, "solve_none": 0.45}
    rows[3] |= {"entropy": 0.01, "mismatch_sync_k3": 9e-4, "reward_timeouts": 3, "updates_skipped": 1}
    found = alarms.alarms(rows, {"mismatch_limit": 1e-3}, [2, 7])
    assert [a["step"] for a in found] == [3, 3, 3, 4, 4, 4, 4] and {a["samples"] for a in found} == {2}
    texts = " ".join(a["text"] for a in found)
    parts = ["60% of the responses were cut off, 10.0% at the end", "60% of the responses had no", "95% of the groups"]
    parts += ["entropy 0.01", "k3 0.0009", "3 answers that the grader gave up on", "1 updates skipped"]
    for part in parts:
        assert part in texts


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: make test-page")
    if CHROMIUM is None:
        pytest.skip("no chromium: make test-page")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-sync", "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a page from the disk; at the end nothing was asked of a network and nothing went wrong."""
    pages, requests, errors = [], [], []

    def open_page(path: Path, width: int = 1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("#sample p, #no-rollouts:not([hidden])", state="attached")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == [] and all(url.startswith("file://") and url.endswith(".html") for url in requests)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return page_of(write_run(tmp_path_factory.mktemp("page") / "run"))


def test_the_top_says_what_came_of_it_and_what_it_cost(report, opened):
    page = opened(report)
    assert "25.0% (20.0 to 30.0) -> 25.0%" in page.inner_text("#verdict")
    assert "40 steps, 0.4 GPU-hours" in page.inner_text("#verdict")
    assert "context 8: steps 1 to 24; context 16: steps 25 to 40" in page.inner_text("#stages")
    assert "data/<b>base</b>" in page.inner_text("#facts")
    assert "1 updates skipped" in page.inner_text("#alarm-list")
    assert page.locator("#results tr").count() == 1 + 4 and "24,576" in page.inner_text("#results")


def test_the_last_value_of_every_curve_is_that_of_the_metrics(report, opened):
    page, last = opened(report), read_steps(report.parent)[-1]
    curves = page.evaluate(
        "[...document.querySelectorAll('[data-series]')].map(c => [c.dataset.series, c.dataset.last])"
    )
    assert {"reward_mean", "eval_test", "mismatch_k3", "tokens_per_second"} <= {name for name, _ in curves}
    for name, value in curves:
        assert float(value) == pytest.approx(last[name], rel=1e-5)
    chart = page.locator(".panel svg").first
    chart.hover(position={"x": chart.bounding_box()["width"] - 8, "y": 60})
    said = page.locator(".panel .values").all_inner_texts()
    assert "step 40: 0.8" in said and "step 40: 0.6667" in said  # of reward and accuracy
    chart.hover(position={"x": chart.bounding_box()["width"] / 2, "y": 60})
    assert "step 40: 0.8" not in page.locator(".panel .values").all_inner_texts()
    page.mouse.move(0, 0)
    assert "last: 0.8" in page.locator(".panel .values").all_inner_texts()
    assert page.locator("[data-phase=train]").count() == 40


def test_filter_sort_and_arrows_find_the_sample(report, opened):
    page = opened(report)
    page.select_option("#filter", "right")
    page.select_option("#problem", label="p3")
    assert page.inner_text("#count") == "2 of 22 samples"
    page.select_option("#sort", "longest first")
    assert "p3 sample 2" in page.inner_text("#sample") and "3 and 2" in page.inner_text("#sample .thinking pre")
    page.keyboard.press("Escape")
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    assert "p3 sample 0" in page.inner_text("#sample")
    page.click("#sample button:text('next')")  # there is none
    assert "p3 sample 0" in page.inner_text("#sample")
    page.locator("#list").focus()
    page.keyboard.press("ArrowLeft")
    assert "p3 sample 2" in page.inner_text("#sample") and page.inner_text("#sample .rest") == "so \\boxed{3}"
    assert page.locator("#sample .problem math mfrac").count() == 1
    page.click("#sample .why summary")
    assert "verdict equal" in page.inner_text("#sample .why pre")
    page.select_option("#problem", "")
    page.select_option("#filter", "no answer")
    assert page.inner_text("#count") == "1 of 22 samples" and "cut off" in page.inner_text("#sample")
    page.fill("#find", "nowhere")
    assert "No sample is like that" in page.inner_text("#sample")


def test_a_hostile_response_is_text(report, opened):
    page = opened(report)
    page.fill("#find", "onerror")
    assert page.inner_text("#count") == "1 of 22 samples"
    for part in ("#sample .thinking pre", "#sample .problem", "#sample .pair"):
        assert HOSTILE.strip() in page.inner_text(part)
    assert page.evaluate("window.attacked") is None and page.locator("#sample img, #sample b b").count() == 0


def test_formulas_are_drawn_and_hostile_ones_are_not(tmp_path, opened):
    folder = write_run(tmp_path / "run")
    prompt = (
        r"it costs $5 or \$6 and $7, $x^2$ \begin{align*}y&=1\end{align*} "
        r"$\href{javascript:window.attacked=1}{x}$ $\includegraphics{http://x/y.png}$ $\def\a{\a\a}\a$ $\br{$"
    )
    (folder / "rollouts" / "step_000040.jsonl").write_text(json.dumps(rollout(1, 0, 1.0, "x", prompt=prompt)) + "\n")
    page = opened(page_of(folder))
    assert (
        page.locator("#sample .problem math msup").count() == page.locator("#sample .problem math mtable").count() == 1
    )
    assert r"it costs $5 or \$6 and $7, " in page.inner_text("#sample .problem")
    assert page.locator("#sample a, #sample img").count() == 0 and r"$\br{$" in page.inner_text(".problem")


def test_a_long_response_folds_and_unfolds(report, opened):
    page = opened(report)
    page.select_option("#filter", "cut off")
    thinking = page.locator("#sample .thinking pre")
    assert not thinking.is_visible() and page.inner_text("#sample .rest") == "end"
    page.click("#sample .thinking summary")
    assert thinking.is_visible() and len(thinking.inner_text()) > 20_000
    page.click("#sample .thinking summary")
    assert not thinking.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_does_not_scroll_sideways(report, opened, scheme):
    page = opened(report, width=390)
    page.emulate_media(color_scheme=scheme)
    for filter in ("all", "cut off"):
        page.select_option("#filter", filter)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#find", "onerror")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_runs_lie_over_each_other_and_an_alarm_leads_to_its_samples(tmp_path, report, opened):
    other = write_run(tmp_path / "other", steps=30, dumped=())
    shutil.copytree(report.parent, tmp_path / "run")
    page = opened(page_of(tmp_path / "run", other))
    assert page.inner_text("#legend") == "run other".replace(" ", "\n") or "other" in page.inner_text("#legend")
    assert page.locator("[data-series=reward_mean]").count() == 2
    bars = page.locator("[data-phase=rollout]")
    assert bars.count() == 40 and bars.last.bounding_box()["x"] < bars.first.bounding_box()["x"] + 300
    page.click("#alarm-list button >> nth=0")
    page.wait_for_function("document.getElementById('step').value === '20'")
    assert "22 samples" in page.inner_text("#count")
    assert opened(page_of(other)).is_visible("#no-rollouts")
    page = opened(page_of(other, tmp_path / "run"))  # the other one goes on for longer
    end = page.locator("[data-phase=rollout]").last.bounding_box()
    chart = page.locator(".panel svg[aria-label^='Seconds']").bounding_box()
    assert end["x"] + end["width"] < chart["x"] + 0.85 * chart["width"]


def test_a_step_without_texts_says_so_and_where_they_are(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(dumps, "MAX_WITH_TEXTS", 1)
    page = opened(page_of(write_run(tmp_path / "run")))
    assert page.locator("#step option").all_inner_texts() == ["20 (figures only)", "40"]
    page.select_option("#step", "20")
    page.wait_for_selector("#histograms h3:has-text('step 20')")
    assert "it is in rollouts/step_000020.jsonl" in page.inner_text("#sample")


def test_of_two_quick_choices_the_last_one_is_shown(report, opened):
    page = opened(report)
    page.evaluate("""() => { const s = document.getElementById("step");
        for (const step of ["20", "40"]) { s.value = step; s.onchange(); } }""")
    page.wait_for_timeout(200)
    assert page.evaluate("dump === loaded[40]") and "step 40" in page.inner_text("#histograms")


def test_tokens_are_shaded_below_the_text(tmp_path, opened):
    folder = write_run(tmp_path / "run")
    sample = rollout(
        1, 0, 1.0, "<think>a</think>b", tokens=[["a", 0.4], ["</think>", None], ["<b>", -1.5]], mismatch=0.1
    )
    (folder / "rollouts" / "step_000040.jsonl").write_text(json.dumps(sample) + "\n")
    page = opened(page_of(folder))
    page.click("summary:text('tokens, shaded')")
    spans = page.locator("details:has(summary:text('tokens, shaded')) span")
    assert spans.all_inner_texts() == ["a", "</think>", "<b>"]
    assert ["rgba" in c or "rgb(" in c for c in spans.evaluate_all("all => all.map(s => s.style.background)")] == [
        True,
        False,
        True,
    ]
    assert "mismatch k3 0.1" in page.inner_text("#sample")
