"""From responses to figures: which responses are right, majority votes, and the summary of a benchmark."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from evaluation.stats import majority, pass_at, population_interval, sampling_interval
from grader.pool import RewardPool
from grader.text import MAX_CHARS, answer_key
from reward import Problem, extract_answer, graded_text

BATCH, BATCH_CHARS = 512, 16 << 20  # responses scored at a time, and about how many characters they may have together
MOST_COMPARED = 64  # wrong answers to one problem that are compared with one another: 2,016 comparisons
Key = tuple[str, str]  # a problem: its benchmark, and its id or place there


@dataclass(frozen=True)
class Response:
    """One sampled response, not yet scored."""

    key: Key
    problem: Problem
    sample: int  # its number among the problem's samples
    text: str  # what the chat template opened, and what the model wrote
    tokens: int | None
    finish_reason: str  # "length": ended by the token limit
    opened: str = ""  # of the text, what the chat template opened


@dataclass(frozen=True)
class Graded:
    """One problem's samples without their texts: what the statistics need. Each list has one entry a sample."""

    benchmark: str
    id: str
    scores: list[float]  # 1.0 right, 0.0 wrong
    tokens: list[int | None]
    cut: list[bool]  # ended by the token limit
    answers: list[str | None]  # the content of the last box, None without one
    gold: str | list[str] = ""  # the right answer; of a list any one is right
    rule: str = "exact"  # of `reward.RULES`, that the scores are by
    think: str = "required"  # the setting, that the answers were looked for by
    majority: float | None = None  # chance that the most frequent answer is right; None: no vote was held

    @property
    def accuracy(self) -> float:
        return sum(self.scores) / len(self.scores)


def batches(responses: Iterable[Response]) -> Iterator[list[Response]]:
    """The responses in order, cut where the benchmark changes too."""
    batch, chars = [], 0
    for response in responses:
        full = len(batch) == BATCH or chars >= BATCH_CHARS
        if batch and (full or response.key[0] != batch[0].key[0]):
            yield batch
            batch, chars = [], 0
        batch.append(response)
        chars += len(response.text)
    if batch:
        yield batch


def grade(responses: Iterable[Response], pool: RewardPool, think: str) -> tuple[list[Graded], Counter[str]]:
    """Each problem's samples with their scores, and how many responses of each benchmark ran into the grader's limits.
    think: the setting.

    A response is right where its reward is at least 1.0: intervals, pass@k and votes are for yes/no outcomes, so a
    `reward_fn` with partial credit is reduced to whether it gave full credit. One batch of texts is in memory at a
    time.
    """
    rows: dict[Key, Graded] = {}
    timeouts: Counter[str] = Counter()
    for batch in batches(responses):
        timeouts_before = pool.timeouts
        texts = [graded_text(r.opened, r.text[len(r.opened) :], r.finish_reason, think) for r in batch]
        rewards = pool.rewards([r.problem for r in batch], texts)
        timeouts[batch[0].key[0]] += pool.timeouts - timeouts_before
        for r, text, reward in zip(batch, texts, rewards, strict=True):
            row = rows.setdefault(r.key, Graded(*r.key, [], [], [], [], r.problem.answer, pool.rule, think))
            row.scores.append(float(reward >= 1.0))
            row.tokens.append(r.tokens)
            row.cut.append(r.finish_reason == "length")
            row.answers.append(extract_answer(text))
    return list(rows.values()), timeouts


def wrong_votes(row: Graded) -> Counter[str]:
    """The votes for each wrong answer. Those with one normal form (spacing, LaTeX style) count as the first of them, by
    any rule."""
    wrong = [a for a, score in zip(row.answers, row.scores, strict=True) if a is not None and not score]
    spelling: dict[str, str] = {}
    return Counter(spelling.setdefault(answer_key(answer[:1000]), answer) for answer in wrong)


