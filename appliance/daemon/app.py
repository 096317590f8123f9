"""The composition root: builds the rooms bottom first, binds the doors last, ends in reverse.

Everything that lives is entered here, in one `AsyncExitStack` inside one `TaskGroup`; no room
knows another one's constructor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from appliance.api import bodies
from appliance.api.listen import bind_unix
from appliance.api.native import NativeApi
from appliance.api.peer import Tokens
from appliance.api.server import Server
from appliance.clock import SystemClock
from appliance.config import diff as diffs
from appliance.config.manifest import ModelFile, load_manifest, model_path
from appliance.config.models import LlamaCppModel
from appliance.config.paths import Paths
from appliance.config.schema import Config
from appliance.daemon import systemd
from appliance.daemon.audit import JournalAudit
from appliance.daemon.control import Control
from appliance.daemon.decisions import Decisions
from appliance.daemon.doctor import run_checks
from appliance.daemon.engines import Engines
from appliance.daemon.outside import DaemonSecrets, EgressFetcher, EgressHttp
from appliance.daemon.ports import (
    AgentNotes,
    Surroundings,
    TurnDelegate,
    TurnElicitor,
    TurnSampler,
)
from appliance.daemon.read_ahead import read_ahead
from appliance.daemon.reload import Configuration
from appliance.daemon.sizes import Sizes
from appliance.daemon.tapes import Tapes
from appliance.daemon.vram import VramWatch
from appliance.daemon.weights import Weights
from appliance.egress.courier.courier import Courier
from appliance.egress.door import Egress
from appliance.egress.guard import PROCESS_GUARD
from appliance.gpu.calibration import Calibration
from appliance.gpu.inventory import Prober
from appliance.gpu.types import Inventory
from appliance.memory.notes import JournalNotes
from appliance.scheduler.budgets import Budgets
from appliance.scheduler.core import Core
from appliance.scheduler.dispatcher import Scheduler
from appliance.scheduler.memory_placer import MemoryPlacer
from appliance.scheduler.together import parts
from appliance.scheduler.wanted import (
    agent_specs,
    device_views,
    model_files,
    model_specs,
    named_pins,
    policy_of,
)
from appliance.store.approvals import Approvals, Grants
from appliance.store.database import Database
from appliance.store.index import Index
from appliance.store.journal import Journal
from appliance.store.ledger import Ledger
from appliance.store.places import PlaceLabels
from appliance.tools import schema
from appliance.tools.ports import Ports
from appliance.tools.registry import Toolbox
from appliance.turns.attempt import Attempts
from appliance.turns.calls import CallRunner
from appliance.turns.history import JournalHistory
from appliance.turns.learning import Learning
from appliance.turns.limits import tightened
from appliance.turns.live import LiveTurn
from appliance.turns.loop import run_turn
from appliance.turns.places import Health, Places, provider_of
from appliance.turns.service import Turns
from appliance.turns.state import TurnStatus
from appliance.turns.step import Steps

log = logging.getLogger(__name__)

TOKEN_BYTES = 32

QUIET_S = 1.0
"""After a start. The turns that are taken up again come first."""


async def run_daemon(
    paths: Paths, config: Config, stop: asyncio.Event, hurry: asyncio.Event
) -> None:
    """Run until `stop` is set; returns when everything is parked and closed. `hurry` ends the
    waiting for running steps."""
    clock = SystemClock()
    manifest = await asyncio.to_thread(load_manifest)
    configuration = Configuration(paths.config_file, config)
    async with AsyncExitStack() as rooms:
        database = await rooms.enter_async_context(Database(paths.state_dir))
        journal = Journal(database, clock)
        index, approvals = Index(database), Approvals(database)
        grants = Grants(database, journal, clock)
        prober = await rooms.enter_async_context(Prober(clock=clock, interval_s=config.gpu.poll_s))
        PROCESS_GUARD.install()
        courier = await rooms.enter_async_context(Courier(paths.state_dir / "tapes"))
        if config.network.air_gap:
            await courier.cut()
        egress = Egress(
            lambda: configuration.current, JournalAudit(journal), clock, courier=courier
        )
        tapes = Tapes(courier, lambda: configuration.current)
        purse = await rooms.enter_async_context(
            Budgets(lambda: configuration.current, journal, Ledger(database), clock, tapes)
        )
        engines = Engines(lambda: configuration.current, paths, manifest, egress, purse, clock)
        placer = MemoryPlacer(
            lambda: core.holdings(),
            lambda name: getattr(configuration.current.models.get(name), "exclusive", False),
        )
        core = Core(placer)
        sizes = Sizes(paths.state_dir / "sizes", prober.latest)
        vram = VramWatch(
            prober, sizes, lambda name: _weights_of(configuration.current, name, paths, manifest)
        )
        decisions = await rooms.enter_async_context(Decisions(journal, clock))

        def files() -> dict[str, tuple[Path, ...]]:
            return model_files(configuration.current, paths.models_dir, manifest)

        async def read_files_ahead(model: str) -> None:
            await read_ahead(files().get(model, ()))

        scheduler = await rooms.enter_async_context(
            Scheduler(
                core,
                engines,
                clock,
                memory=vram,
                on_decision=decisions.take,
                read_ahead=read_files_ahead,
                parts=parts,
            )
        )
        await scheduler.inventory_changed(device_views(prober.latest, config))
        weights = Weights(files)

        order = asyncio.Lock()

        async def reconfigure() -> None:
            async with order:
                now = configuration.current
                await _reconfigure(
                    scheduler, now, paths, manifest, weights, sizes.calibration, prober.latest
                )

        await reconfigure()
        health = Health(clock, lambda: configuration.current)

        def may_hedge(model: str) -> bool:
            return health.take_for_hedge(provider_of(configuration.current.models[model]))

        places = Places(
            lambda: configuration.current, scheduler.snapshot, health, egress, purse, clock
        )
        place_labels = PlaceLabels(journal)
        learning = Learning(lambda: configuration.current, database, clock)
        surroundings = Surroundings(
            lambda: configuration.current,
            grants,
            place_labels,
            lambda: _workspaces(configuration.current, paths),
            clock,
        )
        gate = await rooms.enter_async_context(
            egress.gate(bind_unix(paths.socket.with_suffix(".gate"), mode=0o600))
        )
        toolbox = await rooms.enter_async_context(
            Toolbox(
                lambda: configuration.current,
                paths.state_dir,
                clock,
                Ports(
                    delegate=TurnDelegate(lambda: turns, lambda: configuration.current, clock),
                    elicitor=TurnElicitor(lambda: turns),
                    sampler=TurnSampler(lambda: turns, lambda: configuration.current, clock),
                    notes=AgentNotes(JournalNotes(journal)),
                    fetcher=EgressFetcher(egress),
                    http=EgressHttp(egress, lambda: configuration.current),
                    gate=gate,
                    places=place_labels,
                    secrets=DaemonSecrets(),
                ),
                never=(paths.config_file.parent, paths.run_dir, paths.models_dir),
            )
        )
        steps = Steps(
            config=lambda: configuration.current,
            attempts=Attempts(lambda: configuration.current, scheduler, purse, may_hedge),
            places=places,
            health=health,
            learning=learning,
            history=JournalHistory(journal, index),
            tools=toolbox,
            clock=clock,
            chance=random.Random(),
        )

        async def run(turn: LiveTurn) -> None:
            accepted = turn.state.accepted
            limits = configuration.current.limits_of(accepted.agent)
            calls = CallRunner(
                turn,
                toolbox,
                surroundings.context,
                clock,
                configuration.current.tools.approval_s,
                set(),
            )
            try:
                await run_turn(
                    turn, steps, calls, tightened(limits, accepted.limits), clock,
                    lambda: turns.is_draining,
                )  # fmt: skip
            finally:
                is_done = turn.state.status is TurnStatus.DONE
                await learning.ended(turn.turn_id, finished=is_done)

        turns = await rooms.enter_async_context(
            Turns(
                journal,
                index,
                approvals,
                lambda: configuration.current,
                run,
                clock,
                partial(surroundings.standing, toolbox),
            )
        )

        async def checks() -> list[bodies.Check]:
            return await run_checks(
                journal=journal,
                config=configuration.current,
                state_dir=paths.state_dir,
                models_dir=paths.models_dir,
                manifest=manifest,
                inventory=prober.latest,
                sandbox=toolbox.sandbox,
            )

        control = Control(
            configuration=configuration,
            scheduler=scheduler,
            inventory=lambda: prober.latest,
            turns=turns,
            approvals=approvals,
            places=places,
            learning=learning,
            decisions=decisions,
            budget=purse.summary,
            checks=checks,
            servers=toolbox.servers,
            clock=clock,
        )
        native = NativeApi(turns, index, approvals, grants, control)

        async def apply(before: Config, after: Config, changes: tuple[diffs.Change, ...]) -> None:
            if after.network.air_gap and not before.network.air_gap:
                await courier.cut()
            await reconfigure()

        async def settle_left() -> None:
            await purse.settle_left()
            await courier.tidy()

        configuration.on_change(apply)
        background = await rooms.enter_async_context(asyncio.TaskGroup())
        resumed = await turns.recover()
        server = await rooms.enter_async_context(
            Server(
                native.endpoints(),
                socket_path=paths.socket,
                http=config.daemon.http_address,
                http_hosts=config.daemon.http_hosts,
                tokens=_tokens(paths) if config.daemon.http else None,
                access=lambda: configuration.current.access,
                body_max_bytes=lambda: configuration.current.daemon.body_max_bytes,
            )
        )

        async def is_alive() -> None:
            await scheduler.heartbeat()
            await journal.heartbeat()

        chores = [
            background.create_task(configuration.watch(), name="config watch"),
            background.create_task(server.stay_reachable(), name="socket"),
            background.create_task(_load_anew(weights, reconfigure), name="weights"),
            background.create_task(_reckon_anew(sizes, reconfigure), name="sizes"),
            background.create_task(
                _tell_inventory(prober, scheduler, configuration, vram), name="gpu"
            ),
            background.create_task(systemd.feed_watchdog(is_alive), name="watchdog"),
            background.create_task(settle_left(), name="tapes"),
            background.create_task(_import_the_rest(engines, turns), name="imports"),
        ]
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGHUP, lambda: background.create_task(configuration.reload_quietly())
        )
        systemd.notify("READY=1", f"STATUS=serving on {paths.socket}")
        log.info("ready on %s, %d turns resumed", paths.socket, resumed)
        await stop.wait()
        systemd.notify("STOPPING=1")
        log.info("stopping: %d turns unfinished", turns.unfinished_count)
        await turns.drain(configuration.current.daemon.drain_s, hurry)
        for chore in chores:
            chore.cancel()


async def _reconfigure(
    scheduler: Scheduler,
    config: Config,
    paths: Paths,
    manifest: Mapping[str, ModelFile],
    weights: Weights,
    calibration: Calibration,
    inventory: Inventory,
) -> None:
    identities = await asyncio.to_thread(weights.adopt)
    specs = await asyncio.to_thread(
        model_specs, config, paths.models_dir, manifest, identities, calibration
    )
    named = [named_pins(spec, inventory) for spec in specs]
    await scheduler.reconfigure(named, agent_specs(config), policy_of(config))


async def _import_the_rest(engines: Engines, turns: Turns) -> None:
    """What a start leaves out and a turn's first tool call, or its first call to the cloud, would
    wait for, in a thread."""
    await asyncio.sleep(QUIET_S)
    await asyncio.to_thread(schema.problems, {"type": "object"}, {})
    if not turns.unfinished_count:
        await asyncio.to_thread(engines.import_ahead)


async def _load_anew(weights: Weights, reconfigure: Callable[[], Awaitable[None]]) -> None:
    async for _ in weights.changes():
        log.info("files of models have changed")
        await reconfigure()


async def _reckon_anew(sizes: Sizes, reconfigure: Callable[[], Awaitable[None]]) -> None:
    async for _ in sizes.changes():
        await reconfigure()


async def _tell_inventory(
    prober: Prober, scheduler: Scheduler, configuration: Configuration, vram: VramWatch
) -> None:
    async for inventory in prober.snapshots():
        vram.observe(inventory)
        await scheduler.inventory_changed(device_views(inventory, configuration.current))


def _weights_of(
    config: Config, name: str, paths: Paths, manifest: Mapping[str, ModelFile]
) -> Path | None:
    """The file of a model that llama.cpp loads."""
    entry = config.models.get(name)
    if not isinstance(entry, LlamaCppModel):
        return None
    return model_path(entry.file, paths.models_dir, manifest)


def _workspaces(config: Config, paths: Paths) -> Path:
    chosen = config.tools.workspace_dir
    return Path(chosen).expanduser() if chosen else paths.state_dir / "workspaces"


def _tokens(paths: Paths) -> Tokens:
    """The TCP side's tokens; the first admin token is made on first use, mode 0600."""
    path: Path = paths.admin_token
    try:
        return Tokens(path.read_text().strip())
    except FileNotFoundError:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
        return Tokens(token)
