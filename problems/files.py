"""Files of objects, whatever they are written in: .jsonl, .json, .csv, .tsv, .parquet, .arrow, any of the texts as .gz,
folders of them, and comma lists.

`data_files` names the files, `objects` reads one of them, an object at a time. Nothing here knows what a row means:
see `rows`.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from configs import UserError, check_regular

MAX_ROWS, MAX_BYTES = 2_000_000, 2**31  # of a compressed file, in which a few bytes may stand for gigabytes
MAX_LINE = 64 << 20  # bytes of a line in one
MAX_CELL = 200_000  # characters of a .csv field: a quote that is never closed would swallow the rows behind it
CELL_BYTES = 64  # what a value of a .parquet file takes as an object, its text aside
TEXTS = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXTS, ".parquet", ".arrow")
NO_DATA = re.compile(r"(dataset_info|dataset_infos|dataset_dict|state|sources|config|report)\.json")
SPLIT = re.compile(r"(?:^|[-_./])(train|test|valid|validation|val|dev)(?=$|[-_./\d])")
Select = Callable[[list[str]], list[str]]  # gives the columns to read of those that a .parquet or .arrow file has


class EmptyLine(ValueError):
    """A line of a .jsonl file without an object, before others that have one."""


def suffix_of(path: Path) -> str:
    """.jsonl of a.jsonl and of a.jsonl.gz; "" of what is no file of objects."""
    suffix = (path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix).lower()
    return suffix if suffix in (TEXTS if path.suffix == ".gz" else SUFFIXES) else ""


def place(path: Path, number: int) -> str:
    """Where an object stands, for a message."""
    return f"{path}:{number}" if suffix_of(path) in (".jsonl", ".csv", ".tsv") else f"{path}: row {number}"


# ----------------------------------------------------------------------------------------------------- names of files


def data_files(spec: str | Path) -> list[Path]:
    """The files of a path, a folder, or a comma list of both. Raises UserError where a folder has none, or several of
    which it is not clear that they belong together."""
    names = [str(spec)] if Path(spec).exists() else [name.strip() for name in str(spec).split(",") if name.strip()]
    paths = [Path(name).expanduser() for name in names]
    return [file for path in paths for file in (_in_folder(path) if path.is_dir() else [path])]


def _in_folder(folder: Path) -> list[Path]:
    files = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if suffix_of(path) and path.is_file() and not hidden and not NO_DATA.fullmatch(path.name):
            files.append(path)
    if not files:
        raise UserError(f"{folder}: no {', '.join(SUFFIXES)} file in this folder")
    splits = {match[1] for path in files for match in SPLIT.finditer(str(path.relative_to(folder)))}
    for kinds, name in ((splits, "splits"), ({suffix_of(path) for path in files}, "formats")):
        if len(kinds) > 1:  # reading all would train on the test, or read every row twice
            remedy = f"name the files of one, with commas between them, as {files[0]}"
            raise UserError(f"{folder}: holds the {name} {', '.join(sorted(kinds))}: {remedy}")
    return files


# ------------------------------------------------------------------------------------------------------------- reading


def objects(
    path: Path, failure: str = "cannot be read", select: Select = lambda columns: columns
) -> Iterator[tuple[int, Any]]:
    """(line or row number, object, or the ValueError of a malformed one) of a file, by its suffix.

    Of a .parquet or .arrow file only the columns that `select` gives are read, and the others are None. Raises
    UserError, "`path`: `failure`: ...", where the file as a whole cannot be read.
    """
    suffix = suffix_of(path)
    if not suffix:
        hub = f" (of the hub? `hf download {path} --repo-type=dataset --local-dir=data/{path.name}`)"
        is_hub_id = not path.exists() and len(path.parts) == 2
        raise UserError(f"{path}: not a {', '.join(SUFFIXES)} file{hub if is_hub_id else ''}")
    try:
        check_regular(path)  # opening a pipe would wait for its other end
        if suffix in (".parquet", ".arrow"):
            yield from (_parquet if suffix == ".parquet" else _arrow)(path, select)
        else:
            with _opened(path) as f:
                yield from {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv}[suffix](f)
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: {failure}: not UTF-8 ({e.reason} at byte {e.start}): save it as UTF-8") from None
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as e:
        raise UserError(f"{path}: {failure}: {' '.join(str(e).split())}") from None


class _Unzipped(io.RawIOBase):
    """What a .gz file holds, and a ValueError beyond MAX_BYTES of it."""

    def __init__(self, path: Path) -> None:
        self.file, self.size = gzip.open(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.size += len(data)
        if self.size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes when it is unpacked: split it")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def _opened(path: Path) -> BinaryIO:
    return io.BufferedReader(_Unzipped(path), 2**16) if path.suffix == ".gz" else open(path, "rb")


def _loads(text: str | bytes) -> Any:
    return json.loads(text, parse_constant=lambda name: None)


def _jsonl(f: BinaryIO) -> Iterator[tuple[int, Any]]:
    empty_lines: list[int] = []
    for number, line in enumerate(iter(lambda: f.readline(MAX_LINE + 1), b""), 1):  # as bytes: only \n ends a line
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE:,} bytes")
        if not line.strip():
            empty_lines.append(number)  # malformed, unless they end the file
            continue
        for empty in empty_lines:
            yield empty, EmptyLine("an empty line")
        empty_lines = []
        try:
            yield number, _loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as e:
            yield number, ValueError(str(e))


def _json(f: BinaryIO) -> Iterator[tuple[int, Any]]:
    data = f.read()
    try:
        value = _loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as e:
        if e.msg != "Extra data":
            raise
        yield from _jsonl(io.BytesIO(data))  # one object a line, under the other name
        return
    yield from enumerate(value if isinstance(value, list) else _of_object(value), 1)


def _of_object(value: Any) -> list[Any]:
    """The rows of a .json file that holds one object: columns, rows under a name, rows by id, or one row."""
    values = list(value.values()) if isinstance(value, dict) else []
    if not values:
        raise ValueError("not a list of objects")
    if isinstance(value.get("rows"), list) and all(isinstance(r, dict) and "row" in r for r in value["rows"]):
        return [entry["row"] for entry in value["rows"]]  # a page of the hub's rows API
    tables = {
        name: rows for name, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }
    if len(tables) > 1 and len(tables) == len(values):
        raise ValueError(f"holds the tables {', '.join(tables)}: write one to a file of its own")
    if all(isinstance(v, list) for v in values) and not tables:
        if len({len(v) for v in values}) > 1:
            raise ValueError(f"columns of different lengths: {', '.join(value)}")
        return [dict(zip(value, row, strict=True)) for row in zip(*values, strict=True)]
    if all(isinstance(v, dict) for v in values):
        if all(key.isdecimal() for v in values for key in v):  # pandas' columns: {column: {index: value}}
            return [{name: column.get(i) for name, column in value.items()} for i in values[0]]
        return [{"id": name, **row} for name, row in value.items()]
    return next(iter(tables.values())) if len(tables) == 1 and "problem" not in value else [value]


def _csv(f: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Between commas, tabs or semicolons, by what the first line has; UTF-16 too, as spreadsheets write it."""
    csv.field_size_limit(MAX_CELL)
    head = f.peek(2**12)
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    first_line = head.decode(encoding, "ignore").partition("\n")[0]
    delimiter = max(",\t;", key=first_line.count)
    with io.TextIOWrapper(f, encoding=encoding, newline="") as text:
        reader = csv.DictReader(text, strict=True, delimiter=delimiter)
        start = 2
        for row in reader:
            wrong = None in row or None in row.values()
            yield start, ValueError("more or fewer fields than columns") if wrong else row
            start = reader.line_num + 1


