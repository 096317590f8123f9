"""What an Xid (the driver's error number) means for the card it happened on: a table.

Source: NVIDIA "Xid Errors", catalogue of Xids, column *Immediate Action* (RESTART_APP, RESET_GPU,
RESTART_BM, IGNORE). An Xid that is not in the table is told to the operator and costs the
process, not the card: NVML's own answers then decide whether the card is still usable.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.gpu.types import Health


@dataclass(frozen=True, slots=True)
class Xid:
    text: str
    health: Health
    """The card's state after it. OK means that only the process that caused it is lost."""


_LOST_PROCESS = Health.OK

XIDS: dict[int, Xid] = {
    8: Xid("the card stopped processing (idle timeout)", _LOST_PROCESS),
    11: Xid("invalid or corrupted push buffer", _LOST_PROCESS),
    13: Xid("graphics engine exception", _LOST_PROCESS),
    31: Xid("memory page fault", _LOST_PROCESS),
    43: Xid("the card stopped processing", _LOST_PROCESS),
    45: Xid("preemptive clean-up after an earlier error", _LOST_PROCESS),
    48: Xid("double-bit ECC error: drain and reset", Health.RESET_REQUIRED),
    61: Xid("internal micro-controller breakpoint", Health.RESET_REQUIRED),
    62: Xid("internal micro-controller halt", Health.RESET_REQUIRED),
    63: Xid("row remapping recorded: takes effect at the next reset", Health.OK),
    64: Xid("row remapping failed", Health.RESET_REQUIRED),
    68: Xid("video processor exception", _LOST_PROCESS),
    69: Xid("graphics engine class error", _LOST_PROCESS),
    74: Xid("NVLink error: drain", Health.DRAINING),
    79: Xid("the card has fallen off the bus", Health.LOST),
    92: Xid("high single-bit ECC error rate: drain", Health.DRAINING),
    94: Xid("contained ECC error", _LOST_PROCESS),
    95: Xid("uncontained ECC error: drain and reset", Health.RESET_REQUIRED),
    109: Xid("context switch timeout", Health.RESET_REQUIRED),
    119: Xid("GSP does not answer", Health.RESET_REQUIRED),
    120: Xid("GSP error", Health.RESET_REQUIRED),
    140: Xid("unrecovered ECC error", Health.RESET_REQUIRED),
    143: Xid("initialisation failure", Health.RESET_REQUIRED),
}

_UNKNOWN = "an error that is not in the table"

SEVERITY: dict[Health, int] = {
    Health.OK: 0,
    Health.DRAINING: 1,
    Health.UNKNOWN: 2,
    Health.RESET_REQUIRED: 3,
    Health.LOST: 4,
}


def describe(code: int) -> Xid:
    return XIDS.get(code, Xid(_UNKNOWN, Health.OK))


def judge(previous: Health, xids: tuple[int, ...], error: Health | None) -> Health:
    """A card's state after a poll: `xids` came since the last one, `error` is what NVML said.

    An NVML error speaks for now and passes with it, a lost card included: that is the re-probe.
    What only a reset or an operator ends (`draining`, `reset_required`) stays until the driver is
    initialised afresh.
    """
    states = [describe(code).health for code in xids]
    if error is not None:
        states.append(error)
    if previous in (Health.DRAINING, Health.RESET_REQUIRED):
        states.append(previous)
    return max(states, key=lambda state: SEVERITY[state], default=Health.OK)
