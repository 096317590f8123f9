"""From a request to what the loop needs: tokens, stops, parser, constraint. Off the loop's thread.

Used from the preparing thread alone. The constraints it compiles are then used by the loop's
thread alone; the two share the factory's table of compiled grammars, whose single operations are
atomic under the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property

from appliance.engines.chat.constraint import Constraint, ConstraintFactory
from appliance.engines.chat.parser import OutputParser
from appliance.engines.chat.template import ChatTemplate
from appliance.engines.chat.turnplan import ChatPlan, plan
from appliance.engines.llamacpp.dates import BeginningDates
from appliance.engines.llamacpp.prefix import common_length
from appliance.engines.llamacpp.said import Said
from appliance.engines.llamacpp.vocab import Vocab
from appliance.errors import PromptTooLong
from appliance.types import GenerateRequest, Message, Role, ToolSpec, text_message


@dataclass(frozen=True, slots=True)
class Prepared:
    """`max_tokens` fits the window. `stops` count in plain answer text only."""

    tokens: tuple[int, ...]
    max_tokens: int
    stops: tuple[str, ...]
    parser: OutputParser
    constraint: Constraint | None
    checkpoint: int = 0
    """Tokens after which the cache's state is worth keeping; 0 where it can be cut anyway."""


class Preparer:
    """Renders, tokenises, compiles. `window` is the most tokens one sequence may hold;
    `makes_checkpoints` is for models whose cache cannot be cut; `dates` are of conversations begun
    earlier; `today` asks the calendar."""

    def __init__(
        self,
        vocab: Vocab,
        template: ChatTemplate,
        *,
        window: int,
        makes_checkpoints: bool,
        dates: BeginningDates | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._vocab = vocab
        self._template = template
        self._window = window
        self._makes_checkpoints = makes_checkpoints
        self._today = today
        self._dates = dates or BeginningDates()
        self.said = Said()

    def prepare(self, request: GenerateRequest) -> Prepared:
        """Raises `BadRequest` and `PromptTooLong`; never cuts a prompt."""
        today = self._dates.of(request.cache_key, self._today())
        planned = plan(self._template, request, today=today)
        tokens = self._tokens(planned)
        if len(tokens) >= self._window:
            raise PromptTooLong(
                f"prompt is too long: {len(tokens)} tokens > {self._window - 1} maximum",
                hint="shorten the conversation, or raise the model's context_window",
                details={"prompt_tokens": len(tokens), "maximum_tokens": self._window - 1},
            )
        room = self._window - len(tokens)
        wanted = request.sampling.max_tokens
        max_tokens = room if wanted is None else max(1, min(wanted, room))
        constraint = None
        if planned.constraint is not None:
            constraint = self._constraints.compile(planned.constraint, max_tokens=max_tokens)
        return Prepared(
            tokens=tuple(tokens),
            max_tokens=max_tokens,
            stops=planned.stop,
            parser=planned.parser,
            constraint=constraint,
            checkpoint=(
                self._shared_beginning(request, tokens, today) if self._makes_checkpoints else 0
            ),
        )

    def count(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        """Prompt tokens of these messages and tools, generation prompt included."""
        request = GenerateRequest("count", tuple(messages), tuple(tools))
        return len(self._tokens(plan(self._template, request, today=self._today())))

    def text(self, text: str) -> tuple[int, ...]:
        """Tokens of a text to embed, with what the model puts around one."""
        tokens = tuple(self._vocab.tokenise(text, add_special=True))
        if len(tokens) > self._window:
            raise PromptTooLong(f"text is too long: {len(tokens)} tokens > {self._window} maximum")
        # A text without tokens has no vector; the model's end token stands for it.
        return tokens or (max(self._vocab.eos, 0),)

    def _tokens(self, planned: ChatPlan) -> list[int]:
        return self._vocab.tokenise_segments(
            planned.segments, adds_bos=planned.adds_bos, said=self.said
        )

    @cached_property
    def _constraints(self) -> ConstraintFactory:
        vocab = self._vocab
        return ConstraintFactory(vocab.pieces, sorted(vocab.end_ids), vocab.special_ids)

    def _shared_beginning(
        self, request: GenerateRequest, tokens: Sequence[int], today: date
    ) -> int:
        """Where system prompt and tools end: as far as another question would share the prompt."""
        system = tuple(m for m in request.messages[:1] if m.role is Role.SYSTEM)
        if not system and not request.tools:
            return 0
        other = replace(request, messages=(*system, text_message(Role.USER, "?")))
        others = self._tokens(plan(self._template, other, today=today))
        # One less: text that follows may still merge with the last token.
        return max(0, common_length(others, tokens) - 1)
