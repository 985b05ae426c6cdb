"""A training set cut into parts: by the length of its problems, or by how often a model solved them."""

from collections import defaultdict
from statistics import fmean

from configs import UserError
from problems.files import data_files, objects
from problems.rows import Row

Parts = dict[str, list[Row]]
LENGTHS = {1: ("short", "long"), 2: ("short", "middle", "long")}  # names of the parts, by the number of limits
RATES = {1: ("hard", "easy"), 2: ("hard", "middle", "easy")}
EASY = (0.25, 0.75)  # pass rates up to which a problem is hard, and from which on it is easy


def split_rows(rows: list[Row], by: str, at: tuple[float, ...], rates: str) -> Parts:
    """The rows by the name of their part, and a line on where they were cut. rates: files, for `by` "pass_rate". Raises
    UserError."""
    limits, parts = split_by_length(rows, at) if by == "prompt_len" else split_by_rate(rows, pass_rates(rates), at)
    listed = ", ".join(f"{limit:g}" for limit in limits)
    for name, of_part in parts.items():
        if not of_part:
            raise UserError(f"--at: split at {listed}, no row is left for {name}.jsonl: choose other limits")
    print(f"split by {by} at {listed}")
    return parts


def check_limits(at: tuple[float, ...]) -> None:
    """Raises UserError."""
    if len(at) not in (1, 2) or list(at) != sorted(set(at)):
        raise UserError(f"--at: {','.join(map(str, at))}: one limit, or two that rise")


def split_by_length(rows: list[Row], at: tuple[float, ...]) -> tuple[tuple[float, ...], Parts]:
    """(the limits, rows by part): those of at most so many characters come before each limit. Without limits, at the
    mean, as FastCuRL splits DeepScaleR's data (arXiv 2503.17287, table 2: 247 characters). Raises UserError."""
    limits = at or (fmean(len(row.problem) for row in rows),)
    check_limits(limits)
    parts: Parts = {name: [] for name in LENGTHS[len(limits)]}
    for row in rows:
        parts[LENGTHS[len(limits)][sum(len(row.problem) > limit for limit in limits)]].append(row)
    return limits, parts


def split_by_rate(rows: list[Row], rates: dict[str, float], at: tuple[float, ...]) -> tuple[tuple[float, ...], Parts]:
    """(the limits, rows by part): a rate of at most the first limit is hard, one above the last easy. Rows without a
    rate are a part of their own, `unseen`. Raises UserError."""
    limits = at or EASY
    check_limits(limits)
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
    graded.jsonl (`id` and `scores`); right is a reward of at least 1. Raises UserError."""
    right: dict[str, list[bool]] = defaultdict(list)
    for path in data_files(spec):
        for number, raw in objects(path):
            scores = raw.get("scores", [raw.get("reward")])
            if not isinstance(raw.get("id"), str) or not isinstance(scores, list) or not scores:
                raise UserError(f"{path}: row {number}: needs an id, and a reward or scores")
            if not all(type(score) in (int, float) for score in scores):
                raise UserError(f"{path}: row {number}: reward or scores are no numbers")
            right[raw["id"]] += [score >= 1 for score in scores]
    return {problem_id: fmean(values) for problem_id, values in right.items()}
