"""Are two scalar trees the same number or function?  Used by answers.py only; trees come from answer_parser.py.

Three ways, each under one work budget that is counted in operations, never in seconds:
  exact     `Evaluator`: int and Fraction arithmetic as far as it goes.
  formal    `Formal`: polynomial identity testing. Rational functions, powers, exponentials and trigonometric functions
            are computed modulo a 127-bit prime with random residues for the variables (Schwartz and Zippel: different
            expressions agree by accident with probability about degree / 2^127). No number is too large for it.
  numeric   `Evaluator` at 400 bits in mpmath for everything else, at fixed pseudo-random rational points where there
            are variables; 2,400 bits where digits cancelled. Equal radicals are proved equal by a separation bound.
"""

import math
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from answer_parser import IMAGINARY, LOG, STEP, SYMBOL, Node, Number, negative, symbols
from answer_text import Refused

MAX_BITS = 100_000  # of an exact number; 2023^2024 has 22,000
MAX_EXPONENT_BITS = 4096  # of an exponent modulo the prime
MAX_FACTORIAL = 5000
MAX_WORK = 1_000_000  # for one pair, in units of very roughly half a microsecond: see Work.spend and its callers
PRECISIONS = (400, 2400)  # bits
GUARD = 100  # two numbers are the same when they agree to all bits but these
SUSPICIOUS = 60  # bits lost to cancellation, beyond which the higher precision decides


class TooLong(Refused):
    """An exact number would have too many digits."""


class NotFormal(Exception):
    """The expression has a part that Formal does not compute."""


