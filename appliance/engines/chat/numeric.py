"""Numbers that every reader of JSON can hold: bounded on both sides, and exact in their steps.

JSON lets digits and exponents run on until a reader sees infinity, so a number without bounds gets
some. Steps like 0.1 have no exact binary form: `3.3 / 0.1` is no whole number in floating point and
validators call 3.3 wrong. Whole multiples are safe; where the bounds leave none, the few decimal
ones that survive the division are listed.
"""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from math import ceil, floor
from typing import Any

INTEGER_BOUND = 2**53 - 1
"""Beyond it JSON numbers are not the same everywhere (RFC 8259, section 6)."""
NUMBER_BOUND = 1e15
VALUES_LIMIT = 64
"""Numbers listed one by one; a range that holds no whole multiple rarely holds more."""


def bound_numbers(found: dict[str, Any], types: Collection[str]) -> bool:
    """Rewrite the number keywords of a schema of these types in place, more narrowly. False where
    something had to be dropped, so that values must be checked afterwards."""
    if not {"number", "integer"} & set(types) or "enum" in found or "const" in found:
        return True
    is_kept = _bound(found, takes_fractions="number" in types)
    step = found.get("multipleOf")
    if isinstance(step, float) and "number" in types and not _is_binary(step):
        is_kept = _step(found, types, step) and is_kept
    return is_kept


def _bound(found: dict[str, Any], *, takes_fractions: bool) -> bool:
    is_kept = True
    bound: float = NUMBER_BOUND if takes_fractions else INTEGER_BOUND
    given = {"maximum": found.get("minimum", 0), "minimum": found.get("maximum", 0)}
    for limit, exclusive, sign in (
        ("minimum", "exclusiveMinimum", -1),
        ("maximum", "exclusiveMaximum", 1),
    ):
        strict = found.get(exclusive)
        if isinstance(strict, bool):
            del found[exclusive]
            is_kept = is_kept and not strict
        elif strict is not None and takes_fractions:
            # Digits without end would round onto the excluded bound itself.
            del found[exclusive]
            inside = strict - sign * max(abs(strict), 1) * 1e-9
            found[limit] = _tighter(found.get(limit), inside, sign)
        elif strict is None and limit not in found:
            # Beyond the other limit, should a schema begin where we would end.
            found[limit] = sign * max(bound, 2 * abs(given[limit]))
    return is_kept


def _step(found: dict[str, Any], types: Collection[str], step: float) -> bool:
    exact = Fraction(str(step))
    least, most = Fraction(found["minimum"]), Fraction(found["maximum"])
    whole = exact.numerator
    if ceil(least / whole) <= floor(most / whole):
        found["type"] = sorted(set(types) - {"number"} | {"integer"})
        found["multipleOf"] = whole
        return True
    first, last = ceil(least / exact), floor(most / exact)
    values = [float(exact * count) for count in range(first, min(last, first + VALUES_LIMIT) + 1)]
    values = [value for value in values if (value / step).is_integer()]
    if not values:
        del found["multipleOf"]
        return False
    for key in ("type", "multipleOf", "minimum", "maximum"):
        found.pop(key, None)
    found["enum"] = values
    return True


def _is_binary(step: float) -> bool:
    denominator = Fraction(str(step)).denominator
    return denominator & (denominator - 1) == 0


def _tighter(limit: float | None, inside: float, sign: int) -> float:
    if limit is None:
        return inside
    return min(limit, inside) if sign > 0 else max(limit, inside)
