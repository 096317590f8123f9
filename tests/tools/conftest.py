"""What the tools' tests share: sandboxes as this machine has them, and a toolbox over a config."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from watchfiles import awatch

from appliance.config.schema import Config
from appliance.config.tools import BUILT_IN_TOOLS, McpConfig
from appliance.tools.sandbox.report import SandboxReport, probe
from appliance.tools.types import ToolContext
from appliance.types import Label

REPOSITORY = Path(__file__).resolve().parents[2]
FAKES = REPOSITORY / "tests" / "fakes" / "mcp"


@pytest.fixture(scope="session")
def sandboxes() -> dict[str, SandboxReport]:
    """What each way of containing a process gives here, by its name in config.toml."""
    return {mode: asyncio.run(probe(mode)) for mode in ("bubblewrap", "landlock")}


@pytest.fixture(params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest, sandboxes: dict[str, SandboxReport]) -> SandboxReport:
    report = sandboxes[request.param]
    if not report.can_run_programs:
        pytest.skip(f"{request.param}: {'; '.join(report.reasons)}")
    return report


@pytest.fixture
def ctx(tmp_path: Path) -> ToolContext:
    return ToolContext(
        session_id="session",
        turn_id="turn",
        step_id="1",
        agent="worker",
        workspace=tmp_path / "workspace",
        label=Label.INTERNAL,
        uid=1000,
    )


MakeConfig = Callable[..., Config]


@pytest.fixture
def make_config() -> MakeConfig:
    """A config with one agent `worker` that may use everything, and MCP servers as given."""

    def make(
        mcp: dict[str, McpConfig] | None = None,
        tools: dict[str, object] | None = None,
        agent: dict[str, object] | None = None,
    ) -> Config:
        return Config.model_validate(
            {
                "models": {"tiny": {"engine": "scripted"}},
                "agents": {
                    "worker": {
                        "models": ["tiny"],
                        "tools": list(BUILT_IN_TOOLS),
                        "mcp": list(mcp or {}),
                        "delegates_to": ["other"],
                        **(agent or {}),
                    },
                    "other": {"models": ["tiny"]},
                },
                "tools": {"timeout_s": 20.0, **(tools or {})},
                "mcp": mcp or {},
            }
        )

    return make


async def until(path: Path) -> None:
    """Returns when another process has made the file."""
    if path.exists():
        return
    async for _ in awatch(path.parent, step=5, yield_on_timeout=True, rust_timeout=50):
        if path.exists():
            return
