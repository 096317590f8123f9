"""What a step's tools ask for, in numbers: how many, how large, what kinds of values, how optional.

A small model's calls go wrong where the schemas leave it choices: optional parameters that the
request does not mention, values of odd types, many parameters for few facts. The names and
descriptions themselves were tried (how much they overlap each other and the request) and told
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from appliance.types import Json

_TYPES: Final = {
    "string": "strings", "integer": "integers", "number": "fractions", "float": "fractions",
    "boolean": "booleans", "array": "lists", "tuple": "lists", "object": "objects",
    "dict": "objects",
}  # fmt: skip
_KINDS: Final = ("strings", "integers", "fractions", "booleans", "lists", "objects", "of_any_type")
TOOL_NAMES: Final = (
    "tools", "tool_chars", "parameters", "most_parameters", "required", "most_required",
    "optional", "choices", "parameter_chars", *_KINDS,
)  # fmt: skip
TOOL_SIZE: Final = len(TOOL_NAMES)
TOOL_CHARS: Final = TOOL_NAMES.index("tool_chars")
MOST_REQUIRED: Final = TOOL_NAMES.index("most_required")
MAX_TOOLS: Final = 200
"""More are not read: what a hundred tools ask for, two hundred do."""

Schema = Mapping[str, Json]


def tool_shape(tools: Iterable[tuple[str, Schema]]) -> tuple[float, ...]:
    """The `TOOL_NAMES` of these (description, JSON schema of the parameters); empty for none."""
    read = [_read(*each) for each, _ in zip(tools, range(MAX_TOOLS), strict=False)]
    if not read:
        return ()
    n_tools = len(read)
    total = {name: sum(each[name] for each in read) for name in read[0]}
    most = {name: max(each[name] for each in read) for name in ("parameters", "required")}
    return (
        min(20, n_tools) / 3,
        math.log1p(total["chars"]),
        total["parameters"] / n_tools / 3,
        most["parameters"] / 3,
        total["required"] / n_tools / 3,
        most["required"] / 3,
        total["optional"] / n_tools,
        total["choices"] / n_tools,
        total["parameter_chars"] / max(1, total["parameters"]) / 50,
        *(total[kind] / n_tools for kind in _KINDS),
    )


def _read(description: str, schema: Schema) -> dict[str, int]:
    properties = dict(_properties(schema))
    required = schema.get("required")
    needed = set(map(str, required)) if isinstance(required, list | tuple) else set()
    told = [str(each.get("description", "")) for each in properties.values()]
    found = dict.fromkeys(_KINDS, 0)
    for each in properties.values():
        found[_TYPES.get(str(each.get("type")), "of_any_type")] += 1
    return found | {
        "parameters": len(properties),
        "required": len(needed),
        "optional": sum(name not in needed for name in properties),
        "choices": sum("enum" in each for each in properties.values()),
        "parameter_chars": sum(map(len, told)),
        "chars": len(description) + sum(map(len, told)) + sum(map(len, properties)),
    }


def _properties(schema: Schema) -> Iterator[tuple[str, Schema]]:
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        for name, each in properties.items():
            if isinstance(each, Mapping):
                yield name, each
