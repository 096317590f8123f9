"""A history as the Messages API wants it.

The API is strict, and our histories come from anywhere: local models, other providers, crashes in
mid-call, compaction. So a history is not translated block by block but brought into the form that
strict validation accepts, changing as little as possible and always the same way (an unstable
translation would defeat the prompt cache):

- system messages before the first turn become `system`; later ones become marked user text where
  they stand, since hoisting them would rewrite the cached prefix;
- neighbours of one role are merged; a history that starts or ends with the assistant gets a user
  turn there;
- thinking goes back only to the provider that signed it, other models' is left out, and so is
  thinking that ends a turn (what came of it was cut off);
- every call gets its result in the next turn, results first; a call without one gets an error
  result saying so, a result without its call becomes text, ids are made unique and well-formed;
- empty text is left out; an image the API does not take becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.types import (
    Block,
    ImageBlock,
    Json,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
)
from appliance.wire.anthropic import block_to_json, call_id, tool_name

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})

_LOST_RESULT = "(no result of this call is known)"
_OPENING = "(the conversation goes on)"


@dataclass(frozen=True, slots=True)
class History:
    """A history as the API wants it: `system` text blocks and alternating `messages`."""

    system: tuple[dict[str, Json], ...]
    messages: tuple[dict[str, Json], ...]
    can_think: bool
    """Whether thinking may be on: an open tool loop must begin with thinking of the provider's."""


def history_to_json(messages: Sequence[Message], *, images: bool = True) -> History:
    """The history in the strict form described above. `images` False writes notes instead."""
    system, rest = _split_system(messages)
    turns: list[tuple[Role, list[Block]]] = []
    for message in rest:
        role = Role.USER if message.role is Role.SYSTEM else message.role
        blocks = _as_user_text(message) if message.role is Role.SYSTEM else list(message.blocks)
        if turns and turns[-1][0] is role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    body = _Pairing(images).turns(turns)
    return History(tuple(system), tuple(body), _can_think(body))


class _Pairing:
    """Translates turns while keeping each call beside its result and each id single."""

    def __init__(self, images: bool) -> None:
        self._images = images
        self._used: set[str] = set()
        self._ids: dict[str, str] = {}
        """Our id of each call awaiting its result → the id sent."""

    def turns(self, turns: list[tuple[Role, list[Block]]]) -> list[dict[str, Json]]:
        body: list[dict[str, Json]] = []
        for role, blocks in turns:
            if role is Role.ASSISTANT:
                if self._ids:
                    _extend(body, "user", self._results([]))
                content = self._assistant(blocks)
                if content and not body:
                    _extend(body, "user", [_text(_OPENING)])
                _extend(body, "assistant", content)
            else:
                _extend(body, "user", [*self._results(blocks), *self._rest(blocks)])
        if self._ids:
            _extend(body, "user", self._results([]))
        if not body or body[-1]["role"] == "assistant":
            _extend(body, "user", [_text(_OPENING)])
        return body

    def _assistant(self, blocks: Iterable[Block]) -> list[dict[str, Json]]:
        content = []
        for block in blocks:
            match block:
                case TextBlock(text=text) if text.strip():
                    content.append(_text(text))
                case ThinkingBlock(provider="anthropic" | "anthropic.redacted", signature=str()):
                    content.append(block_to_json(block))
                case ToolCallBlock(call_id=ours, name=name, arguments=arguments):
                    if ours in self._ids:
                        continue
                    sent = self._new_id(ours)
                    self._ids[ours] = sent
                    content.append(
                        {
                            "type": "tool_use",
                            "id": sent,
                            "name": tool_name(name),
                            "input": dict(arguments),
                        }
                    )
                case ImageBlock():
                    content.append(_text("[an image]"))
                case _:
                    continue
        while content and "thinking" in content[-1]["type"]:
            content.pop()
        return content

    def _results(self, blocks: Iterable[Block]) -> list[dict[str, Json]]:
        """The results of the calls before, first in their turn; of all, missing ones included."""
        found: dict[str, dict[str, Json]] = {}
        for block in blocks:
            if isinstance(block, ToolResultBlock) and block.call_id in self._ids:
                found.setdefault(block.call_id, self._result(block, self._ids[block.call_id]))
        lost = {"content": [_text(_LOST_RESULT)], "is_error": True}
        results = [
            found.get(ours) or {"type": "tool_result", "tool_use_id": sent, **lost}
            for ours, sent in self._ids.items()
        ]
        self._paired = set(found)
        self._ids = {}
        return results

    def _rest(self, blocks: Iterable[Block]) -> list[dict[str, Json]]:
        content = []
        seen: set[str] = set()
        for block in blocks:
            match block:
                case TextBlock(text=text) if text.strip():
                    content.append(_text(text))
                case ImageBlock():
                    content.append(self._image(block))
                case ToolResultBlock(call_id=ours):
                    if ours not in self._paired or ours in seen:
                        text = "".join(
                            part.text if isinstance(part, TextBlock) else "[an image]"
                            for part in block.content
                        )
                        content.append(_text(f"[result of a tool call]\n{text}"))
                    seen.add(ours)
                case _:
                    continue
        return content

    def _result(self, block: ToolResultBlock, sent: str) -> dict[str, Json]:
        content = [
            _text(part.text) if isinstance(part, TextBlock) else self._image(part)
            for part in block.content
            if not isinstance(part, TextBlock) or part.text.strip()
        ]
        body: dict[str, Json] = {"type": "tool_result", "tool_use_id": sent}
        if content:
            body["content"] = content
        if block.is_error:
            body["is_error"] = True
            body.setdefault("content", [_text("(an error without a message)")])
        return body

    def _image(self, block: ImageBlock) -> dict[str, Json]:
        if self._images and block.media_type in IMAGE_TYPES and block.data_base64:
            return block_to_json(block)
        return _text(f"[an image of type {block.media_type}, not shown]")

    def _new_id(self, ours: str) -> str:
        sent, number = call_id(ours), 1
        while sent in self._used:
            number += 1
            sent = f"{call_id(ours)[:110]}_{number}"
        self._used.add(sent)
        return sent


def _split_system(messages: Sequence[Message]) -> tuple[list[dict[str, Json]], Sequence[Message]]:
    first = next((i for i, m in enumerate(messages) if m.role is not Role.SYSTEM), len(messages))
    blocks = [block for message in messages[:first] for block in message.blocks]
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    return [_text(text) for text in texts if text.strip()], messages[first:]


def _as_user_text(message: Message) -> list[Block]:
    text = message.text
    return [TextBlock(f"<system>\n{text}\n</system>")] if text.strip() else []


def _extend(body: list[dict[str, Json]], role: str, content: list[dict[str, Json]]) -> None:
    if not content:
        return
    if body and body[-1]["role"] == role:
        body[-1]["content"].extend(content)
    else:
        body.append({"role": role, "content": content})


def _can_think(body: Sequence[dict[str, Json]]) -> bool:
    """False inside a tool loop that another model began: its first turn has no signed thinking."""
    for message in reversed(body):
        if message["role"] == "user":
            if not any(part["type"] == "tool_result" for part in message["content"]):
                return True
        elif "thinking" not in message["content"][0]["type"]:
            return False
    return True


def _text(text: str) -> dict[str, Json]:
    return {"type": "text", "text": text}
