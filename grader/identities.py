"""Decides whether two scalar trees of `parser` are the same number or function; used by `compare`.

There are three ways, under one work budget:
  exact    rational numbers in int and Fraction arithmetic (`values`).
  formal   `Formal`: polynomial identity testing. Rational functions, powers, exponentials and trigonometric functions
           are computed modulo a 127-bit prime with random residues for the variables (Schwartz and Zippel: different
           expressions agree by accident with probability about degree / 2^127). No number is too large for it.
  numeric  everything else: numbers at 400 bits, and at 2,400 where 400 do not decide (a separation bound proves
           radicals and sines of rational multiples of pi equal); functions at 400 bits at fixed pseudo-random points
           of both signs, at integers where they step, and on both sides of the numbers written in them.
"""

import itertools
import math
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from grader.parser import FACTORIAL, IMAGINARY, INFINITY, LOG, NATURAL, STEP, SYMBOL, Node, Number, negative, symbols
from grader.text import Refused
from grader.values import GUARD, PRECISIONS, Evaluator, NoMoreDigits, OutOfRange, TooLong, Work, is_exact, same_value

MAX_EXPONENT_BITS = 4096  # of an exponent modulo the prime
MAX_LITERAL = 10**30  # of a number that is written out
MINUS_INFINITY = negative(INFINITY)
SUSPICIOUS = 60  # bits lost to cancellation, beyond which the higher precision decides


class NotFormal(Exception):
    """The expression has a part that Formal does not compute."""


# ---------------------------------------------------------------- formal

DEGREE = 720720  # the least common multiple of 1..16, and a multiple of 180 (degrees)
PRIME = 170141183460469231731687303715888429921  # 1 modulo 2 * DEGREE, just above 2^127
ROOT = 20918818750926320630274112437840495023  # of order 2 * DEGREE modulo PRIME: stands for e^(i pi / DEGREE)
PI = (("pi", 1),)
Laurent = dict[tuple, tuple[Number, Number]]  # {monomial ((name, power), ...): (real, imaginary) coefficient}


@lru_cache(maxsize=4096)
def _residue(name: str, trial: int) -> int:
    return random.Random(f"{name}:{trial}").randrange(2, PRIME - 1)


def _times(a: tuple, b: tuple) -> tuple:
    """The product of two monomials."""
    powers = dict(a)
    for name, power in b:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted((n, p) for n, p in powers.items() if p))


class Formal:
    """Computes an expression modulo PRIME. Variables, pi, and e^m for every monomial m are random residues, as if they
    were independent; those of variables change with `trial`. e^(i pi q) is a power of ROOT, so that sines and cosines
    of rational multiples of pi obey their relations.
    """

    def __init__(self, work: Work, trial: int) -> None:
        self.work, self.trial = work, trial

    def value(self, node: Node) -> int:
        self.work.spend(5)
        op, args = node.op, node.args
        if op == "num":
            value = args[0]
            if max(abs(value.numerator), value.denominator) > MAX_LITERAL:
                raise NotFormal("a number that could be a multiple of the prime")
            return value % PRIME if type(value) is int else value.numerator * self.inverse(value.denominator) % PRIME
        if op == "sym":
            if args[0] == "∞":
                raise Refused("arithmetic with infinity")
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
            value = self.integer(node)
            return self.stop(op) if value is None else value % PRIME
        return self.stop(op)

    def stop(self, what: str) -> int:
        raise NotFormal(what)

    def pi(self) -> int:
        return _residue("pi", 0)

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
        if exponent.flags & SYMBOL:  # 2^n and x^n, like e^n: a residue for each prime or variable base and monomial
            terms = self.laurent(exponent)
            if base.op == "sym":
                return self.symbolic_power(base.args[0], _residue(base.args[0], self.trial), terms)
            value = None if base.flags & SYMBOL else Evaluator({}, self.work, None).value(base)
            if is_exact(value) and 0 < value.numerator < 10**6 and value.denominator < 10**6:
                above = self.product([self.symbolic_power(str(q), q, terms) for q in _prime_factors(value.numerator)])
                below = self.product([self.symbolic_power(str(q), q, terms) for q in _prime_factors(value.denominator)])
                return above * self.inverse(below) % PRIME
            raise NotFormal("power")
        if (n := self.integer(exponent)) is None:
            raise NotFormal("root")
        value = self.value(base)
        if value == 0 and n <= 0:
            raise ZeroDivisionError("a power of zero")
        return self.raised(value, n)

    def integer(self, node: Node) -> int | None:
        """The value of a node that is exactly an integer, else None."""
        if node.flags & SYMBOL:
            return None
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
        """A coefficient times DEGREE: residues stand for e^(m / DEGREE), so that fractions of m are whole powers."""
        steps = coefficient * DEGREE
        if steps.denominator != 1:
            raise NotFormal("fraction of an exponent")
        return int(steps)

    def exponential(self, terms: Laurent) -> int:
        total = 1
        for monomial, (real, imaginary) in terms.items():
            constant = all(name == "pi" for name, _ in monomial)  # `proportional` compares constants between trials
            trial = 0 if constant else self.trial
            if real:
                total = total * self.raised(_residue(f"e^{monomial}", trial), self.steps(real))
            if imaginary:
                base = ROOT if monomial == PI else _residue(f"e^i{monomial}", trial)
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
        quotients = {"sin": (sine, 1), "cos": (cosine, 1), "tan": (sine, cosine), "cot": (cosine, sine)}
        quotients |= {"sec": (1, cosine), "csc": (1, sine)}
        top, bottom = quotients[name.removesuffix("h")]
        return top * self.inverse(bottom) % PRIME

    def laurent(self, node: Node, plain: bool = True) -> Laurent:
        """An exponent or angle as a polynomial with negative powers allowed. A degree is 1 if `plain`, else pi/180."""
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
            power = -1 if op == "inv" else self.integer(args[1])
            inner = self.laurent(args[0], plain)
            if power is not None and len(inner) == 1 and abs(power) < 100:
                monomial, (re, im) = next(iter(inner.items()))
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


