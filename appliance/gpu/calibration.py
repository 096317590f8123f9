"""What NVML showed after loads, kept to correct the next estimates. A value with a pure update.

Two things no formula gives. The *context*: what a process holds on a card besides its buffers
(CUDA's primary context, cuBLAS): it depends on card, driver and library, so it is learnt per card
as `NVML used by the process - (weights + KV + state + compute + pool)`. And the *excess* of one
model in one configuration: scratch that only the first full batch reveals, learnt per load. The
largest of what was seen counts: a ledger must not be optimistic.

A load is named by what decides its bytes (`load_key`): the model's content and all parameters but
the names of its cards, which are counted by position, so that what one card taught holds for its
neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from appliance.gpu.types import HOST, MIB, Estimate, ModelShape, PlanParams, Term

DEFAULT_CONTEXT_BYTES = 512 * MIB
"""Until measured: "about 500 MiB per card, grows with the SM count" (llama.cpp PR 23137)."""
MAX_KEYS = 1024
"""Measured configurations kept; the oldest go first."""
MARGIN = 0.01
"""A measured total is promised with one per cent on top."""


def load_key(model: ModelShape, plan: PlanParams) -> str:
    """The name of a load: content hash, a colon, and a hash of the parameters that count."""
    counted = json.dumps(asdict(replace(plan, devices=())), sort_keys=True, default=str)
    return f"{model.content_hash}:{hashlib.blake2b(counted.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """`contexts`: bytes by card UUID. `measured`: bytes by (`load_key`, position of the card).

    The caller drops it when driver or library change: `environment` says for which it holds."""

    environment: str = ""
    contexts: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """For a file; `from_json` reads it back."""
        return {
            "environment": self.environment,
            "contexts": dict(self.contexts),
            "measured": [[key, card, size] for (key, card), size in self.measured.items()],
        }

    @staticmethod
    def from_json(body: Mapping[str, Any], environment: str) -> Calibration:
        """What was kept, or nothing when it was learnt with another driver or library."""
        if body.get("environment") != environment:
            return Calibration(environment)
        measured = {(key, int(card)): int(size) for key, card, size in body["measured"]}
        return Calibration(environment, dict(body["contexts"]), measured)

    def context_bytes(self, uuid: str) -> int:
        return self.contexts.get(uuid, DEFAULT_CONTEXT_BYTES)

    def knows(self, model: ModelShape) -> bool:
        """A load of this model was measured, in whatever configuration."""
        return any(key.startswith(f"{model.content_hash}:") for key, _ in self.measured)

    def needed(self, key: str, card: int) -> int:
        """Bytes to promise on the card at this position of a load that was seen, else 0."""
        return with_margin(self.measured.get((key, card), 0))

    def corrected(self, key: str, estimate: Estimate) -> Estimate:
        """The estimate raised where this very load was seen to take more (plus one per cent)."""
        terms = {uuid: dict(of) for uuid, of in estimate.terms.items()}
        is_measured = False
        for card, uuid in enumerate(_cards(estimate)):
            if (key, card) not in self.measured:
                continue
            is_measured = True
            predicted = estimate.bytes_on(uuid)
            extra = self.needed(key, card) - predicted
            if extra > 0:
                terms[uuid][Term.POOL] = terms[uuid].get(Term.POOL, 0) + extra
        if not is_measured:
            return estimate
        return Estimate(terms, "measured", estimate.notes)

    def after_load(self, key: str, estimate: Estimate, seen: Mapping[str, int]) -> Calibration:
        """What we know after NVML showed `seen` bytes by card for the process of this load.

        Less than the buffers alone is no measurement: the driver has not shown all of it yet."""
        contexts = dict(self.contexts)
        measured = dict(self.measured)
        for card, uuid in enumerate(_cards(estimate)):
            used = seen.get(uuid, 0)
            rest = used - (estimate.bytes_on(uuid) - estimate.terms[uuid].get(Term.CONTEXT, 0))
            if used == 0 or rest < 0:
                continue
            measured[key, card] = max(used, measured.pop((key, card), 0))
            contexts[uuid] = max(rest, contexts.get(uuid, 0))
        return self._with(measured, contexts)

    def after_dry_run(self, key: str, answer: Estimate) -> Calibration:
        """What we know after the library itself told what this load will take."""
        measured = dict(self.measured)
        for card, uuid in enumerate(_cards(answer)):
            measured[key, card] = max(answer.bytes_on(uuid), measured.pop((key, card), 0))
        return self._with(measured, self.contexts)

    def _with(
        self, measured: dict[tuple[str, int], int], contexts: Mapping[str, int]
    ) -> Calibration:
        while len(measured) > MAX_KEYS:
            del measured[next(iter(measured))]
        return replace(self, contexts=contexts, measured=measured)


def with_margin(measured_bytes: int) -> int:
    """A measured size and the one per cent promised on top of it."""
    return measured_bytes + int(measured_bytes * MARGIN)


def _cards(estimate: Estimate) -> tuple[str, ...]:
    return tuple(uuid for uuid in estimate.terms if uuid != HOST)
