"""reward.py and answers.py: extraction, equality by kind of answer, hostile text, the worker pool."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward import RewardPool, extract_answer, grade, reward

ROOT = Path(__file__).parents[1]
DEV_SET = Path(__file__).parents[2] / "shared" / "reward" / "dev.jsonl"
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
        "<think></think>\\boxed 5",
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


# ---------------------------------------------------------------- equality, by kind of answer

EQUAL = r"""
integer      1{,}008{,}016 | 1008016      58,500 | 58 500          025 | 25              142.0 | 142
integer      5000000 | 5 \text{ million}  2^{10} | 1024            \boxed{81} | 81       -12 | \text{-12}
fraction     \frac 59 | 5/9               \frac{3}{4} | {3 \over 4}   \frac14 | 0.25     \frac{1}{3} | 0.\overline{3}
mixed        1\frac{4}{5} | 9/5           3\frac12 | 3 1/2         -2\frac13 | -\frac73
decimal      .0000672 | 6.72e-5           1.70e4 | 17,000          4.5e33 | 45 \times 10^{32}
percent      28\% | 28                    28\% | 28 percent        \frac14 | 25\%
unit         36^\circ | 36                5 cm | 5\text{ centimeters}   864 \mbox{ inches}^2 | 864\text{ square inches}
money        \$18.90 | 18.9               \$36 | 36\text{ dollars}
base         52_8 | {52}_{8}              -37_8 | -37_{ 8 }
list         1,-2 | -2 \text{ or } 1      3, 5, 7 | \{7,5,3\}      19, 46, and 82 | 82,46,19   119,121 | 119, 121
plus-minus   1\pm\sqrt{19} | 1-\sqrt{19},1+\sqrt{19}               (0,2),(0,-2) | (0,\pm2)
tuple        (x,y)=(5,8),(8,5) | (8,5),(5,8)                       (0.5,0.6) | (\frac12,3/5)
interval     (-\infty,2)\cup(3,\infty) | (3,+\infty)\cup(-\infty,2)   x\in[-2,7] | -2\le x\le 7
matrix       \begin{pmatrix}1/2\\3\end{pmatrix} | \frac12\begin{bmatrix}1\\6\end{bmatrix}
equation     y=2x+3 | y-2x-3=0            x=5 | 5                  f(x)=\frac1x | x^{-1}    MR=SRMC | SRMC=MR
inequality   x<-3 | -x>3                  k\ge2 | 2\le k           f(2)<f(1)<f(4) | f(4)>f(1)>f(2)
radical      \frac{\sqrt3}{3} | 3^{-1/2}  \sqrt2+\sqrt3 | \sqrt{5+2\sqrt6}
radical      \frac{8}{\sqrt[3]{7}} | \frac{8\sqrt[3]{49}}{7}
constant     \pi | π                      1-\frac{1}{\mathrm{e}} | \frac{e-1}{e}
constant     -1 | e^{i\pi}                \sin 15^\circ | \frac{\sqrt6-\sqrt2}4
expression   x^2-4 | (x-2)(x+2)           \frac12(e^{at}+e^{-at}) | \cosh(at)   \tan^2 y+1 | \sec^2 y   n! | n(n-1)!
expression   \binom{2n}{n} | {2n \choose n}   \frac{100!}{2^{50}} | \frac{100!}{4^{25}}   (-1)^n | \cos(n\pi)
text         \text{Evelyn} | evelyn       \text{(C)} | C           \text{B,E} | \text{B, E}   05\!:\!00 | 05:00
"""
UNEQUAL = r"""
integer      58,500 | 58,501              3986729 | 3,986,72       -12 | -1 2 3          7 | 77
fraction     \frac9{19} | \frac{9}{1}9    \frac13 | 0.333          7 | \frac{7}{}        \frac{\pi}{4} | \frac{355}{452}
mixed        1\frac45 | 1\cdot\frac45     137\frac12 | 1371/2
decimal      2.88e-19 | 8.2e-19           0.5 | 0.05               0 | 10^{-9}           8.7\times10^8 | 8.7+10^8
percent      36 | 0.36\%                  62.5\% | 6.25
unit         125 | 124\text{ miles}       5\text{ cm} | 5\text{ m}  41.8^\circ | 41.8^\circ+1
hedge        7 | 7\text{ or }8            7 | 7 \text{ or more}    7 | 7,8               7 | 7x              7 | >7
hedge        7 | \pm7                     7 | x=7,x=8              7 | 7 \text{ if } x>0, 8 \text{ otherwise}   0 | o
base         52_8 | 52_9                  1_6 | 1_7                4210_5 | 42105
list         1,-2 | 1                     -2,1 | -2,1,3            69,84 | 69,48
plus-minus   1\pm\sqrt{19} | -1\pm\sqrt{19}                        \{1\pm\sqrt5,-2\} | \{1\pm\sqrt5,2\}
tuple        (1,-19) | (-19,1)            (6,31,-1) | (6,31)       (7,5) | [7,5]
interval     (3,4] | [3,4)                (-\infty,2)\cup(3,\infty) | (-\infty,2)   (2,\infty) | (2,3)
matrix       \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}    1 | \begin{pmatrix}1\end{pmatrix}
equation     y=2x+3 | x=2y+3              x=5 | x=-5               a=1,b=2 | a=2,b=1     2x+z=1 | 1
inequality   x<-3 | -3<x                  x>5 | x\ge5              MR=SRMC | MR>SRMC
radical      5\sqrt[3]{4} | 5\sqrt4       \sqrt2+\sqrt3 | 3.1462643699   \sqrt2 | \sqrt2+10^{-60}   \sqrt{x^2} | x
constant     \frac{\pi^2-9}{9} | \pi^2-1  e | 2.718                0 | e^{-1000}
constant     3^{2025}-2^{2025} | 3^{2025}-2^{2025}+1
expression   p-q | p+q                    5r^5 | (5r)^5            \lfloor\sqrt{n-1}\rfloor | \sqrt{n-1}   x^3 | y^3
expression   I(0)e^{-t} | I(0)e^{t}       \frac{d!}{2k(d-k)!} | \frac{d!}{2k!(d-k)!}
text         \text{CBAD} | \text{CBDA}    \text{even} | \text{not even}   \text{B,E} | B     \text{(E)} | 2.718
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """Columns of the tables above: pairs stand two or more spaces apart, after the name of their kind."""
    cells = [cell for line in table.strip().splitlines() for cell in line.split("  ")[1:] if cell.strip()]
    return [tuple(cell.strip().split(" | ")) for cell in cells]


