"""Sets of real numbers, however they are written: intervals and unions, x < 2 or x = 3, |x - 1| <= 2, all reals but 3.

Two sets are the same when they have the same members among all ends that occur in either, between any two neighbouring
ends, and beyond the outermost: nothing changes elsewhere.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from grader.text import Refused
from grader.tree import EMPTY, INEQUALITIES, INFINITY, MINUS_INFINITY, REALS, STRUCTURES, Node, children, num, subtrees
from grader.values import Evaluator, OutOfRange, Work, is_exact, real_value

OPERATIONS = {"union", "minus", "cap", "builder", "or", "and"}
MAX_ENDS, MAX_END_BITS = 40, 2000
GRID = [Fraction(k, 2) for k in range(-21, 22)]  # where a relation is not linear, its ends may be written nowhere


def is_set(node: Node) -> bool:
    """A set operation, an inequality or all reals. A lone interval or finite set is compared member by member."""
    if node.op == "rel" and "∈" in node.args[0]:
        return is_set(node.args[1][-1])
    return node.op in OPERATIONS or node == REALS or (node.op == "rel" and not INEQUALITIES.isdisjoint(node.args[0]))


def same_real_set(a: list[Node], b: list[Node], work: Work) -> bool | None:
    """Compares two answers as sets of real numbers; None where one is not a set or has more than one variable."""
    try:
        if (_is_finite(a) and _has_conditions(b)) or (_is_finite(b) and _has_conditions(a)):
            raise Refused("a condition beside numbers")
        names_a, names_b = (_variables(Node("or", tuple(items))) for items in (a, b))
        points, at = _points([*a, *b], work), Evaluator({}, work, None)
        points = sorted({*points, *_crossings(a, points, at), *_crossings(b, points, at)})
        members_a, members_b = (_members(items, points, at) for items in (a, b))
    except Refused:
        return None
    named_alike = not names_a or not names_b or names_a == names_b
    return work.because("sets of real numbers, by membership", named_alike and members_a == members_b)


def _is_finite(items: list[Node]) -> bool:
    return all(item.op not in STRUCTURES and item != REALS or item.op == "set" for item in items)


def _has_conditions(items: list[Node]) -> bool:
    return any("rel" in item.ops for item in items)


def _variables(node: Node) -> set[str]:
    names = {name for name in node.names if name not in (INFINITY.args[0], REALS.args[0], EMPTY.args[0])}
    if len(names) > 1:
        raise Refused("more than one variable")
    return names


def _numbers(node: Any) -> Iterable[Node]:
    """Every number that is written in a tree: the ends of its intervals are among them, up to their sign."""
    if type(node) is tuple:
        for child in node:
            yield from _numbers(child)
    elif type(node) is Node and node not in (INFINITY, MINUS_INFINITY):
        if node.op not in STRUCTURES and not node.names:
            yield node
        else:
            yield from _numbers(node.args)


def _is_nonlinear(node: Node) -> bool:
    """Whether a condition is more than `x < 2`: |x - 1| < 2 or x^2 < 4. Raises Refused for others, as a model that
    repeats the inequality of a problem has not solved it.
    """
    if node.op != "rel":
        return any(map(_is_nonlinear, children(node.args)))
    ops, sides = node.args
    if "∈" in ops or not any(side.names and side.op != "sym" for side in sides):
        return False
    side = sides[0] if sides[0].names else sides[-1]
    is_square = side.op == "pow" and side.args[0].op == "sym" and side.args[1] == num(2)
    is_distance = side.op == "abs" and side.ops <= {"abs", "add", "sym", "num", "mul", "inv"}
    if len(ops) > 1 or not set(ops) <= set("<>≤≥") or not (is_square or is_distance):
        raise Refused("a condition that is a problem of its own")
    return True


def _points(items: list[Node], work: Work) -> list[Fraction]:
    """All ends, numbers between neighbours and beyond; irrational ends as close fractions (see `_sign`)."""
    for interval in (node for item in items for node in subtrees(item) if node.op == "seq"):
        low, *_, high = interval.args[2]
        if MINUS_INFINITY != low and high != INFINITY and not real_value(low, work) < real_value(high, work):
            raise Refused("a pair of numbers that is no interval")
    ends = {real_value(node, work) for node in _numbers(tuple(items))}
    if any(max(end.numerator.bit_length(), end.denominator.bit_length()) > MAX_END_BITS for end in ends):
        raise Refused("an end of too many digits")
    ends |= {-end for end in ends}
    if len(ends) > 2 * MAX_ENDS:
        raise Refused("too many ends")
    if any(_is_nonlinear(item) for item in items) or not ends:
        ends |= set(GRID)
        ends |= {Fraction(math.sqrt(end)) for end in ends if 0 < end < 10**9}  # x^2 < 5
    ordered = sorted(ends)
    between = [(low + high) / 2 for low, high in zip(ordered, ordered[1:], strict=False)]
    return sorted(ends.union(between, [ordered[0] - 1, ordered[-1] + 1]))


def _crossings(items: list[Node], points: list[Fraction], at: Evaluator) -> Iterator[Fraction]:
    """Both sides of each end that is written nowhere, as 14.9 in |x - 20| < 5.1: by bisection between points."""
    if not any(_is_nonlinear(item) for item in items):
        return
    members = _members(items, points, at)
    for i in range(len(points) - 1):
        if members[i] != members[i + 1]:
            low, high = points[i], points[i + 1]
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (middle, high) if _members(items, [middle], at)[0] == members[i] else (low, middle)
            yield from (low, high)


def _members(items: list[Node], points: list[Fraction], at: Evaluator) -> list[bool]:
    """Which points belong to an answer. A comma between relations means `and`, or `or` where that leaves nothing."""
    if items[0].op == "rel" and items[0].args[0] == ("≠",):  # x ≠ 5, 6
        others = [Node("rel", (("≠",), (items[0].args[1][0], item))) for item in items[1:] if item.op not in STRUCTURES]
        items = [item for item in items if item.op in STRUCTURES] + others
    at.work.spend(10 * len(items) * len(points))
    sets = [[_contains(item, x, at) for x in points] for item in items]
    if all(item.op == "rel" for item in items):
        together = [all(row) for row in zip(*sets, strict=True)]
        if any(together):
            return together
    return [any(row) for row in zip(*sets, strict=True)]


def _sign(left: Any, right: Any, at: Evaluator) -> int:
    """-1, 0 or 1 as left is below, at or above right; 0 where they differ by rounding noise only."""
    for value in (left, right):
        if not is_exact(value) and value.imag != 0:
            raise OutOfRange("not real")
    difference = at.add([left, -right])
    close = abs(difference) * 2**200 <= abs(left) + abs(right)
    return 0 if close else 1 if difference > 0 else -1


def _contains(node: Node, x: Fraction, at: Evaluator) -> bool:
    op, args = node.op, node.args
    if node in (REALS, EMPTY):
        return node == REALS
    if op == "seq" and len(args[2]) == 2:
        low, high = args[2]
        if (low == MINUS_INFINITY and args[0] == "[") or (high == INFINITY and args[1] == "]"):
            raise Refused("a closed interval without an end")
        least_low, least_high = int(args[0] == "("), int(args[1] == ")")  # 1: x must be beyond an open end
        above = low == MINUS_INFINITY or _sign(x, _value(low, x, at), at) >= least_low
        return above and (high == INFINITY or _sign(_value(high, x, at), x, at) >= least_high)
    if op in ("set", "union", "or"):
        return any(_contains(member, x, at) for member in args)
    if op in ("cap", "and"):
        return all(_contains(member, x, at) for member in args)
    if op == "minus":
        return _contains(args[0], x, at) and not _contains(args[1], x, at)
    if op == "builder":
        return all(_contains(part, x, at) for part in args[1]) and (args[0].op == "sym" or _contains(args[0], x, at))
    if op == "rel":
        return _holds(*args, x, at)
    if node.names:
        raise Refused("a letter among numbers")
    return _sign(x, _value(node, x, at), at) == 0


def _value(node: Node, x: Fraction, at: Evaluator) -> Any:
    if node.op in STRUCTURES or node in (INFINITY, MINUS_INFINITY):
        raise Refused("no number")
    at.point = dict.fromkeys(node.names, x)
    return at.value(node)


def _holds(ops: tuple, sides: tuple, x: Fraction, at: Evaluator) -> bool:
    """Whether every relation of a chain holds for the variable at x; one that is undefined there does not."""
    if ops == ("∈",):
        if sides[0].op != "sym":
            raise Refused("not a variable")
        return _contains(sides[1], x, at)
    if not set(ops) <= set("<>≤≥≠=") or any("∞" in side.names for side in sides):
        raise Refused("a relation that is no condition on a real number")
    if not any(side.names for side in sides):
        raise Refused("a relation between numbers")
    try:
        values = [_value(side, x, at) for side in sides]
        signs = [_sign(left, right, at) for left, right in zip(values, values[1:], strict=False)]
    except OutOfRange:
        return False
    allowed = {"<": (-1,), "≤": (-1, 0), ">": (1,), "≥": (1, 0), "≠": (-1, 1), "=": (0,)}
    return all(sign in allowed[op] for op, sign in zip(ops, signs, strict=True))
