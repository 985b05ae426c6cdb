r"""sympy as the oracle of the exact grader: fresh pairs that sympy's own algebra makes, equal ones and unequal ones.

    python tests/test_oracle.py --seed 1 --pairs 5000 [--golds FILE ...]    # counts by kind, and every disagreement

A gold becomes a sympy expression (`grader.deepscaler.to_sympy`), one or two of sympy's rewritings change its form, and
`sympy.latex` prints it: the grader must find it equal to the gold. For unequal pairs one thing in the tree is changed
too, and sympy's numerics at 60 digits must tell the two apart. The grader shares no code with sympy but mpmath's
functions, so a fault of one is seldom a fault of the other. Golds: grader_cases*.txt, SEEDS, two of these combined, and
those of .json or .jsonl files. Left out are what the two read differently: logarithms without a base, odd roots of
negative numbers; and what sympy may take minutes for.
"""

import argparse
import collections
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import sympy
from sympy import Basic, Expr
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import InverseTrigonometricFunction, TrigonometricFunction

sys.path.insert(0, str(Path(__file__).parents[1]))
from conformance import BLIND_CASES, CASES, load_cases, load_golds
from grader.clean import clean
from grader.deepscaler import to_sympy
from grader.parser import parse
from grader.tokens import GREEK
from reward import grade

MAX_OPS, MAX_INTEGER, MAX_EXPONENT = 25, 200, 9  # of what is rewritten: sympy's algebra has no bounds of its own
NAME = re.compile(r"[A-Za-z](_\d)?|" + "|".join(GREEK - {"odot", "max", "min", "ell", "hbar"}))
RAW = sorted((Path(__file__).parents[2] / "shared/data/raw").glob("*/*.json*"))
UNUSABLE = re.compile(r"text|\\log(?! *_)|(?<![\\A-Za-z])[A-Za-z]{2}")  # words, and logarithms to no certain base
SEEDS = r"""
\frac{x^2-1}{x^2+3x+2}                  \frac1{x-1}-\frac1{x+1}                 \frac{x^3+1}{x+1}+\frac{2}{x}
\frac{a}{b}+\frac{b}{a}                 (x+y)^3-(x-y)^3                         \frac{(n+1)(n+2)}{2}-\frac{n(n+1)}{2}
\frac{1}{x(x+1)(x+2)}                   x^4+4y^4                                \frac{a^3-b^3}{a-b}
\frac{1}{\sqrt2+\sqrt3}                 \sqrt{5+2\sqrt6}                        \frac{\sqrt6-\sqrt2}{4}
\frac{1+\sqrt5}{2}                      \frac{1}{\sqrt[3]{2}-1}                 \sqrt[3]{9+4\sqrt5}
\frac{3-\sqrt7}{3+\sqrt7}               \sqrt{2+\sqrt{2+\sqrt2}}                (2+\sqrt3)^5
\sin\frac{\pi}{12}                      \cos\frac{\pi}{5}                       \tan\frac{\pi}{8}
\sin\frac{\pi}{7}\sin\frac{2\pi}{7}     \cos\frac{2\pi}{9}                      4\cos^3\frac{\pi}{9}-3\cos\frac{\pi}{9}
\sin 3x                                 \cos^4 x                                \tan x+\cot x
\sin(x+y)\cos(x-y)                      \frac{\sin x}{1+\cos x}                 \sec^2 x-\tan^2 x+x
2\sin x\cos x                           \sin^2 x\cos^2 x                        \cos(2x)-\sin^2 x
\ln(12)-\ln 3                           \frac{\ln 8}{\ln 2+\ln 3}               \ln(2x)+\ln(3y)
\frac{\ln x}{x}                         \ln\frac{27}{4}                         \log_2 12-\log_2 3x
e^{2x}-e^{-2x}                          \frac{e^x-1}{e^{2x}-1}                  e^{x+y}
\frac{e^x+e^{-x}}{2}                    \sinh(2x)                               \cosh^2 x+\sinh^2 x
2^{x+3}                                 4^n-2^{n+1}                             \frac{3^{n+1}-1}{2}
(1+2i)^3                                \frac{1+i}{1-2i}                        \frac{1}{2+i\sqrt3}
e^{i\pi/3}                              (\cos\frac{\pi}{5}+i\sin\frac{\pi}{5})^2    i^n
\binom{n}{2}+n                          \binom{10}{3}x                          \binom{n+1}{k}
\frac{(n+2)!}{n!}                       n\cdot n!+n!                            \frac{(2n)!}{2^n n!}
\arctan\frac12+\arctan\frac13           \arcsin\frac{3}{5}                      \arctan x
|x-1|+|1-x|                             \lfloor x\rfloor+x                      \sqrt{x^2+1}-x
""".strip()


