"""From the text of an answer, LaTeX or plain, to tokens, and to the keys by which texts are compared without parsing.

`clean` replaces synonyms by one spelling, so that equal answers are often equal strings; `tokenize` splits its result
into tokens, each with its kind and position. `plain_number`, `answer_key` and `normal_form` need neither: `compare`
reads plain numbers, and majority votes and the data pipeline group texts. No text is ever run as code.
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


# ---------------------------------------------------------------- cleaning: one spelling for everything


def table(groups: str) -> dict[str, str]:
    """{name: target} from groups `target name name ...`, two spaces or a line apart; the target NONE is empty."""
    rows = [group.split() for group in re.split(r"\s{2,}", groups.strip())]
    return {name: "" if row[0] == "NONE" else row[0] for row in rows for name in row[1:]}


SYMBOLS = table(  # LaTeX commands that mean the same as a character or as another command
    r"""≤ leq leqslant le leqq  ≥ geq geqslant ge geqq  ≠ neq ne  ≈ approx simeq approxeq sim  < lt  > gt  ∈ in
    ∪ cup bigcup  ∩ cap bigcap  ∖ setminus backslash smallsetminus  ≡ equiv  : colon  … ldots dots cdots dotsc
    * cdot times ast  / div  ± pm  ∓ mp  ∞ infty  ' prime  ° circ degree degrees textdegree  | lvert rvert vert mid lVert rVert Vert
    \frac dfrac tfrac cfrac  \binom dbinom tbinom  \{ lbrace  \} rbrace  [ lbrack  ] rbrack  \log_{10} lg
    ( langle lparen  ) rangle rparen  or lor vee  and land wedge
    \phi varphi  \epsilon varepsilon  \theta vartheta  ∅ emptyset varnothing  ∀ forall  T top intercal
    NONE left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr quad qquad limits displaystyle textstyle
    NONE scriptstyle large Large small normalsize angle measuredangle triangle rm bf it pounds euro boxed fbox nonumber
    NONE checkmark blacksquare square Box qed ensuremath underline displaylimits"""
)
CHAR_NAMES = "pi alpha beta gamma theta lambda mu phi omega lfloor rfloor lceil rceil".split()
CHARS = str.maketrans(
    table(
        r"""- − – —  * × · ⋅ ∗  / ÷ ⁄ ∕  ° º  ' ′ ’  '' ″  , 、  NONE ￥ € £  ( ⟨ 〈  ) ⟩ 〉  ≤ ⩽  ≥ ⩾  ∖ ⧵
        \sqrt[3] ∛  \mathbb{R} ℝ  \mathbb{Z} ℤ  \mathbb{N} ℕ   NONE ✓ ✔ ■ □ ∎ ∠ △  \therefore ∴  \implies ⇒ ⟹
        ; ；  : ： ∶  . 。  ¢ ￠"""
    )
    | {"\ue000": "?", "\ue001": "?", "\u200b": "", "\ufeff": ""}
    | {"或": " or ", "和": " and ", "与": " and ", "且": " and "}
)
GREEK_CHARS = str.maketrans({letter: f"\\{name} " for letter, name in zip("παβγθλμφω⌊⌋⌈⌉", CHAR_NAMES, strict=True)})
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "coth", "exp", "ln", "log"}
FUNCTIONS |= {"arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "arcsinh", "arccosh", "arctanh", "cis"}
OPERATORS = {"gcd", "lcm", "det", "max", "min", "arg", "deg", "dim", "Re", "Im", "Pr"}  # kept as names
PLAIN_TEXT = {"per cent": "percent", "**": "^", "<=": "≤", ">=": "≥", "!=": "≠", "...": "…"}
TEXT_COMMAND = re.compile(
    r"\\(text(?:bf|rm|it|sf|tt|normal|up)?|[mh]box|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|boldsymbol|bm|emph)"
    r"(?![A-Za-z])\s*(?:\{((?:[^{}]|\{[^{}]*\})*)\})?"
)
COMMAND = re.compile(r"\\([A-Za-z]+)")
IMPLIES = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow|therefore)(?![A-Za-z])")
WORD_CHARS = re.compile("[\u4e00-\u9fff]+|¢")
ORDINAL = re.compile(r"\d*(?:1[123]th|(?<!1)1st|(?<!1)2nd|(?<!1)3rd|[04-9]th)")
POWER = re.compile(r"\$?\^\s*(?:\{\s*-?\d+\s*\}|-?\d)\$?")


def _text_token(match: re.Match) -> str:
    """What replaces a TEXT_COMMAND: words stand between U+E000 and U+E001, a formula only loses its font command."""
    content = match.group(2)
    if content is None:  # \mathbf{\frac{14}{3}}: drop the font, keep the group
        return " "
    words = re.sub(
        r"(?i)^(?:the )?(?:final )?(?:answer|choice|option)(?: is)?(?:\s*:\s*|\s+)(?=\S)", "", content.strip()
    )
    if words in FUNCTIONS or words in OPERATORS and (match[1].startswith("operatorname") or words in ("gcd", "lcm")):
        return f"\\{words} "
    if not re.search(r"[\w°¢]", words):  # 12\text{,}345
        return content
    is_words = re.search("[A-Za-z°¢\u0370-\u03ff\u4e00-\u9fff]", words)
    is_words = is_words and not re.search(r"[\\\ue000{}=<>]|^[-+.]?\d", POWER.sub("", words))
    upright = match.group(1) in ("text", "mathrm", "textrm", "mbox", "hbox")
    if not is_words or words in ("e", "i", "d", "°", "π") or (len(words) == 1 and not upright):
        return f" {words} "
    return f"\ue000{words}\ue001"


def _symbol(match: re.Match) -> str:
    target = SYMBOLS.get(match[1])
    if target is None:
        return match[0]
    return f" {target} " if target.isalpha() else target or " "


def _clean_unicode(text: str) -> str:
    text = text.translate(CHARS)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m.group()).replace("⁄", "/"), text)
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀-₉]+", lambda m: "_{" + m.group().translate(SUBSCRIPTS) + "}", text)
    return unicodedata.normalize("NFKC", text)  # full-width and mathematical letters


def _letters(match: re.Match) -> str:
    """Greek letters are symbols and Chinese ones words, outside of words."""
    if match[0][0] == "\ue000":
        return match[0]
    return WORD_CHARS.sub("\ue000\\g<0>\ue001", match[0].translate(GREEK_CHARS))


def _clean_latex(text: str) -> str:
    while match := re.fullmatch(r"\$*\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*\$*", text, re.DOTALL):
        text = match.group(1).strip()
    *_, conclusion = IMPLIES.split(text)
    text = conclusion if re.search(r"\d", conclusion) else text
    text = re.sub(r"\\(?:left|right)\s*\.|\\#", "", text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped twice on its way through JSON
    text = re.sub(r"\\(?:hspace|vspace|tag|label|color|textcolor)\*?\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\phantom\s*(?:\{[^{}]*\}|[^\\{])", " ", text)
    text = re.sub(r"(?<!\\)\\([()\[\]])", " ", text)  # \( \) and \[ \]
    if text.startswith("\\$") and re.fullmatch(r"[\d.,\\!{}\s]+", text[2:]):  # money; within more text it says nothing
        text = text[2:] + r"\text{dollars}"
    text = text.replace("\\$", "").replace("\\%", "%").replace("\\|", "|")
    text = text.replace("\\&", " and " if "\\begin" not in text else "&")
    # 11,\! 111,\! 111 and 58\,500 are thousands wherever they stand; a bare comma is decided by the tokenizer
    text = re.sub(r"(?<=\d)\s*(?:,\s*\\!|\\,)\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\\\\s*\[-?[\d.]+\s*[a-z]{2}\]", r"\\\\", text)  # \\[4pt] between rows
    text = re.sub(r"\\\\|\\[,;:!> ]", lambda m: m.group() if m.group() == "\\\\" else " ", text)
    text = TEXT_COMMAND.sub(_text_token, text)
    text = re.sub(r"\\mu\s*\ue000\s*", "\ue000μ", text)
    text = COMMAND.sub(_symbol, text)
    text = re.sub(r"(?<=\d)\s*\\Omega\s*$", "\ue000Ω\ue001", text)
    text = re.sub(r"\\dot\s*\{?(\d)\}?\s*(\d*)\s*\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}", text)
    return re.sub(r"\{\s*(\d+)\s*\\over\s*(\d+)\s*\}", r"\\frac{\1}{\2}", text)  # may be a mixed number's fraction


# Words, as regular expressions on cleaned text, and what they become. Applied in this order.
PHRASES = [
    (r"^\ue000\s*(?:(?!\b(?:not|never)\b|n't)[^\ue001])*(?:\bis|\bare|:)\s*\ue001\s*(?=\S)", ""),  # \text{Area: } 9
    (r"\ue000\s*(?:[Aa]nswer|[Aa]ns\.?)\s*\ue001\s*:", ""),
    (r"\ue000\s*is (?:the|our|my) (?:final |correct |required )?answer\W*\ue001$", ""),
    (r"\ue000[\s,]*\(?\s*(?:since|because|attained|achieved|reached)\b.*$", ""),
    (
        r"\ue000[ ,]*\((?:(?:double|triple|repeated|simple) (?:root|zero|solution)s?|(?:with )?multiplicity \d+)\) *\ue001",
        "",
    ),
    (r"\ue000[ ,]*(?:or )?(\(?) *(?:approximately|approx|about|roughly)\.? *\ue001", r"\1≈"),
    (r"\ue000\s*\(\s*(?:or|equivalently|i\.e\.|that is),?\s*\ue001([^()]*)\)", r" or \1"),
    (r"^\ue000\s*(?:negative|minus)\s*\ue001\s*(?=[\d\\.])", "-"),
    (r"\\frac\s*\{\s*\ue000([^\ue001]*)\ue001\s*\}\s*\{\s*\ue000([^\ue001]*)\ue001\s*\}", "\ue000\\1/\\2\ue001"),
    (r"(?<=[^\s(A-Za-z])\s*\(\s*(\ue000[^\ue001]*\ue001(?:\s*\^\s*\{?\d\}?)?)\s*\)", r"\1"),  # 12 (\text{cm})
    (r"\^\s*\{?\s*\ue000o\ue001\s*\}?", "°"),
    ("\ue000([0-9A-Z]+)\ue001(?=[0-9A-Z]+[)}]?_)", r"\1"),  # (\text{B}4)_{12}
]
PHRASES = [(re.compile(pattern), meant) for pattern, meant in PHRASES]
ALL_REALS = re.compile(
    r"^\ue000?\s*(?:all |any |every )?reals?(?: numbers?)?(?: x)?\s*(?:(?:except|other than|but)\s*\ue001?(.+)|\ue001?)$"
)
BASE_WORDS = {word: base for base, word in enumerate("two three four five six seven eight nine ten".split(), 2)}
NUMBER_WORDS = {"zero": "0", "one": "1"} | {word: str(number) for word, number in BASE_WORDS.items()}
BASE_WORDS |= {"eleven": 11, "twelve": 12, "sixteen": 16}
BASE = rf"(?P<base>-?\d\d?|{'|'.join(BASE_WORDS)})"
BASED = re.compile(  # 204_5, 204_{\text{five}}, (A5)_{11}, 204 \text{ (base 5)}
    r"(?<![\w.^\\])(?P<open>[({\ue000]?)\s*(?P<digits>[0-9A-Z]+(?:\.[0-9A-Z]+)?)\s*(?P<close>[)}\ue001]?)\s*"
    rf"(?:_\s*(?:\{{[\s\ue000(]*(?:base)?[\s\ue001]*{BASE}[\s\ue001)]*\}}|(?P<short>\d))"
    rf"|[\s\ue000(]*(?:in )?base[\s\ue001-]*{BASE.replace('base', 'named')}[\s\ue001)]*$)"
)


def _based(match: re.Match) -> str:
    """A number with its base as a command of our own."""
    written = match["base"] or match["short"] or match["named"]
    base, digits = int(BASE_WORDS.get(written, written)), match["digits"]
    valid = 2 <= abs(base) <= 36 and all(int(d, 36) < abs(base) for d in digits if d != ".")
    if not valid or not (any(d.isdigit() for d in digits) or (match["open"] and base > 10)):
        return match[0]
    outside = "" if match["close"] else match["open"]  # {111_8}
    return f"{outside}\\based{{{digits}}}{{{base}}}"


def _repeating(match: re.Match) -> str:
    """0.1666… is 0.1\\overline{6}: three equal digits, a longer block twice, or nothing but the block."""
    head, block = match[1], match[2]
    whole = head.endswith(".") or len(block) > 1 or len(match[0]) - len(head) > 3
    return f"{head}\\overline{{{block}}}" if whole else match[0]


def _interval(match: re.Match) -> str:
    """[2, 5[ and ]2, 5] as the French write them."""
    return f"{'(' if match[1] == ']' else '['}{match[2]}{')' if match[3] == '[' else ']'}"


def _clean_words(text: str) -> str:
    for pattern, meant in PHRASES:
        text = pattern.sub(meant, text)
    return text


def _all_reals(match: re.Match) -> str:
    return f"\\mathbb{{R}}∖\\{{{match[1]}\\}}" if match[1] else "\\mathbb{R}"


def _clean_sets(text: str) -> str:
    text = re.sub(r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\s*\+\s*\}?|_\s*\{\s*>\s*0\s*\}|_\s*\{?\+\}?)", "(0,∞)", text)
    text = re.sub(r"\\mathbb\s*\{?\s*R\s*\}?\s*_\s*\{\s*≥\s*0\s*\}", "[0,∞)", text)
    return re.sub(r"(\\mathbb\s*\{?\s*R\s*\}?)\s*-\s*(?=\\\{)", r"\1∖", text)


def _group_end(text: str) -> int:
    """The index of the } that closes the group that opens at the start, or -1."""
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            return mark.start()
    return -1


def clean(text: str) -> str:
    """Rewrites notation that carries no meaning, so that parsing sees one spelling and equal strings are equal."""
    text = " ".join(text.split())  # from here on, no pattern meets a run of spaces
    if match := re.fullmatch(r"([*_`]{1,3})([^*_`]+)\1", text):  # emphasis in Markdown
        text = match[2].strip()
    unicode = not text.isascii()
    if unicode:
        text = _clean_unicode(text)
    if "\\" in text:
        text = _clean_latex(text)
    if unicode:
        text = re.sub("\ue000[^\ue001]*\ue001|[^\ue000]+", _letters, text)
    if "\ue000" in text:
        text = _clean_words(text)
    text = NUMBER_WORDS.get(text.strip("\ue000\ue001 ").lower(), text)
    if "real" in text:
        text = ALL_REALS.sub(_all_reals, text)
    if "≈" in text:
        text = re.sub(r"\(\s*(≈[^()]*)\)", r" \1", text)
    if "\\mathbb" in text:
        text = _clean_sets(text)
    if "{" in text:
        text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))", "", text).replace("{:}", ":")  # 1{,}008
    if "~" in text:
        text = re.sub(r"(?<=\d)~(?=\d{3}(?!\d))", "", text).replace("~", " ")
    if " " in text:
        text = re.sub(r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,]| *\d)", lambda m: m.group().replace(" ", ""), text)
        text = re.sub("(?<=[\\d\ue000])\\s*\ue000?\\s*to\\s*\ue001?\\s*(?=\\d)", ":", text) if "to" in text else text
        text = re.sub(r"(?<![\w.,/^\\}])(?<!frac )(\d+)\s+(\d+)/(\d+)(?![\d.])", r"(\1+\2/\3)", text)  # 3 1/2
    text = text.replace("$", " ")
    if "^" in text:
        text = re.sub(r"\^\s*(?:°|\{\s*°\s*\})", "°", text)
        text = re.sub(r"\^\s*(?:\{\s*((?:'\s*)+)\}|('+))", lambda m: (m[1] or m[2]).replace(" ", ""), text)
    if "_" in text or "base" in text:
        text = BASED.sub(_based, text)
    for written, meant in PLAIN_TEXT.items():
        text = text.replace(written, meant)
    if "…" in text:
        text = re.sub(r"(?<![\d.])(\d*\.\d*?)(\d+?)\2+\s*…", _repeating, text)
    if "mod" in text:
        text = re.sub(r"\(\s*(?:\\[bp]?mod|mod|\ue000\s*mod\s*\ue001)\s*([^()]*)\)", r"\\pmod{\1}", text)
    if ORDINAL.fullmatch(re.sub("[\ue000\ue001{}^ ]", "", text).rstrip(".")):
        text = re.search(r"\d+", text).group()
    if ":" in text:
        text = re.sub(r"\b([ap])\.?m\b\.?", r"\1m", text, flags=re.IGNORECASE)  # 5:30 p.m.
    if "[" in text or "]" in text:
        text = re.sub(r"([][])([^][()]*[,;][^][()]*)([][])", _interval, text)
    text = re.sub(r"\s+", " ", text).strip()
    text += "}" * (text.count("{") - text.count("\\{") - text.count("}") + text.count("\\}"))  # as published golds lack
    text = re.sub(r"^[=≡]\s*|(?:[\s.,;]|\\\\)+$", "", text)
    if text.endswith("}"):
        text = re.sub(r"\.\s*\}$", "}", text)  # \displaystyle \boxed{(1,2).}
    while text[:1] == "{" and not re.search(r"\\(?:over|choose)|,", text) and _group_end(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def squeeze(cleaned: str) -> str:
    """The string that is compared as text: without spaces (but 1 2 is not 12) and marks of words; (C) becomes C."""
    if cleaned.isalnum():
        return cleaned
    plain = re.sub("[\ue000\ue001]", "", cleaned)
    plain = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain).rstrip(".")
    match = re.fullmatch(r"\(([A-Z])\)", plain)
    return match.group(1) if match else plain


WORDS = re.compile(r"(?:[\s().,;&{}]|\\[{}&]|\b[A-Z]\b|\ue000[A-Za-z .,'()&:;-]*\ue001)*")
PLAIN_WORDS = re.compile(r"(?:[A-Za-z]{4,}|[Yy]es|[Nn]o|[A-Z]{3})(?:[ ,]+[A-Za-z]+)*")


def is_words(cleaned: str) -> bool:
    """Whether an answer is words alone: only \\text{...} of letters, or words too long to be a product of variables."""
    return (WORDS if "\ue000" in cleaned else PLAIN_WORDS).fullmatch(cleaned) is not None


def word_list(cleaned: str) -> list[str]:
    """The parts of an answer of words, in lower case: their order counts, but not that of single letters (choices)."""
    text = re.sub(r"[\ue000\ue001{}()\\]", "", cleaned).lower()
    parts = [re.sub(r"\s+", "", part).rstrip(".") for part in re.split(r",?\s*\band\b\s*|\s*[,;&]\s*", text)]
    parts = [part for part in parts if part]
    return sorted(set(parts)) if all(len(part) == 1 for part in parts) else parts


# ---------------------------------------------------------------- tokens

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
