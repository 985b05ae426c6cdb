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


def clamp(x: float) -> float:
    return min(1.0, max(0.0, x))


def beta_quantile(p: float, a: float, b: float) -> float:
    """By bisection: the x with P(X <= x) = p for the Beta distribution."""
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        low, high = (x, high) if mpmath.betainc(a, b, 0, x, regularized=True) < p else (low, x)
    return (low + high) / 2


def t_quantile(df: float) -> float:
    """The t with P(|T| <= t) = LEVEL for Student's distribution, right to three digits. From 100 degrees of freedom on
    by the expansion around the normal quantile (Fisher and Cornish 1960)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    if df >= 100:
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df * df)
    return _small_t_quantile(float(f"{df:.3g}"))


@functools.cache
def _small_t_quantile(df: float) -> float:
    x = beta_quantile(1 - LEVEL, df / 2, 0.5)  # df / (df + T^2) has this Beta distribution
    return math.sqrt(df * (1 - x) / x)


def population_interval(means: Sequence[float]) -> tuple[float, float]:
    """For the accuracy on the population that the problems were drawn from: Student's t on the problems' means.

    With fewer than five exceptions to all wrong (or to all right) the sample says too little about the spread; then
    the exact bounds for that many right of n (Clopper and Pearson), which are wide.
    """
    n, right = len(means), float(np.sum(means))
    not_all_wrong, not_all_right = sum(m > 0 for m in means), sum(m < 1 for m in means)
    spread = float(np.std(means, ddof=1)) if n > 1 else 0.0
    if spread > 0 and min(not_all_wrong, not_all_right) >= 5:
        half = t_quantile(n - 1) * spread / math.sqrt(n)
        return clamp(right / n - half), clamp(right / n + half)
    tail = (1 - LEVEL) / 2
    low = beta_quantile(tail, right, n - right + 1) if right > 0 else 0.0
    return low, beta_quantile(1 - tail, right + 1, n - right) if right < n else 1.0


def sampling_interval(right: Sequence[int], samples: Sequence[int]) -> tuple[float, float] | None:
    """For the accuracy on these very problems, of whose `samples` so many are `right`: from the variance within
    problems, p(1-p)/(k-1) of each, with the degrees of freedom of Satterthwaite's formula.

    None where some problem has a single sample, which has no variance. Where every problem is all right or all wrong,
    the bound for no exception among that many samples.
    """
    if min(samples) < 2:
        return None
    n, rates = len(right), [c / k for c, k in zip(right, samples, strict=True)]
    variances = [p * (1 - p) / (k - 1) for p, k in zip(rates, samples, strict=True)]
    mean, variance, mixed = float(np.mean(rates)), sum(variances), sum(0 < p < 1 for p in rates)
    if variance == 0:
        half = 1 - ((1 - LEVEL) / 2) ** (1 / sum(samples))
    else:
        df = variance**2 / sum(v * v / (k - 1) for v, k in zip(variances, samples, strict=True))
        half = min(t_quantile(df) * math.sqrt(variance), mixed) / n  # problems that vary move it by 1/n each at most
    return clamp(mean - half), clamp(mean + half)


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that of k of the samples, without replacement, at least one is right: 1 - C(n-c, k) / C(n, k), an
    unbiased estimate (Chen et al. 2021, arXiv 2107.03374)."""
    return 1 - comb(samples - right, k) / comb(samples, k)


def majority(votes: Sequence[int], right: Sequence[bool]) -> float:
    """The chance that the most frequent answer is right, a tie broken at random: `votes` for each answer, and whether
    it is right. 0 where nobody answered."""
    most = max(votes, default=0)
    winners = [is_right for count, is_right in zip(votes, right, strict=True) if count == most]
    return sum(winners) / len(winners) if winners else 0.0


def paired(groups: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> dict[str, float]:
    """{difference, low, high, p} of b minus a on the same problems. groups: (means of a, means of b) of each benchmark;
    the benchmarks weigh the same.

    The interval is Student's t on the differences, with the degrees of freedom of Welch and Satterthwaite. p is that of
    the permutation test: the share of FLIPS random swaps of a and b, problem by problem, that differ at least as much.
    """
    by_benchmark = [np.asarray(b, np.float64) - np.asarray(a, np.float64) for a, b in groups]
    weighted = np.concatenate([d / len(d) / len(groups) for d in by_benchmark])
    difference = float(weighted.sum())
    half = 1.0  # as wide as can be: a benchmark of one problem shows no spread
    if not weighted.any():
        half = 0.0
    elif min(len(d) for d in by_benchmark) > 1:
        variances = [float(np.var(d, ddof=1)) / len(d) / len(groups) ** 2 for d in by_benchmark]
        variance = sum(variances)
        if variance > 0:
            df = variance**2 / sum(v * v / (len(d) - 1) for v, d in zip(variances, by_benchmark, strict=True))
            half = t_quantile(df) * math.sqrt(variance)
    rng, as_large = np.random.default_rng(seed), 0
    for start in range(0, FLIPS, 1000):  # a thousand at a time, to keep the signs small
        signs = rng.integers(0, 2, (min(1000, FLIPS - start), len(weighted))) * 2 - 1
        as_large += int((np.abs(signs @ weighted) >= abs(difference) - 1e-12).sum())
    low, high, p = max(-1.0, difference - half), min(1.0, difference + half), (as_large + 1) / (FLIPS + 1)
    return {"difference": difference, "low": low, "high": high, "p": p}


def macro(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The average of the benchmarks' accuracies and its population interval, from each benchmark's means: the distances
    from each accuracy to its own bounds are added as squares (MOVER: Zou and Donner 2008)."""
    accuracies, n = [float(np.mean(means)) for means in groups], len(groups)
    bounds = [population_interval(means) for means in groups]
    average = sum(accuracies) / n
    below = math.hypot(*(x - low for x, (low, _) in zip(accuracies, bounds, strict=True))) / n
    above = math.hypot(*(x - high for x, (_, high) in zip(accuracies, bounds, strict=True))) / n
    return average, clamp(average - below), clamp(average + above)
