"""Every template's answer against a second, brute-force method, on fifty draws each."""

import cmath
import json
import math
import random
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations, product

import pytest

import data_prep
from configs import UserError
from problems.parametric import TEMPLATES, latex, poly, problems
from reward import grade

F = Fraction


def inside(points, x, y):
    """Strictly inside: on the same side of all three edges."""
    (ax, ay), (bx, by), (cx, cy) = points
    turns = [
        (bx - ax) * (y - ay) - (by - ay) * (x - ax),
        (cx - bx) * (y - by) - (cy - by) * (x - bx),
        (ax - cx) * (y - cy) - (ay - cy) * (x - cx),
    ]
    return all(t > 0 for t in turns) or all(t < 0 for t in turns)


def roots(*coefficients):
    """Durand and Kerner's iteration."""
    n = len(coefficients) - 1
    x = [(0.4 + 0.9j) ** k for k in range(n)]
    for _ in range(500):
        for i in range(n):
            value = sum(c * x[i] ** (n - k) for k, c in enumerate(coefficients))
            x[i] -= value / math.prod(x[i] - x[j] for j in range(n) if j != i)
    return x


def recurrence(p, q, n, m):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, (p * b + q * a) % m
    return a % m


def trinomial(n, k):
    poly = [1]
    for _ in range(n):
        poly = [sum(poly[i - d] for d in range(3) if 0 <= i - d < len(poly)) for i in range(len(poly) + 2)]
    return poly[k]


def remainder_value(n, c):
    """By long division by x^2 - 3x + 2."""
    poly = [1] + [0] * n
    for i in range(n - 1):
        poly[i + 1], poly[i + 2] = poly[i + 1] + 3 * poly[i], poly[i + 2] - 2 * poly[i]
    return poly[-2] * c + poly[-1]


def last_zeros(n, base):
    value, zeros = math.factorial(n), 0
    while value % base == 0:
        value, zeros = value // base, zeros + 1
    return zeros


def paths(w, h, x, y):
    counts = {(0, 0): 1}
    for i, j in product(range(w + 1), range(h + 1)):
        if (i, j) != (0, 0):
            counts[i, j] = 0 if (i, j) == (x, y) else counts.get((i - 1, j), 0) + counts.get((i, j - 1), 0)
    return counts[w, h]


def sums(parts, total, most):
    ways = Counter({0: 1})
    for _ in range(parts):
        ways = Counter({s: sum(ways[s - x] for x in range(most + 1)) for s in range(total + 1)})
    return ways[total]


def necklaces(n, colors):
    if colors**n >= 70_000:
        return None
    return len({min(w[i:] + w[:i] for i in range(n)) for w in product(range(colors), repeat=n)})


