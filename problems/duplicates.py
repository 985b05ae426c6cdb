"""Which rows count as one problem: the rules on top of similarity, for copies within a set and for leaked tests.

Similarity alone does not tell a rephrased problem from another of the same template, so within the training set answers
must agree, and the numbers in the text as well unless the similarity is very high. Against the tests it is enough: a
lost row is cheap, a leaked test is not.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from grader.text import THOUSANDS_SEPARATOR, answer_key, normal_form, plain_number
from problems.choices import split_choices
from problems.rows import Row
from problems.similarity import Embedder, close_pairs, numbers, text_similarity, without_figures

# Similarities from which on two rows count as one problem. Where their answers are equal:
NEAR = 0.68  # and their numbers are the same
NEAR_SOME = 0.85  # and one problem has all the numbers of the other, or few rows have that answer
NEARER = 0.95  # whatever their numbers are
DERIVED = 0.71  # where one answer is the other made an integer (83/499 and 83 + 499), and the numbers are the same
# A row counts as a copy of a test problem:
LEAK = 0.85  # whatever answers and numbers are
LEAK_AGREEING = 0.75  # where answers or numbers agree
ORIGINAL = 0.9  # DeepScaleR's only rule


@dataclass(frozen=True)
class Pair:
    """Two texts that count as one problem, and why."""

    i: int
    j: int
    kind: str  # "exact": equal normal forms; "near": by similarity, answer and numbers
    similarity: float


@dataclass(frozen=True)
class Texts:
    """Rows, ready to be compared by problem and answer."""

    rows: list[Row]
    keys: list[str]  # answers in one spelling
    made_keys: list[set[str]]  # keys of what an answer becomes as "find m + n" or "the remainder when divided by 1000"
    forms: list[str]  # normal forms of the problems
    numbers: list[tuple[tuple[str, ...], tuple[str, ...]]]  # in the words; in the words and in the figure's code
    vectors: np.ndarray  # (W, E), figures and choices left out
    owners: np.ndarray  # (W,) the row of each window
    windows: list[slice]  # of each row

    @classmethod
    def of(cls, rows: list[Row], embedder: Embedder, progress: str) -> "Texts":
        open_problems = [split_choices(row.problem)[0] for row in rows]
        words = [without_figures(problem) for problem in open_problems]
        vectors, owners = embedder.encode(words, progress)
        bounds = np.searchsorted(owners, np.arange(len(rows) + 1)).tolist()
        return cls(
            rows=rows,
            keys=[answer_key(row.answer) for row in rows],
            made_keys=[{f"number {n}" for n in made_integer(row.answer)} for row in rows],
            forms=[normal_form(row.problem) for row in rows],
            numbers=[(numbers(w), numbers(p)) for w, p in zip(words, open_problems, strict=True)],
            vectors=vectors,
            owners=owners,
            windows=[slice(start, end) for start, end in itertools.pairwise(bounds)],
        )


def numbers_of(a: Texts, i: int, b: Texts, j: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The numbers of two problems; where both have a figure, its numbers count."""
    figures = "[asy]" in a.rows[i].problem and "[asy]" in b.rows[j].problem
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
    integers = [int(digits) for digits in re.findall(r"\d+", text)] if len(answer) < 200 else []
    return {sum(integers)} if integers else set()


Labels = list[set[str]]  # of each text
Grades = Callable[[list[str], list[str], str], list[float]]  # RewardPool.grades
Similarities = dict[tuple[int, int], float]  # {(i, j): similarity} of texts i of a set a and j of a set b


def exact_pairs(a: Texts, b: Texts) -> Iterator[tuple[int, int]]:
    """(i, j) of each text of `a` with the first one of `b` that has the same normal form; where b is a, of the first
    text i of a form with each later one j."""
    first: dict[str, int] = {}
    for j, form in enumerate(b.forms):
        first.setdefault(form, j)
    for i, form in enumerate(a.forms):
        j = first.get(form)
        if b is a and j != i:
            yield j, i
        elif b is not a and j is not None:
            yield i, j


def similar_pairs(
    a: Texts, b: Texts, threshold: float, labels: tuple[Labels, Labels] | None = None, progress: str = ""
) -> Similarities:
    """The pairs of texts whose similarity is at least `threshold`; i < j where b is a.

    `labels` are of a's and of b's texts: only those that share a label are compared. Without, all are.
    """
    labels_a, labels_b = labels or ([{""}] * len(a.rows), [{""}] * len(b.rows))
    windows_a, windows_b = _windows_by_label(a, labels_a), _windows_by_label(b, labels_b)
    similarities: Similarities = {}
    for label in windows_a.keys() & windows_b.keys():
        own_a, own_b = np.array(windows_a[label]), np.array(windows_b[label])
        vectors_a = a.vectors[own_a]
        # `close_pairs` takes each pair once where both sides are the same array.
        vectors_b = vectors_a if b is a and np.array_equal(own_a, own_b) else b.vectors[own_b]
        for x, y in close_pairs(vectors_a, vectors_b, threshold, progress):
            i, j = int(a.owners[own_a[x]]), int(b.owners[own_b[y]])
            if b is a:
                i, j = min(i, j), max(i, j)
            if (i, j) not in similarities and not (b is a and i == j):
                similarities[i, j] = text_similarity(a.vectors[a.windows[i]], b.vectors[b.windows[j]])
    return {pair: similarity for pair, similarity in sorted(similarities.items()) if similarity >= threshold}


