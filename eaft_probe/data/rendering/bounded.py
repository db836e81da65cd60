"""A sandbox in which no step of a template is large: its work is counted before it is done.

A time limit strikes between two steps of Python; `10 ** 10 ** 8`, `'x' * 10 ** 10` and a format of
a billion spaces are one step in C each. So every operation that makes more than it is given says
beforehand how much that may be, and what a rendering makes has a bound.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from itertools import chain
from typing import Any, TypeVar

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

Value = TypeVar("Value")
Function = Callable[..., Any]  # a filter, a method or a macro, which a template calls

MOST_MADE = 100_000_000  # characters, besides MORE for each one that the template is given
MORE = 100
MOST_BITS = 10_000  # of a whole number
LARGEST = 1_000_000  # whole number that a function is given: a width, a count
REFERENCE = 8  # characters that an item of a list counts as

# Functions whose result may be longer than all their arguments together → where in their text
# they insert: at each such mark, or anywhere.
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

    def __init__(self, filters: Mapping[str, Function], **options: Any) -> None:
        super().__init__(**options)
        self.allow(0)
        self.filters = {n: self._bounded(n, f) for n, f in filters.items()}

    def allow(self, given: int) -> None:
        """A new rendering begins, which is given so many characters."""
        self.most = self.left = MOST_MADE + MORE * given

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise SecurityError(f"it would make more than {self.most:,} characters")

    def counted(self, value: Value) -> Value:
        """The value, unless it is too large."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, int):
            _require_bits(value.bit_length())
        elif isinstance(value, list | tuple | dict | bytes):
            self.spend(weight(value, self.left))
        return value

    def metered(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            self.spend(len(text) + REFERENCE)
            yield text

    def admit(self, name: str, args: Sequence[object], named: Mapping[str, object]) -> None:
        """Checks the arguments of a function, of which the first is the text it works on."""
        values = (*args, *named.values())
        items = chain.from_iterable(v if isinstance(v, tuple) else (v,) for v in values)  # of `%`
        if any(isinstance(i, int) and abs(i) > LARGEST for i in items):
            raise SecurityError(f"{name} is given a number above {LARGEST:,}")
        text = args[0] if args else ""
        if name in FORMATS and isinstance(text, str) and WIDE.search(text):
            raise SecurityError(f"{name} is given a width of five digits, or one in another")
        if name in AMPLIFYING and len(values) > 1:
            more = max(abs(v) if isinstance(v, int) else weight(v, self.left) for v in values[1:])
            mark = values[1] if name == "replace" else AMPLIFYING[name]
            if isinstance(text, str) and isinstance(mark, str) and mark:
                places = text.count(mark) + 1
            else:
                places = weight(text, self.left) + 1
            if places * more > self.left:
                raise SecurityError(f"{name} would make more than {self.most:,} characters")

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.spend(len(left) + len(right))
            return left + right
        if isinstance(left, int) and isinstance(right, int):
            bits, power = left.bit_length(), operator == "**"
            _require_bits(bits * max(right, 0) if power else bits + right.bit_length() + 1)
        elif operator == "%" and isinstance(left, str | bytes):
            self.admit("%", (left, right), {})
        elif operator == "*":
            times, what = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int):
                self.spend(weight(what, self.left) * max(times, 0))
        elif operator == "+":
            self.spend(weight((left, right), self.left))
        return self.counted(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Function, /, *args: Any, **named: object) -> object:
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps `str.format`
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
        if args or named:
            self.admit(name, (owner, *args) if isinstance(owner, str | bytes) else args, named)
        return self.counted(super().call(context, obj, *args, **named))

    def _bounded(self, name: str, filter: Function) -> Function:
        first = int(hasattr(filter, "jinja_pass_arg"))

        @wraps(filter)
        def run(*args: Any, **named: object) -> object:
            if name == "join":
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            if len(args) > first + 1 or named:  # a text alone becomes no larger
                self.admit(name, args[first:], named)
            return self.counted(filter(*args, **named))

        return run


def weight(value: object, most: int) -> int:
    """Characters in a value, items counted too; of one that holds itself many times over, at least
    `most`."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        item = waiting.pop()
        total += REFERENCE
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Mapping):
            waiting += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
    return total


def _require_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise SecurityError(f"it would compute a number of more than {MOST_BITS:,} bits")


class Counted(NodeTransformer):
    """Sends what Jinja makes by itself, `~`, literals and slices, through the environment."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return environment_call("tilde", *node.nodes)

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":  # the names that a tuple is unpacked into
            return node
        items = (i.value if isinstance(i, nodes.Pair) else i for i in node.iter_child_nodes())
        constant = all(isinstance(i, nodes.Const | nodes.TemplateData) for i in items)
        return node if constant else environment_call("counted", node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        sliced = isinstance(node.arg, nodes.Slice)
        return environment_call("counted", node) if sliced else node


def environment_call(name: str, *values: nodes.Expr) -> nodes.Call:
    """The call of a method of the environment, for the compiled template."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(values), [], None, None)
