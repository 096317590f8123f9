"""The locks hash everything, name no index host, and hold what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-llama.lock")
ENTRY = re.compile(r"^[a-z0-9-]+==\S+( ; .+?)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+$")


def pins(name: str) -> dict[str, set[str]]:
    """Package to the versions it is pinned to (several where platforms differ)."""
    found: dict[str, set[str]] = {}
    for match in re.finditer(r"(?m)^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / name).read_text()):
        found.setdefault(match[1], set()).add(match[2])
    return found


def wanted(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    names = {re.split(r"[<>=!\[; ]", line, maxsplit=1)[0].lower() for line in lines}
    return names - {"llama-cpp-python"}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_hashes_and_nothing_else_stands_there(name: str) -> None:
    entries = re.split(r"(?m)^(?=\S)", (ROOT / name).read_text())
    for entry in filter(None, entries):
        assert re.match(
            r"^[a-z0-9-]+==\S+( ; .+?)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+$", entry
        )


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_names_a_host_or_a_path(name: str) -> None:
    assert not re.search(r"://|file:|/opt|/home|/root|--index|--find", (ROOT / name).read_text())


def test_all_that_is_asked_for_is_locked() -> None:
    assert wanted() <= pins("requirements.lock").keys()
    assert wanted("dev") <= pins("requirements-dev.lock").keys()


def test_tests_run_on_the_versions_that_are_installed() -> None:
    tested = pins("requirements-dev.lock")
    assert all(versions == tested[name] for name, versions in pins("requirements.lock").items())


def test_llama_cpp_is_the_version_the_project_pins() -> None:
    (version,) = pins("requirements-llama.lock")["llama-cpp-python"]
    assert f"llama-cpp-python=={version}" in (ROOT / "pyproject.toml").read_text()
