r"""The reward rule that DeepScaleR trained with, and its strictest part alone: two rules beside `answers.equal`.

`strict` accepts equal strings after the normalisation of MATH's grader (Hendrycks et al. 2021): \frac12, \frac{1}{2}
and 1/2 are one; units, degrees, percent signs and a short `x=` may be absent; nothing is computed.

`deepscaler` accepts that, and what OpenAI's PRM800K grader does. After a second normalisation, which also drops case,
thousands separators and a list of units, two answers are equal as strings, or have equally many elements (commas
within one pair of ( ) [ ]; of more than one element the brackets must agree), and for each two elements
  - if both are fractions of integers, they are the same string: 6/8 is not 3/4;
  - if one is an integer, so is the other: 4/2 is not 2;
  - else sympy simplifies the difference to 0. With more than two distinct letters (pi has two, sin three) or an
    exponent of two digits it is not asked, and they are different.
Its known errors are kept (tests/test_rules.py): 1e-9 is 0; 52_8 is 528, as Python's float reads it; -3 1/2 is -5/2;
2^{x+1} is 2^x+1, as braces are dropped.

Where it differs from the published code (agentica-project/rllm, branch deepscaler, rewards/math_utils/utils.py): that
makes LaTeX plain text, so that \frac{\pi^2-9}{9} becomes \pi^2-9/9, and gives that to sympy's parse_expr, which runs
code. Here words, signs and fractions of integers become plain text and `grader.parser` reads the rest: i and e are
constants, decimals exact, absolute values are read, and LaTeX with equal trees is equal whatever its letters. What
cannot be read or would grow too large is different. simplify() may take long: a worker's time limit ends it.
"""

import re
from typing import Any

from grader.clean import clean
from grader.parser import parse
from grader.text import Refused
from grader.tree import Node, describe

MAX_LENGTH = 400  # of two texts that sympy compares
MAX_BITS = 4000  # of a number
MAX_FACTORIAL = 500  # 3,767 bits
MAX_DEGREE = 40  # of a power of something with variables, times the largest exponent in it


def strict(answer: str, gold: str) -> bool:
    """Whether the two are one string under the normalisation of Hendrycks et al."""
    return hendrycks(answer) == hendrycks(gold)


def deepscaler(answer: str, gold: str) -> bool:
    """Whether DeepScaleR's rule accepts the answer. Raises on text that cannot be read, as `answers.equal` does."""
    normal_answer, normal_gold = prm800k(answer), prm800k(gold)
    if hendrycks(answer) == hendrycks(gold) or normal_answer == normal_gold:
        return True
    return same_latex(normal_answer, normal_gold) or same_elements(normal_answer, normal_gold)