def _prime_factors(n: int) -> list[int]:
    primes, q = [], 2
    while q * q <= n:
        while n % q == 0:
            primes.append(q)
            n //= q
        q += 1
    return [*primes, n] if n > 1 else primes


# ---------------------------------------------------------------- proof for radicals


def separation_bits(node: Node, work: Work) -> float:
    """B such that the value of a radical expression is 0 or larger than 2^-B in absolute value; infinite if unknown.

    The bound of Burnikel, Funke, Mehlhorn, Schirra and Schmitt, "A Separation Bound for Real Algebraic Expressions"
    (2001): |E| >= 1 / (l u^(D-1)), with u and l below in bits and D the product of the degrees of the distinct roots.
    Sines and cosines of rational multiples of pi belong: twice their values are integers of a cyclotomic field.
    """
    roots: dict[tuple, int] = {}
    order = 1  # of the root of unity behind all sines and cosines

    def bounds(node: Node) -> tuple[float, float]:  # (u, l)
        nonlocal order
        work.spend(5)
        op, args = node.op, node.args
        if op == "num":
            return float(abs(args[0].numerator).bit_length()), float(args[0].denominator.bit_length())
        if op == "const" and args[0] == "i":
            roots["i"] = 2
            return 0.0, 0.0
        if op in ("fact", "binom"):
            value = Evaluator({}, work, None).value(node)
            return (float(value.numerator.bit_length()), 0.0) if is_exact(value) else (math.inf, math.inf)
        if op == "fn" and args[0] in ("sin", "cos", "tan", "sec", "csc", "cot"):
            angle = Formal(work, 0).laurent(args[1], plain=False)
            if set(angle) <= {PI} and not any(imaginary for _, imaginary in angle.values()):
                order = math.lcm(order, 4 * angle.get(PI, (1, 0))[0].denominator)
                return (1.0, 1.0) if order < 10_000 else (math.inf, math.inf)
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
        pairs = [bounds(arg) for arg in args]
        if op == "inv":
            return pairs[0][1], pairs[0][0]
        us, lows = zip(*pairs, strict=True)
        if op == "add":
            return max(us) + sum(lows) + math.log2(len(us)), sum(lows)
        return sum(us), sum(lows) + 7 * (op == "percent")

    try:
        u, low = bounds(node)
    except NotFormal:
        return math.inf
    if not math.isfinite(u + low):
        return math.inf
    totient = sum(math.gcd(k, order) == 1 for k in range(order))
    return low + u * (math.prod(roots.values()) * totient - 1)


# ---------------------------------------------------------------- the comparison

INTEGER_NAMES = set("jklmnN")  # what authors call integers; it matters where a step function is around
REAL_POINTS, WHOLE_POINTS, STEP_POINTS = 10, 16, 32


