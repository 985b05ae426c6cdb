"""reward.py: extraction and the worker pool; what is equal to what is in test_answers.py."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grader.pool import RewardPool
from reward import RULES, Problem, extract_answer, grade, reward, reward_fn

ROOT = Path(__file__).parents[1]
HANG_GUARD = 60  # seconds: far beyond anything that works, so that a hang fails instead of blocking the suite


def boxed(answer: str) -> str:
    return f"<think>\nsome thoughts\n</think>\n\\boxed{{{answer}}}"


# ---------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    "response, answer",
    [
        ("<think>\na\n</think>\n\\boxed{5}", "5"),
        ("<think>\\boxed{3}</think> \\boxed{4} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("<think></think>\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("<think></think>\\boxed{\\left\\{1,2\\right.}", "\\left\\{1,2\\right."),
        ("<think>{{{</think>} stray \\boxed {5}}}}", "5"),
        ("<think></think>\\boxed{4} \\boxed 5", "5"),
        ("<think></think>\\boxed 12.5.", "12.5"),
        ("<think></think>\\boxed x = 3", "x"),
        ("\ufeff<think>a\x00</think>\ud800\\boxed{5}\x00", "5"),
    ],
)
def test_last_box_after_the_thinking_is_the_answer(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    [
        "",
        "\\boxed{5}",
        "</think>\\boxed{5}",
        "</think><think>\\boxed{5}",
        "<think>\\boxed{5}",
        "<think>\\boxed{5}</think> 5",
        "<think></think>\\boxed{ }",
        "<think></think>\\boxed{{5}",
        "<think></think>\\boxed{5} and \\boxed{6",
        "<think></think>\\boxed{5} and \\boxed{}",
        "&lt;think&gt;&lt;/think&gt;\\boxed{5}",
    ],
)
def test_malformed_response_has_no_answer(response):
    assert extract_answer(response) is None
    assert reward(response, "5") == 0.0


@pytest.mark.parametrize("unit", ["\\boxed{", "{", "wait, ", "<think>", "\\", "\\boxed ", "\x00"])
def test_a_megabyte_of_anything_is_survived(unit):
    flood = unit * (2**20 // len(unit))
    assert reward(f"<think>{flood}</think>\\boxed{{5}}", "5") == 1.0
    assert reward(f"<think></think>\\boxed{{5}}{flood}\\boxed{{", "5") == 0.0


def test_any_of_several_golds_counts():
    assert reward(boxed("0.02"), ["0.01\n", "0.02\n"]) == 1.0
    assert reward(boxed("0.03"), ["0.01\n", "0.02\n"]) == 0.0


@pytest.mark.parametrize(
    "line, gold, score",
    [
        ("\\boxed{-2} \\quad \\text{and} \\quad \\boxed{1}.", "1, -2", 1.0),
        ("$x = \\boxed{3}$ or $x = \\boxed{\\frac12}$.", "\\frac12, 3", 1.0),
        ("\\(\\boxed{(1,2)}\\), \\(\\boxed{(2,1)}\\)", "(1,2), (2,1)", 1.0),
        ("\\boxed{1}\\boxed{2}\\boxed{3}", "1,2,3", 1.0),
        ("\\boxed{40} or \\boxed{42}", "42", 1.0),  # the last one counts
        ("\\boxed{42} or \\boxed{40}", "42", 0.0),
        ("\\boxed{1} and then \\boxed{2}", "1,2", 0.0),
        ("\\boxed{1}\nFinally \\boxed{2}", "1,2", 0.0),
        ("\\boxed{1}, \\boxed{}", "1", 0.0),
        ("\\boxed{1}, \\boxed{2}, \\boxed{3}", "1,2", 0.0),
    ],
)
def test_boxes_in_the_last_line_are_a_list_where_the_gold_is_one(line, gold, score):
    assert reward(f"<think>\\boxed{{9}}</think>\n{line}", gold) == score


def test_a_gold_in_a_sentence_is_its_box_or_its_last_formula():
    assert reward(boxed("6"), "The number of colorings of \\( P \\) is \\(\\boxed{6}\\).") == 1.0
    assert reward(boxed("248"), "The smallest possible value of \\(a_{10}\\) is \\(248\\).") == 1.0
    assert reward(boxed("10"), "The smallest possible value of \\(a_{10}\\) is \\(248\\).") == 0.0


# ---------------------------------------------------------------- the pool


def run_guarded(function):
    """Calls in a thread, so that a pool that never returns fails the test."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    return thread, result