def compared(right_votes: int, votes: Counter[str]) -> list[tuple[str, str]]:
    """The pairs of wrong answers whose equality can change the verdict; none where it is clear without. Of more than
    MOST_COMPARED answers only the most frequent ones, in the order of `votes`: the others count as different. (So do
    those that are too long for the grader.)"""
    if not votes or not max(votes.values()) <= right_votes <= votes.total():
        return []
    frequent = {answer for answer, _ in votes.most_common(MOST_COMPARED) if len(answer) <= MAX_CHARS}
    return list(itertools.combinations([answer for answer in votes if answer in frequent], 2))


def joined(votes: Counter[str], equal: list[tuple[str, str]]) -> list[int]:
    """The number of votes for each answer, those for equal answers added up: to the first that an answer equals."""
    earlier = {later: first for first, later in reversed(equal)}
    first_equal: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for answer, count in votes.items():
        first_equal[answer] = first_equal[earlier[answer]] if answer in earlier else answer
        counts[first_equal[answer]] += count
    return list(counts.values())


def vote(rows: list[Graded], pool: RewardPool) -> list[Graded]:
    """The rows with the majority's verdict. All right answers are votes for one answer. Whether two wrong answers are
    equal is asked of the grader, by the pool's rule, but only where the verdict depends on it, and of MOST_COMPARED
    answers to a problem at most: more than that many different wrong answers are joined in part, which favours the
    right one."""
    right, wrong = [int(sum(row.scores)) for row in rows], [wrong_votes(row) for row in rows]
    pairs_of_rows = [compared(right_votes, votes) for right_votes, votes in zip(right, wrong, strict=True)]
    pairs = list(itertools.chain.from_iterable(pairs_of_rows))
    verdicts = iter(pool.grades([a for a, _ in pairs], [b for _, b in pairs], "comparing answers" if pairs else ""))
    voted = []
    for row, right_votes, votes, row_pairs in zip(rows, right, wrong, pairs_of_rows, strict=True):
        counts = joined(votes, [pair for pair in row_pairs if next(verdicts)])
        verdict = majority([right_votes, *counts], [True] + [False] * len(counts)) if right_votes else 0.0
        voted.append(replace(row, majority=verdict))
    return voted


def mean(values: list[Any]) -> float | None:
    """Of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarize(rows: list[Graded]) -> dict[str, Any]:
    """The figures of one benchmark from its problems.

    `pass_at_1` comes with two 95% intervals: `ci_*` for the population that the problems were drawn from, `sampling_*`
    for these very problems (see `stats`). Shares are 0..1, lengths in tokens; None is what cannot be told.
    """
    rates = [row.accuracy for row in rows]
    right, counts = [int(sum(row.scores)) for row in rows], [len(row.scores) for row in rows]
    k, n, accuracy = min(counts), len(rows), sum(rates) / len(rows)
    population, sampling = population_interval(rates), sampling_interval(right, counts) or (None, None)
    squares = sum((rate - accuracy) ** 2 for rate in rates)
    pass_at_j = {}
    for j in sorted({2**i for i in range(k.bit_length())} | {k}):
        pass_at_j[str(j)] = mean([pass_at(j, count, c) for count, c in zip(counts, right, strict=True)])
    lengths = [pair for row in rows for pair in zip(row.scores, row.tokens, strict=True)]
    return {
        "pass_at_1": accuracy,
        "ci_low": population[0],
        "ci_high": population[1],
        "sampling_low": sampling[0],
        "sampling_high": sampling[1],
        "stderr": math.sqrt(squares / (n - 1) / n) if n > 1 else None,
        "num_problems": n,
        "k": k,
        "pass_at_k": pass_at_j[str(k)],
        "pass_at": pass_at_j,
        "majority_at_k": mean([row.majority for row in rows]),
        "tokens_mean": mean([tokens for _, tokens in lengths]),
        "tokens_correct": mean([tokens for score, tokens in lengths if score]),
        "tokens_incorrect": mean([tokens for score, tokens in lengths if not score]),
        "clip_ratio": mean([cut for row in rows for cut in row.cut]),
        "no_answer_ratio": mean([answer is None for row in rows for answer in row.answers]),
    }
