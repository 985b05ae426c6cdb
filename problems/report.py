"""What a curated training set is made of and why rows went: the figures of `report.json`, and `report.md` from them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from configs import markdown_table
from grader.clean import clean
from grader.text import answer_key, is_words
from problems.duplicates import Pair
from problems.rows import Raw, Row

BINS = (0, 50, 100, 200, 400, 800, 1600)  # characters of a problem


@dataclass(frozen=True)
class Curation:
    """What happened to the rows of a training set."""

    rows: list[Row]  # as they were read
    malformed: list[Raw]  # {file, line, problem} of those that could not be read
    gradable: list[Row]
    kept: list[Row]
    tests: list[Row]
    leaked: dict[int, Pair]  # {index into gradable: its pair with a test}
    pairs: list[Pair]  # copies of each other, indices into gradable
    dropped: list[Raw]  # {id, reason, detail}


def make_report(c: Curation) -> Raw:
    """The content of `report.json`: figures, and every pair that decided something as evidence."""
    not_leaked = [row for i, row in enumerate(c.gradable) if i not in c.leaked]
    steps = {"read": c.rows, "gradable": c.gradable, "not in the tests": not_leaked, "distinct": c.kept}
    leaks = [(c.gradable[i], c.tests[pair.j], pair) for i, pair in sorted(c.leaked.items())]
    copies = [(c.gradable[pair.i], c.gradable[pair.j], pair) for pair in c.pairs]
    leaks_by_benchmark = tally((row.source, test.source or test.id.rpartition("-")[0]) for row, test, _ in leaks)
    # A row with several copies in one source counts once there.
    row_and_source = {(i, c.gradable[j].source) for p in c.pairs for i, j in ((p.i, p.j), (p.j, p.i))}
    copies_by_source = tally((c.gradable[i].source, source) for i, source in row_and_source)
    examples: dict[str, list[Raw]] = {}
    for record in sorted(c.dropped, key=lambda record: record["id"]):
        if len(examples.setdefault(record["reason"], [])) < 3:
            examples[record["reason"]].append(record)
    return {
        "steps": [
            {"step": name, "rows": len(rows), "by_source": tally(row.source for row in rows)}
            for name, rows in steps.items()
        ],
        "dropped": tally(record["reason"] for record in c.dropped),
        "malformed": c.malformed,
        "contaminated": [{"source": a, "benchmark": b, "rows": n} for (a, b), n in leaks_by_benchmark.items()],
        "copies": [{"source": a, "of": b, "rows": n} for (a, b), n in copies_by_source.items()],
        "pairs": tally(pair.kind for pair in c.pairs),
        "pairs_with_answers_spelled_differently": [
            {"a": a.id, "b": b.id, **measure(pair), "answer_a": a.answer, "answer_b": b.answer}
            for a, b, pair in copies
            if answer_key(a.answer) != answer_key(b.answer)
        ],
        "answer_types": tally(answer_type(row.answer) for row in c.kept),
        "problem_characters": lengths(c.kept),
        "examples": examples,
        "kept_examples": [
            {"id": row.id, "problem": row.problem, "answer": row.answer} for row in c.kept[:: len(c.kept) // 8 + 1]
        ],
        "contamination_evidence": [
            {"id": row.id, "test": test.id, **measure(pair), "answer": row.answer, "test_answer": test.answer}
            | {"problem": row.problem, "test_problem": test.problem}
            for row, test, pair in leaks
        ],
    }


def tally(values: Iterable[Any]) -> dict[Any, int]:
    """{value: how often it comes}, sorted by value."""
    return dict(sorted(Counter(values).items()))


def measure(pair: Pair) -> Raw:
    return {"how": pair.kind, "similarity": round(pair.similarity, 3)}


def answer_type(answer: str) -> str:
    key = answer_key(answer)
    if key.startswith("number"):
        return "fraction or decimal" if "/" in key else "integer"
    if is_words(clean(answer)):
        return "words"
    if re.search(r"matrix|\\begin", answer):
        return "matrix or cases"
    return "list, tuple or interval" if "," in answer else "expression"


def lengths(rows: list[Row]) -> dict[str, int]:
    """Rows by the length of their problem, in characters."""
    sizes = [sum(len(r.problem) >= b for b in BINS[1:]) for r in rows]
    names = [f"{a} to {b - 1}" for a, b in zip(BINS[:-1], BINS[1:], strict=True)] + [f"{BINS[-1]} and more"]
    return {name: sizes.count(i) for i, name in enumerate(names)}


def as_markdown(report: Raw) -> str:
    """The report for people."""
    steps = []
    for step in report["steps"]:
        for source, rows in {**step["by_source"], "all": step["rows"]}.items():
            steps.append({"step": step["step"], "source": source or "(no source)", "rows": rows})
    reasons = []
    for reason, rows in report["dropped"].items():
        examples = [f"{record['id']}: {record['detail']}" for record in report["examples"][reason][:2]]
        reasons.append([reason, f"{rows:,}", "; ".join(examples)])
    examples = [f"{place['file']} line {place['line']}: {place['problem']}" for place in report["malformed"][:2]]
    reasons.append(["malformed", f"{len(report['malformed']):,}", "; ".join(examples)])
    leaks = sorted(report["contamination_evidence"], key=lambda e: (e["similarity"], e["id"]))
    leak_rows = [[e["id"], e["test"], kind_and_similarity(e), e["problem"], e["test_problem"]] for e in leaks[:10]]
    differ = report["pairs_with_answers_spelled_differently"]
    pair_rows = [[e["a"], e["b"], kind_and_similarity(e), e["answer_a"], e["answer_b"]] for e in differ[:10]]
    exact, near = report["pairs"].get("exact", 0), report["pairs"].get("near", 0)
    sections = [
        "# What was kept, and why the rest went",
        crosstab(steps, "step", "source"),
        table(["why rows went", "rows", "for example"], reasons),
        "## Copies of test problems",
        f"{len(leaks):,} rows are copies of test problems and went. DeepScaleR's published notebooks compare no row "
        "with a test set. `report.json` holds every pair with both problems, both answers and the similarity.",
        crosstab(report["contaminated"], "source", "benchmark"),
        "The ten least similar:",
        table(["row", "test", "how", "row's problem", "test problem"], leak_rows),
        "## Copies of other rows",
        "Gradable rows that have a copy in a source, before any went. DeepScaleR's notebooks compare AMC with AIME and "
        "STILL with the rest, but not AIME with MATH.",
        crosstab(report["copies"], "source", "of"),
        f"{exact:,} exact and {near:,} near-duplicate pairs; in {len(differ):,} the answers are spelled differently:",
        table(["row", "row", "how", "answer", "answer"], pair_rows),
        "## What stays",
        table(["answers", "rows"], [[name, f"{n:,}"] for name, n in report["answer_types"].items()]),
        table(["characters of the problem", "rows"], [[k, f"{n:,}"] for k, n in report["problem_characters"].items()]),
        table(["row", "problem", "answer"], [[e["id"], e["problem"], e["answer"]] for e in report["kept_examples"]]),
    ]
    return "\n\n".join(sections) + "\n"


def kind_and_similarity(entry: Raw) -> str:
    return f"{entry['how']} {entry['similarity']:.3f}"


def crosstab(entries: list[Raw], down: str, across: str) -> str:
    """Entries {down, across, rows} as a table, in the order in which they come, but "all" last."""
    names = list(dict.fromkeys(entry[down] for entry in entries))
    columns = list(dict.fromkeys(entry[across] for entry in entries))
    columns.sort(key=lambda column: column == "all")
    cells = {(entry[down], entry[across]): entry["rows"] for entry in entries}
    rows = [[name, *(f"{cells.get((name, column), 0):,}" for column in columns)] for name in names]
    return table([down, *columns], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    return markdown_table(head, [[cell(text) for text in row] for row in rows]) if rows else "(none)"


def cell(text: str) -> str:
    """Text for a table: one line, no bars, not too long."""
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= 120 else text[:119] + "…"
