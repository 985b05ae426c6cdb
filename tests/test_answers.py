"""grader/: equality by kind of answer, reading, properties, hostile text, and the commands that show them."""

import json
import random
import re
import string
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from conformance import BLIND_CASES, HOSTILE, REPORTS, load_cases, load_golds, load_rows, measure, table
from grader import answers
from grader.clean import clean
from grader.parser import parse
from grader.scalars import same_scalar
from grader.text import Refused
from grader.tree import Node, describe
from grader.values import PRECISION, Evaluator, OutOfRange, Work, mpmath_at
from reward import grade, reward

ROOT_FOLDER = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"
LABELLED = SHARED / "reward"
RAW = SHARED / "data" / "raw" / "deepscaler"
LOST = (
    "\\sqrt{10^{2000}+1}-10^{1000}",
    "x<\\pi+10^{-130}",
    "\\sqrt x+10^{-200}",
)  # more digits than are compared: taken for equal
CASES = [case for case in load_cases() + load_cases(BLIND_CASES) if not set(LOST) & set(case)]
GUARD = 60  # seconds: far beyond anything that works
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine must not fail a test


def scalar(text: str) -> Node:
    (node,) = parse(clean(text))
    return node


# ---------------------------------------------------------------- labelled cases


@pytest.mark.parametrize("kind, a, b", [(kind, a, b) for equal, kind, a, b in CASES if equal])
def test_equal_answers_are_equal_both_ways(kind, a, b):
    assert grade(a, b) and grade(b, a)


@pytest.mark.parametrize("kind, a, b", [(kind, a, b) for equal, kind, a, b in CASES if not equal])
def test_different_answers_are_different_both_ways(kind, a, b):
    assert not grade(a, b) and not grade(b, a)


def graded_wrong(path: Path) -> list[tuple[str, str, bool]]:
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    score = {"answer": grade, "response": reward}
    rows = [row for row in rows if row["category"] != "ambiguous"]
    assert len(rows) > 600
    verdicts = [(r["answer"], r["gold"], bool(score[r["kind"]](r["answer"], r["gold"]))) for r in rows]
    return [verdict for verdict, row in zip(verdicts, rows, strict=True) if verdict[2] != row["equal"]]


def test_answers_after_public_reports_are_graded_as_labelled():
    assert graded_wrong(REPORTS) == []


@pytest.mark.parametrize("name, most", [("dev", 0), ("reported", 1)])  # one response of `reported` is cut off
def test_labelled_cases_of_others_are_graded_as_measured(name, most):
    path = LABELLED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"the labelled cases are not at {path}")
    wrong = graded_wrong(path)
    assert len(wrong) <= most
    assert not [w for w in wrong if w[2]], "a false positive teaches the model to be wrong"


@pytest.mark.parametrize(
    "answer, gold, equal",
    [
        ("6.6261e-34", "6.63e-34", True),
        ("6.625\\times10^{-34}", "6.63e-34", True),
        ("6.6349e-34", "6.63\\times 10^{-34}\\text{ J s}", True),
        ("6.635e-34", "6.63e-34", False),  # rounds half up to 6.64
        ("6.6e-34", "6.63e-34", False),  # fewer digits than the gold has
        ("1.04e5", "1.0e5", False),  # agrees to the digits, but is off by 4%
        ("-6.6261e-34", "6.63e-34", False),
        ("\\frac{\\sqrt2}{2}", "\\approx 0.707", True),
        ("\\arcsin(2/3)", "\\approx 0.73", True),
        ("0.708", "\\approx 0.707", False),
        ("0.7071", "0.707", False),  # nothing says that this gold is rounded
        ("\\frac13", "0.333", False),
        ("0.333", "\\frac13", False),
        ("x", "6.63e-34", False),
    ],
)
def test_rounded_gold_is_matched_to_its_own_digits(answer, gold, equal):
    assert grade(answer, gold) is equal


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text, position",
    [("1+*2", 2), ("\\frac{1}{2+", 11), ("2+\\unknown", 2), ("(1,2", 4), ("3 4", 2), ("x_", 2), ("1 \\# 2", 2)],
)
def test_a_refusal_says_where(text, position):
    with pytest.raises(Refused) as refused:
        parse(clean(text))
    assert refused.value.position == position


