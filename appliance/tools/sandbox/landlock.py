"""Landlock and a small seccomp filter, for where bubblewrap cannot run.

Landlock (kernel 5.13) takes rights away from the calling process and its children: files by
allow-list, TCP from ABI 4, signals and abstract sockets to the outside from ABI 6. It hides
nothing and does not know UDP, raw or netlink sockets; the seccomp filter closes those, and the
calls that reach into other processes or the kernel. Weaker than bubblewrap all the same, and
`appliance doctor` says so: Landlock has no right for changing modes, times and attributes, so what
belongs to the daemon's user can be `chmod`ed by name (refusing chmod altogether would break git),
and `stat` shows that files and processes are there.

Numbers are from linux/landlock.h, linux/seccomp.h and the x86-64 and arm64 system call tables.
Standard library only: applied by the runner's child before it starts the tool.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_PR_CAPBSET_DROP, _CAPABILITIES = 24, 64
_CAPSET = {"x86_64": 126, "aarch64": 91}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 1, 22, 38, 36

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEV
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Rule(NamedTuple):
    """A path (or an open descriptor of one) and whether it may be written below."""

    path: str | int
    writes: bool


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(version, 0)


def restrict(rules: Iterable[Rule], network: bool = False) -> None:
    """Take everything from this process but the rules. Irrevocable; raises OSError.

    A rule for a path that does not exist is left out.
    """
    version = abi()
    if not version:
        raise OSError("this kernel has no Landlock")
    everything = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    if version >= 5:
        everything = (1 << 16) - 1
    attribute = struct.pack("=QQQ", everything, 0 if network else 3, 3)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(_CREATE_RULESET, attribute, ctypes.c_size_t(size), 0)
    for rule in rules:
        _add(ruleset, rule, everything)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def forbid_system_calls(network: bool = False) -> None:
    """A filter that answers EPERM to sockets, and to calls that trace, mount, make namespaces,
    load programs into the kernel, touch its keys or set the limits of other processes.

    Unix sockets are refused even with `network`, because Landlock does not stop a connection to
    one by its path, and the daemon's is such a path. `socketpair` and pipes stay.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(f"no system call table for {machine}")
    audit_arch, socket_number, others = _ARCHITECTURES[machine]
    program = _filter(audit_arch, socket_number, network, others, _OWN_ONLY[machine])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(head))


def drop_capabilities() -> None:
    """Give up every capability, now and for whatever is executed; matters to a daemon of root."""
    for number in range(_CAPABILITIES):
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # fails above the kernel's last one
    _call(_CAPSET[platform.machine()], struct.pack("=Ii", 0x20080522, 0), bytes(24))


def die_with_parent(signal_number: int) -> None:
    """The kernel sends this signal when our parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def leave_keyring() -> None:
    """Take an empty session key ring in place of the inherited one: no namespace hides that, and
    who has it can read its keys. Harmless where the kernel has no keys."""
    number = _KEYCTL.get(platform.machine())
    if number is not None:
        _libc.syscall(number, _JOIN_SESSION_KEYRING, None)


def adopt_orphans() -> None:
    """Descendants whose parent dies become our children instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _add(ruleset: int, rule: Rule, everything: int) -> None:
    fd, ours = rule.path, False
    if isinstance(fd, str):
        try:
            fd, ours = os.open(fd, os.O_PATH | os.O_CLOEXEC), True
        except OSError:
            return
    access = everything if rule.writes else READ
    if not os.path.isdir(f"/proc/self/fd/{fd}"):
        access &= _FILE_RIGHTS
    try:
        below = struct.pack("=Qi", access & everything, fd)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, below, 0)
    finally:
        if ours:
            os.close(fd)


_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | 1
_AF_UNIX = 1

_X86_64: Sequence[int] = (
    101, 165, 166, 155, 272, 308, 310, 311, 321, 298, 248, 249, 250, 323, 425, 426, 427,
    428, 429, 430, 432, 442, 161, 175, 313, 246, 320, 169, 304, 438, 29, 64, 68, 240,
)  # fmt: skip
"""ptrace mount umount2 pivot_root unshare setns process_vm_readv process_vm_writev bpf
perf_event_open add_key request_key keyctl userfaultfd io_uring_setup io_uring_enter
io_uring_register open_tree move_mount fsopen fsmount mount_setattr chroot init_module
finit_module kexec_load kexec_file_load reboot open_by_handle_at pidfd_getfd
shmget semget msgget mq_open"""

_ARM64: Sequence[int] = (
    117, 40, 39, 41, 97, 268, 270, 271, 280, 241, 217, 218, 219, 282, 425, 426, 427,
    428, 429, 430, 432, 442, 51, 105, 273, 104, 294, 142, 265, 438, 194, 190, 186, 180,
)  # fmt: skip

_OWN_ONLY = {"x86_64": (302, 203, 144, 142, 314), "aarch64": (261, 122, 119, 118, 274)}
"""prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr: of any process of
the same user, the daemon among them, by the pid in their first argument; 0 is the caller."""

_ARCHITECTURES = {
    "x86_64": (0xC000003E, 41, _X86_64),
    "aarch64": (0xC00000B7, 198, _ARM64),
}
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION_KEYRING = 1


def _filter(
    audit_arch: int,
    socket_number: int,
    network: bool,
    others: Sequence[int],
    own_only: Sequence[int],
) -> list[tuple[int, int, int, int]]:
    """Lines of classic BPF over struct seccomp_data: number at 0, architecture at 4, the first
    argument at 16. A foreign architecture, and x32 numbers, are refused outright."""
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit_arch), (_RETURN, 0, 0, _EPERM)]
    lines += [(_LOAD, 0, 0, 0), (0x35, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]
    for number in others:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    for number in own_only:
        lines += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16), (_EQUAL, 0, 1, 0)]
        lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    if network:
        lines += [(_EQUAL, 0, 3, socket_number), (_LOAD, 0, 0, 16)]
        lines += [(_EQUAL, 0, 1, _AF_UNIX), (_RETURN, 0, 0, _EPERM)]
    else:
        lines += [(_EQUAL, 0, 1, socket_number), (_RETURN, 0, 0, _EPERM)]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, *arguments: object) -> None:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    padded += [ctypes.c_ulong(0)] * (4 - len(padded))
    if _libc.prctl(option, *padded) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
