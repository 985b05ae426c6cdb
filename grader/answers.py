"""Decides whether two whole answers, in LaTeX or plain text, are equal.

`equal(answer, gold)` takes four steps, cheapest first. None of them runs text as code.
  1. `text`: plain numbers, then strings that are equal once `clean` has replaced synonyms by one spelling.
  2. `parser`: a recursive-descent parser turns tokens into a `tree`. Notation that it does not know is refused.
  3. this file: what is said beside the answer is taken off: labels (`x =`), the range of a parameter, a base.
  4. `compare`: trees are compared by type; in the end `scalars` compares numbers and functions, `sets` sets of reals.
Sizes are bounded before anything is computed. A work budget, counted in operations and never in seconds, decides when
to give up, so that a pair gets the same verdict on every machine. Giving up means: not equal.
Conventions: MATH's for units, percent signs and money (they may be absent); an unreduced value is judged by its exact
value; a rounded value is wrong unless the gold itself is rounded (`agrees_with_rounded`).
"""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from grader.clean import clean
from grader.compare import PLUS_MINUS, ascending, expand, is_rounding, quantity, same, same_members
from grader.parser import parse
from grader.scalars import INTEGER_NAMES, same_scalar
from grader.sets import is_set, same_real_set
from grader.text import MAX_CHARS, Refused, is_words, plain_number, squeeze, word_list
from grader.tree import (
    INFINITY,
    MINUS_INFINITY,
    Node,
    children,
    describe,
    is_scalar,
    num,
    subtrees,
    sym,
)
from grader.units import HEDGES, units_agree
from grader.values import Work

# ---------------------------------------------------------------- labels


def _is_label(node: Node) -> bool:
    """Whether a node names a value, as x, x_0, f(x), (x, y) and Area do. (y, x) does not: its order may matter."""
    if node.op == "seq":
        names = [x.args[0] for x in node.args[2] if x.op == "sym"]
        return node.args[:2] == ("(", ")") and len(names) == len(node.args[2]) and names == sorted(names)
    if node.op == "ratio":
        return all(is_scalar(part) and part.names for part in node.args)
    if node.op == "mul":  # the product ABC in \angle ABC = 30
        return all(factor.op == "sym" and factor.args[0].isupper() for factor in node.args)
    if node.op == "text":
        return len(words := node.args[0].split()) <= 8 and HEDGES.isdisjoint(words)
    return node.op == "sym"


SOLVABLE = {"num", "const", "pow", "fact", "binom", "log", "series"}  # what makes x! = 6 a problem and no label


def _is_quantity(node: Node, in_gold: bool) -> bool:
    """Whether an expression before = names what is asked, as m+n, |AB| and \\cos\\theta do: nobody would solve it.

    A gold `2x+z = 1` is the equation of a line, so there a sum of coordinates is no label.
    """
    if not is_scalar(node) or not (names := node.names):
        return False
    problem = any(part.op in SOLVABLE or part.args[:1] in (("ln",), ("exp",)) for part in subtrees(node))
    problem = problem or node in (Node("abs", (sym("x"),)), Node("abs", (sym("y"),)))  # |x| = 5 has two solutions
    if in_gold:
        return not problem and not names & set("xyz")
    return not problem or (len(names) > 1 and not names & set("xyz"))


def _unlabel(node: Node, in_gold: bool) -> tuple[Node, Node] | None:
    """(label, value) of x = 5, 5 = x, f(x) = 1/x, m+n = 12+5 = 17 or x in [0, 1]; the value of x < 3 is an interval."""
    if node.op in ("mod", "approx") and (inner := _unlabel(node.args[0], in_gold)):
        return inner[0], Node(node.op, (inner[1], *node.args[1:]))
    if node.op != "rel":
        return None
    ops, sides = node.args
    first, others = sides[0], sides[1:]
    rest = others[0] if len(others) == 1 else Node("rel", (ops[1:], others))
    if set(ops) <= set("=≡") or ops == ("∈",):
        names = frozenset().union(*(side.names for side in others))
        if _is_label(first) and not (first.op == "sym" and first.names <= names):  # x = x^2 names nothing
            inner = _unlabel(rest, in_gold) if others[0].op == "sym" else None  # x_1 = x_2 = 3
            return first, inner[1] if inner else rest
        if ops in (("=",), ("≡",)) and rest.op == "sym" and not rest.names <= first.names:
            return rest, first
        return (first, rest) if ops != ("∈",) and not names & first.names and _is_quantity(first, in_gold) else None
    ops, sides = ascending(ops, sides)
    if set(ops) <= set("<≤"):
        if len(ops) == 1:
            low = sides[1].op == "sym"
            ops, sides = (ops + ("<",), sides + (INFINITY,)) if low else (("<", *ops), (MINUS_INFINITY, *sides))
        if len(ops) == 2 and sides[1].op == "sym":
            opened, closed = "(" if ops[0] == "<" else "[", ")" if ops[1] == "<" else "]"
            return sides[1], Node("seq", (opened, closed, (sides[0], sides[2])))
    return None