def _windows_by_label(texts: Texts, labels: Labels) -> dict[str, list[int]]:
    windows: dict[str, list[int]] = defaultdict(list)
    for own_windows, own_labels in zip(texts.windows, labels, strict=True):
        for label in own_labels:
            windows[label] += range(own_windows.start, own_windows.stop)
    return windows


def equal_pairs(a: Texts, b: Texts, threshold: float) -> Similarities:
    """The same, of the pairs with equal answers."""
    return similar_pairs(a, b, threshold, ([{key} for key in a.keys], [{key} for key in b.keys]))


def derived_pairs(a: Texts, b: Texts, threshold: float) -> Similarities:
    """The same, of the pairs where one answer is what the other becomes when an integer is wanted."""
    similarities = similar_pairs(a, b, threshold, (_integer_keys(a), b.made_keys))
    if b is not a:
        similarities |= similar_pairs(a, b, threshold, (a.made_keys, _integer_keys(b)))
    return similarities


def _integer_keys(texts: Texts) -> Labels:
    return [{key} if key.startswith("number") and "/" not in key else set() for key in texts.keys]


def near_duplicates(t: Texts, rule: str, grades: Grades) -> list[Pair]:
    """Rephrased copies within the training set. `rule` is the setting `near`.

    "gated" (ours): equal answers, and a similarity of NEAR with the same numbers; of NEAR_SOME where one has all the
    numbers of the other, or the answer is a number and no coincidence (at most one row in a thousand has it, or three);
    else of NEARER. Or one answer is what the other becomes when an integer is wanted, and a similarity of DERIVED with
    the same numbers, else of NEAR_SOME as above. Answers are equal when they are spelled alike or when `grades` finds
    them so. "deepscaler": a similarity of 0.90 and nothing else, the original's rule (on our windows).
    """
    if rule == "deepscaler":
        original = similar_pairs(t, t, ORIGINAL, progress="comparing rows")
        return [Pair(i, j, "near", similarity) for (i, j), similarity in original.items()]
    rare = {k for k, n in Counter(t.keys).items() if n <= max(3, len(t.keys) / 1000) and k.startswith("number")}
    copies: Similarities = {}
    for (i, j), similarity in equal_pairs(t, t, NEAR).items():
        numbers_i, numbers_j = numbers_of(t, i, t, j)
        some = t.keys[i] in rare or one_has_all(numbers_i, numbers_j)
        if numbers_i == numbers_j or similarity >= (NEAR_SOME if some else NEARER):
            copies[i, j] = similarity
    for (i, j), similarity in derived_pairs(t, t, DERIVED).items():
        numbers_i, numbers_j = numbers_of(t, i, t, j)
        if numbers_i == numbers_j or (similarity >= NEAR_SOME and one_has_all(numbers_i, numbers_j)):
            copies[i, j] = similarity
    # Other spellings may be equal answers as well: the grader decides where everything else speaks for a copy.
    unsure: Similarities = {}
    for (i, j), similarity in similar_pairs(t, t, NEAR_SOME, progress="comparing rows").items():
        numbers_i, numbers_j = numbers_of(t, i, t, j)
        if t.keys[i] != t.keys[j] and (similarity >= NEARER or numbers_i == numbers_j):
            unsure[i, j] = similarity
    answers = [(t.rows[i].answer, t.rows[j].answer) for i, j in unsure]
    scores = grades([a for a, _ in answers], [b for _, b in answers], "comparing answers")
    copies |= {pair: unsure[pair] for pair, score in zip(unsure, scores, strict=True) if score}
    return [Pair(i, j, "near", similarity) for (i, j), similarity in sorted(copies.items())]


def leaks(t: Texts, tests: Texts) -> dict[int, Pair]:
    """The test problem that a row is a copy of, the closest one: {row: pair}. By similarity alone from LEAK on; from
    LEAK_AGREEING on with an equal answer, one that is made of the other, or the same numbers, three or more; from
    DERIVED on with the same numbers and an answer made of the other.
    """
    leaked: dict[int, Pair] = {}
    equal, derived = equal_pairs(t, tests, LEAK_AGREEING), derived_pairs(t, tests, DERIVED)
    similar = similar_pairs(t, tests, min(LEAK_AGREEING, DERIVED), progress="comparing with the tests")
    for (i, j), similarity in similar.items():
        numbers_i, numbers_j = numbers_of(t, i, tests, j)
        same_numbers, made = numbers_i == numbers_j, (i, j) in derived
        agreeing = (i, j) in equal or made or (same_numbers and len(numbers_i) >= 3)
        is_copy = similarity >= (LEAK_AGREEING if agreeing else LEAK) or (made and same_numbers)
        if is_copy and (i not in leaked or similarity > leaked[i].similarity):
            leaked[i] = Pair(i, j, "near", similarity)
    for i, j in exact_pairs(t, tests):
        leaked[i] = Pair(i, j, "exact", 1.0)
    return leaked


def clusters(count: int, pairs: Iterable[Pair]) -> list[list[int]]:
    """Connected components of more than one member, each in order. (Union-find with path halving.)"""
    parent = list(range(count))
    for pair in pairs:
        first, second = sorted((_root(parent, pair.i), _root(parent, pair.j)))
        parent[second] = first
    members = defaultdict(list)
    for i in range(count):
        members[_root(parent, i)].append(i)
    return [cluster for cluster in members.values() if len(cluster) > 1]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
