"""The environment that templates run in: transformers', with strings that know their message."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from functools import wraps
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.utils import Namespace

from eaft_probe.data.rendering.bounded import (
    BoundedEnvironment,
    Counted,
    Function,
    environment_call,
)
from eaft_probe.data.rendering.traced import (
    TEMPLATE,
    Html,
    Piece,
    Pieces,
    Traced,
    as_json,
    derived,
    joined,
    pieces_of,
)


class Source(NamedTuple):
    """A string that a template was given."""

    message: int  # index of the message, or TOOLS
    field: str  # "content", "reasoning_content", "tool_calls", …
    text: str


class TracingEnvironment(BoundedEnvironment):
    """Runs templates; knows the message that the innermost loop over messages is at."""

    def __init__(self, today: date, instrumented: bool = True) -> None:
        self.instrumented = instrumented
        filters = {n: _tracing(f) for n, f in jinja2.filters.FILTERS.items()}
        filters |= {"tojson": as_json, "join": _join, "replace": _replace, "safe": _safe}
        super().__init__(
            filters, trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, loopcontrols]
        )

        def strftime_now(form: str) -> str:
            return datetime.combine(today, time()).strftime(form)

        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": strftime_now,
            "dict": _dict,
            "namespace": _Namespace,
        }

    def run(
        self,
        template: jinja2.Template,
        conversation: Sequence[Mapping[str, object]],
        sources: Sequence[Source],
        **values: object,
    ) -> Traced:
        """The whole text that a template writes; `conversation`: its messages as it is given."""
        self._message = {id(m): i for i, m in enumerate(conversation)}
        self._loop, self._outer = TEMPLATE, list[int]()
        self._sources, self._roles = sources, [str(m.get("role")) for m in conversation]
        texts, pieces = list[str](), list[Piece]()
        # Read as it is written, so that the loop is the one that a piece comes from.
        for text in self.metered(template.root_render_func(template.new_context(values))):
            texts.append(text)
            pieces += self._placed(pieces_of(text), self._loop)
        return Traced("".join(texts), tuple(pieces))

    def _placed(self, pieces: Pieces, loop: int) -> Iterable[Piece]:
        return [p if p.loop != TEMPLATE else Piece(p[0], p[1], p[2], loop, p[4]) for p in pieces]

    def concat(self, texts: Iterable[str]) -> Traced:
        """What a macro or a block wrote. One that shows another message's words, such as a tool's
        result within the turn that called it, belongs to that message."""
        whole = joined(self.metered(texts))
        if not self.instrumented:
            return whole
        shown = {self._sources[p.source].message for p in whole._pieces if p.source != TEMPLATE}
        others = [m for m in shown - {self._loop} if m >= 0 and self._roles[m] != "assistant"]
        loop = others[0] if len(others) == 1 else self._loop
        return Traced(whole, tuple(self._placed(whole._pieces, loop)))

    # --- what the compiled template calls ---

    def enter_loop(self) -> None:
        self._outer.append(self._loop)

    def next_item(self, item: object) -> None:
        self._loop = self._message.get(id(item), self._outer[-1])

    def leave_loop(self) -> None:
        self._loop = self._outer.pop()

    def tilde(self, *values: object) -> str:
        texts = list(self.metered(map(str, values)))
        return joined(texts) if self.instrumented else "".join(texts)

    def call(self, context: Context, obj: Function, /, *args: object, **named: object) -> object:
        """Methods of the template's own strings take ours for what they are."""
        owner = getattr(obj, "__self__", None)
        if owner is self:  # what `_Instrumented` put in; `named` are the loop's own variables
            return obj(*args)
        if isinstance(owner, str):
            if obj.__name__ in ("format", "format_map"):
                text = super().call(context, obj, *args, **named)
                return derived(str(text), [owner, args, named])
            if type(owner) is str:
                obj = getattr(Traced(owner), obj.__name__)
        return super().call(context, obj, *args, **named)

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        source = (_Instrumented() if self.instrumented else Counted()).visit(source)
        return super()._generate(source, *args, **named)


class _Instrumented(Counted):
    """Lets loops tell which item they are at."""

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:
        self.generic_visit(node)
        if not isinstance(node.target, nodes.Name):
            return [node]
        item = nodes.Name(node.target.name, "load")
        node.body.insert(0, _statement("next_item", item))
        return [_statement("enter_loop"), node, _statement("leave_loop")]


def _statement(name: str, *values: nodes.Expr) -> nodes.ExprStmt:
    return nodes.ExprStmt(environment_call(name, *values))


class _Marks(Extension):
    """{% generation %} … {% endgeneration %}: what the assistant writes."""

    tags: set[str] = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> Traced:
        text = caller()
        return Traced(text, tuple(p._replace(marked=True) for p in pieces_of(text)))


def has_marks(template: nodes.Template) -> bool:
    """Whether a parsed template says with {% generation %} what the assistant writes."""
    methods = template.find_all(nodes.ExtensionAttribute)
    return any(m.identifier == _Marks.identifier for m in methods)


def _dict(*args: Any, **named: object) -> dict[object, object]:
    """`dict` for templates, without its attributes."""
    return dict(*args, **named)


class _Namespace(Namespace):
    """Without names that begin with an underscore."""

    def __init__(*args: Any, **named: object) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **named)
        for name in attributes:
            _require_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _require_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # two that hold each other twice would be written forever


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment,
    values: Iterable[object],
    between: str = "",
    attribute: str | int | None = None,
) -> Traced:
    if attribute is not None:
        values = map(jinja2.filters.make_attrgetter(environment, attribute), values)
    return Traced(str(between)).join(map(str, values))


def _replace(text: object, old: str, new: str, count: int | None = None) -> Traced:
    return Traced(str(text)).replace(str(old), str(new), -1 if count is None else count)


def _safe(text: object) -> Html:
    return Html(str(text))


def _tracing(filter: Function) -> Function:
    """A filter of Jinja's, which knows no origins: its text comes from what it was given."""
    first = int(hasattr(filter, "jinja_pass_arg"))

    @wraps(filter)
    def run(*args: object, **named: object) -> object:
        result = filter(*args, **named)
        if isinstance(result, str) and not isinstance(result, Traced):
            traced = derived(str.__str__(result), [args[first:], named])
            return _safe(traced) if hasattr(result, "__html__") else traced
        return result

    return run
