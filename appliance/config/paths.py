"""Where things lie: under one `--home`, in the system's places, or in the user's (XDG)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from appliance.config.machine import DaemonConfig

CONFIG_NAME = "config.toml"
SOCKET_NAME = "appliance.sock"
MACHINE_RUN_DIR = Path("/run/appliance")


@dataclass(frozen=True, slots=True)
class Paths:
    """Folders and files of one daemon. Nothing here is created or checked."""

    config_file: Path
    state_dir: Path
    models_dir: Path
    socket: Path
    machine_socket: Path | None = None
    """Where the machine's own daemon listens; None where a home or the unit says which is meant."""

    @property
    def run_dir(self) -> Path:
        return self.socket.parent

    @property
    def admin_token(self) -> Path:
        """The first admin token of the TCP side; mode 0600."""
        return self.state_dir / "admin.token"

    def with_config(self, daemon: DaemonConfig) -> Paths:
        """The same with what `[daemon]` overrides; relative paths are relative to config.toml."""
        folder = self.config_file.parent
        changes = {
            name: folder / Path(value).expanduser()
            for name in ("state_dir", "models_dir", "socket")
            if (value := getattr(daemon, name))
        }
        return replace(self, **changes)


def find_paths(home: Path | None, environ: Mapping[str, str], uid: int | None = None) -> Paths:
    """The places of the daemon that `home` or the environment names.

    In this order: `--home DIR`; `APPLIANCE_HOME`; for root, or where the unit set them up,
    /etc/appliance, /var/lib/appliance and /run/appliance; else the user's XDG folders.
    systemd's `STATE_DIRECTORY`, `RUNTIME_DIRECTORY` and `CONFIGURATION_DIRECTORY` win over the
    fixed system places, so that a unit may move them.
    """
    if home is None and environ.get("APPLIANCE_HOME"):
        home = Path(environ["APPLIANCE_HOME"])
    if home is not None:
        home = home.expanduser().absolute()
        return _below(home, home / "state", home / "models", home / "run")
    if "STATE_DIRECTORY" in environ or (os.geteuid() if uid is None else uid) == 0:
        state = Path(environ.get("STATE_DIRECTORY", "/var/lib/appliance").partition(":")[0])
        run = Path(environ.get("RUNTIME_DIRECTORY", str(MACHINE_RUN_DIR)).partition(":")[0])
        config = Path(environ.get("CONFIGURATION_DIRECTORY", "/etc/appliance").partition(":")[0])
        return _below(config, state, state / "models", run)
    dirs = platformdirs.PlatformDirs("appliance", appauthor=False)
    state = dirs.user_state_path
    # Without a session there is no XDG_RUNTIME_DIR, and a folder in /tmp is anybody's to take.
    runtime = environ.get("XDG_RUNTIME_DIR")
    run = Path(runtime, "appliance") if runtime else state / "run"
    own = _below(dirs.user_config_path, state, dirs.user_data_path / "models", run)
    return replace(own, machine_socket=MACHINE_RUN_DIR / SOCKET_NAME)


def client_socket(paths: Paths) -> Path:
    """The socket a client should talk to: its own daemon's, else the machine's if there is one.

    So that whoever is in the group of an installed daemon needs no option to reach it. Looks at
    the machine's folder only, whose content those outside the group may not even list.
    """
    machine = paths.machine_socket
    if machine is None or paths.socket.exists() or not machine.parent.is_dir():
        return paths.socket
    return machine


def _below(config_dir: Path, state_dir: Path, models_dir: Path, run_dir: Path) -> Paths:
    return Paths(config_dir / CONFIG_NAME, state_dir, models_dir, run_dir / SOCKET_NAME)
