"""Rows {id, source, problem, answers, solution} from the objects of any published schema.

One table says under which names a field circulates. `read_rows` is everybody's reader: training, evaluation and
curation see the same rows of a file. What cannot be read, or was damaged on its way, is named with file and line.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from configs import UserError
from problems.files import EmptyLine, data_files, objects, place
from problems.golds import HASHES, damage, golds, parsed, solution_answer, texts_of
from problems.instructions import SPEAKS_OF_FORMAT, bare_problem, of_chat

# Where a field is looked for: the first path that holds something counts. Names are compared without case, a dot leads
# into an object, also into one that is written as text. A problem may be a chat: [{role, content}] or [{from, value}].
FIELDS = {
    "problem": ("problem", "question", "problem_text", "question_text", "problem_statement", "extra_info.question",
                "question.problem", "prompt", "instruction", "query", "input", "messages", "conversations"),
    "answer": ("answer", "answers", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth",
               "ground_truth.value", "answer.value", "verification_info.ground_truth", "question.ground_truth_answer",
               "ground_truth_answer", "correct_answer", "gold_answer", "reference_answer", "gt_answer",
               "numerical_answer", "gt", "gold", "target"),
    "solution": ("solution", "solutions", "generated_solution", "rationale", "response", "output"),
    "id": ("id", "unique_id", "uuid", "problem_id", "question_id", "problem_idx", "idx", "index", "extra_info.index"),
    "source": ("source", "data_source", "dataset"),
    "before": ("context", "body"),  # what the question refers to
    "options": ("choices", "options"),  # of multiple choice
    "image": ("image", "images", "image_1", "image_path", "picture"),
}  # fmt: skip
CHATS = ("messages", "conversations")  # they repeat a row at length: read only where nothing else has the problem
MAX_CHARS = {"problem": 20_000, "answer": 1_000, "solution": 200_000}  # the longest here have 5,154, 204 and 12,402
Raw = dict[str, Any]


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


# ---------------------------------------------------------------------------------------------------- fields of objects


def normal_name(name: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


@lru_cache(maxsize=1024)
def own_names(names: tuple[str, ...]) -> dict[str, str]:
    """An object's names by their normal form; of several the first."""
    return {normal_name(name): name for name in reversed(names)}


def top_name(path: str) -> str:
    return normal_name(path.partition(".")[0])


