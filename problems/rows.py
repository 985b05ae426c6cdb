"""Files of objects (.jsonl, .json, .csv, .parquet), and rows {id, source, problem, answer, solution} from them.

`objects` reads every problem file of the project. `read_rows` is the curation's: what cannot be read, or was damaged
on its way, is named with file and line, skipped and counted.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import UserError

# Traces of LaTeX whose backslashes were not escaped: the \t of \times became a tab, the \n of \neq a line end.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\t(?=imes|ext\s*\{|ext(?:bf|it|rm)|heta|riangle|binom|frac\s*[\d{])"
    r"|\r(?=ight|angle|ho\b|floor|ceil)|\n(?=eq\b|abla|otin)"
)
MAX_CHARS = {"problem": 20_000, "answer": 1_000, "solution": 200_000}  # the longest here have 5,154, 204 and 12,402
MAX_ROWS, MAX_BYTES = 2_000_000, 2**31  # of a .parquet file, in which a few bytes may stand for gigabytes
CELL_BYTES = 64  # what a value of it takes as an object, its text aside
Raw = dict[str, Any]
Reader = Callable[[Raw], Raw | None]  # gives {problem, answer, solution} of an object, None of another source's


@dataclass(frozen=True)
class Row:
    id: str
    source: str
    problem: str
    answer: str  # "" where there is none
    solution: str


class EmptyLine(ValueError):
    """A line of a .jsonl file without an object, before others that have one."""


def objects(path: Path, failure: str = "cannot be read") -> Iterator[tuple[int, Any]]:
    """(line or row number, object, or the ValueError of a malformed one) of a file, by its suffix.

    Raises UserError, "`path`: `failure`: ...", where the file as a whole cannot be read.
    """
    read = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(path.suffix)
    if read is None:
        raise UserError(f"{path}: not a .jsonl, .json, .csv or .parquet file")
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")  # opening a pipe would wait for its other end
        yield from read(path)
    except (OSError, ValueError, RecursionError, csv.Error) as e:
        raise UserError(f"{path}: {failure}: {' '.join(str(e).split())}") from None


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    empty_lines: list[int] = []
    with open(path, "rb") as f:  # as bytes: only \n ends a line
        for number, line in enumerate(f, 1):
            if not line.strip():
                empty_lines.append(number)  # malformed, unless they end the file
                continue
            for empty in empty_lines:
                yield empty, EmptyLine("an empty line")
            empty_lines = []
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, json.loads(text, parse_constant=lambda name: None)
            except (ValueError, RecursionError) as e:
                yield number, ValueError(str(e))


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    data = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=lambda name: None)
    if not isinstance(data, list):
        raise ValueError("not a list of objects")
    yield from enumerate(data, 1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_CHARS["solution"])  # a quote that is never closed would swallow the rows behind it
    with open(path, encoding="utf-8-sig", newline="") as f:
        reader = csv.DictReader(f, strict=True)
        start = 2
        for row in reader:
            wrong = None in row or None in row.values()
            yield start, ValueError("more or fewer fields than columns") if wrong else row
            start = reader.line_num + 1


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of flat columns and of lists of answers; no other nested column is read (as `messages`, which repeat a
    row). A text of megabytes may be repeated for a few bytes a row, so sizes are checked in the metadata and again
    while rows are unpacked, few at a time where texts could be long."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile, read_metadata
    except ImportError:
        raise UserError(f"{path}: needs pyarrow: pip install -r requirements-data.txt") from None
    try:
        metadata = read_metadata(path)
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        nested = [leaf.path for leaf in leaves if leaf.path.startswith(("answer.", "final_answer."))]
        read = [i for i, leaf in enumerate(leaves) if leaf.path in nested or leaf.path == leaf.name]
        # (Not the sizes of single columns: pyarrow aborts the process where a damaged file has impossible ones.)
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        _check_size(metadata.num_rows, sum(sizes) + metadata.num_rows * len(read) * CELL_BYTES)
        file = ParquetFile(path, read_dictionary=nested)  # a dictionary holds a text that is repeated once
        num_rows = num_bytes = 0
        batch_size = max(1, min(64, MAX_BYTES // max([1, *sizes])))
        for batch in file.iter_batches(batch_size, columns=[leaves[i].path for i in read]):
            num_bytes += sum(map(_unpacked_bytes, batch.columns))
            _check_size(num_rows + batch.num_rows, num_bytes)
            yield from enumerate(batch.to_pylist(), num_rows + 1)
            num_rows += batch.num_rows
    except pyarrow.ArrowException as e:  # not all of them are ValueErrors
        raise ValueError(str(e)) from None


def _check_size(num_rows: int, num_bytes: int) -> None:
    if num_rows > MAX_ROWS or num_bytes > MAX_BYTES:
        size = f"{num_rows:,} rows and {num_bytes:,} bytes when it is unpacked"
        raise ValueError(f"{size}; at most {MAX_ROWS:,} and {MAX_BYTES:,} are read: split it")


def _unpacked_bytes(array: Any) -> int:
    """What a pyarrow array takes as objects, each text of a dictionary written out."""
    from pyarrow import compute, types

    if types.is_dictionary(array.type):
        lengths = compute.binary_length(array.dictionary)
        return (compute.sum(lengths.take(array.indices)).as_py() or 0) + len(array) * CELL_BYTES
    if types.is_struct(array.type):
        return sum(map(_unpacked_bytes, array.flatten()))
    return _unpacked_bytes(array.flatten()) if types.is_nested(array.type) else array.nbytes + len(array) * CELL_BYTES


def damage(text: str) -> str:
    """What is wrong with a text: control characters where a backslash was, half a surrogate pair; "" for nothing."""
    control = _CONTROL.search(text)
    if control:
        return f"a control character, where a backslash may have been: {text[control.start() :][:12]!a}"
    return "a lone surrogate: no valid text" if re.search("[\ud800-\udfff]", text) else ""


def as_row(raw: Raw, source: str, default_id: str) -> Row:
    """A row of text fields. A number as an answer counts as its text; several answers are joined with commas.

    Raises ValueError, with what is wrong, for fields of a wrong type and text that was damaged on its way.
    """
    texts = {name: "" if raw.get(name) is None else raw[name] for name in ("problem", "solution", "source")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name!r} is not text")
    answer_texts = answers(raw.get("answer"))
    row_id = default_id if raw.get("id") is None else str(raw["id"])
    named_texts = [("problem", texts["problem"]), ("source", texts["source"]), ("id", row_id)]
    for name, text in named_texts + [("answer", text) for text in answer_texts]:
        if damage(text):
            raise ValueError(f"{name!r} has {damage(text)}")
    answer = ", ".join(dict.fromkeys(text.strip() for text in answer_texts if text.strip()))
    row = Row(row_id, source or texts["source"], texts["problem"].strip(), answer, texts["solution"])
    for name, limit in MAX_CHARS.items():
        if len(getattr(row, name)) > limit:
            raise ValueError(f"{name!r} has more than {limit:,} characters")
    return row


def answers(value: Any) -> list[str]:
    """The texts of an answer field: text, a number (142.0 is 142), a list of them, or nothing. Raises ValueError."""
    values = value if isinstance(value, list) else [value]
    for answer in values:
        is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool) and abs(answer) < math.inf
        if answer is not None and not is_number and not isinstance(answer, str):
            raise ValueError("'answer' is neither text nor number")
    return [str(int(a) if isinstance(a, float) and a.is_integer() else a) for a in values if a is not None]


def read_rows(
    paths: list[Path], max_malformed: float, source: str = "", read: Reader = lambda raw: raw
) -> tuple[list[Row], list[Raw]]:
    """The rows of files, and what was malformed {file, line, problem}, which is skipped.

    A row without an id is named by source (or "line") and place: amc-1, amc-2, ... Raises UserError where a file cannot
    be read, or more than the share `max_malformed` of a file's rows of this source are malformed.
    """
    rows, malformed, ids, place = [], [], set(), 0
    for path in paths:
        file_malformed, count = [], 0
        for number, raw in objects(path):
            place += 1
            try:
                if isinstance(raw, ValueError):
                    raise raw
                if not isinstance(raw, dict):
                    raise ValueError("not an object")
                fields = read(raw)
                if fields is None:
                    continue
                row = as_row(fields, source, f"{source or 'line'}-{place}")
                if row.id in ids:
                    raise ValueError(f"the id {row.id!r} came before")
                ids.add(row.id)
                rows.append(row)
            except (KeyError, ValueError) as e:
                problem = f"no {e}" if isinstance(e, KeyError) else str(e)
                file_malformed.append({"file": path.name, "line": number, "problem": problem})
            count += 1
        if len(file_malformed) > max_malformed * count:
            first = f"the first in line {file_malformed[0]['line']}: {file_malformed[0]['problem']}"
            raise UserError(f"{path}: {len(file_malformed)} of {count} rows are malformed, {first}")
        malformed += file_malformed
    return rows, malformed
