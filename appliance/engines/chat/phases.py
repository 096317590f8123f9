"""The stretches of an answer, each under one rule, and which follows which.

    _Free ──trigger──▶ _Grammar(header) ──name──▶ _Grammar(arguments and tail) ──next name──▶ …
    _Until(end of reasoning) ──▶ _Grammar(header, or the whole answer)

A phase ends only where its grammar ends, so no token reaches from one grammar into the next; only a
trigger in free text may share a token with what follows it, and that rest is fed byte by byte.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from appliance.engines.chat.closing import Hints, leads_out, way_out
from appliance.engines.chat.compiler import GrammarCompiler
from appliance.engines.chat.freetext import Called, FreeReader, FreeText
from appliance.engines.chat.grammar import GrammarWriter, header_end
from appliance.engines.chat.rawbody import closing, raw_argument, without_body
from appliance.engines.chat.schema import Fitted, fitted
from appliance.engines.chat.spec import CallMode, ConstraintSpec
from appliance.engines.chat.syntax import ArgumentStyle, CallSyntax
from appliance.engines.chat.vocabulary import Vocabulary
from appliance.errors import EngineError
from appliance.types import ToolSpec

CALLS_LIMIT = 16
"""Calls in one turn; a model that wants more asks again in its next."""

_CALL_TOKENS = 1024
"""Left with fewer tokens, we look before a call begins whether it can end."""
_TAG_EXITS = (b"\n</parameter>\n",)
_TAG_OUTSIDE = (b"</function>", b"/function>")


class Phase(Protocol):
    """Immutable for `allows`, `mask`, `way` and `way_after`; `after` consumes it.

    A way finishes the turn; it is None where none is found, and `known` itself where that is one,
    which is quicker to see."""

    @property
    def may_end(self) -> bool:
        """An end token may come now."""
        ...

    @property
    def is_over(self) -> bool:
        """Nothing but an end token may come."""
        ...

    @property
    def growth(self) -> int:
        """Tokens that one more token can add to the way out."""
        ...

    def cost(self, token: int) -> int:
        """Tokens that this token can add; at most `growth`."""
        ...

    def allows(self, token: int) -> bool: ...

    def mask(self) -> NDArray[np.uint32]: ...

    def after(self, token: int) -> Phase: ...

    def way(self, known: list[int] | None = None) -> list[int] | None: ...

    def way_after(self, token: int, known: list[int] | None = None) -> list[int] | None: ...


class Turn:
    """What a turn may contain."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        writer: GrammarWriter,
        compiler: GrammarCompiler,
        spec: ConstraintSpec,
    ) -> None:
        self.vocabulary = vocabulary
        self.spec = spec
        self.reader = FreeReader(spec.framing, spec.syntax)
        self._writer = writer
        self._compiler = compiler
        self._by_name = {tool.name: tool for tool in spec.tools}
        self._calls = 0
        syntax = spec.syntax
        self._header_end = header_end(syntax, spec.tools) if syntax is not None else None
        tags = syntax is not None and syntax.style is ArgumentStyle.TAGS
        self._exits = _TAG_EXITS if tags else ()
        self._controls = _leading_out(writer, spec)
        self._ends = () if syntax is None else tuple(writer.controls(syntax.last))
        words, self._another = _parting(syntax)
        self._outside = _TAG_OUTSIDE if tags else words

    def beginning(self) -> Phase:
        if self.spec.mode is CallMode.AUTO and self.spec.response_schema is None:
            return _Free(self, self.reader.beginning)
        if self.spec.framing.starts_thinking:
            return _Until(self)
        return self.demanded(after_thinking=False)

    def demanded(self, *, after_thinking: bool) -> _Grammar:
        """The grammar of an answer that must be a call, or valid against a schema."""
        spec, writer, think = self.spec, self._writer, self.spec.framing.think
        resume = think.resume if think is not None and after_thinking else ""
        choices: list[tuple[str, str]] = []
        if spec.mode is not CallMode.NONE:
            choices.append(writer.header(resume + self._syntax.first, self._syntax, spec.tools))
        if spec.response_schema is not None and spec.mode is not CallMode.REQUIRED:
            choices.append(writer.answer(resume + spec.framing.answer, spec.response_schema))
        rule = " | ".join(f"({body})" for body, _ in choices)
        rules = "\n".join(more for _, more in choices)
        if after_thinking:
            rule = f"/[ \\n]{{0,3}}/ ({rule})"
        elif spec.thinking and think is not None:
            rule = f"{writer.literal(think.open)} | {rule}"
        kept = None if spec.response_schema is None else fitted(spec.response_schema)
        found = _Grammar(self, self._matcher(rule, rules), kept)
        if spec.mode is not CallMode.NONE:
            found.growth = _CALL_TOKENS
        return found

    def called(self) -> _Grammar:
        """The header after a trigger in free text."""
        rule, rules = self._writer.header(self._syntax.after_trigger, self._syntax, self.spec.tools)
        return _Grammar(self, self._matcher(rule, rules), None)

    def following(self, text: bytes) -> Phase | None:
        """The phase that begins when a grammar is satisfied by `text`; None while it may go on."""
        if self._opens_reasoning(text):
            return _Until(self)
        tool = self._named(text)
        if tool is None:
            return None
        self._calls += 1
        more = self.spec.parallel and self._calls < CALLS_LIMIT
        return self._call(tool, self.spec.tools if more else ())

    def way(
        self, matcher: LLMatcher, text: bytes, exits: tuple[bytes, ...], endings: tuple[bytes, ...]
    ) -> list[int] | None:
        """Out of a grammar, and where that ends in a header, out of the call it begins."""
        hints = Hints(exits, self._outside, endings, self._controls, self._ends)
        out = way_out(matcher, self.vocabulary, hints)
        if out is None:
            return None
        text += b"".join(self.vocabulary.tokens[token] for token in out)
        tool = self._named(text)
        if tool is not None:
            rest = self._call(tool, ()).way()
        elif self._opens_reasoning(text):
            rest = _Until(self).way()
        else:
            return out
        return None if rest is None else out + rest

    def _call(self, tool: ToolSpec, others: tuple[ToolSpec, ...]) -> _Grammar:
        rule, rules = self._writer.call(tool, self._syntax, others)
        raw = raw_argument(tool, self._syntax)
        exits = self._exits if raw is None else (closing(raw).encode(),)
        kept = fitted(without_body(tool, self._syntax).input_schema)
        return _Grammar(self, self._matcher(rule, rules), kept, exits)

    def begins_another(self, text: bytes, piece: bytes) -> bool:
        """Whether `piece` after `text` reaches past the end of a call into the next."""
        mark = self._another
        return mark is not None and mark in text[-len(mark) :] + piece

    def _opens_reasoning(self, text: bytes) -> bool:
        think = self.spec.framing.think
        return think is not None and text == think.open.encode()

    def _named(self, text: bytes) -> ToolSpec | None:
        match = self._header_end.search(text) if self._header_end is not None else None
        return None if match is None else self._by_name[match["name"].decode()]

    def _matcher(self, rule: str, rules: str) -> LLMatcher:
        return self._compiler.matcher(f'%llguidance {{"no_forcing": true}}\nstart: {rule}\n{rules}')

    @property
    def _syntax(self) -> CallSyntax:
        assert self.spec.syntax is not None
        return self.spec.syntax


