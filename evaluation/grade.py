"""From responses to figures: the answer that is graded, scores, majority votes, and a benchmark's summary."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from evaluation.stats import majority, pass_at, population_interval, sampling_interval
from grader.pool import RewardPool
from grader.text import answer_key
from reward import extract_answer, last_boxed


@dataclass
class Graded:
    """One problem's samples: what the statistics need, without the texts."""

    benchmark: str
    id: str
    scores: list[float]
    tokens: list[int | None]
    cut: list[bool]  # ended by the token limit
    answers: list[str | None]  # what stood in the box
    majority: float | None = None  # None: not asked


def boxed_answer(text: str, finish_reason: str) -> str | None:
    """What is graded of another engine's text: the answer after the thinking. A text with </think> alone had its
    <think> in the prompt; one with neither that ended by itself is not a reasoning model's, and is read whole. (Our own
    samples are graded as in training: `extract_answer` on what the template opened and the model wrote.)"""
    if "<think>" in text:
        return extract_answer(text)
    if "</think>" in text:
        return extract_answer("<think>" + text)
    return last_boxed(text) if finish_reason != "length" else None


def grade(rows: list[Graded], golds: list[str | list[str]], pool: RewardPool, progress: str) -> None:
    """Fills in the scores, each different answer of a problem graded once."""
    asked = [(i, a) for i, row in enumerate(rows) for a in dict.fromkeys(row.answers) if a is not None]
    pairs = [(i, a, g) for i, a in asked for g in ([golds[i]] if isinstance(golds[i], str) else golds[i])]
    found: dict[tuple[int, str], float] = {}
    for (i, a, _), score in zip(
        pairs, pool.grades([p[1] for p in pairs], [p[2] for p in pairs], progress), strict=True
    ):
        found[i, a] = max(score, found.get((i, a), 0.0))
    for i, row in enumerate(rows):
        row.scores = [found.get((i, a), 0.0) for a in row.answers]


def vote(rows: list[Graded], pool: RewardPool) -> None:
    """Fills in the majority's verdict. Right answers are votes for one answer. Wrong ones are the same when they are
    spelled alike; where the verdict hangs on more, the grader compares them."""
    open_rows, pairs = [], []
    for row in rows:
        wrong: dict[str, list[str]] = defaultdict(list)
        for a, score in zip(row.answers, row.scores, strict=True):
            if a is not None and not score:
                wrong[answer_key(a[:1000])].append(a)
        right, sizes = int(sum(row.scores)), [len(v) for v in wrong.values()]
        if right and len(sizes) > 1 and max(sizes) <= right <= sum(sizes):
            texts = [v[0] for v in wrong.values()]
            open_rows.append((row, right, sizes, len(texts)))
            pairs += [(texts[i], texts[j]) for j in range(len(texts)) for i in range(j)]
        votes = [right] * bool(right) + sizes
        row.majority = majority(votes, [True] * bool(right) + [False] * len(sizes))
    same = iter(pool.grades([a for a, _ in pairs], [b for _, b in pairs], "comparing answers" if pairs else ""))
    for row, right, sizes, count in open_rows:
        group = list(range(count))
        for j in range(count):
            for i in range(j):
                if next(same) and group[j] == j:
                    group[j] = group[i]
        votes = [right, *(sum(s for s, g in zip(sizes, group, strict=True) if g == k) for k in sorted(set(group)))]
        row.majority = majority(votes, [True] + [False] * (len(votes) - 1))


def mean(values: list[Any]) -> float | None:
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def summarize(rows: list[Graded]) -> dict[str, Any]:
    """The figures of one benchmark from its problems: `pass_at_1` with the 95% interval for the population of problems
    (ci_low, ci_high) and the one for these very problems (sampling_low, sampling_high), the rest as named."""
    rates = [sum(r.scores) / len(r.scores) for r in rows]
    right, counts = [int(sum(r.scores)) for r in rows], [len(r.scores) for r in rows]
    k, n = min(counts), len(rows)
    accuracy, population, sampling = sum(rates) / n, population_interval(rates), sampling_interval(right, counts)
    samples = [(s, t, c, a) for r in rows for s, t, c, a in zip(r.scores, r.tokens, r.cut, r.answers, strict=True)]
    at = sorted({2**i for i in range(k.bit_length())} | {k})
    passes = {j: sum(pass_at(j, c, x) for x, c in zip(right, counts, strict=True)) / n for j in at}
    return {
        "pass_at_1": accuracy, "ci_low": population[0], "ci_high": population[1],
        "sampling_low": sampling and sampling[0], "sampling_high": sampling and sampling[1],
        "stderr": math.sqrt(sum((x - accuracy) ** 2 for x in rates) / max(1, n - 1) / n), "num_problems": n, "k": k,
        "pass_at_k": passes[k], "pass_at": {str(j): p for j, p in passes.items()},
        "majority_at_k": mean([r.majority for r in rows]), "tokens_mean": mean([t for _, t, _, _ in samples]),
        "tokens_correct": mean([t for s, t, _, _ in samples if s]),
        "tokens_incorrect": mean([t for s, t, _, _ in samples if not s]),
        "clip_ratio": mean([c for _, _, c, _ in samples]),
        "no_answer_ratio": mean([a is None for _, _, _, a in samples]),
    }  # fmt: skip
