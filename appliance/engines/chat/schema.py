"""JSON schemas as the constraint library can keep them.

The library knows most of JSON Schema and refuses the rest; a few things it allows would hurt us
(numbers without end). So a schema is rewritten before it becomes a grammar, and every rewrite is of
one of two kinds:

* *narrower*: whatever the new schema allows, the old one allowed. `dependentRequired` becomes
  `required`, an open object with declared properties is closed (a model shall not invent
  arguments), numbers get bounds (`numeric.py`), also where a schema leaves the type open,
  `contains` is asked of every item. The guarantee holds.
* *wider*: the keyword cannot be kept and is dropped (`not`, `if`, `uniqueItems`, overlapping
  `oneOf`). Then `is_exact` is false: the finished value is checked against the original, and
  a call that fails is an error, never a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema
from llguidance import LLMatcher

from appliance.engines.chat.numeric import NUMBER_BOUND, bound_numbers
from appliance.engines.chat.patterns import (
    LENGTH_LIMIT,
    endings,
    example_of_format,
    example_of_pattern,
)
from appliance.engines.chat.reshape import reshaped
from appliance.engines.chat.sizes import growth, types_of
from appliance.types import Json

SCHEMAS_KEPT = 4096
ENDINGS_LIMIT = 256
"""Rests of strings tried on the way out of one schema; each takes about a microsecond."""

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
_KEPT = frozenset(
    (
        "$ref", "$defs", "definitions", "type", "const", "enum", "anyOf", "allOf", "oneOf",
        "properties", "required", "additionalProperties", "patternProperties", "minProperties",
        "maxProperties", "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength",
        "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
        "multipleOf",
    )
)  # fmt: skip
_WIDENING = frozenset(
    ("not", "if", "then", "else", "dependentSchemas", "unevaluatedItems", "$dynamicRef")
)
_TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))
_ANY_NAME = "appliance:any"
_ANY_REFERENCE: Mapping[str, Json] = {"$ref": f"#/$defs/{_ANY_NAME}"}
_ANY: Mapping[str, Json] = {
    "type": sorted(_TYPES),
    "minimum": -NUMBER_BOUND,
    "maximum": NUMBER_BOUND,
    "items": _ANY_REFERENCE,
    "additionalProperties": _ANY_REFERENCE,
}
"""What stands where a schema says nothing: any JSON, its numbers bounded all the way down."""
_ANY_OBJECT: Mapping[str, Json] = {
    "type": "object",
    "additionalProperties": _ANY_REFERENCE,
    "$defs": {_ANY_NAME: _ANY},
}
_DECIDING = frozenset(("$ref", "anyOf", "oneOf", "allOf", "enum", "const"))
"""Beside one of these a missing `type` does not mean any type."""
_COMPOSING = frozenset(("allOf", "anyOf", "oneOf", "$ref", "if"))
_PLAIN_WORDS = ("ab", "cd", "abc", "def", "name", "item", "AB", "ABC", "x1", "x2", "12", "123")
_UNKNOWN_REGEX = re.compile(r"\(\?[=!<]|\\[1-9bB]|\\[pP](?!\{)")
_OPTIONS = {
    # One spelling of the separators, the one templates print: a model cannot spend its tokens on
    # blanks, and what it wrote is what the next prompt says.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # No \u escapes: half a surrogate pair is valid JSON and no text.
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A schema made fit: `schema` rewritten, and `rule`, the body of its `%json` rule.

    `is_exact`: what the grammar allows is valid. `growth`: tokens that one more token can add to
    the way out of a value. `endings`: the rests of strings that patterns and formats ask for
    (`patterns.py`).
    """

    rule: str
    schema: Mapping[str, Json]
    is_exact: bool
    growth: int
    endings: tuple[bytes, ...] = ()


def fitted(schema: Mapping[str, Json]) -> Fitted:
    """The tightest rewriting of `schema` that the library accepts. Never fails: of a schema that no
    grammar fits, any JSON object remains, to be checked afterwards."""
    return _fitted(json.dumps(schema, ensure_ascii=False))


@lru_cache(maxsize=SCHEMAS_KEPT)
def _fitted(source: str) -> Fitted:
    try:
        return _rewritten(reshaped(json.loads(source)))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        # No schema at all (`properties` that is a list): whoever checks the value will say so.
        return Fitted(_rule(_ANY_OBJECT), _ANY_OBJECT, False, growth(_ANY_OBJECT))


def _rewritten(schema: dict[str, Json]) -> Fitted:
    for is_cautious in (False, True):
        rewriter = _Rewriter(schema, is_cautious=is_cautious)
        rewritten = rewriter.root()
        if _is_accepted(rewritten):
            exact = not rewriter.widened
            return Fitted(_rule(rewritten), rewritten, exact, growth(rewritten), rewriter.endings())
    loosened = _loosened(rewritten)
    if not _is_accepted(loosened):
        loosened = _ANY_OBJECT
    return Fitted(_rule(loosened), loosened, False, growth(loosened), rewriter.endings())


def _is_accepted(schema: Json) -> bool:
    return not LLMatcher.validate_grammar(f"start: answer\nanswer: %json {_rule(schema)}")