# ---------------------------------------------------------------- what is rewritten, and how

Rewriting = Callable[[Expr], Basic]
REWRITINGS: dict[str, Rewriting] = {
    "print": lambda e: e,
    "expand": sympy.expand,
    "factor": sympy.factor,
    "together": sympy.together,
    "apart": lambda e: sympy.apart(e, sorted(e.free_symbols, key=str)[0]) if e.free_symbols else e,
    "cancel": sympy.cancel,
    "collect": lambda e: sympy.collect(sympy.expand(e), sorted(e.free_symbols, key=str)[:1]),
    "horner": lambda e: sympy.horner(e) if e.is_polynomial() and e.free_symbols else e,
    "radsimp": sympy.radsimp,
    "sqrtdenest": sympy.sqrtdenest,
    "powsimp": sympy.powsimp,
    "powdenest": sympy.powdenest,
    "expand_power": lambda e: sympy.expand_power_base(sympy.expand_power_exp(e)),
    "trigsimp": sympy.trigsimp,
    "expand_trig": sympy.expand_trig,
    "fu": sympy.fu,
    "as exp": lambda e: e.rewrite(sympy.exp),
    "as sin": lambda e: e.rewrite(sympy.sin),
    "as tan": lambda e: e.rewrite(sympy.tan),
    "as sqrt": lambda e: e.rewrite(sympy.sqrt),
    "logcombine": sympy.logcombine,
    "expand_log": sympy.expand_log,
    "expand_log primes": lambda e: sympy.expand_log(e, factor=True),
    "expand_complex": lambda e: e if e.free_symbols else sympy.expand_complex(e),
    "combsimp": sympy.combsimp,
    "expand_func": sympy.expand_func,
    "as factorial": lambda e: e.rewrite(sympy.factorial),
}
PRINTING = [
    *({}, {}, {}, {"mul_symbol": "dot"}, {"mul_symbol": "times"}, {"inv_trig_style": "power"}),
    *({"root_notation": False}, {"fold_frac_powers": True}),
]
PRINTABLE = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Symbol, sympy.Rational, sympy.exp, sympy.log, sympy.Abs)
PRINTABLE += (sympy.floor, sympy.ceiling, sympy.factorial, sympy.binomial, sympy.NumberSymbol)
PRINTABLE += (type(sympy.I), TrigonometricFunction, InverseTrigonometricFunction, HyperbolicFunction)


KNOWN = {  # why the grader gives up on equal pairs that no problem has for an answer, and what such pairs hold
    "(-2)^k is taken at whole k, where its powers soon grow too large": re.compile(r"\(- ?[\\\d].*\)\^\{.*[a-z]"),
    "factorials are taken at whole numbers, beside them powers soon grow too large": re.compile(r"\^\{.*(!|binom)"),
}
WHOLE = (sympy.factorial, sympy.binomial, sympy.floor, sympy.ceiling)  # of integers, or to integers


class Pair(NamedTuple):
    kind: str
    answer: str
    gold: str
    equal: bool


@cache
def expression(gold: str) -> Expr | None:
    """The gold as a sympy expression; None where it is no scalar, is a plain number or would take long to rewrite."""
    try:
        (item,) = () if UNUSABLE.search(gold) else parse(clean(gold))
        expr = to_sympy(item)
    except Exception:  # what the parser or `to_sympy` refuses, or sympy finds undefined
        return None
    return expr if is_usable(expr) and is_small(expr) and not expr.is_Rational else None


