"""Reads a mathematical answer, LaTeX or plain text, into a small tree of `Node`s; used by answers.py only.

`clean` writes every synonym one way, `tokenize` cuts, `Parser` is a recursive-descent parser over a whitelist. Whatever
it does not know is `Refused`. Lengths and nesting are bounded before anything is read; no text is ever run as code.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_CHARS = 2000  # the longest gold answer of the benchmarks has 204
MAX_DEPTH = 50  # and its brackets nest at most 4 deep
MAX_ITEMS = 100


class Refused(Exception):
    """The text is outside the grammar, or a bound was hit: nothing can be said about its value."""


@dataclass(frozen=True)
class Node:
    """One parsed thing: `op` says what, `args` holds nodes, names, brackets or a Fraction."""

    op: str
    args: tuple = ()


STRUCTURES = {"seq", "set", "union", "matrix", "rel", "text", "based", "unit", "call"}


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


def squeeze(cleaned: str) -> str:
    """The string compared as text: no spaces (but 1 2 is not 12), no text marks, (C) as C."""
    plain = re.sub("[\ue000\ue001]", "", cleaned)
    plain = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain).rstrip(".")
    match = re.fullmatch(r"\(([A-Z])\)", plain)
    return match.group(1) if match else plain


def is_words(cleaned: str) -> bool:
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


def parse(cleaned: str, merge_thousands: bool = True) -> list[Node]:
    """The items of a comma list; of a single answer, one item."""
    items = Parser(tokenize(cleaned, merge_thousands)).whole()
    reals = Node("sym", ("mathbb(R)",))
    infinity = Node("sym", ("∞",))
    line = Node("seq", ("(", ")", (product(num(-1), infinity), infinity)))
    return [line if item == reals else item for item in items]
