"""Turns that leave the machine, through the real daemon and the stand-in Claude."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import running, start
from tests.fakes.claude.canaries import forms
from tests.fakes.claude.running import Claude, claude_process, talking_to
from tests.fakes.claude.server import END
from tests.journeys.cloud import CLOUD_AGENT, LOCAL_REPLY, write_cloud_home

MIX = [
    "429:0", "529", "500", "502html", "503", "reset_before", "reset_mid:5", "eof_mid:5",
    "overloaded_mid", "error_mid", "malformed", "bad_utf8", "half_call", "eof_mid:0",
]  # fmt: skip


@pytest.fixture(scope="module")
def claude_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with claude_process(tmp_path_factory.mktemp("claude")) as url:
        yield url


@pytest.fixture
async def claude(claude_url: str, tmp_path: Path) -> AsyncIterator[Claude]:
    async with talking_to(claude_url, tmp_path / "claude-requests.log") as server:
        yield server


def events(home: Path, stream: str) -> list[tuple[str, dict[str, Any]]]:
    """A stream of the journal, read from its file."""
    (path,) = (home / "state").glob("*.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT kind, body FROM event WHERE stream = ? ORDER BY seq", (stream,)
        ).fetchall()
    return [(kind, json.loads(body)) for kind, body in rows]


async def test_a_turn_in_the_cloud_is_answered_billed_and_audited(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        done = await daemon.ask("What is it?", "cloud")
        assert done["type"] == "turn.completed", done
        assert done["text"].endswith(END)
        budget = await daemon.get("/api/budget")
        bill = await claude.bill()
        assert budget["today_micro_usd"] == bill["micro_usd"] > 0
        assert all(row["reserved"] == 0 for row in budget["caps"])
    kinds = [kind for kind, _ in events(home, "egress")]
    assert kinds == ["egress.sent", "egress.received"]
    assert next(kind for kind, _ in events(home, "budget")) == "budget.reserved"
    assert claude.key.encode() not in b"".join(
        path.read_bytes() for path in home.rglob("*") if path.is_file()
    )


async def test_faulted_turns_end_right_and_none_shows_a_truncated_answer(
    claude: Claude, tmp_path: Path
) -> None:
    await claude.plan(share=0.2, mix=MIX, seed=7)
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> dict[str, Any]:
            async with gate:
                return await daemon.ask(f"Question {number}?", "mixed")

        ended = await asyncio.gather(*(one(number) for number in range(60)))
    assert [each["type"] for each in ended] == ["turn.completed"] * 60
    assert all(each["text"].endswith(END) for each in ended)
    seen = await claude.seen()
    # Few enough that a breaker may have opened at once, and the rest gone elsewhere.
    assert sum(count for step, count in seen.items() if step not in ("ok", "client_gone")) > 2
    assert await claude.violations() == []


async def test_a_dead_provider_is_left_for_the_local_model(claude: Claude, tmp_path: Path) -> None:
    await claude.plan(share=1.0, mix=["529"])
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        for _ in range(8):
            done = await daemon.ask("Anyone there?", "mixed")
            assert done["text"] == LOCAL_REPLY
    assert 0 < (await claude.seen())["529"] <= 12, "the breaker must stop the knocking"


async def test_a_private_agent_never_leaves_though_its_policy_says_cloud_first(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        assert (await daemon.ask("CANARY-7f3a", "secret"))["text"] == LOCAL_REPLY
        assert (await daemon.ask("open words", "mixed"))["text"].endswith(END)
    log = claude.log.read_bytes()
    assert b"CANARY-7f3a" not in log
    assert b"open words" in log


async def test_no_canary_of_a_private_workflow_arrives_in_any_form_and_public_words_do(
    claude: Claude, tmp_path: Path
) -> None:
    """Sessions of several turns, with faults that force retries and fall-backs on all of them."""
    await claude.plan(share=0.3, mix=MIX, seed=11)
    chance = random.Random(12)
    planted: list[str] = []
    public: list[str] = []
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:

        async def workflow(number: int) -> None:
            agent = ("secret", "mixed")[number % 2]
            session: dict[str, str] = {}
            for _ in range(3):
                word = f"WORD-{chance.randrange(16**12):012x}"
                (planted if agent == "secret" else public).append(word)
                turn = await daemon.start_turn(f"Remember {word}.", agent, **session)
                session = {"session": (await daemon.ended(turn))["session"]}

        await asyncio.gather(*(workflow(number) for number in range(20)))
    log = claude.log.read_bytes()
    assert not [word for word in planted for form in forms(word) if form in log]
    assert sum(word.encode() in log for word in public) >= 0.3 * len(public)
    assert await claude.violations() == []


async def test_air_gap_sends_nothing_even_to_a_stand_in_on_loopback(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url, air_gap=True)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        assert (await daemon.ask("Are you there?", "mixed"))["text"] == LOCAL_REPLY
    assert claude.log.read_bytes() == b""


async def test_air_gap_cuts_what_is_under_way(claude: Claude, tmp_path: Path) -> None:
    await claude.plan(pace_s=0.5)
    home = write_cloud_home(tmp_path / "home", claude.url)
    config = home / "config.toml"
    config.write_text(config.read_text().replace(CLOUD_AGENT, ""))
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        turn = await daemon.start_turn("What is it?", "mixed")
        async for item in daemon.follow(turn):
            if item["type"] == "delta":
                break
        config.write_text(config.read_text().replace("air_gap = false", "air_gap = true"))
        done = await daemon.ended(turn)
        assert done["type"] == "turn.completed" and done["text"] == LOCAL_REPLY
        (charge,) = (await claude.bill())["charges"]
        assert not charge["is_complete"]
    assert await claude.violations() == []


async def test_at_the_cap_steps_go_to_the_local_model(claude: Claude, tmp_path: Path) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url, day_usd=0.012)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        replies = [(await daemon.ask("Again?", "mixed"))["text"] for _ in range(40)]
        budget = await daemon.get("/api/budget")
    assert replies[0].endswith(END) and replies[0] != LOCAL_REPLY
    assert replies[-1] == LOCAL_REPLY
    assert budget["today_micro_usd"] == (await claude.bill())["micro_usd"] <= 12_000
    assert "budget.warned" in [kind for kind, _ in events(home, "budget")]


async def test_calls_outlive_a_killed_daemon_and_their_answers_are_paid_for_once(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url)
    await claude.plan(pace_s=0.02)
    for number in range(2):
        daemon = await start(home, ANTHROPIC_API_KEY=claude.key)
        try:
            turns = [await daemon.start_turn(f"Kill {number}.{n}", "cloud") for n in range(4)]
            async for item in daemon.follow(turns[0]):
                if item["type"] == "delta":
                    break
        finally:
            daemon.kill()
            await daemon.process.wait()
            await daemon.session.close()
    await claude.plan(pace_s=0.0)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        for turn in (await daemon.get("/api/turns", limit=100))["turns"]:
            assert (await daemon.ended(turn["id"]))["text"].endswith(END)
        budget = await daemon.get("/api/budget")
        assert all(row["reserved"] == 0 for row in budget["caps"])
    charges = (await claude.bill())["charges"]
    assert all(charge["is_complete"] for charge in charges), "a call did not outlive its daemon"
    assert len(charges) == 8, "an answer that was paid for was asked for again"
    assert budget["today_micro_usd"] == sum(charge["micro_usd"] for charge in charges)
    assert "egress.adopted" in [kind for kind, _ in events(home, "egress")]


async def test_the_cost_of_answers_that_came_to_nothing_is_in_the_sum_of_their_turn(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        await claude.plan("eof_mid:6", "overloaded_mid:4")
        done = await daemon.ask("Third time lucky?", "cloud")
        await claude.plan(pace_s=0.05)
        cut = await daemon.start_turn("Never mind.", "cloud")
        async for item in daemon.follow(cut):
            if item["type"] == "delta":
                await daemon.post(f"/api/turns/{cut}/cancel")
        cancelled = await daemon.ended(cut)
        shown = {
            turn: (await daemon.get(f"/api/turns/{turn}"))["usage"]["spend_micro_usd"]
            for turn in (done["turn"], cut)
        }
        explained = await daemon.get(f"/api/turns/{done['turn']}/explain")
    settled = [(body["turn"], body["micro_usd"]) for kind, body in events(home, "budget")
               if kind == "budget.settled"]  # fmt: skip
    assert [turn for turn, _ in settled] == [done["turn"]] * 3 + [cut]
    for end in (done, cancelled):
        in_ledger = sum(micro_usd for turn, micro_usd in settled if turn == end["turn"])
        assert end["usage"]["spend_micro_usd"] == shown[end["turn"]] == in_ledger > 0
    assert sum("Charged" in line for line in explained["lines"]) == 3


async def test_a_request_slow_to_start_is_hedged_where_config_says_so(
    claude: Claude, tmp_path: Path
) -> None:
    """Without a second request the first would take its 60 s of silence."""
    home = write_cloud_home(
        tmp_path / "home", claude.url, timeout_s=100.0, more="[routing.retry]\nhedge = true\n"
    )
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        for number in range(20):
            await daemon.ask(f"Question {number}?", "cloud")
        await claude.plan("slow_headers:60")
        async with asyncio.timeout(50):
            done = await daemon.ask("And now?", "cloud")
        assert done["text"].endswith(END), done
        budget = await daemon.get("/api/budget")
        assert all(row["reserved"] == 0 for row in budget["caps"])


async def test_a_turn_spends_no_more_than_its_limit_with_the_turns_it_asks_for(
    claude: Claude, tmp_path: Path
) -> None:
    limit_micro_usd = 6_000
    more = f"""