@pytest.mark.parametrize(
    "text, tree",
    [
        ("\\frac{1}{2}", "(mul 1 (inv 2))"),
        ("1\\frac12", "(add 1 (mul 1 (inv 2)))"),
        ("-x^2", "(mul -1 (pow x 2))"),
        ("\\sin^2 2x", "(pow (fn sin (mul 2 x)) 2)"),
        ("(1,2]", "(seq ( ] 1 2)"),
        ("5\\text{ kg}\\cdot\\text{m/s}^2", "(unit 5 kg 1 m 1 s -2)"),
        ("41^\\circ 30'", "(deg (add 41 (mul 30 (inv 60))))"),
        ("\\{x\\in\\mathbb{R} : x\\ne 1\\}", "(builder (rel ∈ x mathbb(R)) (rel ≠ x 1))"),
        ("0.1\\overline{6}", "(add 1/10 (mul 6 (inv 90)))"),
    ],
)
def test_trees_are_as_a_reader_expects(text, tree):
    assert [describe(item) for item in parse(clean(text))] == [tree]


@pytest.mark.parametrize(
    "gold, reason",
    [
        ("", "empty"),
        ("\\frac{1}{0}", "a power of zero"),
        ("\\frac{1}{2}}", "cannot read on from here at '}'"),
        ("9^{9^{9^9}}", "too l"),
        ("x" * 3000, "longer than 2000"),
        ("1+\\frac12+\\ldots+\\frac17", "an ellipsis in a formula"),
        ("1+1=3", "its sides differ"),
        ("\\text{Cathy can win if and only if n is even}", "a sentence"),
        ("n \\text{ is even}", "may change the meaning"),
    ],
)
def test_ungradable_golds_are_named_with_the_reason(gold, reason):
    assert reason in answers.refusal(gold)


@pytest.mark.parametrize("gold", ["7", "\\text{yes}", "x^2+1", "(-\\infty,2)", "\\{1\\pm\\sqrt2\\}", "\\approx 3.1"])
def test_gradable_golds_are_not_refused(gold):
    assert answers.refusal(gold) is None


# ---------------------------------------------------------------- the same number, the same function


def expressions() -> st.SearchStrategy[str]:
    atom = st.sampled_from(["x", "y", "2", "3", "7", "\\frac{1}{3}", "x^2", "\\pi"])
    grown = lambda inner: st.builds("({}{}{})".format, inner, st.sampled_from(["+", "-", "*"]), inner)  # noqa: E731
    return st.recursive(atom, grown, max_leaves=8)


def read_by_sympy(text: str) -> sympy.Expr:
    """For our own strings, never for an answer."""
    names = {"sympy": sympy, "x": sympy.Symbol("x"), "y": sympy.Symbol("y"), "pi": sympy.pi}
    return eval(text.replace("\\frac{1}{3}", "sympy.Rational(1,3)").replace("^", "**").replace("\\pi", "pi"), names)


@settings(UNTIMED, max_examples=150)
@given(expressions(), expressions())
def test_polynomials_are_equal_where_sympy_says_so(a, b):
    difference = read_by_sympy(a) - read_by_sympy(b)
    assert same_scalar(scalar(a), scalar(b), Work()) == (sympy.expand(difference) == 0)
    assert same_scalar(scalar(a), scalar(f"{a}+0"), Work())


