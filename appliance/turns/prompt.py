"""Fits a conversation into a model's real window, and says exactly what it left out.

Pure and deterministic. The tokenizer is somewhere else (in a child process, at a provider), so
`fit` is a generator: it yields a list of messages it wants counted, receives the number, and
returns a `Fitted`. The caller drives it with whatever counts; tests drive it with arithmetic.

What goes first, and why in this order:

1. Whole exchanges of earlier turns, oldest first: they matter least to the question at hand.
2. Long tool results of the current turn, oldest first, cut to head and tail: the model can call
   the tool again, and the full output is kept as a file.
3. Whole steps of the current turn (calls together with their results), oldest first.

Each of the three goes in strides of a third of the window, counted from the oldest: the cut then
stays where it is while the conversation grows by a stride, and the engine's prefix cache with it.
A cut that moved with every turn would have the whole window read anew each time.

The system prompt and the current question are never touched. When they alone do not fit, that is
`PromptTooLong`, never a silent cut. Whatever was left out is announced in the prompt itself, and
the journal keeps all of it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from appliance.errors import PromptTooLong
from appliance.types import (
    Block,
    ImageBlock,
    Message,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
)

CHARS_PER_TOKEN = 3.5
"""For ranking and first guesses only; every decision is checked with a real count."""

MESSAGE_OVERHEAD_TOKENS = 6
IMAGE_TOKENS = 1500
TEMPLATE_TOKENS_MAX = 64
"""What a chat template may put around a message, at most."""

RESULT_KEEP_CHARS = 1200
"""A shortened tool result keeps this much: about a screen of head and tail."""

STRIDES = 3
"""A stride is the budget's third: what is cut at least, and how long the cut stays."""

MAX_ROUNDS = 12
"""Estimates are off by about a third, so a few rounds do; past these, only the least is sent."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Messages that fit, their real count, and what was left out of them."""

    messages: tuple[Message, ...]
    prompt_tokens: int
    tokens_before: int
    dropped_messages: int = 0
    shortened_results: int = 0

    @property
    def is_compacted(self) -> bool:
        return self.dropped_messages > 0 or self.shortened_results > 0


def estimate_tokens(messages: Sequence[Message]) -> int:
    """A quick guess of prompt tokens, without a tokenizer. Within about a third for prose."""
    return sum(MESSAGE_OVERHEAD_TOKENS + sum(map(_block_tokens, m.blocks)) for m in messages)


def most_tokens(messages: Sequence[Message]) -> int:
    """More than any tokenizer makes of them: at worst every byte is a token, as it is with digits,
    or with a script that a small vocabulary does not know."""
    return sum(TEMPLATE_TOKENS_MAX + sum(map(_most_block_tokens, m.blocks)) for m in messages)


