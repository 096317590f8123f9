"""Embeddings mode: texts packed into as few decodes as fit, pooled by the model, L2-normalised."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from appliance.engines.llamacpp.binding import Batch, Context
from appliance.errors import EngineError


class VectorSink(Protocol):
    def embedded(self, request_id: str, vectors: list[list[float]]) -> None: ...


@dataclass(slots=True)
class _Job:
    request_id: str
    texts: Sequence[Sequence[int]]
    packs: deque[list[int]]
    vectors: list[list[float]] = field(default_factory=list)


class Embedder:
    """Runs the jobs one after the other, one decode a `step`, so that cancels are heard between.
    Takes the loop's place in a worker of embeddings mode."""

    def __init__(self, context: Context, *, sequences: int, sink: VectorSink) -> None:
        self._context = context
        self._batch = Batch(context.batch_tokens)
        self._sequences = sequences
        self._sink = sink
        self._jobs: deque[_Job] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def submit(self, request_id: str, texts: Sequence[Sequence[int]]) -> None:
        """Texts as tokens, each at most the batch long."""
        lengths = [len(text) for text in texts]
        packs = pack(lengths, max_tokens=self._context.batch_tokens, max_texts=self._sequences)
        self._jobs.append(_Job(request_id, texts, deque(packs)))

    def cancel(self, request_id: str) -> None:
        self._jobs = deque(job for job in self._jobs if job.request_id != request_id)

    def step(self) -> None:
        """At most one decode."""
        if not self._jobs:
            return
        job = self._jobs[0]
        if job.packs:
            texts = [job.texts[index] for index in job.packs.popleft()]
            job.vectors += self._vectors(texts)
        if not job.packs:
            self._jobs.popleft()
            self._sink.embedded(job.request_id, job.vectors)

    def rest(self) -> None:
        """Nothing is kept between texts."""

    def close(self) -> None:
        self._batch.close()

    def _vectors(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        self._batch.clear()
        for sequence, tokens in enumerate(texts):
            self._batch.add(sequence, 0, tokens, output=True)
        self._batch.mark_all_outputs()
        self._context.clear()
        status = self._context.decode(self._batch)
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status}")
        return [unit(self._context.pooled(sequence)) for sequence in range(len(texts))]


def pack(lengths: Sequence[int], *, max_tokens: int, max_texts: int) -> list[list[int]]:
    """Indices of texts, in order, cut into groups within both limits. Each length must fit."""
    groups: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not groups or length > room or len(groups[-1]) == max_texts:
            groups.append([])
            room = max_tokens
        groups[-1].append(index)
        room -= length
    return groups


def unit(vector: np.typing.NDArray[np.float32]) -> list[float]:
    """The vector at length one; a zero vector stays zero."""
    length = float(np.linalg.norm(vector))
    scaled: list[float] = (vector / length if length > 0 else vector).tolist()
    return scaled
