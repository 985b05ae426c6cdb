"""Reads the tokens of a mathematical answer into a tree (`tree`).

`Parser` is a recursive-descent parser over a whitelist. Whatever it does not know is `Refused`, with its position.
Nesting and the number of items are bounded; no text is ever run as code.
"""

import re

from grader.clean import FUNCTIONS, OPERATORS
from grader.text import Refused
from grader.tokens import ACCENTS, GREEK, Token, tokenize
from grader.tree import (
    EMPTY,
    INEQUALITIES,
    INFINITY,
    MINUS_ONE,
    RELATIONS,
    TRANSPOSED,
    Node,
    describe,
    is_condition,
    is_scalar,
    joined,
    literal,
    negative,
    num,
    product,
    quotient,
    scalar,
    sym,
)
from grader.units import compound, with_units

MAX_DEPTH = 25  # the brackets of the benchmarks' golds nest at most 4 deep
MAX_MARKS = 4  # ! ° % ^ after one operand
MAX_ITEMS = 100
ATOM_COMMANDS = {"frac", "binom", "sqrt", "pi", "lfloor", "lceil", "sum", "prod", "int", "lim", "based"}
ATOM_COMMANDS |= FUNCTIONS | GREEK | ACCENTS | OPERATORS
FUNCTION_NAMES, ARGUMENT_NAMES = set("fghFGPQ"), set("xyzntk")


