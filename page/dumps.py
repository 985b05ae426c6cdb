"""The rollouts of a run, as much of them as a page can hold.

Of every sample the page has its reward, advantage, length and answer. Of texts there is room for TEXT_BYTES,
compressed, shared equally by up to MAX_WITH_TEXTS of the dumped steps: each takes of all groups the first right and the
first wrong sample, then the others. The page says which samples are left out, and where they are.
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
MAX_WITH_TEXTS = 25  # of these; in fewer steps each has more texts
TEXT_BYTES = 2_500_000  # base64 makes a third more of them
MIN_TEXT_BYTES = 100  # with less than these left, no further text is tried
MAX_STEP = 10**9
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
    chosen = at_equal_distances(sorted(files), MAX_DUMPS)
    with_texts = at_equal_distances(chosen, MAX_WITH_TEXTS)
    budget = TEXT_BYTES // max(1, len(with_texts))
    bar = tqdm(chosen, desc="rollouts", unit=" steps", disable=len(chosen) < 20, leave=False)
    tables = {step: table(files[step], budget if step in with_texts else 0) for step in bar}
    explained = explanations(tables.values(), rule)
    dumps = []
    for step, data in tables.items():
        for sample in data["samples"]:
            if sample["text"] is not None:
                sample["why"] = why(data, sample, explained)
        texts = sum(sample["text"] is not None for sample in data["samples"])
        dumps.append(Dump(step, data, len(data["samples"]), texts))
    return dumps


def at_equal_distances(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, the last one among them."""
    return steps[:: -max(1, math.ceil(len(steps) / most))][::-1]


def dump_files(run_dir: Path) -> dict[int, Path]:
    """The files of dumped steps."""
    numbers = {path: path.stem.removeprefix("step_") for path in (run_dir / "rollouts").glob("step_*.jsonl")}
    return {int(number): path for path, number in numbers.items() if number.isdecimal() and int(number) < MAX_STEP}


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
        if type(row[name]) is not kind:
            raise TypeError(f"{name} is no {kind.__name__}")
    if figure(row["reward"]) is None:
        raise TypeError("reward is no number")
    tokens = row.get("tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in tokens):
        raise TypeError("tokens are no list of [text, log-ratio]")
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
                "advantage": figure(row.get("advantage"), 4),
                "length": row["length"],
                "finish": str(row.get("finish_reason")),
                "mismatch": figure(row.get("mismatch"), 4),
                "answer": cut(row.get("answer")),
                "text": None,
            }
        )
        tokens = [[str(text), figure(d, 4)] for text, d in row["tokens"]] if row.get("tokens") else None
        texts.append((row["response"].encode(errors="replace").decode(), tokens))
    for i in in_order_of_interest(samples):
        if budget < MIN_TEXT_BYTES:
            break
        for text, tokens in (texts[i], (texts[i][0], None)):  # without its tokens, if there is no room for them
            size = len(zlib.compress(json.dumps([text, tokens]).encode(), 6))
            if size <= budget:
                samples[i] |= {"text": text, "tokens": tokens}
                budget -= size
                break
    names = [{"id": id, "prompt": prompt, "gold": gold} for (id, prompt), gold in zip(problems, golds, strict=True)]
    return {"file": f"rollouts/{path.name}", "problems": names, "samples": samples}


def in_order_of_interest(samples: list[dict[str, Any]]) -> list[int]:
    """Places of the samples: of each problem the first right and the first wrong one, then all others."""
    first = {}
    for i, sample in enumerate(samples):
        first.setdefault((sample["problem"], sample["reward"] >= 1), i)
    chosen = set(first.values())
    return [*first.values(), *(i for i in range(len(samples)) if i not in chosen)]


def figure(value: Any, digits: int = 6) -> float | None:
    """A number with few digits, or None for what is none."""
    if type(value) not in (int, float) or not abs(value) < 1e15:  # nan is not
        return None
    return float(f"{value:.{digits}g}")


def cut(answer: Any) -> str | None:
    if not isinstance(answer, str):
        return None
    return answer if len(answer) <= MAX_CHARS else answer[:MAX_CHARS] + " ..."


def golds_of(data: dict[str, Any], sample: dict[str, Any]) -> list[str]:
    gold = data["problems"][sample["problem"]]["gold"]
    return [gold] if isinstance(gold, str) else gold


def why(data: dict[str, Any], sample: dict[str, Any], explained: dict[tuple[str, str], str]) -> str | None:
    """What the grader says of an answer: of several golds, of one that equals it, else of the first."""
    said = [explained[pair] for gold in golds_of(data, sample) if (pair := (sample["answer"], gold)) in explained]
    equal = [text for text in said if text.endswith("verdict equal")]
    if equal and sample["reward"] < 1:  # the answer is right, and yet
        return equal[0] + "\nno reward: the response as a whole is not what the reward function takes (think, length)"
    return next(iter(equal or said), None)


def explanations(tables: Any, rule: str) -> dict[tuple[str, str], str]:
    """{(answer, gold): what `reward.py --explain` says}, for the samples with a text.

    Answers are hostile: a process of its own reads them, and where it ends or takes too long the rest stay without.
    """
    pairs: dict[tuple[str, str], None] = {}
    for data in tables:
        for sample in (s for s in data["samples"] if s["text"] is not None and s["answer"] is not None):
            for gold in golds_of(data, sample):
                is_cut = max(len(sample["answer"]), len(gold)) > MAX_CHARS
                if len(pairs) < MAX_EXPLAINED and not is_cut:
                    pairs[sample["answer"], gold] = None
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
