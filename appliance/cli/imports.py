"""Imports that leave out what costs much at a start and is worth nothing to us.

Collections: importing makes some hundred thousand objects that live as long as the process. The
collector looks through all of them again and again while they come to be (0.3 of 1.1 CPU seconds
on the machine of docs/BENCHMARKS.md) and never finds anything. Afterwards they are frozen, so that
no later collection of a daemon that runs for months looks at them either.

Root certificates: aiohttp reads all of the system's when it is imported, twice, for clients that
speak TLS. Ours speaks to a unix socket, and what leaves the machine goes through egress, which
makes its own context. So aiohttp's has no roots: 50 ms less, and used by mistake it trusts nobody.

Plugins of pydantic: it searches every installed package for one. We have none, and nothing that
happens to be installed beside us shall see what we validate. This one stays set, for models that
are built later.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_ROOTS = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Where OpenSSL looks for certificates instead of the system's place."""


@contextmanager
def frugal() -> Iterator[None]:
    """Import inside of this, before there are threads."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    told = {name: os.environ.get(name) for name in _ROOTS}
    os.environ.update(dict.fromkeys(_ROOTS, os.devnull))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name, value in told.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
