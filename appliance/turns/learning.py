"""What the router learns while turns run: a score before each step, an outcome after it.

Outcomes go to the append-only table, so that the learner can be rebuilt from them; a snapshot of
it is kept every `SNAPSHOT_EVERY` outcomes and read back at start. The parameters are loaded with
the first step that has a choice between the machine and the cloud: an agent that is local only
never pays for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.clock import Clock, new_id
from appliance.config.schema import Config
from appliance.router.types import Place, Score, StepFacts, TargetFacts
from appliance.store.database import Database
from appliance.store.outcomes import OutcomeRow, Outcomes, ParametersRow

if TYPE_CHECKING:
    from appliance.router.after import After
    from appliance.router.learn import Learner, Shown

log = logging.getLogger(__name__)

NAME = "router"
SNAPSHOT_EVERY = 50
WAITING_MAX = 10_000
"""Steps whose outcome is not known yet; beyond, what would be learned is let go."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A step as it was decided: enough to learn from once its outcome is known. `shown` is what
    the local answer showed, its own or the one that was handed up before it."""

    step: StepFacts
    target: TargetFacts
    propensity: float
    shown: Shown | None = None


class Learning:
    """The learned score and its outcomes. One owner of the learner; used from the loop alone."""

    def __init__(self, config: Callable[[], Config], database: Database, clock: Clock) -> None:
        self._config = config
        self._database = database
        self._outcomes = Outcomes(database)
        self._clock = clock
        self._learner: Learner | None = None
        self._loading = asyncio.Lock()
        self._waiting: dict[str, Taken] = {}
        self._version = 0
        self._since_snapshot = 0

    async def score(self, step: StepFacts, targets: Sequence[TargetFacts]) -> Score:
        """What to expect of each target. Without a choice to make, what config says of them."""
        places = {target.place for target in targets if target.permitted}
        if len(places) < 2 and self._learner is None:
            return self._configured(targets)
        learner = await self._loaded()
        return learner.scorer.score(step, targets)

    def after(self, step: StepFacts, score: Score, target: TargetFacts, shown: Shown) -> After:
        """What to expect of both sides once this local answer is there. The score before it must
        have been asked for (`is_learned`)."""
        assert self._learner is not None
        before = {Place.LOCAL: score.p_right(target), Place.CLOUD: score.cloud_right}
        return self._learner.expect(step, shown, before)

    @property
    def is_learned(self) -> bool:
        """Whether the learned score is in use, not what config says alone."""
        return self._learner is not None

    async def answered(self, taken: Taken) -> None:
        """A step's answer was kept: judge the step before it by its tools, then wait for this
        one's own outcome."""
        turn_id, last = taken.step.turn_id, taken.step.last_tool
        before = self._waiting.pop(turn_id, None)
        if before is not None and last is not None:
            await self._saw(before, tool_failed=taken.step.last_tool_failed)
        if len(self._waiting) < WAITING_MAX:
            self._waiting[turn_id] = taken

    async def escalated(self, taken: Taken) -> None:
        """A local answer was not good enough, by hard evidence."""
        await self._saw(taken, escalated=True)

    async def compared(self, taken: Taken, *, cloud_agrees: bool) -> None:
        """A local answer was handed up on suspicion, and now the cloud's answer is there."""
        await self._saw(taken, cloud_agrees=cloud_agrees)

    async def ended(self, turn_id: str, *, finished: bool) -> None:
        """A turn ended; its last answer stands if it finished."""
        last = self._waiting.pop(turn_id, None)
        if last is not None and finished:
            await self._saw(last, finished=True)

    async def _saw(self, taken: Taken, **seen: bool) -> None:
        """Learn from what became of a step, and keep it."""
        if self._learner is None or not self._config().routing.learn:
            return
        from appliance.router.learn import Signals, outcome_of

        outcome = outcome_of(
            self._learner.scorer,
            taken.step,
            taken.target,
            taken.propensity,
            Signals(**seen),
            taken.shown,
        )
        if outcome is None:
            return
        self._learner.learn(outcome)
        row = OutcomeRow(
            new_id("out"),
            taken.step.turn_id,
            taken.step.agent,
            NAME,
            self._clock.wall_ms(),
            outcome.to_json(),
        )
        await self._database.write(row.write)
        self._since_snapshot += 1
        if self._since_snapshot >= SNAPSHOT_EVERY:
            await self._snapshot()

    async def _snapshot(self) -> None:
        assert self._learner is not None
        payload = self._learner.to_bytes()
        self._version, self._since_snapshot = self._version + 1, 0
        row = ParametersRow(NAME, self._version, self._clock.wall_ms(), payload)
        await self._database.write(row.write)

    async def _loaded(self) -> Learner:
        async with self._loading:
            if self._learner is None:
                stored = await self._outcomes.parameters(NAME)
                self._learner = await asyncio.to_thread(_restore, stored)
                self._version = 0 if stored is None else stored.version
            return self._learner

    def _configured(self, targets: Sequence[TargetFacts]) -> Score:
        models = self._config().models
        quality = {
            target.name: models[target.name].quality for target in targets if target.name in models
        }
        local = [quality[t.name] for t in targets if t.place is Place.LOCAL and t.name in quality]
        cloud = [quality[t.name] for t in targets if t.place is Place.CLOUD and t.name in quality]
        return Score(
            max(local, default=0.5), max(cloud, default=0.9), quality, params_version="config"
        )


def _restore(stored: ParametersRow | None) -> Learner:
    """The last snapshot, or the shipped prior where there is none that this release reads."""
    from appliance.router.learn import Learner
    from appliance.router.score import Prior

    prior = Prior.shipped()
    if stored is not None:
        try:
            return Learner.from_bytes(stored.payload, prior)
        except ValueError as error:
            log.warning(
                "the router's parameters are not of this release (%s): from the start", error
            )
    return Learner(prior)