@pytest.mark.parametrize(
    "text",
    ["\\sin^2 x+\\cos^2 x-1", "\\sin 3x-3\\sin x+4\\sin^3 x", "\\tan\\frac{\\pi}{3}\\cdot\\cot\\frac{\\pi}{3}-1",
     "\\cosh^2 x-\\sinh^2 x-1", "e^{ix}-\\cos x-i\\sin x", "e^{i\\pi}+1", "2^{n+3}-8\\cdot2^n", "e^{-t/RC}e^{t/RC}-1",
     "\\cos 60^\\circ-\\frac12", "6^n-2^n3^n", "(\\frac{4}{9})^n-2^{2n}3^{-2n}", "3^{10^7}-9^{5\\cdot10^6}",
     "\\sec^2 x-\\tan^2 x-1"],
)  # fmt: skip
def test_identities_vanish(text):
    assert grade(text, "0") and grade("0", text)


@pytest.mark.parametrize(
    "text", ["\\sin 2x-2\\sin x", "e^{x}-e^{-x}", "2^{n}-2^{m}", "3^{10^7}-9^{5\\cdot10^6}-1", "\\cos 1^\\circ-1"]
)
def test_what_is_no_identity_does_not_vanish(text):
    assert not grade(text, "0") and not grade("0", text)


def reasons(a: str, b: str) -> str:
    work = Work()
    answers.equal(a, b, work)
    return "; ".join(work.reasons)


def test_what_decides_is_said():
    assert "plain numbers" in reasons("1,000", "1000.0")
    assert "exact arithmetic" in reasons("\\frac{2^{100}}{2}", "2^{99}")
    assert "equal: 90 digits" in reasons("9^{10^6}", "3^{2\\cdot10^6}")
    assert "equal: 90 digits" in reasons("\\sin 15^\\circ", "\\frac{\\sqrt6-\\sqrt2}{4}")
    assert "equal: 90 digits, at 4 points" in reasons("\\ln x^3", "3\\ln x")
    assert "different: 1174 digits" in reasons("\\sqrt2+10^{-500}", "\\sqrt2")
    assert "different: exact arithmetic" in reasons("x^2", "x^3")


@pytest.mark.parametrize(
    "a, b, equal",
    [
        ("\\sqrt{10^{100}+1}-10^{50}", "\\frac{1}{\\sqrt{10^{100}+1}+10^{50}}", True),  # 332 bits cancel
        ("\\sqrt{10^{100}+1}-10^{50}", "0", False),
        ("\\sqrt{10^{100}+1}-10^{50}", "\\sqrt{10^{100}+2}-10^{50}", False),
        ("\\pi+10^{-130}", "\\pi", False),
        ("\\sqrt[3]{7+5\\sqrt2}+\\sqrt[3]{7-5\\sqrt2}", "2", True),
    ],
)
def test_cancellation_is_met_with_more_digits(a, b, equal):
    assert grade(a, b) is equal and grade(b, a) is equal


def test_too_long_numbers_are_not_built():
    for text in ("2^{10^{13}}", "\\frac{1}{5001!}", "9^{9^{9^9}}"):
        with pytest.raises(OutOfRange):
            Evaluator({}, Work(), None).value(scalar(text))


LETTERS = [letter for letter in string.ascii_letters if letter not in "ei"]


@pytest.mark.parametrize("letter", LETTERS)
def test_no_letter_hides_a_sign_or_a_step(letter):
    """The verdict must not depend on the name of the variable, though points are drawn by name."""
    for a, b in (("|x|", "x"), ("\\sqrt{x^2}", "x"), ("|x-20|", "20-x"), ("\\lfloor x/100\\rfloor", "0")):
        assert not grade(a.replace("x", letter), b.replace("x", letter))
    for a, b in (("\\sqrt{x^2}", "|x|"), ("|x-20|", "|20-x|"), ("\\sqrt{4x+4}", "2\\sqrt{x+1}")):
        assert grade(a.replace("x", letter), b.replace("x", letter))


