"""Calls that are valid by construction, at next to no cost: one automaton over a turn's phases.

Text is free until a trigger appears; then a grammar reads every token. The library (llguidance,
ADR 0015) answers "is this token allowed?" in about a microsecond, so the worker samples first,
asks, and only when the answer is no builds a mask and samples again.

Two phases for many tools: the grammar of a header knows only the tools' names; when the name
stands, the grammar of that one tool's arguments is compiled (and kept). A hundred tools cost a
hundred names.

A call always closes. The constraint counts the tokens that are left and always knows one way to
finish that fits into them (`closing.py`). A way grows at most by `growth` tokens with each token
accepted, a bracket or a key's first letter, so most of the time there is nothing to compute. Near
the end a token is allowed only if a way that fits remains after it, mostly the one known already;
when there is none, the known way is forced, token by token. A model that would babble in a string
until its window ends is cut off at the last moment that leaves a valid call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.engines.chat.compiler import GrammarCompiler
from appliance.engines.chat.grammar import GrammarWriter
from appliance.engines.chat.phases import Phase, Turn
from appliance.engines.chat.spec import ConstraintSpec
from appliance.engines.chat.vocabulary import Vocabulary
from appliance.errors import BadRequest, EngineError

MARGIN_TOKENS = 4
"""Tokens kept in hand: a rounded growth, an end token."""
_UNLIMITED = 1 << 40


class ConstraintFactory:
    """One for each loaded model: its vocabulary prepared, and the grammars compiled so far.

    `tokens[i]` are the bytes of token `i` (control tokens as their text), `end_ids` every token
    that ends an answer, `special_ids` all control and user-defined tokens. Building takes about
    half a second for 150,000 tokens. May be used from several threads; a constraint from one at a
    time.
    """

    def __init__(
        self, tokens: Sequence[bytes], end_ids: Sequence[int], special_ids: Sequence[int]
    ) -> None:
        self._vocabulary = Vocabulary(tokens, end_ids, special_ids)
        self._writer = GrammarWriter(self._vocabulary.special)
        self._compiler = GrammarCompiler(self._vocabulary)

    def compile(self, spec: ConstraintSpec, *, max_tokens: int | None = None) -> Constraint:
        """A constraint at its beginning. `max_tokens` is what may still be generated: with it,
        calls are sure to close in time. Raises `BadRequest` for a schema no grammar can be made
        of."""
        turn = Turn(self._vocabulary, self._writer, self._compiler, spec)
        return Constraint(self._vocabulary, turn, max_tokens)


class Constraint:
    """One answer's automaton. The worker's loop, for each token to be generated:

    forced = constraint.forced_tokens()      # append these unsampled, `accept` each
    token = constraint.settle(sample(), redraw=sample_under_mask)
    constraint.accept(token)                 # then stop if constraint.is_complete
    """

    def __init__(self, vocabulary: Vocabulary, turn: Turn, max_tokens: int | None) -> None:
        self._vocabulary = vocabulary
        self._ends = frozenset(vocabulary.end_ids)
        self._remaining = _UNLIMITED if max_tokens is None else max_tokens
        self._phase: Phase = turn.beginning()
        self._way: list[int] | None = None
        self._way_bound = 0
        self._is_way_exact = True
        self._know(self._phase.way())
        if self._way_bound > self._remaining:
            raise BadRequest(
                f"max_tokens is too small for the demanded answer: "
                f"{max_tokens} < {self._way_bound}",
                hint="raise max_tokens",
            )
        self._ahead: tuple[int, list[int]] | None = None
        self._refused: set[int] = set()
        self._forced: list[int] | None = None
        self.is_complete = False

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, whatever the model would say; often none."""
        return list(self._forced or ())

    def check(self, token: int) -> bool:
        """Whether `token` may come next."""
        if self.is_complete:
            return token in self._ends
        if self._forced is not None:
            return token == self._forced[0]
        if token in self._ends:
            return self._phase.may_end
        if not self._phase.allows(token):
            return False
        if self._has_room(self._phase.cost(token)) or self._is_known(token):
            return True
        way = self._phase.way_after(token, self._known())
        if way is None or len(way) >= self._remaining:
            if self._phase.may_end:
                self._refused.add(token)
            else:
                self._force()
            return False
        self._ahead = (token, way)
        return True

    def settle(self, token: int, redraw: Callable[[NDArray[np.int32]], int]) -> int:
        """`token` if it may come next, or else one drawn under the mask that may."""
        while not self.check(token):
            mask = self.mask()
            if not mask.any():
                raise EngineError("the constraint leaves no token to draw")
            token = redraw(mask)
        return token

    def mask(self) -> NDArray[np.int32]:
        """The tokens that may come next, one bit each, 32 to a word, lowest first:
        `ceil(vocabulary / 32)` words. While plenty of tokens is left `check` allows each of them;
        near the end one may leave no way that fits, which only `check` sees."""
        words = np.zeros(self._vocabulary.words, dtype=np.uint32)
        if self.is_complete:
            self._allow(words, self._vocabulary.end_ids)
            return words.view(np.int32)
        if self._forced is None and not self._has_room(self._phase.growth):
            self._refresh()
        if self._forced is None and not self._has_room(1):
            self._force()
        if self._forced is not None:
            self._allow(words, self._forced[:1])
            return words.view(np.int32)
        words = self._phase.mask()
        for token in self._refused:
            words[token >> 5] &= ~np.uint32(1 << (token & 31))
        self._end_bits(words)
        return words.view(np.int32)

    def accept(self, token: int) -> None:
        """Advance by one token. Raises `EngineError` for one that has no place."""
        self._remaining -= 1
        self._refused.clear()
        if token in self._ends:
            self.is_complete = True
            return
        before = self._phase
        cost = before.cost(token)
        self._phase = before.after(token)
        if self._forced is not None:
            self._forced = self._forced[1:]
            self.is_complete = not self._forced
            return
        if self._ahead is not None and self._ahead[0] == token:
            self._know(self._ahead[1])
        elif self._way and self._is_known(token):
            self._know(self._way[1:])
        elif self._phase is not before:
            self._know(self._phase.way())
        else:
            self._is_way_exact = False
            self._way_bound += cost
        self._ahead = None
        self.is_complete = self._phase.is_over

    def _know(self, way: list[int] | None) -> None:
        self._way = way
        self._way_bound = 0 if way is None else len(way)
        self._is_way_exact = True

    def _has_room(self, cost: int) -> bool:
        """Whether after a token that adds at most `cost` to the way, the way still fits."""
        return self._way is None or self._way_bound + cost + MARGIN_TOKENS < self._remaining

    def _is_known(self, token: int) -> bool:
        """Whether `token` is the next of the known way, which is then still one."""
        return self._is_way_exact and self._way is not None and self._way[:1] == [token]

    def _known(self) -> list[int] | None:
        """The last known way, if it would fit after one more token."""
        return self._way if self._way and len(self._way) < self._remaining else None

    def _refresh(self) -> None:
        if not self._is_way_exact:
            self._know(self._phase.way(self._known()))

    def _force(self) -> None:
        self._refresh()
        if self._way:
            self._forced = self._way
        elif self._phase.may_end:
            self.is_complete = True

    def _end_bits(self, words: NDArray[np.uint32]) -> None:
        if self._phase.may_end:
            self._allow(words, self._vocabulary.end_ids)
        else:
            for token in self._vocabulary.end_ids:
                words[token >> 5] &= ~np.uint32(1 << (token & 31))

    @staticmethod
    def _allow(words: NDArray[np.uint32], tokens: Sequence[int]) -> None:
        for token in tokens:
            words[token >> 5] |= np.uint32(1 << (token & 31))
