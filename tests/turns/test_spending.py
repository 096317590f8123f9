"""What a turn says it cost is what the ledger has of its calls, however those end."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.clock import SystemClock
from appliance.config.load import parse
from appliance.scheduler.budgets import Budgets
from appliance.store.database import Database
from appliance.store.journal import Journal
from appliance.store.ledger import Ledger
from appliance.turns import events as ev
from appliance.turns.live import LiveTurn, load_turn
from appliance.turns.state import apply
from appliance.turns.stream import Streams
from appliance.types import Role, Usage, text_message
from appliance.wire.native import message_to_json, usage_to_json
from tests.daemons import SCRIPTED_CONFIG

TURN, SESSION = "turn_a", "ses_a"
CLOCK = SystemClock()
ENDS = ("answered", "cut", "refused", "never heard of", "not sent", "killed", "killed unseen")
CALLS = st.lists(st.tuples(st.sampled_from(ENDS), st.integers(1, 900)), min_size=1, max_size=6)
TURN_ENDS: dict[str, ev.Body] = {
    "completed": ev.TurnCompleted(text="", route={}, steps=1, stop_reason="end_turn"),
    "failed": ev.TurnFailed(error={"code": "x", "message": "x"}),
    "cancelled": ev.TurnCancelled(reason="x"),
}


def usage(micro_usd: int) -> Usage:
    return Usage(prompt_tokens=10, output_tokens=3, spend_micro_usd=micro_usd)


@asynccontextmanager
async def budgets(journal: Journal, database: Database) -> AsyncIterator[Budgets]:
    config = parse(SCRIPTED_CONFIG, Path("config.toml"))
    async with Budgets(lambda: config, journal, Ledger(database), CLOCK) as purse:
        yield purse


async def accepted(journal: Journal) -> LiveTurn:
    question = message_to_json(text_message(Role.USER, "go"))
    body = ev.TurnAccepted(agent="assistant", owner_uid=0, message=question)
    (event,) = await journal.append(body.draft(SESSION, TURN))
    return LiveTurn(journal, Streams(journal), CLOCK, apply(None, event), None)


async def woken(journal: Journal) -> LiveTurn:
    state = await load_turn(journal, TURN)
    assert state is not None
    return LiveTurn(journal, Streams(journal), CLOCK, state, None)


async def in_ledger(database: Database) -> int:
    sql = (
        "SELECT COALESCE(SUM(amount), 0) FROM spend"
        " WHERE kind = 'settle' AND currency = 'micro_usd' AND turn = ?"
    )
    return int(await database.read(lambda c: c.execute(sql, [TURN]).fetchone()[0]))


async def call(purse: Budgets, turn: LiveTurn, step: int, how: str, micro_usd: int) -> None:
    """One paid call of a step, to this end."""
    await turn.append(ev.StepRouted(step=step, attempt=0, target="claude", route={}))
    hold = await purse.reserve(
        agent="assistant", session_id=SESSION, turn_id=TURN, micro_usd=1_000, cloud_tokens=50
    )
    if how == "not sent":
        await hold.release()
        return
    await purse.sent(TURN, usage(micro_usd))
    if how in ("answered", "cut", "killed"):
        await purse.seen(TURN, usage(micro_usd + 7))
    if how == "refused":
        await purse.refused(TURN)
    if how.startswith("killed"):
        return
    if how != "answered":
        await hold.release()
        return
    await hold.settle(usage(micro_usd + 20))
    await turn.see_charges()
    answer = message_to_json(text_message(Role.ASSISTANT, "so"))
    await turn.append(
        ev.StepCompleted(
            step=step, attempt=0, target="claude", message=answer, stop_reason="end_turn",
            usage=usage_to_json(usage(micro_usd + 20)),
        )
    )  # fmt: skip


async def lived(folder: Path, calls: list[tuple[str, int]], end: str) -> dict[str, Any]:
    """A turn of these calls; a kill is a new start over the same journal."""
    async with Database(folder) as database:
        journal = Journal(database, CLOCK)
        turn, step = await accepted(journal), 0
        left = list(calls)
        while True:
            async with budgets(journal, database) as purse:
                while left:
                    how, micro_usd = left.pop(0)
                    await call(purse, turn, step, how, micro_usd)
                    if how.startswith("killed"):
                        break
                    await turn.see_charges()
                    assert turn.state.usage.spend_micro_usd == await in_ledger(database)
                    step += how == "answered"
                else:
                    break
            async with budgets(journal, database):
                turn = await woken(journal)
                assert turn.state.usage.spend_micro_usd == await in_ledger(database)
        await turn.append(TURN_ENDS[end])
        (last,) = (await journal.read_turn(TURN))[-1:]
        return {
            "told": last.body["usage"]["spend_micro_usd"],
            "shown": (await woken(journal)).state.usage.spend_micro_usd,
            "ledger": await in_ledger(database),
        }


@settings(max_examples=40, deadline=None)
@given(CALLS, st.sampled_from(sorted(TURN_ENDS)))
def test_a_turn_tells_what_the_ledger_has_of_its_calls(
    calls: list[tuple[str, int]], end: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(lived(Path(folder), calls, end))
    assert found["told"] == found["shown"] == found["ledger"]


async def test_what_is_charged_after_the_end_is_in_the_sum_too(tmp_path: Path) -> None:
    async with Database(tmp_path) as database:
        journal = Journal(database, CLOCK)
        turn = await accepted(journal)
        async with budgets(journal, database) as purse:
            await call(purse, turn, 0, "killed", 100)
        await turn.append(TURN_ENDS["cancelled"])
        async with budgets(journal, database):
            assert (await woken(journal)).state.usage.spend_micro_usd == 107


async def test_a_call_without_an_answer_takes_from_what_the_turn_may_spend(tmp_path: Path) -> None:
    async with Database(tmp_path) as database:
        journal = Journal(database, CLOCK)
        turn = await accepted(journal)
        async with budgets(journal, database) as purse:
            await call(purse, turn, 0, "cut", 100)
            await turn.see_charges()
            assert turn.state.spent_micro_usd == 107
