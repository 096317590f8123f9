"""The journal appends in order, follows without gap or repeat, and its chain finds tampering."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.clock import VirtualClock
from appliance.errors import StoreError
from appliance.store.chain import check_file
from appliance.store.database import Database
from appliance.store.journal import Draft, Event, Journal

ROWS = 200
TAMPERINGS = 1000


def draft(number: int, stream: str = "s", turn: str | None = "t") -> Draft:
    return Draft(stream, "turn.noted", {"number": number, "text": "é" * 20}, turn)


async def test_concurrent_appends_share_commits_and_keep_their_order(journal: Journal) -> None:
    appended = await asyncio.gather(
        *(journal.append(draft(2 * n), draft(2 * n + 1)) for n in range(100))
    )
    assert [event.seq for events in appended for event in events] == list(range(1, 201))
    assert await journal.read("s", limit=500) == [event for events in appended for event in events]
    assert (await journal.verify()).ok


async def test_a_bug_in_one_row_fails_that_append_alone(journal: Journal) -> None:
    class Broken:
        def write(self, connection: sqlite3.Connection) -> None:
            raise KeyError("a bug")

    results = await asyncio.gather(
        journal.append(draft(1)),
        journal.append(draft(2), index=(Broken(),)),
        journal.append(draft(3)),
        return_exceptions=True,
    )
    assert isinstance(results[1], KeyError)
    assert [event.body["number"] for event in await journal.read("s")] == [1, 3]
    assert (await journal.verify()).ok


async def test_half_a_surrogate_pair_is_kept(journal: Journal) -> None:
    await journal.append(Draft("s", "k", {"text": "\ud800 é"}))
    (event,) = await journal.read("s")
    assert event.body == {"text": "\ud800 é"}


async def test_a_cancelled_append_still_reaches_followers(journal: Journal) -> None:
    follower = asyncio.create_task(anext(aiter(journal.tail(stream="s"))))
    waiting = asyncio.create_task(journal.append(draft(7)))
    await asyncio.sleep(0)
    waiting.cancel()
    assert (await follower).body["number"] == 7


async def test_appending_after_close_is_refused(tmp_path: Path) -> None:
    async with Database(tmp_path) as database:
        journal = Journal(database, VirtualClock())
    with pytest.raises(StoreError, match="closed"):
        await journal.append(draft(1))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["t", "u", None])), max_size=5),
        max_size=12,
    ),
    joins=st.integers(0, 12),
    after=st.integers(0, 20),
    stream=st.sampled_from(["a", None]),
    turn=st.sampled_from(["t", None]),
)
async def test_a_follower_sees_every_event_once_whenever_it_joins(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[tuple[str, str | None]]],
    joins: int,
    after: int,
    stream: str | None,
    turn: str | None,
) -> None:
    async with Database(tmp_path_factory.mktemp("tail")) as database:
        journal = Journal(database, VirtualClock())
        seen: list[Event] = []

        async def follow() -> None:
            async for event in journal.tail(stream=stream, turn=turn, after=after):
                if event.kind == "end":
                    return
                seen.append(event)

        follower: asyncio.Task[None] | None = None
        for number, batch in enumerate(batches):
            if number == joins:
                follower = asyncio.create_task(follow())
            await journal.append(*(Draft(s, "k", {}, t) for s, t in batch), durable=False)
        follower = follower or asyncio.create_task(follow())
        filler = [Draft("other", "filler", {}) for _ in range(after)]
        await journal.append(*filler, Draft(stream or "a", "end", {}, turn or "t"), durable=False)
        await follower
        wanted = [
            event
            for event in await journal.read_all()
            if event.seq > after
            and event.kind != "end"
            and stream in (None, event.stream)
            and turn in (None, event.turn)
        ]
        assert seen == wanted


async def test_a_thousand_tamperings_are_all_found_with_their_first_row(tmp_path: Path) -> None:
    async with Database(tmp_path) as database:
        journal = Journal(database, VirtualClock())
        for start in range(0, ROWS, 20):
            await journal.append(*(draft(n) for n in range(start, start + 20)))
        witness = await journal.head()
    connection = sqlite3.connect(tmp_path / "appliance.db", isolation_level=None)
    assert check_file(connection, witness).ok
    chance = random.Random(20)
    for _ in range(TAMPERINGS):
        connection.execute("BEGIN")
        first_bad = TAMPER[chance.randrange(len(TAMPER))](connection, chance)
        report = check_inside(connection)
        assert report == first_bad
        connection.execute("ROLLBACK")
    assert check_file(connection, witness).ok
    connection.execute("DELETE FROM event WHERE seq > 150")
    connection.execute("UPDATE head SET seq = 150, hash = (SELECT hash FROM event WHERE seq = 150)")
    assert check_file(connection).ok, "a cut with a mended head needs a witness"
    assert check_file(connection, witness).broken_at == 151
    connection.close()


def check_inside(connection: sqlite3.Connection) -> int | None:
    """What the check says of the rows as this open transaction sees them."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    copy.execute(
        "CREATE TABLE event "
        "(seq INTEGER PRIMARY KEY, stream, turn, kind, version, at_ms, body, hash)"
    )
    copy.execute("CREATE TABLE head (id, seq, hash)")
    copy.executemany(
        "INSERT INTO event VALUES (?,?,?,?,?,?,?,?)", connection.execute("SELECT * FROM event")
    )
    copy.executemany("INSERT INTO head VALUES (?,?,?)", connection.execute("SELECT * FROM head"))
    found = check_file(copy).broken_at
    copy.close()
    return found


def edit(connection: sqlite3.Connection, chance: random.Random) -> int:
    seq = chance.randint(1, ROWS)
    column, value = chance.choice(
        [
            ("body", '{"number":-1}'),
            ("stream", "other"),
            ("turn", None),
            ("kind", "turn.made_up"),
            ("version", 9),
            ("at_ms", 5),
            ("hash", bytes(32)),
        ]
    )
    connection.execute(f"UPDATE event SET {column} = ? WHERE seq = ?", (value, seq))
    return seq


def delete(connection: sqlite3.Connection, chance: random.Random) -> int:
    seq = chance.randint(1, ROWS)
    connection.execute("DELETE FROM event WHERE seq = ?", (seq,))
    return seq


def swap(connection: sqlite3.Connection, chance: random.Random) -> int:
    low, high = sorted(chance.sample(range(1, ROWS + 1), 2))
    connection.execute("UPDATE event SET seq = -1 WHERE seq = ?", (low,))
    connection.execute("UPDATE event SET seq = ? WHERE seq = ?", (low, high))
    connection.execute("UPDATE event SET seq = ? WHERE seq = -1", (high,))
    return low


def truncate(connection: sqlite3.Connection, chance: random.Random) -> int:
    seq = chance.randint(1, ROWS)
    connection.execute("DELETE FROM event WHERE seq >= ?", (seq,))
    return seq


def insert_again(connection: sqlite3.Connection, chance: random.Random) -> int:
    seq = chance.randint(1, ROWS)
    connection.execute(
        "INSERT INTO event SELECT ?, stream, turn, kind, version, at_ms, body, hash "
        "FROM event WHERE seq = ?",
        (ROWS + 1, seq),
    )
    return ROWS + 1


def move_head(connection: sqlite3.Connection, chance: random.Random) -> int:
    seq = chance.randint(1, ROWS - 1)
    connection.execute(
        "UPDATE head SET seq = ?, hash = (SELECT hash FROM event WHERE seq = ?)", (seq, seq)
    )
    return seq + 1


TAMPER = (edit, delete, swap, truncate, insert_again, move_head)
