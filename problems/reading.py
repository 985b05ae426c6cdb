"""Whole files of rows: what is kept, what is left out, and a line on each thing that was done on the way.

`read_all` is for runs and evaluations, `read_rows` for curation; both see the same rows of a file.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs import UserError
from problems.files import EmptyLine, data_files, objects, place, suffix_of
from problems.golds import is_prose
from problems.instructions import SPEAKS_OF_FORMAT
from problems.rows import THE_TABLES, Fields, Raw, Row, Unusable, as_object, as_row


@dataclass
class Reading:
    """What came of files."""

    rows: list[Row] = field(default_factory=list)
    malformed: list[Raw] = field(default_factory=list)  # {file, line, problem}, skipped; unusable ones too
    copies: int = 0  # left out: another row has their id, problem and answers
    repeats: int = 0  # kept: another row has their problem and answers
    renamed: int = 0  # their ids came before, with another problem
    damaged: list[str] = field(default_factory=list)  # places of rows with damaged text, where those are kept
    left_out: list[str] = field(default_factory=list)  # places of rows that a run cannot use, and why
    ids: Counter[str] = field(default_factory=Counter)
    questions: dict[tuple[str, tuple[str, ...]], set[str]] = field(default_factory=dict)  # ids by problem and answers

    def add(self, row: Row) -> None:
        """Keep the row, unless it is a copy, under an id that none has yet."""
        ids_of_same = self.questions.setdefault((row.problem, row.answers), set())
        if row.id in ids_of_same:
            self.copies += 1
            return
        self.repeats += bool(ids_of_same)
        ids_of_same.add(row.id)
        self.ids[row.id] += 1
        if self.ids[row.id] > 1:
            self.renamed += 1
            row = replace(row, id=f"{row.id}#{self.ids[row.id]}")
            self.ids[row.id] += 1  # which a later row may be called
        self.rows.append(row)

    def notes(self) -> list[str]:
        """A line on each thing that was done to the rows, or left undone."""
        lines = []
        taken = Counter(text for row in self.rows for text in row.taken)
        if taken:
            listed = ", ".join(f"{text} ({number})" for text, number in taken.most_common(4))
            lines.append(f"taken off the problems: {listed}")
        marks = [mark for row in self.rows if (mark := SPEAKS_OF_FORMAT.search(row.problem))]
        if marks:
            shown = " ".join(marks[0].string[max(0, marks[0].start() - 60) : marks[0].end() + 20].split())
            lines.append(f"{len(marks)} problems say themselves how to answer, which stays there: ...{shown}...")
        for name, what in (
            ("solution", "answers read from solutions"),
            ("before", "problems with their context before"),
        ):
            number = sum(name in row.also_from for row in self.rows)
            lines += [f"{what}: {number}"] if number else []
        several = sum(len(row.answers) > 1 for row in self.rows)
        if several:
            lines.append(f"rows with several answers, any of which is right: {several}")
        if self.copies:
            lines.append(f"left out copies of rows, id and all: {self.copies}")
        if self.repeats:
            lines.append(f"rows with the problem and answer of another: {self.repeats}")
        if self.renamed:
            lines.append(f"{self.renamed} rows have an id that came before: they are called ID#2, ID#3, ...")
        if self.damaged:
            remedy = "`python data_prep.py curate` leaves them out"
            lines.append(f"rows with damaged text ({remedy}): {len(self.damaged)}, the first {self.damaged[0]}")
        if self.left_out:
            lines.append(f"left out rows that cannot be used: {len(self.left_out)}, the first {self.left_out[0]}")
        return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]  # no escapes for the terminal


def read_rows(
    paths: list[Path],
    max_malformed: float,
    source: str = "",
    keep: Callable[[Raw], bool] = lambda raw: True,
    fields: Fields = THE_TABLES,
    read: Callable[[Any, str, Fields], Row] = as_row,
) -> Reading:
    """The rows of files, but for those that `keep` says are another source's.

    A row of a `source`, and any without an id, is named by source (or "line") and place: amc-1, amc-2, ... Raises
    UserError where a file cannot be read, or more than the share `max_malformed` of its rows is malformed.
    """
    reading, number_of_all = Reading(), 0
    for path in paths:
        unusable, malformed, rows_here = [], [], 0
        for number, raw in objects(path, select=fields.columns):
            number_of_all += 1
            default_id = f"{source or 'line'}-{number_of_all}"
            try:
                raw = as_object(raw)
                if not keep(raw):
                    continue
                row = read(raw, default_id, fields)
                if row.damage:
                    raise ValueError(row.damage)
                reading.add(replace(row, id=default_id, source=source) if source else row)
            except ValueError as e:
                problems = unusable if isinstance(e, Unusable) else malformed
                problems.append({"file": path.name, "line": number, "problem": str(e)})
            rows_here += 1
        if len(malformed) > max_malformed * rows_here:
            first = f"the first in line {malformed[0]['line']}: {malformed[0]['problem']}"
            raise UserError(f"{path}: {len(malformed)} of {rows_here} rows are malformed, {first}")
        reading.malformed += sorted([*unusable, *malformed], key=lambda problem: problem["line"])
    return reading


def read_all(spec: str | Path, fields: Fields = THE_TABLES) -> Reading:
    """The rows of files, folders or a comma list, for a run: a malformed row is refused, one that cannot be used left
    out, damaged text kept, all of it said. A row without an id is named by its place, from 0 on. Raises UserError."""
    reading, number_of_all = Reading(), 0
    for path in data_files(spec):
        for number, raw in objects(path, "cannot read the problems", fields.columns):
            if isinstance(raw, EmptyLine):
                continue
            where = place(path, number)
            if isinstance(raw, ValueError):
                raise UserError(f"{where}: not {'CSV' if suffix_of(path) in ('.csv', '.tsv') else 'JSON'}: {raw}")
            number_of_all += 1
            try:
                row = as_row(raw, str(number_of_all - 1), fields)
                if not row.problem:
                    raise Unusable("an empty problem")
                if not row.answers:
                    raise Unusable("no answer, and none to be read from a solution")
                if all(map(is_prose, row.answers)):
                    raise Unusable(f"an explanation in place of an answer: {row.answer[:60]!a}")
                if "surrogate" in row.damage:  # which no tokenizer takes
                    raise ValueError(row.damage)
            except Unusable as e:
                reading.left_out.append(f"{where}: {e}")
                continue
            except ValueError as e:
                raise UserError(f"{where}: {e}") from None
            if row.damage:
                reading.damaged.append(f"{where}: {row.damage}")
            reading.add(row)
    if not reading.rows:
        reason = f" that can be used, of {number_of_all}: {reading.left_out[0]}" if reading.left_out else ""
        raise UserError(f"{spec}: no rows{reason}")
    return reading
