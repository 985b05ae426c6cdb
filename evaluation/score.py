"""From responses to a scored folder, by one rule of reward.py or by several beside each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs import UserError
from evaluation import report as eval_report
from evaluation.grade import Key, Response, grade, summarize, vote
from grader.pool import RewardPool
from reward import Problem


@dataclass(frozen=True)
class Rule:
    """How responses are graded: the settings of these names."""

    reward: str
    think: str


def report(
    responses: Iterator[Response], asked: dict[Key, Problem], workers: int, rule: Rule, out: Path, about: dict[str, Any]
) -> None:
    """Scores responses, writes and prints what came out. asked: the problems of a model run, in their order; what the
    folder has of other benchmarks then stays, if it was graded by this rule too."""
    results, graded = {}, []
    if asked:
        results, graded = eval_report.read_others(out, {name for name, _ in asked}, rule.reward, rule.think)
    with RewardPool(workers, rule=rule.reward) as pool:
        rows, timeouts = grade(tqdm(responses, "grading", unit=" responses"), pool, rule.think)
        rows_by_key = {(row.benchmark, row.id): row for row in rows}
        rows = [rows_by_key[key] for key in asked or rows_by_key]  # ranks may have written in any order
        for name in dict.fromkeys(row.benchmark for row in rows):
            timeouts_before = pool.timeouts
            voted = vote([row for row in rows if row.benchmark == name], pool)
            lost = timeouts[name] + pool.timeouts - timeouts_before
            results[name] = summarize(voted) | {"grader_timeouts": lost, **vars(rule)}
            if results[name]["no_answer_ratio"] == 1:
                tags = " after <think> and </think> (--think=optional: without)" if rule.think == "required" else ""
                print(f"{name}: not one response has an answer in \\boxed{{}}{tags}, so none can be right")
            graded += voted
    eval_report.write(out, graded, results, about | vars(rule))


def report_by(
    rules: tuple[str, ...],
    think: str,
    read: Callable[[], Iterator[Response]],
    asked: dict[Key, Problem],
    workers: int,
    out: Path,
    about: dict[str, Any],
) -> None:
    """`report` of the responses by each rule, in a folder each where there are several, and the others beside the
    first."""
    folders = {rule: out / rule if len(rules) > 1 else out for rule in rules}
    for folder in folders.values():  # before hours of grading
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise UserError(f"--out_dir: {nearest} is no folder: move it away, or choose another")
    if len(rules) > 1 and (out / "results.json").exists():
        print(f"{out}/results.json is an earlier evaluation's, by one rule")
    for rule, folder in folders.items():
        report(read(), asked, workers, Rule(rule, think), folder, about)
    first, *others = folders.values()
    for folder in others:
        eval_report.compare(first, folder)
