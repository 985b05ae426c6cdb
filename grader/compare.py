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
    EMPTY,
    HEDGES,
    INEQUALITIES,
    INFINITY,
    MAX_ITEMS,
    PLUS_MINUS,
    REALS,
    STRUCTURES,
    SYMBOL,
    Node,
    Number,
    describe,
    negative,
    num,
    parse,
    product,
    symbols,
)
from grader.text import MAX_CHARS, Refused, clean, is_words, plain_number, squeeze
from grader.values import PRECISION, Evaluator, Work, is_exact, proportional, real_value, same_scalar, same_value

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
    if node.op == "mul":  # the product ABC in \angle ABC = 30
        return all(factor.op == "sym" and factor.args[0].isupper() for factor in node.args)
    if node.op == "text":
        return len(words := node.args[0].split()) <= 3 and HEDGES.isdisjoint(words)
    return node.op == "sym" or node.op in ("apply", "call") and node.args[1].op in ("sym", "num", "seq")


def _unlabel(node: Node) -> tuple[Node, Node] | None:
    """(label, value) of x = 5, 5 = x, f(x) = 1/x or x in [0, 1]; the value of 0 < x <= 1 or x < 3 is an interval."""
    if node.op == "mod" and (inner := _unlabel(node.args[0])):
        return inner[0], Node("mod", (inner[1], node.args[1]))
    if node.op != "rel":
        return None
    ops, sides = node.args
    if ops in (("=",), ("≡",), ("∈",)):
        for label, value in ((sides[0], sides[1]), (sides[1], sides[0])):
            is_equation = label.op == "sym" and label.args[0] in symbols(value)  # x^2 = x names nothing
            if _is_label(label) and not is_equation:
                return label, value
            if ops == ("∈",):
                break
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


def solutions(items: list[Node]) -> tuple[set[Node], list[Node]]:
    """(labels, values) of the items: x = 1, 2 has one label and two values, x = 1, y = 2 two labels."""
    pairs = [_unlabel(item) for item in items]
    labels = {pair[0] for pair in pairs if pair}
    values = expand([pair[1] if pair else item for pair, item in zip(pairs, items, strict=True)])
    return labels, values


def match(a: list[Node], b: list[Node], work: Work) -> bool:
    """Whether the members of `a` and `b` can be paired one to one, in any order, so that each pair is the same.

    Found by augmenting paths: 25% equals both 25 and 1/4, so an early pair may have to be undone for the rest to match.
    """
    if len(a) != len(b):
        return work.because(f"{len(a)} members against {len(b)}", False)
    if len(a) == 1:
        return same(a[0], b[0], work)
    alike: dict[tuple[int, int], bool] = {}
    partner: dict[int, int] = {}  # index in b -> index in a

    def place(i: int, tried: set[int]) -> bool:
        for j in range(len(b)):
            if j in tried:
                continue
            if (i, j) not in alike:
                alike[i, j] = same(a[i], b[j], work)
            if alike[i, j]:
                tried.add(j)
                if j not in partner or place(partner[j], tried):
                    partner[j] = i
                    return True
        return False

    return work.because("the same members in any order", all(place(i, set()) for i in range(len(a))))


def _chain(items: list[Node]) -> list[Node]:
    """The sides of P = \\frac12 = 50\\% without the label: one number written several ways. Empty for other answers."""
    if len(items) != 1 or items[0].op != "rel" or set(items[0].args[0]) != {"="}:
        return []
    sides = items[0].args[1]
    sides = sides[1:] if len(sides) > 2 and _is_label(sides[0]) else sides
    return [] if any(side.flags & SYMBOL or not _is_scalar(_quantity(side)[0]) for side in sides) else list(sides)


def same_items(a: Sequence[Node], b: Sequence[Node], work: Work) -> bool:
    """Compares two whole answers: as they are, then without labels, which may be left out but must not differ."""
    a, b = expand(a), expand(b)
    if match(a, b, work):
        return True
    if any(_needs_real_sets(item) for item in a + b) and (verdict := same_real_set(a, b, work)) is not None:
        return verdict
    for chain, other in ((_chain(a), b), (_chain(b), a)):
        if chain and len(other) == 1 and not _chain(other):
            return work.because("every side of the chain", all(same(side, other[0], work) for side in chain))
    (labels_a, values_a), (labels_b, values_b) = solutions(a), solutions(b)
    if not (labels_a or labels_b) or len(labels_a) > 1 or len(labels_b) > 1:
        return False
    if labels_a and labels_b and labels_a != labels_b:
        return work.because("the labels differ", False)
    return match(values_a, values_b, work) and work.because("without the label", True)