@lru_cache(maxsize=4096)
def _size(name: str, k: int) -> Fraction:
    """The size of a variable at point k, from 1/32 to thousands. Odd over 16 or 32, so that (-1)^x is never real."""
    dice, top = random.Random(f"{name}:{k}"), (7, 30, 120, 30, 15, 60, 1000, 30, 40_000, 15)[k % REAL_POINTS]
    return Fraction(2 * dice.randint(0, top) + 1, dice.choice((16, 32)))


@lru_cache(maxsize=4096)
def _whole(name: str, k: int, j: int) -> int:
    """The j-th variable's integer at point k; 2^n points in a row show n variables in every pattern of even and odd."""
    return 2 * random.Random(f"{name}:{k}").randint(1, 100 if k % 8 == 7 else 20) - (k >> j & 1)


def _real_points(names: list[str], steps: bool, few: bool = False) -> Iterator[dict[str, Number]]:
    """Three positive points, one all negative, then points where the signs of the j-th variable spell j + 1 in binary.

    So every variable takes both signs, and every two variables equal and opposite ones.
    """
    for k in range(2, 5) if few else range(REAL_POINTS):
        point: dict[str, Number] = {}
        for j, name in enumerate(names):
            below_zero = k == 3 or k > 3 and (j + 1) >> (k - 4) & 1
            if steps and name in INTEGER_NAMES:
                point[name] = _whole(name, k, j)
            else:
                point[name] = -_size(name, k) if below_zero else _size(name, k)
        yield point


def _whole_points(names: list[str], count: int) -> Iterator[dict[str, Number]]:
    for k in range(count):
        yield {name: _whole(name, k, j) for j, name in enumerate(names)}


def _subtrees(node: Node) -> Iterator[Node]:
    yield node
    for arg in node.args:
        if type(arg) is Node:
            yield from _subtrees(arg)


def _break_points(names: list[str], nodes: list[Node], steps: bool) -> Iterator[dict[str, Number]]:
    """Both sides of each number in the expressions: |x - 20| and the root of (x - 20)^2 change their formula at 20."""
    subtrees = [subtree for node in nodes for subtree in _subtrees(node)]
    if not any(n.op in ("abs", "floor", "ceil") or n.op == "pow" and n.args[1].op != "num" for n in subtrees):
        return
    numbers = {abs(n.args[0]) for n in subtrees if n.op == "num" and 1 < abs(n.args[0]) < 10**9}
    for number in sorted(numbers)[:4]:
        for sign, side in itertools.product((1, -1), (1, -1)):
            point = {name: sign * (number + side * Fraction(3 * (j + 1), 16)) for j, name in enumerate(names)}
            yield {n: round(v) + side if steps and n in INTEGER_NAMES else v for n, v in point.items()}


def values_at_points(nodes: list[Node], work: Work, log_base: int | None) -> Iterator[tuple[Any, Any, int]]:
    """Yields (value of one node, value of the other, bits to compare) at points where both are defined.

    Where neither contains i, points at which a value is not real are left out.
    Raises Refused at the end when fewer than two points gave values.
    """
    flags = nodes[0].flags | nodes[1].flags
    names = sorted(symbols(nodes[0]) | symbols(nodes[1]))
    num_rows = 0

    def rows(points: Iterator[dict], only_real: bool) -> Iterator[tuple[Any, Any, int]]:
        nonlocal num_rows
        for point in points:
            try:
                evaluator = Evaluator(point, work, log_base)
                row = [evaluator.value(node) for node in nodes]
                if evaluator.swallowed > PRECISIONS[0] - GUARD or evaluator.lost == PRECISIONS[0]:
                    evaluator = Evaluator(point, work, log_base, PRECISIONS[-1])
                    row = [evaluator.value(node) for node in nodes]
            except (ZeroDivisionError, OutOfRange):
                continue
            if not only_real or all(is_exact(v) or v.imag == 0 for v in row):
                num_rows += 1
                yield *row, max(2 * GUARD, evaluator.prec - evaluator.lost)

    steps, factorials = bool(flags & STEP), bool(flags & FACTORIAL)
    yield from rows(_real_points(names, steps, few=factorials), not flags & IMAGINARY)
    if not (factorials or flags & IMAGINARY):
        yield from rows(_break_points(names, nodes, steps), True)
    if steps or factorials or num_rows < 2:  # (-1)^n is real at integers only, n! is fast there
        yield from rows(_whole_points(names, STEP_POINTS if steps else WHOLE_POINTS), True)
    if num_rows < 2:
        yield from rows(_real_points(names, False), False)
    if num_rows < 2:
        raise Refused("no points where both are defined")


