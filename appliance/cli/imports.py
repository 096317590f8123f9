"""Imports without garbage collections in between: a third of what starting up costs otherwise.

Importing makes some hundred thousand objects that live as long as the process. The collector looks
through all of them again and again while they come to be (0.3 of 1.1 CPU seconds on the machine of
docs/BENCHMARKS.md) and never finds anything. Afterwards they are frozen, so that no later
collection of a daemon that runs for months looks at them either.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside of this."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
