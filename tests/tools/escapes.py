"""Ways out of a sandbox, one a line: what a hostile command would try.

Each is a shell script. It has escaped if its output holds `ESCAPED` or the canary, or if the host
shows it afterwards (`Host.damage`). Written with `{name}` for what the host offers: `secret` (a
file with the canary), `outside` (its folder), `socket` (a listening unix socket), `port`,
`udp_port`, `victim` (a process with the canary in its environment), `calls` (the folder of detached
calls), `mark` (a unique word for files that must not appear on the host).

None may harm the machine where it does succeed: kernel settings are written with the value that
they already have.
"""

from __future__ import annotations

_PY = "/usr/bin/python3 -c"


def _python(code: str) -> str:
    return f"{_PY} '{code}' && echo ESCAPED"


def _syscall(*arguments: object) -> str:
    """A raw system call; escaped if the kernel lets it through."""
    listed = ", ".join(str(argument) for argument in arguments)
    return _python(f"import ctypes, os, sys; sys.exit(ctypes.CDLL(None).syscall({listed}) < 0)")


ESCAPES: dict[str, str] = {
    # reading what is outside
    "read by absolute path": "cat {secret}",
    "read by dots": "cat $(printf '../%.0s' 1 2 3 4 5 6 7 8 9){secret}",
    "read through a link": "ln -s {secret} link; cat link",
    "read through a folder link": "ln -s {outside} folder; cat folder/secret",
    "read through a hard link": "ln {secret} hard && cat hard",
    "read by /proc/self/root": "cat /proc/self/root{secret}",
    "read by /proc/1/root": "cat /proc/1/root{secret}",
    "read by the victim's root": "cat /proc/{victim}/root{secret}",
    "read the victim's environment": "tr '\\0' '\\n' < /proc/{victim}/environ",
    "read the victim's command line": "grep -a canary /proc/{victim}/cmdline && echo ESCAPED",
    "read the victim's descriptors": "ls -l /proc/{victim}/fd && echo ESCAPED",
    "read the victim's memory map": "cat /proc/{victim}/maps && echo ESCAPED",
    "read by the parent's working folder": "cat /proc/$PPID/cwd{secret}",
    "open before and read after": "exec 3<{secret}; cat <&3",
    "find it": "find / -name secret -exec cat {{}} + 2>/dev/null",
    "archive it": "tar cf - {outside} 2>/dev/null | grep -a canary",
    "read password hashes": "grep ^root: /etc/shadow && echo ESCAPED",
    "list the home of root": 'test -n "$(ls -A /root)" && echo ESCAPED',
    "read inherited descriptors": "for n in 3 4 5 6 7 8 9; do cat /proc/self/fd/$n/secret; done",
    "read what another session wrote": "cat {sibling}; cat ../*/diary",
    "read through any root there is": "for p in /proc/[0-9]*; do cat $p/root{secret}; done",
    "read through any working folder": "for p in /proc/[0-9]*; do cat $p/cwd/secret; done",
    "read the daemon's key ring": _python(
        "import ctypes; libc = ctypes.CDLL(None); text = ctypes.create_string_buffer(64);"
        ' key = libc.syscall({request_key}, b"user", b"{mark}", 0, 0);'
        " assert libc.syscall({keyctl}, 11, key, text, 64) > 0; print(text.value)"
    ),
    "read kernel memory": "head -c 1 /proc/kcore && echo ESCAPED",
    # writing what is outside
    "write by absolute path": "echo x > {outside}/{mark}",
    "write by dots": "echo x > $(printf '../%.0s' 1 2 3 4 5 6 7 8 9){outside}/{mark}",
    "write through a link": "ln -s {outside} out; echo x > out/{mark}",
    "write through a hard link": "ln {secret} h && echo x > h",
    "append to the secret": "echo x >> {secret}",
    "truncate the secret": "truncate -s 0 {secret}",
    "remove the secret": "rm -f {secret}",
    "change its mode": "chmod 777 {secret} && echo ESCAPED",
    "change its owner": "chown 1 {secret} && echo ESCAPED",
    "move a file out": "echo x > {mark}; mv {mark} {outside}/",
    "write below /etc": "echo x > /etc/{mark}",
    "write below /usr": "echo x > /usr/{mark}",
    "write below /var/tmp": "echo x > /var/tmp/{mark}",
    "write below /tmp": "echo x > /tmp/{mark}",
    "write shared memory": "echo x > /dev/shm/{mark}",
    "forge a result": "echo '{{}}' > {calls}/forged.done",
    "plant a configuration": "mkdir -p {outside}/.config",
    "write through the victim": "echo x > /proc/{victim}/root{outside}/{mark}",
    "move its workspace away": 'mv "$PWD/.." "$PWD/../../moved" && echo ESCAPED',
    "put a link in place of its workspace": 'w=$(dirname "$PWD"); rmdir "$w" 2>/dev/null;'
    ' mv "$w" "$w.old" && ln -s {outside} "$w" && echo ESCAPED',
    "make a disk node": "mknod disk b 254 0 && head -c 1 disk && echo ESCAPED",
    "make a memory node": "mknod memory c 1 1 && head -c 1 memory && echo ESCAPED",
    # mounts and namespaces
    "bind mount": "mkdir m; mount --bind / m && cat m{secret}",
    "mount a tmpfs over the system": "mount -t tmpfs none /usr && echo ESCAPED",
    "remount the system writable": "mount -o remount,rw,bind /usr && echo x > /usr/{mark}",
    "unmount": "umount -l /usr && echo ESCAPED",
    "new user and mount namespace": "unshare -Urm sh -c 'mount -t tmpfs none /usr && echo ESCAPED'",
    "change root": "chroot /proc/1/root cat {secret}",
    "enter the victim's namespaces": "nsenter -t {victim} -a cat {secret}",
    "open by handle": _syscall(304, -100, 'b"\\0" * 16', 0),
    "open a mount tree": _syscall(428, -100, 'b"/"', 1),
    # network and sockets
    "connect to the daemon's socket": _python(
        'import socket; s = socket.socket(socket.AF_UNIX); s.connect("{socket}")'
    ),
    "connect to an abstract socket": _python(
        'import socket; s = socket.socket(socket.AF_UNIX); s.connect("\\0{mark}")'
    ),
    "TCP to the host": _python('import socket; socket.create_connection(("127.0.0.1", {port}), 1)'),
    "TCP over IPv6": _python('import socket; socket.create_connection(("::1", {port}), 1)'),
    "TCP to the world": _python('import socket; socket.create_connection(("1.1.1.1", 53), 1)'),
    "UDP to the host": _python(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        ' s.sendto(b"x", ("127.0.0.1", {udp_port}))'
    ).replace(" && echo ESCAPED", ""),
    "TCP from the shell": "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port} && echo ESCAPED'",
    "packet socket": _python(
        'import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))'
    ),
    "host's interfaces": 'test -n "$(ls /sys/class/net)" && echo ESCAPED',
    "vsock to the hypervisor": _python(
        "import socket; s = socket.socket(socket.AF_VSOCK); s.settimeout(1); s.connect((2, 1))"
    ),
    "the controlling terminal": "exec 3<>/dev/tty && echo ESCAPED",
    "push into a terminal": _python(
        'import fcntl, glob; [fcntl.ioctl(open(p), 0x5412, b"x")'
        ' for p in glob.glob("/dev/pts/[0-9]*")]'
        " or exit(1)"
    ),
    "the session's bus and display": "ls /run/dbus /run/user /run/systemd /tmp/.X11-unix"
    " 2>/dev/null | grep . && echo ESCAPED",
    # other processes
    "see the victim": "kill -0 {victim} && echo ESCAPED",
    "kill the victim": "kill -9 {victim}",
    "kill everything": "kill -0 {victim} || kill -9 -1",
    "kill its runner": "kill -9 $PPID",
    "trace the victim": _syscall(101, 16, "{victim}", 0, 0),
    "read the victim's memory": _python('open("/proc/{victim}/mem", "rb").seek(4096)'),
    "limit what the victim may open": _python(
        "import resource as r; r.prlimit({victim}, r.RLIMIT_NOFILE, (64, 64))"
    ),
    "slow the victim down": _python("import os; os.setpriority(os.PRIO_PROCESS, {victim}, 19)"),
    "pin the victim to a core": _python("import os; os.sched_setaffinity({victim}, [0])"),
    "give the victim another scheduler": _python(
        "import os; os.sched_setscheduler({victim}, os.SCHED_IDLE, os.sched_param(0))"
    ),
    "signal the victim by descriptor": _python(
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open({victim}), signal.SIGCONT)"
    ),
    "compare itself with the victim": _syscall("{kcmp}", "os.getpid()", "{victim}", 0, 0, 0),
    "take the victim's descriptors": _python(
        "import os, ctypes; fd = os.pidfd_open({victim});"
        " assert ctypes.CDLL(None).syscall(438, fd, 0, 0) >= 0"
    ),
    "outlive the call": "setsid nohup sleep 98765 >/dev/null 2>&1 & sleep 0.1",
    "outlive the call by two forks": "(setsid sh -c 'sleep 98765 & disown' &) ; sleep 0.1",
    # the kernel and devices
    "set the host name": 'hostname {mark} && test "$(cat /proc/sys/kernel/hostname)" = x',
    "set the clock": _python("import time; time.clock_settime(0, time.time())"),
    "change a kernel setting": "f=/proc/sys/vm/swappiness; cat $f > v; cat v > $f && echo ESCAPED",
    "set the core pattern": "f=/proc/sys/kernel/core_pattern; cat $f > v; cat v > $f && "
    "echo ESCAPED",
    "read a disk": "cat /dev/vd* /dev/sd* /dev/nvme* 2>/dev/null | head -c 1 | grep -a . && "
    "echo ESCAPED",
    "see a GPU": "ls /dev/nvidia* /dev/dri /dev/kfd 2>/dev/null | grep . && echo ESCAPED",
    "read kernel messages": "head -c 1 /dev/kmsg && echo ESCAPED",
    "load a program into the kernel": _syscall(321, 0, 'b"\\0" * 128', 128),
    "load a module": _syscall(175, 'b"x"', 1, 'b""'),
    "raise its own limits": _python("import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (-1, -1))"),
    "leave its cgroup": "echo $$ > /sys/fs/cgroup/cgroup.procs && echo ESCAPED",
    "shared memory of System V": _syscall(29, 0x5EC2E7, 4096, 0o1666).replace(
        " && echo ESCAPED", ""
    ),
    # protected parts of its own workspace
    "write what is read-only": "echo x > tests/{mark} && echo ESCAPED",
    "move what is read-only away": "mv tests elsewhere && echo ESCAPED",
    "replace what is read-only": "rm -rf tests; ln -s /tmp tests && echo ESCAPED",
    "write a read-only part that was absent": "mkdir -p absent/new && echo ESCAPED",
    "write a nested read-only part": "echo x > deep/er/{mark} && echo ESCAPED",
    "move the folder above a read-only part": "mv deep other && echo x > other/er/{mark} && "
    "echo ESCAPED",
    "read what is hidden": "cat hidden/secret",
    "move what is hidden": "mv hidden shown && cat shown/secret",
    # using everything up
    "fork without end": "b() {{ b | b & }}; b; sleep 0.3",
    "fill the disk with one file": "head -c 300000000 /dev/zero > big",
    "fill the disk with a hole": "truncate -s 200M hole && echo ESCAPED",
    "fill the disk too deep to be seen": "n=$(printf 'x%.0s' $(seq 200)); for i in $(seq 25); do "
    "mkdir $n; cd $n; done; for i in $(seq 100); do head -c 2000000 /dev/zero > $i; sleep 0.1; "
    "done; sleep 3; "
    "echo ESCAPED",
    "fork away for ever": "while :; do setsid sh -c 'setsid sleep 98765 &' & sleep 0.005; done",
    "fill memory": "tail /dev/zero",
    "run for ever": "while :; do :; done",
    "write output for ever": "yes canar",
}

PROTECTED_PARTS = ("tests", "absent", "deep", "hidden")
"""Attempts that name one of these run under a file policy, and only they: under Landlock a policy
forbids making files at the top, which would make the other attempts fail for the wrong reason."""

ALONE = (
    "kill everything",
    "kill its runner",
    "outlive the call",
    "outlive the call by two forks",
    "fork without end",
    "fill the disk with one file",
    "fill the disk too deep to be seen",
    "fork away for ever",
    "fill memory",
    "run for ever",
    "write output for ever",
)
"""Attempts that end or exhaust their call: each has one of its own, the others share some."""

KNOWN: dict[str, set[str]] = {"bubblewrap": set(), "landlock": {"change its mode"}}
"""What is known to succeed: Landlock has no right for chmod."""
