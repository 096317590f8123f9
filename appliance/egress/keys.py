"""Finds a provider's key: in systemd's credentials first, then in the environment. Kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from appliance.errors import ConfigError

KEY_MAX_BYTES = 16_384
"""A key file larger than this is some other file."""


def find_key(environment: Mapping[str, str], credential: str, variable: str) -> str | None:
    """The key, or None where neither place has one. Read at each use, so a new key needs no
    restart. Raises `ConfigError` for a credential that cannot be a header value."""
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    if folder and credential:
        try:
            with (Path(folder) / credential).open("rb") as file:
                key = file.read(KEY_MAX_BYTES).strip()
        except FileNotFoundError:
            key = b""
        if key:
            return _checked(key, f"credential {credential}")
    value = environment.get(variable, "").strip() if variable else ""
    return _checked(value.encode(), f"variable {variable}") if value else None


def _checked(key: bytes, where: str) -> str:
    if not key.isascii() or not key.decode("ascii").isprintable():
        raise ConfigError(f"the key in {where} holds characters that no key has")
    return key.decode("ascii")
