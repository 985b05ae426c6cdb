"""grader/deepscaler.py: what the strict rule and DeepScaleR's rule make equal, and where they are known to err."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from conformance import HOSTILE
from grader.text import MAX_CHARS
from reward import grade

deepscaler, strict = partial(grade, rule="deepscaler"), partial(grade, rule="strict")

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("\\text{even}", "even"),
        ("\\dfrac{1}{2}", "\\tfrac{1}{2}"),
        ("\\frac12", "1/2"),
        ("\\frac 1{72}", "\\frac{1}{72}"),
        ("0.5", "\\frac{1}{2}"),
        (".25", "0.25"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        ("\\$36", "36"),
        ("25\\%", "25"),
        ("10\\text{ cm}", "10"),
        ("x = 5", "5"),
        ("1,\\!000", "1,000"),
    ],
)
def test_strict_forgives_notation(answer, gold):
    assert strict(answer, gold) and strict(gold, answer) and deepscaler(answer, gold)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("142.0", "142"),
        ("1,008", "1008"),
        ("Even", "even"),
        ("1e3", "1000"),
        ("12 inches", "12"),
        ("5 square feet", "5 square"),
        ("\\text{(C)}", "C"),
        ("0.75", "\\frac34"),
        ("3\\frac12", "\\frac72"),
        ("7 \\text{ or } 8", "7, 8"),
        ("\\{1, 2\\}", "1,2"),
        ("(1, \\frac24)", "(1, 0.5)"),
        ("5 billion", "5000 million"),
        ("\\frac{1}{\\sqrt2}", "\\frac{\\sqrt2}{2}"),
        ("\\pi+\\pi", "2\\pi"),
        ("(x+1)^2", "x^{2}+2x+1"),
        ("3\\theta+\\theta", "4 \\theta"),
        ("\\sin^{2} x", "\\sin^2x"),
        ("(-\\infty, \\sqrt 2]", "\\left(-\\infty,\\sqrt2\\right]"),
        ("|x|+|x|", "2|x|"),
    ],
)
def test_deepscaler_forgives_more_than_strict(answer, gold):
    assert deepscaler(answer, gold) and deepscaler(gold, answer) and not strict(answer, gold)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("5", "6"),
        ("1/3", "0.333"),
        ("(1,2]", "[1,2]"),
        ("(1,2)", "(2,1)"),
        ("(1,2,3)", "(1,2)"),
        ("\\frac{12}{3}", "\\frac{1}{23}"),
        ("x+1", "x-1"),
        ("\\frac{\\pi^2-9}{9}", "\\pi^2-1"),  # one text to the original, which flattens LaTeX
        ("x = 5", "x < 5"),
        ("5\\text{ apples } and \\text{ pears}", "5"),
        ("\\sqrt{x^2}", "x"),
        ("", "5"),
    ],
)
def test_different_answers_are_refused(answer, gold):
    assert not deepscaler(answer, gold) and not deepscaler(gold, answer) and not strict(answer, gold)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("\\frac68", "\\frac34"),  # two fractions must be one string
        ("4/2", "2"),  # an integer must be written as one
        ("2^{10}", "1024"),
        ("5 million", "5000000"),
        ("\\frac{1}{3}", "0.\\overline{3}"),  # more than two letters
        ("2\\sin x\\cos x", "\\sin 2x"),
        ("a+b+c", "c+b+a"),
        ("x^{12} x", "x^{13}"),  # exponents of two digits
        ("2, 1", "1, 2"),  # lists in any order
    ],
)
def test_what_deepscaler_refuses_though_it_is_equal(answer, gold):
    assert not deepscaler(answer, gold) and grade(answer, gold)


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("1e-9", "0"),  # integers within 1e-7
        ("2.88e-19", "8.2e-19"),
        ("12345678901234567890", "12345678901234567891"),  # integers are compared as floats
        ("52_8", "528"),  # Python's float reads digits joined by _
        ("(1,234)", "1234"),  # a point taken for a number with a thousands separator
        ("2^{x+1}", "2^x+1"),  # braces dropped
        ("-3\\frac12", "-\\frac52"),  # -3+1/2
        ("7 8", "3 12"),  # 7+8
        ("Monday", "Mon"),  # units removed within words
        ("5 cm", "5 miles"),
        ("12\\text{ apples}", "12\\text{ pears}"),
        ("50\\%", "50"),
    ],
)
def test_known_false_positives_of_the_original(answer, gold):
    assert deepscaler(answer, gold)


def test_hostile_text_is_false_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for hostile in (
        *HOSTILE,
        "2^(2^(2^(2^9)))",
        "((x+y)^9)^9^9",
        "(((x+y)^9)^9)^9",
        "(9!)!",
        "x^{99}*x^{-99999}",
        "((x+1)^9+(y+2)^9)^9",
    ):
        for gold in ("6", "\\frac{x+1}{2}", "(2,1)", "\\pi"):
            assert not deepscaler(hostile, gold) and not strict(hostile, gold), hostile
    assert not list(tmp_path.iterdir())


def test_too_long_a_text_is_false():
    assert deepscaler("5" * MAX_CHARS, "5" * MAX_CHARS) and not deepscaler("5" * (MAX_CHARS + 1), "5" * (MAX_CHARS + 1))


def test_only_deepscaler_imports_sympy():
    code = "import sys, reward, grader.deepscaler as d; d.strict('1', '2'); assert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
