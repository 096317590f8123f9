"""A call's arguments read as they arrive, handed on as pieces of one JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Protocol

from appliance.engines.chat.jsonscan import ObjectScanner
from appliance.engines.chat.scan import held_back
from appliance.engines.chat.schema import is_string_schema
from appliance.types import Json

_OPEN_TAG = re.compile(r"\s*<parameter=([^<>\n]+)>\n?")
_CLOSE_TAG = "\n</parameter>"
_TAG_END = re.compile(r"\s*</")


class ArgumentReader(Protocol):
    is_done: bool

    def feed(self, text: str) -> tuple[str, str]:
        """The JSON that `text` adds, and the rest that was not (or not yet) read."""
        ...


def json_reader() -> ArgumentReader:
    return _JsonReader()


def tags_reader(schema: Mapping[str, Json], last: str) -> ArgumentReader:
    return _TagsReader(schema)


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


class _TagsReader:
    """Strings stand raw between their tags; of any other type the value is JSON."""

    def __init__(self, schema: Mapping[str, Json]) -> None:
        self._schema = schema
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
        self._is_string = is_string_schema(self._schema, key)
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
