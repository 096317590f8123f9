"""What NVML showed after loads, kept to correct the next estimates. A value with a pure update.

Two things no formula gives. The *context*: what a process holds on a card besides its buffers
(CUDA's primary context, cuBLAS): it depends on card, driver and library, so it is learnt per card
as `NVML used by the process - (weights + KV + state + compute + pool)`. And the *excess* of one
model in one configuration: scratch that only the first full batch reveals, learnt per key. The
largest of what was seen counts: a ledger must not be optimistic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from appliance.gpu.types import HOST, MIB, Estimate, Term

DEFAULT_CONTEXT_BYTES = 512 * MIB
"""Until measured: "about 500 MiB per card, grows with the SM count" (llama.cpp PR 23137)."""
MAX_KEYS = 1024
"""Measured configurations kept; the oldest go first."""
MARGIN = 0.01
"""A measured total is promised with one per cent on top."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`contexts`: bytes by card UUID. `measured`: bytes by (key, UUID), key as `Oracle.key` has it.

    The caller drops it when driver or library change: `environment` says for which it holds."""

    environment: str = ""
    contexts: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """For a file; `from_json` reads it back."""
        return {
            "environment": self.environment,
            "contexts": dict(self.contexts),
            "measured": [[key, uuid, size] for (key, uuid), size in self.measured.items()],
        }

    @staticmethod
    def from_json(body: Mapping[str, Any], environment: str) -> Calibration:
        """What was kept, or nothing when it was learnt with another driver or library."""
        if body.get("environment") != environment:
            return Calibration(environment)
        measured = {(key, uuid): int(size) for key, uuid, size in body["measured"]}
        return Calibration(environment, dict(body["contexts"]), measured)

    def context_bytes(self, uuid: str) -> int:
        return self.contexts.get(uuid, DEFAULT_CONTEXT_BYTES)

    def corrected(self, key: str, estimate: Estimate) -> Estimate:
        """The estimate raised where this very load was seen to take more (plus one per cent)."""
        terms = {uuid: dict(of) for uuid, of in estimate.terms.items()}
        is_measured = False
        for uuid, on in terms.items():
            seen = self.measured.get((key, uuid))
            if seen is None:
                continue
            is_measured = True
            wanted = seen + int(seen * MARGIN)
            predicted = sum(on.values())
            if wanted > predicted:
                on[Term.POOL] = on.get(Term.POOL, 0) + wanted - predicted
        if not is_measured:
            return estimate
        return Estimate(terms, "measured", estimate.notes)

    def after_load(self, key: str, estimate: Estimate, seen: Mapping[str, int]) -> Calibration:
        """What we know after NVML showed `seen` bytes by card for the process of this load."""
        contexts = dict(self.contexts)
        measured = {k: size for k, size in self.measured.items() if k[0] != key}
        for uuid, used in seen.items():
            if uuid == HOST:
                continue
            before = self.measured.get((key, uuid), 0)
            measured[key, uuid] = max(used, before)
            buffers = estimate.bytes_on(uuid) - estimate.terms[uuid].get(Term.CONTEXT, 0)
            rest = used - buffers
            if uuid not in contexts or rest > contexts[uuid]:
                contexts[uuid] = max(rest, 0)
        while len(measured) > MAX_KEYS:
            del measured[next(iter(measured))]
        return replace(self, contexts=contexts, measured=measured)