@pytest.mark.parametrize("a, b", [("m", "n"), ("n", "k"), ("x", "y"), ("a", "b"), ("p", "q"), ("j", "N")])
def test_two_integers_take_every_pattern_of_parity_and_sign(a, b):
    for one, other in (
        ("(-1)^{m+n}", "-1"),
        ("(-1)^{m+n}", "1"),
        ("(-1)^{mn}", "1"),
        ("(-1)^m", "(-1)^n"),
        ("(-1)^m", "-(-1)^n"),
        ("⌊(m+n)/2⌋", "(m+n-1)/2"),
        ("|mn|", "mn"),
        ("|mn|", "-mn"),
        ("|m+n|", "|m|+|n|"),
    ):
        names = str.maketrans({"m": a, "n": b})
        assert not grade(one.translate(names), other.translate(names))
    assert grade(f"|{a}{b}|", f"|{a}|\\cdot|{b}|")


@pytest.mark.parametrize("pair", ["ab", "ac", "ad", "af", "bd", "cf", "dg", "fg"])
def test_among_many_variables_every_two_take_opposite_signs(pair):
    x, y = pair
    assert not grade(f"\\sqrt{{{x}^2{y}^2}}+a+b+c+d+f+g", f"{x}{y}+a+b+c+d+f+g")
    assert not grade(f"\\sqrt{{{x}^2{y}^2}}+a+b+c+d+f+g", f"-{x}{y}+a+b+c+d+f+g")


# ---------------------------------------------------------------- properties

GOLD_FILES = ["test_aime", "test_amc", "test_math", "test_minerva", "test_olympiad_bench", "train_aime", "train_math"]


@pytest.mark.parametrize("name", GOLD_FILES)
@pytest.mark.skipif(not RAW.exists(), reason=f"the problems are not at {RAW}")
def test_every_gradable_gold_equals_itself(name):
    golds = load_golds(RAW / f"{name}.json")
    gradable = [gold for gold in golds if answers.refusal(gold) is None]
    assert len(gradable) >= len(golds) - 5
    assert all(grade(gold, gold) for gold in gradable)
    assert all(grade(f"\\boxed{{{gold}}}", gold) for gold in gradable)
    assert all(grade(f"${gold}$", gold) for gold in gradable if "$" not in gold)


numbers = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.integers(1000, 10**9).map("{:,}".format),
    st.decimals(-1000, 1000, places=3).map(str),
    st.builds("\\frac{{{}}}{{{}}}".format, st.integers(-99, 99), st.integers(1, 99)),
    st.builds("{}/{}".format, st.integers(-99, 99), st.integers(1, 99)),
    st.builds("{}\\frac{{{}}}{{{}}}".format, st.integers(1, 9), st.integers(1, 8), st.integers(9, 12)),
    st.builds("{}\\sqrt{{{}}}".format, st.integers(-9, 9), st.integers(2, 50)),
    st.builds("{}\\%".format, st.integers(1, 99)),
    st.builds("{}^{{{}}}".format, st.integers(2, 9), st.integers(-5, 9)),
)


@settings(UNTIMED, max_examples=300)
@given(numbers, numbers)
@example("0.5", "\\frac{1}{2}")
@example("25\\%", "\\frac{1}{4}")
@example("1/3", "0.333")
def test_number_pairs_are_graded_the_same_in_both_directions(a, b):
    assert grade(a, a) and grade(b, b)
    assert grade(a, b) == grade(b, a)


@settings(UNTIMED, max_examples=300)
@given(st.fractions(-(10**6), 10**6, max_denominator=10**4), st.fractions(-1, 1, max_denominator=10**9))
def test_a_perturbed_number_is_never_equal(q, change):
    assume(change != 0)
    forms = "\\frac{{{0.numerator}}}{{{0.denominator}}}", "{0.numerator}/{0.denominator}", "\\sqrt{{3}}+{0}"
    for form in forms:
        assert not grade(form.format(q + change), form.format(q))
        assert grade(form.format(q), form.format(q))


