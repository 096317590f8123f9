"""A child process that is ours: own process group, dies with us, every line it says is kept.

Used for every model process (the llama.cpp worker, vLLM). Three decisions worth their why:

* The parent-death signal is set by a small launcher (`launch.py`, run as a script) which then
  execs the program, and not by a `preexec_fn`: running Python between fork and exec in a process
  with threads can deadlock. The pid stays the same through the exec.
* The child is a session of its own, so that killing its group also ends what it started itself.
  `stop` signals the group: TERM, wait, KILL.
* The environment is an allow-list. A worker parses files from strangers; it must not hold an API
  key while it does (a Linux process's environment is readable in its memory).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOG_TAIL_LINES = 60
"""Lines kept for error reports: a llama.cpp load failure fits in the last thirty."""

MAX_LINE_BYTES = 16_384
"""A longer line is cut in pieces: a child without newlines must not fill our memory."""

_ALLOWED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("LD_LIBRARY_PATH", "XDG_RUNTIME_DIR"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES"),
        *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    }
)
_ALLOWED_PREFIXES = ("LC_", "GGML_")
_LAUNCHER = Path(__file__).with_name("launch.py")


def clean_environment(
    source: Mapping[str, str], extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a child may see of `source` (an allow-list, never a secret), and `extra` over it."""
    kept = {
        name: value
        for name, value in source.items()
        if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }
    return kept | dict(extra or {})


class ChildProcess:
    """One supervised child. `start` once, then `wait` or `stop`; `stop` is safe to repeat.

    `on_line` gets each line of stdout and stderr, without its newline, in the order read.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self._argv = tuple(argv)
        self._environment = dict(environment)
        self._pass_fds = tuple(pass_fds)
        self._cwd = cwd
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal, as `subprocess` has it."""
        return self._process.returncode if self._process is not None else None

    @property
    def log_tail(self) -> str:
        """The last lines it wrote, joined by newlines."""
        return "\n".join(self._tail)

    async def start(self) -> None:
        """Start it; raises `OSError` where the program cannot be run at all."""
        assert self._process is None, "a child is started once"
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_LAUNCHER),
            str(os.getpid()),
            *self._argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            pass_fds=self._pass_fds,
            cwd=self._cwd,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        assert self._process.stdout is not None
        # The pump is awaited by `wait`, which every owner calls: it has a parent.
        self._pump = asyncio.create_task(self._read_lines(self._process.stdout))

    async def wait(self) -> int:
        """Return its exit status once it is gone and its last line is read."""
        assert self._process is not None
        status = await self._process.wait()
        if self._pump is not None:
            # A grandchild that inherited the pipe may keep it open; its lines are not worth
            # waiting for.
            await asyncio.wait({self._pump}, timeout=1.0)
            self._pump.cancel()
        return status

    async def stop(self, grace_s: float) -> int | None:
        """TERM the group, wait up to `grace_s`, KILL what is left. None if never started."""
        if self._process is None:
            return None
        if self._process.returncode is None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL the whole group at once (also one that is stopped)."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Signal the group; nothing happens when it is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def _read_lines(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                raw = end.partial
                if not raw:
                    return
            except asyncio.LimitOverrunError:
                raw = await stream.read(MAX_LINE_BYTES)
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._tail.append(line)
                if self._on_line is not None:
                    self._on_line(line)
