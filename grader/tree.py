"""The tree that an answer is read into: nodes of about forty kinds, and how they are put together."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from grader.text import Refused

Number = int | Fraction
# What is no number or expression, so that it cannot be added or multiplied.
STRUCTURES = {"seq", "set", "union", "minus", "cap", "builder", "matrix", "cases", "rel", "mod", "or", "and", "ratio"}
STRUCTURES |= {"text", "based", "unit", "approx"}
RELATIONS = set("=<>≤≥≠≈≡∈")
INEQUALITIES = set("<>≤≥≠")


@dataclass(slots=True, unsafe_hash=True)
class Node:
    """One node of a tree: `op` is its kind, `args` are nodes, tuples, names, brackets or a number. Never changed."""

    op: str
    args: tuple = ()
    _contents: tuple[frozenset, frozenset] | None = field(default=None, compare=False, repr=False)

    @property
    def ops(self) -> frozenset[str]:
        """The kinds of all nodes in this tree, and the names of its functions and constants."""
        return self.contents()[0]

    @property
    def names(self) -> frozenset[str]:
        """The variables in this tree; empty for a number."""
        return self.contents()[1]

    def contents(self) -> tuple[frozenset, frozenset]:
        """(ops, names), computed once."""
        if self._contents is None:
            ops, names = {self.op}, set()
            if self.op == "sym":
                names.add(self.args[0])
            elif self.op in ("const", "fn"):
                ops.add(f"{self.op} {self.args[0]}")
            for child in children(self.args):
                ops |= child.ops
                names |= child.names
            if self.op == "series":
                low, high, body = self.args[2:]
                names = low.names | high.names | body.names - {self.args[1]}
            if self.op == "pow" and self.args[1].names and _is_negative(self.args[0]):
                ops.add("alternating")  # (-2)^n: real at integers only
            if self.op in ("fact", "binom") and names:
                ops.add("counting")  # n!: computed at integers only
            self._contents = frozenset(ops), frozenset(names)
        return self._contents


def children(args: tuple) -> Iterator[Node]:
    for arg in args:
        if type(arg) is Node:
            yield arg
        elif type(arg) is tuple:
            yield from children(arg)


def subtrees(node: Node) -> Iterator[Node]:
    yield node
    for child in children(node.args):
        yield from subtrees(child)


def _is_negative(node: Node) -> bool:
    first = node.args[0] if node.op == "mul" else node
    return first.op == "num" and first.args[0] < 0


def is_scalar(node: Node) -> bool:
    return node.op not in STRUCTURES


def is_condition(node: Node) -> bool:
    """An inequality, x in a set, or several of them: not x = 3."""
    return node.op in ("or", "and") or node.op == "rel" and not INEQUALITIES.union("∈").isdisjoint(node.args[0])


def num(value: Number) -> Node:
    return Node("num", (value,))


def sym(name: str) -> Node:
    return Node("sym", (name,))


def scalar(node: Node) -> Node:
    """The node, if arithmetic can be done on it."""
    if node.op in STRUCTURES:
        raise Refused(f"arithmetic on a {node.op}")
    return node


def product(*factors: Node) -> Node:
    """Scalars multiply; one matrix among the factors takes the others into its entries."""
    flat: list[Node] = []
    for i, factor in enumerate(factors):
        if factor.op == "matrix" and len(factors) > 1:
            rest = [scalar(other) for other in factors[:i] + factors[i + 1 :]]
            return Node("matrix", tuple(tuple(product(*rest, entry) for entry in row) for row in factor.args))
        flat += factor.args if scalar(factor).op == "mul" else [factor]
    return flat[0] if len(flat) == 1 else Node("mul", tuple(flat))


def negative(node: Node) -> Node:
    if node.op == "num":
        return num(-node.args[0])
    return Node("based", ("-" + node.args[0], node.args[1])) if node.op == "based" else product(MINUS_ONE, node)


def quotient(top: Node, bottom: Node) -> Node:
    return product(top, Node("inv", (scalar(bottom),)))


def joined(op: str, left: Node, right: Node) -> Node:
    """left op right, flat where left is one already: (a or b) or c has three parts."""
    if left.op == op == "minus":
        raise Refused("a difference of a difference of sets")
    return Node(op, (*left.args, right) if left.op == op else (left, right))


MINUS_ONE = num(-1)
REALS, EMPTY, TRANSPOSED = sym("mathbb(R)"), sym("∅"), sym("T")
INFINITY = sym("∞")
MINUS_INFINITY = negative(INFINITY)


def literal(text: str) -> Number:
    """The exact value of 12, .5 or 1.70e4; the exponent is bounded before the number is built."""
    if text.isdigit():
        return int(text)
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent.lstrip("+-0")) > 4:
        raise Refused("exponent too large")
    whole, _, decimals = mantissa.partition(".")
    power = int(exponent or 0) - len(decimals)
    digits = int((whole + decimals) or "0")
    return digits * 10**power if power >= 0 else Fraction(digits, 10**-power)


def describe(node: Any) -> str:
    """A tree on one line: \\frac{1}{2} is (mul 1 (inv 2))."""
    if type(node) is Node:
        inside = " ".join(describe(arg) for arg in node.args)
        return inside if node.op in ("num", "sym", "const") else f"({node.op} {inside})"
    if isinstance(node, (tuple, frozenset)):
        return " ".join(describe(arg) for arg in (node if type(node) is tuple else sorted(node)))
    return str(node)
