"""Rewrites the text of an answer, LaTeX or plain, so that everything has one spelling: equal answers are then often
equal strings, and the parser has less to know.

Most of it is tables: commands and characters with the same meaning, then rules, each a regular expression and what
takes its place. In the cleaned text, words stand between U+E000 and U+E001.
"""

import re
import unicodedata
from collections.abc import Callable

from grader.text import table

SYMBOLS = table(  # LaTeX commands that mean the same as a character or as another command
    r"""≤ leq leqslant le leqq  ≥ geq geqslant ge geqq  ≠ neq ne  ≈ approx simeq approxeq sim  < lt  > gt  ∈ in
    ∪ cup bigcup  ∩ cap bigcap  ∖ setminus backslash smallsetminus  ≡ equiv  : colon  … ldots dots cdots dotsc
    * cdot times ast  / div  ± pm  ∓ mp  ∞ infty  ' prime  ° circ degree degrees textdegree  ¢ cent textcent
    | lvert rvert vert mid lVert rVert Vert  \frac dfrac tfrac cfrac  \binom dbinom tbinom  \log_{10} lg
    \{ lbrace  \} rbrace  [ lbrack  ] rbrack  ( langle lparen  ) rangle rparen  or lor vee  and land wedge
    \phi varphi  \epsilon varepsilon  \theta vartheta  ∅ emptyset varnothing  ∀ forall  T top intercal
    NONE left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr quad qquad limits displaystyle textstyle
    NONE scriptstyle large Large small normalsize angle measuredangle triangle rm bf it pounds euro boxed fbox nonumber
    NONE checkmark blacksquare square Box qed ensuremath underline displaylimits"""
)
CHARS = str.maketrans(
    table(
        r"""- − – —  * × · ⋅ ∗  / ÷ ⁄ ∕  ° º  ' ′ ’  '' ″  , 、  NONE ￥ € £  ( ⟨ 〈  ) ⟩ 〉  ≤ ⩽  ≥ ⩾  ∖ ⧵
        \sqrt[3] ∛  \mathbb{R} ℝ  \mathbb{Z} ℤ  \mathbb{N} ℕ  NONE ✓ ✔ ■ □ ∎ ∠ △  \therefore ∴  \implies ⇒ ⟹
        ; ；  : ： ∶  . 。  ¢ ￠"""
    )
    | {"\ue000": "?", "\ue001": "?", "\u200b": "", "\ufeff": ""}
    | {"或": " or ", "和": " and ", "与": " and ", "且": " and "}
)
LETTERS = "pi alpha beta gamma theta lambda mu phi omega lfloor rfloor lceil rceil".split()
GREEK_CHARS = str.maketrans({char: f"\\{name} " for char, name in zip("παβγθλμφω⌊⌋⌈⌉", LETTERS, strict=True)})
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "coth", "exp", "ln", "log", "cis"}
FUNCTIONS |= {"arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "arcsinh", "arccosh", "arctanh"}
OPERATORS = {"gcd", "lcm", "det", "max", "min", "arg", "deg", "dim", "Re", "Im", "Pr", "operator"}  # kept as names
NUMBERS = {
    word: n for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
NUMBERS |= {"sixteen": 16}

# ---------------------------------------------------------------- rules

Rule = tuple[str, re.Pattern, str | Callable[[re.Match], str]]  # a text without the first is left alone


def rules(*rows: tuple[str, str, str | Callable[[re.Match], str]]) -> list[Rule]:
    return [(needle, re.compile(pattern), meant) for needle, pattern, meant in rows]


def apply(rows: list[Rule], text: str) -> str:
    for needle, pattern, meant in rows:
        if needle in text:
            text = pattern.sub(meant, text)
    return text


LATEX = rules(  # before commands become symbols
    ("\\", r"^.*\\(?:implies|Rightarrow|Longrightarrow|therefore)(?![A-Za-z])(?=.*\d)", ""),  # the conclusion
    ("\\", r"\\(?:left|right)\s*\.|\\#", ""),
    ("\\", r"\\(?:based|operator)(?![A-Za-z])", r"\\unknown"),  # commands of our own, see _based
    ("\\", r"\\(?:hspace|vspace|tag|label|color|textcolor)\*?\s*\{[^{}]*\}", " "),
    (
        "",
        r"\\(?:mathbf|vec|hat|boldsymbol|bm)\s*\{(?:\\(?:hat|vec)\s*\{)?\s*\\?([ijk])(?:math)?\s*\}+",
        r" e_{\1} ",
    ),  # unit vectors
    ("phantom", r"\\phantom\s*(?:\{[^{}]*\}|[^\\{])", " "),
    ("\\", r"(?<!\\)\\([()\[\]])", " "),  # \( \) and \[ \]
    ("\\$", r"^\\\$([\d.,\\!{}\s]+)$", r"\1\\text{dollars}"),  # within more text a dollar sign says nothing
    ("\\", r"\\([%|])", r"\1"),
    ("\\$", r"\\\$", ""),
    # 11,\! 111,\! 111 and 58\,500 are thousands wherever they stand; a bare comma is decided by the tokenizer
    ("\\", r"(?<=\d)\s*(?:,\s*\\!|\\,)\s*(?=\d{3}(?!\d))", ""),
    ("\\\\", r"\\\\\s*\[-?[\d.]+\s*[a-z]{2}\]", r"\\\\"),  # \\[4pt] between rows
    ("\\", r"(\\\\)|\\[,;:!> ]", lambda m: m[1] or " "),
)
SYMBOLIC = rules(  # right after
    ("  ", r"\s+", " "),
    ("\\mu", r"\\mu\s*\ue000\s*", "\ue000μ"),
    ("Omega", r"(?<=\d)\s*\\Omega\s*$", "\ue000Ω\ue001"),
    ("\\dot", r"\\dot\s*\{?(\d)\}?\s*(\d*)\s*\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),
    ("\\over", r"\{\s*(\d+)\s*\\over\s*(\d+)\s*\}", r"\\frac{\1}{\2}"),  # may be a mixed number's fraction
    ("R", r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\s*\+\s*\}?|_\s*\{\s*>\s*0\s*\}|_\s*\{?\+\}?)", "(0,∞)"),
    ("R", r"\\mathbb\s*\{?\s*R\s*\}?\s*_\s*\{\s*≥\s*0\s*\}", "[0,∞)"),
    ("R", r"(\\mathbb\s*\{?\s*R\s*\}?)\s*-\s*(?=\\\{)", r"\1∖"),
)
CHANGES = (
    r"(?i:\b(?:not|cannot|never|than|false|wrong|more|less|least|most|half|twice|double|triple|opposite|square)\b|n't)"
)


def _per(match: re.Match) -> str:
    below = re.sub("[\ue000\ue001{}\\s]", "", match[2]).replace("*", "/")
    return f"\ue000{match[1]}/{below}\ue001"


LEAD = rf"^\ue000\s*(?:(?!{CHANGES})[^\ue001])*(?:\bis|\bare|:)\s*\ue001\s*(?=\S)"
REASON = r"\ue000[\s,]*\(?\s*(?:since|because|attained|achieved|reached)\b[^\ue001]*\ue001(?!\s*[-+*/^]).*$"
WORD = r"\ue000([^\ue001]*)\ue001"
UNIT_FRACTION = rf"\\frac\s*\{{\s*{WORD}\s*\}}\s*\{{((?:{WORD}|[\s*^\d-]|\{{-?\d\}})*)\}}"
REALS = r"^\ue000?\s*(?:all |any |every )?reals?(?: numbers?)?(?: x)?\s*"
WORDS = rules(
    ("\ue000", LEAD, ""),  # \text{Area: } 9
    ("nswer", r"\ue000\s*[Aa]nswer\s*\ue001\s*:", ""),
    ("answer", r"\ue000\s*is (?:the|our|my) (?:final |correct |required )?answer\W*\ue001$", ""),
    ("\ue000", REASON, ""),  # x = 5 \text{ (since } x > 0)
    ("\ue000", r"\ue000[ ,]*\((?:double|triple|repeated|simple) (?:root|zero|solution)s?\) *\ue001", ""),
    ("multipl", r"\ue000[ ,]*\((?:with )?multiplicity \d+\) *\ue001", ""),
    ("\ue000", r"\ue000[ ,]*(?:or )?(\(?) *(?:approximately|approx|about|roughly)\.? *\ue001", r"\1≈"),
    ("\ue000", r"\ue000\s*\(\s*(?:or|equivalently|i\.e\.|that is),?\s*\ue001([^()]*)\)", r" or \1"),
    ("\ue000", r"^\ue000\s*(?:negative|minus)\s*\ue001\s*(?=[\d\\.])", "-"),
    (
        "frac",
        rf"\\frac\s*\{{\s*{WORD}\s*\}}\s*\{{(({WORD}|[\s*^\d-]|\{{-?\d\}})*)\}}",
        _per,
    ),  # \frac{\text{m}}{\text{s}^2}
    ("(\ue000", rf"(?<=[^\s(A-Za-z])\s*\(({WORD}(?:\s*\^\s*\{{?\d\}}?)?)\s*\)", r"\1"),  # 12 (\text{cm}^2)
    ("\ue000o", r"\^\s*\{?\s*\ue000o\ue001\s*\}?", "°"),  # 10^{\text{o}}
    ("\ue000", r"\ue000([0-9A-Z]+)\ue001(?=[0-9A-Z]+[)}]?_)", r"\1"),  # (\text{B}4)_{12}
    ("real", rf"{REALS}\ue001?$", r"\\mathbb{R}"),
    ("real", rf"{REALS}(?:except|other than|but)\s*\ue001?(.+)$", r"\\mathbb{R}∖\\{\1\\}"),
)


def _based(match: re.Match) -> str:
    """A number with its base as a command of our own."""
    written = match["base"] or match["short"] or match["named"]
    base, digits = int(NUMBERS.get(written, str(written).replace(" ", ""))), match["digits"]
    valid = 2 <= abs(base) <= 36 and all(int(d, 36) < abs(base) for d in digits if d != ".")
    letters_only = not any(d.isdigit() for d in digits)
    if not valid or (letters_only and (base <= 10 or len(digits) == 1 and not match["open"])):
        return match[0]
    outside = "" if match["close"] else match["open"]  # {111_8}
    return f"{outside}\\based{{{digits}}}{{{base}}}"


def _repeating(match: re.Match) -> str:
    """0.1\\overline{6} and 0.1(6) are 0.1 + 6/90."""
    whole, decimals, block = match[1], match[2], match[3] or match[4] or match[5]
    return f"({whole or 0}.{decimals}+{block}/{'9' * len(block)}{'0' * len(decimals)})"


def _going_on(match: re.Match) -> str:
    """0.1666… is 0.1\\overline{6}: three equal digits, a longer block twice, or nothing but the block."""
    head, block = match[1], match[2]
    whole = head.endswith(".") or len(block) > 1 or len(match[0]) - len(head) > 3
    return f"{head}\\overline{{{block}}}" if whole else match[0]


def _interval(match: re.Match) -> str:
    """[2, 5[ and ]2, 5] as the French write them."""
    return f"{'(' if match[1] == ']' else '['}{match[2]}{')' if match[3] == '[' else ']'}"


def _minutes(match: re.Match) -> str:
    seconds = f"+{match[3]}/3600" if match[3] else ""
    return f"({match[1]}+{match[2]}/60{seconds})°"


def _mixed(match: re.Match) -> str:
    """1\\frac45 is 9/5, but 2\\frac{5}{3} a product."""
    whole, top, bottom = match[1], match[2] or match[3], match[4] or match[5]
    return f"({whole}+{top}/{bottom})" if 0 < int(top) < int(bottom) else match[0]


DIGITS = r"(?:\{\s*(\d+)\s*\}|(\d))"
REPEATING = r"(?<![\d.])(\d*)\.(\d*)\s*(?:\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))|\(\s*(\d+)\s*\))(?!\s*\d)"
BASE = rf"(?:-\s*)?\d\d?|{'|'.join(NUMBERS)}"
BASED = (  # 204_5, 204_{\text{five}}, (A5)_{11}, 204 \text{ (base 5)}
    r"(?<![\w.^\\])(?P<open>[({\ue000]?)\s*(?P<digits>[0-9A-Z]+(?:\.[0-9A-Z]+)?)\s*(?P<close>[)}\ue001]?)\s*"
    rf"(?:_\s*(?:\{{[\s\ue000(]*(?:base)?[\s\ue001]*(?P<base>{BASE})[\s\ue001)]*\}}|(?P<short>\d))"
    rf"|[\s\ue000(]*(?:in )?base[\s\ue001-]*(?P<named>{BASE})[\s\ue001)]*$)"
)
NOTATION = rules(  # whatever the text was
    ("≈", r"\(\s*(≈[^()]*)\)", r" \1"),
    ("{", r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))", ""),  # 1{,}008
    ("{:}", r"\{:\}", ":"),
    ("~", r"(?<=\d)~(?=\d{3}(?!\d))", ""),
    ("~", "~", " "),
    (" ", r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,]| *\d)", lambda m: m[0].replace(" ", "")),  # 58 500
    ("to", r"(?<=[\d\ue000])\s*\ue000?\s*to\s*\ue001?\s*(?=\d)", ":"),  # 3 to 5
    (" ", r"(?<![\w.,/^\\}])(?<!frac )(\d+)\s+(\d+)/(\d+)(?![\d.])", r"(\1+\2/\3)"),  # 3 1/2
    ("$", r"\$", " "),
    ("  ", r"\s+", " "),
    ("^", r"(?<![A-Za-z\\])([fgh])\s*\^\s*\{\s*-\s*1\s*\}(?=\s*\()", r"\1_{-1}"),  # f^{-1}(3), a name
    ("^", r"\^\s*(?:°|\{\s*°\s*\})", "°"),
    ("^", r"\^\s*(?:\{\s*((?:'\s*)+)\}|('+))", lambda m: (m[1] or m[2]).replace(" ", "")),
    ("_", BASED, _based),
    ("base", BASED, _based),
    ("per cent", "per cent", "percent"),
    ("**", r"\*\*", "^"),
    ("<=", "<=", "≤"),
    (">=", ">=", "≥"),
    ("!=", "!=", "≠"),
    ("...", r"\.\.\.", "…"),
    ("…", r"(?<![\d.])(\d*\.\d{0,9}?)(\d{1,9}?)\2+\s*…", _going_on),
    (".", REPEATING, _repeating),
    ("mod", r"\(\s*(?:\\[bp]?mod|mod|\ue000\s*mod\s*\ue001)\s*([^()]*)\)", r"\\pmod{\1}"),
    ("", r"^[\s{}\ue000]*(\d+)[\s{}^\ue000\ue001]*(?:st|nd|rd|th)[\s{}.\ue001]*$", r"\1"),
    ("", r"\b([A-Za-z]{3,} \d{1,2})(?:st|nd|rd|th)\b", r"\1"),  # March 5th
    (":", r"\b([AaPp])\.?[Mm]\b\.?", lambda m: m[1].lower() + "m"),  # 5:30 p.m.
    ("", r"(?<![^\s∪∩∖∈=,])([][])([^][()]*[,;][^][()]*)([][])", _interval),
    # 1e-5; but 2e-1 within an expression is twice e, less one
    ("", r"((?:^[\s{]*|,)\s*[-+]?\s*\d+)[eE]\s*([-+])\s*(\d+)(?=[\s.}]*$|\s*[,\ue000°%])", r"\1*10^{\2\3}"),
    ("√", r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
    ("√", "√", r"\\sqrt "),
    ("°", r"(?<!\ue000)°\s*([CFK])(?![A-Za-z])", "\ue000°\\1\ue001"),
    ("°", r"(\d+)\s*°\s*(\d+(?:\.\d+)?)\s*'(?!')(?:\s*(\d+(?:\.\d+)?)\s*'')?", _minutes),  # 41° 24' 35''
    ("''", r"(?<=\d)\s*''\s*$", "\ue000arcseconds\ue001"),
    ("'", r"(?<=\d)\s*'\s*$", "\ue000arcminutes\ue001"),
    ("frac", rf"(?<![\w.^_}}])(\d+)\s*\\frac\s*{DIGITS}\s*{DIGITS}", _mixed),  # 1\frac45
    ("{cases}", r"\ue000\s*(?:(?:if|for|when|where|is)\b[\s,]*)+", "\ue000"),
    ("\ue000\ue001", "\ue000\ue001", " "),
    ("", r"\s+", " "),
    ("", r"^\s*(?:[=≡]\s*)?|(?:[\s.,;]|\\\\)+$", ""),
    ("}", r"\.\s*\}$", "}"),  # \displaystyle \boxed{(1,2).}
)

# ---------------------------------------------------------------- cleaning

TEXT_COMMAND = re.compile(
    r"\\(text(?:bf|rm|it|sf|tt|normal|up)?|[mh]box|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|boldsymbol|bm|emph)"
    r"(?![A-Za-z])\s*(?:\{((?:[^{}]|\{[^{}]*\})*)\})?"
)
PREFIX = re.compile(r"(?i)^(?:the )?(?:final )?(?:answer|choice|option)(?: is)?(?:\s*:\s*|\s+)(?=\S)")
POWER = re.compile(r"\$?\^\s*(?:\{\s*-?\d+\s*\}|-?\d)\$?")


def _text_token(match: re.Match) -> str:
    """What replaces a TEXT_COMMAND: words stand between U+E000 and U+E001, a formula only loses its font command."""
    command, content = match.groups()
    if content is None:  # \mathbf{\frac{14}{3}}: drop the font, keep the group
        return " "
    words = PREFIX.sub("", content.strip()).replace("\\cdot", "·")
    following = match.string[match.end() : match.end() + 1]
    if words in FUNCTIONS and not (words == "sec" and following in ("", " ", "}", "$")):
        return f"\\{words} "
    if words in ("gcd", "lcm") or words in OPERATORS and command.startswith("operatorname"):
        return f"\\{words} "
    if words.isalpha() and following == "(" and (words[0].isupper() or command.startswith("operatorname")):
        return f"\\operator{{{words}}}"
    if not re.search(r"[\w°¢]", words):  # 12\text{,}345
        return content
    is_words = re.search("[A-Za-z°¢\u0370-\u03ff\u4e00-\u9fff]", words)
    is_words = is_words and not re.search(r"[\\\ue000{}=<>]|^[-+.]?\d", POWER.sub("", words))
    upright = command in ("text", "mathrm", "textrm", "mbox", "hbox")
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
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]).replace("⁄", "/"), text)
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀-₉]+", lambda m: "_{" + m[0].translate(SUBSCRIPTS) + "}", text)
    return unicodedata.normalize("NFKC", text)  # full-width and mathematical letters


