"""Which rows count as one problem: the rules on top of similarity, for copies within a set and for leaked tests.

Similarity alone does not tell a rephrased problem from another of the same template, so within the training set answers
must agree, and the numbers in the text as well unless the similarity is very high. Against the tests it is enough: a
lost row is cheap, a leaked test is not.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from grader.text import THOUSANDS_SEPARATOR, answer_key, normal_form, plain_number
from problems.choices import split_choices
from problems.similarity import (
    Embedder,
    close_pairs,
    numbers,
    text_similarity,
    without_figures,
)

# similarity from which on two rows with equal answers are one problem: with the same numbers; with numbers of which one
# problem has all that the other has, or an answer that few rows have; in any case
NEAR, NEAR_SOME, NEARER = 0.68, 0.85, 0.95
DERIVED = 0.71  # with the same numbers, where one answer is the other made an integer: 83/499 and 83 + 499
LEAK, LEAK_AGREEING = 0.85, 0.75  # similarity to a test problem from which on a row goes; where more agrees
ORIGINAL = 0.9  # DeepScaleR's only rule

_INTEGERS = re.compile(r"\d+")


@dataclass(frozen=True)
class Pair:
    """Two texts that count as one problem, and why."""

    i: int
    j: int
    how: str  # "exact": equal normal forms; "near": by similarity, answer and numbers
    similarity: float


@dataclass(frozen=True)
class Texts:
    """Problems, ready to be compared."""

    problems: list[str]
    keys: list[str]  # answers in one spelling
    integers: list[set[int]]  # what an answer would be as "find m + n" or "the remainder when divided by 1000"
    forms: list[str]  # normal forms
    numbers: list[tuple[tuple[str, ...], tuple[str, ...]]]  # in the words; in the words and in the figure's code
    vectors: np.ndarray  # (W, E), figures and choices left out
    owners: np.ndarray  # (W,) the problem of each window
    windows: list[slice]  # of each problem

    @classmethod
    def of(cls, problems: list[str], answers: list[str], embedder: Embedder, what: str) -> "Texts":
        open_problems = [split_choices(p)[0] for p in problems]
        words = [without_figures(p) for p in open_problems]
        vectors, owners = embedder.encode(words, what)
        bounds = np.searchsorted(owners, np.arange(len(problems) + 1)).tolist()
        windows = [slice(x, y) for x, y in zip(bounds[:-1], bounds[1:], strict=True)]
        values = [(numbers(w), numbers(p)) for w, p in zip(words, open_problems, strict=True)]
        return cls(problems, [answer_key(a) for a in answers], [made_integer(a) for a in answers],
                   [normal_form(p) for p in problems], values, vectors, owners, windows)  # fmt: skip


def numbers_of(a: Texts, i: int, b: Texts, j: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The numbers of two problems; where both have a figure, its numbers count."""
    figures = "[asy]" in a.problems[i] and "[asy]" in b.problems[j]
    return a.numbers[i][figures], b.numbers[j][figures]