def is_usable(expr: Expr) -> bool:
    """Defined, with names that sympy prints as we read them, and no odd root of a negative number: our cube root of
    -8 is -2, sympy's is complex."""
    odd_roots = [p for p in expr.atoms(sympy.Pow) if p.exp.is_Rational and p.exp.q > 1 and p.exp.q % 2]
    named = all(NAME.fullmatch(symbol.name) for symbol in expr.free_symbols)
    undefined = expr.has(sympy.nan, sympy.oo, -sympy.oo, sympy.zoo)
    return named and not undefined and not any(root.base.is_negative for root in odd_roots)


def is_small(expr: Expr) -> bool:
    numbers = max((max(abs(r.p), r.q) for r in expr.atoms(sympy.Rational)), default=0)
    exponents = max((abs(p.exp) for p in expr.atoms(sympy.Pow) if p.exp.is_Integer), default=0)
    return expr.count_ops() <= MAX_OPS and numbers <= MAX_INTEGER and exponents <= MAX_EXPONENT


def combined(a: Expr, b: Expr, rng: random.Random) -> Expr:
    """A new expression of two: a sum, product or quotient, or one in the place of a variable of the other."""
    if a.free_symbols and rng.random() < 0.5 and not a.has(*WHOLE) and not b.has(*WHOLE):
        return a.subs(rng.choice(names(a)), b)
    return rng.choice((a + b, a * b, a / b, a - b))


def load_expressions(files: list[Path]) -> list[str]:
    cases = [text for path in (CASES, BLIND_CASES) for _, _, a, b in load_cases(path) for text in (a, b)]
    golds = [gold for path in files for gold in load_golds(path) if len(gold) <= 100]
    return sorted({*cases, *golds}) + [seed for line in SEEDS.splitlines() for seed in re.split(r"\s{2,}", line)]


# ---------------------------------------------------------------- unequal pairs


def perturbed(expr: Expr, rng: random.Random) -> Expr:
    """`expr` with one change at a random place: an integer one larger, a sign, sin for cos, a part left out."""
    places = [path for path, part in walk(expr) if changes(part)]
    return replaced(expr, path := rng.choice(places), rng.choice(changes(at(expr, path)))) if places else expr


def changes(part: Basic) -> list[Basic]:
    if isinstance(part, sympy.Integer):
        return [part + 1]
    if isinstance(part, sympy.Rational):
        return [sympy.Rational(part.p + 1, part.q), sympy.Rational(part.p, part.q + 1)]
    if isinstance(part, sympy.sin | sympy.cos):
        return [(sympy.cos if isinstance(part, sympy.sin) else sympy.sin)(*part.args)]
    if isinstance(part, sympy.Add):
        return [part - 2 * part.args[0], part - part.args[-1]]
    return [part / part.args[-1], -part] if isinstance(part, sympy.Mul) else []


def walk(expr: Basic, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Basic]]:
    yield path, expr
    for i, arg in enumerate(expr.args):
        yield from walk(arg, (*path, i))


def at(expr: Basic, path: tuple[int, ...]) -> Basic:
    for i in path:
        expr = expr.args[i]
    return expr


def replaced(expr: Basic, path: tuple[int, ...], new: Basic) -> Basic:
    if not path:
        return new
    args = list(expr.args)
    args[path[0]] = replaced(args[path[0]], path[1:], new)
    return expr.func(*args)


def same_numerically(a: Expr, b: Expr, rng: random.Random, points: int = 3) -> bool | None:
    """Whether the values at random positive points agree to 40 of 60 digits; None where they are not defined.

    Variables are integers where a factorial, a binomial coefficient, a floor or a power such as (-1)^n has one.
    """
    verdict = None
    whole = any(e.has(*WHOLE) for e in (a, b)) or any(
        power.exp.free_symbols and power.base.is_negative for e in (a, b) for power in e.atoms(sympy.Pow)
    )
    for _ in range(points):
        point = {s: rng.randint(5, 15) if whole else sympy.Rational(rng.randint(20, 300), 101) for s in names(a, b)}
        x, y = (sympy.N(e.xreplace({s: sympy.sympify(v) for s, v in point.items()}), 60) for e in (a, b))
        if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
            continue
        if abs(x - y) > sympy.Float(10, 60) ** -40 * max(abs(x), abs(y), sympy.Float(10, 60) ** -15):
            return False
        verdict = True
    return verdict


