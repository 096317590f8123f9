"""Jinja with every way to run long or grow large bounded. (First: the house defaults.)"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUTPUT_LIMIT = 8 * 1024 * 1024
DEADLINE_S = 2.0


class Limit(Exception):
    """A template asked for more than it may have."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    def render_bounded(self, template: jinja2.Template, names: Mapping[str, Any]) -> str:
        deadline = time.monotonic() + DEADLINE_S
        pieces: list[str] = []
        size = 0
        for piece in template.generate(**names):
            size += len(piece)
            if size > OUTPUT_LIMIT:
                raise Limit("the output is too large")
            if time.monotonic() > deadline:
                raise Limit("it takes too long")
            pieces.append(piece)
        return "".join(pieces)


def bounded_environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    return environment


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here its body simply
    renders."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: object = "") -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Iterable[str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=tuple(separators) if separators else None,  # type: ignore[arg-type]
        sort_keys=sort_keys,
    )