def one_has_all(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether both have numbers, and one has all of the other's."""
    return bool(a and b) and (Counter(a) <= Counter(b) or Counter(b) <= Counter(a))


def made_integer(answer: str) -> set[int]:
    """What an answer becomes where an integer is wanted: the integers in it added up ("m/n in lowest terms; find m+n"),
    or, of a large integer, the remainder when it is divided by 100 or 1000."""
    number = plain_number(answer)
    if number is not None and number == int(number):
        return {int(number) % m for m in (100, 1000) if number >= m}
    if number is not None and "." in answer:
        return set()
    text = re.sub(r"frac\s*(\d)", r"frac \1 ", THOUSANDS_SEPARATOR.sub("", answer))  # \frac13
    parts = [int(x) for x in _INTEGERS.findall(text)] if len(answer) < 200 else []
    return {sum(parts)} if parts else set()


# ------------------------------------------------------------------------------------------------------------ the pairs


def exact_pairs(a: Texts, b: Texts) -> Iterator[tuple[int, int]]:
    """Each text of `a` with the first of `b` (before it, where b is a) that has the same normal form."""
    first: dict[str, int] = {}
    if b is not a:
        for j, form in enumerate(b.forms):
            first.setdefault(form, j)
    for i, form in enumerate(a.forms):
        j = first.setdefault(form, i) if b is a else first.get(form)
        if j is not None and (b is not a or j != i):
            yield (i, j) if b is not a else (j, i)


def similar_pairs(a: Texts, b: Texts, threshold: float, what: str) -> dict[tuple[int, int], float]:
    """{(i, j): similarity} of the pairs of texts at or above `threshold`; i < j where b is a."""
    every = (np.arange(len(a.owners)), np.arange(len(b.owners)))
    return _similar(a, b, threshold, [every], what)


Labels = list[set[str]]  # of each text


def answer_pairs(a: Texts, b: Texts, threshold: float, of_a: Labels, of_b: Labels) -> dict[tuple[int, int], float]:
    """The same, of the pairs that share a label; only these are compared at all."""
    members: tuple[dict[str, list[int]], dict[str, list[int]]] = (defaultdict(list), defaultdict(list))
    for side, (texts, labels) in enumerate(((a, of_a), (b, of_b))):
        for i, label in ((i, label) for i, own in enumerate(labels) for label in sorted(own)):
            members[side][label] += range(texts.windows[i].start, texts.windows[i].stop)
    common = [label for label in members[0] if label in members[1]]
    return _similar(a, b, threshold, [(np.array(members[0][k]), np.array(members[1][k])) for k in common], "")


def _similar(a: Texts, b: Texts, threshold: float, groups: list[tuple[np.ndarray, np.ndarray]],
             what: str) -> dict[tuple[int, int], float]:  # fmt: skip
    found: dict[tuple[int, int], float] = {}
    for of_a, of_b in groups:
        rows_a = a.vectors[of_a]
        rows_b = rows_a if b is a and np.array_equal(of_a, of_b) else b.vectors[of_b]
        for x, y in close_pairs(rows_a, rows_b, threshold, what):
            i, j = int(a.owners[of_a[x]]), int(b.owners[of_b[y]])
            i, j = (j, i) if b is a and j < i else (i, j)
            if (i, j) not in found and (b is not a or i != j):
                found[i, j] = text_similarity(a.vectors[a.windows[i]], b.vectors[b.windows[j]])
    return {pair: s for pair, s in sorted(found.items()) if s >= threshold}


def equal_pairs(a: Texts, b: Texts, threshold: float) -> dict[tuple[int, int], float]:
    """The same, of the pairs with equal answers."""
    return answer_pairs(a, b, threshold, [{k} for k in a.keys], [{k} for k in b.keys])


def derived_pairs(a: Texts, b: Texts, threshold: float) -> dict[tuple[int, int], float]:
    """The same, of the pairs where one answer is what the other becomes when an integer is wanted."""
    (whole_a, made_a), (whole_b, made_b) = ((
        [{k} if k.startswith("number") and "/" not in k else set() for k in t.keys],
        [{f"number {n}" for n in made} for made in t.integers],
    ) for t in (a, b))  # fmt: skip
    found = answer_pairs(a, b, threshold, whole_a, made_b)
    return found if b is a else found | answer_pairs(a, b, threshold, made_a, whole_b)


Grades = Callable[[list[str], list[str], str], list[float]]  # RewardPool.grades


def near_duplicates(t: Texts, answers: list[str], how: str, grades: Grades) -> list[Pair]:
    """Rephrased copies within the training set.

    "gated" (ours): equal answers, and a similarity of NEAR with the same numbers; of NEAR_SOME where one has all the
    numbers of the other, or the answer is a number and no coincidence (at most one row in a thousand has it, or three);
    else of NEARER. Or one answer is what the other becomes when an integer is wanted, and a similarity of DERIVED with
    the same numbers, else of NEAR_SOME as above. Answers are equal when they are spelled alike or when `grades` finds
    them so. "deepscaler": a similarity of 0.90 and nothing else, the original's rule (on our windows).
    """
    if how == "deepscaler":
        return [Pair(i, j, "near", s) for (i, j), s in similar_pairs(t, t, ORIGINAL, "comparing rows").items()]
    rare = {k for k, n in Counter(t.keys).items() if n <= max(3, len(t.keys) / 1000) and k.startswith("number")}
    found = {}
    for (i, j), s in equal_pairs(t, t, NEAR).items():
        a, b = numbers_of(t, i, t, j)
        if s >= (NEAR if a == b else NEAR_SOME if t.keys[i] in rare or one_has_all(a, b) else NEARER):
            found[i, j] = s
    for (i, j), s in derived_pairs(t, t, DERIVED).items():
        a, b = numbers_of(t, i, t, j)
        if a == b or (s >= NEAR_SOME and one_has_all(a, b)):
            found[i, j] = s
    others = {}
    for (i, j), s in similar_pairs(t, t, NEAR_SOME, "comparing rows").items():
        a, b = numbers_of(t, i, t, j)
        if t.keys[i] != t.keys[j] and (s >= NEARER or a == b):
            others[i, j] = s
    right = grades([answers[i] for i, _ in others], [answers[j] for _, j in others], "comparing answers")
    found |= {pair: s for (pair, s), same in zip(others.items(), right, strict=True) if same}
    return [Pair(i, j, "near", s) for (i, j), s in sorted(found.items())]


def leaks(t: Texts, tests: Texts) -> dict[int, Pair]:
    """The test problem that a row is a copy of, the closest one: {row: pair}. By similarity alone from LEAK on; from
    LEAK_AGREEING on with an equal answer, one that is made of the other, or the same numbers, three or more; from
    DERIVED on with the same numbers and an answer made of the other.
    """
    found: dict[int, Pair] = {}
    equal, derived = equal_pairs(t, tests, LEAK_AGREEING), derived_pairs(t, tests, DERIVED)
    for (i, j), s in similar_pairs(t, tests, min(LEAK_AGREEING, DERIVED), "comparing with the tests").items():
        a, b = numbers_of(t, i, tests, j)
        agreeing = (i, j) in equal or (i, j) in derived or (a == b and len(a) >= 3)
        if s < (LEAK_AGREEING if agreeing else LEAK) and not ((i, j) in derived and a == b):
            continue
        if i not in found or s > found[i].similarity:
            found[i] = Pair(i, j, "near", s)
    for i, j in exact_pairs(t, tests):
        found[i] = Pair(i, j, "exact", 1.0)
    return found


def clusters(count: int, pairs: Iterable[Pair]) -> list[list[int]]:
    """Connected components of more than one member, each in order."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for pair in pairs:
        a, b = sorted((root(pair.i), root(pair.j)))
        parent[b] = a
    members = defaultdict(list)
    for i in range(count):
        members[root(i)].append(i)
    return [m for m in members.values() if len(m) > 1]
