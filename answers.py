"""Are two final answers the same mathematical object?  Reads LaTeX and plain text; used by reward.py only.

`equal(answer, gold)` goes through four steps, cheapest first, and none of them ever runs text as code:
  1. clean: strip `$`, \\boxed, spacing and style commands; write unicode and command synonyms one way; compare strings.
  2. parse: an own tokenizer and recursive-descent parser into `Node` trees. Whatever it does not know is refused,
     and then only the strings count.
  3. compare by type: tuples and intervals in order with their brackets, lists, sets and unions in any order without
     missing or extra members, plus-minus as both values, equations up to a factor, a label (`x =`) as mere format.
  4. compare scalars: exact `Fraction` arithmetic as far as it goes, mpmath at 400 bits beyond, at fixed pseudo-random
     rational points where there are variables (Schwartz-Zippel: different expressions agree there by accident only).
Sizes are bounded before anything is computed, and a work budget counted in operations (never in seconds) decides when
to give up, so the same pair gets the same verdict on every machine. Giving up means: not equal.
Conventions: MATH's for units, percent signs and money (they may be absent); an unreduced or rounded value is judged by
its exact value.
"""

import itertools
import math
import random
from fractions import Fraction
from functools import lru_cache
from typing import Any

from answer_parser import (
    MAX_CHARS,
    MAX_ITEMS,
    STRUCTURES,
    Node,
    Refused,
    clean,
    contains,
    is_words,
    num,
    parse,
    product,
    squeeze,
    symbols,
)

MAX_BITS = 100_000  # of an exact number; 2023^2024 has 22,000
MAX_FACTORIAL = 5000
MAX_WORK = 1_000_000  # for one pair, in units of very roughly half a microsecond: see Budget.spend and its callers
PREC = 400  # bits of mpmath arithmetic
CANCELLED = 2.0**-320  # a sum this small against its terms is an exact zero: its own rounding is near 2^-395
SAME = 2.0**-300  # relative difference of two numbers that are the same