# ---------------------------------------------------------------- one function a kind of answer


def same(a: Node, b: Node, work: Work) -> bool:
    """Compares two items by their kind; a scalar never equals a list, a relation or a text."""
    work.spend(20)
    if _is_scalar(a) and _is_scalar(b) or "unit" in (a.op, b.op):
        return same_quantity(a, b, work)
    if _needs_real_sets(a) or _needs_real_sets(b):
        verdict = same_real_set([a], [b], work)
        if verdict is not None:
            return verdict
    if a.op != b.op:
        return work.because(f"a {_kind(a)} is not a {_kind(b)}", False)
    comparisons = {"seq": same_sequence, "set": same_set, "union": same_set, "matrix": same_matrix}
    comparisons |= {"cases": same_cases, "rel": same_relation, "mod": same_residue, "ratio": same_ratio}
    if a.op in comparisons:
        return comparisons[a.op](a, b, work)
    return work.because(f"a {_kind(a)}, part by part", a == b)


def _kind(node: Node) -> str:
    if _is_scalar(node):
        return "number or expression"
    return {"seq": "tuple or interval", "rel": "relation"}.get(node.op, node.op)


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


def _quantity(node: Node) -> tuple[Node, frozenset]:
    """(number, {(unit, exponent), ...}) of 28\\%, 36° or 5 cm."""
    if node.op == "unit":
        inner, units = _quantity(node.args[0])
        return inner, units | node.args[1]
    if node.op in ("percent", "deg"):
        return node.args[0], frozenset([("%" if node.op == "percent" else "°", 1)])
    return node, frozenset()


def same_quantity(a: Node, b: Node, work: Work) -> bool:
    """Numbers with units. A unit or % may be absent (as in MATH), known units may not differ; 25% is 25 and 1/4."""
    (a, units_a), (b, units_b) = _quantity(a), _quantity(b)
    if not (_is_scalar(a) and _is_scalar(b)):
        return a.op == b.op == "ratio" and (not units_a or not units_b or units_a == units_b) and same_ratio(a, b, work)
    if not _units_agree(units_a, units_b):
        return work.because("the units differ", False)
    if same_scalar(a, b, work):
        return True
    percent_a, percent_b = ("%", 1) in units_a, ("%", 1) in units_b
    if percent_a == percent_b:
        return False
    hundred = num(100)
    return same_scalar(a, product(b, hundred), work) if percent_a else same_scalar(product(a, hundred), b, work)


def _units_agree(a: frozenset, b: frozenset) -> bool:
    """Whether a side has no units, both have the same, or one has an unknown unit ("?"). 36° may be 36 °C."""
    names = {name for name, _ in a | b}
    return not a or not b or a == b or "?" in names or (("°", 1) in a | b and names <= {"°", "°C", "°F", "°K"})


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


# ---------------------------------------------------------------- sets of real numbers

Bound = tuple[Any, int]  # (v, 0) is just before v, (v, 1) just after: [2, 3) lies between (2, 0) and (3, 0)
EVERYTHING = [((-float("inf"), 1), (float("inf"), 0))]
REAL_SET_OPS = {"union", "minus", "cap", "builder", "or", "and"}


def _needs_real_sets(node: Node) -> bool:
    """A set operation, an inequality or all reals. A lone interval or finite set is compared member by member."""
    if node.op == "rel" and "∈" in node.args[0]:
        return _needs_real_sets(node.args[1][-1])
    return node.op in REAL_SET_OPS or node == REALS or (node.op == "rel" and not INEQUALITIES.isdisjoint(node.args[0]))


