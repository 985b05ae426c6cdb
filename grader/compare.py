"""Decides whether two parts of answers are the same mathematical object: one function for each kind of answer.

Numbers and functions are left to `scalars`, sets of reals to `sets`. Everywhere the second argument is the gold's,
which matters for the few things that an answer may leave out, and for golds that are rounded.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from grader.parser import MAX_ITEMS
from grader.scalars import proportional, same_scalar
from grader.sets import is_set, same_real_set
from grader.text import Refused
from grader.tree import Node, is_scalar, literal, negative, num, product, quotient, subtrees
from grader.units import Units, measured, units_agree
from grader.values import Work, real_value

UNIT_LETTERS = set("msghLJNW")
PLUS_MINUS = {"pm", "mp"}

# ---------------------------------------------------------------- lists


def _resolve(node: Any, signs: Iterator[bool]) -> Any:
    """The tree with its signs chosen: + for ± and - for ∓ where the next of `signs` is true, else the reverse."""
    if type(node) is tuple:
        return tuple(_resolve(child, signs) for child in node)
    if type(node) is not Node or not node.ops & PLUS_MINUS:
        return node
    args = _resolve(node.args, signs)
    if node.op in ("pm", "mp"):
        return args[0] if next(signs) == (node.op == "pm") else negative(args[0])
    return Node(node.op, args)


def _chosen(item: Node) -> list[Node]:
    """The values of an item with ±: two where it has ∓ too, else each ± chooses by itself."""
    count = sum(node.op == "pm" for node in subtrees(item))
    if "mp" in item.ops or count > 6:
        return [_resolve(item, itertools.repeat(upper)) for upper in (True, False)]
    return [_resolve(item, iter(signs)) for signs in itertools.product((True, False), repeat=count)]


def expand(items: Iterable[Node]) -> list[Node]:
    """The solutions that an answer lists: a set is opened, ± is two items, members of a tuple choose on their own."""
    items = list(items)
    if len(items) == 1 and items[0].op == "set":
        items = list(items[0].args)
    expanded: list[Node] = []
    for item in items:
        if not item.ops & PLUS_MINUS:
            expanded.append(item)
        elif item.op == "seq":
            choices = [expand([member]) for member in item.args[2]]
            if math.prod(map(len, choices)) > MAX_ITEMS:
                raise Refused("too many items")
            expanded += [Node("seq", (*item.args[:2], chosen)) for chosen in itertools.product(*choices)]
        else:
            expanded += _chosen(item)
        if len(expanded) > MAX_ITEMS:
            raise Refused("too many items")
    return expanded


def same_members(a: list[Node], b: list[Node], work: Work) -> bool:
    """Whether each member of `a` is the same as some member of `b` and the reverse: in any order, repeated or not."""
    if len(a) == len(b) == 1:
        return same(a[0], b[0], work)
    if not a or not b:
        return work.because("nothing on one side", len(a) == len(b))
    partners: list[frozenset[int]] = []
    for x in a:
        partners.append(frozenset(j for j, y in enumerate(b) if same(x, y, work)))
        if not partners[-1]:
            return work.because("a member is not among the others", False)
    if len(frozenset().union(*partners)) < len(b):
        return work.because("not all members of the gold are there", False)
    if len(a) == len(b) and any(partners.count(those) > len(those) for those in partners):  # 1, 1, 2 against 1, 2, 2
        return work.because("other members are repeated", False)
    return work.because("the same members in any order", True)


# ---------------------------------------------------------------- one function a kind of answer


def same(a: Node, b: Node, work: Work) -> bool:
    """Compares two items, the second of the gold, by their kind; a scalar never equals a list or a text."""
    work.spend(20)
    if {a.op, b.op} != {"based"}:
        a, b = _decimal(a), _decimal(b)
    (number_a, units_a), (number_b, units_b) = quantity(a), quantity(b)
    if is_scalar(number_a) and is_scalar(number_b):
        return same_quantity(number_a, units_a, number_b, units_b, work)
    if units_a or units_b:  # a ratio or a time of day, with words
        return units_agree(units_a, units_b) and same(number_a, number_b, work)
    if b.op == "approx":  # a gold that gives the exact and the rounded value
        return same(a, b.args[0], work) or a == b.args[1]
    if a.op == "approx":
        return is_rounding(*a.args, work) and same(a.args[0], b, work)
    for chain, other in ((a, b), (b, a)):
        if chain.op == "rel" and set(chain.args[0]) == {"="} and other.op != "rel" and not chain.names:
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
    if is_scalar(node):
        return "number or expression"
    return {"seq": "tuple or interval", "rel": "relation"}.get(node.op, node.op)


AXES = ("e_i", "e_j", "e_k")  # 2i - 5j as a vector


def _entries(node: Node) -> tuple[Node, ...] | None:
    """The entries of a tuple, of a row or column, or of a sum of unit vectors; None for anything else."""
    if node.op == "seq" and node.args[:2] == ("(", ")"):
        return node.args[2]
    if node.op == "matrix" and 1 in (len(node.args), len(node.args[0])):
        return tuple(itertools.chain(*node.args))
    if is_scalar(node) and node.names.intersection(AXES):
        origin, *ends = (_substitute(node, {axis: num(int(axis == one)) for axis in AXES}) for one in ("", *AXES))
        entries = tuple(Node("add", (end, negative(origin))) for end in ends)
        return entries if "e_k" in node.names else entries[:2]
    return None


def _substitute(node: Any, values: dict[str, Node]) -> Any:
    if type(node) is tuple:
        return tuple(_substitute(child, values) for child in node)
    if type(node) is not Node:
        return node
    return values.get(node.args[0], node) if node.op == "sym" else Node(node.op, _substitute(node.args, values))


def same_across_kinds(a: Node, b: Node, work: Work) -> bool:
    """The few kinds that say the same: a column and a tuple, 3 : 5 and 3/5, 3 (mod 7) and 3; 52 for a gold 52_8."""
    entries_a, entries_b = _entries(a), _entries(b)
    if entries_a and entries_b:
        return work.because("a vector, entry by entry", same_parts(entries_a, entries_b, work))
    if b.op == "based" and a.op == "num" and re.fullmatch(r"-?\d*\.?\d*", b.args[0]):
        return work.because("the gold's digits without its base", a.args[0] == literal(b.args[0]))
    for special, other in ((a, b), (b, a)):
        if special.op == "ratio" and len(special.args) == 2 and is_scalar(other):
            return work.because("a ratio as a fraction", same_scalar(quotient(*special.args), other, work))
        if special.op == "mod" and is_scalar(other) and special.args[0].op == special.args[1].op == "num":
            reduced = 0 <= special.args[0].args[0] < special.args[1].args[0]
            return work.because("a residue", reduced and same_scalar(special.args[0], other, work))
    return work.because(f"a {_kind(a)} is not a {_kind(b)}", False)


def same_parts(a: Iterable[Node], b: Iterable[Node], work: Work) -> bool:
    """As many parts, the same ones in the same order."""
    a, b = list(a), list(b)
    return len(a) == len(b) and all(same(x, y, work) for x, y in zip(a, b, strict=True))


def same_sequence(a: Node, b: Node, work: Work) -> bool:
    """Tuples, vectors and intervals: the same brackets, the same members in the same order."""
    ordered = a.args[:2] == b.args[:2] and same_parts(a.args[2], b.args[2], work)
    return work.because("a tuple or interval, member by member", ordered)


def same_set(a: Node, b: Node, work: Work) -> bool:
    """Sets, and unions whose ends are not plain numbers: the same members in any order."""
    return same_members(expand(a.args), expand(b.args), work)


def same_matrix(a: Node, b: Node, work: Work) -> bool:
    """Matrices of equal shape, entry by entry; the kind of brackets does not matter."""
    same_shape = [len(row) for row in a.args] == [len(row) for row in b.args]
    same_entries = same_shape and same_parts(itertools.chain(*a.args), itertools.chain(*b.args), work)
    return work.because("a matrix, entry by entry", same_entries)


def same_cases(a: Node, b: Node, work: Work) -> bool:
    """A function by cases: the same rows of value and condition, in any order."""
    rows = [[Node("seq", ("(", ")", row)) for row in node.args] for node in (a, b)]
    return same_members(rows[0], rows[1], work)


def same_residue(a: Node, b: Node, work: Work) -> bool:
    """Residue classes: 3 (mod 7) is 10 (mod 7)."""
    if not same(a.args[1], b.args[1], work):
        return work.because("the moduli differ", False)
    if all(is_scalar(x) and not x.names for x in (a.args[0], b.args[0], a.args[1])):
        x, y, modulus = (real_value(node, work) for node in (a.args[0], b.args[0], a.args[1]))
        return work.because("residues", modulus != 0 and (x - y) % modulus == 0)
    return same(a.args[0], b.args[0], work)


def same_ratio(a: Node, b: Node, work: Work) -> bool:
    """Ratios such as 3 : 4 and times of day, part by part."""
    return work.because("a ratio or time, part by part", same_parts(a.args, b.args, work))


def quantity(node: Node) -> tuple[Node, Units]:
    """(number, {(unit, exponent), ...}) of 28\\%, 36° or 5 cm."""
    if node.op == "unit":
        inner, units = quantity(node.args[0])
        return inner, units | node.args[1]
    if node.op in ("percent", "deg"):
        return node.args[0], frozenset([("%" if node.op == "percent" else "°", 1)])
    return node, frozenset()


def _symbol_unit(node: Node, units: Units) -> tuple[Node, Units]:
    """Splits 5m^2 into 5 and a unit of which nothing is known, where the gold is a plain number."""
    factors = node.args if node.op == "mul" else ()
    numbers = [f for f in factors if not (_power_base(f).op == "sym" and _power_base(f).args[0] in UNIT_LETTERS)]
    if numbers and len(numbers) < len(factors) and not any(n.names for n in numbers):
        return product(*numbers), units | {("?", 1)}
    return node, units


def _power_base(node: Node) -> Node:
    return _power_base(node.args[0]) if node.op in ("pow", "inv") else node


def same_quantity(a: Node, units_a: Units, b: Node, units_b: Units, work: Work) -> bool:
    """Numbers with units. A unit or % may be absent (as in MATH), known units may not differ; 25% is 25 and 1/4."""
    if a.names and not b.names:
        a, units_a = _symbol_unit(a, units_a)
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


def ascending(ops: tuple, sides: tuple) -> tuple[tuple, tuple]:
    """The relations and sides of a chain; one of > and >= is reversed into one of < and <=."""
    if set(ops) <= set(">≥"):
        return tuple({">": "<", "≥": "≤"}[op] for op in reversed(ops)), tuple(reversed(sides))
    return ops, sides


def same_relation(a: Node, b: Node, work: Work) -> bool:
    """Relations side by side (= and ≠ in either direction); one between two scalars also up to a constant factor."""
    (ops_a, sides_a), (ops_b, sides_b) = ascending(*a.args), ascending(*b.args)
    if ops_a != ops_b:
        return work.because("the relations differ", False)
    if same_parts(sides_a, sides_b, work):
        return work.because("a relation, side by side", True)
    if set(ops_a) <= set("=≠") and same_parts(sides_a, sides_b[::-1], work):
        return work.because("a relation, its sides exchanged", True)
    sides = [*sides_a, *sides_b]
    without_units = all(is_scalar(side) and not quantity(side)[1] for side in sides)
    if len(ops_a) > 1 or ops_a[0] not in "=≠<≤" or not without_units or not any(side.names for side in sides):
        return False
    left, right = (Node("add", (sides[i], negative(sides[i + 1]))) for i in (0, 2))
    return work.because("an equation or inequality up to a factor", proportional(left, right, ops_a[0] in "<≤", work))


def is_rounding(exact: Node, rounded: Node, mantissa: int, work: Work, max_error: Fraction = Fraction(1)) -> bool:
    """Whether a number is another one, rounded half up to its own digits: 6.93 (mantissa 693) is 4 sqrt 3.

    max_error: how far it may be off, relative to itself.
    """
    if exact.op == "rel":
        exact = exact.args[1][-1]
    (exact, _), (rounded, units) = quantity(exact), quantity(rounded)
    if not (is_scalar(exact) and is_scalar(rounded)) or exact.names != rounded.names:
        return work.because("no number beside ≈", False)
    value, shown = (real_value(node, work, dict.fromkeys(node.names, 1)) for node in (exact, rounded))  # 0.707c
    if ("%", 1) in units and abs(value - shown) * 10 > abs(shown):
        value *= 100
    excess, half = abs(value) - abs(shown), abs(shown) / (2 * mantissa)
    close = (value > 0) == (shown > 0) and -half <= excess < half and abs(excess) <= max_error * abs(shown)
    return work.because("rounded to its own digits, that is the other number", close)
