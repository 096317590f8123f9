"""Run as a script: `launch.py PARENT_PID PROGRAM ARG…` dies with its parent, then is PROGRAM.

It also leaves no core. Linux keeps both through the exec. Stands
alone (no import of ours): it runs isolated, before anything else does.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent_pid, program, *arguments = sys.argv[1:]
    # A core file would hold prompts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent_pid):
        sys.exit("launch: the parent is gone already")
    try:
        os.execvp(program, [program, *arguments])
    except OSError as error:
        sys.exit(f"launch: {program}: {error.strerror}")


if __name__ == "__main__":
    main()