@settings(UNTIMED, max_examples=200)
@given(st.decimals(-(10**5), 10**5, places=4), st.integers(0, 30), st.sampled_from("0123456789"))
def test_a_decimal_with_a_changed_or_added_digit_is_never_equal(value, place, digit):
    text = f"{value:f}"
    spots = [i for i, char in enumerate(text) if char.isdigit()]
    i = spots[place % len(spots)]
    for changed in (text[:i] + digit + text[i + 1 :], text + digit):
        assert grade(changed, text) == (Fraction(changed) == Fraction(text))


REWRITES = [
    lambda s: s.replace("\\frac", "\\dfrac"),
    lambda s: s.replace("\\frac", "\\tfrac"),
    lambda s: re.sub(r"(?<!\\)\)", r"\\right)", re.sub(r"(?<!\\)\(", r"\\left(", s)),  # not those of \\( \\)
    lambda s: f"${s}$",
    lambda s: f"\\boxed{{{s}}}",
    lambda s: f"\\({s}\\)",
    lambda s: f"  {s}  ",
    lambda s: f"{s}.",
    lambda s: s.replace("+", " + ").replace("-", " - ").replace(",", ", "),
    lambda s: s.replace("\\cdot", "\\times"),
    lambda s: f"\\displaystyle {s}",
    lambda s: s.replace("\\pi", "π"),
    lambda s: s.replace(",", ",\\,"),
]
PLAIN = [
    a for equal, kind, a, _ in CASES if equal and not any(c in a for c in ("$", "text", "π", "boxed", "begin", ":"))
]
UNTOUCHED = [a for a in PLAIN if not (a[0].isdigit() and "," in a)]  # not what a comma or a point may belong to


@settings(UNTIMED, max_examples=300)
@given(st.sampled_from(UNTOUCHED), st.lists(st.sampled_from(REWRITES), min_size=1, max_size=3, unique=True))
def test_harmless_latex_changes_nothing(answer, rewrites):
    written = answer
    for rewrite in rewrites:
        written = rewrite(written)
    assert grade(written, answer), written


# ---------------------------------------------------------------- hostile text


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("gold", ["6", "x=2", "(2,1)", "9^{9}", "\\frac{x+1}{2}"])
def test_hostile_answer_is_just_wrong(answer, gold):
    assert grade(answer, gold) is False


def test_code_in_an_answer_is_not_run(tmp_path):
    marker = tmp_path / "pwned"
    for code in (f"open('{marker}','w')", f"__import__('os').system('touch {marker}')", "exit()", "os._exit(1)"):
        forms = (f"eval({code!r})", f"\\text{{{code}}}", f"x={code}", f"({code},1)", f"\\frac{{{code}}}{{2}}")
        for answer in (code, *forms):
            assert grade(answer, "7") is False
            assert grade("7", answer) is False
    assert not marker.exists()


FORBIDDEN = ("open", "os.", "subprocess.", "socket.", "exec", "compile", "import", "shutil.", "ctypes.")
watched: list[str] = []
watching = False


def watch(event: str, args: tuple) -> None:
    if watching and event.startswith(FORBIDDEN):
        watched.append(event)