@pytest.mark.parametrize("gold, answer", pairs(EQUAL))
def test_equal_answers_are_equal_both_ways(gold, answer):
    assert grade(answer, gold) and grade(gold, answer)


@pytest.mark.parametrize("gold, answer", pairs(UNEQUAL))
def test_unequal_answers_are_unequal_both_ways(gold, answer):
    assert not grade(answer, gold) and not grade(gold, answer)


# ---------------------------------------------------------------- hostile text

HOSTILE = [
    *("9^{9^{9^9}}", "(10^9)!", "(((9!)!)!)!", "1e999999999", "10^{10^{10}}", "e^{e^{e^{e^{e}}}}", "2^2^2^2^2^2^2"),
    *("7^{123456789}\\mod 10", "\\prod_{k=1}^{10^9} k", "(x+y+z)^{300}", "1/0", "0/0", "\\infty-\\infty", "\\frac{}{}"),
    *("(" * 5000, "{" * 5000, "-" * 5000, "|" * 1500, "5" + "!" * 1500, "9" * 1999, "1/" * 900 + "1", "\\sqrt" * 390),
    *(
        "x^{" * 49 + "}" * 49,
        "\\frac{1}{" * 60,
        "(1+" * 48 + "1" + ")!" * 48,
        "x_",
        "\\",
        "\x00",
        "\ud800",
        "^",
        "7'" * 900,
    ),
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("gold", ["6", "x=2", "(2,1)", "9^{9}", "\\frac{x+1}{2}"])
def test_hostile_answer_is_just_wrong(answer, gold):
    assert grade(answer, gold) is False


def test_code_in_an_answer_is_not_run(tmp_path):
    marker = tmp_path / "pwned"
    for code in (f"open('{marker}','w')", f"__import__('os').system('touch {marker}')", "exit()", "os._exit(1)"):
        for answer in (
            code,
            f"eval({code!r})",
            f"\\text{{{code}}}",
            f"x={code}",
            f"({code},1)",
            f"\\frac{{{code}}}{{2}}",
        ):
            assert grade(answer, "7") is False
            assert grade("7", answer) is False
    assert not marker.exists()


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=r"\{}()[]|_^!+-*/=<>,;.'%$&19xei ∪√°" + "ab", max_size=40), st.sampled_from(["7", "x+1", "(1,2)"])
)
def test_no_text_raises_and_every_verdict_is_a_bool(answer, gold):
    assert type(grade(answer, gold)) is bool
    assert type(grade(answer, answer)) is bool
    assert grade(gold, gold) is True


