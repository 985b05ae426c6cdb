"""From cleaned text to tokens, each with its kind and position. Letters are taken apart here: words, units, functions
and symbols of one letter.
"""

import re

from grader.clean import FUNCTIONS
from grader.text import Refused

Token = tuple[str, str, int]  # kind, value, position in the cleaned text
TOKEN = re.compile(
    r"""(?P<repeat>\d*\.\d*(?:\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d)|\(\d+\)))
      | (?P<num>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+(?:[eE]\d+)?)
      | (?P<text>\ue000[^\ue000\ue001]*\ue001)
      | (?P<env>\\(?:begin|end)\s*\{[a-z]+\}(?:\s*\{[lcr|\s]+\})?)
      | (?P<cmd>\\(?:[A-Za-z]+|[\\{}|]))
      | (?P<word>[A-Za-z]+)
      | (?P<op>[-+*/^_=<>≤≥≠≈≡∈∪∩∖±∓∞∅°(){}\[\]|,;:%'√!&…])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
SCIENTIFIC = re.compile(r"\d+[eE][-+]\d+")  # 1e-5, but 2e-1 within an expression is twice e, less one
SCIENTIFIC_ITEM = re.compile(r"(?:^|,)\s*[-+]?\s*\d+[eE][-+]\d+\s*(?:,|$|[\ue000°%])")
COMMA_RUN = re.compile(r"\d+(?:,\d+)+(?:\.\d+)?")
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
GREEK = set("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon".split())
GREEK |= set("phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell odot".split())
ACCENTS = {
    "overrightarrow",
    "overleftrightarrow",
    "widetilde",
    "overline",
    "bar",
    "hat",
    "vec",
    "dot",
    "ddot",
    "tilde",
    "widehat",
    "mathbb",
    "mathcal",
}
KNOWN_HEADS = sorted(FUNCTIONS | {"pi", "sqrt"}, key=len, reverse=True)
PLAIN_UNITS = re.compile(
    "(?:(?:centi|milli|kilo)?met(?:er|re)|hour|minute|second|day|week|month|year|dollar|cent|degree|unit|mile|yard|gram"
    "|liter|way|point|square unit)s?|inch(?:es)?|feet|foot|percent|people"
)
SHORT_UNITS = set("am pm cm mm km kg hz ft sec min hr hrs mph kph pct deg sq inch feet".split())


def tokenize(cleaned: str, merge_thousands: bool) -> list[Token]:
    """The tokens, the last of kind "end". With `merge_thousands`, 119,121 is one number unless inside ( [ or \\{."""
    tokens: list[Token] = []
    brackets, pos, end = 0, 0, len(cleaned)
    commas = merge_thousands and "," in cleaned
    scientific = SCIENTIFIC_ITEM.search(cleaned)
    while pos < end:
        start = pos
        if commas and not brackets and (run := COMMA_RUN.match(cleaned, pos)) and THOUSANDS.fullmatch(run.group()):
            if not (pos > 1 and cleaned[pos - 1] == "," and cleaned[pos - 2].isdigit()):
                tokens.append(("num", run.group().replace(",", ""), start))
                pos = run.end()
                continue
        if scientific and (number := SCIENTIFIC.match(cleaned, pos)):
            tokens.append(("num", number.group(), start))
            pos = number.end()
            continue
        match = TOKEN.match(cleaned, pos)
        if not match:
            raise Refused(f"unknown character {cleaned[pos]!r}", pos)
        kind, value, pos = match.lastgroup, match.group(), match.end()
        if kind == "op" or kind == "num":
            tokens.append((kind, value, start))
        elif kind == "word":
            glued = start > 0 and cleaned[start - 1] not in " ,;"
            after = tokens[-1] if tokens else ("start", "", 0)
            if after[0] == "num" or not glued and after[1] in ("}", ")", "\\pi") or after[0] == "text":
                if value.lower() in SHORT_UNITS or PLAIN_UNITS.fullmatch(value.lower()):
                    tokens.append(("text", value, start))
                    continue
            tokens += _word_tokens(value, after[0], glued, start)
        elif kind == "text" and value[1:-1].strip(" ,;").lower() in ("and", "or", ""):
            tokens.append(("sep", value[1:-1].strip(" ,;").lower(), start))
        elif kind != "space":
            tokens.append((kind, value[1:-1] if kind == "text" else re.sub(r"\s", "", value), start))
        if value in ("(", "[", "\\{"):
            brackets += 1
        elif value in (")", "]", "\\}"):
            brackets = max(0, brackets - 1)
    tokens.append(("end", "", end))
    return tokens


def _word_tokens(word: str, previous: str, glued: bool, pos: int) -> list[Token]:
    """The tokens of a run of letters: a function, a constant, a unit after a number, words, or one-letter symbols.

    previous: the kind of the token before. glued: no space, comma or semicolon stands between.
    """
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
    if previous == "text" and not glued:
        return [("text", word, pos)]
    head = next((name for name in KNOWN_HEADS if word.startswith(name)), "") if glued or len(word) < 7 else ""
    if head:  # sinx, pir
        rest = _word_tokens(word[len(head) :], "fn", True, pos + len(head))
        return [("fn", head, pos) if head in FUNCTIONS else ("cmd", "\\" + head, pos), *rest]
    if len(word) > 3 and word[1:].islower() and not glued:
        return [("text", word, pos)]
    if len(word) > 6:
        raise Refused("a word that is not known here", pos)
    return [("sym", letter, pos + i) for i, letter in enumerate(word)]
