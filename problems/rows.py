"""Rows {id, source, problem, answers, solution} from the objects of any published schema.

One table says under which names a field circulates. `read_rows` is everybody's reader: training, evaluation and
curation see the same rows of a file. What cannot be read, or was damaged on its way, is named with file and line.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from configs import UserError
from problems.files import EmptyLine, data_files, objects, place
from problems.golds import (
    HASHES,
    damage,
    find,
    golds,
    is_prose,
    normal_name,
    own_names,
    parsed,
    solution_answer,
    texts_of,
    top_name,
)
from problems.instructions import SPEAKS_OF_FORMAT, bare_problem, of_chat

# Where a field is looked for: the first path that holds something counts. Names are compared without case, a dot leads
# into an object, also into one that is written as text. A problem may be a chat: [{role, content}] or [{from, value}].
FIELDS = {
    "problem": ("problem", "question", "problem_text", "question_text", "problem_statement", "extra_info.question",
                "question.problem", "prompt", "instruction", "query", "input", "squestion", "q", "messages",
                "conversations"),
    "answer": ("answer", "answers", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth",
               "ground_truth.value", "answer.value", "verification_info.ground_truth", "question.ground_truth_answer",
               "ground_truth_answer", "correct_answer", "gold_answer", "reference_answer", "answer_number",
               "numerical_answer", "gt_answer", "ref_answer", "final_ans", "groundtruth", "golden", "gold", "gt",
               "expected", "lsolutions", "target", "a"),
    "solution": ("solution", "solutions", "generated_solution", "ground_truth_solution", "rationale", "response",
                 "output"),
    "id": ("id", "unique_id", "uuid", "problem_id", "question_id", "problem_idx", "idx", "index", "extra_info.index"),
    "source": ("source", "data_source", "dataset"),
    "before": ("context", "body"),  # what the question refers to
    "options": ("choices", "options"),  # of multiple choice
    "image": ("image", "images", "image_1", "image_path", "picture"),
}  # fmt: skip
LETTERS = {"a", "b", "c", "d"}  # columns of multiple choice
PLACEHOLDER = re.compile(r"\bN_\d\d\b")  # MAWPS has the numbers of a problem apart
CHATS = ("messages", "conversations")  # they repeat a row at length: read only where nothing else has the problem
MAX_CHARS = {"problem": 20_000, "answer": 1_000, "solution": 200_000}  # the longest here have 5,154, 204 and 12,402
Raw = dict[str, Any]


class Unusable(ValueError):
    """A row that can be read, but asks for what a text and a formula cannot answer: a run leaves it out."""


@dataclass(frozen=True)
class Row:
    id: str
    source: str
    problem: str
    answers: tuple[str, ...]  # any of them is right; () where there is none
    solution: str
    taken: tuple[str, ...] = field(default=(), compare=False)  # what was taken off its problem
    damage: str = field(default="", compare=False)  # what is wrong with its texts, "" for nothing

    @property
    def answer(self) -> str:
        """The first answer, "" where there is none."""
        return self.answers[0] if self.answers else ""

    @property
    def gold(self) -> str | list[str]:
        """The answer as our own files have it: text, or a list any entry of which is right."""
        return self.answers[0] if len(self.answers) == 1 else list(self.answers)


@dataclass(frozen=True)
class Fields:
    """Dotted paths that a user names, in place of the table's."""

    problem: str = ""
    answer: str = ""

    def columns(self, columns: list[str]) -> list[str]:
        """The columns of a file that are read."""
        named = {top_name(path) for path in (self.problem, self.answer) if path}
        wanted = {top_name(path) for paths in FIELDS.values() for path in paths} | named
        if {*map(normal_name, columns)} & ({top_name(path) for path in FIELDS["problem"]} - {*CHATS}):
            wanted -= {*CHATS} - named
        return [column for column in columns if normal_name(column) in wanted]


# ----------------------------------------------------------------------------------------------------------------- rows

THE_TABLES = Fields()  # no path of the user's own


def as_object(raw: Any) -> Raw:
    """The object of a row; of a chat that is a row of its own (Open-Reasoner-Zero), with the gold beside the reply."""
    if isinstance(raw, ValueError):
        raise raw
    if isinstance(raw, list) and raw and all(isinstance(turn, dict) for turn in raw):
        return {"messages": raw, "ground_truth": raw[-1].get("ground_truth")}
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    return raw


def first_text(raw: Raw, role: str) -> str:
    """The first of a role's fields that is text; a list of texts counts as one."""
    for path in FIELDS[role]:
        value = find(raw, path)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return "\n\n".join(value)
        if isinstance(value, (str, int)) and str(value).strip():
            return str(value)
    return ""


def problem_of(raw: Raw, path: str) -> tuple[str, str, list[str]]:
    """(the prompt, the reply of a chat or "", what else stood in the chat) from `path`, or where the table finds it.
    Raises ValueError."""
    for name in [path] if path else FIELDS["problem"]:
        value = find(raw, name)
        value = parsed(value) if isinstance(value, str) and value.strip().startswith("[{") else value
        if value is None or isinstance(value, dict):
            continue
        text, reply, left_out = of_chat(value) if isinstance(value, list) else (value, "", [])
        if not isinstance(text, str):
            raise ValueError(f"{name!r} is not text")
        if name == "instruction" and isinstance(raw.get("input"), str):  # Alpaca
            text = f"{text}\n{raw['input']}".strip()
        return text, reply, left_out
    if not path and {*FIELDS["problem"]} & {*own_names(tuple(raw))}:
        return "", "", []  # null
    raise ValueError(missing(raw, path, "problem"))


