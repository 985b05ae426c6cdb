"""Files that any engine wrote, as rows of our own: FORMATS says where each puts what, and one reader reads them all, a
row at a time. README.md in this folder has the formats as a table for users.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs import UserError, check_regular, read_json
from evaluation.completions import checked_row
from evaluation.grade import Key
from problems import files
from problems.files import EmptyLine, place, suffix_of
from problems.golds import golds


@dataclass(frozen=True)
class Format:
    """Where an engine puts what: dotted paths, of several the first that a row has."""

    columns: str  # a row with all of these is of this format
    texts: str  # one, or a list of them; each a text, or an object with one of TEXT
    answers: str
    id: str
    question: str = ""  # rows without an id that have the same one are samples of one problem
    benchmark: str = ""  # else it is called as the file


FORMATS = {
    "ours": Format("benchmark completions", "completions", "answer", "id", "", "benchmark"),
    "OpenAI batch": Format("custom_id response error", "response.body.choices", "", "custom_id"),
    "lm-evaluation-harness": Format("doc resps", "resps", "target doc.answer", "doc_id", "doc"),
    "lighteval": Format(
        "doc model_response", "model_response.text", "doc.choices", "doc.id", "doc.query", "doc.task_name"
    ),
    "lighteval, older": Format("full_prompt predictions gold", "predictions", "gold", "", "full_prompt"),
    "verl": Format("input output gts", "output", "gts", "", "input"),
    "OpenCompass": Format("origin_prompt prediction gold", "prediction", "gold", "id", "origin_prompt"),
    "Qwen2.5-Math": Format("code gt", "code", "gt", "idx", "question"),
}
# Files of people's own: any of these names, but of two that differ neither is taken for the right one.
OWN = Format(
    "",
    "completions responses outputs generations samples model_outputs response.body.choices response.choices choices "
    "response output generation completion model_output generated_text text",
    "answer answers gold golds gold_answer ground_truth gt gts target reference_answer expected_answer correct_answer "
    "reward_model.ground_truth",
    "id problem_id question_id unique_id task_id doc_id custom_id uid idx index",
    "problem question prompt input query instruction",
    "benchmark task_name data_source",
)
# in a text's object
TEXT = "text message.content content generated_text response output completion"
THINKING = "reasoning_content reasoning message.reasoning_content message.reasoning"
FINISH = "finish_reason.type finish_reason meta_info.finish_reason.type"
# beside the texts, one for each of them
THINKING_BESIDE = "reasoning_content reasonings reasoning model_response.reasonings"
FINISH_BESIDE = "finish_reasons finish_reason.type finish_reason meta_info.finish_reason.type"
TOKENS_BESIDE = "model_response.output_tokens num_tokens completion_tokens tokens"
SUFFIXES = (".jsonl", ".parquet", ".arrow")  # of the files that count in a folder, .gz too; others if it has none


# --------------------------------------------------------------------------------------------------------------- files


def files_of(path: Path) -> list[Path]:
    """The file itself, or those of a folder. Raises UserError."""
    if not path.is_dir():
        return [path]
    if (path / "completions.jsonl").is_file():  # our own
        return [path / "completions.jsonl"]
    for suffixes in (SUFFIXES, files.SUFFIXES):  # lm-evaluation-harness has its results beside, as .json
        found = [file for file in sorted(path.rglob("*")) if suffix_of(file) in suffixes and file.is_file()]
        if found:
            return found
    raise UserError(f"{path}: a folder without {', '.join(files.SUFFIXES)} files")


def name_of(file: Path) -> str:
    """What the completions of a file are called that names no benchmark: lm-evaluation-harness writes task and time,
    and files come in shards."""
    stem = file.name.removesuffix(".gz").rpartition(".")[0] or file.name
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    return re.sub(r"^samples_(.+)_\d{4}-\d\d-\d\dT[\d.:-]+$", r"\1", stem)


def objects(file: Path) -> Iterator[tuple[int, Any]]:
    """(number, object, or the ValueError of one that is none) of each row. Raises UserError, OSError, ValueError."""
    check_regular(file)
    if suffix_of(file) == ".parquet":
        yield from parquet_rows(file)
    elif file.suffix == ".json" and (row := only_row(file)):
        yield 1, row
    else:
        yield from files.objects(file)


def only_row(file: Path) -> dict[str, Any] | None:
    """What a .json file holds if that is one row, whose lists `files` might take for rows."""
    with open(file, "rb") as f:
        if not f.read(99).lstrip().startswith(b"{"):
            return None
    try:
        row = read_json(file)
    except ValueError:  # one object a line
        return None
    is_table = any(all(isinstance(value, kind) for value in row.values()) for kind in (list, dict))
    return None if is_table or first(row, format_of(row).texts) is None else row


def parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Without the limit of `files` on what all rows take together: lighteval keeps the ids of all tokens."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{file}: needs pyarrow: pip install -r requirements-data.txt") from None
    try:
        parquet, number = ParquetFile(file), 0
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        row_bytes = max([1, *(group.total_byte_size // max(1, group.num_rows) for group in groups)])
        for batch in parquet.iter_batches(max(1, min(64, 2**22 // row_bytes))):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as e:  # not all of them are ValueErrors
        raise ValueError(str(e)) from None


# ---------------------------------------------------------------------------------------------------------------- rows


def at(row: Any, path: str) -> Any:
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def first(row: Any, paths: str) -> Any:
    return next((value for path in paths.split() if (value := at(row, path)) is not None), None)


def could_be_texts(path: str, value: Any) -> bool:
    """Not a count of samples, nor the choices that a question offers."""
    if path == "choices":
        return isinstance(value, list) and all(isinstance(choice, dict) for choice in value)
    return isinstance(value, (str, list, dict))


def only(row: Any, paths: str, role: str) -> Any:
    """As `first`. Raises ValueError where a row has several of them, and they differ."""
    values = {path: value for path in paths.split() if (value := at(row, path)) is not None}
    if role == "the texts":
        values = {path: value for path, value in values.items() if could_be_texts(path, value)}
    values = {path: value for path, value in values.items() if not any(p.startswith(f"{path}.") for p in values)}
    if len(values) > 1:
        values.pop("text", None)  # often prompt and response together
    if len({str(value) for value in values.values()}) > 1:
        raise ValueError(f"{' and '.join(map(repr, values))} may both be {role}: rename or remove one")
    return next(iter(values.values()), None)


def format_of(row: dict[str, Any]) -> Format:
    return next((f for f in FORMATS.values() if all(name in row for name in f.columns.split())), OWN)


def columns_of(row: dict[str, Any]) -> str:
    names = ", ".join(f"{name!a}" for name in row)
    return names if len(names) < 300 else names[:300] + "..."


def flat(value: Any, is_python: bool) -> list[Any]:
    """A text or object as a list of one, a list of lists as one list. is_python: a list may be written as Python does,
    in a text."""
    if is_python and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise ValueError(f"no list as Python writes it: {value[:40]!a}") from None
    flattened: list[Any] = []
    for item in value if isinstance(value, list) else [value]:
        flattened += item if isinstance(item, list) else [item]
    return flattened


def as_completion(item: Any, thinking: Any, finish: Any, tokens: Any) -> dict[str, Any]:
    """A text with what is known of it, as our rows have it; the others are what stands beside it."""
    if not isinstance(item, dict):
        item = {"text": item}
    text, ids = first(item, TEXT), item.get("token_ids")
    if text is None and isinstance(item.get("message"), dict):
        text = ""  # an engine that thought until it was cut off
    thinking = first(item, THINKING) or thinking
    if isinstance(thinking, str) and thinking and isinstance(text, str) and "</think>" not in text:
        text = f"<think>{thinking}</think>{text}"
    tokens = ids if isinstance(ids, list) else item.get("tokens", tokens)
    finish = finish if (own := first(item, FINISH)) is None else own
    completion = {"text": text, "tokens": len(tokens) if isinstance(tokens, list) else tokens}
    return completion | {"finish_reason": finish, "sample": item.get("sample")}


def completions_of(row: dict[str, Any], where: Format) -> list[dict[str, Any]]:
    given = only(row, where.texts, "the texts") if where is OWN else first(row, where.texts)
    if given is None and isinstance(first(row, THINKING_BESIDE), str):
        given = ""  # a model that thought until it was cut off
    if given is None:
        needs = "needs a list of completions, or a format of evaluation/README.md"
        raise ValueError(f"no texts in the columns {columns_of(row)}: {needs}")
    texts = flat(given, where is FORMATS["lighteval, older"])
    count = len(texts)
    thinking, tokens, finish = (first(row, paths) for paths in (THINKING_BESIDE, TOKENS_BESIDE, FINISH_BESIDE))
    thinking = thinking if isinstance(thinking, list) and len(thinking) == count else [thinking] * count
    if not isinstance(tokens, list) or len(tokens) != count:
        tokens = [tokens if type(tokens) is int and count == 1 else None] * count
    finish = finish if isinstance(finish, list) and finish else [finish or None] * count
    if len(finish) != count:
        raise ValueError(f"{len(finish)} finish reasons for {count} texts")
    return [as_completion(*values) for values in zip(texts, thinking, finish, tokens, strict=True)]


def answer_of(row: dict[str, Any], where: Format) -> Any:
    """The right answer, a list where any of several is right, None where there is none; another engine's is read as
    that of a problem file. Raises ValueError."""
    answer = only(row, where.answers, "the right answer") if where is OWN else first(row, where.answers)
    if where is FORMATS["lighteval"] and isinstance(answer, list):
        chosen = flat(at(row, "doc.gold_index"), False)
        if not all(type(i) is int and 0 <= i < len(answer) for i in chosen):
            raise ValueError(f"doc.gold_index {chosen} is none of {len(answer)} doc.choices")
        answer = [answer[i] for i in chosen]
    if where is FORMATS["lighteval, older"]:
        answer = flat(answer, True)
    if where is FORMATS["ours"]:
        return answer
    try:
        found = golds(answer)
    except ValueError as e:
        raise ValueError(f"needs an 'answer': what it has {e}") from None
    return found if len(found) > 1 else next(iter(found), None)


def failure(row: dict[str, Any]) -> str:
    """Why a request of a batch has no response; "" where it has one."""
    status, error = at(row, "response.status_code"), row.get("error")
    if error is None and status in (None, 200):
        return ""
    message = first(row, "error.message response.body.error.message response.body.message") or error or status
    return f"{row.get('custom_id')}: {' '.join(str(message).split())[:200]}"


@dataclass
class RowReader:
    """Makes rows of our own of any engine's, in the order of the files. joins: answers come from elsewhere."""

    joins: bool
    has_ids: bool | None = None  # of the rows so far
    places: dict[str, dict[str, int]] = field(default_factory=dict)  # of questions without ids, by benchmark
    filters: dict[Key, Any] = field(default_factory=dict)

    def read(self, row: Any, name: str) -> dict[str, Any] | None:
        """The checked row, with a digest of its question; None for what repeats another row's texts. `failed` says why
        one has no completions. Raises ValueError."""
        if not isinstance(row, dict):
            raise ValueError("needs an object with benchmark, id, answer and a list of completions")
        where = format_of(row)
        question = first(row, where.question) if where is not FORMATS["ours"] else row.get("problem")
        question = None if question is None else hashlib.blake2b(repr(question).encode("utf-8", "replace")).hexdigest()
        failed = failure(row) if where is FORMATS["OpenAI batch"] else ""
        benchmark = first(row, where.benchmark) if where.benchmark else None
        benchmark = name if benchmark is None else benchmark
        if where is FORMATS["lighteval"]:  # suite|task|examples
            benchmark = re.sub(r"^[^|]*\|([^|]+)(\|.*)?$", r"\1", str(benchmark))
        ours = {"benchmark": benchmark, "id": self.id_of(row, where, str(benchmark), question), "failed": failed}
        ours["answer"] = None if self.joins or failed else answer_of(row, where)
        if ours["answer"] is None and not self.joins and not failed:
            where_else = "or --benchmarks=FILE, which has it by id"
            raise ValueError(f"needs an 'answer' with a value among the columns {columns_of(row)}, {where_else}")
        ours |= {"completions": [] if failed else completions_of(row, where), "problem": question}
        ours |= {"opened": row["opened"]} if where is FORMATS["ours"] and "opened" in row else {}
        ours = checked_row(ours, has_answer=not self.joins and not failed)
        # lm-evaluation-harness writes all samples once for each of a task's ways to find the answer
        first_filter = self.filters.setdefault((ours["benchmark"], ours["id"]), row.get("filter"))
        if where is FORMATS["lm-evaluation-harness"] and row.get("filter") != first_filter:
            return None
        return ours

    def id_of(self, row: dict[str, Any], where: Format, benchmark: str, question: str | None) -> Any:
        """Its own, else its question's place among the benchmark's, else the row's."""
        own = first(row, where.id)
        if own is None and self.joins:
            raise ValueError("has no id that a benchmark's problem could have")
        if self.has_ids not in (None, own is not None):
            raise ValueError(f"has {'an' if own is not None else 'no'} id, unlike the rows before")
        self.has_ids = own is not None
        places = self.places.setdefault(benchmark, {})
        return own if own is not None else places.setdefault(question or f"row {len(places)}", len(places))


def engine_rows(path: Path, joins: bool) -> Iterator[dict[str, Any]]:
    """The rows of a file or folder as our own. Raises UserError."""
    reader = RowReader(joins)
    for file in files_of(path):
        try:
            for number, row in objects(file):
                if isinstance(row, EmptyLine):
                    continue
                try:
                    if isinstance(row, ValueError):
                        raise row
                    ours = reader.read(row, name_of(file))
                except (ValueError, RecursionError) as e:
                    raise UserError(f"{place(file, number)}: not a row of completions: {e}") from None
                if ours is not None:
                    yield ours
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or " ".join(str(e).split())
            raise UserError(f"{file}: cannot be read: {reason}") from None
