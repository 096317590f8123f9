"""Where a daemon keeps its things, for each way of starting it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.load import parse
from appliance.config.paths import client_socket, find_paths


def test_a_home_holds_everything(tmp_path: Path) -> None:
    paths = find_paths(tmp_path, {}, uid=0)
    assert paths.config_file == tmp_path / "config.toml"
    assert paths.state_dir == tmp_path / "state"
    assert paths.models_dir == tmp_path / "models"
    assert paths.socket == tmp_path / "run" / "appliance.sock"
    assert paths.admin_token == tmp_path / "state" / "admin.token"


def test_the_environment_names_a_home_and_the_option_wins(tmp_path: Path) -> None:
    environ = {"APPLIANCE_HOME": str(tmp_path / "env")}
    assert find_paths(None, environ).state_dir == tmp_path / "env" / "state"
    assert find_paths(tmp_path / "option", environ).state_dir == tmp_path / "option" / "state"


def test_root_uses_the_system_places() -> None:
    paths = find_paths(None, {}, uid=0)
    assert str(paths.config_file) == "/etc/appliance/config.toml"
    assert str(paths.state_dir) == "/var/lib/appliance"
    assert str(paths.models_dir) == "/var/lib/appliance/models"
    assert str(paths.socket) == "/run/appliance/appliance.sock"


def test_a_unit_may_move_them() -> None:
    environ = {"STATE_DIRECTORY": "/srv/state:/srv/more", "RUNTIME_DIRECTORY": "/run/other"}
    paths = find_paths(None, environ, uid=998)
    assert str(paths.state_dir) == "/srv/state"
    assert str(paths.socket) == "/run/other/appliance.sock"
    assert str(paths.config_file) == "/etc/appliance/config.toml"


def test_a_user_has_a_place_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    paths = find_paths(None, {"XDG_RUNTIME_DIR": str(tmp_path / "run")}, uid=1000)
    assert paths.config_file == tmp_path / "config" / "appliance" / "config.toml"
    assert paths.socket == tmp_path / "run" / "appliance" / "appliance.sock"
    without_session = find_paths(None, {}, uid=1000)
    assert without_session.socket == tmp_path / "state" / "appliance" / "run" / "appliance.sock"


def test_a_client_without_a_daemon_of_its_own_asks_the_one_of_the_machine(tmp_path: Path) -> None:
    machine = tmp_path / "machine" / "appliance.sock"
    paths = replace(find_paths(tmp_path / "home", {}), machine_socket=machine)
    assert client_socket(paths) == paths.socket
    machine.parent.mkdir()
    assert client_socket(paths) == machine
    paths.run_dir.mkdir(parents=True)
    paths.socket.touch()
    assert client_socket(paths) == paths.socket


def test_a_named_home_never_means_the_daemon_of_the_machine(tmp_path: Path) -> None:
    assert find_paths(tmp_path, {}).machine_socket is None
    assert find_paths(None, {"APPLIANCE_HOME": str(tmp_path)}, uid=1000).machine_socket is None
    assert find_paths(None, {}, uid=1000).machine_socket is not None


def test_the_configuration_overrides_folders_relative_to_itself(tmp_path: Path) -> None:
    text = '[daemon]\nmodels_dir = "../weights"\nsocket = "/run/x.sock"\n'
    daemon = parse(text, tmp_path / "config.toml").daemon
    paths = find_paths(tmp_path, {}).with_config(daemon)
    assert paths.models_dir == tmp_path / "../weights"
    assert paths.socket == Path("/run/x.sock")
    assert paths.state_dir == tmp_path / "state"
