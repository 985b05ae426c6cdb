"""A training set cut into parts: by the length of its problems, or by how often a model solved them."""

from collections import defaultdict
from math import inf
from pathlib import Path
from statistics import fmean

from configs import UserError
from problems.files import EmptyLine, data_files, objects, place
from problems.rows import Row

Parts = dict[str, list[Row]]
LENGTHS = {1: ("short", "long"), 2: ("short", "middle", "long")}  # names of the parts, by the number of limits
RATES = {1: ("hard", "easy"), 2: ("hard", "middle", "easy")}
EASY = (0.25, 0.75)  # pass rates up to which a problem is hard, and above which it is easy


def check_folder(folder: Path, spec: str, parts: Parts) -> None:
    """May the parts be written there? Raises UserError where that would overwrite what is split (`spec`), or leave
    parts of another split beside them."""
    sources = {path.resolve() for path in data_files(spec)}
    for name in parts:
        if (folder / f"{name}.jsonl").resolve() in sources:
            raise UserError(f"--out_dir: {folder}/{name}.jsonl is a file of --input: choose another folder")
    for name in sorted({*LENGTHS[2], *RATES[2], "unseen"}):
        path = folder / f"{name}.jsonl"
        if path.exists() and (name not in parts or not path.is_file()):
            raise UserError(f"--out_dir: {path} is there, of another split: move it away, or choose another folder")


def split_rows(rows: list[Row], by: str, at: tuple[float, ...], rates: str) -> Parts:
    """The rows by the name of their part, and a line on where they were cut. rates: files, for `by` "pass_rate". Raises
    UserError."""
    limits, parts = split_by_length(rows, at) if by == "prompt_len" else split_by_rate(rows, pass_rates(rates), at)
    listed = ", ".join(f"{limit:g}" for limit in limits)
    for name, of_part in parts.items():
        if not of_part:
            raise UserError(f"--at: split at {listed}, no row is left for {name}.jsonl: give other limits")
    print(f"split by {by} at {listed}")
    return parts


def check_limits(at: tuple[float, ...], most: float) -> None:
    """Raises UserError for limits that are not between 0 and `most`."""
    if len(at) not in (1, 2) or list(at) != sorted(set(at)) or not all(0 <= limit < most for limit in at):
        within = f", from 0 to under {most:g}" if most < inf else ""
        raise UserError(f"--at: {','.join(map(str, at))}: one limit, or two that rise{within}")


def split_by_length(rows: list[Row], at: tuple[float, ...]) -> tuple[tuple[float, ...], Parts]:
    """(the limits, rows by part): those of at most so many characters come before each limit. Without limits, at the
    mean, as FastCuRL splits DeepScaleR's data (arXiv 2503.17287, table 2: 247 characters). Raises UserError."""
    limits = at or (fmean(len(row.problem) for row in rows),)
    check_limits(limits, inf)
    parts: Parts = {name: [] for name in LENGTHS[len(limits)]}
    for row in rows:
        parts[LENGTHS[len(limits)][sum(len(row.problem) > limit for limit in limits)]].append(row)
    return limits, parts


def split_by_rate(rows: list[Row], rates: dict[str, float], at: tuple[float, ...]) -> tuple[tuple[float, ...], Parts]:
    """(the limits, rows by part): a rate of at most the first limit is hard, one above the last easy. Rows without a
    rate are a part of their own, `unseen`. Raises UserError."""
    limits = at or EASY
    check_limits(limits, 1)
    parts: Parts = {name: [] for name in RATES[len(limits)]}
    unseen = [row for row in rows if row.id not in rates]
    if len(unseen) == len(rows):
        raise UserError("--rates: not one id of --input is in it")
    for row in rows:
        if row.id in rates:
            parts[RATES[len(limits)][sum(rates[row.id] > limit for limit in limits)]].append(row)
    return limits, parts | ({"unseen": unseen} if unseen else {})


def pass_rates(spec: str) -> dict[str, float]:
    """{id: share of right answers} in a run's dumps of rollouts (rows with `id` and `reward`) or in an evaluation's
    graded.jsonl (`id` and `scores`), or its folder; right is a reward of at least 1. Raises UserError."""
    graded = Path(spec) / "graded.jsonl"
    right: dict[str, list[bool]] = defaultdict(list)
    for path in [graded] if graded.is_file() else data_files(spec):
        for number, raw in objects(path):
            if isinstance(raw, EmptyLine):
                continue
            where = f"--rates: {place(path, number)}"
            if not isinstance(raw, dict):
                raise UserError(f"{where}: not a row of a run's rollouts or of graded.jsonl")
            scores = raw["scores"] if "scores" in raw else [raw.get("reward")]
            if type(raw.get("id")) not in (str, int):
                raise UserError(f"{where}: 'id' is no text: {raw.get('id')!r}")
            if not isinstance(scores, list) or not scores or any(type(x) not in (int, float) for x in scores):
                raise UserError(f"{where}: neither a 'reward' nor a list of 'scores', as numbers")
            right[str(raw["id"])] += [score >= 1 for score in scores]
    return {problem_id: fmean(values) for problem_id, values in right.items()}