def _parting(syntax: CallSyntax | None) -> tuple[tuple[bytes, ...], bytes | None]:
    """Where a turn's end and another call part: what says the end, and what begins the call."""
    if syntax is None or syntax.between is None:
        return (), None
    last, between = syntax.last, syntax.between
    pairs = enumerate(zip(last, between, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), len(last))
    rest = last[shared:].encode()
    return ((rest,) if rest else ()), between[: shared + 1].encode()


def _leading_out(writer: GrammarWriter, spec: ConstraintSpec) -> tuple[int, ...]:
    """Control tokens in the order in which the way out of a turn prefers them."""
    syntax, think = spec.syntax, spec.framing.think
    texts = [] if syntax is None else [syntax.last, syntax.first, syntax.middle]
    texts += [spec.framing.answer] if think is None else [spec.framing.answer, think.resume]
    return tuple(dict.fromkeys(token for text in texts for token in writer.controls(text)))


class _Free:
    """Text without any constraint, until a call begins. It may end at any time: its way is none."""

    may_end = True
    is_over = False
    growth = _CALL_TOKENS

    def __init__(self, turn: Turn, state: FreeText) -> None:
        self._turn = turn
        self._state = state

    def cost(self, token: int) -> int:
        step = self._turn.reader.step(self._state, self._turn.vocabulary.tokens[token])
        return 0 if isinstance(step, FreeText) else _CALL_TOKENS

    def allows(self, token: int) -> bool:
        return self._next(token) is not None

    def mask(self) -> NDArray[np.uint32]:
        reader, allowed = self._turn.reader, self._turn.vocabulary.everything.copy()
        for token, piece in self._turn.vocabulary.ending_like(reader.trigger):
            called = isinstance(reader.step(self._state, piece), Called)
            if called and not self.allows(token):
                allowed[token >> 5] &= ~np.uint32(1 << (token & 31))
        return allowed

    def after(self, token: int) -> Phase:
        step = self._turn.reader.step(self._state, self._turn.vocabulary.tokens[token])
        if isinstance(step, FreeText):
            self._state = step
            return self
        following = self._turn.called().fed(step.rest)
        if following is None:
            raise EngineError(f"token {token} begins a call that cannot be")
        return following

    def way(self, known: list[int] | None = None) -> list[int]:
        return []

    def way_after(self, token: int, known: list[int] | None = None) -> list[int] | None:
        following = self._next(token)
        return [] if following is None else following.way()

    def _next(self, token: int) -> Phase | None:
        step = self._turn.reader.step(self._state, self._turn.vocabulary.tokens[token])
        if isinstance(step, FreeText):
            return _Free(self._turn, step)
        return self._turn.called().fed(step.rest)


