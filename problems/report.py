"""What a curated training set is made of and why rows went: the figures of `report.json`, and `report.md` from them."""

import re
from collections import Counter
from typing import Any

from grader.text import answer_key, clean, is_words
from problems.duplicates import Pair
from problems.rows import Row

BINS = (0, 50, 100, 200, 400, 800, 1600)  # characters of a problem


def make_report(counts: list[tuple[str, Counter]], dropped: list[dict[str, str]], malformed: list[dict[str, Any]],
                compared: list[Row], left: list[Row], tests: list[Row], leaked: dict[int, Pair],
                pairs: list[Pair]) -> dict[str, Any]:  # fmt: skip
    """Figures and evidence. `compared` are the gradable rows, to which `leaked` and `pairs` point; `left` stays."""
    by_benchmark = Counter((compared[i].source, tests[p.j].source or tests[p.j].id.rpartition("-")[0])
                           for i, p in leaked.items())  # fmt: skip
    partners = {(i, compared[j].source) for p in pairs for i, j in ((p.i, p.j), (p.j, p.i))}
    among = Counter((compared[i].source, other) for i, other in partners)
    evidence = [{"id": compared[i].id, "test": tests[p.j].id, "how": p.how, "similarity": round(p.similarity, 3),
                 "answer": compared[i].answer, "test_answer": tests[p.j].answer, "problem": compared[i].problem,
                 "test_problem": tests[p.j].problem} for i, p in sorted(leaked.items())]  # fmt: skip
    differ = [p for p in pairs if answer_key(compared[p.i].answer) != answer_key(compared[p.j].answer)]
    samples: dict[str, list[dict[str, str]]] = {}
    for d in sorted(dropped, key=lambda d: d["id"]):
        if len(samples.setdefault(d["reason"], [])) < 3:
            samples[d["reason"]].append(d)
    return {
        "steps": [{"step": n, "rows": sum(c.values()), "by_source": dict(sorted(c.items()))} for n, c in counts],
        "dropped": dict(sorted(Counter(d["reason"] for d in dropped).items())),
        "malformed": malformed,
        "contaminated": [{"source": a, "benchmark": b, "rows": n} for (a, b), n in sorted(by_benchmark.items())],
        "copies": [{"source": a, "of": b, "rows": n} for (a, b), n in sorted(among.items())],
        "pairs": dict(sorted(Counter(p.how for p in pairs).items())),
        "pairs_with_answers_spelled_differently": [
            {"a": compared[p.i].id, "b": compared[p.j].id, "how": p.how, "similarity": round(p.similarity, 3),
             "answer_a": compared[p.i].answer, "answer_b": compared[p.j].answer} for p in differ],
        "answer_types": dict(sorted(Counter(answer_type(r.answer) for r in left).items())),
        "problem_characters": lengths(left),
        "examples": samples,
        "kept_examples": [{"id": r.id, "problem": r.problem, "answer": r.answer} for r in left[:: len(left) // 8 + 1]],
        "contamination_evidence": evidence,
    }  # fmt: skip


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


def as_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    by_step = [{"step": step["step"], "source": s or "(no source)", "rows": n}
               for step in report["steps"] for s, n in {**step["by_source"], "all": step["rows"]}.items()]  # fmt: skip
    why = [[reason, f"{n:,}", "; ".join(f"{d['id']}: {d['detail']}" for d in report["examples"][reason][:2])]
           for reason, n in report["dropped"].items()]  # fmt: skip
    bad = report["malformed"]
    places = [f"{b['file']} line {b['line']}: {b['problem']}" for b in bad[:2]]
    why.append(["malformed", f"{len(bad):,}", "; ".join(places)])
    leaks = sorted(report["contamination_evidence"], key=lambda e: (e["similarity"], e["id"]))
    differ = report["pairs_with_answers_spelled_differently"]
    exact, near = (report["pairs"].get(how, 0) for how in ("exact", "near"))
    parts = [
        "# What was kept, and why the rest went",
        crosstab(by_step, "step", "source"),
        table(["why rows went", "rows", "for example"], why),
        "## Copies of test problems",
        f"{len(leaks):,} rows are copies of test problems and went. DeepScaleR's published notebooks compare no row "
        "with a test set. `report.json` holds every pair with both problems, both answers and the similarity.",
        crosstab(report["contaminated"], "source", "benchmark"),
        "The ten least similar:",
        table(["row", "test", "how", "row's problem", "test problem"], [
            [e["id"], e["test"], f"{e['how']} {e['similarity']:.3f}", e["problem"], e["test_problem"]]
            for e in leaks[:10]]),
        "## Copies of other rows",
        "Gradable rows that have a copy in a source, before any went. DeepScaleR's notebooks compare AMC with AIME and "
        "STILL with the rest, but not AIME with MATH.",
        crosstab(report["copies"], "source", "of"),
        f"{exact:,} exact and {near:,} near-duplicate pairs; in {len(differ):,} the answers are spelled differently:",
        table(["row", "row", "how", "answer", "answer"], [
            [d["a"], d["b"], f"{d['how']} {d['similarity']:.3f}", d["answer_a"], d["answer_b"]] for d in differ[:10]]),
        "## What stays",
        table(["answers", "rows"], [[k, f"{n:,}"] for k, n in report["answer_types"].items()]),
        table(["characters of the problem", "rows"], [[k, f"{n:,}"] for k, n in report["problem_characters"].items()]),
        table(["row", "problem", "answer"], [[e["id"], e["problem"], e["answer"]] for e in report["kept_examples"]]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def crosstab(entries: list[dict[str, Any]], down: str, across: str) -> str:
    """Entries {down, across, rows} as a table, in the order in which they come."""
    rows, columns = (list(dict.fromkeys(e[key] for e in entries)) for key in (down, across))
    columns = [c for c in columns if c != "all"] + [c for c in columns if c == "all"]
    counts = {(e[down], e[across]): e["rows"] for e in entries}
    return table([down, *columns], [[r, *(f"{counts.get((r, c), 0):,}" for c in columns)] for r in rows])


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(map(cell, row))} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) if rows else "(none)"


def cell(text: str) -> str:
    """Text for a table: one line, no bars, not too long."""
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= 120 else text[:119] + "…"
