"""The outcome reward: 1.0 for a well-formed response whose boxed answer is right, else 0.0 (DeepScaleR's scheme).

    python reward.py --explain "<answer>" "<gold>"      # how both are read, what is compared, and the verdict

`reward_fn` is what training and evaluation call, in worker processes that can be killed (`grader/pool.py` starts this
file with `--worker`). Change it for another reward. The rest are pure functions of text; `grader/` holds the
mathematics. Nothing here imports torch: a worker starts in a tenth of a second.
"""

import re
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

if sys.platform == "win32":  # one line that says what to do, before the pool's import of `resource` fails
    import configs  # noqa: F401  (elsewhere reward.py and grader/ stand alone)

from grader import answers, deepscaler, values
from grader.pool import work
from grader.text import MAX_CHARS

# The setting `reward`: when an answer counts as right, of (answer, gold). Any of them may raise, on any text.
RULES: dict[str, Callable[[str, str], bool]] = {
    "exact": answers.equal,  # mathematically equal
    "strict": deepscaler.strict,  # the same text, once it is normalized
    "deepscaler": deepscaler.deepscaler,  # that, or what sympy finds equal: the rule of DeepScaleR's code
}


@dataclass(frozen=True)
class Problem:
    """A row of a problem file."""

    id: str
    problem: str  # the question
    answer: str | list[str]  # the gold answer; any entry of a list is accepted
    rule: str = "exact"  # when an answer equals the gold, one of RULES; a worker sets that of its pool


def reward_fn(problem: Problem, response_text: str) -> float:
    """The reward of one response. To train on something else (unit tests, a length penalty), change this function.

    Training and validation call it alike. Metrics and evaluation call a response right if its reward is at least 1.0,
    and show what `extract_answer` finds.

    `response_text` is a response as `graded_text` gives it: by default from what the chat template opened
    (`<think>\\n`) on. It is hostile: nothing in it may be run outside a sandbox. The same arguments must give the same
    number on every machine, or runs cannot be repeated. Where this takes longer than `reward_timeout` seconds, runs out
    of memory or raises, its worker is replaced, and the response gets 0 and is counted.
    """
    return reward(response_text, problem.answer, problem.rule)


def reward(response: str, gold: str | list[str], rule: str = "exact") -> float:
    """1.0 where the answer in `response` equals the gold (of several golds, any one) by a rule of RULES, else 0.0."""
    answer = extract_answer(response)
    if answer is None:
        return 0.0
    golds = [gold] if isinstance(gold, str) else gold
    if any(grade(answer, g, rule) for g in golds):
        return 1.0
    together = boxes_of_last_line(response) if rule == "exact" else []  # a list that is spread over several boxes
    return float(len(together) > 1 and any(grade(", ".join(together), g) for g in golds))


def graded_text(opened: str, response: str, finish_reason: str, think: str) -> str:
    """The text that `reward_fn` and `extract_answer` read, of what the chat template opened and what the model wrote.

    `think` is the setting. "required": both together, unchanged. "optional": what stands behind `</think>` counts;
    where there is none, all that the model wrote, if it ended by itself, and nothing if it was cut off. The text then
    gets the tags that say so. (One that only mentions both tags counts from the mention on; its box stands at the end.)
    """
    text = opened + response
    if think == "required" or after_thinking(text):
        return text
    if "</think>" in text:  # opened out of sight, or not at all
        return "<think>" + text
    return text if finish_reason == "length" else "<think></think>" + response


def extract_answer(response: str) -> str | None:
    """The content of the last \\boxed{...} after the thinking, or None.

    The thinking ends at the first `</think>` after the first `<think>`; without both there is no answer.
    """
    return last_boxed(after_thinking(response))


def after_thinking(response: str) -> str:
    start = response.find("<think>")
    end = response.find("</think>", start) if start >= 0 else -1
    return response[end:] if end >= 0 else ""


SENTENCE = re.compile(r"[A-Z][a-z]*\s+[a-z].*\b(?:is|are|equals?)\s*(?:\$|\\\()([^$]+?)(?:\$|\\\))\s*\.?\s*", re.DOTALL)


def gold_answer(gold: str) -> str:
    """What a gold that is a sentence answers: its box, or the formula that it ends with after `is`."""
    if "\\boxed" in gold:
        return last_boxed(gold) or gold
    match = SENTENCE.fullmatch(gold) if gold.endswith((".", ")", "$")) else None
    return match[1] if match else gold


