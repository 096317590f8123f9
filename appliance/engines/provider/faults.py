"""Every way a call can fail, as one typed outcome each, in the words `router.retry` reads.

The status alone does not say what happened: overload in mid-stream comes with a 200, a spending
limit with a 429. So each error carries in its `details`: `status` (None where there was no
answer), `type` and `error_code` of the body, `should_retry` (the server's own advice) and
`request_id` (what the provider's support asks for). Nothing of the prompt, nothing of the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from appliance.errors import (
    ApplianceError,
    CutStream,
    EngineError,
    EngineTimeout,
    PromptTooLong,
)

MESSAGE_MAX_CHARS = 500
"""Of a provider's error text: it is shown to people and kept in the journal."""

_NO_CREDIT = re.compile(r"credit balance is too low", re.IGNORECASE)
"""Said with a 400, and yet not the request's fault."""

NO_CREDIT = "credit_balance_too_low"

_TOO_LONG = re.compile(r"prompt is too long|exceeds? (the )?(context|maximum) ", re.IGNORECASE)


class Stage(StrEnum):
    """What was waited for when time ran out."""

    CONNECT = "connect"
    HEADERS = "headers"
    FIRST_TOKEN = "first_token"
    NEXT_TOKEN = "next_token"
    ANSWER = "answer"


def refused_answer(
    model: str,
    status: int,
    error: Mapping[str, Any],
    headers: Mapping[str, str],
    retry_after_s: float | None,
) -> ApplianceError:
    """An HTTP error answer, or (status 200) an `error` event in a stream."""
    kind, text = _text(error.get("type")), _text(error.get("message"))
    details = {
        "status": status,
        "type": kind or None,
        "error_code": NO_CREDIT if _NO_CREDIT.search(text) else _error_code(error),
        "should_retry": _advice(headers.get("x-should-retry")),
        "request_id": headers.get("request-id"),
    }
    if status == 400 and _TOO_LONG.search(text):
        return PromptTooLong(text, hint="start a new session, or choose a larger window")
    where = "in mid-stream" if status == 200 else f"with {status}"
    return EngineError(
        f"{model} answered {where}: {text or kind or 'no words'}",
        hint=_HINTS.get(status, _ELSEWHERE if 300 <= status < 400 else ""),
        retry_after_s=retry_after_s,
        details=details,
    )


def timed_out(model: str, stage: Stage, waited_s: float) -> EngineTimeout:
    return EngineTimeout(
        f"{model}: {_WAITED_FOR[stage]} within {waited_s:.0f} s",
        details={"status": None, "type": "timeout", "stage": stage.value},
    )


def unreachable(model: str, error: BaseException) -> EngineError:
    """No answer at all: refused, reset, no such name, TLS."""
    return EngineError(
        f"{model} could not be reached: {_text(error) or type(error).__name__}",
        hint="appliance doctor checks the way there",
        details={"status": None, "type": "unreachable"},
    )


def cut(model: str, how: str, request_id: str | None) -> CutStream:
    """The answer began and has no proper end; what was shown of it is void."""
    return CutStream(
        f"{model}'s answer broke off: {how}",
        details={"status": None, "type": "stream_cut", "request_id": request_id},
    )


def malformed(model: str, how: str, request_id: str | None) -> EngineError:
    return EngineError(
        f"{model}'s answer is malformed: {how[:MESSAGE_MAX_CHARS]}",
        details={"status": None, "type": "malformed", "request_id": request_id},
    )


_WAITED_FOR = {
    Stage.CONNECT: "no connection",
    Stage.HEADERS: "no answer",
    Stage.FIRST_TOKEN: "no first token",
    Stage.NEXT_TOKEN: "no further token",
    Stage.ANSWER: "no complete answer",
}

_ELSEWHERE = "it sends to another address, which is never followed: mend base_url"

_HINTS = {
    401: "the provider does not know this key: mend key_credential or key_env of the model",
    402: "the account has no credit left",
    403: "this key may not use this model",
    404: "the provider has no model of this name: mend `model`",
    413: "the request is too large: start a new session",
}


def _error_code(error: Mapping[str, Any]) -> str | None:
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, Mapping) else None
    return code if isinstance(code, str) else None


def _advice(header: str | None) -> bool | None:
    return {"true": True, "false": False}.get((header or "").lower())


def _text(value: object) -> str:
    return "" if value is None else str(value)[:MESSAGE_MAX_CHARS]