class Parser:
    """Recursive descent: items > relation > side > ratio > sum > term > factor > atom. Raises Refused and nothing else.

    depth: of nested brackets. bars: whether a | now closes or separates. indices: the bound names of open sums.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.depth, self.bars, self.indices = tokens, 0, 0, []
        self.seek(0)

    def seek(self, pos: int) -> None:
        self.pos = pos
        self.kind, self.value, self.at = self.tokens[pos]

    def refuse(self, message: str) -> Refused:
        return Refused(message, self.at)

    def take(self) -> str:
        if self.kind == "end":
            raise self.refuse("the text ends too early")
        taken = self.value
        self.pos += 1
        self.kind, self.value, self.at = self.tokens[self.pos]
        return taken

    def accept(self, *values: str) -> str:
        return self.take() if self.value in values and self.kind not in ("text", "end") else ""

    def expect(self, *values: str) -> str:
        if got := self.accept(*values):
            return got
        raise self.refuse(f"expected {' or '.join(values)}")

    def items(self) -> list[Node]:
        """What commas, semicolons, `and` and `or` separate; inequalities joined by a word are one item."""
        items = [self.relation()]
        while self.kind == "sep" or self.value in (",", ";"):
            word = ""
            if self.accept(",", ";"):
                if self.kind == "sep":  # 1, 2, and 3
                    self.take()
            else:
                word = self.take()
            item = self.relation()
            pair = (items.pop(), item)
            one = compound(*pair) if word == "and" else None  # 2 hours and 15 minutes
            if word and all(node.op in ("rel", "or", "and") for node in pair) and any(map(is_condition, pair)):
                one = joined(word, *pair)
            items += [one] if one else pair
        if len(items) > MAX_ITEMS:
            raise self.refuse("too many items")
        return items

    def relation(self) -> Node:
        sides, ops = [self.side()], []
        while self.value in RELATIONS and self.kind == "op":
            ops.append(self.take())
            start = self.pos
            sides.append(self.side())
            if ops[-1] == "≈":
                return self.approximated(ops, sides, start)
        node = Node("rel", (tuple(ops), tuple(sides))) if ops else sides[0]
        if self.accept("\\pmod", "\\bmod", "\\mod"):
            node = Node("mod", (node, scalar(self.factor())))
        if ops and INEQUALITIES.intersection(ops) and self.accept("∪"):
            self.enter()
            node = Node("or", (node, self.relation()))
            self.depth -= 1
        return node

    def approximated(self, ops: list[str], sides: list[Node], start: int) -> Node:
        """What stands before `\\approx 6.93`, with what stands after it and the worth of a unit in its last digit."""
        before = Node("rel", (tuple(ops[:-1]), tuple(sides[:-1]))) if len(ops) > 1 else sides[0]
        digits = next((value for kind, value, _ in self.tokens[start : self.pos] if kind == "num"), "")
        mantissa = digits.lower().partition("e")[0].replace(".", "").lstrip("0")
        if not mantissa:
            raise self.refuse("no number after ≈")
        return Node("approx", (before, sides[-1], int(mantissa)))

    def side(self) -> Node:
        node = self.ratio()
        while (not is_scalar(node) or node.names) and (op := self.accept("∪", "∩", "∖")):
            right = self.ratio()
            node = joined({"∪": "union", "∩": "cap", "∖": "minus"}[op], node, right)
        return self.units(node) if self.kind == "text" else node

    def ratio(self) -> Node:
        """A ratio a : b : c or a time of day."""
        terms = [self.sum()]
        while self.value == ":" and not self.bars and self.accept(":"):
            terms.append(self.sum())
        return terms[0] if len(terms) == 1 else Node("ratio", tuple(map(scalar, terms)))

    def units(self, node: Node) -> Node:
        """Words after a scalar are its unit, which may be absent (as in MATH): 9.8 m/s^2 is (unit 9.8 m 1 s -2).

        5 ft 6 in is 5 + 6/12 ft.
        """
        if node.op != "ratio":
            scalar(node)
        words = self.words_after()
        if words.endswith(" of") and self.kind in ("sym", "num"):
            self.take()  # 12 values of n, 6 factors of 12
        node = with_units(node, words)
        if node.op == "unit" and self.kind == "num":
            node = compound(node, self.side())
            if not node:
                raise self.refuse("units that do not add up")
        return node

    def words_after(self) -> str:
        """The words of one unit with their powers: `\\text{m}/\\text{s}^2` is three tokens and a power."""
        words = []
        while self.kind == "text":
            words.append(re.sub(r"\W+and$", "", self.take()) if self.tokens[self.pos + 1][0] == "num" else self.take())
            if self.accept("^"):
                exponent = self.exponent()
                words.append(f"^{exponent.args[0]}" if exponent.op == "num" else "?")
            if self.value in ("/", "*") and self.tokens[self.pos + 1][0] == "text":
                words.append(self.take())
        return " ".join(words)

    def sum(self) -> Node:
        terms = []
        while not terms or self.value in ("+", "-", "±", "∓"):
            minus, choice = False, ""
            while sign := self.accept("+", "-", "±", "∓"):
                minus ^= sign == "-"
                choice = {"±": "pm", "∓": "mp"}.get(sign, choice)
            term = self.term()
            if minus:
                term = negative(term)
            terms.append(Node(choice, (scalar(term),)) if choice else term)
        return terms[0] if len(terms) == 1 else Node("add", tuple(scalar(t) for t in terms))

    def term(self) -> Node:
        factors = [self.factor()]
        while True:
            if self.kind == "end":
                break
            if self.accept("*"):
                factors.append(self.signed_factor())
            elif self.accept("/"):
                factors.append(Node("inv", (scalar(self.signed_factor()),)))
            elif self.starts_atom():
                if self.kind == self.tokens[self.pos - 1][0] == "num":
                    raise self.refuse("two numbers side by side")
                factors.append(self.factor())
            else:
                break
        return product(*factors) if len(factors) > 1 else factors[0]

    def at_end(self) -> bool:
        return self.kind in ("end", "sep") or self.value in RELATIONS or self.value in (*",;)]}", "\\}")

    def signed_factor(self) -> Node:
        minus = False
        while self.accept("-"):
            minus = not minus
        return negative(self.factor()) if minus else self.factor()

    def starts_atom(self) -> bool:
        kind = self.kind
        if kind == "op":
            return self.value in ("(", "[", "{", "∞", "…") or (self.value == "|" and not self.bars)
        if kind == "cmd":
            return self.value[1:] in ATOM_COMMANDS
        return kind in ("num", "sym", "fn") or (kind == "env" and self.value.startswith("\\begin"))

    def factor(self) -> Node:
        node, marks = self.atom(), 0
        if node.op == "sym" and self.value == "(":
            node = self.call(node.args[0]) or node
        while mark := self.accept("!", "°", "%", "^"):
            marks += 1
            if marks > MAX_MARKS or mark == self.value == "!":
                raise self.refuse("too many marks after one operand, or a double factorial")
            if mark != "^":
                node = Node({"!": "fact", "°": "deg", "%": "percent"}[mark], (scalar(node),))
                continue
            exponent = self.exponent()
            if node.op in ("matrix", "seq") and exponent == TRANSPOSED:
                node = Node("matrix", tuple(zip(*node.args, strict=False))) if node.op == "matrix" else node
            else:
                node = Node("pow", (scalar(node), scalar(exponent)))
        return node

    def call(self, name: str) -> Node | None:
        """f(x), P(x+1), u(t), I(0), f(1, 2) or P(A | B) as one opaque symbol, the point P(5, 0) without its name; None
        where name and bracket are a product.
        """
        depth, end = 0, self.pos
        while depth or end == self.pos:
            depth += {"(": 1, ")": -1}.get(self.tokens[end][1], 0)
            end += 1
            if self.tokens[end][0] == "end" and depth or end == self.pos + 2 and not depth:  # unclosed, or empty
                return None
        inside = self.tokens[self.pos + 1 : end - 1]
        letters = {value for kind, value, _ in inside if kind == "sym"}
        marks = {value for kind, value, _ in inside if kind == "op"}
        if name.isupper() and "," in marks and not letters and self.tokens[end][1] not in RELATIONS:
            return self.bracket()
        if len(inside) == 1:
            named = inside[0][0] in ("num", "text") or letters <= ARGUMENT_NAMES.union("rsuvXYAB")
        elif name[0] in FUNCTION_NAMES and letters <= ARGUMENT_NAMES:
            named = bool(letters) or [kind for kind, _, _ in inside] == ["op", "num"]  # f(-1), but G(3+\pi) a product
        else:
            named = not marks.isdisjoint(RELATIONS.union(",|∩∪"))
        if not named:
            return None
        self.seek(end)
        return sym(f"{name}({''.join(value for _, value, _ in inside)})")

    def exponent(self) -> Node:
        sign = self.accept("-", "+")
        self.enter()
        node = self.atom()
        if self.accept("^"):
            node = Node("pow", (scalar(node), scalar(self.exponent())))
        self.depth -= 1
        return negative(node) if sign == "-" else node

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refuse("nested too deeply")

    def atom(self) -> Node:
        self.enter()
        kind = self.kind
        if kind == "num":
            node = num(literal(self.take()))
        elif kind == "sym" or self.value in ("∞", "∅", "…"):
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

    def symbol(self, name: str) -> Node:
        constant = name if name in ("e", "i") and name not in self.indices else None
        while self.value in ("_", "'") and (mark := self.take()):
            name += "_" + self.braced_text() if mark == "_" else mark
            constant = None
        return Node("const", (constant,)) if constant else sym(name)

    def words(self) -> Node:
        """Text in the place of an operand: a letter or up to six capitals are symbols, anything else is a text node."""
        content = [self.take()]
        if re.fullmatch(r"[A-Z]{1,6}|[A-Za-z]", content[0]):
            letters = [self.symbol(letter) for letter in content[0]]
            return product(*letters) if len(letters) > 1 else letters[0]
        while self.kind == "text":
            content.append(self.take())
        words = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", " ".join(content).lower())  # October 30th
        return Node("text", (words.strip(" ."),))

    def braced_text(self) -> str:
        """The tokens of one argument, such as a subscript, joined: they become part of a name."""
        if not self.accept("{"):
            return self.take().lstrip("\\")
        depth, values = 1, []
        while depth:
            value = self.take()
            depth += (value == "{") - (value == "}")
            values.append(value.lstrip("\\"))
        return "".join(values[:-1])

    def argument(self) -> Node:
        """What TeX takes as an unbraced argument: one token, and of a number one digit (\\frac59)."""
        if self.kind == "num" and len(self.value) > 1 and self.value.isdigit():
            first, rest, at = self.value[0], self.value[1:], self.at
            self.tokens[self.pos : self.pos + 1] = [("num", first, at), ("num", rest, at + 1)]
            self.seek(self.pos + 1)
            return num(int(first))
        return scalar(self.atom())

    def command(self, command: str) -> Node:
        name = command[1:]
        if name in ("frac", "binom"):
            top, bottom = self.argument(), self.argument()
            return quotient(top, bottom) if name == "frac" else Node("binom", (top, bottom))
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
        if name == "based":  # the base is part of the answer: 1_6 and 1_7 differ
            digits = self.braced_text()
            return Node("based", (digits.lstrip("0") or "0", int(self.braced_text())))
        if name in OPERATORS:
            return self.operator(name)
        if name in ACCENTS:
            return self.symbol(f"{name}({self.braced_text()})")
        if name in GREEK:
            return self.symbol(name)
        if name in ("sum", "prod") and (series := self.series(name)):
            return series
        if name in ("sum", "int", "lim"):  # linear operators we do not compute: a constant named by the limits
            while mark := self.accept("_", "^"):
                name += mark + self.braced_text()
            body = self.term()
            return sym(f"{name} {describe(body)}") if name.startswith(("int", "lim")) else product(sym(name), body)
        if name == "{":
            return self.braces()
        self.seek(self.pos - 1)
        raise self.refuse(f"unknown command {command}")

    def operator(self, name: str) -> Node:
        """\\gcd(m, n) and the like as one opaque symbol, named by its arguments."""
        if name == "operator":
            name = self.braced_text()
        while mark := self.accept("_", "^"):
            name += mark + self.braced_text()
        if self.at_end():
            return sym(name)
        inside = self.atom()
        arguments = inside.args[2] if inside.op == "seq" else inside.args if inside.op == "set" else (inside,)
        described = list(map(describe, arguments))
        return sym(f"{name}({', '.join(sorted(described) if name in ('gcd', 'lcm', 'max', 'min') else described)})")

    def series(self, name: str) -> Node | None:
        """\\sum_{k=1}^{n} with both ends given and finite. For anything else the tokens are put back: None."""
        start = self.pos
        index = self.take() if self.accept("_") and self.accept("{") and self.kind == "sym" else ""
        low = self.sum() if index and self.accept("=") else INFINITY
        high = self.exponent() if low != INFINITY and self.accept("}") and self.accept("^") else INFINITY
        if high != INFINITY:
            self.indices.append(index)
            body = scalar(self.term())
            self.indices.pop()
            if any(index in symbol.partition("_")[2] for symbol in body.names):  # a_k: nothing to compute
                return product(sym(f"{name} {index} {describe(low)} {describe(high)}"), body)
            return Node("series", (name, index, scalar(low), scalar(high), body))
        self.seek(start)
        return None

    def braces(self) -> Node:
        """{1, 2, 3} or {x : x > 3}; a bar after the first item separates it from the conditions."""
        bars, self.bars = self.bars, 1
        items = [] if self.value == "\\}" else [self.relation()]
        if items and self.accept("|", ":"):
            node = Node("builder", (items[0], tuple(self.items())))
        else:
            self.bars = 0
            items += self.items() if self.accept(",", ";") else []
            node = Node("set", tuple(items)) if items else EMPTY
        self.expect("\\}")
        self.bars = bars
        return node

    def bracket(self) -> Node:
        opened = self.expect("(", "[", "{", "|")
        bars, self.bars = self.bars, int(opened == "|")
        if opened == "|":
            inside = self.side()  # |A ∩ B| is the size of a set
            node = Node("abs", (inside,)) if is_scalar(inside) else sym(f"|{describe(inside)}|")
            self.expect("|")
        elif opened == "{":
            node = self.group()
        else:
            items = self.items()
            closed = self.expect(")", "]")
            if len(items) == 1 and opened + closed not in ("()", "[]"):
                raise self.refuse("an interval with one end")
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
        if name not in ("pmatrix", "bmatrix", "matrix", "array", "smallmatrix", "cases"):
            raise self.refuse(f"environment {name}")  # vmatrix is a determinant
        entry = self.case if name == "cases" else lambda: scalar(self.sum())
        rows = [[entry()]]
        while not self.value.startswith("\\end"):
            if self.accept("&"):
                rows[-1].append(entry())
            else:
                self.expect("\\\\")
                if not self.value.startswith("\\end"):
                    rows.append([entry()])
        self.take()
        return Node("cases" if name == "cases" else "matrix", tuple(tuple(row) for row in rows))

    def case(self) -> Node:
        """A value or its condition; a condition with words is kept as text."""
        start, kinds, values = self.pos, set(), []
        while self.value not in ("&", "\\\\") and not self.value.startswith("\\end"):
            kinds.add(self.kind)
            values.append(self.take())
        if "text" in kinds:
            return Node("text", (" ".join(values).lower().strip(" ,."),))
        self.seek(start)
        node = self.relation()
        self.accept(",")
        return node

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
        if power == MINUS_ONE and name in ("sin", "cos", "tan", "sec", "csc", "cot"):
            name, power = "arc" + name, None
        node = Node("fn", (name, scalar(inner))) if base is None else Node("log", (scalar(base), scalar(inner)))
        return Node("pow", (node, scalar(power))) if power else node


def parse(cleaned: str, merge_thousands: bool = True) -> list[Node]:
    """The items of a comma list; of a single answer, one item."""
    parser = Parser(tokenize(cleaned, merge_thousands))
    items = parser.items()
    if parser.kind != "end":
        raise parser.refuse("cannot read on from here")
    if len(items) == 1 and items[0].op == "cases" and all(len(row) == 1 for row in items[0].args):
        return [row[0] for row in items[0].args]  # x = 4, y = -1
    return items
