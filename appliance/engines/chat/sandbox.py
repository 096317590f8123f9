"""Jinja for templates from strangers: Jinja's immutable sandbox, with every operation metered.

Jinja's own sandbox keeps templates from files, modules and private attributes; it does not keep
them from using all time and all memory. We rewrite the parsed template: every loop, macro,
filter, call, concatenation and literal reports to the meter of its render (`bounds.py`), and only
filters and methods that cannot blow up are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from appliance.engines.chat import bounds
from appliance.engines.chat.bounds import Limit, Meter

_METER = "\ue0f3meter"
"""The render's meter among its names; no identifier of a template can spell it."""
_FILTERS = frozenset(
    (
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
        "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
        "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum",
        "title", "trim", "unique", "upper",
    )
)  # fmt: skip
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        (
            "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit",
            "islower", "isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition",
            "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit",
            "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
        )
    ),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("index", "count", "copy")),
    tuple: frozenset(("index", "count")),
    int: frozenset(),
    float: frozenset(("is_integer",)),
    bytes: frozenset(),
}  # fmt: skip


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates whose renders keep within `bounds`."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "-", "/", "//"))
    concat = staticmethod(bounds.joined)

    def render_bounded(self, template: jinja2.Template, names: Mapping[str, Any]) -> str:
        """Raises `Limit`, Jinja's errors and whatever the template's own expressions raise."""
        meter = Meter()
        pieces: list[str] = []
        size = 0
        for piece in template.generate({**names, _METER: meter}):
            meter.step()
            size += len(piece)
            if size > bounds.OUTPUT_LIMIT:
                raise Limit("the prompt is too long")
            pieces.append(piece)
        return "".join(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        metered: nodes.Template = _Metering().visit(parsed)
        return metered

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is not offered at all: its widths are unbounded."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind) and callable(value):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        def compute() -> Any:
            return super(BoundedEnvironment, self).call_binop(context, operator, left, right)

        return _meter(context).made(bounds.operated(operator, left, right, compute))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        meter.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return meter.made(bounds.joined(args[0] if args else (), owner))
        if isinstance(owner, str) and name == "replace":
            return meter.made(bounds.replaced(owner, *args))
        return meter.made(super().call(context, obj, *args, **kwargs))


def bounded_environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        extensions=[loopcontrols, GenerationTag],
        finalize=bounds.text_of,
    )
    kept = {name: found for name, found in environment.filters.items() if name in _FILTERS}
    environment.filters = {
        **kept,
        "tojson": bounds.tojson,
        "string": bounds.text_of,
        "safe": bounds.marked,
        "join": _join,
        "replace": bounds.replaced,
        "indent": bounds.indented,
        _LOOPED: _looped,
        _MADE: _made,
        _JOINED: _joined,
    }
    namespace = environment.globals["namespace"]
    environment.globals = {
        "range": bounds.bounded_range,
        "namespace": namespace,
        "dict": dict,
        "raise_exception": _raise,
    }
    return environment


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here its body just renders."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_LOOPED, _MADE, _JOINED = "\ue0f3looped", "\ue0f3made", "\ue0f3joined"


class _Metering(NodeTransformer):
    """Puts the meter wherever a template could repeat or grow something."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, _LOOPED)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        beat = nodes.ExprStmt(_filtered(nodes.Const(0), _MADE))
        node.body.insert(0, beat)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        # Its call has to stay a bare call; `call` and the macro meter it.
        self.generic_visit(node.call)
        node.body = [self.visit(part) for part in node.body]
        return node

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:
        node.body = [self.visit(part) for part in node.body]
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        # The filter of a `{% set x | filter %}` block has no node of its own to wrap.
        return node if node.node is None else _filtered(node, _MADE)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), _JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" and node.items else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _meter(context: Context) -> Meter:
    # Read from the render's own names, which no `set` of the template reaches.
    meter = context.parent[_METER]
    assert isinstance(meter, Meter)
    return meter


@pass_context
def _looped(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    meter = _meter(context)
    for value in values:
        meter.step()
        yield value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _meter(context).made(value)


@pass_context
def _joined(context: Context, parts: Iterable[Any]) -> str:
    text: str = _meter(context).made(bounds.joined(parts))
    return text


@pass_context
def _join(
    context: Context, values: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        values = (context.environment.getitem(value, attribute) for value in values)
    text: str = _meter(context).made(bounds.joined(values, separator=d))
    return text


def _raise(message: object = "") -> NoReturn:
    raise jinja2.TemplateError(str(message)[:500])