def hendrycks(text: str) -> str:
    r"""The normal form of MATH's grader, in its order: \sqrt 3 is not \sqrt3, as spaces go after \sqrt is mended."""
    text = text.strip()
    if match := re.search(r"^\\text\{(.+?)\}$", text):
        text = match[1].strip()
    if text.count("\\text{ ") > 1:  # no unit; the original fails here, and compares what is written
        return text
    for old, new in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")):
        text = text.replace(old, new)
    for dropped in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(dropped, "")
    text = text.partition("\\text{ ")[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    label, _, value = text.partition("=")
    if text.count("=") == 1 and len(label) <= 2:  # k=5
        text = value
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{\\])\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac([^{\\])([^{\\])", r"\\frac{\1}{\2}", text)
    return re.sub(r"^(0|-?[1-9]\d*)/(0|-?[1-9]\d*)$", r"\\frac{\1}{\2}", "1/2" if text == "0.5" else text)


UNITS = "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard".split()
SCALES = {"million": "*10^6", "billion": "*10^9", "trillion": "*10^12"}
SIGNS = {"cdot": "*", "times": "*", "left": "", "right": ""}
SIGNS |= dict(zip("alpha beta gamma theta lambda mu phi omega".split(), "αβγθλμφω", strict=True))  # one letter each


def prm800k(text: str) -> str:
    """The normal form of PRM800K's grader. Braces stay where a LaTeX command is left: they hold its arguments."""
    if match := re.search(r"^\\text\{(.+?)\}$", text):
        text = match[1]
    text = re.sub(r"\\?[%$]", "", text).replace(" or ", " , ").replace(" and ", " , ")
    text = re.sub("(?:m|b|tr)illion", lambda match: SCALES[match[0]], text)
    for unit in UNITS:  # also within words: Monday is mon
        text = re.sub(unit + r"(es)?(s)? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    if "\\" in text:
        text = plain_latex(text)
    text = re.sub("([0-9]) +([0-9])", r"\1+\2", re.sub("- *", "-", text))  # 7 3/4 is 7+3/4
    text = re.sub(r"(\\[A-Za-z]+ (?=[A-Za-z]))| ", r"\1", text).lower()  # \sin x keeps its space
    if "\\" not in text:
        text = text.replace("{", "").replace("}", "")
    return integer(text) or text


def plain_latex(text: str) -> str:
    """What the original's conversion to plain text does to words, signs, braces and fractions of integers."""
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[,;:! ]", " ", text).replace("\\{", "").replace("\\}", "")
    for command, sign in SIGNS.items():
        text = re.sub(rf"\\{command}(?![A-Za-z])", sign, text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}", r" \1/\2", text)


def without_thousands(text: str) -> str:
    while (joined := re.sub(r"(\d),(\d\d\d)(?!\d)", r"\1\2", text)) != text:
        text = joined
    return text


def integer(text: str) -> str | None:
    """The integer within 1e-7 of what Python's float reads in the text, or None."""
    try:
        value = float(without_thousands(text))
        return str(round(value)) if abs(value - round(value)) <= 1e-7 else None
    except (ValueError, OverflowError):
        return None


def same_elements(answer: str, gold: str) -> bool:
    given, wanted = elements(answer), elements(gold)
    same_brackets = len(wanted) == 1 or (answer[0], answer[-1]) == (gold[0], gold[-1])
    return same_brackets and len(given) == len(wanted) and all(map(same_element, given, wanted))


def elements(text: str) -> list[str]:
    """The elements of a tuple or interval without inner brackets; of anything else, the whole."""
    text = without_thousands(text)
    is_tuple = len(text) > 2 and re.fullmatch(r"[()\[\]][^()\[\]]*[()\[\]]", text)
    return text[1:-1].split(",") if is_tuple else [text]


def same_element(a: str, b: str) -> bool:
    fraction = r"-?\d+.?/0*[1-9]\d*.?"
    if re.fullmatch(fraction, a) and re.fullmatch(fraction, b):
        return a == b
    letters = set(filter(str.isalpha, re.sub("sqrt|frac", "", a + b)))
    if (integer(a) is None) != (integer(b) is None) or len(letters) > 2 or len(a + b) > MAX_LENGTH:
        return False
    if re.search(r"\^\{?\d(\d|\}?\^)", f"{a} {b}"):  # x^{12}, 2^3^4
        return False
    import sympy  # here, as a worker that grades by another rule need never pay for it

    (x,), (y,) = parse(clean(a)), parse(clean(b))
    return sympy.simplify(to_sympy(x) - to_sympy(y)) == 0


def same_latex(a: str, b: str) -> bool:
    """Whether two texts differ in LaTeX notation alone. A tree does not keep what is counted: 5 pens, 5 cups."""
    tree = parse(clean(a)) if "\\" in a + b else []
    return bool(tree) and tree == parse(clean(b)) and not any("(unit" in describe(item) for item in tree)


def to_sympy(node: Node) -> Any:
    """A scalar as a sympy expression. Raises Refused where it has no counterpart, or a number would be too long."""
    import sympy

    op, args = node.op, node.args
    if op == "num" and max(args[0].numerator.bit_length(), args[0].denominator.bit_length()) <= MAX_BITS:
        return sympy.Rational(args[0].numerator, args[0].denominator)
    if op == "sym" and args[0] != "∞":
        return sympy.Symbol(args[0])
    if op == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}[args[0]]
    if op == "fn":
        return getattr(sympy, args[0].replace("arc", "a"))(to_sympy(args[1]))
    if op in ("add", "mul", "inv", "log", "abs", "floor", "ceil"):
        builders = {"add": sympy.Add, "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling}
        builders |= {"inv": lambda x: 1 / x, "log": lambda base, x: sympy.log(x) / sympy.log(base)}
        return builders.get(op, sympy.Mul)(*map(to_sympy, args))
    if op in ("fact", "binom"):
        values = [to_sympy(arg) for arg in args]
        if all(v.is_Integer and 0 <= v <= MAX_FACTORIAL or not v.is_number for v in values):
            return sympy.factorial(*values) if op == "fact" else sympy.binomial(*values)
    if op == "pow":
        base, exponent = map(to_sympy, args)
        if not exponent.is_number or power_size(base, abs(sympy.N(exponent, 5))) <= 1:
            return base**exponent
    raise Refused(f"a {op} that sympy does not get")


def power_size(base: Any, exponent: Any) -> Any:
    """The size of a power as a share of what is allowed, from floats: sympy computes a power of numbers at once."""
    import sympy

    if not base.is_number:
        inner = [abs(power.exp) for power in base.atoms(sympy.Pow) if power.exp.is_Rational]
        return exponent * max(inner, default=1) / MAX_DEGREE
    return exponent * (1 + abs(sympy.log(abs(sympy.N(base, 5)), 2)) if base else 1) / MAX_BITS