class _Until:
    """Reasoning before a demanded answer: free until its closing mark."""

    may_end = False
    is_over = False
    growth = 0

    def __init__(self, turn: Turn, tail: bytes = b"") -> None:
        think = turn.spec.framing.think
        assert think is not None
        self._turn = turn
        self._mark = think.close.encode()
        self._tail = tail

    def cost(self, token: int) -> int:
        return 0

    def allows(self, token: int) -> bool:
        return self._next(token) is not None

    def mask(self) -> NDArray[np.uint32]:
        allowed = self._turn.vocabulary.everything.copy()
        for token, piece in self._turn.vocabulary.ending_like(self._mark):
            if self._mark in self._tail + piece and not self.allows(token):
                allowed[token >> 5] &= ~np.uint32(1 << (token & 31))
        return allowed

    def after(self, token: int) -> Phase:
        following = self._next(token)
        if following is None:
            raise EngineError(f"token {token} ends the reasoning with what cannot follow it")
        if isinstance(following, _Until):
            self._tail = following._tail
            return self
        return following

    def way(self, known: list[int] | None = None) -> list[int] | None:
        if known:
            return known
        close = self._turn.vocabulary.encode_with_controls(self._mark.decode())
        rest = self._turn.demanded(after_thinking=True).way()
        return None if close is None or rest is None else close + rest

    def way_after(self, token: int, known: list[int] | None = None) -> list[int] | None:
        following = self._next(token)
        return None if following is None else following.way(known)

    def _next(self, token: int) -> Phase | None:
        text = self._tail + self._turn.vocabulary.tokens[token]
        before, mark, rest = text.partition(self._mark)
        if not mark:
            return _Until(self._turn, before[-len(self._mark) + 1 :])
        return self._turn.demanded(after_thinking=True).fed(rest)


class _Grammar:
    """Under a grammar: a header up to its name, a call's arguments and tail, or a whole answer."""

    def __init__(
        self,
        turn: Turn,
        matcher: LLMatcher,
        kept: Fitted | None,
        exits: tuple[bytes, ...] = (),
    ) -> None:
        self._turn = turn
        self._matcher = matcher
        self._text = b""
        self._exits = exits
        self._endings = kept.endings if kept is not None else ()
        self.growth = kept.growth if kept is not None else _CALL_TOKENS

    @property
    def may_end(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        return bool(self._matcher.is_stopped())

    def cost(self, token: int) -> int:
        # The first letters of a key, a value or a tool's name decide as much as a bracket does.
        piece = self._turn.vocabulary.tokens[token]
        return _CALL_TOKENS if self._turn.begins_another(self._text, piece) else self.growth

    def allows(self, token: int) -> bool:
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self) -> NDArray[np.uint32]:
        vocabulary = self._turn.vocabulary
        return vocabulary.mask(self._matcher)[: vocabulary.words].copy()

    def after(self, token: int) -> Phase:
        if not self._matcher.consume_token(token):
            raise EngineError(f"the grammar has no place for token {token}")
        return self._settled(self._turn.vocabulary.tokens[token])

    def fed(self, rest: bytes) -> Phase | None:
        """After bytes that came with a trigger; None if they have no place here."""
        if rest and not self._matcher.consume_tokens(self._turn.vocabulary.virtual(rest)):
            return None
        return self._settled(rest)

    def way(self, known: list[int] | None = None) -> list[int] | None:
        return self._way(self._matcher, self._text, known)

    def way_after(self, token: int, known: list[int] | None = None) -> list[int] | None:
        ahead = self._matcher.deep_copy()
        if not ahead.consume_token(token):
            return None
        return self._way(ahead, self._text + self._turn.vocabulary.tokens[token], known)

    def _way(self, matcher: LLMatcher, text: bytes, known: list[int] | None) -> list[int] | None:
        if known and leads_out(matcher, known):
            return known
        return self._turn.way(matcher, text, self._exits, self._endings)

    def _settled(self, piece: bytes) -> Phase:
        is_satisfied = self._matcher.is_accepting()
        if is_satisfied or self._turn.begins_another(self._text, piece):
            # What may follow is a whole call.
            self.growth = _CALL_TOKENS
        self._text += piece
        return (self._turn.following(self._text) if is_satisfied else None) or self
