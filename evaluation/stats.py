"""The statistics of an evaluation, as formulas on counts: intervals, pass@k, majority votes, paired comparisons.

Two questions, two intervals. How would the model do on other problems of this kind? The problems are a sample, and the
interval for their *population* is wide: 30 problems leave about +-14 points. How would it do on these very problems,
asked again? Then only the *sampling* of answers varies, about +-3 points at 30 problems x 16 samples.
"""

import functools
import math
from collections.abc import Sequence
from math import comb
from statistics import NormalDist

import mpmath
import numpy as np

LEVEL = 0.95  # of every interval
FLIPS = 20_000  # random signs of the permutation test


def t_quantile(df: float) -> float:
    """The t with P(|T| <= t) = LEVEL for Student's distribution, right to three digits. From 100 degrees of freedom on
    by the expansion around the normal quantile (Fisher and Cornish 1960)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    if df >= 100:
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df * df)
    return _small_t_quantile(float(f"{df:.3g}"))


@functools.cache
def _small_t_quantile(df: float) -> float:
    """By bisection: P(|T| > t) is the incomplete beta function I_x(df/2, 1/2) at x = df / (df + t^2)."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        t = (low + high) / 2
        outside = mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True)
        low, high = (t, high) if outside > 1 - LEVEL else (low, t)
    return (low + high) / 2


def clamp(x: float) -> float:
    return min(1.0, max(0.0, x))


def beta_quantile(p: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        low, high = (x, high) if mpmath.betainc(a, b, 0, x, regularized=True) < p else (low, x)
    return (low + high) / 2


def population_interval(means: Sequence[float]) -> tuple[float, float]:
    """For the accuracy on the population that the problems were drawn from: Student's t on the problems' means. Where
    fewer than five problems are not all wrong, or not all right, the spread is not to be seen in them; then the exact
    (Clopper-Pearson) bounds for that many right of n, which are wide."""
    n, right = len(means), float(np.sum(means))
    some, missed = (sum(m > 0 for m in means), sum(m < 1 for m in means))
    spread = float(np.std(means, ddof=1)) if n > 1 else 0.0
    if spread > 0 and min(some, missed) >= 5:
        half = t_quantile(n - 1) * spread / math.sqrt(n)
        return clamp(right / n - half), clamp(right / n + half)
    tail = (1 - LEVEL) / 2
    low = beta_quantile(tail, right, n - right + 1) if right > 0 else 0.0
    return low, beta_quantile(1 - tail, right + 1, n - right) if right < n else 1.0


def sampling_interval(right: Sequence[int], samples: Sequence[int]) -> tuple[float, float] | None:
    """For the accuracy on these very problems: the variance within problems, p(1-p)/(k-1) of each, with the degrees of
    freedom of Satterthwaite's formula. None where a problem has one sample only: then it cannot be told. Where every
    problem is all right or all wrong, the bound for no exception among that many samples."""
    if min(samples) < 2:
        return None
    n, rates = len(right), [c / k for c, k in zip(right, samples, strict=True)]
    parts = [p * (1 - p) / (k - 1) for p, k in zip(rates, samples, strict=True)]
    mean, variance, mixed = float(np.mean(rates)), sum(parts), sum(0 < p < 1 for p in rates)
    if variance == 0:
        half = 1 - ((1 - LEVEL) / 2) ** (1 / sum(samples))
    else:
        df = variance**2 / sum(v * v / (k - 1) for v, k in zip(parts, samples, strict=True))
        half = min(t_quantile(df) * math.sqrt(variance), mixed) / n
    return clamp(mean - half), clamp(mean + half)


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that of k of the samples, without replacement, at least one is right: 1 - C(n-c, k) / C(n, k), an
    unbiased estimate (Chen et al. 2021, arXiv 2107.03374)."""
    return 1 - comb(samples - right, k) / comb(samples, k)


def majority(votes: Sequence[int], right: Sequence[bool]) -> float:
    """The chance that the most frequent answer is right, a tie broken at random. `votes` of each different answer and
    whether it is right; 0 where nobody answered."""
    if not votes:
        return 0.0
    first = [r for v, r in zip(votes, right, strict=True) if v == max(votes)]
    return sum(first) / len(first)


def paired(groups: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> dict[str, float]:
    """{difference, low, high, p}: of b minus a on the same problems, for (means of a, means of b) of each benchmark;
    the benchmarks weigh the same. The interval is Student's t on the differences (degrees of freedom of Welch and
    Satterthwaite); p is the permutation test's: the share of FLIPS random swaps of a and b, problem by problem, whose
    difference is at least as large."""
    ds = [np.asarray(b, np.float64) - np.asarray(a, np.float64) for a, b in groups]
    weighted = np.concatenate([d / len(d) / len(ds) for d in ds])
    difference = float(weighted.sum())
    parts = [(float(np.var(d, ddof=1)) / len(d) / len(ds) ** 2, len(d) - 1) for d in ds if len(d) > 1]
    variance = sum(v for v, _ in parts)
    half = 1.0  # as wide as can be, where there is no spread to be seen
    if len(parts) == len(ds) and variance > 0:
        half = t_quantile(variance**2 / sum(v * v / df for v, df in parts if v)) * math.sqrt(variance)
    rng, reached = np.random.default_rng(seed), 0
    for start in range(0, FLIPS, 1000):  # a thousand at a time, to keep the signs small
        signs = rng.integers(0, 2, (min(1000, FLIPS - start), len(weighted))) * 2 - 1
        reached += int((np.abs(signs @ weighted) >= abs(difference) - 1e-12).sum())
    if not any(d.any() for d in ds):
        half = 0.0  # nothing changed
    return {"difference": difference, "low": max(-1.0, difference - half), "high": min(1.0, difference + half),
            "p": (reached + 1) / (FLIPS + 1)}  # fmt: skip


def macro(means: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(average of the benchmarks' accuracies, and its population interval): the distances from each accuracy to its own
    bounds, added as squares (MOVER: Zou and Donner 2008)."""
    found = [(float(np.mean(m)), *population_interval(m)) for m in means]
    average = sum(mean for mean, _, _ in found) / len(found)
    below, above = (math.sqrt(sum((f[0] - f[side]) ** 2 for f in found)) / len(found) for side in (1, 2))
    return average, clamp(average - below), clamp(average + above)