def finish(thread, result):
    thread.join(HANG_GUARD)
    assert result, "the pool did not return"
    return result[0]


def problems(golds):
    return [Problem(str(i), "?", gold) for i, gold in enumerate(golds)]


def test_pool_equals_reward_in_order():
    responses = [boxed(str(i % 7)) for i in range(200)] + [
        "no box",
        boxed("3" * 5000),
        "<think>\ud800</think>\\boxed{3}",
    ]
    asked = problems(["3"] * 100 + [["2", "3"]] * 103)
    with RewardPool(workers=2) as pool:
        for _ in range(2):
            assert pool.rewards(asked, responses) == list(map(reward_fn, asked, responses))
        assert pool.rewards([], []) == []
        assert pool.timeouts == 0


def test_pool_without_workers_is_refused():
    with pytest.raises(ValueError, match="at least one worker"):
        RewardPool(workers=0)


def test_unequal_lengths_are_refused():
    with RewardPool(workers=1) as pool, pytest.raises(ValueError):
        pool.rewards([], [boxed("1")])


def test_hung_worker_is_killed_and_only_its_item_is_lost():
    with RewardPool(workers=1, timeout=0.1) as pool:
        assert pool.rewards(problems(["1"]), [boxed("1")]) == [1.0]
        stopped = pool.workers[0].process.pid
        os.kill(stopped, signal.SIGSTOP)  # from here on it answers nothing
        scores = finish(*run_guarded(lambda: pool.rewards(problems(["1"] * 10), [boxed("1")] * 10)))
        assert scores == [0.0] + [1.0] * 9
        assert pool.timeouts == 1
        assert pool.workers[0].process.pid != stopped
        assert pool.rewards(problems(["1"]), [boxed("1")]) == [1.0]


def test_worker_that_died_while_idle_costs_nothing():
    with RewardPool(workers=1) as pool:
        assert pool.rewards(problems(["1"]), [boxed("1")]) == [1.0]
        pool.workers[0].process.kill()
        pool.workers[0].process.wait()
        assert pool.rewards(problems(["1"] * 3), [boxed("1")] * 3) == [1.0] * 3
        assert pool.timeouts == 0


def test_close_ends_the_workers():
    pool = RewardPool(workers=2)
    pool.rewards(problems(["1"]), [boxed("1")])
    processes = [worker.process for worker in pool.workers]
    pool.close()
    assert all(process.poll() is not None for process in processes)


def test_workers_import_only_the_grader():
    with RewardPool(workers=1) as pool:
        pool.rewards(problems(["1"]), [boxed("1")])
        maps = Path(f"/proc/{pool.workers[0].process.pid}/maps")
        if not maps.exists():
            pytest.skip("no /proc on this system")
        assert "torch" not in maps.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent (PR_SET_PDEATHSIG)")
@pytest.mark.parametrize("stop", [False, True], ids=["idle", "busy"])
def test_workers_vanish_after_the_parent_is_killed(stop):
    """A pipe that every worker inherits as stderr reads end-of-file once all of them are gone."""
    code = """
import os, signal, sys
from grader.pool import RewardPool
pool = RewardPool(workers=2)
while not pool.workers or not all(worker.ready for worker in pool.workers):  # one may work, one still start
    assert pool.grades(["1"] * 4, ["1"] * 4) == [1.0] * 4
for worker in pool.workers if sys.argv[1] == "True" else []:
    os.kill(worker.process.pid, signal.SIGSTOP)  # as good as busy: it cannot see the end of its input
print("up", flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", code, str(stop)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert select.select([parent.stdout], [], [], HANG_GUARD)[0] and parent.stdout.readline() == b"up\n"
    parent.kill()
    parent.wait()
    assert select.select([parent.stderr], [], [], HANG_GUARD)[0], "a worker outlived its parent"
    assert parent.stderr.read() == b""


# `grade` has no known input that hangs or kills it, so a copy of the grader is broken on purpose.
BROKEN = """

_equal = equal

def equal(answer, gold, work=None):
    if answer == "hang":
        while True:
            pass
    if answer == "crash":
        import os
        os._exit(3)
    if answer == "memory":
        return bytearray(1 << 31) is None
    if answer == "regex":
        import re
        return re.fullmatch("(a*)*b", "a" * 64) is None  # in C, where no signal handler of Python's would run
    return _equal(answer, gold, work)
