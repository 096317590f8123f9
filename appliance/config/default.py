"""The files that come with the package: the example `config.toml` and the models' manifest."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[1]


def default_config_text() -> str:
    """The complete, commented example; what a new `--home` gets as its `config.toml`."""
    return _shipped("config.toml", _CHECKOUT / "config.toml").read_text(encoding="utf-8")


def manifest_file() -> Path:
    return _shipped("manifest.toml", _CHECKOUT / "models" / "manifest.toml")


def write_default_config(path: Path) -> bool:
    """Writes the example to `path` (mode 0600) unless there is a file; True if it wrote.

    Two daemons that start at once both succeed, and one of them writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            path.chmod(0o600)
            file.write(default_config_text())
    except FileExistsError:
        return False
    return True


def _shipped(name: str, in_checkout: Path) -> Path:
    """A wheel carries the file beside this module; a checkout has it at its own place."""
    installed = _HERE / name
    return installed if installed.exists() else in_checkout
