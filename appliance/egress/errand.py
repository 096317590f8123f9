"""On whose behalf a request is made, and how sensitive what it carries is.

An errand is set by the caller around the one await that sends (`with on_errand(...)`); the
transport reads it there. A context variable, because an SDK stands between the two and hands
nothing through. Without an errand nothing is sent: code that never thought about sensitivity
cannot send by accident.

Never hold `on_errand` open across a `yield`: a generator shares its caller's context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from appliance.types import Label


@dataclass(frozen=True, slots=True)
class Errand:
    label: Label
    """The highest label of all that the request carries."""
    agent: str = ""
    turn_id: str = ""
    tape: str = ""
    """The name under which the courier tapes the answer; empty: it is not carried."""


_current: ContextVar[Errand | None] = ContextVar("egress_errand", default=None)


@contextmanager
def on_errand(errand: Errand) -> Iterator[None]:
    """Requests sent inside are sent on this errand."""
    token = _current.set(errand)
    try:
        yield
    finally:
        _current.reset(token)


def take_up(errand: Errand) -> None:
    """What this task still sends is sent on this errand: for a task that ends with sending."""
    _current.set(errand)


def current_errand() -> Errand | None:
    return _current.get()
