"""Are two final answers the same mathematical object?  Reads LaTeX and plain text; used by reward.py only.

`equal(answer, gold)` goes through four steps, cheapest first, and none of them ever runs text as code:
  1. clean: strip `$`, \\boxed, spacing and style commands; write unicode and command synonyms one way; compare strings.
  2. parse: an own tokenizer and recursive-descent parser into `Node` trees. Whatever it does not know is refused,
     and then only the strings count.
  3. compare by type: tuples and intervals in order with their brackets, lists, sets and unions in any order without
     missing or extra members, plus-minus as both values, equations up to a factor, a label (`x =`) as mere format.
  4. compare scalars: exact `Fraction` arithmetic as far as it goes, mpmath at 400 bits beyond, at fixed pseudo-random
     rational points where there are variables (Schwartz-Zippel: different expressions agree there by accident only).
Sizes are bounded before anything is computed, and a work budget counted in operations (never in seconds) decides when
to give up, so the same pair gets the same verdict on every machine. Giving up means: not equal.
Label conventions: MATH for units, percent signs and money (may be absent), ../shared/reward/README.md for the rest.
"""

import itertools
import math
import random
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_CHARS = 2000  # the longest gold answer of the benchmarks has 204
MAX_DEPTH = 50  # and its brackets nest at most 4 deep
MAX_BITS = 100_000  # of an exact number; 2023^2024 has 22,000
MAX_FACTORIAL = 5000
MAX_WORK = 1_000_000  # for one pair, in units of very roughly half a microsecond: see Budget.spend and its callers
MAX_ITEMS = 100
PREC = 400  # bits of mpmath arithmetic
CANCELLED = 2.0**-320  # a sum this small against its terms is an exact zero: its own rounding is near 2^-395
SAME = 2.0**-300  # relative difference of two numbers that are the same


class Refused(Exception):
    """The text is outside the grammar, or a bound was hit: nothing can be said about its value."""


@dataclass(frozen=True)
class Node:
    """One parsed thing: `op` says what, `args` holds nodes, names, brackets or a Fraction."""

    op: str
    args: tuple = ()


STRUCTURES = {"seq", "set", "union", "matrix", "rel", "text", "based", "unit", "call"}