"""
DRIVER = """
import json, sys, time
from grader.pool import RewardPool
from reward import Problem
bad, total, timeout = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
found = [bad.get(str(i), str(i % 3)) for i in range(total)]
with RewardPool(workers=2, timeout=timeout) as pool:
    start = time.monotonic()
    problems = [Problem(str(i), "?", "1") for i in range(total)]
    scores = pool.rewards(problems, [f"<think></think>\\\\boxed{{{answer}}}" for answer in found])
    print(json.dumps({"scores": scores, "timeouts": pool.timeouts, "seconds": time.monotonic() - start}))
"""


def grade_with_broken_grader(folder: Path, bad: dict[int, str], total: int, timeout: float) -> dict:
    shutil.copytree(ROOT / "grader", folder / "grader", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "reward.py", folder)
    with (folder / "grader" / "answers.py").open("a") as f:
        f.write(BROKEN)
    (folder / "driver.py").write_text(DRIVER)
    command = [sys.executable, "driver.py", json.dumps(bad), str(total), str(timeout)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * HANG_GUARD)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(bad: dict[int, str], total: int) -> list[float]:
    return [float(i % 3 == 1 and i not in bad) for i in range(total)]


def test_ten_hanging_answers_in_a_thousand_cost_only_themselves(tmp_path):
    bad = {97 * k + 1: "hang" for k in range(10)}
    result = grade_with_broken_grader(tmp_path, bad, 1000, 0.5)
    assert result["scores"] == expected(bad, 1000)
    assert result["timeouts"] == 10


@pytest.mark.parametrize("how", ["crash", "memory", "regex"])
def test_an_item_that_kills_its_worker_scores_zero_and_is_counted(tmp_path, how):
    bad = {0: how, 1: how, 50: how, 99: how}
    result = grade_with_broken_grader(tmp_path, bad, 100, 1.0)
    assert result["scores"] == expected(bad, 100)
    assert result["timeouts"] == 4


def test_pool_grades_answers_without_responses(capsys):
    with RewardPool(workers=2) as pool:
        assert pool.grades(["0.5", "1", "2", "x" * 5000], ["\\frac12", "2", "2", "x" * 5000]) == [1.0, 0.0, 1.0, 0.0]
        assert reward(boxed("x" * 5000), "x" * 5000) == 0.0  # too long to read, there and here
        assert capsys.readouterr().err == ""
        pool.grades(["1"] * 200, ["1"] * 200, progress="grading")
    assert "grading: 100%" in capsys.readouterr().err


def test_interrupted_call_leaks_no_score_into_the_next():
    """Ctrl-C in the middle of a batch, thrown from inside the wait for a stopped worker."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    with RewardPool(workers=1) as pool:
        assert pool.grades(["1"], ["1"]) == [1.0]
        os.kill(pool.workers[0].process.pid, signal.SIGSTOP)
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                pool.grades(["1"] * 20, ["1"] * 20)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert pool.workers == []
        assert pool.grades(["3", "2", "1"], ["1"] * 3) == [0.0, 0.0, 1.0]
        assert pool.timeouts == 0


def test_another_reward_is_one_function(tmp_path):
    """`reward_fn` alone is changed: its own arguments, any number; what raises scores 0 and is counted."""
    shutil.copytree(ROOT / "grader", tmp_path / "grader", ignore=shutil.ignore_patterns("__pycache__"))
    body = "    return reward(response_text, problem.answer, problem.rule)\n"
    source = (ROOT / "reward.py").read_text()
    assert source.count(body) == 1
    own = "    return len(response_text) / len(problem.problem + problem.id) + float(problem.answer)\n"
    (tmp_path / "reward.py").write_text(source.replace(body, own))
    driver = (
        "import json; from grader.pool import RewardPool; from reward import Problem\n"
        "problems = [Problem('1', 'abc', '2'), Problem('2', 'abc', 'no number'), Problem('3', 'a', '0.5')]\n"
        "with RewardPool(workers=1) as pool:\n"
        "    print(json.dumps([pool.rewards(problems, ['xx', 'xx', 'xxx']), pool.timeouts]))"
    )
    done = subprocess.run([sys.executable, "-c", driver], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [[2.5, 0.0, 2.0], 1]
    assert "ValueError: could not convert string to float: 'no number'" in done.stderr


def test_long_responses_travel_in_several_batches():
    asked = problems(["1"] * 40)
    with RewardPool(workers=1) as pool:  # 40 MB: more than one batch may carry
        assert pool.rewards(asked, [boxed("1") + "x" * 2**20 for _ in asked]) == [1.0] * 40
        assert pool.timeouts == 0


def test_signals_to_the_whole_job_cost_no_answer():
    """Slurm and a terminal send theirs to every process of a job, also while workers start."""
    with RewardPool(workers=1) as pool:
        pool._fill()
        for _ in range(2):
            for fault in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pool.workers[0].process.pid, fault)
            assert pool.rewards(problems(["1"] * 3), [boxed("1")] * 3) == [1.0] * 3
        assert pool.timeouts == 0