def solve(matrix, right):
    """Gauss and Jordan, exact."""
    n = len(matrix)
    rows = [[F(x) for x in row] + [F(r)] for row, r in zip(matrix, right, strict=True)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(n):
            if r != i:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [row[-1] for row in rows]


def ruin(start, goal, up):
    size = goal - 1
    matrix = [
        [F(i == j) - (up if j == i + 1 else 1 - up if j == i - 1 else 0) for j in range(size)] for i in range(size)
    ]
    return solve(matrix, [up if i == size - 1 else 0 for i in range(size)])[start - 1]


def all_faces(n):
    """Markov chain on the number of faces seen: E_k = 1 + k/n E_k + (n - k)/n E_{k+1}."""
    matrix = [
        [F(i == j) - (F(i, n) if j == i else F(n - i, n) if j == i + 1 else 0) for j in range(n)] for i in range(n)
    ]
    return solve(matrix, [1] * n)[0]


def inner_triangle(x, y, z):
    """By coordinates: A, B, C at (0, 0), (1, 0), (0, 1)."""

    def divide(p, q, ratio):  # the point R of PQ with PR : RQ = ratio
        return tuple((F(a) + ratio * b) / (1 + ratio) for a, b in zip(p, q, strict=True))

    def meet(p, q, r, s):
        (a, b), (c, d) = (p[0] - q[0], p[1] - q[1]), (r[0] - s[0], r[1] - s[1])
        u, v = p[0] * q[1] - p[1] * q[0], r[0] * s[1] - r[1] * s[0]
        det = a * d - b * c
        return (u * c - a * v) / det, (u * d - b * v) / det

    a, b, c = (0, 0), (1, 0), (0, 1)
    d, e, f = divide(c, b, x), divide(a, c, y), divide(b, a, z)
    p, q, r = meet(a, d, b, e), meet(b, e, c, f), meet(c, f, a, d)
    return abs((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))


def first_marked(n, m):
    """E = sum of P(more than k cards) = sum of C(n - k, m) / C(n, m)."""
    return sum(F(math.comb(n - k, m), math.comb(n, m)) for k in range(n))


def tangent(r, s, gap):
    """Touching points (r cos t, r sin t) and (d + s cos t, s sin t): the tangent is at right angles to both radii."""
    d = r + s + gap
    t = math.acos((r - s) / d)
    return math.dist((r * math.cos(t), r * math.sin(t)), (d + s * math.cos(t), s * math.sin(t)))


def inradius(a, b, c):
    """The distance of the incenter, by coordinates, from the side c."""
    x = (b * b + c * c - a * a) / (2 * c)
    y = math.sqrt(b * b - x * x)  # corners (0, 0), (c, 0), (x, y), opposite to a, b, c
    return c * y / (a + b + c)


BRUTE = {
    "divisors": lambda a, b, c: sum(2**a * 3**b * 5**c % d == 0 for d in range(1, 2**a * 3**b * 5**c + 1)),
    "power_remainder": lambda a, n, m: a**n % m,
    "three_remainders": lambda m, r: next(
        n for n in range(1, 10**6) if all(n % p == s for p, s in zip(m, r, strict=True))),
    "final_zeros": last_zeros,
    "coprime_pairs": lambda n: sum(math.gcd(a, b) == 1 for a in range(1, n + 1) for b in range(1, n + 1)),
    "roots_of_one": lambda m: sum((n * n - 1) % m == 0 for n in range(1, m + 1)),
    "two_equations": lambda a, b, x, y: next(
        u * v for u, v in product(range(-30, 31), repeat=2) if u + v == x + y and a * u + b * v == a * x + b * y),
    "squares_of_roots": lambda p, q: sum(((-p + s * cmath.sqrt(p * p - 4 * q)) / 2) ** 2 for s in (1, -1)),
    "cubes_of_roots": lambda a, b, c: sum(r**3 for r in roots(1, a, b, c)),
    "weighted_powers": lambda n, r: sum(k * r**k for k in range(1, n + 1)),
    "remainder_value": remainder_value,
    "recurrence": recurrence,
    "trinomial": trinomial,
    "committees": lambda a, b, k: sum(0 < sum(i < a for i in chosen) < k for chosen in combinations(range(a + b), k)),
    "arrangements": lambda w: len(set(permutations(w))),
    "detours": paths,
    "bounded_sums": sums,
    "fixed_points": lambda n, k: sum(sum(i == x for i, x in enumerate(p)) == k for p in permutations(range(n)))
    if n < 9 else None,
    "without_runs": lambda n, k: sum("1" * k not in f"{i:b}" for i in range(2**n)),
    "necklaces": necklaces,
    "triangle_area": lambda p: F(sum(inside(p, x, y) for x, y in product(range(-9, 10), repeat=2)) - 1)
    + F(sum(math.gcd(a - c, b - d) for (a, b), (c, d) in zip(p, p[1:] + p[:1], strict=True)), 2),  # Pick, the other way
    "box_diagonal": lambda a, b, c: math.dist((0, 0, 0), (a, b, c)),
    "common_tangent": tangent,
    "inradius": inradius,
    "disk_points": lambda s: sum(x * x + y * y <= s for x, y in product(range(-11, 12), repeat=2)),
    "interior_points": lambda p: sum(inside(p, x, y) for x, y in product(range(-9, 10), repeat=2)),
    "inner_triangle": inner_triangle,
    "dice_sum": lambda n, s: F(sum(a + b == s for a, b in product(range(1, n + 1), repeat=2)), n * n),
    "same_color": lambda a, b, c: F(sum(x == y for x, y in combinations("r" * a + "b" * b + "g" * c, 2)),
                                    math.comb(a + b + c, 2)),
    "at_least_heads": lambda n, k: F(sum(f"{i:b}".count("1") >= k for i in range(2**n)), 2**n),
    "first_marked": first_marked,
    "ruin": ruin,
    "all_faces": all_faces,
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_answers_equal_brute_force(template):
    checked = 0
    for seed in range(50):
        params = template.draw(random.Random(seed))
        expected = BRUTE[template.name](*params)
        if expected is None:  # too many cases to count
            continue
        answer = template.answer(*params)
        checked += 1
        if isinstance(expected, (float, complex)):
            number = float(answer[0]) * math.sqrt(answer[1]) if isinstance(answer, tuple) else answer
            assert abs(expected - number) < 1e-6 * max(1, abs(number)), params
        else:
            assert answer == expected, params
    assert checked >= 20


def test_there_are_enough_templates_of_every_field_and_level():
    assert len(TEMPLATES) >= 24 and set(BRUTE) == {t.name for t in TEMPLATES} and len(BRUTE) == len(TEMPLATES)
    fields = ("number theory", "algebra", "counting", "geometry", "probability")
    assert {(t.field, t.level) for t in TEMPLATES} == set(product(fields, (1, 2, 3)))


def test_a_seed_is_reproduced_and_extended_and_problems_differ():
    rows = problems(0, 400)
    assert rows[:264] == problems(0, 264) and len({r["problem"] for r in rows}) == 400
    assert {r["id"] for r in rows}.isdisjoint(r["id"] for r in problems(1, 264))
    tests = {r["problem"] for r in rows}
    assert tests.isdisjoint(r["problem"] for r in problems(1, 400, tests))
    rare = Counter(r["template"] for r in problems(0, 2000))
    assert rare["all_faces"] == 18 and rare["disk_points"] > 60  # one that has no more is passed over


def test_answers_are_ones_that_the_grader_reads():
    for row in problems(3, 264):
        assert grade(row["answer"], row["answer"]) and "{" not in row["problem"].replace(
            "{", "", row["problem"].count("}")
        )
        assert "+-" not in row["problem"] and "1a_" not in row["problem"]


def test_how_numbers_are_written():
    assert latex(5) == "5" and latex(-F(3, 4)) == "-\\frac{3}{4}"
    assert latex((F(1), 3)) == "\\sqrt{3}" and latex((F(2), 1)) == "2"
    assert latex((F(3, 2), 5)) == "\\frac{3\\sqrt{5}}{2}" and latex((-F(1, 2), 7)) == "-\\frac{\\sqrt{7}}{2}"
    assert poly(1, 0, -2, 5) == "x^3-2x+5" and poly(1, -1, 1) == "x^2-x+1"


def test_the_command_writes_problems_and_refuses_what_it_does_not_know(tmp_path):
    data_prep.main(["parametric", f"--out={tmp_path}/a.jsonl", "--count=40"])
    data_prep.main(["parametric", f"--out={tmp_path}/b.jsonl", "--count=40", f"--without={tmp_path}/a.jsonl"])
    a, b = ([json.loads(x) for x in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in "ab")
    assert len(a) == len(b) == 40 and {r["problem"] for r in a}.isdisjoint(r["problem"] for r in b)
    for flag, message in (
        ("--sed=3", "not understood"),
        ("--out_dir=x", "not understood"),
        ("--count=0", "under its minimum"),
        (f"--out={tmp_path}", "cannot write"),
        (f"--out={tmp_path}/a.jsonl/b", "cannot write"),
    ):
        with pytest.raises(UserError, match=message):
            data_prep.main(["parametric", flag])