def test_importing_reward_loads_no_heavy_library():
    code = "import sys, reward; print(sorted({'torch', 'sympy', 'mpmath', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANG_GUARD)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not DEV_SET.exists(), reason=f"the labelled cases are not at {DEV_SET}")
def test_labelled_dev_cases_are_graded_as_measured():
    cases = [json.loads(line) for line in DEV_SET.open(encoding="utf-8")]
    cases = [case for case in cases if case["category"] != "ambiguous"]
    score = {"answer": grade, "response": reward}
    wrong = [c for c in cases if bool(score[c["kind"]](c["answer"], c["gold"])) != c["equal"]]
    assert len(cases) > 1500
    assert not [c for c in wrong if not c["equal"]], "a false positive teaches the model to be wrong"
    assert len(wrong) <= 0.01 * len(cases)


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


def test_pool_equals_reward_in_order():
    responses = [boxed(str(i % 7)) for i in range(200)] + [
        "no box",
        boxed("x" * 5000),
        "<think>\ud800</think>\\boxed{3}",
    ]
    golds = ["3"] * 100 + [["2", "3"]] * 103
    with RewardPool(workers=2) as pool:
        for _ in range(2):
            assert pool.rewards(responses, golds) == [reward(r, g) for r, g in zip(responses, golds, strict=True)]
        assert pool.rewards([], []) == []
        assert pool.timeouts == 0


def test_pool_without_workers_is_refused():
    with pytest.raises(ValueError, match="at least one worker"):
        RewardPool(workers=0)


def test_unequal_lengths_are_refused():
    with RewardPool(workers=1) as pool, pytest.raises(ValueError):
        pool.rewards([boxed("1")], [])


def test_hung_worker_is_killed_and_only_its_item_is_lost():
    with RewardPool(workers=1, timeout=1.0) as pool:
        assert pool.rewards([boxed("1")], ["1"]) == [1.0]
        stopped = pool.workers[0].process.pid
        os.kill(stopped, signal.SIGSTOP)  # from here on it answers nothing
        scores = finish(*run_guarded(lambda: pool.rewards([boxed("1")] * 10, ["1"] * 10)))
        assert scores == [0.0] + [1.0] * 9
        assert pool.timeouts == 1
        assert pool.workers[0].process.pid != stopped
        assert pool.rewards([boxed("1")], ["1"]) == [1.0]


def test_worker_that_died_while_idle_costs_nothing():
    with RewardPool(workers=1) as pool:
        assert pool.rewards([boxed("1")], ["1"]) == [1.0]
        pool.workers[0].process.kill()
        pool.workers[0].process.wait()
        assert pool.rewards([boxed("1")] * 3, ["1"] * 3) == [1.0] * 3
        assert pool.timeouts == 0


def test_close_ends_the_workers():
    pool = RewardPool(workers=2)
    pool.rewards([boxed("1")], ["1"])
    processes = [worker.process for worker in pool.workers]
    pool.close()
    assert all(process.poll() is not None for process in processes)


def test_workers_import_only_the_grader():
    with RewardPool(workers=1) as pool:
        pool.rewards([boxed("1")], ["1"])
        maps = Path(f"/proc/{pool.workers[0].process.pid}/maps")
        if not maps.exists():
            pytest.skip("no /proc on this system")
        assert "torch" not in maps.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent (PR_SET_PDEATHSIG)")
@pytest.mark.parametrize("stop", [False, True], ids=["idle", "busy"])
def test_workers_vanish_after_the_parent_is_killed(stop):
    """A pipe that every worker inherits as stderr reads end-of-file once all of them are gone."""
    code = """
import os, reward, signal, sys
pool = reward.RewardPool(workers=2)
while not pool.workers or not all(worker.ready for worker in pool.workers):  # one may work, one still start
    assert pool.rewards(["<think></think>\\\\boxed{1}"] * 4, ["1"] * 4) == [1.0] * 4
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
