"""Multiple choice made open: AMC problems as the AoPS wiki and its copies write them.

`$\\textbf{(A)}\\ 10 \\qquad \\textbf{(B)}\\ 12 ...$` goes from the problem, and what the right letter stands for
becomes the answer. What cannot be asked without its choices, or is not understood, is refused.
"""

import re

from grader.text import answer_key
from reward import last_boxed

_STYLE = r"\\(?:textbf|mathbf|textrm|mathrm|textsf|boldsymbol|text|rm|bf|mbox|bold)"
_SPACE = r"(?:\s|~|\\[ ,;:!]|\\q?quad(?![a-z])|\\h(?:space|skip)\*?(?:\{[^{}]*\})?)*"
# (A) in every dress: \textbf{(A)}\ , \textbf{(A) }, (\mathrm{A}), \mathrm{(A)\ }, \rm(A), (A)
_LABEL = re.compile(
    rf"(?:{_STYLE}\s*\{{{_SPACE}\({_SPACE}([A-E]){_SPACE}\){_SPACE}\}}"
    rf"|\({_SPACE}{_STYLE}{_SPACE}(?:\{{{_SPACE})?([A-E]){_SPACE}(?:\}}{_SPACE})?\)"
    rf"|{_STYLE}\s*\({_SPACE}([A-E]){_SPACE}\)|(?<![\w)])\(([A-E])\)){_SPACE}"
)
_BARE = re.compile(rf"(?:{_STYLE}\s*\{{)?{_SPACE}([A-E]){_SPACE}(?:\}}{_SPACE})?[.)]?")
_LETTER_AND_VALUE = re.compile(rf"(?:{_STYLE}\s*\{{([A-E])\}}|([A-E])\s?[:.)]){_SPACE}(\S.*)", re.DOTALL)
_LABEL_WITH_VALUE = re.compile(rf"({_STYLE}\s*\{{\s*\([A-E]\))([^{{}}]+)\}}")  # \text{(A) 10}, as of old
_EDGES = re.compile(r"^(?:\\[ ,;:!]|\\q?quad(?![a-z])|\$)|(?:\\q?quad|\\h(?:space|skip)\{[^{}]*\}|\\+|(?<!\\)\$)$")
# Words of a question that makes no sense without its choices.
_NEEDS_CHOICES = re.compile(
    r"\b(which|none|any|all|one)\s+of\s+(the\s+following|these)\b|\bof\s+the\s+following\b"
    r"|\bfollowing\s+(could|must|can|cannot|best)\b"
    r"|(^|[.?!:]\s|,\s(then|and)\s)\s*(in|on|at|to|for|between|by|from)?\s*which\b"
    r"|\b(is|are|lies|lie)\s+between\s*(\?|:|$)|\b(closest|nearest|equal)\s+to\s*(\?|:|$)|\bapproximat|\bestimate"
    r"|\bselect\s+the\b|\bmust\s+be\s+true\b",
    re.IGNORECASE,
)
_NO_VALUE = re.compile(r"\b(none|all|neither|both)\b|\bcannot be\b|\bnot enough\b|\bundetermined\b", re.IGNORECASE)


def split_choices(problem: str) -> tuple[str, dict[str, str]]:
    """(problem without its choices, {letter: choice}); no choices unless at least three stand there in order."""
    text = _LABEL_WITH_VALUE.sub(r"\1} \2", problem)
    text = re.sub(r"\*\*(\([A-E]\))\*\*", r"\1", text)
    labels = _longest_run(text)
    if len(labels) < (4 if labels and labels[0][4] else 3):  # bare labels, (A), may be points
        return problem, {}
    head = text[: labels[0].start()].rstrip()
    opener = next((o for o in ("$$", "\\[", "\\(", "$") if head.endswith(o) and not head.endswith("\\" + o)), "")
    closer = {"$$": r"\$\$", "$": r"(?<!\\)\$", "\\[": r"\\\]", "\\(": r"\\\)", "": r"(?=\n|\[asy\]|$)"}[opener]
    last = re.search(closer, text[labels[-1].end() :])
    end = labels[-1].end() + (last.start() if last else len(text))
    stops = [label.start() for label in labels[1:]] + [end]
    choices = {_letter(m): value(text[m.end() : stop]) for m, stop in zip(labels, stops, strict=True)}
    rest = text[end + (len(last[0]) if last else 0) :].strip()
    return f"{head.removesuffix(opener).rstrip()} {rest}".strip(), choices


