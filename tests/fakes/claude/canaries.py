"""The forms in which planted words are searched for in what the stand-in was sent."""

from __future__ import annotations

import base64
import urllib.parse


def forms(word: str) -> list[bytes]:
    """Raw, base64 at its three offsets, hex, URL-encoded, JSON-escaped and reversed."""
    raw = word.encode()
    shifted = [base64.b64encode(b"\0" * offset + raw) for offset in range(3)]
    return [
        raw,
        raw[::-1],
        *(code[4 if offset else 0 : -4] for offset, code in enumerate(shifted)),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        "".join(f"%{byte:02X}" for byte in raw).encode(),
        urllib.parse.quote(word).encode(),
        "".join(f"\\u{byte:04x}" for byte in raw).encode(),
    ]
