"""`appliance serve`: reads the configuration, sets up logging and signals, runs the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal

import uvloop

from appliance.config.default import write_default_config
from appliance.config.load import load
from appliance.config.paths import Paths
from appliance.config.schema import Config
from appliance.daemon.app import run_daemon
from appliance.egress.guard import guarded_loop
from appliance.errors import ApplianceError
from appliance.log import set_up_logging

log = logging.getLogger(__name__)

OPEN_FILES = 65_536


def serve(paths: Paths) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT; a second one shortens the drain.

    Raises `ConfigError`, `StoreError` or `Conflict` when it cannot start.
    """
    write_default_config(paths.config_file)
    config = load(paths.config_file)
    paths = paths.with_config(config.daemon)
    set_up_logging(config.daemon.log_level)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold prompts and keys
    _allow_many_files()
    os.umask(0o077)
    uvloop.run(_serve(paths, config), loop_factory=guarded_loop)


def _allow_many_files() -> None:
    """As many open files as the kernel grants without asking: every follower of a turn is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(paths: Paths, config: Config) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    try:
        await run_daemon(paths, config, stop, hurry)
    except BaseExceptionGroup as group:
        ours = group.subgroup(ApplianceError)
        if ours is not None:
            raise _first(ours) from group
        raise


def _first(group: BaseExceptionGroup[ApplianceError]) -> ApplianceError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