def gold_problem(gold: str) -> str | None:
    """Why no response can earn a reward with this gold by the exact rule, unless it repeats its text; else None."""
    if gold.strip(" +-").lower() in ("nan", "null", "inf", "infinity"):
        return "what a program writes in place of an answer"
    return answers.refusal(gold_answer(gold))


MAX_BOX = 100_000  # characters, far more than the grader reads
BOX = re.compile(r"\\boxed\s*(?:\{|(-?\d[\d,./]*(?<=\d)|[A-Za-z](?![A-Za-z])))")  # \boxed{...}, \boxed 5
BETWEEN_BOXES = re.compile(
    r"(?:\s|[$,;]|\\[()\[\],;!]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b|[a-zA-Z]\w? *=)*"
)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, or None; if that one is unclosed or empty, no earlier one counts."""
    openings = deque(BOX.finditer(text), maxlen=1)
    return box_content(text, openings[0])[0] if openings else None


def box_content(text: str, opening: re.Match) -> tuple[str | None, int]:
    """What a box holds and where it ends; None where it is empty or unclosed."""
    if opening[1]:
        return opening[1], opening.end()
    begin, depth = opening.end(), 1
    marks = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} do not count, as in TeX
    for mark in marks.finditer(text, begin, begin + MAX_BOX):
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            return text[begin : mark.start()].strip() or None, mark.end()
    return None, len(text)


def boxes_of_last_line(response: str) -> list[str]:
    """The contents of the boxes that end a response in one line with nothing but commas, `and`, `or` or `x =` between
    them: \\boxed{-2} and \\boxed{1} are the list -2, 1.
    """
    text = after_thinking(response)[-2 * MAX_CHARS :]
    contents: list[str] = []
    end = None
    for opening in BOX.finditer(text):
        if end is not None and opening.start() < end:  # a box within a box
            continue
        between = "\n" if end is None else text[end : opening.start()]
        content, end = box_content(text, opening)
        if content is None:
            return []
        contents = [*contents, content] if "\n" not in between and BETWEEN_BOXES.fullmatch(between) else [content]
    return contents


def grade(answer: str, gold: str, rule: str = "exact") -> bool:
    """Whether two final answers are equal by a rule of RULES. Any text may be given; False if it cannot be told.

    The exact rule: units and labels (`x =`) may be absent, lists come in any order, tuples and intervals do not. Not
    symmetric: a gold may be rounded or name its base. Raises nothing but MemoryError.
    """
    return max(len(answer), len(gold)) <= MAX_CHARS and _grade(answer, gold, rule)


@lru_cache(maxsize=4096)  # samples of one problem often give the same answer
def _grade(answer: str, gold: str, rule: str) -> bool:
    equal = RULES[rule]
    try:
        return equal(answer, gold_answer(gold))
    except MemoryError:  # says something about this process, not about the answer
        raise
    except Exception:  # untrusted text: outside the grammar, over a bound, or undefined
        return False


def work_by(rule: str, parent: int, memory_mb: int, cpu_seconds: float) -> None:
    """A worker's whole life, see `grader.pool.work`."""

    def warm_up() -> None:
        if rule == "exact":
            values.mpmath_at(values.PRECISION)  # the import of mpmath
        elif rule == "deepscaler":
            import_module("sympy")  # half a second: no answer is to pay for it, nor the workers of another rule

    functions = {
        "reward": lambda fields, text: reward_fn(Problem(*fields, rule), text),
        "grade": lambda answer, gold: grade(answer, gold, rule),
    }
    work(functions, warm_up, parent, memory_mb, cpu_seconds)


def main(argv: list[str]) -> None:
    if len(argv) == 5 and argv[0] == "--worker":
        work_by(argv[4], parent=int(argv[1]), memory_mb=int(argv[2]), cpu_seconds=float(argv[3]))
    elif len(argv) == 3 and argv[0] == "--explain":
        print(answers.explain(argv[1], gold_answer(argv[2])))
    elif {"-h", "--help"} & set(argv):  # behind --explain, -h is an answer
        import_module("configs").show_help(__doc__)
    else:
        print('usage: python reward.py --explain "<answer>" "<gold>"', file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