# ------------------------------------------------------------------------------------------------- parquet and arrow


def _parquet(path: Path, select: Select) -> Iterator[tuple[int, Any]]:
    """A text of megabytes may be repeated for a few bytes a row, so sizes are checked in the metadata and again while
    rows are unpacked, few at a time where texts could be long."""
    pyarrow = _pyarrow(path)
    from pyarrow.parquet import ParquetFile, read_metadata

    try:
        metadata = read_metadata(path)
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        names = list(dict.fromkeys(leaf.path.partition(".")[0] for leaf in leaves))
        wanted = select(names)
        read = [leaf.path for leaf in leaves if leaf.path.partition(".")[0] in wanted]
        nested = [name for name in read if "." in name]
        # (Not the sizes of single columns: pyarrow aborts the process where a damaged file has impossible ones.)
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        _check_size(metadata.num_rows, sum(sizes) + metadata.num_rows * len(read) * CELL_BYTES)
        file = ParquetFile(path, read_dictionary=nested)  # a dictionary holds a text that is repeated once
        others = dict.fromkeys(name for name in names if name not in wanted)
        num_rows = num_bytes = 0
        batch_size = max(1, min(64, MAX_BYTES // max([1, *sizes])))
        for batch in file.iter_batches(batch_size, columns=read):
            num_bytes += sum(map(_unpacked_bytes, batch.columns))
            _check_size(num_rows + batch.num_rows, num_bytes)
            for number, row in enumerate(batch.to_pylist(), num_rows + 1):
                yield number, row | others
            num_rows += batch.num_rows
    except pyarrow.ArrowException as e:  # not all of them are ValueErrors
        raise ValueError(str(e)) from None


def _arrow(path: Path, select: Select) -> Iterator[tuple[int, Any]]:
    """What `datasets` saves to disk: Arrow's stream, uncompressed, read where it lies."""
    pyarrow = _pyarrow(path)
    try:
        num_rows = num_bytes = 0
        with pyarrow.memory_map(str(path)) as memory, pyarrow.ipc.open_stream(memory) as reader:
            wanted = select(reader.schema.names)
            others = dict.fromkeys(name for name in reader.schema.names if name not in wanted)
            for batch in reader:
                batch = batch.select(wanted)
                num_bytes += batch.nbytes + batch.num_rows * len(wanted) * CELL_BYTES
                _check_size(num_rows + batch.num_rows, num_bytes)
                for number, row in enumerate(batch.to_pylist(), num_rows + 1):
                    yield number, row | others
                num_rows += batch.num_rows
    except pyarrow.ArrowException as e:
        raise ValueError(str(e)) from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(f"{path}: needs pyarrow: pip install -r requirements-data.txt") from None
    return pyarrow


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
