"""Values of an object by dotted paths, and the answers in what a data set has as an answer, or in a solution.

Data sets write a number, text, a list, a list as text (`["31", "31.0"]`), a solution that ends in `#### 31` or a box, a
sentence, or a word that stands for no answer.
"""

import ast
import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from grader.answers import refusal
from reward import last_boxed

# What data sets write where they have no answer.
SENTINELS = {"", "none", "nan", "null", "inf", "n/a", "notfound", "not found", "not_found", "proof", "-", "?", "$$"}
MAX_ANSWER = 1_000  # characters of an answer that is looked at more closely
MAX_PARSED = 20_000  # characters of a list or an object that is written as text
ESCAPES = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
# Traces of LaTeX whose backslashes were not escaped: the \t of \times became a tab, the \n of \neq a line end.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\t(?=imes|ext\s*\{|ext(?:bf|it|rm)|heta|riangle|binom|frac\s*[\d{])"
    r"|\r(?=ight|angle|ho\b|floor|ceil)|\n(?=eq\b|abla|otin)"
)
HASHES = re.compile(r"(?:^|[ \t])####[ \t]*(\S[^\n]*)(?:\n+The answer is[^\n]*)?\Z", re.MULTILINE)  # GSM8K's last line
ANSWER_IS = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|:|=)\s*(.+?)\.?|"
    r"(?:故|所以)?(?:最终)?答案\s*(?:是|为)?\s*[:：]?\s*(.+?)[.。]?",
    re.IGNORECASE | re.DOTALL,
)
NUMBER_OF_THINGS = re.compile(r"(-?[\d.,/]+) \((?!base|mod)[a-z][a-z ]*\)")  # 9 (apples)
BARE_WORD = re.compile(r"yes|no|true|false|\(?[A-E]\)?|infinity|no solutions?|does not exist", re.IGNORECASE)
ACCEPTED_TOO = re.compile(r"(.+?)\s*\((?:also\s+)?accept(?:ed|able)?:?\s+(.+)\)", re.IGNORECASE)


def normal_name(name: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


@lru_cache(maxsize=1024)
def own_names(names: tuple[str, ...]) -> dict[str, str]:
    """An object's names by their normal form; of several the first."""
    return {normal_name(name): name for name in reversed(names)}


def top_name(path: str) -> str:
    return normal_name(path.partition(".")[0])


def find(raw: dict[str, Any], path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    value: Any = raw
    if path in raw:  # a column whose name has dots
        return raw[path]
    for name in path.split("."):
        value = parsed(value) if isinstance(value, str) else value
        if not isinstance(value, dict):
            return None
        value = value.get(name if name in value else own_names(tuple(value)).get(name.lower()))
    return value


def parsed(text: str) -> Any:
    """The list or object that a text is, as JSON or as Python prints it; else the text."""
    text = text.strip()
    if len(text) > MAX_PARSED or text[:1] + text[-1:] not in ("[]", "{}"):
        return text
    for read in (json.loads, lambda t: json.loads(t.replace("\\", "\\\\")), ast.literal_eval):  # \frac unescaped, too
        try:
            value = read(text)
            if isinstance(value, (list, dict)) and not CONTROL.search("".join(texts_of(value))):
                return value
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def texts_of(value: Any) -> Iterable[str]:
    """All texts in a parsed value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def restored(text: str) -> str:
    """With the backslash where a program has read the start of \\frac, \\binom or \\times as an escape: in place of a
    form feed, a backspace, and of a tab or line end where `damage` sees one."""
    return CONTROL.sub(lambda match: ESCAPES.get(match.group(), match.group()), text)


def damage(text: str) -> str:
    """What is wrong with a text: control characters where a backslash was, half a surrogate pair; "" for nothing."""
    control = CONTROL.search(text)
    if control:
        return f"a control character, where a backslash may have been: {text[control.start() :][:12]!a}"
    return "a lone surrogate: no valid text" if re.search("[\ud800-\udfff]", text) else ""


def golds(value: Any) -> list[str]:
    """The answers that a field holds, any of which is right; none for null and for what stands for no answer.

    Text, a number (142.0 is 142), a list of them, or such a list written as text, as Skywork has it; of text what a box
    or GSM8K's #### ends it with. Raises ValueError.
    """
    if isinstance(value, str):
        listed = parsed(value)
        if isinstance(listed, dict) and listed:  # the tests of a program, the constraints of an instruction
            if listed.get("value") is None:
                raise ValueError("is neither text nor number")
            value = listed["value"]
        elif isinstance(listed, list) and listed and all(isinstance(item, (str, dict)) for item in listed):
            value = listed  # [1, 2] is an answer
    if isinstance(value, list):
        if any(isinstance(item, list) and any(isinstance(inner, list) for inner in item) for item in value):
            raise ValueError("is nested too deeply")
        found = [gold for item in value for gold in golds(item)]
    elif value is None:
        found = []
    elif isinstance(value, str):
        found = [gold.strip() for gold in gold_texts(value)]
    elif isinstance(value, Decimal) and value.is_finite():
        found = [format(value.normalize(), "f")]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf:
        found = [str(int(value) if isinstance(value, float) and value.is_integer() else value)]
    else:
        found = [] if value != value else None  # nan, as pandas writes what is missing
    if found is None:
        raise ValueError("is neither text nor number")
    return [gold for gold in dict.fromkeys(found) if gold.lower().rstrip(".") not in SENTINELS]


def gold_texts(text: str) -> list[str]:
    """What a text of the answer field answers; several where others are accepted too."""
    text = text.rpartition("</think>")[2].strip()
    hashes = HASHES.search(text)
    if "\\boxed" in text or "\\fbox" in text:
        text = boxed(text) or text
    elif hashes:
        text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", hashes[1].strip())  # GSM8K's 1,250 is one number
    if len(text) > MAX_ANSWER:
        return [text]
    sentence = ANSWER_IS.fullmatch(text.replace("**", ""))
    text = (sentence[1] or sentence[2]) if sentence else text
    things = NUMBER_OF_THINGS.fullmatch(text)
    text = things[1] if things else text
    if text.isdecimal():
        return [text.lstrip("0") or "0"]  # 025
    accepted = ACCEPTED_TOO.fullmatch(text)
    if accepted:
        return [accepted[1], accepted[2]]
    return [text.replace("$", "") if text.count("$") % 2 and "\\$" not in text else text]  # $221,$8$


def boxed(text: str) -> str | None:
    """The last box; old solutions frame it with \\fbox."""
    return last_boxed(text.replace("\\fbox", "\\boxed"))


def solution_answer(solution: str) -> str:
    """The answer that a solution ends with: its last box, what stands behind ####, or `The answer is: ...`; or all of
    it where it is nothing but an answer. "" where there is none."""
    solution = solution.strip()
    sentence = ANSWER_IS.fullmatch(re.split(r"[\n.]\s+", solution)[-1])
    answer = boxed(solution)
    if answer is None and (HASHES.search(solution) or sentence):
        answer = sentence[0] if sentence else solution
    elif answer is None and is_bare_answer(solution):
        answer = solution
    return next(iter(golds(answer)), "")


def is_bare_answer(text: str) -> bool:
    """Is this no solution but an answer, as some data sets have it in that field?"""
    if BARE_WORD.fullmatch(text):
        return True
    return bool(re.fullmatch(r"[^\n]{0,100}[\d\\][^\n]{0,100}", text)) and refusal(text) is None


def is_prose(answer: str) -> bool:
    """Is this an explanation that the grader cannot read?"""
    return len(re.findall(r"[^\W\d_]{2,}", answer)) > 5 and refusal(answer) is not None
