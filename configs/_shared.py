"""What every command of the project shares: refusals in one line, flags and --help from a dataclass, files written
whole, tables.

Import it from `configs`. (The other files of this folder are the configs themselves.)
"""

import ast
import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import stat
import sys
import textwrap
import tokenize
from collections.abc import Callable, Collection
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

if sys.platform == "win32":  # at import, and every script imports this first: `fcntl` and `resource` are not there
    print("Windows: run this in WSL (`wsl --install`, then the same commands in its Linux)", file=sys.stderr)
    sys.exit(2)


class UserError(Exception):
    """Bad input (config, file, checkpoint, data, model folder): one line for the user, exit status 2."""


class Preempted(BaseException):
    """A scheduler wants the machine back and the run can be resumed: one line, exit status PREEMPTED_STATUS."""


PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later

# ---------------------------------------------------------------------------------------------------------------- flags


def checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as the field's type; an int serves as a float, a scalar or list as a tuple. Raises UserError."""
    if get_origin(kind) is UnionType:  # of one value and a tuple of such
        kind = get_args(kind)[isinstance(value, (tuple, list))]
    if get_origin(kind) is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return value
        raise UserError(f"{name}: {value!r} is not one of {', '.join(get_args(kind))}")
    if get_origin(kind) is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(checked(name, get_args(kind)[0], v) for v in items)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # nan is not
        return float(value)
    if type(value) is not kind or kind is float:
        raise UserError(f"{name}: {value!r} is not a {kind.__name__}")
    return value


def dataset_name(path: str) -> str:
    """What a problem file or folder is called in results: its stem, or of a shard (train-00000-of-00001.parquet) the
    name of the data set's folder."""
    stem = re.sub(r"\.(jsonl|json|csv|tsv|parquet|arrow)(\.gz)?$", "", Path(path).name)
    folders = [part for part in Path(path).parts[:-1] if part.strip("./") and part not in ("data", "main", "default")]
    return folders[-1] if folders and re.search(r"-\d{5}-of-\d{5}$", stem) else stem


def is_path(text: str) -> bool:
    """Whether a file system could have it."""
    parts = os.fsencode(text).split(b"/")
    return 0 < len(text) <= 4000 and "\0" not in text and max(map(len, parts)) <= 250


def parse_flag(name: str, kind: Any, text: str) -> Any:
    """The value of `--name=text`; tuples are comma separated. Raises UserError."""
    if get_origin(kind) is UnionType:  # a text with commas may be one value
        kind = get_args(kind)["," in text and get_args(kind)[0] is not str]
    if get_origin(kind) is tuple:
        return tuple(parse_flag(name, get_args(kind)[0], part) for part in text.split(",") if part)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name}: {text!r} is not true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise UserError(f"{name}: {text!r} is not {'an int' if kind is int else 'a float'}") from None
    return os.path.expanduser(text) if text.startswith("~/") else text  # the shell does so only where a word begins


def parse_flags(argv: list[str], options: type) -> tuple[dict[str, Any], list[str]]:
    """({field: value} of every `--name=value` that names a field of the dataclass `options`, all other arguments).

    `--name value` is read too. Raises UserError for a field's flag without a value or with one that cannot be read as
    the field's type.
    """
    types = {field.name: field.type for field in dataclasses.fields(options)}
    values: dict[str, Any] = {}
    others, remaining = [], list(argv)
    while remaining:
        argument = remaining.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in types:
            others.append(argument)
            continue
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"--{name}: write --{name}=VALUE")
            text = remaining.pop(0)
        values[name] = parse_flag(f"--{name}", types[name], text)
    return values, others


# ----------------------------------------------------------------------------------------------------------------- help

HELP = {"-h", "--help"}  # anywhere among the arguments it wins: nothing is run or written
HEADING = re.compile(r"[a-z]+( [a-z]+){0,3}")  # a line of comment that is nothing but this begins a section


def field_comments(options: type) -> dict[str, tuple[list[str], str]]:
    """{field: (headings above it, its comment)} in the source of a dataclass; a comment stands above a field, or behind
    it."""
    source = textwrap.dedent(inspect.getsource(options))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.removeprefix("#").strip() for t in tokens if t.type == tokenize.COMMENT}
    fields = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            lines = {line: comments.pop(line) for line in list(comments) if line <= node.end_lineno}
            headings = {n: text for n, text in lines.items() if n < node.lineno and HEADING.fullmatch(text)}
            comment = " ".join(text for n, text in lines.items() if n not in headings)
            fields[node.target.id] = list(headings.values()), comment
    return fields


