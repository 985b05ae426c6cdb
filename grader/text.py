"""What is compared without parsing: plain numbers, texts, words; and the keys by which votes and the data pipeline
group answers. No text is ever run as code.
"""

import re
import unicodedata
from fractions import Fraction

MAX_CHARS = 2000  # the longest gold answer of the benchmarks has 204


class Refused(Exception):
    """The text is outside the grammar, or a bound was hit: nothing can be said about its value.

    position: index into the cleaned text where reading stopped, or None where it is not about one place.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


def table(groups: str) -> dict[str, str]:
    """{name: target} from groups `target name name ...`, two spaces or a line apart; the target NONE is empty."""
    rows = [group.split() for group in re.split(r"\s{2,}", groups.strip())]
    return {name: "" if row[0] == "NONE" else row[0] for row in rows for name in row[1:]}


# ---------------------------------------------------------------- cleaned texts


def squeeze(cleaned: str) -> str:
    """The string that is compared as text: without spaces (but 1 2 is not 12) and marks of words; (C) becomes C."""
    if cleaned.isalnum():
        return cleaned
    plain = re.sub("[\ue000\ue001]", "", cleaned)
    plain = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain).rstrip(".")
    match = re.fullmatch(r"\(([A-Z])\)", plain)
    return match.group(1) if match else plain


WORDS = re.compile(r"(?:[\s().,;&{}]|\\[{}&]|\b[A-Z]\b|\ue000[A-Za-z .,'()&:;-]*\ue001)*")
PLAIN_WORDS = re.compile(r"(?:[A-Za-z]{4,}|[Yy]es|[Nn]o|[A-Z]{2,})(?:[ ,]+[A-Za-z]+)*")


def is_words(cleaned: str) -> bool:
    """Whether an answer is words alone: only \\text{...} of letters, or words too long to be a product of variables."""
    return (WORDS if "\ue000" in cleaned else PLAIN_WORDS).fullmatch(cleaned) is not None


def word_list(cleaned: str) -> list[str]:
    """The parts of an answer of words, in lower case: their order counts, but not that of single letters (choices)."""
    text = re.sub(r"[\ue000\ue001{}()\\]", "", cleaned).lower()
    parts = [re.sub(r"\s+", "", part).rstrip(".") for part in re.split(r",?\s*\band\b\s*|\s*[,;&]\s*", text)]
    parts = [part for part in parts if part] or [text]
    return sorted(set(parts)) if all(len(part) == 1 for part in parts) else parts


# ---------------------------------------------------------------- keys: equal for texts that differ only in typesetting

PLAIN_NUMBER = re.compile(r"\$?([+-]?) ?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d*)? ?\$?")
SIMPLE_FRACTION = re.compile(  # -\frac{3}{4}, \dfrac34, 3/4
    r"(-?)(?:\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))|(\d+)/(\d+))"
)
THOUSANDS_SEPARATOR = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!)+(?=\d{3}(?!\d))")
SPACING = re.compile(
    r"\\(left|right|displaystyle|textstyle|limits|bigg?[lr]?|quad|qquad|noindent)(?![a-z])|\\[,;:!> ]|~|&nbsp;"
)
FONT = re.compile(
    r"\\(text|textbf|textit|textrm|mathrm|mathbf|mathit|emph|mbox|operatorname|boldsymbol|underline)\b\*?\s*"
    r"(?:\{([^{}]*)\})?"
)
# What ends a phrase, but not what means something in a formula: 3.5, 3:4, 5!, f'(x), (1,2).
PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|[?;$\"`]|(?<!\d)(?<!\d\s):(?=\s|$)|,(?=\s|$)|\\[\[\]()]")


def plain_number(text: str) -> int | Fraction | None:
    """The value of 12, -1,008.50 or $36: what most answers are, read without the parser."""
    match = PLAIN_NUMBER.fullmatch(text.strip())
    if not match or not (match[2] or match[3] and len(match[3]) > 1):
        return None
    whole, point = (match[2] or "0").replace(",", ""), match[3] or "."
    value = int(whole) if len(point) == 1 else Fraction(int(whole + point[1:]), 10 ** (len(point) - 1))
    return -value if match[1] == "-" else value


def answer_key(answer: str) -> str:
    """The same key for answers that are the same number, or the same text but for typesetting.

    A number's key is "number 3/4"; any other answer's is its normal form.
    """
    number = plain_number(answer)
    match = SIMPLE_FRACTION.fullmatch(answer.strip("$ "))
    if match:
        sign, top, bottom = match[1], match[2] or match[3] or match[6], match[4] or match[5] or match[7]
        number = Fraction(int(sign + top), int(bottom)) if int(bottom) else None
    return normal_form(answer) if number is None else f"number {Fraction(number)}"


def normal_form(text: str) -> str:
    """What is left of a text without typesetting: equal for two copies that differ in spacing, LaTeX style, dollar
    signs, punctuation or case. Digits, letters, operators and their order stay."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", THOUSANDS_SEPARATOR.sub("", text))
    text = FONT.sub(lambda match: match[2] or "", SPACING.sub(" ", text))
    text = re.sub(r"\{\s*(\w)\s*\}", r" \1 ", PUNCTUATION.sub("", text))  # {10} stays: 2^{10} is not 2^10
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)  # \frac{1}{23} is not \frac{12}{3}, and 1 2 is not 12
    return re.sub(r"\s+", "", text)