class _RealSets:
    """Reads unions, differences, intersections, inequalities and finite sets as disjoint intervals, lowest first."""

    def __init__(self, places: list[tuple[Node, Any]], work: Work) -> None:
        self.places = places  # (endpoint, value): those of both answers
        self.work, self.variables = work, set()

    def number(self, node: Node) -> Any:
        """An endpoint as a Fraction or infinite float; equal endpoints of both answers get the same Fraction."""
        if node == INFINITY or node == negative(INFINITY):
            return float("inf") if node == INFINITY else -float("inf")
        if not _is_scalar(node) or node.flags & SYMBOL:
            raise Refused("an end of an interval that is no number")
        place = real_value(node, self.work)
        for other, known in self.places:
            if same_value(known, place, PRECISION) or abs(known - place) * 2**200 <= abs(place):
                if not same_scalar(node, other, self.work):
                    raise Refused("ends too close to order")
                return known
        self.places.append((node, place))
        return place

    def union(self, intervals: list) -> list:
        merged: list = []
        for low, high in sorted(intervals):
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            elif low < high:
                merged.append((low, high))
        return merged

    def complement(self, intervals: list) -> list:
        ends = [EVERYTHING[0][0], *itertools.chain(*self.union(intervals)), EVERYTHING[0][1]]
        return [(low, high) for low, high in zip(ends[::2], ends[1::2], strict=True) if low < high]

    def intersection(self, sets: list[list]) -> list:
        return self.complement([interval for one in sets for interval in self.complement(one)])

    def read(self, node: Node) -> list:
        op, args = node.op, node.args
        if node == REALS:
            return EVERYTHING
        if node == EMPTY:
            return []
        if op == "seq" and len(args[2]) == 2:
            low, high = (self.number(end) for end in args[2])
            return self.union([((low, int(args[0] == "(")), (high, int(args[1] == "]")))])
        if op == "set":
            places = [self.number(item) for item in expand(args)]
            return self.union([((place, 0), (place, 1)) for place in places])
        if op in ("union", "or"):
            return self.union([interval for operand in args for interval in self.read(operand)])
        if op in ("cap", "and"):
            return self.intersection([self.read(operand) for operand in args])
        if op == "minus":
            return self.intersection([self.read(args[0]), self.complement(self.read(args[1]))])
        if op == "builder":
            member, conditions = args
            sets = [] if member.op == "sym" else [self.read(member)]
            if member.op == "sym":
                self.variables.add(member)
            return self.intersection(sets + [self.read(condition) for condition in conditions])
        if op == "rel" and args[0] == ("≠",) and args[1][0].op == "sym":
            self.variables.add(args[1][0])
            place = self.number(args[1][1])
            return self.complement([((place, 0), (place, 1))])
        if op == "rel" and (labelled := _unlabel(node)) and labelled[0].op == "sym":
            self.variables.add(labelled[0])
            return self.read(labelled[1])
        raise Refused(f"a {op} is no set of reals")


def same_real_set(a: list[Node], b: list[Node], work: Work) -> bool | None:
    """Compares two answers as sets of real numbers; None where one is not a set or has more than one variable.

    Several items are only read where none is a relation: a comma between conditions may mean `and` or `or`.
    """
    places: list[tuple[Node, Any]] = []
    sets = []
    for items in (a, b):
        if len(items) != 1 and any(item.op == "rel" for item in items):
            return None
        reader = _RealSets(places, work)
        try:
            intervals = reader.read(items[0] if len(items) == 1 else Node("or", tuple(items)))
        except Refused:
            return None
        if len(reader.variables) > 1:
            return None
        sets.append((reader.variables, intervals))
    (variables_a, set_a), (variables_b, set_b) = sets
    named_alike = not variables_a or not variables_b or variables_a == variables_b
    return work.because("sets of real numbers", named_alike and set_a == set_b)


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
    if not _is_scalar(a) or a.flags & SYMBOL or not _units_agree(units_a, units_b):
        return False
    answer_value = real_value(a, work)
    excess = abs(answer_value) - abs(value)
    same_sign = (answer_value > 0) == (value > 0)
    agrees = same_sign and -last / 2 <= excess < last / 2 and abs(excess) * 100 <= abs(value)
    return work.because("the gold is rounded: agreement to its own digits", agrees)


# ---------------------------------------------------------------- the whole comparison


NEGATION = re.compile(r"(?i)\W*(?:not?|never)\W*\s[^a-z]*\d")  # `not 0`, which letters would read as n o t 0 = 0


class Reading(NamedTuple):
    """An answer after `clean`, the same without spaces (`squeeze`), and whether it consists of words alone."""

    cleaned: str
    plain: str
    words: bool


@lru_cache(maxsize=1024)  # a problem's gold is compared with a whole group of answers
def read(text: str) -> Reading:
    cleaned = clean(text)
    return Reading(cleaned, squeeze(cleaned), is_words(cleaned))


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
    if a.plain == b.plain:
        return work.because("the same text", True)
    if NEGATION.match(a.cleaned) or NEGATION.match(b.cleaned):
        return work.because("a negation", False)
    if a.words or b.words:  # letters of a word do not commute; case does not matter in words
        texts = [re.sub("[()]", "", re.sub(r"\s+and\s+", ",", r.cleaned.lower())) for r in (a, b)]
        return work.because("words", squeeze(texts[0]) == squeeze(texts[1]) and len(a.plain) > 1)
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
    """Why a gold can be compared only as text or not at all; None where it can be read and is equal to itself."""
    if len(gold) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    reading = read(gold)
    if not reading.cleaned:
        return "empty"
    if reading.words:
        return None
    try:
        for scalar in _scalars(_items(reading.cleaned.removeprefix("≈"))):
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
