"""The door itself: lends HTTP clients, says what is permitted, and remembers rate limits."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from appliance.clock import Clock
from appliance.config.models import ClaudeModel, RemoteModel, reached
from appliance.config.schema import Config
from appliance.egress.audit import Audit
from appliance.egress.courier.courier import Courier
from appliance.egress.gate import Gate
from appliance.egress.guard import PROCESS_GUARD, Guard
from appliance.egress.keys import find_key
from appliance.egress.rates import Rates, observed
from appliance.egress.reach import Reach
from appliance.egress.rules import Purpose, target_of
from appliance.errors import ConfigError

if TYPE_CHECKING:
    import httpx2

READ_TIMEOUT_S = 600.0
"""Silence on a connection before it counts as dead, where the borrower sets nothing tighter."""

_TALKATIVE = ("anthropic", "httpx2", "httpcore2")
"""Libraries below a client that log URLs, headers or whole bodies at debug level."""


class Egress:
    """Satisfies `turns.places.Door`. Holds no socket of its own: who borrows a client closes it.

    The configuration is asked at every request, so that a reload that closes a host or turns air
    gap on takes effect at once, for clients already lent too.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        audit: Audit,
        clock: Clock,
        *,
        environment: Mapping[str, str] = os.environ,
        guard: Guard = PROCESS_GUARD,
        courier: Courier | None = None,
    ) -> None:
        self._config = config
        self._audit = audit
        self._clock = clock
        self._environment = environment
        self._guard = guard
        self._courier = courier
        self._reach = Reach(config, guard)
        self._rates: dict[str, Rates] = {}
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)

    def obstacle(self, model: str) -> str:
        """Why this model cannot be reached, in words; empty when it can: configured, not
        air-gapped, and a key at hand where one is named."""
        entry = self._reached(model)
        if entry is None:
            return "it is not configured"
        if self._config().network.air_gap and not (
            isinstance(entry, RemoteModel) and target_of(entry.base_url).is_loopback
        ):
            return "the machine is air-gapped"
        if isinstance(entry, RemoteModel) and not entry.key_env:
            return ""
        try:
            has_key = self.key_of(model) is not None
        except ConfigError as error:
            return error.message
        return "" if has_key else f"no key: {entry.key_env} is not set"

    def permits(self, model: str) -> bool:
        """Whether nothing stands in the way of reaching it."""
        return not self.obstacle(model)

    def key_of(self, model: str) -> str | None:
        """The model's key, read anew; None where there is none. Never store or log it."""
        entry = self._reached(model)
        if entry is None:
            return None
        return find_key(self._environment, entry.key_credential, entry.key_env)

    def _reached(self, model: str) -> RemoteModel | ClaudeModel | None:
        entry = self._config().models.get(model)
        return None if entry is None else reached(model, entry)

    def rate_limit_tokens_left(self, model: str) -> int | None:
        rates = self._rates.get(model)
        return None if rates is None else rates.tokens_left(self._clock.monotonic())

    def client(
        self, purpose: Purpose, *, read_timeout_s: float = READ_TIMEOUT_S
    ) -> httpx2.AsyncClient:
        """A client whose every request passes the door. The borrower closes it.

        No redirects, nothing from the environment (proxies, netrc, certificates). Send inside
        `on_errand(...)`, or be refused. The first call imports the library and every one reads the
        root certificates, 50 ms: call it in a thread.
        """
        import httpx2

        from appliance.egress.transport import DoorTransport

        connect_s = self._config().network.connect_timeout_s
        return httpx2.AsyncClient(
            transport=DoorTransport(
                purpose,
                self._config,
                self._reach,
                self._audit,
                self._clock,
                self._answered,
                self._courier if purpose.kind == "model" else None,
            ),
            timeout=httpx2.Timeout(read_timeout_s, connect=connect_s, pool=connect_s),
            follow_redirects=False,
            trust_env=False,
        )

    def gate(self, listener: socket.socket) -> Gate:
        """The way out for processes in a sandbox, at a bound unix socket; `async with` opens it."""
        return Gate(listener, self._config, self._reach, self._audit, self._clock)

    def _answered(self, purpose: Purpose, headers: httpx2.Headers, status: int) -> None:
        if purpose.kind != "model":
            return
        self._rates[purpose.name] = observed(
            self._rates.get(purpose.name, Rates()),
            headers,
            status,
            self._clock.monotonic(),
            self._clock.wall_ms(),
        )
