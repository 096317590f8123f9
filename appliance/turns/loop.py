"""The loop of a turn: fold, ask for the next move, make it, until it is finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from appliance.clock import Clock
from appliance.config.machine import Limits
from appliance.turns import events as ev
from appliance.turns import limits as bounds
from appliance.turns.calls import CallRunner
from appliance.turns.live import LiveTurn
from appliance.turns.questions import close_lost
from appliance.turns.state import CallModel, CarryOut, Finish, next_move
from appliance.types import Json


class Parked(Exception):
    """The daemon is stopping: the turn waits in the journal for the next start."""


class StepRunner(Protocol):
    async def __call__(self, turn: LiveTurn, move: CallModel, left: bounds.Left) -> None:
        """Make one model call and append its `step.completed`; raises `ApplianceError`."""


async def run_turn(
    turn: LiveTurn,
    run_step: StepRunner,
    calls: CallRunner,
    limits: Limits,
    clock: Clock,
    is_draining: Callable[[], bool],
) -> None:
    """Run a turn from wherever its journal ends to its end.

    Raises `ApplianceError` when it cannot go on (the caller journals `turn.failed`), and
    `Parked` between two moves when the daemon drains.
    """
    await close_lost(turn)
    while not turn.state.is_finished:
        move = next_move(turn.state)
        if is_draining() and not isinstance(move, Finish):
            raise Parked
        match move:
            case CallModel():
                elapsed_s = turn.state.elapsed_s(clock.wall_ms())
                await run_step(turn, move, bounds.check(turn.state, limits, elapsed_s))
            case CarryOut(step=step, calls=wanted):
                await calls.carry_out(step, wanted)
            case Finish(text=text, stop_reason=stop_reason):
                await turn.append(_completed(turn, text, stop_reason))


def _completed(turn: LiveTurn, text: str, stop_reason: str) -> ev.TurnCompleted:
    state = turn.state
    last = state.steps[-1]
    outcome = dict(last.route.get("outcome", {}))
    route: dict[str, Json] = {
        "target": last.target,
        "place": outcome.get("place"),
        "reasons": outcome.get("reasons", []),
        "why": last.route.get("why", []),
    }
    return ev.TurnCompleted(
        text=text,
        route=route,
        steps=len(state.steps),
        stop_reason=stop_reason,
    )