def solutions(items: list[Node], in_gold: bool) -> tuple[set[Node], list[list[Node]]]:
    """(labels, readings): the items without their labels, read in each way that they can be meant.

    x = 1, 2 has one label and two values; x = 1, y = 2 is the pair (1, 2) or a list.
    """
    pairs = [_unlabel(item, in_gold) for item in items]
    labels = {pair[0] for pair in pairs if pair}
    values = [pair[1] if pair else item for pair, item in zip(pairs, items, strict=True)]
    if len(labels) < 2:
        return labels, [expand(values)]
    if not all(pairs) or len(labels) < len(items) or not all(label.op == "sym" for label in labels):
        return labels, []
    ordered = [value for _, value in sorted(pairs, key=lambda pair: pair[0].args[0])]
    return labels, [[Node("seq", ("(", ")", tuple(ordered)))], expand(values)]


def same_items(a: Sequence[Node], b: Sequence[Node], work: Work) -> bool:
    """Compares two whole answers, the second the gold: as they are, then without labels, which may not differ."""
    a, b = expand(a), expand(b)
    if same_members(a, b, work):
        return True
    if any(is_set(item) for item in a + b) and (verdict := same_real_set(a, b, work)) is not None:
        return verdict
    (labels_a, readings_a), (labels_b, readings_b) = solutions(a, False), solutions(b, True)
    if labels_a and labels_b and (labels_a != labels_b or len(labels_a) > 1):
        return work.because("the labels differ", False)
    for values_a, values_b in itertools.product(readings_a, readings_b):
        if (values_a != a or values_b != b) and same_members(values_a, values_b, work):
            return work.because("without the label", True)
    return False


# ---------------------------------------------------------------- rounded golds

ROUNDED = re.compile(
    r"(≈)?\s*-?\s*(\d[\d,]*\.?\d*|\.\d+)"
    r"([eE][+-]?\d{1,3}|\s*\*\s*10\s*\^\s*(?:\{\s*[+-]?\d{1,3}\s*\}|\d))?(?:\s*[\ue000°%].*)?"
)


def agrees_with_rounded(answer: Sequence[Node], gold: Sequence[Node], gold_text: str, work: Work) -> bool:
    """Whether the answer, rounded to the last digit of a rounded gold, is that gold, and is off by at most 1%.

    A gold is rounded when it is one number marked with `\\approx`, or in scientific notation with digits after the
    point (as in Minerva's measurements). Any other decimal is exact, because a price of 0.25 cannot be told from a
    measurement of 0.25. So 6.6261e-34 is 6.63e-34 and \\frac{\\sqrt2}2 is \\approx 0.707, but 5.41 is not 5.4 and 0.333
    is not 1/3.
    """
    match = ROUNDED.fullmatch(gold_text)
    if not match or not (match[1] or (match[3] and "." in match[2])) or len(answer) != 1 or len(gold) != 1:
        return False
    mantissa = int(re.sub("[.,]", "", match[2]))
    if not mantissa or not units_agree(quantity(answer[0])[1], quantity(gold[0])[1]):
        return False
    return is_rounding(answer[0], gold[0], mantissa, work, Fraction(1, 100))


# ---------------------------------------------------------------- conditions

