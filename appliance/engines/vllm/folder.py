"""The text side of a Hugging Face folder: its chat template and its special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.engines.chat.grammar import GrammarWriter
from appliance.engines.chat.marks import Segment
from appliance.engines.chat.template import ChatTemplate
from appliance.errors import ModelBroken

FILE_MAX_BYTES = 64 << 20
"""Of tokenizer.json; the largest of real models are 35 MB."""
_BREAK = "\u2060"
"""Word joiner: invisible, and no part of any special token."""


@dataclass(frozen=True, slots=True)
class ChatFolder:
    """`controls` are the texts that the tokenizer reads as one token; `writer` knows those that
    are special."""

    template: ChatTemplate
    controls: tuple[str, ...]
    writer: GrammarWriter

    def prompt(self, segments: Iterable[Segment]) -> str:
        """The prompt as one text for a server that reads control tokens everywhere: in text that
        is not the template's own, a word joiner keeps what looks like one from being one."""
        return "".join(
            part.text if part.trusted else self._disarmed(part.text) for part in segments
        )

    def _disarmed(self, text: str) -> str:
        for control in self.controls:
            if control in text:
                text = text.replace(control, control[:1] + _BREAK + control[1:])
        return text


def read_chat_folder(folder: Path) -> ChatFolder:
    """Raises `ModelBroken`. The template is `chat_template.jinja`, else the tokenizer's own."""
    tokenizer = _json(folder / "tokenizer.json")
    config = _json(folder / "tokenizer_config.json")
    added = [token for token in tokenizer.get("added_tokens") or () if token.get("content")]
    special = {str(t["content"]): int(t["id"]) for t in added if t.get("special")}
    controls = sorted((str(t["content"]) for t in added), key=len, reverse=True)
    template = ChatTemplate(
        _template(folder, config),
        bos_token=_text(config.get("bos_token")),
        eos_token=_text(config.get("eos_token")),
    )
    return ChatFolder(template, tuple(controls), GrammarWriter(special))


def _template(folder: Path, config: dict[str, Any]) -> str:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = config.get("chat_template") or ""
    if isinstance(found, list):  # several by name
        by_name = {entry.get("name"): entry.get("template") for entry in found}
        found = by_name.get("default") or ""
    return str(found)


def _text(token: object) -> str:
    """A token is a string, or an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > FILE_MAX_BYTES:
        raise ModelBroken(f"{path} is larger than {FILE_MAX_BYTES >> 20} MiB")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelBroken(f"{path} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}
