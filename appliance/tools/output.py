"""What a model sees of an output: text, bounded, without control characters; the rest in a file."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile(r"[​-‏‪-‮⁠-⁯﻿\U000e0000-\U000e007f]")
_HEAD_SHARE = 0.7
"""Of a long output the beginning says what happened and the end how it went."""


@dataclass(frozen=True, slots=True)
class Shown:
    text: str
    is_cut: bool
    is_binary: bool


def show(data: bytes, max_bytes: int, total_bytes: int | None = None) -> Shown:
    """Output as a model gets it, at most about `max_bytes`; the middle is left out, and said so.

    `total_bytes` is how much there was, if more than `data`. Binary data is described.
    """
    total = len(data) if total_bytes is None else total_bytes
    if is_binary(data):
        return Shown(f"(binary output, {total} bytes, begins {data[:16].hex(' ')})", True, True)
    if len(data) <= max_bytes and total <= len(data):
        return Shown(clean(data.decode("utf-8", "replace")), False, False)
    head = data[: int(max_bytes * _HEAD_SHARE)]
    tail = data[-(max_bytes - len(head)) :] if max_bytes < len(data) else b""
    left_out = total - len(head) - len(tail)
    text = (
        f"{clean(head.decode('utf-8', 'replace'))}\n"
        f"… {left_out} of {total} bytes left out …\n"
        f"{clean(tail.decode('utf-8', 'replace'))}"
    )
    return Shown(text, True, False)


def is_binary(data: bytes) -> bool:
    """NUL bytes, or more than a tenth that is no UTF-8, in the first 8 KiB."""
    sample = data[:8192]
    if b"\0" in sample:
        return True
    # A character cut in two at the end of the sample is one replacement, never a tenth.
    return sample.decode("utf-8", "replace").count("�") > max(len(sample) // 10, 3)


def clean(text: str) -> str:
    """Without terminal escapes and control characters; tabs and line ends stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n"))).rstrip("\r")


def visible(text: str, max_chars: int) -> str:
    """For people who decide: what hides or reorders text is shown as its code, length bounded."""
    text = _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    text = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n… {len(text) - max_chars} more characters"
