"""From cleaned text to tokens, each with its kind and position. Letters are taken apart here: words, units, functions
and symbols of one letter.
"""

import re

from grader.clean import FUNCTIONS
from grader.text import Refused

Token = tuple[str, str, int]  # kind, value, position in the cleaned text
TOKEN = re.compile(
    r"""(?P<num>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+(?:[eE]\d+)?)
      | (?P<text>\ue000[^\ue000\ue001]*\ue001)
      | (?P<env>\\(?:begin|end)\s*\{[a-z]+\}(?:\s*\{[lcr|\s]+\})?)
      | (?P<cmd>\\(?:[A-Za-z]+|[\\{}|]))
      | (?P<word>[A-Za-z]+)
      | (?P<op>[-+*/^_=<>≤≥≠≈≡∈∪∩∖±∓∞∅°(){}\[\]|,;:%'!&…])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
THOUSANDS = re.compile(r"(?<!\d,)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!,?\d)")
GREEK = set("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon".split())
GREEK |= set("phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell odot".split())
ACCENTS = set("overline bar hat vec dot ddot tilde widehat widetilde overrightarrow overleftrightarrow".split())
ACCENTS |= {"mathbb", "mathcal"}
KNOWN_HEADS = sorted(FUNCTIONS | {"pi", "sqrt"}, key=len, reverse=True)
PLAIN_UNITS = re.compile(
    "(?:(?:centi|milli|kilo)?met(?:er|re)|hour|minute|second|day|week|month|year|dollar|cent|degree|unit|mile|yard|gram"
    "|liter|way|point)s?|inch(?:es)?|feet|foot|percent|people|am|pm|[cmk]m|kg|hz|ft|sec|min|hrs?|[mk]ph|pct|deg|sq"
)
BRACKETS = {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}


def tokenize(cleaned: str, merge_thousands: bool) -> list[Token]:
    """The tokens, the last of kind "end". With `merge_thousands`, 119,121 is one number unless inside ( [ or \\{."""
    tokens: list[Token] = []
    brackets, pos = 0, 0
    merge_thousands = merge_thousands and "," in cleaned
    while pos < len(cleaned):
        start = pos
        if merge_thousands and not brackets and (number := THOUSANDS.match(cleaned, pos)):
            tokens.append(("num", number[0].replace(",", ""), start))
            pos = number.end()
            continue
        match = TOKEN.match(cleaned, pos)
        if not match:
            raise Refused(f"unknown character {cleaned[pos]!r}", pos)
        kind, value, pos = match.lastgroup, match[0], match.end()
        if kind == "word":
            before = tokens[-1] if tokens else ("start", "", 0)
            tokens += _word_tokens(value, before, start > 0 and cleaned[start - 1] not in " ,;", start)
        elif kind == "text" and value[1:-1].strip(" ,;").lower() in ("and", "or", ""):
            tokens.append(("sep", value[1:-1].strip(" ,;").lower(), start))
        elif kind != "space":
            value = value[1:-1] if kind == "text" else re.sub(r"\s", "", value)
            tokens.append((kind, value, start))
        if value in BRACKETS:
            brackets = max(0, brackets + BRACKETS[value])
    tokens.append(("end", "", len(cleaned)))
    return tokens


def _word_tokens(word: str, before: Token, glued: bool, pos: int) -> list[Token]:
    """The tokens of a run of letters: a function, a constant, a unit after a number, words, or one-letter symbols.

    before: the token before. glued: no space, comma or semicolon stands between.
    """
    after_value = before[0] in ("num", "text") or not glued and before[1] in ("}", ")", "\\pi")
    if after_value and PLAIN_UNITS.fullmatch(word.lower()):
        return [("text", word, pos)]
    if len(word) == 1:
        return [("sym", word, pos)]
    if word in FUNCTIONS:
        return [("fn", word, pos)]
    if word in ("pi", "sqrt", "gcd", "lcm"):
        return [("cmd", "\\" + word, pos)]
    lowered = word.lower()
    if lowered in ("and", "or"):
        return [("sep", lowered, pos)]
    if lowered in ("inf", "infty", "infinity", "oo"):
        return [("sym", "∞", pos)]
    if before[0] == "text" and not glued:
        return [("text", word, pos)]
    head = next((name for name in KNOWN_HEADS if word.startswith(name)), "") if glued or len(word) < 7 else ""
    if head:  # sinx, pir
        rest = _word_tokens(word[len(head) :], ("fn", "", 0), True, pos + len(head))
        return [("fn", head, pos) if head in FUNCTIONS else ("cmd", "\\" + head, pos), *rest]
    if len(word) > 3 and word[1:].islower() and not glued:
        return [("text", word, pos)]
    if len(word) > 6:
        raise Refused("a word that is not known here", pos)
    return [("sym", letter, pos + i) for i, letter in enumerate(word)]
