"""Grammars compiled once for a vocabulary and kept."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from llguidance import LLMatcher

from appliance.engines.chat.vocabulary import Vocabulary
from appliance.errors import BadRequest

GRAMMARS_KEPT = 512
"""Compiled grammars kept; one takes some 100 KB."""


class GrammarCompiler:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, grammar: str) -> LLMatcher:
        """A fresh matcher for a grammar in Lark. Raises `BadRequest`. Safe from any thread."""
        with self._lock:
            kept = self._compiled.get(grammar)
            if kept is None:
                kept = self._compile(grammar)
                self._compiled[grammar] = kept
                if len(self._compiled) > GRAMMARS_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return kept.deep_copy()

    def _compile(self, grammar: str) -> LLMatcher:
        compiled = LLMatcher(self._vocabulary.library, grammar, log_level=0)
        if compiled.is_error():
            reason = compiled.get_error().split("\n", 1)[0]
            raise BadRequest(f"the schema cannot be kept: {reason[:300]}")
        return compiled
