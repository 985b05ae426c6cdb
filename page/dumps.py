"""The rollouts of a run, as much of them as a page can hold.

Of every sample the page has its reward, advantage, length and answer. Of texts there is room for TEXT_BYTES,
compressed, shared equally by the dumped steps: each takes of all groups the first right and the first wrong sample,
then the others. The page says which samples are left out, and where they are.
"""

import json
import math
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs import UserError

MAX_DUMPS = 100  # steps in the page; of more, so many at equal distances, the last one among them
TEXT_BYTES = 2_500_000  # base64 makes a third more of them
MAX_EXPLAINED = 20_000  # different pairs of answer and gold
EXPLAIN_SECONDS = 120.0  # for all of them
MAX_CHARS = 2_000  # of an answer or a gold in a list; texts have no limit


@dataclass(frozen=True)
class Dump:
    """What the page has of a step's rollouts."""

    step: int
    data: dict[str, Any]
    num_samples: int
    num_texts: int


def read_dumps(run_dir: Path, rule: str) -> list[Dump]:
    """All dumps of a run in the order of their steps, read one at a time. Raises UserError."""
    files = dump_files(run_dir)
    chosen = sorted(files)[:: -max(1, math.ceil(len(files) / MAX_DUMPS))][::-1]
    budget = TEXT_BYTES // max(1, len(chosen))
    bar = tqdm(chosen, desc="rollouts", unit=" steps", disable=len(chosen) < 20, leave=False)
    tables = {step: table(files[step], budget) for step in bar}
    explained = explanations(tables.values(), rule)
    dumps = []
    for step, data in tables.items():
        for sample in data["samples"]:
            if sample["text"] is not None:
                sample["why"] = explained.get((sample["answer"], gold_text(data, sample)))
        texts = sum(sample["text"] is not None for sample in data["samples"])
        dumps.append(Dump(step, data, len(data["samples"]), texts))
    return dumps


def dump_files(run_dir: Path) -> dict[int, Path]:
    """The files of dumped steps."""
    numbers = {path: path.stem.removeprefix("step_") for path in (run_dir / "rollouts").glob("step_*.jsonl")}
    return {int(number): path for path, number in numbers.items() if number.isdecimal() and number.isascii()}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a dump, without a last line that a crash has torn. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                try:
                    yield checked(json.loads(line))
                except (ValueError, KeyError, TypeError, RecursionError) as e:
                    if line.endswith("\n"):
                        raise UserError(f"{path}:{number}: not a row of rollouts: {e}; move the file away") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None


def checked(row: Any) -> dict[str, Any]:
    """The row, if it has what every dump has. Raises KeyError, TypeError."""
    for name, kind in (("id", str), ("prompt", str), ("response", str), ("sample_id", int), ("length", int)):
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    if rounded(row["reward"]) is None:
        raise TypeError("reward is no number")
    return row


def table(path: Path, budget: int) -> dict[str, Any]:
    """{problems, samples} of a dump; samples name their problem by its place, and have a text while `budget` bytes
    last."""
    problems: dict[tuple[str, str], int] = {}
    golds, samples, texts = [], [], []
    for row in rows_of(path):
        place = problems.setdefault((row["id"], row["prompt"]), len(problems))
        if place == len(golds):
            gold = row.get("gold")
            golds.append([cut(str(g)) for g in gold[:20]] if isinstance(gold, list) else cut(str(gold)))
        samples.append(
            {
                "problem": place,
                "sample": row["sample_id"],
                "reward": row["reward"],
                "advantage": rounded(row.get("advantage")),
                "length": row["length"],
                "finish": str(row.get("finish_reason")),
                "mismatch": rounded(row.get("mismatch")),
                "answer": cut(row.get("answer")),
                "text": None,
            }
        )
        tokens = [[str(text), rounded(d)] for text, d in row["tokens"]] if row.get("tokens") else None
        texts.append((row["response"].encode(errors="replace").decode(), tokens))
    for i in in_order_of_interest(samples):
        budget -= len(zlib.compress(json.dumps(texts[i]).encode(), 6))
        if budget < 0:
            break
        samples[i]["text"], samples[i]["tokens"] = texts[i]
    names = [{"id": id, "prompt": prompt, "gold": gold} for (id, prompt), gold in zip(problems, golds, strict=True)]
    return {"file": f"rollouts/{path.name}", "problems": names, "samples": samples}


def in_order_of_interest(samples: list[dict[str, Any]]) -> list[int]:
    """Places of the samples: of each problem the first right and the first wrong one, then all others."""
    first = {}
    for i, sample in enumerate(samples):
        first.setdefault((sample["problem"], sample["reward"] >= 1), i)
    chosen = set(first.values())
    return [*first.values(), *(i for i in range(len(samples)) if i not in chosen)]


def rounded(value: Any) -> float | None:
    return float(f"{value:.4g}") if type(value) in (int, float) and abs(value) < 1e15 else None


def cut(answer: Any) -> str | None:
    if not isinstance(answer, str):
        return None
    return answer if len(answer) <= MAX_CHARS else answer[:MAX_CHARS] + " ..."


def gold_text(data: dict[str, Any], sample: dict[str, Any]) -> str:
    """The gold of a sample; of several, the first."""
    gold = data["problems"][sample["problem"]]["gold"]
    return gold if isinstance(gold, str) else gold[0] if gold else ""


def explanations(tables: Any, rule: str) -> dict[tuple[str, str], str]:
    """{(answer, gold): what `reward.py --explain` says}, for the samples with a text.

    Answers are hostile: a process of its own reads them, and where it ends or takes too long the rest stay without.
    """
    pairs: dict[tuple[str, str], None] = {}
    for data in tables:
        for sample in data["samples"]:
            if sample["text"] is not None and sample["answer"] is not None and len(pairs) < MAX_EXPLAINED:
                pairs[sample["answer"], gold_text(data, sample)] = None
    if rule != "exact" or not pairs:  # the other rules compare texts, and have nothing to explain
        return {}
    command, root = [sys.executable, "-m", "page.explain"], Path(__file__).parents[1]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    try:
        done = subprocess.run(command, cwd=root, input=lines, capture_output=True, text=True, timeout=EXPLAIN_SECONDS)
        output = done.stdout
    except subprocess.TimeoutExpired as e:
        output = (e.stdout or b"").decode(errors="replace")
    said = [json.loads(line) for line in output.split("\n")[:-1]]
    return dict(zip(pairs, said, strict=False))
