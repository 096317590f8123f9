"""The one ledger: `reserve → settle → release` over integers, for bytes and for money alike.

An account is a named capacity: a device in bytes, a budget in micro-dollars, a provider's requests
per minute. A reservation holds amounts on one or more accounts under one id; it is promised before
the thing is done (a load, a Claude call), settled to what it really took, and released when that is
given back. Reserving never overdraws. Two things may: a settlement above the reservation (the
estimate was low, the bill is the bill) and a capacity that shrinks (another program took memory);
both leave `short` above zero on the account, and curing it is the owner's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class Ledger:
    """Integer accounts and the reservations on them. Synchronous; owned by one writer."""

    def __init__(self) -> None:
        self._capacity: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._held: dict[str, dict[str, int]] = {}
        self.changes = 0
        """How often anything changed: what was asked of it is true until the next time."""
        self.amends = 0
        """How often a reservation was settled or released: what each holder has is the same until
        the next time."""

    def set_capacity(self, account: str, capacity: int) -> None:
        """Opens the account or changes what it holds; never touches reservations."""
        self.changes += 1
        self._capacity[account] = capacity
        self._used.setdefault(account, 0)

    def close(self, account: str) -> None:
        """A capacity of zero, and the account is forgotten once nothing is held on it."""
        self.changes += 1
        if self._used.get(account, 0) == 0:
            self._capacity.pop(account, None)
            self._used.pop(account, None)
        elif account in self._capacity:
            self._capacity[account] = 0

    def reserve(self, holder: str, amounts: Mapping[str, int]) -> bool:
        """All amounts or none; False where an account lacks the room. One reservation a holder."""
        assert holder not in self._held, f"{holder} already holds a reservation"
        assert all(amount >= 0 for amount in amounts.values()), "amounts are not negative"
        if any(amount > self.free(account) for account, amount in amounts.items() if amount):
            return False
        self.changes += 1
        self._held[holder] = {account: amount for account, amount in amounts.items() if amount}
        for account, amount in self._held[holder].items():
            self._used[account] = self._used.get(account, 0) + amount
        return True

    def settle(self, holder: str, amounts: Mapping[str, int]) -> None:
        """Replaces what the holder reserved by what it really took."""
        self.release(holder)
        self._held[holder] = {account: amount for account, amount in amounts.items() if amount}
        for account, amount in self._held[holder].items():
            self._used[account] = self._used.get(account, 0) + amount

    def release(self, holder: str) -> None:
        """Gives everything back; an unknown holder is an error of ours."""
        self.changes += 1
        self.amends += 1
        for account, amount in self._held.pop(holder).items():
            self._used[account] -= amount

    def free(self, account: str) -> int:
        """What may still be reserved; never below zero."""
        return max(self._capacity.get(account, 0) - self._used.get(account, 0), 0)

    def short(self, account: str) -> int:
        """How far the account is overdrawn; zero in good order."""
        return max(self._used.get(account, 0) - self._capacity.get(account, 0), 0)

    def used(self, account: str) -> int:
        return self._used.get(account, 0)

    def capacity(self, account: str) -> int:
        return self._capacity.get(account, 0)

    def held_by(self, holder: str) -> Mapping[str, int]:
        return self._held.get(holder, {})

    def accounts(self) -> Iterator[str]:
        return iter(self._capacity)

    def all_free(self) -> dict[str, int]:
        used = self._used
        return {name: max(size - used[name], 0) for name, size in self._capacity.items()}

    def capacities(self) -> dict[str, int]:
        return dict(self._capacity)

    def overdrawn(self) -> list[str]:
        """The accounts that are short, in the order in which they were opened."""
        used = self._used
        return [name for name, size in self._capacity.items() if used[name] > size]


def settled(
    promised: Mapping[str, int], measured: Mapping[str, int], free: Mapping[str, int]
) -> dict[str, int]:
    """What an instance is charged once it was measured: never less than was promised, for it may
    not have used all of it yet; more where it takes more, and one per cent on top of that, but of
    no more than is free: a card is not overdrawn for a margin."""
    charged = dict(promised)
    for device, size in measured.items():
        known = promised.get(device, 0)
        with_margin = min(size + size // 100, known + free.get(device, 0))
        charged[device] = max(known, size, with_margin)
    return {device: size for device, size in charged.items() if size}
