"""What any engine wrote, as responses to grade: read one after the other, joined with benchmarks where it has no right
answers, and with a word on what cannot be seen in it.

A file is read twice where none of its texts says why it ended, so that no more than a row is in memory: first to see
how its model writes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs import UserError
from evaluation.completions import check_all_read
from evaluation.formats import engine_rows, files_of
from evaluation.grade import Key, Response
from reward import Problem

CUT_OFF = ("length", "max_tokens", "max_length", "model_length", "abort")  # finish reasons of responses without an end


@dataclass
class Survey:
    """What a first reading finds."""

    says_how_it_ended: bool = False  # a text has a finish_reason
    closes: bool = False  # a text has `</think>`
    keys: dict[Key, None] = field(default_factory=dict)  # benchmark and id of the rows


def survey(path: Path, joins: bool) -> Survey:
    """Reads on only as long as it may find something. Raises UserError."""
    found = Survey()
    for row in engine_rows(path, joins):
        found.keys[row["benchmark"], row["id"]] = None
        for completion in row["completions"]:
            found.says_how_it_ended |= completion["finish_reason"] is not None
            found.closes |= "</think>" in completion["text"]
        if found.says_how_it_ended and not joins:
            break
    return found


def joined(keys: dict[Key, None], problems: dict[Key, Problem], path: Path) -> dict[Key, Key]:
    """The problem of each row: the one of its id, or if that is so for all rows, of what stands behind the last "-" or
    "_" of it, or of the number that it ends with. Raises UserError."""
    names: dict[str, list[str]] = {}  # of the benchmarks that have a problem of this id
    for name, problem_id in problems:
        names.setdefault(problem_id, []).append(name)

    def problem_of(name: str, problem_id: str) -> Key | None:
        found = names.get(problem_id, [])
        if name in found:
            return name, problem_id
        return (found[0], problem_id) if len(found) == 1 else None

    exact = {key: problem_of(*key) for key in keys}
    if all(exact.values()):
        return exact
    missing = next(key[1] for key, problem in exact.items() if problem is None)
    for pattern in ("(.*)[-_](.*)", r"(.*?)(\d+)"):
        parts = {key: re.fullmatch(pattern, key[1], re.DOTALL) for key in keys}
        by_end = {key: problem_of(*match.groups()) if match else None for key, match in parts.items()}
        if not all(by_end.values()):
            continue
        heads = {match[1]: key[1] for key, match in parts.items() if match[1] != by_end[key][0]}
        if len(heads) > 1:  # their ends may be the numbers of samples
            one, other = list(heads.values())[:2]
            reason = f"the ids {one!r} and {other!r} differ before their ends, which alone are a problem's"
            raise UserError(f"{path}: {reason}")
        return by_end
    raise UserError(f"{path}: no problem of --benchmarks has the id {missing!r}, nor is there one for the end of each")


@dataclass
class Reading:
    """What is said at the end."""

    cut_off: int = 0  # texts that count so for want of `</think>`
    failures: list[str] = field(default_factory=list)
    problems: dict[Key, tuple[Problem, Any]] = field(default_factory=dict)  # with a digest of the question
    samples: dict[Key, set[int]] = field(default_factory=dict)

    def problem(self, key: Key, row: dict[str, Any], given: Problem | None, path: Path) -> Problem:
        """Raises UserError where a problem stands there in two ways."""
        problem, question = self.problems.setdefault(
            key, (given or Problem(row["id"], "", row["answer"]), row["problem"])
        )
        if given is None and problem.answer != row["answer"]:
            raise UserError(f"{path}: {' '.join(key)} stands there with two answers")
        if question != row["problem"]:
            raise UserError(f"{path}: {' '.join(key)} stands there with two questions")
        return problem

    def say(self, path: Path, asked: dict[Key, Problem], found: Survey) -> None:
        if not found.says_how_it_ended and not found.closes:
            reason = "those without tags count as a whole, even if they were cut off"
            print(f"{path}: no text closes </think> or says why it ended (finish_reason): {reason}")
        if self.cut_off:
            reason = "none says why it ended, and a model that thinks has not begun its answer there"
            print(f"{path}: {self.cut_off:,} texts without </think> count as cut off: {reason}")
        if self.failures:
            reason = f"{len(self.failures):,} requests failed and count as no samples"
            print(f"{path}: {reason}, the first: {self.failures[0]}")
        left_out = [key for key in asked if key not in self.samples]
        if left_out:
            reason = f"no completions of {len(left_out):,} of the {len(asked):,} problems of --benchmarks"
            print(f"{path}: {reason}, which are left out, the first: {' '.join(left_out[0])}")


def read_engine(path: Path, asked: dict[Key, Problem]) -> Iterator[Response]:
    """All samples of a file or folder. asked: problems of benchmarks, whose answers count instead of the file's.

    Files hold no question in a form of ours, so problems have an empty one, but for those that are asked for. Raises
    UserError, for a problem without completions only at the end.
    """
    files = files_of(path)
    if len(files) > 1:
        print(f"{path}: {len(files)} files are graded as one, from {files[0]} to {files[-1]}")
    found, reading = survey(path, bool(asked)), Reading()
    keys = joined(found.keys, asked, path) if asked else {}
    for row in engine_rows(path, bool(asked)):
        key = row["benchmark"], row["id"]
        key = keys.get(key, key)
        if row["failed"]:
            reading.failures.append(row["failed"])
            continue
        problem, numbers = reading.problem(key, row, asked.get(key), path), reading.samples.setdefault(key, set())
        for completion in row["completions"]:
            number = len(numbers) if completion["sample"] is None else completion["sample"]
            if number in numbers:
                continue
            numbers.add(number)
            text, is_cut = completion["text"], str(completion["finish_reason"]).lower() in CUT_OFF
            if not found.says_how_it_ended and "</think>" not in text and (found.closes or "<think>" in text):
                is_cut = True
                reading.cut_off += 1
            opened = opening(text, row.get("opened"))
            text = text if text.startswith(opened) else opened + text
            yield Response(key, problem, number, text, completion["tokens"], "length" if is_cut else "stop", opened)
    if not reading.samples and reading.failures:
        raise UserError(f"{path}: all {len(reading.failures):,} requests failed, the first: {reading.failures[0]}")
    check_all_read(path, reading.samples)
    reading.say(path, asked, found)


def opening(text: str, opened: str | None) -> str:
    """What the prompt opened: as the row has it; else `<think>`, where the text closes it and has none before."""
    if opened is not None and text.startswith(opened):
        return opened
    before, closes, _ = text.partition("</think>")
    return "<think>" if closes and "<think>" not in before else ""
