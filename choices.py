"""Multiple choice made open: AMC problems as the AoPS wiki and its copies write them.

`$\\textbf{(A)}\\ 10 \\qquad \\textbf{(B)}\\ 12 ...$` goes from the problem, and what the right letter stands for
becomes the answer. A problem that cannot be asked without its choices is refused.
"""

import re
from collections import deque

from reward import grade, last_boxed

_STYLE = r"\\(?:textbf|mathbf|textrm|mathrm|text|rm|bf|mbox|bold)"
_SPACE = r"(?:\s|~|\\[ ,;:!]|\\q?quad(?![a-z]))*"
_LETTER = rf"{_SPACE}([A-E]){_SPACE}"
# (A) in every dress: \textbf{(A)}\ , \textbf{(A) }, (\mathrm{A}), \mathrm{(A)\ }, \rm(A), (A)
_LABEL = re.compile(
    rf"(?:{_STYLE}\s*\{{{_SPACE}\({_LETTER}\){_SPACE}\}}|\({_SPACE}{_STYLE}(?:\s*\{{)?{_LETTER}\}}?{_SPACE}\)"
    rf"|{_STYLE}\s*\({_LETTER}\)|(?<![\w)])\(([A-E])\)){_SPACE}"
)
_BARE = re.compile(rf"(?:{_STYLE}\s*\{{)?{_LETTER}\}}?{_SPACE}[.)]?")
# what makes no sense without the choices
_NEEDS_CHOICES = re.compile(
    r"\bof\s+(the\s+following|these)\b|\b(closest|nearest)\s+to\b|\bwhich\s+(statement|answer|choice|graph|figure)s?\b"
    r"|\bfollowing\s+(could|must|can|cannot|best)\b",
    re.IGNORECASE,
)
_NO_VALUE = re.compile(r"\b(none|all|neither|both)\b|\bcannot be\b|\bnot enough\b|\bundetermined\b", re.IGNORECASE)


def split_choices(problem: str) -> tuple[str, dict[str, str]]:
    """(problem without its choices, {letter: choice}); no choices unless at least three stand there in order."""
    found = [(next(g for g in m.groups() if g), m) for m in _LABEL.finditer(problem)]
    run: list[tuple[str, re.Match]] = []
    for letter, m in found:  # the last run from A on: a figure may name its points (A), (B)
        if letter == "A":
            run = [(letter, m)]
        elif run and ord(letter) == ord(run[-1][0]) + 1:
            run.append((letter, m))
    if len(run) < (4 if run and run[0][1][4] else 3):  # bare labels, (A), may be points
        return problem, {}
    head = problem[: run[0][1].start()].rstrip()
    opener = next((o for o in ("\\[", "\\(", "$") if head.endswith(o) and not head.endswith("\\$")), "")
    closer = {"$": r"(?<!\\)\$", "\\[": r"\\\]", "\\(": r"\\\)", "": r"(?=\n|\[asy\]|$)"}[opener]
    last = re.search(closer, problem[run[-1][1].end() :])
    end = run[-1][1].end() + (last.start() if last else len(problem))
    stops = [m.start() for _, m in run[1:]] + [end]
    choices = {letter: value(problem[m.end() : stop]) for (letter, m), stop in zip(run, stops, strict=True)}
    rest = problem[end + (len(last[0]) if last else 0) :].strip()
    return f"{head.removesuffix(opener).rstrip()} {rest}".strip(), choices


def value(text: str) -> str:
    """What a choice says, without the spacing, dollar signs and braces around it."""
    before = None
    while text != before:
        before, text = text, text.lstrip(" ~\n").rstrip(" ~\n.;,")
        text = re.sub(r"^(?:\\[ ,;:!]|\\q?quad(?![a-z])|\$)|(?:\\q?quad|\\+|(?<!\\)\$)$", "", text)
    m = re.fullmatch(r"\{([^{}]*)\}|\\(?:text|mbox)\s*\{([^{}]*)\}", text)
    return next(g for g in m.groups() if g is not None).strip() if m else text


def letter_and_value(answer: str) -> tuple[str, str]:
    """`\\textbf{(C)}\\ 12` is (C, 12); `C` is (C, ""); `12` is ("", 12)."""
    answer = answer.strip().strip("$").strip()
    if m := _LABEL.match(answer):
        return next(g for g in m.groups() if g), value(answer[m.end() :])
    m = _BARE.fullmatch(answer)
    return (m[1], "") if m else ("", answer)


def stated(solution: str) -> str:
    """The last choice that a solution states, `\\textbf{(C)}\\ 12`; "" without one."""
    m = next(iter(deque(_LABEL.finditer(solution), maxlen=1)), None)
    return m[0] + re.split(r"(?<!\\)\$|\\\]|\n|\.\s|\.$", solution[m.end() :], maxsplit=1)[0] if m else ""


def opened(problem: str, answer: str, solution: str) -> tuple[str, str, str]:
    """(problem without choices, answer, ""), or (problem, answer, why it cannot be asked openly). The answer is the
    field's, the solution's last box, or the last choice that the solution states, in this order; "" without any."""
    stem, choices = split_choices(problem)
    letter, text = letter_and_value(answer or last_boxed(solution) or stated(solution))
    if not choices:
        return problem, text, f"({letter}) is the answer, and the problem has no choices" if letter and not text else ""
    if letter and text and not grade(text, choices.get(letter, "")):
        return problem, text, f"({letter}) is {text} in the solution, {choices.get(letter)} in the problem"
    text = text or choices.get(letter, "")
    if _NEEDS_CHOICES.search(stem):
        return problem, text, "asks to choose among its choices"
    if _NO_VALUE.search(text):
        return problem, text, f"the right choice is no value: {text}"
    return stem, text, ""
