"""Lark grammars for the parts of a turn of calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from appliance.engines.chat.rawbody import closing, opening, raw_argument, without_body
from appliance.engines.chat.rules import json_grammar, tags_rules
from appliance.engines.chat.syntax import ArgumentStyle, CallSyntax
from appliance.types import Json, ToolSpec


class GrammarWriter:
    """Writes grammars for one vocabulary's control tokens."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = sorted(special.items(), key=lambda item: -len(item[0]))

    def literal(self, text: str) -> str:
        """`text` as a sequence of strings and control tokens."""
        parts: list[str] = []
        while text:
            at, mark, token = len(text), "", 0
            for candidate, number in self._special:
                found = text.find(candidate)
                if 0 <= found < at:
                    at, mark, token = found, candidate, number
            if at:
                parts.append(json.dumps(text[:at], ensure_ascii=False))
            if mark:
                parts.append(f"<[{token}]>")
            text = text[at + len(mark) :]
        return " ".join(parts)

    def controls(self, text: str) -> tuple[int, ...]:
        """The control tokens in `text`."""
        return tuple(token for mark, token in self._special if mark in text)

    def header(
        self, opening: str, syntax: CallSyntax, tools: Sequence[ToolSpec]
    ) -> tuple[str, str]:
        """From `opening` to where the arguments begin: the start rule's body, and further rules."""
        return self._header(opening, syntax), _names(tools)

    def call(
        self, tool: ToolSpec, syntax: CallSyntax, others: Sequence[ToolSpec]
    ) -> tuple[str, str]:
        """One tool's arguments and what follows: a raw body, the end, or the next call's header."""
        raw = raw_argument(tool, syntax)
        if raw is not None:
            head = self.literal(syntax.last + opening(raw))
            rules = [
                self._arguments(without_body(tool, syntax), syntax),
                f"body[suffix={json.dumps(closing(raw))}]: /(?s:.*)/",
            ]
            return f"{_lead(syntax)} arguments {head} body".strip(), "\n".join(rules)
        ends = [self.literal(syntax.last) or '""']
        rules = [self._arguments(tool, syntax)]
        if others and syntax.between is not None:
            ends.append(self._header(syntax.between, syntax))
            rules.append(_names(others))
        rules.append(f"tail: {' | '.join(ends)}")
        return f"{_lead(syntax)} arguments tail".strip(), "\n".join(rules)

    def _arguments(self, tool: ToolSpec, syntax: CallSyntax) -> str:
        if syntax.style is ArgumentStyle.TAGS:
            return tags_rules(tool.input_schema)
        return f"arguments: %json {json_grammar(tool.input_schema)}"

    def answer(self, opening: str, schema: Mapping[str, Json]) -> tuple[str, str]:
        return (
            f"{self.literal(opening)} answer".strip(),
            f"answer: %json {json_grammar(schema)}",
        )

    def _header(self, opening: str, syntax: CallSyntax) -> str:
        parts = [self.literal(opening), "name"]
        if syntax.after_id is None:
            parts.append(self.literal(syntax.middle.rstrip(" ")))
        else:
            parts += [self.literal(syntax.middle), "/[a-zA-Z0-9]{9}/"]
            parts.append(self.literal(syntax.after_id.rstrip(" ")))
        return " ".join(part for part in parts if part)


def header_end(syntax: CallSyntax, tools: Sequence[ToolSpec]) -> re.Pattern[bytes]:
    """Matches where a header ends, at the end of a text, and finds its `name`."""
    names = sorted((tool.name for tool in tools), key=len, reverse=True)
    pattern = f"(?P<name>{'|'.join(map(re.escape, names))})"
    if syntax.after_id is None:
        pattern += re.escape(syntax.middle.rstrip(" "))
    else:
        pattern += (
            f"{re.escape(syntax.middle)}[a-zA-Z0-9]{{9}}{re.escape(syntax.after_id.rstrip(' '))}"
        )
    return re.compile(f"(?<![\\w-]){pattern}\\Z".encode())


def _names(tools: Sequence[ToolSpec]) -> str:
    return "name: " + " | ".join(json.dumps(tool.name, ensure_ascii=False) for tool in tools)


def _lead(syntax: CallSyntax) -> str:
    """The blanks between the header's end and the arguments (kept out of the header, because models
    have tokens of a blank and a brace)."""
    before = syntax.middle if syntax.after_id is None else syntax.after_id
    blanks = before[len(before.rstrip(" ")) :]
    return json.dumps(blanks) if blanks else ""
