"""Whether two scalar trees are the same number, or the same function of the same variables.

Both are computed (`values`) at a few points and compared to about 90 digits. This is no proof, and needs none: who can
write the right answer plus 10^-100 can write the right answer.
"""

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grader.text import Refused
from grader.tree import Node, Number
from grader.values import GUARD, HIGH_PRECISION, PRECISION, Evaluator, OutOfRange, Work, is_exact, mpmath_at

# ---------------------------------------------------------------- where functions are compared

SIZES = (2, 30, 0, 200)  # |x - 20| is x - 20 for large x, floor(x / 100) is 0 for small x
INTEGER_NAMES = set("jklmnN")  # what authors call integers; it matters where a step function is around
Point = dict[str, Number]


@lru_cache(maxsize=4096)
def _real(name: str, k: int, size: int) -> Fraction:
    """A number from size to twice the size plus 1. Odd over 32, so that (-1)^x is never real."""
    return size + Fraction(2 * random.Random(f"{name}:{k}").randint(0, 15) + 1, 32) * (size + 1)


@lru_cache(maxsize=4096)
def _whole(name: str, k: int, j: int) -> int:
    """The j-th variable's integer at point k; 2^n points in a row show n variables in every pattern of even and odd."""
    least = {3: 500, 7: 100}.get(k % 8, 0)
    return 2 * random.Random(f"{name}:{k}").randint(least + 1, least + 20) - (k >> j & 1)


def _signed(name: str, k: int, j: int) -> Fraction:
    """The j-th variable's value at point k: all are positive in points 0 to 3, negative in 4 to 7. In 8 to 11 their
    signs spell j + 1 in binary, so that any two differ somewhere, and their sizes are mixed.
    """
    if k < 8:
        return _real(name, k, SIZES[k % 4]) * (1 if k < 4 else -1)
    return _real(name, k, SIZES[(k + j) % 4]) * (-1 if (j + 1) >> (k - 8) & 1 else 1)


def real_points(names: list[str], whole_names: set[str]) -> Iterator[Point]:
    for k in range(8 if len(names) == 1 else 12):
        yield {n: _whole(n, k, j) if n in whole_names else _signed(n, k, j) for j, n in enumerate(names)}


def whole_points(names: list[str]) -> Iterator[Point]:
    for k in range(16):
        yield {name: _whole(name, k, j) for j, name in enumerate(names)}


Row = tuple[Any, Any, int]  # a value of one node, of the other, and the bits in which they can be compared


def _row(a: Node, b: Node, point: Point, work: Work, log_base: int | None) -> Row:
    """Both values at one point, with more bits where half of them cancelled."""
    for prec in (PRECISION, HIGH_PRECISION):
        evaluator = Evaluator(point, work, log_base, prec)
        values = evaluator.value(a), evaluator.value(b)
        if max(evaluator.lost, 0 if point else evaluator.spread) <= prec // 2:  # a tiny term shows at another point
            break
    return *values, max(2 * GUARD, prec - evaluator.lost)


def rows(a: Node, b: Node, work: Work, log_base: int | None) -> Iterator[Row]:
    """The values of both nodes where both are defined: at one point for numbers, for functions at two at least.

    Where neither contains i, points at which a value is not real are left out, unless there are no others.
    """
    ops, names = a.ops | b.ops, sorted(a.names | b.names)
    if not names:
        yield _row(a, b, {}, work, log_base)
        return
    steps = not ops.isdisjoint(("floor", "ceil", "series", "alternating"))
    only_real = ops.isdisjoint(("const i", "fn cis"))
    passes = [(whole_points(names), only_real), (real_points(names, set()), False)]
    if "counting" not in ops:  # n! and (-1)^n are defined at integers only
        passes.insert(0, (real_points(names, INTEGER_NAMES if steps else set()), only_real))
    done: list[Point] = []
    for i, (points, only_real_points) in enumerate(passes):
        if len(done) >= 2 and not (i == 1 and steps):
            return
        for point in points:
            if point in done:
                continue
            try:
                x, y, prec = _row(a, b, point, work, log_base)
            except OutOfRange:
                continue
            if not only_real_points or all(is_exact(v) or v.imag == 0 for v in (x, y)):
                done.append(point)
                yield x, y, prec
    if len(done) < 2:
        raise Refused("no points where both are defined")


# ---------------------------------------------------------------- the comparison


def same_value(a: Any, b: Any, prec: int) -> bool:
    """Whether two values agree in the first `prec` bits but GUARD; exact values must be equal."""
    if is_exact(a) and is_exact(b):
        return a == b
    if a == 0 or b == 0:
        return a == b
    mp = mpmath_at(PRECISION if prec <= PRECISION else HIGH_PRECISION)
    a, b = (mp.mpf(v.numerator) / v.denominator if is_exact(v) else v for v in (a, b))
    return a == b or mp.mag(a - b) <= max(mp.mag(a), mp.mag(b)) + GUARD - prec


def _log_bases(a: Node, b: Node) -> tuple:
    """The bases in which to compare: \\log without one is natural (None) for some authors and decimal for others.

    If both sides have it, they must agree in both bases; if one has it, natural where the other has ln or e, else 10.
    """
    with_log = [node for node in (a, b) if "fn log" in node.ops]
    if len(with_log) != 1:
        return (None, 10) if with_log else (None,)
    other = b if with_log[0] is a else a
    return (10,) if other.ops.isdisjoint(("fn ln", "const e")) else (None,)


def same_scalar(a: Node, b: Node, work: Work) -> bool:
    """Whether two scalars are the same number, or the same function of the same variables."""
    if a.op == b.op == "num":
        return work.because("exact arithmetic", a.args == b.args)
    if a == b:
        return work.because("the same expression", True)
    if "∞" in a.names | b.names:  # it is no letter: 0 times it is not 0
        return work.because("infinity", False)
    for log_base in _log_bases(a, b):
        count = 0
        for x, y, prec in rows(a, b, work, log_base):
            count += 1
            exact = is_exact(x) and is_exact(y)
            how = "exact arithmetic" if exact else f"{int((prec - GUARD) * math.log10(2))} digits"
            if not same_value(x, y, prec):
                return work.because(how if count == 1 else f"{how}, at point {count}", False)
    return work.because(how if count == 1 else f"{how}, at {count} points", True)


def proportional(a: Node, b: Node, positive: bool, work: Work) -> bool:
    """Whether a = c b with one constant c, nonzero or `positive`: the same equation (a = 0) or inequality (a < 0)."""
    for log_base in _log_bases(a, b):
        values = list(rows(a, b, work, log_base))
        prec = min(prec for _, _, prec in values)
        evaluator = Evaluator({}, work, None, PRECISION if prec <= PRECISION else HIGH_PRECISION)
        ratios = [evaluator.multiply([x, evaluator.power(y, -1)]) for x, y, _ in values if y != 0]
        if any((x == 0) != (y == 0) for x, y, _ in values) or len(ratios) < 2:
            return False
        if not all(same_value(ratio, ratios[0], prec) for ratio in ratios):
            return False
        if positive and not ((is_exact(ratios[0]) or ratios[0].imag == 0) and ratios[0] > 0):
            return False
    return True
