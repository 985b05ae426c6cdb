"""Decides whether two final answers, in LaTeX or plain text, are the same mathematical object.

`equal(answer, gold)` takes four steps, cheapest first. None of them runs text as code.
  1. `text`: plain numbers, then strings that are equal once `clean` has replaced synonyms by one spelling.
  2. `parser`: a recursive-descent parser turns tokens into `Node` trees. Notation that it does not know is refused.
  3. this file: trees are compared by type, with one function for each kind of answer.
  4. `values`: numbers and functions are compared in exact arithmetic, or at a few points to 90 digits.
Sizes are bounded before anything is computed. A work budget, counted in operations and never in seconds, decides when
to give up, so that a pair gets the same verdict on every machine. Giving up means: not equal.
Conventions: MATH's for units, percent signs and money (they may be absent); an unreduced value is judged by its exact
value; a rounded value is wrong unless the gold itself is rounded (`agrees_with_rounded`).
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from grader.parser import (
    INFINITY,
    MAX_ITEMS,
    PLUS_MINUS,
    STRUCTURES,
    SYMBOL,
    Node,
    Number,
    describe,
    literal,
    negative,
    num,
    parse,
    product,
    quotient,
    symbols,
)
from grader.sets import is_set, same_real_set
from grader.text import MAX_CHARS, Refused, clean, is_words, plain_number, squeeze, word_list
from grader.units import HEDGES, Units, measured, units_agree
from grader.values import Evaluator, Work, is_exact, proportional, real_value, same_scalar

# ---------------------------------------------------------------- lists of solutions, labels, plus-minus


def _is_scalar(node: Node) -> bool:
    return node.op not in STRUCTURES


def _resolve(node: Any, upper: bool) -> Any:
    """The tree with its signs chosen: + for ± and - for ∓ where `upper`, else the reverse."""
    if type(node) is tuple:
        return tuple(_resolve(child, upper) for child in node)
    if type(node) is not Node:
        return node
    args = _resolve(node.args, upper)
    if node.op in ("pm", "mp"):
        return args[0] if upper == (node.op == "pm") else negative(args[0])
    return Node(node.op, args)


def expand(items: Iterable[Node]) -> list[Node]:
    """One flat list of solutions: sets are opened, ± makes two items, and members of a tuple choose independently."""
    expanded: list[Node] = []
    for item in items:
        if item.op == "set":
            expanded += expand(item.args)
        elif not item.flags & PLUS_MINUS:
            expanded.append(item)
        elif item.op == "seq":
            choices = [expand([member]) for member in item.args[2]]
            if math.prod(map(len, choices)) > MAX_ITEMS:
                raise Refused("too many items")
            expanded += [Node("seq", (*item.args[:2], chosen)) for chosen in itertools.product(*choices)]
        else:
            expanded += [_resolve(item, True), _resolve(item, False)]
        if len(expanded) > MAX_ITEMS:
            raise Refused("too many items")
    return expanded


def _is_label(node: Node) -> bool:
    """Whether a node names a value, as x, x_0, f(x), (x, y) and Area do. (y, x) does not: its order may matter."""
    if node.op == "seq":
        names = [x.args[0] for x in node.args[2] if x.op == "sym"]
        return node.args[:2] == ("(", ")") and len(names) == len(node.args[2]) and names == sorted(names)
    if node.op == "ratio":
        return all(_is_scalar(part) and part.flags & SYMBOL for part in node.args)
    if node.op == "mul":  # the product ABC in \\angle ABC = 30
        return all(factor.op == "sym" and factor.args[0].isupper() for factor in node.args)
    if node.op == "text":
        return len(words := node.args[0].split()) <= 8 and HEDGES.isdisjoint(words)
    return node.op == "sym"


SOLVABLE = {"num", "const", "pow", "fact", "binom", "log", "series"}  # what makes x! = 6 a problem and no label


def _is_quantity(node: Node, in_gold: bool) -> bool:
    """Whether an expression before = names what is asked, as m+n, |AB| and \\cos\\theta do: nobody would solve for them.

    A gold `2x+z = 1` is the equation of a line, so there a sum of coordinates is no label.
    """
    if not _is_scalar(node) or not (names := symbols(node)):
        return False
    problem = any(part.op in SOLVABLE or part.args[:1] in (("ln",), ("exp",)) for part in subtrees(node))
    if in_gold:
        return not problem and not names & set("xyz")
    return not problem or (len(names) > 1 and not names & set("xyz"))


def subtrees(node: Any) -> Iterable[Node]:
    if type(node) is Node:
        yield node
    for arg in node.args if type(node) is Node else node:
        if type(arg) in (Node, tuple):
            yield from subtrees(arg)


def _unlabel(node: Node, in_gold: bool) -> tuple[Node, Node] | None:
    """(label, value) of x = 5, 5 = x, f(x) = 1/x, m+n = 12+5 = 17 or x in [0, 1]; the value of x < 3 is an interval."""
    if node.op in ("mod", "approx") and (inner := _unlabel(node.args[0], in_gold)):
        return inner[0], Node(node.op, (inner[1], *node.args[1:]))
    if node.op != "rel":
        return None
    ops, sides = node.args
    if set(ops) <= set("=≡") or ops == ("∈",):
        if _is_label(sides[0]) and not (sides[0].op == "sym" and sides[0].args[0] in symbols(sides[1:])):  # x = x^2
            rest = sides[1] if len(sides) == 2 else Node("rel", (ops[1:], sides[1:]))
            inner = _unlabel(rest, in_gold) if sides[1].op == "sym" else None  # x_1 = x_2 = 3
            return sides[0], inner[1] if inner else rest
        if len(sides) == 2 and ops != ("∈",) and sides[1].op == "sym" and sides[1].args[0] not in symbols(sides[0]):
            return sides[1], sides[0]
        constant = not any(side.flags & SYMBOL for side in sides[1:])
        if ops != ("∈",) and constant and _is_quantity(sides[0], in_gold):
            return sides[0], sides[1] if len(sides) == 2 else Node("rel", (ops[1:], sides[1:]))
        return None
    ops, sides = _ascending(ops, sides)
    if set(ops) <= set("<≤"):
        if len(ops) == 1:
            low = sides[1].op == "sym"
            ops, sides = (ops + ("<",), sides + (INFINITY,)) if low else (("<", *ops), (negative(INFINITY), *sides))
        if len(ops) == 2 and sides[1].op == "sym":
            return sides[1], Node("seq", ("[("[ops[0] == "<"], "])"[ops[1] == "<"], (sides[0], sides[2])))
    return None


def _ascending(ops: tuple, sides: tuple) -> tuple[tuple, tuple]:
    """The relations and sides of a chain; one of > and >= is reversed into one of < and <=."""
    if set(ops) <= set(">≥"):
        return tuple({">": "<", "≥": "≤"}[op] for op in reversed(ops)), tuple(reversed(sides))
    return ops, sides


def solutions(items: list[Node], in_gold: bool) -> tuple[set[Node], list[list[Node]]]:
    """(labels, readings): the items without their labels, read in each way that they can be meant.

    x = 1, 2 has one label and two values; x = 1, y = 2 is the pair (1, 2), and x_1 = 1, x_2 = 2 is that or a list.
    """
    pairs = [_unlabel(item, in_gold) for item in items]
    labels = {pair[0] for pair in pairs if pair}
    values = [pair[1] if pair else item for pair, item in zip(pairs, items, strict=True)]
    if len(labels) < 2:
        return labels, [expand(values)]
    if not all(pairs) or len(labels) < len(items) or not all(label.op == "sym" for label in labels):
        return labels, []
    ordered = [value for _, value in sorted(pairs, key=lambda pair: pair[0].args[0])]
    readings = [[Node("seq", ("(", ")", tuple(ordered)))]]
    if len({label.args[0].partition("_")[0] for label in labels}) == 1:
        readings.append(expand(values))
    return set(), readings


def match(a: list[Node], b: list[Node], work: Work) -> bool:
    """Whether each member of `a` is the same as some member of `b` and the reverse: in any order, repeated or not."""
    if len(a) == len(b) == 1:
        return same(a[0], b[0], work)
    if not a or not b:
        return work.because("nothing on one side", len(a) == len(b))
    partners = [frozenset(j for j, y in enumerate(b) if same(x, y, work)) for x in a]
    if not all(partners) or len(frozenset().union(*partners)) < len(b):
        return work.because("a member is not among the others", False)
    if len(a) == len(b) and any(partners.count(those) > len(those) for those in partners):  # 1, 1, 2 against 1, 2, 2
        return work.because("other members are repeated", False)
    return work.because("the same members in any order", True)


def same_items(a: Sequence[Node], b: Sequence[Node], work: Work) -> bool:
    """Compares two whole answers, the second the gold: as they are, then without labels, which may not differ."""
    a, b = expand(a), expand(b)
    if match(a, b, work):
        return True
    if any(is_set(item) for item in a + b) and (verdict := same_real_set(a, b, work)) is not None:
        return verdict
    (labels_a, readings_a), (labels_b, readings_b) = solutions(a, False), solutions(b, True)
    if labels_a and labels_b and labels_a != labels_b:
        return work.because("the labels differ", False)
    for values_a, values_b in itertools.product(readings_a, readings_b):
        if (values_a != a or values_b != b) and match(values_a, values_b, work):
            return work.because("without the label", True)
    return False


# ---------------------------------------------------------------- one function a kind of answer


def same(a: Node, b: Node, work: Work) -> bool:
    """Compares two items, the second of the gold, by their kind; a scalar never equals a list or a text."""
    work.spend(20)
    if {a.op, b.op} != {"based"}:
        a, b = _decimal(a), _decimal(b)
    if (
        _is_scalar(a)
        and _is_scalar(b)
        or "unit" in (a.op, b.op)
        and {a.op, b.op} <= {"unit", "ratio"} | {node.op for node in (a, b) if _is_scalar(node)}
    ):
        return same_quantity(a, b, work)
    if b.op == "approx":  # a gold that gives the exact and the rounded value
        return same(a, b.args[0], work) or a == b.args[1]
    if a.op == "approx":
        return is_rounding(*a.args, work) and same(a.args[0], b, work)
    for chain, other in ((a, b), (b, a)):
        if chain.op == "rel" and set(chain.args[0]) == {"="} and other.op != "rel" and not chain.flags & SYMBOL:
            sides = [same(side, b, work) if chain is a else same(a, side, work) for side in chain.args[1]]
            return work.because("every side of the chain", all(sides))
    if is_set(a) or is_set(b):
        verdict = same_real_set([a], [b], work)
        if verdict is not None:
            return verdict
    if a.op != b.op:
        return same_across_kinds(a, b, work)
    comparisons = {"seq": same_sequence, "set": same_set, "union": same_set, "matrix": same_matrix}
    comparisons |= {"cases": same_cases, "rel": same_relation, "mod": same_residue, "ratio": same_ratio}
    if a.op in comparisons:
        return comparisons[a.op](a, b, work)
    return work.because(f"a {_kind(a)}, part by part", a == b)


def _decimal(node: Node) -> Node:
    """24_{10} is 24."""
    return num(literal(node.args[0])) if node.op == "based" and node.args[1] == 10 else node


def _kind(node: Node) -> str:
    if _is_scalar(node):
        return "number or expression"
    return {"seq": "tuple or interval", "rel": "relation"}.get(node.op, node.op)


def same_across_kinds(a: Node, b: Node, work: Work) -> bool:
    """The few kinds that say the same: a column and a tuple, 3 : 5 and 3/5, 3 (mod 7) and 3; 52 where the gold is 52_8."""
    kinds = {a.op, b.op}
    if kinds == {"seq", "matrix"}:
        tuple_, matrix = (a, b) if a.op == "seq" else (b, a)
        entries = tuple(itertools.chain(*matrix.args))
        is_vector = len(matrix.args) in (1, len(entries)) and tuple_.args[:2] == ("(", ")")
        members = [same_scalar(x, y, work) for x, y in zip(tuple_.args[2], entries, strict=False)]
        same_entries = is_vector and len(tuple_.args[2]) == len(entries) and all(members)
        return work.because("a vector, entry by entry", same_entries)
    if b.op == "based" and a.op == "num":
        return work.because("the gold's digits without its base", a.args[0] == literal(b.args[0]))
    for special, other in ((a, b), (b, a)):
        if special.op == "ratio" and len(special.args) == 2 and _is_scalar(other):
            return work.because("a ratio as a fraction", same_scalar(quotient(*special.args), other, work))
        if special.op == "mod" and _is_scalar(other) and special.args[0].op == special.args[1].op == "num":
            reduced = 0 <= special.args[0].args[0] < special.args[1].args[0]
            return work.because("a residue", reduced and same_scalar(special.args[0], other, work))
    return work.because(f"a {_kind(a)} is not a {_kind(b)}", False)


def same_sequence(a: Node, b: Node, work: Work) -> bool:
    """Tuples, vectors and intervals: the same brackets, the same members in the same order."""
    ordered = len(a.args[2]) == len(b.args[2]) and a.args[:2] == b.args[:2]
    same_members = ordered and all(same(x, y, work) for x, y in zip(a.args[2], b.args[2], strict=True))
    return work.because("a tuple or interval, member by member", same_members)


def same_set(a: Node, b: Node, work: Work) -> bool:
    """Sets, and unions whose ends are not plain numbers: the same members in any order."""
    return match(expand(a.args), expand(b.args), work)


def same_matrix(a: Node, b: Node, work: Work) -> bool:
    """Matrices of equal shape, entry by entry; the kind of brackets does not matter."""
    shapes = [[len(row) for row in m.args] for m in (a, b)]
    pairs = zip(itertools.chain(*a.args), itertools.chain(*b.args), strict=False)
    same_entries = shapes[0] == shapes[1] and all(same_scalar(x, y, work) for x, y in pairs)
    return work.because("a matrix, entry by entry", same_entries)


def same_cases(a: Node, b: Node, work: Work) -> bool:
    """A function by cases: the same rows of value and condition, in any order."""
    rows = [[Node("seq", ("(", ")", row)) for row in node.args] for node in (a, b)]
    return match(rows[0], rows[1], work)


def same_residue(a: Node, b: Node, work: Work) -> bool:
    """Residue classes: 3 (mod 7) is 10 (mod 7)."""
    if not same(a.args[1], b.args[1], work):
        return work.because("the moduli differ", False)
    if all(_is_scalar(x) and not x.flags & SYMBOL for x in (a.args[0], b.args[0], a.args[1])):
        x, y, modulus = (Evaluator({}, work, None).value(node) for node in (a.args[0], b.args[0], a.args[1]))
        if is_exact(x) and is_exact(y) and is_exact(modulus) and modulus:
            return work.because("residues", (x - y) % modulus == 0)
    return same(a.args[0], b.args[0], work)


def same_ratio(a: Node, b: Node, work: Work) -> bool:
    """Ratios such as 3 : 4 and times of day, part by part."""
    same_parts = len(a.args) == len(b.args) and all(same(x, y, work) for x, y in zip(a.args, b.args, strict=True))
    return work.because("a ratio or time, part by part", same_parts)


def _quantity(node: Node) -> tuple[Node, Units]:
    """(number, {(unit, exponent), ...}) of 28\\%, 36° or 5 cm."""
    if node.op == "unit":
        inner, units = _quantity(node.args[0])
        return inner, units | node.args[1]
    if node.op in ("percent", "deg"):
        return node.args[0], frozenset([("%" if node.op == "percent" else "°", 1)])
    return node, frozenset()


def _symbol_unit(node: Node) -> tuple[Node, Units]:
    """Splits 5m^2 into 5 and a unit of which nothing is known, where the gold is a plain number."""
    factors = node.args if node.op == "mul" else ()
    is_unit = [_base(f).op == "sym" and _base(f).args[0] in UNIT_LETTERS for f in factors]
    numbers = [f for f, unit in zip(factors, is_unit, strict=True) if not unit]
    if numbers and any(is_unit) and not any(n.flags & SYMBOL for n in numbers):
        return product(*numbers), frozenset([("?", 1)])
    return node, frozenset()


UNIT_LETTERS = set("msghLJNW")


def _base(node: Node) -> Node:
    return _base(node.args[0]) if node.op in ("pow", "inv") else node


def same_quantity(a: Node, b: Node, work: Work) -> bool:
    """Numbers with units. A unit or % may be absent (as in MATH), known units may not differ; 25% is 25 and 1/4."""
    (a, units_a), (b, units_b) = _quantity(a), _quantity(b)
    if not b.flags & SYMBOL and a.flags & SYMBOL:
        a, units_a = _symbol_unit(a)
    if not (_is_scalar(a) and _is_scalar(b)):
        return a.op == b.op == "ratio" and (not units_a or not units_b or units_a == units_b) and same_ratio(a, b, work)
    if not units_agree(units_a, units_b):
        (size_a, units_a), (size_b, units_b) = measured(units_a), measured(units_b)
        if units_a != units_b:
            return work.because("the units differ", False)
        return same_scalar(product(a, num(size_a)), product(b, num(size_b)), work)
    if same_scalar(a, b, work):
        return True
    percent_a, percent_b = ("%", 1) in units_a, ("%", 1) in units_b
    if percent_a == percent_b:
        return False
    hundred = num(100)
    return same_scalar(a, product(b, hundred), work) if percent_a else same_scalar(product(a, hundred), b, work)


def same_relation(a: Node, b: Node, work: Work) -> bool:
    """Relations side by side (= and ≠ in either direction); one between two scalars also up to a constant factor."""
    (ops_a, sides_a), (ops_b, sides_b) = _ascending(*a.args), _ascending(*b.args)
    if ops_a != ops_b:
        return work.because("the relations differ", False)
    if all(same(x, y, work) for x, y in zip(sides_a, sides_b, strict=True)):
        return work.because("a relation, side by side", True)
    if set(ops_a) <= set("=≠") and all(same(x, y, work) for x, y in zip(sides_a, sides_b[::-1], strict=True)):
        return work.because("a relation, its sides exchanged", True)
    sides = [_quantity(side)[0] for side in sides_a + sides_b]
    if len(ops_a) > 1 or ops_a[0] not in "=≠<≤" or not all(map(_is_scalar, sides)):
        return False
    if not any(side.flags & SYMBOL for side in sides):
        return False
    left, right = (Node("add", (sides[i], negative(sides[i + 1]))) for i in (0, 2))
    return work.because("an equation or inequality up to a factor", proportional(left, right, ops_a[0] in "<≤", work))


def is_rounding(exact: Node, rounded: Node, mantissa: int, work: Work) -> bool:
    """Whether the number after ≈ is that before it, rounded to its own digits: 6.93 (mantissa 693) is 4 sqrt 3."""
    if exact.op == "rel":
        exact = exact.args[1][-1]
    (exact, _), (rounded, units) = _quantity(exact), _quantity(rounded)
    if not (_is_scalar(exact) and _is_scalar(rounded)) or (exact.flags | rounded.flags) & SYMBOL:
        return work.because("no number beside ≈", False)
    value, shown = real_value(exact, work), real_value(rounded, work)
    scale = 100 if ("%", 1) in units and abs(value - shown) * 10 > abs(shown) else 1
    close = abs(value * scale - shown) * 2 * mantissa <= abs(shown)
    return work.because("what stands after ≈ is a rounding of what stands before", close)


# ---------------------------------------------------------------- rounded golds

ROUNDED = re.compile(
    r"(?P<about>≈)?\s*(?P<sign>-?)\s*(?P<digits>\d[\d,]*\.?\d*|\.\d+)"
    r"(?:[eE](?P<e>[+-]?\d+)|\s*\*\s*10\s*\^\s*(?:\{\s*(?P<braced>[+-]?\d+)\s*\}|(?P<plain>\d)))?"
    r"(?P<unit>\s*[\ue000°%].*)?"
)


def read_rounded(cleaned: str) -> tuple[Number, Number] | None:
    """(value, what 1 in its last digit is worth) of a rounded gold (see `agrees_with_rounded`), or None."""
    match = ROUNDED.fullmatch(cleaned)
    if not match:
        return None
    digits = match["digits"].replace(",", "")
    exponent = int(match["e"] or match["braced"] or match["plain"] or 0)
    decimals = len(digits.partition(".")[2])
    if abs(exponent) > 1000 or not digits.strip("0.") or not (match["about"] or (exponent and decimals)):
        return None
    last_digit = Fraction(10) ** (exponent - decimals)
    return int(digits.replace(".", "")) * last_digit * (-1 if match["sign"] else 1), last_digit


def agrees_with_rounded(answer: Sequence[Node], gold: Sequence[Node], value: Number, last: Number, work: Work) -> bool:
    """Whether the answer, rounded half up to the last digit of a rounded gold, is that gold, and is off by at most 1%.

    `value` and `last` come from `read_rounded`. A gold is rounded when it is one number marked with `\\approx`, or in
    scientific notation with digits after the point (as in Minerva's measurements). Any other decimal is exact, because
    a price of 0.25 cannot be told from a measurement of 0.25. So 6.6261e-34 is 6.63e-34 and \\frac{\\sqrt2}2 is
    \\approx 0.707, but 5.41 is not 5.4 and 0.333 is not 1/3.
    """
    if len(answer) != 1 or len(gold) != 1:
        return False
    (a, units_a), (_, units_b) = _quantity(answer[0]), _quantity(gold[0])
    if not _is_scalar(a) or a.flags & SYMBOL or not units_agree(units_a, units_b):
        return False
    answer_value = real_value(a, work)
    excess = abs(answer_value) - abs(value)
    same_sign = (answer_value > 0) == (value > 0)
    agrees = same_sign and -last / 2 <= excess < last / 2 and abs(excess) * 100 <= abs(value)
    return work.because("the gold is rounded: agreement to its own digits", agrees)


# ---------------------------------------------------------------- the whole comparison


MAX_WORDS = 6  # of a gold that a response may be expected to repeat
BASED_GOLD = re.compile(r"(-?) ?\\based\{(\w+)\}\{-?\d+\}")  # 1A3_{16}
NEGATION = re.compile(r"(?i)\W*(?:not?|never)\W*\s[^a-z]*\d")  # `not 0`, which letters would read as n o t 0 = 0


CONDITION = re.compile(  # what follows a solution: for all x; where k is an integer; n >= 1; k in Z
    r"[\s,;(]\s*(?:\ue000[\s,(]*(?:for|where|with)\b|∀|[A-Za-z]\s*∈\s*(?:\\mathbb|[ZNRQ]\b)|[jklmnN]\s*[≥>=]\s*-?[012]\b)"
)
BUILDER = re.compile(r"\\\{(.+?)[|:](.+)\\\}")  # {pi/4 + k pi | k in Z}
HARMLESS = set(
    "for where with all any every each some arbitrary is an a are integer integers natural real positive".split()
)
HARMLESS |= set("nonnegative number numbers constant constants in and".split())
RANGE = re.compile(r"([A-Za-z]?)(?:∈(?:\\mathbb)?\{?([ZNRQ])\}?([\^_]\{?[+*≥>0]+\}?)?|[≥>]-?[012]|=[-±0-3,…]+)?")


def split_condition(cleaned: str) -> tuple[str, str]:
    """(the solution, what its parameter ranges over): (pi/4 + k pi, "Z") of `pi/4 + k pi, k in Z`; "" where none is said.

    Only ranges that are usual are taken off, of a variable that the solution has: x for x > 0 keeps its condition.
    """
    match = CONDITION.search(cleaned)
    value, condition = (cleaned[: match.start()], cleaned[match.start() :]) if match else (cleaned, "")
    if not match and (match := BUILDER.fullmatch(cleaned)) and len(match[1].strip()) > 1:
        value, condition = match.groups()
    condition = condition.replace("non-negative", "nonnegative")
    if re.match("[\\s,;(]*\ue000[\\s,(]*where", condition) and not _letters(value) & _letters(condition):
        return value.rstrip(" ,;("), ""  # 5, where x > 0
    words = re.findall("[A-Za-z]{2,}", condition.replace("\\mathbb", ""))
    formula = re.sub(r"(?<![A-Za-z\\])[A-Za-z]{2,}|\ba\b|[\s()∀\ue000\ue001]|(?<!\d),|,$", "", condition)
    range_ = RANGE.fullmatch(formula)
    if not condition or not range_ or not {word.lower() for word in words} <= HARMLESS:
        return cleaned, ""
    reals = range_[2] == "R" or not {"real", "constant", "constants", "arbitrary"}.isdisjoint(words)
    whole = (
        {"positive", "natural", "nonnegative"}.intersection(words) or range_[2] == "N" or range_[3] or ">" in formula
    )
    if not re.search(rf"(?<![A-Za-z\\]){range_[1] or '[A-Za-z]'}(?![A-Za-z])", value):
        return cleaned, ""
    if re.search("[<>≤≥≠∈]", value) and not reals:
        return cleaned, ""
    return value.rstrip(" ,;("), "R" if reals else "N" if whole or "≥" in formula else "Z"


def _letters(text: str) -> set[str]:
    return set(re.findall(r"(?<![A-Za-z\\\\])[A-Za-z](?![A-Za-z])", text))


class Reading(NamedTuple):
    """An answer after `clean`: its text without conditions, the same without spaces, whether it consists of words alone,
    and the range of its parameter.
    """

    cleaned: str
    plain: str
    words: bool
    range: str


@lru_cache(maxsize=1024)  # a problem's gold is compared with a whole group of answers
def read(text: str) -> Reading:
    cleaned = clean(text)
    words = is_words(cleaned)
    value, range_ = (cleaned, "") if words else split_condition(cleaned)
    return Reading(value, squeeze(value), words, range_)


@lru_cache(maxsize=1024)
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
    if (rounded := read_rounded(b.cleaned)) and agrees_with_rounded(items_a, items_b, *rounded, work):
        return True
    if (len(items_a) == 1) == (len(items_b) == 1):
        return False
    if len(items_a) == 1:  # the other side is a list: then 119,121 is two numbers here, and no thousands
        items_a = _items(a.cleaned, False)
    else:
        items_b = _items(gold_text, False)
    return same_items(items_a, items_b, work)


def _scalars(node: Any) -> list[Node]:
    """The outermost numbers and expressions in a tree."""
    if type(node) is Node:
        if node in (INFINITY, negative(INFINITY)):
            return []
        return [node] if _is_scalar(node) and not node.flags & PLUS_MINUS else _scalars(node.args)
    return [scalar for child in node for scalar in _scalars(child)] if type(node) is tuple else []


def refusal(gold: str) -> str | None:
    """Why no ordinary answer can be equal to a gold, unless it repeats its text; None where one can."""
    if len(gold) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    reading = read(gold)
    if not reading.cleaned:
        return "empty"
    if reading.words:
        return "a sentence" if len(reading.cleaned.split()) > MAX_WORDS and "," not in reading.cleaned else None
    try:
        items = _items(reading.cleaned.removeprefix("≈"))
        for item in items:
            if any(part.op == "text" for part in subtrees(item)) and (item.op != "text" or len(item.args[0]) > 40):
                return "words beside formulas"
            if item.op == "rel" and not item.flags & SYMBOL and not same(item, item.args[1][0], Work()):
                return "its sides differ"
        for scalar in _scalars(items):
            if "…" in symbols(scalar) and scalar.op != "sym":
                return "an ellipsis in a formula"
            if not same_scalar(scalar, Node("add", (scalar, num(0))), Work()):
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