class Work:
    """Counts the work for one pair, so that verdicts do not depend on the machine, and keeps what decided."""

    def __init__(self) -> None:
        self.left = MAX_WORK
        self.reasons: list[str] = []

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Refused("work budget spent")

    def exact(self, value: Number) -> Number:
        """Admits an exact value; the gcd behind every Fraction operation is quadratic in its bits."""
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        if bits > MAX_BITS:
            raise TooLong("number too long")
        self.spend(5 + (bits >> 7) ** 2 // 64)
        return value

    def because(self, reason: str, verdict: bool) -> bool:
        self.reasons.append(f"{'equal' if verdict else 'different'}: {reason}")
        return verdict


@lru_cache(maxsize=len(PRECISIONS))
def _mpmath(prec: int) -> Any:
    """A private context. mpmath is imported only here: most pairs never need it."""
    import mpmath

    context = mpmath.mp.clone()
    context.prec = prec
    return context


def warm_up() -> None:
    """Pays the import of mpmath before a clock runs."""
    _mpmath(PRECISIONS[0])


def is_exact(value: Any) -> bool:
    return type(value) is int or type(value) is Fraction


# ---------------------------------------------------------------- exact, then numeric


def _exact_root(value: Number, degree: int) -> Number | None:
    """The real root of a rational where it is rational, by integer Newton iteration."""
    roots = []
    for part in (abs(value.numerator), value.denominator):
        root = math.isqrt(part) if degree == 2 else 1 << -(-part.bit_length() // degree)
        while degree > 2 and (better := ((degree - 1) * root + part // root ** (degree - 1)) // degree) < root:
            root = better
        if root**degree != part:
            return None
        roots.append(root)
    return Fraction(-roots[0] if value < 0 else roots[0], roots[1])


class Evaluator:
    """The value of a scalar tree at one point: exact while that is possible, then mpmath real or complex.

    lost: the most bits that any sum lost to cancellation or swallowed whole.
    """

    def __init__(self, point: dict[str, Number], work: Work, log_base: int | None, prec: int = PRECISIONS[0]) -> None:
        self.point, self.work, self.log_base, self.prec = point, work, log_base, prec
        self.lost, self.cost = 0, prec * prec // PRECISIONS[0] ** 2
        self.noise = 2.0 ** (80 - prec) if prec < 1000 else _mpmath(prec).mpf(2) ** (80 - prec)  # relative

    @property
    def mp(self) -> Any:
        return _mpmath(self.prec)

    def number(self, value: Any) -> Any:
        """To mpmath."""
        self.work.spend(20)
        return self.mp.mpf(value.numerator) / value.denominator if is_exact(value) else value

    def fraction(self, value: Any) -> Fraction:
        """The rational number that a real value is."""
        if is_exact(value):
            return Fraction(value)
        if value.imag != 0:
            raise Refused("not real")
        mantissa, exponent = value.man_exp
        return Fraction(-mantissa if value < 0 else mantissa) * Fraction(2) ** exponent

    def tidy(self, value: Any) -> Any:
        """Drops a real or imaginary part that is rounding noise, so that real stays real."""
        if not self.mp.isfinite(value):
            raise Refused("not finite")
        if isinstance(value, self.mp.mpc):
            if abs(value.imag) <= self.noise * abs(value.real):
                return value.real
            if abs(value.real) <= self.noise * abs(value.imag):
                return self.mp.mpc(0, value.imag)
        return value

    def value(self, node: Node, degree: Any = 1) -> Any:
        """`degree` is what one degree is worth: 1, or pi/180 inside a trigonometric function."""
        self.work.spend(5)
        op, args = node.op, node.args
        if op == "num":
            return args[0]
        if op == "sym":
            return self.point[args[0]]
        if op == "const":
            return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[args[0]]
        if op == "fn":
            return self.function(args[0], args[1])
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
        lost = int(max(sizes) - min(min(sizes), self.mp.mag(total)) if total else self.prec)
        self.lost = max(self.lost, lost)
        return 0 if not total or max(sizes) - self.mp.mag(total) > self.prec - 80 else total

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
        mp_base, mp_exponent = self.number(base), self.number(exponent)
        if abs(mp_exponent) * (1 + abs(self.mp.mag(mp_base))) > 10**6:
            raise Refused("power too large")
        self.work.spend(300 + 200 * self.cost)
        odd_root = is_exact(exponent) and exponent.denominator % 2 == 1
        if odd_root and not isinstance(mp_base, self.mp.mpc) and mp_base < 0:  # school convention: cbrt(-8) = -2
            return self.tidy((-1) ** (exponent.numerator % 2) * (-mp_base) ** mp_exponent)
        return self.tidy(mp_base**mp_exponent)

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
            raise Refused("argument too large")
        short = {"arc" + n: "a" + n for n in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")}
        result = self.tidy(getattr(self.mp, short.get(name, name))(value))
        small = isinstance(result, self.mp.mpf) and abs(result) < self.noise < abs(value) * 2.0**-200
        return 0 if small else result  # sin(pi) is rounding noise, sin(10^-200) is not

    def factorial(self, value: Any) -> Any:
        if is_exact(value) and value.denominator == 1:
            if not 0 <= value <= MAX_FACTORIAL:
                raise Refused("factorial out of bounds")
            self.work.spend(int(value) ** 2 // 500)
            return self.work.exact(math.factorial(int(value)))
        value = self.number(value)
        if abs(value) > MAX_FACTORIAL:
            raise Refused("factorial out of bounds")
        self.work.spend(2000 * self.cost)
        return self.tidy(self.mp.gamma(value + 1))

    def binomial(self, top: Any, bottom: Any) -> Any:
        whole = all(is_exact(v) and v.denominator == 1 for v in (top, bottom))
        if whole and 0 <= bottom and 0 <= top <= MAX_FACTORIAL:
            return self.work.exact(math.comb(int(top), int(bottom)))
        below = [self.factorial(bottom), self.factorial(self.add([top, -bottom]))]
        return self.multiply([self.factorial(top), self.power(self.multiply(below), -1)])

    def floor(self, value: Any) -> int:
        if is_exact(value):
            return math.floor(value)
        if isinstance(value, self.mp.mpc):
            raise ZeroDivisionError("floor of a complex number")
        if abs(value) > 2.0**64:
            raise Refused("floor out of bounds")
        nearest = int(self.mp.nint(value))
        return nearest if abs(value - nearest) < self.noise * 2**64 else int(self.mp.floor(value))


def same_value(a: Any, b: Any, prec: int = PRECISIONS[0]) -> bool:
    if is_exact(a) and is_exact(b):
        return a == b
    if a == 0 or b == 0:
        return a == b
    mp = _mpmath(prec)
    a, b = (mp.mpf(v.numerator) / v.denominator if is_exact(v) else v for v in (a, b))
    return a == b or mp.mag(a - b) <= max(mp.mag(a), mp.mag(b)) + GUARD - prec


# ---------------------------------------------------------------- formal

DEGREE = 720720  # a multiple of 1..16 but 16 itself divides it too; of 180, so that whole degrees are roots of unity
PRIME = 170141183460469231731687303715888429921  # 1 modulo 2 * DEGREE, just above 2^127
ROOT = 20918818750926320630274112437840495023  # of order 2 * DEGREE modulo PRIME: stands for e^(i pi / DEGREE)
PI = (("pi", 1),)
Laurent = dict[tuple, tuple[Number, Number]]  # {monomial ((name, power), ...): (real, imaginary) coefficient}


@lru_cache(maxsize=4096)
def _residue(name: str, trial: int) -> int:
    return random.Random(f"{name}:{trial}").randrange(2, PRIME - 1)


def _times(a: tuple, b: tuple) -> tuple:
    powers = dict(a)
    for name, power in b:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted((n, p) for n, p in powers.items() if p))


class Formal:
    """An expression modulo PRIME. Variables, pi, and e^m for every monomial m are random residues, as if they were
    independent; e^(i pi q) is a power of ROOT, so sines and cosines of rational multiples of pi obey their relations.
    """

    def __init__(self, work: Work, trial: int) -> None:
        self.work, self.trial = work, trial

    def value(self, node: Node) -> int:
        self.work.spend(5)
        op, args = node.op, node.args
        if op == "num":
            value = args[0]
            return value % PRIME if type(value) is int else value.numerator * self.inverse(value.denominator) % PRIME
        if op == "sym":
            return _residue(args[0], self.trial)
        if op == "const":
            return {"pi": self.pi, "e": self.e, "i": self.i}[args[0]]()
        if op == "add":
            return sum([self.value(arg) for arg in args]) % PRIME
        if op in ("mul", "apply"):
            return self.product([self.value(arg) for arg in args])
        if op == "inv":
            return self.inverse(self.value(args[0]))
        if op == "pow":
            return self.power(*args)
        if op == "fn":
            return self.function(*args)
        if op == "deg":
            return self.value(args[0])
        if op == "percent":
            return self.value(args[0]) * self.inverse(100) % PRIME
        if op in ("fact", "binom"):
            return Evaluator({}, self.work, None).value(node) % PRIME if not node.flags & SYMBOL else self.stop(op)
        return self.stop(op)

    def stop(self, what: str) -> int:
        raise NotFormal(what)

    def pi(self) -> int:
        return _residue("pi", self.trial)

    def e(self) -> int:
        return self.exponential({(): (1, 0)})

    def i(self) -> int:
        return pow(ROOT, DEGREE // 2, PRIME)

    def product(self, values: list[int]) -> int:
        total = 1
        for value in values:
            total = total * value % PRIME
        return total

    def inverse(self, value: int) -> int:
        if value % PRIME == 0:
            raise ZeroDivisionError("division by zero")
        self.work.spend(20)
        return pow(value, -1, PRIME)

    def raised(self, base: int, exponent: int) -> int:
        if exponent.bit_length() > MAX_EXPONENT_BITS:
            raise Refused("power too large")
        self.work.spend(10 + exponent.bit_length())
        return pow(base if exponent >= 0 else self.inverse(base), abs(exponent), PRIME)

    def power(self, base: Node, exponent: Node) -> int:
        if base == Node("const", ("e",)):
            return self.exponential(self.laurent(exponent))
        if exponent.flags & SYMBOL:  # 2^n and x^n are e^(n ln 2) and e^(n ln x): the same, with a letter per prime base
            terms = self.laurent(exponent)
            if base.op == "sym":
                return self.symbolic_power(base.args[0], _residue(base.args[0], self.trial), terms)
            if base.op == "num" and type(base.args[0]) is int and 1 < base.args[0] < 10**6:
                factors = _factors(base.args[0])
                return self.product([self.symbolic_power(str(q), q, terms) for q in factors])
            raise NotFormal("power")
        if (n := self.integer(exponent)) is None:
            raise NotFormal("root")
        value = self.value(base)
        if value == 0 and n <= 0:
            raise ZeroDivisionError("a power of zero")
        return self.raised(value, n)

    def integer(self, node: Node) -> int | None:
        value = Evaluator({}, self.work, None).value(node)
        return int(value) if is_exact(value) and value.denominator == 1 else None

    def symbolic_power(self, name: str, base: int, terms: Laurent) -> int:
        total = 1
        for monomial, (real, imaginary) in terms.items():
            if imaginary:
                raise NotFormal("complex power")
            if monomial == ():
                if real.denominator != 1:
                    raise NotFormal("root")
                total = total * self.raised(base, int(real))
            else:
                total = total * self.raised(_residue(f"{name}^{monomial}", self.trial), self.steps(real))
        return total % PRIME

    def steps(self, coefficient: Number) -> int:
        """Residues stand for the DEGREE-th root, so that fractional coefficients are whole powers."""
        steps = coefficient * DEGREE
        if steps.denominator != 1:
            raise NotFormal("fraction of an exponent")
        return int(steps)

    def exponential(self, terms: Laurent) -> int:
        total = 1
        for monomial, (real, imaginary) in terms.items():
            if real:
                total = total * self.raised(_residue(f"e^{monomial}", self.trial), self.steps(real))
            if imaginary:
                base = ROOT if monomial == PI else _residue(f"e^i{monomial}", self.trial)
                total = total * self.raised(base, self.steps(imaginary)) % PRIME
        return total % PRIME

    def function(self, name: str, arg: Node) -> int:
        if name in ("ln", "log") or name.startswith("arc"):
            raise NotFormal(name)
        hyperbolic = name.endswith("h")
        terms = self.laurent(arg, hyperbolic or name == "exp")
        if name == "exp":
            return self.exponential(terms)
        if not hyperbolic:
            terms = {m: (-im, re) for m, (re, im) in terms.items()}  # times i
        plus = self.exponential(terms)
        minus = self.inverse(plus)
        cosine, sine = (plus + minus) * self.inverse(2), (plus - minus) * self.inverse(2)
        if not hyperbolic:
            sine = sine * self.inverse(self.i())
        top, bottom = {"sin": (sine, 1), "cos": (cosine, 1), "tan": (sine, cosine), "cot": (cosine, sine),
                       "sec": (1, cosine), "csc": (1, sine)}[name.removesuffix("h")]  # fmt: skip
        return top * self.inverse(bottom) % PRIME

    def laurent(self, node: Node, plain: bool = True) -> Laurent:
        """An exponent or angle as a polynomial with negative powers allowed; not plain: a degree is pi/180."""
        self.work.spend(20)
        op, args = node.op, node.args
        if op == "num":
            return {(): (args[0], 0)} if args[0] else {}
        if op == "sym":
            return {((args[0], 1),): (1, 0)}
        if op == "const" and args[0] != "e":
            return {(): (0, 1)} if args[0] == "i" else {PI: (1, 0)}
        if op == "add":
            total: Laurent = {}
            for arg in args:
                for monomial, (re, im) in self.laurent(arg, plain).items():
                    old = total.get(monomial, (0, 0))
                    total[monomial] = (self.work.exact(old[0] + re), self.work.exact(old[1] + im))
            return {m: c for m, c in total.items() if c != (0, 0)}
        if op in ("mul", "apply"):
            product = self.laurent(args[0], plain)
            for arg in args[1:]:
                product = self.laurent_product(product, self.laurent(arg, plain))
            return product
        if op == "deg":
            inner = self.laurent(args[0], plain)
            return inner if plain else self.laurent_product(inner, {PI: (Fraction(1, 180), 0)})
        if op in ("inv", "pow"):
            power = -1 if op == "inv" else self.integer(args[1]) if not args[1].flags & SYMBOL else None
            inner = self.laurent(args[0], plain)
            if power is not None and len(inner) == 1 and abs(power) < 100:
                ((monomial, (re, im)),) = inner.items()
                if not im:
                    return {tuple((n, p * power) for n, p in monomial): (self.work.exact(Fraction(re) ** power), 0)}
        raise NotFormal(op)

    def laurent_product(self, a: Laurent, b: Laurent) -> Laurent:
        if len(a) * len(b) > 100:
            raise NotFormal("too many terms")
        total: Laurent = {}
        for m, (a_re, a_im) in a.items():
            for n, (b_re, b_im) in b.items():
                key = _times(m, n)
                old = total.get(key, (0, 0))
                re, im = old[0] + a_re * b_re - a_im * b_im, old[1] + a_re * b_im + a_im * b_re
                total[key] = (self.work.exact(re), self.work.exact(im))
        return {m: c for m, c in total.items() if c != (0, 0)}


def _factors(n: int) -> list[int]:
    found, q = [], 2
    while q * q <= n:
        while n % q == 0:
            found.append(q)
            n //= q
        q += 1
    return [*found, n] if n > 1 else found


# ---------------------------------------------------------------- proof for radicals


def separation_bits(node: Node, work: Work) -> float:
    """B such that the value of a radical expression is 0 or larger than 2^-B in absolute value; infinite if unknown.

    The bound of Burnikel, Funke, Mehlhorn, Schirra and Schmitt, "A Separation Bound for Real Algebraic Expressions"
    (2001): |E| >= 1 / (l u^(D-1)), with u and l below in bits and D the product of the degrees of the distinct roots.
    """
    roots: dict[tuple, int] = {}

    def bounds(node: Node) -> tuple[float, float]:
        work.spend(5)
        op, args = node.op, node.args
        if op == "num":
            return float(abs(args[0].numerator).bit_length()), float(args[0].denominator.bit_length())
        if op == "const" and args[0] == "i":
            roots["i"] = 2
            return 0.0, 0.0
        if op in ("fact", "binom"):
            return float(Evaluator({}, work, None).value(node).numerator.bit_length()), 0.0
        if op not in ("add", "mul", "inv", "pow", "percent", "deg"):
            return math.inf, math.inf
        if op == "pow":
            exponent = Evaluator({}, work, None).value(args[1])
            if not is_exact(exponent):
                return math.inf, math.inf
            u, low = bounds(args[0])
            if (k := exponent.denominator) > 1:
                roots[args[0], k] = k
                u, low = ((u + (k - 1) * low) / k, low) if u >= low else (u, (u * (k - 1) + low) / k)
            u, low = u * abs(exponent.numerator), low * abs(exponent.numerator)
            return (u, low) if exponent >= 0 else (low, u)
        parts = [bounds(arg) for arg in args]
        if op == "inv":
            return parts[0][1], parts[0][0]
        us, lows = zip(*parts, strict=True)
        if op == "add":
            return max(us) + sum(lows) + math.log2(len(us)), sum(lows)
        return sum(us), sum(lows) + 7 * (op == "percent")

    u, low = bounds(node)
    return low + u * (math.prod(roots.values()) - 1) if math.isfinite(u + low) else math.inf


# ---------------------------------------------------------------- the comparison

INTEGER_NAMES = set("jklmnN")  # what authors call integers; it matters where a step function is around


@lru_cache(maxsize=4096)
def _coordinate(name: str, k: int) -> Fraction:
    """Rationals have powers of two below, so that (-1)^x is never taken for real."""
    dice, top = random.Random(f"{name}:{k}"), (7, 30, 120, 30, 15)[k % 5]
    sign = 1 if k % 5 < 3 else dice.choice((-1, 1))
    return Fraction(sign * (2 * dice.randint(0, top) + 1), dice.choice((16, 32)))


def _points(names: list[str], whole: bool, steps: bool = False) -> Iterator[dict[str, Number]]:
    """Fixed points: three positive rationals, then two of mixed signs; or the integers 1..40, shuffled per name.

    With steps, n is an integer in the first kind too.
    """
    for k in range(40 if whole else 5):
        yield {
            name: (k * (1 + 2 * j) + j) % 40 + 1 if whole or (steps and name in INTEGER_NAMES) else _coordinate(name, k)
            for j, name in enumerate(names)
        }


def values_at_points(nodes: list[Node], work: Work, log_base: int | None) -> Iterator[list]:
    """The nodes' values at common points. Outside their real domain (no i in sight) expressions are not compared.

    Raises Refused at the end when fewer than two points gave values.
    """
    flags = nodes[0].flags | nodes[1].flags
    names = sorted(symbols(nodes[0]) | symbols(nodes[1]))
    if not names:
        yield [Evaluator({}, work, log_base).value(node) for node in nodes]
        return
    found = 0

    def rows(points: Iterator[dict], only_real: bool) -> Iterator[list]:
        nonlocal found
        for point in points:
            try:
                row = [Evaluator(point, work, log_base).value(node) for node in nodes]
            except ZeroDivisionError:
                continue
            if not only_real or all(is_exact(v) or v.imag == 0 for v in row):
                found += 1
                yield row

    yield from rows(_points(names, False, bool(flags & STEP)), not flags & IMAGINARY)
    if flags & STEP or found < 2:
        yield from rows(_points(names, True), True)
    if found < 2:
        yield from rows(_points(names, False), False)
    if found < 2:
        raise Refused("no points where both are defined")


def _log_bases(*nodes: Node) -> tuple:
    """\\log without a base is natural for some, decimal for others: both are tried, the same on both sides."""
    return (None, 10) if any(node.flags & LOG for node in nodes) else (None,)


def _same_number(a: Node, b: Node, work: Work, log_base: int | None) -> bool:
    """Without variables: exact if both are rational, else 400 bits, 2,400 where those do not settle it, and a proof."""
    needed = None
    for prec in PRECISIONS:
        evaluator = Evaluator({}, work, log_base, prec)
        x, y = evaluator.value(a), evaluator.value(b)
        if evaluator.lost == 0 and is_exact(x) and is_exact(y):
            return work.because("exact arithmetic", x == y)
        close = same_value(x, y, prec)
        if not close and evaluator.lost <= SUSPICIOUS:
            return work.because(f"the values differ within {prec} bits", False)
        if close:
            needed = separation_bits(Node("add", (a, negative(b))), work) if needed is None else needed
            size = needed if x == 0 else max(0, int(evaluator.mp.mag(evaluator.number(x))))
            if needed + size < prec - GUARD:
                return work.because(f"{prec} bits agree, and unequal radicals differ by 2^-{needed:.0f}", True)
            if needed > PRECISIONS[-1] and evaluator.lost <= SUSPICIOUS:
                break
    if not close:
        return work.because(f"the values differ within {prec} bits", False)
    try:
        return _same_formally(a, b, work)
    except NotFormal:
        return work.because(f"the values agree to {int((prec - GUARD) * math.log10(2))} digits", True)


def _same_formally(a: Node, b: Node, work: Work) -> bool:
    same = all(Formal(work, trial).value(a) == Formal(work, trial).value(b) for trial in range(2))
    return work.because(f"{'an' if same else 'no'} identity at random points modulo a 127-bit prime", same)


def same_scalar(a: Node, b: Node, work: Work) -> bool:
    """The same number, or the same function of the same variables."""
    if a.op == b.op == "num":
        return work.because("exact arithmetic", a.args == b.args)
    if a == b:
        return work.because("the same expression", True)
    if not (a.flags | b.flags) & SYMBOL:
        try:
            return any(_same_number(a, b, work, log_base) for log_base in _log_bases(a, b))
        except TooLong:
            pass
    try:
        return _same_formally(a, b, work)
    except NotFormal:
        pass
    for log_base in _log_bases(a, b):
        if all(same_value(x, y) for x, y in values_at_points([a, b], work, log_base)):
            return work.because("the values agree to 90 digits at random points", True)
    return work.because("the values differ at a random point", False)


def proportional(a: Node, b: Node, positive: bool, work: Work) -> bool:
    """a = c b with one constant c, nonzero or positive: the same equation (a = 0) or inequality (a < 0)."""
    if not positive:
        try:
            ratios = [Formal(work, t).value(a) * Formal(work, t).inverse(Formal(work, t).value(b)) for t in range(3)]
            return len({ratio % PRIME for ratio in ratios}) == 1 and ratios[0] % PRIME != 0
        except NotFormal:
            pass
    for log_base in _log_bases(a, b):
        rows = list(values_at_points([a, b], work, log_base))
        evaluator = Evaluator({}, work, None)
        if any((x == 0) != (y == 0) for x, y in rows):
            continue
        ratios = [evaluator.multiply([x, evaluator.power(y, -1)]) for x, y in rows if y != 0]
        if len(ratios) > 1 and all(same_value(r, ratios[0]) for r in ratios):
            return not positive or (is_exact(ratios[0]) or ratios[0].imag == 0) and ratios[0] > 0
    return False
