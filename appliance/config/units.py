"""Values as people write them: sizes and money as the integers we compute with, host names."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from appliance.types import Json

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?\s*$", re.IGNORECASE)
_HOST = re.compile(r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?$")
_SIZE_FACTOR = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
BYTES_MAX = 1 << 50
"""One pebibyte: more in one key is a slip of the finger."""
MICRO_USD_MAX = 10**12
"""One million dollars, for the same reason."""


class Section(BaseModel):
    """What every section of the file is: immutable, and strict about unknown keys and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


def subsection(kind: type[Section], description: str = "") -> Any:
    """A field that holds `kind`, and holds its defaults where the file says nothing."""
    return Field(default_factory=lambda: kind.model_validate({}), description=description)


def parse_bytes(value: Json) -> int:
    """`4096`, `"512MiB"`, `"1.5 GiB"`, `"24GB"` as bytes. Raises `ValueError` otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.match(value)):
        size = int(Decimal(match[1]) * _SIZE_FACTOR[(match[2] or "B").lower()])
    else:
        raise ValueError('write a size such as "512MiB", "24GB" or a number of bytes')
    if not 0 <= size <= BYTES_MAX:
        raise ValueError("a size lies between 0 and 1024TiB")
    return size


def check_host(value: str) -> str:
    """A host as a rule names it. Raises `ValueError` for what is none."""
    if not _HOST.match(value):
        raise ValueError(
            f"{value!r} is not a host; write name, name:port or *.name, without http://"
        )
    return value


def parse_usd(value: Json) -> int:
    """Dollars (`5`, `0.25`, `"0.25"`) as micro-dollars, rounded down to what is written."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("write an amount in dollars such as 2.50")
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError("write an amount in dollars such as 2.50") from None
    if not amount.is_finite() or not 0 <= amount <= MICRO_USD_MAX // 10**6:
        raise ValueError("an amount lies between 0 and 1000000 dollars")
    return int(amount * 10**6)


ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
"""Bytes; the file may say `"512MiB"`."""

Usd = Annotated[int, BeforeValidator(parse_usd)]
"""Micro-dollars; the file says dollars, so the field carries an alias that ends in `_usd`."""

Host = Annotated[str, AfterValidator(check_host)]
"""Where a tool may connect to: `name`, `name:port` or `*.name`."""