CONDITION = re.compile(  # what follows a solution: for all x; where k is an integer; n >= 1; k in Z
    r"[\s,;(]\s*(?:\ue000[\s,(]*(?:for|where|with)\b|∀|[A-Za-z]\s*∈\s*(?:\\mathbb|[ZNRQ]\b)|[jklmnN]\s*[≥>=]\s*-?[012]\b)"
)
BUILDER = re.compile(r"\\\{\s*([^|:]*?\S\S)\s*[|:](.+)\\\}")  # {pi/4 + k pi | k in Z}
REAL_WORDS, NATURAL_WORDS = {"real", "constant", "constants", "arbitrary"}, {"positive", "natural", "nonnegative"}
HARMLESS = set("for where with all any every each some is an a are integer integers number numbers in and".split())
HARMLESS |= REAL_WORDS | NATURAL_WORDS
RANGE = re.compile(
    r"(?P<name>[A-Za-z]?)(?:∈(?:\\mathbb)?\{?(?P<domain>[ZNRQ])\}?(?P<positive>[\^_]\{?[+*≥>0]+\}?)?"
    r"|[≥>](?P<least>-?[012])|=(?P<list>[01],[-±0-3,]*)…)?"
)


def split_condition(cleaned: str) -> tuple[str, str]:
    """(the solution, what its parameter ranges over): (pi/4 + k pi, "Z") of `pi/4 + k pi, k in Z`; "" for nothing."""
    if match := CONDITION.search(cleaned):
        value, condition = cleaned[: match.start()].rstrip(" ,;("), cleaned[match.start() :]
    elif match := BUILDER.fullmatch(cleaned):
        value, condition = match.groups()
    else:
        return cleaned, ""
    if re.match("[\\s,;(]*\ue000[\\s,(]*where", condition) and not _letters(value) & _letters(condition):
        return value, ""  # 5, where x > 0
    range_ = parameter_range(condition.replace("non-negative", "nonnegative"), value)
    return (value, range_) if range_ else (cleaned, "")


def _letters(text: str) -> set[str]:
    """The variables of a text, from which commands and words are taken."""
    return set(filter(str.isalpha, re.sub(r"\\[A-Za-z]+|\ue000[^\ue001]*\ue001", "", text)))


def parameter_range(condition: str, value: str) -> str:
    """ "R", "Q", "Z", "N", or the least value of a variable that occurs in `value`; "" where more than that is said.

    x for x > 0 keeps its condition, and so do inequalities that hold for integers only.
    """
    words = {word.lower() for word in re.findall("[A-Za-z]{2,}", condition.replace("\\mathbb", ""))}
    formula = re.sub(r"(?<![A-Za-z\\])[A-Za-z]{2,}|\ba\b|[\s()∀\ue000\ue001]|(?<!\d),|,$", "", condition)
    match = RANGE.fullmatch(formula)
    if not match or not words <= HARMLESS or not (_letters(value) & set(match["name"] or _letters(value))):
        return ""
    if match["domain"] in ("R", "Q") or words & REAL_WORDS:
        return match["domain"] or "R"
    if re.search("[<>≤≥≠∈]", value) or (match["least"] and match["name"] not in INTEGER_NAMES):
        return ""
    if match["list"]:
        return "Z" if "±" in match["list"] else "N"
    if match["domain"] == "N" or match["positive"] or words & NATURAL_WORDS or match["least"] in ("0", "1"):
        return "N"
    return match["least"] or "Z"


# ---------------------------------------------------------------- the whole comparison

GLUED_ZERO = re.compile(r"\d,0\d\d(?!\d)")
MAX_WORDS = 6  # of a gold that a response may be expected to repeat
BASED_GOLD = re.compile(r"(-?) ?\\based\{(\w+)\}\{-?\d+\}")  # 1A3_{16}
NEGATION = re.compile(r"(?i)\W*(?:not?|never)\W*\s[^a-z]*\d")  # `not 0`, which letters would read as n o t 0 = 0


class Reading(NamedTuple):
    """An answer after `clean`: without conditions, that without spaces, whether it is words alone, its condition."""

    cleaned: str
    plain: str
    words: bool
    range: str


@lru_cache(maxsize=64)  # a problem's gold is compared with a whole group of answers
def read(text: str) -> Reading:
    cleaned = clean(text)
    words = is_words(cleaned)
    value, range_ = (cleaned, "") if words else split_condition(cleaned)
    return Reading(value, squeeze(value), words, range_)


@lru_cache(maxsize=64)
def _items(cleaned: str, merge_thousands: bool = True) -> tuple[Node, ...]:
    return tuple(parse(cleaned, merge_thousands))


