"""The tapes of paid calls as budgets ask for them: what each says is due, by its model's engine."""

from __future__ import annotations

from collections.abc import Callable

from appliance.config.models import RemoteModel, reached
from appliance.config.schema import Config
from appliance.egress.courier.courier import Courier
from appliance.engines.provider.bill import Due


class Tapes:
    """Satisfies `scheduler.left_calls.Tapes`."""

    def __init__(self, courier: Courier, config: Callable[[], Config]) -> None:
        self._courier = courier
        self._config = config

    async def is_ready(self) -> bool:
        return await self._courier.is_ready()

    def was_left(self, name: str) -> bool:
        return self._courier.left(name) is not None

    async def due(self, name: str) -> Due | None:
        """None also where the model is no longer configured, and with it its prices."""
        tape = self._courier.left(name)
        entry = None if tape is None else self._config().models.get(tape.model)
        provider = None if entry is None or tape is None else reached(tape.model, entry)
        if tape is None or provider is None:
            return None
        import httpx2

        from appliance.egress.courier.replay import replayed

        try:
            response = await replayed(tape)
        except (httpx2.RemoteProtocolError, FileNotFoundError):
            return None
        if isinstance(provider, RemoteModel):
            from appliance.engines.remote import client

            return await client.due(response, provider.prices)
        from appliance.engines.claude import engine

        return await engine.due(response, provider.prices)

    def forget(self, name: str) -> None:
        self._courier.forget(name)
