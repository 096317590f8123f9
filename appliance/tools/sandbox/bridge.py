"""Carries what a contained process says at a port of its own to the daemon's gate, and back.

bubblewrap gives a process an empty network. To give it one way out and no other, a helper enters
that network before the program starts (as owner of the namespace it may), opens a listening port
there, and goes on living outside of everything else: it is not seen by the program, shares no
files with it, and does nothing but carry bytes to a unix socket that the program itself cannot
reach. It ends with the process that it serves.

    the program ─ 127.0.0.1:3128 ─▶ the bridge ─ key, then the bytes ─▶ the daemon's gate

Standard library only, as all that runs between a fork and the tool.
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
from typing import NoReturn

from appliance.tools.sandbox import landlock

PORT = 3128
CONNECTIONS_MAX = 64
PIECE_BYTES = 64 << 10

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701


def environment() -> dict[str, str]:
    """What tells a program of the way out. What it runs itself, in there, it reaches as ever."""
    address = f"http://127.0.0.1:{PORT}"
    here = "localhost,127.0.0.1,::1"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return {**dict.fromkeys(names, address), "no_proxy": here, "NO_PROXY": here}


def attach(gate: str, key: str) -> tuple[int, int]:
    """Fork the bridge for the process that will become bubblewrap. Returns two descriptors for
    it: `--info-fd`, where it tells of its child, and `--block-fd`, where it waits for the bridge.
    """
    info_read, info_write = os.pipe()
    block_read, block_write = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        try:
            _keep_only(info_read, block_write)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            _serve(parent, info_read, block_write, gate, key)
        except BaseException as error:  # the wall of the child; without a bridge nothing runs
            os.write(2, f"the sandbox's way out could not be opened: {error}\n".encode())
            os.kill(parent, signal.SIGKILL)
        os._exit(1)
    os.close(info_read)
    os.close(block_write)
    for fd in (info_write, block_read):
        os.set_inheritable(fd, True)
    return info_write, block_read


def _keep_only(*fds: int) -> None:
    """Close all that was inherited but the standard three: among it are locks of the runner."""
    first = 3
    for fd in sorted(fds):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _serve(parent: int, info_fd: int, block_fd: int, gate: str, key: str) -> NoReturn:
    listener = _listen_in(_child_pid(info_fd))
    landlock.die_with_parent(signal.SIGKILL)  # after entering: new credentials forget it
    if os.getppid() != parent:
        os._exit(0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(block_fd, b"!")
    os.close(block_fd)
    _carry(listener, gate, key.encode() + b"\n")


def _child_pid(info_fd: int) -> int:
    said = b""
    while b"}" not in said:
        piece = os.read(info_fd, 4096)
        if not piece:
            raise OSError("bubblewrap ended before it had a child")
        said += piece
    os.close(info_fd)
    return int(json.loads(said)["child-pid"])


def _listen_in(pid: int) -> socket.socket:
    """A listening socket in the network of another process. A socket stays in the network that it
    was made in; the process that made it may live anywhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    owner = fcntl.ioctl(network, _NS_GET_USERNS)
    # EINVAL: the owner is the namespace we are in, as where root needs no other.
    for fd, kind, harmless in ((owner, _CLONE_NEWUSER, 22), (network, _CLONE_NEWNET, 0)):
        if libc.setns(fd, kind) and ctypes.get_errno() != harmless:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.close(fd)
    listener = socket.socket()
    listener.bind(("0.0.0.0", PORT))  # in there, everything is the loopback
    listener.listen(CONNECTIONS_MAX)
    return listener


class _Way:
    """One direction of a connection: what was read of `source` and not yet written to `sink`."""

    def __init__(self, source: socket.socket, sink: socket.socket, held: bytes = b"") -> None:
        self.source, self.sink, self.held = source, sink, held
        self.is_over = False

    def move(self, ready: dict[int, int]) -> None:
        """Raises OSError when either side is gone."""
        if not self.held and ready.get(self.source.fileno(), 0) & ~select.POLLOUT:
            self.held = self.source.recv(PIECE_BYTES)
            if not self.held:
                self.is_over = True
                self.sink.shutdown(socket.SHUT_WR)
        if self.held and ready.get(self.sink.fileno(), 0) & ~select.POLLIN:
            self.held = self.held[self.sink.send(self.held) :]

    def waits(self) -> tuple[int, int]:
        """The descriptor it waits for, and for what."""
        if self.held:
            return self.sink.fileno(), select.POLLOUT
        return self.source.fileno(), select.POLLIN


def _carry(listener: socket.socket, gate: str, greeting: bytes) -> NoReturn:
    pairs: list[tuple[_Way, _Way]] = []
    listener.setblocking(False)
    while True:
        wanted = {listener.fileno(): select.POLLIN} if len(pairs) < CONNECTIONS_MAX else {}
        for pair in pairs:
            for way in pair:
                if not way.is_over:
                    fd, what = way.waits()
                    wanted[fd] = wanted.get(fd, 0) | what
        poll = select.poll()
        for fd, what in wanted.items():
            poll.register(fd, what)
        ready = dict(poll.poll())
        pairs = [pair for pair in pairs if _moved(pair, ready)]
        if listener.fileno() in ready:
            pairs += _accepted(listener, gate, greeting)


def _moved(pair: tuple[_Way, _Way], ready: dict[int, int]) -> bool:
    """Move what is ready; False once the connection is over."""
    try:
        for way in pair:
            if not way.is_over:
                way.move(ready)
        is_over = all(way.is_over for way in pair)
    except BlockingIOError:
        is_over = False
    except OSError:
        is_over = True
    if is_over:
        pair[0].source.close()
        pair[0].sink.close()
    return not is_over


def _accepted(listener: socket.socket, gate: str, greeting: bytes) -> list[tuple[_Way, _Way]]:
    """The new connection, or none: a daemon that is away is a connection that closes."""
    try:
        inside, _ = listener.accept()
    except OSError:
        return []
    outside = socket.socket(socket.AF_UNIX)
    try:
        outside.connect(gate)
    except OSError:
        inside.close()
        outside.close()
        return []
    inside.setblocking(False)
    outside.setblocking(False)
    return [(_Way(inside, outside, greeting), _Way(outside, inside))]
