"""What the API asks the daemon beyond turns: status, models, agents, configuration, doctor."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from appliance import __version__
from appliance.api import bodies
from appliance.clock import Clock
from appliance.config import diff as diffs
from appliance.config.models import ModelConfig, is_cloud
from appliance.daemon.decisions import Decisions
from appliance.daemon.reload import Configuration
from appliance.errors import ConfigError, Conflict, NotFound
from appliance.gpu.types import Inventory
from appliance.router.explain import explain
from appliance.router.record import decided, decision_to_json
from appliance.router.types import Policy, StepFacts, bounded_text
from appliance.scheduler.dispatcher import Scheduler
from appliance.scheduler.values import Capacity, ModelCapacity, ResidentState
from appliance.store.approvals import Approvals
from appliance.tools.mcp.servers import McpServers
from appliance.turns.learning import Learning
from appliance.turns.places import Places
from appliance.turns.prompt import estimate_tokens
from appliance.turns.ready import tuning_of
from appliance.turns.service import Turns
from appliance.types import Role, text_message

PENDING_SHOWN = 1000


class Control:
    """`api.native.Control` over the rooms."""

    def __init__(
        self,
        *,
        configuration: Configuration,
        scheduler: Scheduler,
        inventory: Callable[[], Inventory],
        turns: Turns,
        approvals: Approvals,
        places: Places,
        learning: Learning,
        decisions: Decisions,
        budget: Callable[[], Awaitable[dict[str, Any]]],
        checks: Callable[[], Awaitable[list[bodies.Check]]],
        servers: McpServers,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._scheduler = scheduler
        self._inventory = inventory
        self._turns = turns
        self._approvals = approvals
        self._places = places
        self._learning = learning
        self._decisions = decisions
        self._budget = budget
        self._checks = checks
        self._servers = servers
        self._clock = clock
        self._started_s = clock.monotonic()

    async def status(self) -> bodies.Status:
        config, capacity = self._configuration.current, self._scheduler.snapshot()
        inventory = self._inventory()
        reasons = self._reasons(inventory, capacity)
        pending = await self._approvals.page(limit=PENDING_SHOWN)
        spent = await self._budget()
        state = "stopping" if self._turns.is_draining else "degraded" if reasons else "ready"
        return bodies.Status(
            version=__version__,
            state=state,
            reasons=reasons,
            pid=os.getpid(),
            uptime_s=round(self._clock.monotonic() - self._started_s, 3),
            rss_bytes=_rss_bytes(),
            config_revision=config.revision,
            config_error=self._configuration.error,
            devices=_devices(inventory, capacity),
            models=self.models(),
            turns_unfinished=self._turns.unfinished_count,
            steps_waiting=capacity.waiting,
            leases=capacity.leases,
            approvals_pending=len(pending),
            spend_today_micro_usd=int(spent.get("today_micro_usd", 0)),
            air_gap=config.network.air_gap,
        )

    def _reasons(self, inventory: Inventory, capacity: Capacity) -> list[str]:
        reasons = [
            f"model {name}: {model.reason}"
            for name, model in capacity.models.items()
            if model.state is ResidentState.BROKEN
        ]
        reasons += [
            f"device {device.name}: {device.reason}"
            for device in inventory.devices
            if not device.is_usable
        ]
        if inventory.is_stale and inventory.nvml_error:
            reasons.append(f"GPUs: {inventory.nvml_error}; what is told of them is the last known")
        if self._configuration.error:
            reasons.append(f"config.toml is not in force: {self._configuration.error}")
        return reasons

    async def is_ready(self) -> bool:
        return not self._turns.is_draining

    def models(self) -> list[bodies.ModelInfo]:
        config, capacity = self._configuration.current, self._scheduler.snapshot()
        users: dict[str, list[str]] = {}
        for name, agent in config.agents.items():
            for model in agent.models:
                users.setdefault(model, []).append(name)
        return [
            self._model(name, model, capacity.models.get(name), users.get(name, []))
            for name, model in config.models.items()
        ]

    def _model(
        self, name: str, model: ModelConfig, now: ModelCapacity | None, agents: list[str]
    ) -> bodies.ModelInfo:
        in_cloud = is_cloud(model)
        state: Mapping[str, Any] = {} if now is None else {
            "state": now.state.value,
            "detail": now.reason,
            "slots": now.slots,
            "slots_free": now.slots_free,
            "waiting": now.waiting,
            "predicted_wait_s": round(now.predicted_wait_s, 3),
            "load_s": round(now.load_s, 3),
            "load_progress": round(self._scheduler.load_progress(name), 3),
            "tokens_per_s": now.tokens_per_s,
            "vram_bytes": now.vram_bytes,
            "bytes_by_device": dict(now.bytes_by_device),
        }  # fmt: skip
        reached: Mapping[str, Any] = {}
        if in_cloud:
            note = self._places.shut_note(name)
            reached = {"state": "shut" if note else "open", "detail": note}
        known = {"state": "unknown", "slots": model.slots}
        return bodies.ModelInfo(
            name=name,
            engine=model.engine,
            description=model.description,
            context_window=model.context_window,
            place="cloud" if in_cloud else "local",
            agents=agents,
            **{**known, **state, **reached},
        )

    def agents(self) -> list[bodies.AgentInfo]:
        return [
            bodies.AgentInfo(
                name=name,
                description=agent.description,
                models=list(agent.models),
                policy=agent.policy.value,
                label=agent.label.value,
                tools=list(agent.tools),
                mcp=list(agent.mcp),
                priority=agent.priority,
            )
            for name, agent in self._configuration.current.agents.items()
        ]

    # --- configuration --------------------------------------------------------------------------

    def config(self) -> bodies.ConfigState:
        config = self._configuration.current
        return bodies.ConfigState(
            file=str(self._configuration.path),
            revision=config.revision,
            error=self._configuration.error,
            config=config.model_dump(mode="json", by_alias=True),
        )

    async def reload(self) -> bodies.ConfigChanges:
        return self._changes(await self._configuration.reload())

    async def diff(self) -> bodies.ConfigChanges:
        _, changes = await self._configuration.pending()
        return self._changes(changes)

    async def set_agent_model(self, agent: str, model: str) -> bodies.ConfigChanges:
        return self._changes(await self._configuration.set_agent_model(agent, model))

    def _changes(self, changes: tuple[diffs.Change, ...]) -> bodies.ConfigChanges:
        return bodies.ConfigChanges(
            revision=self._configuration.current.revision,
            changes=[
                {"kind": type(change).__name__, "text": diffs.describe(change), **asdict(change)}
                for change in changes
            ],
        )

    # --- why ------------------------------------------------------------------------------------

    async def doctor(self) -> bodies.Doctor:
        checks = await self._checks()
        try:
            await self._configuration.pending()
            checks.append(bodies.Check(name="config.toml", ok=True, detail="valid"))
        except ConfigError as error:
            checks.append(
                bodies.Check(name="config.toml", ok=False, detail=error.message, hint=error.hint)
            )
        return bodies.Doctor(ok=all(check.ok for check in checks), checks=checks)

    async def decisions(self, subject: str) -> bodies.Explanation:
        lines, records = await self._decisions.about(subject)
        return bodies.Explanation(subject=subject, lines=lines, records=records)

    async def try_route(self, agent: str, text: str) -> bodies.Explanation:
        config = self._configuration.current
        entry = config.agents.get(agent)
        if entry is None:
            raise NotFound(f"there is no agent {agent!r}", hint="appliance agents")
        prompt = text_message(Role.USER, entry.system_prompt + text)
        step = StepFacts(
            agent=agent,
            policy=Policy(entry.policy.value),
            label=entry.label,
            chain=entry.models,
            prompt_tokens=estimate_tokens([prompt]),
            max_output_tokens=entry.sampling.max_tokens or 1024,
            text=bounded_text(text),
            needs_tools=bool(entry.tools),
            air_gap=config.network.air_gap,
        )
        may_spend = config.limits_of(agent).spend_micro_usd_max
        targets = self._places.describe(entry.models, agent, "", may_spend)
        score = await self._learning.score(step, targets)
        decision = decided(step, targets, score, random.random(), tuning_of(config, entry))
        return bodies.Explanation(
            subject=agent, lines=explain(decision.outcome), records=[decision_to_json(decision)]
        )

    async def budget(self) -> dict[str, Any]:
        return await self._budget()

    # --- MCP servers ----------------------------------------------------------------------------

    def mcp(self) -> list[bodies.McpServer]:
        agents = self._configuration.current.agents
        return [
            bodies.McpServer(
                name=entry["server"],
                state=entry["state"],
                problem=entry["problem"],
                tools=entry["tools"],
                left_out=entry["left_out"],
                agents=[name for name, agent in agents.items() if entry["server"] in agent.mcp],
            )
            for entry in self._servers.report()
        ]

    def accept_mcp(self, server: str) -> bodies.McpServer:
        if server not in self._configuration.current.mcp:
            raise NotFound(f"there is no MCP server {server!r}", hint="appliance mcp list")
        if not self._servers.accept_tools(server):
            raise Conflict(
                f"MCP server {server!r} offers nothing that waits to be accepted",
                hint="appliance mcp list",
            )
        return next(entry for entry in self.mcp() if entry.name == server)


def _devices(inventory: Inventory, capacity: Capacity) -> list[bodies.DeviceInfo]:
    ledger = {device.device: device for device in capacity.devices}
    found = []
    for device in inventory.devices:
        held = ledger.get(device.uuid)
        found.append(
            bodies.DeviceInfo(
                id=device.uuid,
                name=device.name,
                total_bytes=device.total_bytes,
                used_bytes=device.used_bytes,
                reserved_bytes=0 if held is None else held.reserved_bytes,
                foreign_bytes=0 if held is None else held.foreign_bytes,
                capacity_bytes=0 if held is None else held.capacity_bytes,
                health=device.health.value,
                reason=device.reason,
                temperature_c=device.temperature_c,
                power_w=None if device.power_mw is None else device.power_mw / 1000,
                utilisation_pct=device.utilisation_pct,
            )
        )
    return found


def _rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