def in_words(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same for a model that reads no images: each is said to have been there."""
    return tuple(replace(m, blocks=tuple(map(_block_in_words, m.blocks))) for m in messages)


def fit(
    system: Sequence[Message],
    earlier: Sequence[Message],
    current: Sequence[Message],
    budget_tokens: int,
) -> Generator[tuple[Message, ...], int, Fitted]:
    """Yield message lists to be counted; return the longest history found that fits.

    `earlier` are the messages of former turns, `current` those of the turn being worked on,
    beginning with its question. Raises `PromptTooLong` when system prompt and question alone
    exceed `budget_tokens`.
    """
    whole = (*system, *earlier, *current)
    before = yield whole
    if before <= budget_tokens:
        return Fitted(whole, before, before)
    history = _History(tuple(system), tuple(earlier), tuple(current))
    stride = max(budget_tokens // STRIDES, 1)
    counted, excess = before, 0
    for _ in range(MAX_ROUNDS):
        excess += _excess(counted, budget_tokens, estimate_tokens(whole))
        shorter = history.without(excess, stride)
        messages = shorter.messages()
        counted = yield messages
        if counted <= budget_tokens:
            return Fitted(messages, counted, before, shorter.dropped, shorter.shortened)
        if shorter.is_minimal:
            break
    else:
        shorter = history.minimal()
        messages = shorter.messages()
        counted = yield messages
        if counted <= budget_tokens:
            return Fitted(messages, counted, before, shorter.dropped, shorter.shortened)
    raise PromptTooLong(
        f"prompt is too long: {counted} tokens > {budget_tokens} maximum",
        hint="shorten the message, or use a model with a larger context_window",
        details={"prompt_tokens": counted, "max_tokens": budget_tokens},
    )


def _excess(counted: int, budget: int, estimate: int) -> int:
    """Tokens still to be removed, on the estimate's scale."""
    return max(int((counted - budget) * estimate / max(counted, 1)), 1)


@dataclass(frozen=True, slots=True)
class _History:
    """A history in droppable units, and how far it has been cut."""

    system: tuple[Message, ...]
    earlier: tuple[Message, ...]
    current: tuple[Message, ...]
    dropped_earlier: int = 0
    dropped_current: int = 0
    shortened: int = 0

    @property
    def dropped(self) -> int:
        return self.dropped_earlier + self.dropped_current

    @property
    def is_minimal(self) -> bool:
        return (
            self.dropped_earlier == len(self.earlier)
            and 1 + self.dropped_current >= len(self.current)
        )  # fmt: skip

    def minimal(self) -> _History:
        return replace(
            self,
            dropped_earlier=len(self.earlier),
            dropped_current=max(len(self.current) - 1, 0),
        )

    def without(self, excess: int, stride: int) -> _History:
        """At least `excess` (estimated tokens) less, or as little as can be; in whole strides."""
        end, goal = 0, _whole(excess, stride)
        while goal > 0 and end < len(self.earlier):
            start, end = end, _exchange_end(self.earlier, end)
            saved = estimate_tokens(self.earlier[start:end])
            goal, excess = goal - saved, excess - saved
        smaller = replace(self, dropped_earlier=end)
        if excess > 0:
            current, saved, shortened = _shorten_results(self.current, _whole(excess, stride))
            excess -= saved
            smaller = replace(smaller, current=current, shortened=shortened)
        start, goal = 1, _whole(excess, stride)
        while goal > 0 and start < len(smaller.current):
            end = _step_end(smaller.current, start)
            goal -= estimate_tokens(smaller.current[start:end])
            start = end
        return replace(smaller, dropped_current=start - 1)

    def messages(self) -> tuple[Message, ...]:
        earlier = self.earlier[self.dropped_earlier :]
        current = (*self.current[:1], *self.current[1 + self.dropped_current :])
        if not self.dropped and not self.shortened:
            return (*self.system, *earlier, *current)
        return (*self.system, *_announced((*earlier, *current), self._notice()))

    def _notice(self) -> str:
        left_out = []
        if self.dropped:
            gone = (*self.earlier[: self.dropped_earlier],
                    *self.current[1 : 1 + self.dropped_current])  # fmt: skip
            left_out.append(
                f"{self.dropped} earlier messages (about {estimate_tokens(gone)} tokens)"
            )
        if self.shortened:
            left_out.append(f"the middle of {self.shortened} long tool results")
        return f"[Left out to fit this model's window: {' and '.join(left_out)}.]\n\n"


def _whole(tokens: int, stride: int) -> int:
    """The next whole number of strides; none for nothing."""
    return -(-tokens // stride) * stride if tokens > 0 else 0


def _announced(messages: tuple[Message, ...], notice: str) -> tuple[Message, ...]:
    """The notice in front of the first question, so that roles still alternate."""
    first = next(i for i, m in enumerate(messages) if m.role is Role.USER)
    blocks = messages[first].blocks
    results = tuple(b for b in blocks if isinstance(b, ToolResultBlock))
    rest = tuple(b for b in blocks if not isinstance(b, ToolResultBlock))
    said = replace(messages[first], blocks=(*results, TextBlock(notice), *rest))
    return (*messages[:first], said, *messages[first + 1 :])


def _exchange_end(messages: Sequence[Message], start: int) -> int:
    """The index after the exchange at `start`: up to the next message that asks something."""
    end = start + 1
    while end < len(messages) and not _asks(messages[end]):
        end += 1
    return end


def _step_end(messages: Sequence[Message], start: int) -> int:
    """The index after an answer and the results of its calls."""
    end = start + 1
    while end < len(messages) and messages[end].role is not Role.ASSISTANT:
        end += 1
    return end


def _asks(message: Message) -> bool:
    has_results = any(isinstance(block, ToolResultBlock) for block in message.blocks)
    return message.role is Role.USER and not has_results


def _shorten_results(
    messages: Sequence[Message], excess_tokens: int
) -> tuple[tuple[Message, ...], int, int]:
    """Cut long tool results, oldest first, until about `excess_tokens` are saved."""
    shorter, saved, count = list(messages), 0, 0
    for position, message in enumerate(messages):
        blocks = list(message.blocks)
        for index, block in enumerate(blocks):
            if saved >= excess_tokens or not isinstance(block, ToolResultBlock):
                continue
            cut = replace(block, content=tuple(map(_shorten, block.content)))
            if cut != block:
                saved += _block_tokens(block) - _block_tokens(cut)
                count += 1
                blocks[index] = cut
        shorter[position] = replace(message, blocks=tuple(blocks))
    return tuple(shorter), saved, count


def _shorten(part: TextBlock | ImageBlock) -> TextBlock | ImageBlock:
    if isinstance(part, ImageBlock) or len(part.text) <= 2 * RESULT_KEEP_CHARS:
        return part
    half = RESULT_KEEP_CHARS // 2
    cut = len(part.text) - 2 * half
    return replace(part, text=f"{part.text[:half]}\n[… {cut} characters …]\n{part.text[-half:]}")


def _block_in_words(block: Block) -> Block:
    match block:
        case ImageBlock(media_type=media_type, label=label):
            return TextBlock(f"[an image, {media_type}, that this model cannot read]", label)
        case ToolResultBlock(content=content):
            said = tuple(_block_in_words(part) for part in content)
            return replace(block, content=said)  # type: ignore[arg-type]
        case _:
            return block


def _most_block_tokens(block: Block) -> int:
    match block:
        case TextBlock(text=text) | ThinkingBlock(text=text):
            return len(text.encode("utf-8", "surrogatepass"))
        case ToolCallBlock(name=name, arguments=arguments):
            return len(json.dumps([name, arguments], default=dict)) + TEMPLATE_TOKENS_MAX
        case ToolResultBlock(content=content):
            return TEMPLATE_TOKENS_MAX + sum(map(_most_block_tokens, content))
        case ImageBlock():
            return 2 * IMAGE_TOKENS


def _block_tokens(block: Block) -> int:
    match block:
        case TextBlock(text=text) | ThinkingBlock(text=text):
            return int(len(text) / CHARS_PER_TOKEN) + 1
        case ToolCallBlock(name=name, arguments=arguments):
            return int((len(name) + len(str(dict(arguments)))) / CHARS_PER_TOKEN) + 10
        case ToolResultBlock(content=content):
            return 8 + sum(map(_block_tokens, content))
        case ImageBlock():
            return IMAGE_TOKENS