def _loosened(schema: Json) -> Mapping[str, Json]:
    """Any JSON for the properties that the library refuses; names and `required` stay."""
    if not isinstance(schema, Mapping) or not schema.get("properties"):
        return _ANY_OBJECT
    shared = {"$defs": {**(schema.get("$defs") or {}), _ANY_NAME: _ANY}}
    if "definitions" in schema:
        shared["definitions"] = schema["definitions"]
    properties = {
        name: part if _is_accepted({**part, **shared}) else _ANY_REFERENCE
        for name, part in schema["properties"].items()
        if isinstance(part, Mapping)
    }
    return {**schema, **shared, "properties": properties}


def _rule(schema: Json) -> str:
    options: Json = {"x-guidance": _OPTIONS}
    if isinstance(schema, Mapping):
        return json.dumps({**schema, **options}, ensure_ascii=False)
    return json.dumps(options if schema else {"type": "object"})


class _Rewriter:
    """`is_cautious` also drops what the library supports only in part."""

    def __init__(self, schema: Mapping[str, Json], *, is_cautious: bool) -> None:
        self.widened = False
        self._examples: dict[str, None] = {}
        self._schema = schema
        self._is_cautious = is_cautious
        self._closes = '"allOf"' not in json.dumps(schema)
        self._takes_any = False

    def root(self) -> Json:
        found = self._node(self._schema, closes=self._closes)
        if self._takes_any:
            found["$defs"] = {**(found.get("$defs") or {}), _ANY_NAME: _ANY}
        return found

    def endings(self) -> tuple[bytes, ...]:
        found = (text for example in self._examples for text in endings(example))
        return tuple(dict.fromkeys(found))[:ENDINGS_LIMIT]

    def _node(self, schema: Json, *, closes: bool) -> Json:
        if not isinstance(schema, Mapping):
            return self._any() if schema is True else schema
        found = {key: value for key, value in schema.items() if key in _KEPT}
        if not _WIDENING.isdisjoint(schema):
            self.widened = True
        closes = closes and _COMPOSING.isdisjoint(schema)
        self._references(found)
        self._branches(found, schema)
        self._string(found)
        types = types_of(found) or (frozenset() if _DECIDING & found.keys() else _TYPES)
        if not bound_numbers(found, types):
            self.widened = True
        self._array(found, schema)
        if "array" in types and self._closes:
            found.setdefault("items", self._any())
        self._object(found, schema, types, closes=closes)
        return found

    def _any(self) -> Json:
        """Beside `allOf` the library would have to intersect it: there, without bounds."""
        self._takes_any = self._takes_any or self._closes
        return _ANY_REFERENCE if self._closes else True

    def _references(self, found: dict[str, Any]) -> None:
        reference = found.get("$ref")
        if reference is not None and not str(reference).startswith("#"):
            del found["$ref"]
            self.widened = True
        for key in ("$defs", "definitions"):
            if isinstance(found.get(key), Mapping):
                found[key] = {
                    name: self._node(part, closes=self._closes) for name, part in found[key].items()
                }

    def _branches(self, found: dict[str, Any], schema: Mapping[str, Json]) -> None:
        alone = not ({"properties", "additionalProperties", "$ref", "if"} & schema.keys())
        for key in ("anyOf", "oneOf", "allOf"):
            if key in found:
                closes = self._closes and key != "allOf" and alone
                found[key] = [self._node(part, closes=closes) for part in found[key]]
        if self._is_cautious and "oneOf" in found:
            self.widened = True
            branches = found.pop("oneOf")
            if "anyOf" not in found:
                found["anyOf"] = branches

    def _string(self, found: dict[str, Any]) -> None:
        pattern = found.get("pattern")
        if pattern is not None and (self._is_cautious or _UNKNOWN_REGEX.search(str(pattern))):
            del found["pattern"]
            self.widened = True
        form = found.get("format")
        # Validators do not check formats, so dropping one widens nothing.
        if form is not None and (
            self._is_cautious
            or form not in _FORMATS
            or not {"pattern", "minLength", "maxLength"}.isdisjoint(found)
        ):
            del found["format"]
        self._example(found)

    def _example(self, found: Mapping[str, Json]) -> None:
        example = None
        if "pattern" in found:
            example = example_of_pattern(str(found["pattern"]))
        elif "format" in found:
            example = example_of_format(str(found["format"]))
        elif 1 < found.get("minLength", 0) <= LENGTH_LIMIT:
            example = "-" * found["minLength"]
        if example is not None:
            self._examples[example] = None

    def _array(self, found: dict[str, Any], schema: Mapping[str, Json]) -> None:
        items = found.get("items")
        if isinstance(items, list):
            found["prefixItems"] = items
            found["items"] = schema.get("additionalItems", True)
        if "prefixItems" in found:
            found["prefixItems"] = [
                self._node(part, closes=self._closes) for part in found["prefixItems"]
            ]
        if "items" in found:
            found["items"] = self._node(found["items"], closes=self._closes)
        if "contains" in schema:
            least = schema.get("minContains", 1)
            self.widened = self.widened or "maxContains" in schema or "prefixItems" in found
            wanted = self._node(schema["contains"], closes=False)
            if least:
                found["items"] = {"allOf": [found["items"], wanted]} if "items" in found else wanted
                found["minItems"] = max(found.get("minItems", 0), least)
        if schema.get("uniqueItems") and found.get("maxItems", 2) > 1:
            self.widened = True

    def _object(
        self,
        found: dict[str, Any],
        schema: Mapping[str, Json],
        types: Collection[str],
        *,
        closes: bool,
    ) -> None:
        properties = found.get("properties")
        if isinstance(properties, Mapping):
            found["properties"] = properties = {
                name: self._node(part, closes=self._closes) for name, part in properties.items()
            }
        for key in ("additionalProperties",):
            if key in found:
                found[key] = self._node(found[key], closes=self._closes)
        if schema.get("unevaluatedProperties", True) is not True:
            self.widened = self.widened or not closes
            found.setdefault("additionalProperties", False)
        if "patternProperties" in found:
            if self._is_cautious:
                # Fewer keys are fewer ways to be wrong.
                del found["patternProperties"]
                found["additionalProperties"] = False
            else:
                found["patternProperties"] = {
                    name: self._node(part, closes=self._closes)
                    for name, part in found["patternProperties"].items()
                }
        elif properties and closes:
            found.setdefault("additionalProperties", False)
        if "object" in types and self._closes:
            found.setdefault("additionalProperties", self._any())
        self._require(found, schema)
        self._count(found, schema.get("propertyNames", True))
        self._names(found, schema)

    def _require(self, found: dict[str, Any], schema: Mapping[str, Json]) -> None:
        """`dependentRequired`: what may be demanded is demanded."""
        required = list(found.get("required") or ())
        dependent = schema.get("dependentRequired") or schema.get("dependencies") or {}
        for names in dependent.values():
            if isinstance(names, list):
                required += [name for name in names if name not in required]
            else:
                self.widened = True
        if not required:
            return
        found["required"] = required
        if found.get("additionalProperties") is False and "patternProperties" not in found:
            properties = dict(found.get("properties") or {})
            for name in required:
                properties.setdefault(name, self._any())
            found["properties"] = properties

    def _count(self, found: dict[str, Any], names: Json) -> None:
        """Bounds on the number of properties, said by requiring and leaving out."""
        properties: Mapping[str, Json] = found.get("properties") or {}
        required = list(found.get("required") or ())
        least, most = found.pop("minProperties", 0), found.pop("maxProperties", None)
        extra = found.get("additionalProperties", True)
        for name in properties:
            if len(required) >= least:
                break
            if name not in required:
                required.append(name)
        if len(required) < least and extra is not False and "patternProperties" not in found:
            # Keys of our own, because the grammar would allow the same key twice.
            own = _own_keys(least - len(required), properties, names)
            self.widened = self.widened or len(required) + len(own) < least
            found["properties"] = {**properties, **dict.fromkeys(own, extra)}
            required += own
        elif len(required) < least:
            found["minProperties"] = least
        if most is not None and (properties or most <= len(required)):
            room = max(0, most - len(required))
            optional = [name for name in properties if name not in required][:room]
            found["properties"] = {
                name: part
                for name, part in (found.get("properties") or {}).items()
                if name in required or name in optional
            }
            found["additionalProperties"] = False
            found.pop("patternProperties", None)
        elif most is not None:
            found["maxProperties"] = most
        if required:
            found["required"] = required

    def _names(self, found: dict[str, Any], schema: Mapping[str, Json]) -> None:
        names = schema.get("propertyNames")
        if names is None or names is True:
            return
        if found.get("additionalProperties") is False and "patternProperties" not in found:
            self.widened = True
        elif isinstance(names, Mapping) and "pattern" in names and len(names) == 1:
            value = found.get("additionalProperties", True)
            self._example(names)
            # What the pattern's own schema says need not be said again: the library would
            # intersect the two, which it cannot where one refers to itself.
            found["properties"] = {
                name: part
                for name, part in (found.get("properties") or {}).items()
                if part != value
            }
            found["patternProperties"] = {names["pattern"]: value}
            found["additionalProperties"] = False
        elif isinstance(names, Mapping) and "enum" in names:
            value = found.get("additionalProperties", True)
            found["properties"] = dict.fromkeys(map(str, names["enum"]), value)
            found["additionalProperties"] = False
        else:
            self.widened = True


def _own_keys(count: int, taken: Mapping[str, Json], names: Json) -> list[str]:
    """Keys for an object that must have some and names none."""
    plain = ["a", "b", "c", "d", "e", "key1", "key2", "key3", "key-4", "K1", "K2", "1", "2", "3"]
    if isinstance(names, Mapping) and "pattern" in names:
        plain += [*_PLAIN_WORDS, example_of_pattern(str(names["pattern"])) or ""]
    plain += [f"key{number}" for number in range(4, count + len(taken))]
    validator = jsonschema.Draft202012Validator(names)
    free = (name for name in plain if name not in taken and validator.is_valid(name))
    return list(islice(free, count))
