"""The value of a scalar tree at one point: in int and Fraction arithmetic as far as that goes, then with mpmath.

Sizes are bounded before anything is computed, and `Work` counts operations, never seconds.
"""

import math
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
