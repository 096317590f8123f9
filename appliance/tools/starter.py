"""Starts runners without the start of a Python: one warm process that forks them.

    python -I -S starter.py <calls folder>       a socket of packets is its standard input

It is the runner's program, loaded and waiting. A packet names a call; it forks, and the child, in a
session of its own, is that call's runner as if it had been executed. The answer carries a pidfd of
it. The starter ends when the daemon's side of the socket closes; the runners it made go on, and the
next daemon adopts them like any other.

It is a convenience: without one, or when it is gone, runners are started by path, 30 ms slower.
"""

import os
import select
import signal
import socket
import sys

if __name__ == "__main__":  # run by path: make our package importable, and nothing else
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from appliance.tools import files, runner  # noqa: F401  (files: loaded before the forks)

NAME_MAX_BYTES = 512


def main(folder: str) -> None:
    asking = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, runner.ignore_but_wake)
    poll = select.poll()
    poll.register(asking, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if wake_read in ready:
            runner.drain(wake_read)
            _reap()
        if asking.fileno() in ready:
            name = asking.recv(NAME_MAX_BYTES).decode()
            if not name:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for fd in (asking.fileno(), wake_read, wake_write):
                    os.close(fd)
                _become_runner(folder, name)
            pid_fd = os.pidfd_open(pid)  # nobody reaps it before we do
            socket.send_fds(asking, [b"!"], [pid_fd])
            os.close(pid_fd)


def _become_runner(folder: str, name: str) -> None:
    """In the child: never returns."""
    code = 1
    try:
        os.setsid()
        code = runner.main(folder, name)
    finally:
        os._exit(code)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


if __name__ == "__main__":
    main(sys.argv[1])