def _longest_run(text: str) -> list[re.Match]:
    """The longest run of labels (A), (B), ... in order: a figure may name its points (A), (B) as well."""
    runs: list[list[re.Match]] = [[]]
    for label in _LABEL.finditer(text):
        if _letter(label) == "A":
            runs.append([label])
        elif runs[-1] and ord(_letter(label)) == ord(_letter(runs[-1][-1])) + 1:
            runs[-1].append(label)
    return max(runs, key=len)


def _letter(label: re.Match) -> str:
    return next(letter for letter in label.groups() if letter)


def value(text: str) -> str:
    """What a choice says, without the spacing, dollar signs and braces around it."""
    before = None
    while text != before and len(text) < 1000:
        before, text = text, text.lstrip(" ~\n").rstrip(" ~\n.;,")
        text = _EDGES.sub("", text)
    braces = re.fullmatch(r"(?:\\(?:text|mbox)\s*)?\{([^{}]*)\}", text)
    return braces[1].strip() if braces else text


def letter_and_value(answer: str) -> tuple[str, str]:
    """`\\textbf{(C)}\\ 12` is (C, 12); `C` is (C, ""); `12` is ("", 12)."""
    answer = _LABEL_WITH_VALUE.sub(r"\1} \2", answer.strip().strip("$").strip())
    label = _LABEL.match(answer)
    if label:
        return _letter(label), value(answer[label.end() :])
    bare = _BARE.fullmatch(answer)
    if bare:
        return bare[1], ""
    match = _LETTER_AND_VALUE.fullmatch(answer)
    return (match[1] or match[2], value(match[3])) if match else ("", answer)


def stated(solution: str) -> str:
    """The last choice that a solution states, `\\textbf{(C)}\\ 12`; "" without one."""
    labels = list(_LABEL.finditer(solution))
    if not labels:
        return ""
    rest = solution[labels[-1].end() :]
    return labels[-1][0] + re.split(r"(?<!\\)\$|\\\]|\n|\.\s|\.$", rest, maxsplit=1)[0]


def balanced(text: str) -> bool:
    """Whether a text came out of a cut whole: its braces, dollar signs and environments."""
    plain = re.sub(r"\\[{}$]", "", text)
    whole_braces = plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    return whole_braces and text.count("\\begin{") == text.count("\\end{") and not text.endswith("*")


def opened(problem: str, answer: str, solution: str) -> tuple[str, str, str]:
    """(problem without choices, answer, ""), or (problem, answer, why it cannot be asked openly). The answer is the
    field's, the solution's last box, or the last choice that the solution states, in this order; "" without any."""
    stem, choices = split_choices(problem)
    letter, text = letter_and_value(answer or last_boxed(solution) or stated(solution))
    if not choices:
        return problem, text, f"({letter}) is the answer, and the problem has no choices" if letter and not text else ""
    if not balanced(stem) or not all(map(balanced, choices.values())):
        return problem, text, "its choices are not understood"
    if letter and text and answer_key(text) != answer_key(choices.get(letter, "")):
        return problem, text, f"({letter}) is {text} in the solution, {choices.get(letter)} in the problem"
    text = text or choices.get(letter, "")
    if text and answer_key(text) not in map(answer_key, choices.values()):
        return problem, text, f"{text} is none of its choices"
    if _NEEDS_CHOICES.search(stem):
        return problem, text, "asks to choose among its choices"
    if _NO_VALUE.search(text):
        return problem, text, f"the right choice is no value: {text}"
    return stem, text, ""