def missing(raw: Raw, path: str, role: str) -> str:
    """That a row has no such field, and which it has."""
    names = ", ".join(map(str, raw))
    names = names if len(names) <= 300 else names[:297] + "..."
    return f"no {path or role!r} among the columns {names}" + ("" if path else f" (--{role}_field= names another)")


def answers_of(raw: Raw, path: str) -> tuple[list[str] | None, Any]:
    """(the answers in `path`, or in the first of the table's fields that has one, that field); None where there is no
    such field. Raises ValueError."""
    names, first, present = own_names(tuple(raw)), ([], None), False
    for name in [path] if path else FIELDS["answer"]:
        value = find(raw, name)
        if isinstance(value, dict) and not path:
            if any(find(raw, deeper) is not None for deeper in FIELDS["answer"] if deeper.startswith(f"{name}.")):
                continue
        present |= value is not None or (top_name(name) in names and top_name(name) not in FIELDS["problem"])
        try:
            found = golds(value)
        except ValueError as e:
            raise Unusable(f"{name!r} {e}") from None
        if found and not all(map(is_prose, found)):
            return found, value
        if found and not first[0]:  # a worked solution, unless another field has its answer
            first = found, value
    return first if present else (None, None)


def check_askable(raw: Raw) -> None:
    """Raises Unusable for a problem that is more than its text."""
    for role, reason in (("image", "the problem shows an image"), ("options", "multiple choice, its options apart")):
        for path in FIELDS[role]:
            if find(raw, path):
                raise Unusable(f"{reason} ({path!r})")
    if {*own_names(tuple(raw))} >= LETTERS:
        raise Unusable("multiple choice, its options apart ('A', 'B', 'C', 'D')")


def as_row(raw: Any, default_id: str, fields: Fields = THE_TABLES) -> Row:
    """The row in an object of any schema. An answer that is missing, or stands for none, is read from the solution.

    Raises ValueError, with what is wrong, for missing fields and fields of a wrong type, and Unusable.
    """
    raw = as_object(raw)
    check_askable(raw)
    prompt, reply, taken = problem_of(raw, fields.problem)
    problem, taken_too = bare_problem(prompt)
    before = "" if fields.problem else first_text(raw, "before").strip()
    solution = first_text(raw, "solution") or reply
    answers, gold = answers_of(raw, fields.answer)
    has_solution = solution or {*FIELDS["solution"]} & {*own_names(tuple(raw))}
    if answers is None and (fields.answer or not has_solution):
        raise ValueError(missing(raw, fields.answer, "answer"))
    if answers and len(answers) > 1 and find(raw, "is_multiple_answer") is True:  # OlympiadBench
        answers = [", ".join(answers)]
    if not answers:
        answers = [answer for answer in [solution_answer(solution)] if answer and not damage(solution)]
    elif not solution and isinstance(gold, str) and HASHES.search(gold):
        solution = gold  # GSM8K
    row = Row(
        id=first_text(raw, "id") or default_id,
        source=first_text(raw, "source"),
        problem=f"{before} {problem}" if before and problem and not problem.startswith(before) else problem,
        answers=tuple(answers),
        solution=solution,
        taken=(*taken, *taken_too),
    )
    if PLACEHOLDER.search(problem):
        raise Unusable("the problem's numbers stand apart (N_00)")
    for name, limit in MAX_CHARS.items():
        if any(len(text) > limit for text in (row.answers if name == "answer" else [getattr(row, name)])):
            raise ValueError(f"{name!r} has more than {limit:,} characters")
    # looked for in what stands there: a tab or form feed at an end is gone from the row
    texts = {"problem": prompt, "answer": "\n".join(texts_of(gold)), "source": row.source, "id": row.id}
    damages = [f"{name!r} has {damage(text)}" for name, text in texts.items() if damage(text)]
    return replace(row, damage=damages[0] if damages else "")


# ---------------------------------------------------------------------------------------------------------- whole files


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
    ids: set[str] = field(default_factory=set)
    questions: dict[str, Row] = field(default_factory=dict)  # the first row of each problem

    def add(self, row: Row) -> None:
        """Keep the row, unless it is a copy, under an id that none has yet."""
        same = self.questions.setdefault(row.problem, row)
        if same is not row and same.answers == row.answers:
            if same.id == row.id:
                self.copies += 1
                return
            self.repeats += 1
        if row.id in self.ids:
            self.renamed += 1
            row = replace(row, id=next(name for n in count(2) if (name := f"{row.id}#{n}") not in self.ids))
        self.ids.add(row.id)
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
        return lines


def read_rows(
    paths: list[Path],
    max_malformed: float,
    source: str = "",
    keep: Callable[[Raw], bool] = lambda raw: True,
    fields: Fields = THE_TABLES,
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
                row = as_row(raw, default_id, fields)
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
                raise UserError(f"{where}: not {'CSV' if '.csv' in path.name else 'JSON'}: {raw}")
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
