"""Whether two scalar trees are the same number, or the same function of the same variables.

`Evaluator` computes a tree at one point: in int and Fraction arithmetic as far as that goes, then with mpmath.
`same_scalar` and `proportional` compare two trees at a few points to about 90 digits. This is no proof, and needs none:
who can write the right answer plus 10^-100 can write the right answer. Sizes are bounded before anything is computed,
and `Work` counts operations, never seconds.
"""

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grader.text import Refused
from grader.tree import Node, Number, scalar

MAX_BITS = 210_000  # of an exact number; 2023^2024 has 22,000
MAX_POINT_BITS = 5_000  # of an exact power where there are variables: x^9900 is computed with mpmath
MAX_EXPONENT = 10**12  # of a number in mpmath: its relative error grows by as much
MAX_FACTORIAL = 5000
MAX_TERMS = 1000  # of a sum or product
MAX_WORK = 500_000  # for one pair, in units of very roughly half a microsecond: see Work.spend and its callers
PRECISION, HIGH_PRECISION = 400, 4000  # bits; the second where sums cancel at the first
GUARD = 100  # two numbers are the same when they agree to all bits but these and those that cancelled
NOISE = 80  # bits: a sum that is smaller than its terms by all bits but these is 0


class OutOfRange(Refused):
    """Too large to compute, or undefined; at another point it may not be."""


