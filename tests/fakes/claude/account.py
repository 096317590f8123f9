"""The stand-in's own count of tokens and money, made independently of the client's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

PRICES = {"input": 2_000_000, "output": 10_000_000, "read": 200_000, "write": 2_500_000}
"""Micro-dollars per million tokens, as in the example configuration."""

CHARS_PER_TOKEN = 4
CACHE_MIN_TOKENS = 1_024


@dataclass
class Charge:
    """What one request has cost so far."""

    request_id: str
    input_tokens: int
    read_tokens: int
    write_tokens: int
    output_tokens: int = 0
    is_complete: bool = False

    @property
    def micro_usd(self) -> int:
        total = self.input_tokens * PRICES["input"] + self.output_tokens * PRICES["output"]
        total += self.read_tokens * PRICES["read"] + self.write_tokens * PRICES["write"]
        return -(-total // 1_000_000)

    def usage(self) -> dict[str, int]:
        return {
            "input_tokens": self.input_tokens,
            "cache_read_input_tokens": self.read_tokens,
            "cache_creation_input_tokens": self.write_tokens,
            "output_tokens": self.output_tokens,
        }


@dataclass
class Account:
    """Charges in order, and the prompt prefixes that are cached."""

    charges: list[Charge] = field(default_factory=list)
    _cached: set[str] = field(default_factory=set)

    def open(self, request_id: str, body: dict[str, Any]) -> Charge:
        total = count_tokens(body)
        read, written = self._cache(body)
        charge = Charge(request_id, total - read - written, read, written)
        self.charges.append(charge)
        return charge

    def to_json(self) -> dict[str, Any]:
        return {
            "micro_usd": sum(charge.micro_usd for charge in self.charges),
            "charges": [
                {"request_id": c.request_id, "micro_usd": c.micro_usd,
                 "is_complete": c.is_complete, **c.usage()}
                for c in self.charges
            ],
        }  # fmt: skip

    def _cache(self, body: dict[str, Any]) -> tuple[int, int]:
        """Tokens read from and written to the cache: the longest known marked prefix, and what
        further marks add."""
        read = longest = 0
        for digest, tokens in _prefixes(body):
            if tokens < CACHE_MIN_TOKENS:
                continue
            longest = max(longest, tokens)
            if digest in self._cached:
                read = max(read, tokens)
            self._cached.add(digest)
        return read, max(longest - read, 0)


def count_tokens(body: dict[str, Any]) -> int:
    return sum(len(text) for text, _ in _pieces(body)) // CHARS_PER_TOKEN + 1


def _prefixes(body: dict[str, Any]) -> list[tuple[str, int]]:
    digest, chars, found = hashlib.sha256(), 0, []
    for text, is_marked in _pieces(body):
        digest.update(text.encode())
        chars += len(text)
        if is_marked:
            found.append((digest.hexdigest(), chars // CHARS_PER_TOKEN))
    return found


def _pieces(body: dict[str, Any]) -> list[tuple[str, bool]]:
    system = body.get("system") or []
    blocks = [*(body.get("tools") or []), *(system if isinstance(system, list) else [system])]
    for message in body.get("messages") or []:
        content = message["content"]
        blocks += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return [(_plain(block), _is_marked(block)) for block in blocks]


def _plain(block: Any) -> str:
    if isinstance(block, dict):
        block = {key: value for key, value in block.items() if key != "cache_control"}
    return json.dumps(block, sort_keys=True)


def _is_marked(block: Any) -> bool:
    return isinstance(block, dict) and "cache_control" in block
