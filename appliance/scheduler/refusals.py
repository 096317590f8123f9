"""A refusal of the core as an error for the caller, an engine's error as news for the core."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from appliance.errors import (
    ApplianceError,
    DeadlineExceeded,
    EngineError,
    ModelBroken,
    NoCapacity,
    NotFound,
    Overloaded,
)
from appliance.scheduler.values import InstanceFailed, RefusalCode, Refuse

log = logging.getLogger(__name__)


def failure_of(instance_id: str, error: Exception) -> InstanceFailed:
    """What an instance's failure means; one that is none of ours is a bug, and is logged so."""
    if isinstance(error, ApplianceError):
        log.warning("instance %s failed: %s", instance_id, _reason(error))
        is_crash = not isinstance(error, NoCapacity)  # one that looked and declined did not crash
        return InstanceFailed(instance_id, _reason(error), isinstance(error, ModelBroken), is_crash)
    log.error("instance %s failed unexpectedly", instance_id, exc_info=error)
    return InstanceFailed(instance_id, repr(error))


def _reason(error: ApplianceError) -> str:
    tail = error.details.get("log_tail")
    if not tail:
        return error.message
    return f"{error.message}: {tail if isinstance(tail, str) else ' '.join(map(str, tail))}"


_ERRORS: Mapping[RefusalCode, type[ApplianceError]] = {
    RefusalCode.OVERLOADED: Overloaded,
    RefusalCode.NO_CAPACITY: NoCapacity,
    RefusalCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    RefusalCode.ENGINE_FAILED: EngineError,
    RefusalCode.MODEL_BROKEN: ModelBroken,
    RefusalCode.UNKNOWN_MODEL: NotFound,
}


_HINTS: Mapping[RefusalCode, str] = {
    RefusalCode.MODEL_BROKEN: "appliance doctor says what is wrong with it",
    RefusalCode.ENGINE_FAILED: "it is tried again by itself; the daemon's log has its last words",
    RefusalCode.NO_CAPACITY: "appliance plan shows what would fit",
    RefusalCode.UNKNOWN_MODEL: "appliance models lists them",
}


def error_of(refuse: Refuse) -> ApplianceError:
    details = {}
    if refuse.predicted_wait_s is not None:
        details["predicted_wait_s"] = round(refuse.predicted_wait_s, 3)
    return _ERRORS[refuse.code](
        refuse.reason,
        hint=_HINTS.get(refuse.code, "appliance status shows what waits for what"),
        retry_after_s=refuse.retry_after_s,
        details=details,
    )
