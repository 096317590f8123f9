r"""Engine scripted: replays replies, delays, token rates and faults from a file.

For demonstrations and tests of everything above the engine; a real engine in the conformance
suite, used only where a model is configured so. The file is JSON: a list of entries, tried in
order; the first whose `match` (a regular expression, searched in the latest user text or tool
result) fits and whose `times` are not used up answers.

    [{"match": "weather", "tool_calls": [{"name": "shell", "arguments": {"command": "date"}}]},
     {"reply": "It is sunny.", "tokens_per_s": 40, "delay_s": 0.2},
     {"match": "double (\\d+)", "reply": "\\1\\1"},
     {"fault": "crash", "times": 1}]

What a group of `match` found stands in the reply and the arguments for `\\1`, `\\2` and so on, up
to `\\9`.

A fault happens after `reply` was streamed: `crash` (the instance dies), `error` (this answer
fails, retryable), `broken` (not retryable), `overloaded`, `cut` (ends without its proper end),
`hang` (never ends).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from appliance.clock import new_id
from appliance.config.models import ScriptedModel
from appliance.engines.base import EngineFacts, InstanceState
from appliance.errors import (
    BadRequest,
    CutStream,
    EngineError,
    ModelBroken,
    Overloaded,
    PromptTooLong,
)
from appliance.types import (
    Block,
    Completion,
    Delta,
    GenerateRequest,
    Json,
    Message,
    Role,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolCallBlock,
    ToolResultBlock,
    ToolSpec,
    Usage,
)

CHARS_PER_TOKEN = 4
"""Its tokenizer: every four characters are a token."""


class _ScriptedCall(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    arguments: dict[str, Json] = {}


class Entry(BaseModel):
    """One reply of a script."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    match: str = Field("", description="Regular expression; empty fits everything.")
    times: int | None = Field(None, ge=1, description="Uses; None is unlimited.")
    reply: str = ""
    thinking: str = ""
    tool_calls: tuple[_ScriptedCall, ...] = ()
    delay_s: float = Field(0, ge=0, description="Before the first token.")
    tokens_per_s: float = Field(0, ge=0, description="0 is at once.")
    mean_logprob: float | None = None
    fault: Literal["crash", "error", "broken", "overloaded", "cut", "hang"] | None = None


_GROUP = re.compile(r"\\([1-9])")
_SCRIPT = TypeAdapter(tuple[Entry, ...])


def read_script(path: Path) -> tuple[Entry, ...]:
    """The entries of a script file. Raises `ModelBroken` naming what is wrong."""
    try:
        return _SCRIPT.validate_json(path.read_bytes())
    except OSError as error:
        raise ModelBroken(f"script {path}: {error.strerror}", hint="mend `script`") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelBroken(f"script {path}: {where}: {first['msg']}", hint="mend it") from error


