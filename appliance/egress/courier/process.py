"""The courier: one process beside the daemon that holds its connections to paid models.

    python -I -S process.py <tapes folder> <idle seconds>     (the daemon's control socket is stdin)

A provider bills a call by what it generates, and says what that was at the answer's end. A daemon
that is killed in mid-answer closes its sockets and never hears it. So the sockets of paid calls are
held here: the courier writes each answer to a *tape*, a file, as it passes it on, and when the
daemon is gone it goes on listening until the answer has ended. The next daemon reads the tape:
the bill in it is the provider's own, and the answer in it need not be paid for again.

It decides nothing and opens nothing. Every connection is one that the door resolved, checked and
opened (descriptors come over the control socket); TLS is done here, because its state cannot change
hands. Requests pass through memory; only answers, which hold no key, are written down.

Over a connection's own socket pair the daemon sends frames: a byte for the kind, four for the
length, then `T` the server's name, to start TLS (answered by one `+`, or the end); `D` bytes
to pass on; `X` a line of JSON with the tape's name, then a whole request; `C` nothing: close. What
comes back is what the server sent, as it came. The end of the pair without `C` means that the
daemon has died.

A tape is a line of JSON, then the answer's raw bytes. It is locked (`flock`) for as long as more
may come, and it exists before the first byte of its request leaves: no tape, nothing sent.

A connection may carry one call after another. It is closed when it was idle for long, and when the
server has closed it: a request that finds it so is not sent and has no tape, and the daemon may
send it over another.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
import ssl
import sys

CONTROL_MAX_BYTES = 4_096
PIECE_BYTES = 1 << 16
TAPE_MAX_BYTES = 64 << 20
"""Of one answer, framing included: far above any; a mad server shall not fill the disk."""
ALONE_S = 600.0
"""How long an answer may take to end once nobody listens; then it is cut."""


class Tape:
    """The file of one answer while it is written."""

    def __init__(self, folder: str, header: dict[str, object]) -> None:
        path = os.path.join(folder, f"{header['name']}.tape")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._bytes = 0
        self._head = b""
        self._tail = b""
        self._write(json.dumps({**header, "pid": os.getpid()}).encode() + b"\n")

    def add(self, piece: bytes) -> None:
        if b"\r\n\r\n" not in self._head:
            self._head += piece
        self._bytes += len(piece)
        self._tail = (self._tail + piece)[-7:]
        if self._bytes <= TAPE_MAX_BYTES:
            self._write(piece)

    def is_whole(self) -> bool:
        """Whether the answer has ended, as far as its framing shows. One that only the end of the
        connection ends is not whole before that."""
        head, found, _ = self._head.partition(b"\r\n\r\n")
        if not found:
            return False
        fields = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n")[1:])
        length = fields.get(b"content-length", b"").strip()
        if length.isdigit():
            return self._bytes >= len(head) + 4 + int(length)
        return (
            b"chunked" in fields.get(b"transfer-encoding", b"") and self._tail == b"\r\n0\r\n\r\n"
        )

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk: the call goes on, its tape ends here
            os.write(self._fd, data)


class Carried:
    """One connection, from the door's hand to its end."""

    def __init__(
        self, server: socket.socket, owner: socket.socket, folder: str, idle_s: float
    ) -> None:
        self._sockets = server, owner
        self._folder = folder
        self._idle_s = idle_s
        self._tape: Tape | None = None
        self._is_alone = False

    async def run(self) -> None:
        server_socket, owner_socket = self._sockets
        self._from_server, self._to_server = await asyncio.open_connection(sock=server_socket)
        self._from_owner, self._to_owner = await asyncio.open_connection(sock=owner_socket)
        self._listening = asyncio.ensure_future(self._listen())
        try:
            if await self._obey():
                return
            self._is_alone = True
            if self._tape is not None and not self._tape.is_whole():
                await asyncio.wait({self._listening}, timeout=ALONE_S)
        finally:
            self._listening.cancel()
            self._to_server.transport.abort()
            self._to_owner.transport.abort()
            if self._tape is not None:
                self._tape.close()

    async def _obey(self) -> bool:
        """Until it is to be closed (True) or until the daemon has died (False)."""
        while True:
            try:
                head = await self._next_head()
                if head is None:
                    return True
                payload = await self._from_owner.readexactly(int.from_bytes(head[1:], "big"))
            except (asyncio.IncompleteReadError, OSError):
                return False
            match head[:1]:
                case b"T":
                    await self._start_tls(payload.decode("ascii"))
                case b"D":
                    self._to_server.write(payload)
                case b"X":
                    line, _, request = payload.partition(b"\n")
                    if self._tape is not None:
                        if self._is_closed_there():
                            return True
                        self._tape.close()
                    self._tape = Tape(self._folder, json.loads(line))
                    self._to_server.write(request)
                case b"C":
                    return True

    async def _next_head(self) -> bytes | None:
        """Of the next frame; None when none has come for long after an answer has ended."""
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    return await self._from_owner.readexactly(5)
            except TimeoutError:
                if self._tape is not None and self._tape.is_whole():
                    return None

    def _is_closed_there(self) -> bool:
        """Whether the server has something to say between two calls: its end, or nothing good."""
        waiting = select.poll()
        waiting.register(self._to_server.get_extra_info("socket").fileno(), select.POLLIN)
        return self._listening.done() or bool(waiting.poll(0))

    async def _start_tls(self, server_name: str) -> None:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        await self._to_server.start_tls(context, server_hostname=server_name)
        self._to_owner.write(b"+")

    async def _listen(self) -> None:
        """What the server says: on tape first, then on to the daemon while there is one."""
        try:
            while piece := await self._from_server.read(PIECE_BYTES):
                if self._tape is not None:
                    self._tape.add(piece)
                if not self._is_alone:
                    with contextlib.suppress(OSError):
                        self._to_owner.write(piece)
                        await self._to_owner.drain()
                elif self._tape is not None and self._tape.is_whole():
                    return
        except OSError:
            pass
        with contextlib.suppress(OSError):
            self._to_owner.write_eof()


async def serve(control: socket.socket, folder: str, idle_s: float) -> None:
    """Until the daemon is gone and every call of it has ended."""
    loop = asyncio.get_running_loop()
    carried: set[asyncio.Task[None]] = set()
    is_left = asyncio.Event()

    def on_control() -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, CONTROL_MAX_BYTES, 2)
        except BlockingIOError:
            return
        if not data:
            loop.remove_reader(control)
            is_left.set()
            return
        server, owner = (socket.socket(fileno=each) for each in descriptors)
        task = loop.create_task(_carry(Carried(server, owner, folder, idle_s)))
        carried.add(task)
        task.add_done_callback(carried.discard)

    loop.add_signal_handler(signal.SIGTERM, os._exit, 0)
    control.setblocking(False)
    loop.add_reader(control, on_control)
    await is_left.wait()
    while carried:
        await asyncio.wait(carried)


async def _carry(carried: Carried) -> None:
    with contextlib.suppress(OSError, ssl.SSLError, ValueError):  # its end is told by the sockets'
        await carried.run()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=0) as control_socket:
        asyncio.run(serve(control_socket, sys.argv[1], float(sys.argv[2])))
