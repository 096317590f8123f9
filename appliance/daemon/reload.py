"""Changing the configuration of a running daemon: load, diff, check, apply; all of it or nothing.

A file that does not parse, or names what does not exist, changes nothing: the running value stays,
and why is kept for `status`. The watch notices a saved file within `DEBOUNCE_MS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from watchfiles import awatch

from appliance.config import diff as diffs
from appliance.config.edit import set_agent_model
from appliance.config.load import load, read_text
from appliance.config.schema import Config
from appliance.errors import ApplianceError, ConfigError

log = logging.getLogger(__name__)

DEBOUNCE_MS = 50
"""An editor writes a file in several steps; after this long without one it is read."""
STEP_MS = 25
"""Between two looks of the watcher's thread. At 10 it took 0.3 % of a core, for ever; at 50 an edit
was seen after 0.11 s, and now and then after more than 0.2."""

Apply = Callable[[Config, Config, tuple[diffs.Change, ...]], Awaitable[None]]


class Configuration:
    """Owns the configuration in force. `apply` puts a new one into the rooms, or raises."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self._config = config
        self._order = asyncio.Lock()
        self._apply: Apply | None = None
        self.error = ""

    @property
    def current(self) -> Config:
        return self._config

    def on_change(self, apply: Apply) -> None:
        """Who carries out a change; set once, before the first reload."""
        assert self._apply is None
        self._apply = apply

    async def pending(self) -> tuple[Config, tuple[diffs.Change, ...]]:
        """What the file says now, and how it differs. Raises `ConfigError`."""
        new = await asyncio.to_thread(load, self.path)
        return new, diffs.diff(self._config, new)

    async def reload(self) -> tuple[diffs.Change, ...]:
        """Put the file in force. Raises `ConfigError`, and then nothing has changed."""
        async with self._order:
            try:
                new, changes = await self.pending()
            except ConfigError as error:
                self.error = error.message
                log.error("%s is not in force: %s", self.path, error.message)
                raise
            self.error = ""
            if changes:
                assert self._apply is not None
                before, self._config = self._config, new
                await self._apply(before, new, changes)
                for change in changes:
                    log.info("config: %s", diffs.describe(change))
            return changes

    async def set_agent_model(self, agent: str, model: str) -> tuple[diffs.Change, ...]:
        """Rewrite the file so that `agent` runs on `model` first, keeping comments; then reload."""
        async with self._order:
            text = await asyncio.to_thread(read_text, self.path)
            changed = set_agent_model(text, agent, model, self.path)
            await asyncio.to_thread(_replace, self.path, changed)
        return await self.reload()

    async def watch(self) -> None:
        """Reload whenever the file is saved; runs until cancelled."""
        async for _ in awatch(
            self.path.parent, watch_filter=self._is_ours, debounce=DEBOUNCE_MS, step=STEP_MS,
            recursive=False,
        ):  # fmt: skip
            if self._config.daemon.watch_config:
                await self.reload_quietly()

    async def reload_quietly(self) -> None:
        """As `reload`; what is wrong is logged and shown in `status`, and nothing ends of it."""
        try:
            await self.reload()
        except ConfigError:
            return
        except ApplianceError as error:
            self.error = error.message
            log.error("%s could not be applied: %s", self.path, error.message)

    def _is_ours(self, _: object, path: str) -> bool:
        return Path(path).name == self.path.name


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.chmod(path.stat().st_mode & 0o777)
    part.replace(path)
