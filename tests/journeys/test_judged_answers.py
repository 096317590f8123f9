"""*Did it?* through the real daemon: local answers are sampled again, judged, kept or handed up."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.router.record import judgement_from_json
from appliance.router.verify import Escalate, Keep
from tests.daemons import running
from tests.fakes.claude.running import Claude, claude_process, talking_to
from tests.fakes.claude.server import END
from tests.journeys.cloud import write_cloud_home

AGENT = """
[agents.judged]
models = ["local", "claude"]
policy = "local-first"
label = "public"
sampling = { max_tokens = 256 }
"""


@pytest.fixture(scope="module")
def claude_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with claude_process(tmp_path_factory.mktemp("claude")) as url:
        yield url


@pytest.fixture
async def claude(claude_url: str, tmp_path: Path) -> AsyncIterator[Claude]:
    async with talking_to(claude_url, tmp_path / "claude-requests.log") as server:
        yield server


def write_home(home: Path, url: str, *replies: str) -> Path:
    """A home where a right answer is worth much, and the local model says these in turn."""
    write_cloud_home(home, url, more=AGENT)
    config = (home / "config.toml").read_text()
    worth = "escalate = true\nquality_usd = 10.0"
    (home / "config.toml").write_text(config.replace("escalate = false", worth))
    entries: list[dict[str, Any]] = [{"reply": reply, "times": 1} for reply in replies]
    (home / "script.json").write_text(json.dumps([*entries, {"reply": "Nothing left."}]))
    return home


def rows(home: Path, sql: str) -> list[dict[str, Any]]:
    (path,) = (home / "state").glob("*.db")
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return [json.loads(body) for (body,) in connection.execute(sql)]


JUDGED = "SELECT body FROM event WHERE kind IN ('step.escalated', 'step.completed') ORDER BY seq"


async def test_samples_that_differ_send_the_step_up_and_the_journal_can_say_why_again(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_home(tmp_path / "home", claude.url, "The answer is 7.", "The answer is 9.")
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        done = await daemon.ask("How many are left of 12?", "judged")
        assert done["text"].endswith(END)
        lines = (await daemon.get(f"/api/turns/{done['turn']}/explain"))["lines"]
    handed = next(line for line in lines if "handed to the cloud" in line)
    assert "two samples" in handed
    assert "other answers -" in handed
    first, second = (judgement_from_json(body["judgement"]) for body in rows(home, JUDGED))
    assert isinstance(first.verdict, Escalate)
    assert first.replayed() == first.verdict
    assert isinstance(second.verdict, Keep)
    assert second.replayed() == second.verdict


async def test_samples_that_agree_raise_what_is_expected_and_outcomes_keep_what_was_shown(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_home(tmp_path / "home", claude.url, "The answer is 7.", "So the answer is 7.")
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        await daemon.ask("How many are left of 12?", "judged")
    (first, *_) = (judgement_from_json(body["judgement"]) for body in rows(home, JUDGED))
    assert first.answer.was_sampled_again
    assert first.because["other answers"] > 0
    learned = rows(home, "SELECT body FROM outcome ORDER BY outcome_id")
    assert learned
    assert all(each["shown"]["model"] == "local" for each in learned)


async def test_an_empty_answer_goes_up_at_once_and_is_an_outcome_against_the_local_model(
    claude: Claude, tmp_path: Path
) -> None:
    home = write_home(tmp_path / "home", claude.url, "")
    async with running(home, ANTHROPIC_API_KEY=claude.key) as daemon:
        done = await daemon.ask("How many are left of 12?", "judged")
        assert done["text"].endswith(END)
    first, *_ = (judgement_from_json(body["judgement"]) for body in rows(home, JUDGED))
    assert not first.answer.was_sampled_again
    learned = rows(home, "SELECT body FROM outcome ORDER BY outcome_id")
    assert [(each["place"], each["right"]) for each in learned] == [("local", 0.0), ("cloud", 1.0)]