def find(raw: Raw, path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    value: Any = raw
    for name in path.split("."):
        value = parsed(value) if isinstance(value, str) else value
        if not isinstance(value, dict):
            return None
        value = value.get(name if name in value else own_names(tuple(value)).get(name.lower()))
    return value


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
        return text, reply, left_out
    if not path and {*FIELDS["problem"]} & {*own_names(tuple(raw))}:
        return "", "", []  # null
    raise ValueError(f"no {path or 'problem'!r} among the columns {column_names(raw)}")


def column_names(raw: Raw) -> str:
    names = ", ".join(map(str, raw))
    return names if len(names) <= 300 else names[:297] + "..."


def answers_of(raw: Raw, path: str) -> tuple[list[str] | None, Any]:
    """(the answers in `path`, or in the first of the table's fields that has one, that field); None where there is no
    such field. Raises ValueError."""
    present, wrong = False, ""
    for name in [path] if path else FIELDS["answer"]:
        value = find(raw, name)
        if isinstance(value, dict) and not path:
            wrong = wrong or name  # unless another path leads into it
            continue
        present |= value is not None or name in own_names(tuple(raw))
        try:
            found = golds(value)
        except ValueError as e:
            raise ValueError(f"{name!r} {e}") from None
        if found:
            return found, value
    if wrong:
        raise ValueError(f"{wrong!r} is neither text nor number")
    return [] if present else None, None


def as_row(raw: Any, default_id: str, fields: Fields = THE_TABLES) -> Row:
    """The row in an object of any schema. An answer that is missing, or stands for none, is read from the solution.

    Raises ValueError, with what is wrong, for missing fields, fields of a wrong type and what cannot be asked as text.
    """
    raw = as_object(raw)
    for role, reason in (("image", "the problem shows an image"), ("options", "multiple choice, its options apart")):
        for path in FIELDS[role]:
            if find(raw, path):
                raise ValueError(f"{reason} ({path!r})")
    prompt, reply, taken = problem_of(raw, fields.problem)
    problem, taken_too = bare_problem(prompt)
    before = "" if fields.problem else first_text(raw, "before").strip()
    solution = first_text(raw, "solution") or reply
    answers, gold = answers_of(raw, fields.answer)
    if answers is None and (fields.answer or not solution):
        raise ValueError(f"no {fields.answer or 'answer'!r} among the columns {column_names(raw)}")
    if not answers:
        answers = [answer for answer in [solution_answer(solution)] if answer and not damage(solution)]
    elif not solution and isinstance(gold, str) and HASHES.search(gold):
        solution = gold  # GSM8K
    row = Row(
        id=first_text(raw, "id") or default_id,
        source=first_text(raw, "source"),
        problem=f"{before}\n{problem}" if before and problem else problem,
        answers=tuple(answers),
        solution=solution,
        taken=(*taken, *taken_too),
    )
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
    malformed: list[Raw] = field(default_factory=list)  # {file, line, problem}, skipped
    copies: int = 0  # left out: another row has their id, problem and answers
    renamed: int = 0  # their ids came before, with another problem
    damaged: list[str] = field(default_factory=list)  # places of rows with damaged text, where those are kept
    unanswered: list[str] = field(default_factory=list)  # places of rows without an answer, where those are left out

    def add(self, row: Row, ids: dict[str, Row]) -> None:
        """Keep the row, under an id that none has yet."""
        if row == ids.get(row.id):
            self.copies += 1
            return
        if row.id in ids:
            self.renamed += 1
            row = replace(row, id=next(name for n in range(2, len(ids) + 3) if (name := f"{row.id}#{n}") not in ids))
        ids[row.id] = row
        self.rows.append(row)

    def notes(self) -> list[str]:
        """A line on each thing that was done to the rows, or left undone."""
        lines = []
        taken = Counter(text for row in self.rows for text in row.taken)
        if taken:
            listed = ", ".join(f"{text} ({count})" for text, count in taken.most_common(4))
            lines.append(f"took off the problems: {listed}")
        kept = [row for row in self.rows if SPEAKS_OF_FORMAT.search(row.problem)]
        if kept:
            end = " ".join(kept[0].problem.split())[-80:]
            lines.append(
                f"{len(kept)} problems say themselves how to answer, beside prompt_suffix; the first: ...{end}"
            )
        if self.copies:
            lines.append(f"{self.copies} rows that came before, with the same id, left out")
        if self.renamed:
            lines.append(f"{self.renamed} rows have an id that came before: they are called ID#2, ID#3, ...")
        if self.damaged:
            remedy = "`python data_prep.py curate` leaves them out"
            lines.append(f"{len(self.damaged)} rows have damaged text ({remedy}), the first: {self.damaged[0]}")
        if self.unanswered:
            lines.append(f"{len(self.unanswered)} rows without an answer left out, the first: {self.unanswered[0]}")
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
    reading, ids, number_of_all = Reading(), {}, 0
    for path in paths:
        malformed, count = [], 0
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
                reading.add(replace(row, id=default_id, source=source) if source else row, ids)
            except ValueError as e:
                malformed.append({"file": path.name, "line": number, "problem": str(e)})
            count += 1
        if len(malformed) > max_malformed * count:
            first = f"the first in line {malformed[0]['line']}: {malformed[0]['problem']}"
            raise UserError(f"{path}: {len(malformed)} of {count} rows are malformed, {first}")
        reading.malformed += malformed
    return reading


def read_all(spec: str | Path, fields: Fields = THE_TABLES) -> Reading:
    """The rows of files, folders or a comma list, for a run: a malformed row is refused, one without an answer left
    out, damaged text kept and said. A row without an id is named by its place, from 0 on. Raises UserError."""
    reading, ids, number_of_all = Reading(), {}, 0
    for path in data_files(spec):
        for number, raw in objects(path, "cannot read the problems", fields.columns):
            if isinstance(raw, EmptyLine):
                continue
            if isinstance(raw, ValueError):
                raise UserError(f"{place(path, number)}: not {'CSV' if '.csv' in path.name else 'JSON'}: {raw}")
            try:
                row = as_row(raw, str(number_of_all), fields)
                if not row.problem or "surrogate" in row.damage:  # which no tokenizer takes
                    raise ValueError(row.damage or "an empty problem")
            except ValueError as e:
                raise UserError(f"{place(path, number)}: {e}") from None
            number_of_all += 1
            if row.damage:
                reading.damaged.append(f"{place(path, number)}: {row.damage}")
            if row.answers:
                reading.add(row, ids)
            else:
                reading.unanswered.append(place(path, number))
    if not reading.rows:
        raise UserError(f"{spec}: no rows{' with an answer' if reading.unanswered else ''}")
    return reading
