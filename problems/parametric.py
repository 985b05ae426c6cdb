"""A fresh benchmark: problem templates filled with numbers from a seed, so that no list of answers helps.

33 templates from five fields in three levels of difficulty; answers are exact integer and fraction arithmetic. Another
seed asks the same things with other numbers (but for about one in ten, of templates with few): what a model can do on
one seed only, it remembered. `data_prep.py parametric` writes the rows {id, source, problem, answer, template, field,
level}, for evaluation, and for training on another seed, `--without` the rows that are to test.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import comb, factorial, gcd, prod
from typing import Any

from configs import UserError

Params = tuple[Any, ...]
Draw = Callable[[random.Random], Params]
Value = int | Fraction | tuple[Fraction, int]  # (a, b) is a times the square root of b
Points = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Template:
    """`draw` picks the numbers, `text` asks, `answer` computes."""

    name: str
    field: str
    level: int  # 1, 2 or 3
    draw: Draw
    text: Callable[..., str]
    answer: Callable[..., Value]


def latex(value: Value) -> str:
    """-\\frac{3}{4}, 12, 2\\sqrt{3}, \\frac{\\sqrt{5}}{2}."""
    factor, root = value if isinstance(value, tuple) else (Fraction(value), 1)
    top, bottom = abs(factor.numerator), factor.denominator
    text = str(top) if root == 1 else f"{top if top > 1 else ''}\\sqrt{{{root}}}"
    return ("-" if factor < 0 else "") + (text if bottom == 1 else f"\\frac{{{text}}}{{{bottom}}}")


def poly(*coefficients: int) -> str:
    """x^3-2x+5 of 1, 0, -2, 5."""
    text = ""
    for power, c in zip(reversed(range(len(coefficients))), coefficients, strict=True):
        if c:
            size = "" if abs(c) == 1 and power else str(abs(c))
            text += ("-" if c < 0 else "+") + size + {0: "", 1: "x"}.get(power, f"x^{power}")
    return text.removeprefix("+")


def integers(*ranges: tuple[int, int], wanted: Callable[..., bool] = lambda *numbers: True) -> Draw:
    """One integer of each range, both ends included; drawn again until they are `wanted`."""

    def draw(r: random.Random) -> Params:
        numbers = tuple(r.randint(a, b) for a, b in ranges)
        return numbers if wanted(*numbers) else draw(r)

    return draw


def remainders(r: random.Random) -> Params:
    moduli = r.choice(((3, 5, 7), (4, 7, 9), (5, 8, 11), (7, 9, 11), (3, 8, 13), (5, 9, 13)))
    return moduli, tuple(r.randint(1, m - 1) for m in moduli)


def corners(r: random.Random) -> Params:
    points = tuple((r.randint(-9, 9), r.randint(-9, 9)) for _ in range(3))
    return (points,) if doubled_area(points) > 20 else corners(r)


def bias(r: random.Random) -> Params:
    goal = r.randint(4, 7)
    return r.randint(1, goal - 1), goal, Fraction(r.randint(1, 4), 5)


# -------------------------------------------------------------------------------- the mathematics behind some answers


def factors(n: int) -> dict[int, int]:
    """{prime: exponent}"""
    exponents: dict[int, int] = {}
    divisor = 2
    while n > 1:
        while n % divisor == 0:
            exponents[divisor] = exponents.get(divisor, 0) + 1
            n //= divisor
        divisor += 1
    return exponents


def chinese_remainder(moduli: tuple[int, ...], left: tuple[int, ...]) -> int:
    m = prod(moduli)
    return sum(r * (m // p) * pow(m // p, -1, p) for p, r in zip(moduli, left, strict=True)) % m


def final_zeros(n: int, base: int) -> int:
    """Of n!, by Legendre's formula."""
    return min(sum(n // p**k for k in range(1, n.bit_length() + 1)) // e for p, e in factors(base).items())


def coprime_pairs(n: int) -> int:
    """Twice the sum of Euler's phi over 1..n, less the pair (1, 1)."""
    phi = list(range(n + 1))
    for p in range(2, n + 1):
        if phi[p] == p:
            for k in range(p, n + 1, p):
                phi[k] -= phi[k] // p
    return 2 * sum(phi) - 1


def roots_of_one(m: int) -> int:
    """Solutions of n^2 = 1 modulo m: two for an odd prime power; 1, 2, 4, 4, ... for 2, 4, 8, 16, ..."""
    return prod(2 ** min(e - 1, 2) if p == 2 else 2 for p, e in factors(m).items())


def square_root(square: int | Fraction) -> tuple[Fraction, int]:
    """(a, b) with a sqrt(b) the root, and b without square factors."""
    square = Fraction(square)
    inside, outside = square.numerator * square.denominator, 1
    for p, e in factors(inside).items():
        inside, outside = inside // p ** (e - e % 2), outside * p ** (e // 2)
    return Fraction(outside, square.denominator), inside


def recurrence(p: int, q: int, n: int, m: int) -> int:
    """a_n modulo m with a_0 = 0, a_1 = 1, a_k = p a_{k-1} + q a_{k-2}: doubling, by powers of the matrix (p q; 1 0)."""
    result, power = (1, 0, 0, 1), (p, q, 1, 0)
    while n:
        if n % 2:
            result = product(result, power, m)
        power = product(power, power, m)
        n //= 2
    return result[2] % m


def product(x: tuple[int, ...], y: tuple[int, ...], m: int) -> tuple[int, ...]:
    """Of two 2 x 2 matrices, modulo m."""
    return tuple((x[i] * y[j] + x[i + 1] * y[j + 2]) % m for i in (0, 2) for j in (0, 1))


def bounded_sums(parts: int, total: int, most: int) -> int:
    """Solutions of x_1 + ... = total with 0 <= x_i <= most, by inclusion and exclusion."""
    left = [total - j * (most + 1) for j in range(parts + 1)]  # once j of the x_i are above `most`
    return sum((-1) ** j * comb(parts, j) * comb(n + parts - 1, parts - 1) for j, n in enumerate(left) if n >= 0)


def derangements(n: int) -> int:
    return sum((-1) ** k * factorial(n) // factorial(k) for k in range(n + 1))


def without_runs(n: int, length: int) -> int:
    """Binary strings of n digits without `length` ones in a row."""
    counts = [2**i for i in range(length)]
    while len(counts) <= n:
        counts.append(sum(counts[-length:]))
    return counts[n]


def ruin(start: int, goal: int, up: Fraction) -> Fraction:
    """The chance to reach the goal before 0 (up is not 1/2)."""
    ratio = (1 - up) / up
    return (1 - ratio**start) / (1 - ratio**goal)


def doubled_area(points: Points) -> int:
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True)))