def test_a_worker_that_is_killed_while_it_starts_is_replaced():
    with RewardPool(workers=1) as pool:
        pool._fill()
        pool.workers[0].process.kill()  # it may be seen before the call or in it
        assert pool.rewards(problems(["1"] * 3), [boxed("1")] * 3) == [1.0] * 3
        assert pool.timeouts == 0


def test_a_suspended_job_loses_no_answer(monkeypatch):
    """The clock of the machine has gone on for an hour, while a worker had its items and had not answered."""
    with RewardPool(workers=1) as pool:
        assert pool.rewards(problems(["1"]), [boxed("1")]) == [1.0]
        wait, looks, monotonic = pool._wait, [], time.monotonic

        def suspended():
            looks.append(0)
            if len(looks) == 1:  # the items are not even sent
                monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3600)
            wait()

        monkeypatch.setattr(pool, "_wait", suspended)
        assert pool.rewards(problems(["1"] * 20), [boxed("1")] * 20) == [1.0] * 20
        assert pool.timeouts == 0 and pool.clock < 60


# ---------------------------------------------------------------- the rules

PAIRS = [("7", "7"), ("0.25", "1/4"), ("3.00000001", "3"), ("7", "8")]
VERDICTS = {"exact": [1.0, 1.0, 0.0, 0.0], "strict": [1.0, 0.0, 0.0, 0.0], "deepscaler": [1.0, 1.0, 1.0, 0.0]}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_reaches_the_workers(rule):
    answers, golds = zip(*PAIRS, strict=True)
    assert [grade(answer, gold, rule) for answer, gold in PAIRS] == VERDICTS[rule]
    with RewardPool(workers=1, rule=rule) as pool:
        assert pool.grades(answers, golds) == VERDICTS[rule]
        assert pool.rewards(problems(golds), list(map(boxed, answers))) == VERDICTS[rule]
        assert pool.rewards(problems([["5", "1/4"]]), [boxed("0.25")]) == [VERDICTS[rule][1]]
        assert pool.timeouts == 0


@pytest.mark.parametrize("rule", RULES)
def test_only_the_workers_of_deepscaler_import_sympy_and_before_any_answer(rule):
    worker = [ROOT / "reward.py", "--worker", str(os.getpid()), "1024", "2.0", rule]
    command = [sys.executable, "-X", "importtime", *worker]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=HANG_GUARD)
    assert done.stdout == "ready\n"
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "grader" in imported and ("sympy" in imported) == (rule == "deepscaler")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("answer", ["", "\\", "\\frac{", "1/0", "((((", "\ud800", "9**9**9**9", "x" * 5000, "=", "nan"])
def test_any_text_gets_a_verdict_by_any_rule(rule, answer):
    assert not grade(answer, "5", rule) and not grade("5", answer, rule)


@pytest.mark.parametrize("error, verdict", [(MemoryError, None), (RecursionError, False), (KeyError, False)])
def test_a_rule_that_raises_finds_nothing_equal_but_memory_is_the_process_own(monkeypatch, error, verdict):
    def raises(answer, gold):
        raise error

    monkeypatch.setitem(RULES, "strict", raises)
    if verdict is None:
        with pytest.raises(error):
            grade("a", f"b {error}", "strict")
    else:
        assert grade("a", f"b {error}", "strict") is verdict


def test_worker_that_cannot_start_is_reported():
    with RewardPool(workers=1, memory_mb=20) as pool, pytest.raises(RuntimeError, match="memory_mb"):
        pool.grades(["1"], ["1"])


def test_calls_from_threads_take_turns():
    with RewardPool(workers=2) as pool:
        runs = [run_guarded(lambda k=k: pool.grades([str(k)] * 50, ["1"] * 50)) for k in range(4)]
        assert [finish(*run) for run in runs] == [[float(k == 1)] * 50 for k in range(4)]