def _log_bases(a: Node, b: Node) -> tuple:
    """The bases in which to compare: \\log without one is natural (None) for some authors and decimal for others.

    If both sides have it, they must agree in both bases; if one has it, natural where the other has ln or e, else 10.
    """
    if not (a.flags | b.flags) & LOG:
        return (None,)
    if a.flags & b.flags & LOG:
        return (None, 10)
    other = a if b.flags & LOG else b
    return (None,) if other.flags & NATURAL else (10,)


def _same_number(a: Node, b: Node, work: Work, log_base: int | None) -> bool:
    """Compares constants: exactly if both are rational, else at 400 bits, then 2,400. If they agree, a separation bound
    or else `_same_formally` must confirm it; where neither applies, the digits decide.
    """
    needed = None
    for prec in PRECISIONS:
        evaluator = Evaluator({}, work, log_base, prec)
        try:
            x, y = evaluator.value(a), evaluator.value(b)
        except NoMoreDigits:
            prec = PRECISIONS[0]
            break
        if evaluator.lost == evaluator.swallowed == 0 and is_exact(x) and is_exact(y):
            return work.because("exact arithmetic", x == y)
        close = same_value(x, y, max(2 * GUARD, prec - evaluator.lost))
        settled = max(evaluator.lost, evaluator.swallowed) <= SUSPICIOUS
        if not close and (settled or prec == PRECISIONS[-1]):
            return work.because(f"the values differ within {prec} bits", False)
        if close:
            needed = separation_bits(Node("add", (a, negative(b))), work) if needed is None else needed
            size = needed if x == 0 else max(0, int(evaluator.mp.mag(evaluator.number(x))))
            if needed + size + evaluator.lost < prec - GUARD:
                return work.because(f"{prec} bits agree, and unequal radicals differ by 2^-{needed:.0f}", True)
    if evaluator.swallowed > prec - GUARD:
        raise Refused(f"a difference too small for {prec} bits")
    try:
        return _same_formally(a, b, work)
    except NotFormal:
        return work.because(f"the values agree to {int((prec - GUARD) * math.log10(2))} digits", close)


def _same_formally(a: Node, b: Node, work: Work) -> bool:
    same = all(Formal(work, trial).value(a) == Formal(work, trial).value(b) for trial in range(2))
    return work.because(f"{'an' if same else 'no'} identity at random points modulo a 127-bit prime", same)


def same_scalar(a: Node, b: Node, work: Work) -> bool:
    """Whether two scalars are the same number, or the same function of the same variables."""
    if a.op == b.op == "num":
        return work.because("exact arithmetic", a.args == b.args)
    if a == b:
        return work.because("the same expression", True)
    if any(node in (INFINITY, MINUS_INFINITY) for node in (a, b)):
        return work.because("infinity", False)
    if "∞" in symbols((a, b)):  # it is no letter: 0 times it is not 0, and 1 to its power not 1
        return work.because("arithmetic with infinity", False)
    if not (a.flags | b.flags) & SYMBOL:
        try:
            return all(_same_number(a, b, work, log_base) for log_base in _log_bases(a, b))
        except TooLong:
            pass
    try:
        return _same_formally(a, b, work)
    except NotFormal:
        pass
    for log_base in _log_bases(a, b):
        if not all(same_value(*row) for row in values_at_points([a, b], work, log_base)):
            return work.because("the values differ at a random point", False)
    return work.because("the values agree to 90 digits at random points", True)


def proportional(a: Node, b: Node, positive: bool, work: Work) -> bool:
    """Whether a = c b with one constant c, nonzero or `positive`: the same equation (a = 0) or inequality (a < 0)."""
    if not positive:
        try:
            ratios = [Formal(work, t).value(a) * Formal(work, t).inverse(Formal(work, t).value(b)) for t in range(3)]
            return len({ratio % PRIME for ratio in ratios}) == 1 and ratios[0] % PRIME != 0
        except NotFormal:
            pass
    for log_base in _log_bases(a, b):
        rows = list(values_at_points([a, b], work, log_base))
        prec = min(prec for _, _, prec in rows)
        evaluator = Evaluator({}, work, None, max(PRECISIONS[0], prec))
        ratios = [evaluator.multiply([x, evaluator.power(y, -1)]) for x, y, _ in rows if y != 0]
        if any((x == 0) != (y == 0) for x, y, _ in rows) or len(ratios) < 2:
            return False
        if not all(same_value(r, ratios[0], prec) for r in ratios):
            return False
        if positive and not ((is_exact(ratios[0]) or ratios[0].imag == 0) and ratios[0] > 0):
            return False
    return True
