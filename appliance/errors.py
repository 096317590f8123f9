"""The one tree of errors: each has a stable code, a message naming the thing, a hint naming the
next command, and says whether trying again can help.

    ApplianceError
    ├── ConfigError          config_invalid      the file is wrong: file, line, key
    ├── BadRequest           bad_request         the caller's input is wrong
    │   ├── NotFound         not_found
    │   ├── Conflict         conflict
    │   └── PromptTooLong    prompt_too_long     never cut silently
    ├── Refused              refused             policy, role, label, budget
    │   ├── EgressDenied     egress_denied
    │   └── BudgetExceeded   budget_exceeded
    ├── Overloaded           overloaded          queue full; retry after
    ├── NoCapacity           no_capacity         nothing fits; numbers in the message
    ├── EngineError          engine_failed       a model process or provider failed
    │   ├── ModelBroken      model_broken        file missing, corrupt or unsupported
    │   ├── EngineTimeout    engine_timeout
    │   └── CutStream        stream_cut          ended without its proper end
    ├── StoreError           store_failed        disk full, read-only, corrupt
    ├── DeadlineExceeded     deadline_exceeded
    └── DaemonUnreachable    daemon_unreachable  for clients of the socket
"""

from __future__ import annotations

from typing import Any


class ApplianceError(Exception):
    """Base of everything we raise on purpose.

    `details` holds JSON-able numbers for machines; `retry_after_s` is set where waiting helps.
    """

    code = "internal"
    retryable = False
    http_status = 500

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def to_json(self) -> dict[str, Any]:
        """The error as a flat JSON object, the same in the journal and on the wire."""
        body: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
        }
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        if self.details:
            body["details"] = self.details
        return body


class ConfigError(ApplianceError):
    code = "config_invalid"
    http_status = 422


class BadRequest(ApplianceError):
    code = "bad_request"
    http_status = 400


class NotFound(BadRequest):
    code = "not_found"
    http_status = 404


class Conflict(BadRequest):
    code = "conflict"
    http_status = 409


class PromptTooLong(BadRequest):
    """The prompt does not fit the window: `prompt is too long: N tokens > M maximum`."""

    code = "prompt_too_long"
    http_status = 400


class Refused(ApplianceError):
    code = "refused"
    http_status = 403


class EgressDenied(Refused):
    code = "egress_denied"


class BudgetExceeded(Refused):
    code = "budget_exceeded"
    http_status = 402


class Overloaded(ApplianceError):
    code = "overloaded"
    retryable = True
    http_status = 429


class NoCapacity(ApplianceError):
    code = "no_capacity"
    http_status = 507


class EngineError(ApplianceError):
    """A model process or a provider failed. `details["log_tail"]` holds its last lines."""

    code = "engine_failed"
    retryable = True
    http_status = 502


class ModelBroken(EngineError):
    code = "model_broken"
    retryable = False


class EngineTimeout(EngineError):
    code = "engine_timeout"
    http_status = 504


class CutStream(EngineError):
    code = "stream_cut"


class StoreError(ApplianceError):
    code = "store_failed"
    retryable = True
    http_status = 507


class DeadlineExceeded(ApplianceError):
    code = "deadline_exceeded"
    http_status = 504


class DaemonUnreachable(ApplianceError):
    code = "daemon_unreachable"
    retryable = True
