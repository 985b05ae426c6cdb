"""The outcome reward: 1.0 for a well-formed response whose boxed answer is right, else 0.0 (DeepScaleR's rule).

    python reward.py --explain "<answer>" "<gold>"      # how both are read, what is compared, and the verdict

`reward_fn` is what training and evaluation call, in worker processes that can be killed (`grader/pool.py` starts this
file with `--worker`). Change it for another reward. The rest are pure functions of text; `grader/` holds the
mathematics. Nothing here imports torch: a worker starts in a tenth of a second.
"""

import re
import sys
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

from grader import compare
from grader.pool import work
from grader.text import MAX_CHARS
from grader.values import warm_up


@dataclass(frozen=True)
class Problem:
    """A row of a problem file."""

    id: str
    problem: str  # the question
    answer: str | list[str]  # the gold answer; any entry of a list is accepted


def reward_fn(problem: Problem, response_text: str) -> float:
    """The reward of one response. To train on something else (unit tests, a length penalty), change this function.

    Training and validation call it alike. Metrics and evaluation call a response right if its reward is at least 1.0,
    and show what `extract_answer` finds.

    `response_text` begins with what the chat template opened (`<think>\\n`) and is hostile: nothing in it may be run
    outside a sandbox. The same arguments must give the same number on every machine, or runs cannot be repeated. Where
    this takes longer than `reward_timeout` seconds, runs out of memory or raises, its worker is replaced, and the
    response gets 0 and is counted.
    """
    return reward(response_text, problem.answer)


def reward(response: str, gold: str | list[str]) -> float:
    """1.0 where the answer in `response` equals the gold (of several golds, any one), else 0.0."""
    answer = extract_answer(response)
    golds = [gold] if isinstance(gold, str) else gold
    return float(answer is not None and any(grade(answer, g) for g in golds))


def extract_answer(response: str) -> str | None:
    """The content of the last \\boxed{...} after the thinking, or None.

    The thinking ends at the first `</think>` after the first `<think>`; without both there is no answer.
    """
    start = response.find("<think>")
    end = response.find("</think>", start) if start >= 0 else -1
    return last_boxed(response[end:]) if end >= 0 else None


def gold_problem(gold: str) -> str | None:
    """Why no response can earn a reward with this gold, unless it repeats its text; None where one can."""
    if gold.strip(" +-").lower() in ("nan", "null", "inf", "infinity"):
        return "what a program writes in place of an answer"
    return compare.refusal(gold)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, or None; if that one is unclosed or empty, no earlier one counts."""
    openings = deque(re.finditer(r"\\boxed\s*\{", text), maxlen=1)  # the last one
    if not openings:
        return None
    begin, depth = openings[0].end(), 1
    for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin):  # \{ and \} do not count, as in TeX
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            return text[begin : mark.start()].strip() or None
    return None


def grade(answer: str, gold: str) -> bool:
    """Whether two final answers are mathematically equal. Any text may be given; False if it cannot be told.

    Exact equality; units and labels (`x =`) may be absent, lists come in any order, tuples and intervals do not.
    Symmetric, except for a gold that is rounded (`compare.agrees_with_rounded`). Raises nothing but MemoryError.
    """
    return max(len(answer), len(gold)) <= MAX_CHARS and _grade(answer, gold)


@lru_cache(maxsize=4096)  # samples of one problem often give the same answer
def _grade(answer: str, gold: str) -> bool:
    try:
        return compare.equal(answer, gold)
    except MemoryError:  # says something about this process, not about the answer
        raise
    except Exception:  # untrusted text: outside the grammar, over a bound, or undefined
        return False


def main(argv: list[str]) -> None:
    if len(argv) == 4 and argv[0] == "--worker":
        functions = {"reward": lambda fields, text: reward_fn(Problem(*fields), text), "grade": grade}
        work(functions, warm_up, parent=int(argv[1]), memory_mb=int(argv[2]), cpu_seconds=float(argv[3]))
    elif len(argv) == 3 and argv[0] == "--explain":
        print(compare.explain(argv[1], argv[2]))
    else:
        print('usage: python reward.py --explain "<answer>" "<gold>"', file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
