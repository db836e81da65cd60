"""A sandbox in which no step of a template is large: its work is counted before it is done.

A time limit strikes between two steps of Python; `10 ** 10 ** 8`, `'x' * 10 ** 10` and a format of
a billion spaces are one step in C each. So every operation that makes more than it is given says
before how much that may be, and what a rendering makes has a bound.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_MADE = 100_000_000  # characters, besides MORE for each one that the template is given
MORE = 100
MOST_BITS = 10_000  # of a whole number
LARGEST = 1_000_000  # whole number that a function is given: a width, a count
REFERENCE = 8  # characters that an item of a list counts as

# What makes more than the sum of what it is given → the mark in its text at which it does so.
AMPLIFYING = {
    "format": "{",
    "format_map": "{",
    "%": "%",
    "indent": "\n",
    "expandtabs": "\t",
    "join": "",
    "replace": "",
    "sum": "",
    "tojson": "",
    "translate": "",
    "urlize": "",
    "wordwrap": "",
    "xmlattr": "",
}
FORMATS = ("%", "format", "format_map", "strftime_now")
WIDE = re.compile(r"%(?:\([^)%]*\))?[^%a-zA-Z]*?\d{5}|\{[^{}]*?\d{5}|\{[^{}]*:[^{}]*\{")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Raises `SecurityError` where a rendering would make more than `allow` allows."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.allow(0)
        self.filters = {n: self._bounded(n, f) for n, f in self.filters.items()}

    def allow(self, given: int) -> None:
        """A new rendering begins, of so many characters."""
        self.most = self.left = MOST_MADE + MORE * given

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise SecurityError(f"it would make more than {self.most:,} characters")

    def counted(self, made: Any) -> Any:
        """What was made, unless it is too much."""
        if isinstance(made, str):
            self.spend(len(made))
        elif isinstance(made, int):
            _require_bits(made.bit_length())
        elif isinstance(made, list | tuple | dict | bytes):
            self.spend(weight(made, self.left))
        return made

    def metered(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.spend(len(text) + REFERENCE)
            yield text

    def admit(self, name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Looks at what a function is given: first the text that it works on."""
        values = (*given, *named.values())
        if max(_numbers(values), default=0) > LARGEST:
            raise SecurityError(f"{name} is given a number above {LARGEST:,}")
        text = given[0] if given else ""
        if name in FORMATS and isinstance(text, str) and WIDE.search(text):
            raise SecurityError(f"{name} is given a width of five digits, or one in another")
        if name in AMPLIFYING and len(values) > 1:
            more = max(_size(v, self.left) for v in values[1:])
            places = self._places(text, values[1] if name == "replace" else AMPLIFYING[name])
            if places * more > self.left:
                raise SecurityError(f"{name} would make more than {self.most:,} characters")

    def _places(self, text: Any, mark: Any) -> int:
        """At how many places of a text something may be put in."""
        if isinstance(text, str) and isinstance(mark, str) and mark:
            return text.count(mark) + 1
        return weight(text, self.left) + 1

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.spend(len(left) + len(right))
            return left + right
        if isinstance(left, int) and isinstance(right, int):
            _require_bits(_bits(operator, left, right))
        elif operator == "%" and isinstance(left, str | bytes):
            self.admit("%", (left, right), {})
        elif operator == "*":
            times, what = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int):
                self.spend(weight(what, self.left) * max(times, 0))
        elif operator == "+":
            self.spend(weight((left, right), self.left))
        return self.counted(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **named: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps `str.format`
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
        if args or named:
            self.admit(name, (owner, *args) if isinstance(owner, str | bytes) else args, named)
        return self.counted(super().call(context, obj, *args, **named))

    def _bounded(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        first = int(hasattr(filter, "jinja_pass_arg"))

        @wraps(filter)
        def run(*args: Any, **named: Any) -> Any:
            if name == "join":
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            if len(args) > first + 1 or named:  # a text alone becomes no larger
                self.admit(name, args[first:], named)
            return self.counted(filter(*args, **named))

        return run


def weight(value: Any, most: int) -> int:
    """Characters in a value, items counted too; of one that holds itself many times over, at least
    `most`."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        item = waiting.pop()
        total += REFERENCE
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Mapping):
            waiting += item
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
    return total


def _size(value: Any, most: int) -> int:
    return abs(value) if isinstance(value, int) else weight(value, most)


def _numbers(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield abs(value)
        elif isinstance(value, tuple):  # of `%`
            yield from (abs(v) for v in value if isinstance(v, int))


def _bits(operator: str, left: int, right: int) -> int:
    """At most so many bits has the result."""
    if operator == "**":
        return left.bit_length() * max(right, 0)
    return left.bit_length() + right.bit_length() + 1


def _require_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise SecurityError(f"it would compute a number of more than {MOST_BITS:,} bits")


class Counted(NodeTransformer):
    """Sends what Jinja makes by itself, `~`, literals and slices, through the environment."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return asked("tilde", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._made(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node, node.items) if node.ctx == "load" else self.generic_visit(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._made(node, [pair.value for pair in node.items])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return asked("counted", node) if isinstance(node.arg, nodes.Slice) else node

    def _made(self, node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(i, nodes.Const | nodes.TemplateData) for i in items)
        return node if constant else asked("counted", node)


def asked(name: str, *values: nodes.Expr) -> nodes.Call:
    """What the environment says of some values."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(values), [], None, None)