def interior_points(points: Points) -> int:
    """Lattice points, by Pick's theorem."""
    border = sum(gcd(x - u, y - v) for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True))
    return (doubled_area(points) - border + 2) // 2


def disk_points(square: int) -> int:
    """Lattice points with x^2 + y^2 <= square: 1 + 4 (the divisors 1 modulo 4 less those 3 modulo 4), as a series."""
    return 1 + 4 * sum(square // (4 * i + 1) - square // (4 * i + 3) for i in range(square // 4 + 1))


def named(points: Points) -> str:
    return f"${points[0]}$, ${points[1]}$ and ${points[2]}$"


# ----------------------------------------------------------------------------------------------------------- templates

N, A, C, G, P = "number theory", "algebra", "counting", "geometry", "probability"
WORDS = (
    "BANANA PEPPER LEVELS COFFEE TENNIS SUCCESS BALLOON ADDRESS COLLECT LETTERS CANADA SETTEE POPPED NEEDED MISSES "
    "BOTTLE"
).split()
TEMPLATES = (
    Template("divisors", N, 1, integers((2, 6), (1, 4), (1, 3)),
        lambda a, b, c: f"How many positive divisors does ${2**a * 3**b * 5**c}$ have?",
        lambda a, b, c: (a + 1) * (b + 1) * (c + 1)),
    Template("power_remainder", N, 1, integers((3, 19), (50, 999), (7, 60)),
        lambda a, n, m: f"What is the remainder when ${a}^{{{n}}}$ is divided by ${m}$?", pow),
    Template("three_remainders", N, 2, remainders,
        lambda m, r: f"Find the smallest positive integer that leaves remainder ${r[0]}$ when divided by ${m[0]}$, "
        f"remainder ${r[1]}$ when divided by ${m[1]}$, and remainder ${r[2]}$ when divided by ${m[2]}$.",
        chinese_remainder),
    Template("final_zeros", N, 2, integers((40, 400), (6, 30)),
        lambda n, b: f"When ${n}!$ is written in base ${b}$, in how many zeros does it end?", final_zeros),
    Template("coprime_pairs", N, 3, integers((20, 120)),
        lambda n: f"How many ordered pairs $(a,b)$ of integers with $1\\le a\\le {n}$ and $1\\le b\\le {n}$ have "
        "greatest common divisor $1$?", coprime_pairs),
    Template("roots_of_one", N, 3, integers((60, 999)),
        lambda m: f"For how many integers $n$ with $1\\le n\\le {m}$ is $n^2-1$ divisible by ${m}$?", roots_of_one),
    Template("two_equations", A, 1, integers((2, 9), (2, 9), (-9, 9), (-9, 9), wanted=lambda a, b, x, y: a != b),
        lambda a, b, x, y: f"If $x+y={x + y}$ and ${a}x+{b}y={a * x + b * y}$, what is $xy$?",
        lambda a, b, x, y: x * y),
    Template("squares_of_roots", A, 1, integers((-12, 12), (-30, 30), wanted=lambda p, q: p * p > 4 * q and p and q),
        lambda p, q: f"The roots of ${poly(1, p, q)}=0$ are $r$ and $s$. What is $r^2+s^2$?",
        lambda p, q: p * p - 2 * q),
    Template("cubes_of_roots", A, 2, integers((-6, 6), (-9, 9), (1, 12)),
        lambda a, b, c: f"Let $r$, $s$ and $t$ be the roots of ${poly(1, a, b, c)}$. Find $r^3+s^3+t^3$.",
        lambda a, b, c: -(a**3) + 3 * a * b - 3 * c),  # Newton's identities
    Template("weighted_powers", A, 2, integers((6, 12), (2, 4)),
        lambda n, r: f"Evaluate $\\sum_{{k=1}}^{{{n}}} k\\cdot {r}^k$.",
        lambda n, r: r * (1 - (n + 1) * r**n + n * r ** (n + 1)) // (1 - r) ** 2),
    Template("remainder_value", A, 2, integers((5, 14), (3, 9)),
        lambda n, c: f"Let $R(x)$ be the remainder when $x^{{{n}}}$ is divided by $x^2-3x+2$. Find $R({c})$.",
        lambda n, c: (2**n - 1) * (c - 1) + 1),  # the line through (1, 1) and (2, 2^n)
    Template("recurrence", A, 3, integers((1, 5), (1, 5), (200, 5000), (7, 40)),
        lambda p, q, n, m: f"A sequence has $a_0=0$, $a_1=1$ and $a_{{k+2}}={p}a_{{k+1}}+{q}a_k$ for $k\\ge 0$. "
        f"What is the remainder when $a_{{{n}}}$ is divided by ${m}$?".replace("=1a", "=a").replace("+1a", "+a"),
        recurrence),
    Template("trinomial", A, 3, integers((6, 14), (3, 10)),
        lambda n, k: f"What is the coefficient of $x^{{{k}}}$ in the expansion of $(1+x+x^2)^{{{n}}}$?",
        lambda n, k: sum(comb(n, j) * comb(n - j, k - 2 * j) for j in range(k // 2 + 1) if k - 2 * j <= n - j)),
    Template("committees", C, 1, integers((4, 8), (4, 8), (3, 5)),
        lambda a, b, k: f"From ${a}$ teachers and ${b}$ students a committee of ${k}$ is chosen, with at least one "
        "teacher and at least one student. In how many ways can this be done?",
        lambda a, b, k: comb(a + b, k) - comb(a, k) - comb(b, k)),
    Template("arrangements", C, 1, lambda r: (r.choice(WORDS),),
        lambda w: f"In how many different ways can the letters of the word {w} be arranged in a row?",
        lambda w: factorial(len(w)) // prod(factorial(w.count(letter)) for letter in set(w))),
    Template("detours", C, 2, integers((5, 9), (5, 9), (1, 4), (1, 4)),
        lambda w, h, x, y: f"A path goes from $(0,0)$ to $({w},{h})$ in steps of one unit to the right or up. How "
        f"many such paths do not pass through $({x},{y})$?",
        lambda w, h, x, y: comb(w + h, w) - comb(x + y, x) * comb(w - x + h - y, w - x)),
    Template("bounded_sums", C, 2, integers((3, 5), (8, 16), (4, 7), wanted=lambda k, n, m: n < k * m),
        lambda k, n, m: f"In how many ways can ${n}$ identical balls be put into ${k}$ different boxes, if no box "
        f"may hold more than ${m}$?", bounded_sums),
    Template("fixed_points", C, 2, integers((5, 9), (1, 3)),
        lambda n, k: f"How many permutations of $1,2,\\ldots,{n}$ leave exactly ${k}$ of the numbers in place?",
        lambda n, k: comb(n, k) * derangements(n - k)),
    Template("without_runs", C, 3, integers((8, 16), (2, 4)),
        lambda n, k: f"How many strings of ${n}$ digits, each $0$ or $1$, do not contain ${k}$ ones in a row?",
        without_runs),
    Template("necklaces", C, 3, integers((4, 10), (2, 4)),
        lambda n, c: f"A necklace is a circle of ${n}$ beads, each in one of ${c}$ colors. Necklaces that differ by "
        "a rotation only are the same, reflections are not. How many different necklaces are there?",
        lambda n, c: sum(c ** gcd(i, n) for i in range(n)) // n),  # Burnside's lemma
    Template("triangle_area", G, 1, corners,
        lambda p: f"What is the area of the triangle with vertices {named(p)}?",
        lambda p: Fraction(doubled_area(p), 2)),
    Template("box_diagonal", G, 1, integers((2, 15), (2, 15), (2, 15)),
        lambda a, b, c: f"What is the length of the space diagonal of a box with edges ${a}$, ${b}$ and ${c}$?",
        lambda a, b, c: square_root(a * a + b * b + c * c)),
    Template("common_tangent", G, 2, integers((1, 9), (1, 9), (1, 12), wanted=lambda r, s, gap: r != s),
        lambda r, s, gap: f"Two circles with radii ${r}$ and ${s}$ have their centers ${r + s + gap}$ apart. How "
        "long is a segment that joins the points where a common external tangent touches them?",
        lambda r, s, gap: square_root((r + s + gap) ** 2 - (r - s) ** 2)),
    Template("inradius", G, 2, integers((4, 20), (4, 20), (4, 20), wanted=lambda a, b, c: 2 * max(a, b, c) < a + b + c),
        lambda a, b, c: f"What is the radius of the inscribed circle of a triangle with sides ${a}$, ${b}$, ${c}$?",
        lambda a, b, c: square_root(Fraction((b + c - a) * (a + c - b) * (a + b - c), 4 * (a + b + c)))),  # by Heron
    Template("disk_points", G, 2, integers((10, 120)),
        lambda s: f"How many points $(x,y)$ with integer coordinates satisfy $x^2+y^2\\le {s}$?", disk_points),
    Template("interior_points", G, 3, corners,
        lambda p: "How many points with integer coordinates lie strictly inside the triangle with vertices "
        f"{named(p)}?", interior_points),
    Template("inner_triangle", G, 3, integers((1, 6), (1, 6), (2, 6)),
        lambda x, y, z: f"Points $D$, $E$ and $F$ lie on the sides $BC$, $CA$ and $AB$ of triangle $ABC$ with "
        f"$CD:DB={x}:1$, $AE:EC={y}:1$ and $BF:FA={z}:1$. The segments $AD$, $BE$ and $CF$ bound a triangle. What "
        "is the ratio of its area to the area of $ABC$?",  # Routh's theorem
        lambda x, y, z: Fraction((x * y * z - 1) ** 2, (x * y + y + 1) * (y * z + z + 1) * (z * x + x + 1))),
    Template("dice_sum", P, 1, integers((6, 12), (6, 12)),
        lambda n, s: f"Two fair dice have faces numbered $1$ to ${n}$. What is the probability that they show a sum "
        f"of ${s}$?", lambda n, s: Fraction(n - abs(n + 1 - s), n * n)),
    Template("same_color", P, 1, integers((2, 9), (2, 9), (2, 9)),
        lambda a, b, c: f"A bag holds ${a}$ red, ${b}$ blue and ${c}$ green marbles. Two are drawn without "
        "replacement. What is the probability that they have the same color?",
        lambda a, b, c: Fraction(comb(a, 2) + comb(b, 2) + comb(c, 2), comb(a + b + c, 2))),
    Template("at_least_heads", P, 2, integers((5, 10), (2, 5)),
        lambda n, k: f"A fair coin is tossed ${n}$ times. What is the probability of at least ${k}$ heads?",
        lambda n, k: Fraction(sum(comb(n, i) for i in range(k, n + 1)), 2**n)),
    Template("first_marked", P, 2, integers((10, 60), (2, 8)),
        lambda n, m: f"Of ${n}$ cards ${m}$ are marked. The cards are shuffled and turned over one by one until the "
        "first marked card appears. What is the expected number of cards turned over?",
        lambda n, m: Fraction(n + 1, m + 1)),
    Template("ruin", P, 3, bias,
        lambda s, g, p: f"A walk starts at ${s}$ and goes up by $1$ with probability ${latex(p)}$, else down by $1$, "
        f"in each step. What is the probability that it reaches ${g}$ before $0$?", ruin),
    Template("all_faces", P, 3, integers((3, 20)),
        lambda n: f"A fair die has faces numbered $1$ to ${n}$. What is the expected number of rolls until every "
        "face has come up?", lambda n: n * sum(Fraction(1, k) for k in range(1, n + 1))),
)  # fmt: skip


def problems(seed: int, count: int, without: Iterable[str] = ()) -> list[dict[str, Any]]:
    """`count` different problems, none of them in `without`, the templates in turn; one that gives no new problem in
    200 draws is passed over. A smaller count is the beginning of a larger one. Raises UserError where none is left."""
    rows: list[dict[str, Any]] = []
    used = set(without)
    templates, turn = list(TEMPLATES), 0
    while len(rows) < count:
        if not templates:
            raise UserError(f"count: there are {len(rows)} different problems of seed {seed}, not {count}")
        for t in list(templates):
            rng = random.Random(f"{seed} {t.name} {turn}")
            draws = (t.draw(rng) for _ in range(200))
            params = next((p for p in draws if t.text(*p) not in used), None)
            if params is None:
                templates.remove(t)
                continue
            text = t.text(*params)
            used.add(text)
            row = {"id": f"parametric-{seed}-{t.name}-{turn}", "source": "parametric", "problem": text}
            row |= {"answer": latex(t.answer(*params)), "template": t.name, "field": t.field, "level": t.level}
            rows.append(row)
        turn += 1
    return rows[:count]