def _letters(match: re.Match) -> str:
    """Outside of words, Greek letters are symbols, and Chinese ones and cents are words."""
    if match[0][0] == "\ue000":
        return match[0]
    return re.sub("[\u4e00-\u9fff]+|¢", "\ue000\\g<0>\ue001", match[0].translate(GREEK_CHARS))


def _clean_latex(text: str) -> str:
    while match := re.fullmatch(r"\$*\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*\$*", text, re.DOTALL):
        text = match[1].strip()
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped twice on its way through JSON
    text = apply(LATEX, text).replace("\\&", "&" if "\\begin" in text else " and ")
    text = re.sub(r"\\([A-Za-z]+)", _symbol, TEXT_COMMAND.sub(_text_token, text))
    return apply(SYMBOLIC, text)


def clean(text: str) -> str:
    """Rewrites notation that carries no meaning, so that parsing sees one spelling and equal strings are equal."""
    text = " ".join(text.split())  # from here on, no pattern meets a run of spaces
    if match := re.fullmatch(r"([*_`]{1,3})([^*_`]+)\1", text):  # emphasis in Markdown
        text = match[2].strip()
    ascii_only = text.isascii()
    if not ascii_only:
        text = _clean_unicode(text)
    if "\\" in text:
        text = _clean_latex(text)
    if not ascii_only or "¢" in text:
        text = re.sub("\ue000[^\ue001]*\ue001|[^\ue000]+", _letters, text)
    text = apply(NOTATION, apply(WORDS, text))
    text += "}" * (text.count("{") - text.count("\\{") - text.count("}") + text.count("\\}"))  # as published golds lack
    return str(NUMBERS.get(text.strip("\ue000\ue001{} ").lower(), text))
