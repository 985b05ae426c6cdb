"""The value of a scalar tree: exact in int and Fraction arithmetic as far as that goes, then in mpmath.

Used by `compare` and `identities`. Sizes are bounded before anything is computed, and `Work` counts operations, never
seconds.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grader.parser import Node, Number
from grader.text import Refused

MAX_BITS = 100_000  # of an exact number; 2023^2024 has 22,000
MAX_FACTORIAL = 5000
MAX_TERMS = 1000  # of a sum or product
MAX_WORK = 1_000_000  # for one pair, in units of very roughly half a microsecond: see Work.spend and its callers
PRECISIONS = (400, 2400)  # bits
GUARD = 100  # two numbers are the same when they agree to all bits but these


class TooLong(Refused):
    """An exact number would have too many digits."""


class OutOfRange(Refused):
    """A number is too large for a function; at another point it may not be."""


class NoMoreDigits(Refused):
    """A function that is computed at the first of PRECISIONS only."""


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
        """Returns `value` and spends what it costs: the gcd in every Fraction operation is quadratic in its bits.

        Raises TooLong above MAX_BITS.
        """
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        if bits > MAX_BITS:
            raise TooLong("number too long")
        self.spend(5 + (bits >> 7) ** 2 // 64)
        return value

    def because(self, reason: str, verdict: bool) -> bool:
        self.reasons.append(f"{'equal' if verdict else 'different'}: {reason}")
        return verdict


@lru_cache(maxsize=len(PRECISIONS))
def mpmath_at(prec: int) -> Any:
    """A private context. mpmath is imported only here: most pairs never need it."""
    import mpmath

    context = mpmath.mp.clone()
    context.prec = prec
    return context


def warm_up() -> None:
    """Pays the import of mpmath before a clock runs."""
    mpmath_at(PRECISIONS[0])


def is_exact(value: Any) -> bool:
    return type(value) is int or type(value) is Fraction


# ---------------------------------------------------------------- exact, then numeric


def _exact_root(value: Number, degree: int) -> Number | None:
    """The real root of a rational number, by integer Newton iteration; None where it is irrational."""
    roots = []
    for n in (abs(value.numerator), value.denominator):
        root = math.isqrt(n) if degree == 2 else 1 << -(-n.bit_length() // degree)
        while degree > 2 and (better := ((degree - 1) * root + n // root ** (degree - 1)) // degree) < root:
            root = better
        if root**degree != n:
            return None
        roots.append(root)
    return Fraction(-roots[0] if value < 0 else roots[0], roots[1])


class Evaluator:
    """The value of a scalar tree at one point: exact while that is possible, then mpmath real or complex.

    point: the value of each variable. log_base: the base of \\log where none is written; None is e. prec: bits.
    lost: the most bits that any sum lost to cancellation. swallowed: the most bits between two terms of one sum.
    """

    def __init__(self, point: dict[str, Number], work: Work, log_base: int | None, prec: int = PRECISIONS[0]) -> None:
        self.point, self.work, self.log_base, self.prec = point, work, log_base, prec
        self.lost, self.swallowed, self.cost = 0, 0, prec * prec // PRECISIONS[0] ** 2
        self.noise = 2.0 ** (80 - prec) if prec < 1000 else mpmath_at(prec).mpf(2) ** (80 - prec)  # relative

    @property
    def mp(self) -> Any:
        return mpmath_at(self.prec)

    def number(self, value: Any) -> Any:
        """The value as an mpmath number."""
        self.work.spend(20)
        if type(value) is Fraction:
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > self.prec - GUARD:
                self.swallowed = self.prec  # it may be nearer to a round value than mpmath can see
            return self.mp.mpf(value.numerator) / value.denominator
        return self.mp.mpf(value) if type(value) is int else value

    def fraction(self, value: Any) -> Fraction:
        """A real value as the rational number that its binary digits stand for. Raises Refused where it is complex."""
        if is_exact(value):
            return Fraction(value)
        if value.imag != 0:
            raise Refused("not real")
        mantissa, exponent = value.man_exp
        return Fraction(-mantissa if value < 0 else mantissa) * Fraction(2) ** exponent

    def tidy(self, value: Any) -> Any:
        """Drops a real or imaginary part that is rounding noise, so that real values stay real."""
        if not self.mp.isfinite(value):
            raise Refused("not finite")
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
        if op in ("mul", "apply"):
            return self.multiply(values)
        if op in ("inv", "pow"):
            return self.power(values[0], -1 if op == "inv" else values[1])
        if op == "deg":
            return self.multiply([values[0], degree])
        if op == "percent":
            return self.multiply([values[0], Fraction(1, 100)])
        if op == "log":
            return self.multiply([self.log(values[1]), self.power(self.log(values[0]), -1)])
        if op == "fact":
            return self.factorial(values[0])
        if op == "binom":
            return self.binomial(*values)
        if op == "abs":
            return abs(values[0])
        if op in ("floor", "ceil"):
            return self.floor(values[0]) if op == "floor" else -self.floor(-values[0])
        raise Refused(f"a {op} among numbers")

    def series(self, name: str, index: str, low: Node, high: Node, body: Node) -> Any:
        """A sum or product over the integers from low to high, term by term."""
        first, last = self.value(low), self.value(high)
        if not all(is_exact(end) and end.denominator == 1 for end in (first, last)):
            raise ZeroDivisionError("a series between ends that are no integers")
        if last < first - 1:
            raise ZeroDivisionError("a series from above to below")
        if last - first > MAX_TERMS:
            raise OutOfRange("too many terms")
        outer, terms = self.point, []
        for k in range(int(first), int(last) + 1):
            self.point = {**outer, index: k}
            terms.append(self.value(body))
        self.point = outer
        return self.add(terms) if name == "sum" else self.multiply(terms)

    def add(self, values: list) -> Any:
        exact: Number = 0
        rest = []
        for value in values:
            if is_exact(value):
                exact = self.work.exact(exact + value)
            else:
                rest.append(value)
        if not rest:
            return exact
        if exact:
            rest.append(self.number(exact))
        total = self.tidy(self.mp.fsum(rest))
        sizes = [self.mp.mag(v) for v in rest if v]
        if not sizes:
            return 0
        lost = max(sizes) - self.mp.mag(total) if total else self.prec
        self.swallowed = max(self.swallowed, max(sizes) - min(sizes))
        if lost > self.prec - 80:
            if self.prec == PRECISIONS[-1] and max(sizes) > self.prec // 2:
                raise Refused("huge numbers that cancel")
            self.lost = self.prec
            return 0
        self.lost = max(self.lost, lost)
        return total

    def multiply(self, values: list) -> Any:
        exact: Number = 1
        rest = []
        for value in values:
            if is_exact(value):
                exact = self.work.exact(exact * value)
            else:
                rest.append(value)
        if not rest or exact == 0:
            return exact
        total = rest[0] if exact == 1 else self.number(exact) * rest[0]
        for value in rest[1:]:
            self.work.spend(20)
            total = total * value
        return self.tidy(total)

    def power(self, base: Any, exponent: Any) -> Any:
        if is_exact(base) and is_exact(exponent):
            exact = self.exact_power(base, exponent)
            if exact is not None:
                return exact
        if base == 0:
            raise Refused("a power of zero")
        mp_base = self.number(base)
        if abs(exponent) * (1 + abs(self.mp.mag(mp_base))) > 10**6:
            raise OutOfRange("power too large")
        self.work.spend(300 + 200 * self.cost)
        if is_exact(exponent):
            if exponent.denominator == 1:
                return self.tidy(mp_base ** int(exponent))
            if exponent.denominator == 2:
                return self.tidy(self.mp.sqrt(mp_base) ** exponent.numerator)
            if exponent.denominator % 2 == 1 and not isinstance(mp_base, self.mp.mpc) and mp_base < 0:
                sign = (-1) ** (exponent.numerator % 2)  # school convention: cbrt(-8) = -2
                return self.tidy(sign * (-mp_base) ** self.number(exponent))
        return self.tidy(mp_base ** self.number(exponent))

    def exact_power(self, base: Number, exponent: Number) -> Number | None:
        """None where the power is irrational. Sizes are bounded before the power is taken."""
        if base == 0 and exponent > 0 or base == 1:
            return base
        if exponent.denominator > 1:
            if exponent.denominator > 1000 or (base < 0 and exponent.denominator % 2 == 0):
                return None
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            self.work.spend(bits * exponent.denominator // 16)
            root = _exact_root(base, exponent.denominator)
            return None if root is None else self.exact_power(root, exponent.numerator)
        exponent = exponent.numerator
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > MAX_BITS and base != -1:
            raise TooLong("power too large")
        if base == 0:
            raise ZeroDivisionError("a power of zero")
        if base == -1:
            return 1 - 2 * (exponent % 2)
        return self.work.exact(base**exponent if exponent >= 0 else Fraction(base) ** exponent)

    def log(self, value: Any) -> Any:
        if value == 0:
            raise ZeroDivisionError("log of zero")
        if value == 1:
            return 0
        self.work.spend(300 * self.cost)
        return self.tidy(self.mp.log(self.number(value)))

    def function(self, name: str, arg: Node) -> Any:
        trig = name not in ("exp", "ln", "log") and not name.endswith("h")
        value = self.value(arg, self.mp.pi / 180 if trig and not name.startswith("arc") else 1)
        if name in ("ln", "log"):
            natural = self.log(value)
            base = self.log_base if name == "log" else None
            return natural if base is None else self.multiply([natural, 1 / self.mp.log(base)])
        self.work.spend(500 * self.cost)
        value = self.number(value)
        if abs(value) > 10**6:
            raise OutOfRange("argument too large")
        short = {"arc" + n: "a" + n for n in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")}
        result = self.tidy(getattr(self.mp, short.get(name, name))(value))
        small = isinstance(result, self.mp.mpf) and abs(result) < self.noise < abs(value) * 2.0**-200
        return 0 if small else result  # sin(pi) is rounding noise, sin(10^-200) is not

    def factorial(self, value: Any) -> Any:
        if is_exact(value) and value.denominator == 1:
            if not 0 <= value <= MAX_FACTORIAL:
                raise OutOfRange("factorial out of bounds")
            self.work.spend(int(value) ** 2 // 500)
            return self.work.exact(math.factorial(int(value)))
        value = self.number(value)
        if abs(value) > MAX_FACTORIAL:
            raise OutOfRange("factorial out of bounds")
        if self.prec > PRECISIONS[0]:
            raise NoMoreDigits("the gamma function")  # its first call would take a second
        self.work.spend(2000)
        try:
            return self.tidy(self.mp.gamma(value + 1))
        except ValueError:
            raise ZeroDivisionError("a pole of the gamma function") from None

    def binomial(self, top: Any, bottom: Any) -> Any:
        whole = all(is_exact(v) and v.denominator == 1 for v in (top, bottom))
        if whole and 0 <= bottom and 0 <= top <= MAX_FACTORIAL:
            self.work.spend(int(min(bottom, abs(top - bottom))) ** 2 // 10_000)
            return self.work.exact(math.comb(int(top), int(bottom)))
        below = [self.factorial(bottom), self.factorial(self.add([top, -bottom]))]
        return self.multiply([self.factorial(top), self.power(self.multiply(below), -1)])

    def floor(self, value: Any) -> int:
        if is_exact(value):
            return math.floor(value)
        if isinstance(value, self.mp.mpc):
            raise ZeroDivisionError("floor of a complex number")
        if abs(value) > 2.0**64:
            raise OutOfRange("floor out of bounds")
        nearest = int(self.mp.nint(value))
        return nearest if abs(value - nearest) < self.noise * 2**64 else int(self.mp.floor(value))


def same_value(a: Any, b: Any, prec: int = PRECISIONS[0]) -> bool:
    """Whether two values, computed to `prec` bits, agree in all but the last GUARD; exact values must be equal."""
    if is_exact(a) and is_exact(b):
        return a == b
    if a == 0 or b == 0:
        return a == b
    mp = mpmath_at(next(p for p in PRECISIONS if p >= prec))
    a, b = (mp.mpf(v.numerator) / v.denominator if is_exact(v) else v for v in (a, b))
    return a == b or mp.mag(a - b) <= max(mp.mag(a), mp.mag(b)) + GUARD - prec
