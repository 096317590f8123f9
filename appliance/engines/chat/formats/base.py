"""What the formats have in common: a protocol, and how each is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from appliance.engines.chat.syntax import CallSyntax, Framing
from appliance.engines.chat.traits import Traits
from appliance.types import Json


class CallFormat(Protocol):
    """One family's way to call tools and to frame answers."""

    @property
    def name(self) -> str: ...

    @property
    def syntax(self) -> CallSyntax: ...

    @property
    def framing(self) -> Framing: ...

    @property
    def describes_tools(self) -> bool:
        """The template itself tells the model of its tools."""
        ...

    @property
    def renders_calls(self) -> bool:
        """The template prints past calls; else they travel as text of the turn."""
        ...

    @property
    def renders_results(self) -> bool: ...

    def describe(self, tools: Sequence[Json]) -> str:
        """The text for the system prompt where the template does not describe the tools."""
        ...


class Recogniser(Protocol):
    def __call__(self, source: str, traits: Traits) -> CallFormat | None: ...
