"""The values every room speaks of: messages, tools, steps, usage. No I/O, no policy.

Everything here is frozen. Messages are provider-neutral: dialects of other people's APIs are
translated in `wire/`, chat templates in `engines/llamacpp/`. What one provider alone understands
(a thinking signature) travels as an opaque blob beside the text and is dropped when another
provider reads the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list or dict of the same."""


class Label(StrEnum):
    """Sensitivity of data, lowest first. What derives from several takes the highest."""

    PUBLIC = "public"
    INTERNAL = "internal"
    PRIVATE = "private"

    @property
    def rank(self) -> int:
        return _LABEL_RANK[self]


_LABEL_RANK = {Label.PUBLIC: 0, Label.INTERNAL: 1, Label.PRIVATE: 2}


def highest(*labels: Label) -> Label:
    """The highest of the labels; `public` of none."""
    return max(labels, key=lambda label: label.rank, default=Label.PUBLIC)


class Priority(IntEnum):
    """Who goes first when a slot is scarce; lower is more urgent."""

    INTERACTIVE = 0
    NORMAL = 1
    BACKGROUND = 2


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class TextBlock:
    text: str
    label: Label = Label.PUBLIC


@dataclass(frozen=True, slots=True)
class ThinkingBlock:
    """Reasoning a model showed. `signature` is its provider's, opaque to everyone else."""

    text: str
    signature: str | None = None
    provider: str | None = None
    label: Label = Label.PUBLIC


@dataclass(frozen=True, slots=True)
class ImageBlock:
    media_type: str
    data_base64: str
    label: Label = Label.PUBLIC


@dataclass(frozen=True, slots=True)
class ToolCallBlock:
    """A request by the model. `call_id` is ours (`^[a-zA-Z0-9_-]+$`), never the provider's."""

    call_id: str
    name: str
    arguments: Mapping[str, Json]
    label: Label = Label.PUBLIC


@dataclass(frozen=True, slots=True)
class ToolResultBlock:
    call_id: str
    content: tuple[TextBlock | ImageBlock, ...]
    is_error: bool = False
    label: Label = Label.PUBLIC


Block: TypeAlias = TextBlock | ThinkingBlock | ImageBlock | ToolCallBlock | ToolResultBlock


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance. Tool results travel in a `user` message, as Anthropic has it."""

    role: Role
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        """The text blocks joined; thinking, calls and results left out."""
        return "".join(block.text for block in self.blocks if isinstance(block, TextBlock))

    @property
    def tool_calls(self) -> tuple[ToolCallBlock, ...]:
        return tuple(block for block in self.blocks if isinstance(block, ToolCallBlock))

    @property
    def label(self) -> Label:
        return highest(*(block.label for block in self.blocks))


def text_message(role: Role, text: str, label: Label = Label.PUBLIC) -> Message:
    return Message(role, (TextBlock(text, label),))


class Effect(StrEnum):
    """What carrying out a tool call does to the world, and so what recovery may do with it."""

    READ = "read"
    """Changes nothing; may run again and in parallel."""
    IDEMPOTENT = "idempotent"
    """Running it twice leaves what running it once leaves."""
    ONCE = "once"
    """Must never run twice; unfinished means in doubt."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told of a tool, and what the runner needs to know of it.

    `input_schema` is a JSON Schema of type object. `raw_body` names the one string argument that
    is generated outside JSON (a file's content), where the model's format allows it. `label` is
    how sensitive the name, description and schema are; its results have their own.
    """

    name: str
    description: str
    input_schema: Mapping[str, Json]
    effect: Effect = Effect.ONCE
    raw_body: str | None = None
    label: Label = Label.PUBLIC


class ToolChoiceKind(StrEnum):
    AUTO = "auto"
    ANY = "any"
    NONE = "none"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    kind: ToolChoiceKind = ToolChoiceKind.AUTO
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `None` means the model's configured default.

    `logprobs` is the number of alternatives reported per token; 0 reports the chosen one alone,
    None reports nothing.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None


class StopReason(StrEnum):
    END_TURN = "end_turn"
    MAX_TOKENS = "max_tokens"
    STOP_SEQUENCE = "stop_sequence"
    TOOL_USE = "tool_use"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one step (or a sum of steps) consumed. Tokens, milliseconds, micro-dollars."""

    prompt_tokens: int = 0
    """All prompt tokens, cached ones included."""
    cached_tokens: int = 0
    """Of `prompt_tokens`, those read from a cache (local KV or the provider's)."""
    cache_write_tokens: int = 0
    output_tokens: int = 0
    spend_micro_usd: int = 0
    queue_ms: int = 0
    load_ms: int = 0
    prefill_ms: int = 0
    decode_ms: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            *(getattr(self, name) + getattr(other, name) for name in Usage.__dataclass_fields__)
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Decode rate, tokens per second; None when nothing was decoded."""
        return self.output_tokens * 1000 / self.decode_ms if self.decode_ms > 0 else None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What an engine is asked to do: one model call, self-contained.

    `cache_key` names the conversation whose KV may be reused or parked (a session id); the
    engine never trusts it alone, only together with the token prefix. `deadline_s` is on the
    monotonic clock. `response_schema` asks for an answer that is JSON valid against it.
    """

    request_id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    response_schema: Mapping[str, Json] | None = None
    sampling: Sampling = Sampling()
    thinking: bool = False
    priority: Priority = Priority.NORMAL
    cache_key: str | None = None
    adapter: str | None = None
    deadline_s: float | None = None
    label: Label = Label.PUBLIC
    agent: str = ""
    turn_id: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: the first of a call names it, pieces of `arguments_json` join."""

    call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The model is busy but says nothing yet: `stage` is queued, loading or prefill."""

    stage: str
    done: int = 0
    total: int = 0


Delta: TypeAlias = TextDelta | ThinkingDelta | ToolCallDelta | Progress


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a successful generation; always the last item of an engine's stream."""

    message: Message
    stop_reason: StopReason
    usage: Usage
    stop_sequence: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    mean_logprob: float | None = None
    min_logprob: float | None = None