class Budget:
    """Counts work, so that the verdict does not depend on the speed or the load of the machine."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Refused("work budget spent")

    def exact(self, value: Fraction) -> Fraction:
        """Admits an exact value; the gcd behind every Fraction operation is quadratic in its bits."""
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        if bits > MAX_BITS:
            raise Refused("number too long")
        self.spend(5 + (bits >> 7) ** 2 // 64)
        return value


# ---------------------------------------------------------------- values


@lru_cache(maxsize=1)
def _mpmath() -> Any:
    """A private context at our precision. mpmath is imported only here: most pairs never need it."""
    import mpmath

    context = mpmath.mp.clone()
    context.prec = PREC
    return context


def warm_up() -> None:
    """Pays the import of mpmath before a clock runs."""
    _mpmath()


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The real root of a Fraction where it is rational, by integer Newton iteration."""
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
    """The value of a scalar tree at one point: a Fraction while that is possible, then mpmath real or complex."""

    def __init__(self, point: dict[str, Fraction], budget: Budget, log_base: int | None) -> None:
        self.point, self.budget, self.log_base = point, budget, log_base

    @property
    def mp(self) -> Any:
        return _mpmath()

    def number(self, value: Any) -> Any:
        """To mpmath."""
        self.budget.spend(20)
        return self.mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value

    def tidy(self, value: Any) -> Any:
        """Drops a real or imaginary part that is rounding noise, so that real stays real."""
        if not self.mp.isfinite(value):
            raise Refused("not finite")
        if isinstance(value, self.mp.mpc):
            if abs(value.imag) <= CANCELLED * abs(value.real):
                return value.real
            if abs(value.real) <= CANCELLED * abs(value.imag):
                return self.mp.mpc(0, value.imag)
        return value

    def value(self, node: Node, degree: Any = 1) -> Any:
        """`degree` is what one degree is worth: 1, or pi/180 inside a trigonometric function."""
        self.budget.spend(5)
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
            return self.power(values[0], Fraction(-1) if op == "inv" else values[1])
        if op == "deg":
            return self.multiply([values[0], degree if degree != 1 else Fraction(1)])
        if op == "percent":
            return self.multiply([values[0], Fraction(1, 100)])
        if op == "log":
            return self.multiply([self.log(values[1]), self.power(self.log(values[0]), Fraction(-1))])
        if op == "fact":
            return self.factorial(values[0])
        if op == "binom":
            return self.binomial(*values)
        if op == "abs":
            return abs(values[0])
        return self.floor(values[0]) if op == "floor" else -self.floor(-values[0])

    def add(self, values: list) -> Any:
        exact = Fraction(0)
        for value in (v for v in values if isinstance(v, Fraction)):
            exact = self.budget.exact(exact + value)
        rest = [v for v in values if not isinstance(v, Fraction)]
        if not rest:
            return exact
        rest.append(self.number(exact))
        total = self.mp.fsum(rest)
        return Fraction(0) if abs(total) <= CANCELLED * max(map(abs, rest)) else self.tidy(total)

    def multiply(self, values: list) -> Any:
        total = Fraction(1)
        for value in (v for v in values if isinstance(v, Fraction)):
            total = self.budget.exact(total * value)
        for value in (v for v in values if not isinstance(v, Fraction) and total != 0):
            total = self.tidy(self.number(total) * value)
        return total

    def power(self, base: Any, exponent: Any) -> Any:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            exact = self.exact_power(base, exponent)
            if exact is not None:
                return exact
        if base == 0:
            raise Refused("a power of zero")
        self.budget.spend(500)
        mp_base, mp_exponent = self.number(base), self.number(exponent)
        if abs(mp_exponent) * (1 + abs(self.mp.log(abs(mp_base), 2))) > 10**6:
            raise Refused("power too large")
        odd_root = isinstance(exponent, Fraction) and exponent.denominator % 2 == 1
        if odd_root and not isinstance(mp_base, self.mp.mpc) and mp_base < 0:  # school convention: cbrt(-8) = -2
            return self.tidy((-1) ** (exponent.numerator % 2) * (-mp_base) ** mp_exponent)
        return self.tidy(mp_base**mp_exponent)

    def exact_power(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        """None where the power is irrational. Sizes are bounded before the power is taken."""
        if base == 0 and exponent > 0 or base == 1:
            return base
        if exponent.denominator > 1:
            if exponent.denominator > 1000 or (base < 0 and exponent.denominator % 2 == 0):
                return None
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            self.budget.spend(bits * exponent.denominator // 16)
            root = _exact_root(base, exponent.denominator)
            return None if root is None else self.exact_power(root, Fraction(exponent.numerator))
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > MAX_BITS and base != -1:
            raise Refused("power too large")
        if base == 0:
            raise ZeroDivisionError("a power of zero")
        return self.budget.exact(base ** (exponent.numerator if base != -1 else exponent.numerator % 2))

    def log(self, value: Any) -> Any:
        if value == 0:
            raise ZeroDivisionError("log of zero")
        if value == 1:
            return Fraction(0)
        self.budget.spend(300)
        return self.tidy(self.mp.log(self.number(value)))

    def function(self, name: str, arg: Node) -> Any:
        trig = name not in ("exp", "ln", "log") and not name.endswith("h")
        value = self.value(arg, self.mp.pi / 180 if trig and not name.startswith("arc") else 1)
        if name in ("ln", "log"):
            natural = self.log(value)
            base = self.log_base if name == "log" else None
            return natural if base is None else self.multiply([natural, 1 / self.mp.log(base)])
        self.budget.spend(500)
        value = self.number(value)
        if abs(value) > 10**6:
            raise Refused("argument too large")
        short = {"arc" + n: "a" + n for n in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")}
        result = self.tidy(getattr(self.mp, short.get(name, name))(value))
        small = isinstance(result, self.mp.mpf) and abs(result) < CANCELLED < 2.0**200 * CANCELLED < abs(value)
        return Fraction(0) if small else result  # sin(pi) is rounding noise, sin(10^-200) is not

    def factorial(self, value: Any) -> Any:
        if isinstance(value, Fraction) and value.denominator == 1:
            if not 0 <= value <= MAX_FACTORIAL:
                raise Refused("factorial out of bounds")
            return self.budget.exact(Fraction(math.factorial(int(value))))
        value = self.number(value)
        if abs(value) > MAX_FACTORIAL:
            raise Refused("factorial out of bounds")
        self.budget.spend(2000)
        return self.tidy(self.mp.gamma(value + 1))

    def binomial(self, top: Any, bottom: Any) -> Any:
        whole = all(isinstance(v, Fraction) and v.denominator == 1 for v in (top, bottom))
        if whole and 0 <= bottom and 0 <= top <= MAX_FACTORIAL:
            return self.budget.exact(Fraction(math.comb(int(top), int(bottom))))
        below = [self.factorial(bottom), self.factorial(self.add([top, -bottom]))]
        return self.multiply([self.factorial(top), self.power(self.multiply(below), Fraction(-1))])

    def floor(self, value: Any) -> Fraction:
        if isinstance(value, Fraction):
            return Fraction(math.floor(value))
        if isinstance(value, self.mp.mpc):
            raise ZeroDivisionError("floor of a complex number")
        if abs(value) > 2.0**64:
            raise Refused("floor out of bounds")
        nearest = int(self.mp.nint(value))
        return Fraction(nearest if abs(value - nearest) < CANCELLED * 2**64 else int(self.mp.floor(value)))


# ---------------------------------------------------------------- comparing scalars


def same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    if a == 0 or b == 0:
        return a == b
    mp = _mpmath()
    a, b = (mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in (a, b))
    return abs(a - b) <= SAME * max(abs(a), abs(b))


INTEGER_NAMES = set("jklmnN")  # what authors call integers; it matters where a step function is around


def _points(names: list[str], whole: bool, steps: bool = False) -> list[dict[str, Fraction]]:
    """Fixed points: three positive rationals, then two of mixed signs; or the integers 1..40, shuffled per name.

    Rationals have powers of two below, so that (-1)^x is never taken for real. With steps, n is an integer there too.
    """
    points = []
    for k in range(40 if whole else 5):
        point = {}
        for j, name in enumerate(names):
            dice, top = random.Random(f"{name}:{k}"), (7, 30, 120, 30, 15)[k % 5]
            if whole or (steps and name in INTEGER_NAMES):
                point[name] = Fraction((k * (1 + 2 * j) + j) % 40 + 1)
            else:
                sign = 1 if k % 5 < 3 else dice.choice((-1, 1))
                point[name] = Fraction(sign * (2 * dice.randint(0, top) + 1), dice.choice((16, 32)))
        points.append(point)
    return points


def values_at_points(nodes: list[Node], budget: Budget, log_base: int | None) -> list[list]:
    """The nodes' values at common points. Outside their real domain (no i in sight) expressions are not compared."""
    names = sorted(set().union(*map(symbols, nodes)))
    if not names:
        return [[Evaluator({}, budget, log_base).value(node) for node in nodes]]
    complex_allowed = any(contains(node, Node("const", ("i",))) for node in nodes)

    def rows(points: list[dict], only_real: bool) -> list[list]:
        found = []
        for point in points:
            try:
                row = [Evaluator(point, budget, log_base).value(node) for node in nodes]
            except ZeroDivisionError:
                continue
            if not only_real or all(isinstance(v, Fraction) or v.imag == 0 for v in row):
                found.append(row)
        return found

    steps = any(contains(node, Node("floor"), Node("ceil")) for node in nodes)
    found = rows(_points(names, False, steps), not complex_allowed)
    if steps:
        found += rows(_points(names, True), True)
    if len(found) < 2:
        found = rows(_points(names, True)[:8], True) or rows(_points(names, False), False)
    if len(found) < 2:
        raise Refused("no points where both are defined")
    return found


def _log_bases(*nodes: Node) -> tuple:
    """\\log without a base is natural for some, decimal for others: both are tried, the same on both sides."""
    return (None, 10) if any(contains(node, Node("fn", ("log",))) for node in nodes) else (None,)


def same_scalar(a: Node, b: Node, budget: Budget) -> bool:
    for log_base in _log_bases(a, b):
        if all(same_value(x, y) for x, y in values_at_points([a, b], budget, log_base)):
            return True
    return False


def proportional(a: Node, b: Node, positive: bool, budget: Budget) -> bool:
    """a = c b with one constant c, nonzero or positive: the same equation (a = 0) or inequality (a < 0)."""
    for log_base in _log_bases(a, b):
        rows = values_at_points([a, b], budget, log_base)
        evaluator = Evaluator({}, budget, None)
        if any((x == 0) != (y == 0) for x, y in rows):
            continue
        ratios = [evaluator.multiply([x, evaluator.power(y, Fraction(-1))]) for x, y in rows if y != 0]
        if len(ratios) > 1 and all(same_value(r, ratios[0]) for r in ratios):
            return not positive or (isinstance(ratios[0], Fraction) or ratios[0].imag == 0) and ratios[0] > 0
    return False


# ---------------------------------------------------------------- comparing by type


def _is_scalar(node: Node) -> bool:
    return node.op not in STRUCTURES


def _resolve(node: Any, upper: bool) -> Any:
    """Plus-minus with one choice of sign, minus-plus with the other."""
    if isinstance(node, tuple):
        return tuple(_resolve(child, upper) for child in node)
    if not isinstance(node, Node):
        return node
    args = _resolve(node.args, upper)
    if node.op in ("pm", "mp"):
        return args[0] if upper == (node.op == "pm") else product(num(-1), args[0])
    return Node(node.op, args)


def expand(items: list[Node]) -> list[Node]:
    """One flat list of solutions: sets are opened, plus-minus becomes two items, and in a tuple each independently."""
    found: list[Node] = []
    for item in items:
        if item.op == "set":
            found += expand(list(item.args))
        elif not contains(item, Node("pm"), Node("mp")):
            found.append(item)
        elif item.op == "seq":
            found += [Node("seq", (*item.args[:2], c)) for c in itertools.product(*(expand([x]) for x in item.args[2]))]
        else:
            found += [_resolve(item, True), _resolve(item, False)]
        if len(found) > MAX_ITEMS:
            raise Refused("too many items")
    return found


def _is_label(node: Node) -> bool:
    """x, x_0, f(x), (x, y), Area: a name for what follows, not a formula."""
    if node.op == "seq":
        return node.args[:2] == ("(", ")") and all(_is_label(x) for x in node.args[2])
    return node.op in ("sym", "text") or node.op in ("apply", "call") and node.args[1].op in ("sym", "num", "seq")


def _unlabel(node: Node) -> tuple[Node, Node] | None:
    """(label, value) of x = 5, f(x) = 1/x, x in [0, 1], 5 = x, and of 0 < x <= 1 or x < 3 as the interval they mean."""
    if node.op != "rel":
        return None
    ops, sides = node.args
    if ops in (("=",), ("∈",)):
        if _is_label(sides[0]):
            return sides[0], sides[1]
        return (sides[1], sides[0]) if ops == ("=",) and _is_label(sides[1]) else None
    if set(ops) <= set("<≤") or set(ops) <= set(">≥"):
        if ops[0] in ">≥":
            ops, sides = tuple({">": "<", "≥": "≤"}[op] for op in reversed(ops)), tuple(reversed(sides))
        infinity = Node("sym", ("∞",))
        if len(ops) == 1:
            low = sides[1].op == "sym"
            ops, sides = (
                (ops + ("<",), sides + (infinity,)) if low else (("<", *ops), (product(num(-1), infinity), *sides))
            )
        if len(ops) == 2 and sides[1].op == "sym":
            return sides[1], Node("seq", ("[("[ops[0] == "<"], "])"[ops[1] == "<"], (sides[0], sides[2])))
    return None


def solutions(items: list[Node]) -> tuple[set[Node], list[Node]]:
    """All labels, and the values behind them: x = 1, 2 labels both, x = 1 and y = 2 have two labels."""
    pairs = [_unlabel(item) for item in items]
    labels = {pair[0] for pair in pairs if pair}
    values = expand([pair[1] if pair else item for pair, item in zip(pairs, items, strict=True)])
    return labels, values


def match(a: list[Node], b: list[Node], budget: Budget) -> bool:
    """Any order, nothing missing, nothing extra. Sameness is transitive: the first partner found is as good as any."""
    if len(a) != len(b):
        return False
    rest = list(b)
    for x in a:
        partner = next((i for i, y in enumerate(rest) if same(x, y, budget)), None)
        if partner is None:
            return False
        del rest[partner]
    return True


def same_items(a: list[Node], b: list[Node], budget: Budget) -> bool:
    """Two whole answers: as they stand, or the label left out on one side, or equal labels left out on both."""
    a, b = expand(a), expand(b)
    if match(a, b, budget):
        return True
    (labels_a, values_a), (labels_b, values_b) = solutions(a), solutions(b)
    if not (labels_a or labels_b) or len(labels_a) > 1 or len(labels_b) > 1:
        return False
    return (not labels_a or not labels_b or labels_a == labels_b) and match(values_a, values_b, budget)


def same(a: Node, b: Node, budget: Budget) -> bool:
    budget.spend(20)
    if _is_scalar(a) and _is_scalar(b) or "unit" in (a.op, b.op):
        return same_quantity(a, b, budget)
    if a.op != b.op:
        return False
    if a.op == "seq":
        ordered = len(a.args[2]) == len(b.args[2]) and a.args[:2] == b.args[:2]
        return ordered and all(same(x, y, budget) for x, y in zip(a.args[2], b.args[2], strict=True))
    if a.op in ("set", "union"):
        return match(expand(list(a.args)), expand(list(b.args)), budget)
    if a.op == "matrix":
        shapes = [[len(row) for row in m.args] for m in (a, b)]
        pairs = zip(itertools.chain(*a.args), itertools.chain(*b.args), strict=False)
        return shapes[0] == shapes[1] and all(same_scalar(x, y, budget) for x, y in pairs)
    return same_relation(a, b, budget) if a.op == "rel" else a == b


def _quantity(node: Node) -> tuple[Node, frozenset]:
    """(number, units): 28\\%, 36°, 5 cm."""
    if node.op == "unit":
        inner, units = _quantity(node.args[0])
        return inner, units | node.args[1]
    if node.op in ("percent", "deg"):
        return node.args[0], frozenset("%" if node.op == "percent" else "°")
    return node, frozenset()


def same_quantity(a: Node, b: Node, budget: Budget) -> bool:
    """MATH: a unit or % may be absent. Two different known units are different answers; 25% is also 1/4."""
    (a, units_a), (b, units_b) = _quantity(a), _quantity(b)
    if not (_is_scalar(a) and _is_scalar(b)):
        return False
    if units_a and units_b and units_a != units_b and "?" not in units_a | units_b:
        return False
    if same_scalar(a, b, budget):
        return True
    percent_a, percent_b = "%" in units_a, "%" in units_b
    if percent_a == percent_b:
        return False
    hundred = num(100)
    return same_scalar(a, product(b, hundred), budget) if percent_a else same_scalar(product(a, hundred), b, budget)


def same_relation(a: Node, b: Node, budget: Budget) -> bool:
    """Side by side, read in either direction; a single relation between scalars also up to a factor."""
    flipped = {">": "<", "≥": "≤"}
    (ops_a, sides_a), (ops_b, sides_b) = (
        (tuple(flipped[op] for op in ops[::-1]), sides[::-1]) if set(ops) <= set(">≥") else (ops, sides)
        for ops, sides in (a.args, b.args)
    )
    if ops_a != ops_b:
        return False
    if all(same(x, y, budget) for x, y in zip(sides_a, sides_b, strict=True)):
        return True
    if set(ops_a) <= set("=≠") and all(same(x, y, budget) for x, y in zip(sides_a, sides_b[::-1], strict=True)):
        return True
    sides = [_quantity(side)[0] for side in sides_a + sides_b]
    if len(ops_a) > 1 or ops_a[0] not in "=≠<≤" or not all(map(_is_scalar, sides)) or not symbols(tuple(sides)):
        return False
    left, right = (Node("add", (sides[i], product(num(-1), sides[i + 1]))) for i in (0, 2))
    return proportional(left, right, ops_a[0] in "<≤", budget)


def equal(answer: str, gold: str) -> bool:
    """The whole comparison; raises Refused or an arithmetic error where it cannot tell."""
    if max(len(answer), len(gold)) > MAX_CHARS:
        return answer.strip() == gold.strip()
    answer, gold = clean(answer), clean(gold)
    if not answer or not gold:
        return False
    plain = [squeeze(answer), squeeze(gold)]
    if plain[0] == plain[1]:
        return True
    gold = gold.removeprefix("≈")  # in a gold answer it marks a rounded value, in an answer it is a hedge
    if is_words(answer) or is_words(gold):  # letters of a word do not commute; case does not matter in words
        return plain[0].lower() == plain[1].lower() and len(plain[0]) > 1
    budget = Budget()
    a, b = parse(answer), parse(gold)
    if same_items(a, b, budget):
        return True
    if (len(a) == 1) == (len(b) == 1):
        return False
    if len(a) == 1:  # one side is a list: then 119,121 on the other is one too
        a = parse(answer, merge_thousands=False)
    else:
        b = parse(gold, merge_thousands=False)
    return same_items(a, b, budget)