class Budget:
    """Counts work, so that the verdict does not depend on the speed or the load of the machine."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Refused("work budget spent")

    def exact(self, value: Fraction) -> Fraction:
        """Admits an exact value; the gcd behind every Fraction operation is quadratic in its bits."""
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        if bits > MAX_BITS:
            raise Refused("number too long")
        self.spend(5 + (bits >> 7) ** 2 // 64)
        return value


# ---------------------------------------------------------------- cleaning: one spelling for everything


def _table(groups: str) -> dict[str, str]:
    """Groups `target name name ...`, two spaces or a line apart, as {name: target}; target NONE is the empty string."""
    rows = [group.split() for group in re.split(r"\s{2,}", groups.strip())]
    return {name: "" if row[0] == "NONE" else row[0] for row in rows for name in row[1:]}


SYMBOLS = _table(  # LaTeX commands that mean the same as a character or as another command
    r"""≤ leq leqslant le leqq  ≥ geq geqslant ge geqq  ≠ neq ne  ≈ approx simeq approxeq sim  < lt  > gt  ∈ in  ∪ cup
    * cdot times ast  / div  ± pm  ∓ mp  ∞ infty  ' prime  ° circ degree degrees  | lvert rvert vert mid
    \frac dfrac tfrac cfrac  \binom dbinom tbinom  \{ lbrace  \} rbrace  [ lbrack  ] rbrack  , land lor  \log_{10} lg
    \phi varphi  \epsilon varepsilon  \theta vartheta  ∅ emptyset varnothing
    NONE left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr quad qquad limits displaystyle textstyle
    NONE scriptstyle large Large small normalsize angle rm bf it pounds euro"""
)
GREEK_NAMES = "pi alpha beta gamma theta lambda mu phi omega".split()
CHARS = str.maketrans(
    _table(
        r"""- − – —  * × · ⋅ ∗  / ÷ ⁄ ∕  ° º  ' ′ ’  '' ″  , ， 、  ; ；  ( （  ) ）  % ％  ≤ ⩽  ≥ ⩾  NONE ￥ € £
        \sqrt[3] ∛  \mathbb{R} ℝ"""
    )
    | {"\ue000": "?", "\ue001": "?", "\u200b": "", "\ufeff": ""}
    | {letter: f"\\{name} " for letter, name in zip("παβγθλμφω", GREEK_NAMES, strict=True)}
)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
TEXT_COMMAND = re.compile(
    r"\\(text(?:bf|rm|it|sf|tt|normal|up)?|[mh]box|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|boldsymbol|bm|emph)"
    r"(?![A-Za-z])\s*(?:\{([^{}]*)\})?"
)


def _text_token(match: re.Match) -> str:
    """Words become a text token between private-use marks; formulas in a font command become plain formulas."""
    content = match.group(2)
    if content is None:  # \mathbf{\frac{14}{3}}: drop the font, keep the group
        return " "
    words = content.strip()
    is_words = re.search("[A-Za-z]", words) and not re.search(r"[\\\ue000{}=<>]|^[-+.]?\d", words)
    if not is_words or words in ("e", "i", "d") or (len(words) == 1 and match.group(1) in ("mathbf", "mathit", "bm")):
        return f" {content} "
    return f"\ue000{words}\ue001"


def clean(text: str) -> str:
    """Rewrites notation that carries no meaning, so that parsing sees one spelling and equal strings are equal."""
    text = text.strip()
    while match := re.fullmatch(r"\$*\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*\$*", text, re.DOTALL):
        text = match.group(1).strip()
    text = text.translate(CHARS)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m.group()).replace("⁄", "/"), text)
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀-₉]+", lambda m: "_{" + m.group().translate(SUBSCRIPTS) + "}", text)
    text = re.sub(r"\\(?:left|right)\s*\.", "", text)
    text = text.replace("\\$", "").replace("\\(", " ").replace("\\)", " ").replace("$", " ").replace("\\%", "%")
    # 11,\! 111 and 1{,}008 and 58\,500 are thousands wherever they stand; a bare comma is decided by the tokenizer
    text = re.sub(r"(?<=\d)\s*(?:\{\s*,\s*\}|,\s*\\!|\\,|~)\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,]| *\d)", lambda m: m.group().replace(" ", ""), text)
    text = re.sub(r"\\\\|\\[,;:!> ]|~", lambda m: m.group() if m.group() == "\\\\" else " ", text)
    text = TEXT_COMMAND.sub(_text_token, text)
    text = re.sub(r"\\([A-Za-z]+)", lambda m: m.group() if m[1] not in SYMBOLS else SYMBOLS[m[1]] or " ", text)
    text = re.sub(r"\^\s*(?:°|\{\s*°\s*\})", "°", text)
    text = re.sub(r"\^\s*(?:\{\s*((?:'\s*)+)\}|('+))", lambda m: (m[1] or m[2]).replace(" ", ""), text)
    text = text.replace("**", "^").replace("<=", "≤").replace(">=", "≥").replace("!=", "≠")
    text = re.sub(r"[({]\s*(\d+)\s*[)}]\s*_", r"\1_", text)  # (52)_8 is 52_8
    text = re.sub(r"(?<![\d.,/^_\\])(\d+)\s+(\d+)/(\d+)(?![\d.])", r"(\1+\2/\3)", text)  # 3 1/2
    text = re.sub(r"\{\s*(\d+)\s*\\over\s*(\d+)\s*\}", r"\\frac{\1}{\2}", text)  # may be the fraction of a mixed number
    return re.sub(r"\s+", " ", text).strip().rstrip(".").rstrip()


def _squeeze(cleaned: str) -> str:
    """The string compared as text: no spaces (but 1 2 is not 12), no text marks, (C) as C."""
    plain = re.sub("[\ue000\ue001]", "", cleaned)
    plain = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain).rstrip(".")
    match = re.fullmatch(r"\(([A-Z])\)", plain)
    return match.group(1) if match else plain


def _is_words(cleaned: str) -> bool:
    """Wholly a text answer: one \\text{...} of letters or more, or plain words too long for a product of variables."""
    if "\ue000" in cleaned:
        return re.fullmatch(r"(?:[\s().,]|\ue000[A-Za-z .,'()&:;-]*\ue001)*", cleaned) is not None
    return re.fullmatch(r"(?:[A-Za-z]{4,}|[Yy]es|[Nn]o)(?:[ ,]+[A-Za-z]+)*", cleaned) is not None


# ---------------------------------------------------------------- tokens

TOKEN = re.compile(
    r"""(?P<repeat>\d*\.\d*\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d))
      | (?P<num>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>\ue000[^\ue000\ue001]*\ue001)
      | (?P<env>\\(?:begin|end)\s*\{[a-z]+\}(?:\s*\{[lcr|\s]+\})?)
      | (?P<cmd>\\(?:[A-Za-z]+|[\\{}|]))
      | (?P<word>[A-Za-z]+)
      | (?P<op>[-+*/^_=<>≤≥≠≈∈∪±∓∞∅°(){}\[\]|,;%'√!&])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
COMMA_RUN = re.compile(r"\d+(?:,\d+)+(?:\.\d+)?")
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
FUNCTIONS = {"sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "coth", "exp", "ln", "log"}
FUNCTIONS |= {"arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "arcsinh", "arccosh", "arctanh"}
GREEK = set("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon".split())
GREEK |= set("phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell odot max min".split())
ACCENTS = {"overline", "bar", "hat", "vec", "dot", "ddot", "tilde", "widehat", "mathbb", "mathcal"}
UNIT_NAMES = _table(  # two answers whose units are known and differ are different answers
    """m m meter metre  cm cm centimeter  mm mm  km km kilometer  in in inch inche  ft ft foot feet  yd yd yard
    mi mi mile  s s sec second  min min minute  h h hr hour  day day  week week  yr yr year  g g gram
    kg kg kilogram  mph mph  ° degree deg  % pct percent  $ dollar  ¢ cent  hz hz  mol mol  K k  C c  F f  J j  N n
    V v  W w  A a  T t  L l
    NONE sq square cubic cu per unit"""
)
SHORT_UNITS = {"cm", "mm", "km", "kg", "hz", "ft", "sec", "min", "hr", "mph", "pct", "deg", "sq", "hrs", "inch", "feet"}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
HEDGES = set(  # words after a number that change what is claimed; any other word there counts as its unit
    "or and if maybe not no more less most least about approximately approx around nearly than otherwise except to "
    "between either but when unless for where is was are possibly plus minus times over under wrong unknown at then "
    "else only mod modulo factorial squared cubed half halves third thirds quarter score negative base none undefined "
    "neither any all some with by power root".split()
)


def tokenize(cleaned: str, merge_thousands: bool) -> list[tuple[str, str]]:
    """(kind, value) pairs, ended by ("end", ""). A comma run of the right shape is one number outside ( [ and \\{."""
    tokens: list[tuple[str, str]] = []
    brackets, pos = [], 0
    while pos < len(cleaned):
        run = COMMA_RUN.match(cleaned, pos)
        inside_run = pos > 1 and cleaned[pos - 1] == "," and cleaned[pos - 2].isdigit()
        if run and merge_thousands and not inside_run and not brackets and THOUSANDS.fullmatch(run.group()):
            tokens.append(("num", run.group().replace(",", "")))
            pos = run.end()
            continue
        match = TOKEN.match(cleaned, pos)
        if not match:
            raise Refused(f"unknown character {cleaned[pos]!r}")
        kind, value, pos = match.lastgroup, match.group(), match.end()
        if kind == "word":
            tokens += _word_tokens(value, tokens[-1] if tokens else ("start", ""))
        elif kind == "text" and value[1:-1].strip(" ,;").lower() in ("and", "or", ""):
            tokens.append(("sep", "and"))
        elif kind != "space":
            tokens.append((kind, value[1:-1] if kind == "text" else re.sub(r"\s", "", value)))
        if value in ("(", "[", "\\{"):
            brackets.append(value)
        elif value in (")", "]", "\\}") and brackets:
            brackets.pop()
    return [*tokens, ("end", "")]


def _word_tokens(word: str, previous: tuple[str, str]) -> list[tuple[str, str]]:
    """A run of letters is a function, a constant, a unit after a number, words, or a product of one-letter symbols."""
    if word in FUNCTIONS:
        return [("fn", word)]
    if word in ("pi", "sqrt"):
        return [("cmd", "\\" + word)]
    if word.lower() in ("and", "or"):
        return [("sep", "and")]
    if word.lower() in ("inf", "infty", "infinity", "oo"):
        return [("sym", "∞")]
    if previous[0] in ("num", "text") and word.lower() in SHORT_UNITS or len(word) > 3 and word[1:].islower():
        return [("text", word)]
    if len(word) > 6:
        raise Refused("words")
    return [("sym", letter) for letter in word]


# ---------------------------------------------------------------- parsing


def num(value: int | Fraction) -> Node:
    return Node("num", (Fraction(value),))


def scalar(node: Node) -> Node:
    if node.op in STRUCTURES:
        raise Refused(f"arithmetic on a {node.op}")
    return node


def product(*factors: Node) -> Node:
    """Scalars multiply; one matrix among the factors takes the others into its entries."""
    matrices = [f for f in factors if f.op == "matrix"]
    if len(matrices) == 1 and len(factors) > 1:
        rest = [f for f in factors if f.op != "matrix"]
        return Node("matrix", tuple(tuple(product(*rest, entry) for entry in row) for row in matrices[0].args))
    flat = [g for f in factors for g in (f.args if scalar(f).op == "mul" else (f,))]
    return flat[0] if len(flat) == 1 else Node("mul", tuple(flat))


def quotient(top: Node, bottom: Node) -> Node:
    return product(top, Node("inv", (scalar(bottom),)))


def literal(text: str) -> Fraction:
    """12, .5, 1.70e4 exactly; the exponent is bounded before the number is built."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent) > 5:
        raise Refused("exponent too large")
    power = Fraction(10) ** int(exponent or 0)
    whole, _, decimals = mantissa.partition(".")
    return Fraction(int((whole + decimals) or "0"), 10 ** len(decimals)) * power


def repeating(text: str) -> Fraction:
    """0.3\\overline{6} = 3/10 + 6/90."""
    head, tail = re.split(r"\\[a-z]+", text)
    tail, decimals = tail.strip("{}"), len(head) - head.index(".") - 1
    return literal(head if head != "." else "0") + Fraction(int(tail), (10 ** len(tail) - 1) * 10**decimals)


class Parser:
    """Recursive descent: items > relation > side > sum > term > factor > atom. Raises Refused, nothing else."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.pos, self.depth, self.bars = tokens, 0, 0, 0

    @property
    def kind(self) -> str:
        return self.tokens[self.pos][0]

    @property
    def value(self) -> str:
        return self.tokens[self.pos][1]

    def take(self) -> str:
        if self.kind == "end":
            raise Refused("text ends too early")
        self.pos += 1
        return self.tokens[self.pos - 1][1]

    def accept(self, *values: str) -> str:
        return self.take() if self.value in values and self.kind not in ("text", "end") else ""

    def expect(self, *values: str) -> str:
        if got := self.accept(*values):
            return got
        raise Refused(f"expected {values[0]}")

    def whole(self) -> list[Node]:
        items = self.items()
        if self.kind != "end":
            raise Refused("text left over")
        return items

    def items(self) -> list[Node]:
        found = [self.relation()]
        while self.kind == "sep" or self.value in (",", ";"):
            if self.accept(",", ";"):
                if self.kind == "sep":  # 1, 2, and 3
                    self.take()
            else:
                self.take()
            found.append(self.relation())
        if len(found) > MAX_ITEMS:
            raise Refused("too many items")
        return found

    def relation(self) -> Node:
        sides, ops = [self.side()], []
        while op := self.accept(*"=<>≤≥≠≈∈"):
            ops.append(op)
            sides.append(self.side())
        return Node("rel", (tuple(ops), tuple(sides))) if ops else sides[0]

    def side(self) -> Node:
        parts = [self.sum()]
        while self.accept("∪"):
            parts.append(self.sum())
        node = parts[0] if len(parts) == 1 else Node("union", tuple(parts))
        return self.units(node) if self.kind == "text" else node

    def units(self, node: Node) -> Node:
        """Words after a scalar are its unit (MATH: the same answer without them), unless they say something else."""
        scalar(node)
        words: list[str] = []
        while self.kind == "text":
            words += re.findall(r"[A-Za-z]+", self.take())
            if self.accept("^"):
                self.exponent()
            if self.value == "/" and self.tokens[self.pos + 1][0] == "text":
                self.take()
        lowered = [word.lower() for word in words]
        if len(words) > 5 or HEDGES.intersection(lowered) or (len(words) == 1 == len(words[0]) and symbols(node)):
            raise Refused("words that may change the meaning")
        if any(len(word) == 1 and word.lower() not in UNIT_NAMES for word in words):
            raise Refused("a letter that is no unit")
        for word in lowered:
            node = product(node, num(SCALES[word])) if word in SCALES else node
        lowered = [word for word in lowered if word not in SCALES]
        named = {UNIT_NAMES.get(w, UNIT_NAMES.get(w.rstrip("s"), "?")) for w in lowered} - {""}
        return Node("unit", (node, frozenset(named))) if named else node

    def sum(self) -> Node:
        terms = []
        while not terms or self.value in ("+", "-", "±", "∓"):
            negative, choice = False, ""
            while sign := self.accept("+", "-", "±", "∓"):
                negative ^= sign == "-"
                choice = {"±": "pm", "∓": "mp"}.get(sign, choice)
            term = self.term()
            if negative:
                term = Node("based", (-term.args[0], term.args[1])) if term.op == "based" else product(num(-1), term)
            terms.append(Node(choice, (scalar(term),)) if choice else term)
        return terms[0] if len(terms) == 1 else Node("add", tuple(scalar(t) for t in terms))

    def term(self) -> Node:
        factors = [self.factor()]
        while True:
            if self.accept("*"):
                factors.append(self.signed_factor())
            elif self.accept("/"):
                factors.append(Node("inv", (scalar(self.signed_factor()),)))
            elif self.starts_atom():
                if self.kind == "num" and self.tokens[self.pos - 1][0] == "num":
                    raise Refused("two numbers side by side")
                opened, right = self.value == "(", self.factor()
                closed = opened and self.tokens[self.pos - 1][1] == ")"
                if closed and factors[-1].op == "sym" and right.op == "num":  # I(0) is a name, not I times 0
                    factors[-1] = Node("sym", (f"{factors[-1].args[0]}({right.args[0]})",))
                    continue
                if closed and factors[0].op == "sym" and len(factors) == 1 and self.at_end():
                    return Node("call" if right.op == "seq" else "apply", (factors[0], right))  # f(x), or f times x
                factors.append(right)
            else:
                return product(*factors) if len(factors) > 1 else factors[0]

    def at_end(self) -> bool:
        return self.kind in ("end", "sep") or self.value in (*"=<>≤≥≠≈∈,;)]}", "\\}")

    def signed_factor(self) -> Node:
        return product(num(-1), self.signed_factor()) if self.accept("-") else self.factor()

    def starts_atom(self) -> bool:
        if self.kind in ("num", "repeat", "sym", "fn"):
            return True
        if self.kind == "env":
            return self.value.startswith("\\begin")
        if self.kind == "cmd":
            name = self.value[1:]
            known = ("frac", "binom", "sqrt", "pi", "lfloor", "lceil", "sum", "int", "lim")
            return name in known or name in FUNCTIONS or name in GREEK or name in ACCENTS
        return self.value in ("(", "[", "{", "√", "∞") or (self.value == "|" and not self.bars)

    def factor(self) -> Node:
        node = self.atom()
        while True:
            if self.accept("!"):
                if self.value == "!":
                    raise Refused("double factorial")
                node = Node("fact", (scalar(node),))
            elif self.accept("°"):
                node = Node("deg", (scalar(node),))
                if self.kind == "sym" and self.value in ("C", "F", "K"):
                    self.take()
            elif self.accept("%"):
                node = Node("percent", (scalar(node),))
            elif self.value == "'" and not symbols(scalar(node)):
                self.take()  # arc minutes and seconds: a unit
            elif self.accept("^"):
                node = Node("pow", (scalar(node), scalar(self.exponent())))
            else:
                return node

    def exponent(self) -> Node:
        sign = self.accept("-", "+")
        node = self.atom()
        if self.accept("^"):
            node = Node("pow", (scalar(node), scalar(self.exponent())))
        return product(num(-1), node) if sign == "-" else node

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Refused("nested too deeply")
        kind = self.kind
        if kind == "num":
            node = self.number()
        elif kind == "repeat":
            node = num(repeating(self.take()))
        elif kind == "sym" or self.value in ("∞", "∅"):
            node = self.symbol(self.take())
        elif kind == "text":
            node = self.words()
        elif kind == "fn":
            node = self.function(self.take())
        elif kind == "env":
            node = self.matrix()
        elif kind == "cmd":
            node = self.command(self.take())
        else:
            node = self.bracket()
        self.depth -= 1
        return node

    def number(self) -> Node:
        digits = self.take()
        if self.accept("_"):
            base = self.braced_text()
            if not (base.isdigit() and len(base) < 3 and 2 <= int(base) <= 36 and digits.isdigit()):
                raise Refused("not a base")
            if any(int(d) >= int(base) for d in digits):
                raise Refused("not a digit of the base")
            return Node(
                "based", (int(digits, int(base)), int(base))
            )  # 1_6 and 1_7 differ: the base is part of the answer
        node = num(literal(digits))
        if digits.isdigit() and self.value == "\\frac":  # 1\frac{4}{5} is a mixed number, 2\frac{x}{3} is a product
            start = self.pos
            self.take()
            top, bottom = self.argument(), self.argument()
            plain = top.op == bottom.op == "num" and top.args[0].denominator == bottom.args[0].denominator == 1
            if plain and 0 < top.args[0] < bottom.args[0]:
                return num(node.args[0] + top.args[0] / bottom.args[0])
            self.pos = start
        return node

    def symbol(self, name: str) -> Node:
        constant = {"e": "e", "i": "i"}.get(name)
        while True:
            if self.accept("_"):
                name += "_" + self.braced_text()
            elif self.accept("'"):
                name += "'"
            else:
                break
            constant = None
        return Node("const", (constant,)) if constant else Node("sym", (name,))

    def words(self) -> Node:
        """A text token where an operand should be: a letter or capitals are symbols, anything else is words."""
        content = [self.take()]
        if re.fullmatch(r"[A-Z]{1,6}|[A-Za-z]", content[0]):
            letters = [self.symbol(letter) for letter in content[0]]
            return product(*letters) if len(letters) > 1 else letters[0]
        while self.kind == "text":
            content.append(self.take())
        return Node("text", (" ".join(content).lower().strip(" ."),))

    def braced_text(self) -> str:
        """A subscript is part of a name: its tokens, joined."""
        if not self.accept("{"):
            return self.take().lstrip("\\")
        depth, parts = 1, []
        while depth:
            part = self.take()
            depth += (part == "{") - (part == "}")
            parts.append(part.lstrip("\\"))
        return "".join(parts[:-1])

    def argument(self) -> Node:
        """What TeX takes as an unbraced argument: one token, and of a number one digit (\\frac59)."""
        if self.kind == "num" and len(self.value) > 1 and self.value.isdigit():
            first, rest = self.value[0], self.value[1:]
            self.tokens[self.pos] = ("num", first)
            self.tokens.insert(self.pos + 1, ("num", rest))
            self.pos += 1
            return num(int(first))
        return scalar(self.atom())

    def command(self, command: str) -> Node:
        name = command[1:]
        if name == "frac":
            top = self.argument()
            return quotient(top, self.argument())
        if name == "binom":
            top = self.argument()
            return Node("binom", (top, self.argument()))
        if name == "sqrt":
            index = num(2)
            if self.accept("["):
                index = self.sum()
                self.expect("]")
            return Node("pow", (self.argument(), Node("inv", (scalar(index),))))
        if name in ("lfloor", "lceil"):
            inner = scalar(self.sum())
            self.expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return Node("floor" if name == "lfloor" else "ceil", (inner,))
        if name in FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return Node("const", ("pi",))
        if name in ACCENTS:
            return self.symbol(f"{name}({self.braced_text()})")
        if name in GREEK:
            return self.symbol(name)
        if name in ("sum", "int", "lim"):  # linear operators we do not compute: a constant named by the limits
            while part := self.accept("_", "^"):
                name += part + self.braced_text()
            return product(Node("sym", (name,)), self.term())
        if name == "{":
            return self.braces()
        raise Refused(f"unknown command {command}")

    def braces(self) -> Node:
        bars, self.bars = self.bars, 0
        items = [] if self.value == "\\}" else self.items()
        self.expect("\\}")
        self.bars = bars
        return Node("set", tuple(items))

    def bracket(self) -> Node:
        opened = self.expect("(", "[", "{", "|", "√")
        if opened == "√":
            return Node("pow", (scalar(self.atom()), num(Fraction(1, 2))))
        bars, self.bars = self.bars, int(opened == "|")
        if opened == "|":
            node = Node("abs", (scalar(self.sum()),))
            self.expect("|")
        elif opened == "{":
            node = self.group()
        else:
            items = self.items()
            closed = self.expect(")", "]")
            if len(items) == 1 and opened + closed not in ("()", "[]"):
                raise Refused("an interval with one end")
            node = items[0] if len(items) == 1 else Node("seq", (opened, closed, tuple(items)))
        self.bars = bars
        return node

    def group(self) -> Node:
        """{...}: a TeX group, {a \\over b}, {n \\choose k}; with commas a set whose braces lost their backslashes."""
        items = self.items()
        if operator := self.accept("\\over", "\\choose"):
            bottom, top = scalar(self.relation()), scalar(items[0])
            items = [quotient(top, bottom) if operator == "\\over" else Node("binom", (top, bottom))]
        self.expect("}")
        return items[0] if len(items) == 1 else Node("set", tuple(items))

    def matrix(self) -> Node:
        name = re.search(r"\{([a-z]+)", self.take()).group(1)
        if name not in ("pmatrix", "bmatrix", "matrix", "array", "smallmatrix"):
            raise Refused(f"environment {name}")  # vmatrix is a determinant
        rows = [[self.sum()]]
        while not self.value.startswith("\\end"):
            if self.accept("&"):
                rows[-1].append(self.sum())
            else:
                self.expect("\\\\")
                if not self.value.startswith("\\end"):
                    rows.append([self.sum()])
        self.take()
        return Node("matrix", tuple(tuple(scalar(entry) for entry in row) for row in rows))

    def function(self, name: str) -> Node:
        """\\sin^2 x, \\sin^{-1} x, \\log_2 n. Without brackets the argument ends at + - * / ( or the next function."""
        power, base = None, None
        while True:
            if name == "log" and self.accept("_"):
                base = self.argument() if self.kind != "num" else num(literal(self.take()))
            elif self.accept("^"):
                power = self.exponent()
            else:
                break
        if self.value in ("(", "[", "{", "|"):
            inner = self.atom()
        else:
            factors = [self.signed_factor()]
            while self.starts_atom() and self.kind != "fn" and self.value[1:] not in FUNCTIONS and self.value != "(":
                factors.append(self.factor())
            inner = product(*factors)
        if power == product(num(-1), num(1)) and name in ("sin", "cos", "tan", "sec", "csc", "cot"):
            name, power = "arc" + name, None
        node = Node("fn", (name, scalar(inner))) if base is None else Node("log", (scalar(base), scalar(inner)))
        return Node("pow", (node, scalar(power))) if power else node


def symbols(node: Any) -> set[str]:
    """The variables in a tree."""
    if not isinstance(node, Node):
        return set().union(*map(symbols, node)) if isinstance(node, tuple) else set()
    return {node.args[0]} if node.op == "sym" else symbols(node.args)


def contains(node: Any, *wanted: Node) -> bool:
    """Whether a node with one of these ops, and these first arguments, is anywhere in the tree."""
    if isinstance(node, Node):
        here = any(node.op == w.op and w.args == node.args[: len(w.args)] for w in wanted)
        return here or contains(node.args, *wanted)
    return isinstance(node, tuple) and any(contains(child, *wanted) for child in node)


# ---------------------------------------------------------------- values


@lru_cache(maxsize=1)
def _mpmath() -> Any:
    """A private context at our precision. mpmath is imported only here: most pairs never need it."""
    import mpmath

    context = mpmath.mp.clone()
    context.prec = PREC
    return context


def warm_up() -> None:
    """Pays the import of mpmath before a clock runs."""
    _mpmath()


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The real root of a Fraction where it is rational, by integer Newton iteration."""
    roots = []
    for part in (abs(value.numerator), value.denominator):
        root = math.isqrt(part) if degree == 2 else 1 << -(-part.bit_length() // degree)
        while degree > 2 and (better := ((degree - 1) * root + part // root ** (degree - 1)) // degree) < root:
            root = better
        if root**degree != part:
            return None
        roots.append(root)
    return Fraction(-roots[0] if value < 0 else roots[0], roots[1])


class Evaluator:
    """The value of a scalar tree at one point: a Fraction while that is possible, then mpmath real or complex."""

    def __init__(self, point: dict[str, Fraction], budget: Budget, log_base: int | None) -> None:
        self.point, self.budget, self.log_base = point, budget, log_base

    @property
    def mp(self) -> Any:
        return _mpmath()

    def number(self, value: Any) -> Any:
        """To mpmath."""
        self.budget.spend(20)
        return self.mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value

    def tidy(self, value: Any) -> Any:
        """Drops a real or imaginary part that is rounding noise, so that real stays real."""
        if not self.mp.isfinite(value):
            raise Refused("not finite")
        if isinstance(value, self.mp.mpc):
            if abs(value.imag) <= CANCELLED * abs(value.real):
                return value.real
            if abs(value.real) <= CANCELLED * abs(value.imag):
                return self.mp.mpc(0, value.imag)
        return value

    def value(self, node: Node, degree: Any = 1) -> Any:
        """`degree` is what one degree is worth: 1, or pi/180 inside a trigonometric function."""
        self.budget.spend(5)
        op, args = node.op, node.args
        if op == "num":
            return args[0]
        if op == "sym":
            return self.point[args[0]]
        if op == "const":
            return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[args[0]]
        if op == "fn":
            return self.function(args[0], args[1])
        values = [self.value(arg, degree) for arg in args]
        if op == "add":
            return self.add(values)
        if op in ("mul", "apply"):
            return self.multiply(values)
        if op in ("inv", "pow"):
            return self.power(values[0], Fraction(-1) if op == "inv" else values[1])
        if op == "deg":
            return self.multiply([values[0], degree if degree != 1 else Fraction(1)])
        if op == "percent":
            return self.multiply([values[0], Fraction(1, 100)])
        if op == "log":
            return self.multiply([self.log(values[1]), self.power(self.log(values[0]), Fraction(-1))])
        if op == "fact":
            return self.factorial(values[0])
        if op == "binom":
            return self.binomial(*values)
        if op == "abs":
            return abs(values[0])
        return self.floor(values[0]) if op == "floor" else -self.floor(-values[0])

    def add(self, values: list) -> Any:
        exact = Fraction(0)
        for value in (v for v in values if isinstance(v, Fraction)):
            exact = self.budget.exact(exact + value)
        rest = [v for v in values if not isinstance(v, Fraction)]
        if not rest:
            return exact
        rest.append(self.number(exact))
        total = self.mp.fsum(rest)
        return Fraction(0) if abs(total) <= CANCELLED * max(map(abs, rest)) else self.tidy(total)

    def multiply(self, values: list) -> Any:
        total = Fraction(1)
        for value in (v for v in values if isinstance(v, Fraction)):
            total = self.budget.exact(total * value)
        for value in (v for v in values if not isinstance(v, Fraction) and total != 0):
            total = self.tidy(self.number(total) * value)
        return total

    def power(self, base: Any, exponent: Any) -> Any:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            exact = self.exact_power(base, exponent)
            if exact is not None:
                return exact
        if base == 0:
            raise Refused("a power of zero")
        self.budget.spend(500)
        mp_base, mp_exponent = self.number(base), self.number(exponent)
        if abs(mp_exponent) * (1 + abs(self.mp.log(abs(mp_base), 2))) > 10**6:
            raise Refused("power too large")
        odd_root = isinstance(exponent, Fraction) and exponent.denominator % 2 == 1
        if odd_root and not isinstance(mp_base, self.mp.mpc) and mp_base < 0:  # school convention: cbrt(-8) = -2
            return self.tidy((-1) ** (exponent.numerator % 2) * (-mp_base) ** mp_exponent)
        return self.tidy(mp_base**mp_exponent)

    def exact_power(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        """None where the power is irrational. Sizes are bounded before the power is taken."""
        if base == 0 and exponent > 0 or base == 1:
            return base
        if exponent.denominator > 1:
            if exponent.denominator > 1000 or (base < 0 and exponent.denominator % 2 == 0):
                return None
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            self.budget.spend(bits * exponent.denominator // 16)
            root = _exact_root(base, exponent.denominator)
            return None if root is None else self.exact_power(root, Fraction(exponent.numerator))
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > MAX_BITS and base != -1:
            raise Refused("power too large")
        if base == 0:
            raise ZeroDivisionError("a power of zero")
        return self.budget.exact(base ** (exponent.numerator if base != -1 else exponent.numerator % 2))

    def log(self, value: Any) -> Any:
        if value == 0:
            raise ZeroDivisionError("log of zero")
        if value == 1:
            return Fraction(0)
        self.budget.spend(300)
        return self.tidy(self.mp.log(self.number(value)))

    def function(self, name: str, arg: Node) -> Any:
        trig = name not in ("exp", "ln", "log") and not name.endswith("h")
        value = self.value(arg, self.mp.pi / 180 if trig and not name.startswith("arc") else 1)
        if name in ("ln", "log"):
            natural = self.log(value)
            base = self.log_base if name == "log" else None
            return natural if base is None else self.multiply([natural, 1 / self.mp.log(base)])
        self.budget.spend(500)
        value = self.number(value)
        if abs(value) > 10**6:
            raise Refused("argument too large")
        short = {"arc" + n: "a" + n for n in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")}
        result = self.tidy(getattr(self.mp, short.get(name, name))(value))
        small = isinstance(result, self.mp.mpf) and abs(result) < CANCELLED < 2.0**200 * CANCELLED < abs(value)
        return Fraction(0) if small else result  # sin(pi) is rounding noise, sin(10^-200) is not

    def factorial(self, value: Any) -> Any:
        if isinstance(value, Fraction) and value.denominator == 1:
            if not 0 <= value <= MAX_FACTORIAL:
                raise Refused("factorial out of bounds")
            return self.budget.exact(Fraction(math.factorial(int(value))))
        value = self.number(value)
        if abs(value) > MAX_FACTORIAL:
            raise Refused("factorial out of bounds")
        self.budget.spend(2000)
        return self.tidy(self.mp.gamma(value + 1))

    def binomial(self, top: Any, bottom: Any) -> Any:
        whole = all(isinstance(v, Fraction) and v.denominator == 1 for v in (top, bottom))
        if whole and 0 <= bottom and 0 <= top <= MAX_FACTORIAL:
            return self.budget.exact(Fraction(math.comb(int(top), int(bottom))))
        below = [self.factorial(bottom), self.factorial(self.add([top, -bottom]))]
        return self.multiply([self.factorial(top), self.power(self.multiply(below), Fraction(-1))])

    def floor(self, value: Any) -> Fraction:
        if isinstance(value, Fraction):
            return Fraction(math.floor(value))
        if isinstance(value, self.mp.mpc):
            raise ZeroDivisionError("floor of a complex number")
        if abs(value) > 2.0**64:
            raise Refused("floor out of bounds")
        nearest = int(self.mp.nint(value))
        return Fraction(nearest if abs(value - nearest) < CANCELLED * 2**64 else int(self.mp.floor(value)))


# ---------------------------------------------------------------- comparing scalars


def same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    if a == 0 or b == 0:
        return a == b
    mp = _mpmath()
    a, b = (mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v for v in (a, b))
    return abs(a - b) <= SAME * max(abs(a), abs(b))


INTEGER_NAMES = set("jklmnN")  # what authors call integers; it matters where a step function is around


def _points(names: list[str], whole: bool, steps: bool = False) -> list[dict[str, Fraction]]:
    """Fixed points: three positive rationals, then two of mixed signs; or the integers 1..40, shuffled per name.

    Rationals have powers of two below, so that (-1)^x is never taken for real. With steps, n is an integer there too.
    """
    points = []
    for k in range(40 if whole else 5):
        point = {}
        for j, name in enumerate(names):
            dice, top = random.Random(f"{name}:{k}"), (7, 30, 120, 30, 15)[k % 5]
            if whole or (steps and name in INTEGER_NAMES):
                point[name] = Fraction((k * (1 + 2 * j) + j) % 40 + 1)
            else:
                sign = 1 if k % 5 < 3 else dice.choice((-1, 1))
                point[name] = Fraction(sign * (2 * dice.randint(0, top) + 1), dice.choice((16, 32)))
        points.append(point)
    return points


def values_at_points(nodes: list[Node], budget: Budget, log_base: int | None) -> list[list]:
    """The nodes' values at common points. Outside their real domain (no i in sight) expressions are not compared."""
    names = sorted(set().union(*map(symbols, nodes)))
    if not names:
        return [[Evaluator({}, budget, log_base).value(node) for node in nodes]]
    complex_allowed = any(contains(node, Node("const", ("i",))) for node in nodes)

    def rows(points: list[dict], only_real: bool) -> list[list]:
        found = []
        for point in points:
            try:
                row = [Evaluator(point, budget, log_base).value(node) for node in nodes]
            except ZeroDivisionError:
                continue
            if not only_real or all(isinstance(v, Fraction) or v.imag == 0 for v in row):
                found.append(row)
        return found

    steps = any(contains(node, Node("floor"), Node("ceil")) for node in nodes)
    found = rows(_points(names, False, steps), not complex_allowed)
    if steps:
        found += rows(_points(names, True), True)
    if len(found) < 2:
        found = rows(_points(names, True)[:8], True) or rows(_points(names, False), False)
    if len(found) < 2:
        raise Refused("no points where both are defined")
    return found


def _log_bases(*nodes: Node) -> tuple:
    """\\log without a base is natural for some, decimal for others: both are tried, the same on both sides."""
    return (None, 10) if any(contains(node, Node("fn", ("log",))) for node in nodes) else (None,)


def same_scalar(a: Node, b: Node, budget: Budget) -> bool:
    for log_base in _log_bases(a, b):
        if all(same_value(x, y) for x, y in values_at_points([a, b], budget, log_base)):
            return True
    return False


def proportional(a: Node, b: Node, positive: bool, budget: Budget) -> bool:
    """a = c b with one constant c, nonzero or positive: the same equation (a = 0) or inequality (a < 0)."""
    for log_base in _log_bases(a, b):
        rows = values_at_points([a, b], budget, log_base)
        evaluator = Evaluator({}, budget, None)
        if any((x == 0) != (y == 0) for x, y in rows):
            continue
        ratios = [evaluator.multiply([x, evaluator.power(y, Fraction(-1))]) for x, y in rows if y != 0]
        if len(ratios) > 1 and all(same_value(r, ratios[0]) for r in ratios):
            return not positive or (isinstance(ratios[0], Fraction) or ratios[0].imag == 0) and ratios[0] > 0
    return False


# ---------------------------------------------------------------- comparing by type


def _is_scalar(node: Node) -> bool:
    return node.op not in STRUCTURES


def _resolve(node: Any, upper: bool) -> Any:
    """Plus-minus with one choice of sign, minus-plus with the other."""
    if isinstance(node, tuple):
        return tuple(_resolve(child, upper) for child in node)
    if not isinstance(node, Node):
        return node
    args = _resolve(node.args, upper)
    if node.op in ("pm", "mp"):
        return args[0] if upper == (node.op == "pm") else product(num(-1), args[0])
    return Node(node.op, args)


def expand(items: list[Node]) -> list[Node]:
    """One flat list of solutions: sets are opened, plus-minus becomes two items, and in a tuple each independently."""
    found: list[Node] = []
    for item in items:
        if item.op == "set":
            found += expand(list(item.args))
        elif not contains(item, Node("pm"), Node("mp")):
            found.append(item)
        elif item.op == "seq":
            found += [Node("seq", (*item.args[:2], c)) for c in itertools.product(*(expand([x]) for x in item.args[2]))]
        else:
            found += [_resolve(item, True), _resolve(item, False)]
        if len(found) > MAX_ITEMS:
            raise Refused("too many items")
    return found


def _is_label(node: Node) -> bool:
    """x, x_0, f(x), (x, y), Area: a name for what follows, not a formula."""
    if node.op == "seq":
        return node.args[:2] == ("(", ")") and all(_is_label(x) for x in node.args[2])
    return node.op in ("sym", "text") or node.op in ("apply", "call") and node.args[1].op in ("sym", "num", "seq")


def _unlabel(node: Node) -> tuple[Node, Node] | None:
    """(label, value) of x = 5, f(x) = 1/x, x in [0, 1], 5 = x, and of 0 < x <= 1 or x < 3 as the interval they mean."""
    if node.op != "rel":
        return None
    ops, sides = node.args
    if ops in (("=",), ("∈",)):
        if _is_label(sides[0]):
            return sides[0], sides[1]
        return (sides[1], sides[0]) if ops == ("=",) and _is_label(sides[1]) else None
    if set(ops) <= set("<≤") or set(ops) <= set(">≥"):
        if ops[0] in ">≥":
            ops, sides = tuple({">": "<", "≥": "≤"}[op] for op in reversed(ops)), tuple(reversed(sides))
        infinity = Node("sym", ("∞",))
        if len(ops) == 1:
            low = sides[1].op == "sym"
            ops, sides = (
                (ops + ("<",), sides + (infinity,)) if low else (("<", *ops), (product(num(-1), infinity), *sides))
            )
        if len(ops) == 2 and sides[1].op == "sym":
            return sides[1], Node("seq", ("[("[ops[0] == "<"], "])"[ops[1] == "<"], (sides[0], sides[2])))
    return None


def solutions(items: list[Node]) -> tuple[set[Node], list[Node]]:
    """All labels, and the values behind them: x = 1, 2 labels both, x = 1 and y = 2 have two labels."""
    pairs = [_unlabel(item) for item in items]
    labels = {pair[0] for pair in pairs if pair}
    values = expand([pair[1] if pair else item for pair, item in zip(pairs, items, strict=True)])
    return labels, values


def match(a: list[Node], b: list[Node], budget: Budget) -> bool:
    """Any order, nothing missing, nothing extra. Sameness is transitive: the first partner found is as good as any."""
    if len(a) != len(b):
        return False
    rest = list(b)
    for x in a:
        partner = next((i for i, y in enumerate(rest) if same(x, y, budget)), None)
        if partner is None:
            return False
        del rest[partner]
    return True


def same_items(a: list[Node], b: list[Node], budget: Budget) -> bool:
    """Two whole answers: as they stand, or the label left out on one side, or equal labels left out on both."""
    a, b = expand(a), expand(b)
    if match(a, b, budget):
        return True
    (labels_a, values_a), (labels_b, values_b) = solutions(a), solutions(b)
    if not (labels_a or labels_b) or len(labels_a) > 1 or len(labels_b) > 1:
        return False
    return (not labels_a or not labels_b or labels_a == labels_b) and match(values_a, values_b, budget)


def same(a: Node, b: Node, budget: Budget) -> bool:
    budget.spend(20)
    if _is_scalar(a) and _is_scalar(b) or "unit" in (a.op, b.op):
        return same_quantity(a, b, budget)
    if a.op != b.op:
        return False
    if a.op == "seq":
        ordered = len(a.args[2]) == len(b.args[2]) and a.args[:2] == b.args[:2]
        return ordered and all(same(x, y, budget) for x, y in zip(a.args[2], b.args[2], strict=True))
    if a.op in ("set", "union"):
        return match(expand(list(a.args)), expand(list(b.args)), budget)
    if a.op == "matrix":
        shapes = [[len(row) for row in m.args] for m in (a, b)]
        pairs = zip(itertools.chain(*a.args), itertools.chain(*b.args), strict=False)
        return shapes[0] == shapes[1] and all(same_scalar(x, y, budget) for x, y in pairs)
    return same_relation(a, b, budget) if a.op == "rel" else a == b


def _quantity(node: Node) -> tuple[Node, frozenset]:
    """(number, units): 28\\%, 36°, 5 cm."""
    if node.op == "unit":
        inner, units = _quantity(node.args[0])
        return inner, units | node.args[1]
    if node.op in ("percent", "deg"):
        return node.args[0], frozenset("%" if node.op == "percent" else "°")
    return node, frozenset()


def same_quantity(a: Node, b: Node, budget: Budget) -> bool:
    """MATH: a unit or % may be absent. Two different known units are different answers; 25% is also 1/4."""
    (a, units_a), (b, units_b) = _quantity(a), _quantity(b)
    if not (_is_scalar(a) and _is_scalar(b)):
        return False
    if units_a and units_b and units_a != units_b and "?" not in units_a | units_b:
        return False
    if same_scalar(a, b, budget):
        return True
    percent_a, percent_b = "%" in units_a, "%" in units_b
    if percent_a == percent_b:
        return False
    hundred = num(100)
    return same_scalar(a, product(b, hundred), budget) if percent_a else same_scalar(product(a, hundred), b, budget)


def same_relation(a: Node, b: Node, budget: Budget) -> bool:
    """Side by side, read in either direction; a single relation between scalars also up to a factor."""
    flipped = {">": "<", "≥": "≤"}
    (ops_a, sides_a), (ops_b, sides_b) = (
        (tuple(flipped[op] for op in ops[::-1]), sides[::-1]) if set(ops) <= set(">≥") else (ops, sides)
        for ops, sides in (a.args, b.args)
    )
    if ops_a != ops_b:
        return False
    if all(same(x, y, budget) for x, y in zip(sides_a, sides_b, strict=True)):
        return True
    if set(ops_a) <= set("=≠") and all(same(x, y, budget) for x, y in zip(sides_a, sides_b[::-1], strict=True)):
        return True
    sides = [_quantity(side)[0] for side in sides_a + sides_b]
    if len(ops_a) > 1 or ops_a[0] not in "=≠<≤" or not all(map(_is_scalar, sides)) or not symbols(tuple(sides)):
        return False
    left, right = (Node("add", (sides[i], product(num(-1), sides[i + 1]))) for i in (0, 2))
    return proportional(left, right, ops_a[0] in "<≤", budget)


def parse(cleaned: str, merge_thousands: bool = True) -> list[Node]:
    """The items of a comma list; of a single answer, one item."""
    items = Parser(tokenize(cleaned, merge_thousands)).whole()
    reals = Node("sym", ("mathbb(R)",))
    infinity = Node("sym", ("∞",))
    line = Node("seq", ("(", ")", (product(num(-1), infinity), infinity)))
    return [line if item == reals else item for item in items]


def equal(answer: str, gold: str) -> bool:
    """The whole comparison; raises Refused or an arithmetic error where it cannot tell."""
    if max(len(answer), len(gold)) > MAX_CHARS:
        return answer.strip() == gold.strip()
    answer, gold = clean(answer), clean(gold)
    if not answer or not gold:
        return False
    plain = [_squeeze(answer), _squeeze(gold)]
    if plain[0] == plain[1]:
        return True
    gold = gold.removeprefix("≈")  # in a gold answer it marks a rounded value, in an answer it is a hedge
    if _is_words(answer) or _is_words(gold):  # letters of a word do not commute; case does not matter in words
        return plain[0].lower() == plain[1].lower() and len(plain[0]) > 1
    budget = Budget()
    a, b = parse(answer), parse(gold)
    if same_items(a, b, budget):
        return True
    if (len(a) == 1) == (len(b) == 1):
        return False
    if len(a) == 1:  # one side is a list: then 119,121 on the other is one too
        a = parse(answer, merge_thousands=False)
    else:
        b = parse(gold, merge_thousands=False)
    return same_items(a, b, budget)
