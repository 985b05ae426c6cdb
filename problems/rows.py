"""Files of objects, as rows {id, source, problem, answer, solution}: .jsonl, .json, .csv and .parquet.

What cannot be read, or was damaged on its way, is named with file and line, skipped and counted.
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

# No text has these; what looks like a tab or a line end was the \t of \times, the \r of \right, the \n of \neq.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\t(?=imes|ext\s*\{|ext(?:bf|it|rm)|heta|riangle|binom|frac\s*[\d{])"
    r"|\r(?=ight|angle|ho\b|floor|ceil)|\n(?=eq\b|abla|otin)"
)
MAX_CHARS = {"problem": 20_000, "answer": 1_000, "solution": 200_000}  # the longest here have 5,154, 204 and 12,402
Raw = dict[str, Any]
Reader = Callable[[Raw], Raw | None]


@dataclass(frozen=True)
class Row:
    id: str
    source: str
    problem: str
    answer: str  # "" where there is none
    solution: str


def objects(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number, object, or the ValueError of a malformed one) of a file, by its suffix.

    Raises UserError where the file as a whole cannot be read.
    """
    read = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(path.suffix)
    if read is None:
        raise UserError(f"{path}: not a .jsonl, .json, .csv or .parquet file")
    try:
        yield from read(path)
    except (OSError, ValueError, RecursionError, csv.Error) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    blank: list[int] = []
    with open(path, "rb") as f:  # as bytes: only \n ends a line
        for number, line in enumerate(f, 1):
            if not line.strip():
                blank.append(number)  # malformed, unless they end the file
                continue
            yield from ((n, ValueError("an empty line")) for n in blank)
            blank = []
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
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: needs pyarrow: pip install -r requirements-data.txt") from None
    file, number = ParquetFile(path), 0
    columns = [name for name in file.schema_arrow.names if name != "messages"]  # NuminaMath's second copy of each row
    for batch in file.iter_batches(1024, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def damage(text: str) -> str:
    """What is wrong with a text: control characters where a backslash was, half a surrogate pair; "" for nothing."""
    if m := _CONTROL.search(text):
        return f"a control character, where a backslash may have been: {text[m.start() : m.start() + 12]!a}"
    return "a lone surrogate: no valid text" if re.search("[\ud800-\udfff]", text) else ""


def as_row(raw: Any, source: str, name: str) -> Row:
    """A row of text fields. A number as an answer counts as its text; several answers are joined with commas.

    Raises ValueError, with what is wrong, for fields of a wrong type and text that was damaged on its way.
    """
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    texts = {k: "" if raw.get(k) is None else raw[k] for k in ("problem", "solution", "source")}
    wrong = next((k for k, value in texts.items() if not isinstance(value, str)), None)
    if wrong:
        raise ValueError(f"{wrong!r} is not text")
    found = answers(raw.get("answer"))
    name = name if raw.get("id") is None else str(raw["id"])
    for key, text in (("problem", texts["problem"]), ("source", texts["source"]), ("id", name),
                      *(("answer", a) for a in found)):  # fmt: skip
        if problem := damage(text):
            raise ValueError(f"{key!r} has {problem}")
    row = Row(name, source or texts["source"], texts["problem"].strip(),
              ", ".join(dict.fromkeys(a.strip() for a in found if a.strip())), texts["solution"])  # fmt: skip
    for key, most in MAX_CHARS.items():
        if len(getattr(row, key)) > most:
            raise ValueError(f"{key!r} has more than {most:,} characters")
    return row


def answers(value: Any) -> list[str]:
    """The texts of an answer field: text, a number (142.0 is 142), a list of them, or nothing. Raises ValueError."""
    values = [a for a in (value if isinstance(value, list) else [value]) if a is not None]
    for a in values:
        if (
            not isinstance(a, (str, int, float))
            or isinstance(a, bool)
            or (isinstance(a, float) and not math.isfinite(a))
        ):
            raise ValueError("'answer' is neither text nor number")
    return [str(int(a) if isinstance(a, float) and a.is_integer() else a) for a in values]


def read_rows(paths: list[Path], max_bad: float, source: str = "", name: str = "line",
              read: Reader = lambda raw: raw) -> tuple[list[Row], list[Raw]]:  # fmt: skip
    """The rows of files, and what was malformed {file, line, problem}, which is skipped. `read` brings a raw object to
    the fields {problem, answer, solution}, or to None where it is not of this source. A row without an id is named by
    its place: `name`-1, `name`-2, ...

    Raises UserError where a file cannot be read, or more than `max_bad` of a file's rows of this source are malformed.
    """
    rows, malformed, seen, place = [], [], set(), 0
    for path in paths:
        bad, count = [], 0
        for number, raw in objects(path):
            place += 1
            try:
                if isinstance(raw, ValueError) or not isinstance(raw, dict):
                    raise raw if isinstance(raw, ValueError) else ValueError("not an object")
                if (fields := read(raw)) is None:
                    continue
                row = as_row(fields, source, f"{name}-{place}")
                if row.id in seen:
                    raise ValueError(f"the id {row.id!r} came before")
                seen.add(row.id)
                rows.append(row)
            except (KeyError, ValueError) as e:
                problem = f"no {e}" if isinstance(e, KeyError) else str(e)
                bad.append({"file": path.name, "line": number, "problem": problem})
            count += 1
        if len(bad) > max_bad * count:
            raise UserError(f"{path}: {len(bad)} of {count} rows are malformed, the first in line {bad[0]['line']}: "
                            f"{bad[0]['problem']}")  # fmt: skip
        malformed += bad
    return rows, malformed
