"""Our files of completions: checked when they are read, a row at a time, and appended to by several ranks.

A row is {"benchmark", "id", "answer", "opened"?, "completions": [{"text", "tokens"?, "finish_reason"?, "sample"?}]},
where a text begins with what the chat template `opened`. A file may hold a gigabyte of texts. (`formats` reads other
engines' files.)
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from configs import UserError, check_regular
from evaluation.grade import Key, Response
from reward import Problem

RESERVED = ("all", "average")  # what no benchmark may be called: both stand beside benchmarks in results


def is_completion(completion: Any) -> bool:
    if not isinstance(completion, dict) or not isinstance(completion.get("text"), str):
        return False
    numbers = [completion.get("tokens"), completion.get("sample")]
    return all(n is None or (type(n) is int and 0 <= n < 2**53) for n in numbers)


def checked_row(row: Any, has_answer: bool = True) -> dict[str, Any]:
    """The row with benchmark, id and answers as texts. has_answer: else it needs none. Raises ValueError."""
    if not isinstance(row, dict) or not isinstance(row.get("completions"), list):
        raise ValueError("needs benchmark, id, answer and a list of completions")
    answer, names = row.get("answer") if has_answer else "-", [row.get("benchmark"), row.get("id")]
    golds = answer if isinstance(answer, list) else [answer]
    if not golds or not all(type(gold) in (str, int, float) and str(gold).strip() for gold in golds):
        raise ValueError("needs an 'answer': a text, a number, or a list of them")
    if not all(isinstance(name, (str, int)) and str(name).isprintable() for name in names) or names[0] in RESERVED:
        raise ValueError(f"needs 'benchmark' and 'id'; a benchmark cannot be called {', '.join(RESERVED)}")
    if not isinstance(row.get("opened", ""), str):
        raise ValueError("'opened' is no text")
    if not all(is_completion(completion) for completion in row["completions"]):
        raise ValueError("a completion needs a text 'text', and integers for 'tokens' and 'sample' if it has them")
    gold = [str(gold) for gold in golds] if isinstance(answer, list) else str(answer)
    return {**row, "benchmark": str(names[0]), "id": str(names[1]), "answer": gold}


def completion_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The checked rows of a file of completions. Raises UserError."""
    try:
        with open(check_regular(path), "rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    try:
                        yield checked_row(json.loads(line))
                    except (ValueError, RecursionError) as e:
                        raise UserError(f"{path}:{number}: not a row of completions: {e}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None


def read_responses(path: Path, asked: dict[Key, Problem], k: int) -> Iterator[Response]:
    """The first `k` samples of the problems `asked` for, of our own file. Raises UserError, for a problem without
    completions only at the end."""
    samples_read: dict[Key, set[int]] = {key: set() for key in asked}
    for row in completion_rows(path):
        key, opened = (row["benchmark"], row["id"]), row.get("opened", "")
        if key not in asked:
            continue
        if asked[key].answer != row["answer"]:
            raise UserError(f"{path}: {' '.join(key)} stands there with two answers")
        for completion in row["completions"]:
            number = len(samples_read[key]) if completion.get("sample") is None else completion["sample"]
            if number in samples_read[key] or number >= k:
                continue
            samples_read[key].add(number)
            text, reason = completion["text"], completion.get("finish_reason") or "stop"
            opened = opened if text.startswith(opened) else ""
            yield Response(key, asked[key], number, text, completion.get("tokens"), reason, opened)
    check_all_read(path, samples_read)


def check_all_read(path: Path, samples_read: dict[Key, set[int]]) -> None:
    """Raises UserError where a problem has no samples, or there is no problem."""
    for key, numbers in samples_read.items():
        if not numbers:
            raise UserError(f"{path}: {' '.join(key)} has no completions")
    if not samples_read:
        raise UserError(f"{path}: no rows")


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Whole lines, under a lock, since several ranks write to one file. A line that a killed process tore goes
    first."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with open(path, "a+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        f.truncate(end_of_last_line(f))
        f.write(data)
        f.flush()


def end_of_last_line(f: BinaryIO) -> int:
    """The position behind the file's last newline, searched from the end a megabyte at a time."""
    end = f.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**20)
        f.seek(start)
        newline = f.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
