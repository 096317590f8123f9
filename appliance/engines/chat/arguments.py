"""A call's arguments read as they arrive, handed on as pieces of one JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Protocol

from appliance.engines.chat.jsonscan import ObjectScanner
from appliance.engines.chat.rawbody import closing, raw_argument
from appliance.engines.chat.rules import raw_keys
from appliance.engines.chat.scan import held_back, loose
from appliance.engines.chat.syntax import ArgumentStyle, CallSyntax
from appliance.types import Json, ToolSpec

_OPEN_TAG = re.compile(r"\s*<parameter=([^<>\n]+)>\n")
_CLOSE_TAG = "\n</parameter>"
_TAG_END = re.compile(r"\s*</")


class ArgumentReader(Protocol):
    is_done: bool

    def feed(self, text: str) -> tuple[str, str]:
        """The JSON that `text` adds, and the rest that was not (or not yet) read."""
        ...


def argument_reader(tool: ToolSpec, syntax: CallSyntax) -> ArgumentReader:
    if syntax.style is ArgumentStyle.TAGS:
        return _TagsReader(tool.input_schema)
    raw = raw_argument(tool, syntax)
    return _JsonReader() if raw is None else _BodyReader(raw, syntax.last)


class _JsonReader:
    def __init__(self) -> None:
        self._scanner = ObjectScanner()
        self._began = False
        self.is_done = False

    def feed(self, text: str) -> tuple[str, str]:
        if not self._began:
            text = text.lstrip()
            self._began = bool(text)
        end = self._scanner.feed(text)
        self.is_done = self._scanner.is_done
        return text[:end], text[end:]


class _BodyReader:
    """JSON, the call's end, then one more argument raw up to its sentinel line."""

    def __init__(self, name: str, last: str) -> None:
        self._json = _JsonReader()
        self._head = re.compile(loose(last) + r"\s*<<<" + re.escape(name) + r"\n")
        self._key = json.dumps(name, ensure_ascii=False) + ': "'
        self._close = closing(name)
        self._is_empty = True
        self._in_body = False
        self.is_done = False

    def feed(self, text: str) -> tuple[str, str]:
        out: list[str] = []
        if not self._json.is_done:
            piece, text = self._json.feed(text)
            # The object's own end waits for the last argument.
            piece = piece[:-1] if self._json.is_done else piece
            self._is_empty = self._is_empty and piece.strip() in ("", "{")
            out.append(piece)
        if self._json.is_done and not self._in_body:
            match = self._head.match(text)
            if match is None:
                return "".join(out), text
            text = text[match.end() :]
            self._in_body = True
            out.append(self._key if self._is_empty else f", {self._key}")
        if self._in_body:
            at = text.find(self._close)
            ready = at if at >= 0 else len(text) - held_back(text, (self._close,))
            out.append(json.dumps(text[:ready], ensure_ascii=False)[1:-1])
            text = text[ready:]
            if at >= 0:
                out.append('"}')
                text = text[len(self._close) :]
                self.is_done = True
        return "".join(out), text


class _TagsReader:
    """Plain strings stand raw between their tags; any other value is JSON (`rules.raw_keys`)."""

    def __init__(self, schema: Mapping[str, Json]) -> None:
        self._raw_keys = raw_keys(schema)
        self._key: str | None = None
        self._is_string = False
        self._value: list[str] = []
        self._count = 0
        self.is_done = False

    def feed(self, text: str) -> tuple[str, str]:
        out: list[str] = []
        while True:
            if self._key is None:
                match = _OPEN_TAG.match(text)
                if match is not None:
                    text = text[match.end() :]
                    self._open(match[1], out)
                    continue
                if _TAG_END.match(text):
                    out.append("}" if self._count else "{}")
                    self.is_done = True
                return "".join(out), text
            at = text.find(_CLOSE_TAG)
            ready = at if at >= 0 else len(text) - held_back(text, (_CLOSE_TAG,))
            self._add(text[:ready], out)
            text = text[ready:]
            if at < 0:
                return "".join(out), text
            text = text[len(_CLOSE_TAG) :]
            self._close(out)

    def _open(self, key: str, out: list[str]) -> None:
        self._key = key
        self._is_string = key in self._raw_keys
        self._value = []
        out.append(("{" if self._count == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self._count += 1
        if self._is_string:
            out.append('"')

    def _add(self, text: str, out: list[str]) -> None:
        if self._is_string:
            out.append(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            out.append(text)

    def _close(self, out: list[str]) -> None:
        if self._is_string:
            out.append('"')
        self._key = None
