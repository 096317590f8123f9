"""Budgets over the real ledger: caps, concurrency, warnings, and what a crash leaves due."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.clock import VirtualClock
from appliance.config.schema import Config
from appliance.engines.provider.bill import Due
from appliance.errors import BudgetExceeded
from appliance.scheduler.budgets import Budgets
from appliance.scheduler.left_calls import Tapes
from appliance.store.database import Database
from appliance.store.journal import Journal
from appliance.store.ledger import Currency, Ledger, Scope
from appliance.types import Usage

DAY = "1970-01-01"


def config(**budgets: object) -> Config:
    agents = {"a": {"models": ["m"], "budget": {"day_usd": 0.5}}, "b": {"models": ["m"]}}
    models = {"m": {"engine": "scripted", "script": "s.json"}}
    return Config.model_validate({"models": models, "agents": agents, "budgets": budgets})


class Till:
    """Budgets in a folder; leaving it without `close` is what a kill does to them."""

    def __init__(self, folder: Path, settings: Config, tapes: Tapes | None = None) -> None:
        self._folder = folder
        self._config = settings
        self._tapes = tapes
        self._rooms = AsyncExitStack()

    async def __aenter__(self) -> Till:
        database = await self._rooms.enter_async_context(Database(self._folder))
        clock = VirtualClock()
        self.journal, self.ledger = Journal(database, clock), Ledger(database)
        self.budgets = Budgets(lambda: self._config, self.journal, self.ledger, clock, self._tapes)
        await self._rooms.enter_async_context(self.budgets)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._rooms.aclose()

    async def reserve(self, micro_usd: int, agent: str = "a", turn: str = "t", tokens: int = 1):
        return await self.budgets.reserve(
            agent=agent, session_id="s", turn_id=turn, micro_usd=micro_usd, cloud_tokens=tokens
        )

    async def spent(self) -> int:
        return (await self.ledger.total(Currency.MICRO_USD, period=DAY)).settled

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.journal.read("budget")]


def usage(micro_usd: int, tokens: int = 10) -> Usage:
    return Usage(prompt_tokens=tokens, spend_micro_usd=micro_usd)


async def test_a_settled_call_costs_its_bill_and_a_released_one_nothing(tmp_path: Path) -> None:
    async with Till(tmp_path, config(day_usd=1.0)) as till:
        hold = await till.reserve(1_000)
        assert till.budgets.left_micro_usd("a", "s") == 499_000
        await hold.settle(usage(300))
        await hold.release()
        await (await till.reserve(500)).release()
        assert await till.spent() == 300
        assert till.budgets.left_micro_usd("a", "s") == 499_700
        assert till.budgets.left_micro_usd("b", "s") == 999_700


async def test_two_hundred_calls_at_once_never_pass_the_cap(tmp_path: Path) -> None:
    async with Till(tmp_path, config(day_usd=0.01)) as till:

        async def one(number: int) -> bool:
            try:
                hold = await till.reserve(700, turn=f"t{number}")
            except BudgetExceeded:
                return False
            await asyncio.sleep(0)
            await hold.settle(usage(700))
            return True

        got = await asyncio.gather(*(one(number) for number in range(200)))
        assert sum(got) == 14
        assert await till.spent() == 9_800


async def test_each_cap_is_kept_and_named(tmp_path: Path) -> None:
    caps = config(day_usd=10, session_usd=0.7, day_cloud_tokens=100)
    async with Till(tmp_path, caps) as till:
        with pytest.raises(BudgetExceeded, match="agent a 1970-01-01"):
            await till.reserve(600_000)
        with pytest.raises(BudgetExceeded, match="session s in total"):
            await till.reserve(700_001, agent="b")
        with pytest.raises(BudgetExceeded, match="cloud_tokens"):
            await till.reserve(10, tokens=101)
        await (await till.reserve(10, tokens=100)).settle(usage(10, tokens=100))
        assert till.budgets.left_micro_usd("a", "s") == 0, "no tokens are no money"


async def test_it_warns_once_at_the_share_of_a_cap(tmp_path: Path) -> None:
    async with Till(tmp_path, config(day_usd=0.001, month_usd=1.0)) as till:
        for _ in range(3):
            await (await till.reserve(300)).settle(usage(300))
        assert (await till.kinds()).count("budget.warned") == 1


async def test_what_was_seen_of_a_cut_call_is_due(tmp_path: Path) -> None:
    async with Till(tmp_path, config()) as till:
        hold = await till.reserve(1_000)
        await till.budgets.sent("t", usage(50))
        await till.budgets.seen("t", usage(70))
        await till.budgets.seen("t", usage(90))
        await hold.release()
        assert await till.spent() == 90


async def test_what_was_sent_and_never_answered_costs_its_prompt(tmp_path: Path) -> None:
    async with Till(tmp_path, config()) as till:
        hold = await till.reserve(1_000)
        await till.budgets.sent("t", usage(50))
        await hold.release()
        hold = await till.reserve(1_000)
        await till.budgets.sent("t", usage(50))
        await till.budgets.refused("t")
        await hold.release()
        assert await till.spent() == 50


async def test_a_start_closes_what_the_last_life_left_open(tmp_path: Path) -> None:
    async with Till(tmp_path, config()) as till:
        for turn in ("never sent", "sent", "refused", "seen"):
            await till.reserve(1_000, turn=turn)
        await till.budgets.sent("sent", usage(50))
        await till.budgets.sent("refused", usage(50))
        await till.budgets.refused("refused")
        await till.budgets.sent("seen", usage(50))
        await till.budgets.seen("seen", usage(77))
    async with Till(tmp_path, config()) as till:
        assert await till.spent() == 50 + 77
        assert await till.ledger.open_reservations() == []
        assert till.budgets.left_micro_usd("a", "s") == 500_000 - 127
        assumed = [e.body["turn"] for e in await till.journal.read("budget") if "assumed" in e.body]
        assert assumed == ["sent"]


async def test_a_caller_cancelled_while_reserving_leaves_nothing_open(tmp_path: Path) -> None:
    async with Till(tmp_path, config()) as till:
        for turns_of_the_loop in range(8):
            caller = asyncio.ensure_future(till.reserve(1_000))
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            caller.cancel()
            outcome = (await asyncio.gather(caller, return_exceptions=True))[0]
            if not isinstance(outcome, BaseException):
                await outcome.release()
        assert await till.ledger.open_reservations() == []
        assert till.budgets.left_micro_usd("a", "s") == 500_000


async def test_gpu_time_is_booked_and_what_is_left_is_told(tmp_path: Path) -> None:
    async with Till(tmp_path, config(day_gpu_s=10)) as till:
        await till.budgets.charge_gpu(agent="a", session_id="s", turn_id="t", gpu_ms=4_000)
        assert till.budgets.gpu_ms_left("a", "s") == 6_000
        assert (await till.ledger.total(Currency.GPU_MS, Scope.AGENT, "a", DAY)).settled == 4_000


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from(["settle", "release", "cut", "crash"]),
            st.integers(0, 600),
        ),
        max_size=12,
    )
)
def test_the_mirror_is_the_ledger_and_the_ledger_is_the_bill(
    calls: list[tuple[int, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("till")

    async def live() -> None:
        due, left = 0, list(calls)
        while True:
            async with Till(folder, config()) as till:
                assert await till.spent() == due
                while left:
                    reserved, end, cost = left.pop()
                    hold = await till.reserve(reserved)
                    if end == "settle":
                        await hold.settle(usage(cost))
                        due += cost
                    elif end == "release":
                        await hold.release()
                    else:
                        await till.budgets.seen("t", usage(cost))
                        due += cost
                        if end == "crash":
                            break
                        await hold.release()
                    assert await till.spent() == due
                    assert till.budgets.left_micro_usd("b", "") == 5_000_000 - due
                else:
                    return

    asyncio.run(live())


class Shelf:
    """Tapes by reservation, as a daemon that comes back finds them."""

    def __init__(self) -> None:
        self.left: dict[str, Due | None] = {}
        self.has_ended = asyncio.Event()
        self.forgotten: list[str] = []

    async def is_ready(self) -> bool:
        return True

    def was_left(self, name: str) -> bool:
        return name in self.left

    async def due(self, name: str) -> Due | None:
        await self.has_ended.wait()
        return self.left[name]

    def forget(self, name: str) -> None:
        self.forgotten.append(name)


@pytest.mark.parametrize(
    ("tape", "due"),
    [(Due(usage(777)), 777), (Due(None), 0), (None, 40)],
    ids=["billed", "refused", "silent"],
)
async def test_what_a_killed_daemon_left_on_tape_is_promised_until_it_ends_and_then_billed(
    tmp_path: Path, tape: Due | None, due: int
) -> None:
    shelf = Shelf()
    async with Till(tmp_path, config(), shelf) as till:
        await till.reserve(1_000)
        name = await till.budgets.sent("t", usage(40))
        assert name
    shelf.left[name] = tape
    async with Till(tmp_path, config(), shelf) as till:
        assert till.budgets.left_micro_usd("a", "s") == 500_000 - 1_000
        settling = asyncio.ensure_future(till.budgets.settle_left())
        await asyncio.sleep(0)
        assert await till.spent() == 0
        shelf.has_ended.set()
        await settling
        assert await till.spent() == due
        assert till.budgets.left_micro_usd("a", "s") == 500_000 - due


async def test_a_call_that_was_to_be_taped_and_has_no_tape_was_never_sent(tmp_path: Path) -> None:
    async with Till(tmp_path, config(), Shelf()) as till:
        await till.reserve(1_000)
        await till.budgets.sent("t", usage(40))
    async with Till(tmp_path, config(), Shelf()) as till:
        assert await till.spent() == 0
        assert await till.ledger.open_reservations() == []


async def test_a_call_whose_answer_an_earlier_one_paid_for_costs_nothing(tmp_path: Path) -> None:
    async with Till(tmp_path, config(), Shelf()) as till:
        hold = await till.reserve(1_000)
        await till.budgets.sent("t", usage(40))
        await till.budgets.adopted("t", "hold_of_another_life")
        await till.budgets.seen("t", usage(300))
        await hold.settle(usage(500))
        assert await till.spent() == 0
        assert await till.ledger.open_reservations() == []


async def test_a_turn_that_adopts_an_answer_ends_when_what_it_cost_is_in_the_ledger(
    tmp_path: Path,
) -> None:
    shelf = Shelf()
    async with Till(tmp_path, config(), shelf) as till:
        await till.reserve(1_000)
        name = await till.budgets.sent("t", usage(40))
    shelf.left[name] = Due(usage(777))
    async with Till(tmp_path, config(), shelf) as till:
        settling = asyncio.ensure_future(till.budgets.settle_left())
        hold = await till.reserve(1_000)
        await till.budgets.sent("t", usage(40))
        await till.budgets.adopted("t", name)
        ending = asyncio.ensure_future(hold.settle(usage(777)))
        await asyncio.wait([ending], timeout=0.05)
        assert not ending.done()
        shelf.has_ended.set()
        await ending
        assert await till.spent() == 777
        await settling


async def test_the_tape_of_a_settled_call_is_forgotten(tmp_path: Path) -> None:
    shelf = Shelf()
    async with Till(tmp_path, config(), shelf) as till:
        hold = await till.reserve(1_000)
        name = await till.budgets.sent("t", usage(40))
        await hold.settle(usage(500))
    assert shelf.forgotten == [name]