def kind_text(kind: Any) -> str:
    """A field's type as `--help` has it: `a|b` for choices, `int,...` for a tuple."""
    if get_origin(kind) is UnionType:
        return kind_text(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return f"{kind_text(get_args(kind)[0])},..."
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else "true|false" if kind is bool else kind.__name__


def value_text(value: Any) -> str:
    """A value as it is written behind `--name=`."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"' if " " in text else text


def show_help(doc: str, settings: Any = None, names: Collection[str] | None = None) -> None:
    """Print a script's docstring and then the fields of a dataclass object, all or those of `names`, its values as the
    defaults."""
    width = min(shutil.get_terminal_size().columns, 120)
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    text = []
    for block in doc.strip().split("\n\n"):
        lines, wrap.subsequent_indent = [" ".join(block.split())], ""
        if block.startswith(" "):  # commands, a line each; a comment that finds no room goes below
            lines = [re.sub(" +# ", "\n        # ", line) if len(line) > width else line for line in block.split("\n")]
            lines, wrap.subsequent_indent = "\n".join(lines).split("\n"), " " * 8
        text += [*map(wrap.fill, lines), ""]
    if settings is not None:
        text.append("settings: --name=default, its type, its meaning")
        column, comments = 34 if width > 90 else 28, field_comments(type(settings))
        wrap.subsequent_indent = " " * column
        for field in dataclasses.fields(settings):
            headings, comment = comments[field.name]
            text += [f"\n{heading}" for heading in headings]
            if names is None or field.name in names:
                flag = f"  --{field.name}={value_text(getattr(settings, field.name))}"
                meaning = f"({kind_text(field.type)}) {comment}".rstrip()
                text += [wrap.fill(flag)] if len(flag) >= column else []
                text.append(wrap.fill(("" if len(flag) >= column else flag).ljust(column) + meaning))
    print("\n".join(text).rstrip())  # at once: `| head` may close the pipe behind it


# ------------------------------------------------------------------------------------------------ files and exit status


def check_regular(path: Path) -> Path:
    """The path itself. Raises OSError where it is missing, or a pipe or device, which might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file", str(path))
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, or ValueError (too deep nesting is one)."""
    try:
        return json.loads(check_regular(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def flush(path: Path) -> None:
    """Have a file or the entries of a folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and rename it: whoever reads `path` finds its old content or its new one, never a part, also
    after a power cut."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    flush(aside)
    aside.rename(path)
    flush(path.parent)  # the new name


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned as text too: the first column to the left, all others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def lost_rank(e: BaseException) -> bool:
    """Is this what a rank raises when another is gone or silent? (Of gloo a bare RuntimeError, told by its text; before
    all have met, an error of torch's store.)"""
    if type(e).__name__ in ("DistStoreError", "DistNetworkError"):  # of torch, which is not imported here
        return True
    signs = ("Connection closed", "Connection reset", "Broken pipe", "Timed out")
    return isinstance(e, RuntimeError) and "/gloo/" in str(e) and any(sign in str(e) for sign in signs)


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main(argv)`; bad input prints its one line and ends with status 2, Ctrl-C with 130, a lost rank with 1, a
    preempted run with 75, one that had to stop with 1."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    status, message = 0, ""
    try:
        main(sys.argv[1:])
    except UserError as e:
        status, message = 2, f"error: {e}"
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except SystemExit as e:  # a run that must stop says why
        status, message = (1, e.code) if isinstance(e.code, str) else (e.code or 0, "")
    except Preempted as e:
        status, message = PREEMPTED_STATUS, f"preempted: {e}"
    except RuntimeError as e:
        if not lost_rank(e):
            raise
        message = "error: lost contact with another rank; its own last words say why. Start again with --resume=true."
        status, message = 1, f"{message} ({str(e).splitlines()[0][:300]})"
    if message:
        rank = "" if alone else f"[rank {os.environ.get('RANK', '0')}] "
        print(f"{rank}{message}", file=sys.stderr, flush=True)
    if not alone:
        # With several ranks about one in a hundred processes aborts while C++ takes gloo's threads down, after Python
        # has ended ("terminate called without an active exception"): leave without that.
        sys.stdout.flush()
        os._exit(status)
    if status:
        sys.exit(status)