class ScriptedEngine:
    """See `engines.base.Engine`. `uses` counts by entry and lives as long as the instance."""

    def __init__(
        self, script: Path, *, context_window: int = 4096, slots: int = 4, load_s: float = 0.0
    ) -> None:
        self._path = script
        self._load_s = load_s
        self._facts = EngineFacts(context_window, slots, supports_images=True)
        self._state = InstanceState.STOPPED
        self._entries: tuple[Entry, ...] = ()
        self._uses: list[int] = []
        self._slots = asyncio.Semaphore(slots)
        self._crashed: asyncio.Future[str] | None = None

    @classmethod
    def from_config(cls, entry: ScriptedModel, folder: Path) -> Self:
        return cls(
            folder / entry.script,
            context_window=entry.context_window,
            slots=entry.slots,
            load_s=entry.load_s,
        )

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def pid(self) -> int | None:
        return None

    @property
    def load_progress(self) -> float:
        return float(self._state is InstanceState.READY)

    async def __aenter__(self) -> Self:
        self._state = InstanceState.STARTING
        self._entries = await asyncio.to_thread(read_script, self._path)
        self._uses = [0] * len(self._entries)
        self._crashed = asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._load_s)
        self._state = InstanceState.READY
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state = InstanceState.STOPPED

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta | Completion]:
        async with self._slots:
            prompt_tokens = await self.count_tokens(request.messages, request.tools)
            if prompt_tokens >= self._facts.context_window:
                raise PromptTooLong(
                    f"prompt is too long: {prompt_tokens} tokens > "
                    f"{self._facts.context_window} maximum"
                )
            entry = self._choose(_asked(request.messages))
            await asyncio.sleep(entry.delay_s)
            limit = request.sampling.max_tokens
            started_s = asyncio.get_running_loop().time()
            said = 0
            for delta in _deltas(entry):
                if limit is not None and said >= limit:
                    break
                if entry.tokens_per_s:
                    await asyncio.sleep(1 / entry.tokens_per_s)
                said += 1
                yield delta
            await self._suffer(entry)
            decode_ms = int((asyncio.get_running_loop().time() - started_s) * 1000)
            usage = Usage(prompt_tokens=prompt_tokens, output_tokens=said, decode_ms=decode_ms)
            yield _completion(entry, usage, was_cut=limit is not None and said >= limit)

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        chars = sum(len(_text(block)) for message in messages for block in message.blocks)
        chars += sum(len(str(dict(tool.input_schema))) for tool in tools)
        return chars // CHARS_PER_TOKEN + len(messages)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise BadRequest("a scripted model does not embed")

    async def wait_failed(self) -> str:
        assert self._crashed is not None
        return await asyncio.shield(self._crashed)

    def _choose(self, asked: str) -> Entry:
        for number, entry in enumerate(self._entries):
            if entry.times is not None and self._uses[number] >= entry.times:
                continue
            found = re.search(entry.match, asked)
            if found is not None:
                self._uses[number] += 1
                return _filled(entry, found)
        raise EngineError(f"script {self._path.name} has no reply for this", hint="add one")

    async def _suffer(self, entry: Entry) -> None:
        match entry.fault:
            case "crash":
                assert self._crashed is not None
                if not self._crashed.done():
                    self._crashed.set_result("the script said crash")
                self._state = InstanceState.FAILED
                raise EngineError("the instance crashed", details={"log_tail": "scripted crash"})
            case "error":
                raise EngineError("the script said error")
            case "broken":
                raise ModelBroken("the script said broken")
            case "overloaded":
                raise Overloaded("the script said overloaded", retry_after_s=1.0)
            case "cut":
                raise CutStream("the answer ended without its proper end")
            case "hang":
                await asyncio.Event().wait()
            case None:
                return


def _filled(entry: Entry, found: re.Match[str]) -> Entry:
    """The entry with what the groups of its `match` found; itself if there are none."""
    if not found.re.groups:
        return entry
    calls = tuple(
        call.model_copy(update={"arguments": _expanded(call.arguments, found)})
        for call in entry.tool_calls
    )
    reply = _expanded(entry.reply, found)
    return entry.model_copy(update={"reply": reply, "tool_calls": calls})


def _expanded(value: Json, found: re.Match[str]) -> Json:
    match value:
        case str():
            groups = (found[0], *found.groups(""))
            return _GROUP.sub(
                lambda n: groups[int(n[1])] if int(n[1]) < len(groups) else n[0], value
            )
        case dict():
            return {name: _expanded(part, found) for name, part in value.items()}
        case list():
            return [_expanded(part, found) for part in value]
        case _:
            return value


def _deltas(entry: Entry) -> list[Delta]:
    deltas: list[Delta] = [ThinkingDelta(piece) for piece in _pieces(entry.thinking)]
    deltas += [TextDelta(piece) for piece in _pieces(entry.reply)]
    return deltas


def _completion(entry: Entry, usage: Usage, *, was_cut: bool) -> Completion:
    blocks: list[Block] = []
    if entry.thinking:
        blocks.append(ThinkingBlock(entry.thinking))
    text = "".join(_pieces(entry.reply)[: usage.output_tokens] if was_cut else [entry.reply])
    if text:
        blocks.append(TextBlock(text))
    calls = [] if was_cut else [
        ToolCallBlock(new_id("call"), call.name, call.arguments) for call in entry.tool_calls
    ]  # fmt: skip
    stop = StopReason.MAX_TOKENS if was_cut else StopReason.END_TURN
    return Completion(
        Message(Role.ASSISTANT, (*blocks, *calls)),
        StopReason.TOOL_USE if calls else stop,
        usage,
        mean_logprob=entry.mean_logprob,
    )


def _pieces(text: str) -> list[str]:
    return [text[i : i + CHARS_PER_TOKEN] for i in range(0, len(text), CHARS_PER_TOKEN)]


def _asked(messages: Sequence[Message]) -> str:
    last = next((m for m in reversed(messages) if m.role is Role.USER), None)
    return "" if last is None else "\n".join(_text(block) for block in last.blocks)


def _text(block: Any) -> str:
    match block:
        case TextBlock(text=text) | ThinkingBlock(text=text):
            return text
        case ToolResultBlock(content=content):
            return "\n".join(_text(part) for part in content)
        case ToolCallBlock(arguments=arguments):
            return json.dumps(dict(arguments))
        case _:
            return ""
