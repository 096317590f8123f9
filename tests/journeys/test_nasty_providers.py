"""The real daemon and providers that behave badly: every turn ends, right and paid for once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.daemons import running
from tests.fakes.claude.nasty import RIGHT, TEXT, WHOLE, WRONG, answered, nasty_provider
from tests.journeys.cloud import LOCAL_REPLY, write_cloud_home

QUICK = """
[routing.breaker]
failures = 1000
open_s = 0.001
open_s_max = 0.001

[routing.retry]
backoff_ms = 1
"""

LATEST_S = 60.0
PRICE_MICRO_USD = 10 * 2 + 9 * 10
"""Of the whole answer."""


async def test_a_turn_is_right_after_any_fault_from_either_side(tmp_path: Path) -> None:
    async with nasty_provider() as provider:
        provider.script = answered(WHOLE)
        home = write_cloud_home(tmp_path / "home", provider.url, timeout_s=4.0)
        settings = (home / "config.toml").read_text()
        (home / "config.toml").write_text(settings + QUICK)
        async with running(home, ANTHROPIC_API_KEY="sk-canary-key") as daemon:
            for name, script in RIGHT.items():
                provider.scripts = [script]
                async with asyncio.timeout(LATEST_S):
                    done = await daemon.ask(f"With {name}?", "cloud")
                assert done.get("text") == TEXT, f"{name}: {done}"
            is_held = False  # by a provider that said how long it wants to be left alone
            for name, (script, failure) in WRONG.items():
                before = len(provider.requests)
                provider.scripts = [script]
                async with asyncio.timeout(LATEST_S):
                    done = await daemon.ask(f"After {name}?", "mixed")
                assert done["type"] == "turn.completed", f"{name}: {done}"
                assert done["text"] in (TEXT, LOCAL_REPLY), f"{name}: {done['text']!r}"
                asked = len(provider.requests) - before
                is_held = is_held or name.startswith("429")
                allowed = {1} if failure in ("ours", "spent", "denied") else {1, 2}
                assert asked in allowed or is_held, f"{name}: {asked} requests"
            budget = await daemon.get("/api/budget")
            assert all(row["reserved"] == 0 for row in budget["caps"])
        assert all(request.count(b"sk-canary-key") == 1 for request in provider.requests)
        assert b"sk-canary-key" not in b"".join(
            path.read_bytes() for path in home.rglob("*") if path.is_file()
        )


async def test_a_key_revoked_while_a_session_is_under_way_is_said_and_then_left(
    tmp_path: Path,
) -> None:
    async with nasty_provider() as provider:
        provider.script = answered(WHOLE)
        home = write_cloud_home(tmp_path / "home", provider.url, timeout_s=4.0)
        async with running(home, ANTHROPIC_API_KEY="k") as daemon:
            first = await daemon.ask("One?", "cloud")
            assert first["text"] == TEXT
            provider.script, _ = WRONG["a key revoked"]
            second = await daemon.ask("Two?", "cloud", session=first["session"])
            assert second["type"] == "turn.failed"
            assert "401" in second["error"]["message"] and "key" in second["error"]["hint"]
            assert len(provider.requests) == 2, "a refused key is not tried again"
            other = await daemon.ask("Three?", "mixed")
            assert other["text"] == LOCAL_REPLY
