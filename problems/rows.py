"""Rows {id, source, problem, answers, solution} from the objects of any published schema.

One table says under which names a field circulates. `read_rows` is everybody's reader: training, evaluation and
curation see the same rows of a file. What cannot be read, or was damaged on its way, is named with file and line.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

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
from problems.instructions import bare_problem, of_chat

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
    "several": ("is_multiple_answer",),  # OlympiadBench: the answers of a list belong together
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
    also_from: tuple[str, ...] = field(default=(), compare=False)  # "solution": its answer is; "before": its problem
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
    or_table: bool = False  # where a row has no such field, the table's count

    def of(self, raw: Raw) -> "Fields":
        """Those that count for a row."""
        if not self.or_table:
            return self
        problem, answer = (path if path and find(raw, path) is not None else "" for path in (self.problem, self.answer))
        return Fields(problem, answer)

    def columns(self, columns: list[str]) -> list[str]:
        """The columns of a file that are read."""
        paths = [path for path in (self.problem, self.answer) if path]
        named = {top_name(path) for path in paths} | {*map(normal_name, paths)}
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
    blank = False
    for name in [path] if path else FIELDS["problem"]:
        value = find(raw, name)
        value = parsed(value) if isinstance(value, str) and value.strip().startswith("[{") else value
        if path and isinstance(value, dict):
            raise ValueError(missing(raw, path, "problem"))
        if value is None or isinstance(value, dict):
            blank |= name in own_names(tuple(raw))
            continue
        text, reply, left_out = of_chat(value) if isinstance(value, list) else (value, "", [])
        if not isinstance(text, str):
            raise ValueError(f"{name!r} is not text")
        if not text.strip():
            blank = True
            continue
        extra = find(raw, "input") if name == "instruction" else None
        if isinstance(extra, str):  # Alpaca
            text = f"{text}\n{extra}".strip()
        if len(text) > 4 * MAX_CHARS["problem"]:  # with worked examples and instructions
            raise Unusable(f"{name!r} has {len(text):,} characters")
        return text, reply, left_out
    if blank:
        return "", "", []
    raise ValueError(missing(raw, path, "problem"))


def missing(raw: Raw, path: str, role: str) -> str:
    """That a row has no such field, and which it has."""
    names = ", ".join(map(str, raw))
    names = names if len(names) <= 300 else names[:297] + "..."
    value = find(raw, path) if path else None
    if isinstance(value, dict):
        inner = ", ".join(map(str, value))
        return f"{path!r} is an object with {inner[:300]}: name one, as {path}.{next(iter(value), '')}"
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
        if path and isinstance(value, dict):
            raise ValueError(missing(raw, path, "answer"))
        try:
            answers = golds(value)
        except ValueError as e:
            raise Unusable(f"{name!r} {e}") from None
        if answers and not all(map(is_prose, answers)):
            return answers, value
        if answers and not first[0]:  # a worked solution, unless another field has its answer
            first = answers, value
    return first if present else (None, None)


def check_askable(raw: Raw) -> None:
    """Raises Unusable for a problem that is more than its text."""
    for role, reason in (("image", "the problem shows an image"), ("options", "multiple choice, its options apart")):
        for path in FIELDS[role]:
            if find(raw, path):
                raise Unusable(f"{reason} ({path!r})")
    if {*own_names(tuple(raw))} >= LETTERS:
        raise Unusable("multiple choice, its options apart ('A', 'B', 'C', 'D')")


def as_test(raw: Any, default_id: str, fields: Fields) -> Row:
    """The row of a test problem, which is there to be recognized: no answer is needed, and an image or options do no
    harm. Raises ValueError."""
    raw = as_object(raw)
    prompt, _, _ = problem_of(raw, fields.of(raw).problem)
    try:
        answers, _ = answers_of(raw, fields.of(raw).answer)
    except Unusable:
        answers = None
    own_id, source = first_text(raw, "id") or default_id, first_text(raw, "source")
    return Row(own_id, source, bare_problem(prompt)[0], tuple(answers or ()), first_text(raw, "solution"))


def as_row(raw: Any, default_id: str, fields: Fields = THE_TABLES) -> Row:
    """The row in an object of any schema. An answer that is missing, or stands for none, is read from the solution.

    Raises ValueError, with what is wrong, for missing fields and fields of a wrong type, and Unusable.
    """
    raw = as_object(raw)
    fields = fields.of(raw)
    check_askable(raw)
    prompt, reply, taken = problem_of(raw, fields.problem)
    problem, taken_too = bare_problem(prompt)
    before = "" if fields.problem else first_text(raw, "before").strip()
    solution = first_text(raw, "solution") or reply
    answers, gold = answers_of(raw, fields.answer)
    has_solution = solution or {*FIELDS["solution"]} & {*own_names(tuple(raw))}
    if answers is None and (fields.answer or not has_solution):
        raise ValueError(missing(raw, fields.answer, "answer"))
    if answers and len(answers) > 1 and find(raw, FIELDS["several"][0]) is True:
        answers = [", ".join(answers)]
    from_solution = ""
    if solution and not damage(solution) and all(map(is_prose, answers or ())):
        from_solution = solution_answer(solution)
    if from_solution or not answers:
        answers, gold = [from_solution] if from_solution else [], None
    elif not solution and isinstance(gold, str) and HASHES.search(gold.strip()):
        solution = gold  # GSM8K
    also_from = ["solution"] if from_solution else []
    also_from += ["before"] if before else []
    row = Row(
        id=first_text(raw, "id") or default_id,
        source=first_text(raw, "source"),
        problem=f"{before} {problem}" if before and problem and not problem.startswith(before) else problem,
        answers=tuple(answers),
        solution=solution,
        taken=(*taken, *taken_too),
        also_from=tuple(also_from),
    )
    if PLACEHOLDER.search(problem):
        raise Unusable("the problem's numbers stand apart (N_00)")
    for name, limit in MAX_CHARS.items():
        if any(len(text) > limit for text in (row.answers if name == "answer" else [getattr(row, name)])):
            raise Unusable(f"{name!r} has more than {limit:,} characters")
    # looked for in what stands there: a tab or form feed at an end is gone from the row
    texts = {"problem": prompt, "answer": "\n".join(texts_of(gold)), "source": row.source, "id": row.id}
    damages = [f"{name!r} has {damage(text)}" for name, text in texts.items() if damage(text)]
    return replace(row, damage=damages[0] if damages else "")