class Work:
    """Counts the work for one pair, so that verdicts do not depend on the machine, and keeps what decided them."""

    def __init__(self) -> None:
        self.left = MAX_WORK
        self.reasons: list[str] = []

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Refused("work budget spent")

    def exact(self, value: Number) -> Number:
        """Returns `value` and spends what it costs: the gcd in every Fraction operation is quadratic in its bits."""
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        if bits > MAX_BITS:
            raise OutOfRange("number too long")
        self.spend(5 + (bits >> 7) ** 2 // 64)
        return value

    def because(self, reason: str, verdict: bool) -> bool:
        self.reasons.append(f"{'equal' if verdict else 'different'}: {reason}")
        return verdict


@lru_cache(maxsize=2)
def mpmath_at(prec: int) -> Any:
    """A private context. mpmath is imported only here: most pairs never need it."""
    import mpmath

    context = mpmath.mp.clone()
    context.prec = prec
    return context


def is_exact(value: Any) -> bool:
    return type(value) is int or type(value) is Fraction


def is_whole(value: Any) -> bool:
    return is_exact(value) and value.denominator == 1


# ---------------------------------------------------------------- the value of a tree at one point


class Evaluator:
    """The value of a scalar tree at one point: exact while that is possible, then mpmath real or complex.

    point: the value of each variable. log_base: the base of \\log where none is written; None is e. prec: bits.
    lost: the most bits that cancelled in a sum. spread: the most bits between two terms of a sum.
    """

    def __init__(self, point: dict[str, Any], work: Work, log_base: int | None, prec: int = PRECISION) -> None:
        self.point, self.work, self.log_base, self.prec = point, work, log_base, prec
        self.mp, self.cost = mpmath_at(prec), 1 if prec == PRECISION else 12
        self.lost = self.spread = 0
        self.noise = self.mp.mpf(2) ** (NOISE - prec)  # relative

    def number(self, value: Any) -> Any:
        """The value as an mpmath number."""
        self.work.spend(20)
        if type(value) is Fraction:
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > self.prec - GUARD:
                self.spread = self.prec  # 1 + 10^-200 in one number
            return self.mp.mpf(value.numerator) / value.denominator
        return self.mp.mpf(value) if type(value) is int else value

    def tidy(self, value: Any) -> Any:
        """Drops a real or imaginary part that is rounding noise, so that real values stay real."""
        if not self.mp.isfinite(value):
            raise OutOfRange("not finite")
        if isinstance(value, self.mp.mpc):
            if abs(value.imag) <= self.noise * abs(value.real):
                return value.real
            if abs(value.real) <= self.noise * abs(value.imag):
                return self.mp.mpc(0, value.imag)
        return value

    def value(self, node: Node, degree: Any = 1) -> Any:
        """The value of a node; `degree` is that of one degree: 1, or pi/180 inside a trigonometric function."""
        op, args = node.op, node.args
        self.work.spend(25 if op == "const" else 5)
        if op == "num":
            return args[0]
        if op == "sym":
            if args[0] == "∞":
                raise Refused("arithmetic with infinity")
            return self.point[args[0]]
        if op == "const":
            return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[args[0]]
        if op == "fn":
            return self.function(args[0], args[1])
        if op == "series":
            return self.series(*args)
        values = [self.value(arg, degree) for arg in args]
        if op == "add":
            return self.add(values)
        if op == "mul":
            return self.multiply(values)
        if op in ("inv", "pow"):
            return self.power(values[0], -1 if op == "inv" else values[1])
        if op in ("deg", "percent"):
            return self.multiply([values[0], degree if op == "deg" else Fraction(1, 100)])
        if op == "log":
            return self.multiply([self.log(values[1]), self.power(self.log(values[0]), -1)])
        if op in ("fact", "binom"):
            return self.factorial(values[0]) if op == "fact" else self.binomial(*values)
        if op in ("floor", "ceil"):
            return self.floor(values[0]) if op == "floor" else -self.floor(-values[0])
        if op == "abs":
            return abs(values[0])
        raise Refused(f"a {op} among numbers")

    def series(self, name: str, index: str, low: Node, high: Node, body: Node) -> Any:
        """A sum or product over the integers from low to high, term by term."""
        first, last = self.value(low), self.value(high)
        if not (is_whole(first) and is_whole(last)) or not first - 1 <= last <= first + MAX_TERMS:
            raise OutOfRange("a series between ends that are no integers, from above to below, or too long")
        outer, terms = self.point, []
        for k in range(int(first), int(last) + 1):
            self.point = {**outer, index: k}
            terms.append(self.value(body))
        self.point = outer
        return self.add(terms) if name == "sum" else self.multiply(terms)

    def add(self, values: list) -> Any:
        """The sum; 0 where all but rounding noise cancels. Notes in `lost` and `spread` what digits it cost."""
        exact: Number = 0
        rest = []
        for value in values:
            if is_exact(value):
                exact = self.work.exact(exact + value)
            elif value:
                rest.append(value)
        if not rest:
            return exact
        if exact:
            rest.append(self.number(exact))
        sizes = [self.mp.mag(value) for value in rest]
        self.spread = max(self.spread, max(sizes) - min(sizes))
        if self.spread > HIGH_PRECISION:
            raise OutOfRange("a sum of huge and tiny terms")
        total = self.tidy(self.mp.fsum(rest))
        lost = max(sizes) - self.mp.mag(total) if total else self.prec
        if lost > self.prec - NOISE:
            if self.point and self.prec == HIGH_PRECISION and max(sizes) > self.prec // 2:
                raise OutOfRange("huge numbers that cancel")
            total, lost = 0, self.prec
        self.lost = max(self.lost, lost)
        return total

    def multiply(self, values: list) -> Any:
        total: Any = 1
        for value in sorted(values, key=is_exact, reverse=True):  # the exact ones first
            if is_exact(total) and is_exact(value):
                total = self.work.exact(total * value)
            elif is_exact(total) and total in (0, 1):
                total = total and value
            else:
                total = self.number(total) * self.number(value)
        return total if is_exact(total) else self.tidy(total)

    def power(self, base: Any, exponent: Any) -> Any:
        """The principal power, but the real one of an odd root: the cube root of -8 is -2, as in school."""
        if is_exact(base) and is_exact(exponent):
            exact = self.exact_power(base, exponent)
            if exact is not None:
                return exact
        if base == 0:
            raise OutOfRange("a power of zero")
        mp_base = self.number(base)
        if abs(exponent) > MAX_EXPONENT or abs(self.mp.mag(mp_base)) > MAX_EXPONENT:
            raise OutOfRange("power too large")
        self.work.spend(300 + 200 * self.cost)
        if is_whole(exponent):
            return self.tidy(mp_base ** int(exponent))
        if is_exact(exponent) and exponent.denominator == 2:
            return self.tidy(self.mp.sqrt(mp_base) ** exponent.numerator)
        if is_exact(exponent) and exponent.denominator % 2 and not isinstance(mp_base, self.mp.mpc) and mp_base < 0:
            sign = (-1) ** (exponent.numerator % 2)
            return self.tidy(sign * (-mp_base) ** self.number(exponent))
        return self.tidy(mp_base ** self.number(exponent))

    def exact_power(self, base: Number, exponent: Number) -> Number | None:
        """None where the power is irrational or too long. Sizes are bounded before the power is taken."""
        if base == 0 and exponent > 0 or base == 1:
            return base
        if exponent.denominator > 1:
            root = self.exact_root(base, exponent.denominator)
            return None if root is None else self.exact_power(root, exponent.numerator)
        exponent = exponent.numerator
        if base == -1:
            return 1 - 2 * (exponent % 2)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base == 0 or bits * abs(exponent) > (MAX_POINT_BITS if self.point else MAX_BITS):
            return None
        return self.work.exact(base**exponent if exponent >= 0 else Fraction(base) ** exponent)

    def exact_root(self, value: Number, degree: int) -> Number | None:
        """The real root of a rational number; None where it is irrational, or too long to tell."""
        if degree > 1000 or (value < 0 and degree % 2 == 0):
            return None
        self.work.spend(100)
        roots = []
        for n in (abs(value.numerator), value.denominator):
            if n.bit_length() > self.prec // 2:
                return None
            roots.append(math.isqrt(n) if degree == 2 else int(self.mp.nint(self.mp.root(n, degree))))
            if roots[-1] ** degree != n:
                return None
        return Fraction(-roots[0] if value < 0 else roots[0], roots[1])

    def log(self, value: Any) -> Any:
        if value == 0:
            raise OutOfRange("log of zero")
        self.work.spend(300 * self.cost)
        return 0 if value == 1 else self.tidy(self.mp.log(self.number(value)))

    def function(self, name: str, arg: Node) -> Any:
        trig = name not in ("exp", "ln", "log") and not name.endswith("h")
        value = self.value(arg, self.mp.pi / 180 if trig and not name.startswith("arc") else 1)
        if name in ("ln", "log"):
            base = self.log_base if name == "log" else None
            return self.multiply([self.log(value), 1 / self.mp.log(base) if base else 1])
        self.work.spend(500 * self.cost)
        value = self.number(value)
        if abs(value) > 10**6:
            raise OutOfRange("argument too large")
        if name == "cis":
            return self.tidy(self.mp.expj(value))
        try:
            result = self.tidy(getattr(self.mp, "a" + name[3:] if name.startswith("arc") else name)(value))
        except ZeroDivisionError:
            raise OutOfRange("a pole") from None
        if name in ("sin", "cos", "tan", "cot") and abs(result) < self.noise < abs(value) / 2**200:
            return 0  # sin(pi) is rounding noise, sin(10^-200) is not
        if name in ("tan", "cot", "sec", "csc") and abs(result) * self.noise > 1:
            raise OutOfRange("a pole")  # tan(pi/2) is 10^120 by rounding noise
        return result

    def factorial(self, value: Any) -> int:
        if not (is_whole(value) and 0 <= value <= MAX_FACTORIAL):
            raise OutOfRange("the factorial of a number that is negative, large or no integer")
        self.work.spend(int(value) ** 2 // 500)
        return self.work.exact(math.factorial(int(value)))

    def binomial(self, top: Any, bottom: Any) -> Number:
        if not (is_whole(top) and is_whole(bottom) and bottom >= 0 and 0 <= top <= MAX_FACTORIAL):
            raise OutOfRange("a binomial of numbers that are negative, large or no integers")
        self.work.spend(int(min(bottom, abs(top - bottom))) ** 2 // 10_000)
        return self.work.exact(math.comb(int(top), int(bottom)))

    def floor(self, value: Any) -> int:
        if is_exact(value):
            return math.floor(value)
        if isinstance(value, self.mp.mpc) or abs(value) > 2.0**64:
            raise OutOfRange("floor of a complex or large number")
        nearest = int(self.mp.nint(value))
        return nearest if abs(value - nearest) < self.noise * 2**64 else int(self.mp.floor(value))


def real_value(node: Node, work: Work, point: dict[str, Number] | None = None) -> Fraction:
    """A real number as the rational number that its binary digits stand for. Raises Refused for anything else."""
    if node.names and not point:
        raise Refused("no number")
    value = Evaluator(point or {}, work, None).value(scalar(node))
    if is_exact(value):
        return Fraction(value)
    if value.imag != 0 or abs(value.man_exp[1]) > MAX_BITS:
        raise OutOfRange("a number that is not real, or too long")
    mantissa, exponent = value.man_exp
    return Fraction(-mantissa if value < 0 else mantissa) * Fraction(2) ** exponent


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
