"""Turns as clients see them: following late, cancelling, limits, faults; on a scripted model."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.daemons import SCRIPTED_CONFIG, cli, running, write_home
from tests.fakes.openai.running import stand_in

SLOW = {"reply": "one two three four five " * 20, "tokens_per_s": 10}


async def test_a_late_follower_sees_everything_once_and_in_order(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"reply": "abcd" * 40, "tokens_per_s": 15}])
    async with running(home) as daemon:
        turn = await daemon.start_turn("go")
        early: list[dict[str, object]] = []

        async def watch() -> None:
            async for item in daemon.follow(turn):
                early.append(item)

        watching = asyncio.create_task(watch())
        while not any(item["type"] == "delta" for item in early):
            await asyncio.sleep(0.01)
        late = [item async for item in daemon.follow(turn)]
        await watching
        for items in (early, late):
            text = "".join(str(i["text"]) for i in items if i.get("kind") == "text")
            assert text == "abcd" * 40
            seqs = [i["seq"] for i in items if "seq" in i]
            assert seqs == sorted(set(seqs))  # type: ignore[type-var]
            assert items[-1]["type"] == "turn.completed"
        after = early[0]["seq"]
        resumed = [item async for item in daemon.follow(turn, after=int(str(after)))]
        assert resumed[0]["type"] == "step.routed"


async def test_cancel_ends_a_turn_in_mid_stream_and_frees_the_slot(tmp_path: Path) -> None:
    config = SCRIPTED_CONFIG.replace("slots = 8", "slots = 1")
    home = write_home(tmp_path, [{"match": "slow", **SLOW}, {"reply": "quick"}], config)
    async with running(home) as daemon:
        turn = await daemon.start_turn("slow one")
        async for item in daemon.follow(turn):
            if item["type"] == "delta":
                break
        status, answer = await daemon.post(f"/api/turns/{turn}/cancel")
        assert (status, answer["cancelled"]) == (200, True)
        assert (await daemon.ended(turn))["type"] == "turn.cancelled"
        assert (await daemon.ask("quick one"))["text"] == "quick"
        _, again = await daemon.post(f"/api/turns/{turn}/cancel")
        assert again["cancelled"] is False


async def test_a_turn_that_runs_out_of_time_or_tokens_fails_with_its_limit(tmp_path: Path) -> None:
    home = write_home(tmp_path, [SLOW])
    async with running(home) as daemon:
        late = await daemon.ask("go", limits={"turn_s_max": 0.3})
        assert late["error"]["code"] == "deadline_exceeded"
        short = await daemon.ask("go", limits={"output_tokens_max": 5})
        assert short["type"] == "turn.completed"
        assert short["usage"]["output_tokens"] == 5
        assert short["stop_reason"] == "max_tokens"


async def test_a_crash_of_the_model_is_retried_once_and_then_named(tmp_path: Path) -> None:
    home = write_home(tmp_path, [
        {"match": "once", "reply": "part", "fault": "crash", "times": 1},
        {"match": "once", "reply": "whole"},
        {"match": "always", "fault": "error"},
    ])  # fmt: skip
    async with running(home) as daemon:
        ended = await daemon.ask("always")
        assert ended["type"] == "turn.failed"
        assert ended["error"]["code"] == "engine_failed"
        assert "script said error" in ended["error"]["message"]


async def test_the_same_idempotency_key_starts_one_turn(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"reply": "ok"}])
    async with running(home) as daemon:
        body = {"agent": "assistant", "text": "go"}
        answers = await asyncio.gather(
            *(daemon.post("/api/turns", body, **{"Idempotency-Key": "k1"}) for _ in range(5)),
            return_exceptions=True,
        )
        turns = {answer[1]["turn"] for answer in answers if answer[0] == 202}  # type: ignore[index]
        assert len(turns) == 1
        assert all(answer[0] == 202 for answer in answers)  # type: ignore[index]


async def test_a_session_runs_its_turns_in_order(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"reply": "abcdefgh", "tokens_per_s": 50}])
    async with running(home) as daemon:
        _, session = await daemon.post("/api/sessions", {"agent": "assistant"})
        path = f"/api/sessions/{session['id']}/turns"
        turns = [(await daemon.post(path, {"text": f"say {n}"}))[1]["turn"] for n in range(4)]
        ends = [(await daemon.ended(turn))["seq"] for turn in turns]
        assert ends == sorted(ends)
        shown = await daemon.get(f"/api/sessions/{session['id']}")
        asked = [m["blocks"][0]["text"] for m in shown["messages"] if m["role"] == "user"]
        assert asked == [f"say {n}" for n in range(4)]


async def test_a_client_that_goes_away_does_not_stop_its_turn(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"reply": "abcdefgh" * 10, "tokens_per_s": 100}])
    async with running(home) as daemon:
        turn = await daemon.start_turn("go")
        async for item in daemon.follow(turn):
            if item["type"] == "delta":
                break
        assert (await daemon.ended(turn))["text"] == "abcdefgh" * 10


async def test_exit_codes_say_what_happened(tmp_path: Path) -> None:
    home = write_home(tmp_path, [{"match": "good", "reply": "ok"}, {"fault": "broken"}])
    assert (await cli(home, "status"))[0] == 3
    async with running(home) as daemon:
        assert (await cli(home, "ask", "assistant", "good"))[0] == 0
        assert (await cli(home, "ask", "assistant", "bad"))[0] == 1
        assert (await cli(home, "ask", "nobody", "good"))[0] == 2
        assert (await cli(home, "nonsense"))[0] == 2
        assert (await cli(home, "status", "--json"))[0] == 0
        assert daemon.process.returncode is None


async def test_a_scripted_model_with_a_base_url_forwards_to_that_server(tmp_path: Path) -> None:
    with stand_in() as url:
        script = 'script = "script.json"'
        config = SCRIPTED_CONFIG.replace(script, f'base_url = "{url}/v1"')
        async with running(write_home(tmp_path, [], config)) as daemon:
            ended = await daemon.ask("hello there")
            assert ended["type"] == "turn.completed", ended
            assert ended["text"]
            assert ended["route"]["place"] == "local"