def names(*exprs: Expr) -> list[sympy.Symbol]:
    return sorted(set().union(*(e.free_symbols for e in exprs)), key=str)


# ---------------------------------------------------------------- pairs


def make_pairs(seed: int, count: int, golds: list[str]) -> Iterator[Pair]:
    """`count` different pairs, two of three equal. The same seed and golds give the same pairs."""
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        gold = rng.choice(golds)
        expr = expression(gold)
        if expr is not None and rng.random() < 0.4 and (other := expression(rng.choice(golds))) is not None:
            expr = combined(expr, other, rng)
            gold = printed(expr, rng) if is_usable(expr) and is_small(expr) and is_printable(expr) else ""
        if expr is None or not gold:
            continue
        steps = rng.sample(sorted(REWRITINGS), rng.choice((1, 1, 2)))
        rewritten = rewrite(expr, steps)
        if rewritten == expr and rng.random() < 0.9:
            continue
        equal = rng.random() < 2 / 3
        if rewritten is not None and not equal:
            rewritten = perturbed(rewritten, rng)
            if same_numerically(rewritten, expr, rng) is not False:
                continue
        if rewritten is None or not is_printable(rewritten) or not is_usable(rewritten):
            continue
        answer = printed(rewritten, rng)
        if (answer, gold) not in seen:
            seen.add((answer, gold))
            yield Pair(steps[-1] if equal else "unequal", answer, gold, equal)


def rewrite(expr: Expr, steps: list[str]) -> Expr | None:
    """`expr` after the rewritings; None where one fails, or the result is too large to go on with."""
    for step in steps:
        try:
            expr = REWRITINGS[step](expr)
        # What sympy raises where a rewriting does not apply, such as partial fractions in two variables.
        except (NotImplementedError, ValueError, TypeError, AttributeError, RecursionError, sympy.PolynomialError):
            return None
        if not is_small(expr):
            return None
    return expr


def printed(expr: Expr, rng: random.Random) -> str:
    return sympy.latex(expr, **{"inv_trig_style": "full", "ln_notation": True, **rng.choice(PRINTING)})


def is_printable(expr: Basic) -> bool:
    return all(isinstance(part, PRINTABLE) for _, part in walk(expr))


def judge(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, bool, str | None]]:
    """(pair, whether the grader agrees, why it is known not to or None) of each pair."""
    for pair in pairs:
        agrees = grade(pair.answer, pair.gold) == pair.equal
        reasons = [
            why for why, pattern in KNOWN.items() if pair.equal and pattern.search(f"{pair.answer} | {pair.gold}")
        ]
        yield pair, agrees, reasons[0] if reasons and not agrees else None


@pytest.mark.parametrize("seed, count, files", [(1, 1000, []), (2, 500, RAW)])
def test_grader_agrees_with_sympy(seed, count, files):
    print(f"python tests/test_oracle.py --seed {seed} --pairs {count}", *["--golds", *files] if files else [])
    if seed == 2 and not files:
        pytest.skip("needs golds in ../shared/data/raw")
    judged = list(judge(make_pairs(seed, count, load_expressions(files))))
    assert [pair for pair, agrees, known in judged if not agrees and not known] == []
    assert sum(bool(known) for _, _, known in judged) <= count / 100
    assert sum(pair.equal for pair, _, _ in judged) > count / 3 and len({pair.kind for pair, _, _ in judged}) > 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--golds", nargs="+", type=Path, default=[])
    args = parser.parse_args()
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for pair, agrees, known in judge(make_pairs(args.seed, args.pairs, load_expressions(args.golds))):
        counts[pair.kind]["agrees" if agrees else "known" if known else "new"] += 1
        if not agrees:
            sign = "=" if pair.equal else "!"
            print(f"{sign} | {pair.kind} | {pair.answer} | {pair.gold} | known: {known}", flush=True)
    for kind, count in sorted(counts.items()):
        print(f"{kind:20} {count.total():6} pairs {count['known']:4} known and {count['new']:4} new disagreements")


if __name__ == "__main__":
    main()