[agents.lead]
models = ["local"]
policy = "local-only"
label = "public"
tools = ["ask_agent"]
delegates_to = ["mixed"]
approvals = [{{ tool = "*", decision = "allow" }}]
limits = {{ spend_usd_max = {limit_micro_usd / 1e6} }}
"""
    home = write_cloud_home(tmp_path / "home", claude.url, more=more)
    asks = [
        {"name": "ask_agent", "arguments": {"agent": "mixed", "prompt": f"Question {n}?"}}
        for n in range(12)
    ]
    script = [{"match": "^ask them$", "tool_calls": asks}, {"reply": LOCAL_REPLY}]
    (home / "script.json").write_text(json.dumps(script))
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        done = await daemon.ask("ask them", "lead")
        assert done["type"] == "turn.completed", done
        spent = (await daemon.get("/api/budget"))["today_micro_usd"]
        turns = (await daemon.get("/api/turns", limit=100))["turns"]
        answers = [
            (await daemon.get(f"/api/turns/{turn['id']}"))["text"]
            for turn in turns
            if turn["agent"] == "mixed"
        ]
        alone = await daemon.ask("And this?", "mixed")
    assert 0 < spent <= limit_micro_usd
    from_cloud = [answer != LOCAL_REPLY for answer in answers]
    assert len(answers) == 12 and 0 < sum(from_cloud) < 12, "the money ends, the work does not"
    assert alone["text"].endswith(END) and alone["text"] != LOCAL_REPLY


async def test_a_turn_without_money_for_its_only_place_is_told_so(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_cloud_home(tmp_path / "home", claude.url)
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        limits = {"spend_micro_usd_max": 10}
        status, started = await daemon.post(
            "/api/turns", {"agent": "cloud", "text": "hello", "limits": limits}
        )
        assert status == 202, started
        ended = await daemon.ended(started["turn"])
        assert ended["type"] == "turn.failed"
        assert "could not pay" in ended["error"]["message"]
        assert (await daemon.get("/api/budget"))["today_micro_usd"] == 0