sys.addaudithook(watch)  # cannot be taken off again; it sees nothing while `watching` is off
MARKS = list("{}()[]|_^!+-*/=<>,;.'%$&19xei ∪√°:…~\\")
MARKS += r"\frac \sqrt \text{ 10^{ \pmod \begin{pmatrix} \\ \end{pmatrix} \{ \} \cup \log_ \sin \binom \mid".split()
MARKS += "999999 e9 mod th".split()
ATOMS = r"1  2  -3  0  \frac12  2.5  x  n  \pi  e  i  10^{40}  \infty  7\%".split("  ")
SHAPES = re.split(  # two spaces or a line apart
    r"\s{2,}",
    r"""{}+{}  ({})({})  \frac{{{}}}{{{}}}  ({})^{{{}}}  \binom{{{}}}{{{}}}  ({})!-{}  \sqrt{{{}}}-{}
    \sqrt[3]{{{}}}\cdot({})  \sin({})+{}  \ln({})-{}  \log_{{{}}}({})  |{}|-{}  \lfloor {}\rfloor+{}
    ({},{})  \{{{},{}\}}  [{},{})  {}\pm {}  {}={}  {}<{}  \arctan({})+{}  {}:{}  {}\pmod{{{}}}
    \begin{{pmatrix}}{}&{}\end{{pmatrix}}  \sum_{{k=1}}^{{{}}}({})  ({},\pm 1,\pm {})  {}\cup {}  {}\text{{ cm}}""",
)


def mutated(dice: random.Random) -> str:
    text = dice.choice(CASES)[dice.choice((2, 3))]
    for _ in range(dice.randint(1, 6)):
        i = dice.randint(0, len(text))
        text = text[:i] + dice.choice(MARKS) * dice.choice((1, 1, 1, 3, 200)) + text[i + dice.randint(0, 4) :]
    return text


def grown(dice: random.Random, depth: int = 4) -> str:
    """A random expression that can be read: what reaches the arithmetic rather than the parser."""
    if depth == 0 or dice.random() < 0.2:
        return dice.choice(ATOMS)
    a, b = grown(dice, depth - 1), grown(dice, depth - 1)
    return dice.choice(SHAPES).format(a, b)


def noise(dice: random.Random) -> str:
    return dice.randbytes(dice.randint(0, 200)).decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("make", [mutated, grown, noise, lambda dice: "".join(dice.choices(string.printable, k=60))])
def test_fuzzed_answers_neither_raise_nor_touch_anything(make):
    """`equal` may give up in the ways that `grade` expects; a RecursionError or an AttributeError would be a bug."""
    global watching
    mpmath_at(PRECISION)
    dice = random.Random(0)
    golds = ["7", "x+1", "(1,2)", "\\frac{\\pi}{2}", "(-\\infty,1)\\cup(2,3]", "x=2", "\\{1,2\\}", "3\\text{ cm}"]
    watched.clear()
    watching = True
    try:
        for _ in range(3000):
            answer, gold = make(dice), dice.choice(golds)
            assert type(grade(answer, gold)) is bool
            try:
                answers.equal(answer, gold)
            except (Refused, ZeroDivisionError):
                pass
    finally:
        watching = False
    assert watched == []


FLOODS = """
import itertools
from grader import answers
atoms = [" ", "1 ", "{", "} ", "^", "\\u00a0", ", ", "\\\\", "\\\\!", "a", "$ ", "*", ".", "- ", "'", "\\\\text{", "1/",
         "th", "mod", "1e5", "1,111", "|", "\\\\left.", "[1", "\\\\over", "½", "⁴", "=", "sin", "0.", "\\n"]
for a, b in itertools.product(atoms, atoms):
    for text in ((a + b) * (1900 // len(a + b)) + "x", "7" + a * 600 + b):
        try:
            answers.equal(text, "5 cm")
        except (answers.Refused, ZeroDivisionError):
            pass
"""


def test_floods_of_anything_end():
    """No regular expression backtracks without end: one such flood of spaces once took 22 seconds."""
    command = [sys.executable, "-c", FLOODS]
    assert subprocess.run(command, cwd=ROOT_FOLDER, timeout=GUARD).returncode == 0


@settings(UNTIMED, max_examples=300)
@given(st.text(alphabet="".join(MARKS[:40]) + "ab", max_size=40), st.sampled_from(["7", "x+1", "(1,2)"]))
def test_no_text_raises_and_every_verdict_is_a_bool(answer, gold):
    assert type(grade(answer, gold)) is bool
    assert type(grade(answer, answer)) is bool
    assert grade(gold, gold) is True


