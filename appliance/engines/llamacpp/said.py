"""What the model itself said, by its text: so that its own words keep the tokens they had.

The next turn brings an answer back as text. Tokenised again it may come out as other tokens (a
model is free to spell a word in pieces), and from the first that differs the KV cache is of no
use, for a memory that cannot be cut: of none at all. So answers are remembered with the tokens
they were made of, and a prompt's segment that is exactly such a text gets exactly those. Only
plain tokens are remembered, so a text can never smuggle in a control token.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

MAX_TOKENS_KEPT = 1 << 20
"""Bounds the memory: some 50 MB in all."""


class Said:
    """Texts and their tokens, the least recently used forgotten. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._total = 0

    def remember(self, text: str, tokens: Sequence[int]) -> None:
        with self._lock:
            self._total += len(tokens) - len(self._tokens.pop(text, ()))
            self._tokens[text] = tuple(tokens)
            while self._total > MAX_TOKENS_KEPT:
                _, oldest = self._tokens.popitem(last=False)
                self._total -= len(oldest)

    def tokens_of(self, text: str) -> tuple[int, ...] | None:
        """The tokens the model made this text of, if it did."""
        with self._lock:
            if text in self._tokens:
                self._tokens.move_to_end(text)
            return self._tokens.get(text)
