"""The ledger's totals in memory, for the router, which asks synchronously what is left.

The mirror informs, the ledger decides: it is asked before a call is routed, and a reservation is
checked against the caps where it is booked.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.clock import Clock
from appliance.config.schema import Config
from appliance.scheduler.amounts import Amounts
from appliance.scheduler.caps import Limit, Payer, day_of, limits, standing_limits
from appliance.store.ledger import Currency, Ledger, Scope, SpendRow, Total


class Mirror:
    """Totals of everybody, of each agent and of each session; by day, by month, and in all."""

    def __init__(self, config: Callable[[], Config], ledger: Ledger, clock: Clock) -> None:
        self._config = config
        self._ledger = ledger
        self._clock = clock
        self._totals: dict[tuple[Currency, Scope, str, str], Total] = {}
        self._warned: set[Limit] = set()

    @property
    def today(self) -> str:
        return day_of(self._clock.wall_ms())

    async def load(self) -> None:
        """Read what the ledger holds. A cap that is nearly reached already is not warned of."""
        day = self.today
        for currency in Currency:
            for scope, periods in (
                (Scope.ALL, (day, day[:7])),
                (Scope.AGENT, (day, day[:7])),
                (Scope.SESSION, ("",)),
            ):
                for period in periods:
                    found = await self._ledger.totals(currency, scope, period)
                    for name, total in found.items():
                        self._totals[currency, scope, name, period] = total
        for limit in standing_limits(self._config(), day):
            if self._share(limit) >= self._config().budgets.warn_share:
                self._warned.add(limit)

    def book(self, rows: tuple[SpendRow, ...], *, reserved: int, settled: Amounts) -> None:
        """Rows went into the ledger, with so much more promised and spent by each."""
        for row in rows:
            for scope, name in (
                (Scope.ALL, ""), (Scope.AGENT, row.agent), (Scope.SESSION, row.session)
            ):  # fmt: skip
                for period in ("", row.day[:7], row.day):
                    key = row.currency, scope, name, period
                    was = self._totals.get(key, Total(0, 0))
                    more = settled.get(row.currency, 0)
                    self._totals[key] = Total(was.reserved + reserved, was.settled + more)

    def left(self, currency: Currency, payer: Payer) -> int | None:
        """The least that any cap leaves; None: no cap."""
        found = limits(self._config(), payer, self.today)
        return min(
            (max(each.cap.limit - self.total(each).promised, 0)
             for each in found if each.currency is currency),
            default=None,
        )  # fmt: skip

    def total(self, limit: Limit) -> Total:
        cap = limit.cap
        key = limit.currency, cap.scope, cap.name, cap.period
        return self._totals.get(key, Total(0, 0))

    def newly_near(self, payer: Payer) -> list[Limit]:
        """The caps over this payer that are nearly reached; each is told once per period."""
        share = self._config().budgets.warn_share
        found = [
            limit
            for limit in limits(self._config(), payer, self.today)
            if limit not in self._warned and self._share(limit) >= share
        ]
        self._warned.update(found)
        return found

    def _share(self, limit: Limit) -> float:
        return self.total(limit).promised / limit.cap.limit if limit.cap.limit else 1.0