def test_importing_reward_loads_no_heavy_library():
    code = "import sys, reward; print(sorted({'torch', 'sympy', 'mpmath', 'numpy', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT_FOLDER, capture_output=True, text=True, timeout=GUARD)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- commands


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], cwd=ROOT_FOLDER, capture_output=True, text=True, timeout=GUARD)


def test_explain_says_how_both_were_read_and_what_decided():
    done = run("reward.py", "--explain", "x<2 \\text{ or } x>3", "(-\\infty,2)\\cup(3,\\infty)")
    assert done.returncode == 0
    assert "(or (rel < x 2) (rel > x 3))" in done.stdout
    assert "equal: sets of real numbers, by membership\nverdict equal" in done.stdout


def test_explain_points_at_what_it_cannot_read():
    lines = run("reward.py", "--explain", "1+\\foo", "7").stdout.splitlines()
    where = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert lines[where - 1].index("\\foo") == lines[where].index("^")
    assert lines[where + 1].strip() == "not read: unknown command \\foo"
    assert lines[-1] == "verdict not equal"


HARD_TO_EXPLAIN = ["", "\x00", "9" * 5000, "\\", "1/0", "{" * 100, "😀", "\\based{8}{x}", "\\based{AB}{10}", "\\cot 0"]


@pytest.mark.parametrize("text", HARD_TO_EXPLAIN)
def test_explain_survives_what_grade_survives(text):
    assert "verdict" in answers.explain(text, "7") and "verdict" in answers.explain("7", text)


def test_explain_reads_a_gold_that_is_a_sentence_as_grading_does():
    done = run("reward.py", "--explain", "5", "The answer is $5$.")
    assert done.stdout.endswith("verdict equal\n") and grade("5", "The answer is $5$.")


def test_explain_without_two_answers_is_refused():
    done = run("reward.py", "--explain", "1")
    assert done.returncode == 2 and "usage" in done.stderr


def test_conformance_runs_beside_math_verify():
    rows = [
        {"answer": "\\frac12", "gold": "0.5", "equal": True, "hostile": False},
        {"answer": "2", "gold": "3", "equal": False, "hostile": False},
        {"answer": "open('MARKER','w')", "gold": "3", "equal": False, "hostile": True},
    ]
    results = {name: measure(name, rows) for name in ("exact", "strict", "math-verify")}
    for result in results.values():
        assert (result["right"], result["ordinary"], result["hostile_right"], result["ran"]) == (2, 2, 1, 0)
    assert table({"exact": results["exact"], "math-verify": results["math-verify"]}).count("100.0%") == 2


def test_conformance_reads_rows_of_ones_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"answer": "1", "gold": "1", "equal": True, "category": c} for c in ("number", "ambiguous", "hostile_code")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["hostile"] for row in load_rows(path)] == [False, True]


def test_conformance_lists_golds_that_cannot_be_graded(tmp_path):
    path = tmp_path / "golds.jsonl"
    path.write_text('{"answer": "7"}\n{"answer": ["1", "\\\\frac{1}{"]}\n{"final_answer": ""}\n')
    done = run("tests/conformance.py", "--golds", str(path))
    assert "'\\\\frac{1}{': expected ( or [ or { or | at '}'" in done.stdout and "'': empty" in done.stdout
    assert "4 golds, 2 not gradable, 0 gradable but not equal to themselves" in done.stdout


def test_budget_is_spent_not_waited_for():
    """A pair that costs too much is refused by count, so the verdict is the same on every machine."""
    work = Work()
    work.left = 1000
    with pytest.raises(Refused, match="work budget spent"):
        answers.equal("\\sqrt{2}^{\\sqrt{3}}+\\sin(\\sqrt 5)", "\\sqrt{2}^{\\sqrt{3}}+\\cos(\\sqrt 5)", work)
