"""What a provider says is left of its rate limits: read from response headers, kept until reset.

Pure. A bucket refills continuously, but only its state at the time of the answer is said; so what
is `remaining` counts until `reset`, and afterwards nothing is known again. Absence is unknown,
never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

PREFIX = "anthropic-ratelimit-"
KINDS = ("requests", "tokens", "input-tokens", "output-tokens")
MAX_RESET_S = 3_600.0
"""A reset further away than this is a wrong clock, theirs or ours."""

HELD_S_MAX = 60.0
"""However long a 429 says to wait, after a minute one request finds out whether it still holds: a
provider that is back must not stay unused because of a word it said in trouble."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit. `resets_s` is on the monotonic clock."""

    limit: int | None
    remaining: int
    resets_s: float


@dataclass(frozen=True, slots=True)
class Rates:
    """All limits a provider has told of, by kind; `held_until_s` after a 429 with a wait."""

    buckets: Mapping[str, Bucket] = field(default_factory=dict)
    held_until_s: float = 0.0

    def tokens_left(self, now_s: float) -> int | None:
        """Tokens that may still be sent; 0 while told to wait or out of requests; None unknown."""
        if now_s < self.held_until_s:
            return 0
        fresh = {kind: b for kind, b in self.buckets.items() if now_s < b.resets_s}
        requests = fresh.pop("requests", None)
        if requests is not None and requests.remaining <= 0:
            return 0
        said = [fresh[kind].remaining for kind in ("tokens", "input-tokens") if kind in fresh]
        return min(said, default=None)


def observed(
    rates: Rates, headers: Mapping[str, str], status: int, now_s: float, wall_ms: int
) -> Rates:
    """The rates after an answer with these headers (names in lower case)."""
    buckets = dict(rates.buckets)
    for kind in KINDS:
        bucket = _bucket(headers, kind, now_s, wall_ms)
        if bucket is not None:
            buckets[kind] = bucket
    held = rates.held_until_s
    wait_s = retry_after_s(headers)
    if status == 429 and wait_s is not None:
        held = max(held, now_s + min(wait_s, HELD_S_MAX))
    return Rates(buckets, held)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, else `retry-after` in seconds or as a
    date, else until the limit that is used up is reset. Times are told by the server's own clock
    (`date`), so that ours need not agree with it."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            value = float(headers[name]) / scale
        except (KeyError, ValueError):
            continue
        if 0 <= value < float("inf"):
            return value
    said = _date(headers.get("date"))
    if said is None:
        return None
    until = [_date(headers.get("retry-after")), *_used_up(headers)]
    return next((max((at - said).total_seconds(), 0.0) for at in until if at is not None), None)


def _used_up(headers: Mapping[str, str]) -> list[datetime]:
    """When the limits of which nothing remains are reset, the latest first."""
    resets = [
        _moment(headers.get(f"{PREFIX}{kind}-reset"))
        for kind in KINDS
        if headers.get(f"{PREFIX}{kind}-remaining") == "0"
    ]
    return sorted((at for at in resets if at is not None), reverse=True)


def _date(text: str | None) -> datetime | None:
    try:
        at = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _moment(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _bucket(headers: Mapping[str, str], kind: str, now_s: float, wall_ms: int) -> Bucket | None:
    try:
        remaining = int(headers[f"{PREFIX}{kind}-remaining"])
    except (KeyError, ValueError):
        return None
    reset = _moment(headers.get(f"{PREFIX}{kind}-reset"))
    if reset is None:
        return None
    left_s = reset.timestamp() - wall_ms / 1000
    limit = headers.get(f"{PREFIX}{kind}-limit", "")
    return Bucket(
        int(limit) if limit.isascii() and limit.isdigit() else None,
        max(remaining, 0),
        now_s + min(max(left_s, 0.0), MAX_RESET_S),
    )