def equal(answer: str, gold: str, work: Work | None = None) -> bool:
    """The whole comparison; `work` collects the reasons. Raises Refused or an arithmetic error where it cannot tell."""
    work = work or Work()
    if max(len(answer), len(gold)) > MAX_CHARS:
        return work.because(f"longer than {MAX_CHARS} characters", False)
    x, y = plain_number(answer), plain_number(gold)
    if x is not None and y is not None:
        return work.because("plain numbers", x == y)
    a, b = read(answer), read(gold)
    if not a.cleaned or not b.cleaned:
        return work.because("nothing there", False)
    if a.range and b.range and a.range != b.range:
        return work.because("the ranges of the parameter differ", False)
    if a.plain == b.plain:
        return work.because("the same text", True)
    if NEGATION.match(a.cleaned) or NEGATION.match(b.cleaned):
        return work.because("a negation", False)
    if a.words or b.words:  # letters of a word do not commute; case does not matter in words
        return work.because("words", word_list(a.cleaned) == word_list(b.cleaned) and len(a.plain) > 1)
    if (based := BASED_GOLD.fullmatch(b.cleaned)) and a.plain == based[1] + based[2]:
        return work.because("the gold's digits without its base", True)
    gold_text = b.cleaned.removeprefix("≈")  # in a gold answer it marks a rounded value, in an answer it is a hedge
    items_a, items_b = _items(a.cleaned), _items(gold_text)
    if same_items(items_a, items_b, work):
        return True
    if agrees_with_rounded(items_a, items_b, b.cleaned, work):
        return True
    if (len(items_a) == 1) == (len(items_b) == 1):
        return False
    if GLUED_ZERO.search(a.cleaned) or GLUED_ZERO.search(gold_text):  # 1,000 is not 1, 0
        return False
    # One side is a list: then 119,121 is two numbers, and no thousands.
    return same_items(_items(a.cleaned, False), _items(gold_text, False), work)


def _numbers(node: Node) -> list[Node]:
    """The outermost numbers and expressions in a tree."""
    if node in (INFINITY, MINUS_INFINITY):
        return []
    if is_scalar(node) and not node.ops & PLUS_MINUS:
        return [node]
    return [number for child in children(node.args) for number in _numbers(child)]


def refusal(gold: str) -> str | None:
    """Why no ordinary answer can be equal to a gold, unless it repeats its text; None where one can."""
    if len(gold) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    reading = read(gold)
    if not reading.cleaned:
        return "empty"
    if len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", reading.cleaned)) > MAX_WORDS and "," not in reading.cleaned:
        return "a sentence"
    if reading.words:
        return None
    try:
        items = _items(reading.cleaned.removeprefix("≈"))
        for item in items:
            if any(part.op == "text" for part in subtrees(item)) and (item.op != "text" or len(item.args[0]) > 40):
                return "words beside formulas"
            if item.op == "rel" and not item.names and not same(item, item.args[1][0], Work()):
                return "its sides differ"
        for number in itertools.chain(*map(_numbers, items)):
            if "…" in number.names and number.op != "sym":
                return "an ellipsis in a formula"
            if not same_scalar(number, Node("add", (number, num(0))), Work()):
                return "not equal to itself"
    except Refused as e:
        return str(e) if e.position is None else f"{e} at {reading.cleaned[e.position :][:20]!r}"
    except (ArithmeticError, TypeError, ValueError) as e:
        return f"undefined: {e}"
    return None


# ---------------------------------------------------------------- how a verdict came about


def explain(answer: str, gold: str) -> str:
    """Lines to print: how both were read, what was compared (in order), and the verdict."""
    lines = []
    for name, text in (("answer", answer), ("gold", gold)):
        lines.append(f"{name:8}{text.strip()}")
        cleaned = read(text).cleaned if len(text) <= MAX_CHARS else ""
        shown = cleaned.replace("\ue000", "‹").replace("\ue001", "›")
        lines.append(f"  cleaned {shown}")
        try:
            if len(text) > MAX_CHARS:
                raise Refused(f"longer than {MAX_CHARS} characters")
            lines += [f"  item    {describe(item)}" for item in _items(cleaned.removeprefix("≈"))]
        except Refused as e:
            lines.append(f"  not read: {e}")
            if e.position is not None:
                lines.insert(-1, " " * (10 + e.position) + "^")
    work = Work()
    try:
        verdict = equal(answer, gold, work)
    except (Refused, ArithmeticError, TypeError, ValueError) as e:
        verdict = work.because(f"gave up: {e}", False)
    lines += ["compared", *(f"  {reason}" for reason in work.reasons)]
    return "\n".join([*lines, f"verdict {'equal' if verdict else 'not equal'}"])
