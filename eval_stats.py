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


def population_interval(means: Sequence[float]) -> tuple[float, float]:
    """For the accuracy on the population that the problems were drawn from: Student's t on the problems' means. Where
    all are 0, or all 1, they show no spread; then the exact (Clopper-Pearson) bound for n problems of one kind."""
    n, mean = len(means), float(np.mean(means))
    if n < 2:
        return 0.0, 1.0
    if mean in (0.0, 1.0):
        bound = ((1 - LEVEL) / 2) ** (1 / n)
        return (bound, 1.0) if mean == 1.0 else (0.0, 1 - bound)
    half = t_quantile(n - 1) * float(np.std(means, ddof=1)) / math.sqrt(n)
    return clamp(mean - half), clamp(mean + half)


def sampling_interval(right: Sequence[int], samples: Sequence[int]) -> tuple[float, float] | None:
    """For the accuracy on these very problems: the variance within problems, p(1-p)/(k-1) of each, with the degrees of
    freedom of Satterthwaite's formula. None where a problem has one sample only: then it cannot be told."""
    if min(samples) < 2:
        return None
    rates = [c / k for c, k in zip(right, samples, strict=True)]
    parts = [p * (1 - p) / (k - 1) for p, k in zip(rates, samples, strict=True)]
    mean, variance = float(np.mean(rates)), sum(parts)
    if variance == 0:
        return mean, mean
    df = variance**2 / sum(v * v / (k - 1) for v, k in zip(parts, samples, strict=True))
    half = t_quantile(df) * math.sqrt(variance) / len(rates)
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


def paired(a: Sequence[float], b: Sequence[float], seed: int = 0) -> dict[str, float]:
    """{difference, low, high, p}: of b minus a, the means of the same problems. The interval is Student's t on the
    differences; p is the permutation test's: the share of FLIPS random swaps of a and b, problem by problem, whose mean
    difference is at least as large."""
    d = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    mean, n = float(d.mean()), len(d)
    half = t_quantile(n - 1) * float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    rng, reached = np.random.default_rng(seed), 0
    for start in range(0, FLIPS, 1000):  # a thousand at a time, to keep the signs small
        signs = rng.integers(0, 2, (min(1000, FLIPS - start), n)) * 2 - 1
        reached += int((np.abs(signs @ d) >= abs(d.sum()) - 1e-9).sum())
    return {"difference": mean, "low": mean - half, "high": mean + half, "p": (reached + 1) / (FLIPS + 1)}


def macro(means: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(average of the benchmarks' accuracies, and its population interval): the variances of the benchmarks' means
    added up, with the degrees of freedom of Welch and Satterthwaite."""
    average = float(np.mean([np.mean(m) for m in means]))
    parts = [(float(np.var(m, ddof=1)) / len(m) / len(means) ** 2, len(m) - 1) for m in means if len(m) > 1]
    variance = sum(v for v, _ in parts)
    if variance == 0 or len(parts) < len(means):  # no spread to be seen: the average of the benchmarks' own bounds
        bounds = [population_interval(m) for m in means]
        return average, float(np.mean([low for low, _ in bounds])), float(np.mean([high for _, high in bounds]))
    half = t_quantile(variance**2 / sum(v * v / df for v, df in parts)) * math.sqrt(variance)
    return average, clamp(average - half), clamp(average + half)
